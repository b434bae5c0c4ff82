"""Any gymnax environment as a task family: its parameters are the task."""

from typing import Any

import gymnax
import jax.numpy as jnp
from gymnax.environments import spaces
from gymnax.environments.environment import Environment

from icrl_envs.foreign.common import Foreign, SampleTask, clipped, strong
from icrl_envs.foreign_code import usual_promotion
from icrl_envs.task_family import is_name, require
from icrl_envs.wrappers import Wrapper


class FromGymnax(Foreign, Wrapper):
    """See `from_gymnax`. Time limits are gymnax's own: `max_steps_in_episode` of the params."""

    render: Any = None  # gymnax draws on the host, through matplotlib

    def __init__(self, env: Environment, sample_task: SampleTask | None):
        super().__init__(env)
        self.draw = sample_task
        with usual_promotion():
            self._default_params = strong(env.default_params)

    @property
    def default_params(self) -> Any:
        """gymnax's own, as arrays."""
        return self._default_params

    def step_env(self, key, state, action, params):
        """One step, in the dtypes that the spaces promise; actions outside the space are clipped."""
        with usual_promotion():
            action = clipped(self.env.action_space(params), action)
            obs, state, reward, terminated, info = self.env.step_env(key, state, action, params)
            obs = self._as_promised(obs, params)
            return obs, state, jnp.asarray(reward, jnp.float32), jnp.asarray(terminated, bool), info

    def reset_env(self, key, params):
        """Starts an episode."""
        with usual_promotion():
            obs, state = self.env.reset_env(key, params)
            return self._as_promised(obs, params), state

    def is_truncated(self, state, params):
        """At the time limit of the params."""
        with usual_promotion():
            return self.env.is_truncated(state, params)

    def action_space(self, params=None):
        """gymnax's own."""
        with usual_promotion():
            return self.env.action_space(self.default_params if params is None else params)

    def observation_space(self, params=None):
        """gymnax's own; some are narrower than what is observed."""
        with usual_promotion():
            return self.env.observation_space(self.default_params if params is None else params)

    def _as_promised(self, obs, params):
        space = self.env.observation_space(params)
        return jnp.asarray(obs, space.dtype) if isinstance(space, spaces.Box | spaces.Discrete) else obs


def from_gymnax(env: str | Environment, sample_task: SampleTask | None = None, **kwargs: Any) -> FromGymnax:
    """A gymnax environment as a task family.

    `from_gymnax("CartPole-v1", sample_task=lambda key, split: {"length": jax.random.uniform(key, minval=0.2)})` is a
    family of carts with poles of different lengths.

    Args:
      env: a registered id, or an environment.
      sample_task: `(key, split) -> env_params`, or a dict of the fields that differ from `default_params`. Keys of
        different splits differ. Without it there is one task in every split, gymnax's default parameters.
      **kwargs: constructor arguments, where `env` is an id.
    Raises:
      ValueError: unknown id.
    """
    if not isinstance(env, str):
        require(not kwargs, "kwargs", kwargs, "empty where env is an environment, not an id")
        return FromGymnax(env, sample_task)
    require(is_name(env, gymnax.registered_envs), "env", env, f"one of {', '.join(gymnax.registered_envs)}")
    with usual_promotion():
        return FromGymnax(gymnax.make(env, **kwargs)[0], sample_task)

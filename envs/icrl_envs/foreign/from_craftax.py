"""Craftax as a task family: its parameters are the task, its world is drawn at every reset."""

from typing import Any

import jax.numpy as jnp
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import EnvParams, EnvState

from icrl_envs.foreign.common import Foreign, SampleTask, clipped, like, optional, strong
from icrl_envs.foreign_code import usual_promotion
from icrl_envs.task_family import NEVER, is_name, require
from icrl_envs.wrappers import Wrapper

IDS = ("Craftax-Symbolic-v1", "Craftax-Pixels-v1", "Craftax-Classic-Symbolic-v1", "Craftax-Classic-Pixels-v1")


@struct.dataclass
class CraftaxParams(EnvParams):
    """One task: Craftax's own parameters, and the time limit in place of theirs."""

    rules: Any = None  # Craftax's EnvParams: day_length, always_diamond, ...
    max_steps_in_episode: Any = 1


@struct.dataclass
class CraftaxState(EnvState):
    """Craftax's state, and the time."""

    world: Any  # Craftax's EnvState


class FromCraftax(Foreign, Wrapper):
    """See `from_craftax`. Dying terminates; the time limit, which Craftax counts as a death, truncates."""

    render: Any = None

    def __init__(self, env: Any, sample_task: SampleTask | None):
        super().__init__(env)
        self.draw = sample_task
        rules = strong(env.default_params)
        limit, never = rules.max_timesteps, jnp.int32(NEVER)
        self._default_params = CraftaxParams(rules=rules.replace(max_timesteps=never), max_steps_in_episode=limit)

    @property
    def default_params(self) -> CraftaxParams:
        """Craftax's own."""
        return self._default_params

    def as_params(self, task: Any) -> CraftaxParams:
        """A dict of Craftax's fields, completed; `max_timesteps` is the time limit."""
        if not isinstance(task, dict):
            return super().as_params(task)
        default = self.default_params
        limit = task.get("max_timesteps", default.max_steps_in_episode)
        rules = default.rules.replace(**{**task, "max_timesteps": default.rules.max_timesteps})
        return super().as_params(CraftaxParams(rules=rules, max_steps_in_episode=limit))

    def step_env(self, key, state, action, params):
        """One action; those outside the space are clipped."""
        action = clipped(self.action_space(params), action)
        with usual_promotion():
            obs, world, reward, terminated, info = self.env.step_env(key, state.world, action, params.rules)
            after = CraftaxState(time=state.time + 1, world=like(state.world, world))
            return obs, after, jnp.asarray(reward, jnp.float32), jnp.asarray(terminated, bool), info

    def reset_env(self, key, params):
        """Starts an episode in a new world."""
        with usual_promotion():
            obs, world = self.env.reset_env(key, params.rules)
        return obs, CraftaxState(time=jnp.zeros((), jnp.int32), world=strong(world))  # type: ignore[arg-type]

    def is_truncated(self, state, params):
        """At the time limit of the params."""
        return state.time >= params.max_steps_in_episode

    def action_space(self, params=None) -> spaces.Discrete:
        """Craftax's own, in gymnax's class."""
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params=None) -> spaces.Box:
        """Craftax's own, in gymnax's class."""
        own = self.env.observation_space(self.default_params.rules)
        return spaces.Box(own.low, own.high, own.shape, own.dtype)


def from_craftax(env: str = "Craftax-Symbolic-v1", sample_task: SampleTask | None = None) -> FromCraftax:
    """Craftax as a task family (extra `craftax`). Compiling a step of it takes tens of seconds on a CPU.

    Args:
      env: "Craftax-Symbolic-v1", "Craftax-Pixels-v1", "Craftax-Classic-Symbolic-v1" or "Craftax-Classic-Pixels-v1".
      sample_task: `(key, split) -> {field: value}` of Craftax's parameters (`day_length`, `always_diamond`, ...). Keys
        of different splits differ. Without it there is one task in every split, Craftax's default parameters.
    Raises:
      ImportError: Craftax is not installed.
      ValueError: unknown id.
    """
    craftax = optional("craftax.craftax_env", "craftax")
    require(is_name(env, IDS), "env", env, f"one of {', '.join(IDS)}")
    return FromCraftax(craftax.make_craftax_env_from_name(env, auto_reset=False), sample_task)

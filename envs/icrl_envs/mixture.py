"""`mixture(*envs)`: several environments behind one interface; which one it is belongs to the task."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import EnvParams, EnvState

from icrl_envs.task_family import NEVER, Split, TaskFamily, require, split_key


@struct.dataclass
class MixtureParams(EnvParams):
    """Which environment it is, and a task of each."""

    index: jax.Array = struct.field(default_factory=lambda: jnp.zeros((), jnp.int32))  # int32 []
    env_params: Any = ()
    max_steps_in_episode: int = NEVER


@struct.dataclass
class MixtureState(EnvState):
    """A state of each environment; only that of the chosen one moves."""

    states: Any


class Mixture(TaskFamily):
    def __init__(self, *envs):
        require(len(envs) > 0, "envs", envs, "one environment or more")
        families = all(isinstance(env, TaskFamily) for env in envs)
        require(families, "envs", envs, "task families, each an argument of its own")
        self.envs = envs
        params = [env.default_params for env in envs]
        self._obs_spaces = [env.observation_space(p) for env, p in zip(envs, params, strict=True)]
        for env, space in zip(envs, self._obs_spaces, strict=True):
            require(isinstance(space, spaces.Box), "envs", env.name, "environments whose observations are a Box")
        for what, values in (
            ("the observations' shape", [(space.shape, space.dtype) for space in self._obs_spaces]),
            ("actions", [repr(env.action_space(p)) for env, p in zip(envs, params, strict=True)]),
            ("`episodic`", [env.episodic for env in envs]),
        ):
            same = all(value == values[0] for value in values)
            require(same, "envs", tuple(env.name for env in envs), f"equal in {what} (see `projected`), not {values}")
        self.episodic = envs[0].episodic
        self.num_steps = max(int(p.max_steps_in_episode) for p in params)

    @property
    def default_params(self) -> MixtureParams:
        """The first environment."""
        return self._params(jnp.zeros((), jnp.int32), tuple(env.default_params for env in self.envs))

    def sample_task(self, key: jax.Array, split: Split = "train") -> MixtureParams:
        """Draws an environment, all equally likely, and a task of each."""
        key_index, *keys = jax.random.split(split_key(key, split), 1 + len(self.envs))
        tasks = tuple(env.sample_task(key, split) for env, key in zip(self.envs, keys, strict=True))
        return self._params(jax.random.randint(key_index, (), 0, len(self.envs)), tasks)

    def _params(self, index, env_params):
        return MixtureParams(index=index, env_params=env_params, max_steps_in_episode=self.num_steps)

    def reset_env(self, key, params):
        """Starts each environment and shows the chosen one."""
        started = [env.reset_env(key, p) for env, p in zip(self.envs, params.env_params, strict=True)]
        obs, states = zip(*started, strict=True)
        return self._chosen(params, lambda i, env, _: obs[i]), self._state(states, params)

    def step_env(self, key, state, action, params):
        """Steps the chosen environment; what it puts into `info` is dropped, as others put in something else."""

        def step(i, env, env_params):
            obs, moved, reward, terminated, _ = env.step_env(key, state.states[i], action, env_params)
            return obs, (*state.states[:i], moved, *state.states[i + 1 :]), reward, terminated

        obs, states, reward, terminated = self._chosen(params, step)
        return obs, self._state(states, params), reward, terminated, {}

    def is_truncated(self, state, params):
        """As in the chosen environment."""
        return self._chosen(params, lambda i, env, p: env.is_truncated(state.states[i], p))

    def _chosen(self, params, function):
        """`function(i, env, its params)` of the chosen environment; the mixture's time limit holds if it is lower."""

        def branch(i, env, tasks):
            limit = jnp.minimum(tasks[i].max_steps_in_episode, params.max_steps_in_episode)
            return function(i, env, tasks[i].replace(max_steps_in_episode=limit))

        branches = [functools.partial(branch, i, env) for i, env in enumerate(self.envs)]
        return jax.lax.switch(params.index, branches, params.env_params)

    def _state(self, states, params):
        return MixtureState(time=self._chosen(params, lambda i, env, _: states[i].time), states=states)

    @property
    def expected_reward(self):
        if not self._all_have("expected_reward"):
            return None
        return lambda state, action, params: self._chosen(
            params, lambda i, env, p: env.expected_reward(state.states[i], action, p)
        )

    @property
    def optimal_advantage(self):
        if not self._all_have("optimal_advantage"):
            return None
        return lambda state, action, params: self._chosen(
            params, lambda i, env, p: env.optimal_advantage(state.states[i], action, p)
        )

    @property
    def optimal_action(self):
        if not self._all_have("optimal_action"):
            return None
        return lambda state, params: self._chosen(params, lambda i, env, p: env.optimal_action(state.states[i], p))

    @property
    def optimal_return(self):
        if not self._all_have("optimal_return"):
            return None
        return lambda params: self._chosen(params, lambda i, env, p: env.optimal_return(p))

    @property
    def render(self):
        return self._render if self._all_have("render") else None

    def _render(self, state, params):
        """The chosen environment's picture, in the top left corner of the smallest that holds those of all."""
        inside = zip(self.envs, state.states, params.env_params, strict=True)
        shapes = [jax.eval_shape(env.render, s, p).shape for env, s, p in inside]
        size = np.max(shapes, axis=0)

        def draw(i, env, env_params):
            missing = [(0, int(n)) for n in size - np.array(shapes[i])]
            return jnp.pad(env.render(state.states[i], env_params), missing, constant_values=255)

        return self._chosen(params, draw)

    def _all_have(self, name):
        return all(getattr(env, name) is not None for env in self.envs)

    @property
    def num_actions(self) -> int:
        """Number of actions, the same in all."""
        return self.envs[0].num_actions

    def action_space(self, params=None):
        """The same in all."""
        return self.envs[0].action_space(self.envs[0].default_params)

    def observation_space(self, params=None) -> spaces.Box:
        """The smallest box around those of all."""
        space = self._obs_spaces[0]
        low = np.min([np.broadcast_to(np.asarray(s.low), s.shape) for s in self._obs_spaces], axis=0)
        high = np.max([np.broadcast_to(np.asarray(s.high), s.shape) for s in self._obs_spaces], axis=0)
        return spaces.Box(low, high, space.shape, space.dtype)  # type: ignore[arg-type]


def mixture(*envs: TaskFamily) -> Mixture:
    """Mixes environments of one interface: a task is one of them, all equally likely, and a task of it.

    With `projected` environments this is the multi-environment meta-task of Lu et al. 2023 (resettable S5): one network
    meets them all, and is told by nothing but what it sees. Held-out environments go into a mixture of their own.
    Mapped over tasks, every step computes the step of every environment and picks one, as XLA must.

    Args:
      *envs: of equal observation shapes and equal actions, all episodic or none; one named twice is twice as likely.
    Raises:
      ValueError: environments that differ in these.
    """
    return Mixture(*envs)

"""`projected(env, obs_size, action_size)`: an environment behind random linear maps, so that one network meets many."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import Environment, EnvParams

from icrl_envs.task_family import NEVER, Split, is_int, require, split_key
from icrl_envs.wrappers import Wrapper

OBS_GAIN = math.sqrt(2)


@struct.dataclass
class ProjectedParams(EnvParams):
    """A task of the environment inside, and the maps that it is seen and acted in through."""

    env_params: Any = None
    obs_matrix: jax.Array = struct.field(default_factory=lambda: jnp.zeros((1, 1)))  # float32 [obs_size, inside]
    action_map: Any = None  # int32 [action_size] if discrete, else float32 [inside, action_size]; None: no map
    max_steps_in_episode: int = NEVER


class Projected(Wrapper):
    tasks: Any = None  # there are infinitely many

    def __init__(self, env, obs_size, action_size):
        super().__init__(env)
        params = env.default_params
        self._obs_space, self._action_space = env.observation_space(params), env.action_space(params)
        obs, _ = jax.eval_shape(env.reset_env, jax.random.key(0), params)
        plain = isinstance(obs, jax.ShapeDtypeStruct) and _is_plain(self._obs_space) and _is_plain(self._action_space)
        require(plain, "env", env.name, "one array to see and one to act with: other wrappers go around this one")
        self._obs_inside, self._actions_inside = _size(self._obs_space), _size(self._action_space)
        self._is_discrete = isinstance(self._action_space, spaces.Discrete)
        require(is_int(obs_size, self._obs_inside), "obs_size", obs_size, _at_least(self._obs_inside))
        if action_size is not None:
            require(
                is_int(action_size, self._actions_inside), "action_size", action_size, _at_least(self._actions_inside)
            )
            bounded = self._is_discrete or np.isfinite(_bounds(self._action_space)).all()
            require(bool(bounded), "env", env.name, "one whose actions are bounded")
        self.obs_size, self.action_size = obs_size, action_size

    @property
    def default_params(self):
        """The default task inside, seen and acted in through the identity, padded."""
        action_map = None
        if self.action_size is not None and self._is_discrete:
            action_map = jnp.arange(self.action_size, dtype=jnp.int32) % self._actions_inside
        elif self.action_size is not None:
            action_map = self._action_gain * jnp.eye(self._actions_inside, self.action_size)
        return self._params(self.env.default_params, jnp.eye(self.obs_size, self._obs_inside), action_map)

    def sample_task(self, key: jax.Array, split: Split = "train") -> ProjectedParams:
        """Draws a task inside and new maps; neither is shared between splits."""
        key_env, key_obs, key_action = jax.random.split(split_key(key, split), 3)
        isometry = jax.random.orthogonal(key_obs, self.obs_size, m=self._obs_inside)
        return self._params(self.env.sample_task(key_env, split), isometry, self._sample_action_map(key_action))

    def _sample_action_map(self, key):
        inside, outside = self._actions_inside, self.action_size
        if outside is None:
            return None
        if not self._is_discrete:
            return self._action_gain * jax.random.orthogonal(key, outside, m=inside).T
        key_spare, key_order = jax.random.split(key)
        spare = jax.random.randint(key_spare, (outside - inside,), 0, inside)
        return jax.random.permutation(key_order, jnp.append(jnp.arange(inside, dtype=jnp.int32), spare))

    def _params(self, env_params, isometry, action_map):
        return ProjectedParams(
            env_params=env_params,
            obs_matrix=OBS_GAIN * isometry,
            action_map=action_map,
            max_steps_in_episode=env_params.max_steps_in_episode,
        )

    def reset_env(self, key, params):
        obs, state = self.env.reset_env(key, _inside(params))
        return self._project(obs, params), state

    def step_env(self, key, state, action, params):
        action = self._action(action, params)
        obs, state, reward, terminated, info = self.env.step_env(key, state, action, _inside(params))
        return self._project(obs, params), state, reward, terminated, info

    def is_truncated(self, state, params):
        return self.env.is_truncated(state, _inside(params))

    def _project(self, obs, params):
        if isinstance(self._obs_space, spaces.Discrete):
            obs = jax.nn.one_hot(obs, self._obs_space.n)
        return _times(params.obs_matrix, obs.reshape(-1).astype(jnp.float32))

    def _action(self, action, params):
        """The action inside."""
        if self.action_size is None:
            return action
        if self._is_discrete:
            return jnp.asarray(params.action_map)[jnp.clip(action, 0, self.action_size - 1)]
        low, high = _bounds(self._action_space)
        inside = _times(params.action_map, jnp.clip(action, -1, 1))
        inside = jnp.clip((low + high) / 2 + (high - low) / 2 * inside, low, high)
        return inside.reshape(self._action_space.shape)

    def _action_outside(self, action, params):
        """An action that `_action` maps to this one."""
        if self.action_size is None:
            return action
        if self._is_discrete:
            return jnp.argmax(params.action_map == action).astype(jnp.int32)
        low, high = _bounds(self._action_space)
        inside = (2 * action.reshape(-1) - (low + high)) / (high - low)
        return _times(params.action_map.T, inside) / self._action_gain**2  # the rows are orthogonal

    @property
    def _action_gain(self):
        return math.sqrt(self._actions_inside)

    @property
    def expected_reward(self):
        inner = self.env.expected_reward
        return inner and (lambda state, action, params: inner(state, self._action(action, params), _inside(params)))

    @property
    def optimal_advantage(self):
        inner = self.env.optimal_advantage
        return inner and (lambda state, action, params: inner(state, self._action(action, params), _inside(params)))

    @property
    def optimal_action(self):
        inner = self.env.optimal_action
        return inner and (lambda state, params: self._action_outside(inner(state, _inside(params)), params))

    @property
    def optimal_return(self):
        inner = self.env.optimal_return
        return inner and (lambda params: inner(_inside(params)))

    @property
    def render(self):
        inner = self.env.render
        return inner and (lambda state, params: inner(state, _inside(params)))

    @property
    def num_actions(self):
        return self.action_size if self.action_size and self._is_discrete else self.env.num_actions

    def action_space(self, params=None):
        if self.action_size is None:
            return self._action_space
        if self._is_discrete:
            return spaces.Discrete(self.action_size)
        return spaces.Box(-1.0, 1.0, (self.action_size,))

    def observation_space(self, params=None):
        """No entry can exceed the length of the longest observation; a little more for rounding."""
        largest = np.ones(1)  # of a one-hot
        if isinstance(self._obs_space, spaces.Box):
            largest = np.abs(_bounds(self._obs_space)).max(axis=0).astype(np.float64)
        bound = min(1.00001 * OBS_GAIN * np.linalg.norm(largest), np.finfo(np.float32).max)
        return spaces.Box(-float(bound), float(bound), (self.obs_size,))


def projected(env: Environment, obs_size: int, action_size: int | None = None) -> Projected:
    """Puts an environment behind random linear projections (Lu et al. 2023, resettable S5: their meta-task).

    The maps are part of the task: one sees `obs_matrix @ obs`, whose matrix is sqrt(2) times a random isometry, as in
    the published code (the paper does not state its law), and acts with `action_size` numbers or choices instead of the
    environment's own:

    - continuous: the action, clipped to [-1, 1], times sqrt(n) times a random matrix with n orthonormal rows, in units
      of half the range inside, is clipped into it, so that every action inside can be reached;
    - discrete: a random action inside for each choice, every one for at least one; `action_size` = n permutes them.

    Discrete observations are one-hot inside, others flattened. A best action stays known where it was. `env.tasks` is
    None: an environment whose tasks can be listed has infinitely many behind projections.

    Args:
      env: the environment, of one observation and one action array: other wrappers go around `projected`.
      obs_size: numbers seen, at least as many as inside.
      action_size: numbers or choices to act with, at least as many as inside (n); None acts as inside.
    Raises:
      ValueError: sizes below those inside, or an environment of other spaces.
    """
    return Projected(env, obs_size, action_size)


def _inside(params):
    """The task inside, with the time limit of the one outside."""
    return params.env_params.replace(max_steps_in_episode=params.max_steps_in_episode)


def _is_plain(space):
    return isinstance(space, spaces.Box | spaces.Discrete)


def _size(space):
    return space.n if isinstance(space, spaces.Discrete) else math.prod(space.shape)


def _bounds(space):
    """The bounds of a box, flat, float32 [2, n]."""
    return np.stack([np.broadcast_to(np.asarray(x, np.float32), space.shape).ravel() for x in (space.low, space.high)])


def _times(matrix, vector):  # exact on every platform, where `@` may round its factors
    return jnp.sum(matrix * vector[None], axis=-1)


def _at_least(size):
    return f"an integer of at least {size}, the size inside"

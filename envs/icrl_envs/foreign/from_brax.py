"""Any Brax environment as a task family: the task sets numbers of its physics, or attributes that its code reads."""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import EnvParams, EnvState

from icrl_envs.foreign.common import Foreign, like, strong
from icrl_envs.foreign_code import quiet_brax, usual_promotion
from icrl_envs.task_family import Split, is_int, is_name, require


@struct.dataclass
class BraxParams(EnvParams):
    """One task: what is set on the Brax environment while it steps."""

    values: dict[str, jax.Array] = struct.field(default_factory=dict)  # "sys.gravity" -> float32 [3], ...
    max_steps_in_episode: Any = 1000


@struct.dataclass
class BraxState(EnvState):
    """Brax's state, and the time."""

    inner: Any  # brax.envs.State


class FromBrax(Foreign):
    """See `from_brax`. Observation float32 [O]; actions float32 [A], clipped to [-1, 1]; Brax's `done` terminates."""

    rare_reset = True

    def __init__(self, env: Any, sample_task: Callable | None, max_steps_in_episode: int):
        require(
            is_int(max_steps_in_episode, 1), "max_steps_in_episode", max_steps_in_episode, "an integer of at least 1"
        )
        with usual_promotion():
            obs = jax.eval_shape(env.reset, jax.random.key(0)).obs
        if isinstance(obs, Mapping):
            raise ValueError(f"env={type(env).__name__}: must observe one array, not a dict")
        self.env, self.draw, self.max_steps, self.obs_shape = env, sample_task, max_steps_in_episode, obs.shape

    @property
    def name(self) -> str:
        """Of the Brax class."""
        return type(self.env).__name__

    @property
    def default_params(self) -> BraxParams:
        """The environment's own values of all that tasks set."""
        return BraxParams(values=self._own_values, max_steps_in_episode=np.int32(self.max_steps))

    @cached_property
    def _own_values(self) -> dict[str, Any]:
        draw = self.draw
        if draw is None:
            return {}
        paths = jax.eval_shape(lambda key: draw(key, "all"), jax.random.key(0))
        with jax.ensure_compile_time_eval():  # kept from one trace to the next
            return {path: strong(_get(self.env, path)) for path in paths}

    def as_params(self, task: Any) -> BraxParams:
        """A dict of values, completed."""
        return super().as_params({"values": task})

    def step_env(self, key, state, action, params):
        """One control step."""
        action = jnp.clip(action, -1.0, 1.0)
        with usual_promotion():
            inner = like(state.inner, self._with(params).step(state.inner, action))
        terminated = inner.done.astype(bool)
        return inner.obs, BraxState(time=state.time + 1, inner=inner), inner.reward, terminated, dict(inner.metrics)

    def reset_env(self, key, params):
        """Starts an episode where Brax starts one."""
        with usual_promotion():
            inner = strong(self._with(params).reset(key))
        inner = inner.replace(reward=inner.reward.astype(jnp.float32))
        return inner.obs, BraxState(time=jnp.zeros((), jnp.int32), inner=inner)  # type: ignore[arg-type]

    def _with(self, params: BraxParams) -> Any:
        env = self.env
        for path, value in params.values.items():
            env = _set(env, path, value)
        return env

    @property
    def num_actions(self) -> int:
        """Size of the action."""
        return self.env.action_size

    def action_space(self, params=None) -> spaces.Box:
        """What the actuators take."""
        return spaces.Box(-1.0, 1.0, (self.env.action_size,))

    def observation_space(self, params=None) -> spaces.Box:
        """Unbounded."""
        return spaces.Box(-jnp.inf, jnp.inf, self.obs_shape)


def _get(thing: Any, path: str) -> Any:
    for name in path.split("."):
        if not hasattr(thing, name):
            raise ValueError(f"sample_task sets {path!r}: {type(thing).__name__} has no {name!r}")
        thing = getattr(thing, name)
    return thing


def _set(thing: Any, path: str, value: Any) -> Any:
    """A shallow copy of `thing` with the value at a dotted path changed."""
    name, _, rest = path.partition(".")
    value = _set(getattr(thing, name), rest, value) if rest else value
    if dataclasses.is_dataclass(thing):
        return dataclasses.replace(thing, **{name: value})  # type: ignore[type-var]
    thing = copy.copy(thing)
    setattr(thing, name, value)
    return thing


def from_brax(
    env: Any,
    sample_task: Callable[[jax.Array, Split], dict[str, Any]] | None = None,
    max_steps_in_episode: int = 1000,
    **kwargs: Any,
) -> FromBrax:
    """A Brax environment as a task family; tasks are traced, so different ones step in one batch.

    `from_brax("ant", backend="spring", sample_task=lambda key, split: {"sys.gravity": ...})` varies gravity. A task can
    set any number below `sys`, and any attribute that the environment reads in `reset` and `step`, its own target for
    example; `.env` of what is returned is the Brax environment, to look those up in.

    Args:
      env: a name ("ant", "halfcheetah", ...), or a Brax environment without wrappers.
      sample_task: `(key, split) -> {dotted path: value}`, the same paths in every task. Keys of different splits
        differ. Without it there is one task in every split, the environment as it is.
      max_steps_in_episode: the time limit, which truncates.
      **kwargs: constructor arguments, where `env` is a name: `backend="spring"`, ...
    Raises:
      ValueError: unknown name, or an environment that observes a dict.
    """
    if not isinstance(env, str):
        require(not kwargs, "kwargs", kwargs, "empty where env is an environment, not a name")
        return FromBrax(env, sample_task, max_steps_in_episode)
    with quiet_brax() as envs:
        require(is_name(env, envs._envs), "env", env, f"one of {', '.join(sorted(envs._envs))}")
        made = envs.get_environment(env, **kwargs)
    return FromBrax(made, sample_task, max_steps_in_episode)

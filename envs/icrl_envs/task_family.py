"""A task family: a gymnax environment whose parameters *are* the task."""

import functools
import math
import numbers
from collections.abc import Container
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from gymnax.environments.environment import Environment

Split = Literal["train", "test", "all"]

NEVER = 2**31 - 1
"""`max_steps_in_episode` of an episode that never ends."""


class TaskFamily(Environment):
    """A gymnax `Environment` plus a distribution of tasks.

    A task is the `env_params`, a pytree: a batch of tasks is `jax.vmap` over it. It is set from outside and never
    sampled inside `reset`. What a family does not know stays None:

    - `optimal_action(state, params)`: an action that is best in this state;
    - `expected_reward(state, action, params) -> float32 []`: the mean of the reward, for pseudo-regret;
    - `optimal_advantage(state, action, params) -> float32 []`: what an action loses against the best one until the end
      of the episode, at most 0;
    - `optimal_return(params) -> float32 []`: the best expected return of one episode;
    - `tasks(split)`: all tasks stacked, where they can be listed;
    - `reset_anywhere(key, params) -> obs, state`: as `reset_env`, but anywhere, each place as likely;
    - `render(state, params) -> uint8 [height, width, 3]`: a picture of the state, hidden things included.
    """

    presets: Any = {}
    """The conventions of papers: name of the paper -> constructor arguments."""

    preset_required: Any = False
    """True where papers differ so much that `make` must be told whose conventions to follow."""

    optimal_action: Any = None
    expected_reward: Any = None
    optimal_advantage: Any = None
    optimal_return: Any = None
    tasks: Any = None
    reset_anywhere: Any = None
    render: Any = None

    episodic: Any = True
    """False for one never-ending episode, whose horizon is the number of steps of the rollout."""

    terminates: Any = True
    """False where no episode ends before its time limit, so that all of them are equally long."""

    rare_reset: Any = False
    """True where a reset is dear and the episodes of a batch mostly end together: `step` then computes resets only when
    one has ended. gymnax's own computes, at every step, the reset of every task."""

    def sample_task(self, key: jax.Array, split: Split = "train") -> Any:
        """Draws one task (`env_params`); those of "train" and "test" are disjoint by construction."""
        raise NotImplementedError

    def step(self, key: jax.Array, state: Any, action: Any, params: Any = None) -> Any:
        """gymnax's `step`: `obs, state, reward, terminated, truncated, info`, after a reset where an episode ended."""
        return _step(self, key, state, action, self.default_params if params is None else params)


@functools.partial(jax.jit, static_argnames="env")
def _step(env, key, state, action, params):
    """The results of gymnax's `step`, faster."""
    key_step, _ = jax.random.split(key)  # here faster than `lazy_split`
    final_obs, state, reward, terminated, info = env.step_env(key_step, state, action, params)
    truncated = env.is_truncated(state, params)
    done = terminated | truncated
    stepped = final_obs, state

    def reset():
        _, key_reset = lazy_split(key)  # in here, where it is drawn only if there is a reset
        at_reset = env.reset_env(key_reset, params)
        return jax.tree.map(lambda x, y: jax.lax.select(done, x, y), at_reset, stepped)

    obs, state = jax.lax.cond(any_of_batch(done), reset, lambda: stepped) if env.rare_reset else reset()
    info = {**info, "terminated": terminated, "truncated": truncated, "final_observation": final_obs}
    return obs, state, reward, terminated, truncated, info


def lazy_split(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The keys of `jax.random.split`, each computed by itself: one that is not used costs nothing."""
    return jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)


@jax.custom_batching.custom_vmap
def any_of_batch(flag):
    """Whether `flag` holds anywhere in the batch: under vmap still one scalar, so that `cond` stays a branch."""
    return flag


@any_of_batch.def_vmap
def _(axis_size, in_batched, flag):
    return any_of_batch(jnp.any(flag, axis=0)), False


def sample_tasks(env: TaskFamily, key: jax.Array, num_tasks: int, split: Split = "test") -> Any:
    """Draws tasks stacked [B, ...], held out unless told otherwise; one key gives the same tasks whoever draws them."""
    return jax.vmap(lambda key: env.sample_task(key, split))(jax.random.split(key, num_tasks))


def split_key(key: jax.Array, split: Split) -> jax.Array:
    """Gives each split of a continuous family a key stream of its own.

    Raises:
      ValueError: unknown split.
    """
    if split not in get_args(Split):
        raise ValueError(f"split={split!r}: must be one of {', '.join(map(repr, get_args(Split)))}")
    # Counted from 2^31: `fold_in(key, i)` of a small i is `split(key)[i]`, which a caller may use for something else.
    return jax.random.fold_in(key, 2**31 + get_args(Split).index(split))


def require(condition: bool, argument: str, value: Any, allowed: str) -> None:
    """Refuses a constructor argument in one sentence that names it, its value and what is allowed."""
    if not condition:
        raise ValueError(f"{argument}={value!r}: must be {allowed}")


def is_int(value: Any, low: int, high: int = NEVER) -> bool:
    """Whether `value` is a true integer in `low ..= high`, NumPy's too (a bool is not)."""
    return isinstance(value, numbers.Integral) and is_number(value, low, high)


def is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether `value` is a finite real number in `low ..= high`, NumPy's too (a bool is not)."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and -math.inf < value < math.inf and low <= value <= high  # type: ignore[operator]


def is_name(value: Any, allowed: Container[str]) -> bool:
    """Whether `value` is one of some names; anything else than a string is none."""
    return isinstance(value, str) and value in allowed


def check_action(env: Environment, params: Any, action: Any) -> None:
    """Raises `ValueError` when a concrete action lies outside the action space (inside `step` it is clipped)."""
    space = env.action_space(params)
    action = jnp.asarray(action)
    fits = action.shape == space.shape and jnp.issubdtype(action.dtype, jnp.integer) == jnp.issubdtype(
        space.dtype, jnp.integer
    )
    if not fits or not bool(jnp.all(space.contains(action))):
        raise ValueError(f"action={action!r}: must lie in {space!r}")

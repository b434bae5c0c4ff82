"""A task family: a gymnax environment whose parameters *are* the task."""

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
    - `optimal_return(params) -> float32 []`: the best expected return of one episode;
    - `tasks(split)`: all tasks stacked, where they can be listed.
    """

    optimal_action: Any = None
    expected_reward: Any = None
    optimal_return: Any = None
    tasks: Any = None

    episodic: Any = True
    """False for one never-ending episode, whose horizon is the number of steps of the rollout."""

    def sample_task(self, key: jax.Array, split: Split = "train") -> Any:
        """Draws one task (`env_params`); those of "train" and "test" are disjoint by construction."""
        raise NotImplementedError


def sample_tasks(env: TaskFamily, key: jax.Array, num_tasks: int, split: Split = "test") -> Any:
    """Draws tasks stacked [B, ...]; one key gives the same tasks whoever draws them."""
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
    """Whether `value` is a true integer in `low ..= high` (a bool is not)."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def check_action(env: Environment, params: Any, action: Any) -> None:
    """Raises `ValueError` when a concrete action lies outside the action space (inside `step` it is clipped)."""
    space = env.action_space(params)
    action = jnp.asarray(action)
    fits = action.shape == space.shape and jnp.issubdtype(action.dtype, jnp.integer) == jnp.issubdtype(
        space.dtype, jnp.integer
    )
    if not fits or not bool(jnp.all(space.contains(action))):
        raise ValueError(f"action={action!r}: must lie in {space!r}")

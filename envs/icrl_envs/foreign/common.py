"""What the adapters of foreign environments share."""

import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from gymnax.environments import spaces

from icrl_envs.task_family import Split, TaskFamily, split_key

SampleTask = Callable[[jax.Array, Split], Any]
"""`(key, split) -> env_params`, or a dict of only what differs from `default_params`.

Each split comes with keys of its own, so the tasks of a continuous distribution are disjoint without a look at `split`.
"""


class Foreign(TaskFamily):
    """A family whose tasks the user draws; without `sample_task` every split holds one task, `default_params`."""

    draw: SampleTask | None  # the user's

    def sample_task(self, key: jax.Array, split: Split = "train") -> Any:
        """Draws one task by the user's function; without one, it is `default_params`."""
        key = split_key(key, split)
        if self.draw is None:
            return self.default_params
        return self.as_params(self.draw(key, split))

    def as_params(self, task: Any) -> Any:
        """Completes what the user's function returned, in the dtypes of `default_params`.

        Raises:
          TypeError: it is not like `default_params`.
        """
        default: Any = self.default_params
        params = default.replace(**task) if isinstance(task, dict) else task
        if jax.tree.structure(params) != jax.tree.structure(default):
            raise TypeError(
                f"sample_task returned {type(task).__name__}: must return {type(default).__name__} with the fields of "
                "default_params, or a dict of those that differ"
            )
        return jax.tree.map(lambda own, given: jnp.asarray(given, own.dtype), default, params)

    @property
    def tasks(self) -> Any:
        """`split -> tasks` [1, ...] where there is only one task, else None: drawn tasks are not listed."""
        return self._only_task if self.draw is None else None

    def _only_task(self, split: Split) -> Any:
        return jax.tree.map(lambda x: x[None], self.sample_task(jax.random.key(0), split))


def strong(tree: Any) -> Any:
    """Python numbers as arrays, and nothing weakly typed: such types would change in the first step."""
    return jax.tree.map(lambda x: jnp.asarray(x, jax.dtypes.result_type(x)), tree)


def clipped(space: Any, action: Any) -> Any:
    """The action, moved into the space; spaces other than `Discrete` and `Box` leave it as it is."""
    if isinstance(space, spaces.Discrete):
        return jnp.clip(action, 0, space.n - 1)
    if isinstance(space, spaces.Box):
        return jnp.clip(action, space.low, space.high)
    return action


def like(old: Any, new: Any) -> Any:
    """`new` in the dtypes of `old`, so that a step returns what a reset returns."""
    return jax.tree.map(lambda old, new: jnp.asarray(new, old.dtype), old, new)


def optional(module: str, extra: str) -> Any:
    """Imports a module of an optional dependency.

    Raises:
      ImportError: it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name != package:
            raise
        raise ImportError(f"{package} is not installed; it comes with: pip install 'icrl-jax[{extra}]'") from None

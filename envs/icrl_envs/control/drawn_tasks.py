"""Tasks drawn from a law: without end, or so many of them, drawn once and split."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icrl_envs.task_family import NEVER, Split, TaskFamily, is_int, require, split_key


class DrawnTasks(TaskFamily):
    """A family that says how to `draw` the values of one task and how to make `params` of them.

    Without `num_train` tasks never run out, and each split has a key stream of its own. With it there are `num_train`
    tasks to train on and `num_test` to test on, drawn once from `split_seed`; then `tasks(split)` lists them.

    Args:
      num_steps: length of an episode, at least 1.
      num_train: None, or at least 1.
      num_test: at least 1; counts only beside `num_train`.
      split_seed: seed of the list, 0 ..= 2^31 - 1.
      published_test: values of the test tasks, stacked, where a paper gives them.
    """

    def __init__(
        self, num_steps: int, num_train: int | None, num_test: int, split_seed: int, published_test: Any = None
    ):
        require(is_int(num_steps, 1, NEVER - 1), "num_steps", num_steps, f"an integer in 1 ..= {NEVER - 1}")
        require(num_train is None or is_int(num_train, 1), "num_train", num_train, "None or an integer of at least 1")
        require(is_int(num_test, 1), "num_test", num_test, "an integer of at least 1")
        require(is_int(split_seed, 0), "split_seed", split_seed, f"an integer in 0 ..= {NEVER}")
        self.num_steps = num_steps
        self._listed: dict[str, dict[str, np.ndarray]] = {}  # split -> values of its tasks, stacked
        if num_train is None:
            return
        num_drawn = num_train + (num_test if published_test is None else 0)
        with jax.ensure_compile_time_eval():
            keys = jax.random.split(jax.random.key(split_seed), num_drawn)
            drawn = jax.tree.map(np.asarray, jax.vmap(self.draw)(keys))
        train = {name: values[:num_train] for name, values in drawn.items()}
        test = {name: values[num_train:] for name, values in drawn.items()}
        if published_test is not None:
            test = {name: np.asarray(values, np.float32) for name, values in published_test.items()}
        both = {name: np.concatenate([train[name], test[name]]) for name in train}
        self._listed = {"train": train, "test": test, "all": both}

    def until_limit(self, rewards: jax.Array, params: Any) -> jax.Array:
        """Sum of `rewards` [num_steps] up to the task's time limit; NaN where it is above `num_steps`."""
        limit = params.max_steps_in_episode
        paid = jnp.where(np.arange(self.num_steps) < limit, rewards, 0.0)
        return jnp.where(limit <= self.num_steps, paid.sum(), jnp.nan)

    def draw(self, key: jax.Array) -> dict[str, jax.Array]:
        """Draws the values of one task."""
        raise NotImplementedError

    def params(self, **values: jax.Array) -> Any:
        """The task that has these values."""
        raise NotImplementedError

    def sample_task(self, key: jax.Array, split: Split = "train") -> Any:
        """Draws one task: from the law, or from the list with equal chances."""
        key = split_key(key, split)
        if not self._listed:
            return self.params(**self.draw(key))
        listed = self._listed[split]
        index = jax.random.randint(key, (), 0, len(next(iter(listed.values()))))
        return self.params(**{name: jnp.asarray(values)[index] for name, values in listed.items()})

    @property
    def tasks(self):
        """`split -> env_params`, all tasks of a split stacked; None where they never run out."""
        return self._tasks if self._listed else None

    def _tasks(self, split: Split = "train") -> Any:
        split_key(jax.random.key(0), split)  # refuses an unknown one
        return jax.vmap(lambda values: self.params(**values))(self._listed[split])

"""Histories of a method on disk: made there once, a block of tasks after another, and streamed from then on."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from icrl_envs import TaskFamily
from icrl_jax.core import Array, Feed, Reader, Transition
from icrl_jax.data.histories import Histories, widened
from icrl_jax.data.manifest import StoreError, check_same, is_whole
from icrl_jax.data.store import write_in_blocks
from icrl_jax.data.stored import StoredHistories, open_histories
from icrl_jax.data.windows import Place, Window, draw_place, window_of
from icrl_jax.methods.sources import HistoriesConfig, count_tasks, make_histories, predicted_bytes
from icrl_jax.methods.supervised import Row

BLOCK_BYTES = 2**28
"""Memory for the tasks that are made at once."""

Between = Callable[[int, int], None]
"""`(done, num_tasks)`, called where the making of histories may stop."""


def window_feed(
    find: Callable[[Between | None], StoredHistories], check: Callable[[], None], length: int, every: int = 1
) -> tuple[Feed, Callable[[Transition, Row], Window]]:
    """A feed of the windows that `sample_window` would draw with the same keys, and the `collect` that goes with it.

    Args:
      find: opens the histories, when they are first needed.
      check: as `Feed.check`.
      length: of a window.
      every: as that of `sample_window`.
    """
    found: list[StoredHistories] = []

    def opened(between: Between | None = None) -> StoredHistories:
        if not found:
            found.append(find(between))
        return found[0]

    def draw(steps: Array, weights: Array | None, keys: Array) -> Place:
        return jax.vmap(jax.vmap(lambda key: draw_place(steps, key, length, weights, every)))(keys)

    def read(stored: StoredHistories, draw: Callable, keys: Array) -> Transition:
        places = [np.asarray(x) for x in draw(stored.steps, stored.weights, keys)]
        task, stream, first = (x.ravel() for x in places)
        windows = stored.transitions(task, stream, first, length)
        return jax.tree.map(lambda x: x.reshape(*keys.shape, *x.shape[1:]), windows)

    def open_(between: Between | None = None) -> Reader:
        stored = opened(between)
        return Reader(partial(read, stored, jax.jit(draw)), stored.digest)

    def collect(transitions: Transition, row: Row) -> Window:
        return window_of(widened(transitions, opened().form))

    return Feed(check, open_), collect


def find_histories(env: TaskFamily, config: HistoriesConfig, between: Between | None = None) -> StoredHistories:
    """Opens the histories in `config.store`; first makes them, or what is left to make, if they are not there yet.

    Raises:
      StoreError: they are damaged, of another environment or made with other options.
    """
    directory = Path(str(config.store))
    if config.source != "logged" and not is_whole(directory):
        like = jax.eval_shape(partial(make_histories, env, config))
        made = jax.jit(make_histories, static_argnums=(0, 1, 3))
        block = lambda first, num: made(env, config, np.int32(first), num)
        write_in_blocks(directory, env, like, block, tasks_at_once(env, config), _source(config), between)
    stored = open_histories(directory)
    stored.check_env(env)
    if config.source != "logged":
        if stored.about["source"] is None:
            raise StoreError(f"{directory} holds logged histories; to train on them: source='logged'")
        check_same(directory, stored.about["source"], _source(config), "source")
    return stored


def tasks_at_once(env: TaskFamily, config: HistoriesConfig) -> int:
    """How many tasks are made together, in `BLOCK_BYTES` if one fits."""
    num_tasks = count_tasks(env, config)
    return max(1, min(num_tasks, BLOCK_BYTES * num_tasks // predicted_bytes(env, config)))


def check_histories(env: TaskFamily, config: HistoriesConfig, horizon: int) -> None:
    """Refuses early what `find_histories` would refuse of a store that is whole, and streams that are too short.

    Raises:
      StoreError: as `find_histories`; there is no store, and its histories are logged ones.
      ValueError: a horizon that not every stream holds.
    """
    if config.source == "logged" or is_whole(Path(str(config.store))):
        check_horizon(find_histories(env, config), horizon)


def check_horizon(histories: Histories | StoredHistories, horizon: int) -> None:
    """Refuses windows that are longer than the shortest stream."""
    if horizon > (shortest := histories.form.least_steps):
        raise ValueError(f"horizon={horizon}: must be at most {shortest}, the length of the streams")


def _source(config: HistoriesConfig) -> dict[str, Any]:
    """What makes histories what they are."""
    return {name: value for name, value in dataclasses.asdict(config).items() if name != "store"}

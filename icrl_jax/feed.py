"""Batches that the host reads: the next chunk's while the device computes the present one."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from icrl_jax.core import Array, Reader, Tree
from icrl_jax.parallel import rows_sharding

ROWS_AXIS = 2
"""Of what a chunk is fed, [S, U, B, ...]."""


class Ahead:
    """Gives the data of one chunk after another, and reads those of the next in a thread of its own.

    A context: what is being read when it ends is finished and forgotten.
    """

    def __init__(self, read: Callable[[int], Tree], first: int, end: int):
        self.read, self.end = read, end
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="feed")
        self.coming: Future | None = self._begin(first)

    def _begin(self, i: int) -> Future | None:
        return self.thread.submit(self.read, i) if i < self.end else None

    def take(self, i: int) -> Tree:
        """The data of chunk i; begins to read those of the next one."""
        assert self.coming is not None, f"chunk {i} follows the last one"
        found = self.coming.result()
        self.coming = self._begin(i + 1)
        return found

    def __enter__(self):
        return self

    def __exit__(self, *exception: Any):
        self.thread.shutdown(wait=True, cancel_futures=True)


def on_host(keys: Array) -> Array:
    """A copy of keys on the CPU, where drawing from them waits for no accelerator."""
    return jax.device_put(keys, jax.local_devices(backend="cpu")[0])


def read_chunk(reader: Reader, keys: list[Array]) -> Tree:
    """What one chunk of S runs learns from, [S, U, B, ...], its rows spread over the devices.

    Args:
      keys: [U] for each run, on the host: those of its updates.
    """
    runs = [reader.read(of_run) for of_run in keys]
    return jax.device_put(jax.tree.map(lambda *x: np.stack(x), *runs), rows_sharding(ROWS_AXIS))


def abstract_chunk(reader: Reader, key: Array, num_runs: int, updates: int) -> Tree:
    """The shapes of what `read_chunk` gives; reads what one update wants.

    Args:
      key: on the host.
    """
    sharding = rows_sharding(ROWS_AXIS)
    shape_of = lambda x: jax.ShapeDtypeStruct((num_runs, updates, *x.shape[1:]), x.dtype, sharding=sharding)
    return jax.tree.map(shape_of, reader.read(key[None]))

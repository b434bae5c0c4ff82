"""Histories written to disk: Zarr arrays, a block of tasks after another, each whole or absent."""

import fcntl
import itertools
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore as ts
from gymnax.environments.environment import Environment

from icrl_envs.task_family import is_int, require
from icrl_jax.core import Array
from icrl_jax.data.histories import Distilled, Histories
from icrl_jax.data.manifest import (
    MANIFEST,
    UNFINISHED,
    StoreError,
    check_same,
    check_sizes,
    chunk_file,
    describe,
    differences,
    facts,
    grid,
    is_unfinished,
    is_whole,
    read_blocks,
    read_json,
    seal,
    write_json,
)
from icrl_jax.data.skeleton import take_apart
from icrl_jax.disk import os_errors

ARRAY = "zarr.json"
"""What Zarr keeps beside the chunks of an array."""


def write_histories(
    directory: str | Path, env: Environment, histories: Histories, weights: Array | None = None
) -> None:
    """Writes histories that are there; what a killed call has written is used by the next.

    Args:
      directory: new or empty.
      env: where the histories are from.
      weights: [M, N], how often each stream is drawn, in proportion (`sample_window`).
    Raises:
      ValueError: weights of another shape, below 0, not finite, or all 0 in a task.
      StoreError: as `write_in_blocks`.
      OSError: the disk is full or the folder cannot be written.
    """
    if weights is not None:
        _check_weights(np.asarray(weights), histories.shape[:2])
    whole = Distilled(histories, weights)
    block = lambda first, num_tasks: jax.tree.map(lambda x: np.asarray(x)[first : first + num_tasks], whole)
    write_in_blocks(directory, env, whole, block, block_tasks=math.ceil(histories.shape[0] / 16))


def _check_weights(weights: np.ndarray, shape: tuple[int, int]) -> None:
    require(weights.shape == shape, "weights", weights.shape, f"of shape {shape}")
    for m, n in np.argwhere(~(np.isfinite(weights) & (weights >= 0)))[:1]:
        require(False, f"weights[{m}, {n}]", weights[m, n].item(), "finite and at least 0")
    for m in np.flatnonzero(weights.sum(axis=1) == 0)[:1]:
        require(False, f"weights[{m}]", weights[m].tolist(), "above 0 for some stream")


def write_in_blocks(
    directory: str | Path,
    env: Environment,
    like: Distilled,
    block: Callable[[int, int], Distilled],
    block_tasks: int,
    source: Mapping[str, Any] | None = None,
    between: Callable[[int, int], None] | None = None,
) -> None:
    """Writes histories that need not fit into memory at once, and goes on where a killed call stopped.

    Args:
      like: the shapes of all of them, as arrays or `jax.ShapeDtypeStruct`s.
      block: `(first, num_tasks) -> histories` of the tasks first, first + 1, ...; the same at every call.
      block_tasks: how many at once, rounded up so that no chunk is of two blocks.
      source: what made them, in plain values; an unfinished store of another source is refused.
      between: `(done, num_tasks)`, called after every block, where nothing is lost.
    Raises:
      StoreError: the folder holds other things, or histories already; another process writes there; it was begun with
        other settings (named); a block is not what `like` says.
      OSError: as `write_histories`.
    """
    require(is_int(block_tasks, 1), "block_tasks", block_tasks, "an integer of at least 1")
    directory, about = Path(directory), describe(env, like, source)
    chunk_tasks = about["arrays"]["steps"]["chunk"][0]
    block_tasks = -(-block_tasks // chunk_tasks) * chunk_tasks
    directory.mkdir(parents=True, exist_ok=True)
    with _alone(directory), os_errors(directory):
        done, files = _begin(directory, about)
        arrays = {name: _create(directory, name, layout) for name, layout in about["arrays"].items()}
        num_all = about["shape"][0]
        for first in range(done, num_all, block_tasks):
            num_tasks = min(block_tasks, num_all - first)
            written = _write_block(directory, about, arrays, first, num_tasks, block(first, num_tasks))
            record = {"first": first, "num_tasks": num_tasks, "files": written}
            write_json(directory / UNFINISHED / f"{first}.json", record)
            files |= written
            if between is not None:
                between(first + num_tasks, num_all)
        _finish(directory, about, files)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Lets one process write; the lock goes with the process."""
    folder = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"{directory} is being written by another process") from None
        yield
    finally:
        os.close(folder)


def _begin(directory: Path, about: Mapping[str, Any]) -> tuple[int, dict[str, list[Any]]]:
    """How many tasks are written already, and the facts of their files."""
    if is_unfinished(directory):
        check_same(directory, read_json(directory / UNFINISHED / MANIFEST), about, "")
        blocks = read_blocks(directory)
        return sum(num for _, num, _ in blocks), {name: fact for _, _, files in blocks for name, fact in files.items()}
    if is_whole(directory):
        shutil.rmtree(directory / UNFINISHED, ignore_errors=True)  # of a call that was killed at its very end
        raise StoreError(f"{directory} holds histories already")
    if others := sorted(path.name for path in directory.iterdir() if path.name != UNFINISHED):
        raise StoreError(f"{directory} must be new or empty; it holds {', '.join(others[:5])}")
    (directory / UNFINISHED).mkdir(exist_ok=True)
    write_json(directory / UNFINISHED / MANIFEST, about)
    return 0, {}


def _create(directory: Path, name: str, layout: Mapping[str, Any]) -> ts.TensorStore:
    chunks = {"name": "regular", "configuration": {"chunk_shape": layout["chunk"]}}
    metadata = {"shape": layout["shape"], "data_type": layout["dtype"], "chunk_grid": chunks}
    # Its own checksum makes every later read of a chunk a checked one, by this and by other readers of Zarr.
    metadata["codecs"] = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    if np.dtype(layout["dtype"]).itemsize == 1:
        metadata["codecs"][0].pop("configuration")
    # Without the second every chunk of zeros would be left out, and look as if it had been lost.
    spec = {**spec_of(directory, name), "metadata": metadata, "store_data_equal_to_fill_value": True}
    return ts.open(spec, create=True, open=True).result()


def spec_of(directory: Path, name: str) -> dict[str, Any]:
    """Where TensorStore finds an array of a store."""
    return {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{directory.resolve() / name}/"}}


def _write_block(
    directory: Path, about: Mapping[str, Any], arrays: Mapping[str, Any], first: int, num_tasks: int, block: Distilled
) -> dict[str, list[Any]]:
    found = _arrays_of(block)
    shapes = {name: {"shape": [num_tasks, *x["shape"][1:]], "dtype": x["dtype"]} for name, x in about["arrays"].items()}
    got = {name: {"shape": list(x.shape), "dtype": x.dtype.name} for name, x in found.items()}
    form = {**block.histories.form._asdict(), "dtypes": list(block.histories.form.dtypes)}
    if wrong := list(differences({"form": about["form"], **shapes}, {"form": form, **got}, "")):
        raise StoreError(f"tasks {first} ..= {first + num_tasks - 1} are not what was announced: {'; '.join(wrong)}")
    rows = slice(first, first + num_tasks)
    for write in [arrays[name][rows].write(np.asarray(x)) for name, x in found.items()]:
        write.result()
    chunk_tasks = about["arrays"]["steps"]["chunk"][0]
    chunks = range(first // chunk_tasks, -(-rows.stop // chunk_tasks))
    inner = lambda name: map(range, grid(about["arrays"][name])[1:])
    indices = ((name, i) for name in found for i in itertools.product(chunks, *inner(name)))
    files = (chunk_file(*index) for index in indices)
    return {file: facts(directory / file) for file in files}


def _arrays_of(block: Distilled) -> dict[str, Any]:
    """The arrays of a block by name, on the host."""
    histories, weights = jax.device_get(block)
    parts = {"transitions": histories.transitions, "update": histories.update, "steps": histories.steps}
    return take_apart({**parts, "env_params": histories.env_params, "weights": weights})[1]


def _finish(directory: Path, about: Mapping[str, Any], files: dict[str, list[Any]]) -> None:
    group = directory / ARRAY
    group.write_text('{"zarr_format": 3, "node_type": "group"}')
    names = [ARRAY, *(f"{name}/{ARRAY}" for name in about["arrays"])]
    files = dict(sorted({**files, **{name: facts(directory / name) for name in names}}.items()))
    check_sizes(directory, files)  # of blocks that a killed call wrote
    write_json(directory / MANIFEST, seal({**about, "files": files}))
    shutil.rmtree(directory / UNFINISHED)

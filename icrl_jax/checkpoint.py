"""Checkpoints of a training run: written whole or not at all, verified when read (Orbax)."""

import hashlib
import logging
import operator
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from icrl_jax.core import TrainState, Tree
from icrl_jax.disk import os_errors

KEEP = 3
"""Checkpoints kept, the newest ones: where the last is damaged, those before it serve."""


class CheckpointError(Exception):
    """A checkpoint that cannot be used; the message says which and why."""


class DamagedCheckpoint(UserWarning):
    """A checkpoint was passed over for an older one."""


def save(directory: Path, step: int, state: TrainState, data_digest: str | None = None) -> None:
    """Writes the state but for its data, which is rebuilt; returns when it is on disk, older ones than `KEEP` deleted.

    Args:
      step: chunks done; names the checkpoint.
      data_digest: of `state.data`, from `digest`, to be compared on resume.
    Raises:
      OSError: the disk is full or the folder cannot be written.
    """
    for stale in list_steps(directory):
        if stale >= step:  # damaged, or the run was taken up again before it: set aside, never overwritten
            aside = directory / f"set_aside_{stale}_{time.strftime('%Y%m%d-%H%M%S')}"
            (directory / str(stale)).rename(aside)
    arrays = _to_arrays(state)
    meta = {"digest": digest(arrays), "data_digest": data_digest}
    with os_errors(directory), _manager(directory, create=True) as manager:
        manager.save(step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(arrays), meta=ocp.args.JsonSave(meta)))
        manager.wait_until_finished()


class Restored(NamedTuple):
    """What `restore` read."""

    step: int  # chunks done
    state: TrainState  # as it was saved; its data are those of the target
    data_digest: str | None  # of the data it was trained on


def restore(directory: Path, target: TrainState) -> Restored:
    """Reads the newest checkpoint that is whole; one that is not is passed over with a `DamagedCheckpoint` warning.

    Args:
      target: a state of the same run (arrays or `jax.ShapeDtypeStruct`s), whose structure and data are kept.
    Raises:
      CheckpointError: there is none, none is whole, or it is of another run (other shapes).
    """
    steps = list_steps(directory)
    if not steps:
        raise CheckpointError(f"{directory} holds no checkpoint")
    reasons = []
    for step in reversed(steps):
        try:
            arrays, meta = _read(directory, step)
        except Exception as error:  # Orbax and TensorStore raise many kinds
            reasons.append(f"checkpoint {step} in {directory} is damaged ({_first_line(error)})")
            continue
        for reason in reasons:
            warnings.warn(f"{reason}; falling back to checkpoint {step}", DamagedCheckpoint, stacklevel=2)
        state = _from_arrays(arrays, target, f"checkpoint {step} in {directory}")
        return Restored(step, state, meta["data_digest"])
    raise CheckpointError("; ".join(reasons) + "; no checkpoint is whole")


def list_steps(directory: Path) -> list[int]:
    """The checkpoints there are, oldest first; half-written ones are none."""
    if not directory.is_dir():
        return []
    with _manager(directory, create=False) as manager:
        return sorted(manager.all_steps(read=True))


def digest(tree: Tree) -> str:
    """SHA-256 over the paths, dtypes, shapes and bytes of all arrays."""
    sha = hashlib.sha256()
    for path, leaf in sorted((jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree.leaves_with_path(tree)):
        array = np.ascontiguousarray(leaf)
        sha.update(f"{path} {array.dtype} {array.shape}".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def _read(directory: Path, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with _manager(directory, create=False) as manager:
        items = ocp.args.Composite(state=ocp.args.PyTreeRestore(), meta=ocp.args.JsonRestore())
        arrays, meta = operator.itemgetter("state", "meta")(manager.restore(step, args=items))
    if digest(arrays) != meta["digest"]:
        raise CheckpointError("its bytes are not those that were saved")
    return arrays, meta


@contextmanager
def _manager(directory: Path, create: bool) -> Iterator[ocp.CheckpointManager]:
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax narrates every save, and what it raises
    options = ocp.CheckpointManagerOptions(max_to_keep=KEEP, create=create, enable_async_checkpointing=False)
    hook = sys.unraisablehook
    sys.unraisablehook = partial(_ignore_stragglers, hook)
    with ocp.CheckpointManager(directory.resolve(), options=options, item_names=("state", "meta")) as manager:
        yield manager
    sys.unraisablehook = hook  # not after a failure: stragglers come when they come


def _ignore_stragglers(hook: Callable[[Any], Any], unraisable: Any) -> None:
    """Where one of many reads or writes fails, Orbax closes the event loop, and TensorStore cannot report the others.

    It says so on stderr, a traceback for each, and names no object, unlike asyncio itself.
    """
    if unraisable.object is not None or repr(unraisable.exc_value) != "RuntimeError('Event loop is closed')":
        hook(unraisable)


def _to_arrays(state: TrainState) -> dict[str, np.ndarray]:
    """Every array under its path, on the host; arrays, not graphs, so that any later structure can read them."""
    leaves = jax.tree.leaves_with_path(state._replace(data=None))
    return {jax.tree_util.keystr(path): np.asarray(jax.device_get(_key_data(leaf))) for path, leaf in leaves}


def _from_arrays(arrays: dict[str, np.ndarray], target: TrainState, name: str) -> TrainState:
    leaves, structure = jax.tree.flatten_with_path(target._replace(data=None))
    wanted = {jax.tree_util.keystr(path): jax.eval_shape(_key_data, leaf) for path, leaf in leaves}
    differing = [
        path
        for path in [*wanted, *sorted(arrays.keys() - wanted.keys())]
        if path not in wanted
        or path not in arrays
        or (wanted[path].shape, wanted[path].dtype) != (arrays[path].shape, arrays[path].dtype)
    ]
    if differing:
        fields = ", ".join(differing[:5])
        raise CheckpointError(f"{name} does not fit this configuration; it differs in {fields}")
    restored = [_like(jnp.asarray(arrays[jax.tree_util.keystr(path)]), leaf) for path, leaf in leaves]
    return jax.tree.unflatten(structure, restored)._replace(data=target.data)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_data(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _like(array: jax.Array, leaf: Any) -> jax.Array:
    return jax.random.wrap_key_data(array, impl=_key_impl(leaf)) if _is_key(leaf) else array


def _key_impl(leaf: Any) -> Any:
    """`jax.random.key_impl`, which refuses a `ShapeDtypeStruct`."""
    found = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), leaf)
    return found[0]


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"[:200]

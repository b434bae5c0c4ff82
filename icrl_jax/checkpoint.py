"""Checkpoints of a training run: written whole or not at all, verified when read (Orbax)."""

import hashlib
import logging
import operator
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from icrl_jax.core import TrainState, Tree

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
    with _manager(directory, create=True) as manager:
        manager.save(step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(arrays), meta=ocp.args.JsonSave(meta)))
        manager.wait_until_finished()


def restore(directory: Path, target: TrainState, data_digest: str | None = None) -> tuple[int, TrainState]:
    """Reads the newest checkpoint that is whole; one that is not is passed over with a `DamagedCheckpoint` warning.

    Args:
      target: a state of the same run (arrays or `jax.ShapeDtypeStruct`s), whose structure and data are kept.
      data_digest: of the data built anew; None where the data does not matter, to act and not to train.
    Returns:
      Chunks done, and the state as it was saved.
    Raises:
      CheckpointError: there is none, none is whole, or it is of another run (other shapes, other data).
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
        if data_digest is not None and meta["data_digest"] != data_digest:
            raise CheckpointError(f"checkpoint {step} in {directory} was trained on other data than was built now")
        return step, _from_arrays(arrays, target, f"checkpoint {step} in {directory}")
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


def _manager(directory: Path, create: bool) -> ocp.CheckpointManager:
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax narrates every save
    options = ocp.CheckpointManagerOptions(max_to_keep=KEEP, create=create, enable_async_checkpointing=False)
    return ocp.CheckpointManager(directory.resolve(), options=options, item_names=("state", "meta"))


def _to_arrays(state: TrainState) -> dict[str, np.ndarray]:
    """Every array under its path, on the host; arrays, not graphs, so that any later structure can read them."""
    leaves = jax.tree.leaves_with_path(state._replace(data=None))
    return {jax.tree_util.keystr(path): np.asarray(jax.device_get(_key_data(leaf))) for path, leaf in leaves}


def _from_arrays(arrays: dict[str, np.ndarray], target: TrainState, name: str) -> TrainState:
    leaves, structure = jax.tree.flatten_with_path(target._replace(data=None))
    wanted = {jax.tree_util.keystr(path): jax.eval_shape(_key_data, leaf) for path, leaf in leaves}
    differing = [
        path
        for path in wanted.keys() | arrays.keys()
        if path not in wanted
        or path not in arrays
        or (wanted[path].shape, wanted[path].dtype) != (arrays[path].shape, arrays[path].dtype)
    ]
    if differing:
        raise CheckpointError(f"{name} does not fit this configuration; it differs in {', '.join(sorted(differing)[:5])}")
    restored = [_like(jnp.asarray(arrays[jax.tree_util.keystr(path)]), leaf) for path, leaf in leaves]
    return jax.tree.unflatten(structure, restored)._replace(data=target.data)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_data(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _like(array: jax.Array, leaf: Any) -> jax.Array:
    return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else array


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"[:200]

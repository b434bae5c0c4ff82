"""What a store of histories says about itself: `manifest.json`, whose presence means that the store is whole."""

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from gymnax.environments.environment import Environment

from icrl_jax.data.histories import Distilled, Form
from icrl_jax.data.skeleton import take_apart

MANIFEST = "manifest.json"
UNFINISHED = "unfinished"
FORMAT = {"format": "icrl_jax histories", "schema": 1}

CHUNK_BYTES = 2**18
"""Of one chunk at most: little enough to be read for one window, enough that files are few."""


class StoreError(ValueError):
    """A store that is not whole, or not what was asked for; the message says which file or field."""


def describe(env: Environment, histories: Distilled, source: Mapping[str, Any] | None) -> dict[str, Any]:
    """All of a manifest that is known before the first history is made: everything but the files.

    Args:
      env: where the histories are from; its spaces and plain attributes are taken down as its conventions.
      histories: or their shapes.
      source: the options that made them; None for logged data.
    """
    whole, weights = histories
    parts = {"transitions": whole.transitions, "update": whole.update, "steps": whole.steps}
    skeleton, arrays = take_apart({**parts, "env_params": whole.env_params, "weights": weights})
    largest = max(_size(x.shape[1:], x.dtype) for x in arrays.values())
    chunk_tasks = max(1, min(whole.shape[0], CHUNK_BYTES // largest))  # of all arrays: a block is of whole chunks
    packages = ("icrl-jax", "jax", "numpy", "tensorstore")
    described = {
        **FORMAT,
        "env": describe_env(env),
        "source": source,
        "shape": whole.shape,
        "form": whole.form._asdict(),
        "tree": skeleton,
        "arrays": {name: _layout(name, x, chunk_tasks) for name, x in arrays.items()},
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
    return json.loads(json.dumps(described))  # as it will be read


def _layout(name: str, array: Any, chunk_tasks: int) -> dict[str, Any]:
    """Shape, type and chunks: of whole tasks if these are small, else of whole streams of one, or of a part of one."""
    shape, dtype = tuple(array.shape), np.dtype(array.dtype)
    chunk = (chunk_tasks, *shape[1:])
    if name == "update" or name.startswith("transitions."):
        step = _size(shape[3:], dtype)
        num_steps = min(shape[2], max(1, CHUNK_BYTES // step))
        num_streams = min(shape[1], max(1, CHUNK_BYTES // (step * num_steps)))
        chunk = (chunk_tasks, num_streams, num_steps, *shape[3:])
    return {"shape": shape, "dtype": dtype.name, "chunk": chunk}


def _size(shape: tuple[int, ...], dtype: Any) -> int:
    return int(np.prod(shape, dtype=int)) * np.dtype(dtype).itemsize


def read_form(about: Mapping[str, Any]) -> Form:
    """The `Form` of the histories."""
    return Form(**{**about["form"], "dtypes": tuple(about["form"]["dtypes"])})


def describe_env(env: Environment) -> dict[str, Any]:
    """An environment by its name, spaces and conventions; large arrays, as of which tasks are held out, by a digest."""
    params = env.default_params
    spaces = {"observation": repr(env.observation_space(params)), "action": repr(env.action_space(params))}
    plain = {name: _plain(value) for name, value in sorted(vars(env).items())}
    known = {name: value for name, value in plain.items() if value is not NotImplemented}
    # A private None may be what has not been computed yet.
    return {"name": env.name, **spaces, "options": {k: v for k, v in known.items() if v is not None or k[0] != "_"}}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        array = np.asarray(value)
        return array.tolist() if array.size <= 16 else f"sha256:{hashlib.sha256(array.tobytes()).hexdigest()}"
    if isinstance(value, tuple | list):
        return [_plain(x) for x in value]
    if isinstance(value, dict):
        return {str(name): _plain(x) for name, x in value.items()}
    return describe_env(value) if isinstance(value, Environment) else NotImplemented


def differences(saved: Any, given: Any, name: str) -> Iterator[str]:
    """The fields in which two descriptions differ, as "env.options.size is 9, not 5"."""
    if isinstance(saved, Mapping) and isinstance(given, Mapping):
        for part in sorted(saved.keys() | given.keys()):
            yield from differences(saved.get(part), given.get(part), f"{name}.{part}".lstrip("."))
    elif saved != given:
        yield f"{name} is {saved!r}, not {given!r}"


def check_same(directory: Path, saved: Mapping[str, Any] | None, given: Mapping[str, Any] | None, name: str) -> None:
    """Refuses a store that is not what was asked for.

    Raises:
      StoreError: names the fields that differ, with both values.
    """
    if found := list(differences(saved, given, name)):
        raise StoreError(f"{directory} holds other histories: {'; '.join(found[:5])}")


def grid(layout: Mapping[str, Any]) -> tuple[int, ...]:
    """How many chunks an array has along each axis."""
    return tuple(-(-size // chunk) for size, chunk in zip(layout["shape"], layout["chunk"], strict=True))


def chunk_file(name: str, index: tuple[int, ...]) -> str:
    """Where Zarr keeps a chunk, relative to the store."""
    return "/".join([name, "c", *map(str, index)])


def facts(path: Path) -> list[Any]:
    """Size and SHA-256 of a file, as the manifest holds them.

    Raises:
      StoreError: it is not there.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise StoreError(f"{path} is missing") from None
    return [len(content), hashlib.sha256(content).hexdigest()]


def check_sizes(directory: Path, files: Mapping[str, list[Any]]) -> None:
    """Refuses a store of which a file is missing or cut short; reads none.

    Raises:
      StoreError: names the file.
    """
    for file, (size, _) in files.items():
        path = directory / file
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            raise StoreError(f"{path} {'is missing' if found is None else f'has {found} bytes, not {size}'}")


def seal(manifest: dict[str, Any]) -> dict[str, Any]:
    """Adds a digest over all of it."""
    return {**manifest, "digest": _digest(manifest)}


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a whole store.

    Raises:
      StoreError: there is none, it is damaged or of another schema, or the store is unfinished.
    """
    path = directory / MANIFEST
    if not is_whole(directory):
        if is_unfinished(directory):
            done, about = sum(num for _, num, _ in read_blocks(directory)), read_json(directory / UNFINISHED / MANIFEST)
            raise StoreError(
                f"{directory} is unfinished: {done} of {about['shape'][0]} tasks are written; "
                "the command that began it goes on"
            )
        raise StoreError(f"{directory} holds no histories: it has no {MANIFEST}")
    manifest = read_json(path)
    digest = manifest.pop("digest", None)
    if digest != _digest(manifest):
        raise StoreError(f"{path} is damaged: its content does not have its digest")
    for name, value in FORMAT.items():
        if manifest[name] != value:
            raise StoreError(f"{path}: {name}={manifest[name]!r}: must be {value!r}")
    return {**manifest, "digest": digest}


def is_whole(directory: Path) -> bool:
    """Whether all histories that were to be written there are."""
    return (directory / MANIFEST).exists()


def is_unfinished(directory: Path) -> bool:
    """Whether somebody began to write histories there."""
    return not is_whole(directory) and (directory / UNFINISHED / MANIFEST).exists()


def read_blocks(directory: Path) -> list[tuple[int, int, dict[str, list[Any]]]]:
    """The blocks of tasks that are written, in order: first task, number of tasks, and facts of their files.

    Raises:
      StoreError: one of them has lost its record, or it is damaged.
    """
    paths = [path for path in (directory / UNFINISHED).glob("*.json") if path.name != MANIFEST]
    found = [read_json(path) for path in paths]
    blocks = sorted((block["first"], block["num_tasks"], block["files"]) for block in found)
    done = 0
    for first, num_tasks, _ in blocks:
        if first != done:
            raise StoreError(f"{directory / UNFINISHED / f'{done}.json'} is missing; delete {directory} to begin anew")
        done += num_tasks
    return blocks


def read_json(path: Path) -> dict[str, Any]:
    """A dict.

    Raises:
      StoreError: the file holds none.
    """
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise StoreError(f"{path} is damaged: it holds no JSON object")
    return found


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a file that is whole, on disk, or not there."""
    unfinished = path.with_suffix(".writing")
    with unfinished.open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()

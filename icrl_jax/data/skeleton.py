"""Trees of arrays in a form that JSON can hold: the arrays by name, and a skeleton that says which goes where."""

import dataclasses
import importlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from icrl_envs.task_family import require
from icrl_jax.core import Tree

_BUILTIN = {"dict": dict, "tuple": tuple, "list": list}


def take_apart(tree: Tree, name: str = "") -> tuple[Any, dict[str, Any]]:
    """The skeleton of a tree, and its arrays, each under the path that leads to it: "transitions.obs".

    Raises:
      ValueError: a leaf that is no array, a key that would not do in a file name, or a class that cannot be imported.
    """
    if tree is None:
        return None, {}
    if isinstance(tree, jax.ShapeDtypeStruct) or (hasattr(tree, "shape") and hasattr(tree, "dtype")):
        require(not jnp.issubdtype(tree.dtype, jax.dtypes.prng_key), name, tree.dtype, "no typed key")
        return name, {name: tree}
    kind, parts = _parts(tree, name)
    skeletons, arrays = {}, {}
    for part, value in parts.items():
        require(re.fullmatch(r"\w[\w-]*", str(part)) is not None, name or "key", part, "of letters, digits, _ and -")
        skeletons[str(part)], found = take_apart(value, f"{name}.{part}".lstrip("."))
        arrays |= found
    return {"kind": kind, "parts": skeletons}, arrays


def put_together(skeleton: Any, arrays: Mapping[str, Any]) -> Tree:
    """The inverse of `take_apart`.

    Raises:
      ValueError: a class that is not there, or is no named tuple and no dataclass.
    """
    if skeleton is None or isinstance(skeleton, str):
        return None if skeleton is None else arrays[skeleton]
    kind = skeleton["kind"]
    parts = {part: put_together(value, arrays) for part, value in skeleton["parts"].items()}
    if kind in _BUILTIN:
        return parts if kind == "dict" else _BUILTIN[kind](parts.values())
    return _class(kind)(**parts)


def _parts(tree: Tree, name: str) -> tuple[str, dict[Any, Any]]:
    if type(tree) is dict:
        return "dict", tree
    if type(tree) in (tuple, list):
        return type(tree).__name__, dict(enumerate(tree))
    fields = _fields(type(tree))
    allowed = "an array, or a dict, tuple, list, named tuple or dataclass of arrays"
    require(fields is not None, name, tree, allowed)
    kind = f"{type(tree).__module__}:{type(tree).__qualname__}"
    _class(kind)  # or nobody could read it
    return kind, {field: getattr(tree, field) for field in fields or ()}


def _fields(cls: type) -> tuple[str, ...] | None:
    if dataclasses.is_dataclass(cls):
        return tuple(field.name for field in dataclasses.fields(cls))
    return getattr(cls, "_fields", None) if issubclass(cls, tuple) else None


def _class(kind: str) -> Any:
    module, _, name = kind.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        found = None
    require(isinstance(found, type) and _fields(found) is not None, "class", kind, "a named tuple or a dataclass")
    return found

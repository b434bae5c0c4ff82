"""What a run is made of, in a form that JSON can hold: enough to build it again without its script."""

import dataclasses
import importlib
import types
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple

import icrl_envs
from icrl_envs import TaskFamily
from icrl_jax.core import Method


class EnvSpec(NamedTuple):
    """Arguments of `icrl_envs.make`."""

    name: str
    preset: str | None = None
    kwargs: dict[str, Any] = {}  # noqa: RUF012  never written

    def build(self) -> TaskFamily:
        """The environment."""
        return icrl_envs.make(self.name, self.preset, **self.kwargs)


class MethodSpec(NamedTuple):
    """A function `(env, options) -> Method`, by its import path "module:function", and its options, a dataclass."""

    path: str
    options: Any

    def build(self, env: TaskFamily) -> Method:
        """The method."""
        return _imported(self.path)(env, self.options)


def to_json(env: EnvSpec, method: MethodSpec) -> dict[str, Any]:
    """Plain dicts from which `from_json` builds both again."""
    options = f"{type(method.options).__module__}:{type(method.options).__qualname__}"
    described = {"path": method.path, "options_type": options, "options": dataclasses.asdict(method.options)}
    return {"env": env._asdict(), "method": described}


def from_json(saved: Mapping[str, Any]) -> tuple[EnvSpec, MethodSpec]:
    """The inverse of `to_json`."""
    method = saved["method"]
    options = from_dict(_imported(method["options_type"]), method["options"])
    return EnvSpec(**saved["env"]), MethodSpec(method["path"], options)


def from_dict(cls: type, values: Mapping[str, Any]) -> Any:
    """A dataclass, and the dataclasses in it, from plain dicts.

    Raises:
      ValueError: a field that `cls` does not have.
    """
    hints = typing.get_type_hints(cls)
    unknown = values.keys() - {field.name for field in dataclasses.fields(cls)}
    if unknown:
        raise ValueError(f"{cls.__name__} has no option {', '.join(sorted(unknown))}")
    return cls(**{name: _from_plain(hints[name], value) for name, value in values.items()})


def differences(saved: Mapping[str, Any], given: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The leaves in which two nested dicts differ, as "option: saved -> given"."""
    found = []
    for name in sorted(saved.keys() | given.keys()):
        old, new = saved.get(name), given.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append(f"{prefix}{name}: {old!r} -> {new!r}")
    return found


def _from_plain(hint: Any, value: Any) -> Any:
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if isinstance(value, Mapping):
        classes = [x for x in options if isinstance(x, type) and dataclasses.is_dataclass(x)]
        fitting = [cls for cls in classes if value.keys() <= {field.name for field in dataclasses.fields(cls)}]
        return from_dict((fitting or classes)[0], value)
    return tuple(value) if isinstance(value, list) else value


def _imported(path: str) -> Any:
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)

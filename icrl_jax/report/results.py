"""``results.json``: what a finished run leaves for tables, sweeps and outside checks."""

import importlib.metadata
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from icrl_jax.report.files import write_atomic

FIELDS: dict[str, tuple[type, ...]] = {
    "experiment": (str,),
    "preset": (str,),
    "method": (str,),
    "env": (str,),
    "env_preset": (str, type(None)),
    "seeds": (list,),
    "status": (str,),
    "seconds": (dict,),
    "env_steps": (int, float, type(None)),
    "tokens": (int, float, type(None)),
    "versions": (dict,),
    "hardware": (str,),
    "commit": (str, type(None)),
    "agents": (dict,),
    "conditions": (dict,),
    "curves": (dict,),
}
SECONDS = ("compile", "train", "evaluate")
INTERVAL = ("mean", "low", "high", "n", "per_seed")
PACKAGES = {"icrl_jax": "icrl-jax", "jax": "jax", "jaxlib": "jaxlib", "flax": "flax", "optax": "optax"}


def write_results(run_dir: str | Path, results: Mapping[str, Any]) -> Path:
    """Check ``results`` against the contract and write ``run_dir/results.json`` in one step.

    NumPy numbers and arrays become plain ones; a number that is not finite becomes null.
    """
    plain = _plain(results)
    validate(plain)
    text = json.dumps(plain, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    return write_atomic(Path(run_dir) / "results.json", text.encode())


def read_results(run_dir: str | Path) -> dict[str, Any]:
    """The checked contents of ``run_dir/results.json``."""
    path = Path(run_dir) / "results.json"
    if not path.is_file():
        raise FileNotFoundError(f"{run_dir} has no results.json: not a run folder, or the run has not finished")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    try:
        validate(results)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return results


def validate(results: Any) -> None:
    """Raise ``ValueError`` naming the first thing in which ``results`` breaks the contract."""
    if not isinstance(results, dict):
        raise ValueError(f"results must be a mapping, got {type(results).__name__}")
    missing = [name for name in FIELDS if name not in results]
    unknown = [name for name in results if name not in FIELDS]
    if missing:
        raise ValueError(f"results lack the field(s) {', '.join(missing)}")
    if unknown:
        raise ValueError(f"results hold unknown field(s) {', '.join(map(str, unknown))}; known: {', '.join(FIELDS)}")
    for name, types in FIELDS.items():
        if not isinstance(results[name], types) or isinstance(results[name], bool):
            allowed = " or ".join("null" if kind is type(None) else kind.__name__ for kind in types)
            raise ValueError(f"{name} must be {allowed}, got {results[name]!r:.80}")
    absent = [name for name in SECONDS if name not in results["seconds"]]
    if absent:
        raise ValueError(f"seconds lacks {', '.join(absent)}")
    _validate_agents(results["agents"], "agents")
    for condition, agents in results["conditions"].items():
        _validate_agents(agents, f"conditions.{condition}")
    for agent, curves in results["curves"].items():
        if not isinstance(curves, dict) or not all(_is_numbers(points) for points in curves.values()):
            raise ValueError(f"curves.{agent} must map curve names to lists of numbers")


def environment_facts() -> dict[str, Any]:
    """``versions``, ``hardware`` and ``commit`` of this process, as ``results.json`` wants them.

    ``commit`` is None outside a git tree; sources edited since the commit are marked in ``versions["icrl_jax"]``.
    """
    commit, edited = _commit()
    versions = _versions()
    if edited:
        versions["icrl_jax"] += " (edited since the commit)"
    return {"versions": versions, "hardware": _hardware(), "commit": commit}


def _validate_agents(agents: Any, where: str) -> None:
    if not isinstance(agents, dict):
        raise ValueError(f"{where} must map agent names to metrics, got {agents!r:.80}")
    for agent, metrics in agents.items():
        if not isinstance(metrics, dict):
            raise ValueError(f"{where}.{agent} must map metric names to intervals, got {metrics!r:.80}")
        for metric, entry in metrics.items():
            _validate_interval(entry, f"{where}.{agent}.{metric}")


def _validate_interval(entry: Any, where: str) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} must hold {', '.join(INTERVAL)}, got {entry!r:.80}")
    absent = [name for name in INTERVAL if name not in entry]
    if absent:
        raise ValueError(f"{where} lacks {', '.join(absent)}")
    for name in ("mean", "low", "high"):
        if not _is_number(entry[name]):
            raise ValueError(f"{where}.{name} must be a number or null, got {entry[name]!r:.80}")
    if not isinstance(entry["n"], int) or isinstance(entry["n"], bool) or entry["n"] < 1:
        raise ValueError(f"{where}.n must be the number of held-out tasks, at least 1, got {entry['n']!r:.80}")
    if not _is_numbers(entry["per_seed"]) or not entry["per_seed"]:
        raise ValueError(f"{where}.per_seed must be a list of one number per seed, got {entry['per_seed']!r:.80}")


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _is_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(_is_number(value) for value in values)


def _plain(value: Any) -> Any:
    """Dicts, lists, numbers, strings, booleans and None only."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "__array__"):
        return _plain(np.asarray(value).tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    raise TypeError(f"results.json cannot hold a {type(value).__name__}: {value!r:.80}")


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    for name, package in PACKAGES.items():
        try:
            versions[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _hardware() -> str:
    import jax

    devices = jax.devices()
    accelerators = ", ".join(
        f"{sum(device.device_kind == kind for device in devices)} x {kind}"
        for kind in dict.fromkeys(device.device_kind for device in devices)
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_cpu_model()}, {cores} cores; JAX devices: {accelerators}"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _commit() -> tuple[str | None, bool]:
    """The commit of the source tree this module lies in and whether tracked files were edited since."""
    here = Path(__file__).resolve()
    try:
        if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
            return None, False  # an installed copy, possibly inside somebody else's repository
        return _git(here.parent, "rev-parse", "HEAD"), bool(_git(here.parent, "status", "--porcelain", "-uno"))
    except (OSError, subprocess.TimeoutExpired):
        return None, False


def _git(folder: Path, *arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10)
    return done.stdout.strip() if done.returncode == 0 else None

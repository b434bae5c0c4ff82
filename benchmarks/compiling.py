"""What the main job costs before it starts: compile time without and with the persistent cache, and peak memory."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.measure import Row, below

ROOT = Path(__file__).resolve().parent.parent
FEW_UPDATES = ("--preset", "cpu", "--num-updates", "4", "--num-chunks", "2")
"""The `cpu` preset cut short: the programs are the same, only their loops end earlier."""


class Child(NamedTuple):
    """What a run that has ended cost."""

    compile_seconds: float
    peak_bytes: int


def rows(quick: bool = False) -> Iterator[Row]:
    """Runs the experiment twice with a cache that starts empty."""
    options = (*FEW_UPDATES, *(("--eval-tasks", "2") if quick else ()))
    with tempfile.TemporaryDirectory() as folder:
        command = (sys.executable, "-m", "experiments.dpt_bandit", *options, "--runs-dir")
        yield from child_rows(command, Path(folder))


def child_rows(command: Sequence[str], folder: Path) -> Iterator[Row]:
    """Rows of a command that takes a runs folder as its last argument, run twice."""
    cold = run(command, folder, "cold")
    note = "training chunk and all evaluations"
    yield below("compile time, cpu preset, cold", cold.compile_seconds, "s", 30, note)
    warm = run(command, folder, "warm")
    yield below("compile time, cpu preset, with the cache", warm.compile_seconds, "s", 5, note)
    peak = max(cold.peak_bytes, warm.peak_bytes) / 2**30
    yield below("peak memory, cpu preset", peak, "GiB", 2, "training, evaluation and figures, in one process")


def run(command: Sequence[str], folder: Path, name: str) -> Child:
    """Runs an experiment in a process of its own.

    Raises:
      RuntimeError: it failed; the message is the end of what it printed.
    """
    runs = folder / name
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    with open(folder / f"{name}.txt", "w+") as output:
        process = subprocess.Popen(
            [*command, str(runs)], cwd=ROOT, env=os.environ | cache, stdout=output, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{output.read()[-2000:]}")
    (results,) = {path.resolve() for path in runs.rglob("results.json")}
    seconds = json.loads(results.read_text())["seconds"]["compile"]
    return Child(seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))

"""The folder a run leaves behind: `runs/<experiment>/<run-id>/`, and `latest` beside it."""

import json
import os
import time
from pathlib import Path
from typing import Any

from icrl_jax.report.files import write_atomic

CONFIG = "config.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
FIELDS = ("experiment", "env", "method", "seeds", "options")
"""What `config.json` holds."""


class NotARunError(Exception):
    """A path that holds no run; the message says what is missing."""


def create(runs_dir: Path, experiment: str, config: dict[str, Any]) -> Path:
    """Makes a new run folder with its `config.json`, and points `latest` at it.

    Raises:
      OSError: the folder cannot be written.
    """
    parent = runs_dir / experiment
    name = run_id = time.strftime("%Y%m%d-%H%M%S")
    for attempt in range(2, 100):
        try:
            (parent / name).mkdir(parents=True)
            break
        except FileExistsError:
            name = f"{run_id}-{attempt}"
    write_atomic(parent / name / CONFIG, (json.dumps(config, indent=1) + "\n").encode())
    point_latest(parent / name)
    return parent / name


def point_latest(run_dir: Path) -> None:
    """Makes `latest`, a relative link beside the run, point at it."""
    link = run_dir.parent / f".latest-{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(run_dir.name)
    link.replace(run_dir.parent / "latest")


def find(path: str | Path, experiment: str | None = None, runs_dir: Path = Path("runs")) -> Path:
    """The run folder that `path` means: itself, or the newest of `experiment` for "latest".

    Raises:
      NotARunError: there is none.
    """
    run_dir = runs_dir / experiment / "latest" if path == "latest" and experiment else Path(path)
    if not (run_dir / CONFIG).is_file():
        raise NotARunError(f"{run_dir} is not a run folder: it holds no {CONFIG}")
    return run_dir.resolve()


def read_config(run_dir: Path) -> dict[str, Any]:
    """The `config.json` of a run.

    Raises:
      NotARunError: it is missing, no JSON, or not what a run writes.
    """
    try:
        config = json.loads((run_dir / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise NotARunError(f"{run_dir} is not a run folder: {CONFIG} cannot be read ({error})") from None
    missing = [name for name in FIELDS if not isinstance(config, dict) or name not in config]
    if missing:
        raise NotARunError(f"{run_dir} is not a run folder: {CONFIG} lacks {', '.join(missing)}")
    return config


def append_metrics(run_dir: Path, row: dict[str, Any]) -> None:
    """Adds one line to `metrics.jsonl`."""
    with (run_dir / METRICS).open("a") as file:
        file.write(json.dumps(row) + "\n")


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; a last line that was cut short is left out."""
    path = run_dir / METRICS
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def cut_metrics(run_dir: Path, chunks: int) -> None:
    """Keeps the lines of the first `chunks` chunks, which the checkpoint to resume from has seen."""
    kept = [row for row in read_metrics(run_dir) if row["chunk"] <= chunks]
    write_atomic(run_dir / METRICS, "".join(json.dumps(row) + "\n" for row in kept).encode())

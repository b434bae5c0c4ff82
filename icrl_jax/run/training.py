"""Training from the host, made kind: progress, logs, checkpoints, resume, and a clean stop."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from icrl_jax import checkpoint
from icrl_jax.core import Array, Method, TrainState
from icrl_jax.parallel import replicate
from icrl_jax.run import folder, signals
from icrl_jax.run.options import RunOptions
from icrl_jax.run.progress import Progress
from icrl_jax.train import Evaluate, Schedule, abstract_seeds, compile_chunk, fit, init_seeds


class Stopwatch:
    """Seconds spent on each kind of work, for `results.json`."""

    def __init__(self):
        self.seconds = {"compile": 0.0, "train": 0.0, "evaluate": 0.0}

    @contextmanager
    def time(self, what: str) -> Iterator[None]:
        """Adds the time of its block to `what`; before and after it the run may stop."""
        signals.check()
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - begin
        signals.check()


def training(
    run_dir: Path,
    options: RunOptions,
    method: Method,
    keys: Array,
    schedule: Schedule,
    tasks_per_update: int,
    watch: Stopwatch,
    console: Console,
    evaluate: Evaluate | None = None,
    hparams: dict[str, Array] | None = None,
    stop_nonfinite: bool = True,
) -> TrainState:
    """Trains S runs at once in `run_dir`, from its newest whole checkpoint if there is one.

    Raises:
      Interrupted: on SIGINT or SIGTERM, once what is under way is finished, and saved if it is a chunk.
      NonFiniteLossError: a loss was not finite; the checkpoints before it are kept.
      CheckpointError: there are checkpoints, but none fits.
      OSError: the run folder cannot be written.
    """
    directory = run_dir / folder.CHECKPOINTS
    with watch.time("compile"):
        saved, first = None, 0
        if checkpoint.list_steps(directory):  # one that does not fit is refused before anything compiles
            saved = checkpoint.restore(directory, abstract_seeds(method, len(keys)))
        reader = None if method.feed is None else method.feed.open(partial(_between, console))
        state = init_seeds(keys, method, hparams)
        data_digest = None if state.data is None else checkpoint.digest(jax.device_get(state.data))
        data_digest = data_digest if reader is None else reader.digest
        if saved is not None:
            if saved.data_digest != data_digest:
                raise checkpoint.CheckpointError(f"{directory} was trained on other data than was built now")
            first, state = saved.step, saved.state._replace(data=state.data)
        folder.cut_metrics(run_dir, first)
        earlier = sum(row["seconds"] for row in folder.read_metrics(run_dir)[-1:])
        watch.seconds["train"] += earlier
        if first == schedule.num_chunks:
            return state
        signals.check()
        with console.status("compiling the training loop"):
            keys, state = replicate(keys), replicate(state)
            chunk = compile_chunk(method, schedule, keys, state, evaluate, reader)
    progress = Progress(console, schedule, first, tasks_per_update * len(keys))

    def log_metrics(done: int, log: dict[str, np.ndarray], state: TrainState) -> None:
        row = {"chunk": done, "update": done * schedule.updates_per_chunk, "seconds": earlier + progress.elapsed}
        folder.append_metrics(run_dir, row | {name: np.asarray(value).tolist() for name, value in log.items()})

    def save(done: int, log: dict[str, np.ndarray], state: TrainState) -> None:
        if done % options.checkpoint_every == 0 or done == schedule.num_chunks or signals.noted:
            checkpoint.save(directory, done, state, data_digest)
            signals.check()  # only here, where nothing is lost

    callbacks: list[Any] = [log_metrics, *_tensorboard(run_dir, options, schedule, len(keys), first), progress, save]
    with watch.time("train"), progress:
        resumed = {"first": first, "state": state, "chunk": chunk, "reader": reader}
        return fit(keys, method, schedule, callbacks=callbacks, stop_nonfinite=stop_nonfinite, **resumed)


def _between(console: Console, done: int, num_tasks: int) -> None:
    """Between two blocks of histories that are made."""
    console.print(f"histories of {done}/{num_tasks} tasks are on disk", highlight=False)
    signals.check()


def _tensorboard(run_dir: Path, options: RunOptions, schedule: Schedule, num_runs: int, first: int) -> list:
    if not options.tensorboard:
        return []
    from tensorboardX import SummaryWriter

    stale = first * schedule.updates_per_chunk + 1  # what a kill left behind is hidden from here on
    folders = [os.fspath(run_dir / "tensorboard" / f"seed_{s}") for s in range(num_runs)]
    writers = [SummaryWriter(folder, purge_step=stale) for folder in folders]

    def write(done: int, log: dict[str, np.ndarray], state: TrainState) -> None:
        for s, writer in enumerate(writers):
            for name, value in log.items():
                writer.add_scalar(name, float(value[s]), done * schedule.updates_per_chunk)
            writer.flush()

    return [write]

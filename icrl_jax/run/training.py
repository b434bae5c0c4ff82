"""Training from the host, made kind: progress, logs, checkpoints, resume, and a clean stop."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from icrl_jax import checkpoint
from icrl_jax.core import Array, Method, TrainState
from icrl_jax.parallel import replicate
from icrl_jax.run import folder
from icrl_jax.run.options import RunOptions
from icrl_jax.run.progress import Progress
from icrl_jax.train import Evaluate, Schedule, compile_chunk, fit, init_seeds


class Interrupted(Exception):
    """The run was asked to stop; its state is saved. `signal_number` says by what."""

    def __init__(self, signal_number: int):
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


class Stopwatch:
    """Seconds spent on each kind of work, for `results.json`."""

    def __init__(self):
        self.seconds = {"compile": 0.0, "train": 0.0, "evaluate": 0.0}

    @contextmanager
    def time(self, what: str) -> Iterator[None]:
        """Adds the time of its block to `what`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - begin


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
      Interrupted: on SIGINT or SIGTERM, once the chunk in flight is finished and saved.
      NonFiniteLoss: a loss was not finite; the checkpoints before it are kept.
      CheckpointError: there are checkpoints, but none fits.
      OSError: the run folder cannot be written.
    """
    directory = run_dir / folder.CHECKPOINTS
    with watch.time("compile"):
        state = init_seeds(keys, method, hparams)
        data_digest = None if state.data is None else checkpoint.digest(jax.device_get(state.data))
        first = 0
        if checkpoint.list_steps(directory):
            first, state = checkpoint.restore(directory, state, data_digest)
        folder.cut_metrics(run_dir, first)
        if first == schedule.num_chunks:
            return state
        with console.status("compiling the training loop"):
            keys, state = replicate(keys), replicate(state)
            chunk = compile_chunk(method, schedule, keys, state, evaluate)
    progress = Progress(console, schedule, first, tasks_per_update * len(keys))
    stopping: list[int] = []

    def log_metrics(done: int, log: dict[str, np.ndarray], state: TrainState) -> None:
        row = {"chunk": done, "update": done * schedule.updates_per_chunk, "seconds": progress.elapsed}
        folder.append_metrics(run_dir, row | {name: np.asarray(value).tolist() for name, value in log.items()})

    def save(done: int, log: dict[str, np.ndarray], state: TrainState) -> None:
        if done % options.checkpoint_every == 0 or done == schedule.num_chunks or stopping:
            checkpoint.save(directory, done, state, data_digest)
        if stopping and done < schedule.num_chunks:
            raise Interrupted(stopping[0])

    callbacks: list[Any] = [log_metrics, *_tensorboard(run_dir, options, schedule), progress, save]
    with watch.time("train"), _catch_signals(stopping, console), progress:
        resumed = {"first": first, "state": state, "chunk": chunk}
        return fit(keys, method, schedule, callbacks=callbacks, stop_nonfinite=stop_nonfinite, **resumed)


@contextmanager
def _catch_signals(stopping: list[int], console: Console) -> Iterator[None]:
    """Turns the first SIGINT or SIGTERM into a note for the loop; the second one stops at once."""

    def note(signal_number, frame):
        stopping.append(signal_number)
        for number, handler in before.items():
            signal.signal(number, handler)
        console.print("finishing this part of the training, then saving; once more stops at once")

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tensorboard(run_dir: Path, options: RunOptions, schedule: Schedule) -> list:
    if not options.tensorboard:
        return []
    from tensorboardX import SummaryWriter

    writers = [SummaryWriter(os.fspath(run_dir / "tensorboard" / f"seed_{s}")) for s in range(options.num_seeds)]

    def write(done: int, log: dict[str, np.ndarray], state: TrainState) -> None:
        for s, writer in enumerate(writers):
            for name, value in log.items():
                writer.add_scalar(name, float(value[s]), done * schedule.updates_per_chunk)
            writer.flush()

    return [write]

"""Progress with the time left: a bar in a terminal, a line a chunk elsewhere."""

import time

import numpy as np
import rich.progress
from rich.console import Console

from icrl_jax.core import TrainState
from icrl_jax.train import Schedule


class Progress:
    """A callback of `fit`, and a context that shows it."""

    def __init__(self, console: Console, schedule: Schedule, first: int, tasks_per_update: int):
        self.console, self.schedule, self.first, self.tasks_per_update = console, schedule, first, tasks_per_update
        self.begin = time.perf_counter()
        columns = "{task.description}", rich.progress.BarColumn(), "{task.completed}/{task.total} updates"
        self.bar = rich.progress.Progress(*columns, "{task.fields[note]}", console=console)
        total = schedule.num_chunks * schedule.updates_per_chunk
        done = first * schedule.updates_per_chunk
        self.task = self.bar.add_task("training", total=total, completed=done, note="")

    @property
    def elapsed(self) -> float:
        """Seconds since training began in this process."""
        return time.perf_counter() - self.begin

    def __enter__(self):
        if self.console.is_terminal:
            self.bar.start()
        self.begin = time.perf_counter()
        return self

    def __exit__(self, *exception):
        if self.console.is_terminal:
            self.bar.stop()

    def __call__(self, done: int, log: dict[str, np.ndarray], state: TrainState) -> None:
        updates = (done - self.first) * self.schedule.updates_per_chunk
        left = self.elapsed / (done - self.first) * (self.schedule.num_chunks - done)
        shown = [f"{name.removeprefix('eval/')} {value.mean():.3g}" for name, value in log.items() if _shown(name)]
        note = "  ".join(
            [*shown, f"{updates * self.tasks_per_update / self.elapsed:,.0f} tasks/s", f"{_time(left)} left"]
        )
        updates_done = done * self.schedule.updates_per_chunk
        self.bar.update(self.task, completed=updates_done, note=note)
        if not self.console.is_terminal:
            total = self.schedule.num_chunks * self.schedule.updates_per_chunk
            self.console.print(f"  {updates_done:>{len(str(total))}}/{total} updates  {note}", highlight=False)


def _shown(name: str) -> bool:
    return name == "loss" or name.startswith("eval/")


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"

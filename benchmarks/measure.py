"""How everything here is measured: two sides in turn, A B A B, and the medians."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One line of the table."""

    what: str
    ours: str  # with its unit
    theirs: str = ""  # with its unit; empty where there is nothing to compare with
    ratio: float | None = None  # how many times better ours is
    aim: str = ""  # empty where the row is only for information
    met: bool | None = None  # whether the aim was reached here; None without one
    note: str = ""
    numbers: Mapping[str, Any] = {}  # the same, for a figure


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
clock = CLOCKS["wall"]
"""The seconds that count: those on the wall or, on a machine shared with others, those of this process's cores."""


def use_clock(name: str) -> None:
    """Chooses one of `CLOCKS` for all that follows."""
    global clock
    clock = CLOCKS[name]


def faster(what: str, ours: str, theirs: str, ratio: float, times: float | None, note: str = "") -> Row:
    """A row whose aim is to be so many times faster."""
    if times is None:
        return Row(what, ours, theirs, ratio, note=note)
    return Row(what, ours, theirs, ratio, f"{times:g} x", ratio >= times, note)


def below(what: str, value: float, unit: str, limit: float, note: str = "") -> Row:
    """A row whose aim is to stay under a limit."""
    return Row(what, f"{value:.3g} {unit}", aim=f"< {limit:g} {unit}", met=value < limit, note=note)


def in_turn(sides: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each side's call, which must wait for its own result.

    The sides take turns, so what else the machine does falls on all of them. The first round, which compiles and warms
    up, does not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, call in sides.items():
            begin = clock()
            call()
            seconds[name].append(clock() - begin)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def milliseconds(seconds: float) -> str:
    """For the table."""
    return f"{1e3 * seconds:.3g} ms"

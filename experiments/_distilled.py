"""What experiments that distil histories share: the same model on other histories, and what they will take."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from icrl_envs import TaskFamily
from icrl_jax.data.collect import free_bytes
from icrl_jax.data.manifest import is_whole
from icrl_jax.methods.sources import HistoriesConfig, count_tasks, held_bytes, predicted_bytes
from icrl_jax.methods.stored import tasks_at_once
from icrl_jax.run import MethodSpec

METHOD = "icrl_jax.methods.ad:ad"


def on_other_histories(name: str, **changes: Any) -> Callable[[Any], dict[str, MethodSpec]]:
    """A control, unless `--no-control`: all as it is, but for `changes` of what is distilled.

    Args:
      name: of the agent; histories on disk get a folder of their own, named so too.
    """

    def controls(config: Any) -> dict[str, MethodSpec]:
        if not config.control:
            return {}
        given: HistoriesConfig = config.ad.histories
        store = None if given.store is None else f"{Path(given.store)}-{name}"
        histories = dataclasses.replace(given, **changes, store=store)
        return {name: MethodSpec(METHOD, dataclasses.replace(config.ad, histories=histories))}

    return controls


EXPERT = on_other_histories("ed", source="expert", shared=False)
"""ED: the histories are an expert's."""


def notes(env: TaskFamily, options: list[Any]) -> list[str]:
    """What the histories will take, a line for those of AD and of each control.

    Args:
      options: of AD, whose histories are held until the end, and of its controls, whose are not.
    Raises:
      ValueError: histories that need more memory than is free.
    """
    lines, held = [], 0
    for histories in (each.histories for each in options):
        store = histories.store
        if store is None:
            needed = held + predicted_bytes(env, histories)
            lines.append(f"histories: {histories.source}, {_mib(needed)} of memory while they are collected")
            check_memory(needed, histories)
            held = held or held_bytes(env, histories)
        elif histories.source == "logged" or is_whole(Path(store)):
            lines.append(f"histories: {histories.source}, streamed from {store}")
        else:
            num_tasks, at_once = count_tasks(env, histories), tasks_at_once(env, histories)
            needed, size = predicted_bytes(env, histories) * at_once // num_tasks, held_bytes(env, histories)
            lines.append(
                f"histories: {histories.source}, streamed from {store}, where they take {_mib(size)} of the disk; made "
                f"{at_once:,} of {num_tasks:,} tasks at a time, in {_mib(needed)} of memory"
            )
            check_memory(needed, histories)
    return lines


def check_memory(needed: int, histories: HistoriesConfig) -> None:
    """Refuses, with advice, what does not fit."""
    free = free_bytes()
    if needed <= free:
        return
    times = math.ceil(needed / max(free, 1))
    sizes = {"--num-streams": histories.num_streams, "--num-steps": histories.num_steps}
    ways = [f"{name} {size // times}" for name, size in sizes.items() if size >= times]
    ways += ["--store FOLDER, which streams them from disk"] if histories.store is None else []
    raise ValueError(
        f"histories of source={histories.source!r} need {_mib(needed)} of memory, and {_mib(free)} are free; "
        f"what would do: about {', or '.join([*ways, 'fewer --num-tasks'])}"
    )


def _mib(size: float) -> str:
    return f"{size / 2**20:,.1f} MiB"

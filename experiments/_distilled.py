"""What experiments that distil histories share: the same model on other histories, and what they will take."""

import dataclasses
from collections.abc import Callable
from typing import Any

from icrl_envs import TaskFamily
from icrl_jax.methods.sources import HistoriesConfig, predicted_bytes
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
        store = None if given.store is None else f"{given.store}-{name}"
        histories = dataclasses.replace(given, **changes, store=store)
        return {name: MethodSpec(METHOD, dataclasses.replace(config.ad, histories=histories))}

    return controls


EXPERT = on_other_histories("ed", source="expert", shared=False)
"""ED: the histories are an expert's."""


def notes(config: Any, env: TaskFamily) -> list[str]:
    """What the histories will take, in a line."""
    histories: HistoriesConfig = config.ad.histories
    if histories.store is not None:
        return [f"histories: {histories.source}, streamed from {histories.store}"]
    return [f"histories: {histories.source}, {predicted_bytes(env, histories) / 2**20:,.0f} MiB at their collection"]

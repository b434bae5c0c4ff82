"""A mixture of experts against the dense feed-forward layer with the same active parameters."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax

from benchmarks.measure import Row, faster, in_turn, milliseconds
from benchmarks.parts import both_ways
from icrl_jax.models.layers import Mlp
from icrl_jax.models.moe import Dispatch, MoE, MoEConfig


class Size(NamedTuple):
    """What is timed."""

    width: int = 128
    rows: int = 128
    length: int = 128
    experts: int = 8
    rounds: int = 9


QUICK = Size(8, 16, 4, 4, 1)


def rows(quick: bool = False) -> Iterator[Row]:
    """Forward and backward with each dispatch. The aim is a cost of at most 1.6 dense layers on CPU, else 1.3."""
    size = QUICK if quick else Size()
    x = jax.random.normal(jax.random.key(0), (size.rows, size.length, size.width))
    sides = {"dense layer": Mlp(config(size, "auto"), jax.random.key(1))} | {
        dispatch: MoE(config(size, dispatch), jax.random.key(1)) for dispatch in ("auto", "sorted", "dense")
    }
    calls = {name: both_ways(lambda layer, x: layer(x), x, layer) for name, layer in sides.items()}
    seconds = in_turn(calls, size.rounds)
    theirs = seconds.pop("dense layer")
    note = (
        f"{size.experts} experts, top 2, {size.rows * size.length:,} tokens, width {size.width}, forward and backward"
    )
    aim = 1 / (1.6 if jax.default_backend() == "cpu" else 1.3)
    for dispatch, ours in seconds.items():
        what = f"training, mixture of experts ({dispatch}) against the dense layer"
        times = aim if dispatch == "auto" else None
        yield faster(what, milliseconds(ours), milliseconds(theirs), theirs / ours, times, note)


def config(size: Size, dispatch: Dispatch) -> Any:
    """What a feed-forward part asks of its model's config."""
    moe = MoEConfig(num_experts=size.experts, top_k=2, dispatch=dispatch)
    return SimpleNamespace(width=size.width, mlp_ratio=4, num_layers=1, moe=moe)

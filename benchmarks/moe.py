"""A mixture of experts against the dense feed-forward layer with the same active parameters."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.measure import Row, faster, in_turn, milliseconds
from benchmarks.parts import both_ways
from benchmarks.update import Size as Update
from benchmarks.update import config as dpt_config
from benchmarks.update import our_updates
from icrl_jax.methods.supervised import gradient_of_rows
from icrl_jax.models.layers import Mlp
from icrl_jax.models.moe import Dispatch, MoE, MoEConfig
from icrl_jax.parallel import mean_over_rows, replicate, rows_sharding


class Size(NamedTuple):
    """What is timed."""

    width: int = 128
    rows: int = 128
    length: int = 128
    experts: int = 8
    rounds: int = 9
    update: Update = Update(dpt_config(64, 3, 4, horizon=100, clip=1.0))


QUICK = Size(8, 16, 4, 4, 1, Update(dpt_config(8, 1, 2, horizon=5, clip=1.0, batch_size=4), updates=2))


def rows(quick: bool = False) -> Iterator[Row]:
    """Layers, then whole updates. The aim is a cost of at most 1.6 times what dense ones cost on CPU, else 1.3."""
    size = QUICK if quick else Size()
    yield from layer_rows(size)
    yield group_row(size)
    yield update_row(size)


def layer_rows(size: Size) -> Iterator[Row]:
    """Forward and backward with each dispatch, all tokens in one pass."""
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
    for dispatch, ours in seconds.items():
        what = f"training, mixture of experts ({dispatch}) against the dense layer"
        times = aim() if dispatch == "auto" else None
        yield faster(what, milliseconds(ours), milliseconds(theirs), theirs / ours, times, note)


def group_row(size: Size) -> Row:
    """The same, with as many tokens in a pass as training gives each side."""
    shape = (size.rows, size.length, size.width)
    keys, x = jax.random.split(jax.random.key(1), shape[0]), jax.random.normal(jax.random.key(0), shape)
    rows = jax.device_put((x, keys), rows_sharding(0))
    layers = {
        "experts": MoE(config(size, "auto"), jax.random.key(1)),
        "dense": Mlp(config(size, "auto"), jax.random.key(1)),
    }
    least = {"experts": config(size, "auto").moe.least_rows(size.length), "dense": 1}

    def call(name):
        gradient = jax.jit(mean_over_rows(partial(gradient_of_layer, size.length, least[name])))
        layer = replicate(layers[name])
        return lambda: jax.block_until_ready(gradient(layer, rows))

    seconds = in_turn({name: call(name) for name in layers}, size.rounds)
    ours, theirs = seconds["experts"], seconds["dense"]
    what = "training, mixture of experts against the dense layer, in passes as training takes them"
    note = f"{size.experts} experts, top 2, {shape[0] * size.length:,} tokens, width {size.width}, forward and backward"
    return faster(what, milliseconds(ours), milliseconds(theirs), theirs / ours, aim(), note)


def gradient_of_layer(tokens_per_row: int, least_rows: int, layer: Any, rows: tuple[jax.Array, jax.Array]) -> Any:
    """Of a mean of squares over rows and their keys, as `supervised` takes it."""

    def mean_square(layer, x, key):
        return jnp.square(jax.tree.leaves(layer(x))[0]).mean(), {}

    return gradient_of_rows(mean_square, layer, *rows, tokens_per_row, least_rows)[0]


def update_row(size: Size) -> Row:
    """Updates of DPT as it is trained, with experts in every layer and without."""
    dense = size.update.config
    moe = MoEConfig(num_experts=size.experts, top_k=2)
    experts = replace(dense, model=replace(dense.model, moe=moe))
    sides = {name: size.update._replace(config=config) for name, config in (("experts", experts), ("dense", dense))}
    seconds = in_turn({name: our_updates(side) for name, side in sides.items()}, size.rounds)
    ours, theirs = (seconds[name] / size.update.updates for name in ("experts", "dense"))
    model, what = dense.model, "update, mixture of experts against dense layers"
    sizes = f"B={dense.batch_size} T={dense.horizon + 1} D={model.width} L={model.num_layers}"
    note = f"{size.experts} experts, top 2, {sizes}"
    return faster(what, milliseconds(ours), milliseconds(theirs), theirs / ours, aim(), note)


def aim() -> float:
    """How fast the mixture is to be, dense layers being 1."""
    return 1 / (1.6 if jax.default_backend() == "cpu" else 1.3)


def config(size: Size, dispatch: Dispatch) -> Any:
    """What a feed-forward part asks of its model's config."""
    moe = MoEConfig(num_experts=size.experts, top_k=2, dispatch=dispatch)
    return SimpleNamespace(width=size.width, mlp_ratio=4, num_layers=1, moe=moe)

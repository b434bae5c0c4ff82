"""Transitions generated per second: the compiled contexts of DPT against a NumPy loop over environments."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal, NamedTuple

import jax
import numpy as np

import icrl_envs
from benchmarks import numpy_loop
from benchmarks.measure import Row, faster, in_turn
from icrl_jax.methods.dpt import DPTConfig, Example, make_behaviour, sample_example
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.parallel import over_rows


class Size(NamedTuple):
    """How much is collected in one call."""

    num_tasks: int = 4096
    num_steps: int = 100
    numpy_tasks: int = 32
    rounds: int = 9


QUICK = Size(num_tasks=16, num_steps=7, numpy_tasks=3, rounds=1)


def rows(quick: bool = False) -> Iterator[Row]:
    """One row per behaviour and NumPy loop."""
    size = QUICK if quick else Size()
    yield from behaviour_rows("mixture", {"mixture": 100}, size)
    yield from behaviour_rows("thompson", {"thompson": 100, "lean_thompson": None}, size)


def behaviour_rows(
    behaviour: Literal["mixture", "thompson"], against: dict[numpy_loop.Behaviour, float | None], size: Size
) -> Iterator[Row]:
    """All sides draw the task, the context and the label.

    Args:
        against: the NumPy behaviours to compare with, and how many times faster we aim to be.
    """
    rng, collect = np.random.default_rng(0), compiled(behaviour, size.num_steps)
    keys = jax.random.split(jax.random.key(0), size.num_tasks)
    sides: dict[str, Callable[[], object]] = {"ours": lambda: jax.block_until_ready(collect(keys))}
    for name in against:
        sides[name] = partial(numpy_loop.collect, name, size.numpy_tasks, size.num_steps, rng)
    seconds = in_turn(sides, size.rounds)
    ours = size.num_tasks * size.num_steps / seconds["ours"]
    for name, times in against.items():
        theirs = size.numpy_tasks * size.num_steps / seconds[name]
        note = f"{size.num_tasks:,} tasks x {size.num_steps} steps at once, a NumPy loop over {size.numpy_tasks}"
        if name == "lean_thompson":
            note = "a NumPy loop that does not rebuild the posterior at every step, as the papers' does"
        what = f"transitions generated, {behaviour} behaviour"
        yield faster(what, f"{ours:,.0f} /s", f"{theirs:,.0f} /s", ours / theirs, times, note)


def compiled(behaviour: Literal["mixture", "thompson"], num_steps: int) -> Callable[[jax.Array], Example]:
    """`keys [B] -> examples [B, ...]`, what DPT's update does before it learns."""
    env = icrl_envs.make("gaussian_bandit")
    model = TransformerConfig(context_len=num_steps + 1)
    agent = make_behaviour(env, DPTConfig(model=model, behaviour=behaviour, horizon=num_steps))
    draw = jax.vmap(partial(sample_example, env, agent, num_steps))
    return jax.jit(lambda keys: over_rows(lambda _, keys: draw(keys))((), keys))

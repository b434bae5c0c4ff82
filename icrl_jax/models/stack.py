"""Blocks one after another: all that they compute kept for the backward pass, or only what enters them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from icrl_jax.core import Tree

Run = Callable[[Array, Any], tuple[Array, Tree]]
"""`(x, layer) -> (x, what the block hands out)`."""


def run_all(run: Run, x: Array, layers: list[Any]) -> tuple[Array, list[Tree]]:
    """Block after block, and what each hands out."""
    found = []
    for layer in layers:
        x, of_layer = run(x, layer)
        found.append(of_layer)
    return x, found


def run_and_forget(run: Run, x: Array, layers: list[Any]) -> tuple[Array, list[Tree]]:
    """The same; but each block is computed again in the backward pass, which needs the blocks' inputs only.

    In a loop over layers of equal shapes, whose backward pass is another loop: XLA on CPU removes the barriers of
    `jax.checkpoint`, and then joins what is computed again with what was computed, wherever it sees both.
    """
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    x, found = lax.scan(jax.checkpoint(run, prevent_cse=False), x, stacked)
    return x, [jax.tree.map(lambda leaf, i=i: leaf[i], found) for i in range(len(layers))]

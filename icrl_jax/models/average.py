# ruff: noqa: N803, N806
"""The running mean of what a block reads, since the last reset: what one decision for a whole sequence goes by.

Axes: T time, B rows, D features; time leads, as a scan wants it. A total is [sum of the features | how many].
"""

import jax.numpy as jnp
from jax import Array, lax

from icrl_jax.models.layers import widened

Totals = tuple[Array, ...]
"""Of one block: one total [..., D + 1] where something goes by the mean, else none."""


def mean(total: Array) -> Array:
    """[..., D + 1] to [..., D]."""
    return total[..., :-1] / total[..., -1:]


def one(x: Array) -> Array:
    """The total [..., D + 1] of one input by itself, in float32 at least; those of several add up."""
    return jnp.concatenate([widened(x), jnp.ones((*x.shape[:-1], 1), widened(x).dtype)], axis=-1)


def forget(total_BE: Array, reset_B: Array) -> Array:
    """The total before an input that may start a sequence."""
    return jnp.where(reset_B[:, None], 0, total_BE)


def add(total_BE: Array, x_BD: Array, reset_B: Array) -> Array:
    """The total [B, D + 1] after one input."""
    return forget(total_BE, reset_B) + one(x_BD)


def add_all(total_BE: Array, x_TBD: Array, reset_TB: Array) -> Array:
    """The totals [T, B, D + 1] after each of some inputs."""
    x_TBE = one(x_TBD)
    x_TBE = x_TBE.at[0].add(forget(total_BE, reset_TB[0]))
    return lax.associative_scan(_join, (x_TBE, reset_TB[..., None]))[0]


def _join(early, late):
    """Left out, not multiplied by zero, so that a NaN before a reset stays there."""
    (x, forgot), (late_x, late_forgot) = early, late
    return jnp.where(late_forgot, 0, x) + late_x, forgot | late_forgot

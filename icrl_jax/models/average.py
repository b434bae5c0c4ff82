# ruff: noqa: N803, N806
"""The running mean of what a block reads, since the last reset: what one decision for a whole sequence goes by.

Axes: T time, B rows, D features; time leads, as a scan wants it. A total is [sum of the features | how many].
"""

import jax.numpy as jnp
from jax import Array, lax

from icrl_jax.models.layers import widened


def mean(total: Array) -> Array:
    """[..., D + 1] to [..., D]."""
    return total[..., :-1] / total[..., -1:]


def add(total_BE: Array, x_BD: Array, reset_B: Array) -> Array:
    """The total [B, D + 1] after one input, in float32 at least; a reset forgets what came before."""
    return jnp.where(reset_B[:, None], 0, total_BE) + _counted(x_BD)


def add_all(total_BE: Array, x_TBD: Array, reset_TB: Array) -> Array:
    """The totals [T, B, D + 1] after each of some inputs."""
    x_TBE = _counted(x_TBD)
    x_TBE = x_TBE.at[0].set(jnp.where(reset_TB[0, :, None], 0, total_BE) + x_TBE[0])
    return lax.associative_scan(_join, (x_TBE, reset_TB[..., None]))[0]


def _join(early, late):
    """Left out, not multiplied by zero, so that a NaN before a reset stays there."""
    (x, forgot), (late_x, late_forgot) = early, late
    return jnp.where(late_forgot, 0, x) + late_x, forgot | late_forgot


def _counted(x: Array) -> Array:
    return jnp.concatenate([widened(x), jnp.ones((*x.shape[:-1], 1), widened(x).dtype)], axis=-1)

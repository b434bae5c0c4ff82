# ruff: noqa: N803, N806
"""Linear recurrences with resets, x_t = (0 where t starts a sequence, else a x_{t-1}) + b_t, a complex and diagonal.

One entry point, one implementation per platform. Complex numbers lie as [real | imaginary] on the last axis, so that
real matrix products lead in and out, and no compiler has to be good at complex arithmetic.

Axes: T time, B rows, P complex states; time leads, as a scan wants it.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax


@jax.custom_vjp
def linear_recurrence(a_2P: Array, b_TB2P: Array, x_B2P: Array, reset_TB: Array) -> Array:
    """All states [T, B, 2P] of the recurrence, from the state `x` before the first input.

    On CPU a loop over time, each step of which works on all rows; on accelerators an associative scan. The gradient
    runs the same recurrence backwards, with the conjugate of `a`, and keeps nothing but the states. What lies before a
    reset is not multiplied by zero but left out, so that a NaN there stays there.

    Args:
        a_2P: the transition, [real | imaginary].
        b_TB2P: what enters at each time.
        x_B2P: the state before; a reset at the first time forgets it.
        reset_TB: bool, where a sequence starts.

    References:
        Chris Lu et al., Structured State Space Models for In-Context Reinforcement Learning, 2023,
        https://arxiv.org/abs/2303.03982, section 3.2: resets inside an associative operator.
    """
    return _states(a_2P, b_TB2P, x_B2P, reset_TB)


def advance(a_2P: Array, b_B2P: Array, x_B2P: Array, reset_B: Array) -> Array:
    """One step of the recurrence, [B, 2P]."""
    return multiply(a_2P[None], jnp.where(reset_B[:, None], 0, x_B2P)) + b_B2P  # so that no gradient meets what was


def multiply(a: Array, x: Array) -> Array:
    """The complex product, broadcast, of [real | imaginary] on the last axis."""
    (a_re, a_im), (x_re, x_im) = (jnp.split(z, 2, axis=-1) for z in (a, x))
    return jnp.concatenate([a_re * x_re - a_im * x_im, a_re * x_im + a_im * x_re], axis=-1)


def _conjugate(a: Array) -> Array:
    real, imaginary = jnp.split(a, 2, axis=-1)
    return jnp.concatenate([real, -imaginary], axis=-1)


def _states(a_2P, b_TB2P, x_B2P, reset_TB):
    return (_loop if jax.default_backend() == "cpu" else _associative)(a_2P, b_TB2P, x_B2P, reset_TB)


def _loop(a_2P, b_TB2P, x_B2P, reset_TB):
    def step(x_B2P, inputs):
        x_B2P = advance(a_2P, inputs[0], x_B2P, inputs[1])
        return x_B2P, x_B2P

    return lax.scan(step, x_B2P, (b_TB2P, reset_TB))[1]


def _associative(a_2P, b_TB2P, x_B2P, reset_TB):
    """A run of inputs is (a to the power of its length, the state it leaves, whether it holds a reset).

    Where it holds one, no power counts: so the powers are those of the lengths, one for all rows.
    """
    first = jnp.where(reset_TB[0, :, None], 0, multiply(a_2P[None], x_B2P)) + b_TB2P[0]
    powers_T12P = jnp.broadcast_to(a_2P, (b_TB2P.shape[0], 1, a_2P.shape[0]))

    return lax.associative_scan(_join, (powers_T12P, b_TB2P.at[0].set(first), reset_TB[..., None]))[1]


def _join(early, late):
    (power, x, forgot), (late_power, late_x, late_forgot) = early, late
    x = jnp.where(late_forgot, 0, multiply(late_power, x)) + late_x
    return multiply(late_power, power), x, forgot | late_forgot


def _forward(a_2P, b_TB2P, x_B2P, reset_TB):
    x_TB2P = _states(a_2P, b_TB2P, x_B2P, reset_TB)
    return x_TB2P, (a_2P, x_B2P, x_TB2P, reset_TB)


def _backward(residuals, dx_TB2P):
    a_2P, first_B2P, x_TB2P, reset_TB = residuals
    forgets_TB = jnp.concatenate([reset_TB[1:], jnp.zeros_like(reset_TB[:1])])  # whether the next time forgets this one
    backwards = _loop_backward if jax.default_backend() == "cpu" else _associative_backward
    db_TB2P, da_B2P = backwards(_conjugate(a_2P), dx_TB2P, x_TB2P, forgets_TB)
    kept_B2P = jnp.where(reset_TB[0, :, None], 0, db_TB2P[0])
    da_B2P += jnp.where(reset_TB[0, :, None], 0, multiply(_conjugate(first_B2P), db_TB2P[0]))
    return da_B2P.sum(axis=0), db_TB2P, multiply(_conjugate(a_2P)[None], kept_B2P), None


def _loop_backward(adjoint_2P, dx_TB2P, x_TB2P, forgets_TB):
    """The gradient's own recurrence, backwards in time, and on the way that of `a` but for the first time."""

    def step(carry, inputs):
        db_B2P, da_B2P = carry  # of the time after this one
        dx_B2P, x_B2P, forgets_B = inputs
        da_B2P += jnp.where(forgets_B[:, None], 0, multiply(_conjugate(x_B2P), db_B2P))
        db_B2P = advance(adjoint_2P, dx_B2P, db_B2P, forgets_B)
        return (db_B2P, da_B2P), db_B2P

    zero = jnp.zeros_like(dx_TB2P[0])
    (_, da_B2P), db_TB2P = lax.scan(step, (zero, zero), (dx_TB2P, x_TB2P, forgets_TB), reverse=True)
    return db_TB2P, da_B2P


def _associative_backward(adjoint_2P, dx_TB2P, x_TB2P, forgets_TB):
    """The same."""
    zero = jnp.zeros_like(dx_TB2P[0])
    db_TB2P = _associative(adjoint_2P, dx_TB2P[::-1], zero, forgets_TB[::-1])[::-1]
    da_TB2P = jnp.where(forgets_TB[:-1, :, None], 0, multiply(_conjugate(x_TB2P[:-1]), db_TB2P[1:]))
    return db_TB2P, da_TB2P.sum(axis=0)


linear_recurrence.defvjp(_forward, _backward)

"""The two ways through a sequence model that must agree."""

import jax
import jax.numpy as jnp

call = jax.jit(lambda model, carry, x, reset: model(carry, x, reset)[:2])
"""Whole sequences at once, [B, T, D]."""


@jax.jit
def scan_step(model, carry, x, reset):
    """The same, an input at a time."""
    inputs = jnp.swapaxes(x, 0, 1), jnp.swapaxes(reset, 0, 1)
    carry, y = jax.lax.scan(lambda carry, xs: model.step(carry, *xs), carry, inputs)
    return carry, jnp.swapaxes(y, 0, 1)

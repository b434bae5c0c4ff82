"""The two ways through a sequence model that must agree, and what some of its gates go by."""

import jax
import jax.numpy as jnp
import numpy as np

call = jax.jit(lambda model, carry, x, reset: model(carry, x, reset)[:2])
"""Whole sequences at once, [B, T, D]."""


@jax.jit
def scan_step(model, carry, x, reset):
    """The same, an input at a time."""
    inputs = jnp.swapaxes(x, 0, 1), jnp.swapaxes(reset, 0, 1)
    carry, y = jax.lax.scan(lambda carry, xs: model.step(carry, *xs), carry, inputs)
    return carry, jnp.swapaxes(y, 0, 1)


def running_means(h, reset):
    """Of each row's inputs [B, T, D] since the last reset, by a plain loop."""
    means = np.zeros(h.shape)
    for b, t in np.ndindex(reset.shape):
        first = max(np.flatnonzero(reset[b, : t + 1]), default=0)
        means[b, t] = np.asarray(h[b, first : t + 1], np.float64).mean(axis=0)
    return jnp.asarray(means, jnp.float32)

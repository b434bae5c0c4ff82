"""What must hold of sequence models: two ways through them agree, gradients are slopes, and what gates go by."""

import zlib

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


def assert_gradient_is_slope(f, args, h=1e-6):
    """The gradient of `f(args)` in float64 is its slope along one direction. In NumPy, which compiles nothing."""
    with jax.enable_x64(True):
        args = jax.tree.map(lambda z: np.asarray(z, np.float64), args)
        direction = jax.tree.map(lambda z: np.cos(np.arange(z.size)).reshape(z.shape), args)
        along = lambda h: jax.tree.map(lambda z, d: z + h * d, args, direction)
        f = jax.jit(jax.value_and_grad(f))
        products = jax.tree.map(lambda g, d: np.sum(np.asarray(g) * d), f(args)[1], direction)
        slope = (f(along(h))[0] - f(along(-h))[0]) / (2 * h)
    np.testing.assert_allclose(slope, sum(jax.tree.leaves(products)), rtol=1e-6)


def running_means(h, reset):
    """Of each row's inputs [B, T, D] since the last reset, by a plain loop."""
    means = np.zeros(h.shape)
    for b, t in np.ndindex(reset.shape):
        first = max(np.flatnonzero(reset[b, : t + 1]), default=0)
        means[b, t] = np.asarray(h[b, first : t + 1], np.float64).mean(axis=0)
    return jnp.asarray(means, jnp.float32)


def filled(make):
    """What `make()` would build, but with weights drawn in NumPy, which compiles nothing: none is zero, and those of
    one name and shape are the same in every model."""

    def draw(path, x):
        name = jax.tree_util.keystr(path)
        size = x.shape[-2] ** -0.5 if len(x.shape) > 1 else 0.1
        drawn = ("scale" in name) + size * np.random.default_rng(zlib.crc32(name.encode())).normal(size=x.shape)
        return jnp.asarray(drawn.astype(x.dtype))

    return jax.tree.map_with_path(draw, jax.eval_shape(make))

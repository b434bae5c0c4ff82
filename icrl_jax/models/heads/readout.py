"""What all heads end in: a linear map, or hidden layers and one."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from icrl_jax.core import Array
from icrl_jax.models.embeddings import keys_for
from icrl_jax.models.layers import along, fan_in, linear, widened


class Readout(nnx.Module):
    """y [..., D] to [..., *shape] in float32: linear, or after hidden layers with biases and GELU.

    The last map has no bias: what is before it has one, here or in a model's last normalisation.
    """

    def __init__(self, width: int, shape: tuple[int, ...], hidden: tuple[int, ...], scale: float, key: Array):
        *keys, key_out = keys_for(key, len(hidden) + 1)
        inputs = (width, *hidden)
        self.hidden = nnx.List(fan_in(k, (m, n), m) for k, m, n in zip(keys, inputs, hidden, strict=False))
        self.biases = nnx.List(nnx.Param(jnp.zeros(n)) for n in hidden)
        self.out = nnx.Param(scale * fan_in(key_out, (inputs[-1], math.prod(shape)), inputs[-1])[...])
        self.shape = shape

    def __call__(self, y: Array) -> Array:
        y = widened(y)
        for w, b in zip(self.hidden, self.biases, strict=True):
            y = linear(y, w[...])
            y = jax.nn.gelu(y + along(b[...], y))
        return linear(y, self.out[...]).reshape(*y.shape[:-1], *self.shape)


def check_hidden(hidden: tuple[int, ...]) -> None:
    """Refuses hidden layers whose sizes are not positive integers."""
    if any(not isinstance(n, int) or n < 1 for n in hidden):
        raise ValueError(f"hidden={hidden!r} must be positive integers, or empty")

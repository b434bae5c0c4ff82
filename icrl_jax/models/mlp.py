# ruff: noqa: N803, N806
"""A feed-forward network behind the contract of a sequence model: it remembers nothing.

For source algorithms, which see only the current observation, and as the control that tells what memory is worth.

Axes: B rows, T time, D width, L layers.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from icrl_jax.models.layers import (
    NOTHING,
    Aux,
    Precision,
    along,
    check_choices,
    check_sizes,
    fan_in,
    linear,
    precision,
    widened,
)
from icrl_jax.models.recurrent import Recurrent

Activation = Literal["tanh", "relu", "gelu"]


@dataclass(frozen=True)
class MLPConfig:
    """Sizes of a feed-forward network, by default of AD's source algorithm (Laskin et al. 2022).

    Attributes:
        width: D, features of each input and output, and the units of each layer.
        num_layers: L; the weights of the first are those of the embedding before it.
        activation: after each layer.
        dtype: of the products; "auto" is bfloat16 on accelerators, float32 on CPU.
    """

    width: int = 128
    num_layers: int = 3
    activation: Activation = "tanh"
    dtype: Precision = "float32"

    def __post_init__(self):
        check_sizes(self, "width", "num_layers")
        check_choices(self, activation=Activation, dtype=Precision)

    @property
    def context_len(self) -> int:
        """How many inputs an output sees: its own."""
        return 1

    def least_rows(self, tokens_per_row: int) -> int:
        """How many rows to train on at once: one is enough."""
        return 1

    @property
    def compute_dtype(self) -> jnp.dtype:
        return precision(self.dtype)


class MLP(Recurrent):
    """Biases and activations on the input, then L - 1 dense layers; the carry is empty."""

    def __init__(self, config: MLPConfig, key: Array):
        D, L = config.width, config.num_layers
        self.config = config
        key_maps, key_biases = jax.random.split(key)
        self.maps = nnx.List(fan_in(k, (D, D), D) for k in jax.random.split(key_maps, L)[1:])
        # Not zero, or an input of zeros would say nothing, and heads that start at zero would learn nothing from it.
        self.biases = nnx.List(fan_in(k, (D,), D) for k in jax.random.split(key_biases, L))

    def init_carry(self, batch: int) -> tuple[()]:
        """Nothing."""
        return ()

    def step(
        self, carry: tuple[()], x_BD: Array, reset_B: Array, episode_B: Array | None = None
    ) -> tuple[tuple[()], Array]:
        """One input a row."""
        return (), self._through(x_BD)

    def __call__(
        self,
        carry: tuple[()] | None,
        x_BTD: Array,
        reset_BT: Array,
        episode_BT: Array | None = None,
        key: Array | None = None,
    ) -> tuple[tuple[()], Array, Aux]:
        """Whole sequences, each input by itself."""
        return (), self._through(x_BTD), NOTHING

    def _through(self, x: Array) -> Array:
        activation = jnp.tanh if self.config.activation == "tanh" else getattr(jax.nn, self.config.activation)
        x = x.astype(self.config.compute_dtype)
        for layer, bias in enumerate(self.biases):
            x = linear(x, self.maps[layer - 1][...]) if layer else x
            x = activation(x + along(bias[...], x))
        return widened(x)

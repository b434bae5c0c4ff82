# ruff: noqa: N803, N806
"""Gated recurrent networks: GRU and LSTM, a stack of cells.

Axes: B rows, T time, D width, L layers.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from icrl_jax.models.layers import (
    NOTHING,
    Aux,
    Precision,
    check_choices,
    check_sizes,
    fan_in,
    linear,
    precision,
    widened,
)
from icrl_jax.models.recurrent import Recurrent

Cell = Literal["gru", "lstm"]


@dataclass(frozen=True)
class GRUConfig:
    """Sizes of a gated recurrent network.

    Attributes:
        width: D, features of each input and output, and the units of each cell.
        num_layers: L.
        cell: "gru" (Cho et al. 2014, the form of cuDNN: the reset gate multiplies after the product) or "lstm"
            (Hochreiter and Schmidhuber 1997, its forget gate's bias 1 at the start).
        dtype: of the products; "auto" is bfloat16 on accelerators, float32 on CPU. The memory is float32.
    """

    width: int = 64
    num_layers: int = 1
    cell: Cell = "gru"
    dtype: Precision = "auto"

    def __post_init__(self):
        check_sizes(self, "width", "num_layers")
        check_choices(self, cell=Cell, dtype=Precision)

    @property
    def context_len(self) -> None:
        """How many inputs an output sees: all since the last reset."""

    def least_rows(self, tokens_per_row: int) -> int:
        """How many rows to train on at once: each step of the loop over time works on all, and costs little more."""
        return 32

    @property
    def compute_dtype(self) -> jnp.dtype:
        return precision(self.dtype)


class Gates(nnx.Module):
    """The products of a cell, orthogonal where the memory enters; the input's are taken for all times at once."""

    def __init__(self, config: GRUConfig, key: Array):
        D, gates = config.width, 3 if config.cell == "gru" else 4
        key_input, key_memory = jax.random.split(key)
        self.input = fan_in(key_input, (D, gates * D), D)
        keys = jax.random.split(key_memory, gates)
        square = jax.nn.initializers.orthogonal()
        self.memory = nnx.Param(jnp.concatenate([square(key, (D, D)) for key in keys], axis=1))
        bias = jnp.zeros(gates * D)
        self.bias = nnx.Param(bias.at[D : 2 * D].set(1.0) if config.cell == "lstm" else bias)
        if config.cell == "gru":
            self.new_bias = nnx.Param(jnp.zeros(D))  # inside the reset gate


def gru_cell(gates: Gates, h_BD: Array, from_input: Array) -> Array:
    """The next memory, given what the input adds to the reset, update and new gates."""
    D, dtype = h_BD.shape[-1], from_input.dtype
    from_memory = widened(linear(h_BD.astype(dtype), gates.memory[...]))
    from_input = widened(from_input) + gates.bias[...][None]
    r, z = jnp.split(jax.nn.sigmoid(from_input[:, : 2 * D] + from_memory[:, : 2 * D]), 2, axis=-1)
    new = jnp.tanh(from_input[:, 2 * D :] + r * (from_memory[:, 2 * D :] + gates.new_bias[...][None]))
    return (1 - z) * new + z * h_BD


def lstm_cell(gates: Gates, hc_B2D: Array, from_input: Array) -> Array:
    """The next memory [output | cell], given what the input adds to the input, forget, cell and output gates."""
    h_BD, c_BD = jnp.split(hc_B2D, 2, axis=-1)
    from_memory = widened(linear(h_BD.astype(from_input.dtype), gates.memory[...]))
    i, f, g, o = jnp.split(widened(from_input) + from_memory + gates.bias[...][None], 4, axis=-1)
    c_BD = jax.nn.sigmoid(f) * c_BD + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jnp.concatenate([jax.nn.sigmoid(o) * jnp.tanh(c_BD), c_BD], axis=-1)


class GRU(Recurrent):
    """A stack of cells; the carry is the memory of each, L arrays [B, D], or [B, 2D] for the LSTM's [output | cell]."""

    def __init__(self, config: GRUConfig, key: Array):
        self.config = config
        self.cells = jax.vmap(lambda key: Gates(config, key))(jax.random.split(key, config.num_layers))

    def init_carry(self, batch: int) -> tuple[Array, ...]:
        """All memories zero."""
        width = self.config.width * (2 if self.config.cell == "lstm" else 1)
        return (jnp.zeros((batch, width)),) * self.config.num_layers

    def step(
        self, carry: tuple[Array, ...], x_BD: Array, reset_B: Array, episode_B: Array | None = None
    ) -> tuple[tuple[Array, ...], Array]:
        """One input a row; where an episode starts without a reset is for inputs to tell."""
        return self._through(carry, x_BD, lambda cell, memory, x: (cell(memory, x, reset_B),) * 2)

    def __call__(
        self,
        carry: tuple[Array, ...] | None,
        x_BTD: Array,
        reset_BT: Array,
        episode_BT: Array | None = None,
        key: Array | None = None,
    ) -> tuple[tuple[Array, ...], Array, Aux]:
        """Whole sequences; `carry=None` is that of `init_carry`. Nothing is drawn, so no `key` is needed."""
        carry = self.init_carry(x_BTD.shape[0]) if carry is None else carry

        def all_steps(cell, memory, x_TBG):
            def step(memory, inputs):
                memory = cell(memory, *inputs)
                return memory, memory

            return lax.scan(step, memory, (x_TBG, reset_BT.T))

        carry, y_TBD = self._through(carry, jnp.swapaxes(x_BTD, 0, 1), all_steps)
        return carry, jnp.swapaxes(y_TBD, 0, 1), NOTHING

    def _through(self, carry, x, run):
        """All layers; `run(cell, memory, what the inputs add)` gives the last memory, and that at every time."""
        cell_of, last = gru_cell if self.config.cell == "gru" else lstm_cell, []
        x = x.astype(self.config.compute_dtype)
        for layer, memory in enumerate(carry):
            gates = jax.tree.map(lambda p: p[layer], self.cells)  # noqa: B023

            def cell(memory, from_input, reset_B, gates=gates):
                return cell_of(gates, jnp.where(reset_B[:, None], 0, memory), from_input)

            memory, memories = run(cell, memory, linear(x, gates.input[...]))
            last.append(memory)
            x = memories[..., : self.config.width].astype(x.dtype)
        return tuple(last), widened(x)

# ruff: noqa: N803, N806
"""State-space models: S5, a linear recurrence with many inputs and outputs, and S4D, one for each feature.

Axes: B rows, T time, D width, P complex states of a layer, M those of one feature (S4D), L layers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from icrl_jax.models import average, stack
from icrl_jax.models.layers import (
    NOTHING,
    Aux,
    LayerNorm,
    Precision,
    along,
    check_choices,
    check_sizes,
    fan_in,
    gather,
    linear,
    precision,
    widened,
)
from icrl_jax.models.moe import MoEConfig, block_of, feed, feed_forward, make_blocks, no_totals
from icrl_jax.models.recurrence import advance, linear_recurrence, multiply
from icrl_jax.models.recurrent import Recurrent

Carry = tuple[tuple[Array, ...], ...]
Kind = Literal["s5", "s4d"]
Gate = Literal["full_glu", "half_glu1", "half_glu2"]
Norm = Literal["pre", "post", "none"]


@dataclass(frozen=True)
class S5Config:
    """Sizes of a state-space model.

    Attributes:
        width: D, features of each input and output.
        num_layers: L.
        kind: "s5", or "s4d": one recurrence for each feature, mixed by the gate alone.
        state_size: N, even; half of its eigenvalues are kept, the others being their conjugates. Of each feature for
            "s4d".
        gate: what follows the recurrence, with g its GELU: "full_glu" W1 g * sigmoid(W2 g), "half_glu1"
            g * sigmoid(W2 g), "half_glu2" y * sigmoid(W2 g).
        norm: layer normalisation before each part of a block and at the end, after each block, or nowhere.
        mlp_ratio: F / D of a feed-forward part after each recurrence; 0 is none.
        dt_min, dt_max: range of the steps' lengths at the start of training, drawn log-uniformly.
        remat: recomputes each block in the backward pass, which keeps the memory of long sequences down.
        dtype: of the projections; "auto" is bfloat16 on accelerators, float32 on CPU. The recurrence is float32.
        moe: experts in the place of the feed-forward parts; none by default.
    """

    width: int = 64
    num_layers: int = 2
    kind: Kind = "s5"
    state_size: int = 64
    gate: Gate = "full_glu"
    norm: Norm = "pre"
    mlp_ratio: int = 0
    dt_min: float = 0.001
    dt_max: float = 0.1
    remat: bool = False
    dtype: Precision = "auto"
    moe: MoEConfig = MoEConfig()

    def __post_init__(self):
        check_sizes(self, "width", "num_layers", "state_size")
        check_choices(self, kind=Kind, gate=Gate, norm=Norm, dtype=Precision)
        if self.state_size % 2:
            raise ValueError(f"state_size={self.state_size} must be even: half of it are conjugates")
        if not isinstance(self.mlp_ratio, int) or self.mlp_ratio < 0:
            raise ValueError(f"mlp_ratio={self.mlp_ratio!r} must be 0 or a positive integer")
        if self.moe.has_experts and not self.mlp_ratio:
            raise ValueError("mlp_ratio=0 must be positive with experts, which take the place of the feed-forward part")
        if not 0 < self.dt_min <= self.dt_max:
            raise ValueError(f"dt_min={self.dt_min!r}, dt_max={self.dt_max!r} must be above 0 and in this order")

    @property
    def num_states(self) -> int:
        """P."""
        return self.state_size // 2 * (self.width if self.kind == "s4d" else 1)

    @property
    def context_len(self) -> None:
        """How many inputs an output sees: all since the last reset."""

    def least_rows(self, tokens_per_row: int) -> int:
        """How many rows to train on at once: each step of the loop over time works on all, and costs little more."""
        return max(32, self.moe.least_rows(tokens_per_row))

    @property
    def compute_dtype(self) -> jnp.dtype:
        return precision(self.dtype)


def hippo_normal(N: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues with positive imaginary part [N / 2] of the normal part of HiPPO-LegS, and their vectors [N, N / 2].

    HiPPO-LegS is A_nk = -sqrt(2n + 1) sqrt(2k + 1) below the diagonal, -(n + 1) on it. A + P P^T with P_n =
    sqrt(n + 1/2) is normal, its eigenvalues -1/2 + i omega.

    References:
        Jimmy Smith et al., Simplified State Space Layers for Sequence Modeling, 2023, https://arxiv.org/abs/2208.04933
    """
    n = np.arange(N)
    root = np.sqrt(2 * n + 1)
    A = -np.tril(np.outer(root, root), -1) - np.diag(n + 1.0)
    P = np.sqrt(n + 0.5)
    S = A + np.outer(P, P)
    omega, vectors = np.linalg.eigh(-1j * (S - np.diag(np.diag(S))))
    return np.diag(S).mean() + 1j * omega[N // 2 :], vectors[:, N // 2 :]


class StateSpace(nnx.Module):
    """What both kinds share: eigenvalues whose real part is negative, the steps' lengths, and their discretisation."""

    def __init__(self, config: S5Config, key: Array, eigenvalues: np.ndarray):
        """`eigenvalues`: complex [P], or [D, M] where each feature has its own."""
        key_dt, key_skip = jax.random.split(key)
        self.log_decay = nnx.Param(jnp.asarray(np.log(-np.real(eigenvalues)), jnp.float32))
        self.frequency = nnx.Param(jnp.asarray(np.imag(eigenvalues), jnp.float32))
        shape = (*eigenvalues.shape[:-1], 1) if eigenvalues.ndim > 1 else eigenvalues.shape
        low, high = np.log(config.dt_min), np.log(config.dt_max)
        self.log_dt = nnx.Param(jax.random.uniform(key_dt, shape, minval=low, maxval=high))
        self.skip = nnx.Param(jax.random.normal(key_skip, (config.width,)))

    def discrete(self) -> tuple[Array, Array]:
        """exp(lambda dt) and (exp(lambda dt) - 1) / lambda, the zero-order hold, each [..., 2P]."""
        decay, frequency, dt = -jnp.exp(self.log_decay[...]), self.frequency[...], jnp.exp(self.log_dt[...])
        size, angle = jnp.exp(decay * dt), frequency * dt
        a_re, a_im = size * jnp.cos(angle), size * jnp.sin(angle)
        # The real part of a - 1 without cancellation where dt is small.
        less_re = jnp.expm1(decay * dt) * jnp.cos(angle) - 2 * jnp.square(jnp.sin(angle / 2))
        norm = jnp.square(decay) + jnp.square(frequency)
        inverse = jnp.concatenate([decay / norm, -frequency / norm], axis=-1)
        return jnp.concatenate([a_re, a_im], axis=-1), multiply(jnp.concatenate([less_re, a_im], axis=-1), inverse)


class DenseStateSpace(StateSpace):
    """S5: every input drives every state, every output reads every state."""

    def __init__(self, config: S5Config, key: Array):
        D, N = config.width, config.state_size
        key_shared, key_b, key_c = jax.random.split(key, 3)
        eigenvalues, V = hippo_normal(N)
        super().__init__(config, key_shared, eigenvalues)
        b_DN = jax.random.normal(key_b, (D, N)) * D**-0.5
        c_re, c_im = jax.random.normal(key_c, (2, D, N)) * N**-0.5
        V_re, V_im = (jnp.asarray(part, jnp.float32) for part in (np.real(V), np.imag(V)))
        self.b = nnx.Param(jnp.concatenate([b_DN @ V_re, -(b_DN @ V_im)], axis=1))  # V^H B
        c_DP = c_re @ V_re - c_im @ V_im, c_re @ V_im + c_im @ V_re  # C V
        # The real part of C x, twice, as the other half of the states are conjugates.
        self.c = nnx.Param(jnp.concatenate([2 * c_DP[0].T, -2 * c_DP[1].T]))

    def transition(self) -> tuple[Array, Array]:
        """`a` [2P] and the input matrix [D, 2P] of the recurrence."""
        a_2P, scale_2P = self.discrete()
        return a_2P, multiply(scale_2P[None], self.b[...])

    def drive(self, b: Array, u: Array) -> Array:
        """What the inputs [..., D] add to the states, float32 [..., 2P]."""
        return widened(linear(u, b))

    def read(self, x: Array, u: Array) -> Array:
        """The outputs [..., D]."""
        return linear(x.astype(u.dtype), self.c[...]) + u * along(self.skip[...], u)


class DiagonalStateSpace(StateSpace):
    """S4D: M states for each feature, none of them shared (S4D-Lin: lambda_m = -1/2 + i pi m).

    References:
        Albert Gu et al., On the Parameterization and Initialization of Diagonal State Space Models, 2022,
        https://arxiv.org/abs/2206.11893
    """

    def __init__(self, config: S5Config, key: Array):
        D, M = config.width, config.state_size // 2
        key_shared, key_c = jax.random.split(key)
        super().__init__(config, key_shared, np.tile(-0.5 + 1j * np.pi * np.arange(M), (D, 1)))
        self.c = nnx.Param(jax.random.normal(key_c, (D, 2 * M)) * 2**0.5)

    def transition(self) -> tuple[Array, Array]:
        """`a` [2P] and what each feature adds to its own states [D, 2M]."""
        a_D2M, scale_D2M = self.discrete()
        return _flat(a_D2M), scale_D2M

    def drive(self, b: Array, u: Array) -> Array:
        """What the inputs [..., D] add to the states, float32 [..., 2P]."""
        u_D1 = widened(u)[..., None]
        return _flat(u_D1 * along(b, u_D1))

    def read(self, x: Array, u: Array) -> Array:
        """The outputs [..., D]."""
        x_re, x_im = (part.reshape(*u.shape, -1) for part in jnp.split(x, 2, axis=-1))
        c_re, c_im = (along(part, x_re) for part in jnp.split(self.c[...], 2, axis=-1))
        return (x_re * c_re - x_im * c_im).sum(axis=-1).astype(u.dtype) + u * along(self.skip[...], u)


def _flat(x: Array) -> Array:
    """[..., D, real | imaginary of M] to [..., real | imaginary of D * M]."""
    parts = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([part.reshape(*x.shape[:-2], -1) for part in parts], axis=-1)


KINDS = {"s5": DenseStateSpace, "s4d": DiagonalStateSpace}


class Block(nnx.Module):
    """Recurrence, GELU and gate on a residual stream; then a feed-forward part, if there is one."""

    def __init__(self, config: S5Config, key: Array):
        D = config.width
        key_ssm, key_value, key_gate, key_ffn = jax.random.split(key, 4)
        self.form, self.place = config.gate, config.norm
        self.ssm = KINDS[config.kind](config, key_ssm)
        self.gate = fan_in(key_gate, (D, D), D)
        self.value = fan_in(key_value, (D, D), D) if config.gate == "full_glu" else None
        self.norm = None if config.norm == "none" else LayerNorm(D)
        self.ffn = feed_forward(config, key_ffn) if config.mlp_ratio else None
        self.ffn_norm = LayerNorm(D) if config.mlp_ratio and config.norm != "none" else None

    def __call__(
        self, x: Array, recur: Callable[[Array, Array], Array], total: Callable[[Array], Array], key: Array | None
    ) -> tuple[tuple[Array, ...], Array, Aux]:
        """[..., D] to what is remembered, the output and what the feed-forward part reports.

        Args:
            x: the residual stream.
            recur: gives the states from `a` and what enters.
            total: gives the running totals of what the feed-forward part reads; only where that has a use for them.
            key: for what is drawn in training.
        """
        u = self._normed(x, self.norm, "pre")
        a, b = self.ssm.transition()
        states = recur(a, self.ssm.drive(b, u))
        x = self._normed(x + self._gated(self.ssm.read(states, u)), self.norm, "post")
        if self.ffn is None:
            return (states,), x, NOTHING
        totals, y, aux = feed(self.ffn, self._normed(x, self.ffn_norm, "pre"), total, key)
        return (states, *totals), self._normed(x + y, self.ffn_norm, "post"), aux

    def _normed(self, x: Array, norm: LayerNorm | None, place: Norm) -> Array:
        return norm(x) if norm is not None and self.place == place else x

    def _gated(self, y: Array) -> Array:
        g = jax.nn.gelu(y)
        through = jax.nn.sigmoid(linear(g, self.gate[...]))
        if self.value is not None:
            return linear(g, self.value[...]) * through
        return (g if self.form == "half_glu1" else y) * through


class S5(Recurrent):
    """A stack of state-space blocks; the carry is what each layer remembers: its states [B, 2P], and with
    `moe.task_hard_router` the total [B, D + 1] of what its experts read (`average.py`).

    Args:
        config: sizes.
        key: for the initial weights.
    """

    def __init__(self, config: S5Config, key: Array):
        self.config = config
        self.blocks, self.last = make_blocks(Block, config, key)
        self.norm = LayerNorm(config.width) if config.norm == "pre" else None

    def init_carry(self, batch: int) -> Carry:
        """All states zero."""
        states = jnp.zeros((batch, 2 * self.config.num_states))
        return tuple((states, *totals) for totals in no_totals(self.config, batch))

    def _block(self, layer: int) -> Block:
        return block_of((self.blocks, self.last), layer, self.config.num_layers)

    def step(self, carry: Carry, x_BD: Array, reset_B: Array, episode_B: Array | None = None) -> tuple[Carry, Array]:
        """One input a row; where an episode starts without a reset is for inputs to tell."""
        carry, y_BD, _ = self._through(carry, x_BD, reset_B, key=None, sequence=False)
        return carry, y_BD

    def __call__(
        self,
        carry: Carry | None,
        x_BTD: Array,
        reset_BT: Array,
        episode_BT: Array | None = None,
        key: Array | None = None,
    ) -> tuple[Carry, Array, Aux]:
        """Whole sequences; `carry=None` is that of `init_carry`. `key` is for what is drawn in training only: the noise
        of routers."""
        carry = self.init_carry(x_BTD.shape[0]) if carry is None else carry
        memories, y_TBD, aux = self._through(carry, jnp.swapaxes(x_BTD, 0, 1), reset_BT.T, key, sequence=True)
        aux = aux._replace(task_inputs=tuple(jnp.swapaxes(x_TBD, 0, 1) for x_TBD in aux.task_inputs))
        return memories, jnp.swapaxes(y_TBD, 0, 1), aux

    def _through(self, carry, x, reset, key, sequence):
        """All blocks, and the last normalisation."""
        layers = []
        for i, memory in enumerate(carry):
            layers.append(Layer(self._block(i), memory, None if key is None else jax.random.fold_in(key, i)))
        run = stack.run_and_forget if sequence and self.config.remat else stack.run_all
        x, found = x.astype(self.config.compute_dtype), []
        for alike in [layers] if self.last is None else [layers[:-1], layers[-1:]]:
            x, of_layers = run(partial(_run_block, sequence, reset), x, alike)
            found += of_layers
        memories, reports = zip(*found, strict=True)
        x = widened(x)
        return memories, x if self.norm is None else self.norm(x), gather(list(reports))


class Layer(NamedTuple):
    """What each block has of its own."""

    block: Block
    memory: tuple[Array, ...]
    key: Array | None


# A function of arguments alone, under `jit`: traced and lowered once for all layers; XLA inlines the calls.
@partial(jax.jit, static_argnums=0)
def _run_block(sequence: bool, reset: Array, x: Array, layer: Layer) -> tuple[Array, tuple[tuple[Array, ...], Aux]]:
    """One block over a `sequence` [T, B, D], or else over one input a row [B, D]: its outputs, its new memory and its
    losses."""
    block, memory, key = layer
    recur, add_up = (linear_recurrence, average.add_all) if sequence else (advance, average.add)
    seen, x, aux = block(x, lambda a, b: recur(a, b, memory[0], reset), lambda h: add_up(memory[1], h, reset), key)
    return x, (jax.tree.map(lambda x: x[-1], seen) if sequence else seen, aux)

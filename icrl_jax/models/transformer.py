# ruff: noqa: N803, N806
"""A causal transformer with one contract for training and acting.

`__call__` runs whole sequences in parallel; `step` runs one input at a time against a ring cache of the last C inputs.
Both compute the same function, from any carry, with resets anywhere.

Axes: B rows, T time, D width, H heads, K head width, F feed-forward width, C cache length, L layers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from icrl_jax.models.attention import attention, contained
from icrl_jax.models.layers import Aux, LayerNorm, Mlp, Precision, check_choices, check_sizes, fan_in, linear, precision

Positions = Literal["none", "learned", "rotary"]


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a transformer.

    Attributes:
        width: D, features of each input and output.
        num_layers: L.
        num_heads: H, a divisor of `width`.
        context_len: C, how many inputs an output sees, its own included; also the length of the cache.
        positions: "none" leaves order to the causal mask; "learned" adds a table of `context_len` rows, counted from
            the last reset, so no sequence may be longer (`check_horizon`); "rotary" turns queries and keys.
        mlp_ratio: F / D.
        dtype: of the computation; "auto" is bfloat16 on accelerators, float32 on CPU. Parameters are float32.
    """

    width: int = 32
    num_layers: int = 4
    num_heads: int = 4
    context_len: int = 256
    positions: Positions = "learned"
    mlp_ratio: int = 4
    dtype: Precision = "auto"

    def __post_init__(self):
        check_sizes(self, "width", "num_layers", "num_heads", "context_len", "mlp_ratio")
        check_choices(self, positions=Positions, dtype=Precision)
        if self.width % self.num_heads:
            divisors = [n for n in range(1, self.width + 1) if self.width % n == 0]
            raise ValueError(f"num_heads={self.num_heads} must divide width={self.width}: one of {divisors}")
        if self.positions == "rotary" and self.head_width % 2:
            raise ValueError(
                f"num_heads={self.num_heads} gives heads of width {self.head_width}; "
                f'positions="rotary" needs an even width / num_heads (width={self.width})'
            )

    @property
    def head_width(self) -> int:
        return self.width // self.num_heads

    @property
    def compute_dtype(self) -> jnp.dtype:
        return precision(self.dtype)

    def check_horizon(self, num_inputs: int, option: str = "num_inputs") -> None:
        """Refuses sequences (inputs between two resets) that a table of learned positions cannot number."""
        if self.positions == "learned" and num_inputs > self.context_len:
            raise ValueError(
                f'{option}={num_inputs} is more than context_len={self.context_len}: with positions="learned" it must '
                f'be at most {self.context_len}; raise context_len, or use positions="rotary" or "none"'
            )


class Memory(NamedTuple):
    """The last C inputs of each row, as keys and values, in a ring."""

    index: Array  # int32 []: inputs so far; input i lives in slot i % C. One for all rows, whatever their resets
    length: Array  # int32 [B]: inputs since the last reset; older ones are invisible
    k: tuple[Array, ...]  # L arrays [B, H, C, K]: heads first, so that a head's keys lie together when it recalls
    v: tuple[Array, ...]  # L arrays [B, H, C, K]


class Branches(NamedTuple):
    """n imagined futures of each row of a `Memory`, which they share and never write."""

    past: Memory
    index: Array  # int32 []: inputs so far on the branches
    length: Array  # int32 [B * n]
    k: tuple[Array, ...]  # L arrays [B * n, H, depth, K]
    v: tuple[Array, ...]  # L arrays [B * n, H, depth, K]


Cache = TypeVar("Cache", Memory, Branches)


class Block(nnx.Module):
    """Pre-norm attention and feed-forward. The cache lies between the two halves of attention, so it is split."""

    def __init__(self, config: TransformerConfig, key: Array, ffn: Callable[..., nnx.Module]):
        D, H, K = config.width, config.num_heads, config.head_width
        key_qkv, key_out, key_ffn = jax.random.split(key, 3)
        self.attention_norm = LayerNorm(D)
        self.qkv = fan_in(key_qkv, (D, 3 * H * K), D)
        self.out = fan_in(key_out, (H * K, D), D * 2 * config.num_layers)
        self.ffn_norm = LayerNorm(D)
        self.ffn = ffn(config, key_ffn)
        self.num_heads = H

    def heads(self, x: Array) -> tuple[Array, Array, Array]:
        """[B, T, D] to queries, keys and values, each [B, T, H, K]."""
        qkv = linear(self.attention_norm(x), self.qkv[...])
        q, k, v = (part.reshape(*x.shape[:-1], self.num_heads, -1) for part in jnp.split(qkv, 3, axis=-1))
        return q, k, v

    def merge(self, x: Array, o: Array) -> tuple[Array, Aux]:
        """The rest of the block, given what attention found, [B, T, H, K]."""
        x = x + linear(o.reshape(x.shape), self.out[...])
        y, aux = self.ffn(self.ffn_norm(x))
        return x + y, aux


class Transformer(nnx.Module):
    """A stack of blocks; a plain pytree of parameters for `jax.jit`, `vmap`, `grad` and `scan`.

    Args:
        config: sizes.
        key: for the initial weights, of variance 1 / fan-in; those that write to the residual stream are smaller by
            sqrt(2 L), so that its variance does not grow with depth.
        ffn: makes the feed-forward part of a block, `ffn(config, key)(x[B, T, D]) -> (y[B, T, D], aux)`.
    """

    def __init__(self, config: TransformerConfig, key: Array, ffn: Callable[..., nnx.Module] = Mlp):
        key_blocks, key_positions = jax.random.split(key)
        self.config = config
        keys = jax.random.split(key_blocks, config.num_layers)
        self.blocks = jax.vmap(lambda k: Block(config, k, ffn))(keys)
        self.norm = LayerNorm(config.width)
        if config.positions == "learned":
            self.table = nnx.Param(0.02 * jax.random.normal(key_positions, (config.context_len, config.width)))

    def init_carry(self, batch: int) -> Memory:
        """An empty memory for `batch` rows."""
        cfg = self.config
        empty = jnp.zeros((batch, cfg.num_heads, cfg.context_len, cfg.head_width), cfg.compute_dtype)
        length = jnp.zeros(batch, jnp.int32)
        return Memory(jnp.int32(0), length, (empty,) * cfg.num_layers, (empty,) * cfg.num_layers)

    def step(self, carry: Cache, x_BD: Array, reset_B: Array) -> tuple[Cache, Array]:
        """One input a row. Branches are rows too, `b * n + i` being branch i of row b."""
        carry = carry._replace(length=jnp.where(reset_B, 0, carry.length))
        x_B1D, keys, values = self._next(carry, x_BD[:, None], commit=True)
        carry = carry._replace(index=carry.index + 1, length=carry.length + 1, k=keys, v=values)
        return carry, x_B1D[:, 0]

    def peek(self, carry: Memory | Branches, x_BND: Array) -> Array:
        """The output [B, N, D] for each of N candidates, as if it alone came next; the carry stays as it is."""
        return self._next(carry, x_BND, commit=False)[0]

    def branch(self, carry: Memory, n: int, depth: int) -> Branches:
        """n branches per row that share the past and have room for `depth` inputs each; row-major, [B * n, ...]."""
        cfg = self.config
        length = jnp.repeat(carry.length, n)
        shape = (length.shape[0], cfg.num_heads, depth, cfg.head_width)
        empty = (jnp.zeros(shape, cfg.compute_dtype),) * cfg.num_layers
        return Branches(carry, jnp.int32(0), length, empty, empty)

    def __call__(
        self, carry: Memory | Branches | None, x_BTD: Array, reset_BT: Array
    ) -> tuple[Memory | Branches, Array, Aux]:
        """Whole sequences; `carry=None` is an empty memory that costs nothing."""
        if isinstance(carry, Branches):
            return self._scan_step(carry, x_BTD, reset_BT)
        cfg = self.config
        B, T, _ = x_BTD.shape
        C = cfg.context_len
        index = jnp.int32(0) if carry is None else carry.index
        length_B = jnp.zeros(B, jnp.int32) if carry is None else carry.length

        time_T = jnp.arange(T, dtype=jnp.int32)
        start_BT = lax.associative_scan(jnp.maximum, jnp.where(reset_BT, time_T[None], -length_B[:, None]), axis=1)
        position_BT = time_T[None] - start_BT
        past = 0 if carry is None else C  # how many keys precede the first input
        x, rotate = self._embed(x_BTD, position_BT, index + time_T)
        keys, values, aux = [], [], {}
        for layer in range(cfg.num_layers):
            block = self._block(layer)
            q, k, v = block.heads(x)
            q, k = rotate(q), rotate(k)
            if carry is not None:
                k = jnp.concatenate([_in_order(carry.k[layer], index), k], axis=1)
                v = jnp.concatenate([_in_order(carry.v[layer], index), v], axis=1)
            x, block_aux = block.merge(x, attention(q, k, v, start_BT + past, C))
            aux = {name: aux.get(name, 0.0) + value / cfg.num_layers for name, value in block_aux.items()}
            k, v = contained(k, v)
            keys.append(_ring(k, index + T, C))
            values.append(_ring(v, index + T, C))
        carry = Memory(index + T, position_BT[:, -1] + 1, tuple(keys), tuple(values))
        return carry, self.norm(x.astype(jnp.float32)), aux

    def _scan_step(self, carry: Branches, x_BTD: Array, reset_BT: Array) -> tuple[Branches, Array, Aux]:
        depth = carry.k[0].shape[2]
        if x_BTD.shape[1] > depth:
            raise ValueError(f"{x_BTD.shape[1]} inputs do not fit on branches of depth={depth}")
        inputs = jnp.swapaxes(x_BTD, 0, 1), jnp.swapaxes(reset_BT, 0, 1)
        carry, y_TBD = lax.scan(lambda carry, xs: self.step(carry, *xs), carry, inputs)
        return carry, jnp.swapaxes(y_TBD, 0, 1), {}

    def _next(
        self, carry: Memory | Branches, x_BND: Array, commit: bool
    ) -> tuple[Array, tuple[Array, ...], tuple[Array, ...]]:
        """Outputs for N alternative next inputs a row, and the cache, with the (only) input written if `commit`."""
        cfg = self.config
        ring = carry if isinstance(carry, Memory) else carry.past
        ages = [(ring.index - 1 - jnp.arange(cfg.context_len, dtype=jnp.int32)) % cfg.context_len + 1]
        index, slot = ring.index, ring.index % cfg.context_len
        if isinstance(carry, Branches):
            ages = [ages[0] + carry.index, carry.index - jnp.arange(carry.k[0].shape[2], dtype=jnp.int32)]
            index, slot = ring.index + carry.index, carry.index
        # Slots of age 0 (about to be written) and C (about to be overwritten) are no past inputs that count.
        oldest_B1 = jnp.minimum(carry.length, cfg.context_len - 1)[:, None]
        visible = [(age[None] >= 1) & (age[None] <= oldest_B1) for age in ages]

        position_BN = jnp.broadcast_to(carry.length[:, None], x_BND.shape[:2])
        x, rotate = self._embed(x_BND, position_BN, index[None])
        keys, values = list(carry.k), list(carry.v)
        for layer in range(cfg.num_layers):
            block = self._block(layer)
            q, k, v = block.heads(x)
            q, k = rotate(q), rotate(k)
            if commit:
                new_k, new_v = contained(k, v)
                keys[layer] = _write(keys[layer], _heads_first(new_k), slot)
                values[layer] = _write(values[layer], _heads_first(new_v), slot)
            caches = [(keys[layer], values[layer])]
            if isinstance(carry, Branches):
                caches = [(ring.k[layer], ring.v[layer]), *caches]
            x, _ = block.merge(x, _recall(q, k, v, caches, visible))
        return self.norm(x.astype(jnp.float32)), tuple(keys), tuple(values)

    def _block(self, layer: int) -> Block:
        return jax.tree.map(lambda p: p[layer], self.blocks)

    def _embed(self, x_BTD: Array, position_BT: Array, index_T: Array) -> tuple[Array, Callable[[Array], Array]]:
        """Inputs in the compute dtype with what is added to them, and what is done to queries and keys."""
        cfg = self.config
        x_BTD = x_BTD.astype(cfg.compute_dtype)
        if cfg.positions == "learned":
            x_BTD = x_BTD + jnp.take(self.table[...], position_BT, axis=0, mode="clip").astype(x_BTD.dtype)
        if cfg.positions == "rotary":
            return x_BTD, _rotary(index_T, cfg.head_width)
        return x_BTD, lambda heads: heads


def _recall(q_BNHK: Array, k_BNHK: Array, v_BNHK: Array, caches: list, visible: list) -> Array:
    """Attention of every query to its own key and to all visible slots of some caches.

    A cache [R, H, C, K] may have fewer rows than there are queries, each then serving B / R of them.
    """
    B, N, H, K = q_BNHK.shape
    q_BNHK = q_BNHK * K**-0.5
    scores = [(q_BNHK * k_BNHK).sum(axis=-1, keepdims=True, dtype=jnp.float32)]
    for (k_RHCK, _), visible_BC in zip(caches, visible, strict=True):
        R, _, C, _ = k_RHCK.shape
        # The cache comes first in the product: as the second operand, XLA would transpose it at every step.
        s = jnp.einsum("rhck,rnhk->rhcn", k_RHCK, q_BNHK.reshape(R, -1, H, K), preferred_element_type=jnp.float32)
        s_BNHC = jnp.moveaxis(s, -1, 1).reshape(B, N, H, C)
        scores.append(jnp.where(visible_BC[:, None, None], s_BNHC, -jnp.inf))
    p = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(q_BNHK.dtype)
    o_BNHK, first = p[..., :1] * v_BNHK, 1
    for _, v_RHCK in caches:
        R, _, C, _ = v_RHCK.shape
        p_RHNC = jnp.moveaxis(p[..., first : first + C].reshape(R, -1, H, C), 1, 2)
        o_RHNK = lax.dot_general(p_RHNC, v_RHCK, (((3,), (2,)), ((0, 1), (0, 1))))
        o_BNHK = o_BNHK + jnp.moveaxis(o_RHNK, 2, 1).reshape(B, N, H, K)
        first += C
    return o_BNHK


@jax.custom_vjp
def _write(cache_BHCK: Array, x_BH1K: Array, slot: Array) -> Array:
    """One input into one slot of every row, in place."""
    return _write_rows(cache_BHCK, x_BH1K, slot)


def _write_backward(slot, d_BHCK):
    dx_BH1K = lax.dynamic_slice_in_dim(d_BHCK, slot, 1, axis=2)
    return _write_rows(d_BHCK, jnp.zeros_like(dx_BH1K), slot), dx_BH1K, None


_write.defvjp(lambda cache, x, slot: (_write_rows(cache, x, slot), slot), _write_backward)


@jax.custom_batching.custom_vmap
def _write_rows(cache: Array, x: Array, slot: Array) -> Array:
    """JAX would vmap this to a scatter even when all tasks share the slot; the axes in front of H only lead it."""
    return lax.dynamic_update_slice_in_dim(cache, x, slot, axis=-2)


@_write_rows.def_vmap
def _write_tasks(num_tasks, batched, cache, x, slot):
    if not batched[0]:
        cache = jnp.broadcast_to(cache[None], (num_tasks, *cache.shape))
    if not batched[1]:
        x = jnp.broadcast_to(x[None], (num_tasks, *x.shape))
    if batched[2]:
        return jax.vmap(lambda c, x, s: lax.dynamic_update_slice_in_dim(c, x, s, axis=-2))(cache, x, slot), True
    return _write_rows(cache, x, slot), True


def _in_order(cache_BHCK: Array, index: Array) -> Array:
    """The slots of a ring, oldest input first, after `index` inputs, [B, C, H, K]."""
    return _heads_first(jnp.roll(cache_BHCK, -(index % cache_BHCK.shape[2]), axis=2))


def _ring(x_BSHK: Array, index: Array, C: int) -> Array:
    """The last C of the inputs so far, each in its slot of a ring; `index` counts them."""
    x_BHSK = _heads_first(x_BSHK[:, -C:])
    missing = C - x_BHSK.shape[2]
    return jnp.roll(jnp.pad(x_BHSK, ((0, 0), (0, 0), (missing, 0), (0, 0))), index % C, axis=2)


def _heads_first(x: Array) -> Array:
    """[B, T, H, K] to [B, H, T, K], and back."""
    return jnp.swapaxes(x, 1, 2)


def _rotary(index_T: Array, K: int) -> Callable[[Array], Array]:
    """Turns each pair of features of [B, T, H, K] by an angle proportional to the input's index.

    Turns are counted in units of 2^-32, in wrapping integers, so an endless rollout loses no precision.

    References:
        Jianlin Su et al., RoFormer, 2021, https://arxiv.org/abs/2104.09864
    """
    pairs = jnp.arange(K // 2, dtype=jnp.float32)
    speed = jnp.round(10_000.0 ** (-2 * pairs / K) * (2**32 / (2 * jnp.pi))).astype(jnp.uint32)
    turns = index_T.astype(jnp.uint32)[:, None] * speed[None]
    angle = (turns.astype(jnp.float32) * (2 * jnp.pi / 2**32))[None, :, None]
    cos, sin = jnp.cos(angle), jnp.sin(angle)

    def rotate(x_BTHK: Array) -> Array:
        a, b = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
        return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x_BTHK.dtype)

    return rotate

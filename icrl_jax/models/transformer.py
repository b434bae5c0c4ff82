# ruff: noqa: N803, N806
"""A causal transformer with one contract for training and acting.

`__call__` runs whole sequences in parallel; `step` runs one input at a time against a ring cache of the last C inputs.
Both compute the same function, from any carry, with resets anywhere.

Axes: B rows, T time, D width, H heads, G heads of keys and values, K head width, F feed-forward width, C cache length,
L layers, R waves (sines and cosines of a distance).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from icrl_jax.models.attention import Sink, at_least_float32, attention, contained, for_queries
from icrl_jax.models.layers import (
    NOTHING,
    Aux,
    LayerNorm,
    Precision,
    check_choices,
    check_sizes,
    fan_in,
    gather,
    linear,
    precision,
    widened,
)
from icrl_jax.models.moe import MoEConfig, block_of, feed_forward, make_blocks

Positions = Literal["none", "learned", "rotary", "relative", "episodes"]
SinkKind = Literal["none", "kv", "kv0", "k0v", "k0v0", "token"]
Attend = Literal["all", "episode"]

SinkKV = tuple[Array, Array] | None

_NUM_WAVES = 32


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a transformer.

    Attributes:
        width: D, features of each input and output.
        num_layers: L.
        num_heads: H, a divisor of `width`.
        context_len: C, how many inputs an output sees, its own included; also the length of the cache.
        positions: "none" leaves order to the causal mask; "learned" adds a table of `context_len` rows, counted from
            the last reset, so no sequence may be longer (`check_horizon`); "rotary" turns queries and keys;
            "relative" scores distances as Transformer-XL does, `context_len` being its memory; "episodes", ReLIC's,
            adds a table for the step within the episode and turns queries and keys by the count of episodes.
        mlp_ratio: F / D.
        dtype: of the computation; "auto" is bfloat16 on accelerators, float32 on CPU. Parameters are float32.
        num_kv_heads: G, a divisor of `num_heads`: so many heads have keys and values of their own, and are cached, each
            for H / G heads of queries; None is as many as heads.
        sink: what every query sees besides its inputs, so that a head may attend to nothing (ReLIC's Sink-KV): a key
            and a value learned for each layer, "kv", of which those marked 0 stay zero, or those of a learned input
            that sees only itself, "token". Positions do not concern it.
        attend: "all" inputs of the context, or "episode": none of earlier episodes, as if each began with a reset.
        max_episode_len: rows of the table of positions="episodes", so no episode may be longer; None is `context_len`.
        remat: recomputes each block in the backward pass, which keeps the memory of long sequences down; XLA on CPU
            undoes it.
        moe: experts in the place of the feed-forward parts; none by default.
    """

    width: int = 32
    num_layers: int = 4
    num_heads: int = 4
    context_len: int = 256
    positions: Positions = "learned"
    mlp_ratio: int = 4
    dtype: Precision = "auto"
    num_kv_heads: int | None = None
    sink: SinkKind = "none"
    attend: Attend = "all"
    max_episode_len: int | None = None
    remat: bool = False
    moe: MoEConfig = MoEConfig()

    def __post_init__(self):
        check_sizes(self, "width", "num_layers", "num_heads", "context_len", "mlp_ratio")
        check_sizes(self, *(x for x in ("num_kv_heads", "max_episode_len") if getattr(self, x) is not None))
        check_choices(self, positions=Positions, dtype=Precision, sink=SinkKind, attend=Attend)
        for option, whole in (("num_heads", "width"), ("num_kv_heads", "num_heads")):
            value, total = getattr(self, option), getattr(self, whole)
            if value is not None and total % value:
                divisors = [n for n in range(1, total + 1) if total % n == 0]
                raise ValueError(f"{option}={value} must divide {whole}={total}: one of {divisors}")
        if self.positions in ("rotary", "episodes") and self.head_width % 2:
            raise ValueError(
                f"num_heads={self.num_heads} gives heads of width {self.head_width}; "
                f'positions="{self.positions}" needs an even width / num_heads (width={self.width})'
            )
        if self.max_episode_len is not None and self.positions != "episodes":
            raise ValueError(
                f'max_episode_len={self.max_episode_len} is for positions="episodes", '
                f'and must be None with positions="{self.positions}"'
            )

        if self.moe.task_hard_router:
            raise ValueError("task_hard_router=True must be False: a transformer keeps no running mean")

    @property
    def head_width(self) -> int:
        return self.width // self.num_heads

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def table_rows(self) -> int | None:
        """How many inputs learned positions can number."""
        lengths = {"learned": self.context_len, "episodes": self.max_episode_len or self.context_len}
        return lengths.get(self.positions)

    @property
    def least_rows(self) -> int:
        """How many rows to train on at once: one is enough."""
        return 1

    @property
    def compute_dtype(self) -> jnp.dtype:
        return precision(self.dtype)

    def check_horizon(self, num_inputs: int, option: str = "num_inputs") -> None:
        """Refuses sequences that a table of learned positions cannot number.

        Args:
            num_inputs: between two resets; with positions="episodes", of the longest episode.
            option: what the error calls it.
        """
        if self.table_rows is not None and num_inputs > self.table_rows:
            size = "context_len" if self.max_episode_len is None else "max_episode_len"
            raise ValueError(
                f'{option}={num_inputs} is more than {size}={self.table_rows}: with positions="{self.positions}" it '
                f'must be at most {self.table_rows}; raise {size}, or use positions="rotary" or "none"'
            )


class Place(NamedTuple):
    """Where a row stands among its episodes."""

    step: Array  # int32 [B]: inputs since the episode began
    episode: Array  # int32 [B]: episodes before it since the last reset


class Memory(NamedTuple):
    """The last C inputs of each row, as keys and values, in a ring."""

    index: Array  # int32 []: inputs so far; input i lives in slot i % C. One for all rows, whatever their resets
    length: Array  # int32 [B]: inputs since the last reset; older ones are invisible
    place: Place | None  # with positions="episodes"
    k: tuple[Array, ...]  # L arrays [B, G, C, K]: heads first, so that a head's keys lie together when it recalls
    v: tuple[Array, ...]  # L arrays [B, G, C, K]


class Branches(NamedTuple):
    """n imagined futures of each row of a `Memory`, which they share and never write."""

    past: Memory
    index: Array  # int32 []: inputs so far on the branches
    length: Array  # int32 [B * n]
    place: Place | None  # [B * n]
    k: tuple[Array, ...]  # L arrays [B * n, G, depth, K]
    v: tuple[Array, ...]  # L arrays [B * n, G, depth, K]


Cache = TypeVar("Cache", Memory, Branches)


class Block(nnx.Module):
    """Pre-norm attention and feed-forward. The cache lies between the two halves of attention, so it is split."""

    def __init__(self, config: TransformerConfig, key: Array):
        D, H, G, K = config.width, config.num_heads, config.kv_heads, config.head_width
        key_qkv, key_out, key_ffn = jax.random.split(key, 3)
        self.attention_norm = LayerNorm(D)
        self.qkv = fan_in(key_qkv, (D, (H + 2 * G) * K), D)
        self.out = fan_in(key_out, (H * K, D), D * 2 * config.num_layers)
        self.ffn_norm = LayerNorm(D)
        self.ffn = feed_forward(config, key_ffn)
        self.num_heads, self.num_kv_heads = H, G
        if config.sink in ("kv", "kv0"):
            self.sink_k = nnx.Param(jnp.zeros((G, K)))
        if config.sink in ("kv", "k0v"):
            self.sink_v = nnx.Param(jnp.zeros((G, K)))
        if config.positions == "relative":
            self.content_bias = nnx.Param(jnp.zeros((H, K)))
            self.distance_bias = nnx.Param(jnp.zeros((H, K)))
            self.waves = fan_in(jax.random.fold_in(key_qkv, 1), (H, K, _NUM_WAVES), _NUM_WAVES)

    def heads(self, x: Array) -> tuple[Array, Array, Array]:
        """[B, T, D] to queries [B, T, H, K], and keys and values [B, T, G, K]."""
        H, G = self.num_heads, self.num_kv_heads
        qkv = linear(self.attention_norm(x), self.qkv[...])
        qkv = qkv.reshape(*x.shape[:-1], H + 2 * G, -1)
        q, k, v = jnp.split(qkv, (H, H + G), axis=-2)
        return q, k, v

    def distance_queries(self, q_BTHK: Array) -> tuple[Array, Array]:
        """Transformer-XL's queries for what inputs are, (q + u), and for how far back they are, W (q + v).

        The score of a key d inputs back is (q + u) . k + (W (q + v)) . waves(d); the waves of t - s being those of -s
        turned by t, the second product is, like the first, one of a vector of the query and a vector of the key.

        Returns:
            [B, T, H, K], and [B, T, H, R].

        References:
            Zihang Dai et al., Transformer-XL, 2019, https://arxiv.org/abs/1901.02860, section 3.3
        """
        dtype = q_BTHK.dtype
        u, v = (bias[...].astype(dtype)[None, None] for bias in (self.content_bias, self.distance_bias))
        return q_BTHK + u, jnp.einsum("bthk,hkr->bthr", q_BTHK + v, self.waves[...].astype(dtype))

    def merge(self, x: Array, o: Array, key: Array | None = None) -> tuple[Array, Aux]:
        """The rest of the block, given what attention found, [B, T, H, K]."""
        x = x + linear(o.reshape(x.shape), self.out[...])
        y, aux = self.ffn(self.ffn_norm(x), key)
        return x + y, aux


class Transformer(nnx.Module):
    """A stack of blocks; a plain pytree of parameters for `jax.jit`, `vmap`, `grad` and `scan`.

    Args:
        config: sizes.
        key: for the initial weights, of variance 1 / fan-in; those that write to the residual stream are smaller by
            sqrt(2 L), so that its variance does not grow with depth.
    """

    def __init__(self, config: TransformerConfig, key: Array):
        key_blocks, key_positions = jax.random.split(key)
        self.config = config
        self.blocks, self.last = make_blocks(Block, config, key_blocks)
        self.norm = LayerNorm(config.width)
        if config.table_rows is not None:
            self.table = nnx.Param(0.02 * jax.random.normal(key_positions, (config.table_rows, config.width)))
        if config.sink == "token":
            self.sink_token = nnx.Param(jnp.zeros(config.width))

    def init_carry(self, batch: int) -> Memory:
        """An empty memory for `batch` rows."""
        cfg = self.config
        empty = (jnp.zeros((batch, cfg.kv_heads, cfg.context_len, cfg.head_width), cfg.compute_dtype),) * cfg.num_layers
        return Memory(jnp.int32(0), jnp.zeros(batch, jnp.int32), self._first_place(batch), empty, empty)

    def _first_place(self, batch: int) -> Place | None:
        zero = jnp.zeros(batch, jnp.int32)
        return Place(zero, zero) if self.config.positions == "episodes" else None

    def step(self, carry: Cache, x_BD: Array, reset_B: Array, episode_B: Array | None = None) -> tuple[Cache, Array]:
        """One input a row. Branches are rows too, `b * n + i` being branch i of row b.

        Args:
            carry: what came before.
            x_BD: inputs.
            reset_B: forget before this input.
            episode_B: this input starts an episode, as it does after a reset; None is no other.
        """
        reset_B, begins_B = self._beginnings(reset_B, episode_B)
        length, place = jnp.where(reset_B, 0, carry.length), carry.place
        if place is not None:
            place = Place(
                jnp.where(begins_B, 0, place.step), jnp.where(reset_B, 0, place.episode + begins_B.astype(jnp.int32))
            )
        carry = carry._replace(length=length, place=place)
        x_B1D, keys, values = self._next(carry, x_BD[:, None], commit=True)
        place = None if place is None else place._replace(step=place.step + 1)
        return carry._replace(index=carry.index + 1, length=length + 1, place=place, k=keys, v=values), x_B1D[:, 0]

    def peek(self, carry: Memory | Branches, x_BND: Array) -> Array:
        """The output [B, N, D] for each of N candidates, as if it alone came next; the carry stays as it is."""
        return self._next(carry, x_BND, commit=False)[0]

    def branch(self, carry: Memory, n: int, depth: int) -> Branches:
        """n branches per row that share the past and have room for `depth` inputs each; row-major, [B * n, ...]."""
        cfg = self.config
        length, place = jax.tree.map(lambda count: jnp.repeat(count, n), (carry.length, carry.place))
        shape = (length.shape[0], cfg.kv_heads, depth, cfg.head_width)
        empty = (jnp.zeros(shape, cfg.compute_dtype),) * cfg.num_layers
        return Branches(carry, jnp.int32(0), length, place, empty, empty)

    def __call__(
        self,
        carry: Memory | Branches | None,
        x_BTD: Array,
        reset_BT: Array,
        episode_BT: Array | None = None,
        key: Array | None = None,
    ) -> tuple[Memory | Branches, Array, Aux]:
        """Whole sequences; `carry=None` is an empty memory that costs nothing. Arguments are those of `step`, and `key`
        is for what is drawn in training only: the noise of routers."""
        if isinstance(carry, Branches):
            return self._scan_step(carry, x_BTD, reset_BT, episode_BT)
        cfg = self.config
        B, T, _ = x_BTD.shape
        C = cfg.context_len
        index = jnp.int32(0) if carry is None else carry.index
        length_B = jnp.zeros(B, jnp.int32) if carry is None else carry.length

        reset_BT, begins_BT = self._beginnings(reset_BT, episode_BT)
        time_T = jnp.arange(T, dtype=jnp.int32)
        start_BT = _last_true(reset_BT, -length_B)
        position_BT = time_T[None] - start_BT
        before = self._first_place(B) if carry is None else carry.place
        place = None if before is None else _places(before, reset_BT, begins_BT)
        past = 0 if carry is None else C  # how many keys precede the first input
        index_S = index - past + jnp.arange(past + T, dtype=jnp.int32)
        x, turn = self._embed(x_BTD, position_BT, place, index_S[past:][None])

        def run(block: Block, sink: SinkKV, x: Array, memory: tuple[Array, Array] | None, key: Array | None) -> tuple:
            q, k, v = block.heads(x)
            far = None
            if cfg.positions == "relative":
                q, far = block.distance_queries(q)
            sink_scores = _sink_scores(q, sink)
            q, k = turn(q), turn(k)
            if memory is not None:
                k, v = (
                    jnp.concatenate([_in_order(old, index), new], 1) for old, new in zip(memory, (k, v), strict=True)
                )
            seen = (q, k) if far is None else _with_distances(q, far, k, index_S)
            x, aux = block.merge(x, attention(*seen, v, start_BT + past, C, sink_scores), key)
            k, v = contained(k, v)
            return x, _ring(k, index + T, C), _ring(v, index + T, C), aux

        run = jax.checkpoint(run) if cfg.remat else run
        keys, values, reports = [], [], []
        for layer, sink in enumerate(self._sinks()):
            memory = None if carry is None else (carry.k[layer], carry.v[layer])
            key_layer = None if key is None else jax.random.fold_in(key, layer)
            x, k, v, aux = run(self._block(layer), sink, x, memory, key_layer)
            reports.append(aux)
            keys.append(k)
            values.append(v)
        if place is not None:
            place = Place(place.step[:, -1] + 1, place.episode[:, -1])
        carry = Memory(index + T, position_BT[:, -1] + 1, place, tuple(keys), tuple(values))
        return carry, self.norm(widened(x)), gather(reports)

    def _scan_step(
        self, carry: Branches, x_BTD: Array, reset_BT: Array, episode_BT: Array | None
    ) -> tuple[Branches, Array, Aux]:
        depth = carry.k[0].shape[2]
        if x_BTD.shape[1] > depth:
            raise ValueError(f"{x_BTD.shape[1]} inputs do not fit on branches of depth={depth}")
        inputs = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (x_BTD, reset_BT, episode_BT))
        carry, y_TBD = lax.scan(lambda carry, xs: self.step(carry, *xs), carry, inputs)
        return carry, jnp.swapaxes(y_TBD, 0, 1), NOTHING

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

        position_B1, place = jax.tree.map(lambda count: count[:, None], (carry.length, carry.place))
        x, turn = self._embed(x_BND, position_B1, place, index[None, None])
        keys, values = list(carry.k), list(carry.v)
        for layer, sink in enumerate(self._sinks()):
            block, distances = self._block(layer), None
            q, k, v = block.heads(x)
            if cfg.positions == "relative":
                q, far = block.distance_queries(q)
                distances = [_distance_scores(far, age, cfg.head_width) for age in (jnp.zeros_like(slot)[None], *ages)]
            sink_scores = _sink_scores(q, sink)
            q, k = turn(q), turn(k)
            if commit:
                new_k, new_v = contained(k, v)
                keys[layer] = _write(keys[layer], _heads_first(new_k), slot)
                values[layer] = _write(values[layer], _heads_first(new_v), slot)
            caches = [(keys[layer], values[layer])]
            if isinstance(carry, Branches):
                caches = [(ring.k[layer], ring.v[layer]), *caches]
            x, _ = block.merge(x, _recall(q, k, v, caches, visible, distances, sink_scores))
        return self.norm(widened(x)), tuple(keys), tuple(values)

    def _block(self, layer: int) -> Block:
        return block_of((self.blocks, self.last), layer, self.config.num_layers)

    def _beginnings(self, reset: Array, episode: Array | None) -> tuple[Array, Array]:
        """Where sequences begin, and where episodes do."""
        begins = reset if episode is None else reset | episode
        return (begins if self.config.attend == "episode" else reset), begins

    def _sinks(self) -> list[SinkKV]:
        """Key and value of each layer's sink, [G, K], functions of the weights alone."""
        cfg = self.config
        if cfg.sink == "none":
            return [None] * cfg.num_layers
        blocks = [self._block(layer) for layer in range(cfg.num_layers)]
        if cfg.sink != "token":
            zero = jnp.zeros((cfg.kv_heads, cfg.head_width))
            learned = [(getattr(b, "sink_k", None), getattr(b, "sink_v", None)) for b in blocks]
            value = lambda param: zero if param is None else param[...]
            return [(value(k), value(v)) for k, v in learned]
        sinks, x_11D = [], self.sink_token[...].astype(cfg.compute_dtype)[None, None]
        for block in blocks:
            _, k, v = block.heads(x_11D)
            x_11D, _ = block.merge(x_11D, for_queries(v, cfg.num_heads))  # it sees itself only, so it finds its value
            sinks.append((k[0, 0], v[0, 0]))
        return sinks

    def _embed(
        self, x_BTD: Array, position_BT: Array, place: Place | None, index_1T: Array
    ) -> tuple[Array, Callable[[Array], Array]]:
        """Inputs in the compute dtype with what is added to them, and what is done to queries and keys."""
        cfg = self.config
        x_BTD = x_BTD.astype(cfg.compute_dtype)
        if cfg.table_rows is not None:
            row_BT = position_BT if place is None else place.step
            x_BTD = x_BTD + jnp.take(self.table[...], row_BT, axis=0, mode="clip").astype(x_BTD.dtype)
        if place is not None:
            return x_BTD, _rotary(place.episode, cfg.head_width)
        if cfg.positions == "rotary":
            return x_BTD, _rotary(index_1T, cfg.head_width)
        return x_BTD, lambda heads: heads


def _last_true(flag_BT: Array, before_B: Array) -> Array:
    """The index of the last true flag up to each, or a number for those before the first."""
    time_T = jnp.arange(flag_BT.shape[1], dtype=jnp.int32)
    return lax.associative_scan(jnp.maximum, jnp.where(flag_BT, time_T[None], before_B[:, None]), axis=1)


def _places(place: Place, reset_BT: Array, begins_BT: Array) -> Place:
    """Step and episode of every input of some rows that go on from a place, [B, T]."""
    time_T = jnp.arange(reset_BT.shape[1], dtype=jnp.int32)
    step_BT = time_T[None] - _last_true(begins_BT, -place.step)
    episode_BT = place.episode[:, None] + jnp.cumsum(begins_BT, axis=1, dtype=jnp.int32)
    at_reset_BT = lax.associative_scan(jnp.maximum, jnp.where(reset_BT, episode_BT, 0), axis=1)
    return Place(step_BT, episode_BT - at_reset_BT)


def _sink_scores(q_BTHK: Array, sink: SinkKV) -> Sink | None:
    """The queries, not turned so that the sink is nowhere, with its key."""
    if sink is None:
        return None
    k_GK, v_GK = sink
    H, K = q_BTHK.shape[2:]
    k_HK = for_queries(k_GK[None, None].astype(q_BTHK.dtype), H)[0, 0]
    score_BTH = jnp.einsum("bthk,hk->bth", q_BTHK, k_HK, preferred_element_type=at_least_float32(q_BTHK.dtype))
    return Sink(score_BTH * K**-0.5, v_GK)


def _waves(index_S: Array, dtype: jnp.dtype) -> Array:
    """Cosines and sines of each index, [S, R]."""
    still = (jnp.arange(_NUM_WAVES) < _NUM_WAVES // 2).astype(jnp.float32)[None, None, None]
    return _rotary(index_S[None], _NUM_WAVES)(still)[0, :, 0].astype(dtype)


def _with_distances(q_BTHK: Array, far_BTHR: Array, k_BSGK: Array, index_S: Array) -> tuple[Array, Array]:
    """Queries and keys whose products are those of contents plus those of distances: attention as usual."""
    T, K = q_BTHK.shape[1], q_BTHK.shape[3]
    far_BTHR = _rotary(index_S[None, -T:], _NUM_WAVES)(far_BTHR)
    waves_BSGR = jnp.broadcast_to(_waves(index_S, k_BSGK.dtype)[None, :, None], (*k_BSGK.shape[:3], _NUM_WAVES))
    # Attention divides by the root of the width that it is given.
    q = jnp.concatenate([q_BTHK, far_BTHR], axis=-1) * ((K + _NUM_WAVES) / K) ** 0.5
    return q, jnp.concatenate([k_BSGK, waves_BSGR], axis=-1)


def _distance_scores(far_BNHR: Array, distance_C: Array, K: int) -> Array:
    """What is added to the scores of keys so far back, float32 [B, N, H, C]."""
    waves_CR, f32 = _waves(-distance_C, far_BNHR.dtype), at_least_float32(far_BNHR.dtype)
    return jnp.einsum("cr,bnhr->bnhc", waves_CR, far_BNHR, preferred_element_type=f32) * K**-0.5


def _recall(
    q_BNHK: Array,
    k_BNGK: Array,
    v_BNGK: Array,
    caches: list[tuple[Array, Array]],
    visible: list[Array],
    distances: list[Array] | None,
    sink: Sink | None,
) -> Array:
    """Attention of every query to its own key, to all visible slots of some caches and to the sink.

    A cache [R, G, C, K] may have fewer rows than there are queries, each then serving B / R of them. `distances` are
    added to the scores, of the own keys [B, N, H, 1] and of the caches [B, N, H, C].
    """
    (B, N, H, K), G, f32 = q_BNHK.shape, k_BNGK.shape[2], at_least_float32(q_BNHK.dtype)
    q = (q_BNHK * K**-0.5).reshape(B, N, G, H // G, K)
    own_BNGJ1 = (q * k_BNGK[..., None, :]).sum(axis=-1, keepdims=True, dtype=f32)
    scores = [own_BNGJ1.reshape(B, N, H, 1)]
    for k_RGCK, _ in caches:
        R, _, C, _ = k_RGCK.shape
        # The cache comes first in the product: as the second operand, XLA would transpose it at every step.
        s = jnp.einsum("rgck,rngjk->rgcnj", k_RGCK, q.reshape(R, -1, G, H // G, K), preferred_element_type=f32)
        scores.append(s.transpose(0, 3, 1, 4, 2).reshape(B, N, H, C))
    if distances is not None:
        scores = [s + distance for s, distance in zip(scores, distances, strict=True)]
    for i, visible_BC in enumerate(visible, start=1):
        scores[i] = jnp.where(visible_BC[:, None, None], scores[i], -jnp.inf)
    if sink is not None:
        scores.append(sink.score_BTH[..., None])
    p = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(q_BNHK.dtype)
    o_BNHK, first = p[..., :1] * for_queries(v_BNGK, H), 1
    for _, v_RGCK in caches:
        R, _, C, _ = v_RGCK.shape
        p_RGNJC = jnp.swapaxes(p[..., first : first + C].reshape(R, -1, G, H // G, C), 1, 2)
        o_RGMK = lax.dot_general(p_RGNJC.reshape(R, G, -1, C), v_RGCK, (((3,), (2,)), ((0, 1), (0, 1))))
        o_RGNJK = o_RGMK.reshape(R, G, -1, H // G, K)
        o_BNHK = o_BNHK + jnp.swapaxes(o_RGNJK, 1, 2).reshape(B, N, H, K)
        first += C
    if sink is not None:
        o_BNHK = o_BNHK + p[..., first:] * for_queries(sink.v_GK[None, None], H).astype(p.dtype)
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


def _rotary(index_BT: Array, K: int) -> Callable[[Array], Array]:
    """Turns each pair of features of [B, T, H, K] by an angle proportional to the input's index, [B, T] or [1, T].

    Turns are counted in units of 2^-32, in wrapping integers, so an endless rollout loses no precision.

    References:
        Jianlin Su et al., RoFormer, 2021, https://arxiv.org/abs/2104.09864
    """
    pairs = jnp.arange(K // 2, dtype=jnp.float32)
    speed = jnp.round(10_000.0 ** (-2 * pairs / K) * (2**32 / (2 * jnp.pi))).astype(jnp.uint32)
    turns = index_BT.astype(jnp.uint32)[..., None] * speed[None, None]
    angle = (turns.astype(jnp.float32) * (2 * jnp.pi / 2**32))[:, :, None]

    def rotate(x_BTHK: Array) -> Array:
        a, b = jnp.split(widened(x_BTHK), 2, axis=-1)
        cos, sin = jnp.cos(angle).astype(a.dtype), jnp.sin(angle).astype(a.dtype)
        return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x_BTHK.dtype)

    return rotate

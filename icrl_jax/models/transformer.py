# ruff: noqa: N803, N806
"""A causal transformer with one contract for training and acting.

`__call__` runs whole sequences in parallel; `step` runs one input at a time against a ring cache of the last C inputs.
Both compute the same function, from any carry, with resets anywhere.

Axes: B rows, T time, D width, H heads, G heads of keys and values, K head width, F feed-forward width, C cache length,
L layers, N candidates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from icrl_jax.models import average, stack
from icrl_jax.models.attention import attention
from icrl_jax.models.average import Totals
from icrl_jax.models.cache import Branches, Cache, Memory, Slots, heads_first, in_order, newest, next_slots, write
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
    pick,
    precision,
    widened,
)
from icrl_jax.models.moe import MoEConfig, block_of, feed, feed_forward, make_blocks, no_totals
from icrl_jax.models.plain_attention import contained
from icrl_jax.models.positions import (
    NUM_WAVES,
    Place,
    Rotation,
    distance_scores,
    last_true,
    places,
    rotation,
    turned,
    with_distances,
)
from icrl_jax.models.recall import recall
from icrl_jax.models.sinks import SinkKind, SinkKV, learned_sink, sink_scores, token_sinks

Positions = Literal["none", "learned", "rotary", "relative", "episodes"]
Attend = Literal["all", "episode"]


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a transformer.

    Attributes:
        width: D, features of each input and output.
        num_layers: L.
        num_heads: H, a divisor of `width`.
        context_len: C, how many inputs an output sees, its own included; also the length of the cache. Only the mean
            that `moe.task_hard_router` goes by is of all since the last reset.
        positions: "none" leaves order to the causal mask; "learned" adds a table of `context_len` rows, counted from
            the last reset or, with attend="episode", from the episode's start, so neither may be further back
            (`check_horizon`); "rotary" turns queries and keys; "relative" scores distances as Transformer-XL does,
            `context_len` being its memory; "episodes", ReLIC's, adds a table for the step within the episode and turns
            queries and keys by the count of episodes.
        mlp_ratio: F / D.
        dtype: of the computation; "auto" is bfloat16 on accelerators, float32 on CPU. Parameters are float32.
        num_kv_heads: G, a divisor of `num_heads`: so many heads have keys and values of their own, and are cached, each
            for H / G heads of queries; None is as many as heads.
        sink: what every query sees besides its inputs, so that a head may attend to nothing (ReLIC's Sink-KV): a key
            and a value learned for each layer, "kv", of which those marked 0 stay zero, or those of a learned input
            that sees only itself, "token". Positions do not concern it.
        attend: "all" inputs of the context, or "episode": none of earlier episodes, as if each began with a reset.
        max_episode_len: rows of the table of positions="episodes", so no episode may be longer; None is `context_len`.
        remat: recomputes each block in the backward pass, which keeps the memory of long sequences down.
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
    def counts_episodes(self) -> bool:
        """Whether positions are counted from where an episode starts, not from the last reset."""
        return self.positions == "episodes" or self.attend == "episode"

    def least_rows(self, tokens_per_row: int) -> int:
        """How many rows to train on at once: one is enough without experts."""
        return self.moe.least_rows(tokens_per_row)

    @property
    def compute_dtype(self) -> jnp.dtype:
        return precision(self.dtype)

    def check_horizon(self, num_inputs: int, option: str = "num_inputs") -> None:
        """Refuses sequences that a table of learned positions cannot number.

        Args:
            num_inputs: between two resets; where `counts_episodes`, of the longest episode.
            option: what the error calls it.
        """
        if self.table_rows is not None and num_inputs > self.table_rows:
            size = "context_len" if self.max_episode_len is None else "max_episode_len"
            raise ValueError(
                f'{option}={num_inputs} is more than {size}={self.table_rows}: with positions="{self.positions}" it '
                f'must be at most {self.table_rows}; raise {size}, or use positions="rotary" or "none"'
            )


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
            self.waves = fan_in(jax.random.fold_in(key_qkv, 1), (H, K, NUM_WAVES), NUM_WAVES)

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

    def merge(
        self, x: Array, o: Array, add_up: Callable[[Array], Array] = average.one, key: Array | None = None
    ) -> tuple[Array, Totals, Aux]:
        """The rest of the block, given what attention found, [B, T, H, K].

        `add_up` gives the totals of what experts read that go by its mean; by default each input's is its own.
        """
        x = x + linear(o.reshape(x.shape), self.out[...])
        totals, y, aux = feed(self.ffn, self.ffn_norm(x), add_up, key)
        return x + y, totals, aux


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
        totals = tuple(no_totals(cfg, batch))
        return Memory(jnp.int32(0), jnp.zeros(batch, jnp.int32), self._first_place(batch), empty, empty, totals)

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
        total = jax.tree.map(lambda total_BE: average.forget(total_BE, reset_B), carry.total)
        carry = carry._replace(length=length, place=place, total=total)
        x_B1D, keys, values, total = self._next(carry, x_BD[:, None], commit=True)
        if isinstance(carry, Branches):
            x_B1D = jnp.where(carry.index < carry.k[0].shape[2], x_B1D, jnp.nan)
        place = None if place is None else place._replace(step=place.step + 1)
        carry = carry._replace(index=carry.index + 1, length=length + 1, place=place, k=keys, v=values, total=total)
        return carry, x_B1D[:, 0]

    def peek(self, carry: Memory | Branches, x_BND: Array) -> Array:
        """The output [B, N, D] for each of N candidates, as if it alone came next; the carry stays as it is."""
        return self._next(carry, x_BND, commit=False)[0]

    def look_back(self, carry: Memory, x_BND: Array, length_BN: Array, index_N: Array) -> Array:
        """`peek` at N candidates, each after so many of the inputs, which are all that `carry` has ever read: candidate
        n sees the last length[n] of the first index[n]. For positions that are counted, or none."""
        C = self.config.context_len
        age_NC = index_N[:, None] - jnp.arange(C, dtype=jnp.int32)[None]
        visible_BNC = (age_NC >= 1)[None] & (age_NC[None] <= jnp.minimum(length_BN, C - 1)[..., None])
        x, turn = self._embed(x_BND, length_BN, None, index_N[None])
        return self._through(carry, x, turn, Slots(carry.index, carry.index, (), (visible_BNC,)), commit=False)[0]

    def branch(self, carry: Memory, n: int, depth: int) -> Branches:
        """n branches per row that share the past and have room for `depth` inputs each; row-major, [B * n, ...].

        A full branch answers NaN.

        Raises:
            ValueError: `carry` is of branches already.
        """
        if isinstance(carry, Branches):
            raise ValueError("carry is of branches already: branch once, for all leaves and the whole depth")
        cfg = self.config
        rows = carry.length, carry.place, carry.total
        length, place, total = jax.tree.map(lambda x: jnp.repeat(x, n, axis=0), rows)
        shape = (length.shape[0], cfg.kv_heads, depth, cfg.head_width)
        empty = (jnp.zeros(shape, cfg.compute_dtype),) * cfg.num_layers
        return Branches(carry, jnp.int32(0), length, place, empty, empty, total)

    def prune(self, carry: Branches, parent_BN: Array) -> Branches:
        """Branches of which the i-th of row b goes on from what was its branch parent[b, i]."""
        own = carry.length, carry.place, carry.k, carry.v, carry.total
        length, place, k, v, total = pick(own, parent_BN)
        return carry._replace(length=length, place=place, k=k, v=v, total=total)

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
        index = jnp.int32(0) if carry is None else carry.index
        length_B = jnp.zeros(B, jnp.int32) if carry is None else carry.length

        reset_BT, begins_BT = self._beginnings(reset_BT, episode_BT)
        time_T = jnp.arange(T, dtype=jnp.int32)
        start_BT = last_true(reset_BT, -length_B)
        position_BT = time_T[None] - start_BT
        before = self._first_place(B) if carry is None else carry.place
        place = None if before is None else places(before, reset_BT, begins_BT)
        x, turn = self._embed(x_BTD, position_BT, place, index + time_T[None])

        layers, totals = [], no_totals(cfg, B) if carry is None else carry.total
        for i, sink in enumerate(self._sinks()):
            memory = None if carry is None else (carry.k[i], carry.v[i])
            key_layer = None if key is None else jax.random.fold_in(key, i)
            layers.append(Layer(self._block(i), sink, memory, totals[i], key_layer))
        run = partial(_run_block, cfg, Span(index, start_BT, turn, reset_BT))
        found = []
        for alike in [layers] if self.last is None else [layers[:-1], layers[-1:]]:
            x, of_layers = (stack.run_and_forget if cfg.remat else stack.run_all)(run, x, alike)
            found += of_layers
        keys, values, totals, reports = zip(*found, strict=True)
        if place is not None:
            place = Place(place.step[:, -1] + 1, place.episode[:, -1])
        carry = Memory(index + T, position_BT[:, -1] + 1, place, keys, values, totals)
        return carry, self.norm(widened(x)), gather(list(reports))

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
    ) -> tuple[Array, tuple[Array, ...], tuple[Array, ...], tuple[Totals, ...]]:
        """Outputs for N alternative next inputs a row; and the cache, with the (only) input written, and what experts
        have read, if `commit`."""
        slots = next_slots(carry)
        position_B1, place = jax.tree.map(lambda count: count[:, None], (carry.length, carry.place))
        x, turn = self._embed(x_BND, position_B1, place, slots.index[None, None])
        return self._through(carry, x, turn, slots, commit)

    def _through(
        self, carry: Memory | Branches, x: Array, turn: Rotation | None, slots: Slots, commit: bool
    ) -> tuple[Array, tuple[Array, ...], tuple[Array, ...], tuple[Totals, ...]]:
        """`_next` for inputs that know their places."""
        cfg = self.config
        keys, values, totals = list(carry.k), list(carry.v), list(carry.total)
        for layer, sink in enumerate(self._sinks()):
            past = (carry.past.k[layer], carry.past.v[layer]) if isinstance(carry, Branches) else None
            last = keys[layer], values[layer]
            x, (keys[layer], values[layer]), totals[layer] = _next_block(
                cfg, commit, self._block(layer), sink, x, slots, turn, past, last, totals[layer]
            )
        return self.norm(widened(x)), tuple(keys), tuple(values), tuple(totals)

    def _block(self, layer: int) -> Block:
        return block_of((self.blocks, self.last), layer, self.config.num_layers)

    def _beginnings(self, reset: Array, episode: Array | None) -> tuple[Array, Array]:
        """Where sequences begin, and where episodes do."""
        begins = reset if episode is None else reset | episode
        return (begins if self.config.attend == "episode" else reset), begins

    def _sinks(self) -> Sequence[SinkKV]:
        """Key and value of each layer's sink, [G, K], functions of the weights alone."""
        cfg = self.config
        if cfg.sink == "none":
            return [None] * cfg.num_layers
        blocks = [self._block(layer) for layer in range(cfg.num_layers)]
        if cfg.sink == "token":
            return token_sinks(self.sink_token[...].astype(cfg.compute_dtype), blocks)
        return [learned_sink(cfg, block) for block in blocks]

    def _embed(
        self, x_BTD: Array, position_BT: Array, place: Place | None, index_1T: Array
    ) -> tuple[Array, Rotation | None]:
        """Inputs in the compute dtype with what is added to them, and how queries and keys are turned."""
        cfg = self.config
        x_BTD = x_BTD.astype(cfg.compute_dtype)
        if cfg.table_rows is not None:
            row_BT = position_BT if place is None else place.step
            x_BTD = x_BTD + jnp.take(self.table[...], row_BT, axis=0, mode="clip").astype(x_BTD.dtype)
        if place is not None:
            return x_BTD, rotation(place.episode, cfg.head_width)
        return x_BTD, rotation(index_1T, cfg.head_width) if cfg.positions == "rotary" else None


class Span(NamedTuple):
    """Which inputs `__call__` is given: the same for all blocks."""

    index: Array  # int32 []: inputs before the first
    start: Array  # int32 [B, T]: where the sequence of each began, counted from the first
    turn: Rotation | None
    reset: Array  # bool [B, T]


class Layer(NamedTuple):
    """What each block has of its own."""

    block: Block
    sink: SinkKV
    memory: tuple[Array, Array] | None  # keys and values, in a ring
    totals: Totals
    key: Array | None


Found = tuple[Array, Array, Totals, Aux]  # by a block: its new memory, and its losses


# Blocks are functions of arguments alone, under `jit`: traced and lowered once for all layers; XLA inlines the calls.
@partial(jax.jit, static_argnums=0)
def _run_block(config: TransformerConfig, span: Span, x_BTD: Array, layer: Layer) -> tuple[Array, Found]:
    """One block over whole sequences that follow a memory: its outputs, its new memory and its losses."""
    block, sink, memory, totals, key = layer
    T, C = x_BTD.shape[1], config.context_len
    past = 0 if memory is None else C  # how many keys precede the first input
    q, k, v = block.heads(x_BTD)
    far = None
    if config.positions == "relative":
        q, far = block.distance_queries(q)
    own_sink = sink_scores(q, sink)
    q, k = turned(q, span.turn), turned(k, span.turn)
    if memory is not None:
        k, v = (jnp.concatenate([in_order(old, span.index), new], 1) for old, new in zip(memory, (k, v), strict=True))
    seen = q, k
    if far is not None:
        seen = with_distances(q, far, k, span.index - past + jnp.arange(past + T, dtype=jnp.int32))

    def add_up(h_BTD: Array) -> Array:
        return jnp.swapaxes(average.add_all(totals[0], jnp.swapaxes(h_BTD, 0, 1), span.reset.T), 0, 1)

    x_BTD, after, aux = block.merge(x_BTD, attention(*seen, v, span.start + past, C, own_sink), add_up, key)
    k, v = contained(k, v)
    totals = tuple(total_BTE[:, -1] for total_BTE in after)
    return x_BTD, (newest(k, span.index + T, C), newest(v, span.index + T, C), totals, aux)


@partial(jax.jit, static_argnums=(0, 1))
def _next_block(
    config: TransformerConfig,
    commit: bool,
    block: Block,
    sink: SinkKV,
    x_BND: Array,
    slots: Slots,
    turn: Rotation | None,
    past: tuple[Array, Array] | None,
    last: tuple[Array, Array],
    totals: Totals,
) -> tuple[Array, tuple[Array, Array], Totals]:
    """One block for N alternative next inputs a row; and the last cache and the totals, which have the (only) input in
    them if `commit`."""
    keys, values = last
    q, k, v = block.heads(x_BND)
    distances = None
    if config.positions == "relative":
        q, far = block.distance_queries(q)
        ages = jnp.zeros(1, jnp.int32), *slots.ages
        distances = [distance_scores(far, age, config.head_width) for age in ages]
    own_sink = sink_scores(q, sink)
    q, k = turned(q, turn), turned(k, turn)
    if commit:
        new_k, new_v = contained(k, v)
        keys = write(keys, heads_first(new_k), slots.slot)
        values = write(values, heads_first(new_v), slots.slot)
    seen = [(keys, values)] if past is None else [past, (keys, values)]
    o_BNHK = recall(q, k, v, seen, slots.visible, distances, own_sink)
    x_BND, after, _ = block.merge(x_BND, o_BNHK, lambda h_BND: totals[0][:, None] + average.one(h_BND))
    return x_BND, (keys, values), tuple(total_BNE[:, 0] for total_BNE in after) if commit else totals

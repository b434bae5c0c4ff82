# ruff: noqa: N803, N806
"""Causal attention over contiguous runs of keys: one entry point, one implementation per platform.

The queries are the last T of the S inputs whose keys are given, so query t's own key is `S - T + t`. Every query sees
a contiguous run of keys: from `start[b, t]`, where its sequence began, and at most `window` back, up to its own.
Resets, empty cache slots and sliding windows are all said by that one number.

Axes: B rows, T queries, S keys, H heads, G heads of the keys and values (each serves H / G of the queries'), K head
width. The softmax is computed in float32 (or wider) always.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

# Chosen on CPU (2 MB of L2 per core): with 64 queries a block's scores stay in cache, and few lie above the diagonal.
_BLOCK_QUERIES = 64
_GROUP_HEADS = 8
# A program of one block after another is fast, but grows with the queries; above so many blocks it is a loop of tiles.
_MOST_BLOCKS = 32
_TILE_KEYS = 512


class Sink(NamedTuple):
    """One more key and value, which all queries see, whatever their sequence (Sink-KV).

    References:
        Ahmad Elawady et al., ReLIC, 2024, https://arxiv.org/abs/2410.02751, section 3.2
    """

    score_BTH: Array  # the queries' scores with the sink's key, scaled as the others are
    v_GK: Array


def attention(
    q_BTHK: Array,
    k_BSGK: Array,
    v_BSGK: Array,
    start_BT: Array,
    window: int | None = None,
    sink: Sink | None = None,
) -> Array:
    """Attention of each query to the inputs of its own sequence, itself included, and to the sink if there is one.

    On CPU this is `blocked_attention`; on GPU `jax.nn.dot_product_attention`, through cuDNN where it can (half
    precision, even lengths, head width a multiple of 8 up to 128); elsewhere XLA's own.

    A key or value that is not finite makes those queries NaN that see it, and no others.

    Args:
        q_BTHK: queries, the last T of the S inputs.
        k_BSGK: keys.
        v_BSGK: values, whose width may be less than that of the keys.
        start_BT: int32, index on the S axis of the first input of the query's sequence; may be negative.
        window: each query sees at most this many inputs, its own included; None is no limit.
        sink: what every query sees besides.

    Returns:
        [B, T, H, K], K being the width of the values, in the dtype of `q`.
    """
    T, S = q_BTHK.shape[1], k_BSGK.shape[1]
    own_T = jnp.arange(S - T, S, dtype=jnp.int32)
    earliest_T = jnp.zeros_like(own_T) if window is None else jnp.maximum(own_T - (window - 1), 0)
    start_BT = jnp.clip(start_BT, earliest_T[None], own_T[None])

    if jax.default_backend() != "cpu":
        return _fused_attention(q_BTHK, k_BSGK, v_BSGK, start_BT, sink)
    H = q_BTHK.shape[2]
    k_BSHK, v_BSHK = for_queries(k_BSGK, H), for_queries(v_BSGK, H)
    o_BTHK, log_z_BTH1 = blocked_attention(q_BTHK, k_BSHK, v_BSHK, start_BT, window)  # type: ignore[misc]
    if sink is None:
        return o_BTHK
    # With it the normaliser is z + exp(score), so its share is a sigmoid.
    f32 = log_z_BTH1.dtype
    share_BTH1 = jax.nn.sigmoid(sink.score_BTH[..., None].astype(f32) - log_z_BTH1)
    v_11HK = for_queries(sink.v_GK[None, None], H).astype(f32)
    return (o_BTHK.astype(f32) * (1 - share_BTH1) + v_11HK * share_BTH1).astype(q_BTHK.dtype)


def for_queries(x_BSGK: Array, H: int) -> Array:
    """Keys or values with as many heads as the queries have."""
    repeats = H // x_BSGK.shape[2]
    return x_BSGK if repeats == 1 else jnp.repeat(x_BSGK, repeats, axis=2)


def contained(k: Array, v: Array) -> tuple[Array, Array]:
    """Keys and values whose NaN and inf reach those queries only that see them.

    A masked score hides a key whatever it is, but a masked probability of zero does not hide a value of NaN. So values
    that are not finite become zero, and their keys NaN in their place.
    """
    spoils = v if k.shape == v.shape else (0 * v).sum(axis=-1, keepdims=True)
    return k + 0 * (k + spoils), _finite_part(v)


def plain_attention(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, start_BT: Array, sink: Sink | None = None) -> Array:
    """The definition, with all T x S scores in memory: the reference in tests, and good for small cases."""
    T, S, H, K = q_BTHK.shape[1], k_BSGK.shape[1], *q_BTHK.shape[2:]
    f32 = at_least_float32(q_BTHK.dtype)
    k_BSHK, v_BSHK = (for_queries(x, H) for x in contained(k_BSGK, v_BSGK))
    s_BHTS = jnp.einsum("bthk,bshk->bhts", q_BTHK, k_BSHK, preferred_element_type=f32) * K**-0.5
    visible_BTS = _visible(start_BT, *_indices(T, S))
    s_BHTS = jnp.where(visible_BTS[:, None], s_BHTS, -jnp.inf)
    if sink is not None:
        s_BHTS = jnp.concatenate([jnp.moveaxis(sink.score_BTH, 1, 2)[..., None].astype(f32), s_BHTS], axis=-1)
        v_BSHK = jnp.concatenate([_in_all_rows(for_queries(sink.v_GK[None, None], H), v_BSHK), v_BSHK], axis=1)
    p_BHTS = jax.nn.softmax(s_BHTS, axis=-1)
    return jnp.einsum("bhts,bshk->bthk", p_BHTS.astype(q_BTHK.dtype), v_BSHK)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def blocked_attention(
    q_BTHK: Array, k_BSHK: Array, v_BSHK: Array, start_BT: Array, window: int | None = None
) -> tuple[Array, Array]:
    """Exact attention that never holds more scores than fit in a core's cache, forward or backward.

    A few rows at a time, a block of queries against the keys that any of them may see; the backward pass recomputes
    the probabilities from the saved log-normaliser. Queries lie last in the scores: the sums over keys then run along
    whole vectors, and the products with narrow heads are a third faster. Long sequences go tile by tile, in a program
    of one size that skips the keys before the first query's sequence. `start` lies between 0 and the query's own key.

    Returns:
        What was found, [B, T, H, K], and the logarithm of the normaliser, [B, T, H, 1].

    References:
        Tri Dao et al., FlashAttention, 2022, https://arxiv.org/abs/2205.14135
    """
    return _blocked_forward(q_BTHK, k_BSHK, v_BSHK, start_BT, window)[0]


def _blocked_forward(q_BTHK, k_BSHK, v_BSHK, start_BT, window):
    inputs = (q_BTHK * q_BTHK.shape[3] ** -0.5, *contained(k_BSHK, v_BSHK))
    some_heads = (
        _forward_tiles if _is_long(q_BTHK.shape[1], k_BSHK.shape[1], window) else partial(_forward_blocks, window)
    )
    o_BTHK, log_z_BTH1 = _map_heads(some_heads, inputs, start_BT)
    return (o_BTHK, log_z_BTH1), (*inputs, start_BT, o_BTHK, log_z_BTH1)


def _forward_blocks(window, q_NTK, k_NSK, v_NSK, start_NT):
    T, S, f32 = q_NTK.shape[1], k_NSK.shape[1], at_least_float32(q_NTK.dtype)
    q_NKT, (own_T, key_S) = _turned(q_NTK), _indices(T, S)
    o_blocks, log_z_blocks = [], []
    for queries, keys in _blocks(T, S, window):
        s = _scores(k_NSK[:, keys], q_NKT[..., queries], f32)
        s = jnp.where(_turned(_visible(start_NT[:, queries], own_T[queries], key_S[keys])), s, -jnp.inf)
        top = s.max(axis=1, keepdims=True)
        p = jnp.exp(s - top)
        z = p.sum(axis=1, keepdims=True)
        o_blocks.append(_mix(p.astype(v_NSK.dtype), v_NSK[:, keys], f32) / z)
        log_z_blocks.append(top + jnp.log(z))
    o_NKT = jnp.concatenate(o_blocks, axis=2).astype(q_NTK.dtype)
    return _turned(o_NKT), _turned(jnp.concatenate(log_z_blocks, axis=2))


def _forward_tiles(q_NTK, k_NSK, v_NSK, start_NT):
    N, T, S, f32 = *q_NTK.shape[:2], k_NSK.shape[1], at_least_float32(q_NTK.dtype)
    q_NKT, start_NT = _whole_tiles(_turned(q_NTK)), _whole_tiles(start_NT)
    k_NSK, v_NSK = _whole_tiles(k_NSK, 1), _whole_tiles(v_NSK, 1)

    def query_tile(first):
        q, start = _tile(q_NKT, first), _tile(start_NT, first)
        own_T = first + (S - T) + jnp.arange(_BLOCK_QUERIES, dtype=jnp.int32)

        def key_tile(i, found):
            o, top, z = found
            k, v, key_S = _key_tile(i, k_NSK, v_NSK)
            s = jnp.where(_turned(_visible(start, own_T, key_S)), _scores(k, q, f32), -jnp.inf)
            new_top = jnp.maximum(top, s.max(axis=1, keepdims=True))
            p, shrink = jnp.exp(s - new_top), jnp.exp(top - new_top)
            o = o * shrink + _mix(p.astype(v.dtype), v, f32)
            return o, new_top, z * shrink + p.sum(axis=1, keepdims=True)

        zero = jnp.zeros((N, 1, _BLOCK_QUERIES), f32)
        nothing = jnp.zeros((N, v_NSK.shape[2], _BLOCK_QUERIES), f32), zero + jnp.finfo(f32).min, zero
        o, top, z = lax.fori_loop(*_seen_tiles(start, own_T, S), key_tile, nothing)
        return (o / z).astype(q_NTK.dtype), top + jnp.log(z)

    first = jnp.arange(0, T, _BLOCK_QUERIES, dtype=jnp.int32)
    return tuple(_turned(_joined(x, T)) for x in lax.map(query_tile, first))


def _blocked_backward(window, residuals, cotangents):
    q_BTHK, k_BSHK, v_BSHK, start_BT, o_BTHK, log_z_BTH1 = residuals
    do_BTHK, dlog_z_BTH1 = cotangents
    f32 = at_least_float32(q_BTHK.dtype)
    # The gradient of a score is p (dp - mean_dp + dlog_z): what comes in for the normaliser is one more constant.
    mean_dp_BTH1 = (o_BTHK.astype(f32) * do_BTHK.astype(f32)).sum(axis=-1, keepdims=True) - dlog_z_BTH1
    # Only finite numbers go in, so that a probability of zero hides them; log_z alone tells what is not finite.
    log_z_BTH1 = jnp.where(jnp.isfinite(mean_dp_BTH1), log_z_BTH1, jnp.nan)
    q_BTHK, k_BSHK, do_BTHK, mean_dp_BTH1 = map(_finite_part, (q_BTHK, k_BSHK, do_BTHK, mean_dp_BTH1))
    inputs = (q_BTHK, k_BSHK, v_BSHK, do_BTHK, mean_dp_BTH1, log_z_BTH1)
    some_heads = (
        _backward_tiles if _is_long(q_BTHK.shape[1], k_BSHK.shape[1], window) else partial(_backward_blocks, window)
    )
    return (*_map_heads(some_heads, inputs, start_BT), None)


def _backward_blocks(window, q_NTK, k_NSK, v_NSK, do_NTK, mean_dp_NT1, log_z_NT1, start_NT):
    T, S, K, f32 = q_NTK.shape[1], k_NSK.shape[1], q_NTK.shape[2], at_least_float32(q_NTK.dtype)
    of_queries = tuple(map(_turned, (q_NTK, do_NTK, mean_dp_NT1, log_z_NT1)))
    own_T, key_S = _indices(T, S)
    dq_blocks, dk_NSK, dv_NSK = [], jnp.zeros(k_NSK.shape, f32), jnp.zeros(v_NSK.shape, f32)
    for queries, keys in _blocks(T, S, window):
        visible = _visible(start_NT[:, queries], own_T[queries], key_S[keys])
        dq, dk, dv = _gradients([x[..., queries] for x in of_queries], k_NSK[:, keys], v_NSK[:, keys], visible)
        dq_blocks.append(dq)
        dk_NSK = dk_NSK.at[:, keys].add(dk)
        dv_NSK = dv_NSK.at[:, keys].add(dv)
    dq_NKT = jnp.concatenate(dq_blocks, axis=2) * K**-0.5
    return tuple(x.astype(q_NTK.dtype) for x in (_turned(dq_NKT), dk_NSK, dv_NSK))


def _backward_tiles(q_NTK, k_NSK, v_NSK, do_NTK, mean_dp_NT1, log_z_NT1, start_NT):
    T, S, K, f32 = q_NTK.shape[1], k_NSK.shape[1], q_NTK.shape[2], at_least_float32(q_NTK.dtype)
    of_queries = tuple(_whole_tiles(_turned(x)) for x in (q_NTK, do_NTK, mean_dp_NT1, log_z_NT1))
    start_NT = _whole_tiles(start_NT)
    k_NSK, v_NSK = _whole_tiles(k_NSK, 1), _whole_tiles(v_NSK, 1)

    def query_tile(sums, first):
        tile, start = [_tile(x, first) for x in of_queries], _tile(start_NT, first)
        own_T = first + (S - T) + jnp.arange(_BLOCK_QUERIES, dtype=jnp.int32)

        def key_tile(i, sums):
            dq_sum, dk_sum, dv_sum = sums
            k, v, key_S = _key_tile(i, k_NSK, v_NSK)
            dq, dk, dv = _gradients(tile, k, v, _visible(start, own_T, key_S))
            return dq_sum + dq, _add_tile(dk_sum, dk, i), _add_tile(dv_sum, dv, i)

        no_dq = jnp.zeros(tile[0].shape, f32)
        dq, *sums = lax.fori_loop(*_seen_tiles(start, own_T, S), key_tile, (no_dq, *sums))
        return tuple(sums), dq

    nothing = jnp.zeros(k_NSK.shape, f32), jnp.zeros(v_NSK.shape, f32)
    (dk_NSK, dv_NSK), dq = lax.scan(query_tile, nothing, jnp.arange(0, T, _BLOCK_QUERIES, dtype=jnp.int32))
    dq_NTK = _turned(_joined(dq, T)) * K**-0.5
    return tuple(x.astype(q_NTK.dtype) for x in (dq_NTK, dk_NSK[:, :S], dv_NSK[:, :S]))


blocked_attention.defvjp(_blocked_forward, _blocked_backward)


def _gradients(of_queries, k_NSK, v_NSK, visible_NTS):
    """What some queries and some keys give to the gradients dq (not scaled yet), dk and dv."""
    q_NKT, do_NKT, mean_dp_N1T, log_z_N1T = of_queries
    f32 = at_least_float32(q_NKT.dtype)
    p = jnp.where(_turned(visible_NTS), jnp.exp(_scores(k_NSK, q_NKT, f32) - log_z_N1T), 0)
    dp = _scores(v_NSK, do_NKT, f32)
    ds = (p * (dp - mean_dp_N1T)).astype(q_NKT.dtype)
    return _mix(ds, k_NSK, f32), _spread(ds, q_NKT, f32), _spread(p.astype(q_NKT.dtype), do_NKT, f32)


def _fused_attention(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, start_BT: Array, sink: Sink | None = None) -> Array:
    """JAX's own attention, through cuDNN in half precision, which wants even lengths: a last row and key are added.

    Both mask by adding to the scores, so nothing that is not finite may go in; what it spoils is marked afterwards.
    A sink is a last key with a feature of its own, whose product with the queries' is the score.
    """
    T, S, K, V = q_BTHK.shape[1], k_BSGK.shape[1], q_BTHK.shape[3], v_BSGK.shape[3]
    finite_BT = jnp.isfinite(q_BTHK).all(axis=(2, 3))
    finite_BS = (jnp.isfinite(k_BSGK).all(axis=3) & jnp.isfinite(v_BSGK).all(axis=3)).all(axis=2)
    last_bad_BS = lax.cummax(jnp.where(finite_BS, -1, jnp.arange(S, dtype=jnp.int32)[None]), axis=1)
    healthy_BT = finite_BT & (last_bad_BS[:, S - T :] < start_BT)

    q, k, v = map(_finite_part, (q_BTHK, k_BSGK, v_BSGK))
    visible_BTS = _visible(start_BT, *_indices(T, S))
    if sink is not None:
        score = _finite_part(sink.score_BTH[..., None] * K**0.5).astype(q.dtype)
        q = jnp.concatenate([q, jnp.pad(score, ((0, 0), (0, 0), (0, 0), (0, 7)))], axis=3)  # widths of 8 n stay so
        feature = jnp.zeros((1, 1, 1, q.shape[3]), k.dtype).at[..., K].set(1)
        k = jnp.pad(k, ((0, 0), (0, 0), (0, 0), (0, 8)))
        k = jnp.concatenate([k, jnp.broadcast_to(feature, (*k.shape[:1], 1, *k.shape[2:]))], axis=1)
        v = jnp.concatenate([v, _in_all_rows(sink.v_GK[None, None], v)], axis=1)
        visible_BTS = jnp.pad(visible_BTS, ((0, 0), (0, 0), (0, 1)), constant_values=True)
    v = jnp.pad(v, ((0, 0), (0, 0), (0, 0), (0, k.shape[3] - V)))
    half, S, width = q.dtype in (jnp.bfloat16, jnp.float16), *k.shape[1:4:2]
    cudnn = jax.default_backend() == "gpu" and half and width % 8 == 0 and width <= 128
    visible_BTS = jnp.pad(visible_BTS, ((0, 0), (0, T % 2), (0, S % 2))).at[:, T:, 0].set(True)  # no row sees nothing
    o_BTHK = jax.nn.dot_product_attention(
        *map(_even_length, (q, k, v)),
        mask=visible_BTS[:, None],
        scale=K**-0.5,
        implementation="cudnn" if cudnn else "xla",
    )[:, :T, :, :V]
    return jnp.where(healthy_BT[..., None, None], o_BTHK, jnp.nan)


def _in_all_rows(sink_11GK: Array, x_BSGK: Array) -> Array:
    """One key or value for every row of some others."""
    return jnp.broadcast_to(sink_11GK, (x_BSGK.shape[0], 1, *sink_11GK.shape[2:])).astype(x_BSGK.dtype)


def _even_length(x_BTHK: Array) -> Array:
    return jnp.pad(x_BTHK, ((0, 0), (0, x_BTHK.shape[1] % 2), (0, 0), (0, 0)))


def _blocks(T: int, S: int, window: int | None) -> Iterator[tuple[slice, slice]]:
    """Blocks of queries, each with the keys that any query of the block may see."""
    for first in range(0, T, _BLOCK_QUERIES):
        end = min(first + _BLOCK_QUERIES, T)
        earliest = 0 if window is None else max(0, S - T + first - (window - 1))
        yield slice(first, end), slice(earliest, S - T + end)


def _indices(T: int, S: int) -> tuple[Array, Array]:
    """On the S axis: the queries' own keys [T], and all keys [S]."""
    return jnp.arange(S - T, S, dtype=jnp.int32), jnp.arange(S, dtype=jnp.int32)


def _visible(start_BT: Array, own_T: Array, key_S: Array) -> Array:
    """Bool [B, T, S]: not before the start of the query's sequence, not after the query's own key."""
    # In unsigned numbers what lies before the start wraps around, so one comparison tells both ends.
    after_BTS = (key_S[None, None] - start_BT[..., None]).astype(jnp.uint32)
    return after_BTS <= (own_T[None] - start_BT).astype(jnp.uint32)[..., None]


def _is_long(T: int, S: int, window: int | None) -> bool:
    """Whether blocks would be many, or what one of them may see too much for a cache."""
    seen = S if window is None else min(S, window + _BLOCK_QUERIES)
    return max(T, seen) > _MOST_BLOCKS * _BLOCK_QUERIES


def _whole_tiles(x: Array, axis: int = -1) -> Array:
    """With zeros up to whole tiles of keys (axis 1) or of queries (the last axis)."""
    pads = [(0, 0)] * x.ndim
    pads[axis] = (0, -x.shape[axis] % (_TILE_KEYS if axis == 1 else _BLOCK_QUERIES))
    return jnp.pad(x, pads)


def _tile(x_NXT: Array, first: Array) -> Array:
    return lax.dynamic_slice_in_dim(x_NXT, first, _BLOCK_QUERIES, axis=-1)


def _key_tile(i: Array, k_NSK: Array, v_NSK: Array) -> tuple[Array, Array, Array]:
    """Keys and values of tile i, and their indices."""
    k, v = (lax.dynamic_slice_in_dim(x, i * _TILE_KEYS, _TILE_KEYS, axis=1) for x in (k_NSK, v_NSK))
    return k, v, i * _TILE_KEYS + jnp.arange(_TILE_KEYS, dtype=jnp.int32)


def _add_tile(sum_NSK: Array, x_NSK: Array, i: Array) -> Array:
    before = lax.dynamic_slice_in_dim(sum_NSK, i * _TILE_KEYS, _TILE_KEYS, axis=1)
    return lax.dynamic_update_slice_in_dim(sum_NSK, before + x_NSK, i * _TILE_KEYS, axis=1)


def _seen_tiles(start_NT: Array, own_T: Array, S: int) -> tuple[Array, Array]:
    """The first tile of keys that some query of a tile sees, and the one after the last."""
    return start_NT.min() // _TILE_KEYS, jnp.minimum(own_T[-1], S - 1) // _TILE_KEYS + 1


def _joined(tiles: Array, T: int) -> Array:
    """[tiles, N, K, queries] to [N, K, T]."""
    x = jnp.moveaxis(tiles, 0, 2)
    return x.reshape(*x.shape[:2], -1)[..., :T]


def _scores(k_NSK: Array, q_NKT: Array, dtype: jnp.dtype) -> Array:
    return jnp.einsum("nsk,nkt->nst", k_NSK, q_NKT, preferred_element_type=dtype)


def _mix(p_NST: Array, v_NSK: Array, dtype: jnp.dtype) -> Array:
    return jnp.einsum("nst,nsk->nkt", p_NST, v_NSK, preferred_element_type=dtype)


def _spread(p_NST: Array, x_NKT: Array, dtype: jnp.dtype) -> Array:
    return jnp.einsum("nst,nkt->nsk", p_NST, x_NKT, preferred_element_type=dtype)


def _turned(x: Array) -> Array:
    """Swaps the last two axes."""
    return jnp.swapaxes(x, -1, -2)


def at_least_float32(dtype: jnp.dtype) -> jnp.dtype:
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def _finite_part(x: Array) -> Array:
    return jnp.where(jnp.isfinite(x), x, 0)


def _map_heads(f, arrays_BTHK, start_BT):
    """f over single heads [N, T, K], a few at a time, so that one group's scores stay in cache."""
    B, _, H, _ = arrays_BTHK[0].shape
    N = B * H
    group = max(n for n in range(1, min(N, _GROUP_HEADS) + 1) if N % n == 0)

    def split(x_BTHK):
        x_BHTK = jnp.swapaxes(x_BTHK, 1, 2)
        return x_BHTK.reshape(N // group, group, *x_BHTK.shape[2:])

    def join(x):
        return jnp.swapaxes(x.reshape(B, H, *x.shape[2:]), 1, 2)

    start = jnp.repeat(start_BT, H, axis=0).reshape(N // group, group, -1)
    groups = (*map(split, arrays_BTHK), start)
    return jax.tree.map(join, lax.map(lambda group: f(*group), groups))

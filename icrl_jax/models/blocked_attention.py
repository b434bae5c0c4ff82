# ruff: noqa: N803, N806
"""Attention whose scores stay in a processor's cache, with its own gradient: `attention.py` on CPU.

Axes: B rows, T queries, S keys, H heads, N rows and heads, K head width.
"""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from icrl_jax.models.layers import at_least_float32
from icrl_jax.models.plain_attention import contained, finite_part, indices, visible

# Chosen on CPU (2 MB of L2 per core): with 64 queries a block's scores stay in cache, and few lie above the diagonal.
_BLOCK_QUERIES = 64
_GROUP_HEADS = 8
# A program of one block after another is fast, but grows with the queries; above so many blocks it is a loop of tiles.
_MOST_BLOCKS = 32
_TILE_KEYS = 512


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
    q_NKT, (own_T, key_S) = _turned(q_NTK), indices(T, S)
    o_blocks, log_z_blocks = [], []
    for queries, keys in _blocks(T, S, window):
        s = _scores(k_NSK[:, keys], q_NKT[..., queries], f32)
        s = jnp.where(_turned(visible(start_NT[:, queries], own_T[queries], key_S[keys])), s, -jnp.inf)
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
            s = jnp.where(_turned(visible(start, own_T, key_S)), _scores(k, q, f32), -jnp.inf)
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
    q_BTHK, k_BSHK, do_BTHK, mean_dp_BTH1 = map(finite_part, (q_BTHK, k_BSHK, do_BTHK, mean_dp_BTH1))
    inputs = (q_BTHK, k_BSHK, v_BSHK, do_BTHK, mean_dp_BTH1, log_z_BTH1)
    some_heads = (
        _backward_tiles if _is_long(q_BTHK.shape[1], k_BSHK.shape[1], window) else partial(_backward_blocks, window)
    )
    return (*_map_heads(some_heads, inputs, start_BT), None)


def _backward_blocks(window, q_NTK, k_NSK, v_NSK, do_NTK, mean_dp_NT1, log_z_NT1, start_NT):
    T, S, K, f32 = q_NTK.shape[1], k_NSK.shape[1], q_NTK.shape[2], at_least_float32(q_NTK.dtype)
    of_queries = tuple(map(_turned, (q_NTK, do_NTK, mean_dp_NT1, log_z_NT1)))
    own_T, key_S = indices(T, S)
    dq_blocks, dk_NSK, dv_NSK = [], jnp.zeros(k_NSK.shape, f32), jnp.zeros(v_NSK.shape, f32)
    for queries, keys in _blocks(T, S, window):
        seen = visible(start_NT[:, queries], own_T[queries], key_S[keys])
        dq, dk, dv = _gradients([x[..., queries] for x in of_queries], k_NSK[:, keys], v_NSK[:, keys], seen)
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
            dq, dk, dv = _gradients(tile, k, v, visible(start, own_T, key_S))
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


def _blocks(T: int, S: int, window: int | None) -> Iterator[tuple[slice, slice]]:
    """Blocks of queries, each with the keys that any query of the block may see."""
    for first in range(0, T, _BLOCK_QUERIES):
        end = min(first + _BLOCK_QUERIES, T)
        earliest = 0 if window is None else max(0, S - T + first - (window - 1))
        yield slice(first, end), slice(earliest, S - T + end)


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

# ruff: noqa: N803, N806
"""Causal attention over contiguous runs of keys: one entry point, one implementation per platform.

The queries are the last T of the S inputs whose keys are given, so query t's own key is `S - T + t`. Every query sees
a contiguous run of keys: from `start[b, t]`, where its sequence began, and at most `window` back, up to its own.
Resets, empty cache slots and sliding windows are all said by that one number.

Axes: B rows, T queries, S keys, H heads, K head width. The softmax is computed in float32 (or wider) always.
"""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

# Chosen on CPU (2 MB of L2 per core): with 64 queries a block's scores stay in cache, and few lie above the diagonal.
_BLOCK_QUERIES = 64
_GROUP_HEADS = 8


def attention(q_BTHK: Array, k_BSHK: Array, v_BSHK: Array, start_BT: Array, window: int | None = None) -> Array:
    """Attention of each query to the inputs of its own sequence, itself included.

    On CPU this is `blocked_attention`; on GPU `jax.nn.dot_product_attention`, through cuDNN where it can (half
    precision, even lengths, head width a multiple of 8 up to 128); elsewhere XLA's own.

    A key or value that is not finite makes those queries NaN that see it, and no others.

    Args:
        q_BTHK: queries, the last T of the S inputs.
        k_BSHK: keys.
        v_BSHK: values.
        start_BT: int32, index on the S axis of the first input of the query's sequence; may be negative.
        window: each query sees at most this many inputs, its own included; None is no limit.

    Returns:
        [B, T, H, K], in the dtype of `q`.
    """
    T, S = q_BTHK.shape[1], k_BSHK.shape[1]
    own_T = jnp.arange(S - T, S, dtype=jnp.int32)
    earliest_T = jnp.zeros_like(own_T) if window is None else jnp.maximum(own_T - (window - 1), 0)
    start_BT = jnp.clip(start_BT, earliest_T[None], own_T[None])

    if jax.default_backend() == "cpu":
        return blocked_attention(q_BTHK, k_BSHK, v_BSHK, start_BT, window)
    return _fused_attention(q_BTHK, k_BSHK, v_BSHK, start_BT)


def contained(k: Array, v: Array) -> tuple[Array, Array]:
    """Keys and values whose NaN and inf reach those queries only that see them.

    A masked score hides a key whatever it is, but a masked probability of zero does not hide a value of NaN. So values
    that are not finite become zero, and their keys NaN in their place.
    """
    return k + 0 * (k + v), _finite_part(v)


def plain_attention(q_BTHK: Array, k_BSHK: Array, v_BSHK: Array, start_BT: Array) -> Array:
    """The definition, with all T x S scores in memory: the reference in tests, and good for small cases."""
    S, K = k_BSHK.shape[1], k_BSHK.shape[-1]
    f32 = _at_least_float32(q_BTHK.dtype)
    k_BSHK, v_BSHK = contained(k_BSHK, v_BSHK)
    s_BHTS = jnp.einsum("bthk,bshk->bhts", q_BTHK, k_BSHK, preferred_element_type=f32) * K**-0.5
    visible_BTS = _visible(start_BT, slice(0, start_BT.shape[1]), slice(0, S), S)
    p_BHTS = jax.nn.softmax(jnp.where(visible_BTS[:, None], s_BHTS, -jnp.inf), axis=-1)
    return jnp.einsum("bhts,bshk->bthk", p_BHTS.astype(q_BTHK.dtype), v_BSHK)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def blocked_attention(q_BTHK: Array, k_BSHK: Array, v_BSHK: Array, start_BT: Array, window: int | None = None) -> Array:
    """Exact attention that never holds more scores than fit in a core's cache, forward or backward.

    A few rows at a time, a block of queries against the keys that any of them may see; the backward pass recomputes
    the probabilities from the saved log-normaliser. Queries lie last in the scores: the sums over keys then run along
    whole vectors, and the products with narrow heads are a third faster.

    References:
        Tri Dao et al., FlashAttention, 2022, https://arxiv.org/abs/2205.14135
    """
    return _blocked_forward(q_BTHK, k_BSHK, v_BSHK, start_BT, window)[0]


def _blocked_forward(q_BTHK, k_BSHK, v_BSHK, start_BT, window):
    T, S, K = q_BTHK.shape[1], k_BSHK.shape[1], q_BTHK.shape[3]
    f32 = _at_least_float32(q_BTHK.dtype)

    def some_heads(q_NTK, k_NSK, v_NSK, start_NT):
        q_NKT = _turned(q_NTK)
        o_blocks, log_z_blocks = [], []
        for queries, keys in _blocks(T, S, window):
            s = _scores(k_NSK[:, keys], q_NKT[..., queries], f32)
            s = jnp.where(_turned(_visible(start_NT, queries, keys, S)), s, -jnp.inf)
            top = s.max(axis=1, keepdims=True)
            p = jnp.exp(s - top)
            z = p.sum(axis=1, keepdims=True)
            o_blocks.append(_mix(p.astype(v_NSK.dtype), v_NSK[:, keys], f32) / z)
            log_z_blocks.append(top + jnp.log(z))
        o_NKT = jnp.concatenate(o_blocks, axis=2).astype(q_NTK.dtype)
        return _turned(o_NKT), _turned(jnp.concatenate(log_z_blocks, axis=2))

    inputs = (q_BTHK * K**-0.5, *contained(k_BSHK, v_BSHK))
    o_BTHK, log_z_BTH1 = _map_heads(some_heads, inputs, start_BT)
    return o_BTHK, (*inputs, start_BT, o_BTHK, log_z_BTH1)


def _blocked_backward(window, residuals, do_BTHK):
    q_BTHK, k_BSHK, v_BSHK, start_BT, o_BTHK, log_z_BTH1 = residuals
    T, S, K = q_BTHK.shape[1], k_BSHK.shape[1], q_BTHK.shape[3]
    dtype, f32 = q_BTHK.dtype, _at_least_float32(q_BTHK.dtype)

    def some_heads(q_NTK, k_NSK, v_NSK, do_NTK, mean_dp_NT1, log_z_NT1, start_NT):
        q_NKT, do_NKT, mean_dp_N1T, log_z_N1T = map(_turned, (q_NTK, do_NTK, mean_dp_NT1, log_z_NT1))
        dq_blocks, dk_NSK, dv_NSK = [], jnp.zeros(k_NSK.shape, f32), jnp.zeros(v_NSK.shape, f32)
        for queries, keys in _blocks(T, S, window):
            q, do = q_NKT[..., queries], do_NKT[..., queries]
            visible = _turned(_visible(start_NT, queries, keys, S))
            p = jnp.where(visible, jnp.exp(_scores(k_NSK[:, keys], q, f32) - log_z_N1T[..., queries]), 0)
            dp = _scores(v_NSK[:, keys], do, f32)
            ds = (p * (dp - mean_dp_N1T[..., queries])).astype(dtype)
            dq_blocks.append(_mix(ds, k_NSK[:, keys], f32))
            dk_NSK = dk_NSK.at[:, keys].add(_spread(ds, q, f32))
            dv_NSK = dv_NSK.at[:, keys].add(_spread(p.astype(dtype), do, f32))
        dq_NKT = jnp.concatenate(dq_blocks, axis=2) * K**-0.5
        return tuple(x.astype(dtype) for x in (_turned(dq_NKT), dk_NSK, dv_NSK))

    mean_dp_BTH1 = (o_BTHK.astype(f32) * do_BTHK.astype(f32)).sum(axis=-1, keepdims=True)
    # Only finite numbers go in, so that a probability of zero hides them; log_z alone tells what is not finite.
    log_z_BTH1 = jnp.where(jnp.isfinite(mean_dp_BTH1), log_z_BTH1, jnp.nan)
    q_BTHK, k_BSHK, do_BTHK, mean_dp_BTH1 = map(_finite_part, (q_BTHK, k_BSHK, do_BTHK, mean_dp_BTH1))
    inputs = (q_BTHK, k_BSHK, v_BSHK, do_BTHK, mean_dp_BTH1, log_z_BTH1)
    return (*_map_heads(some_heads, inputs, start_BT), None)


blocked_attention.defvjp(_blocked_forward, _blocked_backward)


def _fused_attention(q_BTHK: Array, k_BSHK: Array, v_BSHK: Array, start_BT: Array) -> Array:
    """JAX's own attention, through cuDNN in half precision, which wants even lengths: a last row and key are added.

    Both mask by adding to the scores, so nothing that is not finite may go in; what it spoils is marked afterwards.
    """
    T, S, K = q_BTHK.shape[1], k_BSHK.shape[1], q_BTHK.shape[3]
    half = q_BTHK.dtype in (jnp.bfloat16, jnp.float16)
    cudnn = jax.default_backend() == "gpu" and half and K % 8 == 0 and K <= 128
    visible_BTS = _visible(start_BT, slice(0, T), slice(0, S), S)
    visible_BTS = jnp.pad(visible_BTS, ((0, 0), (0, T % 2), (0, S % 2))).at[:, T:, 0].set(True)  # no row sees nothing
    o_BTHK = jax.nn.dot_product_attention(
        *(_even_length(_finite_part(x)) for x in (q_BTHK, k_BSHK, v_BSHK)),
        mask=visible_BTS[:, None],
        implementation="cudnn" if cudnn else "xla",
    )[:, :T]
    finite_BT = jnp.isfinite(q_BTHK).all(axis=(2, 3))
    finite_BS = (jnp.isfinite(k_BSHK) & jnp.isfinite(v_BSHK)).all(axis=(2, 3))
    last_bad_BS = lax.cummax(jnp.where(finite_BS, -1, jnp.arange(S, dtype=jnp.int32)[None]), axis=1)
    healthy_BT = finite_BT & (last_bad_BS[:, S - T :] < start_BT)
    return jnp.where(healthy_BT[..., None, None], o_BTHK, jnp.nan)


def _even_length(x_BTHK: Array) -> Array:
    return jnp.pad(x_BTHK, ((0, 0), (0, x_BTHK.shape[1] % 2), (0, 0), (0, 0)))


def _blocks(T: int, S: int, window: int | None) -> Iterator[tuple[slice, slice]]:
    """Blocks of queries, each with the keys that any query of the block may see."""
    for first in range(0, T, _BLOCK_QUERIES):
        end = min(first + _BLOCK_QUERIES, T)
        earliest = 0 if window is None else max(0, S - T + first - (window - 1))
        yield slice(first, end), slice(earliest, S - T + end)


def _visible(start_BT: Array, queries: slice, keys: slice, S: int) -> Array:
    """Bool [B, queries, keys]: not before the start of the query's sequence, not after the query's own key."""
    T = start_BT.shape[1]
    own_T = jnp.arange(queries.start, queries.stop, dtype=jnp.int32) + (S - T)
    key_S = jnp.arange(keys.start, keys.stop, dtype=jnp.int32)
    start_BT = start_BT[:, queries]
    # In unsigned numbers what lies before the start wraps around, so one comparison tells both ends.
    after_BTS = (key_S[None, None] - start_BT[..., None]).astype(jnp.uint32)
    return after_BTS <= (own_T[None] - start_BT).astype(jnp.uint32)[..., None]


def _scores(k_NSK: Array, q_NKT: Array, dtype: jnp.dtype) -> Array:
    return jnp.einsum("nsk,nkt->nst", k_NSK, q_NKT, preferred_element_type=dtype)


def _mix(p_NST: Array, v_NSK: Array, dtype: jnp.dtype) -> Array:
    return jnp.einsum("nst,nsk->nkt", p_NST, v_NSK, preferred_element_type=dtype)


def _spread(p_NST: Array, x_NKT: Array, dtype: jnp.dtype) -> Array:
    return jnp.einsum("nst,nkt->nsk", p_NST, x_NKT, preferred_element_type=dtype)


def _turned(x: Array) -> Array:
    """Swaps the last two axes."""
    return jnp.swapaxes(x, -1, -2)


def _at_least_float32(dtype: jnp.dtype) -> jnp.dtype:
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

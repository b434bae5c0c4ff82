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
    the probabilities from the saved log-normaliser.

    References:
        Tri Dao et al., FlashAttention, 2022, https://arxiv.org/abs/2205.14135
    """
    return _blocked_forward(q_BTHK, k_BSHK, v_BSHK, start_BT, window)[0]


def _blocked_forward(q_BTHK, k_BSHK, v_BSHK, start_BT, window):
    T, S, K = q_BTHK.shape[1], k_BSHK.shape[1], q_BTHK.shape[3]
    f32 = _at_least_float32(q_BTHK.dtype)

    def some_rows(inputs):
        q, k, v, start = (*map(_heads_first, inputs[:3]), inputs[3])
        k, v = contained(k, v)
        o_blocks, log_z_blocks = [], []
        for queries, keys in _blocks(T, S, window):
            s = _scores(q[:, :, queries], k[:, :, keys], f32) * K**-0.5
            s = jnp.where(_visible(start, queries, keys, S)[:, None], s, -jnp.inf)
            top = s.max(axis=-1, keepdims=True)
            p = jnp.exp(s - top)
            z = p.sum(axis=-1, keepdims=True)
            o = jnp.einsum("bhts,bhsk->bhtk", p.astype(v.dtype), v[:, :, keys], preferred_element_type=f32) / z
            o_blocks.append(o.astype(q.dtype))
            log_z_blocks.append(top + jnp.log(z))
        return _heads_first(jnp.concatenate(o_blocks, axis=2)), jnp.concatenate(log_z_blocks, axis=2)

    o_BTHK, log_z_BHT1 = _map_rows(some_rows, (q_BTHK, k_BSHK, v_BSHK, start_BT))
    return o_BTHK, (q_BTHK, k_BSHK, v_BSHK, start_BT, o_BTHK, log_z_BHT1)


def _blocked_backward(window, residuals, do_BTHK):
    q_BTHK, k_BSHK, v_BSHK, start_BT, o_BTHK, log_z_BHT1 = residuals
    T, S, K = q_BTHK.shape[1], k_BSHK.shape[1], q_BTHK.shape[3]
    dtype, f32 = q_BTHK.dtype, _at_least_float32(q_BTHK.dtype)

    def some_rows(inputs):
        q, k, v, o, do = map(_heads_first, inputs[:5])
        q, k, v = map(_finite_part, (q, k, v))  # what they spoil shows in log_z
        log_z, start = inputs[5:]
        mean_dp = (o.astype(f32) * do.astype(f32)).sum(axis=-1, keepdims=True)
        dq_blocks, dk, dv = [], jnp.zeros(k.shape, f32), jnp.zeros(v.shape, f32)
        for queries, keys in _blocks(T, S, window):
            q_block, do_block = q[:, :, queries], do[:, :, queries]
            visible = _visible(start, queries, keys, S)[:, None]
            s = _scores(q_block, k[:, :, keys], f32) * K**-0.5
            p = jnp.where(visible, jnp.exp(s - log_z[:, :, queries]), 0)
            dp = _scores(do_block, v[:, :, keys], f32)
            ds = jnp.where(visible, p * (dp - mean_dp[:, :, queries]) * K**-0.5, 0).astype(dtype)
            dq_blocks.append(jnp.einsum("bhts,bhsk->bhtk", ds, k[:, :, keys]))
            dk = dk.at[:, :, keys].add(jnp.einsum("bhts,bhtk->bhsk", ds, q_block, preferred_element_type=f32))
            dv = dv.at[:, :, keys].add(
                jnp.einsum("bhts,bhtk->bhsk", p.astype(dtype), do_block, preferred_element_type=f32)
            )
        dq = jnp.concatenate(dq_blocks, axis=2)
        return tuple(_heads_first(x.astype(dtype)) for x in (dq, dk, dv))

    rows = (q_BTHK, k_BSHK, v_BSHK, o_BTHK, do_BTHK, log_z_BHT1, start_BT)
    return (*_map_rows(some_rows, rows), None)


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
    return (key_S[None, None] >= start_BT[:, queries, None]) & (key_S[None, None] <= own_T[None, :, None])


def _scores(a_BHTK: Array, b_BHSK: Array, dtype: jnp.dtype) -> Array:
    return jnp.einsum("bhtk,bhsk->bhts", a_BHTK, b_BHSK, preferred_element_type=dtype)


def _heads_first(x: Array) -> Array:
    """[B, T, H, K] to [B, H, T, K], and back."""
    return jnp.swapaxes(x, 1, 2)


def _at_least_float32(dtype: jnp.dtype) -> jnp.dtype:
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def _finite_part(x: Array) -> Array:
    return jnp.where(jnp.isfinite(x), x, 0)


def _map_rows(f, arrays):
    """f over the leading axis of all arrays, a few rows at a time, so that one group's scores stay in cache."""
    rows, heads = arrays[0].shape[0], arrays[0].shape[2]
    group = max(n for n in range(1, max(1, _GROUP_HEADS // heads) + 1) if rows % n == 0)
    if group == rows:
        return f(arrays)
    grouped = jax.tree.map(lambda x: x.reshape(rows // group, group, *x.shape[1:]), arrays)
    return jax.tree.map(lambda x: x.reshape(rows, *x.shape[2:]), lax.map(f, grouped))

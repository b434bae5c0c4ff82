# ruff: noqa: N803, N806
"""Attention through `jax.nn.dot_product_attention`: `attention.py` on GPU.

It can be told that a mask is causal, or a sliding window, but not where sequences begin, which differs between rows; so
it is given masks. Long sequences go a block of queries at a time, and no mask is larger than a block times the keys.

Axes: B rows, T queries, S keys, H heads, G heads of keys and values, K head width, V width of the values.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from icrl_jax.models.layers import at_least_float32
from icrl_jax.models.plain_attention import Sink, finite_part, in_all_rows, visible

_MOST_QUERIES = 2048  # at once; above, in blocks
_BLOCK_QUERIES = 512


def fused_attention(
    q_BTHK: Array,
    k_BSGK: Array,
    v_BSGK: Array,
    start_BT: Array,
    window: int | None = None,
    sink: Sink | None = None,
) -> Array:
    """JAX's own attention, through cuDNN in half precision where it can; arguments are those of `attention`.

    `start` lies within the window and between 0 and the query's own key. Both implementations mask by adding to the
    scores, so nothing that is not finite may go in; what it spoils is marked afterwards.
    """
    T, S = q_BTHK.shape[1], k_BSGK.shape[1]
    finite_BT = jnp.isfinite(q_BTHK).all(axis=(2, 3))
    if sink is not None:
        finite_BT &= ~jnp.isnan(sink.score_BTH).any(axis=2)
    finite_BS = (jnp.isfinite(k_BSGK).all(axis=3) & jnp.isfinite(v_BSGK).all(axis=3)).all(axis=2)
    last_bad_BS = lax.cummax(jnp.where(finite_BS, -1, jnp.arange(S, dtype=jnp.int32)[None]), axis=1)
    healthy_BT = finite_BT & (last_bad_BS[:, S - T :] < start_BT)

    q, k, v = map(finite_part, (q_BTHK, k_BSGK, v_BSGK))
    if T > _MOST_QUERIES:
        o_BTHK = _in_blocks(q, k, v, start_BT, window, sink)
    else:
        o_BTHK = _attend(q, k, v, start_BT, S - T, sink)
    return jnp.where(healthy_BT[..., None, None], o_BTHK, jnp.nan)


def _in_blocks(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, start_BT: Array, window: int | None, sink: Sink | None):
    """A block of queries with the keys that its windows reach; the backward pass goes forward again, block by block."""
    T, S, dtype = q_BTHK.shape[1], k_BSGK.shape[1], q_BTHK.dtype
    reach = S if window is None else min(S, window - 1 + _BLOCK_QUERIES)
    keys = k_BSGK, v_BSGK
    wide = [x.astype(at_least_float32(dtype)) for x in keys]  # so that their gradients are summed in float32

    def block(inputs):
        first, q, start, score = inputs
        own = S - T + first  # the key of the first query
        earliest = jnp.clip(own + _BLOCK_QUERIES - reach, 0, S - reach)
        k, v = (lax.dynamic_slice_in_dim(x, earliest, reach, axis=1).astype(dtype) for x in wide)
        here = None if sink is None else Sink(score, sink.v_GK)
        return _attend(q, k, v, start - earliest, own - earliest, here)

    def split(x: Array) -> Array:
        whole = jnp.pad(x, ((0, 0), (0, -T % _BLOCK_QUERIES), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(whole.reshape(len(x), -1, _BLOCK_QUERIES, *x.shape[2:]), 1, 0)

    first = jnp.arange(0, T, _BLOCK_QUERIES, dtype=jnp.int32)
    score = None if sink is None else split(sink.score_BTH)
    o_BTHK = jnp.moveaxis(lax.map(jax.checkpoint(block), (first, split(q_BTHK), split(start_BT), score)), 0, 1)
    return o_BTHK.reshape(len(q_BTHK), -1, *o_BTHK.shape[3:])[:, :T]


def _attend(q: Array, k: Array, v: Array, start_BT: Array, own: Array | int, sink: Sink | None) -> Array:
    """Of queries whose first has its own key at `own`. cuDNN wants even lengths: a last row and key are added.

    A sink is a last key with two features of its own, whose products with the queries' add up to the score.
    """
    T, S, K, V = q.shape[1], k.shape[1], q.shape[3], v.shape[3]
    visible_BTS = visible(start_BT, own + jnp.arange(T, dtype=jnp.int32), jnp.arange(S, dtype=jnp.int32))
    if sink is not None:
        score_BTH = (
            finite_part(jnp.clip(sink.score_BTH, -1000, 1000))[..., None] * K**0.5
        )  # of -inf: nothing, as of -1000
        high = score_BTH.astype(q.dtype)
        low = (score_BTH - high.astype(score_BTH.dtype)).astype(q.dtype)  # what half precision loses of it
        q = jnp.concatenate([q, high, low, jnp.zeros((*q.shape[:3], 6), q.dtype)], axis=3)  # widths of 8 n stay so
        feature = jnp.zeros((1, 1, 1, q.shape[3]), k.dtype).at[..., K : K + 2].set(1)
        k = jnp.pad(k, ((0, 0), (0, 0), (0, 0), (0, 8)))
        k = jnp.concatenate([k, jnp.broadcast_to(feature, (*k.shape[:1], 1, *k.shape[2:]))], axis=1)
        v = jnp.concatenate([v, in_all_rows(sink.v_GK[None, None], v)], axis=1)
        visible_BTS = jnp.pad(visible_BTS, ((0, 0), (0, 0), (0, 1)), constant_values=True)
    v = jnp.pad(v, ((0, 0), (0, 0), (0, 0), (0, k.shape[3] - V)))
    half, S, width = q.dtype in (jnp.bfloat16, jnp.float16), *k.shape[1:4:2]
    cudnn = jax.default_backend() == "gpu" and half and width % 8 == 0 and width <= 128
    visible_BTS = jnp.pad(visible_BTS, ((0, 0), (0, T % 2), (0, S % 2))).at[:, T:, 0].set(True)  # no row sees nothing
    return jax.nn.dot_product_attention(
        *map(_even_length, (q, k, v)),
        mask=visible_BTS[:, None],
        scale=K**-0.5,
        implementation="cudnn" if cudnn else "xla",
    )[:, :T, :, :V]


def _even_length(x_BTHK: Array) -> Array:
    return jnp.pad(x_BTHK, ((0, 0), (0, x_BTHK.shape[1] % 2), (0, 0), (0, 0)))

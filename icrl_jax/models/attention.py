# ruff: noqa: N803, N806
"""Causal attention over contiguous runs of keys: one entry point, one implementation per platform.

The queries are the last T of the S inputs whose keys are given, so query t's own key is `S - T + t`. Every query sees
a contiguous run of keys: from `start[b, t]`, where its sequence began, and at most `window` back, up to its own.
Resets, empty cache slots and sliding windows are all said by that one number.

Axes: B rows, T queries, S keys, H heads, G heads of the keys and values (each serves H / G of the queries'), K head
width. The softmax is computed in float32 (or wider) always.
"""

import jax
import jax.numpy as jnp
from jax import Array

from icrl_jax.models.blocked_attention import blocked_attention
from icrl_jax.models.fused_attention import fused_attention
from icrl_jax.models.plain_attention import Sink, for_queries


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
        return fused_attention(q_BTHK, k_BSGK, v_BSGK, start_BT, window, sink)
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

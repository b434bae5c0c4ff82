# ruff: noqa: N803, N806
"""Causal attention over contiguous runs of keys: its definition, and what all its implementations share.

The queries are the last T of the S inputs whose keys are given, so query t's own key is `S - T + t`. Every query sees
a contiguous run of keys: from `start[b, t]`, where its sequence began, up to its own.

Axes: B rows, T queries, S keys, H heads, G heads of the keys and values (each serves H / G of the queries'), K head
width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from icrl_jax.models.layers import at_least_float32


class Sink(NamedTuple):
    """One more key and value, which all queries see, whatever their sequence (Sink-KV).

    References:
        Ahmad Elawady et al., ReLIC, 2024, https://arxiv.org/abs/2410.02751, section 3.2
    """

    score_BTH: Array  # the queries' scores with the sink's key, scaled as the others are
    v_GK: Array


def plain_attention(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, start_BT: Array, sink: Sink | None = None) -> Array:
    """The definition, with all T x S scores in memory: the reference in tests, and good for small cases."""
    T, S, H, K = q_BTHK.shape[1], k_BSGK.shape[1], *q_BTHK.shape[2:]
    f32 = at_least_float32(q_BTHK.dtype)
    k_BSHK, v_BSHK = (for_queries(x, H) for x in contained(k_BSGK, v_BSGK))
    s_BHTS = jnp.einsum("bthk,bshk->bhts", q_BTHK, k_BSHK, preferred_element_type=f32) * K**-0.5
    visible_BTS = visible(start_BT, *indices(T, S))
    s_BHTS = jnp.where(visible_BTS[:, None], s_BHTS, -jnp.inf)
    if sink is not None:
        s_BHTS = jnp.concatenate([jnp.moveaxis(sink.score_BTH, 1, 2)[..., None].astype(f32), s_BHTS], axis=-1)
        v_BSHK = jnp.concatenate([in_all_rows(for_queries(sink.v_GK[None, None], H), v_BSHK), v_BSHK], axis=1)
    p_BHTS = jax.nn.softmax(s_BHTS, axis=-1)
    o_BTHK = jnp.einsum("bhts,bshk->bthk", p_BHTS.astype(q_BTHK.dtype), v_BSHK, preferred_element_type=f32)
    return o_BTHK.astype(q_BTHK.dtype)


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
    return k + 0 * (k + spoils), finite_part(v)


def in_all_rows(sink_11GK: Array, x_BSGK: Array) -> Array:
    """One key or value for every row of some others."""
    return jnp.broadcast_to(sink_11GK, (x_BSGK.shape[0], 1, *sink_11GK.shape[2:])).astype(x_BSGK.dtype)


def indices(T: int, S: int) -> tuple[Array, Array]:
    """On the S axis: the queries' own keys [T], and all keys [S]."""
    return jnp.arange(S - T, S, dtype=jnp.int32), jnp.arange(S, dtype=jnp.int32)


def visible(start_BT: Array, own_T: Array, key_S: Array) -> Array:
    """Bool [B, T, S]: not before the start of the query's sequence, not after the query's own key."""
    # In unsigned numbers what lies before the start wraps around, so one comparison tells both ends.
    after_BTS = (key_S[None, None] - start_BT[..., None]).astype(jnp.uint32)
    return after_BTS <= (own_T[None] - start_BT).astype(jnp.uint32)[..., None]


def finite_part(x: Array) -> Array:
    return jnp.where(jnp.isfinite(x), x, 0)

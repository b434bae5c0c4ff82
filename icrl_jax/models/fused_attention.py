# ruff: noqa: N803, N806
"""Attention through `jax.nn.dot_product_attention`: `attention.py` on GPU.

Axes: B rows, T queries, S keys, H heads, G heads of keys and values, K head width.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from icrl_jax.models.plain_attention import Sink, finite_part, in_all_rows, indices, visible


def fused_attention(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, start_BT: Array, sink: Sink | None = None) -> Array:
    """JAX's own attention, through cuDNN in half precision, which wants even lengths: a last row and key are added.

    Both mask by adding to the scores, so nothing that is not finite may go in; what it spoils is marked afterwards.
    A sink is a last key with a feature of its own, whose product with the queries' is the score.
    """
    T, S, K, V = q_BTHK.shape[1], k_BSGK.shape[1], q_BTHK.shape[3], v_BSGK.shape[3]
    finite_BT = jnp.isfinite(q_BTHK).all(axis=(2, 3))
    finite_BS = (jnp.isfinite(k_BSGK).all(axis=3) & jnp.isfinite(v_BSGK).all(axis=3)).all(axis=2)
    last_bad_BS = lax.cummax(jnp.where(finite_BS, -1, jnp.arange(S, dtype=jnp.int32)[None]), axis=1)
    healthy_BT = finite_BT & (last_bad_BS[:, S - T :] < start_BT)

    q, k, v = map(finite_part, (q_BTHK, k_BSGK, v_BSGK))
    visible_BTS = visible(start_BT, *indices(T, S))
    if sink is not None:
        score = finite_part(sink.score_BTH[..., None] * K**0.5).astype(q.dtype)
        q = jnp.concatenate([q, jnp.pad(score, ((0, 0), (0, 0), (0, 0), (0, 7)))], axis=3)  # widths of 8 n stay so
        feature = jnp.zeros((1, 1, 1, q.shape[3]), k.dtype).at[..., K].set(1)
        k = jnp.pad(k, ((0, 0), (0, 0), (0, 0), (0, 8)))
        k = jnp.concatenate([k, jnp.broadcast_to(feature, (*k.shape[:1], 1, *k.shape[2:]))], axis=1)
        v = jnp.concatenate([v, in_all_rows(sink.v_GK[None, None], v)], axis=1)
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


def _even_length(x_BTHK: Array) -> Array:
    return jnp.pad(x_BTHK, ((0, 0), (0, x_BTHK.shape[1] % 2), (0, 0), (0, 0)))

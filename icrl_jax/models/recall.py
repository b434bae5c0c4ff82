# ruff: noqa: N803, N806
"""Attention of a few new inputs to caches, as acting needs it.

Axes: B rows, N candidates, H heads, G heads of keys and values, C cache length, K head width, R rows of a cache.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from icrl_jax.models.layers import at_least_float32
from icrl_jax.models.plain_attention import Sink, for_queries


def recall(
    q_BNHK: Array,
    k_BNGK: Array,
    v_BNGK: Array,
    caches: list[tuple[Array, Array]],
    visible: tuple[Array, ...],
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

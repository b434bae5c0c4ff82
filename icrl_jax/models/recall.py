# ruff: noqa: N803, N806
"""Attention of a few new inputs to caches, as acting needs it.

Axes: B rows, N candidates, H heads, G heads of keys and values, C cache length, J = H / G, K head width, R rows of
a cache, M queries of one.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from icrl_jax.models.layers import at_least_float32
from icrl_jax.models.plain_attention import Sink, finite_part, for_queries


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
    added to the scores, of the own keys [B, N, H, 1] and of the caches [B, N, H, C]. All sums are taken in float32 (or
    wider). What is visible is [B, C], or [B, N, C] where queries differ in it. A NaN in a slot that is not visible
    reaches neither what is found nor the gradient.
    """
    (B, N, H, K), G, f32 = q_BNHK.shape, k_BNGK.shape[2], at_least_float32(q_BNHK.dtype)
    J = H // G
    own_BNGJ = jnp.einsum("bngk,bngjk->bngj", k_BNGK, q_BNHK.reshape(B, N, G, J, K), preferred_element_type=f32)
    scores = [own_BNGJ.reshape(B, N, H, 1)]
    for k_RGCK, _ in caches:
        R, _, C, _ = k_RGCK.shape
        s_RGCMJ = _products(k_RGCK, q_BNHK.reshape(R, -1, G, J, K))
        scores.append(s_RGCMJ.transpose(0, 3, 1, 4, 2).reshape(B, N, H, C))
    scores = [s * K**-0.5 for s in scores]
    if distances is not None:
        scores = [s + distance for s, distance in zip(scores, distances, strict=True)]
    for i, seen in enumerate(visible, start=1):
        scores[i] = jnp.where(seen.reshape(B, -1, 1, seen.shape[-1]), scores[i], -jnp.inf)
    if sink is not None:
        scores.append(sink.score_BTH[..., None])
    p = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1)
    o_BNHK, first = p[..., :1] * for_queries(v_BNGK, H).astype(f32), 1
    for _, v_RGCK in caches:
        R, _, C, _ = v_RGCK.shape
        p_RGNJC = jnp.swapaxes(p[..., first : first + C].astype(v_RGCK.dtype).reshape(R, -1, G, J, C), 1, 2)
        p_RGMC = p_RGNJC.reshape(R, G, -1, C)
        o_RGMK = lax.dot_general(p_RGMC, v_RGCK, (((3,), (2,)), ((0, 1), (0, 1))), preferred_element_type=f32)
        o_RGNJK = o_RGMK.reshape(R, G, -1, J, K)
        o_BNHK = o_BNHK + jnp.swapaxes(o_RGNJK, 1, 2).reshape(B, N, H, K)
        first += C
    if sink is not None:
        o_BNHK = o_BNHK + p[..., first:] * for_queries(sink.v_GK[None, None], H).astype(f32)
    return o_BNHK.astype(q_BNHK.dtype)


@jax.custom_vjp
def _products(k_RGCK: Array, q_RMGJK: Array) -> Array:
    """Of the keys of a cache with queries, [R, G, C, M, J]."""
    # The cache comes first in the product: as the second operand, XLA would transpose it at every step.
    f32 = at_least_float32(k_RGCK.dtype)
    return jnp.einsum("rgck,rmgjk->rgcmj", k_RGCK, q_RMGJK, preferred_element_type=f32)


def _products_backward(residuals, d_RGCMJ):
    # What hides a score does not hide a key of NaN from the product with that score's gradient of zero.
    k_RGCK, q_RMGJK = map(finite_part, residuals)
    d_RGCMJ, f32 = d_RGCMJ.astype(k_RGCK.dtype), d_RGCMJ.dtype
    dk_RGCK = jnp.einsum("rgcmj,rmgjk->rgck", d_RGCMJ, q_RMGJK, preferred_element_type=f32)
    dq_RMGJK = jnp.einsum("rgcmj,rgck->rmgjk", d_RGCMJ, k_RGCK, preferred_element_type=f32)
    return dk_RGCK.astype(k_RGCK.dtype), dq_RMGJK.astype(q_RMGJK.dtype)


_products.defvjp(lambda k, q: (_products(k, q), (k, q)), _products_backward)

# ruff: noqa: N802, N803, N806
"""Acting's attention: as exact as its inputs, in any precision, and without a copy of the cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icrl_jax.models.plain_attention import Sink
from icrl_jax.models.recall import recall

R, n, N, G, J, K = 2, 3, 5, 2, 2, 7  # rows of the past, branches of each, candidates, heads, queries' heads of each
B, H = R * n, G * J


def make_args(getkey, C, depth, dtype=jnp.float32):
    """A past that branches share, and their own cache; scores up to 20 or so, and values far from zero."""
    normal = lambda *shape: jax.random.normal(getkey(), shape).astype(dtype)
    caches = [(normal(R, G, C, K), 3 + normal(R, G, C, K)), (normal(B, G, depth, K), 3 + normal(B, G, depth, K))]
    visible = tuple(jax.random.bernoulli(getkey(), 0.7, (B, size)) for size in (C, depth))
    sink = Sink(jax.random.normal(getkey(), (B, N, H)), normal(G, K))
    return 3 * normal(B, N, H, K), normal(B, N, G, K), 3 + normal(B, N, G, K), caches, visible, None, sink


def in_float64(q, k, v, caches, visible, distances, sink):
    """The definition in NumPy: every row with its own copy of the past, every head of queries with one of its keys."""
    wide = lambda x: np.asarray(x.astype(jnp.float32), np.float64)
    of_rows = lambda x: wide(x).repeat(B // len(x), axis=0).repeat(J, axis=1)  # [B, H, C, K]
    s = [np.einsum("bnhk,bnhk->bnh", wide(q), wide(k).repeat(J, axis=2))[..., None] * K**-0.5]
    for (keys, _), seen in zip(caches, visible, strict=True):
        score = np.einsum("bnhk,bhck->bnhc", wide(q), of_rows(keys)) * K**-0.5
        s.append(np.where(np.asarray(seen)[:, None, None], score, -np.inf))
    s = np.concatenate([*s, wide(sink.score_BTH)[..., None]], axis=-1)
    p = np.exp(s - s.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    values = np.concatenate([of_rows(values) for _, values in caches], axis=2)
    o = p[..., :1] * wide(v).repeat(J, axis=2) + np.einsum("bnhc,bhck->bnhk", p[..., 1:-1], values)
    return o + p[..., -1:] * wide(sink.v_GK).repeat(J, axis=0)


def test_recall_is_exact(getkey):
    args = make_args(getkey, C=31, depth=11)
    np.testing.assert_allclose(jax.jit(recall)(*args), in_float64(*args), atol=1e-5)


@pytest.mark.parametrize("C", [11, 1021])
def test_recall_in_half_precision_adds_little_to_rounding_what_is_found(getkey, C):
    """All sums are in float32; what it adds is that probabilities are rounded too."""
    args = make_args(getkey, C, depth=11, dtype=jnp.bfloat16)
    o, exact = jax.jit(recall)(*args), in_float64(*args)
    error = lambda o_BNHK: np.abs(np.asarray(o_BNHK.astype(jnp.float32)) - exact).mean()
    assert o.dtype == jnp.bfloat16
    assert error(o) < 1.25 * error(jnp.asarray(exact, jnp.bfloat16))


def test_all_products_are_summed_in_float32(getkey):
    """Forward and backward, which XLA on CPU does anyway, but for what it rounds in between."""
    *qkv, caches, visible, distances, sink = make_args(getkey, C=13, depth=11, dtype=jnp.bfloat16)
    loss = lambda qkv, caches: recall(*qkv, caches, visible, distances, sink).astype(jnp.float32).sum()
    program = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(qkv, caches))
    assert program.count("dot_general[") == program.count("preferred_element_type=float32") > 10


def test_nan_in_an_invisible_slot_reaches_no_gradient(getkey):
    """Keys alone: no value in a cache is other than finite (`contained`)."""
    *qkv, caches, visible, distances, sink = make_args(getkey, C=131, depth=11)

    def loss(qkv, caches):
        return jnp.sin(recall(*qkv, caches, visible, distances, sink)).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    unseen = [~visible[0].reshape(R, n, -1).any(axis=1), ~visible[1]]
    assert all(slots.any() for slots in unseen)
    spoiled = [(jnp.where(s[:, None, :, None], jnp.nan, k), v) for s, (k, v) in zip(unseen, caches, strict=True)]
    jax.tree.map(np.testing.assert_array_equal, gradient(qkv, spoiled), gradient(qkv, caches))


def test_recall_holds_no_copy_of_the_cache():
    """Of two rows that branch thrice, with long memories of wide heads."""
    C, width = 4099, 64
    past, short = jnp.zeros((R, G, C, width)), jnp.zeros((B, G, 1, width))
    q, k = jnp.zeros((B, 1, H, width)), jnp.zeros((B, 1, G, width))
    visible = jnp.ones((B, C), bool), jnp.ones((B, 1), bool)
    f = jax.jit(lambda past: recall(q, k, k, [(past, past), (short, short)], visible, None, None))
    memory = f.lower(past).compile().memory_analysis()
    scores = 4 * B * H * C
    assert 6 * scores < past.nbytes
    assert memory.temp_size_in_bytes < 5 * scores

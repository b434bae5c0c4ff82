# ruff: noqa: N806
"""JAX's attention, as it is used on GPU, equals the definition; in XLA's form, which any device can run."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icrl_jax.models import fused_attention as module
from icrl_jax.models.fused_attention import fused_attention
from icrl_jax.models.plain_attention import Sink, plain_attention

B, H, K = 3, 2, 5


@pytest.fixture
def half_precision():
    """JAX's own function promotes types."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize("form", ["whole", "blocks"])
@pytest.mark.parametrize(
    ("T", "S", "heads", "width", "window", "with_sink"),
    [
        (7, 7, H, K, None, True),
        (8, 8, 1, K, 3, False),
        (7, 12, H, 7, 4, False),
        (4, 11, 1, 7, None, True),
        (11, 23, 1, K, 9, True),
    ],
)
def test_fused_equals_plain_for_odd_and_even_lengths(getkey, monkeypatch, form, T, S, heads, width, window, with_sink):
    """Also with fewer heads of keys than of queries, keys wider than values, a window, and a sink, which some of the
    queries' heads have a score of -inf with."""
    if form == "blocks":
        monkeypatch.setattr(module, "_MOST_QUERIES", 0)
        monkeypatch.setattr(module, "_BLOCK_QUERIES", 3)
    shapes = (B, T, H, width), (B, S, heads, width), (B, S, heads, K), (B, T, H, K), (B, T, H), (heads, K)
    q, k, v, weight, score, v_sink = (jax.random.normal(getkey(), shape) for shape in shapes)
    score = score.at[:, ::2, 0].set(-jnp.inf)
    own = jnp.arange(S - T, S)[None]
    earliest = 0 if window is None else jnp.maximum(own - (window - 1), 0)
    start = jax.random.randint(getkey(), (B, T), earliest, own + 1)
    args = (q, k, v, Sink(score, v_sink) if with_sink else None)

    def loss(attend, args):
        o = attend(*args[:3], start, sink=args[3])
        return (o * weight).sum(), o

    both = jax.jit(lambda args: [jax.grad(partial(loss, f), has_aux=True)(args) for f in functions])
    functions = partial(fused_attention, window=window), plain_attention
    (fused, o), (plain, o_plain) = jax.device_get(both(args))
    np.testing.assert_allclose(o, o_plain, rtol=1e-5, atol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), fused, plain)


@pytest.mark.parametrize("which", ["key", "query", "score"])
def test_nan_reaches_only_the_queries_that_see_it(getkey, which):
    T = 7
    q, k, v = (jax.random.normal(getkey(), (B, T, H, K)) for _ in range(3))
    start = jnp.broadcast_to(jnp.where(jnp.arange(T) >= 4, 4, 0)[None], (B, T)).astype(jnp.int32)
    score, v_sink = jnp.zeros((B, T, H)), jnp.ones((H, K))
    clean = fused_attention(q, k, v, start, sink=Sink(score, v_sink))
    q, k, score = (
        x.at[:, 2].set(jnp.nan) if n == which else x for n, x in (("query", q), ("key", k), ("score", score))
    )
    found = fused_attention(q, k, v, start, sink=Sink(score, v_sink))
    bad = np.isin(np.arange(T), (2, 3) if which == "key" else 2)
    assert np.isnan(found[:, bad]).all()
    np.testing.assert_allclose(found[:, ~bad], clean[:, ~bad], atol=1e-6)


def test_score_of_a_sink_keeps_more_than_half_precision(half_precision):
    """53.8 is 53.75 in bfloat16; here the sink has exactly half, beside one key of the same score."""
    q, k = jnp.full((1, 1, 1, 8), 2.59375, jnp.bfloat16), jnp.full((1, 1, 1, 8), 2.59375, jnp.bfloat16)
    score = 2.59375**2 * 8 * 8**-0.5
    sink = Sink(jnp.full((1, 1, 1), score), jnp.zeros((1, 8)))
    o = fused_attention(q, k, jnp.ones_like(k), jnp.zeros((1, 1), jnp.int32), sink=sink)
    np.testing.assert_allclose(o.astype(jnp.float32), 0.5, atol=1e-3)


def test_no_mask_is_larger_than_a_block_of_queries_times_the_keys(half_precision):
    """Forward and backward of twice as many inputs as are done at once; with a window, of fewer keys still."""
    T = 2 * module._MOST_QUERIES
    x = jnp.zeros((1, T, 1, 8), jnp.bfloat16)

    def memory(window):
        loss = lambda q, k, v: fused_attention(q, k, v, jnp.zeros((1, T), jnp.int32), window).astype(jnp.float32).sum()
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    scores_of_a_block = 4 * module._BLOCK_QUERIES * T
    assert memory(None) < 6 * scores_of_a_block < 4 * T * T
    assert memory(module._BLOCK_QUERIES) < 3 * scores_of_a_block

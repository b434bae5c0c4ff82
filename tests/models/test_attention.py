# ruff: noqa: N802, N803, N806
"""Attention: the cache-blocked implementation equals its definition, whatever the lengths, segments and window."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icrl_jax.models.attention import attention, blocked_attention, plain_attention

B, H, K = 3, 2, 5


def make_inputs(T, S, seed=0, resets=True):
    keys = jax.random.split(jax.random.key(seed), 5)
    q, w = (jax.random.normal(key, (B, T, H, K)) for key in keys[:2])
    k, v = (jax.random.normal(key, (B, S, H, K)) for key in keys[2:4])
    reset = jax.random.bernoulli(keys[4], 0.05 if resets else 0.0, (B, T))
    start = jax.lax.cummax(jnp.where(reset, jnp.arange(S - T, S, dtype=jnp.int32)[None], 0), axis=1)
    return q, k, v, start, w


def windowed(start, S, window):
    own = jnp.arange(S - start.shape[1], S, dtype=jnp.int32)[None]
    return start if window is None else jnp.maximum(start, own - (window - 1))


@pytest.mark.parametrize("T, S, window", [(1, 1, None), (11, 11, None), (67, 67, 13), (131, 131, None), (71, 138, 67)])
def test_blocked_equals_plain_in_values_and_gradients(T, S, window):
    """Lengths on both sides of a block and dividing none, caches longer than the queries, and resets."""
    q, k, v, start, w = make_inputs(T, S)

    def loss(f):
        return jax.jit(jax.value_and_grad(lambda qkv: (f(*qkv) * w).sum()))((q, k, v))

    blocked = loss(lambda q, k, v: attention(q, k, v, start, window))
    plain = loss(lambda q, k, v: plain_attention(q, k, v, windowed(start, S, window)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), blocked[1], plain[1])
    np.testing.assert_allclose(blocked[0], plain[0], rtol=1e-4, atol=1e-4)


def test_blocked_equals_plain_under_vmap_and_in_half_precision():
    q, k, v, start, _ = make_inputs(67, 67)
    over_heads = jax.vmap(lambda q, k, v: blocked_attention(q, k, v, start), in_axes=-2, out_axes=-2)
    o = over_heads(q[..., None, :], k[..., None, :], v[..., None, :])
    np.testing.assert_allclose(o[..., 0, :], plain_attention(q, k, v, start), atol=2e-6)
    half = blocked_attention(*(x.astype(jnp.bfloat16) for x in (q, k, v)), start)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), o[..., 0, :], atol=0.05)


def test_gradients_match_finite_differences_in_float64():
    with jax.enable_x64(True):
        q, k, v, start, w = make_inputs(7, 11)
        qkv = tuple(x.astype(jnp.float64) for x in (q, k, v))
        f = jax.jit(lambda qkv: (blocked_attention(*qkv, start) * w.astype(jnp.float64)).sum())
        direction = jax.tree.map(lambda x: jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), qkv)
        slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), jax.grad(f)(qkv), direction)))
        ahead = f(jax.tree.map(lambda x, d: x + 1e-5 * d, qkv, direction))
        behind = f(jax.tree.map(lambda x, d: x - 1e-5 * d, qkv, direction))
        np.testing.assert_allclose((ahead - behind) / 2e-5, slope, rtol=1e-7)


def test_future_has_zero_gradient():
    """The jacobian says exactly which keys reach which queries: own segment, not later, not before the window."""
    T, window = 11, 4
    q, k, v, _, _ = make_inputs(T, T)
    reset_at = 6
    start = jnp.broadcast_to(jnp.where(jnp.arange(T) >= reset_at, reset_at, 0).astype(jnp.int32)[None], (B, T))
    reach = jax.jit(jax.jacobian(lambda v: attention(q, k, v, start, window).sum(axis=(0, 2, 3))))(v).sum(
        axis=(1, 3, 4)
    )
    query, key = np.indices((T, T))
    expected = (key <= query) & (key > query - window) & ((key >= reset_at) == (query >= reset_at))
    np.testing.assert_array_equal(np.asarray(reach) != 0, expected)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_nan_reaches_only_the_queries_that_see_it(which, bad):
    """Values and gradients of the second segment, and of what came before, stay as they were."""
    T, reset_at, bad_at = 71, 50, 31
    q, k, v, _, w = make_inputs(T, T)
    start = jnp.broadcast_to(jnp.where(jnp.arange(T) >= reset_at, reset_at, 0).astype(jnp.int32)[None], (B, T))
    safe = jnp.ones(T, bool).at[bad_at if which == 0 else slice(bad_at, reset_at)].set(False)
    if which == 0:
        safe = safe.at[bad_at].set(False)
    qkv, spoiled = [q, k, v], [q, k, v]
    spoiled[which] = spoiled[which].at[:, bad_at].set(bad)

    outputs = jax.jit(lambda qkv: attention(*qkv, start))

    def loss(qkv):
        return (outputs(qkv)[:, reset_at:] * w[:, reset_at:]).sum()

    gradient = jax.jit(jax.grad(loss))
    np.testing.assert_allclose(outputs(spoiled)[:, safe], outputs(qkv)[:, safe], atol=1e-6)
    assert not jnp.isfinite(outputs(spoiled)[:, ~safe]).any(axis=(2, 3)).any()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[:, reset_at:], b[:, reset_at:], atol=1e-5),
        gradient(spoiled),
        gradient(qkv),
    )


def test_every_query_sees_itself():
    q, k, v, _, _ = make_inputs(7, 7)
    alone = attention(q, k, v, jnp.full((B, 7), 99, jnp.int32))
    np.testing.assert_allclose(alone, v, atol=1e-6)

# ruff: noqa: N802, N803, N806
"""Attention: the cache-blocked implementation equals its definition, whatever the lengths, segments and window."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icrl_jax.models import blocked_attention as module
from icrl_jax.models.attention import attention
from icrl_jax.models.blocked_attention import blocked_attention
from icrl_jax.models.plain_attention import Sink, plain_attention

B, H, K = 3, 2, 5


@pytest.fixture(params=["blocks", "tiles"], scope="module")
def form(request):
    """Short sequences go the way of the short, or that of the long."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "tiles":
            patch.setattr(module, "_MOST_BLOCKS", 0)
            patch.setattr(module, "_TILE_KEYS", 29)
        jax.clear_caches()  # what `blocked_attention` was traced to is kept
        yield
    jax.clear_caches()


def make_inputs(T, S, seed=0, resets=True, heads=H, width=K):
    keys = jax.random.split(jax.random.key(seed), 5)
    q = jax.random.normal(keys[0], (B, T, H, width))
    w = jax.random.normal(keys[1], (B, T, H, K))
    k, v = (jax.random.normal(key, (B, S, heads, n)) for key, n in zip(keys[2:4], (width, K), strict=True))
    reset = jax.random.bernoulli(keys[4], 0.05 if resets else 0.0, (B, T))
    start = jax.lax.cummax(jnp.where(reset, jnp.arange(S - T, S, dtype=jnp.int32)[None], 0), axis=1)
    return q, k, v, start, w


def make_sink(q, heads=H):
    keys = jax.random.split(jax.random.key(7))
    return Sink(jax.random.normal(keys[0], q.shape[:3]), jax.random.normal(keys[1], (heads, K)))


def windowed(start, S, window):
    own = jnp.arange(S - start.shape[1], S, dtype=jnp.int32)[None]
    return start if window is None else jnp.maximum(start, own - (window - 1))


@pytest.mark.parametrize(
    "T, S, window, more",
    [
        (1, 1, None, {}),
        (11, 11, None, {"sink": True}),
        (67, 67, 13, {"width": 7}),
        (131, 131, None, {"heads": 1}),
        (71, 138, 67, {"heads": 1, "width": 7, "sink": True}),
    ],
)
def test_blocked_equals_plain_in_values_and_gradients(form, T, S, window, more):
    """Lengths on both sides of a block and dividing none, caches longer than the queries, and resets."""
    heads, width = more.get("heads", H), more.get("width", K)
    q, k, v, start, w = make_inputs(T, S, heads=heads, width=width)
    sink = make_sink(q, heads) if "sink" in more else None

    def loss(f):
        return jax.jit(jax.value_and_grad(lambda args: (f(*args) * w).sum()))((q, k, v, sink))

    blocked = loss(lambda q, k, v, sink: attention(q, k, v, start, window, sink))
    plain = loss(lambda q, k, v, sink: plain_attention(q, k, v, windowed(start, S, window), sink))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), blocked[1], plain[1])
    np.testing.assert_allclose(blocked[0], plain[0], rtol=1e-4, atol=1e-4)


def test_sink_identities():
    """ReLIC's: a value of zero scales plain attention by Z / (Z + exp(score)), a score of zero makes that softmax-off-
    by-one, and one of -inf is no sink."""
    q, k, v, start, _ = make_inputs(7, 11)
    sink, nothing = make_sink(q), jnp.zeros((H, K))
    plain = attention(q, k, v, start)
    exp_s = jnp.exp(jnp.einsum("bthk,bshk->bths", q, k) * K**-0.5)
    key, own = jnp.arange(11)[None, None], jnp.arange(4, 11)[None, :, None]
    z = jnp.where(((key >= start[..., None]) & (key <= own))[:, :, None], exp_s, 0).sum(axis=-1)

    scaled = attention(q, k, v, start, sink=Sink(sink.score_BTH, nothing))
    np.testing.assert_allclose(scaled, plain * (z / (z + jnp.exp(sink.score_BTH)))[..., None], atol=1e-6)
    off_by_one = attention(q, k, v, start, sink=Sink(jnp.zeros_like(sink.score_BTH), nothing))
    np.testing.assert_allclose(off_by_one, plain * (z / (z + 1))[..., None], atol=1e-6)
    none = attention(q, k, v, start, sink=Sink(jnp.full_like(sink.score_BTH, -jnp.inf), sink.v_GK))
    np.testing.assert_array_equal(none, plain)


def test_blocked_equals_plain_under_vmap_and_in_half_precision(form):
    q, k, v, start, _ = make_inputs(67, 67)
    over_heads = jax.vmap(lambda q, k, v: blocked_attention(q, k, v, start)[0], in_axes=-2, out_axes=-2)
    o = over_heads(q[..., None, :], k[..., None, :], v[..., None, :])
    np.testing.assert_allclose(o[..., 0, :], plain_attention(q, k, v, start), atol=2e-6)
    half, _ = blocked_attention(*(x.astype(jnp.bfloat16) for x in (q, k, v)), start)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), o[..., 0, :], atol=0.05)


def test_gradients_match_finite_differences_in_float64(form):
    """One head of keys for two of queries, keys wider than values, and a sink, whose gradient is that of log_z."""
    with jax.enable_x64(True):
        q, k, v, start, w = make_inputs(7, 11, heads=1, width=7)
        args, w = jax.tree.map(lambda x: x.astype(jnp.float64), ((q, k, v, make_sink(q, 1)), w))
        f = jax.jit(lambda args: (attention(*args[:3], start, sink=args[3]) * w).sum())
        direction = jax.tree.map(lambda x: jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), args)
        slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), jax.grad(f)(args), direction)))
        ahead = f(jax.tree.map(lambda x, d: x + 1e-5 * d, args, direction))
        behind = f(jax.tree.map(lambda x, d: x - 1e-5 * d, args, direction))
        np.testing.assert_allclose((ahead - behind) / 2e-5, slope, rtol=1e-7)


def test_future_has_zero_gradient(form):
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
def test_nan_reaches_only_the_queries_that_see_it(form, which, bad):
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


def test_few_queries_on_a_long_cache_hold_few_scores():
    """So many queries that the scores of one block of them would be far more than all keys and values."""
    T, S, heads, width = 64, 16_384, 8, 4
    q, k = jnp.zeros((1, T, heads, width)), jnp.zeros((1, S, heads, width))
    f = lambda q, k, v: attention(q, k, v, jnp.zeros((1, T), jnp.int32)).sum()
    scores = 4 * heads * T * S
    for g, share in (f, 4), (jax.grad(f, argnums=(0, 1, 2)), 2):
        memory = jax.jit(g).lower(q, k, k).compile().memory_analysis()
        assert memory.temp_size_in_bytes < scores / share


def test_all_products_are_summed_in_float32():
    """Of the definition and of the blocks, forward and backward, where inputs are half as precise."""
    q, k, v, start, _ = make_inputs(7, 11)
    half = tuple(x.astype(jnp.bfloat16) for x in (q, k, v))
    blocks = lambda *qkv: blocked_attention(*qkv, start)[0].astype(jnp.float32).sum()
    plain = str(jax.make_jaxpr(plain_attention)(*half, start))
    blocked = str(jax.make_jaxpr(jax.grad(blocks, argnums=(0, 1, 2)))(*half))
    for program, products in (plain, 2), (blocked, 7):
        assert program.count("dot_general[") == program.count("preferred_element_type=float32") == products


def test_every_query_sees_itself():
    q, k, v, _, _ = make_inputs(7, 7)
    alone = attention(q, k, v, jnp.full((B, 7), 99, jnp.int32))
    np.testing.assert_allclose(alone, v, atol=1e-6)

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icrl_jax.models.fused_attention import fused_attention
from icrl_jax.models.plain_attention import Sink, plain_attention

B, H, K = 3, 2, 5


@pytest.mark.parametrize(
    ("T", "S", "heads", "width", "with_sink"),
    [(7, 7, H, K, True), (8, 8, 1, K, False), (7, 12, H, 7, False), (4, 11, 1, 7, True)],
)
def test_fused_equals_plain_for_odd_and_even_lengths(getkey, T, S, heads, width, with_sink):
    """Also with fewer heads of keys than of queries, keys wider than values, and a sink."""
    shapes = (B, T, H, width), (B, S, heads, width), (B, S, heads, K), (B, T, H, K), (B, T, H), (heads, K)
    q, k, v, weight, score, v_sink = (jax.random.normal(getkey(), shape) for shape in shapes)
    own = jnp.arange(S - T, S)[None]
    start = jax.random.randint(getkey(), (B, T), 0, own + 1)
    args = (q, k, v, Sink(score, v_sink) if with_sink else None)

    def loss(attend, args):
        o = attend(*args[:3], start, args[3])
        return (o * weight).sum(), o

    both = jax.jit(lambda args: [jax.grad(partial(loss, f), has_aux=True)(args) for f in functions])
    functions = fused_attention, plain_attention
    (fused, o), (plain, o_plain) = jax.device_get(both(args))
    np.testing.assert_allclose(o, o_plain, rtol=1e-5, atol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), fused, plain)

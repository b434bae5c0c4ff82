import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icrl_jax.models.attention import _fused_attention, plain_attention

B, H, K = 3, 2, 5


@pytest.mark.parametrize(("T", "S"), [(7, 7), (8, 8), (7, 12), (4, 11)])
def test_fused_equals_plain_for_odd_and_even_lengths(getkey, T, S):
    q, k, v, weight = (jax.random.normal(getkey(), (B, n, H, K)) for n in (T, S, S, T))
    own = jnp.arange(S - T, S)[None]
    start = jax.random.randint(getkey(), (B, T), 0, own + 1)

    def loss(attend, q, k, v):
        o = attend(q, k, v, start)
        return (o * weight).sum(), o

    def both(q, k, v):
        grads = [
            jax.grad(loss, argnums=(1, 2, 3), has_aux=True)(f, q, k, v) for f in (_fused_attention, plain_attention)
        ]
        return grads

    (fused, o), (plain, o_plain) = jax.device_get(jax.jit(both)(q, k, v))
    np.testing.assert_allclose(o, o_plain, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(fused, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)

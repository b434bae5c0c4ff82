# ruff: noqa: N802, N803, N806
"""The running mean starts afresh at every reset, one input at a time or all at once."""

import jax
import jax.numpy as jnp
import numpy as np

from icrl_jax.models import average

T, B, D = 13, 5, 3


def inputs():
    """Totals of two inputs before, and some with resets, also at the first of them."""
    rng = np.random.default_rng(0)
    x, before = rng.normal(size=(T, B, D)), rng.normal(size=(2, B, D))
    reset = rng.uniform(size=(T, B)) < 0.2
    assert reset[0].any() and not reset[0].all()
    total = np.concatenate([before.sum(axis=0), np.full((B, 1), 2.0)], axis=-1)
    return before, *(jnp.asarray(z, jnp.float32) for z in (total, x)), jnp.asarray(reset)


def by_hand(before, x, reset):
    means = np.zeros((T, B, D))
    for b in range(B):
        seen = list(before[:, b])
        for t in range(T):
            seen = [x[t, b]] if reset[t, b] else [*seen, x[t, b]]
            means[t, b] = np.mean(seen, axis=0)
    return means


def test_both_ways_are_the_mean_since_the_last_reset():
    before, total, x, reset = inputs()
    expected = by_hand(before, np.asarray(x, np.float64), reset)
    together = jax.jit(average.add_all)(total, x, reset)
    step = lambda total, xs: (average.add(total, *xs),) * 2
    _, one_by_one = jax.jit(lambda total: jax.lax.scan(step, total, (x, reset)))(total)
    for totals in together, one_by_one:
        np.testing.assert_allclose(average.mean(totals), expected, atol=1e-5)


def test_a_nan_before_a_reset_reaches_neither_the_mean_nor_the_gradient():
    _, total, x, _ = inputs()
    reset = jnp.zeros((T, B), bool).at[4].set(True)

    @jax.jit
    def after(x, total):
        loss = lambda x: jnp.sin(average.mean(average.add_all(total, x, reset))[4:]).sum()
        return average.mean(average.add_all(total, x, reset)), jax.grad(loss)(x)

    clean, spoiled = after(x, total), after(x.at[2].set(jnp.nan), total.at[:, :-1].set(jnp.nan))
    for a, b in zip(clean, spoiled, strict=True):
        np.testing.assert_allclose(a[4:], b[4:], atol=1e-6)
    assert jnp.isnan(spoiled[0][:4]).all() and (spoiled[1][:4] == 0).all()


def test_totals_are_float32_whatever_the_inputs_are():
    """Small steps of a long sequence would be lost in half precision."""
    total = jnp.zeros((1, 2))
    for _ in range(3):
        total = total + average.one(jnp.full((1, 1), 0.01, jnp.bfloat16))
    far = total + 1000 + average.one(jnp.ones((1, 1), jnp.bfloat16))
    assert far.dtype == jnp.float32 and far[0, 1] == 1004

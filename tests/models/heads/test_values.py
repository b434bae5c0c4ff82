# ruff: noqa: N802, N803, N806
"""Numbers are predicted as means, whatever their scale."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icrl_jax.models.heads import Scalar, TwoHot, ValueHeadConfig, make_value_head, symlog_bins, two_hot

B, T, D = 5, 7, 13


def assert_close(a, b, atol=1e-5, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=rtol), a, b)


def test_two_hot_is_inverted_by_its_mean():
    bins = symlog_bins(63, 1000.0)
    x = jnp.concatenate([jnp.linspace(-1000, 1000, 997), jnp.array([0.0, 1e-3, *bins])])
    weights = two_hot(x, bins)
    assert (weights >= 0).all() and ((weights > 0).sum(axis=-1) <= 2).all()
    assert_close(weights.sum(axis=-1), np.ones(len(x)))
    np.testing.assert_allclose(weights @ np.array(bins, np.float32), x, rtol=2e-6, atol=1e-6)
    assert_close(weights[-63:], np.eye(63))
    assert_close(two_hot(jnp.array([-5e3, 5e3]), bins), np.eye(63)[[0, -1]])  # beyond the bins
    assert bins[31] == 0 and math.isclose(bins[0], -1000) and math.isclose(bins[-1], 1000)
    assert np.ptp(np.diff(np.sign(bins) * np.log1p(np.abs(bins)))) < 1e-12  # equally far apart as logarithms


def test_two_hot_learns_the_mean_of_its_targets():
    """Where returns are random, so a value; a mean of logarithms would be another number."""
    targets = jnp.array([0.0, 0.0, 0.0, 100.0])
    bins = symlog_bins(31, 200.0)
    best = jnp.log(two_hot(targets, bins).mean(axis=0) + 1e-12)  # minimises the mean cross-entropy
    loss = lambda logits: jax.vmap(TwoHot(logits, bins).loss)(targets).mean()
    assert np.abs(jax.grad(loss)(best)).max() < 1e-6
    assert_close(TwoHot(best, bins).mean(), 25.0, rtol=1e-4)
    assert TwoHot(best, bins).mode() == 0


@pytest.mark.parametrize("kind", ["scalar", "two_hot"])
def test_values_start_at_zero_and_can_be_learned(kind):
    head = make_value_head(D, ValueHeadConfig(kind, num_bins=31, limit=100.0), jax.random.key(0))
    y = jax.random.normal(jax.random.key(1), (B, T, D))
    assert_close(head(y).mean(), np.zeros((B, T)), atol=1e-4)
    assert head(y).loss(jnp.ones((B, T))).shape == (B, T)
    targets = 3.0 * y[..., 0]

    @jax.jit
    def learned(head):
        total = lambda head: head(y).loss(targets).mean()
        descend = lambda head, _: (jax.tree.map(lambda p, g: p - 0.5 * g, head, jax.grad(total)(head)), total(head))
        return jax.lax.scan(descend, head, length=300)

    head, losses = learned(head)
    error = np.square(head(y).mean() - targets).mean() / np.square(targets).mean()
    assert losses[-1] < losses[0] and error < (1e-3 if kind == "scalar" else 0.2)


def test_a_scalar_has_half_the_squared_error():
    assert_close(Scalar(jnp.array([1.0, 2.0])).loss(jnp.array([4.0, 2.0])), np.array([4.5, 0.0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "vector"}, "kind='vector' must be one of scalar, two_hot"),
        ({"num_bins": 10}, "num_bins=10 must be odd and at least 3"),
        ({"limit": 0.0}, "limit=0.0 must be finite and above 0"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ValueHeadConfig(**options)

# ruff: noqa: N802, N803, N806
"""Distributions sum to one, samples follow them, and no number breaks at the bounds."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from icrl_jax.models.heads import Bins, Categorical, TanhGaussian

A, K = 3, 11
LOW, HIGH = (-1.0, -2.0, 0.5), (1.0, 3.0, 0.75)
SAMPLES = 20_011


def gaussian(mean, sd, low=-2.0, high=3.0):
    one = lambda x: jnp.atleast_1d(jnp.asarray(x, jnp.float32))
    return TanhGaussian(one(mean), jnp.log(one(sd)), (low,), (high,))


def assert_close(a, b, atol=1e-5, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=rtol), a, b)


# Categorical


def test_categorical_is_a_softmax():
    logits = jnp.log(jnp.array([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]])) + 5.0
    dist = Categorical(logits)
    assert_close(jnp.exp(dist.log_prob(jnp.array([1, 0]))), np.array([0.5, 0.1]))
    assert_close(dist.entropy(), scipy.stats.entropy(np.array([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]]), axis=1))
    np.testing.assert_array_equal(dist.mode(), [1, 2])
    samples = jax.vmap(dist.sample)(jax.random.split(jax.random.key(0), SAMPLES))
    for row in range(2):
        counts = np.bincount(samples[:, row], minlength=3)
        assert scipy.stats.chisquare(counts, SAMPLES * np.asarray(dist.probs[row], float)).pvalue > 1e-3


def test_an_action_ruled_out_breaks_nothing():
    logits = jnp.array([0.0, 0.0, -jnp.inf])
    value, gradient = jax.value_and_grad(lambda logits: Categorical(logits).entropy())(logits)
    assert_close(value, math.log(2))
    assert np.isfinite(gradient).all()


# Squashed Gaussians


@pytest.mark.parametrize(("mean", "sd"), [(0.0, 1.0), (0.7, 0.3), (-1.5, 2.0), (2.0, 0.05)])
def test_a_squashed_gaussian_integrates_to_one(mean, sd):
    """Over actions, in their own units: the density is that of the action, not of u."""
    dist = gaussian(mean, sd)
    u = jnp.linspace(-20, 20, 400_001)[:, None]
    actions = -2 + 2.5 * (1 + np.tanh(np.asarray(u[:, 0], np.float64)))
    density = np.exp(np.asarray(jax.jit(jax.vmap(dist.log_prob))(u), np.float64))
    assert abs(np.trapezoid(density, actions) - 1) < 1e-3


@pytest.mark.parametrize(("mean", "sd"), [(0.0, 1.0), (0.7, 0.3), (-1.5, 2.0)])
def test_squashed_samples_follow_the_density(mean, sd):
    dist = gaussian(mean, sd)
    samples = jax.jit(jax.vmap(lambda key: dist.decode(dist.sample(key))))(
        jax.random.split(jax.random.key(3), SAMPLES)
    )[:, 0]
    u = jnp.linspace(-16, 16, 100_001)[:, None]
    actions = -2 + 2.5 * (1 + np.tanh(np.asarray(u[:, 0], np.float64)))
    density = np.exp(np.asarray(jax.jit(jax.vmap(dist.log_prob))(u), np.float64))
    cdf = np.concatenate([[0], np.cumsum(np.diff(actions) * (density[1:] + density[:-1]) / 2)])
    assert scipy.stats.kstest(np.asarray(samples), lambda x: np.interp(x, actions, cdf)).pvalue > 1e-3


@pytest.mark.parametrize("u", [0.0, 1e-4, -0.3, 2.0, -9.5, 30.0, -300.0, 1e4])
def test_log_prob_and_its_gradients_are_exact_at_the_bounds(u):
    """Against float64: log p = log N(u; m, s) - log(half range) - log(1 - tanh(u)^2), d/du = -z / s + 2 tanh(u)."""
    mean, sd, half = 0.25, 0.5, 2.5

    def log_prob(u, mean, log_sd):
        one = lambda x: x[None]
        return TanhGaussian(one(mean), one(log_sd), (-2.0,), (3.0,)).log_prob(one(u))

    arguments = jnp.float32(u), jnp.float32(mean), jnp.log(jnp.float32(sd))
    value, gradient = jax.jit(jax.value_and_grad(log_prob, argnums=(0, 1, 2)))(*arguments)
    z = (np.float64(np.float32(u)) - mean) / sd
    log_slope = -2 * (np.logaddexp(u, -u) - math.log(2))
    expected = -0.5 * z**2 - math.log(sd) - 0.5 * math.log(2 * math.pi) - math.log(half) - log_slope
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient, (-z / sd + 2 * math.tanh(u), z / sd, z**2 - 1), rtol=1e-5, atol=1e-5)


def test_the_greedy_action_of_a_squashed_gaussian_is_its_median():
    dist = gaussian(0.4, 0.7)
    samples = jax.vmap(lambda key: dist.decode(dist.sample(key)))(jax.random.split(jax.random.key(3), SAMPLES))
    share = (samples < dist.decode(dist.mode())[None]).mean()
    assert abs(share - 0.5) < 4 * 0.5 / math.sqrt(SAMPLES)


def test_actions_at_the_bounds_are_read_as_finite():
    dist = TanhGaussian(jnp.zeros(A), jnp.zeros(A), LOW, HIGH)
    for bound in (LOW, HIGH):
        choice = dist.encode(jnp.array(bound))
        assert np.isfinite(choice).all() and np.isfinite(dist.log_prob(choice))
        assert_close(dist.decode(choice), np.array(bound), atol=5e-6)
    np.testing.assert_array_equal(dist.decode(jnp.full(A, 1e6)), np.float32(HIGH))
    np.testing.assert_array_equal(dist.decode(jnp.full(A, -1e6)), np.float32(LOW))


# Bins


def test_bins_sum_to_one_and_samples_follow_them():
    logits = jax.random.normal(jax.random.key(0), (2, 3))
    dist = Bins(logits, (-1.0, 0.0), (1.0, 5.0))
    pairs = jnp.array([[i, j] for i in range(3) for j in range(3)], jnp.int32)
    joint = jnp.exp(jax.vmap(dist.log_prob)(pairs))
    assert_close(joint.sum(), 1.0)
    probs = np.asarray(logits, float)
    probs = np.exp(probs) / np.exp(probs).sum(axis=1, keepdims=True)
    assert_close(joint, np.outer(*probs).ravel())
    assert_close(dist.entropy(), scipy.stats.entropy(probs, axis=1).sum())
    samples = jax.vmap(dist.sample)(jax.random.split(jax.random.key(3), SAMPLES))
    counts = np.bincount(3 * samples[:, 0] + samples[:, 1], minlength=9)
    assert scipy.stats.chisquare(counts, SAMPLES * np.outer(*probs).ravel()).pvalue > 1e-3
    np.testing.assert_array_equal(dist.mode(), probs.argmax(axis=1))


def test_bins_come_back_within_half_a_bin():
    dist = Bins(jnp.zeros((A, K)), LOW, HIGH)
    low, high = np.array(LOW), np.array(HIGH)
    actions = jax.random.uniform(jax.random.key(0), (1009, A)) * (high - low)[None] + low[None]
    back = dist.decode(dist.encode(actions.astype(jnp.float32)))
    half = (high - low) / K / 2
    assert (np.abs(back - actions) <= half * (1 + 1e-4)).all()
    assert (np.abs(back - actions).max(axis=0) > 0.9 * half).all()  # and no better: there are K bins, not more
    every = jnp.broadcast_to(jnp.arange(K, dtype=jnp.int32)[:, None], (K, A))
    np.testing.assert_array_equal(dist.encode(dist.decode(every)), every)
    np.testing.assert_array_equal(dist.encode(jnp.array(LOW)), np.zeros(A))
    np.testing.assert_array_equal(dist.encode(jnp.array(HIGH)), np.full(A, K - 1))
    np.testing.assert_array_equal(dist.encode(jnp.array(HIGH) + 100.0), np.full(A, K - 1))

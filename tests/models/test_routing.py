# ruff: noqa: N802, N803, N806
"""The losses of gates have their known values, and the load of an expert is the one to expect."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icrl_jax.models.routing import Routing, balance_loss, expected_load, z_loss

B, X = 7, 5


def routed(expert, num_experts):
    """Tokens that go to these experts [N, J] with equal weights."""
    expert = jnp.asarray(expert)
    load = jnp.bincount(expert.reshape(-1), length=num_experts).astype(jnp.float32)
    logits = jnp.zeros((expert.shape[0], num_experts))
    return Routing(expert, jnp.full(expert.shape, 1 / expert.shape[1]), logits, load)


@pytest.mark.parametrize(
    ("expert", "num_experts", "value"),
    [
        ([[0, 1], [2, 3], [4, 5]] * 4, 6, 0.0),  # uniform
        ([[2, 5]] * 7, 6, 4.8),  # all on the same two of six
        ([[4]] * 7, 6, 12.0),  # all on one: 6 for the importance, 6 for the load
        ([[1, 7]] * 7, 8, 2 * 24 / 7),
        ([[0]] * 7, 1, 0.0),  # nothing to balance
    ],
)
def test_balance_loss_has_its_known_values(expert, num_experts, value):
    np.testing.assert_allclose(balance_loss(routed(expert, num_experts)), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("top_k", [1, 2, X])
def test_expected_load_is_the_chance_to_be_chosen_if_an_experts_noise_is_drawn_again(top_k):
    N, draws = 3, 4001
    keys = jax.random.split(jax.random.key(5), 3)
    logits, noise = np.asarray(jax.random.normal(keys[0], (2, N, X)))
    scale = np.asarray(jax.random.uniform(keys[1], (N, X), minval=0.5, maxval=1.5))
    noisy, found = logits + scale * noise, np.zeros(X)
    for e in range(X):
        again = np.repeat(noisy[None], draws, axis=0)
        redrawn = np.asarray(jax.random.normal(jax.random.fold_in(keys[2], e), (draws, N)))
        again[:, :, e] = logits[:, e] + scale[:, e] * redrawn
        found[e] = ((again > again[:, :, e : e + 1]).sum(axis=-1) < top_k).mean(axis=0).sum()
    np.testing.assert_allclose(expected_load(logits, noisy, scale, top_k), found, atol=0.05)


def test_z_loss_of_equal_logits_is_the_square_of_their_log_sum():
    np.testing.assert_allclose(z_loss(jnp.full((B, X), 0.7)), (0.7 + math.log(X)) ** 2, rtol=1e-6)


def test_the_load_test_of_t2mirs_code_looks_at_the_noise():
    """By hand: logits 3, 1, 0 with noise 0.5, 0, 2 are 3.5, 1, 2, so the first is in and 2 is the second largest.

    The first expert's noise is below 2, so it is held against the largest, itself, and the last one's is not above.
    """
    logits, noise, scale = jnp.array([[3.0, 1.0, 0.0]]), jnp.array([[0.5, 0.0, 2.0]]), jnp.array([[0.5, 1.0, 2.0]])
    phi = lambda z: 0.5 * (1 + math.erf(z / math.sqrt(2)))
    out = [phi((1 - 3.5) / 1.0), phi((0 - 3.5) / 2.0)]
    found = [expected_load(logits, logits + noise, scale, 1, test) for test in ("logit", "noise")]
    np.testing.assert_allclose(found[0], [phi((3 - 2) / 0.5), *out], rtol=1e-5)
    np.testing.assert_allclose(found[1], [phi((3 - 3.5) / 0.5), *out], rtol=1e-5)
    shifted = expected_load(logits - 5, logits + noise - 5, scale, 1, "noise")  # the noise is above all noisy logits
    np.testing.assert_allclose(shifted, [phi((3 - 2) / 0.5), phi((1 - 2) / 1.0), phi((0 - 2) / 2.0)], rtol=1e-5)

# ruff: noqa: N802, N803, N806
"""The contrastive loss pairs the halves of a batch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icrl_jax.models.contrastive import contrastive_loss, task_logits, update_momentum
from icrl_jax.models.routing import Gate

B, T, D, X = 7, 11, 13, 5


def make_gate(seed):
    return Gate(D, X, "tanh", False, jax.random.key(seed))


def assert_close(a, b, atol=1e-5, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=rtol), a, b)


def test_task_logits_are_the_mean_over_the_tokens_that_count():
    gate, x = make_gate(0), jax.random.normal(jax.random.key(1), (B, T, D))
    mask = jax.random.bernoulli(jax.random.key(2), 0.5, (B, T)).at[:, 0].set(True)
    assert_close(task_logits(gate, x), np.mean(gate(x), axis=1))
    expected = [np.mean(jax.nn.softmax(gate(x[b]))[np.asarray(mask[b])], axis=0) for b in range(B)]
    assert_close(task_logits(gate, x, mask, softmax=True), np.stack(expected))


def test_contrastive_loss_of_tasks_that_look_alike_is_the_log_of_their_number():
    z = jnp.broadcast_to(jnp.arange(8.0), (32, 8))
    np.testing.assert_allclose(contrastive_loss(z, z, jnp.eye(8)), math.log(16), rtol=1e-6)


def test_contrastive_loss_pairs_the_halves():
    pairs = 3
    z_query, z_key = jax.random.normal(jax.random.key(1), (2, 2 * pairs, X))
    w = jax.random.normal(jax.random.key(2), (X, X))
    total = 0.0
    for i in range(pairs):
        for query, keys in ((z_query[i], z_key[pairs:]), (z_query[pairs + i], z_key[:pairs])):
            scores = np.asarray(query) @ np.asarray(w) @ np.asarray(keys).T
            total += (np.log(np.exp(scores).sum()) - scores[i]) / (2 * pairs)
    np.testing.assert_allclose(contrastive_loss(z_query, z_key, w), total, rtol=1e-5)
    dquery, dkey = jax.grad(contrastive_loss, argnums=(0, 1))(z_query, z_key, w)
    assert jnp.abs(dquery).max() > 0 and jnp.abs(dkey).max() == 0


def test_contrastive_loss_leaves_out_pairs_of_the_same_task():
    """Pairs 0 and 2 are of one task, so neither is held against the other."""
    z_query, z_key = jax.random.normal(jax.random.key(1), (2, 6, X))
    total = 0.0
    for q, k in ((z_query[:3], z_key[3:]), (z_query[3:], z_key[:3])):
        scores = np.asarray(q @ k.T)
        for i, others in enumerate(([0, 1], [0, 1, 2], [1, 2])):
            total += (np.log(np.exp(scores[i, others]).sum()) - scores[i, i]) / 6
    found = contrastive_loss(z_query, z_key, jnp.eye(X), jnp.array([4, 2, 4]))
    np.testing.assert_allclose(found, total, rtol=1e-5)


def test_momentum_moves_a_part_of_the_way():
    old, new = make_gate(0), make_gate(9)
    moved = update_momentum(old, new, 0.25)
    assert_close(moved.first[...], 0.75 * old.first[...] + 0.25 * new.first[...])
    assert_close(update_momentum(new, new).second[...], new.second[...])


def test_an_odd_batch_has_no_pairs():
    with pytest.raises(ValueError, match="z_query has 7 rows; must be even"):
        contrastive_loss(jnp.zeros((7, X)), jnp.zeros((7, X)), jnp.eye(X))

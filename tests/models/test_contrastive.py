# ruff: noqa: N802, N803, N806
"""The contrastive loss pairs the halves of a batch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icrl_jax.models.contrastive import (
    Contrast,
    contrastive_loss,
    follow,
    init_contrast,
    task_gates,
    task_logits,
    task_loss,
)
from icrl_jax.models.gru import GRUConfig
from icrl_jax.models.kinds import make_model
from icrl_jax.models.moe import MoEConfig, block_of
from icrl_jax.models.routing import Gate, z_loss
from icrl_jax.models.s5 import S5Config
from icrl_jax.models.transformer import TransformerConfig

B, T, D, X = 7, 11, 13, 5


def make_gate(seed):
    return Gate(D, X, "tanh", False, jax.random.key(seed))


def assert_close(a, b, atol=1e-5, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=rtol), a, b)


def test_task_logits_are_the_mean_over_the_tokens_that_count():
    gate, x = make_gate(0), jax.random.normal(jax.random.key(1), (B, T, D))
    mask = jax.random.bernoulli(jax.random.key(2), 0.5, (B, T)).at[:, 0].set(True)
    counted = [x[b][np.asarray(mask[b])] for b in range(B)]
    assert_close(task_logits(gate, x), np.mean(gate(x), axis=1))
    soft = [np.mean(jax.nn.softmax(gate(tokens)), axis=0) for tokens in counted]
    assert_close(task_logits(gate, x, mask, softmax=True), np.stack(soft))
    hard = [gate(tokens.mean(axis=0)) for tokens in counted]
    assert_close(task_logits(gate, x, mask, hard=True), np.stack(hard))
    assert jnp.abs(task_logits(gate, x, hard=True) - task_logits(gate, x)).max() > 1e-2


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


def test_a_single_pair_is_refused():
    with pytest.raises(ValueError, match="z_query has 2 rows; must be at least 4, two pairs"):
        contrastive_loss(jnp.ones((2, X)), jnp.ones((2, X)), jnp.eye(X))


def test_key_gates_follow_a_part_of_the_way():
    """From where they were, and the matrices stay."""
    old, new = make_gate(0), make_gate(9)
    contrast = follow(Contrast((jnp.ones((X, X)),), (old,)), (new,), 0.25)
    assert_close(contrast.key_gates[0].first[...], 0.75 * old.first[...] + 0.25 * new.first[...])
    assert_close(contrast.w[0], jnp.ones((X, X)))
    assert_close(follow(contrast, (new,), 0.0).key_gates[0].second[...], contrast.key_gates[0].second[...])


# What a model hands out for it.


@pytest.mark.parametrize("layers", ["all", "last"])
@pytest.mark.parametrize("kind", [TransformerConfig, S5Config])
def test_a_model_hands_out_its_task_gates_and_what_they_see(kind, layers):
    """Rows first, then time; the model's own loss of these gates is that of these inputs."""
    experts = MoEConfig(num_experts=3, num_task_experts=X, expert_layers=layers, balance_weight=0)
    options = {"num_heads": 2} if kind is TransformerConfig else {"mlp_ratio": 2}
    model = make_model(kind(width=12, num_layers=2, moe=experts, **options), jax.random.key(0))
    x, reset = jax.random.normal(jax.random.key(1), (B, T, 12)), jnp.zeros((B, T), bool)
    _, _, aux = jax.jit(type(model).__call__)(model, None, x, reset)
    gates = task_gates(model)
    assert len(gates) == len(aux.task_inputs) == (2 if layers == "all" else 1)
    assert all(inputs.shape == (B, T, 12) for inputs in aux.task_inputs)
    blocks = [block_of((model.blocks, model.last), layer, 2) for layer in range(2)][-len(gates) :]
    z_losses = [
        z_loss(block.ffn.token.gate(inputs)) + z_loss(gate(inputs))
        for block, gate, inputs in zip(blocks, gates, aux.task_inputs, strict=True)
    ]
    np.testing.assert_allclose(aux.losses["moe_z"], experts.z_weight * np.mean(z_losses), rtol=1e-4)
    alone = jax.jit(type(model).__call__)(model, None, x[2:3], reset[2:3])[2].task_inputs
    assert_close([inputs[2:3] for inputs in aux.task_inputs], list(alone))


def test_the_loss_of_a_model_is_the_mean_over_its_gates():
    gates, key_gates = (make_gate(0), make_gate(1)), (make_gate(2), make_gate(3))
    contrast = init_contrast(key_gates, jax.random.key(2))
    inputs = tuple(jax.random.normal(jax.random.key(3), (2, 6, T, D)))
    each = [
        contrastive_loss(task_logits(gate, x), task_logits(key_gate, x), w)
        for gate, key_gate, w, x in zip(gates, key_gates, contrast.w, inputs, strict=True)
    ]
    np.testing.assert_allclose(task_loss(contrast, gates, inputs), np.mean(each), rtol=1e-6)
    assert not np.allclose(contrast.w[0], contrast.w[1])


def test_a_model_without_task_experts_has_no_gate_to_teach():
    for config in GRUConfig(), TransformerConfig(moe=MoEConfig(num_experts=3)):
        with pytest.raises(ValueError, match="num_task_experts must be positive"):
            task_gates(make_model(config, jax.random.key(0)))


def test_an_odd_batch_has_no_pairs():
    with pytest.raises(ValueError, match="z_query has 7 rows; must be even"):
        contrastive_loss(jnp.zeros((7, X)), jnp.zeros((7, X)), jnp.eye(X))

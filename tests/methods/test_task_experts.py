# ruff: noqa: N802, N803, N806
"""A supervised method teaches task-wise experts to tell tasks apart, by what models hand out for it."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import BANDIT

from icrl_jax.core import Array, Transition
from icrl_jax.data.contexts import as_timesteps
from icrl_jax.methods.supervised import OptimConfig, Row, supervised
from icrl_jax.models.contrastive import Contrast, follow, init_contrast, task_gates, task_loss
from icrl_jax.models.moe import MoEConfig
from icrl_jax.models.policy import Policy
from icrl_jax.models.transformer import TransformerConfig

T, PAIRS, A, TAU, UPDATES = 11, 5, BANDIT.num_arms, 0.25, 300
EXPERTS = MoEConfig(num_experts=3, num_task_experts=4, expert_layers="last", router="tanh")
MODEL = TransformerConfig(width=8, num_layers=2, num_heads=2, context_len=T + 1, positions="none", moe=EXPERTS)


class Params(NamedTuple):
    policy: Policy
    contrast: Contrast


class Pair(NamedTuple):
    """Two histories of one task, so that one row of a batch is a pair, however rows are grouped."""

    context: Transition  # [2, T, ...]
    best: Array  # int32 []


@functools.cache
def make_method(tasks_differ):
    """DPT on a few bandits, plus the contrastive loss; where tasks do not differ, all arms of all of them are alike."""

    def init_params(key):
        policy = Policy(MODEL, BANDIT.observation_space(), BANDIT.action_space(), key)
        return Params(policy, init_contrast(task_gates(policy.body), jax.random.fold_in(key, 1)))

    def collect(data, row):
        means = 2.0 * tasks_differ * jax.random.normal(jax.random.key(3), (PAIRS, A))[row.index]
        key_action, key_noise = jax.random.split(row.key)
        action = jax.random.randint(key_action, (2, T), 0, A)
        feedback = means[action] + 0.1 * jax.random.normal(key_noise, (2, T))
        obs, over = jnp.ones((2, T, 1)), jnp.zeros((2, T), bool)
        return Pair(Transition(obs, action, feedback, obs, over, over), jnp.argmax(means))

    def loss(params, batch, key):
        context = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), batch.context)
        best_B = jnp.tile(batch.best, 2)
        inputs = jax.vmap(as_timesteps)(context, context.obs[:, 0])
        _, prediction, aux = params.policy(None, inputs, key)
        imitation = -prediction.log_prob(jnp.broadcast_to(best_B[:, None], inputs.reset.shape)).mean()
        contrast = task_loss(params.contrast, task_gates(params.policy.body), aux.task_inputs, softmax=True)
        return imitation + sum(aux.losses.values()) + contrast, {"imitation": imitation, "contrast": contrast}

    optim = OptimConfig(learning_rate=0.03, schedule="constant", weight_decay=0.1)
    method = supervised(init_params, collect, loss, None, optim, UPDATES, PAIRS, 2 * T, least_rows=PAIRS)

    def update(state, key):
        after, log = method.update(state, key)
        contrast = after.params.contrast._replace(key_gates=state.params.contrast.key_gates)
        contrast = follow(contrast, task_gates(after.params.policy.body), TAU)
        return after._replace(params=after.params._replace(contrast=contrast)), log

    return method._replace(update=update), loss, collect


@functools.cache
def learned(tasks_differ):
    """All states of training, and its logs."""
    method, _, _ = make_method(tasks_differ)

    @jax.jit
    def run(key):
        step = lambda state, key: (lambda after, log: (after, (after.params, log)))(*method.update(state, key))
        state = method.init(key)
        return state.params, jax.lax.scan(step, state, jax.random.split(key, UPDATES))[1]

    return run(jax.random.key(0))


@pytest.mark.parametrize("tasks_differ", [False, True])
def test_the_loss_starts_where_tasks_look_alike_and_falls_if_they_do_not(tasks_differ):
    """It is the log of the number of pairs where the gate cannot tell them apart."""
    _, (_, log) = learned(tasks_differ)
    start, end = log["contrast"][0], np.mean(log["contrast"][-10:])
    np.testing.assert_allclose(start, math.log(PAIRS), atol=0.1 if tasks_differ else 0.01)
    if tasks_differ:
        assert end < math.log(PAIRS) / 2
    else:
        np.testing.assert_allclose(np.mean(log["contrast"]), math.log(PAIRS), atol=0.1)
    assert log["imitation"][-1] < log["imitation"][0] / 2


def test_gates_learn_from_it_and_key_gates_do_not():
    method, loss, collect = make_method(True)

    @jax.jit
    def slope(key):
        params = method.init(key).params
        rows = Row(jnp.arange(PAIRS), jax.random.split(key, PAIRS))
        batch = jax.vmap(collect, in_axes=(None, 0))(None, rows)
        return jax.grad(lambda params: loss(params, batch, key)[1]["contrast"])(params)

    gradient = slope(jax.random.key(0))
    largest = lambda tree: [jnp.abs(g).max() for g in jax.tree.leaves(tree)]
    assert min(largest(task_gates(gradient.policy.body))) > 1e-5 and min(largest(gradient.contrast.w)) > 1e-5
    assert min(largest(gradient.policy.embed)) > 1e-6
    assert max(largest(gradient.contrast.key_gates)) == 0


def test_key_gates_start_as_the_gates_and_follow_them_at_every_update():
    start, (states, _) = learned(True)
    gates = lambda params: jax.tree.leaves(task_gates(params.policy.body))
    for key, gate, keys, gates_after in zip(
        *(jax.tree.leaves(start.contrast.key_gates), gates(start)),
        *(jax.tree.leaves(states.contrast.key_gates), gates(states)),
        strict=True,
    ):
        np.testing.assert_array_equal(key, gate)
        before = np.concatenate([key[None], keys[:-1]])
        np.testing.assert_allclose(keys, before + TAU * (gates_after - before), atol=1e-6)
        assert np.abs(keys - gates_after).max() > 1e-2

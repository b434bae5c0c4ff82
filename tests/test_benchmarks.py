"""The benchmarks run, and compare what is the same; nothing here is timed."""

import importlib.util
import json
import sys

import jax
import numpy as np
import pytest

from benchmarks import acting, bench, collect, compiling, cost, numpy_loop, parts, update
from experiments import dpt_bandit
from icrl_jax.data.contexts import as_timesteps
from icrl_jax.methods.dpt import prefix_loss
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.run.options import parse

NEEDS_TORCH = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason=update.NO_TORCH)


@pytest.mark.parametrize("part", [collect, update, parts, acting])
def test_every_row_runs(part):
    rows = list(part.rows(quick=True))
    assert rows and all(row.ratio is None or row.ratio > 0 for row in rows)
    assert bench.table(rows).row_count == len(rows)
    json.dumps([row._asdict() for row in rows])


def test_compile_rows_read_what_a_child_process_left(tmp_path):
    child = """
import json, os, pathlib, sys
cache, runs = pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"]), pathlib.Path(sys.argv[1])
assert os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "0"
seconds = 2.0 if cache.exists() else 40.0
cache.mkdir(exist_ok=True)
(runs / "dpt_bandit" / "run").mkdir(parents=True)
(runs / "dpt_bandit" / "latest").symlink_to("run")
(runs / "dpt_bandit" / "run" / "results.json").write_text(json.dumps({"seconds": {"compile": seconds}}))
"""
    cold, warm, peak = compiling.child_rows((sys.executable, "-c", child), tmp_path)
    assert (cold.ours, cold.met) == ("40 s", False)
    assert (warm.ours, warm.met) == ("2 s", True)
    assert peak.ours.endswith(" GiB")  # whether it is met says nothing here: a child inherits the peak of its parent
    with pytest.raises(RuntimeError, match="FileExistsError"):
        compiling.run((sys.executable, "-c", child), tmp_path, "cold")


def test_the_compiled_experiment_is_the_preset_cut_short():
    found = parse("dpt_bandit", dpt_bandit.PRESETS, "", compiling.FEW_UPDATES).dpt
    preset = dpt_bandit.PRESETS["cpu"].dpt
    assert found.num_updates % 2 == 0 and found.num_updates < preset.num_updates
    assert (found.model, found.optim, found.horizon) == (preset.model, preset.optim, preset.horizon)


def test_sizes_are_those_of_the_presets():
    for name, size in (("cpu", update.SIZES["cpu preset"]), ("paper", update.SIZES["paper"])):
        preset = dpt_bandit.PRESETS[name].dpt
        assert (size.config.model, size.config.horizon) == (preset.model, preset.horizon)
        assert (size.config.batch_size, size.config.optim.clip) == (preset.batch_size, preset.optim.clip)
    assert acting.Size().model == dpt_bandit.PRESETS["paper"].dpt.model


@pytest.mark.parametrize("behaviour", ["mixture", "thompson", "lean_thompson"])
def test_both_collections_have_one_distribution(behaviour):
    num_tasks, num_steps = 1500, 11
    ours = collect.compiled(behaviour.removeprefix("lean_"), num_steps)(jax.random.split(jax.random.key(0), num_tasks))
    theirs = numpy_loop.collect(behaviour, num_tasks, num_steps, np.random.default_rng(0))
    actions = np.asarray(ours.context.action), theirs.actions
    rewards = np.asarray(ours.context.feedback), theirs.rewards
    targets = np.asarray(ours.target_action), theirs.target_actions
    for statistic in (_reward, _last_reward, _reward_spread, _most_pulled, _switches, _hits):
        a, b = (statistic(*side) for side in zip(actions, rewards, targets, strict=True))
        error = np.sqrt(a.var() / num_tasks + b.var() / num_tasks)
        assert abs(a.mean() - b.mean()) < 4.5 * error, statistic.__name__


def _reward(actions, rewards, targets):
    return rewards.mean(axis=1)


def _last_reward(actions, rewards, targets):
    return rewards[:, -1]


def _reward_spread(actions, rewards, targets):
    return rewards.var(axis=1)


def _most_pulled(actions, rewards, targets):
    return np.eye(5)[actions].mean(axis=1).max(axis=-1)


def _switches(actions, rewards, targets):
    return (actions[:, 1:] != actions[:, :-1]).mean(axis=1)


def _hits(actions, rewards, targets):
    return (actions == targets[:, None]).mean(axis=1)


def test_cached_and_recomputed_evaluation_agree():
    size = acting.QUICK
    policy = acting.make_policy(size.model)
    evaluation = acting.cached(size)(policy)
    inputs = acting.whole_contexts(evaluation)
    for step in (0, 1, 6, size.num_steps - 1):
        prefix = jax.tree.map(lambda x, n=step + 1: x[:, :n], inputs)
        probs = jax.nn.softmax(acting.recomputed(policy, prefix))
        np.testing.assert_allclose(evaluation.record.info["probs"][:, step], probs, atol=1e-5)


def test_naive_attention_gives_the_same_update(monkeypatch):
    size = update.QUICK["tiny"]
    policy, batch = _policy_and_batch(size.config.model)
    (blocked, _), blocked_grad = _loss_and_gradient(policy, batch)
    monkeypatch.setattr(update.transformer, "attention", update.naive_attention)
    (naive, _), naive_grad = _loss_and_gradient(policy, batch)
    np.testing.assert_allclose(blocked, naive, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), blocked_grad, naive_grad)


@NEEDS_TORCH
def test_torch_network_is_the_same_function():
    from benchmarks import torch_dpt

    policy, batch = _policy_and_batch(TransformerConfig(24, 2, 4, context_len=12, positions="none"))
    network = torch_dpt.Network(policy)
    inputs, targets = torch_dpt.tensors(batch, policy.num_actions)
    timesteps = jax.vmap(as_timesteps)(batch.context, batch.query_obs)
    logits = jax.jit(lambda policy, timesteps: policy(None, timesteps)[1])(policy, timesteps)
    np.testing.assert_allclose(logits, network(inputs).detach().numpy(), atol=1e-4)

    loss = torch_dpt.loss(network, inputs, targets)
    loss.backward()
    (ours, _), gradient = _loss_and_gradient(policy, batch)
    np.testing.assert_allclose(ours, loss.item(), rtol=1e-4)
    for name, matrix in torch_dpt.weights(gradient).items():
        theirs = network.get_parameter(name).grad
        np.testing.assert_allclose(matrix.numpy(), theirs.numpy(), atol=1e-4, err_msg=name)


def test_cost_model_counts_the_products():
    model = TransformerConfig(16, 2, 4, context_len=8, positions="none")
    B, T, D, F, L = 3, 8, 16, 64, 2
    projections = 2 * B * T * (D * 3 * D + D * D + 2 * D * F) * L
    attention = 2 * 2 * B * D * sum(range(1, T + 1)) * L
    ends = 2 * B * T * D * (8 + 5)
    assert cost.update_flops(model, B, T, inputs=8, outputs=5) == 3 * (projections + attention + ends)


def _loss_and_gradient(policy, batch):
    """Traced anew at every call, as a patched module must be."""
    return jax.jit(lambda *args: jax.value_and_grad(prefix_loss, has_aux=True)(*args))(policy, batch)


def _policy_and_batch(model):
    """Norms are given scales other than 1 and biases other than 0, so that a mix-up shows."""
    batch = collect.compiled("mixture", model.context_len - 1)(jax.random.split(jax.random.key(1), 7))
    noisy = lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape)
    return jax.tree.map(noisy, acting.make_policy(model)), batch

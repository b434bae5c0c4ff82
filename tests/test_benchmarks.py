"""The benchmarks run, and compare what is the same; nothing here is timed."""

import importlib.util
import json
import sys
from unittest import mock

import jax
import numpy as np
import pytest

import icrl_envs
from benchmarks import (
    acting,
    bench,
    collect,
    compiling,
    cost,
    models,
    moe,
    numpy_loop,
    parts,
    stepping,
    update,
    windows,
)
from experiments import dpt_bandit
from icrl_jax.data.contexts import as_timesteps
from icrl_jax.methods.dpt import prefix_loss
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.run.options import parse

NEEDS_TORCH = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason=update.NO_TORCH)


@pytest.mark.parametrize("part", [stepping, collect, update, parts, acting, models, moe, windows])
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


def test_every_family_has_a_row_of_steps():
    assert set(stepping.Size().families) == set(icrl_envs.FAMILIES)


def test_play_goes_on_from_call_to_call():
    play = stepping.Play(stepping.family_world(icrl_envs.make("dark_room", "ad")), num_tasks=3, num_steps=7)
    for time in (7, 14, 1, 8):  # episodes of 20 steps
        play()
        assert play.state.time.tolist() == [time] * 3


def seen(world, state, actions, task):
    """What is seen in one task after each action."""
    step = lambda state, action: world.step(jax.random.key(0), state, action, task)
    return jax.jit(lambda state: jax.lax.scan(step, state, actions)[1])(state)


def test_the_dark_room_in_numpy_is_ours():
    env = stepping.make("dark_room")
    play = stepping.NumpyPlay(num_tasks=5, num_steps=203)  # two episodes and a bit
    world, state = stepping.family_world(env), env.reset(jax.random.key(0), env.default_params)[1]
    paid = 0.0
    for room, actions in zip(play.rooms, play.actions, strict=True):
        task = env.default_params.replace(goal=np.array(room.goal, np.int32))
        obs, reward, terminated, truncated = seen(world, state, actions.astype(np.int32), task)
        for t, action in enumerate(actions):
            cell, pay, ended = room.step(action)
            cell = room.reset() if ended else cell
            assert (cell.tolist(), pay, ended) == (obs[t].tolist(), reward[t], truncated[t])
        assert not terminated.any()
        paid += reward.sum()
    assert paid > 0


def test_the_families_are_what_gymnax_has():
    key, actions = jax.random.key(0), np.array([0, 1, 1, 0, 0, 1], np.int32)
    for name, gymnax_id in (("stateless_cartpole", "CartPole-v1"), ("memory_chain", "MemoryChain-bsuite")):
        env, theirs = stepping.make(name), stepping.gymnax_world(gymnax_id)
        state, their_state = env.reset(key, env.default_params)[1], theirs.reset(key, ())
        same = {field: value for field, value in vars(state).items() if field != "time"}
        ours = seen(stepping.family_world(env), state, actions, env.default_params)
        found = seen(theirs, their_state.replace(**same), actions, ())
        if name == "memory_chain":  # the question ends the episode, and a new one begins
            assert ours[2].tolist() == [False] * 5 + [True] and abs(ours[1][-1]) == 1
            np.testing.assert_allclose(ours[0][:-1], found[0][:-1], atol=1e-6)
            np.testing.assert_array_equal(ours[1], found[1])
        else:
            np.testing.assert_allclose(ours[0], found[0][:, [0, 2]], atol=1e-6)
        np.testing.assert_array_equal(ours[2], found[2])


@pytest.mark.slow
def test_both_sides_of_xland_are_one_environment():
    pytest.importorskip("xminigrid", reason=stepping.NO_XLAND)
    key, actions = jax.random.key(0), np.array([0, 1, 0, 0, 2, 0, 0, 3], np.int32)
    worlds = stepping.xland_worlds()
    task = worlds[0].sample_task(key)
    ours, theirs = (seen(world, world.reset(key, task), actions, task) for world in worlds)
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_array_equal(ours[1], theirs[1])
    np.testing.assert_array_equal(ours[2], theirs[3] == 0)


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
        probs = acting.recomputed(policy, prefix).probs
        np.testing.assert_allclose(evaluation.record.info["probs"][:, step], probs, atol=1e-5)


def test_naive_attention_gives_the_same_update(monkeypatch):
    size = update.QUICK["tiny"]
    policy, batch = _policy_and_batch(size.config.model)
    (blocked, _), blocked_grad = _loss_and_gradient(policy, batch)
    attend = mock.Mock(wraps=update.naive_attention)
    monkeypatch.setattr(update, "naive_attention", attend)
    with update.with_naive_attention():
        (naive, _), naive_grad = _loss_and_gradient(policy, batch)
    assert attend.called
    np.testing.assert_allclose(blocked, naive, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), blocked_grad, naive_grad)


@NEEDS_TORCH
def test_torch_network_is_the_same_function():
    from benchmarks import torch_dpt

    policy, batch = _policy_and_batch(TransformerConfig(24, 2, 4, context_len=12, positions="none"))
    network = torch_dpt.Network(policy)
    inputs, targets = torch_dpt.tensors(batch, 5)
    timesteps = jax.vmap(as_timesteps)(batch.context, batch.query_obs)
    logits = jax.jit(lambda policy, timesteps: policy(None, timesteps)[1].logits)(policy, timesteps)
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
    return jax.jit(lambda *args: jax.value_and_grad(prefix_loss, has_aux=True)(*args, jax.random.key(0)))(policy, batch)


def _policy_and_batch(model):
    """Norms are given scales other than 1 and biases other than 0, so that a mix-up shows."""
    batch = collect.compiled("mixture", model.context_len - 1)(jax.random.split(jax.random.key(1), 7))
    noisy = lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape)
    return jax.tree.map(noisy, acting.make_policy(model)), batch

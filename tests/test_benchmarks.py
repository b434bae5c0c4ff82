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
    histories,
    models,
    moe,
    numpy_loop,
    numpy_ppo,
    numpy_q_learning,
    parts,
    planning,
    stepping,
    update,
    windows,
)
from experiments import dpt_bandit
from icrl_jax.agents import PlanConfig, q_learning
from icrl_jax.core import Transition
from icrl_jax.data.contexts import as_timesteps
from icrl_jax.methods.dpt import prefix_loss
from icrl_jax.methods.ppo import PPOConfig, learn, numbers, play, ppo_learner, standardised
from icrl_jax.methods.ppo import loss as ppo_loss
from icrl_jax.methods.supervised import OptimConfig
from icrl_jax.models.mlp import MLPConfig
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.rollout import replay
from icrl_jax.run.options import parse

NEEDS_TORCH = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason=update.NO_TORCH)


@pytest.mark.parametrize("part", [stepping, collect, histories, update, parts, acting, planning, models, moe, windows])
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


def test_planning_from_the_cache_and_by_reading_again_choose_the_same():
    size = planning.QUICK._replace(num_tasks=11)
    (action, promised), (other, same) = (
        f() for f in planning.sides(size, 13, PlanConfig(3, 4, plan_order="index")).values()
    )
    np.testing.assert_array_equal(action, other)
    np.testing.assert_allclose(promised, same, rtol=1e-3)
    assert len(set(action.tolist())) > 1 and promised.std() > 0


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


@pytest.mark.parametrize("loop", [numpy_q_learning.one_by_one, numpy_q_learning.all_at_once])
def test_the_q_learning_in_numpy_is_ours(loop):
    """Its histories, replayed into ours, leave the same table; and it took none but the best actions."""
    env, goals, num_steps = histories.ROOM, np.array([[4, 6], [3, 3], [0, 8]]), 403
    found = loop(goals, env.size, env.horizon, num_steps, np.random.default_rng(0))
    agent = q_learning(
        env, (0.0, 0.0), (1.0, 1.0), discount=numpy_q_learning.DISCOUNT, initial=numpy_q_learning.INITIAL
    )
    step = jax.jit(
        jax.vmap(lambda cell, action: env.next_state(env.start_state(cell), action, env.default_params)[0].cell)
    )
    ends = (np.arange(num_steps) + 1) % env.horizon == 0
    table = np.full((env.size**2, 5), numpy_q_learning.INITIAL)
    for s in range(len(goals)):
        cells, actions = found.cells[s].astype(np.int32), found.actions[s].astype(np.int32)
        after = np.asarray(step(cells, actions))
        np.testing.assert_array_equal(cells[1:], np.where(ends[:-1, None], env.size // 2, after[:-1]))
        np.testing.assert_array_equal(found.rewards[s], np.all(after == goals[s], axis=1))
        never = np.zeros(num_steps, bool)
        lived = Transition(cells, actions, found.rewards[s].astype(np.float32), after, never, ends)
        one_more = jax.tree.map(lambda x: np.concatenate([x, x[:1]]), lived)  # the last step is learned after it
        carry, _ = jax.jit(replay)(agent, agent.init(jax.random.key(0)), one_more, jax.random.key(0))
        np.testing.assert_allclose(found.values[s], carry.values, rtol=1e-5)
        q = table.copy()
        for t in range(num_steps):
            state, then = cells[t] @ [env.size, 1], after[t] @ [env.size, 1]
            assert q[state, actions[t]] == q[state].max()
            q[state, actions[t]] = found.rewards[s, t] + numpy_q_learning.DISCOUNT * q[then].max()
    assert len(set(found.actions[:, 0])) > 1  # ties are broken at random
    assert found.rewards[:2, -env.horizon :].sum() > 20


PPO = PPOConfig(
    model=MLPConfig(width=7, num_layers=3),
    optim=OptimConfig(0.02, weight_decay=0.0, schedule="constant", warmup=0.0, beta2=0.999, clip=0.05, eps=1e-5),
    **{"num_streams": 5, "num_steps": 23, "num_epochs": 3, "num_minibatches": 1, "clip_ratio": 0.1},  # type: ignore[arg-type]
)


@pytest.fixture(scope="module")
def ppo_round():
    """Our learner, a round that it played, and a NumPy learner of the same weights; the policy is no longer uniform."""
    env, key = histories.ROOM, jax.random.key(3)
    task = env.default_params.replace(goal=np.array([4, 5], np.int32), max_steps_in_episode=np.int32(env.horizon))

    @jax.jit
    def begin(key):
        state = ppo_learner(env, PPO).init(key, task)
        head = state.params.policy.head.readout
        head.out[...] = 100 * head.out[...]
        one = lambda rollouts, key: play(env, PPO, state.params, numbers(PPO), rollouts, key, None)
        return state, jax.vmap(one)(state.extra["rollouts"], jax.random.split(key, PPO.num_streams))[1]

    state, (record, experience) = jax.device_get(begin(key))
    alone = numpy_ppo.PPO(PPO, np.array([4, 5]), env.size, env.horizon, np.random.default_rng(0))
    for mine, its in zip(alone.weights, of_network(state.params), strict=True):
        mine[...] = its
    log_prob, advantage, ret = experience.log_prob, experience.advantage, experience.ret
    features = numpy_ppo.one_hot(record.transition.obs, env.size)
    whole = features, experience.choice, log_prob, advantage, ret
    return state, record, experience, alone, numpy_ppo.Batch(*(x.reshape(-1, *x.shape[2:]) for x in whole))


def of_network(params):
    """As `numpy_ppo.Weights`."""
    body, out = params.policy.body, params.critic.readout.out
    values = lambda layers: np.stack([np.asarray(x[...]) for x in layers])
    inputs, policy = params.policy.embed.tokens[0].maps[0], params.policy.head.readout.out
    return numpy_ppo.Weights(
        *(np.asarray(x) for x in (inputs[...], values(body.maps), values(body.biases), policy[...], out[...][:, 0]))
    )


def test_the_loss_and_gradient_of_ppo_in_numpy_are_ours(ppo_round):
    """Away from the policy that acted, so that clipping bites."""
    state, _, experience, alone, batch = ppo_round
    params = jax.tree.map(lambda x: 1.3 * x, state.params)
    vector, slopes = 1.3 * alone.vector, np.zeros_like(alone.slopes)
    shapes = [x.shape for x in alone.weights]
    loss = numpy_ppo.loss_and_gradient(*(numpy_ppo.views(x, shapes) for x in (vector, slopes)), batch, PPO)
    ours = lambda params: ppo_loss(params, standardised(experience), (), jax.random.key(0), numbers(PPO))[0]
    value, gradient = jax.jit(jax.value_and_grad(ours))(params)
    np.testing.assert_allclose(loss, value, rtol=1e-5)
    for mine, its in zip(numpy_ppo.views(slopes, shapes), of_network(gradient), strict=True):
        assert np.abs(its).max() > 1e-3
        np.testing.assert_allclose(mine, its, atol=1e-5)


def test_a_round_of_ppo_in_numpy_is_ours(ppo_round):
    """Advantages, and three steps of Adam on the whole round."""
    state, record, experience, alone, batch = ppo_round
    value, transition = record.info["value"], record.transition
    following = lambda cells: numpy_ppo.forward(alone.weights, numpy_ppo.one_hot(cells, alone.size))[2]
    next_value = np.stack([following(cells) for cells in transition.next_obs])
    sides = (x.T for x in (transition.feedback, value, next_value, transition.truncated))
    advantage = numpy_ppo.advantages(*sides, PPO)
    np.testing.assert_allclose(advantage.T, experience.advantage, atol=1e-5)
    assert transition.truncated.any() and transition.feedback.any()

    after, _, _ = jax.jit(lambda *args: learn(PPO, *args))(
        state.params, state.opt_state, numbers(PPO), experience, (), jax.random.key(0)
    )
    before = alone.vector.copy()
    alone.improve(batch)
    assert np.abs(alone.vector - before).max() > 0.03
    for mine, its in zip(alone.weights, of_network(after), strict=True):
        np.testing.assert_allclose(mine, its, atol=2e-4)


def test_ppo_in_numpy_learns():
    config = PPOConfig(num_streams=11, num_minibatches=11)
    alone = numpy_ppo.PPO(config, np.array([4, 6]), 9, 20, np.random.default_rng(0))
    returns = [alone.learn()[2].sum(axis=0).mean() for _ in range(40)]
    assert np.mean(returns[:3]) < 4 and np.mean(returns[-3:]) > 12


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

"""Each source makes the histories that its paper describes."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from two_episodes import on_host

import icrl_envs
from icrl_jax.data.histories import episode_returns
from icrl_jax.methods.ppo import PPOConfig
from icrl_jax.methods.sac import SACConfig
from icrl_jax.methods.sources import (
    HistoriesConfig,
    count_tasks,
    gradient_source,
    held_bytes,
    make_histories,
    predicted_bytes,
)

SIZE, H = 5, 7
ROOM = icrl_envs.make("dark_room", preset="ad_eps", observation="cell", size=SIZE, horizon=H)
HARD = icrl_envs.make("dark_room_hard", preset="ad_eps", observation="cell", size=SIZE, horizon=H)  # ends at the goal
ROBOT = icrl_envs.make("point_robot")
BANDIT = icrl_envs.make("bernoulli_bandit", num_arms=3)
SMALL = HistoriesConfig(num_streams=5, num_steps=60 * H)


@functools.lru_cache
def made(env=ROOM, **options):
    return on_host(make_histories, static_argnums=(0, 1))(env, dataclasses.replace(SMALL, **options))


def returns(histories):
    return np.asarray(on_host(episode_returns)(histories))


BEST = np.asarray(jax.vmap(ROOM.optimal_return)(ROOM.tasks("train")))


def test_q_learning_comes_from_little_to_the_best_there_is():
    every = returns(made().histories)
    assert every.shape == (len(BEST), 5, 60)
    assert every[..., :2].mean() < 0.5 * BEST.mean()
    np.testing.assert_allclose(every[..., -5:].mean(), BEST.mean(), rtol=0.05)


def test_an_expert_never_needs_to_learn():
    every = returns(made(source="expert").histories)
    np.testing.assert_array_equal(every, np.broadcast_to(BEST[:, None, None], every.shape))


def test_the_curriculum_goes_from_chance_to_the_expert():
    every = returns(made(source="noise_curriculum").histories)
    np.testing.assert_array_equal(every[..., -6:], np.broadcast_to(BEST[:, None, None], (*every.shape[:2], 6)))
    by_chance = returns(made(random_share=0.4).histories)[:, 3:]
    assert every[..., :6].mean() < 2 * by_chance.mean()
    poor = returns(made(source="noise_curriculum", noise_last=0.7).histories)[..., -6:].mean()
    assert by_chance.mean() < poor < 0.7 * BEST.mean()


def test_ppo_is_a_source_whose_streams_improve():
    every = returns(made(source="ppo", num_steps=20 * 20, num_streams=8, num_tasks=3).histories)
    assert every.shape[:2] == (3, 8)
    assert every[..., -5:].mean() > every[..., :5].mean() + 0.3


def test_a2c_takes_one_plain_step_a_round_at_the_rates_of_ad():
    options = gradient_source(dataclasses.replace(SMALL, source="a2c", source_discount=0.5), 7)
    assert isinstance(options, PPOConfig)
    assert (options.num_streams, options.num_epochs, options.num_minibatches, options.clip_ratio) == (7, 1, 1, None)
    assert (options.discount, options.trace, options.entropy_weight) == (0.5, 0.95, 0.01)
    assert (options.optim.learning_rate, options.optim.eps) == (1e-4, 1e-6)
    found = made(source="a2c", num_steps=3 * 20, num_tasks=2).histories
    assert found.shape == (2, 5, 60) and np.asarray(found.update).max() == 2
    with pytest.raises(ValueError, match="num_steps=70: must be a multiple of 20, a round of a2c"):
        make_histories(ROOM, dataclasses.replace(SMALL, source="a2c", num_steps=70))


def test_sac_is_a_source_of_continuous_actions():
    env = icrl_envs.make("point_robot")
    config = dataclasses.replace(SMALL, source="sac", source_rate=0.125, num_streams=3, num_steps=40, num_tasks=2)
    options = gradient_source(config, 3)
    assert isinstance(options, SACConfig)
    assert (options.num_streams, options.buffer_size, options.optim.learning_rate) == (3, 10_002, 0.125)
    assert options.discount == 0.99
    found = jax.eval_shape(functools.partial(make_histories, env, config)).histories
    assert found.transitions.action.shape == (2, 3, 40, 2)
    with pytest.raises(ValueError, match="source='sac': is for continuous actions, not for those of env=DarkRoom"):
        make_histories(ROOM, dataclasses.replace(SMALL, source="sac", num_steps=40))


def test_some_streams_act_by_chance():
    found = made(random_share=0.4).histories
    assert found.shape[1] == 5
    late = returns(found)[..., -20:].mean(axis=(0, 2))
    assert late[:3].min() > 3 * late[3:].max()


def test_half_a_history_is_its_beginning():
    half, whole = made(kept_share=0.5).histories, made().histories
    assert half.shape[2] == 30 * H
    np.testing.assert_array_equal(half.transitions.action, whole.transitions.action[..., : 30 * H])
    assert (np.asarray(half.steps) == 30 * H).all()


def test_filtering_draws_good_histories_more_often_and_follows_the_stride():
    found = made(random_share=0.4, lhf=True)
    counts = np.asarray(found.weights)
    assert (counts.sum(axis=1) == 5).all()
    assert counts[:, :3].sum() > 5 * counts[:, 3:].sum()
    dealt = made(random_share=0.4, lhf=True, stride=3)
    assert dealt.histories.shape[1] == dealt.weights.shape[1] == 15
    np.testing.assert_array_equal(dealt.weights, counts.repeat(3, axis=1))


@pytest.mark.parametrize("source", ["ucb1", "thompson_beta"])
def test_bandit_agents_are_sources_of_bandits(source):
    options = {"source": source, "num_tasks": 7, "num_steps": 103}
    histories = made(BANDIT, **options).histories
    assert histories.shape == (7, 5, 103)
    reward = np.asarray(histories.transitions.feedback)
    assert reward[..., -40:].mean() > reward[..., :10].mean()
    with pytest.raises(ValueError, match=f"source='{source}': is for bandits"):
        make_histories(ROOM, dataclasses.replace(SMALL, **options))


@pytest.mark.parametrize(
    "env, options",
    [
        (ROOM, {}),
        (ROOM, {"stride": 6}),
        (ROOM, {"random_share": 0.4}),
        (ROOM, {"kept_share": 0.9, "lhf": True}),
        (ROOM, {"random_share": 0.4, "kept_share": 0.9, "stride": 3, "lhf": True}),
        (HARD, {"stride": 6, "lhf": True}),
    ],
)
def test_memory_is_foretold(env, options):
    """As the compiler plans it."""
    config = dataclasses.replace(SMALL, **options)
    program = jax.jit(lambda: make_histories(env, config)).lower().compile().memory_analysis()
    taken = program.output_size_in_bytes + program.temp_size_in_bytes
    assert 0.9 * taken <= predicted_bytes(env, config) <= 1.45 * taken
    assert held_bytes(env, config) == pytest.approx(program.output_size_in_bytes, rel=0.01)


def test_nothing_is_computed_to_foretell_memory():
    config = dataclasses.replace(SMALL, num_tasks=10**8, stride=2)
    assert count_tasks(ROOM, config) == 10**8
    assert predicted_bytes(ROOM, config) > 10**8 * 5 * 60 * H * 2 * 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "dqn"}, "source='dqn': must be one of q_learning, ppo"),
        ({"num_streams": 0}, "num_streams=0: must be at least 1"),
        ({"random_share": 1.0}, "random_share=1.0: must be in"),
        ({"random_share": 0.95}, "random_share=0.95: must be 0, or make one of 5 streams random and leave one"),
        ({"random_share": 0.01}, "random_share=0.01: must be 0, or make one of 5 streams random"),
        ({"kept_share": 0.0}, r"kept_share=0.0: must be in \(0, 1\]"),
        ({"source_rate": -1.0}, "source_rate=-1.0: must be a finite number above 0"),
        ({"source_discount": 1.5}, r"source_discount=1.5: must be in \[0, 1\]"),
        ({"q_initial": float("inf")}, "q_initial=inf: must be a finite number"),
        ({"q_epsilon": 3.0}, r"q_epsilon=3.0: must be in \[0, 1\]"),
        ({"noise_last": 2.0}, r"noise_last=2.0: must be in \[0, 1\]"),
        ({"noise_decay": 0.0}, r"noise_decay=0.0: must be in \(0, 1\]"),
        ({"lhf_stability": -1.0}, "lhf_stability=-1.0: must be a finite number of at least 0"),
        ({"lhf_temperature": 0.0}, "lhf_temperature=0.0: must be a finite number above 0"),
        ({"source_seed": -1}, "source_seed=-1: must be at least 0"),
        ({"source": "expert", "shared": True}, "shared=True: is for source='q_learning'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **options)


@pytest.mark.parametrize(
    ("env", "options", "message"),
    [
        (ROOM, {"num_steps": 6}, "num_steps=6: must be at least 7, an episode of env=DarkRoom"),
        (ROOM, {"kept_share": 0.015}, "kept_share=0.015: must be enough to keep an episode, 7 of num_steps=420"),
        (ROOM, {"stride": 61}, "stride=61: must be at most 60, the episodes of a history"),
        (ROOM, {"kept_share": 0.5, "stride": 31}, "stride=31: must be at most 30"),
        (BANDIT, {"source": "ucb1", "num_tasks": 7, "lhf": True}, "lhf=True: must be False with env=BernoulliBandit"),
        (BANDIT, {"source": "ucb1", "num_tasks": 7, "stride": 2}, "stride=2: must be 1 with env=BernoulliBandit"),
        (ROBOT, {"source": "expert", "num_tasks": 3, "lhf": True}, "lhf=True: .* best return of a task is -.*above 0"),
    ],
)
def test_histories_without_the_episodes_that_are_asked_for_are_refused(env, options, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(functools.partial(make_histories, env, dataclasses.replace(SMALL, **options)))


def test_a_family_that_lists_no_tasks_needs_their_number():
    with pytest.raises(ValueError, match="num_tasks=None: must be given"):
        make_histories(BANDIT, dataclasses.replace(SMALL, source="ucb1"))

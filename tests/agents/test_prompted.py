import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from two_episodes import TwoEpisodes, on_host, scout, spied

import icrl_envs
from icrl_jax.agents import prompted, thompson_gaussian, ucb, uniform
from icrl_jax.agents.in_context import in_context
from icrl_jax.core import TimeStep
from icrl_jax.models.policy import Policy
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.rollout import Trial, replay, rollout, start

A, N, T = 5, 13, 17
ENV = icrl_envs.make("gaussian_bandit", num_arms=A)
AGENT = thompson_gaussian(A)


begin = on_host(lambda agent, key: start(agent, ENV, ENV.default_params, key).carry)


@functools.partial(on_host, static_argnames=("num_steps", "trial"))
def live(agent, key, num_steps=T, trial=None):
    return rollout(agent, ENV, start(agent, ENV, ENV.sample_task(key), key), key, num_steps, trial=trial)


@pytest.fixture
def context(getkey):
    return live(uniform(ENV), getkey(), N)[1].transition


def counts(transitions):
    return np.bincount(np.asarray(transitions.action), minlength=A)


def test_first_decision_has_seen_all_of_the_context(context, getkey):
    for online in (True, False):
        _, record = live(spied_inside(AGENT, context, online), getkey())
        np.testing.assert_array_equal(record.info["carry"].counts[0], counts(context))
        best = record.info["carry"].means[0]
        for arm in range(A):
            rewards = np.asarray(context.feedback)[np.asarray(context.action) == arm]
            np.testing.assert_allclose(best[arm], rewards.mean() if len(rewards) else 0, rtol=1e-5)


def spied_inside(agent, context, online):
    return prompted(spied(agent), context, online)


def test_prompted_equals_replay_then_act(context, getkey):
    key, key_replay = getkey(), getkey()
    last, blank = jax.tree.map(lambda x: x[-1], context), jax.tree.map(lambda x: np.zeros_like(x[-1]), context)
    obs = np.ones(1, np.float32)

    @on_host
    def by_hand(key, key_replay):
        memory, _ = replay(AGENT, AGENT.init(key), context, key_replay)
        return AGENT.act(memory, key, TimeStep(obs, last, jnp.zeros((), bool)))

    expected = by_hand(key, key_replay)
    for online in (True, False):
        agent = prompted(AGENT, context, online)
        first = on_host(lambda agent, key: agent.act(agent.init(key), key, TimeStep(obs, blank, np.ones((), bool))))
        carry, action, _ = first(agent, key)
        assert action == expected[1]
        if online:
            chex.assert_trees_all_equal(carry.memory, expected[0])


def test_online_goes_on_learning(context, getkey):
    _, record = live(spied_inside(AGENT, context, True), getkey())
    np.testing.assert_array_equal(record.info["carry"].counts.sum(-1), N + np.arange(T))
    np.testing.assert_array_equal(record.info["carry"].counts[-1], counts(context) + counts(record.transition)
                                  - np.eye(A)[record.transition.action[-1]])  # fmt: skip


def test_offline_learns_nothing(context, getkey):
    agent = prompted(spied(AGENT), context, online=False)
    key = getkey()
    state, record = live(agent, key)
    chex.assert_trees_all_equal(state.carry, begin(agent, key))
    np.testing.assert_array_equal(record.info["carry"].counts, np.tile(counts(context), (T, 1)))


def test_a_later_reset_forgets_the_context_online_and_not_offline(context, getkey):
    for online in (True, False):
        _, record = live(spied_inside(AGENT, context, online), getkey(), trial=Trial(steps=7))
        seen = np.asarray(record.info["carry"].counts.sum(-1))
        expected = np.where(np.arange(T) < 7, N + np.arange(T), np.arange(T) % 7) if online else N
        np.testing.assert_array_equal(seen, np.broadcast_to(expected, T))


@pytest.mark.parametrize("empty", [True, False])
def test_without_a_context_online_is_the_agent_itself_and_offline_a_beginner_for_ever(empty, context, getkey):
    nothing = jax.tree.map(lambda x: x[:0], context) if empty else None
    key = getkey()
    chex.assert_trees_all_equal(live(prompted(AGENT, nothing), key), live(AGENT, key))
    state, record = live(prompted(spied(AGENT), nothing, online=False), key)
    assert (record.info["carry"].counts == 0).all() and (state.carry.counts == 0).all()
    assert len(np.unique(record.transition.action)) > 1
    _, record = live(prompted(ucb(A), nothing, online=False), key)
    assert (record.transition.action == 0).all()  # the first of the arms never tried, every time


def test_a_context_of_one_transition_counts(context, getkey):
    one = jax.tree.map(lambda x: x[:1], context)
    _, record = live(prompted(spied(AGENT), one), getkey())
    np.testing.assert_array_equal(record.info["carry"].counts[0], np.eye(A)[context.action[0]])


def test_contexts_vmap_beside_tasks(getkey):
    keys = jax.random.split(getkey(), 3)
    contexts = on_host(jax.vmap(lambda key: live.__wrapped__(uniform(ENV), key, N)[1].transition))(keys)

    def actions(context, key):
        return live.__wrapped__(prompted(AGENT, context), key)[1].transition.action

    together = on_host(jax.vmap(actions))(contexts, keys)
    alone = [live(prompted(AGENT, _at(contexts, i)), keys[i])[1].transition.action for i in range(3)]
    np.testing.assert_array_equal(together, alone)


def _at(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


def test_an_episodic_context_shows_its_final_observation():
    env = TwoEpisodes()
    key = jax.random.key(5)
    task = _at(jax.device_get(env.tasks("all")), 1)
    run = on_host(lambda agent, key, n: rollout(agent, env, start(agent, env, task, key), key, n), static_argnums=2)
    context = run(scout(), key, 3)[1].transition
    assert context.terminated.any() or context.truncated.any()
    for online in (True, False):
        _, record = run(prompted(scout(), context, online), key, 5)
        assert (record.transition.feedback == 1).all()


def test_a_ragged_context_is_refused(context):
    with pytest.raises(ValueError, match=rf"lengths \[{N - 1}, {N}\]"):
        prompted(AGENT, context._replace(feedback=context.feedback[1:]))


def test_context_that_the_models_positions_cannot_number_is_refused(context, getkey):
    config = TransformerConfig(width=8, num_layers=1, num_heads=1, context_len=N, positions="learned")
    policy = Policy(config, ENV.observation_space(), ENV.action_space(), getkey())
    prompted(in_context(policy), jax.tree.map(lambda x: x[1:], context))
    with pytest.raises(ValueError, match=f"transitions of the context \\+ 1={N + 1} is more than context_len={N}"):
        prompted(in_context(policy), context)

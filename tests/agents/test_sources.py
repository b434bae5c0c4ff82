"""Agents as source algorithms: their streams are rollouts, apart or behind copies."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from two_episodes import TwoEpisodes, on_host, scout, spied

import icrl_envs
from icrl_jax.agents import as_learner, q_learning, thompson_gaussian
from icrl_jax.rollout import rollout, start

ENV = TwoEpisodes()
MDP = icrl_envs.make("tabular_mdp", num_states=5, num_actions=3, horizon=7)
N, T = 5, 11


@on_host
def two_rounds(learner, task, keys):
    state, first = learner.learn(learner.init(keys[0], task), keys[1])
    return first, learner.learn(state, keys[2])[1]


def test_streams_apart_are_rollouts_from_an_empty_memory(getkey):
    keys, task = jax.random.split(getkey(), 3), ENV.sample_task(getkey())
    agent = spied(scout())
    rounds = two_rounds(as_learner(agent, ENV, N, T), task, keys)

    @on_host
    def alone(n):
        state = start(agent, ENV, task, jax.random.split(keys[0], N)[n])
        state, first = rollout(agent, ENV, state, jax.random.split(keys[1], N)[n], T)
        return first, rollout(agent, ENV, state, jax.random.split(keys[2], N)[n], T)[1]

    for n in (0, N - 1):
        chex.assert_trees_all_equal(jax.tree.map(lambda x, n=n: x[:, n], rounds), alone(n))
    actions = rounds[0].transition.action
    assert actions.shape == (T, N) and any((actions[:, 0] != actions[:, n]).any() for n in range(1, N))
    assert (rounds[0].info["carry"][0] == -1).all()


def test_streams_that_share_a_learner_act_behind_copies(getkey):
    keys, task = jax.random.split(getkey(), 3), MDP.sample_task(getkey())
    agent = spied(q_learning(MDP))
    rounds = two_rounds(as_learner(agent, MDP, N, T, shared=True), task, keys)
    env = icrl_envs.copies(MDP, N)
    together, _ = on_host(lambda: rollout(agent, env, start(agent, env, task, keys[0]), keys[1], T))()[::-1]
    chex.assert_trees_all_equal(rounds[0].transition, together.transition)
    np.testing.assert_array_equal(rounds[0].info["carry"].counts, np.arange(T))
    np.testing.assert_array_equal(rounds[1].info["carry"].counts, T + np.arange(T))
    np.testing.assert_array_equal(rounds[0].reset, np.arange(T)[:, None] * np.ones((1, N)) == 0)
    assert rounds[0].trial_end.shape == (T, N) and not rounds[1].reset.any()


def test_agents_that_do_not_act_in_copies_are_refused():
    bandit = icrl_envs.make("gaussian_bandit", num_arms=3)
    for agent, env in ((thompson_gaussian(3), bandit), (scout(), ENV)):
        with pytest.raises(ValueError, match="shared=True: must be False for an agent that does not act in copies"):
            as_learner(agent, env, 2, 3, shared=True)


@pytest.mark.parametrize("name, value", [("num_streams", 0), ("num_steps", 1.5), ("shared", 1)])
def test_wrong_values_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name}="):
        as_learner(scout(), ENV, **{"num_streams": 2, "num_steps": 3, name: value})


def test_learners_stack_and_vmap(getkey):
    """What their agents are made of are leaves."""
    one, other = (as_learner(q_learning(MDP, initial=x), MDP, N, T, shared=True) for x in (0.0, 1.0))
    stacked = jax.tree.map(lambda *x: jnp.stack(x), one, other)
    task, key = MDP.sample_task(getkey()), getkey()
    first = on_host(jax.vmap(lambda learner: learner.init(key, task)))(stacked).carry.values
    assert (first[0] == 0).all() and (first[1] == 1).all()

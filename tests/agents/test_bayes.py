"""The Bayes-optimal agent against a recursion in exact fractions, and against what it should earn."""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from two_episodes import on_host

import icrl_envs
from icrl_jax.agents import bayes, bayes_value, thompson_beta
from icrl_jax.core import TimeStep, Transition
from icrl_jax.evaluate import evaluate
from icrl_jax.rollout import replay

T = 7


@functools.cache
def exact(left, *known):
    """Most that `left` pulls earn, and what each arm first would, knowing (rewards + 1, failures + 1) of both arms."""
    if left == 0:
        return Fraction(0), ()
    values = []
    for arm in (0, 1):
        good, bad = known[2 * arm : 2 * arm + 2]
        after = [list(known), list(known)]
        after[0][2 * arm] += 1
        after[1][2 * arm + 1] += 1
        p = Fraction(good, good + bad)
        values.append(p * (1 + exact(left - 1, *after[0])[0]) + (1 - p) * exact(left - 1, *after[1])[0])
    return max(values), tuple(values)


@pytest.mark.parametrize("num_steps", range(1, T + 1))
def test_its_value_is_that_of_the_recursion(num_steps):
    np.testing.assert_allclose(bayes_value(num_steps), float(exact(num_steps, 1, 1, 1, 1)[0]), rtol=1e-12)
    if num_steps <= 2:
        assert exact(num_steps, 1, 1, 1, 1)[0] == [Fraction(1, 2), Fraction(13, 12)][num_steps - 1]


@on_host
def answers(agent, actions, rewards):
    """After each prefix of histories [B, T], [B, T + 1]."""
    never = jnp.zeros((), bool)

    def one(actions, rewards):
        zeros = jnp.zeros((T + 1, 1))
        past = Transition(zeros, actions, rewards, zeros, jnp.zeros(T + 1, bool), jnp.zeros(T + 1, bool))
        carry, (found, _) = replay(agent, agent.init(jax.random.key(0)), past, jax.random.key(1))
        last = jax.tree.map(lambda x: x[-1], past)
        beyond = agent.act(carry, jax.random.key(2), TimeStep(jnp.zeros(1), last, never))[1]
        return jnp.append(found, beyond)

    return jax.vmap(one)(actions, rewards)


def test_its_actions_are_those_of_the_recursion_after_any_history():
    """Also where nobody who plans would go; once all pulls are made, those of the better mean."""
    rng = np.random.default_rng(0)
    actions = rng.integers(0, 2, (300, T + 1)).astype(np.int32)
    rewards = (rng.random((300, T + 1)) < rng.random((300, 1))).astype(np.float32)
    found, decided = answers(bayes(T), actions, rewards), 0
    for b in range(len(actions)):
        known = [1, 1, 1, 1]
        for t in range(T + 2):
            means = [Fraction(known[0], known[0] + known[1]), Fraction(known[2], known[2] + known[3])]
            values = exact(T - t, *known)[1] if t < T else means
            assert values[found[b, t]] == max(values)
            decided += values[0] != values[1] and np.argmax(values) != np.argmax(means)
            if t <= T:
                known[2 * actions[b, t] + (rewards[b, t] == 0)] += 1
    assert decided > 20  # it often pulls what looks worse


def test_a_hundred_pulls_cost_what_they_should():
    """1.748 in expectation; on the same tasks and noise greedy has 2.66 and Thompson sampling 2.79."""
    env = icrl_envs.make("bernoulli_bandit", num_arms=2)
    assert round(100 * 2 / 3 - bayes_value(100), 3) == 1.748
    tasks = icrl_envs.sample_tasks(env, jax.random.key(0), 4001)
    lost = jax.jit(lambda agent: evaluate(agent, env, tasks, jax.random.key(1), 100).metrics["cumulative_regret"])
    regret = {who: np.asarray(lost(agent)) for who, agent in PLAYERS.items()}
    errors = {who: x.std() / len(x) ** 0.5 for who, x in regret.items()}
    for who, expected in (("bayes", 1.748), ("greedy", 2.66), ("thompson", 2.79)):
        assert abs(regret[who].mean() - expected) < 4 * errors[who], who
    assert errors["bayes"] < 0.05


PLAYERS = {"bayes": bayes(100), "greedy": bayes(1), "thompson": thompson_beta(2)}


@pytest.mark.parametrize("num_steps", [0, 201, 2.0])
def test_other_numbers_of_pulls_are_refused(num_steps):
    with pytest.raises(ValueError, match=f"num_steps={num_steps}: must be an integer in 1 ..= 200"):
        bayes(num_steps)

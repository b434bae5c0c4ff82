"""Regret of our agents against plain NumPy ones, written again from the papers, on the same tasks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from two_episodes import on_host

import icrl_envs
from icrl_jax.agents import (
    empirical_mean,
    linucb,
    oracle,
    thompson_beta,
    thompson_gaussian,
    thompson_linear,
    ucb,
    ucb1,
    uniform,
)
from icrl_jax.rollout import rollout, start

A, B, T = 5, 500, 101
GAUSSIAN = icrl_envs.make("gaussian_bandit", num_arms=A)
BERNOULLI = icrl_envs.make("bernoulli_bandit", num_arms=A)
LINEAR = icrl_envs.make("linear_bandit", "dpt")
SD = 0.3


@functools.partial(on_host, static_argnames="env")
def ours(agent, env, tasks, key):
    def one_task(task, key):
        _, record = rollout(agent, env, start(agent, env, task, key), key, T)
        return jnp.sum(env.means(task).max() - record.env_info["expected_reward"])

    return jax.vmap(one_task)(tasks, jax.random.split(key, B))


@pytest.fixture(scope="module")
def tasks():
    keys = jax.random.split(jax.random.key(17), B)
    return {env: jax.vmap(lambda k, env=env: env.sample_task(k, "test"))(keys) for env in (GAUSSIAN, BERNOULLI, LINEAR)}


def numpy_regret(policy, means, reward, seed):
    """All tasks at once: `policy(rng, t, n, total)` sees pulls and reward totals [B, A] and returns arms [B]."""
    rng = np.random.default_rng(seed)
    rows, regret = np.arange(len(means)), np.zeros(len(means))
    n, total = np.zeros(means.shape), np.zeros(means.shape)
    for t in range(T):
        arms = policy(rng, t, n, total)
        mean = means[rows, arms]
        regret += means.max(-1) - mean
        n[rows, arms] += 1
        total[rows, arms] += reward(rng, mean)
    return regret


def gaussian_reward(rng, mean):
    return rng.normal(mean, SD)


def bernoulli_reward(rng, mean):
    return rng.binomial(1, mean)


def each_once(index):
    def policy(rng, t, n, total):
        return np.full(len(n), t) if t < n.shape[1] else index(t, n, total / n).argmax(-1)

    return policy


def np_thompson(rng, t, n, total):
    mean = (0.5 * 12 + total / SD**2) / (12 + n / SD**2)
    return (mean + rng.normal(size=n.shape) / np.sqrt(12 + n / SD**2)).argmax(-1)


def np_beta(rng, t, n, total):
    return rng.beta(1 + total, 1 + n - total).argmax(-1)


def normal_equations(n, total, ridge):
    features = np.asarray(LINEAR.features, np.float64)
    gram = ridge * np.eye(2) + np.einsum("ba,ad,ae->bde", n, features, features)
    inverse = np.linalg.inv(gram)
    return features, inverse, np.einsum("bde,be->bd", inverse, total @ features)


def np_linucb(rng, t, n, total, beta=1.0):
    if t == 0:
        return rng.integers(0, n.shape[1], len(n))
    features, inverse, theta = normal_equations(n, total, 1.0)
    width = np.sqrt(np.einsum("ad,bde,ae->ba", features, inverse, features))
    return (theta @ features.T + beta * width).argmax(-1)


def np_thompson_linear(rng, t, n, total):
    features, inverse, mean = normal_equations(n, total, SD**2 / 0.5)
    theta = mean + np.einsum("bde,be->bd", np.linalg.cholesky(SD**2 * inverse), rng.normal(size=mean.shape))
    return (theta @ features.T).argmax(-1)


PAIRS = {
    "empirical_mean": (empirical_mean(A), GAUSSIAN, each_once(lambda t, n, m: m), gaussian_reward),
    "ucb": (ucb(A), GAUSSIAN, each_once(lambda t, n, m: m + np.sqrt(1 / n)), gaussian_reward),
    "ucb1": (ucb1(A), GAUSSIAN, each_once(lambda t, n, m: m + np.sqrt(2 * np.log(t) / n)), gaussian_reward),
    "thompson_gaussian": (thompson_gaussian(A), GAUSSIAN, np_thompson, gaussian_reward),
    "thompson_beta": (thompson_beta(A), BERNOULLI, np_beta, bernoulli_reward),
    "linucb": (linucb(LINEAR.features), LINEAR, np_linucb, gaussian_reward),
    "linreg": (
        linucb(LINEAR.features, beta=0.0),
        LINEAR,
        functools.partial(np_linucb, beta=0.0),
        gaussian_reward,
    ),
    "thompson_linear": (thompson_linear(LINEAR.features, 0.5, SD), LINEAR, np_thompson_linear, gaussian_reward),
}


@pytest.mark.parametrize("name", PAIRS)
def test_regret_equals_that_of_an_independent_implementation(name, tasks):
    """Same tasks, so the differences pair up: their mean is zero within four standard errors."""
    agent, env, policy, reward = PAIRS[name]
    means = np.asarray(jax.vmap(env.means)(tasks[env]), np.float64)
    difference = ours(agent, env, tasks[env], jax.random.key(5)) - numpy_regret(policy, means, reward, seed=7)
    z = difference.mean() / (difference.std() / np.sqrt(B))
    assert abs(z) < 4, f"z = {z:.1f}, mean difference {difference.mean():.3f}"


def test_agents_differ_by_more_than_the_test_of_equality_allows(tasks):
    """UCB1, constant-bonus UCB and Thompson sampling are told apart by the same statistic."""
    regrets = [np.asarray(ours(agent, GAUSSIAN, tasks[GAUSSIAN], jax.random.key(5))) for agent in (ucb(A), ucb1(A))]
    difference = regrets[0] - regrets[1]
    assert abs(difference.mean() / (difference.std() / np.sqrt(B))) > 20


@pytest.mark.parametrize("env", [GAUSSIAN, BERNOULLI, LINEAR], ids=lambda env: env.name)
def test_oracle_has_no_regret(env, tasks):
    assert (ours(oracle(env), icrl_envs.revealed(env), tasks[env], jax.random.key(5)) == 0).all()


def test_regret_of_uniform_is_its_expectation(tasks):
    """T times the mean gap; conditional on the tasks its variance is T times the variance over arms."""
    means = np.asarray(tasks[GAUSSIAN].means, np.float64)
    expected = T * (means.max(-1) - means.mean(-1))
    error = np.sqrt(T * means.var(-1).sum()) / B
    regret = np.asarray(ours(uniform(GAUSSIAN), GAUSSIAN, tasks[GAUSSIAN], jax.random.key(5)))
    assert abs((regret - expected).mean()) < 4 * error

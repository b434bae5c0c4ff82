"""What agents know after a history, against closed forms in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from two_episodes import on_host

from icrl_jax.agents import empirical_mean, lcb, linucb, thompson_beta, thompson_gaussian, thompson_linear, ucb, ucb1
from icrl_jax.core import TimeStep, Transition
from icrl_jax.rollout import replay

A, D = 7, 3


@on_host
def relive(agent, transitions):
    key = jax.random.key(0)
    return replay(agent, agent.init(key), transitions, key)


def history(actions, rewards) -> Transition:
    n = len(actions)
    obs, no = np.ones((n, 1), np.float32), np.zeros(n, bool)
    return Transition(obs, np.asarray(actions, np.int32), np.asarray(rewards, np.float32), obs, no, no)


@on_host
def decide(agent, transitions, keys):
    """What an agent does after all of a history, once for every key."""
    return decisions(agent, transitions, keys)[0]


def decisions(agent, transitions, keys):
    key = jax.random.key(0)
    carry, _ = replay(agent, agent.init(key), transitions, key)
    last = TimeStep(jnp.ones(1), jax.tree.map(lambda x: x[-1], transitions), jnp.zeros((), bool))
    return jax.vmap(lambda k: agent.act(carry, k, last)[1:])(keys)


def shares(agent, transitions, num_actions=A, n=40_000):
    actions = decide(agent, transitions, jax.random.split(jax.random.key(7), n))
    return np.bincount(np.asarray(actions), minlength=num_actions) / n


def assert_same_law(observed, expected, n=40_000):
    """Two shares of n draws each, five standard errors."""
    error = np.sqrt((expected * (1 - expected) + 1 / n) / n) * np.sqrt(2)
    np.testing.assert_array_less(np.abs(observed - expected), 5 * error)


@pytest.fixture(scope="module")
def pulls():
    generator = np.random.default_rng(11)
    actions = np.concatenate([generator.integers(0, A - 1, 30), [0, 0]])  # the last arm is never pulled
    return actions, generator.normal(0.3, 0.6, len(actions))


def best_of(samples):
    return np.bincount(samples.argmax(-1), minlength=samples.shape[-1]) / len(samples)


def test_gaussian_posterior_is_the_closed_form(pulls):
    actions, rewards = pulls
    prior_mean, prior_var, noise_sd = 0.4, 0.2, 0.7
    n = np.bincount(actions, minlength=A)
    total = np.bincount(actions, rewards, minlength=A)
    var = 1 / (1 / prior_var + n / noise_sd**2)
    mean = var * (prior_mean / prior_var + total / noise_sd**2)
    draws = np.random.default_rng(5).normal(mean, np.sqrt(var), (40_000, A))
    agent = thompson_gaussian(A, prior_mean, prior_var, noise_sd)
    assert_same_law(shares(agent, history(*pulls)), best_of(draws))


def test_many_draws_vote(pulls):
    """The winner of 5000 draws is the likeliest best arm; the vote of 3 has its own law."""
    agent = thompson_gaussian(A, 0.4, 0.2, 0.7)
    p = shares(agent, history(*pulls))
    votes = shares(thompson_gaussian(A, 0.4, 0.2, 0.7, draws=5000), history(*pulls), n=3)
    assert votes[p.argmax()] == 1
    drawn = np.random.default_rng(5).choice(A, p=p, size=(40_000, 3))
    expected = best_of(np.eye(A)[drawn].sum(1))
    assert_same_law(shares(thompson_gaussian(A, 0.4, 0.2, 0.7, draws=3), history(*pulls)), expected)


def test_beta_posterior_counts_successes_and_failures(pulls):
    actions, rewards = pulls[0], (pulls[1] > 0.3).astype(float)
    n, successes = np.bincount(actions, minlength=A), np.bincount(actions, rewards, minlength=A)
    draws = np.random.default_rng(5).beta(1 + successes, 1 + n - successes, (40_000, A))
    assert_same_law(shares(thompson_beta(A), history(actions, rewards)), best_of(draws))


@pytest.fixture(scope="module")
def features():
    return np.random.default_rng(2).normal(size=(A, D))


def test_linear_posterior_is_the_closed_form(pulls, features):
    actions, rewards = pulls
    prior_var, noise_sd = 0.5, 0.7
    x = features[actions]
    cov = np.linalg.inv(np.eye(D) / prior_var + x.T @ x / noise_sd**2)
    theta = np.random.default_rng(5).multivariate_normal(cov @ x.T @ rewards / noise_sd**2, cov, 40_000)
    agent = thompson_linear(features, prior_var, noise_sd)
    assert_same_law(shares(agent, history(*pulls)), best_of(theta @ features.T))


def test_linear_agents_tell_the_probabilities_of_their_actions(pulls, features):
    """Of many draws the shares; of one, and of LinUCB after its first pull, certainty."""
    told = on_host(lambda agent, keys: decisions(agent, history(*pulls), keys))
    keys = jax.random.split(jax.random.key(3), 5)
    for agent in (thompson_linear(features, 0.5, 0.7), linucb(features)):
        actions, info = told(agent, keys)
        np.testing.assert_array_equal(info["probs"], np.eye(A)[actions])
    actions, info = told(thompson_linear(features, 0.5, 0.7, draws=40_000), keys)
    assert_same_law(info["probs"][0], shares(thompson_linear(features, 0.5, 0.7), history(*pulls)))
    assert len(np.unique(actions)) > 1  # it acts on one draw, not by their vote


@pytest.mark.parametrize("num_steps", [13, 10_000])
def test_linucb_is_ridge_regression_in_float64_even_after_ten_thousand_steps(num_steps, features):
    """Almost always one arm: what the others' directions hold must not drown in rounding errors."""
    from icrl_jax.agents.arms import Arms
    from icrl_jax.agents.linear import ridge_regression

    generator = np.random.default_rng(num_steps)
    actions = np.where(generator.random(num_steps) < 5 / num_steps, generator.integers(0, A, num_steps), 2)
    rewards = features[actions] @ np.array([0.3, -0.5, 0.2]) + generator.normal(0, 0.3, num_steps)
    agent = linucb(features, ridge=0.7, beta=1.3)
    carry, _ = relive(agent, history(actions, rewards))
    seen = slice(None, -1)  # the last is still to be learned
    x = features[actions][seen]
    gram = 0.7 * np.eye(D) + x.T @ x
    theta, factor = ridge_regression(Arms(*carry), jnp.asarray(features, jnp.float32), jnp.float32(0.7))
    np.testing.assert_allclose(theta, np.linalg.solve(gram, x.T @ rewards[seen]), atol=1e-3)
    width = np.sqrt(np.einsum("ad,de,ae->a", features, np.linalg.inv(gram), features))
    mine = np.linalg.norm(np.linalg.solve(np.asarray(factor, np.float64), features.T), axis=0)
    np.testing.assert_allclose(mine, width, rtol=1e-3)
    x = features[actions]
    gram = 0.7 * np.eye(D) + x.T @ x
    width = np.sqrt(np.einsum("ad,de,ae->a", features, np.linalg.inv(gram), features))
    index = features @ np.linalg.solve(gram, x.T @ rewards) + 1.3 * width
    assert shares(agent, history(actions, rewards), n=3)[index.argmax()] == 1


def test_linucb_pulls_first_at_random(features):
    agent, keys = linucb(features), jax.random.split(jax.random.key(1), 7000)
    blank = jax.tree.map(
        lambda x: x[0] * 0, history([0], [0.0])._replace(terminated=jnp.zeros(1), truncated=jnp.zeros(1))
    )
    first = TimeStep(jnp.ones(1), blank._replace(terminated=jnp.zeros((), bool)), jnp.ones((), bool))
    actions, info = on_host(jax.vmap(lambda k: agent.act(agent.init(k), k, first)[1:]))(keys)
    assert_same_law(np.bincount(actions, minlength=A) / 7000, np.full(A, 1 / A), 7000)
    np.testing.assert_allclose(info["probs"], 1 / A, rtol=1e-6)


@pytest.mark.parametrize("num_steps", [11, 10_000])
def test_means_stay_exact_over_ten_thousand_steps(num_steps):
    generator = np.random.default_rng(num_steps)
    actions, rewards = generator.integers(0, 2, num_steps), generator.normal(0.3, 0.3, num_steps)
    rewards[actions == 1] = 0.3  # without noise, sums in float32 would round the same way every time
    agent = empirical_mean(2)
    carry, _ = relive(agent, history(actions, rewards))
    for arm in range(2):
        seen = rewards[:-1][actions[:-1] == arm]
        assert carry.counts[arm] == len(seen)
        np.testing.assert_allclose(carry.means[arm], seen.mean(), rtol=3e-6)


ACTIONS, REWARDS = (
    [0, 0, 0, 0, 1, 2, 2],
    [0.5, 0.7, 0.5, 0.7, 0.7, 0.1, 0.2],
)  # means .6 (4), .7 (1), .15 (2), arm 3 unseen


@pytest.mark.parametrize(
    "agent, action",
    [
        (empirical_mean(4), 3),
        (empirical_mean(4, unseen="never"), 1),
        (empirical_mean(4, unseen="zero"), 1),
        (lcb(4), 0),  # .6 - .5 against .7 - 1
        (lcb(4, c=0.01), 1),  # .55 against .6
        (lcb(4, c=0.64, unseen="zero"), 0),  # .6 - .4, .7 - .8, .15 - .57, 0 - .8
        (lcb(4, unseen="first"), 3),
        (ucb(4), 3),
        (ucb1(4), 3),
    ],
)
def test_index_policies_on_an_example_worked_by_hand(agent, action):
    assert shares(agent, history(ACTIONS, REWARDS), 4, n=3)[action] == 1


def test_bonuses_worked_by_hand():
    """Arm 0: mean .9, 9 pulls; arm 1: mean .2, 1 pull. sqrt(c/n): .9 + sqrt(c)/3 against .2 + sqrt(c), equal at 1.05^2.

    UCB1 after ten pulls: .9 + sqrt(2 ln 10 / 9) = 1.615 against .2 + sqrt(2 ln 10) = 2.346.
    """
    transitions = history([0] * 9 + [1], [0.9] * 9 + [0.2])
    for agent, action in ((ucb(2, c=1.04**2), 0), (ucb(2, c=1.06**2), 1), (ucb1(2), 1)):
        assert shares(agent, transitions, 2, n=3)[action] == 1
    # 1000 and 50 pulls: 1.5 + sqrt(2 ln 1050 / 1000) = 1.61796 against m + sqrt(2 ln 1050 / 50) = m + .52749
    for mean, action in ((1.085, 0), (1.095, 1)):
        assert shares(ucb1(2), history([0] * 1000 + [1] * 50, [1.5] * 1000 + [mean] * 50), 2, n=3)[action] == 1


@pytest.mark.parametrize("build", [empirical_mean, ucb, ucb1])
def test_every_arm_is_pulled_once_first(build):
    paid = history(range(A), [9.0 - arm for arm in range(A)])  # the first pays most
    _, (actions, _) = relive(build(A), paid)
    np.testing.assert_array_equal(actions, np.arange(A))


def test_ties_go_to_the_lowest_arm():
    for agent in (empirical_mean(3), lcb(3), ucb(3), ucb1(3)):
        assert shares(agent, history([2, 1, 0], [0.5] * 3), 3, n=3)[0] == 1


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: ucb(1), r"num_arms=1: must be an integer of at least 2"),
        (lambda: thompson_beta(2.5), r"num_arms=2.5: must be an integer of at least 2"),
        (lambda: ucb(5, c=-1.0), r"c=-1.0: must be a finite number of at least 0"),
        (lambda: lcb(5, unseen="last"), r"unseen='last': must be one of 'first', 'never', 'zero'"),
        (lambda: thompson_gaussian(5, noise_sd=0.0), r"noise_sd=0.0: must be a finite number above 0"),
        (lambda: thompson_gaussian(5, prior_var=-1.0), r"prior_var=-1.0: must be a finite number above 0"),
        (lambda: thompson_gaussian(5, prior_mean=float("nan")), r"prior_mean=nan: must be a finite number"),
        (lambda: thompson_gaussian(5, draws=0), r"draws=0: must be an integer of at least 1"),
        (lambda: linucb(np.zeros(5)), r"features=\(5,\): must be of shape \[A, d\]"),
        (lambda: linucb(np.zeros((5, 2)), ridge=0.0), r"ridge=0.0: must be a finite number above 0"),
        (lambda: linucb(np.zeros((5, 2)), beta=-0.1), r"beta=-0.1: must be a finite number of at least 0"),
        (lambda: thompson_linear(np.zeros((5, 2)), 0.0, 0.3), r"prior_var=0.0: must be a finite number above 0"),
    ],
)
def test_wrong_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        build()

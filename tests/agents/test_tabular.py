"""PSRL and UCB-VI against plain NumPy ones, written again from the papers, on the same histories."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from two_episodes import on_host, spied

import icrl_envs
from icrl_jax.agents import psrl, ucbvi, uniform
from icrl_jax.agents.psrl import sample_mdp
from icrl_jax.agents.tabular import count, no_visits
from icrl_jax.core import TimeStep, Transition
from icrl_jax.evaluate import evaluate
from icrl_jax.rollout import replay

S, A, H = 5, 3, 7
MDP = icrl_envs.make("tabular_mdp", num_states=S, num_actions=A, horizon=H)


def history(env, num_steps, seed) -> Transition:
    """A walk of uniform actions, some of them outside the range, that no MDP has made; rewards are 0 or 1."""
    random, no = np.random.default_rng(seed), np.zeros(num_steps, bool)
    walk = np.minimum(random.geometric(0.5, num_steps + 1), env.num_states) - 1  # some are visited often
    actions = random.integers(-1, env.num_actions, num_steps).astype(np.int32)
    actions[walk[:-1] == env.num_states - 1] = 1  # so that some pairs are never visited
    rewards = random.integers(0, 2, num_steps).astype(np.float32)
    ends = np.arange(1, num_steps + 1) % env.horizon == 0
    return Transition(walk[:-1].astype(np.int32), actions, rewards, walk[1:].astype(np.int32), no, ends)


def tables(env, history, num_tables=1):
    """Visits and rewards of every step, [G, S, A, S] and [G, S, A], one step at a time."""
    counts = np.zeros((num_tables, env.num_states, env.num_actions, env.num_states))
    paid = np.zeros(counts.shape[:-1])
    step = 0
    for obs, action, feedback, next_obs, _, ended in zip(*history, strict=True):
        at = min(step, num_tables - 1), obs, max(action, 0)
        counts[at][next_obs] += 1
        paid[at] += feedback
        step = 0 if ended else step + 1
    return counts, paid


def backward(transitions, rewards, limit):
    """Backward induction by definition, [H, S, A] from tables of every step."""
    q = np.zeros((len(limit) + 1, *limit.shape[1:]))
    for h in reversed(range(len(limit))):
        for s, a in itertools.product(*map(range, limit.shape[1:])):
            q[h, s, a] = min(limit[h, s, a], rewards[h, s, a] + transitions[h, s, a] @ q[h + 1].max(-1))
    return q[:-1]


@on_host
def relive(agent, transitions):
    key = jax.random.key(0)
    return replay(spied(agent), agent.init(key), transitions, key)[1]


@pytest.mark.parametrize("num_tables", [1, H])
def test_visits_are_counted_like_in_a_plain_loop(num_tables):
    seen = history(MDP, 53, 11)
    visits = on_host(lambda seen: jax.lax.scan(lambda v, t: (count(v, t), None), no_visits(num_tables, MDP), seen)[0])(
        seen
    )
    counts, paid = tables(MDP, seen, num_tables)
    np.testing.assert_array_equal(visits.counts, counts)
    np.testing.assert_allclose(visits.means, paid / np.maximum(counts.sum(-1), 1), rtol=1e-6)
    assert visits.step == 53 % H and (seen.action < 0).any() and counts.sum(-1).min() == 0


def np_ucbvi(form, seen, scale, num_episodes):
    """Q that rules each episode of a history, [episodes, H, S, A]."""
    limit, found, steps = np.full((H, S, A), float(H)), [], H * num_episodes
    for first in range(0, len(seen.obs), H):
        so_far = jax.tree.map(lambda x, first=first: x[:first], seen)
        counts, paid = tables(MDP, so_far, 1 if form == "azar" else H)
        n = counts.sum(-1)
        at_least = np.maximum(n, 1)
        length = np.log(5 * S * A * steps * steps) if form == "azar" else np.log(S * A * steps * steps)  # delta = 1 / T
        bonus = 7 * H * length / np.sqrt(at_least) if form == "azar" else 2 * H * np.sqrt(length / at_least)
        bonus = np.where(n == 0, np.inf, scale * bonus)
        every = lambda x: np.broadcast_to(x, (H, *x.shape[1:]))
        rewards = every(paid / at_least + bonus)
        q = backward(every(counts / at_least[..., None]), rewards, limit)
        limit = q if form == "azar" else limit
        found.append(q)
    return np.stack(found)


@pytest.mark.parametrize("form, scale, num_episodes", [("azar", 0.003, 17), ("lin", 0.05, 17)])
def test_ucbvi_plans_what_an_independent_implementation_does(form, scale, num_episodes):
    seen = history(MDP, 31 * H + 3, 5)
    _, info = relive(ucbvi(MDP, num_episodes, form, scale), seen)
    plans, expected = info["carry"].plan, np_ucbvi(form, seen, scale, num_episodes)
    for t, plan in enumerate(plans):
        np.testing.assert_allclose(plan, expected[t // H], rtol=1e-4)
        q = plan[t % H, seen.obs[t]].astype(float)
        best = q == q.max()
        exponentials = np.exp(num_episodes * (q - q.max()))
        probs = best / best.sum() if form == "azar" else exponentials / exponentials.sum()
        np.testing.assert_allclose(info["probs"][t], probs, rtol=1e-3, atol=1e-6)
    assert (expected[0] == H).all()
    assert (expected[-1] < H).mean() > 0.1 and (expected[-1] == H).any()


def test_ucbvi_of_azar_never_hopes_for_more_than_before():
    """A reward late in a walk without any would raise a plain empirical Q."""
    seen = history(MDP, 8 * H, 5)
    seen = seen._replace(feedback=(np.arange(8 * H) > 6 * H).astype(np.float32))
    plans = relive(ucbvi(MDP, 17, scale=0.0), seen)[1]["carry"].plan
    assert (np.diff(plans, axis=0) <= 0).all()
    assert (plans[-1] < H).any()


@pytest.mark.parametrize("form", ["azar", "lin"])
def test_ucbvi_acts_by_its_probabilities(form, getkey):
    agent, n = ucbvi(MDP, 2, form), 4001
    carry = agent.init(getkey())
    q = jnp.asarray([1.0, 2.0, 2.0] if form == "azar" else [0.1, 0.9, 0.4])
    carry = carry._replace(
        plan=carry.plan.at[4, 2].set(q), known=carry.known._replace(step=jnp.int32(3))
    )  # what it is shown takes it on to step 4
    no = jnp.zeros((), bool)
    prev = Transition(jnp.int32(0), jnp.int32(0), jnp.zeros(()), jnp.int32(0), no, no)
    act = on_host(jax.vmap(lambda key: agent.act(carry, key, TimeStep(jnp.int32(2), prev, no))[1:]))
    actions, info = act(jax.random.split(getkey(), n))
    p = info["probs"][0]
    expected = [0, 0.5, 0.5] if form == "azar" else np.exp(2 * q) / np.exp(2 * q).sum()
    np.testing.assert_allclose(p, expected, rtol=1e-5)
    np.testing.assert_allclose(np.bincount(actions, minlength=A) / n, p, atol=0.04)


@pytest.mark.parametrize("reward_law, noise_sd", [("bernoulli", 1.0), ("gaussian", 0.7), ("gaussian", 0.0)])
def test_psrl_draws_mdps_with_the_moments_of_the_posterior(reward_law, noise_sd, getkey):
    """Means and variances in closed form: Dirichlet and Beta laws, and averages weighted by precision."""
    concentration = 0.4
    seen = history(MDP, 53, 11)
    counts, paid = (x[0] for x in tables(MDP, seen))
    visits = counts.sum(-1)
    known = no_visits(1, MDP)._replace(
        counts=jnp.asarray(counts[None], jnp.float32),
        means=jnp.asarray(paid[None] / np.maximum(visits, 1)[None], jnp.float32),
    )
    believed = reward_law, jnp.float32(concentration), jnp.float32(noise_sd**2)
    draw = on_host(jax.vmap(lambda key: sample_mdp(known, *believed, key)[reward_law != "bernoulli" :]))
    *transitions, rewards = (x.astype(float) for x in draw(jax.random.split(getkey(), 2003)))
    if reward_law == "bernoulli":  # it takes longest, and does not differ elsewhere
        alpha = concentration + counts
        total = alpha.sum(-1, keepdims=True)
        p = alpha / total
        assert_moments(transitions[0], p, p * (1 - p) / (total + 1))
        a, b = 1 + paid, 1 + visits - paid
        assert_moments(rewards, a / (a + b), a * b / (a + b) ** 2 / (a + b + 1))
    elif noise_sd:
        var = 1 / (1 + visits / noise_sd**2)
        assert_moments(rewards, var * paid / noise_sd**2, var)
    else:
        known_means, unseen = paid / np.maximum(visits, 1), visits == 0
        assert_moments(rewards, np.where(unseen, 0, known_means), unseen.astype(float))
    assert visits.min() == 0 and visits.max() > 5


def assert_moments(draws, mean, var):
    """The mean to within five standard errors, the variance to within a third."""
    np.testing.assert_array_less(np.abs(draws.mean(0) - mean), 5 * np.sqrt(var / len(draws)) + 1e-6)
    np.testing.assert_allclose(draws.var(0), var, rtol=1 / 3, atol=1e-9)


SMALL, DRAWS = icrl_envs.make("tabular_mdp", num_states=3, num_actions=2, horizon=3), 3001


def np_best(seen):
    """How often each action is best, at each state and step, in MDPs drawn and solved by NumPy, [H, S, A]."""
    counts, paid = (x[0] for x in tables(SMALL, seen))
    visits, random = counts.sum(-1), np.random.default_rng(7)
    wins = np.zeros((SMALL.horizon, 3, 2))
    for _ in range(DRAWS):
        transitions = random.standard_gamma(1 + counts)
        transitions /= transitions.sum(-1, keepdims=True)
        rewards = random.beta(1 + paid, 1 + visits - paid)
        q = np.zeros((SMALL.horizon + 1, 3, 2))
        for h in reversed(range(SMALL.horizon)):
            q[h] = rewards + transitions @ q[h + 1].max(-1)
        wins += np.eye(2)[q[:-1].argmax(-1)]
    return wins / DRAWS


def assert_shares(share, expected):
    error = np.sqrt(2 * (expected * (1 - expected) + 1 / DRAWS) / DRAWS)
    np.testing.assert_array_less(np.abs(share - expected), 5 * error)


def test_psrl_acts_optimally_in_what_it_draws():
    seen = history(SMALL, 8 * SMALL.horizon, 1)
    more = jax.tree.map(lambda x: np.append(x, x[:1]), seen)  # replay teaches all but the last
    plans, expected = relive(psrl(SMALL, DRAWS), more)[1]["carry"].plan[-1], np_best(seen)
    assert_shares(np.eye(2)[plans].mean(0), expected)
    assert np.ptp(expected[..., 0]) > 0.3  # states differ in what is known of them


def test_psrl_by_the_step_knows_what_the_episode_has_shown():
    """Here that the action which paid before does not, and the other one does."""
    seen = history(SMALL, SMALL.horizon + 3, 1)
    obs, actions, feedback = np.array([0, 1, 0, 0, 0, 0]), np.array([0, 1, 0, 0, 1, 0]), np.array([1, 0, 1, 0, 1, 0])
    seen = seen._replace(obs=np.int32(obs), action=np.int32(actions), feedback=np.float32(feedback))
    seen = seen._replace(next_obs=np.append(seen.obs[1:], np.int32(0)))
    by_step, by_episode = (relive(psrl(SMALL, DRAWS, decide), seen) for decide in ("step", "episode"))
    probs = by_step[1]["probs"]
    for t in (3, 5):  # the first and the last step of the second episode
        expected = np_best(jax.tree.map(lambda x, t=t: x[:t], seen))
        assert_shares(probs[t], expected[t - 3, 0])
    assert_shares(by_episode[1]["probs"][3], probs[3].astype(float))
    assert abs(by_episode[1]["probs"][5, 0] - probs[5, 0]) > 0.1
    assert 0 < np.mean(by_step[0]) < 1


def test_psrl_keeps_to_its_first_draw_until_the_episode_ends():
    seen = history(MDP, 5 * H, 3)
    actions, info = relive(psrl(MDP, draws=11), seen)
    plans = info["carry"].plan
    for t in range(5 * H):
        assert (plans[t] == plans[t - t % H]).all()
        drawn = plans[t, :, t % H, seen.obs[t]]
        assert actions[t] == drawn[0]
        np.testing.assert_allclose(info["probs"][t], np.bincount(drawn, minlength=A) / 11, rtol=1e-6)
    assert all((plans[t] != plans[t + H]).any() for t in range(0, 4 * H, H))
    assert plans.shape == (5 * H, 11, H, S) and len(np.unique(plans[0], axis=0)) == 11


E, B = 60, 53


@functools.partial(on_host, static_argnames="num_episodes")
def lost(agent, key, num_episodes=E):
    """Mean pseudo-regret of each episode, and its standard error, [E]."""
    key_tasks, key_run = jax.random.split(key)
    tasks = icrl_envs.sample_tasks(MDP, key_tasks, B)
    found = evaluate(agent, MDP, tasks, key_run, num_episodes=num_episodes)
    earned = found.record.env_info["expected_reward"].reshape(B, num_episodes, H).sum(-1)
    regret = jax.vmap(MDP.optimal_return)(tasks)[:, None] - earned
    return regret.mean(0)


@pytest.mark.parametrize("name", ["psrl", "ucbvi", "ucbvi_lin"])
def test_regret_falls_from_episode_to_episode(name):
    agents = {
        "psrl": psrl(MDP),
        "ucbvi": ucbvi(MDP, E, scale=0.001),
        "ucbvi_lin": ucbvi(MDP, E, "lin", scale=0.003),  # it learns each step of an episode by itself
    }
    regret, chance = (lost(agent, jax.random.key(5)) for agent in (agents[name], uniform(MDP)))
    print(name, regret[:5].mean(), regret[-15:].mean(), chance[:5].mean(), chance[-15:].mean())
    assert abs(chance[:15].mean() / chance[-15:].mean() - 1) < 0.1
    assert regret[-15:].mean() < 0.3 * chance[-15:].mean()
    assert regret[30:].sum() < 0.6 * regret[:30].sum()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: psrl(icrl_envs.revealed(MDP)), "env='TabularMDP': must be a tabular_mdp, not wrapped"),
        (lambda: psrl(MDP, draws=0), "draws=0: must be an integer of at least 1"),
        (lambda: psrl(MDP, decide="greedy"), "decide='greedy': must be 'episode' or 'step'"),
        (lambda: ucbvi(icrl_envs.make("gaussian_bandit"), 3), "env=.*: must be a tabular_mdp, not wrapped"),
        (lambda: ucbvi(MDP, 0), "num_episodes=0: must be an integer of at least 1"),
        (lambda: ucbvi(MDP, 3, form="auer"), "form='auer': must be 'azar' or 'lin'"),
        (lambda: ucbvi(MDP, 3, scale=-1.0), "scale=-1.0: must be a finite number of at least 0"),
        (
            lambda: ucbvi(icrl_envs.make("tabular_mdp", reward_law="gaussian"), 3),
            "env.reward_law='gaussian': must be 'bernoulli'",
        ),
    ],
)
def test_wrong_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make()

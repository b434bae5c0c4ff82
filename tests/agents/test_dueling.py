# ruff: noqa: N806
"""Dueling bandits' classics against their algorithms written out in plain NumPy, duel by duel."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from two_episodes import on_host

import icrl_envs
from icrl_jax.agents import double_thompson, rucb, uniform, winner_stays
from icrl_jax.core import TimeStep, Transition
from icrl_jax.evaluate import evaluate

A, ALPHA, DRAWS, LONGEST = 3, 0.55, 701, 83
NO = np.zeros((), bool)


def histories(num=7, longest=LONGEST):
    """Duels (pair, label), some between an arm and itself, some ties, of very different lengths."""
    generator = np.random.default_rng(3)
    for length in np.linspace(0, longest, num).astype(int):
        strength = 2 * generator.normal(size=A)
        pairs = generator.integers(A, size=(length, 2))
        p = 1 / (1 + np.exp(strength[pairs[:, 1]] - strength[pairs[:, 0]]))
        labels = (generator.uniform(size=length) < p).astype(np.float32)
        labels[::11] = 0.5
        yield pairs.astype(np.int32), labels


def won(*duels):
    """A history of (first arm, second arm, how often the first wins)."""
    pairs = np.concatenate([np.tile(np.int32(duel[:2]), (duel[2], 1)) for duel in duels])
    return pairs, np.ones(len(pairs), np.float32)


HISTORIES = [
    *histories(),
    won((0, 1, 27), (1, 2, 27), (2, 0, 27)),  # whoever is first, one arm surely beats it
    won((0, 1, 27)),  # arm 1 surely loses once, and arm 2 never met anybody
    won((0, 1, 9), (0, 2, 9), (1, 1, 64)),  # arm 0 is crowned, then doubts grow with time
]


@on_host
def learned(agent, pairs, labels):
    """What an agent knows after each duel of a padded history."""
    obs = jnp.ones(1)

    def one(carry, duel):
        prev = Transition(obs, *duel, obs, NO, NO)
        return agent.act(carry, jax.random.key(0), TimeStep(obs, prev, NO))[0], carry

    return jax.lax.scan(one, agent.init(jax.random.key(0)), (pairs, labels))


@on_host
def shares(agent, carry, prev):
    """How often each pair is chosen, [A, A]."""
    step = TimeStep(jnp.ones(1), prev, NO)
    pairs = jax.vmap(lambda key: agent.act(carry, key, step)[1])(jax.random.split(jax.random.key(5), DRAWS))
    return jnp.zeros((A, A)).at[pairs[:, 0], pairs[:, 1]].add(1.0) / DRAWS


def chosen(agent, pairs, labels):
    """The law of the next pair after a history."""
    blank = Transition(np.ones(1, np.float32), np.zeros(2, np.int32), np.float32(0), np.ones(1, np.float32), NO, NO)
    if len(labels) == 0:
        none = agent.init(jax.random.key(0))
        outside = blank._replace(action=np.full(2, A, np.int32))  # no arms: nothing is counted
        return shares(agent, none, outside)
    padded = np.full((LONGEST, 2), A, np.int32), np.zeros(LONGEST, np.float32)
    padded[0][-len(labels) :], padded[1][-len(labels) :] = pairs, labels
    _, before = learned(agent, *padded)
    last = blank._replace(action=pairs[-1], feedback=labels[-1])
    return shares(agent, jax.tree.map(lambda x: x[-1], before), last)


def bounds(wins, t):
    upper, lower = np.empty((A, A)), np.empty((A, A))
    for i in range(A):
        for j in range(A):
            met = wins[i, j] + wins[j, i]
            width = np.sqrt(ALPHA * np.log(t) / met) if met else 1.0
            share = wins[i, j] / met if met else 1.0
            upper[i, j], lower[i, j] = share + width, share - width
            if i == j:
                upper[i, j] = lower[i, j] = 0.5
    return upper, lower


def counted(pairs, labels):
    """The table of wins after each duel, the empty one first."""
    wins = np.zeros((A, A))
    yield wins.copy()
    for (i, j), y in zip(pairs, labels, strict=True):
        wins[i, j] += y
        wins[j, i] += 1 - y
        yield wins.copy()


def best_of(generator, score, arms):
    top = max(score[a] for a in arms)
    return generator.choice([a for a in arms if score[a] == top])


def double_thompson_in_numpy(pairs, labels):
    *_, wins = counted(pairs, labels)
    upper, lower = bounds(wins, len(labels) + 1)
    generator, found = np.random.default_rng(11), np.zeros((A, A))
    copeland = [(np.delete(upper[i], i) > 0.5).sum() for i in range(A)]
    first_arms = [i for i in range(A) if copeland[i] == max(copeland)]
    draws = generator.beta(wins + 1, wins.T + 1, size=(DRAWS, A, A))
    againsts = generator.beta(wins + 1, wins.T + 1, size=(DRAWS, A, A))
    for draw, against in zip(draws, againsts, strict=True):
        theta = np.triu(draw, 1) + np.tril(1 - draw.T, -1)  # of each pair one draw
        first = best_of(generator, (theta > 0.5).sum(axis=1), first_arms)
        against[first, first] = 0.5
        second = best_of(generator, against[:, first], [i for i in range(A) if lower[i, first] <= 0.5])
        found[first, second] += 1 / DRAWS
    return found


def rucb_in_numpy(pairs, labels):
    """Exactly: the champion is remembered from duel to duel."""
    champion = set()
    for t, wins in enumerate(counted(pairs, labels), start=1):
        upper, _ = bounds(wins, t)
        candidates = {i for i in range(A) if all(upper[i, j] >= 0.5 for j in range(A))}
        champion &= candidates
        if len(candidates) == 1:
            champion = set(candidates)
    first = {i: 1 / A for i in range(A)} if not candidates else {}
    if len(candidates) == 1:
        first = {next(iter(candidates)): 1.0}
    elif candidates:
        rest = candidates - champion
        first = {i: 0.5 if i in champion else 1 / (2 ** len(champion) * len(rest)) for i in candidates}
    found = np.zeros((A, A))
    for i, p in first.items():
        best = [j for j in range(A) if upper[j, i] == upper[:, i].max()]
        best = [j for j in best if j != i] or best
        found[i, best] += p / len(best)
    return found


def winner_stays_in_numpy(pairs, labels):
    *_, wins = counted(pairs, labels)
    lead = wins.sum(axis=1) - wins.sum(axis=0)
    last = list(pairs[-1]) if len(pairs) else []

    def law(arms):
        top = [i for i in arms if lead[i] == max(lead[j] for j in arms)]
        kept = [i for i in last if i in top][:1]
        return {i: 1 / len(kept or top) for i in kept or top}

    found = np.zeros((A, A))
    for i, p in law(range(A)).items():
        for j, q in law([j for j in range(A) if j != i]).items():
            found[i, j] += p * q
    return found


PLAIN = {
    "double_thompson": (double_thompson(A, ALPHA), double_thompson_in_numpy),
    "rucb": (rucb(A, ALPHA), rucb_in_numpy),
    "winner_stays": (winner_stays(A), winner_stays_in_numpy),
}


@pytest.mark.parametrize("name", PLAIN)
def test_pairs_are_chosen_as_by_plain_numpy(name):
    agent, plain = PLAIN[name]
    certain = 0
    for pairs, labels in HISTORIES:
        expected = plain(pairs, labels)
        assert abs(expected.sum() - 1) < 1e-9
        certain += expected.max() > 0.9
        spread = np.sqrt(2 * expected * (1 - expected) / DRAWS)  # of two estimates
        assert (np.abs(chosen(agent, pairs, labels) - expected) < 5 * spread + 5 / DRAWS).all()
    assert certain < len(HISTORIES)


@pytest.mark.parametrize("name", PLAIN)
def test_a_pair_and_its_label_swapped_teach_the_same(name):
    agent, (pairs, labels) = PLAIN[name][0], HISTORIES[-1]
    one, other = learned(agent, pairs, labels)[0], learned(agent, pairs[:, ::-1], 1 - labels)[0]
    np.testing.assert_array_equal(one.counts, other.counts)
    assert one.champion == other.champion


@functools.partial(on_host, static_argnames="env")
def weak_regret(agent, env, tasks):
    return evaluate(agent, env, tasks, jax.random.key(2), num_steps=151).metrics["weak_regret"]


def test_all_learn_which_arm_is_best():
    """In an easy bandit whose labels hardly err, twice as well and better than pairs at random."""
    env = icrl_envs.make("dueling_bandit", num_arms=A, temperature=0.1)
    tasks = icrl_envs.sample_tasks(env, jax.random.key(1), 11)
    chance = weak_regret(uniform(env), env, tasks).mean()
    for agent, _ in PLAIN.values():
        assert weak_regret(agent, env, tasks).mean() < chance / 2


@pytest.mark.parametrize("make", [double_thompson, rucb])
def test_wrong_numbers_are_refused(make):
    with pytest.raises(ValueError, match="alpha=0: must be a finite number above 0"):
        make(A, alpha=0)
    with pytest.raises(ValueError, match="num_arms=1: must be an integer of at least 2"):
        make(1)

"""Whole episodes are taken of histories, and nothing gets out of its task, its stream or its order."""

import functools

import chex
import jax
import numpy as np
import pytest
from by_hand import dealt, ended, episodes, histories
from two_episodes import on_host

from icrl_jax.data.histories import episode_returns, every_kth_episode, of_stream, room, stride_episodes

H, T = 5, 67  # the last of the equal episodes is cut short
kth = on_host(every_kth_episode, static_argnums=1)
stride = on_host(stride_episodes, static_argnums=1)
returns_of = on_host(episode_returns)


@functools.cache
def equal(num_steps=T):
    return histories(lambda m, n: [H] * num_steps, num_steps, H, terminates=False)


def lengths(seed):
    return lambda m, n: np.random.default_rng([seed, m, n]).integers(1, H + 1, T)


def at(tree, m, n):
    return jax.tree.map(lambda x: np.asarray(x)[m, n], tree)


@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_of_equal_episodes_it_is_a_slice(k):
    whole = equal(60)
    taken = kth(whole, k)
    in_episodes = lambda x: np.asarray(x).reshape(3, 2, 12, H, *x.shape[3:])[:, :, ::k].reshape(3, 2, -1, *x.shape[3:])
    chex.assert_trees_all_equal(taken.transitions, jax.tree.map(in_episodes, whole.transitions))
    chex.assert_trees_all_equal(taken.update, in_episodes(whole.update))
    held = -(-12 // k) * H
    assert (taken.steps == held).all() and taken.shape[2] == held == taken.form.least_steps


@pytest.mark.parametrize("k", [2, 3, 7])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_episodes_are_dealt_whole_and_none_is_lost(k, seed):
    whole = equal() if seed is None else histories(lengths(seed), T, H)
    strided, first = stride(whole, k), kth(whole, k)
    assert strided.shape[:2] == (3, 2 * k)
    for m, n in np.ndindex(3, 2):
        hands = dealt(ended(at(whole.transitions, m, n)), k)
        for p, times in enumerate(hands):
            found, steps = at(strided.transitions, m, n * k + p), strided.steps[m, n * k + p]
            assert steps == len(times)
            chex.assert_trees_all_equal(
                jax.tree.map(lambda x, s=steps: x[:s], found),
                jax.tree.map(lambda x, t=times: x[t], at(whole.transitions, m, n)),
            )
            assert not any(x[steps:].any() for x in jax.tree.leaves(found))
            np.testing.assert_array_equal(strided.update[m, n * k + p, :steps], times // 4)
        assert sorted(np.concatenate(hands)) == list(range(T))
        if seed is None:
            chex.assert_trees_all_equal(hands, [np.flatnonzero(np.arange(T) // H % k == p) for p in range(k)])
        chex.assert_trees_all_equal(at(first.transitions, m, n), at(strided.transitions, m, n * k))
    assert (strided.steps >= strided.form.least_steps).all() and (first.steps >= first.form.least_steps).all()
    assert (first.steps == strided.steps[:, ::k]).all() and first.form.least_steps >= strided.form.least_steps


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [2, 5])
def test_hands_hold_what_was_foretold(k, seed):
    """The bounds, with lengths that are as bad as can be for some of them."""
    random = np.random.default_rng(seed)
    whole = histories(lambda m, n: random.choice([1, H], T, p=[0.5, 0.5] if m else [0.9, 0.1]), T, H)
    most, least = room(whole.form, T, k, k)
    held = [len(x) for m, n in np.ndindex(3, 2) for x in dealt(ended(at(whole.transitions, m, n)), k)]
    assert least <= min(held) and max(held) <= most <= (T - H) / k + H
    exact, exact_least = room(whole.form._replace(terminates=False), T, k, k)
    held = [len(x) for x in dealt(np.arange(1, T + 1) % H == 0, k)]
    assert (exact, exact_least) == (max(held), min(held))


def test_what_was_taken_can_be_dealt_again():
    """Streams that differ in length: what fills them up is nobody's."""
    whole = histories(lengths(2), T, H)
    once, twice = stride(whole, 2), stride(stride(whole, 2), 2)
    assert len(np.unique(once.steps)) > 1
    for m, n in np.ndindex(3, 4):
        steps = once.steps[m, n]
        for p, index in enumerate(dealt(ended(at(once.transitions, m, n)), 2, steps)):
            found = at(twice.transitions, m, 2 * n + p).obs[: twice.steps[m, 2 * n + p]]
            np.testing.assert_array_equal(found, at(once.transitions, m, n).obs[index])


def test_returns_are_those_of_finished_episodes():
    for whole, most in ((equal(), T // H), (histories(lengths(3), T, H), T)):
        returns = returns_of(whole)
        assert returns.shape == (3, 2, most)
        for m, n in np.ndindex(3, 2):
            stream = at(whole.transitions, m, n)
            whole_ones = [x for x in episodes(ended(stream)) if ended(stream)[x[-1]]]
            expected = [stream.feedback[x].sum() for x in whole_ones]
            np.testing.assert_allclose(returns[m, n, : len(expected)], expected, rtol=1e-6)
            assert np.isnan(returns[m, n, len(expected) :]).all()
            assert len(whole_ones) == most or most == T


def test_reading_gives_back_what_the_agent_saw():
    read = on_host(of_stream, static_argnums=4)(equal(), 2, 1, 13, 11)
    assert [x.dtype.name for x in jax.tree.leaves(read)] == list(equal().form.dtypes)
    np.testing.assert_array_equal(read.obs, [[2, 1, t] for t in range(13, 24)])


@pytest.mark.parametrize(
    "k, message", [(0, "k=0: must be an integer of at least 1"), (14, "k=14: .* 67 steps hold 13")]
)
def test_wrong_k_is_refused(k, message):
    for take in (every_kth_episode, stride_episodes):
        with pytest.raises(ValueError, match=message):
            take(equal(), k)

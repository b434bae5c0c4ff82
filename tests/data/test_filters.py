"""LHF's scores against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_hand import histories
from two_episodes import on_host

from icrl_jax.data.filters import improvement, resample, retention, stability

NAN = float("nan")
# Returns, with 4 the best that there is: improvement, stability, both together.
CASES = {
    "learns": ([0, 1, 2, 3], 0.5625, 1.0),
    "falls": ([3, 0, 3, 0], 0.5625, 0.25),
    "never": ([0, 0, 0, 0], 0.0, 1.0),
    "short": ([1, 4, 2, NAN], (7 / 3 + 3) / 8, 0.5),
    "steady": ([2, 2, 2, 2], 0.25, 1.0),  # what does not change does not dilute the mean of the falls
    "half_steady": ([2, 2, 0, 0], 0.375, 0.5),
    "nothing": ([NAN, NAN, NAN, NAN], 0.0, 1.0),
}


@pytest.mark.parametrize("name", CASES)
def test_scores_are_those_by_hand(name):
    returns, improved, stable = CASES[name]
    scores = on_host(lambda x, best: (improvement(x, best), stability(x, best)))(np.float32(returns), np.float32(4))
    np.testing.assert_allclose(scores, (improved, stable), rtol=1e-6)


def test_a_task_where_nothing_is_to_be_earned_has_scores():
    assert improvement(jnp.zeros(3), jnp.float32(0)) == 0 and stability(jnp.zeros(3), jnp.float32(0)) == 1


def with_returns(returns):
    """Histories [M, N] of episodes of one step each, or none where nan."""
    returns = np.float32(returns)
    whole = histories(lambda m, n: [1] * returns.shape[2], returns.shape[2], 1, False, *returns.shape[:2])
    done = jnp.asarray(~np.isnan(returns))
    transitions = whole.transitions._replace(feedback=jnp.nan_to_num(jnp.asarray(returns)), truncated=done)
    return type(whole)(transitions, whole.update, whole.steps, whole.env_params, whole.form)


FIRST = [CASES[name][0] for name in ("learns", "falls", "never", "short")]
SECOND = [[8, 8, 8, 8], [8, 0, 8, 8], [0, 8, 8, 8], [0, 0, 0, 8]]
ALIKE = [[1, 2, 3, 4]] * 4
TASKS = with_returns([FIRST, SECOND, ALIKE])
keep = on_host(retention, static_argnames=("stability_weight", "temperature"))


def rescaled(utility):
    return (utility - utility.min()) / (utility.max() - utility.min())


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.0])
def test_retention_is_that_by_hand(weight):
    first = np.array([0.5625, 0.5625, 0, 16 / 24]) + weight * np.array([1, 0.25, 1, 0.5])
    second = np.array([0.5, (6 + 8) / 16, (6 + 8) / 16, (2 + 8) / 16]) + weight * np.array([1, 0, 1, 1])
    found = keep(TASKS, np.float32([4, 8, 9]), stability_weight=weight)
    np.testing.assert_allclose(found, [rescaled(first), rescaled(second), np.ones(4)], rtol=1e-5, atol=1e-6)


def test_the_papers_worked_example():
    assert keep(with_returns([FIRST[:3]]), np.float32([4])).tolist() == [[1.0, 0.0, 0.25]]


def test_the_best_return_is_by_default_the_highest_of_the_task():
    np.testing.assert_array_equal(keep(TASKS), keep(TASKS, np.float32([4, 8, 4])))


def test_a_temperature_makes_it_a_softmax():
    utility = np.array([1.5625, 0.8125, 1.0, 16 / 24 + 0.5])
    expected = np.exp(utility / 0.25) / np.exp(utility / 0.25).sum()
    found = keep(TASKS, np.float32([4, 8, 9]), temperature=0.25)
    np.testing.assert_allclose(found[0], rescaled(expected), rtol=1e-4)
    np.testing.assert_array_equal(found[2], 1)


@pytest.mark.parametrize("name, value", [("stability_weight", -1), ("temperature", 0), ("temperature", NAN)])
def test_wrong_values_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name}="):
        retention(TASKS, **{name: value})


def by_hand(added, num_streams):
    """Goes through the streams again and again until there are enough; `added` [passes, N]."""
    counts, total = np.zeros(num_streams, int), 0
    for one in added:
        for n in range(num_streams):
            if one[n] and total < num_streams:
                counts[n] += 1
                total += 1
    return counts


def test_resampling_goes_through_the_streams_until_there_are_as_many(getkey):
    probabilities = np.float32([[1, 0, 0.5, 0.2, 0], [0, 0, 0, 1, 0], [1, 1, 1, 1, 1], [0.1, 0.9, 1, 0, 0.3]])
    key = getkey()
    found = on_host(resample)(key, probabilities)
    for m, key_task in enumerate(jax.random.split(key, 4)):
        added = jax.random.bernoulli(key_task, jnp.asarray(probabilities[m])[None], (5, 5))
        np.testing.assert_array_equal(found[m], by_hand(np.asarray(added), 5))
    assert (found.sum(1) == 5).all() and (found[probabilities == 0] == 0).all()
    assert found[1].tolist() == [0, 0, 0, 5, 0] and found[2].tolist() == [1] * 5


def test_resampling_keeps_in_proportion(getkey):
    probabilities = np.tile(np.float32([[1, 0.5, 0.25] + [0] * 28]), (211, 1))
    shares = on_host(resample)(getkey(), probabilities).mean(0) / 31
    np.testing.assert_allclose(shares[:3], np.array([4, 2, 1]) / 7, atol=0.02)

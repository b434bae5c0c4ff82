"""Intervals: what they cover, that they agree with a slow loop, and what they refuse."""

import numpy as np
import pytest

from icrl_jax.statistics import curve, interval, ratio_interval

S, B, T = 3, 11, 7


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def slow_bounds(values, resamples, level=0.95, seed=1):
    """The same bootstrap, one resample at a time: draw seeds, draw tasks, take the mean."""
    rng = np.random.default_rng(seed)
    num_seeds, num_tasks = values.shape
    means = []
    for _ in range(resamples):
        seeds = rng.integers(num_seeds, size=num_seeds)
        tasks = rng.integers(num_tasks, size=num_tasks)
        means.append(np.mean([[values[s, b] for b in tasks] for s in seeds]))
    return np.quantile(means, [(1 - level) / 2, (1 + level) / 2])


def test_known_tiny_case():
    """Two tasks 0 and 1: a resample's mean is 0, 1/2 or 1 with chances 1/4, 1/2, 1/4."""
    found = interval([[0.0, 1.0]])
    assert found == {
        "mean": 0.5,
        "low": 0.0,
        "high": 1.0,
        "n": 2,
        "per_seed": [0.5],
        "seed_low": None,
        "seed_high": None,
    }
    narrow = interval([[0.0, 1.0]], level=0.4)  # 30 % and 70 % both fall inside the middle half
    assert (narrow["low"], narrow["high"]) == (0.5, 0.5)


def test_constant_values_have_no_width():
    found = interval(np.full((S, B), 2.5))
    assert found["low"] == pytest.approx(2.5) and found["high"] == pytest.approx(2.5)
    assert found["seed_low"] == pytest.approx(2.5) and found["seed_high"] == pytest.approx(2.5)


def test_agrees_with_slow_loop(rng):
    values = rng.exponential(size=(S, B)) + np.array([[0.0], [0.5], [2.0]])
    low, high = slow_bounds(values, 4000)
    found = interval(values, resamples=4000)
    assert found["low"] == pytest.approx(low, abs=0.05)
    assert found["high"] == pytest.approx(high, abs=0.05)


def test_covers_the_mean_of_a_gaussian(rng):
    """About 95 % of the intervals of 60 tasks hold the true mean; 400 repetitions, so +-1.1 % is one sigma."""
    inside = 0
    for _ in range(400):
        found = interval(rng.normal(3.0, 2.0, size=(1, 60)), resamples=400)
        inside += found["low"] <= 3.0 <= found["high"]
    assert 0.90 < inside / 400 < 0.98


def test_width_is_that_of_the_standard_error(rng):
    values = rng.normal(size=(1, 400))
    found = interval(values)
    expected = 2 * 1.96 * values.std() / 20
    assert found["high"] - found["low"] == pytest.approx(expected, rel=0.08)


def test_differing_seeds_widen_the_interval(rng):
    """Same tasks, same mean, but seeds apart: the interval must know that another seed could be drawn."""
    tasks = rng.normal(size=(1, 200))
    alike = interval(np.repeat(tasks, 5, axis=0))
    apart = interval(tasks + np.array([[-2.0], [-1.0], [0.0], [1.0], [2.0]]))
    assert apart["mean"] == pytest.approx(alike["mean"])
    assert apart["high"] - apart["low"] > 4 * (alike["high"] - alike["low"])
    assert len(set(apart["per_seed"])) == 5


def test_copied_seeds_do_not_narrow_the_interval(rng):
    """Seeds that all do the same bring no evidence about tasks: the interval is that of one seed."""
    tasks = rng.normal(size=(1, 50))
    one, five = interval(tasks), interval(np.repeat(tasks, 5, axis=0))
    assert five["low"] == pytest.approx(one["low"]) and five["high"] == pytest.approx(one["high"])


def test_seed_interval_is_students_t():
    """Means 1, 2, 3: standard error 1 / sqrt(3), t(0.975, 2) = 4.3027."""
    found = interval(np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]))
    assert found["per_seed"] == [1.0, 2.0, 3.0]
    assert found["seed_low"] == pytest.approx(2 - 4.302653 / np.sqrt(3), abs=1e-5)
    assert found["seed_high"] == pytest.approx(2 + 4.302653 / np.sqrt(3), abs=1e-5)


def test_curve_is_interval_at_every_step(rng):
    values = rng.normal(size=(S, B, T)).cumsum(axis=-1)
    found = curve(values, seed=5)
    for t in range(T):
        one = interval(values[:, :, t], seed=5)
        assert [found[name][t] for name in ("mean", "low", "high")] == pytest.approx(
            [one["mean"], one["low"], one["high"]]
        )


def test_long_curve_does_not_depend_on_its_blocks(rng, monkeypatch):
    values = rng.normal(size=(2, B, 29))
    whole = curve(values)
    monkeypatch.setattr("icrl_jax.statistics.COLUMNS_PER_BLOCK", 5)
    parts = curve(values)
    np.testing.assert_allclose(parts["low"], whole["low"], rtol=1e-12)
    np.testing.assert_allclose(parts["high"], whole["high"], rtol=1e-12)


def test_same_seed_same_interval(rng):
    values = rng.normal(size=(S, B))
    assert interval(values, seed=3) == interval(values, seed=3)
    assert interval(values, seed=3)["low"] != interval(values, seed=4)["low"]


def test_ratio_pairs_tasks(rng):
    """a is twice b task by task: paired, the ratio is certain; with b's tasks shuffled it is not."""
    b = rng.uniform(1, 9, size=(1, 40))
    paired = ratio_interval(2 * b, b)
    assert paired["ratio"] == pytest.approx(2)
    assert (paired["low"], paired["high"]) == (pytest.approx(2), pytest.approx(2))
    shuffled = ratio_interval(2 * b, rng.permutation(b, axis=1))
    assert shuffled["ratio"] == pytest.approx(2)
    assert shuffled["high"] - shuffled["low"] > 0.2


def test_ratio_resamples_seeds_of_both_apart(rng):
    """Equal arrays of differing seeds: the ratio is 1 but not for certain, since the next seeds would differ."""
    values = np.array([[1.0], [2.0], [3.0]]) + np.zeros((3, 20))
    found = ratio_interval(values, values)
    assert found["ratio"] == 1.0 and found["low"] < 0.8 and found["high"] > 1.25


def test_ratio_to_zero_is_nan():
    found = ratio_interval(np.ones((1, 5)), np.zeros((1, 5)))
    assert np.isnan([found["ratio"], found["low"], found["high"]]).all()
    mixed = ratio_interval(np.ones((1, 4)), np.array([[-1.0, 1.0, -1.0, 2.0]]))
    assert mixed["ratio"] == pytest.approx(4) and np.isnan(mixed["low"])


def test_single_task_has_no_interval():
    found = interval([[1.0], [2.0]])
    assert found["n"] == 1 and np.isnan(found["low"]) and np.isnan(found["high"])
    assert found["seed_low"] is not None


def test_nan_stays_nan_without_warning(recwarn):
    assert np.isnan(interval([[1.0, np.nan, 2.0]])["low"])
    assert np.isnan(interval([[1.0, np.inf, 2.0]])["low"])
    assert not recwarn.list


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interval(np.zeros(5)), r"values must have shape \[S, B\].*got shape \(5,\)"),
        (lambda: interval(np.zeros((2, 0))), r"values is empty: shape \(2, 0\)"),
        (lambda: curve(np.zeros((2, 3))), r"values must have shape \[S, B, T\].*got shape \(2, 3\)"),
        (lambda: ratio_interval(np.zeros((1, 3)), np.zeros(3)), r"b must have shape"),
        (lambda: ratio_interval(np.zeros((1, 3)), np.zeros((1, 4))), r"same tasks: a has 3 .* b has 4"),
        (lambda: interval(np.zeros((1, 3)), level=95), r"level must lie between 0 and 1, got 95"),
        (lambda: interval(np.zeros((1, 3)), resamples=0), r"resamples must be at least 1, got 0"),
    ],
)
def test_refuses_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()

"""Means over seeds and held-out tasks, with bootstrap intervals.

Axes: S seeds (independently trained networks; a classical agent has S = 1), B distinct held-out tasks, T steps.

The bootstrap resamples seeds and tasks, crossed: every seed meets the same tasks, so one draw of tasks serves all
seeds. In resample r, with multinomial counts u over seeds and w over tasks,

    mean_r = sum_s sum_b (u_s / S) (w_b / B) values[s, b],

which for a whole curve is one matrix product of the counts with ``[B, T]``. The task counts depend on ``seed`` and B
alone, so intervals of several agents on the same tasks use the same resampled tasks.

A task that was run several times is *one* task: average its repeats before calling anything here. Passing repeats as
if they were tasks makes every interval too narrow.
"""

from typing import Any, TypedDict

import numpy as np
from scipy.special import stdtrit

COLUMNS_PER_BLOCK = 512  # steps bootstrapped at once: bounds the memory to resamples x 512 numbers


class Interval(TypedDict):
    """The mean of one metric and its uncertainty, ready for ``results.json``."""

    mean: float  # over seeds and tasks
    low: float  # bootstrap over seeds and tasks; nan for a single task
    high: float
    n: int  # number of distinct held-out tasks
    per_seed: list[float]  # S means over tasks
    seed_low: float | None  # Student's t over the S per-seed means; None for S = 1
    seed_high: float | None


class Curve(TypedDict):
    """A mean curve and its pointwise interval, each ``[T]``."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Ratio(TypedDict):
    """mean(a) / mean(b) and its interval."""

    ratio: float
    low: float
    high: float
    n: int


def interval(values: Any, seed: int = 0, resamples: int = 2000, level: float | int = 0.95) -> Interval:
    """Mean and percentile-bootstrap interval of one metric.

    ``low`` and ``high`` answer "what would other seeds on other tasks of this family give"; ``seed_low`` and
    ``seed_high`` keep to these tasks and ask only about other seeds. With few seeds trust the latter: resampling two
    or three seeds sees too little of their spread, Student's t allows for that.

    Args:
      values: ``[S, B]``, one number per seed and distinct task, repeats of a task already averaged.
      seed: of the resampling; equal seeds give equal intervals.
      resamples: number of bootstrap resamples.
      level: coverage aimed at.

    Returns:
      An ``Interval``. One task gives no interval over tasks: ``low`` and ``high`` are nan.
    """
    array = _checked("values", values, "[S, B] (seeds, tasks)", 2)
    tail = _tail(level, resamples)
    low, high = _bounds(_bootstrap(array[:, :, None], seed, resamples), tail, array.shape[1])
    per_seed = array.mean(axis=1)
    seed_low, seed_high = _student(per_seed, tail)
    return {
        "mean": float(array.mean()),
        "low": float(low[0]),
        "high": float(high[0]),
        "n": array.shape[1],
        "per_seed": [float(mean) for mean in per_seed],
        "seed_low": seed_low,
        "seed_high": seed_high,
    }


def curve(values: Any, seed: int = 0, resamples: int = 2000, level: float | int = 0.95) -> Curve:
    """Mean curve and pointwise interval; each step is what ``interval`` gives for that step.

    Args:
      values: ``[S, B, T]``, repeats of a task already averaged.
      seed, resamples, level: as in ``interval``.

    Returns:
      ``mean``, ``low``, ``high``, each ``[T]``.
    """
    array = _checked("values", values, "[S, B, T] (seeds, tasks, steps)", 3)
    tail = _tail(level, resamples)
    low, high = _bounds(_bootstrap(array, seed, resamples), tail, array.shape[1])
    return {"mean": array.mean(axis=(0, 1)), "low": low, "high": high}


def ratio_interval(a: Any, b: Any, seed: int = 0, resamples: int = 2000, level: float | int = 0.95) -> Ratio:
    """Bootstrap of mean(a) / mean(b) where both were measured on the same tasks, in the same order.

    Tasks are resampled together, since a hard task is hard for both; the seeds of ``a`` and of ``b`` on their own.

    Args:
      a: ``[S, B]``.
      b: ``[S', B]``, the denominator.
      seed, resamples, level: as in ``interval``.

    Returns:
      A ``Ratio``. Where the resampled denominator touches zero or changes sign a ratio means nothing: its bounds are
      nan, and so is the ratio itself if mean(b) is zero.
    """
    top = _checked("a", a, "[S, B] (seeds, tasks)", 2)
    bottom = _checked("b", b, "[S', B] (seeds, tasks)", 2)
    if top.shape[1] != bottom.shape[1]:
        raise ValueError(
            f"a and b must hold the same tasks: a has {top.shape[1]} (shape {top.shape}), "
            f"b has {bottom.shape[1]} (shape {bottom.shape})"
        )
    tail = _tail(level, resamples)
    tops = _bootstrap(top[:, :, None], seed, resamples, stream=1)[:, 0]
    bottoms = _bootstrap(bottom[:, :, None], seed, resamples, stream=2)[:, 0]
    mean_b = bottom.mean()
    ratio = float(top.mean() / mean_b) if mean_b != 0 else float("nan")
    if not (bottoms.min() > 0 or bottoms.max() < 0):
        return {"ratio": ratio, "low": float("nan"), "high": float("nan"), "n": top.shape[1]}
    low, high = _bounds((tops / bottoms)[:, None], tail, top.shape[1])
    return {"ratio": ratio, "low": float(low[0]), "high": float(high[0]), "n": top.shape[1]}


def _bootstrap(values: np.ndarray, seed: int, resamples: int, stream: int = 1) -> np.ndarray:
    """``[S, B, T]`` to resampled means ``[R, T]``; ``stream`` picks the draw of seeds, the draw of tasks is shared."""
    num_seeds, num_tasks, num_steps = values.shape
    weights_tasks = _counts(np.random.default_rng([seed, 0]), resamples, num_tasks) / num_tasks
    weights_seeds = _counts(np.random.default_rng([seed, stream]), resamples, num_seeds) / num_seeds
    means = np.zeros((resamples, num_steps))
    with np.errstate(invalid="ignore"):  # values that are not finite give nan bounds, not a warning
        for first in range(0, num_steps, COLUMNS_PER_BLOCK):
            block = slice(first, first + COLUMNS_PER_BLOCK)
            for s in range(num_seeds):
                means[:, block] += weights_seeds[:, s, None] * (weights_tasks @ values[s, :, block])
    return means


def _counts(rng: np.random.Generator, resamples: int, size: int) -> np.ndarray:
    """How often each of ``size`` things is drawn in each resample: ``[R, size]``, rows sum to ``size``."""
    drawn = rng.integers(size, size=(resamples, size)) + size * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * size).reshape(resamples, size)


def _bounds(means: np.ndarray, tail: float, num_tasks: int) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bounds of resampled means ``[R, T]``, each ``[T]``; nan where one task leaves nothing to resample."""
    if num_tasks == 1:
        nothing = np.full(means.shape[1], np.nan)
        return nothing, nothing.copy()
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return low, high


def _student(per_seed: np.ndarray, tail: float) -> tuple[float | None, float | None]:
    """Student's t interval of the mean of S per-seed means; (None, None) for S = 1."""
    if per_seed.size == 1:
        return None, None
    degrees = per_seed.size - 1
    half = float(stdtrit(degrees, 1 - tail) * per_seed.std(ddof=1) / np.sqrt(per_seed.size))
    return float(per_seed.mean()) - half, float(per_seed.mean()) + half


def _checked(name: str, values: Any, expected: str, rank: int) -> np.ndarray:
    """``values`` as a float64 array of the expected rank, or an error that names the argument and its shape."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != rank:
        raise ValueError(f"{name} must have shape {expected}, got shape {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name} is empty: shape {array.shape}, expected {expected} with every axis at least 1")
    return array


def _tail(level: float | int, resamples: int) -> float:
    """Probability left out on each side."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    return (1 - level) / 2

"""The Bayes-optimal agent of a bandit with two arms: dynamic programming over what can be known.

Its belief is two Beta distributions, so what it knows is how often each arm was pulled and how often that paid. A plan
for T pulls in all weighs what a pull pays against what it tells. Sampling from the belief (Thompson) or taking the best
mean (greedy) does not; Gittins indices do it for discounted rewards that never end. What a meta-learner is trained
towards is this agent: Mikulik et al., *Meta-trained agents implement Bayes-optimal agents*, NeurIPS 2020,
https://arxiv.org/abs/2010.11223.
"""

import functools

import jax.numpy as jnp
import numpy as np

from icrl_envs.task_family import is_int, require
from icrl_jax.agents.arms import Arms, bandit
from icrl_jax.agents.learner import Static
from icrl_jax.core import Agent, Array, partial

LONGEST_PLAN = 200
"""Pulls that can be planned for: the plan takes T^4 / 4 bytes."""

TIE = 1e-9
"""Sums of rewards that differ by less are equal; the lower arm is pulled."""


def bayes(num_steps: int) -> Agent:
    """Earns the most that can be earned in `num_steps` pulls of two arms whose means are U[0, 1] and that pay 0 or 1.

    Afterwards it pulls the arm of the better posterior mean; so `bayes(1)` is greedy from the start.

    Args:
      num_steps: T, 1 ..= 200, for which it plans.
    Raises:
      ValueError: another number.
    """
    return bandit(2, partial(_planned, Static(num_steps), jnp.asarray(_plan(num_steps)[0])))


def bayes_value(num_steps: int) -> float:
    """What `bayes` earns in expectation over tasks; the best arm alone would earn 2 / 3 a pull.

    Raises:
      ValueError: `num_steps` is not in 1 ..= 200.
    """
    return _plan(num_steps)[1]


@functools.cache
def _plan(num_steps: int) -> tuple[np.ndarray, float]:
    """The best arm after each history, and the value of the first pull.

    After t pulls, n of them of arm 0, and s_0 and s_1 rewards, with p_i = (s_i + 1) / (n_i + 2),

        V_t(n, s_0, s_1) = max of  p_0 (1 + V_{t+1}(n + 1, s_0 + 1, s_1)) + (1 - p_0) V_{t+1}(n + 1, s_0, s_1)
                             and   p_1 (1 + V_{t+1}(n, s_0, s_1 + 1)) + (1 - p_1) V_{t+1}(n, s_0, s_1)

    Returns:
      int8, [t + 1, t + 1, t + 1] for each t < T, one after the other: see `_place`. Histories that cannot be, of more
      rewards than pulls, have entries too, which nothing reads.
    """
    require(is_int(num_steps, 1, LONGEST_PLAN), "num_steps", num_steps, f"an integer in 1 ..= {LONGEST_PLAN}")
    arms, following = [], np.zeros((num_steps + 1,) * 3)
    for t in reversed(range(num_steps)):
        n, s_0, s_1 = np.ogrid[: t + 1, : t + 1, : t + 1]
        p_0, p_1 = (s_0 + 1) / (n + 2), (s_1 + 1) / (t - n + 2)
        first = p_0 * (1 + following[1:, 1:, :-1]) + (1 - p_0) * following[1:, :-1, :-1]
        second = p_1 * (1 + following[:-1, :-1, 1:]) + (1 - p_1) * following[:-1, :-1, :-1]
        arms.append((second > first + TIE).astype(np.int8).ravel())
        following = np.maximum(first, second)
    return np.concatenate(arms[::-1]), float(following[0, 0, 0])


def _place(t: Array, n: Array, s_0: Array, s_1: Array) -> Array:
    """Where a history is in the plan: the cubes before it hold 1 + 8 + ... + t^3 entries."""
    return jnp.square(t * (t + 1) // 2) + (n * (t + 1) + s_0) * (t + 1) + s_1


def _planned(num_steps: Static, plan: Array, arms: Arms, key: Array, obs) -> tuple[Array, dict]:
    rewards = jnp.round(arms.counts * arms.means)
    (n, m), (s_0, s_1) = arms.counts.astype(jnp.int32), rewards.astype(jnp.int32)
    greedy = jnp.argmax((rewards + 1) / (arms.counts + 2)).astype(jnp.int32)
    planned = plan[jnp.minimum(_place(n + m, n, s_0, s_1), plan.size - 1)].astype(jnp.int32)
    return jnp.where(n + m < num_steps.value, planned, greedy), {}

# ruff: noqa: N806
"""Classical agents for dueling bandits: two arms meet, and only the winner is told. They act in `preferences(env)`.

All assume one arm that beats every other (a Condorcet winner) and nothing else: neither utilities nor features. A tie
counts as half a win of either arm.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from icrl_envs.task_family import is_int, require
from icrl_jax.agents.arms import positive
from icrl_jax.agents.learner import given, learner
from icrl_jax.core import Agent, Array, Transition, partial


class Duels(NamedTuple):
    """A history of comparisons, reduced to what the agents here need of it."""

    counts: Array  # float32 [A, A]: how often arm i beat arm j
    champion: Array  # int32 []: the arm that RUCB takes for the best, -1 for none
    last: Array  # int32 [2]: the newest pair, -1 before the first


def _dueling(num_arms: int, choose: Callable, crown: Callable | None = None) -> Agent:
    """The agent that keeps `Duels` and decides by `choose(duels, key, obs) -> (pair, info)`.

    Args:
      crown: `duels -> champion`; by default nobody is.
    Raises:
      ValueError: fewer than two arms.
    """
    require(is_int(num_arms, 2), "num_arms", num_arms, "an integer of at least 2")
    nobody = jnp.full((), -1, jnp.int32)
    duels = Duels(jnp.zeros((num_arms, num_arms)), nobody, jnp.full(2, -1, jnp.int32))
    return learner(partial(given, duels), partial(_count, crown or partial(_same_champion)), choose)


def _count(crown, duels: Duels, transition: Transition) -> Duels:
    """Counts one comparison; actions that are no arms change nothing."""
    first, second = jax.nn.one_hot(transition.action, duels.counts.shape[0])
    first_wins = jnp.outer(first, second) * transition.feedback
    second_wins = jnp.outer(second, first) * (1 - transition.feedback)
    duels = duels._replace(counts=duels.counts + first_wins + second_wins, last=transition.action)
    return duels._replace(champion=crown(duels))


def _same_champion(duels: Duels) -> Array:
    return duels.champion


def double_thompson(num_arms: int, alpha: float = 0.51) -> Agent:
    """Double Thompson sampling (Wu and Liu 2016, algorithm 1, https://arxiv.org/abs/1604.07101).

    The first arm is, among those that may beat the most others by their upper bounds, the one that beats the most in a
    draw from Beta posteriors, uniform priors; the second, among those that the first may not surely beat, the one with
    the largest probability to beat it in a second draw, itself with 1/2.

    Args:
      num_arms: A, at least 2.
      alpha: of the bounds p +- sqrt(alpha log t / n), t counting this comparison; the paper wants more than 0.5.
    """
    return _dueling(num_arms, partial(_double_thompson, positive("alpha", alpha)))


def _double_thompson(alpha, duels: Duels, key: Array, obs):
    key_first, key_ties, key_second, key_equals = jax.random.split(key, 4)
    upper, lower = _bounds(duels.counts, alpha)
    A, itself = upper.shape[0], jnp.eye(upper.shape[0], dtype=bool)
    may_beat = jnp.where(itself, False, upper > 0.5).sum(axis=1)
    drawn = jax.random.beta(key_first, duels.counts + 1, duels.counts.T + 1)
    drawn = jnp.where(jnp.triu(~itself), drawn, 1 - drawn.T)  # one draw for each pair
    beaten = jnp.where(itself, False, drawn > 0.5).sum(axis=1, dtype=jnp.float32)
    first = _one_of(key_ties, beaten, may_beat == may_beat.max())
    again = jax.random.beta(key_second, duels.counts[:, first] + 1, duels.counts[first] + 1)
    again = jnp.where(jnp.arange(A) == first, 0.5, again)
    second = _one_of(key_equals, again, jnp.where(jnp.arange(A) == first, True, lower[:, first] <= 0.5))
    return jnp.stack([first, second]), {}


def rucb(num_arms: int, alpha: float = 0.51) -> Agent:
    """Relative upper confidence bounds (Zoghi et al. 2014, algorithm 1, https://arxiv.org/abs/1312.3393).

    The first arm is one that may beat all others by its upper bounds, the champion every other time; the second the one
    that may beat the first by the most.

    Args:
      num_arms: A, at least 2.
      alpha: of the bounds p + sqrt(alpha log t / n), t counting this comparison; the paper wants more than 0.5.
    """
    width = positive("alpha", alpha)
    return _dueling(num_arms, partial(_rucb, width), partial(_crown, width))


def _crown(alpha, duels: Duels) -> Array:
    """The champion: the only arm that may beat all others, or the last champion as long as it may."""
    candidates = _candidates(duels.counts, alpha)
    kept = candidates[duels.champion] & (duels.champion >= 0)
    only = jnp.where(candidates.sum() == 1, jnp.argmax(candidates), -1)
    return jnp.where(only >= 0, only, jnp.where(kept, duels.champion, -1)).astype(jnp.int32)


def _rucb(alpha, duels: Duels, key: Array, obs):
    key_coin, key_first, key_second = jax.random.split(key, 3)
    candidates = _candidates(duels.counts, alpha)
    others = candidates & (jnp.arange(candidates.size) != duels.champion)
    some = jnp.where(others.any(), others, True)
    crowned = (duels.champion >= 0) & (jax.random.bernoulli(key_coin) | ~others.any())
    first = jnp.where(crowned, duels.champion, _one_of(key_first, jnp.zeros(some.size), some))
    upper = _bounds(duels.counts, alpha)[0][:, first]
    second = _one_of(key_second, upper, True)
    return jnp.stack([first, second]), {}


def _candidates(counts: Array, alpha) -> Array:
    """The arms that may beat all others, bool [A]."""
    return (_bounds(counts, alpha)[0] >= 0.5).all(axis=1)


def winner_stays(num_arms: int) -> Agent:
    """Winner stays, for weak regret (Chen and Frazier 2017, algorithm 1, https://arxiv.org/abs/1706.04304).

    The first arm has won the most duels more than it lost, the second the most of the others; an arm of the last pair
    is preferred to its equals, else one of them is drawn.

    Args:
      num_arms: A, at least 2.
    """
    return _dueling(num_arms, partial(_winner_stays))


def _winner_stays(duels: Duels, key: Array, obs):
    key_first, key_second = jax.random.split(key)
    lead = duels.counts.sum(axis=1) - duels.counts.sum(axis=0)
    arms = jnp.arange(lead.size)
    stays = jnp.where(arms == duels.last[0], 2.0, jnp.where(arms == duels.last[1], 1.0, 0.0))
    first = _one_of(key_first, stays, lead == lead.max())
    lead = jnp.where(arms == first, -jnp.inf, lead)
    second = _one_of(key_second, stays, lead == lead.max())
    return jnp.stack([first, second]), {}


def _bounds(counts: Array, alpha) -> tuple[Array, Array]:
    """Upper and lower bounds of the probability that arm i beats arm j, float32 [A, A]: of pairs that never met 2 and
    0, which is 1 +- 1, and of an arm and itself 1/2 (Zoghi et al. 2014; Wu and Liu 2016)."""
    met, time = counts + counts.T, counts.sum() + 1
    share, width = counts / jnp.maximum(met, 1), jnp.sqrt(alpha * jnp.log(time) / jnp.maximum(met, 1))
    upper = jnp.where(met > 0, share + width, 2.0)
    lower = jnp.where(met > 0, share - width, 0.0)
    itself = jnp.eye(counts.shape[0], dtype=bool)
    return jnp.where(itself, 0.5, upper), jnp.where(itself, 0.5, lower)


def _one_of(key: Array, score: Array, allowed: Array | bool) -> Array:
    """Draws one of the arms with the highest score [A] among those allowed [A], int32 []."""
    score = jnp.where(allowed, score, -jnp.inf)
    return jax.random.categorical(key, jnp.where(score == score.max(), 0.0, -jnp.inf)).astype(jnp.int32)

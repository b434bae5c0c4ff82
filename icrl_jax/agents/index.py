"""Index policies: give every arm a score, pull the highest; ties go to the lowest arm."""

from typing import Literal, get_args

import jax.numpy as jnp

from icrl_envs.task_family import require
from icrl_jax.agents.arms import Arms, bandit, number
from icrl_jax.core import Agent, Array, partial

Unseen = Literal["first", "never", "zero"]
"""What to do with an arm that was never pulled: pull it first; only if no arm was ever pulled; score it as if it had
been pulled once and had paid 0."""

_UNSEEN_BONUS = {"first": jnp.inf, "never": -jnp.inf, "zero": 0.0}


def empirical_mean(num_arms: int, unseen: Unseen = "first") -> Agent:
    """Pulls the arm that has paid best on average (`Emp` of Lee et al. 2023, DPT).

    Args:
      num_arms: A, at least 2.
      unseen: "first" is the paper's rule online, "never" its rule offline, "zero" what its code does offline.
    """
    return _optimist(num_arms, jnp.zeros(()), unseen)


def ucb(num_arms: int, c: float = 1.0) -> Agent:
    """Each arm once, then the highest mean + sqrt(c / n): a bonus without log t (`UCB` of Lee et al. 2023, DPT).

    Args:
      num_arms: A, at least 2.
      c: at least 0.
    """
    return _optimist(num_arms, jnp.sqrt(_constant(c)), "first")


def lcb(num_arms: int, c: float = 1.0, unseen: Unseen = "never") -> Agent:
    """Pulls the arm with the highest mean - sqrt(c / n): cautious, for offline data (Lee et al. 2023, DPT).

    Args:
      num_arms: A, at least 2.
      c: at least 0; the paper says 1, its code does `c=0.64, unseen="zero"`.
      unseen: see `Unseen`.
    """
    return _optimist(num_arms, -jnp.sqrt(_constant(c)), unseen)


def ucb1(num_arms: int) -> Agent:
    """Each arm once, then the highest mean + sqrt(2 ln t / n), t the pulls so far (Auer et al. 2002, UCB1).

    Args:
      num_arms: A, at least 2.
    """
    return bandit(num_arms, partial(_ucb1))


def _optimist(num_arms: int, weight: Array, unseen: Unseen) -> Agent:
    require(unseen in get_args(Unseen), "unseen", unseen, f"one of {', '.join(map(repr, get_args(Unseen)))}")
    return bandit(num_arms, partial(_highest, weight, jnp.float32(_UNSEEN_BONUS[unseen])))


def _constant(c) -> Array:
    return number("c", c, "a finite number of at least 0", lambda c: 0 <= c < jnp.inf)


def _highest(weight: Array, unseen_bonus: Array, arms: Arms, key: Array, obs):
    index = arms.means + weight / jnp.sqrt(jnp.maximum(arms.counts, 1))
    return jnp.argmax(index + jnp.where(arms.counts == 0, unseen_bonus, 0.0)), {}


def _ucb1(arms: Arms, key: Array, obs):
    log_t = jnp.log(jnp.maximum(jnp.sum(arms.counts), 1))
    index = arms.means + jnp.sqrt(2 * log_t / jnp.maximum(arms.counts, 1))
    return jnp.argmax(jnp.where(arms.counts == 0, jnp.inf, index)), {}

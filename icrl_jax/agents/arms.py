"""What all bandit agents remember: how often each arm was pulled, and what it paid on average."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from icrl_envs.task_family import is_int, require
from icrl_jax.agents.learner import given, learner
from icrl_jax.core import Agent, Array, Transition, partial


class Arms(NamedTuple):
    """A history of pulls, reduced to what every agent here needs of it.

    Means, not sums: their rounding error does not grow with the number of pulls.
    """

    counts: Array  # float32 [A]: pulls
    means: Array  # float32 [A]: average feedback; 0 where there was none


def bandit(num_arms: int, choose: Callable) -> Agent:
    """Builds the agent that keeps `Arms` and decides by `choose(arms, key, obs) -> (action, info)`.

    Raises:
      ValueError: fewer than two arms.
    """
    require(is_int(num_arms, 2), "num_arms", num_arms, "an integer of at least 2")
    return learner(partial(given, Arms(jnp.zeros(num_arms), jnp.zeros(num_arms))), partial(count), choose)


def count(arms: Arms, transition: Transition) -> Arms:
    """Counts one pull; an action that is no arm changes nothing."""
    pulled = jax.nn.one_hot(transition.action, arms.counts.shape[0])
    counts = arms.counts + pulled
    return Arms(counts, arms.means + pulled * (transition.feedback - arms.means) / jnp.maximum(counts, 1))


def number(argument: str, value: Any, allowed: str, valid: Callable[[Any], bool]) -> Array:
    """Makes a float32 leaf of an agent's parameter; a concrete one is checked, a traced one is trusted."""
    if not isinstance(value, Tracer):
        require(valid(value), argument, value, allowed)
    return jnp.asarray(value, jnp.float32)


def positive(argument: str, value) -> Array:
    """Makes a float32 leaf of a parameter that must be above 0."""
    return number(argument, value, "a finite number above 0", lambda value: 0 < value < jnp.inf)

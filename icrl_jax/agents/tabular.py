"""What agents in tabular MDPs remember: where each action led, and what it paid on average."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from icrl_envs.tabular_mdp import TabularMDP
from icrl_envs.task_family import require
from icrl_jax.core import Array, Transition


class Visits(NamedTuple):
    """A history, reduced to what every agent here needs of it; G tables, one for all steps of an episode or one each.

    Means, not sums: their rounding error does not grow with the number of visits.
    """

    counts: Array  # float32 [G, S, A, S]: transitions
    means: Array  # float32 [G, S, A]: average feedback; 0 where there was none
    step: Array  # int32 []: steps taken in the running episode


def no_visits(num_tables: int, env: TabularMDP) -> Visits:
    """Nothing seen yet."""
    shape = (num_tables, env.num_states, env.num_actions)
    return Visits(jnp.zeros((*shape, env.num_states)), jnp.zeros(shape), jnp.zeros((), jnp.int32))


def count(visits: Visits, transition: Transition) -> Visits:
    """Counts one step; an action outside the range counts as the one that the MDP takes in its place."""
    num_tables, _, num_actions = visits.means.shape
    table = jnp.minimum(visits.step, num_tables - 1)
    at = table, transition.obs, jnp.clip(transition.action, 0, num_actions - 1)
    counts = visits.counts.at[*at, transition.next_obs].add(1.0)
    means = visits.means.at[at].add((transition.feedback - visits.means[at]) / jnp.sum(counts[at]))
    ended = transition.terminated | transition.truncated
    return Visits(counts, means, jnp.where(ended, 0, visits.step + 1))


def require_tabular(env: Any) -> None:
    """Refuses an environment that is no `TabularMDP`."""
    require(isinstance(env, TabularMDP), "env", env.name, "a tabular_mdp, not wrapped")

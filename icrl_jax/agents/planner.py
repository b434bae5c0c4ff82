"""How agents are written that plan when an episode starts and keep to their plan until it ends."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from icrl_envs.task_family import any_of_batch
from icrl_jax.agents.learner import unless_reset
from icrl_jax.core import Agent, Array, TimeStep, Transition, Tree, partial, select


class Planned(NamedTuple):
    """What such an agent remembers."""

    known: Tree  # what it has learned so far, within the running episode too
    plan: Tree  # made when the running episode started


def planner(
    init: Callable[[], Planned],
    learn: Callable[[Tree, Transition], Tree],
    plan: Callable[[Planned, Array], Tree],
    choose: Callable[[Planned, Array, Tree], tuple[Tree, dict]],
) -> Agent:
    """Builds an `Agent` that learns at every step, plans where an episode starts, and forgets at a reset.

    Where the episodes of a batch start together, nothing is planned in between. A history whose last transition ends no
    episode leaves the agent in the middle of one.

    Args (all of them `partial`s):
      init: `() -> carry`, what is known, and planned, before anything was seen.
      learn: `(known, transition) -> known`.
      plan: `(carry, key) -> plan`; the carry still holds the last episode's plan.
      choose: `(carry, key, obs) -> (action, info)`; it cannot touch the carry.
    """
    return Agent(partial(_init, init), partial(_act, init, learn, plan, choose))


def _init(init, key: Array) -> Planned:
    return init()


def _act(init, learn, plan, choose, carry: Planned, key: Array, timestep: TimeStep) -> tuple[Planned, Tree, dict]:
    key_plan, key_choose = jax.random.split(key)
    carry = unless_reset(init, carry._replace(known=learn(carry.known, timestep.prev)), timestep.reset)
    starts = timestep.begins_episode

    def anew():
        return select(starts, plan(carry, key_plan), carry.plan)

    carry = carry._replace(plan=jax.lax.cond(any_of_batch(starts), anew, lambda: carry.plan))
    action, info = choose(carry, key_choose, timestep.obs)
    return carry, action, info

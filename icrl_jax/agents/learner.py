"""How classical agents are written: learn from what happened, then choose; the two never mix."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.tree_util import Partial

from icrl_envs.task_family import any_of_batch
from icrl_jax.core import Agent, Array, TimeStep, Transition, Tree, partial, select


def learner(
    init: Callable[[], Tree], learn: Callable[[Tree, Transition], Tree], choose: Callable[..., tuple[Tree, dict]]
) -> Agent:
    """Builds an `Agent` from three functions; it obeys the law of agents by construction, and forgets at a reset.

    Args:
      init: `() -> carry`, what is known before anything was seen.
      learn: `(carry, transition) -> carry`.
      choose: `(carry, key, obs) -> (action, info)`; it cannot touch the carry.

    Plain functions will do; with `jax.tree_util.Partial` over module-level ones, what they bind are the agent's leaves.
    """
    init, learn, choose = (f if isinstance(f, Partial) else partial(f) for f in (init, learn, choose))
    return Agent(partial(_init, init), partial(_act, init, learn, choose))


def memoryless(choose: Callable[..., tuple[Tree, dict]]) -> Agent:
    """Builds an `Agent` that only chooses."""
    return learner(partial(given, ()), partial(_ignore), choose)


def given(carry: Tree) -> Tree:
    """An `init` that is a constant: `partial(given, carry)`."""
    return carry


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Static:
    """Holds in an agent what is no array, and so no leaf: an environment, a number that sets a shape."""

    value: Any


def _ignore(carry: Tree, transition: Transition) -> Tree:
    return carry


def _init(init, key: Array) -> Tree:
    return init()


def unless_reset(init: Callable[[], Tree], learned: Tree, reset: Array) -> Tree:
    """What was learned, or where a sequence starts `init()`. A table is large: it is only read whole where one does."""
    return jax.lax.cond(any_of_batch(reset), lambda: select(reset, init(), learned), lambda: learned)


def _act(init, learn, choose, carry: Tree, key: Array, timestep: TimeStep) -> tuple[Tree, Tree, dict]:
    carry = unless_reset(init, learn(carry, timestep.prev), timestep.reset)
    action, info = choose(carry, key, timestep.obs)
    return carry, action, info

"""An agent that has already seen a prepared context of its task: offline data, demonstrations, preferences."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from icrl_jax.agents.in_context import check_horizon, in_context
from icrl_jax.core import Agent, Array, TimeStep, Transition, Tree, partial, select
from icrl_jax.rollout import plain, replay


class _Prompted(NamedTuple):
    memory: Tree  # the agent's carry, which has learned all of the context but its last transition
    fresh: Array  # bool []: nothing was acted on yet, so that last transition is still to come


def prompted(agent: Agent, context: Transition | None = None, online: bool = True) -> Agent:
    """Gives an agent the context of one task: its first decision has seen all N transitions.

    A later reset means another task: the context is forgotten. With `online=False` nothing is learned and nothing
    forgotten: every decision is made from the context alone, or, without a context, from an empty memory.

    Args:
      agent: any agent.
      context: transitions of one task, [N, ...], in the order they happened; N may be 0.
      online: whether the agent goes on learning.
    Raises:
      ValueError: the fields of the context differ in length, or the agent's model cannot number so many inputs.
    """
    length = 0 if context is None else _length(context)
    if length == 0:
        return agent if online else Agent(agent.init, partial(_act_unprompted, agent))
    check_horizon(agent, length + 1, 1, "transitions of the context + 1")
    context = jax.tree.map(jnp.asarray, context)
    last = plain(jax.tree.map(lambda x: x[-1], context))
    if online:
        return Agent(partial(_init_online, agent, context), partial(_act_online, agent, last))
    return Agent(partial(_init, agent, context), partial(_act_offline, agent, last))


def trained(
    policy: Tree,
    context: Transition | None = None,
    online: bool = True,
    greedy: bool | None = None,
    temperature: float = 1.0,
) -> Agent:
    """How a trained policy acts: it samples, offline it takes the likeliest action, unless `greedy` says otherwise."""
    actor = in_context(policy, not online if greedy is None else greedy, temperature)
    return prompted(actor, context, online)


def _init(agent: Agent, context: Transition, key: Array) -> Tree:
    key_init, key_replay = jax.random.split(key)
    memory, _ = replay(agent, agent.init(key_init), context, key_replay)
    return memory


def _init_online(agent: Agent, context: Transition, key: Array) -> _Prompted:
    return _Prompted(_init(agent, context, key), jnp.ones((), bool))


def _act_online(agent: Agent, last: Transition, carry: _Prompted, key: Array, timestep: TimeStep):
    prev = select(carry.fresh, last, timestep.prev)
    timestep = TimeStep(timestep.obs, prev, timestep.reset & ~carry.fresh)
    memory, action, info = agent.act(carry.memory, key, timestep)
    return _Prompted(memory, jnp.zeros((), bool)), action, info


def _act_offline(agent: Agent, last: Transition, memory: Tree, key: Array, timestep: TimeStep):
    _, action, info = agent.act(memory, key, TimeStep(timestep.obs, last, jnp.zeros((), bool)))
    return memory, action, info


def _act_unprompted(agent: Agent, memory: Tree, key: Array, timestep: TimeStep):
    blank = jax.tree.map(jnp.zeros_like, timestep.prev)
    _, action, info = agent.act(memory, key, TimeStep(timestep.obs, blank, jnp.ones((), bool)))
    return memory, action, info


def _length(context: Transition) -> int:
    lengths = {jnp.shape(x)[0] for x in jax.tree.leaves(context)}
    if len(lengths) != 1:
        raise ValueError(f"context has fields of lengths {sorted(lengths)}: must all lead with the same N")
    return lengths.pop()

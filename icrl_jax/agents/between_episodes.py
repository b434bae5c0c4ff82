"""An agent that learns all along and acts, within an episode, on what it knew when the episode began."""

from typing import NamedTuple

from icrl_jax.core import Agent, Array, TimeStep, Transition, Tree, partial, select


class _Known(NamedTuple):
    memory: Tree  # the agent's carry, which reads every input
    at_start: Tree  # what it was before the first input of the episode
    prev: Transition  # what that input showed
    reset: Array  # bool []: and whether it started a sequence


def between_episodes(agent: Agent, blank: Transition) -> Agent:
    """Lets what an agent learns count from the next episode on (Lee et al. 2023, DPT, algorithm 1: deployment).

    It acts twice a step: once to learn, once to decide.

    Args:
      agent: any agent; it gives back what it did.
      blank: `rollout.no_transition` of its environment.
    """
    return Agent(partial(_init, agent, blank), partial(_act, agent))


def _init(agent: Agent, blank: Transition, key: Array) -> _Known:
    memory = agent.init(key)
    return _Known(memory, memory, blank, blank.terminated)


def _act(agent: Agent, carry: _Known, key: Array, timestep: TimeStep) -> tuple[_Known, Tree, dict]:
    now = carry.memory, timestep.prev, timestep.reset
    at_start, prev, reset = select(timestep.begins_episode, now, (carry.at_start, carry.prev, carry.reset))
    memory, _, _ = agent.act(carry.memory, key, timestep)
    _, action, info = agent.act(at_start, key, TimeStep(timestep.obs, prev, reset))
    return _Known(memory, at_start, prev, reset), action, info

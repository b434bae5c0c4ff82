"""Preference data: comparisons of two actions in a state, in place of rewards (Dong et al. 2026, ICPRL).

A comparison is a `Transition` of `icrl_envs.preferences(env)`: the state, the pair of actions, the label as feedback
and the state that the preferred action led to. So a context of comparisons is an ordinary context, without any reward
in it, and whatever takes contexts takes it.
"""

import jax
import jax.numpy as jnp

from icrl_envs import TaskFamily, revealed
from icrl_jax.core import Agent, Array, TimeStep, Transition, Tree, partial
from icrl_jax.rollout import rollout, start


def in_pairs(agent: Agent) -> Agent:
    """Proposes two actions of an agent, drawn apart; for agents that learn nothing, such as behaviours.

    In `revealed(preferences(env))`, for an agent of `revealed(env)`. Its `info` is that of the first action.
    """
    return Agent(agent.init, partial(_act_twice, agent))


def _act_twice(agent: Agent, carry: Tree, key: Array, timestep: TimeStep) -> tuple[Tree, Tree, dict]:
    key_first, key_second = jax.random.split(key)
    carry, first, info = agent.act(carry, key_first, timestep)
    _, second, _ = agent.act(carry, key_second, timestep)
    return carry, jax.tree.map(lambda *pair: jnp.stack(pair), first, second), info


def compare_anywhere(env: TaskFamily, env_params: Tree, key: Array, num: int) -> tuple[Tree, tuple[Tree, Array]]:
    """Comparisons of `num` pairs, K, in one state, any state and any actions, each as likely; nobody moves.

    Args:
      env: `preferences(...)`.
    Returns:
      What is seen there, and the pairs [K, 2, ...] with their labels, float32 [K].
    """
    key_state, key_pairs = jax.random.split(key)
    obs, state = env.reset_anywhere(key_state, env_params)

    def one(key):
        key_pair, key_label = jax.random.split(key)
        pair = env.action_space(env_params).sample(key_pair)
        return pair, env.step_env(key_label, state, pair, env_params)[2]

    return obs, jax.vmap(one)(jax.random.split(key_pairs, num))


def compare(
    env: TaskFamily, proposer: Agent, env_params: Tree, key: Array, num: int, num_apart: int = 0
) -> tuple[Transition, Transition]:
    """Comparisons in order, as one lives them who proposes and moves by what is preferred.

    Args:
      env: `preferences(...)`.
      proposer: acts in `revealed(env)`, e.g. `in_pairs(behaviour)`.
      num: T, how many make a context.
      num_apart: T', how many more are made, from another start, by the same proposer, to learn from.
    Returns:
      Those of the context, [T, ...], and those apart, [T', ...].
    """
    world = revealed(env)
    key, key_apart = jax.random.split(key)
    first = start(proposer, world, env_params, key)
    again = start(proposer, world, env_params, key_apart)._replace(carry=first.carry)
    context = rollout(proposer, world, first, key, num)[1].transition
    return context, rollout(proposer, world, again, key_apart, num_apart)[1].transition

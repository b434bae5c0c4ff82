"""The agent of a model whose query comes first: a new query is a new sequence, so it reads its context at every act."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from icrl_jax.agents.in_context import decide
from icrl_jax.core import Agent, Array, TimeStep, Transition, Tree, partial, select
from icrl_jax.data.contexts import as_timesteps


class Notes(NamedTuple):
    """The newest transitions, in order."""

    context: Transition  # [N, ...], those that are not there yet after those that are
    length: Array  # int32 []: how many are there


def rereading(policy: Tree, context_len: int, blank: Transition, greedy: bool = False) -> Agent:
    """Acts by a model that was trained on queries followed by their context (Lee et al. 2023, DPT).

    Each act costs a forward pass over context_len + 1 inputs; where queries never change, `in_context` gives the same
    answers from a cache.

    Args:
      policy: the model, a pytree (`icrl_jax.models.policy.Policy`).
      context_len: N, how many transitions it keeps; older ones are forgotten.
      blank: `rollout.no_transition` of its environment.
      greedy: takes the likeliest action instead of sampling.
    Returns:
      An `Agent` whose `info` is that of `in_context`.
    """
    empty = Notes(jax.tree.map(lambda x: jnp.zeros((context_len, *x.shape), x.dtype), blank), jnp.zeros((), jnp.int32))
    return Agent(partial(_init, empty), partial(_act_greedy if greedy else _act_sampled, policy))


def _init(empty: Notes, key: Array) -> Notes:
    return empty


def _act_sampled(policy: Tree, carry: Notes, key: Array, timestep: TimeStep) -> tuple[Notes, Array, dict]:
    carry, prediction = _answer(policy, carry, timestep)
    return decide(carry, prediction, prediction.sample(key))


def _act_greedy(policy: Tree, carry: Notes, key: Array, timestep: TimeStep) -> tuple[Notes, Array, dict]:
    carry, prediction = _answer(policy, carry, timestep)
    return decide(carry, prediction, prediction.mode())


def _answer(policy: Tree, carry: Notes, timestep: TimeStep) -> tuple[Notes, Tree]:
    carry = select(timestep.reset, jax.tree.map(jnp.zeros_like, carry), _noted(carry, timestep.prev))
    inputs = as_timesteps(carry.context, timestep.obs)
    _, prediction, _ = policy(None, jax.tree.map(lambda x: x[None], inputs))
    return carry, jax.tree.map(lambda x: x[0, carry.length], prediction)


def _noted(notes: Notes, transition: Transition) -> Notes:
    N = notes.context.feedback.shape[0]
    place = jnp.minimum(notes.length, N - 1)

    def put(kept: Array, new: Array) -> Array:
        return jnp.where(notes.length == N, jnp.roll(kept, -1, axis=0), kept).at[place].set(new)

    return Notes(jax.tree.map(put, notes.context, transition), place + 1)

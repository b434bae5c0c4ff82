"""What a sequence model reads: a context turned into the inputs an agent would have met."""

import jax
import jax.numpy as jnp

from icrl_jax.core import Array, TimeStep, Transition, Tree


def as_timesteps(context: Transition, query_obs: Tree) -> TimeStep:
    """One query followed by its context [T, ...]: T + 1 inputs, the first of which starts the sequence.

    Input 0 shows the query and nothing before it; input t shows transition t - 1 as `prev`. A model that reads them
    in parallel gives, at each, what the in-context agent would have answered at that step.
    """
    blank = jax.tree.map(lambda x: jnp.zeros_like(x[:1]), context)
    prev = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), blank, context)
    obs = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), query_obs, context.next_obs)
    return TimeStep(obs, prev, jnp.zeros(prev.feedback.shape[0], bool).at[0].set(True))


def shuffled(context: Transition, key: Array) -> Transition:
    """The same transitions in a random order."""
    return jax.tree.map(lambda x: x[jax.random.permutation(key, x.shape[0])], context)


def timesteps_of(transitions: Transition) -> TimeStep:
    """The inputs on which an agent took these actions [T, ...], having begun at the first with an empty memory.

    Where an episode ended, `prev` shows its last observation and `obs` the first of the next one.
    """
    prev = jax.tree.map(lambda x: jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]]), transitions)
    return TimeStep(transitions.obs, prev, jnp.zeros(prev.feedback.shape[0], bool).at[0].set(True))

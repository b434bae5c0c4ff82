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


def timesteps_of(transitions: Transition, reset: Array | None = None, prev: Transition | None = None) -> TimeStep:
    """The inputs on which an agent took these actions, [T, ...]; the parallel twin of `rollout.replay`.

    Where an episode ended, `prev` shows its last observation and `obs` the first of the next one.

    Args:
      reset: bool [T], True where a sequence starts; by default at the first step only.
      prev: the transition before the first, where the history continues one; by default none.
    """
    if reset is None:
        reset = jnp.zeros(transitions.feedback.shape[0], bool).at[0].set(prev is None)
    first = jax.tree.map(lambda x: jnp.zeros_like(x[0]), transitions) if prev is None else prev
    before = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b[:-1]]), first, transitions)
    blank = lambda x: jnp.where(reset.reshape(-1, *[1] * (x.ndim - 1)), jnp.zeros_like(x), x)
    return TimeStep(transitions.obs, jax.tree.map(blank, before), reset)

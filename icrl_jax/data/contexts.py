"""What a sequence model reads: a context turned into the inputs an agent would have met."""

from typing import Any

import jax
import jax.numpy as jnp

from icrl_envs import TaskFamily
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


def asked(context: Transition, query_obs: Tree) -> TimeStep:
    """A query [T + 1, ...] of its own after every prefix of a context [T, ...]: T + 1 inputs.

    Input t shows query t and, as `prev`, transition t - 1. Where all queries are alike and the context shows nothing
    else, these are the inputs of `as_timesteps`.
    """
    first = jax.tree.map(lambda x: x[0], query_obs)
    return as_timesteps(context, first)._replace(obs=query_obs)


def scattered(env: TaskFamily, env_params: Any, key: Array, num: int) -> Transition:
    """Separate transitions [num, ...], state and action drawn anew for each (Lee et al. 2023, DPT's dark room)."""

    def one(key):
        key_state, key_action, key_step = jax.random.split(key, 3)
        obs, state = env.reset_anywhere(key_state, env_params)
        action = env.action_space(env_params).sample(key_action)
        next_obs, _, reward, terminated, _ = env.step_env(key_step, state, action, env_params)
        return Transition(obs, action, reward, next_obs, terminated, jnp.zeros((), bool))

    return jax.vmap(one)(jax.random.split(key, num))


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

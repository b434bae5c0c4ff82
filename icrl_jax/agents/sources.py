"""Agents that learn as they act, as source algorithms: the histories of their learning are what is distilled."""

import jax
import jax.numpy as jnp
from gymnax.environments.environment import Environment

from icrl_envs import copies
from icrl_envs.task_family import is_int, require
from icrl_jax.agents.learner import Static
from icrl_jax.core import Agent, Array, Learner, Tree, partial
from icrl_jax.rollout import Record, RolloutState, rollout, start


def as_learner(agent: Agent, env: Environment, num_streams: int, num_steps: int, shared: bool = False) -> Learner:
    """Makes an agent a source algorithm, whose `learn` takes `num_steps` steps in each of `num_streams` streams.

    Args:
      agent: for oracles and what is made of them, `env` is `revealed(env)`.
      env: one environment; it is copied here.
      num_streams: N.
      num_steps: T, in one call of `learn`.
      shared: all streams teach one agent, which acts behind `copies(env, N)` as `q_learning` can, and as the 100 actors
        of Laskin et al. 2022 (AD) did. Otherwise each stream is a life of its own, from an empty memory; bandit agents
        know no other way.
    Raises:
      ValueError: a size below 1, or with `shared` an agent that does not act in copies.
    """
    require(is_int(num_streams, 1), "num_streams", num_streams, "an integer of at least 1")
    require(is_int(num_steps, 1), "num_steps", num_steps, "an integer of at least 1")
    require(isinstance(shared, bool), "shared", shared, "True or False")
    sizes = Static((env, num_streams, num_steps))
    if not shared:
        return Learner(partial(_init_each, agent, sizes), partial(_learn_each, agent, sizes))
    _check_copies(agent, sizes)
    return Learner(partial(_init_shared, agent, sizes), partial(_learn_shared, agent, sizes))


def _check_copies(agent: Agent, sizes: Static) -> None:
    def action(key):
        state = _init_shared(agent, sizes, key, sizes.value[0].default_params)
        return agent.act(state.carry, key, state.timestep)[1], state.timestep.prev.action

    try:
        shapes = [x.shape for x in jax.tree.leaves(jax.eval_shape(action, jax.random.key(0)))]
    except (TypeError, ValueError) as error:
        raise ValueError(f"shared=True: must be False for an agent that does not act in copies ({error})") from error
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"shared=True: must be False for an agent that does not act in copies: its actions are {shapes[0]}, "
            f"not {shapes[1]}"
        )


def _init_each(agent: Agent, sizes: Static, key: Array, env_params: Tree) -> RolloutState:
    env, num_streams, _ = sizes.value
    return jax.vmap(lambda key: start(agent, env, env_params, key))(jax.random.split(key, num_streams))


def _learn_each(agent: Agent, sizes: Static, state: RolloutState, key: Array) -> tuple[RolloutState, Record]:
    env, num_streams, num_steps = sizes.value
    one = lambda state, key: rollout(agent, env, state, key, num_steps)
    return jax.vmap(one, out_axes=(0, 1))(state, jax.random.split(key, num_streams))


def _init_shared(agent: Agent, sizes: Static, key: Array, env_params: Tree) -> RolloutState:
    env, num_streams, _ = sizes.value
    return start(agent, copies(env, num_streams), env_params, key)


def _learn_shared(agent: Agent, sizes: Static, state: RolloutState, key: Array) -> tuple[RolloutState, Record]:
    env, num_streams, num_steps = sizes.value
    state, record = rollout(agent, copies(env, num_streams), state, key, num_steps)
    streams = lambda x: jnp.broadcast_to(x[:, None], (num_steps, num_streams))
    return state, record._replace(reset=streams(record.reset), trial_end=streams(record.trial_end))

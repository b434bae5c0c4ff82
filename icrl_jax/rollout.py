"""The one scan: an agent in a task gives transitions; and its twin, a logged history replayed into an agent."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from gymnax.environments.environment import Environment

from icrl_envs import Revealed
from icrl_envs.task_family import any_of_batch
from icrl_jax.core import Agent, Array, TimeStep, Transition, Tree, select

_START = 2**32 - 1  # stands for "before step 0": `split(key)[i]` is `fold_in(key, i)`, the key of step i


class RolloutState(NamedTuple):
    """Where a rollout stands; the next one continues from it."""

    env_state: Tree
    env_params: Tree  # the task
    timestep: TimeStep  # what the agent will act on next
    carry: Tree  # the agent's memory
    t: Array  # int32 []: steps since `start`
    trial_steps: Array  # int32 []: steps in this trial
    trial_episodes: Array  # int32 []: episodes finished in this trial


class Record(NamedTuple):
    """What a rollout hands out for each step; [T, ...] after the scan."""

    transition: Transition
    reset: Array  # bool []: this step's input started a new sequence
    trial_end: Array  # bool []: this step ended the trial; the next one meets a new task
    info: dict  # from the agent: log_prob, value, probs, ...
    env_info: dict  # from the environment, and `expected_reward` where the family knows it


class Trial(NamedTuple):
    """When a trial, the time spent with one task, ends: at either limit, whichever comes first."""

    steps: int | None = None  # an unfinished episode is then truncated
    episodes: int | None = None


def start(agent: Agent, env: Environment, env_params: Any, key: Array) -> RolloutState:
    """Resets the environment to one task and gives the agent an empty memory.

    The environment's draws do not depend on the agent, so all agents start alike. The key may be that of the rollout.
    """
    key_env, key_agent = jax.random.split(jax.random.fold_in(key, _START))
    obs, env_state = env.reset(key_env, env_params)
    timestep = _first_timestep(env, env_params, obs)
    zero = jnp.zeros((), jnp.int32)
    return RolloutState(env_state, env_params, timestep, agent.init(key_agent), zero, zero, zero)


def rollout(
    agent: Agent,
    env: Environment,
    state: RolloutState,
    key: Array,
    num_steps: int,
    next_task: Callable[[Array], Any] | None = None,
    trial: Trial | None = None,
) -> tuple[RolloutState, Record]:
    """Runs one agent in one task for `num_steps` steps; `jax.vmap` it over tasks.

    Episodes auto-reset, the agent's carry does not. The task changes only where a trial ends, and there the next
    input sets `reset`. Step t draws from `fold_in(key, t)` with t counted since `start`, apart for the environment
    and for the agent: all agents meet the same noise, and a rollout continued with the same key equals one long one.

    Args:
      state: from `start`, or from an earlier rollout.
      key: one key for the whole rollout.
      num_steps: T, static.
      next_task: `key -> env_params`, the task of the next trial; by default the task stays.
      trial: when a trial ends; by default never.
    Returns:
      The state to continue from, and a `Record` [T, ...] whose `next_obs` is the true final observation.
    Raises:
      ValueError: `next_task` without `trial`, or a trial without a limit.
    """
    if trial is None and next_task is not None:
        raise ValueError("next_task is given without trial: say when a trial ends, e.g. trial=Trial(episodes=4)")
    if trial is not None and min((limit for limit in trial if limit is not None), default=0) < 1:
        raise ValueError(f"trial={trial!r}: needs a limit on steps or episodes, and each limit at least 1")

    def body(state: RolloutState, _):
        key_env, key_act, key_task = _step_keys(key, state.t)
        carry, action, info = agent.act(state.carry, key_act, state.timestep)
        record, env_state, obs = _step_env(env, key_env, state, action, info)
        done = record.transition.terminated | record.transition.truncated
        state = state._replace(
            env_state=env_state,
            carry=carry,
            timestep=TimeStep(obs, record.transition, jnp.zeros((), bool)),
            t=state.t + 1,
            trial_steps=state.trial_steps + 1,
            trial_episodes=state.trial_episodes + jnp.all(done).astype(jnp.int32),
        )
        if trial is None:
            return state, record
        return _next_trial(env, state, record, key_task, next_task, trial)

    return jax.lax.scan(body, state, length=num_steps)


def replay(
    agent: Agent,
    carry: Tree,
    transitions: Transition,
    key: Array,
    reset: Array | None = None,
    prev: Transition | None = None,
) -> tuple[Tree, tuple[Tree, dict]]:
    """Feeds a logged history [T, ...] into an agent, as if it had lived it.

    With the key of the rollout that made the history, the agent that made it gets back the carry it had.

    Args:
      carry: the memory to start from, e.g. `agent.init(key)`.
      reset: bool [T], True where a sequence starts; by default at the first step only.
      prev: the transition before the first, where the history continues one; by default none.
    Returns:
      The carry, which has learned all but the last transition (that one is the `prev` of the next act), and what the
      agent would have done at each step: (action [T], info).
    """
    num_steps = jax.tree.leaves(transitions)[0].shape[0]
    if reset is None:
        reset = jnp.zeros(num_steps, bool).at[0].set(prev is None)
    first = jax.tree.map(lambda x: jnp.zeros_like(x[0]), transitions) if prev is None else prev

    def body(state, inputs):
        carry, prev = state
        transition, reset, t = inputs
        _, key_act, _ = _step_keys(key, t)
        prev = select(reset, jax.tree.map(jnp.zeros_like, prev), prev)
        carry, action, info = agent.act(carry, key_act, TimeStep(transition.obs, prev, reset))
        return (carry, plain(transition)), (action, info)

    (carry, _), acted = jax.lax.scan(body, (carry, plain(first)), (transitions, reset, jnp.arange(num_steps)))
    return carry, acted


def plain(transition: Transition) -> Transition:
    """Strips what `revealed` added: a history keeps only what an ordinary agent sees."""
    return transition._replace(obs=_plain_obs(transition.obs), next_obs=_plain_obs(transition.next_obs))


def _plain_obs(obs: Tree) -> Tree:
    return obs.obs if isinstance(obs, Revealed) else obs


def _step_keys(key: Array, t: Array) -> Array:
    """Keys of step t: for the environment, for the agent, for the next task."""
    return jax.random.split(jax.random.fold_in(key, t), 3)


def _step_env(env, key, state: RolloutState, action, info) -> tuple[Record, Tree, Tree]:
    obs, env_state, feedback, terminated, truncated, env_info = env.step(key, state.env_state, action, state.env_params)
    env_info = dict(env_info)
    final_obs = env_info.pop("final_observation")
    del env_info["terminated"], env_info["truncated"]
    expected_reward = getattr(env, "expected_reward", None)
    if expected_reward is not None:
        env_info["expected_reward"] = expected_reward(state.env_state, action, state.env_params)
    transition = plain(Transition(state.timestep.obs, action, feedback, final_obs, terminated, truncated))
    return Record(transition, state.timestep.reset, jnp.zeros((), bool), info, env_info), env_state, obs


def _next_trial(env, state: RolloutState, record: Record, key, next_task, trial: Trial):
    """Where the trial has ended, starts the next one: task, environment and input anew; elsewhere changes nothing."""
    ended = jnp.zeros((), bool)
    if trial.episodes is not None:
        ended |= state.trial_episodes >= trial.episodes
    if trial.steps is not None:
        out_of_steps = state.trial_steps >= trial.steps
        transition = record.transition
        truncated = transition.truncated | (out_of_steps & ~transition.terminated)
        record = record._replace(transition=transition._replace(truncated=truncated))
        ended |= out_of_steps
    stays = (state.env_state, state.env_params, state.timestep, state.trial_steps, state.trial_episodes)

    def fresh():
        key_task, key_reset = jax.random.split(key)
        env_params = state.env_params if next_task is None else next_task(key_task)
        obs, env_state = env.reset(key_reset, env_params)
        zero = jnp.zeros((), jnp.int32)
        return select(ended, (env_state, env_params, _first_timestep(env, env_params, obs), zero, zero), stays)

    # Drawing a task may be dear, and trials mostly end together: only then is it computed.
    env_state, env_params, timestep, steps, episodes = jax.lax.cond(any_of_batch(ended), fresh, lambda: stays)
    state = state._replace(
        env_state=env_state, env_params=env_params, timestep=timestep, trial_steps=steps, trial_episodes=episodes
    )
    return state, record._replace(trial_end=ended)


def _first_timestep(env: Environment, env_params: Any, obs: Tree) -> TimeStep:
    """The input that starts a sequence: nothing came before it."""
    return TimeStep(obs, no_transition(env, env_params), jnp.ones((), bool))


def no_transition(env: Environment, env_params: Any) -> Transition:
    """Zeros in the place of a transition: what `prev` is where nothing came before."""

    def shapes(key):
        obs, env_state = env.reset(key, env_params)
        action = env.action_space(env_params).sample(key)
        _, _, feedback, terminated, truncated, info = env.step(key, env_state, action, env_params)
        return plain(Transition(obs, action, feedback, info["final_observation"], terminated, truncated))

    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(shapes, jax.random.key(0)))

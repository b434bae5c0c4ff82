"""In-context evaluation: any agent, trained or classical, in many held-out tasks at once, in one compiled scan."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments.environment import Environment
from jax.tree_util import Partial

from icrl_envs import TaskFamily
from icrl_envs.wrappers import Copies
from icrl_jax.agents.in_context import check_horizon
from icrl_jax.core import Agent, Array, TimeStep, Transition, Tree
from icrl_jax.parallel import in_groups, over_rows, pad_rows
from icrl_jax.rollout import Record, replay, rollout, start


class Evaluation(NamedTuple):
    """What an agent did in B tasks."""

    metrics: dict[str, Array]  # name -> float32 [B]
    curves: dict[str, Array]  # name -> float32 [B, T] (per step) or [B, E] (per episode)
    record: Record  # [B, T, ...]


def evaluate(
    agent: Agent | Callable[[Tree], Agent],
    env: Environment,
    env_params: Any,
    key: Array,
    num_steps: int | None = None,
    num_episodes: int | None = None,
    context: Tree = None,
) -> Evaluation:
    """Runs one agent in B tasks, each from an empty memory, and scores it.

    Task b draws from `fold_in(key, b)`, so every agent evaluated with the same key meets the same tasks, starts and
    reward noise. It is compiled, once for each kind of agent and size; tasks are spread over the devices.

    Args:
      agent: an `Agent`, or where `context` is given a function `context -> Agent`.
      env: a task family, or any gymnax environment.
      env_params: the tasks, stacked [B, ...].
      num_steps: T, for families of one never-ending episode (bandits).
      num_episodes: E, for episodic families; episodes that end early make room for more, which are not counted.
      context: one prepared context per task, stacked [B, ...].
    Returns:
      Metrics `cumulative_regret` (pseudo-regret: from expected rewards) with curve `regret`, for bandits;
      `first_return`, `final_return` (mean of the last max(1, ceil(E / 10)) episodes), `mean_return` with curve
      `return`, for episodic families, and `success`, the share of episodes with one, where the family knows it;
      `weak_regret` and `strong_regret` where preferences are the feedback.
    Raises:
      ValueError: the size that fits the family is missing or below 1, the tasks are not stacked, `env` is
        `copies(...)`, or the agent's model cannot number so many inputs.
    """
    if isinstance(env, Copies):
        raise ValueError("env=copies(...): must be one environment to be evaluated")
    episodic = getattr(env, "episodic", True)
    name, size = ("num_episodes", num_episodes) if episodic else ("num_steps", num_steps)
    if not isinstance(size, int | np.integer) or size < 1:
        raise ValueError(f"{name}={size!r}: must be an integer of at least 1 for {env.name}")
    one, many = (jax.tree.map(jnp.ndim, params) for params in (env.default_params, env_params))
    if one == many:
        raise ValueError("env_params: must be stacked [B, ...], as icrl_envs.sample_tasks gives them, not one task")
    if episodic:
        with jax.ensure_compile_time_eval():  # a number also where the caller jits
            num_steps = size * int(env.default_params.max_steps_in_episode)
    else:
        num_steps = size
    agent = Agent(*map(_as_pytree, agent)) if isinstance(agent, Agent) else _as_pytree(agent)
    check_horizon(agent, num_steps, num_steps // size if episodic else num_steps)
    return _evaluate(agent, env, env_params, key, num_steps, size, context)


def _as_pytree(function: Callable) -> Callable:
    """Plain functions act too. A `Partial` of a `Partial` would hide the parameters, as constants of the program."""
    return function if isinstance(function, Partial) else Partial(function)


@partial(jax.jit, static_argnames=("env", "num_steps", "size"))
def _evaluate(agent, env, env_params, key, num_steps, size, context) -> Evaluation:
    num_tasks = jax.tree.leaves(env_params)[0].shape[0]

    def one_task(agent, row) -> Evaluation:
        env_params, context, index = row
        key_task = jax.random.fold_in(key, index)
        agent = agent if context is None else agent(context)
        _, record = rollout(agent, env, start(agent, env, env_params, key_task), key_task, num_steps)
        metrics, curves = _score(env, env_params, record, size)
        return Evaluation(metrics, curves, record)

    def memory(context):
        return (agent if context is None else agent(context)).init(key)

    rows = (env_params, context, jnp.arange(num_tasks))
    size_of_memory = jax.eval_shape(memory, jax.tree.map(lambda x: x[0], context))
    group = _tasks_at_once(num_tasks, sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(size_of_memory)))
    evaluation = over_rows(in_groups(jax.vmap(one_task, in_axes=(None, 0)), group))(agent, pad_rows(rows, group))
    return jax.tree.map(lambda x: x[:num_tasks], evaluation)


_BYTES_IN_CACHE = 4 * 2**20


def _tasks_at_once(num_tasks: int, bytes_per_task: int) -> int:
    """How many tasks a device runs side by side: all, but on CPU no more than have their memories in a core's cache.

    There every step of all tasks at once reads all memories from afar; DPT's 500 steps took 1.5 times as long.
    """
    share = -(-num_tasks // jax.device_count())
    if jax.default_backend() != "cpu":
        return share
    return -(-share // max(1, -(-share * bytes_per_task // _BYTES_IN_CACHE)))


def offline_suboptimality(agent: Agent, env: TaskFamily, env_params: Any, contexts: Transition, key: Array) -> Array:
    """Loses how much, by the arm chosen after every prefix of a fixed data set, the empty and the whole one included.

    Args:
      env: a bandit, also one whose arms are compared.
      env_params: the tasks, stacked [B, ...].
      contexts: the data sets, stacked [B, N, ...].
    Returns:
      Expected reward of the best arm less that of the chosen arm, float32 [B, N + 1].
    """

    def one_task(agent, row):
        env_params, context, index = row
        key_task = jax.random.fold_in(key, index)
        key_init, key_replay, key_last = jax.random.split(key_task, 3)
        carry, (actions, _) = replay(agent, agent.init(key_init), context, key_replay)
        obs, env_state = env.reset(key_init, env_params)
        last = TimeStep(obs, jax.tree.map(lambda x: x[-1], context), jnp.zeros((), bool))
        _, action, _ = agent.act(carry, key_last, last)
        actions = jnp.concatenate([actions, action[None]])
        rewards = jax.vmap(env.expected_reward, in_axes=(None, 0, None))(env_state, actions, env_params)
        return _best_reward(env, env_state, env_params) - rewards

    num_tasks = jax.tree.leaves(env_params)[0].shape[0]
    rows = pad_rows((env_params, contexts, jnp.arange(num_tasks)))
    return over_rows(jax.vmap(one_task, in_axes=(None, 0)))(agent, rows)[:num_tasks]


def tv_distance(agent: Agent, other: Agent, histories: Transition, key: Array) -> Array:
    """How differently two agents would act: the total-variation distance of their action probabilities, in [0, 1].

    d_t = 1/2 sum_a |p_t(a) - q_t(a)|, both given the same history up to step t, whoever made it. History b is replayed
    with `fold_in(key, b)` into both.

    Args:
      agent, other: agents that put `probs`, float32 [A], into their `info`.
      histories: transitions of B tasks, stacked [B, T, ...].
    Returns:
      The distance at each step, before which so many transitions were seen, float32 [B, T].
    Raises:
      ValueError: an agent without `probs`.
    """

    p, q = (action_probs(one, histories, key) for one in (agent, other))
    return jnp.sum(jnp.abs(p - q), axis=-1) / 2


def action_probs(agent: Agent, histories: Transition, key: Array) -> Array:
    """With what probabilities an agent would act, given what others have lived; see `tv_distance`.

    Returns:
      At each step, before which so many transitions were seen, float32 [B, T, A].
    Raises:
      ValueError: an agent without `probs`.
    """

    def one_history(agent, row):
        history, index = row
        key_init, key_replay = jax.random.split(jax.random.fold_in(key, index))
        _, (_, info) = replay(agent, agent.init(key_init), history, key_replay)
        if "probs" not in info:
            raise ValueError(f"info holds {sorted(info)}: must hold 'probs' for a distance between agents to exist")
        return info["probs"]

    num_tasks = histories.feedback.shape[0]
    rows = pad_rows((histories, jnp.arange(num_tasks)))
    return over_rows(jax.vmap(one_history, in_axes=(None, 0)))(agent, rows)[:num_tasks]


def _score(env, env_params, record: Record, size: int) -> tuple[dict, dict]:
    preferences = [name for name in ("weak_regret", "strong_regret") if name in record.env_info]
    curves = {name: jnp.cumsum(record.env_info[name]) for name in preferences}
    metrics = {name: curve[-1] for name, curve in curves.items()}
    if getattr(env, "episodic", True):
        returns = episode_returns(record, num_episodes=size)
        last = max(1, -(-size // 10))
        metrics |= {"first_return": returns[0], "final_return": returns[-last:].mean(), "mean_return": returns.mean()}
        curves["return"] = returns
        if "success" in record.env_info:
            successes = _episode_sums(record, record.env_info["success"].astype(jnp.float32), size)
            curves["success"] = jnp.minimum(successes, 1)  # at any step of the episode
            metrics["success"] = curves["success"].mean()
    elif not preferences:
        _, env_state = env.reset(jax.random.key(0), env_params)  # a bandit has one state
        curves["regret"] = jnp.cumsum(_best_reward(env, env_state, env_params) - record.env_info["expected_reward"])
        metrics["cumulative_regret"] = curves["regret"][-1]
    return metrics, curves


def episode_returns(record: Record, num_episodes: int) -> Array:
    """Sums the rewards [T] of each of the first `num_episodes` episodes, float32 [E]; nan where one did not end."""
    return _episode_sums(record, record.env_info.get("reward", record.transition.feedback), num_episodes)


def _episode_sums(record: Record, reward: Array, num_episodes: int) -> Array:
    done = (record.transition.terminated | record.transition.truncated).astype(jnp.int32)
    episode = jnp.cumsum(done) - done  # of this step
    returns = jax.ops.segment_sum(reward, episode, num_segments=num_episodes)
    return jnp.where(jnp.arange(num_episodes) < jnp.sum(done), returns, jnp.nan)


def _best_reward(env, env_state, env_params) -> Array:
    return env.expected_reward(env_state, env.optimal_action(env_state, env_params), env_params)

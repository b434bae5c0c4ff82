"""Tabular Q-learning (Watkins 1989): a source algorithm for dark rooms and small MDPs."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces
from gymnax.environments.environment import Environment

from icrl_envs.task_family import is_int, require
from icrl_envs.wrappers import Copies
from icrl_jax.agents.arms import number
from icrl_jax.agents.learner import Static, given, learner
from icrl_jax.core import Agent, Array, Transition, Tree, partial

MAX_ENTRIES = 2**22
"""Largest table, S x A."""


class QTable(NamedTuple):
    """What Q-learning remembers."""

    values: Array  # float32 [(R + 1) S, A]: S states for each count of rewards
    counts: Array  # int32 []: steps learned from; those of copies count as one
    rewards: Array  # int32 []: above 0 in this episode, at most R


class States(NamedTuple):
    """How an observation of D integers becomes the number of a state: their digits in mixed radix."""

    low: Array  # int32 [D]
    strides: Array  # int32 [D]


class Ramp(NamedTuple):
    """A number that goes from `first` to `last` in a straight line over the first `steps` steps, and stays there."""

    first: Array  # float32 []
    last: Array  # float32 []
    steps: Array  # float32 []

    def at(self, step: Array) -> Array:
        """Its value at a step, float32 []."""
        return self.first + (self.last - self.first) * jnp.minimum(step.astype(jnp.float32) / self.steps, 1)


def q_learning(
    env: Environment,
    epsilon: tuple[float, float] = (1.0, 0.0),
    learning_rate: tuple[float, float] = (0.5, 0.1),
    decay_steps: int = 1000,
    discount: float = 0.9,
    initial: float = 0.0,
    count_rewards: int = 0,
) -> Agent:
    """Epsilon-greedy Q-learning, Q(s, a) += rate (r + discount max_b Q(s', b) - Q(s, a)); ties are broken at random.

    After a terminated step nothing is added for s', after a truncated one s' is the true last observation. It also acts
    behind `copies(env, n)`: n streams then share one table, and where several took a in s, Q(s, a) moves by the mean of
    their errors. The observation is all it knows of the state, but for the rewards it may count.

    Args:
      env: its observations are a `Discrete`, or a `Box` of integers with bounds, such as the cells of a room; its
        actions a `Discrete`.
      epsilon: probability of a uniform action, first and after `decay_steps`.
      learning_rate: first and after `decay_steps`.
      decay_steps: steps over which both go from the first value to the last, in a straight line.
      discount: in [0, 1].
      initial: all values at the start; above what can be earned, it makes the learner try everything.
      count_rewards: R, up to how many rewards of an episode it counts, and takes for a part of the state: where each is
        paid once, what was seen does not tell what is left to find. Above 0 it does not act behind copies.
    Raises:
      ValueError: a value outside its range, other spaces, or a table of more than `MAX_ENTRIES`; counted rewards behind
        copies.
    """
    env = env.env if isinstance(env, Copies) else env
    actions = env.action_space(env.default_params)
    require(isinstance(actions, spaces.Discrete), "env", env.name, f"one with discrete actions, not {actions!r}")
    num_states, num_dims, states = _states(env)
    require(is_int(count_rewards, 0), "count_rewards", count_rewards, "an integer of at least 0")
    num_states *= count_rewards + 1
    entries = num_states * actions.n
    require(entries <= MAX_ENTRIES, "env", env.name, f"one of at most {MAX_ENTRIES} states x actions, not {entries}")
    require(is_int(decay_steps, 1), "decay_steps", decay_steps, "an integer of at least 1")
    over = jnp.float32(decay_steps)
    epsilons = Ramp(*_pair("epsilon", epsilon), over)
    rates = Ramp(*_pair("learning_rate", learning_rate), over)
    finite = number("initial", initial, "a finite number", math.isfinite)
    none = jnp.zeros((), jnp.int32)
    first, most = QTable(jnp.full((num_states, actions.n), finite), none, none), Static(count_rewards)
    learn = partial(_learn, states, rates, _share("discount", discount), most)
    return learner(partial(given, first), learn, partial(_choose, states, epsilons, Static(num_dims), most))


def _pair(argument: str, values: Any) -> tuple[Array, Array]:
    require(isinstance(values, tuple) and len(values) == 2, argument, values, "a pair: the first value and the last")
    return _share(argument, values[0]), _share(argument, values[1])


def _share(argument: str, value: Any) -> Array:
    return number(argument, value, "in [0, 1]", lambda value: 0 <= value <= 1)


def _states(env: Environment) -> tuple[int, int, States]:
    """How many states, how many axes an observation has, and how it is numbered."""
    space = env.observation_space(env.default_params)
    if isinstance(space, spaces.Discrete):
        low, sizes = np.zeros(1, np.int64), np.array([space.n])
    elif isinstance(space, spaces.Box) and jnp.issubdtype(space.dtype, jnp.integer):
        low, high = (np.broadcast_to(np.asarray(x, np.int64), space.shape).ravel() for x in (space.low, space.high))
        sizes = high - low + 1
    else:
        raise ValueError(
            f"env={env.name}: must have observations in a Discrete, or in a Box of integers, not in {space!r}"
        )
    strides = [math.prod(map(int, sizes[i + 1 :])) for i in range(len(sizes))]
    num_states = math.prod(map(int, sizes))
    if num_states > MAX_ENTRIES:  # refused by the caller; its strides may not fit an integer
        strides = [0] * len(sizes)
    return num_states, len(space.shape), States(jnp.asarray(low, jnp.int32), jnp.asarray(strides, jnp.int32))


def _number(states: States, obs: Tree) -> Array:
    """The states of n observations, whatever axes they lead with, int32 [n]."""
    digits = obs.reshape(-1, states.low.size) - states.low[None]
    return jnp.sum(digits * states.strides[None], axis=1)


def _stage(table: QTable, rewards: Array, most: Static) -> Array:
    """The first state of those in which so many rewards were paid, int32 []."""
    return rewards * (table.values.shape[0] // (most.value + 1))


def _learn(states: States, rates: Ramp, discount: Array, most: Static, table: QTable, transition: Transition) -> QTable:
    q = table.values
    action, feedback, terminated = (
        x.reshape(-1) for x in (transition.action, transition.feedback, transition.terminated)
    )
    rewards = table.rewards
    if most.value:
        if transition.feedback.ndim:
            raise ValueError(f"count_rewards={most.value}: must be 0 behind copies")
        rewards = jnp.minimum(rewards + (transition.feedback > 0).astype(jnp.int32), most.value)
    at = _stage(table, table.rewards, most) + _number(states, transition.obs), action
    then = jnp.max(q[_stage(table, rewards, most) + _number(states, transition.next_obs)], axis=1)
    errors = feedback + discount * jnp.where(terminated, 0, then) - q[at]
    if errors.size > 1:
        errors /= jnp.zeros_like(q).at[at].add(1)[at]
    if most.value:
        rewards = jnp.where(transition.terminated | transition.truncated, 0, rewards)
    return QTable(q.at[at].add(rates.at(table.counts) * errors), table.counts + 1, rewards)


def _choose(states: States, epsilons: Ramp, num_dims: Static, most: Static, table: QTable, key: Array, obs: Tree):
    q = table.values[_stage(table, table.rewards, most) + _number(states, obs)]
    draws = jax.random.uniform(key, (q.shape[0], 2))  # few, as they are most of what a step costs
    explores = draws[:, :1] < epsilons.at(table.counts)
    allowed = explores | (q == jnp.max(q, axis=1, keepdims=True))
    rank = jnp.cumsum(allowed, axis=1)  # of each allowed action, from 1 on
    pick = jnp.floor(draws[:, 1] * rank[:, -1].astype(q.dtype)).astype(rank.dtype)
    action = jnp.argmax(rank > pick[:, None], axis=1).astype(jnp.int32)
    return action.reshape(obs.shape[: obs.ndim - num_dims.value]), {}

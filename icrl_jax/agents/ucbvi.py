"""UCB-VI: plan in the empirical MDP with a bonus for what was seen rarely, anew when an episode starts.

Azar, Osband, Munos, *Minimax Regret Bounds for Reinforcement Learning*, ICML 2017, https://arxiv.org/abs/1703.05449;
and as Lin, Bai, Mei, *Transformers as Decision Makers*, ICLR 2024, https://arxiv.org/abs/2310.08566, have transformers
run it.
"""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from icrl_envs.tabular_mdp import TabularMDP
from icrl_envs.task_family import is_int, is_name, require
from icrl_jax.agents.arms import number
from icrl_jax.agents.learner import given
from icrl_jax.agents.planner import Planned, planner
from icrl_jax.agents.tabular import Visits, count, no_visits, require_tabular
from icrl_jax.core import Agent, Array, partial

Form = Literal["azar", "lin"]
"""Whose algorithm: that of Azar et al. 2017 (UCBVI-CH), or the soft one of Lin et al. 2023. See `ucbvi`."""


def ucbvi(env: TabularMDP, num_episodes: int, form: Form = "azar", scale: float = 1.0) -> Agent:
    """Optimistic value iteration with Hoeffding's bonus b, for rewards in [0, 1].

    Q_h(s, a) = min(H, r(s, a) + sum_s' P(s' | s, a) max_a' Q_{h+1}(s', a') + b(s, a)) with empirical P and r, H the
    horizon, and H where (s, a) was never seen. With n visits, T = H num_episodes and delta = 1 / T (Lin's choice; Azar
    leaves it open),

    - "azar": b = scale 7 H L / sqrt(n), L = ln(5 S A T / delta); Q never rises from episode to episode; acts greedily,
      ties broken at random.
    - "lin": b = scale 2 H sqrt(ln(S A T / delta) / n), with n, P and r of each step h by itself; draws from
      softmax(num_episodes Q).

    Both papers know the rewards; here r is the average paid, whose own error is within b. With their constants
    (`scale=1`) hardly any Q falls below H within some hundred episodes.

    Args:
      env: with Bernoulli rewards.
      num_episodes: how many the agent is to live through.
      form: see `Form`.
      scale: of the bonus, at least 0; 1 is the papers'.
    Returns:
      An `Agent` whose `info` holds the probabilities of its actions, `probs`, float32 [A].
    Raises:
      ValueError: a value outside its range, another environment, or rewards that are not in [0, 1].
    """
    require_tabular(env)
    require(env.reward_law == "bernoulli", "env.reward_law", env.reward_law, "'bernoulli'")
    require(is_int(num_episodes, 1), "num_episodes", num_episodes, "an integer of at least 1")
    require(is_name(form, get_args(Form)), "form", form, " or ".join(map(repr, get_args(Form))))
    factor = number("scale", scale, "a finite number of at least 0", lambda scale: 0 <= scale < jnp.inf)
    pairs, steps = env.num_states * env.num_actions, env.horizon * num_episodes
    highest = jnp.full((env.horizon, env.num_states, env.num_actions), env.horizon, jnp.float32)
    if form == "azar":
        width = factor * 7 * env.horizon * math.log(5 * pairs * steps**2)
        return _ucbvi(Planned(no_visits(1, env), highest), partial(_azar, width), partial(_greedy))
    width = factor * 2 * env.horizon * math.sqrt(math.log(pairs * steps**2))
    soft = partial(_soft, jnp.float32(num_episodes))
    return _ucbvi(Planned(no_visits(env.horizon, env), highest), partial(_lin, width), soft)


def _ucbvi(first: Planned, plan, choose) -> Agent:
    return planner(partial(given, first), partial(count), plan, choose)


def _azar(width: Array, carry: Planned, key: Array) -> Array:
    return _plan(width, carry.known, limit=carry.plan)


def _lin(width: Array, carry: Planned, key: Array) -> Array:
    return _plan(width, carry.known, limit=jnp.full_like(carry.plan, carry.plan.shape[0]))


def _plan(width: Array, visits: Visits, limit: Array) -> Array:
    """Optimistic backward induction with every Q cut at its limit, float32 [H, S, A]."""
    horizon = limit.shape[0]
    n = jnp.sum(visits.counts, axis=-1)
    at_least = jnp.maximum(n, 1)
    rewards = visits.means + jnp.where(n > 0, width / jnp.sqrt(at_least), horizon)
    every = lambda x: jnp.broadcast_to(x, (horizon, *x.shape[1:]))  # where one table serves all steps

    def back(values, step):
        transitions, rewards, limit = step
        q = rewards + jnp.sum(transitions * values[None, None], axis=2)  # a dot product would be rounded on some GPUs
        q = jnp.minimum(q, limit)
        return jnp.max(q, axis=1), q

    steps = every(visits.counts / at_least[..., None]), every(rewards), limit
    return jax.lax.scan(back, jnp.zeros(limit.shape[1]), steps, reverse=True)[1]


def _greedy(carry: Planned, key: Array, obs: Array) -> tuple[Array, dict]:
    q = _values(carry, obs)
    return _draw(key, jnp.where(q == jnp.max(q), 0.0, -jnp.inf))


def _soft(num_episodes: Array, carry: Planned, key: Array, obs: Array) -> tuple[Array, dict]:
    return _draw(key, num_episodes * _values(carry, obs))


def _values(carry: Planned, obs: Array) -> Array:
    return carry.plan[jnp.minimum(carry.known.step, carry.plan.shape[0] - 1), obs]


def _draw(key: Array, logits: Array) -> tuple[Array, dict]:
    return jax.random.categorical(key, logits).astype(jnp.int32), {"probs": jax.nn.softmax(logits)}

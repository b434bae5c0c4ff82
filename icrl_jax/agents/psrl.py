"""PSRL: draw an MDP from the posterior when an episode starts, act optimally in it until the episode ends.

Osband, Russo, Van Roy, *(More) Efficient Reinforcement Learning via Posterior Sampling*, NeurIPS 2013,
https://arxiv.org/abs/1306.0940.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from icrl_envs.planning import plan
from icrl_envs.tabular_mdp import RewardLaw, TabularMDP
from icrl_envs.task_family import is_int, is_name, require
from icrl_jax.agents.learner import Static, given, learner
from icrl_jax.agents.planner import Planned, planner
from icrl_jax.agents.tabular import Visits, count, no_visits, require_tabular
from icrl_jax.core import Agent, Array, partial

Decide = Literal["episode", "step"]
"""When MDPs are drawn: where an episode starts, or at every step from all that was seen before it. The latter's `probs`
are what DPT's loss is lowest for, and it acts as DPT samples."""


def psrl(env: TabularMDP, draws: int = 1, decide: Decide = "episode") -> Agent:
    """Posterior sampling with the family's own prior and law of rewards: the posterior is exact.

    transitions[s, a] ~ Dirichlet(concentration + counts[s, a]), and reward_means[s, a] ~ Beta(1 + successes, 1 +
    failures) or, where rewards are Gaussian, N(n m / (n + noise_sd^2), noise_sd^2 / (n + noise_sd^2)) after n rewards
    of average m.

    Args:
      env: the family; an episode is planned for its `horizon`.
      draws: MDPs drawn for an episode; the first is acted in, and `info` holds `probs`, float32 [A]: the share of them
        in which each action is best now, with many an estimate of the action's posterior probability to be so.
      decide: see `Decide`; PSRL is "episode".
    Raises:
      ValueError: another environment, fewer than one draw, or an unknown `decide`.
    """
    require_tabular(env)
    require(is_int(draws, 1), "draws", draws, "an integer of at least 1")
    require(is_name(decide, get_args(Decide)), "decide", decide, " or ".join(map(repr, get_args(Decide))))
    first = Planned(no_visits(1, env), jnp.zeros((draws, env.horizon, env.num_states), jnp.int32))
    noise_var = jnp.square(jnp.float32(env.noise_sd))
    plans = partial(_plans, Static((env.horizon, env.reward_law)), jnp.float32(env.concentration), noise_var)
    if decide == "step":
        return learner(partial(given, first.known), partial(count), partial(_plan_and_follow, plans, first.plan))
    return planner(partial(given, first), partial(count), plans, partial(_follow))


def _plans(law: Static, concentration: Array, noise_var: Array, carry: Planned, key: Array) -> Array:
    """The best actions of MDPs drawn from the posterior, int32 [N, H, S]."""
    horizon, reward_law = law.value

    def one(key):
        transitions, rewards = sample_mdp(carry.known, reward_law, concentration, noise_var, key)
        return jnp.argmax(plan(transitions, rewards, horizon), axis=-1).astype(jnp.int32)

    return jax.vmap(one)(jax.random.split(key, carry.plan.shape[0]))


def sample_mdp(
    visits: Visits, reward_law: RewardLaw, concentration: Array, noise_var: Array, key: Array
) -> tuple[Array, Array]:
    """Draws transitions [S, A, S] and means of the rewards [S, A] from the posterior; see `psrl`."""
    key_transitions, key_rewards = jax.random.split(key)
    counts, means = visits.counts[0], visits.means[0]
    n = jnp.sum(counts, axis=-1)
    transitions = jax.random.dirichlet(key_transitions, concentration + counts)
    if reward_law == "bernoulli":
        return transitions, jax.random.beta(key_rewards, 1 + n * means, 1 + n * (1 - means))
    trust = n / jnp.maximum(n + noise_var, 1e-30)  # without noise, 0 before the first reward and 1 after it
    return transitions, trust * means + jnp.sqrt(1 - trust) * jax.random.normal(key_rewards, means.shape)


def _follow(carry: Planned, key: Array, obs: Array) -> tuple[Array, dict]:
    _, horizon, _ = carry.plan.shape
    best = carry.plan[:, jnp.minimum(carry.known.step, horizon - 1), obs]
    num_actions = carry.known.means.shape[-1]
    return best[0], {"probs": jnp.mean(jax.nn.one_hot(best, num_actions), axis=0)}


def _plan_and_follow(plans, blank: Array, known: Visits, key: Array, obs: Array) -> tuple[Array, dict]:
    return _follow(Planned(known, plans(Planned(known, blank), key)), key, obs)

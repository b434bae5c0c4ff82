"""Thompson sampling: draw a bandit from the posterior, pull the arm that is best in it."""

import math

import jax
import jax.numpy as jnp

from icrl_envs.task_family import is_int, require
from icrl_jax.agents.arms import Arms, bandit, number, positive
from icrl_jax.agents.learner import Static
from icrl_jax.core import Agent, Array, partial


def thompson_gaussian(
    num_arms: int, prior_mean: float = 0.5, prior_var: float = 1 / 12, noise_sd: float = 0.3, draws: int = 1
) -> Agent:
    """Thompson sampling with a Gaussian prior on every mean and Gaussian rewards (Lee et al. 2023, DPT).

    The defaults match the first two moments of means U[0, 1], with the noise of the paper.

    Args:
      num_arms: A, at least 2.
      prior_mean: of every arm's mean.
      prior_var: of every arm's mean, above 0.
      noise_sd: the standard deviation the agent believes rewards to have, above 0.
      draws: 1, or more for the arm that wins most often among so many posterior draws, ties to the lowest (the paper's
        offline rule: 100).
    """
    require(is_int(draws, 1), "draws", draws, "an integer of at least 1")
    mean = number("prior_mean", prior_mean, "a finite number", math.isfinite)
    var = positive("prior_var", prior_var)
    noise_var = jnp.square(positive("noise_sd", noise_sd))
    return bandit(num_arms, partial(_gaussian, Static(draws), mean, var, noise_var))


def thompson_beta(num_arms: int) -> Agent:
    """Thompson sampling with a uniform prior, Beta(1, 1), on every mean, for rewards that are 0 or 1.

    Rewards between 0 and 1 count as fractions of a success; others have no meaning here.

    Args:
      num_arms: A, at least 2.
    """
    return bandit(num_arms, partial(_beta))


def gaussian_posterior(arms: Arms, prior_mean, prior_var, noise_var) -> tuple[Array, Array]:
    """Mean [A] and variance [A] of every arm's mean: precisions add, means average by precision."""
    precision = 1 / prior_var + arms.counts / noise_var
    return (prior_mean / prior_var + arms.counts * arms.means / noise_var) / precision, 1 / precision


def _gaussian(draws: Static, prior_mean, prior_var, noise_var, arms: Arms, key: Array, obs):
    mean, var = gaussian_posterior(arms, prior_mean, prior_var, noise_var)
    samples = mean[None] + jnp.sqrt(var)[None] * jax.random.normal(key, (draws.value, *mean.shape))
    wins = jnp.sum(jax.nn.one_hot(jnp.argmax(samples, axis=-1), mean.shape[0]), axis=0)
    return jnp.argmax(wins), {}


def _beta(arms: Arms, key: Array, obs):
    successes = arms.counts * arms.means
    return jnp.argmax(jax.random.beta(key, 1 + successes, 1 + arms.counts - successes)), {}

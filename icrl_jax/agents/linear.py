"""Agents for linear bandits, mean[a] = <theta, features[a]>: ridge regression with optimism or posterior sampling."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

from icrl_envs.task_family import is_int, require
from icrl_jax.agents.arms import Arms, bandit, number, positive
from icrl_jax.agents.learner import Static
from icrl_jax.core import Agent, Array, partial


def linucb(features: Array, ridge: float = 1.0, beta: float = 1.0) -> Agent:
    """Pulls the arm with the highest <theta, phi> + beta sqrt(phi' G^-1 phi), ties to the lowest.

    G = ridge I + sum phi phi', theta = G^-1 sum r phi. The first pull is uniformly random, as in the code of Lee et al.
    2023, DPT; beta = 0 is their LinReg.

    Args:
      features: phi, [A, d].
      ridge: above 0.
      beta: at least 0.
    Returns:
      An `Agent` whose `info` holds the probabilities of its actions, `probs`, float32 [A].
    References:
      Li, Chu, Langford, Schapire, A contextual-bandit approach to personalized news article recommendation, 2010.
    """
    bonus = number("beta", beta, "a finite number of at least 0", lambda beta: 0 <= beta < jnp.inf)
    features = _features(features)
    return bandit(features.shape[0], partial(_linucb, features, positive("ridge", ridge), bonus))


def thompson_linear(features: Array, prior_var: float | Array, noise_sd: float | Array, draws: int = 1) -> Agent:
    """Thompson sampling with the exact posterior: prior theta ~ N(0, prior_var I), Gaussian rewards.

    Args:
      features: phi, [A, d].
      prior_var: above 0; 1 / d in the linear bandits of Lee et al. 2023, DPT.
      noise_sd: the standard deviation the agent believes rewards to have, above 0.
      draws: of theta from the posterior; the first is acted on, and `info` holds `probs`, float32 [A]: the share of
        them in which each arm is best, with many an estimate of the probability that it is pulled.
    """
    require(is_int(draws, 1), "draws", draws, "an integer of at least 1")
    features = _features(features)
    noise_sd = positive("noise_sd", noise_sd)
    ridge = jnp.square(noise_sd) / positive("prior_var", prior_var)
    return bandit(features.shape[0], partial(_thompson_linear, Static(draws), features, ridge, noise_sd))


def ridge_regression(arms: Arms, features: Array, ridge: Array) -> tuple[Array, Array]:
    """theta [d], and the Cholesky factor [d, d] of G = ridge I + sum phi phi'.

    G is built anew from the counts, which are exact: added up over ten thousand steps in float32, its rounding errors
    would outweigh the ridge.
    """
    gram = ridge * jnp.eye(features.shape[1]) + _matmul(features.T, arms.counts[:, None] * features)
    factor = jnp.linalg.cholesky(gram)
    theta = jax.scipy.linalg.cho_solve((factor, True), _matmul(features.T, arms.counts * arms.means))
    return theta, factor


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")  # accelerators would round the inputs


def _linucb(features: Array, ridge: Array, beta: Array, arms: Arms, key: Array, obs):
    theta, factor = ridge_regression(arms, features, ridge)
    width = jnp.linalg.norm(solve_triangular(factor, features.T, lower=True), axis=0)
    best = jnp.argmax(_matmul(features, theta) + beta * width)
    first, num_arms = jnp.sum(arms.counts) == 0, features.shape[0]
    probs = jnp.where(first, 1 / num_arms, jax.nn.one_hot(best, num_arms))
    return jnp.where(first, jax.random.randint(key, (), 0, num_arms), best), {"probs": probs}


def _thompson_linear(draws: Static, features: Array, ridge: Array, noise_sd: Array, arms: Arms, key: Array, obs):
    theta, factor = ridge_regression(arms, features, ridge)
    normal = jax.random.normal(key, (draws.value, theta.size))
    noise = solve_triangular(factor, normal.T, lower=True, trans=1)
    best = jnp.argmax(_matmul(features, theta[:, None] + noise_sd * noise), axis=0)
    return best[0], {"probs": jnp.mean(jax.nn.one_hot(best, features.shape[0]), axis=0)}


def _features(features) -> Array:
    require(np.ndim(features) == 2, "features", np.shape(features), "of shape [A, d]")
    return jnp.asarray(features, jnp.float32)

"""LHF, learning history filtering: the better a history shows how to learn, the more often it is trained on.

Chen et al., *Filtering Learning Histories Enhances In-Context Reinforcement Learning*, 2025,
https://arxiv.org/abs/2505.15143. It changes nothing but the weights with which windows are drawn, so it goes with every
method that trains on histories.
"""

from functools import partial

import jax
import jax.numpy as jnp

from icrl_envs.task_family import is_number, require
from icrl_jax.core import Array, Transition
from icrl_jax.data.histories import Histories, stream_returns


def improvement(returns: Array, best: Array) -> Array:
    """(mean + max - min) / (2 best) of the returns of a history, in [0, 1] where they lie in [0, best], float32 [].

    Args:
      returns: float32 [E], at least 0; nan where there is no such episode.
      best: float32 [], the highest return of the task; where it is 0 nothing improves.
    """
    total = jnp.nanmean(returns) + jnp.nanmax(returns) - jnp.nanmin(returns)
    return _over(jnp.nan_to_num(total), 2 * best)  # nan: no episode was finished


def stability(returns: Array, best: Array) -> Array:
    """1 + (mean of those changes from one episode to the next that are below 0) / best; 1 if none is, float32 []."""
    changes = jnp.diff(returns)
    falls = changes < 0  # nan is not
    mean_fall = jnp.sum(jnp.where(falls, changes, 0)) / jnp.maximum(jnp.sum(falls, dtype=jnp.float32), 1)
    return 1 + _over(mean_fall, best)


def _over(x: Array, y: Array) -> Array:
    return jnp.where(y > 0, x / jnp.where(y > 0, y, 1), 0)


def retention(
    histories: Histories,
    best: Array | None = None,
    stability_weight: float = 1.0,
    temperature: float | None = None,
) -> Array:
    """With what probability a history is kept, float32 [M, N]: in each task 0 for the worst and 1 for the best.

    U = improvement + stability_weight x stability; P = (U - min U) / (max U - min U) over the streams of a task, all 1
    where they score the same. As `weights` of `sample_window` it reweights; `resample` filters as the paper does.

    Args:
      best: float32 [M], the highest return of an episode in each task (`env.optimal_return`); by default the highest
        one in its histories. The paper does not say which; it changes what the stability weighs.
      stability_weight: lambda, at least 0.
      temperature: alpha, above 0: U becomes its softmax over the streams, exp(U / alpha) / sum exp(U / alpha).
    Raises:
      ValueError: a number outside its range.
    """
    require(is_number(stability_weight, 0), "stability_weight", stability_weight, "a finite number of at least 0")
    fits = temperature is None or (is_number(temperature, 0) and temperature > 0)
    require(fits, "temperature", temperature, "None or a finite number above 0")

    def of_task(transitions: Transition, best: Array | None) -> Array:
        returns = jax.vmap(partial(stream_returns, form=histories.form))(transitions)
        best = jnp.nanmax(returns) if best is None else best
        each = lambda score: jax.vmap(score, in_axes=(0, None))(returns, best)
        return _rescaled(each(improvement) + stability_weight * each(stability), temperature)

    # A task after another: where episodes end early, the returns of all may take more memory than the histories.
    return jax.lax.map(lambda task: of_task(*task), (histories.transitions, best))


def _rescaled(utility: Array, temperature: float | None) -> Array:
    if temperature is not None:
        utility = jax.nn.softmax(utility / temperature)
    low, high = jnp.min(utility), jnp.max(utility)
    return jnp.where(high > low, (utility - low) / jnp.where(high > low, high - low, 1), 1.0)


def resample(key: Array, probabilities: Array, first_task: Array | int = 0) -> Array:
    """How often each history is in the filtered data set, int32 [M, N]: `weights` of `sample_window`.

    The streams of a task are gone through again and again, and each is added with its probability, until there are as
    many as there were. The worst is never in it, the best in every pass.

    Args:
      probabilities: float32 [M, N], of which one in every task is 1, as `retention` gives them.
      first_task: which task of more the first of these is, int32 []; task m draws from `fold_in(key, m)`.
    """
    keys = jax.vmap(partial(jax.random.fold_in, key))(first_task + jnp.arange(probabilities.shape[0]))
    return jax.lax.map(lambda row: _resample_task(*row), (keys, probabilities))


def _resample_task(key: Array, probabilities: Array) -> Array:
    num_streams = probabilities.shape[0]
    # As one stream is added every time, N passes are enough.
    added = jax.random.bernoulli(key, probabilities[None], (num_streams, num_streams))
    counted = jnp.cumsum(added.ravel()).reshape(num_streams, num_streams)
    return jnp.sum(added & (counted <= num_streams), axis=0)

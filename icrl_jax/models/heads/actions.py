"""Heads for actions: y [..., D] to a distribution over them.

Axes: A actions or their dimensions, K bins, D width.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from gymnax.environments import spaces

from icrl_jax.core import Array
from icrl_jax.models.heads.distributions import Bins, Categorical, TanhGaussian
from icrl_jax.models.heads.readout import Readout, check_hidden
from icrl_jax.models.layers import along, check_choices, check_sizes

Continuous = Literal["tanh_gaussian", "bins"]
Sd = Literal["free", "state"]

LOG_SD_LIMIT = 5.0
"""Log standard deviations stay between this and its negative, smoothly."""


@dataclass(frozen=True)
class ActionHeadConfig:
    """How actions are predicted; discrete ones are categorical.

    Attributes:
        continuous: "tanh_gaussian", squashed into the bounds, or "bins", a categorical one for each dimension.
        sd: of the Gaussian: "free", one learned number for each dimension, or "state", read off the model.
        num_bins: K, for each dimension.
        hidden: units of the hidden layers between the model and its answer.
        scale: of the last weights at the start; PPO is often started at 0.01, which acts at random.
    """

    continuous: Continuous = "tanh_gaussian"
    sd: Sd = "free"
    num_bins: int = 11
    hidden: tuple[int, ...] = ()
    scale: float = 1.0

    def __post_init__(self):
        check_choices(self, continuous=Continuous, sd=Sd)
        check_sizes(self, "num_bins")
        check_hidden(self.hidden)
        if not 0 <= self.scale < math.inf:
            raise ValueError(f"scale={self.scale!r} must be finite and at least 0")


class CategoricalHead(nnx.Module):
    """Logits of A actions."""

    def __init__(self, num_actions: int, width: int, config: ActionHeadConfig, key: Array):
        self.readout = Readout(width, (num_actions,), config.hidden, config.scale, key)

    def __call__(self, y: Array) -> Categorical:
        return Categorical(self.readout(y))


class TanhGaussianHead(nnx.Module):
    """Means and standard deviations, which are 1 at the start where they are "free"."""

    def __init__(
        self, low: tuple[float, ...], high: tuple[float, ...], width: int, config: ActionHeadConfig, key: Array
    ):
        self.low, self.high = low, high
        free = config.sd == "free"
        self.readout = Readout(width, (1 if free else 2, len(low)), config.hidden, config.scale, key)
        self.log_sd = nnx.Param(jnp.zeros(len(low))) if free else None

    def __call__(self, y: Array) -> TanhGaussian:
        out = self.readout(y)
        mean = out[..., 0, :]
        log_sd = out[..., 1, :] if self.log_sd is None else jnp.broadcast_to(along(self.log_sd[...], mean), mean.shape)
        return TanhGaussian(mean, LOG_SD_LIMIT * jnp.tanh(log_sd / LOG_SD_LIMIT), self.low, self.high)


class BinsHead(nnx.Module):
    """Logits of K bins for each dimension."""

    def __init__(
        self, low: tuple[float, ...], high: tuple[float, ...], width: int, config: ActionHeadConfig, key: Array
    ):
        self.low, self.high = low, high
        self.readout = Readout(width, (len(low), config.num_bins), config.hidden, config.scale, key)

    def __call__(self, y: Array) -> Bins:
        return Bins(self.readout(y), self.low, self.high)


def make_action_head(
    action_space: Any, width: int, config: ActionHeadConfig, key: Array
) -> CategoricalHead | TanhGaussianHead | BinsHead:
    """The head for an action space: Discrete, or a bounded Box of one axis.

    Raises:
      ValueError: another space. Where pairs of actions are compared, take the space of one and sample twice.
    """
    if isinstance(action_space, spaces.Discrete):
        return CategoricalHead(action_space.n, width, config, key)
    if not isinstance(action_space, spaces.Box) or len(action_space.shape) != 1:
        raise ValueError(f"action_space={action_space!r} must be a Discrete or a Box of one axis")
    bounds = [np.broadcast_to(np.asarray(x, float), action_space.shape) for x in (action_space.low, action_space.high)]
    low, high = (tuple(x.tolist()) for x in bounds)
    if not all(-math.inf < a < b < math.inf for a, b in zip(low, high, strict=True)):
        raise ValueError(f"action_space={action_space!r} must have finite bounds, the lower ones below the upper")
    return (TanhGaussianHead if config.continuous == "tanh_gaussian" else BinsHead)(low, high, width, config, key)

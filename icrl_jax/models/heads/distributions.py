"""Predictions of actions: distributions, pytrees of float32 arrays that map and scan.

They share seven functions, so that whoever trains and acts need not know the kind:

    sample(key) -> choice       log_prob(choice)       entropy(key)       mode() -> choice
    tempered(temperature) -> a prediction nearer to the mode, below 1, or further from it
    decode(choice) -> action    encode(action) -> choice

The choice is what a policy's log-probability is about, and what to keep for a later update: the index of an action, a
number before it is squashed, or bins.

Axes: A actions or their dimensions, K bins.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from icrl_jax.core import Array
from icrl_jax.models.layers import along

INSIDE = 1 - 1e-6
"""How near to the bounds, which are at -1 and 1, a tanh-Gaussian reads an action."""


class Categorical(NamedTuple):
    """One of A actions."""

    logits: Array  # float32 [..., A]

    @property
    def probs(self) -> Array:
        return jax.nn.softmax(self.logits)

    def sample(self, key: Array) -> Array:
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def log_prob(self, choice: Array) -> Array:
        return jnp.take_along_axis(jax.nn.log_softmax(self.logits), choice[..., None], axis=-1)[..., 0]

    def entropy(self, key: Array | None = None) -> Array:
        log_probs = jax.nn.log_softmax(self.logits)
        log_probs = jnp.where(jnp.isfinite(log_probs), log_probs, 0.0)  # an action ruled out adds 0, not 0 * inf
        return -(jnp.exp(log_probs) * log_probs).sum(axis=-1)

    def mode(self) -> Array:
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)

    def tempered(self, temperature: Array) -> "Categorical":
        return Categorical(self.logits / temperature)

    def decode(self, choice: Array) -> Array:
        return choice

    def encode(self, action: Array) -> Array:
        return action


@struct.dataclass
class TanhGaussian:
    """low + (high - low) (1 + tanh u) / 2 with u Gaussian, each dimension by itself; a choice is u [..., A].

    The density is that of the action, in its own units:

        log p = sum_A log N(u; mean, sd) - log(1 - tanh(u)^2) - log((high - low) / 2)

    where log(1 - tanh(u)^2) = 2 (log 2 - |u| - log(1 + exp(-2 |u|))) loses nothing however large u is.

    References:
        Tuomas Haarnoja et al., Soft Actor-Critic, 2018, appendix C, https://arxiv.org/abs/1801.01290
    """

    mean: Array  # float32 [..., A]
    log_sd: Array  # float32 [..., A]
    low: tuple[float, ...] = struct.field(pytree_node=False)
    high: tuple[float, ...] = struct.field(pytree_node=False)

    def sample(self, key: Array) -> Array:
        return self.mean + jnp.exp(self.log_sd) * jax.random.normal(key, self.mean.shape, self.mean.dtype)

    def log_prob(self, choice: Array) -> Array:
        z = (choice - self.mean) * jnp.exp(-self.log_sd)
        log_normal = -0.5 * jnp.square(z) - self.log_sd - 0.5 * math.log(2 * math.pi)
        return (log_normal - self._log_slope(choice)).sum(axis=-1)

    def entropy(self, key: Array) -> Array:
        """From one sample: that of the Gaussian, which is known, and how much squashing takes away there."""
        gaussian = self.log_sd + 0.5 * math.log(2 * math.pi * math.e)
        return (gaussian + self._log_slope(self.sample(key))).sum(axis=-1)

    def mode(self) -> Array:
        """The mean of u, so the median of the action in each dimension; the mode of u, not of a wide density."""
        return self.mean

    def tempered(self, temperature: Array) -> "TanhGaussian":
        return self.replace(log_sd=self.log_sd + jnp.log(temperature))  # type: ignore[attr-defined]

    def decode(self, choice: Array) -> Array:
        low, high = along(self.low, choice), along(self.high, choice)
        return jnp.clip(low + (high - low) * 0.5 * (1 + jnp.tanh(choice)), low, high)

    def encode(self, action: Array) -> Array:
        """Finite also at the bounds, where u would not be."""
        low, high = along(self.low, action), along(self.high, action)
        return jnp.arctanh(jnp.clip(2 * (action - low) / (high - low) - 1, -INSIDE, INSIDE))

    def _log_slope(self, u: Array) -> Array:
        """Of `decode`, [..., A]."""
        half = along(self.high, u) / 2 - along(self.low, u) / 2
        return jnp.log(half) + 2 * (math.log(2) - jnp.abs(u) - jnp.log1p(jnp.exp(-2 * jnp.abs(u))))


@struct.dataclass
class Bins:
    """Each dimension is one of K bins of equal width, by itself; a choice is int32 [..., A], and acts at the centres.

    References:
        Yunhao Tang and Shipra Agrawal, Discretizing Continuous Action Space for On-Policy Optimization, 2020,
        https://arxiv.org/abs/1901.10500
    """

    logits: Array  # float32 [..., A, K]
    low: tuple[float, ...] = struct.field(pytree_node=False)
    high: tuple[float, ...] = struct.field(pytree_node=False)

    def sample(self, key: Array) -> Array:
        return Categorical(self.logits).sample(key)

    def log_prob(self, choice: Array) -> Array:
        return Categorical(self.logits).log_prob(choice).sum(axis=-1)

    def entropy(self, key: Array | None = None) -> Array:
        return Categorical(self.logits).entropy().sum(axis=-1)

    def mode(self) -> Array:
        return Categorical(self.logits).mode()

    def tempered(self, temperature: Array) -> "Bins":
        return self.replace(logits=self.logits / temperature)  # type: ignore[attr-defined]

    def decode(self, choice: Array) -> Array:
        share = (choice.astype(self.logits.dtype) + 0.5) / self.logits.shape[-1]
        low, high = along(self.low, share), along(self.high, share)
        return low + (high - low) * share

    def encode(self, action: Array) -> Array:
        low, high = along(self.low, action), along(self.high, action)
        K = self.logits.shape[-1]
        return jnp.clip(jnp.floor((action - low) / (high - low) * K), 0, K - 1).astype(jnp.int32)


Prediction = Categorical | TanhGaussian | Bins

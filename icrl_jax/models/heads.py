# ruff: noqa: N803, N806
"""What is read off a sequence model: actions, values, and what happens next.

A head is a module from y [..., D] to a prediction, a pytree of float32 arrays that maps and scans. Predictions of
actions share five functions, so that whoever trains and acts need not know the kind:

    sample(key) -> choice       log_prob(choice)       entropy(key)       mode() -> choice
    decode(choice) -> action    encode(action) -> choice

The choice is what a policy's log-probability is about, and what to keep for a later update: the index of an action, a
number before it is squashed, or bins. Predictions of numbers have `mean()`, `mode()` and `loss(target)`.

Axes: A actions or their dimensions, K bins, D width.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct
from gymnax.environments import spaces

from icrl_jax.core import Array, Tree
from icrl_jax.models.embeddings import Integers, Part, keys_for, parts_of
from icrl_jax.models.layers import check_choices, check_sizes, fan_in, linear, widened

Continuous = Literal["tanh_gaussian", "bins"]
Sd = Literal["free", "state"]
Value = Literal["scalar", "two_hot"]

LOG_SD_LIMIT = 5.0
"""Log standard deviations stay between this and its negative, smoothly."""
INSIDE = 1 - 1e-6
"""How near to the bounds, which are at -1 and 1, a tanh-Gaussian reads an action."""


class Readout(nnx.Module):
    """y [..., D] to [..., *shape] in float32: linear, or after hidden layers with biases and GELU.

    The last map has no bias: what is before it has one, here or in a model's last normalisation.
    """

    def __init__(self, width: int, shape: tuple[int, ...], hidden: tuple[int, ...], scale: float, key: Array):
        *keys, key_out = keys_for(key, len(hidden) + 1)
        inputs = (width, *hidden)
        self.hidden = nnx.List(fan_in(k, (m, n), m) for k, m, n in zip(keys, inputs, hidden, strict=False))
        self.biases = nnx.List(nnx.Param(jnp.zeros(n)) for n in hidden)
        self.out = nnx.Param(scale * fan_in(key_out, (inputs[-1], math.prod(shape)), inputs[-1])[...])
        self.shape = shape

    def __call__(self, y: Array) -> Array:
        y = widened(y)
        for w, b in zip(self.hidden, self.biases, strict=True):
            y = linear(y, w[...])
            y = jax.nn.gelu(y + _along(b[...], y))
        return linear(y, self.out[...]).reshape(*y.shape[:-1], *self.shape)


# Actions


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
        _check_hidden(self.hidden)
        if not 0 <= self.scale < math.inf:
            raise ValueError(f"scale={self.scale!r} must be finite and at least 0")


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

    def decode(self, choice: Array) -> Array:
        low, high = _along(self.low, choice), _along(self.high, choice)
        return jnp.clip(low + (high - low) * 0.5 * (1 + jnp.tanh(choice)), low, high)

    def encode(self, action: Array) -> Array:
        """Finite also at the bounds, where u would not be."""
        low, high = _along(self.low, action), _along(self.high, action)
        return jnp.arctanh(jnp.clip(2 * (action - low) / (high - low) - 1, -INSIDE, INSIDE))

    def _log_slope(self, u: Array) -> Array:
        """Of `decode`, [..., A]."""
        half = _along(self.high, u) / 2 - _along(self.low, u) / 2
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

    def decode(self, choice: Array) -> Array:
        share = (choice.astype(self.logits.dtype) + 0.5) / self.logits.shape[-1]
        low, high = _along(self.low, share), _along(self.high, share)
        return low + (high - low) * share

    def encode(self, action: Array) -> Array:
        low, high = _along(self.low, action), _along(self.high, action)
        K = self.logits.shape[-1]
        return jnp.clip(jnp.floor((action - low) / (high - low) * K), 0, K - 1).astype(jnp.int32)


Prediction = Categorical | TanhGaussian | Bins


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
        log_sd = out[..., 1, :] if self.log_sd is None else jnp.broadcast_to(_along(self.log_sd[...], mean), mean.shape)
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


# Numbers


@dataclass(frozen=True)
class ValueHeadConfig:
    """How values are predicted.

    Attributes:
        kind: "scalar", by regression, or "two_hot", by classification into bins, whatever the scale of returns.
        num_bins: K, odd, so that zero is one of them.
        limit: the largest value, and minus the smallest; bins are dense near zero.
        hidden: units of the hidden layers between the model and its answer.
    """

    kind: Value = "scalar"
    num_bins: int = 63
    limit: float = 1000.0
    hidden: tuple[int, ...] = ()

    def __post_init__(self):
        check_choices(self, kind=Value)
        check_sizes(self, "num_bins")
        _check_hidden(self.hidden)
        if self.num_bins < 3 or self.num_bins % 2 == 0:
            raise ValueError(f"num_bins={self.num_bins!r} must be odd and at least 3")
        if not 0 < self.limit < math.inf:
            raise ValueError(f"limit={self.limit!r} must be finite and above 0")


class Scalar(NamedTuple):
    """A number, as its mean; the loss is half the squared error."""

    value: Array  # float32 [...]

    def mean(self) -> Array:
        return self.value

    def mode(self) -> Array:
        return self.value

    def loss(self, target: Array) -> Array:
        return 0.5 * jnp.square(self.value - target)


@struct.dataclass
class TwoHot:
    """A number, as a distribution over K values; the loss is the cross-entropy to `two_hot` of the target."""

    logits: Array  # float32 [..., K]
    bins: tuple[float, ...] = struct.field(pytree_node=False)

    def mean(self) -> Array:
        probs = jax.nn.softmax(self.logits)
        return (probs * _along(self.bins, probs)).sum(axis=-1)  # no matrix product: accelerators would round the bins

    def mode(self) -> Array:
        return jnp.asarray(self.bins, self.logits.dtype)[jnp.argmax(self.logits, axis=-1)]

    def loss(self, target: Array) -> Array:
        return -(two_hot(target, self.bins) * jax.nn.log_softmax(self.logits)).sum(axis=-1)


def two_hot(x: Array, bins: tuple[float, ...]) -> Array:
    """Weights [..., K] on the two of K rising bins that enclose x [...], whose mean it is; x beyond them is clipped.

    As the bins are values, not their logarithms, the mean of what is predicted is that of the targets.

    References:
        Danijar Hafner et al., Mastering Diverse Domains through World Models, 2023, https://arxiv.org/abs/2301.04104
    """
    edges = jnp.asarray(bins, x.dtype)
    x = jnp.clip(x, edges[0], edges[-1])
    below = jnp.clip(jnp.searchsorted(edges, x, side="right", method="compare_all") - 1, 0, len(bins) - 2)
    share = ((x - edges[below]) / (edges[below + 1] - edges[below]))[..., None]
    hot = lambda index: jax.nn.one_hot(index, len(bins), dtype=x.dtype)
    return (1 - share) * hot(below) + share * hot(below + 1)


def symlog_bins(num_bins: int, limit: float) -> tuple[float, ...]:
    """Values between -limit and limit whose symmetric logarithms, sign(x) log(1 + |x|), are equally far apart."""
    above = np.expm1(np.linspace(0, np.log1p(limit), num_bins // 2 + 1))
    return tuple(np.concatenate([-above[:0:-1], above]).tolist())


class NumberHead(nnx.Module):
    """A number [...]: `Scalar`, or `TwoHot` where there are bins. At the start it is zero, or any bin as likely."""

    def __init__(self, bins: tuple[float, ...], width: int, hidden: tuple[int, ...], key: Array):
        self.bins = bins
        self.readout = Readout(width, (len(bins),) if bins else (), hidden, 0.0, key)

    def __call__(self, y: Array) -> Scalar | TwoHot:
        out = self.readout(y)
        return TwoHot(out, self.bins) if self.bins else Scalar(out)


def make_value_head(width: int, config: ValueHeadConfig, key: Array) -> NumberHead:
    """The head for values."""
    bins = symlog_bins(config.num_bins, config.limit) if config.kind == "two_hot" else ()
    return NumberHead(bins, width, config.hidden, key)


# What happens next


@dataclass(frozen=True)
class DynamicsHeadConfig:
    """How the next reward and observation are predicted.

    Attributes:
        reward_values: all rewards there are, rising, to tell them apart as classes; empty: by regression.
        integers: what a bounded Box of integers is: "tables", each entry a class, or "numbers", by regression.
        hidden: units of the hidden layers between the model and its answers.
    """

    reward_values: tuple[float, ...] = ()
    integers: Integers = "tables"
    hidden: tuple[int, ...] = ()

    def __post_init__(self):
        check_choices(self, integers=Integers)
        _check_hidden(self.hidden)
        values = self.reward_values
        if values and (len(values) < 2 or any(a >= b for a, b in zip(values, values[1:], strict=False))):
            raise ValueError(f"reward_values={values!r} must be empty, or two or more rising numbers")


@struct.dataclass
class Dynamics:
    """The next reward and observation.

    References:
        Jaehyeon Son et al., Distilling Reinforcement Learning Algorithms for In-Context Model-Based Planning, 2025,
        https://arxiv.org/abs/2502.19009
    """

    reward: Scalar | TwoHot
    obs: tuple[Array, ...]  # of each part of an observation: means [..., *shape], or logits [..., *shape, values]
    parts: tuple[Part, ...] = struct.field(pytree_node=False)

    def obs_loss(self, next_obs: Tree) -> Array:
        """[...]: cross-entropy, or half the squared error where it is numbers, summed over all entries."""
        losses = []
        for part, x in zip(self.parts, self.obs, strict=True):
            target = part.read(next_obs)
            each = -target * jax.nn.log_softmax(x) if part.num_values else 0.5 * jnp.square(x - target)
            losses.append(each.sum(axis=tuple(range(-part.num_axes, 0))))
        return sum(losses[1:], losses[0])

    def next_obs(self) -> Tree:
        """The likeliest, as the environment would give it: in its dtype, a Dict as a dict, a Tuple as a tuple."""
        return _nest([(part.path, _likeliest(part, x)) for part, x in zip(self.parts, self.obs, strict=True)])


class DynamicsHead(nnx.Module):
    """Reads the next reward and observation off what a model says after an action."""

    def __init__(self, parts: tuple[Part, ...], width: int, config: DynamicsHeadConfig, key: Array):
        self.parts = parts
        key_reward, *keys = jax.random.split(key, len(parts) + 1)
        self.reward = NumberHead(config.reward_values, width, config.hidden, key_reward)
        shapes = [part.shape + ((part.num_values,) if part.num_values else ()) for part in parts]
        self.obs = nnx.List(Readout(width, s, config.hidden, 0.0, k) for s, k in zip(shapes, keys, strict=True))

    def __call__(self, y: Array) -> Dynamics:
        return Dynamics(self.reward(y), tuple(readout(y) for readout in self.obs), self.parts)


def make_dynamics_head(obs_space: Any, width: int, config: DynamicsHeadConfig, key: Array) -> DynamicsHead:
    """The head for what an observation space holds.

    Raises:
      ValueError: a space that cannot be predicted.
    """
    parts = parts_of(obs_space, config.integers)
    if any(part.image for part in parts):
        raise ValueError(f"obs_space={obs_space!r} must hold no images, which are not predicted")
    return DynamicsHead(parts, width, config, key)


def _likeliest(part: Part, x: Array) -> Array:
    dtype = jnp.dtype(part.dtype)
    if part.num_values:
        return (jnp.argmax(x, axis=-1) + int(part.low)).astype(dtype)
    return x.astype(dtype) if jnp.issubdtype(dtype, jnp.floating) else jnp.round(x).astype(dtype)


def _nest(leaves: list[tuple[tuple[str | int, ...], Array]]) -> Tree:
    """A tree of dicts and tuples from its leaves and their paths."""
    if not leaves[0][0]:
        return leaves[0][1]
    names = dict.fromkeys(path[0] for path, _ in leaves)
    tree = {name: _nest([(path[1:], x) for path, x in leaves if path[0] == name]) for name in names}
    return tuple(tree.values()) if isinstance(leaves[0][0][0], int) else tree


def _check_hidden(hidden: tuple[int, ...]) -> None:
    if any(not isinstance(n, int) or n < 1 for n in hidden):
        raise ValueError(f"hidden={hidden!r} must be positive integers, or empty")


def _along(values: Any, x: Array) -> Array:
    """A vector along the last axis of `x`, with its rank and dtype."""
    return jnp.asarray(values, x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))

"""Heads for numbers, such as values; a prediction has `mean()`, `mode()` and `loss(target)`.

Axes: K bins, D width.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct

from icrl_jax.core import Array
from icrl_jax.models.heads.readout import Readout, check_hidden
from icrl_jax.models.layers import along, check_choices, check_sizes

Value = Literal["scalar", "two_hot"]


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
        check_hidden(self.hidden)
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
        return (probs * along(self.bins, probs)).sum(axis=-1)  # no matrix product: accelerators would round the bins

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

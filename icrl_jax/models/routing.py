# ruff: noqa: N803, N806
"""Routers of mixtures of experts, and the losses that keep them balanced and small.

Axes: N tokens, D features, X experts, J choices of a token.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.scipy.special import logsumexp, ndtr

from icrl_jax.models.layers import fan_in

Router = Literal["linear", "tanh"]
LoadTest = Literal["logit", "noise"]


class Routing(NamedTuple):
    """Where tokens go."""

    expert: Array  # int32 [N, J]
    weight: Array  # float32 [N, J]: of the expert's output; sums to 1
    logits: Array  # float32 [N, X]: without noise
    load: Array  # float32 [X]: tokens of each expert; with noise the number to expect if it were drawn again


class Gate(nnx.Module):
    """A router, float32 whatever the features are computed in, so that how many tokens come at once changes no choice.

    Features in bfloat16 may themselves differ in the last bit between a model's `step` and its `__call__`; then only
    tokens with two nearly equal logits may go elsewhere.
    Its weights are random at the start: equal logits would send all tokens to the same experts.
    """

    def __init__(self, width: int, num_experts: int, router: Router, noise: bool, key: Array):
        key_first, key_second = jax.random.split(key)
        self.first = fan_in(key_first, (width, num_experts), width)
        self.second = fan_in(key_second, (num_experts, num_experts), num_experts) if router == "tanh" else None
        self.noise = nnx.Param(jnp.zeros((width, num_experts))) if noise else None

    def __call__(self, x: Array) -> Array:
        """[..., D] to logits [..., X]."""
        logits = exact(x, self.first[...])
        return logits if self.second is None else exact(jnp.tanh(logits), self.second[...])

    def route(self, x_ND: Array, top_k: int, key: Array | None, load_test: LoadTest = "logit") -> Routing:
        """The J largest logits and their softmax; with a key, of logits with noise."""
        logits = self(x_ND)
        if self.noise is None or key is None:
            value, expert = lax.top_k(logits, top_k)
            return Routing(expert, jax.nn.softmax(value), logits, counts(expert, logits.shape[-1]).astype(value.dtype))
        scale = jax.nn.softplus(exact(x_ND, self.noise[...])) + 0.01
        noisy = logits + scale * jax.random.normal(key, logits.shape, logits.dtype)
        value, expert = lax.top_k(noisy, top_k)
        return Routing(expert, jax.nn.softmax(value), logits, expected_load(logits, noisy, scale, top_k, load_test))


def expected_load(
    logits_NX: Array, noisy_NX: Array, scale_NX: Array, top_k: int, load_test: LoadTest = "logit"
) -> Array:
    """How many tokens each expert is to expect if the noise on its own logits were drawn again, [X].

    P(in the top k) = Phi((logit - threshold) / scale), the threshold being the k-th largest of the other noisy logits:
    the (k+1)-th of all for an expert that is in, the k-th for one that is not.

    Args:
        logits_NX: without noise.
        noisy_NX: with it.
        scale_NX: of the noise.
        top_k: how many experts are in.
        load_test: who is in: whose noisy "logit" is above the (k+1)-th; or, as in T2MIR's code, whose "noise" is.

    References:
        Noam Shazeer et al., Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer, 2017,
        https://arxiv.org/abs/1701.06538, appendix A.
    """
    N, X = logits_NX.shape
    if top_k == X:
        return jnp.full(X, N, logits_NX.dtype)
    *_, last_in, first_out = jnp.split(lax.top_k(noisy_NX, top_k + 1)[0], top_k + 1, axis=1)
    tested_NX = noisy_NX if load_test == "logit" else noisy_NX - logits_NX
    threshold = jnp.where(tested_NX > first_out, first_out, last_in)
    return ndtr((logits_NX - threshold) / scale_NX).sum(axis=0)


def balance_loss(routing: Routing) -> Array:
    """CV^2(importance) + CV^2(load), 0 at best; the importance of an expert is the sum of its weights over all tokens.

    CV^2(x) = Var(x) / mean(x)^2, with the unbiased variance. Without noise the load has no gradient.

    References:
        Shazeer et al. 2017, as above, equations 6 to 11.
    """
    X = routing.logits.shape[-1]
    chosen_NJX = jax.nn.one_hot(routing.expert, X, dtype=routing.weight.dtype)
    importance_X = (chosen_NJX * routing.weight[..., None]).sum(axis=(0, 1))
    return _cv_squared(importance_X) + _cv_squared(routing.load)


def z_loss(logits_NX: Array) -> Array:
    """The mean over tokens of (log sum exp logits)^2.

    References:
        Barret Zoph et al., ST-MoE: Designing Stable and Transferable Sparse Expert Models, 2022,
        https://arxiv.org/abs/2202.08906, equation 5.
    """
    return jnp.square(logsumexp(logits_NX, axis=-1)).mean()


def exact(x: Array, w: Array) -> Array:
    """`x @ w` in the precision of the weights."""
    return jnp.matmul(x.astype(w.dtype), w, precision=lax.Precision.HIGHEST)


def counts(expert: Array, num_experts: int) -> Array:
    """How often each expert occurs, int32 [X]."""
    return jax.nn.one_hot(expert.reshape(-1), num_experts, dtype=jnp.int32).sum(axis=0, dtype=jnp.int32)


def _cv_squared(x: Array) -> Array:
    """The squared coefficient of variation."""
    return jnp.var(x, ddof=1) / (jnp.square(x.mean()) + 1e-10) if x.size > 1 else jnp.zeros_like(x[0])

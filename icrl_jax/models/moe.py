# ruff: noqa: N803, N806
"""Mixtures of experts, the feed-forward part of any block: `ffn(x, key) -> (y, aux)`.

A token goes to the J experts that its gate prefers. There is no limit on how many tokens an expert takes, so none is
dropped, and a token's output depends on that token only. Token-wise and task-wise experts may stand side by side; what
makes the latter task-wise is `contrastive.py`, which a method adds.

Axes: N tokens, D features in, E out, F hidden units of an expert, X experts, J choices of a token.

References:
    Wenhao Wu et al., Mixture-of-Experts Meets In-Context Reinforcement Learning (T2MIR), 2025,
    https://arxiv.org/abs/2506.05426
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from icrl_jax.models import average
from icrl_jax.models.average import Totals
from icrl_jax.models.experts import pays_to_sort, run_all, run_sorted
from icrl_jax.models.layers import Aux, Mlp, check_choices, check_sizes, fan_in
from icrl_jax.models.routing import Gate, LoadTest, Router, Routing, balance_loss, z_loss

Dispatch = Literal["auto", "dense", "sorted"]
Layers = Literal["all", "last"]
Tree = TypeVar("Tree")

TOKENS_TOGETHER = 4096
"""In one pass on CPU, if a batch has so many."""


@dataclass(frozen=True)
class MoEConfig:
    """Sizes of a mixture of experts.

    Attributes:
        num_experts: X of the token-wise mixture; 0 is none.
        num_task_experts: X of the task-wise mixture; 0 is none. Beside token-wise experts each gives half the features.
        expert_layers: which blocks have experts: "all", or the "last" alone, as in T2MIR; the others stay dense.
        top_k: J, experts that each token goes to.
        expert_width: F; None gives a token as many active parameters as the dense layer has.
        task_hard_router: one decision for the sequence in place of one for each token: the task gate reads the mean of
            what it has seen since the last reset (T2MIR's reads that of the whole sequence, the future included).
        router: "linear", or "tanh": two layers, as in T2MIR.
        noise: whether the token gate adds noise of a learned size to its logits, where it is called with a key.
        load_test: which experts the load takes for chosen where there is noise: those whose noisy "logit" is among the
            largest, or, as T2MIR's code does, those whose "noise" alone would be.
        balance_weight: of the load-balancing loss, which only token-wise experts have. It is of the tokens of one pass:
            a batch that goes through the model in groups is to be balanced in each of them.
        z_weight: of the router-z loss, which keeps the logits of all gates small.
        dispatch: "dense" runs all experts on all tokens, "sorted" each on its own; "auto" takes the cheaper.
    """

    num_experts: int = 0
    num_task_experts: int = 0
    expert_layers: Layers = "all"
    top_k: int = 2
    expert_width: int | None = None
    task_hard_router: bool = False
    router: Router = "linear"
    noise: bool = False
    load_test: LoadTest = "logit"
    balance_weight: float = 0.01
    z_weight: float = 0.001
    dispatch: Dispatch = "auto"

    def __post_init__(self):
        check_sizes(self, "top_k", *([] if self.expert_width is None else ["expert_width"]))
        check_choices(self, router=Router, load_test=LoadTest, dispatch=Dispatch, expert_layers=Layers)
        for option in "num_experts", "num_task_experts":
            value = getattr(self, option)
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"{option}={value!r} must be 0 or a positive integer")
            if 0 < value < self.top_k:
                raise ValueError(f"top_k={self.top_k} must be at most {option}={value}")
        if self.noise and not self.num_experts:
            raise ValueError("noise=True must be False with num_experts=0: only token-wise experts have it")
        if self.load_test == "noise" and not self.noise:
            raise ValueError("load_test='noise' must be 'logit' with noise=False")
        if self.task_hard_router and not self.num_task_experts:
            raise ValueError("task_hard_router=True must be False with num_task_experts=0")
        for option in "balance_weight", "z_weight":
            if not getattr(self, option) >= 0:
                raise ValueError(f"{option}={getattr(self, option)!r} must be at least 0")

    @property
    def has_experts(self) -> bool:
        return bool(self.num_experts or self.num_task_experts)

    def least_rows(self, tokens_per_row: int) -> int:
        """How many rows to train on at once, so that experts have enough tokens for their products to run well."""
        return -(-TOKENS_TOGETHER // tokens_per_row) if self.has_experts else 1


def feed_forward(config: Any, key: Array) -> "MoE | Mlp":
    """The feed-forward part that a model's config asks for: `MoE` where `config.moe` has experts, else `Mlp`."""
    return MoE(config, key) if config.moe.has_experts else Mlp(config, key)


def feed(
    ffn: "MoE | Mlp", h: Array, add_up: Callable[[Array], Array], key: Array | None = None
) -> tuple[Totals, Array, Aux]:
    """A block's feed-forward part on what it reads [..., D]; `add_up` gives the totals, if it has a use for them."""
    totals = (add_up(h),) if isinstance(ffn, MoE) and ffn.moe.task_hard_router else ()
    y, aux = ffn(h, key, *map(average.mean, totals))
    return totals, y, aux


def no_totals(config: Any, batch: int) -> list[Totals]:
    """Of each of a model's blocks, before any input."""
    moe, zero = config.moe, jnp.zeros((batch, config.width + 1))
    where = range(config.num_layers) if moe.expert_layers == "all" else (config.num_layers - 1,)
    return [(zero,) if moe.task_hard_router and layer in where else () for layer in range(config.num_layers)]


def make_blocks(make: Callable[[Any, Array], Tree], config: Any, key: Array) -> tuple[Tree, Tree | None]:
    """A model's blocks, their weights stacked [L, ...]; the last one apart where it alone has experts."""
    keys = jax.random.split(key, config.num_layers)
    if config.moe.expert_layers == "all" or not config.moe.has_experts or config.num_layers == 1:
        return jax.vmap(functools.partial(make, config))(keys), None
    dense = replace(config, moe=MoEConfig())
    return jax.vmap(functools.partial(make, dense))(keys[:-1]), make(config, keys[-1])


def block_of(blocks: tuple[Tree, Tree | None], layer: int, num_layers: int) -> Tree:
    """One of the blocks that `make_blocks` made."""
    stacked, last = blocks
    return last if last is not None and layer == num_layers - 1 else jax.tree.map(lambda p: p[layer], stacked)


class Mixture(nnx.Module):
    """A gate and its experts, each linear, GELU, linear."""

    def __init__(self, config: Any, num_experts: int, features: int, hidden: int, noise: bool, key: Array):
        D, X, E, F = config.width, num_experts, features, hidden
        key_gate, key_up, key_down = jax.random.split(key, 3)
        self.gate = Gate(D, X, config.moe.router, noise, key_gate)
        self.up = fan_in(key_up, (X, D, F), D)
        self.down = fan_in(key_down, (X, F, E), F * 2 * config.num_layers)

    def __call__(self, x_ND: Array, routing: Routing, dispatch: Dispatch) -> Array:
        """The outputs [N, E] of the chosen experts, weighted."""
        N, J, X = *routing.expert.shape, self.up.shape[0]
        sort = pays_to_sort(N, J, X) if dispatch == "auto" else dispatch == "sorted"
        run = run_sorted if sort else run_all
        return run(x_ND, routing.expert, routing.weight.astype(x_ND.dtype), self.up[...], self.down[...])


class MoE(nnx.Module):
    """Experts in place of a feed-forward part. The config has `width`, `num_layers`, `moe`, and `mlp_ratio` if `moe`
    leaves the experts' width open."""

    def __init__(self, config: Any, key: Array):
        moe, D = config.moe, config.width
        if not moe.has_experts:
            raise ValueError("num_experts=0 and num_task_experts=0: a mixture needs one of them to be positive")
        both = moe.num_experts and moe.num_task_experts
        token, task = (D // 2, D - D // 2) if both else (D, D)
        sizes = [(moe.num_experts, token, moe.noise), (moe.num_task_experts, task, False)]
        active = sum(moe.top_k * (D + E) for X, E, _ in sizes if X)  # weights of a token, for one hidden unit
        F = moe.expert_width or max(1, round(2 * D * D * config.mlp_ratio / active))
        self.moe = moe
        self.token, self.task = (
            Mixture(config, X, E, F, noise, key) if X else None
            for (X, E, noise), key in zip(sizes, jax.random.split(key), strict=True)
        )

    def __call__(self, x: Array, key: Array | None = None, mean: Array | None = None) -> tuple[Array, Aux]:
        """[..., D] to [..., D], with the weighted losses of the gates and what that of the tasks saw.

        Args:
            x: features.
            key: for the noise of the token gate, in training.
            mean: of the features of the sequence so far [..., D], float32, with `task_hard_router` (`average.py`).
        """
        x_ND = x.reshape(-1, x.shape[-1])
        routings = self.route(x_ND, key, None if mean is None else mean.reshape(-1, x.shape[-1]))
        outputs = [getattr(self, name)(x_ND, routing, self.moe.dispatch) for name, routing in routings.items()]
        losses = {}
        if self.moe.z_weight:
            losses["moe_z"] = self.moe.z_weight * sum(z_loss(routing.logits) for routing in routings.values())
        if self.moe.balance_weight and "token" in routings:
            losses["moe_balance"] = self.moe.balance_weight * balance_loss(routings["token"])
        y = jnp.concatenate(outputs, axis=-1).reshape(x.shape)
        return y, Aux(losses, () if self.task is None else (x,))

    def route(self, x_ND: Array, key: Array | None = None, mean_ND: Array | None = None) -> dict[str, Routing]:
        """Of the mixtures there are, "token" and "task".

        Raises:
            ValueError: no mean where `task_hard_router` wants one.
        """
        moe, routings = self.moe, {}
        if self.token is not None:
            routings["token"] = self.token.gate.route(x_ND, moe.top_k, key, moe.load_test)
        if self.task is not None:
            seen_ND = mean_ND if moe.task_hard_router else x_ND
            if seen_ND is None:
                raise ValueError("mean=None must be the running mean of the features with task_hard_router=True")
            routings["task"] = self.task.gate.route(seen_ND, moe.top_k, None)
        return routings

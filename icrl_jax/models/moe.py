# ruff: noqa: N803, N806
"""Mixtures of experts, the feed-forward part of any block: `ffn(x, key) -> (y, aux)`.

A token goes to the J experts that its gate prefers. There is no limit on how many tokens an expert takes, so none is
dropped, and a token's output depends on that token only. Token-wise and task-wise experts may stand side by side; what
makes the latter task-wise is `contrastive_loss`, which a method adds.

Axes: N tokens, D features in, E out, F hidden units of an expert, X experts, J choices of a token, M = N J of all,
G blocks of R rows, P = G R.

References:
    Wenhao Wu et al., Mixture-of-Experts Meets In-Context Reinforcement Learning (T2MIR), 2025,
    https://arxiv.org/abs/2506.05426
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.scipy.special import logsumexp, ndtr

from icrl_jax.models.layers import Aux, Mlp, check_choices, check_sizes, fan_in, linear

Router = Literal["linear", "tanh"]
Dispatch = Literal["auto", "dense", "sorted"]
Layers = Literal["all", "last"]
Tree = TypeVar("Tree")


@dataclass(frozen=True)
class MoEConfig:
    """Sizes of a mixture of experts.

    Attributes:
        num_experts: X of the token-wise mixture; 0 is none.
        num_task_experts: X of the task-wise mixture; 0 is none. Beside token-wise experts each gives half the features.
        expert_layers: which blocks have experts: "all", or the "last" alone, as in T2MIR; the others stay dense.
        top_k: J, experts that each token goes to.
        expert_width: F; None gives a token as many active parameters as the dense layer has.
        router: "linear", or "tanh": two layers, as in T2MIR.
        noise: whether the token gate adds noise of a learned size to its logits, where it is called with a key.
        balance_weight: of the load-balancing loss, which only token-wise experts have.
        z_weight: of the router-z loss, which keeps the logits of all gates small.
        dispatch: "dense" runs all experts on all tokens, "sorted" each on its own; "auto" takes the cheaper.
    """

    num_experts: int = 0
    num_task_experts: int = 0
    expert_layers: Layers = "all"
    top_k: int = 2
    expert_width: int | None = None
    router: Router = "linear"
    noise: bool = False
    balance_weight: float = 0.01
    z_weight: float = 0.001
    dispatch: Dispatch = "auto"

    def __post_init__(self):
        check_sizes(self, "top_k", *([] if self.expert_width is None else ["expert_width"]))
        check_choices(self, router=Router, dispatch=Dispatch, expert_layers=Layers)
        for option in "num_experts", "num_task_experts":
            value = getattr(self, option)
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"{option}={value!r} must be 0 or a positive integer")
            if 0 < value < self.top_k:
                raise ValueError(f"top_k={self.top_k} must be at most {option}={value}")
        for option in "balance_weight", "z_weight":
            if not getattr(self, option) >= 0:
                raise ValueError(f"{option}={getattr(self, option)!r} must be at least 0")

    @property
    def has_experts(self) -> bool:
        return bool(self.num_experts or self.num_task_experts)


def feed_forward(config: Any, key: Array) -> "MoE | Mlp":
    """The feed-forward part that a model's config asks for: `MoE` where `config.moe` has experts, else `Mlp`."""
    return MoE(config, key) if config.moe.has_experts else Mlp(config, key)


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


class Routing(NamedTuple):
    """Where tokens go."""

    expert: Array  # int32 [N, J]
    weight: Array  # float32 [N, J]: of the expert's output; sums to 1
    logits: Array  # float32 [N, X]: without noise
    load: Array  # float32 [X]: tokens of each expert; with noise the number to expect if it were drawn again


class Gate(nnx.Module):
    """A router, float32 whatever the features are computed in.

    Its weights are random at the start: equal logits would send all tokens to the same experts.
    """

    def __init__(self, width: int, num_experts: int, router: Router, noise: bool, key: Array):
        key_first, key_second = jax.random.split(key)
        self.first = fan_in(key_first, (width, num_experts), width)
        self.second = fan_in(key_second, (num_experts, num_experts), num_experts) if router == "tanh" else None
        self.noise = nnx.Param(jnp.zeros((width, num_experts))) if noise else None

    def __call__(self, x: Array) -> Array:
        """[..., D] to logits [..., X]."""
        logits = _exact(x, self.first[...])
        return logits if self.second is None else _exact(jnp.tanh(logits), self.second[...])

    def route(self, x_ND: Array, top_k: int, key: Array | None) -> Routing:
        """The J largest logits and their softmax; with a key, of logits with noise."""
        logits = self(x_ND)
        if self.noise is None or key is None:
            value, expert = lax.top_k(logits, top_k)
            return Routing(expert, jax.nn.softmax(value), logits, _counts(expert, logits.shape[-1]).astype(value.dtype))
        scale = jax.nn.softplus(_exact(x_ND, self.noise[...])) + 0.01
        noisy = logits + scale * jax.random.normal(key, logits.shape, logits.dtype)
        value, expert = lax.top_k(noisy, top_k)
        return Routing(expert, jax.nn.softmax(value), logits, expected_load(logits, noisy, scale, top_k))


def expected_load(logits_NX: Array, noisy_NX: Array, scale_NX: Array, top_k: int) -> Array:
    """How many tokens each expert is to expect if the noise on its own logits were drawn again, [X].

    P(in the top k) = Phi((logit - threshold) / scale), the threshold being the k-th largest of the other noisy logits:
    the (k+1)-th of all for an expert that is in, the k-th for one that is not.

    References:
        Noam Shazeer et al., Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer, 2017,
        https://arxiv.org/abs/1701.06538, appendix A. T2MIR's code compares the noise alone with the threshold.
    """
    N, X = logits_NX.shape
    if top_k == X:
        return jnp.full(X, N, logits_NX.dtype)
    *_, last_in, first_out = jnp.split(lax.top_k(noisy_NX, top_k + 1)[0], top_k + 1, axis=1)
    threshold = jnp.where(noisy_NX > first_out, first_out, last_in)
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

    def __call__(self, x: Array, key: Array | None = None) -> tuple[Array, Aux]:
        """[..., D] to [..., D] and the weighted losses of the gates, which a method adds to its own.

        Args:
            x: features.
            key: for the noise of the token gate, in training.
        """
        x_ND = x.reshape(-1, x.shape[-1])
        routings = self.route(x_ND, key)
        outputs = [getattr(self, name)(x_ND, routing, self.moe.dispatch) for name, routing in routings.items()]
        aux = {}
        if self.moe.z_weight:
            aux["moe_z"] = self.moe.z_weight * sum(z_loss(routing.logits) for routing in routings.values())
        if self.moe.balance_weight and "token" in routings:
            aux["moe_balance"] = self.moe.balance_weight * balance_loss(routings["token"])
        return jnp.concatenate(outputs, axis=-1).reshape(x.shape), aux

    def route(self, x_ND: Array, key: Array | None = None) -> dict[str, Routing]:
        """Of the mixtures there are, "token" and "task"."""
        gates = {"token": (self.token, key), "task": (self.task, None)}
        return {name: m.gate.route(x_ND, self.moe.top_k, key) for name, (m, key) in gates.items() if m is not None}

    def shares(self, x: Array) -> dict[str, Array]:
        """How the choices of all tokens [..., D] fall on the experts of each mixture, [X] summing to 1: for logs."""
        routings = self.route(x.reshape(-1, x.shape[-1]))
        return {name: routing.load / routing.expert.size for name, routing in routings.items()}


# The two ways to run the experts: x [N, D], expert and weight [N, J], up [X, D, F] and down [X, F, E] to [N, E].


def pays_to_sort(num_tokens: int, top_k: int, num_experts: int) -> bool:
    """Whether each expert has enough tokens of its own to make up for sorting them, and is not chosen by most."""
    return num_tokens * top_k >= 16 * num_experts and 2 * top_k <= num_experts


def run_all(x_ND: Array, expert_NJ: Array, weight_NJ: Array, up_XDF: Array, down_XFE: Array) -> Array:
    """All experts on all tokens: two products, whose weights are read once."""
    X, _, F = up_XDF.shape
    weight_NX = (jax.nn.one_hot(expert_NJ, X, dtype=x_ND.dtype) * weight_NJ[..., None]).sum(axis=1)
    hidden_NXF = jax.nn.gelu(linear(x_ND, jnp.swapaxes(up_XDF, 0, 1).reshape(-1, X * F))).reshape(-1, X, F)
    return linear((hidden_NXF * weight_NX[..., None]).reshape(-1, X * F), down_XFE.reshape(X * F, -1))


def run_sorted(x_ND: Array, expert_NJ: Array, weight_NJ: Array, up_XDF: Array, down_XFE: Array) -> Array:
    """Each expert on its own tokens: all choices sorted by expert, in blocks that belong to one expert each."""
    X = up_XDF.shape[0]
    plan = make_plan(expert_NJ, X, block_rows(expert_NJ.size, X))
    weight_GR = weight_NJ.reshape(-1).at[plan.choice].get(mode="fill", fill_value=0)
    return _collect(_run_blocks(_spread(x_ND, plan), weight_GR, up_XDF, down_XFE, plan), plan)


class Plan(NamedTuple):
    """Choice m = n J + j, token n's j-th, gets a row of a block; what is left of an expert's last block is padding."""

    choice: Array  # int32 [G, R]: which choice a row holds; M is padding
    expert: Array  # int32 [G]: whose block it is
    row: Array  # int32 [N, J]: which of the P rows a choice is in


def block_rows(num_choices: int, num_experts: int) -> int:
    """R: enough for a product to run at full speed, and little beside what an expert gets."""
    return min(256, max(8, 1 << (num_choices // (4 * num_experts)).bit_length()))


def make_plan(expert_NJ: Array, num_experts: int, rows: int) -> Plan:
    """A counting sort; there are as many blocks as any routing may need, (M + X (R - 1)) / R."""
    M, X, R = expert_NJ.size, num_experts, rows
    G = (M + X * (R - 1)) // R
    chosen_MX = jax.nn.one_hot(expert_NJ.reshape(-1), X, dtype=jnp.int32)
    end_X = jnp.cumsum(-(-chosen_MX.sum(axis=0, dtype=jnp.int32) // R), dtype=jnp.int32)  # of each expert's blocks
    start_X = R * jnp.concatenate([jnp.zeros(1, jnp.int32), end_X[:-1]])
    nth_MX = jnp.cumsum(chosen_MX, axis=0, dtype=jnp.int32) - 1
    row_M = (chosen_MX * (start_X[None] + nth_MX)).sum(axis=1, dtype=jnp.int32)
    choice_P = jnp.full(G * R, M, jnp.int32).at[row_M].set(jnp.arange(M, dtype=jnp.int32), unique_indices=True)
    expert_G = (end_X[None] <= jnp.arange(G, dtype=jnp.int32)[:, None]).sum(axis=1, dtype=jnp.int32)
    return Plan(choice_P.reshape(G, R), jnp.minimum(expert_G, X - 1), row_M.reshape(expert_NJ.shape))


@jax.custom_vjp
def _spread(x_ND: Array, plan: Plan) -> Array:
    """The tokens [G, R, D] of a plan's rows, zeros for padding. Its transpose is `_collect`, so that both gather."""
    return x_ND.at[plan.choice // plan.row.shape[1]].get(mode="fill", fill_value=0)


@jax.custom_vjp
def _collect(y_GRE: Array, plan: Plan) -> Array:
    """The sum [N, E] of the rows of each token."""
    y_PE = y_GRE.reshape(-1, y_GRE.shape[-1])
    parts = [y_PE.at[row_N].get(mode="promise_in_bounds") for row_N in plan.row.T]  # faster than all at once
    return functools.reduce(jnp.add, parts)


_spread.defvjp(lambda x, plan: (_spread(x, plan), plan), lambda plan, dy: (_collect(dy, plan), None))
_collect.defvjp(lambda y, plan: (_collect(y, plan), plan), lambda plan, dy: (_spread(dy, plan), None))


def _run_blocks(x_GRD: Array, weight_GR: Array, up_XDF: Array, down_XFE: Array, plan: Plan) -> Array:
    """Each block through its expert, [G, R, E]; one implementation per platform."""
    platform = jax.default_backend()
    if platform == "cpu":
        return _loop(x_GRD, weight_GR, up_XDF, down_XFE, plan.expert)
    product = _ragged if platform == "tpu" else _batched
    hidden_GRF = jax.nn.gelu(product(x_GRD, up_XDF, plan.expert))
    return product(hidden_GRF * weight_GR[..., None], down_XFE, plan.expert)


def _expert(x_RD: Array, weight_R: Array, up_DF: Array, down_FE: Array) -> Array:
    """One expert on weighted rows. The weight comes before the last product, so that its gradient needs no output."""
    return linear(jax.nn.gelu(linear(x_RD, up_DF)) * weight_R[:, None], down_FE)


@jax.custom_vjp
def _loop(x_GRD: Array, weight_GR: Array, up_XDF: Array, down_XFE: Array, expert_G: Array) -> Array:
    """One block after another, which stays in the cache from its rows to its outputs.

    Nothing is kept for the gradient but what came in: to compute the hidden units again is cheaper than to write them
    to memory and read them back. The gradient of the weights is added up in place.
    """

    def block(_, inputs):
        x_RD, weight_R, expert = inputs
        return None, _expert(x_RD, weight_R, up_XDF[expert], down_XFE[expert])

    return lax.scan(block, None, (x_GRD, weight_GR, expert_G))[1]


def _loop_forward(*args):
    return _loop(*args), args


def _loop_backward(args, dy_GRE):
    x_GRD, weight_GR, up_XDF, down_XFE, expert_G = args

    def block(dweights, inputs):
        x_RD, weight_R, expert, dy_RE = inputs
        _, backward = jax.vjp(_expert, x_RD, weight_R, up_XDF[expert], down_XFE[expert])
        *drows, dup_DF, ddown_FE = backward(dy_RE)
        return (dweights[0].at[expert].add(dup_DF), dweights[1].at[expert].add(ddown_FE)), drows

    zeros = jnp.zeros_like(up_XDF), jnp.zeros_like(down_XFE)
    dweights, drows = lax.scan(block, zeros, (x_GRD, weight_GR, expert_G, dy_GRE))
    return *drows, *dweights, None


_loop.defvjp(_loop_forward, _loop_backward)


def _batched(x_GRD: Array, w_XDF: Array, expert_G: Array) -> Array:
    """One product for all blocks, each with a copy of its expert's weights.

    They are copied by a product too, for the gradient of that is again one: it adds up an expert's blocks in no random
    order, as a scatter does. XLA's `ragged_dot` would run all experts on all rows here (jaxlib 0.10.2, CUDA).
    """
    copy_GX = jax.nn.one_hot(expert_G, w_XDF.shape[0], dtype=x_GRD.dtype)
    return jnp.einsum("grd,gdf->grf", x_GRD, jnp.einsum("gx,xdf->gdf", copy_GX, w_XDF.astype(x_GRD.dtype)))


def _ragged(x_GRD: Array, w_XDF: Array, expert_G: Array) -> Array:
    """The grouped product of the platform."""
    G, R, D = x_GRD.shape
    rows_X = R * _counts(expert_G, w_XDF.shape[0])
    return lax.ragged_dot(x_GRD.reshape(-1, D), w_XDF.astype(x_GRD.dtype), rows_X).reshape(G, R, -1)


# What makes task-wise experts task-wise: the gate is taught to tell tasks apart.


def task_logits(gate: Gate, x_BTD: Array, mask_BT: Array | None = None, softmax: bool = False) -> Array:
    """The mean [B, X] over the tokens of each sequence of what a task gate says.

    Args:
        gate: that of `MoE.task`, or its momentum copy.
        x_BTD: what the gate sees: the inputs of the `MoE`.
        mask_BT: bool, which tokens count; None is all.
        softmax: the mean of the softmax, which is bounded, in place of the logits'.
    """
    logits_BTX = jax.nn.softmax(gate(x_BTD)) if softmax else gate(x_BTD)
    return logits_BTX.mean(axis=1, where=None if mask_BT is None else mask_BT[..., None])


def contrastive_loss(z_query: Array, z_key: Array, w_XX: Array, task: Array | None = None) -> Array:
    """Symmetrical InfoNCE between the two halves of a batch: rows b and b + B/2 are of one task, all others are not.

    (CE(q1 W k2^T, diagonal) + CE(q2 W k1^T, diagonal)) / 2 for the halves 1 and 2; ln(B/2) where tasks look alike.

    Args:
        z_query: [B, X], `task_logits` of the gate.
        z_key: [B, X], those of its momentum copy; no gradient flows there.
        w_XX: learned, N(0, 1) at the start.
        task: int [B/2]: which task each pair is of, where one may come twice; None says that none does.

    References:
        Wu et al. 2025, above.
    """
    if z_query.shape[0] % 2:
        raise ValueError(f"z_query has {z_query.shape[0]} rows; must be even, one half paired with the other")
    q1, q2 = jnp.split(z_query, 2)
    k1, k2 = jnp.split(lax.stop_gradient(z_key), 2)
    pairs = q1.shape[0]
    allowed = jnp.eye(pairs, dtype=bool)
    allowed = allowed | (True if task is None else task[:, None] != task[None])

    def cross_entropy(q, k):
        log_probs = jax.nn.log_softmax(jnp.where(allowed, _exact(_exact(q, w_XX), k.T), -jnp.inf))
        return -jnp.diagonal(log_probs).mean()

    return (cross_entropy(q1, k2) + cross_entropy(q2, k1)) / 2


def update_momentum(key_router: Tree, router: Tree, tau: float = 0.005) -> Tree:
    """tau router + (1 - tau) key_router, after each step of learning."""
    return jax.tree.map(lambda old, new: old + tau * (new - old), key_router, router)


def _exact(x: Array, w: Array) -> Array:
    """`x @ w` in the precision of the weights."""
    return jnp.matmul(x.astype(w.dtype), w, precision=lax.Precision.HIGHEST)


def _counts(expert: Array, num_experts: int) -> Array:
    """How often each expert occurs, int32 [X]."""
    return jax.nn.one_hot(expert.reshape(-1), num_experts, dtype=jnp.int32).sum(axis=0, dtype=jnp.int32)


def _cv_squared(x: Array) -> Array:
    """The squared coefficient of variation."""
    return jnp.var(x, ddof=1) / (jnp.square(x.mean()) + 1e-10) if x.size > 1 else jnp.zeros_like(x[0])

# ruff: noqa: N803, N806
"""The two ways to run the experts of a mixture, all on all tokens or each on its own.

Both take x [N, D], expert and weight [N, J], up [X, D, F] and down [X, F, E] to [N, E].

Axes: N tokens, D features in, E out, F hidden units of an expert, X experts, J choices of a token, M = N J of all,
G blocks of R rows, P = G R.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from icrl_jax.models.layers import linear
from icrl_jax.models.routing import counts


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
    """R: enough for a product to run at full speed, and little beside what an expert gets, whose last block is padded.

    On CPU larger products are hardly faster; elsewhere each block has a copy of its expert's weights to pay for.
    """
    most = 64 if jax.default_backend() == "cpu" else 256
    return min(most, max(8, 1 << (num_choices // (8 * num_experts)).bit_length()))


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


@jax.custom_vjp
def _loop(x_GRD: Array, weight_GR: Array, up_XDF: Array, down_XFE: Array, expert_G: Array) -> Array:
    """One block after another, which stays in the cache from its rows to its outputs.

    The gradient of the weights is added up in place. The hidden units, before their GELU, are kept for it: they take
    about as much memory as those of the dense layer, and to compute them again takes longer.
    """
    return _loop_forward(x_GRD, weight_GR, up_XDF, down_XFE, expert_G)[0]


def _loop_forward(x_GRD, weight_GR, up_XDF, down_XFE, expert_G):
    def block(_, inputs):
        x_RD, weight_R, expert = inputs
        hidden_RF = linear(x_RD, up_XDF[expert])
        return None, (_down(hidden_RF, weight_R, down_XFE[expert]), hidden_RF)

    y_GRE, hidden_GRF = lax.scan(block, None, (x_GRD, weight_GR, expert_G))[1]
    return y_GRE, (x_GRD, weight_GR, up_XDF, down_XFE, expert_G, hidden_GRF)


def _loop_backward(kept, dy_GRE):
    x_GRD, weight_GR, up_XDF, down_XFE, expert_G, hidden_GRF = kept

    def block(dweights, inputs):
        x_RD, weight_R, expert, hidden_RF, dy_RE = inputs
        dhidden_RF, dweight_R, ddown_FE = jax.vjp(_down, hidden_RF, weight_R, down_XFE[expert])[1](dy_RE)
        dx_RD, dup_DF = jax.vjp(linear, x_RD, up_XDF[expert])[1](dhidden_RF)  # its product is not asked for
        return (dweights[0].at[expert].add(dup_DF), dweights[1].at[expert].add(ddown_FE)), (dx_RD, dweight_R)

    zeros = jnp.zeros_like(up_XDF), jnp.zeros_like(down_XFE)
    dweights, drows = lax.scan(block, zeros, (x_GRD, weight_GR, expert_G, hidden_GRF, dy_GRE))
    return *drows, *dweights, None


_loop.defvjp(_loop_forward, _loop_backward)


def _down(hidden_RF: Array, weight_R: Array, down_FE: Array) -> Array:
    """An expert's last product, on weighted rows. The weight comes before it, so that its gradient needs no output."""
    return linear(jax.nn.gelu(hidden_RF) * weight_R[:, None], down_FE)


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
    rows_X = R * counts(expert_G, w_XDF.shape[0])
    return lax.ragged_dot(x_GRD.reshape(-1, D), w_XDF.astype(x_GRD.dtype), rows_X).reshape(G, R, -1)

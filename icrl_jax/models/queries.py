# ruff: noqa: N803, N806
"""Models that are asked: what happened is read and remembered, a query is answered and leaves no trace.

Axes: B rows, T time, D width.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from icrl_jax.core import Tree
from icrl_jax.models import average
from icrl_jax.models.cache import Memory
from icrl_jax.models.layers import NOTHING, Aux
from icrl_jax.models.transformer import Transformer


def answer_step(
    body: Tree, carry: Tree, x_BD: Array, query_BD: Array, reset_B: Array, episode_B: Array
) -> tuple[Tree, Array]:
    """Reads one input, then answers a query [B, D]. Where a sequence starts nothing has happened yet, so that the input
    is forgotten again."""
    carry, _ = body.step(carry, x_BD, reset_B, episode_B)
    carry = _emptied(body, carry, reset_B)
    return carry, body.peek(carry, query_BD[:, None])[:, 0]


def answer_all(
    body: Tree,
    carry: Tree,
    x_BTD: Array,
    query_BTD: Array,
    reset_BT: Array,
    episode_BT: Array,
    key: Array | None = None,
) -> tuple[Tree, Array, Aux]:
    """`answer_step` over whole sequences, from an empty memory if `carry` is None; the answers are [B, T, D].

    In a transformer that starts empty and remembers all T inputs, it is one pass over the inputs, and all queries look
    back at its keys and values at once, each at those before it. Elsewhere it is a loop over time, without `aux`.
    """
    if carry is None and _sees_all(body, x_BTD.shape[1]):
        return _in_parallel(body, x_BTD, query_BTD, reset_BT, episode_BT, key)
    carry = body.init_carry(x_BTD.shape[0]) if carry is None else carry
    inputs = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (x_BTD, query_BTD, reset_BT, episode_BT))
    carry, y_TBD = lax.scan(lambda carry, xs: answer_step(body, carry, *xs), carry, inputs)
    return carry, jnp.swapaxes(y_TBD, 0, 1), NOTHING


def _sees_all(body: Tree, T: int) -> bool:
    """Whether the memory after T inputs tells also what it was after each."""
    if not isinstance(body, Transformer):
        return False
    config = body.config
    counted = config.positions in ("none", "learned", "rotary") and config.attend == "all"
    return counted and not config.moe.task_hard_router and config.context_len >= T


def _in_parallel(body, x_BTD, query_BTD, reset_BT, episode_BT, key) -> tuple[Memory, Array, Aux]:
    after_BT = jnp.pad(reset_BT, ((0, 0), (1, 0)))[:, :-1]  # where the first input of a sequence is forgotten
    carry, _, aux = body(None, x_BTD, reset_BT | after_BT, episode_BT, key)
    time_T = jnp.arange(x_BTD.shape[1], dtype=jnp.int32)
    start_BT = lax.cummax(jnp.where(reset_BT, time_T[None], -1), axis=1)
    length_BT = time_T[None] - start_BT
    y_BTD = body.look_back(carry, query_BTD, length_BT)
    return carry._replace(length=length_BT[:, -1]), y_BTD, aux


def _emptied(body: Tree, carry: Tree, reset_B: Array) -> Tree:
    if not isinstance(carry, Memory):
        fresh = body.init_carry(reset_B.shape[0])
        where = lambda new, old: jnp.where(reset_B.reshape(-1, *[1] * (old.ndim - 1)), new, old)
        return jax.tree.map(where, fresh, carry)
    place = carry.place
    if place is not None:
        place = place._replace(step=jnp.where(reset_B, 0, place.step))
    total = jax.tree.map(lambda total_BE: average.forget(total_BE, reset_B), carry.total)
    return carry._replace(length=jnp.where(reset_B, 0, carry.length), place=place, total=total)

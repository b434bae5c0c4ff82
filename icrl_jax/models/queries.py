# ruff: noqa: N803, N806
"""Models that are asked: what happened is read and remembered, a query is answered and leaves no trace.

Axes: B rows, T time, N tokens of a step, S = T N, Q queries, D width.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from icrl_jax.core import Tree
from icrl_jax.models import average
from icrl_jax.models.cache import Branches, Memory
from icrl_jax.models.embeddings import by_step
from icrl_jax.models.layers import NOTHING, Aux
from icrl_jax.models.transformer import Transformer


def check_asked(config: Any) -> None:
    """Refuses models whose experts would be chosen for queries that nothing balances.

    Raises:
      ValueError: the config of a model with experts.
    """
    moe = getattr(config, "moe", None)
    if moe is not None and moe.has_experts:
        sizes = f"num_experts={moe.num_experts}, num_task_experts={moe.num_task_experts}"
        raise ValueError(f"{sizes}: must be 0 where a model is asked (DPT and DIT with the query last, DICP, ICPO)")


def read_step(body: Tree, carry: Tree, x_BND: Array, reset_B: Array, episode_B: Array) -> tuple[Tree, Array]:
    """Reads the N tokens of a step; what the model says after the last one, [B, D]."""
    for n in range(x_BND.shape[1] - 1):
        carry, _ = body.step(carry, x_BND[:, n], reset_B, episode_B)
        reset_B = episode_B = jnp.zeros_like(reset_B)
    return body.step(carry, x_BND[:, -1], reset_B, episode_B)


def answer_beside(
    body: Tree,
    x_BSD: Array,
    query_BQD: Array,
    at_Q: Array,
    reset_BS: Array,
    episode_BS: Array,
    num_tokens: int = 1,
    asked_BTD: Array | None = None,
    key: Array | None = None,
) -> tuple[Array, Array, Aux]:
    """What a model says after each step of so many tokens, [B, T, D], and what it would answer Q queries, each after
    one of these steps and forgotten again, [B, Q, D].

    From an empty memory. As in `answer_all` it is one pass where the memory tells all, and elsewhere a loop, which is
    through all queries at every step.

    Args:
      at_Q: int32 [Q]: the step, in [0, T), after which each query is answered.
      asked_BTD: where what it says is an answer, too: the query of each step, as in `answer_all`.
    """
    T = x_BSD.shape[1] // num_tokens
    if not _sees_all(body, x_BSD.shape[1]):
        x_BTND = by_step(x_BSD, num_tokens)
        return _beside_in_turn(body, x_BTND, query_BQD, at_Q, reset_BS, episode_BS, asked_BTD)
    if asked_BTD is None:
        carry, y_BSD, aux = body(None, x_BSD, reset_BS, episode_BS, key)
        y_BTD, before = by_step(y_BSD, num_tokens)[:, :, -1], 0
    else:
        carry, y_BTD, aux = _in_parallel(body, x_BSD, asked_BTD, reset_BS, episode_BS, key)
        before = -1  # the first input of a sequence is forgotten
    begins_T = num_tokens * jnp.arange(T, dtype=jnp.int32)
    start_BT = lax.cummax(jnp.where(reset_BS[:, ::num_tokens], begins_T[None] - before, 0), axis=1)
    index_Q = num_tokens * (at_Q + 1)
    return y_BTD, body.look_back(carry, query_BQD, index_Q[None] - start_BT[:, at_Q], index_Q), aux


def _beside_in_turn(body, x_BTND, query_BQD, at_Q, reset_BS, episode_BS, asked_BTD) -> tuple[Array, Array, Aux]:
    B, T, N, _ = x_BTND.shape

    def one(carry, xs):
        (memory, answer_BQD), (t, x_BND, asked_BD, reset_B, episode_B) = carry, xs
        if asked_BD is None:
            memory, y_BD = read_step(body, memory, x_BND, reset_B, episode_B)
        else:
            memory, y_BD = answer_step(body, memory, x_BND[:, 0], asked_BD, reset_B, episode_B)
        answer_BQD = jnp.where((at_Q == t)[None, :, None], body.peek(memory, query_BQD), answer_BQD)
        return (memory, answer_BQD), y_BD

    inputs = x_BTND, asked_BTD, reset_BS[:, ::N], episode_BS[:, ::N]
    inputs = jnp.arange(T), *jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), inputs)
    (_, answer_BQD), y_TBD = lax.scan(one, (body.init_carry(B), jnp.zeros_like(query_BQD)), inputs)
    return jnp.swapaxes(y_TBD, 0, 1), answer_BQD, NOTHING


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
    y_BTD = body.look_back(carry, query_BTD, length_BT, 1 + time_T)
    return carry._replace(length=length_BT[:, -1]), y_BTD, aux


def _emptied(body: Tree, carry: Tree, reset_B: Array) -> Tree:
    if not isinstance(carry, Memory | Branches):
        fresh = body.init_carry(reset_B.shape[0])
        where = lambda new, old: jnp.where(reset_B.reshape(-1, *[1] * (old.ndim - 1)), new, old)
        return jax.tree.map(where, fresh, carry)
    place = carry.place
    if place is not None:
        place = place._replace(step=jnp.where(reset_B, 0, place.step))
    total = jax.tree.map(lambda total_BE: average.forget(total_BE, reset_B), carry.total)
    return carry._replace(length=jnp.where(reset_B, 0, carry.length), place=place, total=total)

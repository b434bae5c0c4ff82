# ruff: noqa: N803, N806
"""What makes task-wise experts task-wise: their gate is taught to tell tasks apart.

Axes: B rows, T time, D width, X experts.

References:
    Wenhao Wu et al., Mixture-of-Experts Meets In-Context Reinforcement Learning (T2MIR), 2025,
    https://arxiv.org/abs/2506.05426
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from icrl_jax.core import Tree
from icrl_jax.models.routing import Gate, exact


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
        log_probs = jax.nn.log_softmax(jnp.where(allowed, exact(exact(q, w_XX), k.T), -jnp.inf))
        return -jnp.diagonal(log_probs).mean()

    return (cross_entropy(q1, k2) + cross_entropy(q2, k1)) / 2


def update_momentum(key_router: Tree, router: Tree, tau: float = 0.005) -> Tree:
    """tau router + (1 - tau) key_router, after each step of learning."""
    return jax.tree.map(lambda old, new: old + tau * (new - old), key_router, router)

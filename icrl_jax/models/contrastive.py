# ruff: noqa: N803, N806
"""What makes task-wise experts task-wise: their gates are taught to tell tasks apart.

A method makes a batch of pairs, two histories of each task, and adds `task_loss` to its own; after every step of
learning it lets the key gates `follow`.

Axes: B rows, T time, D width, X experts.

References:
    Wenhao Wu et al., Mixture-of-Experts Meets In-Context Reinforcement Learning (T2MIR), 2025,
    https://arxiv.org/abs/2506.05426
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from icrl_jax.models.layers import widened
from icrl_jax.models.moe import block_of
from icrl_jax.models.routing import Gate, exact


class Contrast(NamedTuple):
    """What is learned besides a model: for each of its task gates a matrix and a momentum copy, the key gate.

    Parameters of the method, so that both are trained and saved with the model's; the gradient of key gates is zero.
    """

    w: tuple[Array, ...]  # float32 [X, X]
    key_gates: tuple[Gate, ...]


def init_contrast(gates: tuple[Gate, ...], key: Array) -> Contrast:
    """Matrices of N(0, 1), and key gates equal to the gates (`task_gates`)."""
    keys = jax.random.split(key, len(gates))
    w = tuple(jax.random.normal(key, 2 * gate.first.shape[-1:]) for key, gate in zip(keys, gates, strict=True))
    return Contrast(w, jax.tree.map(jnp.copy, gates))


def task_gates(model: Any) -> tuple[Gate, ...]:
    """The gates of a sequence model's task-wise experts, in the order of `Aux.task_inputs`.

    Raises:
        ValueError: it has none.
    """
    moe = getattr(model.config, "moe", None)
    if moe is None or not moe.num_task_experts:
        raise ValueError(f"moe={moe!r}: num_task_experts must be positive, for a gate to be taught")
    if model.last is not None:
        return (model.last.ffn.task.gate,)
    layers, stacked = model.config.num_layers, (model.blocks.ffn.task.gate, None)
    return tuple(block_of(stacked, layer, layers) for layer in range(layers))


def task_loss(
    contrast: Contrast,
    gates: tuple[Gate, ...],
    task_inputs: tuple[Array, ...],
    task: Array | None = None,
    mask_BT: Array | None = None,
    softmax: bool = False,
    hard: bool = False,
) -> Array:
    """The mean over a model's task gates of `contrastive_loss`, float32 []; rows b and b + B/2 are of one task.

    Args:
        contrast: of these gates.
        gates: `task_gates` of the model.
        task_inputs: what they saw in this batch, `Aux.task_inputs`.
        task: as of `contrastive_loss`.
        mask_BT, softmax, hard: as of `task_logits`.
    """
    losses = []
    for gate, key_gate, w_XX, x_BTD in zip(gates, contrast.key_gates, contrast.w, task_inputs, strict=True):
        z_query, z_key = (task_logits(g, x_BTD, mask_BT, softmax, hard) for g in (gate, key_gate))
        losses.append(contrastive_loss(z_query, z_key, w_XX, task))
    return sum(losses[1:], losses[0]) / len(losses)


def follow(contrast: Contrast, gates: tuple[Gate, ...], tau: float = 0.005) -> Contrast:
    """With key gates tau gate + (1 - tau) key gate.

    Args:
        contrast: as it was before the step of learning: what an optimiser with weight decay made of the key gates is
            left out.
        gates: as they are after it.
        tau: the share of the gates.
    """
    return contrast._replace(key_gates=jax.tree.map(lambda k, q: k + tau * (q - k), contrast.key_gates, gates))


def task_logits(
    gate: Gate, x_BTD: Array, mask_BT: Array | None = None, softmax: bool = False, hard: bool = False
) -> Array:
    """What a task gate says of each sequence, float32 [B, X]: the mean over its tokens.

    Args:
        gate: a task gate, or its momentum copy.
        x_BTD: what the gate sees.
        mask_BT: bool, which tokens count; None is all.
        softmax: the softmax, which is bounded, in place of logits.
        hard: what it says of the mean token, in place of the mean of what it says of each.
    """
    say = lambda x: jax.nn.softmax(gate(x)) if softmax else gate(x)
    mean = lambda x: x.mean(axis=1, where=None if mask_BT is None else mask_BT[..., None])
    return say(mean(widened(x_BTD))) if hard else mean(say(x_BTD))


def contrastive_loss(z_query: Array, z_key: Array, w_XX: Array, task: Array | None = None) -> Array:
    """Symmetrical InfoNCE between the two halves of a batch: rows b and b + B/2 are of one task, all others are not.

    (CE(q1 W k2^T, diagonal) + CE(q2 W k1^T, diagonal)) / 2 for the halves 1 and 2; ln(B/2) where tasks look alike.
    A pair is held against those of the same call: in a supervised method, whose batch goes through the loss in groups
    and is divided among devices, `least_rows=batch_size` keeps a device's pairs together.

    Args:
        z_query: [B, X], `task_logits` of the gate.
        z_key: [B, X], those of its momentum copy; no gradient flows there.
        w_XX: learned, N(0, 1) at the start.
        task: int [B/2]: which task each pair is of, where one may come twice; None says that none does.

    Raises:
        ValueError: an odd number of rows, or a single pair, which nothing could be told from.
    """
    if z_query.shape[0] % 2:
        raise ValueError(f"z_query has {z_query.shape[0]} rows; must be even, one half paired with the other")
    if z_query.shape[0] < 4:
        raise ValueError(f"z_query has {z_query.shape[0]} rows; must be at least 4, two pairs; raise least_rows")
    q1, q2 = jnp.split(z_query, 2)
    k1, k2 = jnp.split(lax.stop_gradient(z_key), 2)
    pairs = q1.shape[0]
    allowed = jnp.eye(pairs, dtype=bool)
    allowed = allowed | (True if task is None else task[:, None] != task[None])

    def cross_entropy(q, k):
        log_probs = jax.nn.log_softmax(jnp.where(allowed, exact(exact(q, w_XX), k.T), -jnp.inf))
        return -jnp.diagonal(log_probs).mean()

    return (cross_entropy(q1, k2) + cross_entropy(q2, k1)) / 2

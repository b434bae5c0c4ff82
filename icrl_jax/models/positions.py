# ruff: noqa: N803, N806
"""Where inputs stand: their places among episodes, and rotations and distances of queries and keys.

Axes: B rows, T time, S keys, C cache length, N candidates, H heads, G heads of keys and values, K head width, R waves
(cosines and sines of a distance).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from icrl_jax.models.layers import at_least_float32, widened

NUM_WAVES = 32


class Place(NamedTuple):
    """Where a row stands among its episodes."""

    step: Array  # int32 [B]: inputs since the episode began
    episode: Array  # int32 [B]: episodes before it since the last reset


class Rotation(NamedTuple):
    """By which angle each pair of features is turned, float32 [B or 1, T, 1, K / 2]."""

    cos: Array
    sin: Array


def last_true(flag_BT: Array, before_B: Array) -> Array:
    """The index of the last true flag up to each, or a number for those before the first."""
    time_T = jnp.arange(flag_BT.shape[1], dtype=jnp.int32)
    return lax.associative_scan(jnp.maximum, jnp.where(flag_BT, time_T[None], before_B[:, None]), axis=1)


def places(place: Place, reset_BT: Array, begins_BT: Array) -> Place:
    """Step and episode of every input of some rows that go on from a place, [B, T]."""
    time_T = jnp.arange(reset_BT.shape[1], dtype=jnp.int32)
    step_BT = time_T[None] - last_true(begins_BT, -place.step)
    episode_BT = place.episode[:, None] + jnp.cumsum(begins_BT, axis=1, dtype=jnp.int32)
    at_reset_BT = lax.associative_scan(jnp.maximum, jnp.where(reset_BT, episode_BT, 0), axis=1)
    return Place(step_BT, episode_BT - at_reset_BT)


def rotation(index_BT: Array, K: int) -> Rotation:
    """Angles proportional to the inputs' indices, [B, T] or [1, T], one for each pair of K features.

    Turns are counted in units of 2^-32, in wrapping integers, so an endless rollout loses no precision.

    References:
        Jianlin Su et al., RoFormer, 2021, https://arxiv.org/abs/2104.09864
    """
    pairs = jnp.arange(K // 2, dtype=jnp.float32)
    speed = jnp.round(10_000.0 ** (-2 * pairs / K) * (2**32 / (2 * jnp.pi))).astype(jnp.uint32)
    turns = index_BT.astype(jnp.uint32)[..., None] * speed[None, None]
    angle = (turns.astype(jnp.float32) * (2 * jnp.pi / 2**32))[:, :, None]
    return Rotation(jnp.cos(angle), jnp.sin(angle))


def turned(x_BTHK: Array, turn: Rotation | None) -> Array:
    """Each pair of features turned by its angle."""
    if turn is None:
        return x_BTHK
    a, b = jnp.split(widened(x_BTHK), 2, axis=-1)
    cos, sin = turn.cos.astype(a.dtype), turn.sin.astype(a.dtype)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x_BTHK.dtype)


def _waves(index_S: Array, dtype: jnp.dtype) -> Array:
    """Cosines and sines of each index, [S, R]."""
    still = (jnp.arange(NUM_WAVES) < NUM_WAVES // 2).astype(jnp.float32)[None, None, None]
    return turned(still, rotation(index_S[None], NUM_WAVES))[0, :, 0].astype(dtype)


def with_distances(q_BTHK: Array, far_BTHR: Array, k_BSGK: Array, index_S: Array) -> tuple[Array, Array]:
    """Queries and keys whose products are those of contents plus those of distances: attention as usual."""
    T, K = q_BTHK.shape[1], q_BTHK.shape[3]
    far_BTHR = turned(far_BTHR, rotation(index_S[None, -T:], NUM_WAVES))
    waves_BSGR = jnp.broadcast_to(_waves(index_S, k_BSGK.dtype)[None, :, None], (*k_BSGK.shape[:3], NUM_WAVES))
    # Attention divides by the root of the width that it is given.
    q = jnp.concatenate([q_BTHK, far_BTHR], axis=-1) * ((K + NUM_WAVES) / K) ** 0.5
    return q, jnp.concatenate([k_BSGK, waves_BSGR], axis=-1)


def distance_scores(far_BNHR: Array, distance_C: Array, K: int) -> Array:
    """What is added to the scores of keys so far back, float32 [B, N, H, C]."""
    waves_CR, f32 = _waves(-distance_C, far_BNHR.dtype), at_least_float32(far_BNHR.dtype)
    return jnp.einsum("cr,bnhr->bnhc", waves_CR, far_BNHR, preferred_element_type=f32) * K**-0.5

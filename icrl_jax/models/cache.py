# ruff: noqa: N803, N806
"""The ring cache that a transformer acts with: what it holds, which slots are visible, how it is read and written.

Axes: B rows, D width, L layers, G heads of keys and values, C cache length, S inputs, K head width.
"""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from icrl_jax.models.average import Totals
from icrl_jax.models.positions import Place


class Memory(NamedTuple):
    """The last C inputs of each row, as keys and values, in a ring."""

    index: Array  # int32 []: inputs so far; input i lives in slot i % C. One for all rows, whatever their resets
    length: Array  # int32 [B]: inputs since the last reset; older ones are invisible
    place: Place | None  # with positions="episodes"
    k: tuple[Array, ...]  # L arrays [B, G, C, K]: heads first, so that a head's keys lie together when it recalls
    v: tuple[Array, ...]  # L arrays [B, G, C, K]
    total: tuple[Totals, ...]  # L, [B, D + 1], of what experts have read that go by its mean


class Branches(NamedTuple):
    """n imagined futures of each row of a `Memory`, which they share and never write."""

    past: Memory
    index: Array  # int32 []: inputs so far on the branches
    length: Array  # int32 [B * n]
    place: Place | None  # [B * n]
    k: tuple[Array, ...]  # L arrays [B * n, G, depth, K]
    v: tuple[Array, ...]  # L arrays [B * n, G, depth, K]
    total: tuple[Totals, ...]  # L, [B * n, D + 1]


Cache = TypeVar("Cache", Memory, Branches)


class Slots(NamedTuple):
    """Where the next input goes, and which of those in the caches it sees: of a memory, or of its past and branches."""

    index: Array  # int32 []: inputs before it
    slot: Array  # int32 []: it is written to
    ages: tuple[Array, ...]  # int32 [C] of each cache: how many inputs ago a slot was written
    visible: tuple[Array, ...]  # bool [B, C] of each cache, or [B, N, C] where candidates differ in it


def next_slots(carry: Memory | Branches) -> Slots:
    """For one more input of every row."""
    ring = carry if isinstance(carry, Memory) else carry.past
    C = ring.k[0].shape[2]
    age_C = (ring.index - 1 - jnp.arange(C, dtype=jnp.int32)) % C + 1
    if isinstance(carry, Memory):
        index, slot, ages = ring.index, ring.index % C, (age_C,)
    else:
        age_of_branch = carry.index - jnp.arange(carry.k[0].shape[2], dtype=jnp.int32)
        index, slot, ages = ring.index + carry.index, carry.index, (age_C + carry.index, age_of_branch)
    # Slots of age 0 (about to be written) and C (about to be overwritten) are no past inputs that count.
    oldest_B1 = jnp.minimum(carry.length, C - 1)[:, None]
    return Slots(index, slot, ages, tuple((age[None] >= 1) & (age[None] <= oldest_B1) for age in ages))


@jax.custom_vjp
def write(cache_BHCK: Array, x_BH1K: Array, slot: Array) -> Array:
    """One input into one slot of every row, in place."""
    return _write_rows(cache_BHCK, x_BH1K, slot)


def _write_backward(slot, d_BHCK):
    dx_BH1K = lax.dynamic_slice_in_dim(d_BHCK, slot, 1, axis=2)
    return _write_rows(d_BHCK, jnp.zeros_like(dx_BH1K), slot), dx_BH1K, None


write.defvjp(lambda cache, x, slot: (_write_rows(cache, x, slot), slot), _write_backward)


@jax.custom_batching.custom_vmap
def _write_rows(cache: Array, x: Array, slot: Array) -> Array:
    """JAX would vmap this to a scatter even when all tasks share the slot; the axes in front of H only lead it."""
    return lax.dynamic_update_slice_in_dim(cache, x, slot, axis=-2)


@_write_rows.def_vmap
def _write_tasks(num_tasks, batched, cache, x, slot):
    if not batched[0]:
        cache = jnp.broadcast_to(cache[None], (num_tasks, *cache.shape))
    if not batched[1]:
        x = jnp.broadcast_to(x[None], (num_tasks, *x.shape))
    if batched[2]:
        return jax.vmap(lambda c, x, s: lax.dynamic_update_slice_in_dim(c, x, s, axis=-2))(cache, x, slot), True
    return _write_rows(cache, x, slot), True


def in_order(cache_BHCK: Array, index: Array) -> Array:
    """The slots of a ring, oldest input first, after `index` inputs, [B, C, H, K]."""
    return heads_first(jnp.roll(cache_BHCK, -(index % cache_BHCK.shape[2]), axis=2))


def newest(x_BSHK: Array, index: Array, C: int) -> Array:
    """The last C of the inputs so far, each in its slot of a ring; `index` counts them."""
    x_BHSK = heads_first(x_BSHK[:, -C:])
    missing = C - x_BHSK.shape[2]
    return jnp.roll(jnp.pad(x_BHSK, ((0, 0), (0, 0), (missing, 0), (0, 0))), index % C, axis=2)


def heads_first(x: Array) -> Array:
    """[B, T, H, K] to [B, H, T, K], and back."""
    return jnp.swapaxes(x, 1, 2)

"""Exact distances in a house, as uint8 tables made by relaxation until nothing changes; beyond 254 steps is far."""

from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np

FAR = 255  # also inside walls

AHEAD = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)], np.int32)
"""(row, column) of one step ahead, by heading: north, east, south, west; +1 turns right."""


def cell_distances(goals: jax.Array, walls: jax.Array) -> jax.Array:
    """Cells to walk to the nearest goal, uint8 [K, H, W], for goals bool [K, H, W] and walls bool [H, W] around all."""

    def relax(distances, ahead):
        (distance,) = distances
        nearest = reduce(jnp.minimum, [ahead(distance, heading) for heading in range(4)])
        return (jnp.minimum(distance, _one_more(nearest)),)

    return _settled(relax, 1, goals, walls)[:, 0]


def pose_distances(goals: jax.Array, walls: jax.Array) -> jax.Array:
    """Steps forward and quarter turns to the nearest goal, uint8 [K, 4, H, W] by heading; any heading will do there."""

    def relax(distances, ahead):
        walked = [jnp.minimum(d, _one_more(ahead(d, heading))) for heading, d in enumerate(distances)]
        turned = [jnp.minimum(walked[heading - 1], walked[heading - 3]) for heading in range(4)]
        return tuple(jnp.minimum(d, _one_more(t)) for d, t in zip(walked, turned, strict=True))

    return _settled(relax, 4, goals, walls)


def _settled(relax, num_tables, goals, walls):
    """Relaxes flat tables [H * W * K], where a step ahead is one contiguous shift; they start at 0 on the goals."""
    num_kinds, height, width = goals.shape
    start = jnp.where(goals, jnp.uint8(0), jnp.uint8(FAR)).transpose(1, 2, 0).ravel()
    in_walls = jnp.repeat(jnp.where(walls, jnp.uint8(FAR), jnp.uint8(0)).ravel(), num_kinds)

    def ahead(table, heading):
        return jnp.roll(table, -num_kinds * int(AHEAD[heading] @ [width, 1]))  # wraps only onto the outer walls

    def body(carry):
        tables, _ = carry
        closer = tuple(jnp.maximum(table, in_walls) for table in relax(tables, ahead))
        return closer, jnp.any(jnp.stack(closer) != jnp.stack(tables))

    tables, _ = jax.lax.while_loop(lambda carry: carry[1], body, ((start,) * num_tables, jnp.ones((), bool)))
    return jnp.stack(tables).reshape(num_tables, height, width, num_kinds).transpose(3, 0, 1, 2)


def _one_more(distance):
    return jnp.minimum(distance, FAR - 1) + 1

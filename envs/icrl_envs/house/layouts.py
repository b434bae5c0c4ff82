"""Houses of rooms and doors, with objects in them: uint8 maps [H, W], drawn by jittable functions of a key."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

FLOOR, WALL, DOOR, OBJECT = range(4)  # an object of kind k is OBJECT + k

_SMALLEST_ROOM = 3


def pick(number: Any, uniform: jax.Array) -> jax.Array:
    """Which of `number` (< 2^23) things a draw from [0, 1) takes, int32: far cheaper than `jax.random.randint`."""
    return (uniform * jnp.asarray(number, jnp.float32)).astype(jnp.int32)


def most_rooms(height: int, width: int) -> int:
    """As many rooms as every order of cutting such a house leaves: what is no longer cut is at most 5 cells wide."""
    return -(-(height - 1) // 6) * -(-(width - 1) // 6)


def draw_rooms(key: jax.Array, height: int, width: int, min_rooms: int, max_rooms: int) -> jax.Array:
    """Cuts a rectangle into rooms by walls with one door each; height and width are odd.

    A wall is drawn uniformly from all that leave rooms of at least 3 x 3. Walls stand on even rows and columns and
    doors on odd ones, so no later wall ends in front of a door: every house is connected.
    """
    key_number, key_cuts = jax.random.split(key)
    num_rooms = min_rooms + pick(max_rooms + 1 - min_rooms, jax.random.uniform(key_number))
    draws = jax.random.uniform(key_cuts, (max_rooms, 2))
    grid = jnp.asarray(np.indices((height, width), np.int32))
    outside = (grid[0] % (height - 1) == 0) | (grid[1] % (width - 1) == 0)
    cells = jnp.where(outside, WALL, FLOOR)
    low = jnp.ones((max_rooms, 2), jnp.int32)  # first row and column of each room
    high = jnp.zeros((max_rooms, 2), jnp.int32).at[0].set(jnp.array([height - 2, width - 2]))  # and its last ones

    def cut(i, carry):
        low, high, cells = carry
        walls = jnp.maximum((high - low) // 2 + 1 - _SMALLEST_ROOM, 0).ravel()  # that each room has space for, by axis
        until = jnp.cumsum(walls)
        number = pick(until[-1], draws[i, 0])
        chosen = jnp.sum(until <= number)
        nth = number - (until - walls)[chosen]
        room, axis = chosen // 2, chosen % 2
        first, last = low[room], high[room]
        across = 1 - axis
        wall = first[axis] + _SMALLEST_ROOM + 2 * nth
        door = first[across] + 2 * pick((last[across] - first[across]) // 2 + 1, draws[i, 1])
        on_wall = (grid[axis] == wall) & (first[across] <= grid[across]) & (grid[across] <= last[across])
        cells = jnp.where(on_wall, jnp.where(grid[across] == door, DOOR, WALL), cells)
        low = low.at[i + 1].set(first.at[axis].set(wall + 1))
        high = high.at[i + 1].set(last).at[room, axis].set(wall - 1)
        return low, high, cells

    return jax.lax.fori_loop(0, num_rooms - 1, cut, (low, high, cells))[2].astype(jnp.uint8)


def draw_half(key: jax.Array, draw: Any, second: bool, tries: int = 64) -> jax.Array:
    """Draws maps `draw(key)` until one falls into the wanted half of all maps, so that two splits share no floor plan.

    The half is a bit of a hash of the map. Of houses so small that all fall into one half, the last try is taken.
    """

    def again(carry):
        number, cells = carry
        return (number < tries) & (_second_half(cells) != second)

    def another(carry):
        number, _ = carry
        return number + 1, draw(jax.random.fold_in(key, number))

    return jax.lax.while_loop(again, another, another((jnp.zeros((), jnp.uint32), None)))[1]


def _second_half(cells: jax.Array) -> jax.Array:
    weights = np.random.RandomState(0).randint(0, 2**32, cells.shape, np.uint32)
    return jnp.sum(cells.astype(jnp.uint32) * weights, dtype=jnp.uint32) >> 31 == 1


def place_objects(key: jax.Array, cells: jax.Array, num_kinds: int, min_objects: int, max_objects: int) -> jax.Array:
    """Clears the floor and puts objects of random kinds on it, at most one in a cell and none in a door."""
    key_number, key_cell, key_kind = jax.random.split(key, 3)
    cells = jnp.where(cells >= OBJECT, FLOOR, cells.astype(jnp.int32))
    scores = jnp.where(cells == FLOOR, jax.random.uniform(key_cell, cells.shape), -1.0)
    _, where = jax.lax.top_k(scores.ravel(), max_objects)
    number = min_objects + pick(max_objects + 1 - min_objects, jax.random.uniform(key_number))
    where = jnp.where(jnp.arange(max_objects) < number, where, cells.size)
    kinds = pick(num_kinds, jax.random.uniform(key_kind, (max_objects,)))
    return cells.ravel().at[where].set(OBJECT + kinds, mode="drop").reshape(cells.shape).astype(jnp.uint8)

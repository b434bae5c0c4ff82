"""Pictures of states, drawn with array operations, so that `render` jits and vmaps over a trajectory.

Axes: images are uint8 [height, width, 3]. Points are (x, y) from the lower left corner, in units of the width.
"""

import jax
import jax.numpy as jnp
import numpy as np

WHITE, LIGHT, GREY, DARK, BLACK = (255, 255, 255), (232, 232, 236), (150, 150, 158), (70, 70, 78), (20, 20, 24)
BLUE, ORANGE, GREEN, RED = (46, 105, 178), (230, 140, 40), (60, 150, 90), (200, 60, 60)
PURPLE, YELLOW, CYAN, PINK = (130, 90, 170), (235, 200, 60), (70, 175, 190), (225, 130, 170)
PALETTE = np.array([BLUE, ORANGE, GREEN, RED, PURPLE, YELLOW, CYAN, PINK], np.uint8)
"""Colours to tell a few things apart, uint8 [8, 3]."""


def blank(height: int, width: int, colour=WHITE) -> jax.Array:
    """One colour all over."""
    return jnp.broadcast_to(jnp.asarray(colour, jnp.uint8), (height, width, 3))


def cells(colours: jax.Array, pixels: int = 16) -> jax.Array:
    """A grid, a square of `pixels` for each of the uint8 [rows, columns, 3] colours, and thin lines between them."""
    image = jnp.repeat(jnp.repeat(colours.astype(jnp.uint8), pixels, axis=0), pixels, axis=1)
    inside_row = np.arange(image.shape[0]) % pixels != 0
    inside_column = np.arange(image.shape[1]) % pixels != 0
    inside = (inside_row[:, None] & inside_column[None, :])[..., None]
    return jnp.where(inside, image, jnp.asarray(LIGHT, jnp.uint8)[None, None])


def bars(heights: jax.Array, height: int = 96, pixels: int = 16, colours=PALETTE) -> jax.Array:
    """A bar chart: bar i is `heights[i]`, clipped to [0, 1], of the picture high."""
    n = heights.shape[0]
    level = 1 - (jnp.arange(height, dtype=jnp.float32)[:, None] + 0.5) / height
    filled = jnp.repeat(level <= jnp.clip(heights, 0, 1)[None], pixels, axis=1)
    filled &= (np.arange(n * pixels) % pixels != 0)[None]
    colour = jnp.repeat(jnp.asarray(colours, jnp.uint8)[np.arange(n) % len(colours)], pixels, axis=0)
    return jnp.where(filled[..., None], colour[None], jnp.asarray(WHITE, jnp.uint8)[None, None])


def disc(image: jax.Array, centre: jax.Array, radius: float, colour) -> jax.Array:
    """A filled disc; `radius` as a share of the picture's width."""
    x, y = _points(image)
    return _paint(image, jnp.hypot(x - centre[0], y - centre[1]) <= radius, colour)


def line(image: jax.Array, start: jax.Array, end: jax.Array, width: float, colour) -> jax.Array:
    """A straight line with round ends; `width` as a share of the picture's width."""
    x, y = _points(image)
    along = end - start
    t = ((x - start[0]) * along[0] + (y - start[1]) * along[1]) / jnp.maximum(jnp.sum(along**2), 1e-12)
    t = jnp.clip(t, 0, 1)
    return _paint(image, jnp.hypot(x - start[0] - t * along[0], y - start[1] - t * along[1]) <= width / 2, colour)


def _points(image):
    """The centre of every pixel; y shares the scale of x, so discs are round in any picture."""
    height, width, _ = image.shape
    x = (np.arange(width, dtype=np.float32)[None, :] + 0.5) / width
    y = (height - np.arange(height, dtype=np.float32)[:, None] - 0.5) / width
    return x, y


def _paint(image, where, colour):
    return jnp.where(where[..., None], jnp.asarray(colour, jnp.uint8)[None, None], image)

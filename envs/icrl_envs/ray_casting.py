"""What somebody in a room with boxes sees: one ray for each pixel, in array operations, so that it jits and vmaps.

Axes: P pixels of a side, N boxes. The floor is at height 0; x to the right, y up, heights towards the ceiling.
"""

import jax
import jax.numpy as jnp
import numpy as np

EYE, CEILING = 1.0, 2.5  # heights
FLOOR, ROOF, WALL_X, WALL_Y = (70, 62, 54), (205, 210, 222), (150, 150, 158), (120, 120, 128)
"""Colours; one of walls that end the room along x, and another of those along y."""
SIDE_SHADE = 0.75  # of a box, whose top is as bright as its colour says
_TINY = 1e-6


def picture(
    position: jax.Array,
    angle: jax.Array,
    boxes: jax.Array,
    colours: np.ndarray,
    half_box: float,
    box_height: float,
    half_room: float,
    pixels: int,
) -> jax.Array:
    """The view, 90 degrees wide and high, uint8 [P, P, 3].

    Args:
      position: of the eye, float32 [2], inside the room, which is square and has its centre at 0.
      angle: of what is straight ahead, counterclockwise from x, float32 [].
      boxes: centres of cubes that stand along the axes and apart, float32 [N, 2]; one with the eye in it is not seen.
      colours: of the boxes, [N, 3], 0 to 255.
      half_box, box_height: half a side, and the height, which is below `EYE`.
      half_room: half a side of the room.
    """
    screen = (2 * np.arange(pixels, dtype=np.float32) + 1) / pixels - 1  # centres of pixels, at distance 1 ahead
    rise = -screen[:, None]  # of each row, [P, 1], from top to bottom
    falls = np.maximum(-rise, _TINY)  # above the horizon there are no boxes
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    rays = cos + screen * sin, sin - screen * cos  # along x and y, of each column [P]
    rays = [jnp.where(jnp.abs(ray) < _TINY, _TINY, ray) for ray in rays]

    def crossed(centre: jax.Array, half_side: float) -> tuple[jax.Array, jax.Array]:
        """The way to the planes of both axes that a ray enters a square by, and to those it leaves by, [2, P]."""
        ways = [
            ((middle - here - half_side) / ray, (middle - here + half_side) / ray)
            for middle, here, ray in zip(centre, position, rays, strict=True)
        ]
        first, last = zip(*((jnp.minimum(*way), jnp.maximum(*way)) for way in ways), strict=True)
        return jnp.stack(first), jnp.stack(last)

    _, (out_x, out_y) = crossed(jnp.zeros(2), half_room)
    height = EYE + rise * jnp.minimum(out_x, out_y)[None]  # [P, P], where the wall is met
    wall = jnp.where(out_x < out_y, 2, 3)[None]
    shown = jnp.where(height < 0, 0, jnp.where(height > CEILING, 1, wall))  # a row of the palette
    depth = jnp.full((pixels, pixels), jnp.inf)
    below_top, below_floor = (EYE - box_height) / falls, EYE / falls  # from where on a ray is as low as that, [P, 1]
    for n, box in enumerate(boxes):
        first, last = crossed(box, half_box)
        side, leaves = jnp.max(first, axis=0)[None], jnp.min(last, axis=0)[None]  # [1, P]
        hit = jnp.maximum(side, below_top)
        seen = (side > 0) & (hit < jnp.minimum(leaves, below_floor)) & (hit < depth)
        shown = jnp.where(seen, 4 + 2 * n + (side < below_top).astype(jnp.int32), shown)
        depth = jnp.where(seen, hit, depth)
    pairs = np.stack([SIDE_SHADE * np.asarray(colours), colours], axis=1).reshape(-1, 3)  # side and top
    palette = np.concatenate([[FLOOR, ROOF, WALL_X, WALL_Y], pairs]).astype(np.uint8)
    return jnp.asarray(palette)[shown]

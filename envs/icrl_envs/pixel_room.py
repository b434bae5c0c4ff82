"""A room that is seen in pictures: four coloured boxes, one of which pays."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import EnvParams, EnvState

from icrl_envs import drawing
from icrl_envs.ray_casting import picture
from icrl_envs.task_family import NEVER, Split, TaskFamily, is_int, require, split_key

LEFT, RIGHT, FORWARD, STAY = range(4)
COLOURS = (drawing.BLUE, drawing.RED, drawing.GREEN, drawing.YELLOW)

# Lengths of the paper's room: of its side, a box and a step; the agent is round and keeps off the walls.
HALF_ROOM, HALF_BOX, BOX_HEIGHT, STRIDE, AGENT = 3.0, 0.4, 0.8, 0.7, 0.4
BOX = HALF_BOX * 2**0.5
"""Radius of a box."""
CORNERS = np.array([(-1, 1), (1, 1), (1, -1), (-1, -1)], np.float32) * (HALF_ROOM - BOX)
"""Where boxes stand, float32 [4, 2]; clockwise from the upper left."""
NEAR = BOX + AGENT + 1.5 * STRIDE
"""Nearer than this to its centre a box pays who faces it."""
FACING = np.radians(30) + 1e-4  # not decided by rounding
REACH = HALF_ROOM - AGENT
"""How far from the centre of the room one gets along each axis."""

ARRANGEMENTS = np.array(list(itertools.permutations(range(4))), np.int32)
"""Corner of each colour, int32 [24, 4]; the first is the paper's."""
NUM_TEST = 5  # arrangements


@struct.dataclass
class PixelRoomParams(EnvParams):
    """One room: which colour pays and where the boxes stand."""

    target: jax.Array = struct.field(default_factory=lambda: jnp.zeros((), jnp.int32))  # int32 []
    corners: jax.Array = struct.field(default_factory=lambda: jnp.arange(4, dtype=jnp.int32))  # int32 [4], by colour
    max_steps_in_episode: Any = 50


@struct.dataclass
class PixelRoomState(EnvState):
    """Where the agent stands and looks."""

    position: jax.Array  # float32 [2]; x to the right, y up, 0 in the middle of the room
    heading: jax.Array  # int32 []: turns to the left, from x


class PixelRoom(TaskFamily):
    """A room with a coloured box in each corner; 1 is paid on every step that ends near one of them, facing it.

    It stands in for the Miniworld of Lee et al. 2023 (DPT): the same room, boxes, steps, reward and labels, drawn by
    rays of our own. What is seen is {"picture": uint8 [pixels, pixels, 3], "heading": float32 [2], its cosine and
    sine}, and never the position. Actions: 0 a turn to the left, 1 to the right, 2 a step forward, 3 nothing. Episodes
    start in the middle, looking along x. "Near" is nearer than 2.0 to the centre of the box, "facing" within 30 degrees
    of it. Boxes are no obstacles, and one slides along a wall; in the paper's code the box that pays is one, and who
    runs into a wall stands still, its best actions for ever.

    The task is the `target`, a colour, and the `corners` of all four. In the paper these are always the same, so that
    there are four tasks and the test ones are those of training; here 19 of the 24 arrangements are for training, the
    paper's among them, and 5 for the test.

    `optimal_action` is the paper's: turn the shorter way while the target is more than 30 degrees off, then go forward,
    then stay. From the start there is no quicker way to the first reward; from elsewhere it takes at times a few steps
    longer.

    Preset "dpt" has the paper's sizes, "small" is for CPUs.

    Args:
      pixels: side of the picture, 4 ..= 64.
      num_headings: turns in a full circle, a multiple of 4, at most 360.
      num_steps: limit of an episode.
      split_seed: which arrangements are for the test.
    """

    presets = {
        "dpt": {"pixels": 25, "num_headings": 24, "num_steps": 50},
        "small": {"pixels": 12, "num_headings": 12, "num_steps": 25},
    }
    terminates = False

    def __init__(self, pixels: int = 25, num_headings: int = 24, num_steps: int = 50, split_seed: int = 0):
        require(is_int(pixels, 4, 64), "pixels", pixels, "an integer in 4 ..= 64")
        fits = is_int(num_headings, 4, 360) and num_headings % 4 == 0
        require(fits, "num_headings", num_headings, "a multiple of 4 in 4 ..= 360")
        require(is_int(num_steps, 1), "num_steps", num_steps, "an integer of at least 1")
        require(is_int(split_seed, 0), "split_seed", split_seed, f"an integer in 0 ..= {NEVER}")
        self.pixels, self.num_headings, self.num_steps = pixels, num_headings, num_steps
        order = np.append(0, 1 + np.random.RandomState(split_seed).permutation(len(ARRANGEMENTS) - 1))
        self._arrangements = {"train": order[:-NUM_TEST], "test": order[-NUM_TEST:], "all": order}

    @property
    def default_params(self) -> PixelRoomParams:
        """The blue box of the paper's room."""
        return PixelRoomParams(max_steps_in_episode=self.num_steps)

    def sample_task(self, key: jax.Array, split: Split = "train") -> PixelRoomParams:
        """Draws an arrangement of a split and the colour that pays, each as likely."""
        key = split_key(key, split)
        index = jax.random.randint(key, (), 0, 4 * len(self._arrangements[split]))
        return jax.tree.map(lambda x: x[index], self.tasks(split))

    def tasks(self, split: Split = "train") -> PixelRoomParams:
        """All tasks of a split stacked, the four of each arrangement side by side."""
        split_key(jax.random.key(0), split)  # refuses an unknown one
        corners = ARRANGEMENTS[self._arrangements[split]].repeat(4, axis=0)
        target = np.tile(np.arange(4, dtype=np.int32), len(corners) // 4)
        limit = jnp.full(len(target), self.num_steps)
        return PixelRoomParams(target=jnp.asarray(target), corners=jnp.asarray(corners), max_steps_in_episode=limit)

    def start_state(self) -> PixelRoomState:
        """In the middle, looking along x."""
        return _state(jnp.zeros((), jnp.int32), jnp.zeros(2), jnp.zeros((), jnp.int32))

    def reset_env(self, key, params):
        """Starts in the middle."""
        state = self.start_state()
        return self.observe(state, params), state

    def reset_anywhere(self, key: jax.Array, params: PixelRoomParams) -> tuple[dict, PixelRoomState]:
        """Any place and heading, each as likely; the observation and the state."""
        key_position, key_heading = jax.random.split(key)
        position = jax.random.uniform(key_position, (2,), minval=-REACH, maxval=REACH)
        heading = jax.random.randint(key_heading, (), 0, self.num_headings)
        state = _state(jnp.zeros((), jnp.int32), position, heading)
        return self.observe(state, params), state

    def step_env(self, key, state, action, params):
        """Turns or moves, then pays."""
        state, reward = self.next_state(state, action, params)
        return self.observe(state, params), state, reward, jnp.zeros((), bool), {}

    def next_state(
        self, state: PixelRoomState, action: Any, params: PixelRoomParams
    ) -> tuple[PixelRoomState, jax.Array]:
        """The state after one step, and its reward; no step is random."""
        action = jnp.clip(action, LEFT, STAY)
        turn = (action == LEFT).astype(jnp.int32) - (action == RIGHT).astype(jnp.int32)
        ahead = jnp.clip(state.position + STRIDE * self.direction(state.heading), -REACH, REACH)
        position = jnp.where(action == FORWARD, ahead, state.position)
        state = _state(state.time + 1, position, (state.heading + turn) % self.num_headings)
        distance, off = self.to_target(state, params)
        return state, ((distance < NEAR) & (jnp.abs(off) <= FACING)).astype(jnp.float32)

    def direction(self, heading: jax.Array) -> jax.Array:
        """Cosine and sine, float32 [2]."""
        angles = 2 * np.pi * np.arange(self.num_headings) / self.num_headings
        return jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], axis=1), jnp.float32)[heading]

    def to_target(self, state: PixelRoomState, params: PixelRoomParams) -> tuple[jax.Array, jax.Array]:
        """Distance to the centre of the box that pays, and how far to the left of straight ahead it is, in radians."""
        gap = jnp.asarray(CORNERS)[params.corners[params.target]] - state.position
        x, y = self.direction(state.heading)
        return jnp.hypot(*gap), jnp.arctan2(x * gap[1] - y * gap[0], x * gap[0] + y * gap[1])

    def expected_reward(self, state: PixelRoomState, action: Any, params: PixelRoomParams) -> jax.Array:
        """The reward, which is sure, float32 []."""
        return self.next_state(state, action, params)[1]

    def optimal_action(self, state: PixelRoomState, params: PixelRoomParams) -> jax.Array:
        """Face the target, go to it, stay, int32 []."""
        distance, off = self.to_target(state, params)
        turn = jnp.where(off > 0, LEFT, RIGHT)
        return jnp.where(jnp.abs(off) > FACING, turn, jnp.where(distance < NEAR, STAY, FORWARD)).astype(jnp.int32)

    def observe(self, state: PixelRoomState, params: PixelRoomParams) -> dict[str, jax.Array]:
        """The picture and the heading."""
        angle = 2 * np.pi / self.num_headings * state.heading.astype(jnp.float32)
        boxes, colours = jnp.asarray(CORNERS)[params.corners], np.array(COLOURS)
        seen = picture(state.position, angle, boxes, colours, HALF_BOX, BOX_HEIGHT, HALF_ROOM, self.pixels)
        return {"picture": seen, "heading": self.direction(state.heading)}

    def placed(self, state: PixelRoomState, obs: dict) -> PixelRoomState:
        """The state as it is: an observation does not show where one stands."""
        return state

    def looks_like(self, state: PixelRoomState, obs: dict, params: PixelRoomParams) -> jax.Array:
        """Whether a state shows this picture, bool []."""
        return jnp.all(self.observe(state, params)["picture"] == obs["picture"])

    @property
    def num_actions(self) -> int:
        """Left, right, forward, nothing."""
        return 4

    def action_space(self, params=None) -> spaces.Discrete:
        """Left, right, forward, nothing."""
        return spaces.Discrete(4)

    def observation_space(self, params=None) -> spaces.Dict:
        """The picture and the heading."""
        shape = (self.pixels, self.pixels, 3)
        return spaces.Dict(
            {"picture": spaces.Box(0, 255, shape, jnp.uint8), "heading": spaces.Box(-1.0, 1.0, (2,), jnp.float32)}
        )

    def render(self, state: PixelRoomState, params: PixelRoomParams) -> jax.Array:
        """The room from above, the box that pays ringed, beside what the agent sees, uint8 [128, 256, 3]."""
        scale = 1 / (2 * HALF_ROOM)
        place = lambda point: 0.5 + scale * point
        image = drawing.blank(128, 128, drawing.LIGHT)
        paying = place(jnp.asarray(CORNERS)[params.corners[params.target]])
        image = drawing.disc(image, paying, 1.35 * BOX * scale, drawing.BLACK)
        for colour, corner in zip(COLOURS, params.corners, strict=True):
            image = drawing.disc(image, place(jnp.asarray(CORNERS)[corner]), BOX * scale, colour)
        centre, tip = place(state.position), place(state.position + 2 * AGENT * self.direction(state.heading))
        image = drawing.disc(drawing.line(image, centre, tip, 0.02, drawing.BLACK), centre, 0.05, drawing.ORANGE)
        seen = self.observe(state, params)["picture"]
        index = np.arange(128) * self.pixels // 128
        return jnp.concatenate([image, seen[index][:, index]], axis=1)


def _state(time, position, heading) -> PixelRoomState:
    return PixelRoomState(time=time, position=position, heading=heading)

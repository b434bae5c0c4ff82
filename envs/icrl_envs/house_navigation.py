"""Object navigation in an unknown house: a trial is many episodes in the same one."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import EnvParams, EnvState

from icrl_envs import drawing
from icrl_envs.house.geodesic import AHEAD, FAR, cell_distances, pose_distances
from icrl_envs.house.layouts import DOOR, FLOOR, OBJECT, WALL, draw_half, draw_rooms, most_rooms, pick, place_objects
from icrl_envs.house.view import offsets, sight_lines, window
from icrl_envs.task_family import NEVER, Split, TaskFamily, is_int, require, split_key

FORWARD, LEFT, RIGHT, STOP = range(4)
SLACK, SUCCESS = -0.001, 2.0  # rewards of the paper, beside the distance won

_HIDDEN = -1
_LIT = (250, 243, 215)
_OTHERS = (drawing.BLUE, drawing.GREEN, drawing.PURPLE, drawing.CYAN, drawing.PINK, drawing.GREY)


def _array(shape, dtype):
    return struct.field(default_factory=lambda: jnp.zeros(shape, dtype))


@struct.dataclass
class HouseParams(EnvParams):
    """One house [H, W] with objects of some of K kinds in it."""

    cells: jax.Array = _array((1, 1), jnp.uint8)  # uint8 [H, W]: floor, wall, door, or 3 + kind of an object
    distances: jax.Array = _array((1, 1, 1), jnp.uint8)  # uint8 [K, H, W]: cells to the nearest object of a kind
    steps: jax.Array = _array((1, 4, 1, 1), jnp.uint8)  # uint8 [K, 4, H, W]: moves to it, by heading
    free_cells: jax.Array = _array(1, jnp.int16)  # int16 [H * W]: where one can stand, first; then 0
    num_free: jax.Array = _array((), jnp.int32)  # int32 []
    kinds: jax.Array = _array(1, jnp.int32)  # int32 [K]: the kinds in the house, first; then 0
    num_present: jax.Array = _array((), jnp.int32)  # int32 []
    max_steps_in_episode: int = NEVER


@struct.dataclass
class HouseState(EnvState):
    """A pose, where it was at the start, and what is looked for."""

    position: jax.Array  # int32 [2]: row, column
    heading: jax.Array  # int32 []: north, east, south, west
    start_position: jax.Array  # int32 [2]
    start_heading: jax.Array  # int32 []
    target: jax.Array  # int32 []: a kind
    shortest: jax.Array  # int32 []: steps the oracle takes from the start, the stop included


class HouseNavigation(TaskFamily):
    """Find an object of a given kind (a grid version of Elawady et al. 2024, ReLIC: ExtObjNav).

    The task is a house: rooms cut by walls with one door each, and objects on the floor, which one walks over. An
    episode draws a start pose (any free cell and heading) and a target among the kinds present, both uniformly.

    - Actions: forward one cell (a wall stops it), turn left, turn right, stop; others are clipped into these.
    - Observation, float32 [view^2 (3 + K) + K + 4]: an egocentric window of `view` x `view` cells ahead without what
      walls hide, row by row from the farthest, each cell one-hot over floor, wall, door and the K kinds (all 0 where
      hidden); the target one-hot; cells moved ahead and to the right of the start pose, over the longer side of the
      house; cosine and sine of the clockwise turn since the start. Absolute poses are never shown, and the previous
      action is left to the agent, as everywhere in this package.
    - Reward: cells won in walking distance to the nearest target object, which may change, - 0.001, + 2 for success.
    - Termination: by stop, right or wrong. Success: a target object is in view within `success_distance` cells (to what
      is in view the straight walk is free, so this is the walking distance).
    - `info`: `success`, and `spl` = success x shortest / max(shortest, taken), counted in steps with turns and stop;
      `shortest` is the oracle's, which walks up to the object. Both are 0 until the episode ends.

    `optimal_action` and `optimal_return` are exact where the time limit leaves enough steps to walk up to a target.
    Objects are a second draw: `refurnish(key, params)` puts others into the same house. For houses unlike those
    trained in, build a second family with other sizes or numbers of rooms.

    "relic" has the sizes proposed for a grid (rooms, 20 kinds, 22 objects on average) and the number of training
    houses that a later paper states for ReLIC; `num_layouts=None` makes them endless. The limit is 200 steps where the
    paper, with finer steps, has 500. "relic_small" is for CPUs.

    Args:
      height, width: sides, outer walls included, odd, 7 ..= 31.
      min_rooms, max_rooms: number of rooms, uniform.
      num_kinds: K, at least 1.
      min_objects, max_objects: number of objects, uniform; kinds are iid uniform, so some repeat and some are absent.
      view: side of the window, odd, at least 3.
      success_distance: in cells, at least 0.
      num_steps: limit of an episode.
      num_layouts: number of houses in the train split, None for endless; the other splits are endless. No floor plan is
        in both train and test, unless houses are so small that there are only a few.
      split_seed: seed of these houses.
    """

    presets = {
        "relic": {"height": 19, "width": 19, "min_rooms": 4, "max_rooms": 9, "num_layouts": 333},
        "relic_large": {"height": 31, "width": 31, "min_rooms": 4, "max_rooms": 9, "num_layouts": 333},
        "relic_small": {
            **{"height": 13, "width": 13, "min_rooms": 2, "max_rooms": 4, "num_kinds": 8, "view": 5},
            **{"min_objects": 6, "max_objects": 10, "num_steps": 100},
        },
    }

    def __init__(
        self,
        height: int = 19,
        width: int = 19,
        min_rooms: int = 4,
        max_rooms: int = 9,
        num_kinds: int = 20,
        min_objects: int = 15,
        max_objects: int = 30,
        view: int = 7,
        success_distance: int = 2,
        num_steps: int = 200,
        num_layouts: int | None = None,
        split_seed: int = 0,
    ):
        for name, side in (("height", height), ("width", width)):
            require(is_int(side, 7, 31) and side % 2 == 1, name, side, "an odd integer in 7 ..= 31")
        most, crowd = most_rooms(height, width), (height // 2) * (width // 2)
        require(is_int(max_rooms, 1, most), "max_rooms", max_rooms, f"an integer in 1 ..= {most} (by height and width)")
        require(is_int(min_rooms, 1, max_rooms), "min_rooms", min_rooms, "an integer in 1 ..= max_rooms")
        require(is_int(num_kinds, 1, 252), "num_kinds", num_kinds, "an integer in 1 ..= 252")
        allowed = f"an integer in 1 ..= {crowd} (by height and width)"
        require(is_int(max_objects, 1, crowd), "max_objects", max_objects, allowed)
        require(is_int(min_objects, 1, max_objects), "min_objects", min_objects, "an integer in 1 ..= max_objects")
        require(is_int(view, 3) and view % 2 == 1, "view", view, "an odd integer of at least 3")
        require(is_int(success_distance, 0), "success_distance", success_distance, "an integer of at least 0")
        require(is_int(num_steps, 1), "num_steps", num_steps, "an integer of at least 1")
        allowed = "None or an integer in 1 ..= 2^23"
        require(num_layouts is None or is_int(num_layouts, 1, 2**23), "num_layouts", num_layouts, allowed)
        require(is_int(split_seed, 0), "split_seed", split_seed, f"an integer in 0 ..= {NEVER}")
        self.height, self.width, self.min_rooms, self.max_rooms = height, width, min_rooms, max_rooms
        self.num_kinds, self.min_objects, self.max_objects = num_kinds, min_objects, max_objects
        self.view, self.num_steps, self.num_layouts, self.split_seed = view, num_steps, num_layouts, split_seed
        self._offsets, self._sight_lines = offsets(view), sight_lines(view)
        self._near = np.abs(window(view)).sum(-1) <= success_distance  # bool [view^2]
        self._default_params = None

    @property
    def default_params(self) -> HouseParams:
        """A house of the train split."""
        if self._default_params is None:
            with jax.ensure_compile_time_eval():  # also asked for inside a trace, where it must not be kept as a tracer
                self._default_params = jax.jit(self.sample_task)(jax.random.key(self.split_seed))
        return self._default_params

    def sample_task(self, key: jax.Array, split: Split = "train") -> HouseParams:
        """Draws the rooms of a house and its objects, each from a key of its own."""
        key = split_key(key, split)
        if split == "train" and self.num_layouts is not None:
            number = pick(self.num_layouts, jax.random.uniform(key))
            key = jax.random.fold_in(jax.random.key(self.split_seed), number)
        key_rooms, key_objects = jax.random.split(key)
        rooms = {"min_rooms": self.min_rooms, "max_rooms": self.max_rooms}
        draw = partial(draw_rooms, height=self.height, width=self.width, **rooms)
        cells = draw(key_rooms) if split == "all" else draw_half(key_rooms, draw, split == "test")
        return self.house(self._furnished(key_objects, cells))

    def refurnish(self, key: jax.Array, params: HouseParams) -> HouseParams:
        """The same house with other objects."""
        return self.house(self._furnished(key, params.cells))

    def _furnished(self, key, cells):
        return place_objects(key, cells, self.num_kinds, self.min_objects, self.max_objects)

    def house(self, cells: jax.Array) -> HouseParams:
        """The task of a map (as `HouseParams.cells`) that is connected, walled all around and has an object in it."""
        walls = cells == WALL
        objects = cells[None] == OBJECT + jnp.arange(self.num_kinds, dtype=jnp.uint8)[:, None, None]
        present = jnp.any(objects, axis=(1, 2))
        return HouseParams(
            cells=cells,
            distances=cell_distances(objects, walls),
            steps=pose_distances(objects, walls),
            free_cells=jnp.nonzero(~walls.ravel(), size=cells.size, fill_value=0)[0].astype(jnp.int16),
            num_free=jnp.sum(~walls, dtype=jnp.int32),
            kinds=jnp.nonzero(present, size=self.num_kinds, fill_value=0)[0].astype(jnp.int32),
            num_present=jnp.sum(present, dtype=jnp.int32),
            max_steps_in_episode=self.num_steps,
        )

    def reset_env(self, key, params):
        """Draws the start pose and the target."""
        draws = jax.random.uniform(key, (3,))
        cell = params.free_cells[pick(params.num_free, draws[0])].astype(jnp.int32)
        heading = pick(4, draws[1])
        target = params.kinds[pick(params.num_present, draws[2])]
        position = jnp.stack([cell // self.width, cell % self.width])
        state = HouseState(
            time=jnp.zeros((), jnp.int32),  # type: ignore[arg-type]
            position=position,
            heading=heading,
            start_position=position,
            start_heading=heading,
            target=target,
            shortest=params.steps[target, heading, position[0], position[1]].astype(jnp.int32) + 1,
        )
        return self._observe(state, params), state

    def step_env(self, key, state, action, params):
        """Moves, or stops."""
        action = jnp.clip(action, 0, STOP)
        reward, success = self._outcome(state, action, params)
        position, heading = self._move(state.position, state.heading, action, params)
        state = state.replace(time=state.time + 1, position=position, heading=heading)
        spl = jnp.where(success, state.shortest / jnp.maximum(state.shortest, state.time), 0.0)
        return self._observe(state, params), state, reward, action == STOP, {"success": success, "spl": spl}

    def _move(self, position, heading, action, params):
        ahead = position + jnp.asarray(AHEAD)[heading]
        walks = (action == FORWARD) & (params.cells[ahead[0], ahead[1]] != WALL)
        turn = jnp.where(action == LEFT, -1, jnp.where(action == RIGHT, 1, 0))
        return jnp.where(walks, ahead, position), (heading + turn) % 4

    def _outcome(self, state, action, params):
        """Reward of the step, and whether it ended the episode well."""
        seen = self._seen(state, params)
        success = (action == STOP) & jnp.any(self._near & (seen == OBJECT + state.target))
        position, _ = self._move(state.position, state.heading, action, params)
        before, after = (
            params.distances[state.target, p[0], p[1]].astype(jnp.float32) for p in (state.position, position)
        )
        return before - after + SLACK + SUCCESS * success.astype(jnp.float32), success

    def _window(self, state):
        """Rows and columns of the window's cells, kept inside the house: what lies beyond is always hidden."""
        cells = state.position[None] + jnp.asarray(self._offsets)[state.heading]
        return jnp.clip(cells[:, 0], 0, self.height - 1), jnp.clip(cells[:, 1], 0, self.width - 1)

    def _seen(self, state, params):
        """What is in view, int32 [view^2]: as `params.cells`, or hidden."""
        cells = params.cells[self._window(state)].astype(jnp.int32)
        walls_between = self._sight_lines @ (cells == WALL).astype(jnp.float32)
        return jnp.where(walls_between == 0, cells, _HIDDEN)

    def _observe(self, state, params):
        seen = jax.nn.one_hot(self._seen(state, params), OBJECT + self.num_kinds)
        target = jax.nn.one_hot(state.target, self.num_kinds)
        axes = jnp.asarray(np.stack([AHEAD, np.roll(AHEAD, -1, axis=0)], axis=1))[state.start_heading]  # ahead, right
        moved = jnp.sum(axes * (state.position - state.start_position)[None], axis=1) / max(self.height, self.width)
        turned = jnp.asarray(AHEAD, jnp.float32)[(state.heading - state.start_heading) % 4] * jnp.array([-1.0, 1.0])
        return jnp.concatenate([seen.ravel(), target, moved, turned])

    def expected_reward(self, state: HouseState, action: Any, params: HouseParams) -> jax.Array:
        """The reward, which is sure, float32 []."""
        return self._outcome(state, jnp.clip(action, 0, STOP), params)[0]

    def optimal_action(self, state: HouseState, params: HouseParams) -> jax.Array:
        """The way to the nearest target object in the fewest steps, and stop on it, int32 []; forward goes first."""

        def after(action):
            position, heading = self._move(state.position, state.heading, action, params)
            return params.steps[state.target, heading, position[0], position[1]]

        found = params.cells[state.position[0], state.position[1]].astype(jnp.int32) == OBJECT + state.target
        way = jnp.argmin(jnp.stack([after(action) for action in (FORWARD, LEFT, RIGHT)])).astype(jnp.int32)
        return jnp.where(found, STOP, way)

    def optimal_return(self, params: HouseParams) -> jax.Array:
        """Mean over starts and targets of the oracle's return, float32 []."""
        starts = params.steps != FAR
        number = jnp.sum(starts, dtype=jnp.int32)  # sums of integers are exact
        cells = jnp.sum(params.distances[:, None], where=starts, dtype=jnp.int32)
        steps = jnp.sum(params.steps, where=starts, dtype=jnp.int32) + number
        return (cells.astype(jnp.float32) + SLACK * steps.astype(jnp.float32)) / number.astype(jnp.float32) + SUCCESS

    def render(self, state: HouseState, params: HouseParams) -> jax.Array:
        """The house from above: target objects red, others by kind, the agent orange, what it sees light."""
        rows, columns = self._window(state)
        seen = jnp.zeros(params.cells.shape, bool).at[rows, columns].max(self._seen(state, params) != _HIDDEN)
        others = np.array(_OTHERS)[np.arange(self.num_kinds) % len(_OTHERS)]
        colours = np.concatenate([[drawing.LIGHT, drawing.DARK, drawing.WHITE], others]).astype(np.uint8)
        colours = jnp.asarray(colours).at[OBJECT + state.target].set(jnp.array(drawing.RED, jnp.uint8))
        lit = seen & ((params.cells == FLOOR) | (params.cells == DOOR))
        picture = jnp.where(lit[..., None], jnp.array(_LIT, jnp.uint8)[None, None], colours[params.cells])
        image = drawing.cells(picture, 12)
        ahead = jnp.asarray(AHEAD[:, ::-1] * np.array([1, -1]), jnp.float32)[state.heading]  # x to the right, y up
        x = jnp.stack([state.position[1], self.height - 1 - state.position[0]]).astype(jnp.float32) + 0.5
        image = drawing.disc(image, x / self.width, 0.35 / self.width, drawing.ORANGE)
        return drawing.line(image, x / self.width, (x + 0.5 * ahead) / self.width, 0.2 / self.width, drawing.BLACK)

    @property
    def num_actions(self) -> int:
        """Forward, left, right, stop."""
        return 4

    def action_space(self, params=None) -> spaces.Discrete:
        """Forward, left, right, stop."""
        return spaces.Discrete(4)

    def observation_space(self, params=None) -> spaces.Box:
        """Window, target and odometry, flat."""
        return spaces.Box(-1.0, 1.0, (self.view**2 * (OBJECT + self.num_kinds) + self.num_kinds + 4,))

"""What the dark rooms share: cells and moves, where episodes start, what is seen, and lists of tasks cut in two."""

import itertools
import random
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces

from icrl_envs import drawing
from icrl_envs.task_family import NEVER, Split, TaskFamily, is_int, is_number, require, split_key

MOVES = ("+x", "-x", "+y", "-y", "stay")
PERMUTATIONS = np.array(list(itertools.permutations(range(len(MOVES)))), np.int32)
"""All orders of the five actions, the first one unchanged, int32 [120, 5]."""

STARTS = ("corner", "centre", "random")
OBSERVATIONS = ("cell", "index", "one_hot")
GENERATORS = ("numpy", "python")

DPT_ORDER = "+x -x +y -y stay"
AD_EPS_ORDER = "stay -x +y +x -y"


class Grid(TaskFamily):
    """A room of `size` x `size` cells (x, y); a move that would leave it is clipped at the wall.

    No argument has a default: papers differ in all of them, and a preset sets them all.

    Args:
      size: cells along one side.
      horizon: steps after which an episode is truncated.
      start: "corner" (0, 0), "centre" (size // 2, size // 2), "random" (a uniform cell each episode), or one of the
        further starts of the family.
      action_order: what actions 0 ... 4 do, e.g. "+x -x +y -y stay".
      optimal_first: the coordinate in which `optimal_action` moves first, "x" or "y".
      observation: "cell" (int32 [2]), "index" (x size + y, int32 []), "one_hot" (of the index, float32 [size^2]), or
        one of the further observations of the family.
      train_fraction, split_seed, split_generator: the tasks in row-major order are shuffled by `split_generator` with
        `split_seed` ("numpy": `RandomState(seed).permutation`; "python": `random.Random(seed).shuffle`), both stable
        by contract; the first round(fraction N) are the train tasks.
    """

    preset_required = True
    starts: Any = STARTS
    observations: Any = OBSERVATIONS
    max_size: Any = 256

    def __init__(
        self,
        *,
        size: int,
        horizon: int,
        start: str,
        action_order: str,
        optimal_first: str,
        observation: str,
        train_fraction: float,
        split_seed: int,
        split_generator: str,
    ):
        require(is_int(size, 2, self.max_size), "size", size, f"an integer in 2 ..= {self.max_size}")
        require(is_int(horizon, 1), "horizon", horizon, "an integer of at least 1")
        require_one_of("start", start, self.starts)
        moves = action_order.split() if isinstance(action_order, str) else ()
        require(sorted(moves) == sorted(MOVES), "action_order", action_order, f"an order of {' '.join(MOVES)!r}")
        require_one_of("optimal_first", optimal_first, ("x", "y"))
        require_one_of("observation", observation, self.observations)
        require(
            is_number(train_fraction) and 0 < train_fraction < 1,
            "train_fraction",
            train_fraction,
            "strictly between 0 and 1",
        )
        require(is_int(split_seed, 0), "split_seed", split_seed, f"an integer in 0 ..= {NEVER}")
        require_one_of("split_generator", split_generator, GENERATORS)
        self.size = size
        self.horizon = horizon
        self.start = start
        self.first_axis = "xy".index(optimal_first)
        self.observation = observation
        self._plus = np.array([moves.index("+x"), moves.index("+y")], np.int32)
        self._minus = np.array([moves.index("-x"), moves.index("-y")], np.int32)
        self._stay = moves.index("stay")
        rows = _shuffled(self.task_rows(), split_seed, split_generator)
        self._rows = _cut(rows[self.kept(rows)], train_fraction)

    def task_rows(self) -> np.ndarray:
        """Every task as a row of integers, in the order that is shuffled, int32 [N, ...]."""
        raise NotImplementedError

    def kept(self, rows: np.ndarray) -> np.ndarray:
        """Which of the shuffled rows are tasks, bool [N]."""
        return np.ones(len(rows), bool)

    def task(self, row: Any) -> Any:
        """`env_params` of one row."""
        raise NotImplementedError

    def optimal_value(self, state: Any, params: Any) -> jax.Array:
        """The most reward that the rest of the episode can bring, float32 []."""
        raise NotImplementedError

    def next_state(self, state: Any, action: Any, params: Any) -> tuple[Any, jax.Array]:
        """The state after one step, and its reward; no step is random."""
        raise NotImplementedError

    def start_state(self, cell: jax.Array) -> Any:
        """The state of an episode that starts in `cell`."""
        raise NotImplementedError

    @property
    def default_params(self) -> Any:
        """The first train task."""
        return self.task(jnp.asarray(self._rows["train"][0]))

    def sample_task(self, key: jax.Array, split: Split = "train") -> Any:
        """Draws one of the tasks of a split, each as likely."""
        key = split_key(key, split)
        rows = jnp.asarray(self._rows[split])
        return self.task(rows[jax.random.randint(key, (), 0, len(rows))])

    def tasks(self, split: Split = "train") -> Any:
        """All tasks of a split stacked, in the order of the shuffle."""
        require_one_of("split", split, self._rows)
        return jax.vmap(self.task)(jnp.asarray(self._rows[split]))

    def expected_reward(self, state: Any, action: Any, params: Any) -> jax.Array:
        """The reward of one action, float32 []; actions outside the action space are clipped into it."""
        return self.next_state(state, action, params)[1]

    def optimal_advantage(self, state: Any, action: Any, params: Any) -> jax.Array:
        """What one action costs against the best one, in reward until the end of the episode, float32 [], <= 0."""
        after, reward = self.next_state(state, action, params)
        return reward + self.optimal_value(after, params) - self.optimal_value(state, params)

    def optimal_return(self, params: Any) -> jax.Array:
        """The best return of an episode, the mean over its start cells, float32 []."""
        cells, share = self.start_law(params)
        values = jax.vmap(lambda cell: self.optimal_value(self.start_state(cell), params))(cells)
        return jnp.sum(values * share)

    def start_law(self, params: Any) -> tuple[jax.Array, jax.Array]:
        """The cells where episodes may start, int32 [N, 2], and their probabilities, float32 [N]."""
        if self.start == "random":
            return jnp.asarray(self.cells), jnp.full(self.size**2, 1 / self.size**2)
        return self.fixed_start(params)[None], jnp.ones(1)

    def fixed_start(self, params: Any) -> jax.Array:
        """The one cell where episodes start, int32 [2]."""
        return jnp.full(2, 0 if self.start == "corner" else self.size // 2, jnp.int32)

    def start_cell(self, key: jax.Array, params: Any) -> jax.Array:
        """Draws the cell where an episode starts, int32 [2]."""
        if self.start == "random":
            return self.cell(uniform_index(key, self.size**2))
        return self.fixed_start(params)

    def cell(self, index: jax.Array) -> jax.Array:
        """The cell of an index, int32 [2]."""
        x = ((index.astype(jnp.float32) + 0.5) / self.size).astype(jnp.int32)  # vectorised, unlike integer division
        return jnp.stack([x, index - x * self.size])

    def reset_env(self, key, params):
        """Starts an episode."""
        state = self.start_state(self.start_cell(key, params))
        return self.observe(key, state, None, params), state

    def observe(self, key, state, action, params) -> jax.Array:
        """What the agent sees of the state."""
        if self.observation == "cell":
            return state.cell
        index = state.cell[0] * self.size + state.cell[1]
        return index if self.observation == "index" else (np.arange(self.size**2) == index).astype(jnp.float32)

    def seen_cell(self, obs: jax.Array) -> jax.Array:
        """The cell that an observation shows, int32 [2]."""
        if self.observation == "cell":
            return obs
        return self.cell(obs if self.observation == "index" else jnp.argmax(obs))

    def placed(self, state: Any, obs: jax.Array) -> Any:
        """The state, in the cell that an observation shows."""
        return state.replace(cell=self.seen_cell(obs))

    def looks_like(self, state: Any, obs: jax.Array, params: Any) -> jax.Array:
        """Whether an observation shows the cell of a state, bool []."""
        return same(state.cell, self.seen_cell(obs))

    def observation_space(self, params=None) -> Any:
        """The cells, as the constructor says."""
        if self.observation == "cell":
            return spaces.Box(0, self.size - 1, (2,), jnp.int32)
        if self.observation == "index":
            return spaces.Discrete(self.size**2)
        return spaces.Box(0.0, 1.0, (self.size**2,))

    @property
    def num_actions(self) -> int:
        """Four moves and staying."""
        return len(MOVES)

    def action_space(self, params=None) -> spaces.Discrete:
        """Four moves and staying, in the order that the constructor says."""
        return spaces.Discrete(len(MOVES))

    @property
    def cells(self) -> np.ndarray:
        """Every cell, row-major, int32 [size^2, 2]."""
        return grid_rows(self.size, 2)

    def moved(self, cell: jax.Array, action: Any) -> jax.Array:
        """The cell that an action leads to, int32 [2]."""
        action = jnp.clip(action, 0, len(MOVES) - 1)
        step = (action == self._plus).astype(jnp.int32) - (action == self._minus).astype(jnp.int32)
        return jnp.clip(cell + step, 0, self.size - 1)

    def towards(self, cell: jax.Array, target: jax.Array) -> jax.Array:
        """The action that leads nearer to the target, one coordinate after the other, or stays on it, int32 []."""
        gap = target - cell
        along = jnp.where(gap > 0, self._plus, self._minus)
        first, second = self.first_axis, 1 - self.first_axis
        return jnp.where(gap[first] != 0, along[first], jnp.where(gap[second] != 0, along[second], self._stay))

    def draw(self, state: Any, things: list[tuple[jax.Array, Any, Any]]) -> jax.Array:
        """The room, x downwards and y to the right: things (cell, colour, whether there), and the agent, a disc."""
        colours = jnp.broadcast_to(jnp.asarray(drawing.DARK, jnp.uint8), (self.size, self.size, 3))
        for cell, colour, there in things:
            here = jnp.all(self.cells.reshape(self.size, self.size, 2) == cell[None, None], axis=-1) & there
            colours = jnp.where(here[..., None], jnp.asarray(colour, jnp.uint8)[None, None], colours)
        x, y = (state.cell.astype(jnp.float32) + 0.5) / self.size
        return drawing.disc(drawing.cells(colours), jnp.stack([y, 1 - x]), 0.3 / self.size, drawing.WHITE)


def uniform_index(key: jax.Array, num: int) -> jax.Array:
    """Draws from 0 ... num - 1, int32 []: shares are equal to within num / 2^23 of themselves.

    As it runs at every auto-reset, it is one draw; `jax.random.randint` makes two from two more keys, and takes longer
    than all the rest of a step.
    """
    return (jax.random.uniform(key) * num).astype(jnp.int32)


def permuted(action: Any, permutation: jax.Array) -> jax.Array:
    """What a chosen action does under a permutation: `permutation[action]`, clipped, int32 []."""
    chosen = np.arange(len(MOVES)) == jnp.clip(action, 0, len(MOVES) - 1)
    return jnp.sum(jnp.where(chosen, permutation, 0))  # a gather would be slower under vmap


def unpermuted(action: Any, permutation: jax.Array) -> jax.Array:
    """The action to choose so that `action` is done, int32 []."""
    return jnp.argmax(permutation == action).astype(jnp.int32)


def distance(cell: jax.Array, target: jax.Array) -> jax.Array:
    """Number of moves from cell to cell, int32 []."""
    return jnp.sum(jnp.abs(cell - target))


def steps_to(cell: jax.Array, target: jax.Array) -> jax.Array:
    """Number of steps until one ends on the target, int32 []: staying where one is takes a step."""
    return jnp.maximum(distance(cell, target), 1)


def same(cell: jax.Array, other: jax.Array) -> jax.Array:
    """Whether two cells are one, bool []."""
    return (cell[0] == other[0]) & (cell[1] == other[1])


def require_one_of(argument: str, value: Any, allowed: Any) -> None:
    """Refuses a constructor argument that is not one of a few values, of their type."""
    fits = any(type(value) is type(one) and value == one for one in allowed)
    require(fits, argument, value, f"one of {', '.join(map(repr, allowed))}")


def grid_rows(size: int, depth: int) -> np.ndarray:
    """Every point of a grid of `depth` dimensions, row-major, int32 [size^depth, depth]."""
    return np.indices((size,) * depth, np.int32).reshape(depth, -1).T


def _shuffled(rows, seed, generator):
    if generator == "numpy":
        order = np.random.RandomState(seed).permutation(len(rows))
    else:
        order = list(range(len(rows)))
        random.Random(seed).shuffle(order)
    return rows[np.asarray(order)]


def _cut(rows, train_fraction):
    num_train = round(train_fraction * len(rows))
    allowed = f"such that train and test both get some of the {len(rows)} tasks"
    require(0 < num_train < len(rows), "train_fraction", train_fraction, allowed)
    return {"train": rows[:num_train], "test": rows[num_train:], "all": rows}

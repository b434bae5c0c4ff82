"""Dark Key-to-Door: first a hidden key, then a hidden door."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import EnvParams, EnvState

from icrl_envs import drawing
from icrl_envs.grid import (
    AD_EPS_ORDER,
    DPT_ORDER,
    OBSERVATIONS,
    PERMUTATIONS,
    STARTS,
    Grid,
    grid_rows,
    permuted,
    require_one_of,
    same,
    steps_to,
    uniform_index,
    unpermuted,
)
from icrl_envs.task_family import Split, split_key


@struct.dataclass
class KeyToDoorParams(EnvParams):
    """One room: where key and door are, what the actions do, and where episodes start if the start is fixed."""

    key_cell: jax.Array = struct.field(default_factory=lambda: jnp.zeros(2, jnp.int32))  # int32 [2]
    door_cell: jax.Array = struct.field(default_factory=lambda: jnp.zeros(2, jnp.int32))  # int32 [2]
    permutation: jax.Array = struct.field(default_factory=lambda: jnp.arange(5, dtype=jnp.int32))  # int32 [5]
    start_cell: jax.Array = struct.field(default_factory=lambda: jnp.zeros(2, jnp.int32))  # int32 [2]
    max_steps_in_episode: Any = 50


@struct.dataclass
class KeyToDoorState(EnvState):
    """Where the agent is and what it has done in this episode."""

    cell: jax.Array  # int32 [2]
    has_key: jax.Array  # bool []
    door_open: jax.Array  # bool []


# AD tells neither which action is which number, nor the split but for "fewer than 2000" train tasks: here 1968.
_AD = {
    "size": 9,
    "horizon": 50,
    "start": "random",
    "action_order": "-x +x -y +y stay",
    "optimal_first": "x",
    "permuted": False,
    "terminate_on_door": False,
    "pairs": "all",
    "observation": "cell",
    "train_fraction": 0.3,
    "split_seed": 0,
    "split_generator": "numpy",
}
_DICP = {
    **_AD,
    "start": "centre",
    "action_order": DPT_ORDER,
    "train_fraction": 0.95,
    "split_seed": 4,
    "split_generator": "python",
}


class DarkKeyToDoor(Grid):
    """Step on the hidden key, then on the hidden door; each pays 1 once in an episode (Laskin et al. 2022, AD).

    Judged after the move, and never both in one step: a door under the key pays one step later, and a key under the
    start once a step ends there. The task is the pair of cells, in lexicographic order (key, door). With `permuted` it
    is also the permutation, with the start "task" also the start cell, both drawn uniformly in every split (`tasks` is
    then None). That the key is held is only seen in the observation "timed".

    With `terminate_on_door` an episode ends on success, so that in a rollout of a given number of steps who is quick
    plays more episodes (a step-limited trial; AMAGO: 500 steps); without it every episode lasts the horizon, and the
    rollout is a given number of episodes.

    Presets: "ad" (random starts, 50 steps), "ad_eps" (40 steps, ends on the door, starts off the key, key and door in
    different rows and columns; train 1000 of 5184 pairs, of the test pairs the paper uses the first 200 of
    `tasks("test")`), "dicp" (50 steps from the centre), "lhf" (the same), "amago" (ends on the door; a start drawn with
    the task; permuted on request. Its trials spend one step without reward on each reset, these none; it has no test
    tasks, a tenth is held out here).

    Args:
      start: also "off_key", a uniform cell other than the key's, and "task", part of the task.
      permuted: whether action a does what action permutation[a] does in the plain room.
      terminate_on_door: whether the door's reward ends the episode.
      pairs: "all", or "apart": key and door share neither x nor y.
      observation: also "timed", float32 [4]: x / size, y / size, whether the key is held, time / time limit.
    """

    presets = {
        "ad": _AD,
        "ad_eps": {
            **_AD,
            "horizon": 40,
            "start": "off_key",
            "action_order": AD_EPS_ORDER,
            "terminate_on_door": True,
            "pairs": "apart",
            "observation": "index",
            "train_fraction": 1000 / 5184,
            "split_seed": 42,
        },
        "amago": {
            **_AD,
            "start": "task",
            "action_order": "-y -x +y +x stay",
            "terminate_on_door": True,
            "observation": "timed",
            "train_fraction": 0.9,
        },
        "dicp": _DICP,
        "lhf": _DICP,
    }
    starts = (*STARTS, "off_key", "task")
    observations = (*OBSERVATIONS, "timed")
    max_size = 30  # size^4 pairs are listed

    def __init__(self, *, permuted: bool, terminate_on_door: bool, pairs: str, **grid: Any):
        require_one_of("permuted", permuted, (False, True))
        require_one_of("terminate_on_door", terminate_on_door, (False, True))
        require_one_of("pairs", pairs, ("all", "apart"))
        self.permuted = permuted
        self.terminate_on_door = terminate_on_door
        self.terminates = terminate_on_door
        self.rare_reset = not terminate_on_door
        self.pairs = pairs
        super().__init__(**grid)

    def task_rows(self):
        """Every (key, door)."""
        return grid_rows(self.size, 4)

    def kept(self, rows):
        """Those whose key and door are far enough apart."""
        return np.all(rows[:, :2] != rows[:, 2:], axis=1) if self.pairs == "apart" else super().kept(rows)

    def task(self, row):
        """The room of one (key, door), its actions not permuted, its start the centre unless it is the corner."""
        return KeyToDoorParams(
            key_cell=row[:2],
            door_cell=row[2:],
            permutation=jnp.arange(5, dtype=jnp.int32),
            start_cell=jnp.full(2, 0 if self.start == "corner" else self.size // 2, jnp.int32),
            max_steps_in_episode=jnp.int32(self.horizon),
        )

    def sample_task(self, key: jax.Array, split: Split = "train") -> KeyToDoorParams:
        """Draws a (key, door) of a split, and what else the task holds."""
        task = super().sample_task(key, split)
        key_permutation, key_start = jax.random.split(jax.random.fold_in(split_key(key, split), 2**31))
        if self.permuted:
            number = jax.random.randint(key_permutation, (), 0, len(PERMUTATIONS))
            task = task.replace(permutation=jnp.asarray(PERMUTATIONS)[number])
        if self.start == "task":
            task = task.replace(start_cell=jax.random.randint(key_start, (2,), 0, self.size))
        return task

    @property
    def tasks(self) -> Any:
        """All tasks of a split stacked, in the order of the shuffle; None if a task is more than key and door."""
        return None if self.permuted or self.start == "task" else super().tasks

    def fixed_start(self, params):
        """Part of the task."""
        return params.start_cell

    def start_cell(self, key, params):
        """Draws the cell where an episode starts, int32 [2]."""
        if self.start != "off_key":
            return super().start_cell(key, params)
        index = uniform_index(key, self.size**2 - 1)
        key_index = params.key_cell[0] * self.size + params.key_cell[1]
        return self.cell(index + (index >= key_index).astype(jnp.int32))

    def start_law(self, params):
        """The cells where episodes may start, int32 [N, 2], and their probabilities, float32 [N]."""
        if self.start != "off_key":
            return super().start_law(params)
        off_key = np.any(self.cells != params.key_cell[None], axis=-1)
        return jnp.asarray(self.cells), off_key.astype(jnp.float32) / (self.size**2 - 1)

    def start_state(self, cell):
        """Neither key nor door, even if the cell is one of theirs."""
        no = jnp.zeros((), bool)
        return KeyToDoorState(time=jnp.zeros((), jnp.int32), cell=cell, has_key=no, door_open=no)  # type: ignore[arg-type]

    def next_state(self, state, action, params):
        """Moves, then takes the key or opens the door."""
        cell = self.moved(state.cell, permuted(action, params.permutation) if self.permuted else action)
        takes = same(cell, params.key_cell) & ~state.has_key
        opens = same(cell, params.door_cell) & state.has_key & ~state.door_open
        after = KeyToDoorState(
            time=state.time + 1, cell=cell, has_key=state.has_key | takes, door_open=state.door_open | opens
        )
        return after, (takes | opens).astype(jnp.float32)

    def step_env(self, key, state, action, params):
        """Takes one step."""
        state, reward = self.next_state(state, action, params)
        terminated = state.door_open if self.terminate_on_door else jnp.zeros((), bool)
        return self.observe(key, state, action, params), state, reward, terminated, {}

    def optimal_action(self, state: KeyToDoorState, params: KeyToDoorParams) -> jax.Array:
        """Straight to the key, then straight to the door, one coordinate after the other, int32 []."""
        action = self.towards(state.cell, jnp.where(state.has_key, params.door_cell, params.key_cell))
        return unpermuted(action, params.permutation) if self.permuted else action

    def optimal_value(self, state: KeyToDoorState, params: KeyToDoorParams) -> jax.Array:
        """How many of key and door can still be reached in time, float32 []."""
        steps_left = params.max_steps_in_episode - state.time
        key = jnp.where(state.has_key, 0, steps_to(state.cell, params.key_cell))
        door = key + steps_to(jnp.where(state.has_key, state.cell, params.key_cell), params.door_cell)
        reach_key = ~state.has_key & (key <= steps_left)
        reach_door = ~state.door_open & (door <= steps_left)
        return reach_key.astype(jnp.float32) + reach_door.astype(jnp.float32)

    def observe(self, key, state, action, params):
        """What the agent sees of the state."""
        if self.observation != "timed":
            return super().observe(key, state, action, params)
        limit = jnp.asarray(params.max_steps_in_episode, jnp.float32)
        time = jnp.minimum(state.time.astype(jnp.float32) / limit, 1.0)
        return jnp.append(
            state.cell.astype(jnp.float32) / self.size, jnp.stack([state.has_key.astype(jnp.float32), time])
        )

    def seen_cell(self, obs):
        """The cell that an observation shows, int32 [2]."""
        if self.observation != "timed":
            return super().seen_cell(obs)
        return jnp.round(obs[:2] * self.size).astype(jnp.int32)

    def observation_space(self, params=None):
        """The cells, as the constructor says."""
        if self.observation != "timed":
            return super().observation_space(params)
        return spaces.Box(0.0, 1.0, (4,))

    def render(self, state: KeyToDoorState, params: KeyToDoorParams) -> jax.Array:
        """The room, its door red and then green, its key yellow until it is taken, uint8 [16 size, 16 size, 3]."""
        door = jnp.where(state.door_open, np.asarray(drawing.GREEN, np.uint8), np.asarray(drawing.RED, np.uint8))
        return self.draw(state, [(params.door_cell, door, True), (params.key_cell, drawing.YELLOW, ~state.has_key)])

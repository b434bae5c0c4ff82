"""Dark rooms: the agent sees its own cell and never the goal."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments.environment import EnvParams, EnvState

from icrl_envs import drawing
from icrl_envs.grid import (
    AD_EPS_ORDER,
    DPT_ORDER,
    PERMUTATIONS,
    Grid,
    permuted,
    require_one_of,
    same,
    steps_to,
    uniform_index,
    unpermuted,
)


@struct.dataclass
class DarkRoomParams(EnvParams):
    """One dark room: which cell pays."""

    goal: jax.Array = struct.field(default_factory=lambda: jnp.zeros(2, jnp.int32))  # int32 [2]
    max_steps_in_episode: Any = 100


@struct.dataclass
class PermutedDarkRoomParams(EnvParams):
    """One permuted dark room: action a does what action permutation[a] does in the plain one."""

    permutation: jax.Array = struct.field(default_factory=lambda: jnp.arange(5, dtype=jnp.int32))  # int32 [5]
    goal: jax.Array = struct.field(default_factory=lambda: jnp.zeros(2, jnp.int32))  # int32 [2]
    max_steps_in_episode: Any = 100


@struct.dataclass
class DarkRoomState(EnvState):
    """Where the agent is, and whether it has been on the goal in this episode."""

    cell: jax.Array  # int32 [2]
    found: jax.Array  # bool []


_DPT = {
    "size": 10,
    "horizon": 100,
    "start": "corner",
    "action_order": DPT_ORDER,
    "optimal_first": "x",
    "reward": "dense",
    "terminate_on_goal": False,
    "observation": "cell",
    "train_fraction": 0.8,
    "split_seed": 0,
    "split_generator": "numpy",
}
_DICP = {**_DPT, "size": 9, "horizon": 20, "start": "centre", "train_fraction": 0.9, "split_generator": "python"}
# AD tells neither which action is which number, nor the split, nor how a cell is written.
_AD = {**_DPT, "size": 9, "horizon": 20, "start": "centre", "action_order": "-x +x -y +y stay"}
_AD_EPS = {**_AD, "action_order": AD_EPS_ORDER, "observation": "index", "split_seed": 42}


class DarkRoom(Grid):
    """Find the hidden goal cell and stay on it (Laskin et al. 2022, AD).

    The reward is 1 for a step that ends on the goal, judged after the move. The task is the goal, any cell. Papers
    differ in all else: see `presets` and `Grid`, whose arguments are the others.

    Presets: "ad", "ad_eps" and "dicp" are 9 x 9 from the centre in 20 steps; "dpt", "icprl", "relic" and "t2mir" are
    10 x 10 from the corner in 100 steps, with one split. "dit" is that with random starts, as its text says, though its
    published optimum of 90 is the corner's. "lhf" is "dicp", and "lhf_large" its 15 x 15 room in 50 steps. What a paper
    leaves open is as in the work that it builds on.

    Args:
      reward: "dense", on every step that ends on the goal, or "sparse", on the first one only.
      terminate_on_goal: whether that step ends the episode.
    """

    presets = {
        "ad": _AD,
        "ad_eps": _AD_EPS,
        "dicp": _DICP,
        "dit": {**_DPT, "start": "random"},
        "dpt": _DPT,
        "icprl": _DPT,
        "lhf": _DICP,
        "lhf_large": {**_DICP, "size": 15, "horizon": 50},
        "relic": _DPT,
        "t2mir": _DPT,
    }

    def __init__(self, *, reward: str, terminate_on_goal: bool, **grid: Any):
        require_one_of("reward", reward, ("dense", "sparse"))
        require_one_of("terminate_on_goal", terminate_on_goal, (False, True))
        self.terminate_on_goal = terminate_on_goal
        self.terminates = terminate_on_goal
        self.rare_reset = not terminate_on_goal
        self.pays_once = reward == "sparse" or terminate_on_goal
        super().__init__(**grid)

    def task_rows(self):
        """Every cell as goal."""
        return self.cells

    def task(self, row) -> Any:
        """The room whose goal is `row`."""
        return DarkRoomParams(goal=row, max_steps_in_episode=jnp.int32(self.horizon))

    def done_action(self, action, params):
        """What a chosen action does."""
        return action

    def chosen_action(self, action, params):
        """The action to choose so that `action` is done."""
        return action

    def start_state(self, cell):
        """Nothing found yet: a goal under the start pays after the first step that ends there."""
        return DarkRoomState(time=jnp.zeros((), jnp.int32), cell=cell, found=jnp.zeros((), bool))  # type: ignore[arg-type]

    def reset_anywhere(self, key, params):
        """Starts an episode in a uniform cell."""
        state = self.start_state(self.cell(uniform_index(key, self.size**2)))
        return self.observe(key, state, None, params), state

    def next_state(self, state, action, params):
        """Moves, then looks whether the cell is the goal."""
        cell = self.moved(state.cell, self.done_action(action, params))
        on_goal = same(cell, params.goal)
        pays = on_goal & ~state.found if self.pays_once else on_goal
        after = DarkRoomState(time=state.time + 1, cell=cell, found=state.found | on_goal)
        return after, pays.astype(jnp.float32)

    def step_env(self, key, state, action, params):
        """Takes one step."""
        state, reward = self.next_state(state, action, params)
        terminated = state.found if self.terminate_on_goal else jnp.zeros((), bool)
        return self.observe(key, state, action, params), state, reward, terminated, {}

    def optimal_action(self, state: DarkRoomState, params: Any) -> jax.Array:
        """Straight to the goal, one coordinate after the other, then stay, int32 []."""
        return self.chosen_action(self.towards(state.cell, params.goal), params)

    def optimal_value(self, state: DarkRoomState, params: Any) -> jax.Array:
        """Steps on the goal that are left after walking straight to it, at most 1 if it pays once, float32 []."""
        steps_left = params.max_steps_in_episode - state.time
        on_goal = jnp.maximum(steps_left + 1 - steps_to(state.cell, params.goal), 0)
        if self.pays_once:
            on_goal = jnp.where(state.found, 0, jnp.minimum(on_goal, 1))
        return on_goal.astype(jnp.float32)

    def render(self, state: DarkRoomState, params: Any) -> jax.Array:
        """The room, its goal green, uint8 [16 size, 16 size, 3]."""
        return self.draw(state, [(params.goal, drawing.GREEN, True)])


class DarkRoomHard(DarkRoom):
    """The 17 x 17 dark room that pays once, on the first arrival (Laskin et al. 2022, AD).

    20 steps from the centre, so every goal can be reached. "ad_eps" ends the episode there; "ad" does not say.
    """

    presets = {
        "ad": {**_AD, "size": 17, "reward": "sparse"},
        "ad_eps": {**_AD_EPS, "size": 17, "reward": "sparse", "terminate_on_goal": True},
    }


class DarkRoomPermuted(DarkRoom):
    """The dark room whose goal is always the far corner, and whose actions are permuted (Lee et al. 2023, DPT).

    The task is the permutation, one of 120 in lexicographic order: action a does what action permutation[a] does in the
    plain room, and the optimal action is the inverse image. DPT holds out 20 of them and does not say which; here its
    shuffle of the goals (NumPy, seed 0) draws them. "lhf" is "dicp".
    """

    presets = {
        "dpt": {**_DPT, "train_fraction": 100 / 120},
        "dicp": {**_DICP, "horizon": 50, "start": "corner", "split_seed": 4},
        "lhf": {**_DICP, "horizon": 50, "start": "corner", "split_seed": 4},
    }

    def task_rows(self):
        """Every permutation of the actions."""
        return PERMUTATIONS

    def task(self, row):
        """The room whose permutation is `row`."""
        goal = np.full(2, self.size - 1, np.int32)
        return PermutedDarkRoomParams(
            permutation=row, goal=jnp.asarray(goal), max_steps_in_episode=jnp.int32(self.horizon)
        )

    def done_action(self, action, params):
        """permutation[action]."""
        return permuted(action, params.permutation)

    def chosen_action(self, action, params):
        """The inverse image of the action."""
        return unpermuted(action, params.permutation)

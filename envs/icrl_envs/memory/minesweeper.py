"""MineSweeper on a board that the player does not see."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import EnvState

from icrl_envs import drawing
from icrl_envs.memory.episodes import MemoryTask, share, stream_key
from icrl_envs.task_family import is_int, require


@struct.dataclass
class MineSweeperState(EnvState):
    """Cells are numbered row by row."""

    mines: jax.Array  # bool [cells]
    viewed: jax.Array  # bool [cells], never a mine


class MineSweeper(MemoryTask):
    """Click every cell that hides no mine, remembering what was clicked (Morad et al. 2023, POPGym).

    Observation: how many mines the 3 x 3 cells around the last click hold, itself included, one-hot; 0 at the start.
    Actions: the cells, row by row (the original's pair of coordinates, flattened). With n cells to view, a new one pays
    1 / n, one seen before -1/2 / (n - 2), a mine -1/2 - 1 / n. Ends (terminated) at a mine and when all is viewed;
    truncated after n + 1 steps: the original checks its limit of n before it counts a step. Viewing every cell once
    returns 1.

    Args:
      rows, columns: of the board, at least 2.
      num_mines: 1 ..= rows * columns - 3.
    """

    presets = {
        "easy": {"rows": 4, "columns": 4, "num_mines": 2},
        "medium": {"rows": 6, "columns": 6, "num_mines": 6},
        "hard": {"rows": 8, "columns": 8, "num_mines": 10},
    }

    def __init__(self, rows: int = 4, columns: int = 4, num_mines: int = 2):
        require(is_int(rows, 2), "rows", rows, "an integer of at least 2")
        require(is_int(columns, 2), "columns", columns, "an integer of at least 2")
        most = rows * columns - 3
        require(is_int(num_mines, 1, most), "num_mines", num_mines, f"an integer in 1 ..= {most}")
        num_safe = rows * columns - num_mines
        super().__init__(num_steps=num_safe + 1)
        self.rows, self.columns, self.num_mines = rows, columns, num_mines
        self.num_counts = min(num_mines, 9) + 1
        self.reward_new = 1 / num_safe
        self.reward_again = -0.5 / (num_safe - 2)
        self.reward_mine = -0.5 - 1 / num_safe

    def reset_env(self, key, params):
        """Hides the mines, all placements equally likely."""
        mines = _random_subset(stream_key(key, params), self.num_actions, self.num_mines)
        state = MineSweeperState(time=jnp.int32(0), mines=mines, viewed=jnp.zeros_like(mines))
        return jax.nn.one_hot(0, self.num_counts), state

    def step_env(self, key, state, action, params):
        """Clicks one cell."""
        mine = jnp.any(state.mines & self._is(action))
        viewed = state.viewed | (self._is(action) & ~state.mines)
        reward = self.expected_reward(state, action, params)
        obs = jax.nn.one_hot(self._count(state.mines, action), self.num_counts)
        terminated = mine | jnp.all(viewed | state.mines)
        return obs, state.replace(time=state.time + 1, viewed=viewed), reward, terminated, {}

    def expected_reward(self, state, action, params):
        """What a click pays, float32 []."""
        mine, again = (jnp.any(cells & self._is(action)) for cells in (state.mines, state.viewed))
        safe = jnp.where(again, jnp.float32(self.reward_again), jnp.float32(self.reward_new))
        return jnp.where(mine, jnp.float32(self.reward_mine), safe)

    def optimal_action(self, state, params):
        """The first cell that is neither viewed nor a mine, int32 []."""
        return jnp.argmax(~(state.viewed | state.mines)).astype(jnp.int32)

    def optimal_return(self, params):
        """Every safe cell viewed once: 1, or the share of them that the task's limit leaves time for."""
        return share(params.max_steps_in_episode, self.num_actions - self.num_mines)

    def _is(self, action):  # bool [cells]
        return np.arange(self.num_actions) == jnp.clip(action, 0, self.num_actions - 1)

    def _count(self, mines, action):
        row, column = jnp.divmod(jnp.clip(action, 0, self.num_actions - 1), self.columns)
        rows, columns = np.divmod(np.arange(self.num_actions, dtype=np.int32), np.int32(self.columns))
        near = (jnp.abs(rows - row) <= 1) & (jnp.abs(columns - column) <= 1)
        return jnp.sum(mines & near, dtype=jnp.int32)

    @property
    def num_actions(self) -> int:
        """Number of cells."""
        return self.rows * self.columns

    def action_space(self, params=None) -> spaces.Discrete:
        """The cells, row by row; actions outside are clipped."""
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params=None) -> spaces.Box:
        """The count around the last click, one-hot."""
        return spaces.Box(0.0, 1.0, (self.num_counts,))

    def render(self, state, params):
        """Viewed cells white to blue by their count, unseen ones grey, mines red."""
        shade = np.linspace(0, 1, 10)[:, None]
        shades = ((1 - shade) * np.array(drawing.WHITE)[None] + shade * np.array(drawing.BLUE)[None]).astype(np.uint8)
        counts = jax.vmap(lambda cell: self._count(state.mines, cell))(np.arange(self.num_actions, dtype=np.int32))
        unseen = jnp.where(state.mines[:, None], _colour(drawing.RED), _colour(drawing.GREY))
        colours = jnp.where(state.viewed[:, None], jnp.asarray(shades)[counts], unseen)
        return drawing.cells(colours.reshape(self.rows, self.columns, 3))


def _colour(rgb):
    return np.array(rgb, np.uint8)[None]


def _random_subset(key, n, k):
    """k of n things, bool [n]: all subsets equally likely (Floyd's algorithm, which never draws again)."""
    last = np.arange(n - k, n, dtype=np.int32)
    drawn = jax.random.randint(key, (k,), 0, last + 1)
    chosen = drawn[:1]
    for i in range(1, k):
        taken = jnp.any(chosen == drawn[i])
        chosen = jnp.append(chosen, jnp.where(taken, last[i], drawn[i]))
    return jnp.any(chosen[:, None] == np.arange(n)[None], axis=0)

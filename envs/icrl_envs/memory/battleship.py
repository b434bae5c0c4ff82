"""Battleship on a board that the player does not see."""

import functools
import operator
from collections.abc import Sequence

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
class BattleshipState(EnvState):
    """The hidden board, and where it was fired at."""

    ships: jax.Array  # bool [size, size]
    shots: jax.Array  # bool [size, size]


class Battleship(MemoryTask):
    """Sink every ship, remembering where one has fired (Morad et al. 2023, POPGym).

    Observation: whether the last shot hit, float32 [1]; 0 at the start. Actions: the cells, row by row (the original's
    pair of coordinates, flattened). The first shot at a cell of a ship is a hit and pays 1 / (cells of ships), any
    other shot -1 / (cells of water). Ends (terminated) when all is sunk; truncated after as many steps as cells.
    All hits return 1, firing once everywhere 0.

    Args:
      board_size: side of the square board.
      ship_sizes: lengths of the ships, placed in this order, each uniformly where it fits.
    """

    presets = {"easy": {"board_size": 8}, "medium": {"board_size": 10}, "hard": {"board_size": 12}}
    rare_reset = True

    def __init__(self, board_size: int = 8, ship_sizes: Sequence[int] = (2, 3, 3, 4)):
        require(is_int(board_size, 2), "board_size", board_size, "an integer of at least 2")
        fits = isinstance(ship_sizes, Sequence) and _always_fit(ship_sizes, board_size)
        allowed = f"lengths in 1 ..= {board_size} that fit on the board however the earlier ones lie"
        require(fits, "ship_sizes", ship_sizes, allowed)
        super().__init__(num_steps=board_size**2)
        self.board_size, self.ship_sizes = board_size, tuple(ship_sizes)
        self.reward_hit = 1 / sum(ship_sizes)
        self.reward_miss = -1 / (board_size**2 - sum(ship_sizes))

    def reset_env(self, key, params):
        """Places the ships one after the other."""
        ships = jnp.zeros((self.board_size, self.board_size), bool)
        places = jax.random.uniform(stream_key(key, params), (len(self.ship_sizes),))
        for u, length in zip(places, self.ship_sizes, strict=True):
            ships |= _random_ship(u, ~ships, length)
        state = BattleshipState(time=jnp.int32(0), ships=ships, shots=jnp.zeros_like(ships))
        return jnp.zeros(1), state

    def step_env(self, key, state, action, params):
        """Fires at one cell."""
        hit = self._hits(state, action)
        shots = state.shots | self._is(action)
        terminated = jnp.all(shots | ~state.ships)
        reward = self.expected_reward(state, action, params)
        return hit.astype(jnp.float32)[None], state.replace(time=state.time + 1, shots=shots), reward, terminated, {}

    def expected_reward(self, state, action, params):
        """What a shot pays, float32 []."""
        return jnp.where(self._hits(state, action), jnp.float32(self.reward_hit), jnp.float32(self.reward_miss))

    def optimal_action(self, state, params):
        """The first cell of a ship that was not fired at, int32 []."""
        return jnp.argmax(state.ships & ~state.shots).astype(jnp.int32)

    def optimal_return(self, params):
        """Nothing but hits: 1, or the share of them that the task's limit leaves time for."""
        return share(params.max_steps_in_episode, sum(self.ship_sizes))

    def _hits(self, state, action):
        return jnp.any(state.ships & ~state.shots & self._is(action))

    def _is(self, action):  # bool [size, size]
        cells = np.arange(self.num_actions).reshape(self.board_size, self.board_size)
        return cells == jnp.clip(action, 0, self.num_actions - 1)

    @property
    def num_actions(self) -> int:
        """Number of cells."""
        return self.board_size**2

    def action_space(self, params=None) -> spaces.Discrete:
        """The cells, row by row; actions outside are clipped."""
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params=None) -> spaces.Box:
        """Whether the last shot hit."""
        return spaces.Box(0.0, 1.0, (1,))

    def render(self, state, params):
        """Water white, ships dark; blue where a shot missed, red where it hit."""
        table = np.array([drawing.WHITE, drawing.DARK, drawing.BLUE, drawing.RED], np.uint8)
        return drawing.cells(jnp.asarray(table)[state.ships.astype(jnp.int32) + 2 * state.shots.astype(jnp.int32)])


def _always_fit(ship_sizes, board_size):
    """Whether the ships have room wherever the earlier ones lie.

    A row holds `board_size // length` separate places for a ship; each is blocked by one cell at least.
    """
    taken = 0
    for length in ship_sizes:
        if not is_int(length, 1, board_size) or taken >= board_size * (board_size // length):
            return False
        taken += length
    return 0 < taken < board_size**2


def _random_ship(u, free, length):
    """The cells of one ship, bool [size, size]: any straight run of free cells, all equally likely if u ~ U[0, 1)."""
    size = free.shape[0]
    starts = size - length + 1
    lines = jnp.concatenate([free, free.T])  # the rows, then the columns
    fits = functools.reduce(operator.and_, (lines[:, i : i + starts] for i in range(length)))  # bool [2 size, starts]
    upto = jnp.cumsum(jnp.sum(fits, axis=1, dtype=jnp.int32))
    rank = (u * upto[-1].astype(jnp.float32)).astype(jnp.int32)  # of the place, counted line by line
    earlier = upto <= rank
    line = jnp.sum(earlier, dtype=jnp.int32)
    rank -= jnp.max(jnp.where(earlier, upto, 0))
    fits = jnp.any(fits & (np.arange(2 * size) == line)[:, None], axis=0)
    start = jnp.sum(jnp.cumsum(fits, dtype=jnp.int32) <= rank, dtype=jnp.int32)
    cells = np.arange(size)
    across = (cells == line % size)[:, None] & ((cells >= start) & (cells < start + length))[None]
    return jnp.where(line < size, across, across.T)

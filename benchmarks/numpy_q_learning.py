"""Tabular Q-learning in NumPy: one learner in one room, as a process of its own would run it, and many in arrays.

Both keep what a learning history is made of. The algorithm is that of `icrl_jax.agents.q_learning` with a rate of 1 and
no random actions, as in the experiments.
"""

from typing import NamedTuple

import numpy as np

from benchmarks.numpy_loop import DarkRoom

NUM_ACTIONS, DISCOUNT, INITIAL = 5, 0.9, 5.0


class Streams(NamedTuple):
    """What S learners did; the cell of a step is the one that it left."""

    cells: np.ndarray  # int [S, T, 2]
    actions: np.ndarray  # int [S, T]
    rewards: np.ndarray  # float [S, T]
    values: np.ndarray  # float [S, size^2, A]: in the end


def one_by_one(goals: np.ndarray, size: int, horizon: int, num_steps: int, rng: np.random.Generator) -> Streams:
    """A learner for each of the goals [S, 2], one after the other, from the centre of its room."""
    histories = [_history(DarkRoom(goal, size, horizon, size // 2), num_steps, rng) for goal in goals]
    return Streams(*map(np.stack, zip(*histories, strict=True)))


def _history(room: DarkRoom, num_steps: int, rng: np.random.Generator) -> Streams:
    values = np.full((room.size**2, NUM_ACTIONS), INITIAL)
    cells, actions, rewards = [], [], []
    cell = room.reset()
    for _ in range(num_steps):
        state = cell[0] * room.size + cell[1]
        row = values[state]
        best = np.flatnonzero(row == row.max())
        action = best[rng.integers(len(best))]
        next_cell, reward, ended = room.step(action)
        row[action] = reward + DISCOUNT * values[next_cell[0] * room.size + next_cell[1]].max()
        cells.append(cell)
        actions.append(action)
        rewards.append(reward)
        cell = room.reset() if ended else next_cell
    return Streams(np.array(cells), np.array(actions), np.array(rewards), values)


def all_at_once(goals: np.ndarray, size: int, horizon: int, num_steps: int, rng: np.random.Generator) -> Streams:
    """The same learners, each step one of arrays [S, ...]: the most that NumPy can do."""
    every, last = np.arange(len(goals)), size - 1
    values = np.full((len(goals), size**2, NUM_ACTIONS), INITIAL)
    cells = np.zeros((num_steps, len(goals), 2), int)
    actions, rewards = np.zeros((num_steps, len(goals)), int), np.zeros((num_steps, len(goals)))
    next_cell = centre = np.full_like(goals, size // 2)
    for t in range(num_steps):
        cell = centre if t % horizon == 0 else next_cell
        state = cell[:, 0] * size + cell[:, 1]
        row = values[every, state]
        action = np.where(row == row.max(axis=1, keepdims=True), rng.random(row.shape), -1.0).argmax(axis=1)
        next_cell = np.clip(cell + DarkRoom.moves[action], 0, last)
        reward = np.all(next_cell == goals, axis=1).astype(float)
        then = values[every, next_cell[:, 0] * size + next_cell[:, 1]].max(axis=1)
        values[every, state, action] = reward + DISCOUNT * then
        cells[t], actions[t], rewards[t] = cell, action, reward
    return Streams(cells.swapaxes(0, 1), actions.T, rewards.T, values)

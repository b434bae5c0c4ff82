"""What is seen from a pose: a square window that reaches ahead, less what walls hide; NumPy tables.

The window is [view, view], flattened: row 0 is farthest ahead, the last row and middle column are the agent's cell.
"""

import numpy as np

from icrl_envs.house.geodesic import AHEAD


def window(view: int) -> np.ndarray:
    """How far ahead and to the right each cell of the window lies, int32 [view^2, 2]."""
    row, column = np.indices((view, view), np.int32).reshape(2, -1)
    return np.stack([view - 1 - row, column - view // 2], axis=-1)


def offsets(view: int) -> np.ndarray:
    """(row, column) in the house of each cell of the window, from the agent's, int32 [4, view^2, 2] by heading."""
    return np.stack([window(view) @ np.stack([AHEAD[h], AHEAD[(h + 1) % 4]]) for h in range(4)])


def sight_lines(view: int) -> np.ndarray:
    """Which cells j lie between the agent and cell i, float32 [view^2 (i), view^2 (j)]: a wall in any hides i.

    The line takes one cell per step along its longer axis, and where it runs between two cells that nearer the axis.
    """
    cells = window(view)
    index = {tuple(cell): i for i, cell in enumerate(cells.tolist())}
    lines = np.zeros((len(cells), len(cells)), np.float32)
    for i, cell in enumerate(cells):
        length = int(abs(cell).max())
        for step in range(1, length):
            between = np.sign(cell) * ((2 * abs(cell) * step + length - 1) // (2 * length))  # rounds halves down
            lines[i, index[tuple(between.tolist())]] = 1
    return lines

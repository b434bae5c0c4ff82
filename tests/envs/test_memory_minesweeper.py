import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from two_episodes import on_host

import icrl_envs
from icrl_envs.memory.minesweeper import MineSweeperState

SMALL = icrl_envs.make("minesweeper", rows=3, columns=4, num_mines=2)  # 10 cells to view
TASK = SMALL.default_params
MINES = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]], bool).ravel()
COUNTS = [2, 2, 1, 0, 2, 2, 1, 0, 1, 1, 1, 0]
NEW, AGAIN, MINE = 0.1, -0.5 / 8, -0.6


def state_of(mines, viewed=()):
    return MineSweeperState(time=jnp.int32(0), mines=mines, viewed=np.isin(np.arange(len(mines)), viewed))


@functools.partial(on_host, static_argnums=0)
def play(env, mines, actions):
    task = env.default_params

    def step(state, action):
        obs, state, reward, terminated, _ = env.step_env(jax.random.key(0), state, action, task)
        return state, (obs, reward, terminated, env.is_truncated(state, task))

    first, _ = env.reset_env(jax.random.key(0), task)
    return first, *jax.lax.scan(step, state_of(mines), jnp.asarray(actions, jnp.int32))[1]


@pytest.mark.parametrize(
    "clicks, rewards, terminated, truncated",
    [
        ([1, 2, 2, 0], [NEW, NEW, AGAIN, MINE], [0, 0, 0, 1], [0, 0, 0, 0]),
        ([5], [MINE], [1], [0]),
        ([1, 2, 3, 4, 6, 7, 8, 9, 10, 11], [NEW] * 10, [0] * 9 + [1], [0] * 10),  # won
        ([1, 2, 3, 4, 6, 7, 8, 9, 9, 10, 11], [NEW] * 8 + [AGAIN, NEW, NEW], [0] * 10 + [1], [0] * 10 + [1]),  # just
        ([1, 2, 3, 4, 6, 7, 8, 9, 9, 9, 11], [NEW] * 8 + [AGAIN] * 2 + [NEW], [0] * 11, [0] * 10 + [1]),
        ([3] * 11, [NEW] + [AGAIN] * 10, [0] * 11, [0] * 10 + [1]),
        ([99, 11, -7], [NEW, AGAIN, MINE], [0, 0, 1], [0, 0, 0]),  # clipped to the last cell and the first
    ],
)
def test_a_scripted_game(clicks, rewards, terminated, truncated):
    first, obs, *rest = play(SMALL, MINES, clicks)
    np.testing.assert_array_equal(first, [1, 0, 0])
    np.testing.assert_array_equal(obs, np.eye(3)[[COUNTS[np.clip(cell, 0, 11)] for cell in clicks]])
    for got, expected in zip(rest, (rewards, terminated, truncated), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "preset, n, clicks, counts",
    [  # the mines are the first cells: 2 of 16, 6 of 36, 10 of 64
        ("easy", 14, [15, 4, 2, 4, 3, 0], [0, 2, 1, 2, 0, 2]),
        ("medium", 30, [35, 6, 7, 6, 12, 0], [0, 2, 3, 2, 0, 2]),
        ("hard", 54, [63, 10, 16, 10, 24, 0], [0, 4, 2, 4, 0, 4]),
    ],
)
def test_a_scripted_game_of_every_preset(preset, n, clicks, counts):
    """Three new cells, the second again, a new one, a mine."""
    env = icrl_envs.make("minesweeper", preset)
    _, obs, reward, terminated, truncated = play(env, np.arange(env.num_actions) < env.num_mines, clicks)
    np.testing.assert_array_equal(obs.argmax(1), counts)
    np.testing.assert_allclose(reward, [1 / n, 1 / n, 1 / n, -0.5 / (n - 2), 1 / n, -0.5 - 1 / n], rtol=1e-6)
    np.testing.assert_array_equal(terminated, [0, 0, 0, 0, 0, 1])
    assert not truncated.any() and env.default_params.max_steps_in_episode == n + 1


@pytest.mark.parametrize("preset, n, counts", [("easy", 14, 3), ("medium", 30, 7), ("hard", 54, 10)])
def test_the_oracle_clears_the_board_of_every_preset(preset, n, counts, getkey):
    env = icrl_envs.make("minesweeper", preset)

    @functools.partial(on_host, compiler_options={"xla_backend_optimization_level": 0})
    @jax.vmap
    def episode(key):
        def step(state, _):
            obs, after, reward, terminated, _ = env.step_env(key, state, env.optimal_action(state, TASK), TASK)
            return after, (obs.argmax(), reward, terminated)

        obs, state = env.reset_env(key, TASK)
        return obs, state.mines, jax.lax.scan(step, state, length=n)[1]

    obs, mines, (counted, reward, terminated) = episode(jax.random.split(getkey(), 7))
    assert env.num_steps == n + 1 and obs.shape == (7, counts) and (mines.sum(1) == env.num_mines).all()
    np.testing.assert_allclose(reward.sum(1), env.optimal_return(env.default_params), rtol=1e-5)
    np.testing.assert_array_equal(terminated, np.tile(np.arange(n) == n - 1, (7, 1)))
    for board, seen in zip(mines.reshape(7, env.rows, env.columns), counted, strict=True):
        padded = np.pad(board, 1).astype(int)
        near = sum(padded[i : i + env.rows, j : j + env.columns] for i in range(3) for j in range(3))
        np.testing.assert_array_equal(seen, near[~board])


def test_all_placements_are_equally_likely(getkey):
    n, env = 30_000, icrl_envs.make("minesweeper", rows=2, columns=3, num_mines=3)
    mines = on_host(jax.vmap(lambda key: env.reset_env(key, TASK)[1].mines))(jax.random.split(getkey(), n))
    drawn = np.bincount(mines @ (1 << np.arange(6)), minlength=64)
    allowed = [sum(1 << cell for cell in cells) for cells in itertools.combinations(range(6), 3)]
    assert drawn.sum() == drawn[allowed].sum() == n
    assert (np.abs(drawn[allowed] - n / 20) < 5 * np.sqrt(n / 20)).all()


@on_host
def click(key, viewed, action):
    state = SMALL.reset_env(key, TASK)[1]
    state = state.replace(viewed=viewed & ~state.mines)
    inside = jnp.clip(action, 0, 11)
    return state, SMALL.step_env(key, state, action, TASK), SMALL.expected_reward(state, inside, TASK)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(0, 2**12 - 1), st.integers(-(2**31), 2**31 - 1))
def test_bounds_hold_and_actions_are_clipped(seed, viewed, action):
    before, (obs, after, reward, _, _), clipped = click(
        jax.random.key(seed), (viewed >> np.arange(12)) % 2 == 1, np.int32(action)
    )
    assert obs.sum() == 1 and reward == clipped and MINE - 1e-6 <= reward <= NEW + 1e-6
    assert not (after.viewed & after.mines).any() and (after.viewed >= before.viewed).all()


def test_the_picture_shows_mines_and_counts():
    cells = on_host(SMALL.render)(state_of(MINES, [3, 6]), TASK)[8::16, 8::16]
    assert cells.shape == (3, 4, 3)
    np.testing.assert_array_equal(cells[0, 0], [200, 60, 60])
    np.testing.assert_array_equal(cells[0, 1], [150, 150, 158])
    np.testing.assert_array_equal(cells[0, 3], [255, 255, 255])
    np.testing.assert_array_equal(cells[1, 2], [231, 238, 246])  # one mine: a ninth of the way to blue


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"rows": 1}, "rows=1: must be an integer of at least 2"),
        ({"columns": 2.0}, "columns=2.0: must be an integer of at least 2"),
        ({"num_mines": 0}, "num_mines=0: must be an integer in 1 ..= 13"),
        ({"num_mines": 14}, "num_mines=14: must be an integer in 1 ..= 13"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError) as refused:
        icrl_envs.make("minesweeper", **arguments)
    assert str(refused.value) == message

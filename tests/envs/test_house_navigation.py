import functools
import itertools
import math
import re
from collections import deque
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import icrl_envs
from icrl_envs.house.layouts import FLOOR, OBJECT, draw_rooms

FORWARD, LEFT, RIGHT, STOP = range(4)
NORTH, EAST, SOUTH, WEST = range(4)
AHEAD = [(-1, 0), (0, 1), (1, 0), (0, -1)]
SMALL = icrl_envs.make("house_navigation", "relic_small", height=11, width=13, num_kinds=4)
TINY = icrl_envs.make("house_navigation", height=7, width=9, min_rooms=1, max_rooms=2, num_kinds=3, max_objects=3,
                      min_objects=1, view=5, num_steps=30)  # fmt: skip
B = 40


def drawn_house(picture):
    """`#` wall, `+` door, `0`, `1`, ... objects."""
    codes = {".": 0, "#": 1, "+": 2, "0": 3, "1": 4, "2": 5}
    return jnp.array([[codes[c] for c in row] for row in picture.split()], jnp.uint8)


PICTURE = """
#########
#0..#...#
#...+...#
#...#.1.#
#...#...#
#..1#..0#
#########
"""


@pytest.fixture(scope="module")
def task():
    return jax.jit(TINY.house)(drawn_house(PICTURE))


@functools.cache
def sampled():
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(SMALL.sample_task))(jax.random.split(jax.random.key(3), B)))


@pytest.fixture
def houses():
    return sampled()


@functools.cache
def jitted(env, name):
    return jax.jit(getattr(env, name))


def at(env, task, row, column, heading, target, time=0):
    """An episode that starts in this pose."""
    _, state = jitted(env, "reset_env")(jax.random.key(0), task)
    position = jnp.array([row, column], jnp.int32)
    return state.replace(
        time=jnp.int32(time),
        position=position,
        heading=jnp.int32(heading),
        start_position=position,
        start_heading=jnp.int32(heading),
        target=jnp.int32(target),
        shortest=task.steps[target, heading, row, column].astype(jnp.int32) + 1,
    )


def parts(env, obs):
    """Window [view, view] of codes (-1: hidden), target, odometry."""
    n = env.view**2 * (3 + env.num_kinds)
    window = np.asarray(obs[:n]).reshape(env.view, env.view, -1)
    assert (window.sum(-1) <= 1).all()
    return np.where(window.any(-1), window.argmax(-1), -1), np.asarray(obs[n:-4]), np.asarray(obs[-4:])


def search(starts, neighbours):
    """Breadth first: distance of everything reached."""
    distance, queue = {s: 0 for s in starts}, deque(starts)
    while queue:
        here = queue.popleft()
        for there in neighbours(here):
            if there not in distance:
                distance[there] = distance[here] + 1
                queue.append(there)
    return distance


def neighbours_of(cells, barrier=(1,)):
    return lambda cell: [
        there for there in ((cell[0] + r, cell[1] + c) for r, c in AHEAD) if cells[there] not in barrier
    ]


def poses_before(cells):
    """The poses from which one step leads to this one."""

    def before(pose):
        row, column, heading = pose
        behind = row - AHEAD[heading][0], column - AHEAD[heading][1]
        turned = [(row, column, (heading + turn) % 4) for turn in (1, 3)]
        return turned + ([(*behind, heading)] if cells[behind] != 1 else [])

    return before


def test_houses_are_connected_rooms_with_a_door_in_each_wall(houses):
    numbers = set()
    for cells in houses.cells:
        assert (cells[[0, -1]] == 1).all() and (cells[:, [0, -1]] == 1).all()
        free = list(zip(*np.nonzero(cells != 1), strict=True))
        assert len(search(free[:1], neighbours_of(cells))) == len(free)
        rooms, left = [], {cell for cell in free if cells[cell] != 2}
        while left:
            room = np.array(list(search([min(left)], neighbours_of(cells, barrier=(1, 2)))))
            left -= set(map(tuple, room.tolist()))
            sides = np.ptp(room, axis=0) + 1
            assert sides.min() >= 3 and sides.prod() == len(room)  # a full rectangle
            rooms.append(room)
        assert (cells == 2).sum() == len(rooms) - 1
        numbers.add(len(rooms))
    assert numbers == {2, 3, 4}


def test_as_many_rooms_as_asked_for_always_fit(getkey):
    cells = jax.jit(jax.vmap(lambda key: draw_rooms(key, 19, 19, 9, 9)))(jax.random.split(getkey(), 200))
    assert ((cells == 2).sum((1, 2)) == 8).all()


def test_objects_lie_on_the_floor_in_the_numbers_asked_for(houses):
    numbers = (houses.cells >= 3).sum((1, 2))
    assert set(numbers) == set(range(6, 11)) and houses.cells.max() == 3 + SMALL.num_kinds - 1
    for i in range(B):
        present = np.unique(houses.cells[i][houses.cells[i] >= 3]) - 3
        np.testing.assert_array_equal(houses.kinds[i][: houses.num_present[i]], present)
        np.testing.assert_array_equal(
            houses.free_cells[i][: houses.num_free[i]], np.flatnonzero(houses.cells[i].ravel() != 1)
        )
    assert not (houses.cells[:, 1::2, 1::2] == 2).any() and not (houses.cells[:, ::2, ::2] == 2).any()


def test_distance_tables_equal_breadth_first_search(houses):
    for i in range(6):
        cells = houses.cells[i]
        for kind in range(SMALL.num_kinds):
            goals = list(zip(*np.nonzero(cells == 3 + kind), strict=True))
            distances, steps = np.full(cells.shape, 255), np.full((4, *cells.shape), 255)
            for cell, distance in search(goals, neighbours_of(cells)).items():
                distances[cell] = distance
            poses = [(*goal, heading) for goal in goals for heading in range(4)]
            for (row, column, heading), distance in search(poses, poses_before(cells)).items():
                steps[heading, row, column] = distance
            np.testing.assert_array_equal(houses.distances[i, kind], distances)
            np.testing.assert_array_equal(houses.steps[i, kind], steps)


# start pose and target; then by step: action -> position, heading, reward, terminated, success
SCRIPTS = {
    "walk up, turn, stop on it": (
        (5, 1, NORTH, 0),
        [
            (FORWARD, (4, 1), NORTH, 0.999, False, False),
            (RIGHT, (4, 1), EAST, -0.001, False, False),
            (LEFT, (4, 1), NORTH, -0.001, False, False),
            (FORWARD, (3, 1), NORTH, 0.999, False, False),
            (FORWARD, (2, 1), NORTH, 0.999, False, False),
            (FORWARD, (1, 1), NORTH, 0.999, False, False),
            (FORWARD, (1, 1), NORTH, -0.001, False, False),  # a wall
            (STOP, (1, 1), NORTH, 1.999, True, True),
        ],
        5 / 8,  # the oracle: 4 forward and stop
    ),
    "stop two cells before it": ((3, 1, NORTH, 0), [(STOP, (3, 1), NORTH, 1.999, True, True)], 1),
    "stop three cells before it": ((4, 1, NORTH, 0), [(STOP, (4, 1), NORTH, -0.001, True, False)], 0),
    "stop with it behind": ((2, 1, SOUTH, 0), [(STOP, (2, 1), SOUTH, -0.001, True, False)], 0),
    "stop before another kind": ((2, 1, NORTH, 1), [(STOP, (2, 1), NORTH, -0.001, True, False)], 0),
    "stop with a wall between": ((5, 5, WEST, 1), [(STOP, (5, 5), WEST, -0.001, True, False)], 0),
    "through the door the nearest object changes": (
        (2, 3, EAST, 1),  # 3 from (5, 3), and 4 from (3, 6) through the door
        [
            (FORWARD, (2, 4), EAST, -0.001, False, False),  # 4 from one, 3 from the other
            (FORWARD, (2, 5), EAST, 0.999, False, False),
            (FORWARD, (2, 6), EAST, 0.999, False, False),
            (7, (2, 6), EAST, 1.999, True, True),  # clipped to stop; what is beside is in view
        ],
        1,  # the oracle: right, 3 forward and stop
    ),
    "away from it": ((2, 1, SOUTH, 0), [(FORWARD, (3, 1), SOUTH, -1.001, False, False)], 0),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripted_episodes(name, task):
    follow(TINY, task, *SCRIPTS[name])


@pytest.mark.parametrize("preset, side", [("relic", 19), ("relic_large", 31)])
def test_scripted_episodes_of_the_presets(preset, side):
    """Four equal rooms with a door in each wall; an object of the first kind and one of the last."""
    env, middle = icrl_envs.make("house_navigation", preset), side // 2
    cells = np.zeros((side, side), np.uint8)
    cells[[0, middle, -1]] = cells[:, [0, middle, -1]] = 1
    for door in ((4, middle), (side - 5, middle), (middle, 4), (middle, side - 5)):
        cells[door] = 2
    cells[1, 1], cells[4, middle + 3] = 3, 3 + 19
    task = jitted(env, "house")(jnp.asarray(cells))
    through_the_door = [
        (FORWARD, (4, middle - 1), EAST, 0.999, False, False),
        (FORWARD, (4, middle), EAST, 0.999, False, False),
        (RIGHT, (4, middle), SOUTH, -0.001, False, False),
        (FORWARD, (4, middle), SOUTH, -0.001, False, False),  # a wall
        (LEFT, (4, middle), EAST, -0.001, False, False),
        (FORWARD, (4, middle + 1), EAST, 0.999, False, False),
        (STOP, (4, middle + 1), EAST, 1.999, True, True),
    ]
    follow(env, task, (4, middle - 2, EAST, 19), through_the_door, 6 / 7)  # the oracle: 5 forward and stop
    turned = [(LEFT, (1, 3), WEST, -0.001, False, False), (STOP, (1, 3), WEST, 1.999, True, True)]
    follow(env, task, (1, 3, NORTH, 0), turned, 4 / 4)  # the oracle: left, 2 forward and stop
    follow(env, task, (4, 1, NORTH, 0), [(STOP, (4, 1), NORTH, -0.001, True, False)], 0)
    state = at(env, task, 4, 1, NORTH, 0)
    assert not env.is_truncated(state.replace(time=jnp.int32(199)), task)
    assert env.is_truncated(state.replace(time=jnp.int32(200)), task) and env.num_kinds == 20


def follow(env, task, start, script, spl):
    """Takes the steps of a script and compares everything they give."""
    state = at(env, task, *start)
    for i, (action, position, heading, reward, terminated, success) in enumerate(script):
        sure = jitted(env, "expected_reward")(state, jnp.int32(action), task)
        args = (jax.random.key(0), state, jnp.int32(action), task)
        _, state, got, ended, info = jitted(env, "step_env")(*args)
        assert tuple(state.position.tolist()) == position and state.heading == heading and state.time == i + 1
        np.testing.assert_allclose([got, sure], reward, atol=1e-6)
        assert ended == terminated and info["success"] == success
        np.testing.assert_allclose(info["spl"], spl if i == len(script) - 1 else 0, atol=1e-6)


def test_truncation_and_termination_are_distinct(task):
    for action, expected in ((LEFT, (False, True)), (STOP, (True, True))):
        state = at(TINY, task, 1, 1, NORTH, 0, time=29)
        *_, terminated, truncated, info = TINY.step(jax.random.key(0), state, jnp.int32(action), task)
        assert (bool(terminated), bool(truncated)) == expected and info["success"] == (action == STOP)


def test_the_window_shows_what_lies_ahead_less_what_walls_hide(task):
    expected = [
        [1, 0, 0, 0, 0],
        [-1, 0, 0, 4, -1],
        [-1, 0, 0, 0, -1],
        [1, 1, 2, 1, 1],
        [1, 0, 0, 0, 0],
    ]
    state = at(TINY, task, 2, 3, EAST, 2)
    window, target, odometry = parts(TINY, jitted(TINY, "step_env")(jax.random.key(0), state, jnp.int32(STOP), task)[0])
    np.testing.assert_array_equal(window, expected)
    np.testing.assert_array_equal(target, [0, 0, 1])
    np.testing.assert_allclose(odometry, [0, 0, 1, 0])


def test_odometry_is_relative_to_the_start(task):
    state = at(TINY, task, 5, 1, EAST, 0)
    seen = []
    for action in (FORWARD, LEFT, FORWARD, FORWARD, LEFT):
        obs, state, *_ = jitted(TINY, "step_env")(jax.random.key(0), state, jnp.int32(action), task)
        seen.append(parts(TINY, obs)[2] * [9, 9, 1, 1])
    expected = [(1, 0, 1, 0), (1, 0, 0, -1), (1, -1, 0, -1), (1, -2, 0, -1), (1, -2, -1, 0)]
    np.testing.assert_allclose(seen, expected, atol=1e-6)


def sight(cells, row, column, heading, view):
    """The window as the definition has it, cell by cell, in fractions."""
    window = np.full((view, view), -1)
    (ahead_row, ahead_column), (right_row, right_column) = AHEAD[heading], AHEAD[(heading + 1) % 4]

    def house(ahead, right):
        there = (row + ahead * ahead_row + right * right_row, column + ahead * ahead_column + right * right_column)
        return there if 0 <= there[0] < cells.shape[0] and 0 <= there[1] < cells.shape[1] else None

    def nearest(x):  # halves go towards 0
        return int(np.sign(x)) * math.ceil(abs(x) - Fraction(1, 2))

    for ahead, right in itertools.product(range(view), range(-(view // 2), view // 2 + 1)):
        n = max(ahead, abs(right))
        line = [house(nearest(Fraction(ahead * i, n)), nearest(Fraction(right * i, n))) for i in range(1, n)]
        if house(ahead, right) and all(cell and cells[cell] != 1 for cell in line):
            window[view - 1 - ahead, right + view // 2] = cells[house(ahead, right)]
    return window


@functools.partial(jax.jit, static_argnums=0)
def all_poses(env, task, target):
    """Every start pose with its observation, and what a stop there brings: leading [4, H, W], walls included."""
    _, state = env.reset_env(jax.random.key(0), task)

    def one(heading, row, column):
        position = jnp.stack([row, column])
        here = state.replace(position=position, heading=heading, target=target, start_position=position)
        obs, _, _, _, info = env.step_env(jax.random.key(0), here, jnp.int32(STOP), task)
        return obs, info["success"], env.optimal_action(here, task)

    poses = jnp.indices((4, *task.cells.shape), jnp.int32)
    return jax.vmap(jax.vmap(jax.vmap(one)))(*poses)


def test_view_and_success_equal_their_definitions_everywhere(houses):
    for i in range(2):
        task = jax.tree.map(lambda x: x[i], houses)  # noqa: B023
        target = task.kinds[0]
        obs, success, _ = map(np.asarray, all_poses(SMALL, task, target))
        for row, column in zip(*np.nonzero(task.cells != 1), strict=True):
            walk = search([(row, column)], neighbours_of(task.cells))
            for heading in range(4):
                window = parts(SMALL, obs[heading, row, column])[0]
                np.testing.assert_array_equal(window, sight(task.cells, row, column, heading, SMALL.view))
                found = False
                for far, right in zip(*np.nonzero((window >= 0) & (window != 1)), strict=True):
                    far_ahead, to_right = SMALL.view - 1 - far, right - SMALL.view // 2
                    cell = np.array([row, column]) + far_ahead * np.array(AHEAD[heading])
                    cell = tuple((cell + to_right * np.array(AHEAD[(heading + 1) % 4])).tolist())
                    assert walk[cell] == far_ahead + abs(to_right)  # the straight walk is free
                    found |= walk[cell] <= 2 and window[far, right] == 3 + target
                assert success[heading, row, column] == found


def test_oracle_equals_value_iteration(houses):
    for env, task in (
        (TINY, jitted(TINY, "house")(drawn_house(PICTURE))),
        (SMALL, jax.tree.map(lambda x: x[7], houses)),
    ):
        task = jax.tree.map(np.asarray, task)
        free, returns = task.cells != 1, []
        for target in task.kinds[: task.num_present]:
            _, success, best = map(np.asarray, all_poses(env, task, target))
            distance = task.distances[target].astype(float)
            ahead = np.stack([np.roll(free, (-r, -c), (0, 1)) for r, c in AHEAD])  # the next cell is free
            stop = 2.0 * success - 0.001
            value = np.zeros((4, *free.shape))
            for _ in range(env.num_steps):  # backwards from the time limit
                to = np.stack([np.roll(value[h] - distance, (-r, -c), (0, 1)) for h, (r, c) in enumerate(AHEAD)])
                forward = np.where(ahead, distance[None] + to, value) - 0.001
                turns = [np.roll(value, turn, axis=0) - 0.001 for turn in (1, -1)]  # from the heading before, after
                value = np.max([forward, *turns, stop], axis=0)
            choices = np.stack([forward, *turns, stop])
            chosen = np.take_along_axis(choices, best[None], axis=0)[0]
            np.testing.assert_allclose(chosen[:, free], value[:, free], atol=1e-9)
            returns.append(value[:, free])
        np.testing.assert_allclose(jitted(env, "optimal_return")(task), np.mean(returns), atol=1e-5)


@functools.partial(jax.jit, static_argnums=0)
def episode(env, task, key, actions=None):
    """One episode's first 100 steps, of the oracle unless told; what came before each step and after it."""
    obs, state = env.reset_env(key, task)

    def body(state, action):
        action = env.optimal_action(state, task) if actions is None else action
        obs, after, reward, terminated, info = env.step_env(key, state, action, task)
        return after, (state, obs, after, reward, terminated, info)

    return obs, jax.lax.scan(body, state, actions, length=100 if actions is None else None)[1]


def test_the_oracle_takes_the_shortest_way(houses):
    keys = jax.random.split(jax.random.key(5), B)
    walk = jax.vmap(functools.partial(episode, SMALL))(houses, keys)
    _, (before, _, _, reward, stopped, info) = jax.tree.map(np.asarray, walk)
    for i in range(B):
        shortest, (row, column) = before.shortest[i, 0], before.position[i, 0]
        end = int(stopped[i].argmax())
        assert end + 1 == shortest and info["success"][i, end] and info["spl"][i, end] == 1
        expected = houses.distances[i, before.target[i, 0], row, column] + 2 - 0.001 * shortest
        np.testing.assert_allclose(reward[i, : end + 1].sum(), expected, atol=1e-4)


def test_starts_and_targets_are_uniform(task):
    _, states = jax.jit(jax.vmap(TINY.reset_env, in_axes=(0, None)))(jax.random.split(jax.random.key(1), 20_000), task)
    cells = np.asarray(states.position)
    assert not np.asarray(task.cells == 1)[cells[:, 0], cells[:, 1]].any()
    for draws, number in ((cells @ [9, 1], 31), (states.heading, 4), (states.target, 2)):
        _, counts = np.unique(draws, return_counts=True)
        assert len(counts) == number and abs(counts / 20_000 * number - 1).max() < 0.25
    np.testing.assert_array_equal(states.position, states.start_position)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, B - 1), st.integers(0, 2**31 - 1), st.lists(st.integers(-5, 9), min_size=12, max_size=12))
def test_any_walk_stays_inside(house, seed, actions):
    task = jax.tree.map(lambda x: x[house], sampled())
    walk = episode(SMALL, task, jax.random.key(seed), jnp.array(actions))
    first, (_, obs, state, reward, terminated, info) = jax.tree.map(np.asarray, walk)
    assert abs(np.concatenate([first[None], obs])).max() <= 1
    row, column = state.position.T
    assert (task.cells[row, column] != 1).all() and set(state.heading.tolist()) <= set(range(4))
    clipped = np.clip(actions, 0, 3)
    np.testing.assert_array_equal(terminated, clipped == STOP)
    assert (abs(reward) <= 2.001).all() and (info["spl"] <= info["success"]).all()
    odometry = np.stack([parts(SMALL, o)[2] for o in obs])
    turns = np.cumsum((clipped == RIGHT).astype(int) - (clipped == LEFT))
    np.testing.assert_allclose(odometry[:, 2] + 1j * odometry[:, 3], 1j**turns, atol=1e-6)


def test_other_objects_in_the_same_house(houses):
    old = jax.tree.map(lambda x: x[0], houses)
    new = jitted(SMALL, "refurnish")(jax.random.key(0), old)
    for kind in (1, 2):
        np.testing.assert_array_equal(new.cells == kind, old.cells == kind)
    assert (new.cells != old.cells).any() and 6 <= (new.cells >= 3).sum() <= 10
    for x, y in zip(jax.tree.leaves(new), jax.tree.leaves(jitted(SMALL, "house")(new.cells)), strict=True):
        np.testing.assert_array_equal(x, y)


def test_train_and_test_share_no_floor_plan():
    """Houses of 13 x 13 have few enough plans that they would meet by chance."""
    env = icrl_envs.make("house_navigation", "relic_small")

    def plans(split):
        cells = jax.jit(jax.vmap(lambda key: env.sample_task(key, split).cells))(
            jax.random.split(jax.random.key(7), 300)
        )
        return {np.where(house >= OBJECT, FLOOR, house).tobytes() for house in np.asarray(cells)}

    train, test, both = map(plans, ("train", "test", "all"))
    assert not train & test
    assert train & both and test & both and len(train) > 50 and len(test) > 50


def test_a_finite_train_split_is_a_fixed_list_and_test_houses_are_new(houses):
    def drawn(split, **kwargs):
        env = icrl_envs.make("house_navigation", "relic_small", height=11, width=13, num_kinds=4, **kwargs)
        cells = jax.jit(jax.vmap(lambda key: env.sample_task(key, split).cells))(jax.random.split(jax.random.key(3), B))
        return {x.tobytes() for x in np.asarray(cells)}

    five, other_five = (drawn("train", num_layouts=5, split_seed=seed) for seed in (0, 1))
    assert len(five) == len(other_five) == 5 and not five & other_five
    endless, held_out = {x.tobytes() for x in houses.cells}, drawn("test", num_layouts=5)
    assert len(endless) == len(held_out) == B and not held_out & (endless | five)


def test_default_params_first_asked_for_inside_jit_are_a_house():
    cells = jax.jit(lambda: TINY.default_params.cells)()
    np.testing.assert_array_equal(cells, TINY.default_params.cells)
    assert (cells >= 3).any() and int(TINY.default_params.max_steps_in_episode) == 30


def test_render_shows_house_agent_and_target(houses):
    task = jax.tree.map(lambda x: x[0], houses)
    _, (_, _, states, *_) = jax.tree.map(np.asarray, episode(SMALL, task, jax.random.key(0)))
    pictures = np.asarray(jax.jit(jax.vmap(SMALL.render, in_axes=(0, None)))(states, task))
    assert pictures.shape == (100, 12 * 11, 12 * 13, 3) and pictures.dtype == np.uint8
    row, column = states.position[0] * 12 + 6
    assert (pictures[0, row - 2 : row + 3, column - 3] == (230, 140, 40)).any()  # the agent, orange
    for row, column in zip(*np.nonzero(task.cells == 3 + states.target[0]), strict=True):
        assert tuple(pictures[0, 12 * row + 1, 12 * column + 1]) == (200, 60, 60)  # a target, red


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"height": 18}, "height=18: must be an odd integer in 7 ..= 31"),
        ({"width": 33}, "width=33: must be an odd integer in 7 ..= 31"),
        ({"width": 5.0}, "width=5.0: must be an odd integer in 7 ..= 31"),
        ({"max_rooms": 10}, "max_rooms=10: must be an integer in 1 ..= 9 (by height and width)"),
        ({"min_rooms": 10}, "min_rooms=10: must be an integer in 1 ..= max_rooms"),
        ({"num_kinds": 0}, "num_kinds=0: must be an integer in 1 ..= 252"),
        ({"max_objects": 82}, "max_objects=82: must be an integer in 1 ..= 81 (by height and width)"),
        ({"min_objects": 31}, "min_objects=31: must be an integer in 1 ..= max_objects"),
        ({"view": 4}, "view=4: must be an odd integer of at least 3"),
        ({"success_distance": -1}, "success_distance=-1: must be an integer of at least 0"),
        ({"num_steps": 0}, "num_steps=0: must be an integer of at least 1"),
        ({"num_layouts": 0}, "num_layouts=0: must be None or an integer in 1 ..= 2^23"),
        ({"split_seed": -1}, "split_seed=-1: must be an integer in 0 ..= 2147483647"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        icrl_envs.make("house_navigation", **arguments)


def test_presets_have_the_sizes_of_the_fact_sheet():
    found = {name: icrl_envs.make("house_navigation", name) for name in ("relic", "relic_large")}
    for name, side in (("relic", 19), ("relic_large", 31)):
        env = found[name]
        assert (env.height, env.width, env.min_rooms, env.max_rooms) == (side, side, 4, 9)
        assert (env.num_kinds, env.min_objects, env.max_objects, env.num_layouts) == (20, 15, 30, 333)
        assert (env.view, env.num_steps) == (7, 200)

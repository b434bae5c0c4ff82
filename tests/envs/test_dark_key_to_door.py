import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import icrl_envs
from icrl_envs import drawing
from icrl_envs.dark_key_to_door import KeyToDoorParams, KeyToDoorState
from icrl_envs.grid import PERMUTATIONS

MOVES = {"R": (1, 0), "L": (-1, 0), "U": (0, 1), "D": (0, -1), ".": (0, 0)}  # x + 1, x - 1, y + 1, y - 1, stay
ORDERS = {"ad": "LRDU.", "ad_eps": ".LURD", "amago": "DLUR.", "dicp": "RLUD.", "lhf": "RLUD."}  # actions 0 ... 4

PRESETS = list(icrl_envs.family("dark_key_to_door").presets)


@functools.cache
def make(preset: str, **kwargs) -> Any:
    return icrl_envs.make("dark_key_to_door", preset, **kwargs)


def place(env, key_cell, door_cell, **fields):
    cells = {"key_cell": jnp.array(key_cell, jnp.int32), "door_cell": jnp.array(door_cell, jnp.int32)}
    return env.default_params.replace(**cells, **fields)


@functools.partial(jax.jit, static_argnums=0)
def play(env, task, cell, actions):
    """Plays a list of actions from a cell, with auto-reset."""
    start, key = env.start_state(cell), jax.random.key(0)

    def step(state, action):
        _, state, reward, terminated, truncated, info = env.step(key, state, action, task)
        return state, (info["final_observation"], reward, terminated, truncated)

    return jax.lax.scan(step, start, actions)[1]


# Worked by hand: key, door, start, actions, the cell after each, where 1 is paid, how the last step ends.
SCRIPTS = [
    # the door pays nothing before the key; the key once, the door once, neither again
    ("dicp", "64", "54", "44", "0 0 1 0 0 1", "54 64 54 64 74 64", "011000", ""),
    ("dicp", "45", "44", "44", "0 1 2 3 4 2", "54 44 45 44 44 45", "001100", ""),
    # key and door in one cell: two separate steps; a key under the start: one staying step
    ("dicp", "44", "44", "44", "4 4 4", "44 44 44", "110", ""),
    ("dicp", "44", "45", "44", "2 3 2 4", "45 44 45 45", "0110", ""),
    ("lhf", "80", "08", "44", "4 " * 50, "44 " * 50, "0" * 50, "truncated"),
    ("ad", "24", "25", "34", "0 3 3 3", "24 25 26 27", "1100", ""),
    ("ad", "24", "24", "34", "0 4 4", "24 24 24", "110", ""),
    # stay, x - 1, y + 1, x + 1, y - 1; the door ends the episode
    ("ad_eps", "34", "55", "44", "1 0 2 3 3", "34 34 35 45 55", "10001", "terminated"),
    ("ad_eps", "34", "55", "44", "0 " * 35 + "1 2 3 0 3", "44 " * 35 + "34 35 45 45 55", "0" * 35 + "10001", "both"),
    ("ad_eps", "34", "55", "44", "0 " * 40, "44 " * 40, "0" * 40, "truncated"),
    ("amago", "43", "33", "44", "0 2 1 0", "43 44 34 33", "1001", "terminated"),
]


def test_every_preset_has_a_script():
    assert {preset for preset, *_ in SCRIPTS} == set(PRESETS)


@pytest.mark.parametrize("preset, key, door, start, actions, path, rewards, end", SCRIPTS)
def test_scripted_episodes(preset, key, door, start, actions, path, rewards, end):
    env = make(preset)
    cell = lambda text: [int(text[0]), int(text[1])]
    actions = jnp.array([int(a) for a in actions.split()], jnp.int32)
    steps = play(env, place(env, cell(key), cell(door)), jnp.array(cell(start), jnp.int32), actions)
    obs, reward, terminated, truncated = map(np.asarray, steps)
    expected = np.array([cell(text) for text in path.split()])
    if env.observation == "index":
        expected = expected[:, 0] * 9 + expected[:, 1]
    if env.observation == "timed":
        has_key, time = np.cumsum([float(r) for r in rewards]) > 0, np.arange(1, len(actions) + 1)
        expected = np.stack([*expected.T / 9, has_key, time / 50], axis=1)
    np.testing.assert_allclose(obs, expected, rtol=1e-6)
    np.testing.assert_array_equal(reward, [float(r) for r in rewards])
    assert not terminated[:-1].any() and not truncated[:-1].any()
    assert (terminated[-1], truncated[-1]) == (end in ("terminated", "both"), end in ("truncated", "both"))


def test_who_is_quick_plays_more_episodes_where_the_door_ends_them():
    """A step-limited trial: with key and door beside the start an episode takes two steps instead of fifty."""
    env = make("amago")
    task = place(env, (3, 4), (4, 4), start_cell=jnp.array([4, 4], jnp.int32))
    _, reward, terminated, truncated = play(env, task, task.start_cell, jnp.tile(jnp.array([1, 3], jnp.int32), 30))
    assert reward.all() and terminated.sum() == 30 and not truncated.any()
    long = make("dicp")
    _, reward, terminated, truncated = play(
        long, place(long, (3, 4), (4, 4)), task.start_cell, jnp.tile(jnp.array([1, 0], jnp.int32), 30)
    )
    assert reward.sum() == 4 and not terminated.any() and np.flatnonzero(np.asarray(truncated)).tolist() == [49]


# Splits.


def rows(tasks):
    return np.concatenate([tasks.key_cell, tasks.door_cell], axis=1).tolist()


@pytest.mark.parametrize(
    "preset, num_train, num_test, first_train, first_test",
    [
        # from runs of the papers' own lines: Python's shuffle with seed 4; NumPy's with seed 42, then the lines apart
        ("dicp", 6233, 328, [[0, 6, 8, 0], [3, 4, 8, 3], [0, 0, 1, 5]], [[4, 6, 0, 4], [4, 7, 7, 8], [5, 6, 7, 4]]),
        ("lhf", 6233, 328, [[0, 6, 8, 0]], [[4, 6, 0, 4]]),
        ("ad_eps", 1000, 4184, [[1, 8, 6, 2], [6, 5, 5, 6], [8, 2, 0, 6]], [[5, 1, 4, 5], [3, 2, 0, 8], [6, 0, 0, 3]]),
        ("ad", 1968, 4593, [], []),
    ],
)
def test_splits_are_the_published_ones(preset, num_train, num_test, first_train, first_test):
    env = make(preset)
    train, test, both = (rows(env.tasks(split)) for split in ("train", "test", "all"))
    assert (len(train), len(test)) == (num_train, num_test)
    assert train[: len(first_train)] == first_train and test[: len(first_test)] == first_test
    assert train + test == both and len({tuple(row) for row in both}) == len(both)
    if preset == "ad_eps":
        assert all(row[0] != row[2] and row[1] != row[3] for row in both)


def test_permutations_and_starts_are_drawn_with_the_task(getkey):
    env = make("amago", size=3, permuted=True)
    assert env.tasks is None
    sample = jax.jit(icrl_envs.sample_tasks, static_argnums=(0, 2, 3))
    train, test = (jax.device_get(sample(env, getkey(), 3000, split)) for split in ("train", "test"))
    assert not {tuple(r) for r in rows(train)} & {tuple(r) for r in rows(test)}
    for drawn in (train, test):
        for values, number in ((drawn.permutation, 120), (drawn.start_cell, 9)):
            found, counts = np.unique(values, axis=0, return_counts=True)
            assert len(found) == number and np.abs(counts - 3000 / number).max() < 5 * np.sqrt(3000 / number)
        np.testing.assert_array_equal(np.sort(drawn.permutation, axis=1), np.tile(np.arange(5), (3000, 1)))
        assert len(np.unique(np.concatenate([drawn.permutation, drawn.start_cell], axis=1), axis=0)) > 800  # of 1080


# Exact optima.


def value_iteration(size, horizon, tasks):
    """Q of the moves R L U D stay by steps left, [horizon + 1, tasks, cells, phase, 5].

    The phases are: no key, key, door open.
    """
    room = list(itertools.product(range(size), repeat=2))
    clip = lambda v: min(max(v, 0), size - 1)
    after = np.array([[room.index((clip(x + i), clip(y + j))) for i, j in MOVES.values()] for x, y in room])
    on_key, on_door = (np.array([[cell == t[i] for cell in room] for t in tasks])[:, after] for i in (0, 1))
    value, qs = np.zeros((len(tasks), size**2, 3)), [np.zeros((len(tasks), size**2, 3, 5))]
    for _ in range(horizon):
        no_key, key, opened = (value[:, after, phase] for phase in range(3))
        q = np.stack([np.where(on_key, 1 + key, no_key), np.where(on_door, 1 + opened, key), opened], axis=2)
        value = q.max(-1)
        qs.append(q)
    return qs


CASES = [
    *((preset, {}) for preset in PRESETS if preset != "lhf"),  # "lhf" is "dicp"
    ("dicp", {"size": 3, "horizon": 5, "start": "corner"}),  # too short for many pairs
    ("ad_eps", {"size": 3, "horizon": 4}),
    ("amago", {"size": 3, "horizon": 6, "permuted": True, "start": "random"}),
]


@pytest.mark.parametrize("preset, options", CASES)
def test_oracles_agree_with_value_iteration(preset, options):
    """In every cell and phase, at a few times, for many tasks: values, advantages and the best action."""
    env = make(preset, **options)
    random = np.random.default_rng(0)
    key_cell, door_cell, start_cell = random.integers(0, env.size, (3, 31, 2), np.int32)
    door_cell[0] = key_cell[0]
    permutation: Any = np.tile(np.arange(5, dtype=np.int32), (31, 1))
    if env.permuted:
        permutation = random.permuted(permutation, axis=1)
    tasks: Any = KeyToDoorParams(
        key_cell=key_cell,
        door_cell=door_cell,
        permutation=permutation,
        start_cell=start_cell if env.start == "task" else np.full_like(start_cell, env.default_params.start_cell[0]),
        max_steps_in_episode=np.full(31, env.horizon, np.int32),
    )
    pairs = [((r[0], r[1]), (r[2], r[3])) for r in rows(tasks)]
    times = np.array([0, 1, env.horizon - env.size, env.horizon - 2, env.horizon - 1], np.int32)
    qs = value_iteration(env.size, env.horizon, pairs)
    q = np.stack([qs[env.horizon - t] for t in times], axis=3)  # [task, cell, phase, time, move]
    q = q[..., np.array([list(MOVES).index(move) for move in ORDERS[preset]])]
    q = np.take_along_axis(q, np.broadcast_to(tasks.permutation[:, None, None, None], q.shape), axis=-1)

    def oracle(task, cell, phase, time):
        state = KeyToDoorState(time=time, cell=cell, has_key=phase >= 1, door_open=phase == 2)
        each_action = lambda f: jax.vmap(lambda action: f(state, action, task))(jnp.arange(5))
        best = env.optimal_value(state, task), env.optimal_action(state, task)
        return *best, each_action(env.optimal_advantage), each_action(env.expected_reward)

    for axes in ((None, None, None, 0), (None, None, 0, None), (None, 0, None, None), (0, None, None, None)):
        oracle = jax.vmap(oracle, in_axes=axes)
    cell = np.array(list(itertools.product(range(env.size), repeat=2)), np.int32)
    value, action, advantage, reward = jax.device_get(jax.jit(oracle)(tasks, cell, np.arange(3, dtype=np.int32), times))
    np.testing.assert_array_equal(value, q.max(-1))
    np.testing.assert_array_equal(advantage, q - q.max(-1, keepdims=True))
    np.testing.assert_array_equal(np.take_along_axis(q, action[..., None], -1)[..., 0], q.max(-1))
    np.testing.assert_array_equal(reward[..., -1, :], q[..., -1, :])  # on the last step the reward is all that is left

    from_start = q[:, :, 0, 0].max(-1)  # [task, cell]
    if env.start in ("random", "off_key"):
        allowed = np.ones_like(from_start)
        if env.start == "off_key":
            allowed = (cell[None] != tasks.key_cell[:, None]).any(-1)
        expected = (from_start * allowed).sum(1) / allowed.sum(1)
    else:
        fixed = {"corner": np.zeros((31, 2)), "centre": np.full((31, 2), env.size // 2), "task": tasks.start_cell}
        start = fixed[env.start].astype(int)
        expected = from_start[np.arange(31), start[:, 0] * env.size + start[:, 1]]
    np.testing.assert_allclose(jax.jit(jax.vmap(env.optimal_return))(tasks), expected, rtol=1e-5)


def test_both_rewards_are_in_reach_in_every_published_room():
    for preset in ("ad", "ad_eps", "dicp"):
        env = make(preset)
        best = jax.jit(jax.vmap(env.optimal_return))(jax.tree.map(lambda x: x[:500], env.tasks("test")))
        np.testing.assert_allclose(best, 2, rtol=1e-5)


@pytest.mark.parametrize("preset, options", [("ad_eps", {}), ("dicp", {"permuted": True})])
def test_the_oracle_earns_the_optimal_return(preset, options, getkey):
    env = make(preset, **options)

    @jax.jit
    @jax.vmap
    def first_episode(task, key):
        _, state = env.reset(key, task)

        def step(carry, _):
            state, running = carry
            _, state, reward, terminated, *_ = env.step(key, state, env.optimal_action(state, task), task)
            return (state, running & ~terminated), reward * running.astype(jnp.float32)

        return jax.lax.scan(step, (state, jnp.array(True)), length=env.horizon)[1].sum()

    key_door = rows(make("ad_eps").tasks("test"))[:100]
    tasks = jax.jit(jax.vmap(env.task))(jnp.array(key_door, jnp.int32))
    if env.permuted:
        tasks = tasks.replace(permutation=jnp.asarray(PERMUTATIONS[20:]))
    returns = first_episode(tasks, jax.random.split(getkey(), 100))
    assert (returns == 2).all()


@pytest.mark.parametrize("preset", ["dicp", "ad", "ad_eps", "amago"])
def test_labels_go_to_the_key_then_to_the_door_first_coordinate_first(preset):
    env = make(preset)
    mirrored = make(preset, optimal_first="y")
    task = place(env, (2, 6), (6, 2))
    for cell, has_key, move, other in [
        ((4, 4), False, "L", "U"),
        ((2, 4), False, "U", "U"),
        ((2, 6), False, ".", "."),
        ((2, 6), True, "R", "D"),
        ((6, 6), True, "D", "D"),
        ((6, 2), True, ".", "."),
    ]:
        state = env.start_state(jnp.array(cell, jnp.int32)).replace(has_key=jnp.array(has_key))
        assert ORDERS[preset][env.optimal_action(state, task)] == move
        assert ORDERS[preset][mirrored.optimal_action(state, task)] == other


# Starts, observations, bounds.


@pytest.mark.parametrize("start, number", [("random", 9), ("off_key", 8)])
def test_starts_are_uniform(start, number, getkey):
    env = make("ad", size=3, start=start)
    task = place(env, (1, 2), (0, 0))
    obs, state = jax.jit(jax.vmap(lambda key: env.reset(key, task)))(jax.random.split(getkey(), 9000))
    cells, counts = np.unique(np.asarray(obs), axis=0, return_counts=True)
    assert len(cells) == number and np.abs(counts - 9000 / number).max() < 5 * np.sqrt(9000 / number)
    assert ([1, 2] in cells.tolist()) == (start == "random") and not state.has_key.any()


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 9), st.integers(-(2**31), 2**31 - 1), st.permutations(range(5)), st.data())
def test_no_action_leaves_the_room(size, action, permutation, data):
    cell = [data.draw(st.integers(0, size - 1)) for _ in "xy"]
    env = icrl_envs.make("dark_key_to_door", "dicp", size=size, permuted=True)
    task = env.default_params.replace(permutation=jnp.array(permutation, jnp.int32))
    after, reward = env.next_state(env.start_state(jnp.array(cell, jnp.int32)), jnp.int32(action), task)
    step = MOVES["RLUD."[permutation[min(max(action, 0), 4)]]]
    np.testing.assert_array_equal(after.cell, np.clip(np.add(cell, step), 0, size - 1))
    assert reward == float((after.cell == task.key_cell).all()) == float(after.has_key) and not after.door_open


def test_observations_name_the_same_cell():
    for observation, expected in (
        ("cell", [4, 4]),
        ("index", 40),
        ("one_hot", np.eye(81)[40]),
        ("timed", [4 / 9, 4 / 9, 0, 0]),
    ):
        env = make("dicp", observation=observation)
        obs, _ = env.reset(jax.random.key(0), env.default_params)
        space = env.observation_space()
        np.testing.assert_allclose(obs, expected, rtol=1e-6)
        assert obs.dtype == space.dtype and obs.shape == space.shape and space.contains(obs)


def test_timed_observations_show_their_cell():
    """Divided and multiplied by 23 again, a coordinate of 7 is a little less."""
    env = make("amago", size=23)
    shares = np.pad(np.asarray(env.cells, np.float32) / np.float32(23), ((0, 0), (0, 2)))
    np.testing.assert_array_equal(jax.jit(jax.vmap(env.seen_cell))(shares), env.cells)


def test_the_time_seen_is_a_share_of_the_tasks_own_limit():
    env = make("dicp", observation="timed")
    task = env.default_params.replace(max_steps_in_episode=4)
    state = env.start_state(jnp.array([4, 4], jnp.int32))
    for time, share in ((0, 0.25), (2, 0.75), (3, 1.0), (9, 1.0)):
        obs = env.step_env(jax.random.key(0), state.replace(time=jnp.int32(time)), jnp.int32(4), task)[0]
        assert obs[3] == share


def test_render_shows_key_door_and_agent():
    env = make("dicp")
    task = place(env, (1, 2), (7, 3))
    state = env.start_state(jnp.array([4, 4], jnp.int32))
    flags = jnp.array([[False, False], [True, False], [True, True]])
    states = jax.vmap(lambda f: state.replace(has_key=f[0], door_open=f[1]))(flags)
    images = np.asarray(jax.jit(jax.vmap(lambda state: env.render(state, task)))(states))
    assert images.shape == (3, 144, 144, 3) and images.dtype == np.uint8
    colours = [[tuple(image[16 * x + 8, 16 * y + 8].tolist()) for x, y in ((1, 2), (7, 3), (4, 4))] for image in images]
    assert colours == [
        [drawing.YELLOW, drawing.RED, drawing.WHITE],
        [drawing.DARK, drawing.RED, drawing.WHITE],
        [drawing.DARK, drawing.GREEN, drawing.WHITE],
    ]


@pytest.mark.parametrize(
    "argument, value, allowed",
    [
        ("size", 31, "an integer in 2 ..= 30"),
        ("horizon", True, "an integer of at least 1"),
        ("start", "anywhere", "one of 'corner', 'centre', 'random', 'off_key', 'task'"),
        ("permuted", None, "one of False, True"),
        ("terminate_on_door", 0, "one of False, True"),
        ("pairs", "distinct", "one of 'all', 'apart'"),
        ("observation", "key", "one of 'cell', 'index', 'one_hot', 'timed'"),
        ("train_fraction", "0.5", "strictly between 0 and 1"),
        ("train_fraction", 0.0, "strictly between 0 and 1"),
    ],
)
def test_wrong_arguments_are_refused(argument, value, allowed):
    with pytest.raises(ValueError) as error:
        icrl_envs.make("dark_key_to_door", "ad", **{argument: value})
    assert str(error.value) == f"{argument}={value!r}: must be {allowed}"


def test_a_preset_must_be_chosen():
    with pytest.raises(
        ValueError, match="preset=None: papers differ on dark_key_to_door; choose one of 'ad', 'ad_eps'"
    ):
        icrl_envs.make("dark_key_to_door")

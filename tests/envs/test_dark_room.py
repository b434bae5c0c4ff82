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
from icrl_envs.dark_room import DarkRoomState

MOVES = {"R": (1, 0), "L": (-1, 0), "U": (0, 1), "D": (0, -1), ".": (0, 0)}  # x + 1, x - 1, y + 1, y - 1, stay
ORDERS = {"ad": "LRDU.", "ad_eps": ".LURD"}  # what actions 0 ... 4 do; all others:
DPT_ORDER = "RLUD."

ROOMS = [
    (name, preset)
    for name in ("dark_room", "dark_room_hard", "dark_room_permuted")
    for preset in icrl_envs.family(name).presets
]


@functools.cache
def make(name: str, preset: str, **kwargs) -> Any:
    return icrl_envs.make(name, preset, **kwargs)


def distinct(rooms):
    """One preset of those that are the same, as "relic" and "dpt" are: one compilation does."""
    options = lambda name, preset: tuple(icrl_envs.family(name).presets[preset].items())
    return list({(name, options(name, preset)): (name, preset) for name, preset in rooms}.values())


@functools.partial(jax.jit, static_argnums=0)
def play(env, task, actions, key):
    """Plays a list of actions with auto-reset; the first observation, then each step's."""
    obs, state = env.reset(key, task)

    def step(state, action):
        _, state, reward, terminated, truncated, info = env.step(key, state, action, task)
        return state, (info["final_observation"], reward, terminated, truncated)

    return obs, *jax.lax.scan(step, state, actions)[1]


def cells(text):
    return [tuple(map(int, cell)) for cell in text.split()]


# Worked by hand: goal or permutation, start, actions, the cell after each, where 1 is paid, how the last step ends.
# (A cell of the 17 x 17 room is written in base 17.)
SCRIPTS = [
    # five steps to (2, 3) along x, then y; stays, leaves it, comes back; the walls at 0 clip
    ("dark_room", "dpt", (2, 3), "00", "1 3 0 0 2 2 2 4 2 3", "00 00 10 20 21 22 23 23 24 23", "0000001101", ""),
    ("dark_room", "relic", (0, 0), "00", "4 1 3 0 1", "00 00 00 10 00", "11101", ""),
    ("dark_room", "t2mir", (1, 0), "00", "0 0 1", "10 20 10", "101", ""),
    ("dark_room", "icprl", (0, 1), "00", "2 2 3", "01 02 01", "101", ""),
    ("dark_room", "dit", (4, 6), "36", "0 4 1 3 2 0", "46 46 36 35 36 46", "110001", ""),
    ("dark_room", "dit", (9, 0), "90", "4 " * 100, "90 " * 100, "1" * 100, "truncated"),
    ("dark_room", "dicp", (6, 4), "44", "0 0 4 2 3", "54 64 64 65 64", "01101", ""),
    ("dark_room", "dicp", (4, 4), "44", "4 " * 20, "44 " * 20, "1" * 20, "truncated"),
    ("dark_room", "lhf", (4, 2), "44", "3 3 1", "43 42 32", "010", ""),
    ("dark_room", "lhf_large", (7, 9), "77", "2 2 4 0", "78 79 79 89", "0110", ""),
    ("dark_room", "ad", (3, 4), "44", "0 4 1 2 3", "34 34 44 43 44", "11000", ""),
    ("dark_room", "ad_eps", (3, 5), "44", "1 2 0 3 4 4", "34 35 35 45 44 43", "011000", ""),
    ("dark_room_hard", "ad", (9, 8), "88", "1 1 0 0 1", "98 a8 98 88 98", "10000", ""),
    ("dark_room_hard", "ad_eps", (9, 8), "88", "2 4 3", "89 88 98", "001", "terminated"),
    ("dark_room_hard", "ad_eps", (9, 9), "88", "0 " * 18 + "2 3", "88 " * 18 + "89 99", "0" * 19 + "1", "both"),
    # permutation[a] is done: here a = 0 stays, 1 is y - 1, 2 is y + 1, 3 is x - 1, 4 is x + 1
    ("dark_room_permuted", "dpt", (4, 3, 2, 1, 0), "00", "4 4 2 3 1 0", "10 20 21 11 10 10", "000000", ""),
    ("dark_room_permuted", "dicp", (4, 3, 2, 1, 0), "00", "4 " * 8 + "2 " * 8 + "0", None, "0" * 15 + "11", ""),
    ("dark_room_permuted", "lhf", (1, 0, 2, 3, 4), "00", "1 0 2", "10 00 01", "000", ""),
]


def test_every_preset_has_a_script():
    assert {(name, preset) for name, preset, *_ in SCRIPTS} == set(ROOMS)


def key_of_start(env, task, cell):
    """A key from which an episode starts there."""
    if env.start != "random":
        return jax.random.key(0)
    keys = jax.random.split(jax.random.key(0), 1000)
    starts = jax.jit(jax.vmap(lambda key: env.reset(key, task)[0]))(keys)
    return keys[np.flatnonzero((np.asarray(starts) == cell).all(1))[0]]


@pytest.mark.parametrize("name, preset, task, start, actions, path, rewards, end", SCRIPTS)
def test_scripted_episodes(name, preset, task, start, actions, path, rewards, end):
    env = make(name, preset)
    field = "permutation" if name == "dark_room_permuted" else "goal"
    params = env.default_params.replace(**{field: jnp.array(task, jnp.int32)})
    actions = jnp.array([int(a) for a in actions.split()], jnp.int32)
    expected = [[int(c, 17) for c in cell] for cell in [start, *(path.split() if path else [])]]
    expected = np.array(expected)
    first, *steps = play(env, params, actions, key_of_start(env, params, expected[0]))
    if env.observation == "index":
        expected = expected[:, 0] * env.size + expected[:, 1]
    obs, reward, terminated, truncated = map(np.asarray, steps)
    np.testing.assert_array_equal(first, expected[0])
    if path:
        np.testing.assert_array_equal(obs, expected[1:])
    np.testing.assert_array_equal(reward, [float(r) for r in rewards])
    assert not terminated[:-1].any() and not truncated[:-1].any()
    assert (terminated[-1], truncated[-1]) == (end in ("terminated", "both"), end in ("truncated", "both"))


@pytest.mark.parametrize("observation", ["cell", "index", "one_hot"])
def test_every_observation_shows_its_cell(observation):
    env = make("dark_room", "dpt", size=7, observation=observation)
    shown = jax.jit(jax.vmap(lambda cell: env.seen_cell(env.observe(None, env.start_state(cell), None, None))))
    np.testing.assert_array_equal(shown(jnp.asarray(env.cells)), env.cells)


def test_an_episode_starts_anew_after_the_limit():
    env = make("dark_room", "dicp")
    task = env.default_params.replace(goal=jnp.array([6, 4], jnp.int32))
    _, *steps = play(env, task, jnp.zeros(45, jnp.int32), jax.random.key(0))
    obs, reward, terminated, truncated = map(np.asarray, steps)
    np.testing.assert_array_equal(np.flatnonzero(truncated), [19, 39])
    np.testing.assert_array_equal(np.flatnonzero(reward), [1, 21, 41])  # each walks through the goal again
    np.testing.assert_array_equal(obs[[19, 20]], [[8, 4], [5, 4]])
    assert not terminated.any()


def test_once_paid_rooms_pay_once_in_every_episode():
    env = make("dark_room_hard", "ad")
    task = env.default_params.replace(goal=jnp.array([8, 8], jnp.int32))
    _, _, reward, *_ = play(env, task, jnp.full(41, 4, jnp.int32), jax.random.key(0))
    np.testing.assert_array_equal(np.flatnonzero(reward), [0, 20, 40])


# Splits: written down from the fact sheets and from runs of the papers' own lines.
DPT_TEST = "25 37 81 46 39 65 58 12 88 70 87 36 21 83 09 96 67 64 47 44"
DICP_TEST = "42 56 68 72 36 05 58 54"
AD_EPS_TEST = "70 76 41 32 01 57 23 02 25 83 82 22 66 78 15 56"


@pytest.mark.parametrize(
    "preset, num_train, test",
    [(p, 80, DPT_TEST) for p in ("dpt", "t2mir", "relic", "icprl", "dit")]
    + [(p, 73, DICP_TEST) for p in ("dicp", "lhf")]
    + [("ad_eps", 65, AD_EPS_TEST)],
)
def test_goal_splits_are_the_published_ones(preset, num_train, test):
    env = make("dark_room", preset)
    assert len(env.tasks("train").goal) == num_train
    np.testing.assert_array_equal(env.tasks("test").goal, cells(test))


def test_permutation_splits_are_the_published_ones():
    lexicographic = list(itertools.permutations(range(5)))
    for preset in ("dicp", "lhf"):
        test = make("dark_room_permuted", preset).tasks("test").permutation
        numbers = [lexicographic.index(tuple(row)) for row in np.asarray(test).tolist()]
        assert numbers == [70, 51, 2, 8, 11, 19, 61, 50, 92, 13, 38, 30]
    dpt = make("dark_room_permuted", "dpt")
    assert len(dpt.tasks("train").permutation) == 100 and len(dpt.tasks("test").permutation) == 20


@pytest.mark.parametrize("name, preset", ROOMS)
def test_splits_part_all_tasks(name, preset):
    env = make(name, preset)
    field = "permutation" if name == "dark_room_permuted" else "goal"
    train, test, everything = ([tuple(r) for r in np.asarray(getattr(env.tasks(s), field)).tolist()] for s in SPLITS)
    assert train + test == everything and len(set(everything)) == len(everything)
    assert len(everything) == (120 if name == "dark_room_permuted" else env.size**2)


SPLITS = ("train", "test", "all")


def test_sampled_tasks_are_all_those_of_the_split(getkey):
    env, sample = make("dark_room", "dicp"), jax.jit(icrl_envs.sample_tasks, static_argnums=(0, 2, 3))
    for split in ("train", "test"):
        drawn = sample(env, getkey(), 2000, split)
        goals, counts = np.unique(np.asarray(drawn.goal), axis=0, return_counts=True)
        np.testing.assert_array_equal(goals, np.unique(np.asarray(env.tasks(split).goal), axis=0))
        assert np.abs(counts - 2000 / len(goals)).max() < 5 * np.sqrt(2000 / len(goals))
    with pytest.raises(ValueError, match="split='validation': must be one of 'train', 'test', 'all'"):
        env.tasks("validation")


# Exact optima.


@pytest.mark.parametrize(
    "name, preset, split, mean",
    [
        ("dark_room", "ad", "all", 16.5432),  # min(H, H + 1 - d), the mean distance is 40/9
        ("dark_room", "dicp", "train", 16.466),
        ("dark_room", "dicp", "test", 17.25),
        ("dark_room", "ad_eps", "train", 16.585),
        ("dark_room", "ad_eps", "test", 16.375),
        ("dark_room", "lhf_large", "all", 43.5289),
        ("dark_room", "dpt", "test", 90.9),
        ("dark_room_hard", "ad", "all", 1.0),
        ("dark_room_hard", "ad_eps", "all", 1.0),
        ("dark_room_permuted", "dicp", "all", 35.0),
        ("dark_room_permuted", "dpt", "all", 83.0),
    ],
)
def test_mean_optimal_returns_are_the_published_ones(name, preset, split, mean):
    env = make(name, preset)
    np.testing.assert_allclose(jax.jit(jax.vmap(env.optimal_return))(env.tasks(split)).mean(), mean, atol=6e-4)


def value_iteration(size, horizon, goals, once):
    """Q of the moves R L U D stay by steps left, [horizon + 1, goals, cells, found, 5]; knows nothing of distances."""
    room = list(itertools.product(range(size), repeat=2))
    clip = lambda v: min(max(v, 0), size - 1)
    after = np.array([[room.index((clip(x + i), clip(y + j))) for i, j in MOVES.values()] for x, y in room])
    on_goal = np.array([[room[cell] == goal for cell in range(size**2)] for goal in goals])[:, after]
    value = np.zeros((len(goals), size**2, 2))
    qs: list[Any] = [np.zeros((len(goals), size**2, 2, 5))]
    for _ in range(horizon):
        q = np.stack(
            [
                (on_goal & ~(once and found)) + np.where(on_goal, value[:, after, 1], value[:, after, found])
                for found in (0, 1)
            ],
            axis=2,
        )
        value = q.max(-1)
        qs.append(q)
    return qs


@pytest.mark.parametrize("name, preset", distinct(ROOMS))
def test_oracles_agree_with_value_iteration(name, preset):
    """In every cell, found or not, at a few times, for many tasks: values, advantages and the best action."""
    env = make(name, preset)
    tasks = jax.tree.map(lambda x: x[:: 1 + len(x) // 40], env.tasks("all"))
    qs = value_iteration(env.size, env.horizon, [tuple(g) for g in np.asarray(tasks.goal).tolist()], env.pays_once)
    times = np.array([0, 1, env.horizon - env.size, env.horizon - 2, env.horizon - 1], np.int32)
    q = np.stack([qs[env.horizon - t] for t in times], axis=3)  # [task, cell, found, time, move]

    order = ORDERS.get(preset, DPT_ORDER)
    done = np.array([list(MOVES).index(move) for move in order])
    q = q[..., done]
    if name == "dark_room_permuted":
        permutation = np.asarray(tasks.permutation)[:, None, None, None]
        q = np.take_along_axis(q, np.broadcast_to(permutation, q.shape), axis=-1)

    def oracle(task, cell, found, time):
        state = DarkRoomState(time=time, cell=cell, found=found)
        each_action = lambda f: jax.vmap(lambda action: f(state, action, task))(jnp.arange(5))
        best = env.optimal_value(state, task), env.optimal_action(state, task)
        return *best, each_action(env.optimal_advantage), each_action(env.expected_reward)

    for axes in ((None, None, None, 0), (None, None, 0, None), (None, 0, None, None), (0, None, None, None)):
        oracle = jax.vmap(oracle, in_axes=axes)
    cell = np.indices((env.size, env.size), np.int32).reshape(2, -1).T
    value, action, advantage, reward = jax.device_get(jax.jit(oracle)(tasks, cell, np.array([False, True]), times))
    np.testing.assert_array_equal(value, q.max(-1))
    np.testing.assert_array_equal(advantage, q - q.max(-1, keepdims=True))
    np.testing.assert_array_equal(np.take_along_axis(q, action[..., None], -1)[..., 0], q.max(-1))
    np.testing.assert_array_equal(reward[..., -1, :], q[..., -1, :])  # on the last step the reward is all that is left

    starts = np.asarray(env.start_law(env.default_params)[0])
    expected = q.max(-1)[:, starts[:, 0] * env.size + starts[:, 1], 0, 0].mean(-1)
    np.testing.assert_allclose(jax.jit(jax.vmap(env.optimal_return))(tasks), expected, rtol=1e-6)


@pytest.mark.parametrize("name, preset", distinct(ROOMS))
def test_the_oracle_earns_the_optimal_return(name, preset, getkey):
    env = make(name, preset)

    @jax.jit
    @jax.vmap
    def episode(task, key):
        _, start = env.reset(key, task)

        def step(state, _):
            _, state, reward, *_ = env.step(key, state, env.optimal_action(state, task), task)
            return state, reward

        return env.optimal_value(start, task), jax.lax.scan(step, start, length=env.horizon)[1]

    tasks = env.tasks("test")
    optimal, rewards = episode(tasks, jax.random.split(getkey(), len(tasks.max_steps_in_episode)))
    if env.terminate_on_goal:  # the auto-reset lets it begin again
        np.testing.assert_array_equal(optimal, rewards.max(-1))
    else:
        np.testing.assert_array_equal(optimal, rewards.sum(-1))


@pytest.mark.parametrize("preset", ["dpt", "ad", "ad_eps"])
def test_labels_move_along_the_first_coordinate_first(preset):
    """The label convention of the published code; DPT's text has the other order."""
    env, order = make("dark_room", preset), ORDERS.get(preset, DPT_ORDER)
    other = make("dark_room", preset, optimal_first="y")
    for cell, goal, move, mirrored in [
        ((0, 0), (3, 5), "R", "U"),
        ((4, 2), (3, 5), "L", "U"),
        ((3, 2), (3, 5), "U", "U"),
        ((3, 7), (3, 5), "D", "D"),
        ((4, 7), (3, 5), "L", "D"),
        ((4, 5), (3, 5), "L", "L"),
        ((3, 5), (3, 5), ".", "."),
    ]:
        state = env.start_state(jnp.array(cell, jnp.int32))
        task = env.default_params.replace(goal=jnp.array(goal, jnp.int32))
        assert order[env.optimal_action(state, task)] == move
        assert order[other.optimal_action(state, task)] == mirrored


def test_the_label_of_a_permuted_room_is_the_inverse_image():
    env = make("dark_room_permuted", "dpt")
    state = env.start_state(jnp.zeros(2, jnp.int32))
    labels = jax.vmap(lambda task: env.optimal_action(state, task))(env.tasks("all"))
    permutations = np.asarray(env.tasks("all").permutation)
    assert (np.take_along_axis(permutations, np.asarray(labels)[:, None], 1) == 0).all()  # x + 1


def test_advantages_of_icprl():
    """Off the goal 0, -1, -2 for nearer, as near, farther; on it 0 for staying, -1 for leaving; a wall is staying."""
    env = make("dark_room", "icprl")
    task = env.default_params.replace(goal=jnp.array([3, 9], jnp.int32))
    advantage = jax.jit(env.optimal_advantage)
    for cell, expected in (((3, 0), [-2, -2, 0, -1, -1]), ((0, 9), [0, -1, -1, -2, -1]), ((3, 9), [-1, -1, 0, -1, 0])):
        state = env.start_state(jnp.array(cell, jnp.int32))
        got = [float(advantage(state, jnp.int32(a), task)) for a in range(5)]
        assert got == expected
    pairs = icrl_envs.preferences(env, temperature=0.0)
    state = env.start_state(jnp.array([3, 0], jnp.int32))
    _, after, label, *_ = pairs.step(jax.random.key(0), state, jnp.array([1, 2], jnp.int32), task)
    assert label == 0 and tuple(after.cell.tolist()) == (3, 1)
    key = jax.random.split(jax.random.key(0), 2000)
    first_wins = jax.vmap(lambda key: icrl_envs.preferences(env).step(key, state, jnp.array([2, 1]), task)[2])(key)
    assert abs(float(first_wins.mean()) - 0.881) < 0.04  # sigmoid(0 - -2)


# Starts, observations, bounds.


def test_random_starts_are_uniform(getkey):
    env = icrl_envs.make("dark_room", "dit", size=3)
    task = env.default_params
    obs, _ = jax.jit(jax.vmap(lambda key: env.reset(key, task)))(jax.random.split(getkey(), 9000))
    starts, counts = np.unique(np.asarray(obs), axis=0, return_counts=True)
    assert len(starts) == 9 and np.abs(counts - 1000).max() < 5 * np.sqrt(1000)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 256), st.integers(-(2**31), 2**31 - 1), st.data())
def test_no_action_leaves_the_room(size, action, data):
    cell = [data.draw(st.integers(0, size - 1)) for _ in "xy"]
    env = icrl_envs.make("dark_room", "dpt", size=size)
    after, reward = env.next_state(env.start_state(jnp.array(cell, jnp.int32)), jnp.int32(action), env.default_params)
    step = MOVES[DPT_ORDER[min(max(action, 0), 4)]]
    np.testing.assert_array_equal(after.cell, np.clip(np.add(cell, step), 0, size - 1))
    assert reward in (0, 1) and (reward == 1) == bool((after.cell == env.default_params.goal).all())
    assert env.observation_space().contains(after.cell)


def test_actions_outside_are_clipped_before_they_are_permuted():
    env = make("dark_room_permuted", "dpt")
    task = env.default_params.replace(permutation=jnp.array([4, 2, 1, 3, 0], jnp.int32))
    state = env.start_state(jnp.array([5, 5], jnp.int32))
    for action, cell in ((-7, (5, 5)), (0, (5, 5)), (4, (6, 5)), (99, (6, 5)), (1, (5, 6))):
        assert tuple(env.next_state(state, jnp.int32(action), task)[0].cell.tolist()) == cell
    with pytest.raises(ValueError, match="must lie in Discrete"):
        icrl_envs.check_action(env, task, 5)


def test_observations_name_the_same_cell():
    for observation, expected in (("cell", [4, 4]), ("index", 40), ("one_hot", np.eye(81)[40])):
        env = make("dark_room", "dicp", observation=observation)
        obs, _ = env.reset(jax.random.key(0), env.default_params)
        space = env.observation_space()
        np.testing.assert_array_equal(obs, expected)
        assert obs.dtype == space.dtype and obs.shape == space.shape and space.contains(obs)


def test_render_shows_agent_and_goal():
    env = make("dark_room", "dpt")
    task = env.default_params.replace(goal=jnp.array([2, 7], jnp.int32))
    states = jax.vmap(env.start_state)(jnp.array([[0, 0], [2, 7]], jnp.int32))
    images = np.asarray(jax.jit(jax.vmap(lambda state: env.render(state, task)))(states))
    assert images.shape == (2, 160, 160, 3) and images.dtype == np.uint8
    centre = lambda image, x, y: tuple(image[16 * x + 8, 16 * y + 8].tolist())
    assert centre(images[0], 0, 0) == centre(images[1], 2, 7) == drawing.WHITE
    assert centre(images[0], 2, 7) == drawing.GREEN and centre(images[0], 7, 2) == drawing.DARK
    assert tuple(images[1, 16 * 2 + 2, 16 * 7 + 2].tolist()) == drawing.GREEN  # still seen around the agent


@pytest.mark.parametrize(
    "argument, value, allowed",
    [
        ("size", 1, "an integer in 2 ..= 256"),
        ("size", 9.0, "an integer in 2 ..= 256"),
        ("horizon", 0, "an integer of at least 1"),
        ("start", "center", "one of 'corner', 'centre', 'random'"),
        ("start", 0, "one of 'corner', 'centre', 'random'"),
        ("action_order", "+x -x +y -y", "an order of '+x -x +y -y stay'"),
        ("action_order", None, "an order of '+x -x +y -y stay'"),
        ("optimal_first", "z", "one of 'x', 'y'"),
        ("reward", "shaped", "one of 'dense', 'sparse'"),
        ("terminate_on_goal", 1, "one of False, True"),
        ("observation", "pixels", "one of 'cell', 'index', 'one_hot'"),
        ("train_fraction", "0.5", "strictly between 0 and 1"),
        ("train_fraction", 1.0, "strictly between 0 and 1"),
        ("train_fraction", 0.001, "such that train and test both get some of the 100 tasks"),
        ("split_seed", -1, "an integer in 0 ..= 2147483647"),
        ("split_generator", "jax", "one of 'numpy', 'python'"),
    ],
)
def test_wrong_arguments_are_refused(argument, value, allowed):
    with pytest.raises(ValueError) as error:
        icrl_envs.make("dark_room", "dpt", **{argument: value})
    assert str(error.value) == f"{argument}={value!r}: must be {allowed}"


@pytest.mark.parametrize("name", ["dark_room", "dark_room_hard", "dark_room_permuted"])
def test_a_preset_must_be_chosen(name):
    with pytest.raises(ValueError, match=f"preset=None: papers differ on {name}; choose one of '"):
        icrl_envs.make(name)

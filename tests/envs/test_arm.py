import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import icrl_envs

KEY = jax.random.key(0)


def tail(distance, bound, margin):
    """Meta-World's long tail: 1 within the bound, 0.1 at a margin beyond it."""
    return 1 / (1 + 9 * (max(distance - bound, 0) / margin) ** 2)


def make(name, preset="t2mir", **kwargs):
    return icrl_envs.make(name, preset, **kwargs)


STEP = {name: jax.jit(make(name).step_env) for name in ("reach", "push")}


def play(name, task, actions, state=None):
    state = make(name).reset_env(KEY, task)[1] if state is None else state
    steps = []
    for action in actions:
        obs, state, *rest = STEP[name](KEY, state, jnp.array(action, jnp.float32), task)
        steps.append((obs, state, *rest))
    return steps


def test_reach_worked_by_hand():
    env = make("reach", "t2mir")
    task = env.params(jnp.array([0.0, 0.8, 0.2]), jnp.array([0.1, 0.65, 0.02]))  # 0.2 straight ahead of the hand
    obs, _ = env.reset_env(KEY, task)
    np.testing.assert_allclose(obs, [0, 0.6, 0.2, 1, 0.1, 0.65, 0.02, 0, 0, 0, 1, *7 * [0]])
    table = [  # action, hand and opening after it, distance
        ((0, 0, 0, 0), (0, 0.6, 0.2, 1), 0.2),
        ((0, 1, 0, 1), (0, 0.61, 0.2, 0.9), 0.19),
        ((0, 7, 0, -3), (0, 0.62, 0.2, 1), 0.18),  # clipped
        ((0.5, 0, -1, 0), (0.005, 0.62, 0.19, 1), np.sqrt(0.005**2 + 0.18**2 + 0.01**2)),
    ]
    steps = play("reach", task, [row[0] for row in table])
    for (_, hand, distance), (obs, _, reward, terminated, info) in zip(table, steps, strict=True):
        np.testing.assert_allclose(obs[:4], hand, atol=1e-6)
        np.testing.assert_allclose(reward, 10 * tail(distance, 0.05, 0.2), rtol=1e-5)
        assert not terminated and not info["success"]
    assert np.isclose(steps[0][2], 10 / (1 + 9 * 0.75**2))
    *_, (obs, _, reward, _, info) = play("reach", task, 16 * [(0, 1, 0, 0)])
    np.testing.assert_allclose(obs[1], 0.76, atol=1e-6)
    assert reward == 10 and info["success"]


def test_push_worked_by_hand():
    env = make("push", "dicp")
    task = env.params(jnp.array([0.0, 0.8, 0.02]), jnp.array([0.0, 0.63, 0.02]))
    state = env.reset_env(KEY, task)[1]
    assert env.reset_env(KEY, task)[0].shape == (11,)
    margin_near, margin_placed = np.hypot(0.03, 0.18), 0.17
    (_, state, reward, _, info), *_ = play("push", task, [(0, 0, 0, 0)], state)
    np.testing.assert_allclose(reward, 2 * tail(np.hypot(0.03, 0.18), 0.03, margin_near), rtol=1e-5)
    assert not info["success"]
    state = state.replace(hand=jnp.array([0.0, 0.6, 0.02]))  # down, 3 cm behind the puck: it touches
    table = [  # hand y and puck y after a step forward
        (0.61, 0.63),  # 2 cm apart: they meet
        (0.62, 0.64),
        (0.63, 0.65),
    ]
    for hand, puck in table:
        ((obs, state, reward, _, info),) = play("push", task, [(0, 1, 0, 0)], state)
        np.testing.assert_allclose([obs[1], obs[5]], [hand, puck], atol=1e-6)
        np.testing.assert_allclose(reward, 2 + 1 + 2 + 5 * tail(0.8 - puck, 0.05, margin_placed), rtol=1e-4)
        assert not info["success"]
    steps = play("push", task, 11 * [(0, 1, 0, 0)], state)
    np.testing.assert_allclose([float(s[0][5]) for s in steps[-2:]], [0.75, 0.76], atol=1e-6)
    assert not steps[-3][-1]["success"] and steps[-1][-1]["success"] and steps[-1][2] == 10


PRESETS = [(name, preset) for name in ("reach", "push") for preset in ("dicp", "lhf", "icprl", "t2mir")]


@pytest.mark.parametrize("name, preset", PRESETS)
def test_scripted_steps_of_every_preset(name, preset):
    env = icrl_envs.make(name, preset)
    task = jax.tree.map(lambda x: x[0], env.tasks("train"))
    goal, puck, hand = np.float64(task.goal), np.float64(task.puck_start), np.array([0, 0.6, 0.2])
    margins = [np.linalg.norm(x) for x in (hand - goal, hand - puck, puck - goal)]
    state, step = env.reset_env(KEY, task)[1], jax.jit(env.step)
    script = [(1, 1, 1, 0), (-0.5, 0.25, -1, 1), (3, -9, 0.1, -1), "touch", (0, 1, 0, 0)]
    for action in script:
        if action == "touch":  # down, 3 cm behind the puck
            hand = puck - [0, 0.03, 0]
            state = state.replace(hand=jnp.array(hand, jnp.float32), time=jnp.int32(99))
            continue
        hand = hand + 0.01 * np.clip(action, -1, 1)[:3]
        last = state.time == 99
        _, state, reward, terminated, truncated, info = step(KEY, state, jnp.array(action, jnp.float32), task)
        to_goal, to_puck, placed = (np.linalg.norm(x) for x in (hand - goal, hand - puck, puck - goal))
        if name == "reach":
            expected = 10 * tail(to_goal, 0.05, margins[0])
        else:
            expected = 2 * tail(to_puck, 0.03, margins[1])
            if last:  # 2 cm from the puck now
                expected = 2 + 1 + 2 + 5 * tail(placed, 0.05, margins[2])
        np.testing.assert_allclose(info["final_observation"][:3], hand, atol=1e-6)
        np.testing.assert_allclose(reward, expected, rtol=1e-4)
        assert not terminated and truncated == last and not info["success"]
        assert info["final_observation"].shape == ((11,) if preset in ("dicp", "lhf") else (18,))


def test_the_puck_goes_ahead_of_the_hand_along_their_line():
    env = make("push")
    task = env.params(jnp.array([0.0, 0.9, 0.02]), jnp.array([0.012, 0.62, 0.02]))
    state = env.reset_env(KEY, task)[1]
    low = state.replace(hand=jnp.array([0.0, 0.6, 0.02]))
    ((_, after, *_),) = play("push", task, [(0, 0.4, 0, 0)], low)  # to (0, 0.604), offset (0.012, 0.016): just 2 cm
    np.testing.assert_allclose(after.puck, [0.012, 0.62, 0.02], atol=1e-6)
    ((_, after, *_),) = play("push", task, [(0, 1, 0, 0)], low)  # to (0, 0.61), offset (0.012, 0.01)
    direction = np.array([0.012, 0.01]) / np.hypot(0.012, 0.01)
    np.testing.assert_allclose(after.puck[:2], np.array([0, 0.61]) + 0.02 * direction, atol=1e-6)
    high = low.replace(hand=jnp.array([0.0, 0.6, 0.06]))
    ((_, after, *_),) = play("push", task, [(0, 1, 0, 0)], high)  # over it
    np.testing.assert_allclose(after.puck, [0.012, 0.62, 0.02])
    under = low.replace(hand=low.puck)
    ((_, after, *_),) = play("push", task, [(0, 0, 0, 0)], under)  # from right on top it slips forward
    np.testing.assert_allclose(after.puck, [0.012, 0.64, 0.02], atol=1e-6)


def test_the_time_limit_truncates_and_resets():
    env = make("reach", num_steps=3)
    _, state = env.reset(KEY, env.default_params)
    for t in range(1, 4):
        obs, state, _, terminated, truncated, info = env.step(KEY, state, jnp.ones(4), env.default_params)
        assert not terminated and truncated == (t == 3)
    np.testing.assert_allclose(info["final_observation"][1], 0.63, atol=1e-6)
    np.testing.assert_allclose(obs[1], 0.6)


@pytest.mark.parametrize("name, low, high", [("reach", (-0.1, 0.8, 0.05), (0.1, 0.9, 0.3)), ("push", *2 * [None])])
def test_tasks_follow_their_law(name, low, high, getkey):
    env = make(name, num_train=None)
    tasks = icrl_envs.sample_tasks(env, getkey(), 20_000)
    goal, puck = np.asarray(tasks.goal), np.asarray(tasks.puck_start)
    low, high = low or (-0.1, 0.8, 0.02), high or (0.1, 0.9, 0.02)
    np.testing.assert_allclose(goal.min(0), low, atol=2e-3)
    np.testing.assert_allclose(goal.max(0), high, atol=2e-3)
    np.testing.assert_allclose([puck.min(0), puck.max(0)], [(-0.1, 0.6, 0.02), (0.1, 0.7, 0.02)], atol=2e-3)
    apart = np.hypot(*(goal - puck)[:, :2].T)
    assert 0.15 <= apart.min() < 0.155
    tries = np.random.default_rng(0).uniform([-0.1, 0.8, -0.1, 0.6], [0.1, 0.9, 0.1, 0.7], (200_000, 4))
    tries = np.hypot(tries[:, 0] - tries[:, 2], tries[:, 1] - tries[:, 3])
    np.testing.assert_allclose(apart.mean(), tries[tries >= 0.15].mean(), rtol=0.01)


@pytest.mark.parametrize("name", ["reach", "push"])
@pytest.mark.parametrize(
    "preset, obs_size, train, test",
    [("t2mir", 18, 45, 5), ("dicp", 11, 50, 50), ("lhf", 11, 50, 50), ("icprl", 18, 45, 5)],
)
def test_presets(name, preset, obs_size, train, test):
    env = make(name, preset)
    assert env.observation_space().shape == (obs_size,) and env.default_params.max_steps_in_episode == 100
    goals = [{tuple(goal) for goal in np.asarray(env.tasks(split).goal)} for split in ("train", "test", "all")]
    assert [len(g) for g in goals] == [train, test, train + test]
    assert not goals[0] & goals[1]


def test_the_reach_oracle_gets_the_optimal_return_and_no_walk_beats_it(getkey):
    env = make("reach", num_steps=40, num_train=None)
    task = icrl_envs.sample_tasks(env, getkey(), 31)

    @jax.jit
    @jax.vmap
    def play(key, task):
        def step(state, key, action):
            return env.step_env(key, state, action, task)[1:3]

        def oracle(state, key):
            return step(state, key, env.optimal_action(state, task))

        def other(state, key):  # the oracle, disturbed
            noise = 0.3 * jax.random.normal(key, (4,))
            return step(state, key, env.optimal_action(state, task) + noise)

        state, keys = env.reset_env(key, task)[1], jax.random.split(key, 40)
        return [jax.lax.scan(policy, state, keys)[1].sum() for policy in (oracle, other)]

    best, other = play(jax.random.split(getkey(), 31), task)
    optimal = jax.vmap(env.optimal_return)(task)
    np.testing.assert_allclose(best, optimal, rtol=1e-5)
    assert (np.asarray(other) <= np.asarray(optimal)).all()
    assert make("push").optimal_return is None and make("push").optimal_action is None


def test_the_optimal_return_is_that_of_the_tasks_own_time_limit():
    long, short = (make("reach", num_steps=n) for n in (30, 7))
    best = lambda env, limit: env.optimal_return(env.default_params.replace(max_steps_in_episode=limit))
    np.testing.assert_allclose(best(long, 7), best(short, 7), rtol=1e-5)
    assert jnp.isnan(best(short, 8)) and best(long, 30) > best(long, 29)


@pytest.mark.parametrize("name", ["reach", "push"])
def test_expected_reward_is_the_reward(name, getkey):
    env = make(name)
    task = env.sample_task(getkey())
    state, action = env.reset(getkey(), task)[1], jax.random.uniform(getkey(), (4,), minval=-2.0)
    assert env.expected_reward(state, action, task) == env.step_env(getkey(), state, action, task)[2]


def test_a_plain_pusher_succeeds_everywhere(getkey):
    env = make("push", "t2mir")

    def pusher(state, task):  # over the table to behind the puck, down, then through it until it is there
        line = task.goal - state.puck
        line = line / jnp.sqrt(jnp.sum(line**2) + 1e-9)
        behind = state.puck - 0.04 * line
        offset = state.hand - behind
        height = jnp.where((jnp.hypot(offset[0], offset[1]) > 0.015) & (state.hand[2] > 0.05), 0.1, 0.02)
        target = jnp.where(state.hand[2] > 0.03, behind.at[2].set(height), state.puck - 0.01 * line)
        stay = env.score(state, task)[1]
        return jnp.append(jnp.where(stay, 0.0, jnp.clip((target - state.hand) / 0.01, -1, 1)), jnp.zeros(()))

    @jax.jit
    @jax.vmap
    def play(task):
        def step(state, _):
            _, state, reward, _, info = env.step_env(KEY, state, pusher(state, task), task)
            return state, (reward, info["success"])

        return jax.lax.scan(step, env.reset_env(KEY, task)[1], length=100)[1]

    reward, success = play(env.tasks("all"))
    assert success[:, -1].all() and (reward[:, -1] == 10).all()


REAL = st.floats(-100, 100, width=32)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["reach", "push"]),
    st.tuples(REAL, REAL, REAL, REAL),
    st.lists(st.floats(0, 1), min_size=7, max_size=7),
)
def test_everything_stays_in_its_box(name, action, u):
    env, task = make(name), make(name).default_params
    low, high = np.array([-0.5, 0.4, 0.02]), np.array([0.5, 1.0, 0.5])
    state = env.reset_env(KEY, task)[1].replace(
        hand=jnp.array(low + u[:3] * (high - low), jnp.float32),
        puck=jnp.array([*(low + u[3:6] * (high - low))[:2], 0.02], jnp.float32),
        opening=jnp.float32(u[6]),
    )
    obs, after, reward, *_ = STEP[name](KEY, state, jnp.array(action, jnp.float32), task)
    clipped = STEP[name](KEY, state, jnp.clip(jnp.array(action, jnp.float32), -1, 1), task)
    assert env.observation_space().contains(obs) and 0 <= reward <= 10 and (obs == clipped[0]).all()
    assert (np.abs(after.hand - state.hand) <= 0.01 + 1e-6).all()
    for point in (after.hand, after.puck):
        assert (point >= low - 1e-6).all() and (point <= high + 1e-6).all()


@pytest.mark.parametrize("name", ["reach", "push"])
def test_render_shows_hand_puck_and_goal(name):
    env = make(name)
    image = np.asarray(jax.jit(env.render)(env.reset(KEY, env.default_params)[1], env.default_params))
    assert image.shape == (96, 192, 3) and image.dtype == np.uint8
    for half in (image[:, :96], image[:, 96:]):
        colours = {tuple(colour) for colour in half.reshape(-1, 3)}
        assert {icrl_envs.drawing.BLUE, icrl_envs.drawing.ORANGE, icrl_envs.drawing.GREEN} <= colours


@pytest.mark.parametrize("obs_size", [39, 11.5, 11.0, "18"])
def test_wrong_observation_sizes_are_refused(obs_size):
    with pytest.raises(ValueError, match=f"^obs_size={obs_size!r}: must be 11 or 18$"):
        make("reach", obs_size=obs_size)


@pytest.mark.parametrize("name", ["reach", "push"])
def test_a_preset_must_be_chosen(name):
    with pytest.raises(ValueError, match=f"preset=None: papers differ on {name}; choose one of 't2mir', 'dicp', "):
        icrl_envs.make(name)

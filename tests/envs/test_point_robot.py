import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import icrl_envs


def at(env, x, y):
    state = env.reset(jax.random.key(0), env.default_params)[1]
    return state.replace(position=jnp.array([x, y], jnp.float32))


def test_a_trajectory_worked_by_hand():
    env = icrl_envs.make("point_robot", "t2mir", num_steps=4)
    task = env.params(goal=jnp.array([0.3, -0.4]))
    state, key = at(env, 0.0, 0.0), jax.random.key(0)
    table = [  # action, position after it, distance to (0.3, -0.4)
        ((0.0, 0.0), (0.0, 0.0), 0.5),
        ((1.0, 0.0), (0.1, 0.0), np.sqrt(0.04 + 0.16)),
        ((5.0, -9.0), (0.2, -0.1), np.sqrt(0.01 + 0.09)),  # clipped to (1, -1)
        ((1.0, -0.5), (0.3, -0.15), 0.25),
    ]
    for t, (action, position, distance) in enumerate(table, 1):
        assert np.isclose(env.expected_reward(state, jnp.array(action), task), -distance, atol=1e-6)
        obs, state, reward, terminated, truncated, info = env.step(key, state, jnp.array(action), task)
        np.testing.assert_allclose(info["final_observation"], position, atol=1e-6)
        assert np.isclose(reward, -distance, atol=1e-6)
        assert not terminated and truncated == (t == 4)
    assert state.time == 0 and (np.abs(obs) <= 0.1).all()  # reset


def test_the_start_is_uniform_around_the_origin(getkey):
    env = icrl_envs.make("point_robot", "t2mir")
    starts = np.asarray(jax.vmap(env.reset_env, (0, None))(jax.random.split(getkey(), 20_000), env.default_params)[0])
    assert np.abs(starts).max() <= 0.1
    np.testing.assert_allclose(np.mean(starts**2, 0), 0.1**2 / 3, rtol=0.03)


def test_anywhere_is_uniform_where_goals_are(getkey):
    env = icrl_envs.make("point_robot")
    keys = jax.random.split(getkey(), 20_000)
    obs, state = jax.vmap(env.reset_anywhere, (0, None))(keys, env.default_params)
    np.testing.assert_array_equal(obs, state.position)
    assert np.abs(obs).max() <= 1 and (state.time == 0).all()
    np.testing.assert_allclose(np.cov(obs.T), np.eye(2) / 3, atol=0.02)


def test_the_laws_of_goals(getkey):
    keys = jax.random.split(getkey(), 20_000)
    square = np.asarray(jax.vmap(icrl_envs.make("point_robot").sample_task)(keys).goal)
    assert np.abs(square).max() <= 1
    np.testing.assert_allclose(np.cov(square.T), np.eye(2) / 3, atol=0.02)
    half = np.asarray(jax.vmap(icrl_envs.make("point_robot", goals="half_circle").sample_task)(keys).goal)
    np.testing.assert_allclose(np.hypot(*half.T), 1, atol=1e-6)
    assert half[:, 1].min() >= 0
    angle = np.arctan2(half[:, 1], half[:, 0])
    np.testing.assert_allclose([angle.mean(), angle.std()], [np.pi / 2, np.pi / np.sqrt(12)], rtol=0.03)


def test_t2mir_has_45_goals_and_the_5_of_the_paper(getkey):
    env = icrl_envs.make("point_robot", "t2mir")
    train, test = env.tasks("train").goal, env.tasks("test").goal
    assert train.shape == (45, 2) and env.tasks("all").goal.shape == (50, 2)
    np.testing.assert_allclose(test[:2], [(-0.829, 0.132), (-0.341, 0.268)])
    assert env.default_params.max_steps_in_episode == 20
    assert icrl_envs.make("point_robot").tasks is None
    drawn = jax.vmap(lambda key: env.sample_task(key, "test").goal)(jax.random.split(getkey(), 200))
    assert {tuple(goal) for goal in np.asarray(drawn)} == {tuple(goal) for goal in np.asarray(test)}


def test_the_oracle_is_the_best_of_a_fine_grid_of_actions(getkey):
    env = icrl_envs.make("point_robot", num_steps=2)
    grid = np.linspace(-1, 1, 41)
    actions = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    for _ in range(5):
        task = env.sample_task(getkey()).replace(goal=0.3 * jax.random.uniform(getkey(), (2,), minval=-1.0))
        _, state = env.reset(getkey(), task)
        after = np.asarray(state.position)[None] + 0.1 * actions
        last = np.hypot(*np.maximum(np.abs(after - task.goal[None]) - 0.1, 0).T)  # the best distance one step later
        best = (-np.hypot(*(after - task.goal[None]).T) - last).max()
        rewards = []
        for _ in range(2):
            _, state, reward, *_ = env.step_env(getkey(), state, env.optimal_action(state, task), task)
            rewards.append(reward)
        assert sum(rewards) >= best - 1e-6


def test_optimal_return_is_the_mean_of_the_oracles_returns(getkey):
    env = icrl_envs.make("point_robot", num_steps=20)
    tasks = icrl_envs.sample_tasks(env, getkey(), 7)
    goal = np.asarray(tasks.goal, np.float64)
    n = 500
    start = 0.1 * (2 * (np.arange(n) + 0.5) / n - 1)
    left = np.abs(goal[:, None] - start[None, :, None])  # [B, n, 2]
    expected = np.zeros(7)
    for t in range(1, 21):
        now = np.maximum(left - 0.1 * t, 0)
        expected -= np.hypot(now[:, :, None, 0], now[:, None, :, 1]).mean((1, 2))
    np.testing.assert_allclose(jax.vmap(env.optimal_return)(tasks), expected, atol=1e-4)


@pytest.mark.parametrize("start_range", [0.0, 0.1])
def test_the_oracle_gets_the_optimal_return(start_range, getkey):
    env, n = icrl_envs.make("point_robot", start_range=start_range), 4000
    task = env.params(goal=jnp.array([-0.05, 0.7]))

    @jax.jit
    @jax.vmap
    def play(key):
        def step(state, _):
            return env.step_env(key, state, env.optimal_action(state, task), task)[1:3]

        return jax.lax.scan(step, env.reset_env(key, task)[1], length=20)[1].sum()

    returns = np.asarray(play(jax.random.split(getkey(), n)), np.float64)
    error = 5 * returns.std() / np.sqrt(n) + 1e-4
    assert abs(returns.mean() - env.optimal_return(task)) <= error


def test_the_optimal_return_is_that_of_the_tasks_own_time_limit():
    long, short = (icrl_envs.make("point_robot", num_steps=n) for n in (20, 7))
    best = lambda env, limit: env.optimal_return(env.default_params.replace(max_steps_in_episode=limit))
    np.testing.assert_allclose(best(long, 7), best(short, 7), rtol=1e-5)
    assert jnp.isnan(best(short, 8)) and best(long, 3) < best(long, 2)


STEP = jax.jit(icrl_envs.make("point_robot").step_env)
REAL = st.floats(-1e3, 1e3, width=32)


@settings(max_examples=30, deadline=None)
@given(st.tuples(REAL, REAL), st.tuples(st.floats(-1, 1, width=32), st.floats(-1, 1, width=32)))
def test_a_step_is_no_longer_than_a_tenth_and_a_reward_never_positive(action, goal):
    env = icrl_envs.make("point_robot")
    state, task = at(env, 0.05, -0.05), env.params(goal=jnp.array(goal, jnp.float32))
    obs, _, reward, *_ = STEP(jax.random.key(0), state, jnp.array(action, jnp.float32), task)
    assert (np.abs(obs - state.position) <= 0.1 + 1e-6).all() and reward <= 0


def test_render_shows_goal_and_point():
    env = icrl_envs.make("point_robot")
    image = np.asarray(jax.jit(env.render)(at(env, 0.0, 0.0), env.params(goal=jnp.array([-1.0, 1.0]))))
    assert image.shape == (128, 128, 3) and image.dtype == np.uint8
    assert tuple(image[64, 64]) == icrl_envs.drawing.BLUE  # the middle
    assert tuple(image[21, 21]) == icrl_envs.drawing.GREEN  # up and left


@pytest.mark.parametrize(
    "argument, value, allowed",
    [
        ("num_steps", 0, "an integer in 1 ..= 2147483646"),
        ("num_steps", 2.0, "an integer in 1 ..= 2147483646"),
        ("goals", "circle", "'square' or 'half_circle'"),
        ("start_range", -0.1, "a finite number of at least 0"),
        ("start_range", "0", "a finite number of at least 0"),
        ("start_range", True, "a finite number of at least 0"),
        ("start_range", float("nan"), "a finite number of at least 0"),
        ("num_train", 0, "None or an integer of at least 1"),
        ("num_test", 0, "an integer of at least 1"),
        ("split_seed", -1, "an integer in 0 ..= 2147483647"),
        ("test_goals", ((0.0, 0.0),), r"None or, beside num_train, at least one finite point \(x, y\)"),
    ],
)
def test_wrong_arguments_are_refused(argument, value, allowed):
    with pytest.raises(ValueError, match=f"{argument}=.*: must be {allowed}$"):
        icrl_envs.make("point_robot", **{argument: value})


@pytest.mark.parametrize("test_goals", [(1.0, 2.0), (), np.zeros((0, 2)), ((0.0, np.nan),), ((0.0, 1.0, 2.0),)])
def test_test_goals_must_be_points(test_goals):
    with pytest.raises(ValueError) as refused:
        icrl_envs.make("point_robot", num_train=3, test_goals=test_goals)
    allowed = "None or, beside num_train, at least one finite point (x, y)"
    assert str(refused.value) == f"test_goals={test_goals!r}: must be {allowed}"

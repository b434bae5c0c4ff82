"""The stateless cart poles and pendulums; their physics against gymnax's, which is written down separately."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments.classic_control import cartpole, pendulum
from hypothesis import given, settings
from hypothesis import strategies as st
from two_episodes import on_host

import icrl_envs
from icrl_envs.memory.control import CartPoleState, PendulumState

CARTPOLE, PENDULUM = icrl_envs.make("stateless_cartpole"), icrl_envs.make("stateless_pendulum")
TASK = CARTPOLE.default_params
step_cartpole, step_pendulum = on_host(CARTPOLE.step_env), on_host(PENDULUM.step_env)


def cart(x, x_dot, theta, theta_dot, time=0):
    return CartPoleState(jnp.int32(time), *(jnp.float32(z) for z in (x, x_dot, theta, theta_dot)))


def rod(theta, theta_dot, time=0):
    return PendulumState(time=jnp.int32(time), theta=jnp.float32(theta), theta_dot=jnp.float32(theta_dot))


def test_cart_pole_moves_as_in_gymnax():
    rng, theirs = np.random.default_rng(3), cartpole.CartPole()
    states = rng.uniform(-1, 1, (300, 4)).astype(np.float32) * np.float32([2.4, 3, 0.21, 3])
    actions = rng.integers(0, 2, 300).astype(np.int32)

    def ours(x, action):
        obs, state, reward, terminated, _ = CARTPOLE.step_env(jax.random.key(0), cart(*x), action, TASK)
        return obs, jnp.stack([state.x, state.x_dot, state.theta, state.theta_dot]), reward, terminated

    def reference(x, action):
        state = cartpole.EnvState(jnp.int32(0), *x)
        obs, _, _, terminated, _ = theirs.step_env(jax.random.key(0), state, action, theirs.default_params)
        return obs, terminated

    obs, state, reward, terminated = on_host(jax.vmap(ours))(states, actions)
    with jax.numpy_dtype_promotion("standard"):
        expected, over = on_host(jax.vmap(reference))(states, actions)
    np.testing.assert_allclose(state, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(obs, state[:, [0, 2]])
    np.testing.assert_array_equal(terminated, over)
    assert terminated.any() and not terminated.all() and (reward == np.float32(1 / 200)).all()


def test_pendulum_moves_as_in_gymnax():
    rng, theirs = np.random.default_rng(4), pendulum.Pendulum()
    states = rng.uniform(-1, 1, (300, 2)).astype(np.float32) * np.float32([9, 8])
    torques = rng.uniform(-3, 3, (300, 1)).astype(np.float32)

    def ours(x, action):
        obs, state, reward, terminated, _ = PENDULUM.step_env(jax.random.key(0), rod(*x), action, TASK)
        return obs, jnp.stack([state.theta, state.theta_dot]), reward, terminated

    def reference(x, action):
        state = pendulum.EnvState(time=jnp.int32(0), theta=x[0], theta_dot=x[1], last_u=jnp.float32(0))
        obs, state, reward, _, _ = theirs.step_env(jax.random.key(0), state, action[0][None], theirs.default_params)
        return obs[:2], jnp.stack([state.theta, state.theta_dot]), reward

    obs, state, reward, terminated = on_host(jax.vmap(ours))(states, torques)
    expected_obs, expected, minus_cost = on_host(jax.vmap(reference))(states, torques)
    np.testing.assert_allclose(state, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(obs, expected_obs, atol=1e-5)
    np.testing.assert_allclose(reward, (1 + minus_cost / (16.2736044 / 2)) / 200, atol=1e-6)
    assert not terminated.any()


@pytest.mark.parametrize(
    "state, action, reward",
    [
        (rod(0, 0), 0.0, 1 / 200),
        (rod(np.pi, 8), 2.0, -1 / 200),  # the worst of all
        (rod(np.pi, 8), -99.0, -1 / 200),  # clipped
        (rod(2 * np.pi + 1, 0), 0.0, (1 - 2 / 16.2736044) / 200),
    ],
)
def test_pendulum_rewards_worked_by_hand(state, action, reward):
    _, after, got, _, _ = step_pendulum(jax.random.key(0), state, jnp.array([action]), TASK)
    np.testing.assert_allclose(got, reward, atol=1e-7)
    assert after.time == 1


@pytest.mark.parametrize(
    "state, terminated, truncated",
    [
        (cart(2.39, 1, 0, 0), True, False),
        (cart(-2.39, -1, 0, 0), True, False),
        (cart(2.39, 0.1, 0, 0), False, False),
        (cart(0, 0, 0.209, 0.1), True, False),
        (cart(0, 0, -0.209, -0.1), True, False),
        (cart(0, 0, 0, 0, time=198), False, False),
        (cart(0, 0, 0, 0, time=199), False, True),
        (cart(0, 0, 0.209, 0.1, time=199), True, True),
    ],
)
def test_cart_pole_ends(state, terminated, truncated):
    _, after, reward, over, _ = step_cartpole(jax.random.key(0), state, jnp.int32(0), TASK)
    assert over == terminated and CARTPOLE.is_truncated(after, TASK) == truncated
    assert reward == np.float32(1 / 200)


@pytest.mark.parametrize("preset, T", [("easy", 200), ("medium", 400), ("hard", 600)])
def test_the_oracle_never_drops_the_pole(preset, T, getkey):
    """From the corners of the box of starts and from inside it; far from the limits, so rounding cannot matter."""
    env = icrl_envs.make("stateless_cartpole", preset)
    corners = np.array(list(itertools.product((-0.05, 0, 0.05), repeat=4)), np.float32)
    inside = jax.random.uniform(getkey(), (1009, 4), minval=-0.05, maxval=0.05)

    def episode(start):
        def step(state, _):
            obs, after, reward, terminated, _ = env.step_env(
                jax.random.key(0), state, env.optimal_action(state, TASK), TASK
            )
            return after, (jnp.abs(obs), reward, terminated)

        return jax.lax.scan(step, cart(*start), length=T)[1]

    obs, reward, terminated = on_host(jax.vmap(episode))(jnp.concatenate([corners, inside]))
    assert not terminated.any() and obs[..., 0].max() < 0.2 and obs[..., 1].max() < 0.06
    np.testing.assert_allclose(reward.sum(1), env.optimal_return(env.default_params), rtol=1e-5)


@functools.partial(on_host, static_argnums=0)
def step_each(env, states, actions):
    def step(state, action):
        _, after, reward, terminated, _ = env.step_env(jax.random.key(0), state, action, env.default_params)
        return reward, terminated, env.is_truncated(after, env.default_params)

    return jax.vmap(step)(states, actions)


@pytest.mark.parametrize(
    "name, lengths",
    [
        ("stateless_cartpole", (200, 400, 600)),
        ("noisy_stateless_cartpole", (200, 200, 200)),
        ("stateless_pendulum", (200, 150, 100)),
        ("noisy_stateless_pendulum", (200, 200, 200)),
    ],
)
def test_rewards_and_lengths_of_every_preset(name, lengths):
    script = [  # state, action, reward times length, terminated
        (cart(0, 0, 0, 0), 0, 1, False),
        (cart(0, 0, 0, 0), 7, 1, False),
        (cart(2.39, 1, 0, 0), 1, 1, True),
    ]
    if "pendulum" in name:
        script = [
            (rod(0, 0), [0.0], 1, False),
            (rod(np.pi, 8), [99.0], -1, False),
            (rod(1, 2), [-1.0], 1 - 2 * (1 + 0.1 * 4 + 0.001) / 16.2736044, False),
        ]
    states, actions, pays, ends = zip(*script, strict=True)
    states = jax.tree.map(lambda *x: jnp.stack(x), *states)
    for preset, T in zip(("easy", "medium", "hard"), lengths, strict=True):
        env = icrl_envs.make(name, preset)
        assert env.num_steps == T and env.num_actions == (1 if "pendulum" in name else 2)
        for time, last in ((0, False), (T - 2, False), (T - 1, True)):
            timed = states.replace(time=jnp.full(3, time, jnp.int32))
            reward, terminated, truncated = step_each(env, timed, jnp.array(actions))
            np.testing.assert_allclose(reward, np.array(pays) / T, rtol=1e-5)
            np.testing.assert_array_equal(terminated, ends)
            np.testing.assert_array_equal(truncated, last)


def test_starts_are_uniform(getkey):
    n, keys = 20_000, jax.random.split(getkey(), 20_000)

    def starts(key):
        pole, swing = CARTPOLE.reset_env(key, TASK)[1], PENDULUM.reset_env(key, TASK)[1]
        return jnp.stack([pole.x, pole.x_dot, pole.theta, pole.theta_dot, swing.theta, swing.theta_dot])

    x = on_host(jax.vmap(starts))(keys) / [0.05, 0.05, 0.05, 0.05, np.pi, 1]
    assert (np.abs(x) <= 1 + 1e-6).all()
    for power, moment in ((1, 0), (2, 1 / 3), (3, 0), (4, 1 / 5)):
        np.testing.assert_allclose((x**power).mean(0), moment, atol=5 * 0.6 / np.sqrt(n))


@pytest.mark.parametrize("name", ["noisy_stateless_cartpole", "noisy_stateless_pendulum"])
def test_noise_is_on_every_observation_and_clipped(name, getkey):
    n, sd, env, clean = 10_000, 0.3, icrl_envs.make(name, "hard"), icrl_envs.make(name, noise_sd=0.0)
    action = jnp.int32(0) if "cart" in name else jnp.zeros(1)

    def both(key):
        (seen, _), (true, state) = (e.reset_env(key, TASK) for e in (env, clean))
        return seen, true, *(e.step_env(key, state, action, TASK)[0] for e in (env, clean))

    high = np.asarray(env.observation_space().high) * np.ones(2, np.float32)
    seen, true, later, true_later = on_host(jax.vmap(both))(jax.random.split(getkey(), n))
    for noisy, exact in ((seen, true), (later, true_later)):
        assert (np.abs(noisy) <= high).all() and (np.abs(noisy[:, 1]) == high[1]).any()
        noise = (noisy - exact)[np.abs(exact) + 1.01 * sd < high]  # so far, nothing is clipped
        for below, probability in ((-sd, 0.15866), (0, 0.5), (sd, 0.84134)):
            assert abs((noise < below).mean() - probability) < 5 * 0.5 / np.sqrt(noise.size)


def test_noise_of_the_presets():
    for name in ("noisy_stateless_cartpole", "noisy_stateless_pendulum"):
        envs = [icrl_envs.make(name, preset) for preset in ("easy", "medium", "hard")]
        assert [(env.noise_sd, env.num_steps) for env in envs] == [(0.1, 200), (0.2, 200), (0.3, 200)]


def test_velocities_instead_of_positions(getkey):
    env = icrl_envs.make("stateless_cartpole", observed="velocities")
    start, state = on_host(env.reset_env)(getkey(), TASK)
    later, after, *_ = on_host(env.step_env)(getkey(), state, np.int32(1), TASK)
    np.testing.assert_array_equal(start, [state.x_dot, state.theta_dot])
    np.testing.assert_array_equal(later, [after.x_dot, after.theta_dot])
    assert env.observation_space().contains(1e30 * jnp.ones(2))


@on_host
def move(x, y, action, torque):
    pole, rest = cart(x, y, 0.1 * x, y), jax.random.key(0)
    push = lambda a: CARTPOLE.step_env(rest, pole, a, TASK)[0]
    swing = lambda a: PENDULUM.step_env(rest, rod(x, y), a, TASK)[:3:2]
    return (push(action), swing(torque)), (push(jnp.clip(action, 0, 1)), swing(jnp.clip(torque, -2, 2)))


@settings(max_examples=30, deadline=None)
@given(
    *[st.floats(-2, 2, width=32)] * 2,
    st.integers(-(2**31), 2**31 - 1),
    st.floats(-(2.0**99), 2.0**99, width=32),
)
def test_bounds_hold_and_actions_are_clipped(x, y, action, torque):
    some, clipped = move(np.float32(x), np.float32(y), np.int32(action), np.float32([torque]))
    jax.tree.map(np.testing.assert_array_equal, some, clipped)
    obs, (angle, reward) = some
    assert (np.abs(obs) <= CARTPOLE.observation_space().high).all() and (np.abs(angle) <= 1).all()
    assert abs(reward) <= np.float32(1 / 200)


def test_pictures_follow_the_state():
    colour = lambda image, rgb: np.argwhere((np.asarray(image) == rgb).all(-1)).mean(0)
    orange, dark = (230, 140, 40), (70, 70, 78)
    draw_cart, draw_rod = (on_host(env.render) for env in (CARTPOLE, PENDULUM))
    left, right = (draw_cart(cart(x, 0, 0.2 * x, 0), TASK) for x in (-1, 1))
    assert colour(left, dark)[1] < 80 < colour(right, dark)[1]
    assert colour(right, orange)[1] > colour(right, dark)[1] and colour(right, orange)[0] < colour(right, dark)[0]
    up, down, to_the_left = (draw_rod(rod(theta, 0), TASK) for theta in (0, np.pi, np.pi / 2))
    assert colour(up, orange)[0] < 40 and colour(down, orange)[0] > 55 and colour(to_the_left, orange)[1] < 40


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("stateless_cartpole", {"num_steps": 0}, "num_steps=0: must be an integer of at least 1"),
        ("stateless_cartpole", {"observed": "all"}, "observed='all': must be 'positions' or 'velocities'"),
        ("noisy_stateless_cartpole", {"noise_sd": -0.1}, "noise_sd=-0.1: must be a finite number of at least 0"),
        ("noisy_stateless_cartpole", {"noise_sd": "x"}, "noise_sd='x': must be a finite number of at least 0"),
        ("stateless_pendulum", {"num_steps": 2.0}, "num_steps=2.0: must be an integer of at least 1"),
        ("noisy_stateless_pendulum", {"noise_sd": np.inf}, "noise_sd=inf: must be a finite number of at least 0"),
    ],
)
def test_wrong_arguments_are_refused(name, arguments, message):
    with pytest.raises(ValueError) as refused:
        icrl_envs.make(name, **arguments)
    assert str(refused.value) == message

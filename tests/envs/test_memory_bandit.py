import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from two_episodes import on_host

import icrl_envs
from icrl_envs.memory.bandit import MemoryBanditState

SMALL = icrl_envs.make("memory_bandit", num_arms=5, num_steps=8)
TASK = SMALL.default_params


@on_host
def play(means, actions, key):
    def step(state, x):
        action, key = x
        obs, after, reward, terminated, _ = SMALL.step_env(key, state, action, TASK)
        expected = SMALL.expected_reward(state, action, TASK)
        return after, (obs[0], reward, expected, terminated, SMALL.is_truncated(after, TASK))

    obs, state = SMALL.reset_env(key, TASK)
    keys = jax.random.split(key, len(actions))
    return obs, *jax.lax.scan(step, state.replace(means=means), (jnp.asarray(actions, jnp.int32), keys))[1]


def test_a_scripted_episode(getkey):
    means = np.array([0, 1, 0.5, 1, 0], np.float32)
    first, pays, reward, expected, terminated, truncated = play(means, [0, 1, 4, 3, 1, 0, -9, 9], getkey())
    np.testing.assert_array_equal(first, [0])
    np.testing.assert_array_equal(pays, [0, 1, 0, 1, 1, 0, 0, 0])  # -9 and 9 are clipped to arms 0 and 4
    np.testing.assert_array_equal(reward, (2 * pays - 1) / 8)
    np.testing.assert_array_equal(expected, reward)
    np.testing.assert_array_equal(terminated, [0] * 8)
    np.testing.assert_array_equal(truncated, [0] * 7 + [1])


def test_an_arm_pays_with_its_mean(getkey):
    n, means = 20_000, np.linspace(0.1, 0.9, 5, dtype=np.float32)
    for arm in range(5):
        _, pays, _, expected, *_ = play(means, np.full(n, arm), getkey())
        assert abs(pays.mean() - means[arm]) < 5 * 0.5 / np.sqrt(n)
        np.testing.assert_allclose(expected, (2 * means[arm] - 1) / 8, rtol=1e-5)


@pytest.mark.parametrize("preset, A, T", [("easy", 10, 200), ("medium", 20, 400), ("hard", 30, 600)])
def test_means_are_uniform_and_the_best_of_them_is_the_optimal_return(preset, A, T, getkey):
    n, env = 20_000, icrl_envs.make("memory_bandit", preset)

    def reset(key):
        state = env.reset_env(key, TASK)[1]
        return state.means, T * env.expected_reward(state, env.optimal_action(state, TASK), TASK)

    means, best = on_host(jax.vmap(reset))(jax.random.split(getkey(), n))
    assert env.num_steps == T and means.shape == (n, A) and means.min() >= 0 and means.max() < 1
    for power in (1, 2, 3):
        np.testing.assert_allclose((means**power).mean(0), 1 / (power + 1), atol=5 * 0.3 / np.sqrt(n))
    assert (np.abs(np.corrcoef(means.T) - np.eye(A)) < 5 / np.sqrt(n)).all()
    np.testing.assert_allclose(best, 2 * means.max(1) - 1, atol=1e-5)
    task = env.default_params
    assert abs(best.mean() - env.optimal_return(task)) < 5 * best.std() / np.sqrt(n)
    half = task.replace(max_steps_in_episode=T // 2)
    np.testing.assert_allclose(env.optimal_return(half), env.optimal_return(task) / 2, rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.lists(st.integers(-(2**31), 2**31 - 1), min_size=3, max_size=3))
def test_bounds_hold_and_actions_are_clipped(seed, actions):
    key, means = jax.random.key(seed), np.linspace(0, 1, 5, dtype=np.float32)
    some, clipped = play(means, actions, key), play(means, np.clip(actions, 0, 4), key)
    for x, y in zip(some, clipped, strict=True):
        np.testing.assert_array_equal(x, y)
    assert set(some[1]) <= {0, 1} and set(np.abs(some[2])) == {np.float32(1 / 8)}


def test_the_picture_has_a_bar_for_every_arm():
    means = np.array([0, 1, 0.5, 0.25, 0], np.float32)
    image = on_host(SMALL.render)(MemoryBanditState(time=jnp.int32(0), means=means), TASK)
    np.testing.assert_allclose((image[:, 8::16] != 255).any(-1).mean(0), means)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_arms": 1}, "num_arms=1: must be an integer of at least 2"),
        ({"num_steps": 0}, "num_steps=0: must be an integer of at least 1"),
        ({"num_steps": True}, "num_steps=True: must be an integer of at least 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError) as refused:
        icrl_envs.make("memory_bandit", **arguments)
    assert str(refused.value) == message

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from two_episodes import on_host

import icrl_envs

N = 20_000
UTILITIES = np.float32([0.5, -1.0, 2.0, 0.5, 0.0])  # the third arm is best


@functools.cache
def bandit(temperature=1.0):
    """Five arms whose utilities are known."""
    env = icrl_envs.make("dueling_bandit", num_arms=5, temperature=temperature)
    env.env.features = np.stack([UTILITIES, np.zeros(5, np.float32)], axis=1)
    return env


@functools.partial(on_host, static_argnames="env")
def steps(env, pair, key):
    _, state = env.reset(key, env.default_params)
    return jax.vmap(lambda key: env.step(key, state, pair, env.default_params))(jax.random.split(key, N))


def duel(env, pair, key):
    return steps(env, jnp.asarray(pair, jnp.int32), key)


@pytest.mark.parametrize(
    "pair, temperature, p, weak, strong",
    [  # p: that the first arm wins; a gap: sigmoid((2 - utility) / temperature) - 1/2
        ((2, 2), 1.0, 0.5, 0.0, 0.0),
        ((2, 0), 1.0, 0.817574, 0.0, 0.317574),
        ((0, 2), 1.0, 0.182426, 0.0, 0.317574),
        ((0, 1), 1.0, 0.817574, 0.317574, 0.452574),
        ((1, 4), 1.0, 0.268941, 0.380797, 0.452574),
        ((0, 3), 1.0, 0.5, 0.317574, 0.317574),
        ((0, 4), 0.5, 0.731059, 0.452574, 0.482014),
        ((0, 4), 0.0, 1.0, 0.5, 0.5),
        ((2, 4), 0.0, 1.0, 0.0, 0.5),
        ((-1, 7), 1.0, 0.622459, 0.317574, 0.380797),  # clipped to (0, 4)
    ],
)
def test_labels_and_regrets_worked_by_hand(pair, temperature, p, weak, strong, getkey):
    obs, _, label, terminated, truncated, info = duel(bandit(temperature), pair, getkey())
    assert (obs == 1).all() and not terminated.any() and not truncated.any()
    assert set(np.unique(label)) <= {0.0, 1.0} and abs(label.mean() - p) <= 5 * np.sqrt(p * (1 - p) / N)
    np.testing.assert_allclose(info["weak_regret"], weak, atol=1e-6)
    np.testing.assert_allclose(info["strong_regret"], strong, atol=1e-6)
    first, second = np.clip(pair, 0, 4)
    np.testing.assert_array_equal(info["winner"], np.where(label == 1, first, second))
    np.testing.assert_allclose(info["reward"], UTILITIES[info["winner"]], atol=1e-6)


@on_host
def duel_and_clip(seed, pair):
    env, key = bandit(), jax.random.key(seed)
    state = env.reset_env(key, env.default_params)[1]
    return [env.step_env(key, state, p, env.default_params) for p in (pair, jnp.clip(pair, 0, 4))]


ARM = st.integers(-(2**31), 2**31 - 1)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31 - 1), ARM, ARM)
def test_bounds_hold_and_pairs_are_clipped(seed, first, second):
    one, clipped = duel_and_clip(np.int32(seed), np.array([first, second], np.int32))
    chex.assert_trees_all_equal(one, clipped)
    _, _, label, _, info = one
    assert label in (0, 1) and 0 <= info["weak_regret"] <= info["strong_regret"] <= 0.5
    assert np.isfinite(info["reward"]) and info["winner"] in np.clip([first, second], 0, 4)


def test_gaps_are_of_the_probability_and_those_of_the_wrapper_of_the_score(getkey):
    """Only what scores a choice differs: labels, winners and rewards are the same."""
    env = bandit()
    dueling, wrapped = (duel(e, (0, 1), getkey()) for e in (env, icrl_envs.preferences(env.env)))
    assert abs(dueling[2].mean() - wrapped[2].mean()) < 5 / np.sqrt(N)
    np.testing.assert_allclose(wrapped[-1]["weak_regret"], 1.5)
    np.testing.assert_allclose(wrapped[-1]["strong_regret"], 3.0)
    np.testing.assert_allclose(dueling[-1]["weak_regret"], 1 / (1 + np.exp(-1.5)) - 0.5, rtol=1e-5)


def test_the_best_pair_is_the_best_arm_twice(getkey):
    env = bandit()
    _, state = env.reset(getkey(), env.default_params)
    np.testing.assert_array_equal(env.optimal_action(state, env.default_params), [2, 2])
    expected = env.expected_reward(state, jnp.array([0, 1], jnp.int32), env.default_params)
    np.testing.assert_allclose(expected, 0.817574 * 0.5 - 0.182426 * 1.0, rtol=1e-5)


def test_tasks_and_features_are_those_of_the_linear_bandit(getkey):
    env = icrl_envs.make("dueling_bandit", num_arms=7, dim=3, feature_seed=5)
    linear, key = icrl_envs.make("linear_bandit", num_arms=7, dim=3, noise_sd=0.0, feature_seed=5), getkey()
    np.testing.assert_array_equal(env.features, linear.features)
    for split in ("train", "test", "all"):
        chex.assert_trees_all_equal(env.sample_task(key, split), linear.sample_task(key, split))


def test_the_preset_and_the_name():
    env = icrl_envs.make("dueling_bandit", "icprl")
    assert (env.num_arms, env.dim, env.temperature, env.name) == (20, 10, 1.0, "DuelingBandit")
    assert not env.episodic and env.action_space().shape == (2,)


@pytest.mark.parametrize(
    "argument, value, allowed",
    [
        ("num_arms", 1, "an integer of at least 2"),
        ("dim", 0, "an integer of at least 1"),
        ("temperature", -0.5, "a finite number of at least 0"),
        ("temperature", "1", "a finite number of at least 0"),
        ("feature_seed", -1, "None or an integer in 0"),
    ],
)
def test_wrong_arguments_are_refused(argument, value, allowed):
    with pytest.raises(ValueError, match=f"^{argument}={value!r}: must be {allowed}"):
        icrl_envs.make("dueling_bandit", **{argument: value})

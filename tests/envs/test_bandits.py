import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from two_episodes import on_host

import icrl_envs
from icrl_envs.task_family import is_int, is_number

N = 40_000


def draw(env, task, arm, key):
    _, state = env.reset(key, task)
    step = jax.jit(jax.vmap(lambda key: env.step_env(key, state, jnp.int32(arm), task)[2]))
    return np.asarray(step(jax.random.split(key, N)), np.float64)


def test_gaussian_rewards_have_the_moments_of_the_law(getkey):
    env = icrl_envs.make("gaussian_bandit", num_arms=5, noise_sd=0.3)
    x = (draw(env, env.default_params, 3, getkey()) - 0.75) / 0.3
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        error = np.std(x**power) / np.sqrt(N)
        assert abs(np.mean(x**power) - moment) < 5 * error


def test_noise_sd_is_part_of_the_task(getkey):
    env, key = icrl_envs.make("gaussian_bandit", num_arms=5), getkey()
    for sd in (0.0, 0.7):
        task = env.default_params.replace(noise_sd=jnp.float32(sd))
        np.testing.assert_allclose(draw(env, task, 1, key).std(), sd, rtol=0.02)


def test_bernoulli_rewards_are_0_or_1_with_the_mean_of_the_arm(getkey):
    env = icrl_envs.make("bernoulli_bandit", num_arms=5)
    for arm, mean in ((0, 0.0), (1, 0.25), (4, 1.0)):
        x = draw(env, env.default_params, arm, getkey())
        assert set(np.unique(x)) <= {0.0, 1.0}
        assert abs(x.mean() - mean) <= 5 * np.sqrt(mean * (1 - mean) / N)


@functools.partial(on_host, static_argnums=0)
def pull(env, task, arms, key):
    """Pulls these arms, one after the other."""

    def step(state, arm):
        obs, state, *rest, _ = env.step(key, state, arm, task)
        return state, (obs, *rest)

    return jax.lax.scan(step, env.reset(key, task)[1], arms)[1]


@pytest.mark.parametrize(
    "name, preset, task, arms, rewards",
    [  # tasks in which nothing is left to chance; arms outside are clipped to the first and the last
        (
            *("gaussian_bandit", "dpt", {"means": [0.1, 0.9, 0.3, 0.5, 0.7], "noise_sd": 0.0}),
            *([0, 3, 1, 1, 4, -1, 5], [0.1, 0.5, 0.9, 0.9, 0.7, 0.1, 0.7]),
        ),
        ("bernoulli_bandit", "dpt", {"means": [0, 1, 0, 1, 1]}, [0, 1, 1, 2, 4, -7, 9], [0, 1, 1, 0, 1, 0, 1]),
        ("bernoulli_bandit", "ad", {"means": 5 * [0, 1]}, [0, 1, 9, 8, 7, -1, 10], [0, 1, 1, 0, 1, 0, 1]),
        (  # sums of two neighbours among the standard normals of that seed
            *("linear_bandit", "dpt", {"theta": 2 * [np.sqrt(2)], "noise_sd": 0.0}),
            *([0, 1, 4, 2, 1, -1], [-0.71954053, 1.12005507, -2.22698858, 0.16657421, 1.12005507, -0.71954053]),
        ),
    ],
)
def test_scripted_pulls(name, preset, task, arms, rewards, getkey):
    env = icrl_envs.make(name, preset)
    task = env.default_params.replace(**{field: jnp.array(value, jnp.float32) for field, value in task.items()})
    obs, got, terminated, truncated = pull(env, task, np.array(arms, np.int32), getkey())
    np.testing.assert_allclose(got, rewards, rtol=1e-5)
    assert (obs == 1).all() and got.dtype == np.float32 and not terminated.any() and not truncated.any()


@functools.partial(on_host, static_argnums=0)
def pull_and_clip(env, seed, arm):
    key_task, key = jax.random.split(jax.random.key(seed))
    task = env.sample_task(key_task)
    state, inside = env.reset_env(key, task)[1], jnp.clip(arm, 0, env.num_arms - 1)
    rewards = jnp.stack([env.step_env(key, state, a, task)[2] for a in (arm, inside)])
    return rewards, env.means(task), inside


ONE_OF_EACH = [icrl_envs.make(*name) for name in (("gaussian_bandit", "dpt"), ("bernoulli_bandit", "ad"))]
ONE_OF_EACH += [icrl_envs.make("linear_bandit", "dpt")]


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(ONE_OF_EACH), st.integers(0, 2**31 - 1), st.integers(-(2**31), 2**31 - 1))
def test_rewards_are_bounded_and_arms_clipped(env, seed, arm):
    (reward, clipped), means, inside = pull_and_clip(env, np.int32(seed), np.int32(arm))
    assert np.isfinite(reward) and reward == clipped and inside == min(max(arm, 0), env.num_arms - 1)
    if env.name == "BernoulliBandit":
        assert reward in (0, 1)
    else:
        assert abs(reward - means[inside]) < 6 * 0.3  # float32 normals go no farther


@pytest.mark.parametrize("name", ["gaussian_bandit", "bernoulli_bandit"])
def test_means_are_uniform_and_independent(name, getkey):
    env = icrl_envs.make(name, num_arms=3)
    means = np.asarray(jax.vmap(env.sample_task)(jax.random.split(getkey(), N)).means, np.float64)
    assert means.min() >= 0 and means.max() <= 1
    for power in (1, 2, 3):
        np.testing.assert_allclose((means**power).mean(0), 1 / (power + 1), atol=5 * 0.3 / np.sqrt(N))
    np.testing.assert_allclose(np.cov(means.T), np.eye(3) / 12, atol=5 / 12 / np.sqrt(N))


def test_good_arms_swap_sides_between_train_and_test(getkey):
    """AD: the odd-numbered arms, counted from 0, are the good ones in 95 % of the train tasks."""
    env, n = icrl_envs.make("bernoulli_bandit", "ad"), 4001
    assert env.num_arms == 10
    for split, share in (("train", 0.95), ("test", 0.05), ("all", 0.5)):
        draw = functools.partial(env.sample_task, split=split)
        means = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(getkey(), n)).means, np.float64)
        odd, even = means[:, 1::2], means[:, ::2]
        odd_is_good = (odd >= 0.5).all(1) & (even <= 0.5).all(1)
        assert (odd_is_good ^ ((even >= 0.5).all(1) & (odd <= 0.5).all(1))).all()
        assert abs(odd_is_good.mean() - share) <= 5 * np.sqrt(share * (1 - share) / n)
        good = np.where(odd_is_good[:, None], odd, even)
        bad = np.where(odd_is_good[:, None], even, odd)
        for x in (2 * good - 1, 2 * bad):  # U[0, 1], independent
            np.testing.assert_allclose(x.mean(0), 1 / 2, atol=5 * 0.3 / np.sqrt(n))
            np.testing.assert_allclose(np.cov(x.T), np.eye(5) / 12, atol=5 / 12 / np.sqrt(n))


@pytest.mark.parametrize("share, odd", [(1.0, {"train": 1, "test": 0}), (0.0, {"train": 0, "test": 1})])
def test_a_certain_share_leaves_nothing_to_chance(share, odd, getkey):
    env = icrl_envs.make("bernoulli_bandit", num_arms=2, odd_share=share)
    for split, arm in odd.items():
        means = jax.vmap(functools.partial(env.sample_task, split=split))(jax.random.split(getkey(), 101)).means
        assert (means.argmax(1) == arm).all()


def test_pictures_show_the_means(getkey):
    """A bar is as high as its mean, from the bottom; -2 ..= 2 fill the picture of a linear bandit."""
    env = icrl_envs.make("bernoulli_bandit", num_arms=5)
    _, state = env.reset(getkey(), env.default_params)
    picture = np.asarray(env.render(state, env.default_params))
    assert picture.shape == (96, 5 * 16, 3)
    filled = (picture != 255).any(-1)
    np.testing.assert_array_equal(filled[:, 8::16].sum(0), [0, 24, 48, 72, 96])
    assert filled[-24:, 24].all()
    linear = icrl_envs.make("linear_bandit", num_arms=5)
    linear.features = np.float32([[-2, 0], [-1, 0], [0, 0], [1, 5], [3, 7]])
    filled = (np.asarray(linear.render(state, linear.default_params)) != 255).any(-1)
    np.testing.assert_array_equal(filled[:, 8::16].sum(0), [0, 24, 48, 72, 96])


def test_linear_features_are_those_of_the_published_code():
    env = icrl_envs.make("linear_bandit", "dpt")
    np.random.seed(1234)
    np.testing.assert_array_equal(env.features, (np.random.normal(0, 1, (10, 2)) / np.sqrt(2)).astype(np.float32))
    assert env.features[0, 0] == np.float32(0.47143516 / np.sqrt(2))  # the first draw of that seed


def test_linear_tasks_and_means_follow_their_definition(getkey):
    env = icrl_envs.make("linear_bandit", num_arms=7, dim=3)
    tasks = jax.vmap(env.sample_task)(jax.random.split(getkey(), N))
    theta = np.asarray(tasks.theta, np.float64)
    np.testing.assert_allclose(np.cov(theta.T), np.eye(3) / 3, atol=5 * np.sqrt(2) / 3 / np.sqrt(N))
    np.testing.assert_allclose(jax.vmap(env.means)(tasks)[:5], theta[:5] @ env.features.T, atol=1e-6)


def test_a_bandit_never_ends():
    env = icrl_envs.make("gaussian_bandit")
    state = env.reset(jax.random.key(0), env.default_params)[1].replace(time=jnp.int32(10**9))
    *_, terminated, truncated, _ = env.step(jax.random.key(0), state, jnp.int32(0), env.default_params)
    assert not terminated and not truncated and not env.episodic


def test_an_arm_outside_is_clipped_inside_step_and_refused_by_check_action():
    env = icrl_envs.make("gaussian_bandit", num_arms=5)
    assert env.expected_reward(None, jnp.int32(9), env.default_params) == 1.0
    assert env.expected_reward(None, jnp.int32(-3), env.default_params) == 0.0
    icrl_envs.check_action(env, env.default_params, 4)
    for action in (5, -1, [1, 2], 1.5):
        with pytest.raises(ValueError, match="must lie in Discrete"):
            icrl_envs.check_action(env, env.default_params, action)
    pairs = icrl_envs.preferences(env)
    icrl_envs.check_action(pairs, env.default_params, [0, 4])
    with pytest.raises(ValueError, match="must lie in 2 x Discrete"):
        icrl_envs.check_action(pairs, env.default_params, [0, 5])


@pytest.mark.parametrize("name", ["gaussian_bandit", "bernoulli_bandit", "linear_bandit"])
@pytest.mark.parametrize("num_arms", [1, 0, -3, 2.0, True, "5", None])
def test_wrong_numbers_of_arms_are_refused(name, num_arms):
    with pytest.raises(ValueError, match=f"^num_arms={num_arms!r}: must be an integer of at least 2"):
        icrl_envs.make(name, num_arms=num_arms)


@pytest.mark.parametrize(
    "name, argument, value, allowed",
    [
        ("gaussian_bandit", "noise_sd", -0.1, "a finite number of at least 0"),
        ("gaussian_bandit", "noise_sd", float("inf"), "a finite number of at least 0"),
        ("gaussian_bandit", "noise_sd", float("nan"), "a finite number of at least 0"),
        ("gaussian_bandit", "noise_sd", "x", "a finite number of at least 0"),
        ("gaussian_bandit", "noise_sd", True, "a finite number of at least 0"),
        ("linear_bandit", "noise_sd", None, "a finite number of at least 0"),
        ("bernoulli_bandit", "odd_share", "1", "None or a number in 0 ..= 1"),
        ("bernoulli_bandit", "odd_share", True, "None or a number in 0 ..= 1"),
        ("bernoulli_bandit", "odd_share", 1.5, "None or a number in 0 ..= 1"),
        ("bernoulli_bandit", "odd_share", -0.1, "None or a number in 0 ..= 1"),
        ("linear_bandit", "noise_sd", -1.0, "a finite number of at least 0"),
        ("linear_bandit", "dim", 0, "an integer of at least 1"),
        ("linear_bandit", "feature_seed", -1, "None or an integer in 0"),
        ("linear_bandit", "feature_seed", 2**31, "None or an integer in 0"),
    ],
)
def test_wrong_arguments_are_refused(name, argument, value, allowed):
    with pytest.raises(ValueError, match=f"^{argument}={value!r}: must be {allowed}"):
        icrl_envs.make(name, **{argument: value})


def test_numpy_scalars_are_numbers():
    env = icrl_envs.make("linear_bandit", num_arms=np.int64(7), dim=np.int32(3), noise_sd=np.float32(0.5))
    assert env.features.shape == (7, 3) and env.default_params.noise_sd == 0.5
    assert icrl_envs.make("bernoulli_bandit", odd_share=np.float64(0.5)).odd_share == 0.5
    assert not is_int(np.bool_(True), 0) and not is_number(np.bool_(True)) and not is_number(np.nan)


def test_the_preset_of_dit():
    env = icrl_envs.make("linear_bandit", "dit")
    assert env.features.shape == (20, 10) and env.default_params.theta.shape == (10,)
    np.testing.assert_allclose(env.default_params.noise_sd**2, 0.3, rtol=1e-6)
    np.testing.assert_array_equal(env.features, icrl_envs.make("dueling_bandit", "icprl").features)


def test_features_of_the_task_are_seen(getkey):
    """Lin et al. 2023: 10 arms, 5 features in [-1, 1], theta in [0, 1]^5, noise of sd 1.5."""
    env = icrl_envs.make("linear_bandit", "provable")
    assert env.default_params.noise_sd == 1.5
    features = np.zeros((10, 5), np.float32)
    features[[1, 3, 9]] = [[0, 1, -1, 0, 0], [0.5, 0.5, 0, 0, 1], [-1, 0, 0, 0, 0]]
    theta = np.float32([0.1, 0.2, 0.4, 0.8, 1.0])
    task = env.default_params.replace(theta=theta, features=features, noise_sd=np.float32(0))
    obs, rewards, *_ = pull(env, task, np.int32([0, 1, 3, 9, 42, -1]), getkey())
    np.testing.assert_allclose(rewards, [0, -0.2, 1.15, -0.1, -0.1, 0], atol=1e-6)
    np.testing.assert_array_equal(obs, np.tile(features.ravel(), (6, 1)))
    assert env.optimal_action(None, task) == 3
    n = 4001
    tasks = jax.device_get(icrl_envs.sample_tasks(env, getkey(), n))
    assert tasks.theta.shape == (n, 5) and tasks.features.shape == (n, 10, 5)
    for x in (tasks.theta, (tasks.features + 1) / 2):  # U[0, 1]
        for power in (1, 2, 3):
            np.testing.assert_allclose((x**power).mean(0), 1 / (power + 1), atol=5 * 0.3 / np.sqrt(n))
        assert x.min() >= 0 and x.max() <= 1


def test_an_unknown_environment_names_the_close_ones():
    with pytest.raises(ValueError, match="'gausian_bandit' is unknown; close names: gaussian_bandit"):
        icrl_envs.make("gausian_bandit")
    with pytest.raises(ValueError, match="close names: .*bernoulli_bandit, .*linear_bandit"):
        icrl_envs.make("zzz")


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(ValueError, match="preset='ad': gaussian_bandit has 'dpt'"):
        icrl_envs.make("gaussian_bandit", "ad")


def test_arguments_win_over_the_preset():
    assert icrl_envs.make("gaussian_bandit", "dpt", num_arms=7).num_arms == 7
    assert icrl_envs.make("linear_bandit", "dpt").num_arms == 10

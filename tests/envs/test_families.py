"""One suite for every task family: what a gymnax user expects of it, and what an in-context learner needs."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from two_episodes import TwoEpisodes, on_host

import icrl_envs

ENVS = {
    "gaussian_bandit": icrl_envs.make("gaussian_bandit", num_arms=7, noise_sd=0.2),
    "bernoulli_bandit": icrl_envs.make("bernoulli_bandit", num_arms=7),
    "linear_bandit": icrl_envs.make("linear_bandit", num_arms=7, dim=3),
    "two_episodes": TwoEpisodes(),
}
B, T = 11, 13


@pytest.fixture(params=ENVS, scope="module")
def env(request):
    return ENVS[request.param]


@functools.partial(on_host, static_argnames=("env", "split"))
def walk(env, key, split="train"):
    """B tasks, T random steps in each."""

    def one_task(key):
        task = env.sample_task(key, split)
        obs, state = env.reset(key, task)

        def step(carry, key):
            obs, state = carry
            action = env.action_space(task).sample(key)
            after = env.step(key, state, action, task)
            return after[:2], (obs, state, action, *after)

        return task, jax.lax.scan(step, (obs, state), jax.random.split(key, T))[1]

    return jax.vmap(one_task)(jax.random.split(key, B))


def test_spaces_hold_and_everything_is_finite(env, getkey):
    task, (obs, _, action, next_obs, _, reward, terminated, truncated, info) = walk(env, getkey())
    space = env.observation_space(env.default_params)
    for x in (obs, next_obs, info["final_observation"]):
        assert x.shape == (B, T, *space.shape) and x.dtype == space.dtype
        assert jax.jit(jax.vmap(jax.vmap(space.contains)))(x).all()
    assert action.dtype == jnp.int32 and action.min() >= 0 and action.max() == env.num_actions - 1
    assert reward.dtype == jnp.float32 and reward.shape == (B, T)
    assert terminated.dtype == truncated.dtype == bool
    chex.assert_tree_all_finite((task, obs, reward))


def test_default_params_is_one_task(env, getkey):
    one, drawn = env.default_params, env.sample_task(getkey())
    assert jax.tree.structure(one) == jax.tree.structure(drawn)
    assert jax.tree.map(jnp.shape, one) == jax.tree.map(jnp.shape, drawn)


def test_same_key_same_trajectory(env, getkey):
    key = getkey()
    chex.assert_trees_all_equal(walk(env, key), on_host(walk.__wrapped__, static_argnums=0)(env, key))
    one, other = walk(env, key)[1][2], walk(env, getkey())[1][2]
    assert (one != other).any()


def test_step_is_traced_once_for_all_tasks(env, getkey):
    traced = []

    @jax.jit
    def step(key, task):
        traced.append(None)
        _, state = env.reset_env(key, task)
        return env.step_env(key, state, env.action_space(task).sample(key), task)

    for _ in range(3):
        step(getkey(), jax.jit(env.sample_task)(getkey()))
    assert len(traced) == 1


def test_train_and_test_tasks_are_disjoint(env, getkey):
    keys = jax.random.split(getkey(), 199)
    drawn = [on_host(jax.vmap(functools.partial(env.sample_task, split=split)))(keys) for split in ("train", "test")]
    drawn = [np.stack([np.ravel(x) for x in zip(*map(np.atleast_1d, _rows(d)), strict=True)]) for d in drawn]
    train, test = ({tuple(row) for row in d} for d in drawn)
    assert train and test and not train & test


def test_sampled_tasks_are_those_of_the_keys_one_by_one(env, getkey):
    key, draw = getkey(), on_host(env.sample_task, static_argnums=1)
    sample = on_host(icrl_envs.sample_tasks, static_argnums=(0, 2, 3))
    for split in ("train", "test"):
        one_by_one = [draw(k, split) for k in jax.random.split(key, B)]
        expected = jax.tree.map(lambda *x: np.stack(x), *one_by_one)
        chex.assert_trees_all_close(sample(env, key, B, split), expected, rtol=1e-6)
    chex.assert_trees_all_close(sample(env, key, B), expected, rtol=1e-6)  # held out unless told


def _rows(task):
    """What of a batch of tasks tells them apart, one row a task."""
    changing = [np.asarray(x).reshape(len(x), -1) for x in jax.tree.leaves(task)]
    return [np.concatenate(changing, axis=1)]


@pytest.mark.parametrize("name", icrl_envs.FAMILIES)
def test_unknown_split_is_refused(name, getkey):
    with pytest.raises(ValueError, match="split='validation': must be one of 'train', 'test', 'all'"):
        ENVS[name].sample_task(getkey(), "validation")


def test_optimal_action_is_best(env, getkey):
    task, (_, state, *_) = walk(env, getkey())
    first = jax.tree.map(lambda x: x[:, 0], state)

    def gaps(state, task):
        rewards = jnp.stack([env.expected_reward(state, jnp.int32(a), task) for a in range(env.num_actions)])
        return rewards.max() - env.expected_reward(state, env.optimal_action(state, task), task)

    assert (on_host(jax.vmap(gaps))(first, task) == 0).all()


def test_expected_reward_is_the_mean_of_the_reward(env, getkey):
    n, task = 20_000, env.sample_task(getkey())
    _, state = env.reset(getkey(), task)

    @on_host
    @functools.partial(jax.vmap, in_axes=(0, None))
    def rewards(action, keys):
        return jax.vmap(lambda key: env.step_env(key, state, action, task)[2])(keys)

    actions = jnp.arange(env.num_actions)
    drawn = np.asarray(rewards(actions, jax.random.split(getkey(), n)))
    expected = on_host(jax.vmap(env.expected_reward, in_axes=(None, 0, None)))(state, actions, task)
    error = drawn.std(-1) / np.sqrt(n)
    assert (np.abs(drawn.mean(-1) - expected) <= 5 * error + 1e-6).all()

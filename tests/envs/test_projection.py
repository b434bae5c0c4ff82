"""Environments behind random projections, and several behind one interface."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from two_episodes import on_host

import icrl_envs
from icrl_envs import copies, preferences, revealed
from icrl_envs.memory.control import CartPoleState
from icrl_envs.mixture import MixtureState, mixture
from icrl_envs.projection import projected
from icrl_jax.agents import oracle, uniform
from icrl_jax.rollout import rollout, start

CARTPOLE, PENDULUM, BANDIT, SWEEPER = (
    icrl_envs.make(name) for name in ("stateless_cartpole", "stateless_pendulum", "memory_bandit", "minesweeper")
)
DISCRETE = projected(CARTPOLE, obs_size=5, action_size=7)
CONTINUOUS = projected(PENDULUM, obs_size=4, action_size=3)
SEEN_ONLY = projected(CARTPOLE, obs_size=4)  # the published code's meta-task
MIXED = mixture(projected(CARTPOLE, 12, 10), projected(BANDIT, 12, 10))
ENVS = {"discrete": DISCRETE, "continuous": CONTINUOUS, "seen_only": SEEN_ONLY}
B, T, N = 13, 29, 199


@functools.cache
def drawn(env):
    """N tasks of each split."""
    draw = lambda key: {split: env.sample_task(key, split) for split in ("train", "test")}
    return on_host(jax.vmap(draw))(jax.random.split(jax.random.key(17), N))


def drawn_one(env):
    return jax.tree.map(lambda x: x[1], drawn(env)["test"])


@functools.partial(on_host, static_argnums=0)
def walk(env, tasks, key):
    """B tasks, T random steps in each, all from `step_env` so that nothing is reset."""

    def one(task, key):
        key_reset, key_steps = jax.random.split(key)
        obs, state = env.reset_env(key_reset, task)

        def step(state, key):
            action = env.action_space(task).sample(key)
            obs, after, reward, terminated, _ = env.step_env(key, state, action, task)
            return after, (key, state, action, obs, after, reward, terminated, env.is_truncated(after, task))

        return key_reset, obs, jax.lax.scan(step, state, jax.random.split(key_steps, T))[1]

    return jax.vmap(one)(tasks, jax.random.split(key, B))


@functools.partial(on_host, static_argnums=0)
def step_inside(env, keys, states, actions, tasks):
    step = jax.vmap(jax.vmap(env.step_env, in_axes=(0, 0, 0, None)))
    return step(keys, states, actions, tasks)[:4]


@pytest.mark.parametrize("name", ENVS)
def test_a_step_is_the_step_inside_projected_by_hand(name, getkey):
    env = ENVS[name]
    task = jax.tree.map(lambda x: x[:B], drawn(env)["train"])
    key_reset, first, steps = walk(env, task, getkey())
    keys, states, actions, obs, after, reward, terminated, truncated = steps
    first_inside = on_host(jax.vmap(env.env.reset_env))(key_reset, task.env_params)[0]
    np.testing.assert_allclose(first, np.einsum("boi,bi->bo", task.obs_matrix, first_inside), atol=1e-6)
    if name == "discrete":
        inside = np.take_along_axis(task.action_map, actions, axis=1)
    elif name == "continuous":
        inside = np.clip(2 * np.einsum("bia,bta->bti", task.action_map, actions), -2, 2)
        assert (np.abs(inside) < 2).any() and (np.abs(inside) == 2).any()
    else:
        inside = actions
        assert task.action_map is None
    expected_obs, *expected = step_inside(env.env, keys, states, inside, task.env_params)
    np.testing.assert_allclose(obs, np.einsum("boi,bti->bto", task.obs_matrix, expected_obs), atol=1e-5)
    chex.assert_trees_all_close([after, reward, terminated], expected, rtol=1e-4, atol=1e-5)
    assert obs.shape == (B, T, env.obs_size) and obs.dtype == np.float32
    assert (np.abs(obs) <= env.observation_space().high).all() and not truncated.any()


def test_maps_lose_nothing_and_differ_by_task():
    discrete, continuous = drawn(DISCRETE)["train"], drawn(CONTINUOUS)["train"]
    gram = np.einsum("boi,boj->bij", discrete.obs_matrix, discrete.obs_matrix)
    np.testing.assert_allclose(gram, np.tile(2 * np.eye(2), (N, 1, 1)), atol=1e-5)
    np.testing.assert_allclose((continuous.action_map**2).sum(-1), 1, atol=1e-5)
    assert discrete.action_map.shape == (N, 7) and set(np.unique(discrete.action_map)) == {0, 1}
    assert (np.sort(discrete.action_map)[:, [0, -1]] == [0, 1]).all()  # both actions can be chosen in every task
    assert abs(discrete.action_map.mean() - 0.5) < 5 * 0.5 / np.sqrt(N * 7)
    assert (np.abs(discrete.obs_matrix.mean(0)) < 5 * np.sqrt(2 / 5 / N)).all()  # as likely as its negative
    np.testing.assert_allclose((discrete.obs_matrix**2).mean(0), 2 / 5, atol=5 * 0.5 / np.sqrt(N))
    assert len(np.unique(discrete.obs_matrix, axis=0)) == N


def test_as_many_choices_as_actions_permute_them():
    maps = drawn(MIXED)["train"].env_params[1].action_map
    np.testing.assert_array_equal(np.sort(maps), np.tile(np.arange(10), (N, 1)))
    assert len(np.unique(maps, axis=0)) == N


@functools.partial(on_host, static_argnums=0)
def act_and_clip(env, task, seed, action):
    low, high = (-1, 1) if env is CONTINUOUS else (0, env.num_actions - 1)
    key = jax.random.key(seed)
    state = env.reset_env(key, task)[1]
    return [env.step_env(key, state, a, task)[:4] for a in (action, jnp.clip(action, low, high))]


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from([DISCRETE, CONTINUOUS, MIXED]),
    st.integers(0, N - 1),
    st.integers(0, 2**31 - 1),
    st.integers(-(2**31), 2**31 - 1),
    st.tuples(*3 * [st.floats(-(2.0**99), 2.0**99, width=32)]),
)
def test_bounds_hold_and_actions_are_clipped(env, i, seed, choice, torques):
    """All environments inside pay 1/200 a step at most."""
    task = jax.tree.map(lambda x: x[i], drawn(env)["train"])
    action = np.float32(torques) if env is CONTINUOUS else np.int32(choice)
    one, clipped = act_and_clip(env, task, np.int32(seed), action)
    chex.assert_trees_all_equal(one, clipped)
    assert abs(one[2]) <= np.float32(1 / 200) and (np.abs(one[0]) <= env.observation_space().high).all()


@pytest.mark.parametrize("env", [DISCRETE, CONTINUOUS, MIXED], ids=["discrete", "continuous", "mixture"])
def test_train_and_test_share_no_map(env):
    train, test = drawn(env)["train"], drawn(env)["test"]
    for x, y in zip(jax.tree.leaves(train), jax.tree.leaves(test), strict=True):
        if np.issubdtype(x.dtype, np.floating) and np.ptp(x) > 0:
            assert not set(x.reshape(N, -1)[:, 0]) & set(y.reshape(N, -1)[:, 0])


def test_by_default_nothing_is_mixed(getkey):
    task = DISCRETE.default_params
    chex.assert_trees_all_equal(task.env_params, CARTPOLE.default_params)
    np.testing.assert_array_equal(task.action_map, [0, 1, 0, 1, 0, 1, 0])
    obs, state = DISCRETE.reset(getkey(), task)
    np.testing.assert_allclose(obs, np.sqrt(2) * np.float32([state.x, state.theta, 0, 0, 0]), rtol=1e-6)


def test_every_action_inside_can_be_reached():
    """The corners and random points of a box of actions."""

    class Wide(icrl_envs.family("stateless_pendulum")):
        def action_space(self, params=None):
            return spaces.Box(jnp.array([-1.0, 0.0, 2.0]), jnp.array([3.0, 1.0, 5.0]), (3,))

        def optimal_action(self, state, params):
            return state

    env = projected(Wide(), obs_size=2, action_size=4)
    corners = np.stack(np.meshgrid([-1, 3], [0, 1], [2, 5]), -1).reshape(-1, 3)
    some = np.random.default_rng(0).uniform([-1, 0, 2], [3, 1, 5], (20, 3))
    wanted = np.concatenate([corners, some]).astype(np.float32)

    @functools.partial(jax.vmap, in_axes=(0, None))
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def there_and_back(task, action):
        outside = env.optimal_action(action, task)
        return outside, env._action(outside, task)

    tasks = jax.tree.map(lambda x: x[:5], drawn(env)["train"])
    outside, inside = on_host(there_and_back)(tasks, wanted)
    assert np.abs(outside).max() <= 1 + 1e-6
    np.testing.assert_allclose(inside, np.tile(wanted, (5, 1, 1)), atol=1e-5)


@functools.partial(on_host, static_argnames=("env", "num_steps"))
def live(agent, env, task, key, num_steps=T):
    return rollout(agent, env, start(agent, env, task, key), key, num_steps)[1]


def test_revealed_and_the_oracle_see_through_the_maps(getkey):
    env = projected(SWEEPER, obs_size=6, action_size=20)
    task = drawn_one(env)
    record = live(oracle(env), revealed(env), task, getkey(), 28)
    assert record.transition.obs.shape == (28, 6) and record.transition.action.max() < 20
    rewards = record.transition.feedback.reshape(2, 14)
    np.testing.assert_allclose(rewards.sum(1), env.optimal_return(env.default_params), rtol=1e-6)
    np.testing.assert_allclose(record.env_info["expected_reward"], 1 / 14, rtol=1e-6)
    state = SWEEPER.reset(getkey(), task.env_params)[1]
    chex.assert_trees_all_equal(on_host(env.render)(state, task), on_host(SWEEPER.render)(state, task.env_params))


def test_copies_and_preferences_go_around(getkey):
    record = live(uniform(copies(DISCRETE, 3)), copies(DISCRETE, 3), drawn_one(DISCRETE), getkey())
    assert record.transition.obs.shape == (T, 3, 5) and len(np.unique(record.transition.obs[0], axis=0)) == 3
    pairs = preferences(projected(BANDIT, obs_size=2, action_size=11))
    record = live(oracle(pairs), revealed(pairs), pairs.default_params, getkey())
    assert record.transition.action.shape == (T, 2)
    np.testing.assert_allclose(record.env_info["strong_regret"], 0, atol=1e-8)


@pytest.mark.parametrize("index", [0, 1])
def test_a_mixture_is_the_chosen_environment(index, getkey):
    inner = MIXED.envs[index]
    task = drawn_one(MIXED).replace(index=np.int32(index))

    @functools.partial(on_host)
    def both(key):
        def step(states, key):
            action = inner.action_space().sample(key)
            ours = MIXED.step_env(key, states[0], action, task)
            theirs = inner.step_env(key, states[1], action, task.env_params[index])
            best = MIXED.optimal_action(states[0], task), inner.optimal_action(states[1], task.env_params[index])
            return (ours[1], theirs[1]), ((ours[0], *ours[2:4], best[0]), (theirs[0], *theirs[2:4], best[1]))

        ours = MIXED.reset_env(key, task)
        theirs = inner.reset_env(key, task.env_params[index])
        (ended, _), steps = jax.lax.scan(step, (ours[1], theirs[1]), jax.random.split(key, T))
        return ours[0], theirs[0], steps, ended

    first, expected, (steps, expected_steps), ended = both(getkey())
    np.testing.assert_allclose(first, expected, atol=1e-6)
    chex.assert_trees_all_close(steps, expected_steps, rtol=1e-5, atol=1e-6)
    assert ended.time == T and ended.states[index].time == T and ended.states[1 - index].time == 0


def test_environments_of_a_mixture_are_equally_likely():
    for tasks in drawn(MIXED).values():
        assert abs(tasks.index.mean() - 0.5) < 5 * 0.5 / np.sqrt(N)


@pytest.mark.parametrize("index, limit, lasts", [(0, 200, 200), (0, 30, 30), (1, 200, 50), (1, 30, 30)])
def test_the_lower_of_both_time_limits_holds(index, limit, lasts):
    env = mixture(CARTPOLE, icrl_envs.make("stateless_cartpole", num_steps=50))
    task = env.default_params.replace(index=jnp.int32(index), max_steps_in_episode=limit)
    np.testing.assert_allclose(env.optimal_return(task), lasts / (200, 50)[index], rtol=1e-6)
    for time in (lasts - 1, lasts):
        state = CartPoleState(jnp.int32(time), *jnp.zeros(4))
        assert env.is_truncated(MixtureState(time=state.time, states=(state, state)), task) == (time == lasts)


@functools.partial(on_host, static_argnums=0)
def draw(env, states, tasks):
    return jax.vmap(env.render)(states, tasks)


def test_a_mixture_draws_the_chosen_environment(getkey):
    few_arms = projected(icrl_envs.make("memory_bandit", num_arms=7), 12, 10)  # a narrower picture
    env = mixture(MIXED.envs[0], few_arms)
    tasks = jax.vmap(lambda index: env.default_params.replace(index=index))(jnp.arange(2))
    states = on_host(jax.vmap(env.reset_env))(jax.random.split(getkey(), 2), tasks)[1]
    inside = [draw(*each) for each in zip(env.envs, states.states, tasks.env_params, strict=True)]
    assert inside[0].shape != inside[1].shape
    height, width = np.max([pictures.shape[1:3] for pictures in inside], axis=0)
    for i, picture in enumerate(draw(env, states, tasks)):
        expected = np.full((height, width, 3), 255, np.uint8)
        chosen = inside[i][i]
        expected[: chosen.shape[0], : chosen.shape[1]] = chosen
        np.testing.assert_array_equal(picture, expected)


def test_a_mixture_has_no_picture_where_a_part_has_none():
    class Blind(type(CARTPOLE)):
        render = None

    assert mixture(CARTPOLE, Blind()).render is None


@pytest.mark.parametrize(
    "env, sizes, message",
    [
        (CARTPOLE, (1,), "obs_size=1: must be an integer of at least 2, the size inside"),
        (CARTPOLE, (2.0,), "obs_size=2.0: must be an integer of at least 2, the size inside"),
        (CARTPOLE, (2, 1), "action_size=1: must be an integer of at least 2, the size inside"),
        (PENDULUM, (2, 0), "action_size=0: must be an integer of at least 1, the size inside"),
        *(
            (
                wrapped,
                (9,),
                f"env='{name}': must be one array to see and one to act with: other wrappers go around this one",
            )
            for wrapped, name in (
                (revealed(CARTPOLE), "StatelessCartPole"),
                (copies(BANDIT, 3), "MemoryBandit"),
                (preferences(BANDIT), "MemoryBandit"),
            )
        ),
    ],
)
def test_wrong_projections_are_refused(env, sizes, message):
    with pytest.raises(ValueError) as refused:
        projected(env, *sizes)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    "envs, message",
    [
        ((), "envs=(): must be one environment or more"),
        (([CARTPOLE, CARTPOLE],), "envs=([<"),
        ((CARTPOLE, "stateless_cartpole"), "envs=(<"),
        ((CARTPOLE, BANDIT), "envs=('StatelessCartPole', 'MemoryBandit'): must be equal in the observations' shape"),
        ((CARTPOLE, PENDULUM), "envs=('StatelessCartPole', 'StatelessPendulum'): must be equal in actions"),
        ((SWEEPER, copies(SWEEPER, 2)), "envs='MineSweeper': must be environments whose observations are a Box"),
    ],
)
def test_wrong_mixtures_are_refused(envs, message):
    with pytest.raises(ValueError) as refused:
        mixture(*envs)
    assert str(refused.value).startswith(message)

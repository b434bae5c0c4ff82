import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from two_episodes import on_host

import icrl_envs
from icrl_envs.planning import plan
from icrl_envs.tabular_mdp import TabularMDPState

N = 20_000
RING = icrl_envs.make("tabular_mdp", num_states=5, num_actions=3, horizon=4)


def at(state, time=0):
    return TabularMDPState(time=jnp.int32(time), at=jnp.int32(state))


def backward(transitions, rewards, horizon):
    """Backward induction by definition, in float64: Q [H, S, A]."""
    num_states, num_actions = rewards.shape
    q = np.zeros((horizon + 1, num_states, num_actions))
    for h in reversed(range(horizon)):
        for s, a in itertools.product(range(num_states), range(num_actions)):
            q[h, s, a] = rewards[s, a] + sum(transitions[s, a, j] * q[h + 1, j].max() for j in range(num_states))
    return q[:-1]


def drawn(env, seed):
    """A task drawn with NumPy, which compiles nothing, and its transitions and means."""
    random, shape = np.random.default_rng(seed), (env.num_states, env.num_actions)
    transitions = random.dirichlet(np.ones(env.num_states), shape)
    means = random.uniform(size=shape)
    new = {"transitions": jnp.asarray(transitions, jnp.float32), "reward_means": jnp.asarray(means, jnp.float32)}
    return env.default_params.replace(**new), transitions, means


@pytest.mark.parametrize("start", [0, 3])
def test_a_scripted_walk_on_the_ring(start, getkey):
    """The default task: action a moves on by a, and any action in state 4 pays 1."""
    task, state = RING.default_params, at(start)
    script = {  # action -> state, reward; an action outside is clipped
        0: [(1, 1, 0.0), (9, 3, 0.0), (1, 4, 0.0), (-2, 4, 1.0)],
        3: [(2, 0, 0.0), (2, 2, 0.0), (2, 4, 0.0), (1, 0, 1.0)],
    }[start]
    for time, (action, expected, pay) in enumerate(script, start=1):
        assert RING.expected_reward(state, action, task) == pay
        obs, state, reward, terminated, _ = RING.step_env(getkey(), state, jnp.int32(action), task)
        assert (obs, state.at, state.time, reward) == (expected, expected, time, pay)
        assert obs.dtype == jnp.int32 and not terminated
        assert RING.is_truncated(state, task) == (time == 4)


@pytest.mark.parametrize("state, best, optimal", [(0, 2, 2.0), (4, 0, 4.0), (3, 1, 3.0), (1, 2, 2.0)])
def test_the_ring_is_solved_by_hand(state, best, optimal):
    """Four steps: the last state pays for every step spent there, and waiting costs no one its place."""
    task = RING.default_params.replace(start=jnp.eye(5)[state])
    assert RING.optimal_return(task) == optimal
    if state != 1:  # from there any way of two steps
        assert RING.optimal_action(at(state), task) == best
    assert RING.optimal_action(at(2, time=3), task) == 0  # too late: all the same, so the lowest


def test_plan_is_backward_induction():
    for num_states, num_actions, horizon in ((1, 2, 1), (2, 3, 7), (7, 2, 5)):
        env = icrl_envs.make("tabular_mdp", num_states=num_states, num_actions=num_actions, horizon=horizon)
        task, transitions, rewards = drawn(env, 7)
        q = plan(task.transitions, task.reward_means, horizon)
        np.testing.assert_allclose(q, backward(transitions, rewards, horizon), rtol=1e-5, atol=1e-6)


def test_the_optimal_return_is_the_best_of_all_policies():
    """Every deterministic time-dependent policy of a tiny MDP, evaluated by multiplying matrices."""
    env = icrl_envs.make("tabular_mdp", num_states=2, num_actions=2, horizon=3, start="uniform", reward_law="gaussian")
    task, transitions, rewards = drawn(env, 7)
    rows, best = np.arange(2), -np.inf
    for policy in itertools.product(itertools.product(range(2), repeat=2), repeat=3):
        law, value = np.full(2, 0.5), 0.0
        for actions in map(list, policy):
            value += law @ rewards[rows, actions]
            law = law @ transitions[rows, actions]
        best = max(best, value)
    np.testing.assert_allclose(env.optimal_return(task), best, rtol=1e-5)


def test_optimal_actions_depend_on_the_steps_left():
    env = icrl_envs.make("tabular_mdp", num_states=5, num_actions=3, horizon=6)
    task, transitions, rewards = drawn(env, 7)
    for length in (6, 4):  # a task may be shorter than the constructor says
        q, short = backward(transitions, rewards, length), task.replace(max_steps_in_episode=length)
        act = on_host(
            jax.vmap(jax.vmap(lambda s, t, task: env.optimal_action(at(s, t), task), (0, None, None)), (None, 0, None))
        )
        np.testing.assert_array_equal(act(jnp.arange(5), jnp.arange(length), short), q.argmax(-1))
        np.testing.assert_allclose(env.optimal_return(short), q[0, 0].max(), rtol=1e-5)


def test_tasks_longer_than_the_horizon_have_no_known_return():
    longer = RING.default_params.replace(max_steps_in_episode=5)
    assert jnp.isnan(RING.optimal_return(longer)) and not jnp.isnan(RING.optimal_return(RING.default_params))
    assert RING.optimal_action(at(0), longer) == 2  # as with 4 steps left


@pytest.mark.parametrize("reward_law, noise_sd", [("bernoulli", 1.0), ("gaussian", 0.7), ("gaussian", 0.0)])
def test_steps_follow_the_laws_of_the_task(reward_law, noise_sd, getkey):
    env = icrl_envs.make("tabular_mdp", num_states=5, num_actions=3, reward_law=reward_law, noise_sd=noise_sd)
    task, transitions, rewards = drawn(env, 7)
    step = on_host(jax.vmap(lambda key: env.step_env(key, at(3), jnp.int32(1), task)))
    obs, _, reward, _, _ = step(jax.random.split(getkey(), N))
    p, mean = transitions[3, 1], rewards[3, 1]
    share = np.bincount(obs, minlength=5) / N
    assert (np.abs(share - p) <= 5 * np.sqrt(p * (1 - p) / N)).all()
    sd = np.sqrt(mean * (1 - mean)) if reward_law == "bernoulli" else noise_sd
    assert abs(reward.mean(dtype=np.float64) - mean) <= 5 * sd / np.sqrt(N) + 1e-6
    np.testing.assert_allclose(reward.std(dtype=np.float64), sd, rtol=0.03, atol=1e-6)
    if reward_law == "bernoulli":
        assert set(np.unique(reward)) <= {0.0, 1.0}
    # the reward and the move are drawn apart
    moved = obs == np.argmax(p)
    error = 5 * sd * np.sqrt(1 / moved.sum() + 1 / (~moved).sum())
    assert abs(reward[moved].mean(dtype=np.float64) - reward[~moved].mean(dtype=np.float64)) <= error + 1e-6


@pytest.mark.parametrize("concentration", [0.3, 1.0, 4.0])
def test_transitions_have_the_moments_of_a_dirichlet(concentration, getkey):
    env = icrl_envs.make("tabular_mdp", num_states=5, num_actions=2, concentration=concentration)
    draw = on_host(jax.vmap(lambda key: env.sample_task(key).transitions))
    p = draw(jax.random.split(getkey(), N // 10)).astype(np.float64).reshape(-1, 5)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
    assert p.min() >= 0
    variance = (1 / 5) * (4 / 5) / (5 * concentration + 1)
    np.testing.assert_allclose(p.mean(0), 1 / 5, atol=5 * np.sqrt(variance / len(p)))
    np.testing.assert_allclose(p.var(0), variance, rtol=0.06)


@pytest.mark.parametrize("reward_law", ["bernoulli", "gaussian"])
def test_reward_means_follow_their_prior(reward_law, getkey):
    env = icrl_envs.make("tabular_mdp", num_states=3, num_actions=2, reward_law=reward_law)
    draw = on_host(jax.vmap(lambda key: env.sample_task(key).reward_means))
    means = draw(jax.random.split(getkey(), N)).astype(np.float64)
    mean, sd = (0.5, 12**-0.5) if reward_law == "bernoulli" else (0.0, 1.0)
    np.testing.assert_allclose(means.mean(0), mean, atol=5 * sd / np.sqrt(N))
    np.testing.assert_allclose(means.std(0), sd, rtol=0.03)
    assert reward_law == "gaussian" or (means.min() >= 0 and means.max() <= 1)


@pytest.mark.parametrize("start, states", [("first", {0}), ("uniform", {0, 1, 2, 3, 4})])
def test_episodes_start_where_the_task_says(start, states, getkey):
    env = icrl_envs.make("tabular_mdp", num_states=5, start=start)
    reset = on_host(jax.vmap(env.reset, in_axes=(0, None)))
    obs, state = reset(jax.random.split(getkey(), 1009), env.default_params)
    assert set(obs) == states and (obs == state.at).all()
    moved, _ = reset(jax.random.split(getkey(), 3), env.default_params.replace(start=jnp.eye(5)[3]))
    assert (moved == 3).all()


@functools.cache
def batched_step():
    env = icrl_envs.make("tabular_mdp", num_states=5, num_actions=3)
    transitions = np.random.default_rng(5).dirichlet(np.full(5, 0.1), (5, 3))
    transitions = np.where(transitions < 0.01, 0, transitions)  # and sums a little below 1
    task = drawn(env, 5)[0].replace(transitions=jnp.asarray(transitions, jnp.float32))
    step = lambda key, state, action: env.step_env(key, at(state), action, task)
    return on_host(step), np.asarray(task.transitions)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 4), st.integers(-(2**31), 2**31 - 1), st.integers(0, 2**32 - 1))
def test_any_action_leads_only_where_it_can(state, action, seed):
    step, transitions = batched_step()
    obs, _, reward, terminated, _ = step(jax.random.key(seed), np.int32(state), np.int32(action))
    assert 0 <= obs < 5 and transitions[state, np.clip(action, 0, 2), obs] > 0
    assert reward in (0.0, 1.0) and not terminated


def test_the_picture_shows_state_transitions_and_pay():
    task = RING.default_params
    picture = np.asarray(RING.render(at(2), task))
    assert picture.shape == ((1 + 3 + 3) * 16, 5 * 16, 3)
    tiles = picture[8::16, 8::16]  # the middle of every cell
    orange, blue, green = (np.flatnonzero((tiles[i] != 255).any(-1)).tolist() for i in (0, 1, 6))
    assert (orange, blue, green) == ([2], [2], [4])
    assert [np.flatnonzero((tiles[i] != 255).any(-1)).tolist() for i in (2, 3)] == [[3], [4]]


@pytest.mark.parametrize(
    "argument, value, allowed",
    [
        ("num_states", 0, "an integer of at least 1"),
        ("num_actions", 1, "an integer of at least 2"),
        ("horizon", 0, "an integer of at least 1"),
        ("horizon", 2.5, "an integer of at least 1"),
        ("concentration", "1", "a finite number above 0"),
        ("concentration", True, "a finite number above 0"),
        ("noise_sd", "x", "a finite number of at least 0"),
        ("concentration", 0.0, "a finite number above 0"),
        ("concentration", float("inf"), "a finite number above 0"),
        ("reward_law", "beta", "'bernoulli' or 'gaussian'"),
        ("noise_sd", -1.0, "a finite number of at least 0"),
        ("start", "last", "'first' or 'uniform'"),
    ],
)
def test_wrong_arguments_are_refused(argument, value, allowed):
    with pytest.raises(ValueError, match=f"^{argument}={value!r}: must be {allowed}$"):
        icrl_envs.make("tabular_mdp", **{argument: value})

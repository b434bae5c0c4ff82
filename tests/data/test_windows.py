"""Windows show a sequence model what the agent that lived them was shown, and stay in one task and one stream."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_hand import ended, histories
from two_episodes import on_host, spied

import icrl_envs
from icrl_jax.agents import as_learner, uniform
from icrl_jax.core import Transition
from icrl_jax.data.collect import collect_histories
from icrl_jax.data.contexts import timesteps_of
from icrl_jax.data.histories import stride_episodes
from icrl_jax.data.windows import draw_place, sample_window, window

H, T, L = 5, 37, 11
WHOLE = histories(lambda m, n: np.random.default_rng([m, n]).integers(1, H + 1, T), T, H)


@functools.partial(on_host, static_argnums=(2, 3))
def draw(histories, key, num, length, weights=None):
    return jax.vmap(lambda key: sample_window(histories, key, length, weights))(jax.random.split(key, num))


def test_a_window_is_of_one_task_and_one_stream_and_in_order(getkey):
    found = draw(WHOLE, getkey(), 2003, L)
    task, stream, time = np.moveaxis(found.transitions.obs, -1, 0)
    assert (task == task[:, :1]).all() and (stream == stream[:, :1]).all() and (np.diff(time) == 1).all()
    # Every one that there is, the first and the last of a stream among them, about as often.
    _, count = np.unique(np.stack([task, stream, time])[:, :, 0], axis=1, return_counts=True)
    assert len(count) == 3 * 2 * (T - L + 1) and count.max() < 40
    np.testing.assert_array_equal(found.transitions.action, time % 5)
    np.testing.assert_array_equal(found.transitions.feedback, 10_000 * task + 1000 * stream + time)


def test_an_input_shows_what_happened_before_it_and_not_what_follows(getkey):
    (obs, prev, reset), transitions = draw(WHOLE, getkey(), 101, L)
    np.testing.assert_array_equal(obs, transitions.obs)
    np.testing.assert_array_equal(reset, np.arange(L)[None] == np.zeros((101, 1)))
    chex.assert_trees_all_equal(
        *(jax.tree.map(lambda x, s=s: x[:, s], y) for y, s in ((prev, np.s_[1:]), (transitions, np.s_[:-1])))
    )
    assert not any(x[:, 0].any() for x in jax.tree.leaves(prev))


def test_a_strided_window_skips_whole_episodes(getkey):
    strided = on_host(stride_episodes, static_argnums=1)(WHOLE, 3)
    length = strided.form.least_steps
    assert len(np.unique(strided.steps)) > 1
    found = draw(strided, getkey(), 1009, length)
    task, stream, time = np.moveaxis(found.transitions.obs, -1, 0)
    assert (task == task[:, :1]).all() and (stream == stream[:, :1]).all()
    jumps = np.diff(time) != 1
    assert (np.diff(time) >= 1).all() and jumps.any() and ended(found.transitions)[:, :-1][jumps].all()
    assert ended(WHOLE.transitions)[task, stream, time - 1][:, 1:][jumps].all()  # and the next begins with an episode


def test_one_strided_window_may_span_all_that_was_learned(getkey):
    whole = histories(lambda m, n: [H] * 12, 60, H, terminates=False)
    found = draw(stride_episodes(whole, 4), getkey(), 11, 15)
    assert (found.transitions.obs[:, -1, 2] - found.transitions.obs[:, 0, 2] == 44).all()


def test_windows_may_begin_with_an_episode(getkey):
    """With any that leaves room for the rest, about as often."""
    whole = histories(lambda m, n: [H] * 8, T, H, terminates=False)
    time = on_host(jax.vmap(lambda key: sample_window(whole, key, 2 * H, every=H).transitions.obs[0, 2]))(
        jax.random.split(getkey(), 2003)
    )
    first, count = np.unique(time, return_counts=True)
    np.testing.assert_array_equal(first, H * np.arange((T - 2 * H) // H + 1))
    np.testing.assert_allclose(count / 2003, 1 / len(first), atol=0.05)


def test_streams_are_drawn_by_their_weights(getkey):
    weights = jnp.array([[1, 3], [0, 2], [5, 0]])
    task, stream = np.moveaxis(draw(WHOLE, getkey(), 4001, L, weights).transitions.obs[:, 0, :2], -1, 0)
    np.testing.assert_allclose(np.bincount(task) / 4001, 1 / 3, atol=0.03)
    shares = [stream[task == m].mean() for m in range(3)]
    np.testing.assert_allclose(shares, [0.75, 1, 0], atol=0.04)
    assert shares[1:] == [1, 0]


@pytest.mark.parametrize("length", [0, T + 1, 2.0])
def test_a_length_that_no_stream_is_sure_to_hold_is_refused(length):
    with pytest.raises(ValueError, match=f"length={length}: must be an integer in 1 ..= {T}"):
        sample_window(WHOLE, jax.random.key(0), length)


@pytest.mark.parametrize("name, reward", [("dark_room", "dense"), ("dark_room_hard", "sparse")])
def test_a_window_shows_what_the_agent_was_shown(name, reward, getkey):
    """The inputs of the agent that made the history, recorded as it acted, over the ends of episodes."""
    env = icrl_envs.make(name, "ad_eps", size=3, horizon=5)
    learner, tasks, key = as_learner(spied(uniform(env)), env, 2, 17), env.tasks("test"), getkey()
    found = on_host(collect_histories, static_argnums=(1, 4))(learner, env, tasks, key, 2)

    @on_host
    def lived(task, m):
        key_init, key_rounds = jax.random.split(jax.random.fold_in(key, m))
        state, first = learner.learn(learner.init(key_init, task), jax.random.fold_in(key_rounds, 0))
        _, second = learner.learn(state, jax.random.fold_in(key_rounds, 1))
        return jax.tree.map(lambda *x: jnp.concatenate(x), first, second)

    read = on_host(window, static_argnums=4)
    m, n = 1, 1
    record = jax.tree.map(lambda x: x[:, n] if x.ndim > 1 else x, lived(jax.tree.map(lambda x: x[m], tasks), m))
    spy = record.info["timestep"]
    whole = read(found, m, n, 0, 34)
    chex.assert_trees_all_equal(whole.timesteps, spy)
    chex.assert_trees_all_equal(whole.transitions, record.transition)
    chex.assert_trees_all_equal_dtypes(whole.timesteps, spy)
    ends = ended(record.transition)
    assert ends.sum() > 4 and record.transition.terminated.any() == (reward == "sparse")
    part = read(found, m, n, 13, 11)
    chex.assert_trees_all_equal(jax.tree.map(lambda x: x[1:], part.timesteps), jax.tree.map(lambda x: x[14:24], spy))
    np.testing.assert_array_equal(part.timesteps.obs[0], spy.obs[13])


def test_inputs_go_on_from_what_came_before_and_forget_it_at_a_reset():
    of = lambda t: Transition(*(jnp.float32(10 * t + i) for i in range(6)))
    transitions = jax.tree.map(lambda *x: jnp.stack(x), *map(of, range(1, 8)))
    reset = jnp.arange(7) == 3
    obs, prev, found = timesteps_of(transitions, reset, of(0))
    expected = jax.tree.map(lambda *x: jnp.stack(x), *map(of, range(7)))
    expected = jax.tree.map(lambda x: jnp.where(reset, 0, x), expected)
    chex.assert_trees_all_equal((obs, prev, found), (transitions.obs, expected, reset))
    assert timesteps_of(transitions).reset.tolist() == [True] + 6 * [False]
    assert not timesteps_of(transitions, prev=of(0)).reset.any()


def test_weights_of_other_streams_are_refused(getkey):
    steps = jnp.full((7, 3), 11)
    with pytest.raises(ValueError, match=r"weights=\(7, 5\): must be of shape \(7, 3\), or None"):
        draw_place(steps, getkey(), 5, jnp.ones((7, 5)))

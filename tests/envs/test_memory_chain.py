import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from two_episodes import on_host

import icrl_envs


def start(env, context, query):
    _, state = env.reset(jax.random.key(0), env.default_params)
    return state.replace(context=jnp.asarray(context, jnp.int32), query=jnp.int32(query))


def test_a_scripted_episode():
    """Three bits, length 4: the observation lags by one step, as in bsuite, so the cue is seen twice."""
    env = icrl_envs.make("memory_chain", memory_length=4, num_bits=3)
    state, task = start(env, [1, 0, 1], 2), env.default_params
    cue, silent = [1, -1, 1], [0, 0, 0]
    np.testing.assert_array_equal(env.show(state), [1, 0, *cue])
    step = jax.jit(env.step_env)
    for action, obs, reward, over in [
        (0, [1, 0, *cue], 0, False),
        (1, [0.75, 0, *silent], 0, False),
        (0, [0.5, 0, *silent], 0, False),
        (1, [0.25, 2, *silent], 0, False),
        (1, [0, 0, *silent], 1, True),
    ]:
        got, state, got_reward, terminated, _ = step(jax.random.key(1), state, jnp.int32(action), task)
        np.testing.assert_array_equal(got, obs)
        assert got.dtype == got_reward.dtype == jnp.float32
        assert got_reward == reward and terminated == over and not env.is_truncated(state, task)


@pytest.mark.parametrize("context, query, answer", [([1], 0, 1), ([0], 0, 0), ([1, 0, 0], 1, 0), ([1, 0, 1], 2, 1)])
def test_only_the_last_answer_pays(context, query, answer):
    env = icrl_envs.make("memory_chain", memory_length=7, num_bits=len(context))
    state, task = start(env, context, query), env.default_params
    assert env.optimal_action(state, task) == answer
    expected = on_host(env.expected_reward)
    for time in range(8):
        for action in (0, 1):
            reward = expected(state.replace(time=jnp.int32(time)), jnp.int32(action), task)
            assert reward == (0 if time < 7 else 1 if action == answer else -1)


@pytest.mark.parametrize("memory_length", [1, 2, 64])
def test_episodes_of_any_length_have_the_cue_and_the_oracle_earns_1(memory_length, getkey):
    env = icrl_envs.make("memory_chain", memory_length=memory_length, num_bits=2)
    T, task = memory_length + 1, env.sample_task(getkey())

    @on_host
    def episode(key):
        def step(state, key):
            obs, after, reward, terminated, _ = env.step_env(key, state, env.optimal_action(state, task), task)
            return after, (obs, reward, terminated)

        obs, state = env.reset_env(key, task)
        return obs, state, *jax.lax.scan(step, state, jax.random.split(key, T))[1]

    first, state, obs, reward, terminated = episode(getkey())
    np.testing.assert_array_equal(first[2:], 2 * state.context - 1)
    np.testing.assert_array_equal(obs[0], first)
    assert (obs[1:, 2:] == 0).all() and reward.sum() == 1 == env.optimal_return(task)
    assert env.optimal_return(task.replace(max_steps_in_episode=memory_length)) == 0
    np.testing.assert_array_equal(terminated, np.arange(T) == T - 1)
    np.testing.assert_array_equal(np.flatnonzero(obs[:, 1]), [memory_length - 1] if state.query else [])


def test_bits_and_questions_are_uniform(getkey):
    n, env = 20_000, icrl_envs.make("memory_chain", num_bits=3)
    state = on_host(jax.vmap(env.first_state))(jax.random.split(getkey(), n))
    assert (np.abs(state.context.mean(0) - 0.5) < 5 * 0.5 / np.sqrt(n)).all()
    assert (np.abs(np.bincount(state.query) - n / 3) < 5 * np.sqrt(n / 3)).all()
    assert (np.abs(np.corrcoef(state.context.T) - np.eye(3)) < 5 / np.sqrt(n)).all()


BITS = icrl_envs.make("memory_chain", memory_length=3, num_bits=5)


@on_host
def step_bits(key, time, action):
    state = BITS.reset_env(key, BITS.default_params)[1].replace(time=time)
    clipped = jnp.clip(action, 0, 1)
    return BITS.step_env(key, state, action, BITS.default_params), BITS.expected_reward(state, clipped, None)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(0, 3), st.integers(-(2**31), 2**31 - 1))
def test_bounds_hold_and_actions_are_clipped(seed, time, action):
    (obs, _, reward, *_), clipped = step_bits(jax.random.key(seed), np.int32(time), np.int32(action))
    space = BITS.observation_space()
    assert (obs >= space.low).all() and (obs <= space.high).all() and reward == clipped


def test_the_picture_shows_the_bits_the_question_and_the_cue():
    env = icrl_envs.make("memory_chain", num_bits=2)
    state = start(env, [0, 1], 1)
    for time, cue in ((0, ([230, 140, 40], [46, 105, 178])), (4, ([150, 150, 158],) * 2)):
        image = np.asarray(jax.jit(env.render)(state.replace(time=jnp.int32(time)), env.default_params))
        cells = image[8::16, 8::16]
        np.testing.assert_array_equal(cells[0], [[230, 140, 40], [46, 105, 178]])
        np.testing.assert_array_equal(cells[1], [[255, 255, 255], [200, 60, 60]])
        np.testing.assert_array_equal(cells[2], cue)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"memory_length": 0}, "memory_length=0: must be an integer in 1 ..= 2147483646"),
        ({"memory_length": 2.0}, "memory_length=2.0: must be an integer in 1 ..= 2147483646"),
        ({"num_bits": 0}, "num_bits=0: must be an integer of at least 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError) as refused:
        icrl_envs.make("memory_chain", **arguments)
    assert str(refused.value) == message

"""What is learned counts from the next episode on, for any agent."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from two_episodes import on_host

import icrl_envs
from icrl_jax.agents import between_episodes, learner, prompted, uniform
from icrl_jax.core import partial
from icrl_jax.rollout import Trial, no_transition, rollout, start

H, T = 3, 17
ROOM = icrl_envs.make("dark_room", "dpt", size=5, horizon=H)
BLANK = no_transition(ROOM, ROOM.default_params)


def historian():
    """Knows which actions were taken, newest last; says how many, and the newest."""
    return learner(partial(_nothing), partial(_note), partial(_tell))


def _nothing():
    return jnp.zeros((), jnp.int32), jnp.full((), -1, jnp.int32)


def _note(carry, transition):
    return carry[0] + 1, transition.action


def _tell(carry, key, obs):
    return jax.random.randint(key, (), 0, 5), {"count": carry[0], "newest": carry[1], "obs": obs}


@functools.partial(on_host, static_argnames=("trial", "env"))
def live(agent, key, trial=None, env=ROOM):
    return rollout(agent, env, start(agent, env, env.default_params, key), key, T, trial=trial)[1]


def test_decisions_know_finished_episodes_only():
    record = live(between_episodes(historian(), BLANK), jax.random.key(0))
    finished = np.arange(T) // H * H
    np.testing.assert_array_equal(record.info["count"], finished)
    newest = np.where(finished > 0, record.transition.action[finished - 1], -1)
    np.testing.assert_array_equal(record.info["newest"], newest)
    np.testing.assert_array_equal(record.info["obs"], record.transition.obs)  # what they see is the present
    assert len(set(newest)) > 2


def test_a_context_is_known_from_the_start():
    given = jax.tree.map(lambda x: x[:5], live(uniform(ROOM), jax.random.key(1)).transition)
    record = live(between_episodes(prompted(historian(), given), BLANK), jax.random.key(2))
    np.testing.assert_array_equal(record.info["count"], 5 + np.arange(T) // H * H)
    assert record.info["newest"][0] == given.action[-1]


def test_a_reset_forgets_finished_episodes_too():
    """A trial of four steps ends in the middle of an episode, and the next one begins with nothing."""
    record = live(between_episodes(historian(), BLANK), jax.random.key(3), Trial(steps=4))
    np.testing.assert_array_equal(record.info["count"], np.arange(T) % 4 // H * H)


def test_where_episodes_never_end_nothing_is_ever_known():
    bandit = icrl_envs.make("gaussian_bandit", num_arms=5)
    agent = between_episodes(historian(), no_transition(bandit, bandit.default_params))
    assert (live(agent, jax.random.key(4), env=bandit).info["count"] == 0).all()


@pytest.mark.parametrize("num_episodes", [1, 2])
def test_episodes_of_one_step_make_no_difference(num_episodes):
    room = icrl_envs.make("dark_room", "dpt", size=5, horizon=1)
    plain = live(historian(), jax.random.key(num_episodes), env=room)
    late = live(between_episodes(historian(), BLANK), jax.random.key(num_episodes), env=room)
    jax.tree.map(np.testing.assert_array_equal, plain, late)

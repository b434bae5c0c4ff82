"""The noise curriculum: its schedule step by step, and what it does to a demonstrator."""

import functools

import jax
import numpy as np
import pytest
from two_episodes import constant, on_host

import icrl_envs
from icrl_jax.agents import noise_curriculum, oracle
from icrl_jax.rollout import rollout, start

H = 7
SMALL = {"size": 5, "horizon": H}
ROOM = icrl_envs.revealed(icrl_envs.make("dark_room", "ad_eps", **SMALL))
QUICK = icrl_envs.revealed(icrl_envs.make("dark_room_hard", "ad_eps", **SMALL))  # ends on the goal
POINT = icrl_envs.make("point_robot", num_steps=H)
E = 20


@functools.partial(on_host, static_argnames=("env", "num_steps"))
def live(agent, env, key, num_steps):
    return rollout(agent, env, start(agent, env, env.sample_task(key), key), key, num_steps)[1]


@pytest.mark.parametrize("slope, last, met", [("to_last", 0.5, 0.9), ("to_zero", 0.5, 0.45), ("to_zero", 0.0, 0.9)])
def test_epsilon_falls_with_every_step_over_the_first_part_of_the_history(slope, last, met, getkey):
    steps = E * H
    agent = noise_curriculum(oracle(ROOM), ROOM, steps, last=last, slope=slope)
    epsilon = live(agent, ROOM, getkey(), steps + 11).info["epsilon"]
    expected = np.maximum(1 - (1 - last) * np.arange(steps + 11) / (met * steps), last)
    np.testing.assert_allclose(epsilon, expected, atol=1e-5)


def test_an_episode_that_ends_early_is_worth_a_whole_one(getkey):
    agent = noise_curriculum(oracle(QUICK), QUICK, E * H, last=0.25, first=0.75, decay=1.0)
    record = live(agent, QUICK, getkey(), 73)
    progress, expected = 0, []
    for terminated, truncated in zip(record.transition.terminated, record.transition.truncated, strict=True):
        expected.append(max(0.75 - 0.5 * progress / (E * H), 0.25))
        progress = (progress // H + 1) * H if terminated | truncated else progress + 1
    np.testing.assert_allclose(record.info["epsilon"], expected, atol=1e-5)
    ends = np.flatnonzero(record.transition.terminated)
    assert len(ends) > 2 and record.transition.truncated.any()
    assert (np.diff(record.info["epsilon"])[ends[:-1]] < -1.5 * 0.5 / (E * H)).any()


def test_at_zero_it_is_the_demonstrator_and_at_one_it_is_not(getkey):
    demonstrator = constant(3)
    act = lambda eps: live(noise_curriculum(demonstrator, ROOM, 10, last=eps, first=eps), ROOM, getkey(), 4001)
    assert (act(0.0).transition.action == 3).all()
    for epsilon in (0.5, 1.0):
        shares = np.bincount(act(epsilon).transition.action, minlength=5) / 4001
        np.testing.assert_allclose(shares, epsilon / 5 + (1 - epsilon) * (np.arange(5) == 3), atol=0.03)


@pytest.mark.parametrize("epsilon, known", [(0.25, 11.852), (0.5, 6.343), (1.0, 0.247)])
def test_a_noisy_oracle_earns_what_it_is_known_to(epsilon, known, getkey):
    """The mean return over all goals of the 9 x 9 room with 20 steps, computed independently."""
    env = icrl_envs.revealed(icrl_envs.make("dark_room", "ad_eps"))
    agent, tasks = noise_curriculum(oracle(env), env, 100, last=epsilon, first=epsilon), env.tasks("all")

    @on_host
    def mean_return(agent, key):
        one = lambda task, key: rollout(agent, env, start(agent, env, task, key), key, 800)[1].transition.feedback.sum()
        return jax.vmap(one)(tasks, jax.random.split(key, 81)).mean() / 40

    assert abs(mean_return(agent, getkey()) - known) < 0.35


def test_continuous_actions_are_mixed(getkey):
    action = np.array([1.0, -0.5], np.float32)
    agent = noise_curriculum(constant(action), POINT, 10, last=0.25, first=0.25)
    other = (live(agent, POINT, getkey(), 1009).transition.action - 0.75 * action) / 0.25
    assert np.abs(other).max() <= 1.00001 and np.abs(other.mean(0)).max() < 0.07
    np.testing.assert_allclose(other.var(0), 1 / 3, atol=0.04)


@pytest.mark.parametrize(
    "name, value",
    [
        *(("num_steps", 0), ("last", 0.6), ("first", 1.1), ("decay", 0.0), ("slope", "steep")),
        ("env", icrl_envs.copies(ROOM, 2)),
        ("env", icrl_envs.preferences(ROOM)),
    ],
)
def test_wrong_values_are_refused_by_name(name, value):
    arguments = {"env": ROOM, "num_steps": 100, "last": 0.1, "first": 0.5, name: value}
    with pytest.raises(ValueError, match=f"^{name}="):
        noise_curriculum(constant(0), **arguments)

"""Collected histories are what the source did, and take the memory that was foretold."""

import functools
import re
import types
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from two_episodes import on_host

import icrl_envs
from icrl_jax.agents import as_learner, q_learning, thompson_gaussian, uniform
from icrl_jax.data.collect import collect_histories, free_bytes, predict_bytes
from icrl_jax.data.histories import every_kth_episode
from icrl_jax.data.windows import window

ROOM = icrl_envs.make("dark_room", "ad_eps", size=3, horizon=5, observation="cell")
QUICK = icrl_envs.make("dark_room_hard", "ad_eps", size=3, horizon=5)
N, STEPS, ROUNDS = 3, 7, 11  # rounds end within episodes


@functools.cache
def source(env):
    return as_learner(q_learning(env, decay_steps=50), env, N, STEPS, shared=True)


collect = on_host(collect_histories, static_argnums=(1, 4), static_argnames=("keep_every", "next_obs"))


@functools.cache
def collected(env, **options):
    return collect(source(env), env, env.tasks("test"), jax.random.key(3), ROUNDS, **options)


def test_histories_are_what_the_source_did():
    """Task by task, a call of `learn` after another."""
    learner, tasks, found = source(ROOM), ROOM.tasks("test"), collected(ROOM)

    @on_host
    def alone(m):
        key_init, key_rounds = jax.random.split(jax.random.fold_in(jax.random.key(3), m))
        state = learner.init(key_init, jax.tree.map(lambda x: x[m], tasks))
        step = lambda state, i: learner.learn(state, jax.random.fold_in(key_rounds, i))
        return jax.lax.scan(step, state, jnp.arange(ROUNDS))[1].transition

    assert found.shape == (len(tasks.goal), N, ROUNDS * STEPS)
    for m in range(len(tasks.goal)):
        in_streams = lambda x: np.swapaxes(x.reshape(-1, *x.shape[2:]), 0, 1)
        expected = jax.tree.map(in_streams, alone(m))
        chex.assert_trees_all_equal(
            *(
                jax.tree.map(lambda x: x.astype(np.float32), y)
                for y in (jax.tree.map(lambda x, m=m: x[m], found.transitions), expected)
            )
        )
        assert [x.dtype.name for x in jax.tree.leaves(expected)] == list(found.form.dtypes)
    np.testing.assert_array_equal(found.update, np.arange(ROUNDS * STEPS) // STEPS + np.zeros((len(tasks.goal), N, 1)))
    chex.assert_trees_all_equal(found.env_params, jax.device_get(tasks))
    assert (found.steps == ROUNDS * STEPS).all() and found.form.episode_steps == 5 and not found.form.terminates


def test_integers_take_few_bytes_and_nothing_else_does():
    of = lambda env: [x.dtype.name for x in jax.tree.leaves(collected(env).transitions)]
    assert of(ROOM) == of(QUICK) == ["uint8", "uint8", "float32", "uint8", "bool", "bool"]
    assert collected(ROOM).update.dtype == np.uint8
    large = icrl_envs.make("dark_room", "dpt", size=17, observation="index")
    bandit = icrl_envs.make("gaussian_bandit", num_arms=300)
    for env, agent, names in (
        (large, uniform(large), ["uint16", "uint8"]),
        (bandit, thompson_gaussian(300), ["float32", "uint16"]),
    ):
        shapes = jax.eval_shape(
            functools.partial(collect_histories, as_learner(agent, env, 2, 3), env, num_rounds=257),
            jax.vmap(env.sample_task)(jax.random.split(jax.random.key(0), 2)),
            jax.random.key(0),
        )
        assert [x.dtype.name for x in shapes.transitions[:2]] == names and shapes.update.dtype == np.uint16


@pytest.mark.parametrize("env", [ROOM, QUICK], ids=["equal", "unequal"])
@pytest.mark.parametrize("k", [2, 5])
def test_keeping_every_kth_episode_is_keeping_all_and_then_choosing(env, k):
    found = collected(env, keep_every=k)
    chex.assert_trees_all_equal(found, jax.device_get(every_kth_episode(collected(env), k)))
    assert found.form == every_kth_episode(collected(env), k).form
    assert found.shape[2] < 0.7 * ROUNDS * STEPS


def test_next_observations_may_be_left_out():
    found = collected(ROOM, next_obs=False)
    assert found.transitions.next_obs is None
    chex.assert_trees_all_equal(found.transitions, collected(ROOM).transitions._replace(next_obs=None))
    read = window(found, 0, 1, 2, 7)
    assert read.timesteps.prev.next_obs is None
    chex.assert_trees_all_equal(read.timesteps.obs, window(collected(ROOM), 0, 1, 2, 7).timesteps.obs)


@pytest.mark.parametrize("options", [{}, {"keep_every": 5}, {"next_obs": False}])
def test_memory_is_foretold(options):
    found = collected(ROOM, **options)
    size = sum(x.nbytes for x in jax.tree.leaves(found))
    needed = predict_bytes(source(ROOM), ROOM, ROOM.tasks("test"), ROUNDS, **options)
    one_more = predict_bytes(source(ROOM), ROOM, ROOM.tasks("test"), ROUNDS + 10, **options) - needed
    assert size < needed
    np.testing.assert_allclose(one_more, 10 / ROUNDS * (size - 8 * len(found.env_params.goal)), rtol=0.2)


def test_what_does_not_fit_is_refused_with_advice(getkey):
    arguments = source(ROOM), ROOM, ROOM.tasks("test"), getkey(), 10**6
    needed = predict_bytes(*arguments[:3], 10**6)
    advice = r"^max_bytes=.* MiB: must be at least .* about 1 of the 3 streams, or keep_every=3, or 1/3 of num_rounds$"
    with pytest.raises(ValueError, match=advice):
        collect_histories(*arguments, max_bytes=0.4 * needed)
    assert collect_histories(*arguments[:4], 1, max_bytes=0.4 * needed).shape[2] == STEPS


def test_what_the_device_reports_is_the_limit_if_none_is_given(monkeypatch):
    device = types.SimpleNamespace(memory_stats=lambda: {"bytes_limit": 2**20})
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    with pytest.raises(ValueError, match=r"^max_bytes=1.0 MiB: must be"):
        collect_histories(source(ROOM), ROOM, ROOM.tasks("test"), jax.random.key(0), 10**6)
    device.memory_stats = lambda: {"bytes_limit": 2**20, "bytes_in_use": 2**18}
    assert free_bytes() == 0.75 * 2**20


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="Linux says here what memory there is")
def test_a_cpu_has_its_share_of_the_memory_of_the_machine(monkeypatch):
    (total,) = re.findall(r"MemTotal: +(\d+) kB", Path("/proc/meminfo").read_text())
    assert free_bytes() * jax.local_device_count() == int(total) * 1024
    monkeypatch.setattr(jax, "local_device_count", lambda: 4)
    assert free_bytes() * 4 == int(total) * 1024


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_rounds": 0}, "num_rounds=0"),
        ({"env": icrl_envs.copies(ROOM, 2)}, "env=.*not copies"),
        ({"env_params": ROOM.default_params}, "env_params='one task'"),
        (
            {"env_params": ROOM.tasks("test").replace(max_steps_in_episode=jnp.array([5, 4]))},
            r"=\[4, 5\]: must be \[5\]",
        ),
        ({"keep_every": 16}, "k=16: must be at most the number of episodes"),
    ],
)
def test_wrong_arguments_are_refused_by_name(change, message, getkey):
    arguments = {"env": ROOM, "env_params": ROOM.tasks("test"), "key": getkey(), "num_rounds": ROUNDS, **change}
    with pytest.raises(ValueError, match=message):
        collect_histories(source(ROOM), **arguments)


def test_a_never_ending_episode_has_no_kth(getkey):
    bandit = icrl_envs.make("gaussian_bandit", num_arms=3)
    tasks = icrl_envs.sample_tasks(bandit, getkey(), 2)
    with pytest.raises(ValueError, match="keep_every|k=2: must be at most the number of episodes"):
        collect_histories(as_learner(thompson_gaussian(3), bandit, 2, 3), bandit, tasks, getkey(), 5, keep_every=2)

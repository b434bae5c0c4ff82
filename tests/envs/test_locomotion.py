import copy
import functools
import pickle
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import icrl_envs

B = 3


class Walk:
    """Random play in B tasks from one start; keeps how often it was traced and, of every step, what it met."""

    def __init__(self, env, num_steps):
        self.env, self.num_traces = env, 0

        def step(carry, key):
            obs, state, task = carry
            key_act, key_step = jax.random.split(key)
            action = 2 * jax.random.uniform(key_act, (env.num_actions,), minval=-1.0)  # half of it is clipped
            after = env.step(key_step, state, action, task)
            met = (obs, state, action, *after)
            return (*after[:2], task), met

        def walk(task, key):
            self.num_traces += 1
            return jax.lax.scan(step, (*env.reset_env(key, task), task), jax.random.split(key, num_steps))[1]

        self.play = jax.jit(jax.vmap(walk, in_axes=(0, None)))


@functools.cache
def walk(name, num_steps, preset=None, **kwargs):
    return Walk(icrl_envs.make(name, preset, num_steps=num_steps, **kwargs), num_steps + 1)


def torso(state):
    return np.asarray(state.physics.x.pos[..., 0, :], np.float64)


def reward_by_hand(name, task, action, state, after, dt):
    """The rewards of the fact sheets, from the torso's positions in NumPy."""
    action = np.clip(np.asarray(action, np.float64), -1, 1)
    velocity, cost = (torso(after) - torso(state)) / dt, (action**2).sum(-1)
    if name == "cheetah_vel":
        return -np.abs(velocity[..., 0] - np.asarray(task.target_velocity)[:, None]) - 0.5 * 0.1 * cost
    if name == "cheetah_dir":
        return np.asarray(task.direction)[:, None] * velocity[..., 0] - 0.5 * 0.1 * cost
    if name == "ant_dir":
        angle = np.asarray(task.direction)[:, None]
        return 1 + np.cos(angle) * velocity[..., 0] + np.sin(angle) * velocity[..., 1] - 0.5 * cost
    height, lean = torso(after)[..., 2], np.asarray(after.physics.q[..., 2])
    fallen = (height <= 0.8) | (height >= 2) | (np.abs(lean) >= 1)
    return velocity[..., 0] + 1 - 1e-3 * cost - fallen


def check_a_walk(name, walked, num_steps, getkey):
    env = walked.env
    task, key = jax.vmap(lambda key: env.sample_task(key, "all"))(jax.random.split(getkey(), B)), getkey()
    obs, state, action, next_obs, next_state, reward, terminated, truncated, info = walked.play(task, key)
    inside = ~np.asarray(terminated | truncated)
    by_hand = reward_by_hand(name, task, action, state, next_state, float(env.brax.dt))
    np.testing.assert_allclose(reward[inside], by_hand[inside], atol=1e-3)  # float32 positions over a short step
    assert inside[:, : num_steps - 1].all() or name == "ant_dir"
    assert np.asarray(truncated)[:, num_steps - 1].all() or name == "ant_dir"
    for x in (obs, info["final_observation"]):
        assert np.isfinite(x).all() and x.shape == (B, num_steps + 1, *env.observation_space().shape)
    np.testing.assert_array_equal(
        np.where(inside[..., None], info["final_observation"], 0), np.where(inside[..., None], next_obs, 0)
    )
    assert (np.asarray(next_state.time)[~inside] == 0).all()
    assert reward.dtype == jnp.float32 and terminated.dtype == truncated.dtype == bool
    if name == "walker_params":  # other bodies move otherwise, other targets only pay otherwise
        assert np.ptp(np.asarray(obs)[:, 2], axis=0).max() > 1e-4
    elif name != "cheetah_dir":
        assert len(np.unique(np.asarray(reward)[:, 0])) == B
    again = walked.play(task, key)
    np.testing.assert_array_equal(again[0], obs)
    walked.play(jax.vmap(lambda key: env.sample_task(key, "all"))(jax.random.split(getkey(), B)), getkey())
    assert walked.num_traces == 1
    return obs, state, info


def test_a_cheetah_is_paid_for_its_velocity_in_one_trace_for_all_tasks(getkey):
    obs, state, _ = check_a_walk("cheetah_vel", walk("cheetah_vel", 4, "t2mir"), 4, getkey)
    physics = state.physics
    np.testing.assert_array_equal(obs, np.concatenate([physics.q[..., 1:], physics.qd, torso(state)], -1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ant_dir", "walker_params"])
def test_whole_episodes_of_random_play(name, getkey):
    obs, state, _ = check_a_walk(name, walk(name, 200), 200, getkey)
    first = np.asarray(obs)[:, 0]
    assert first.shape == (B, {"ant_dir": 27, "walker_params": 17}[name])
    if name == "walker_params":
        np.testing.assert_allclose(obs[..., 0], torso(state)[..., 2])
        assert np.abs(obs[..., 8:]).max() <= 10
        np.testing.assert_allclose(first[:, 0], 1.25, atol=0.006)


@pytest.mark.slow
@pytest.mark.parametrize("name, preset", [("cheetah_vel", "dit"), ("ant_dir", None), ("walker_params", "t2mir")])
def test_a_step_is_that_of_brax_and_pays_by_the_preset(name, preset, getkey):
    env = icrl_envs.make(name, preset)
    state, step = jax.jit(env.reset_env)(getkey(), env.default_params)[1], jax.jit(env.step_env)
    action = jax.random.uniform(getkey(), (env.num_actions,), minval=-1.0)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        theirs = jax.eval_shape(env.brax.reset, getkey())
        blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), theirs)  # but for the body, of no account
        theirs = jax.jit(env.brax.step)(blank.replace(pipeline_state=state.physics), action)
    obs, ours, *_ = step(getkey(), state, action, env.default_params)
    np.testing.assert_allclose(ours.physics.q, theirs.pipeline_state.q, atol=1e-5)
    np.testing.assert_allclose(ours.physics.qd, theirs.pipeline_state.qd, atol=1e-3)
    np.testing.assert_allclose(obs[: len(theirs.obs)], theirs.obs, atol=1e-3)  # some presets see the torso too
    action = 2 * action  # part of it is clipped
    for split in ("train", "test") if env.tasks else ():
        tasks = env.tasks(split)
        one = jax.tree.map(lambda x: x[0], tasks)
        obs, after, reward, terminated, _ = step(getkey(), state, action, one)
        by_hand = reward_by_hand(name, jax.tree.map(lambda x: x[:1], tasks), action, state, after, env.dt)
        np.testing.assert_allclose(reward, np.ravel(by_hand)[0], atol=1e-3)
        assert obs.shape == env.observation_space().shape and not terminated
        assert not env.is_truncated(after, one) and env.is_truncated(after.replace(time=jnp.int32(200)), one)


@pytest.mark.slow
def test_every_number_of_a_walkers_body_matters(getkey):
    env = icrl_envs.make("walker_params", backend="mjx")  # which shares least with the default
    factors = {"mass_scale": 7, "inertia_scale": 7, "damping_scale": 6, "friction_scale": 8}
    standard = env.default_params
    tasks = [standard]
    for name, n in factors.items():
        tasks += [standard.replace(**{name: jnp.ones(n).at[i].set(2.0)}) for i in range(n)]
        tasks += [standard.replace(**{name: jnp.full(n, 2.0)})]
    tasks = jax.tree.map(lambda *x: jnp.stack(x), *[t.replace(max_steps_in_episode=jnp.int32(200)) for t in tasks])

    @jax.jit
    @jax.vmap
    def play(task):
        def step(state, key):
            action = jax.random.uniform(key, (6,), minval=-1.0)
            obs, state, *_ = env.step_env(key, state, action, task)
            return state, state.physics.q

        state = env.reset_env(jax.random.key(0), task)[1]
        return jax.lax.scan(step, state, jax.random.split(jax.random.key(1), 60))[1]

    q = np.asarray(play(tasks))
    assert np.isfinite(q).all()
    change = np.abs(q - q[:1]).max((1, 2))
    start = 1
    for name, n in factors.items():
        each, together = change[start : start + n], change[start + n]
        assert together > 1e-3, name
        if name != "friction_scale":
            assert (each > 1e-5).all(), (name, each)
        else:  # geoms 0, 1, 4 and 7 touch: the floor (whose friction is below the links'), the torso and the feet
            assert each[[4, 7]].max() > 1e-4 and not each[[2, 3, 5, 6]].any()
        start += n + 1


def test_an_ant_that_lies_or_flies_has_fallen():
    env = icrl_envs.make("ant_dir")
    sys = env.brax.sys

    def fallen(height):
        pos = jnp.zeros((sys.num_links(), 3)).at[0, 2].set(height)
        physics = SimpleNamespace(x=SimpleNamespace(pos=pos))
        return bool(env.score(physics, jnp.zeros(3), jnp.zeros(8), env.default_params)[1])

    assert [fallen(height) for height in (0.19, 0.21, 0.75, 0.99, 1.01)] == [True, False, False, False, True]


@given(st.integers(0, 2**31 - 1))
@settings(max_examples=20, deadline=None)
def test_episodes_start_with_the_noise_of_the_fact_sheet(seed):
    """Positions uniform within a bound; velocities normal, or uniform too."""
    for name, bound in (("cheetah_vel", 0.1), ("cheetah_dir", 0.1), ("ant_dir", 0.1), ("walker_params", 0.005)):
        q, qd = many_starts(name, seed)
        assert 0.95 * bound < np.abs(q).max() <= bound
        np.testing.assert_allclose(q.std(), bound / np.sqrt(3), rtol=0.1)
        np.testing.assert_allclose(qd.std(), bound if name != "walker_params" else bound / np.sqrt(3), rtol=0.1)
        assert (np.abs(qd).max() > bound) == (name != "walker_params")


@functools.partial(jax.jit, static_argnums=0)
def starts(env, key):
    return jax.vmap(env.start)(jax.random.split(key, 101))


made = functools.cache(icrl_envs.make)  # starts of one are compiled once


def many_starts(name, seed):
    return jax.device_get(starts(made(name), jax.random.key(seed)))


def test_presets_and_splits():
    env = icrl_envs.make("cheetah_vel", "t2mir")
    np.testing.assert_allclose(env.tasks("test").target_velocity, [2.107, 1.242, 1.027, 1.788, 0.600])
    train = np.asarray(env.tasks("train").target_velocity)
    assert train.shape == (45,) and env.tasks("all").target_velocity.shape == (50,)
    assert train.min() >= 0 and train.max() <= 3
    assert env.observation_space().shape == (20,) and env.default_params.max_steps_in_episode == 200
    assert icrl_envs.make("cheetah_vel", "dit").tasks("test").target_velocity.shape == (5,)
    env = icrl_envs.make("cheetah_dir")
    assert [env.tasks(split).direction.tolist() for split in ("train", "test", "all")] == [[1], [-1], [1, -1]]
    env = icrl_envs.make("walker_params", "t2mir")
    assert env.tasks("train").mass_scale.shape == (45, 7) and env.tasks("test").damping_scale.shape == (5, 6)
    exponents = np.log(np.asarray(env.tasks("all").mass_scale, np.float64)) / np.log(1.5)
    assert 2.9 < np.abs(exponents).max() <= 3 + 1e-5  # 350 of them


def test_the_laws_of_tasks(getkey):
    keys = jax.random.split(getkey(), 5000)
    task = jax.vmap(icrl_envs.make("walker_params").sample_task)(keys)
    for scale, base in (
        (task.mass_scale, 1.5),
        (task.inertia_scale, 1.5),
        (task.friction_scale, 1.5),
        (task.damping_scale, 1.3),
    ):
        exponent = np.log(np.asarray(scale, np.float64)) / np.log(base)
        assert np.abs(exponent).max() <= 3 + 1e-5
        np.testing.assert_allclose(exponent.std(0), np.sqrt(3), rtol=0.05)
    angle = np.asarray(jax.vmap(icrl_envs.make("ant_dir").sample_task)(keys).direction)
    assert angle.min() >= 0 and angle.max() <= np.float32(2 * np.pi)
    np.testing.assert_allclose([np.cos(angle).mean(), np.sin(angle).mean()], 0, atol=0.05)
    velocity = np.asarray(jax.vmap(icrl_envs.make("cheetah_vel").sample_task)(keys).target_velocity)
    assert velocity.min() >= 0 and velocity.max() <= 3
    np.testing.assert_allclose([velocity.mean(), velocity.std()], [1.5, 3 / np.sqrt(12)], rtol=0.05)


@pytest.mark.parametrize(
    "name, argument, value, allowed",
    [
        ("ant_dir", "backend", "mujoco", "one of 'spring', 'positional', 'generalized', 'mjx'"),
        ("cheetah_vel", "max_velocity", 0.0, "a finite number above 0"),
        ("cheetah_vel", "max_velocity", "3", "a finite number above 0"),
        ("cheetah_vel", "max_velocity", True, "a finite number above 0"),
        ("cheetah_vel", "torso_position", 1, "True or False"),
        ("cheetah_vel", "test_velocities", (1.0,), r"None or, beside num_train, at least one number in 0 \.\.= 3.0"),
        ("cheetah_dir", "num_steps", 0, "an integer in 1 ..= 2147483646"),
        ("walker_params", "log_scale", 4.0, "a number above 0 and at most 3"),
        ("walker_params", "log_scale", None, "a number above 0 and at most 3"),
        ("walker_params", "num_train", 2.5, "None or an integer of at least 1"),
    ],
)
def test_wrong_arguments_are_refused(name, argument, value, allowed):
    with pytest.raises(ValueError, match=f"{argument}=.*: must be {allowed}$"):
        icrl_envs.make(name, **{argument: value})


@pytest.mark.parametrize("test_velocities", [(), "x", {}, 1.0, ((1.0,),), (1.0, np.nan), (-0.1,), (1.0, 2.1)])
def test_test_velocities_must_be_in_the_range(test_velocities):
    with pytest.raises(ValueError) as refused:
        icrl_envs.make("cheetah_vel", max_velocity=2.0, num_train=3, test_velocities=test_velocities)
    allowed = "None or, beside num_train, at least one number in 0 ..= 2.0"
    assert str(refused.value) == f"test_velocities={test_velocities!r}: must be {allowed}"


def test_families_can_be_copied_and_pickled():
    env = icrl_envs.make("cheetah_vel", "t2mir")
    for other in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        assert other.brax is env.brax
        np.testing.assert_array_equal(other.tasks("train").target_velocity, env.tasks("train").target_velocity)

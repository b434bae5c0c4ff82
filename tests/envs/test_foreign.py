"""Foreign environments as task families: what a user passes is the environment and `sample_task`, all else works."""

import sys

import chex
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from two_episodes import on_host

import icrl_envs
import icrl_jax
from icrl_envs.bandits import BernoulliBanditParams
from icrl_envs.foreign import from_brax, from_craftax, from_gymnax, from_xland, make_rulesets
from icrl_envs.foreign.common import clipped
from icrl_envs.foreign.rulesets import AGENT_HOLD_GOAL, TILE_NEAR_GOAL, TILE_NEAR_RULE
from icrl_jax import agents

B, T = 3, 5


def pole(key, split):
    return {"length": jax.random.uniform(key, minval=0.2, maxval=2.0), "max_steps_in_episode": 4}


@pytest.fixture(scope="module")
def carts():
    return from_gymnax("CartPole-v1", sample_task=pole)


def test_tasks_of_gymnax_are_what_the_user_draws(carts, getkey):
    task = icrl_envs.sample_tasks(carts, getkey(), B)
    assert len(set(task.length.tolist())) == B
    assert task.max_steps_in_episode.tolist() == [4] * B and task.gravity.tolist() == [np.float32(9.8)] * B
    key = getkey()
    train, test = carts.sample_task(key, "train"), carts.sample_task(key, "test")
    assert train.length != test.length  # though the user's function never looks at the split
    whole = from_gymnax("CartPole-v1", sample_task=lambda key, split: carts.env.default_params.replace(**pole(key, "")))
    chex.assert_trees_all_equal(whole.sample_task(key, "test"), test)
    assert carts.tasks is None and carts.num_actions == 2


def test_steps_are_those_of_gymnax(carts, getkey):
    key, task = getkey(), carts.sample_task(getkey())
    _, state = carts.reset(key, task)
    for limit in range(1, 5):
        with jax.numpy_dtype_promotion("standard"):
            expected = gymnax.make("CartPole-v1")[0].step(key, state, 1, task)
        found = carts.step(key, state, jnp.int32(1), task)
        chex.assert_trees_all_close(found, expected, rtol=1e-6)
        assert bool(found[4]) == (limit == 4) and not bool(found[3])
        state = found[1]


def test_actions_outside_a_box_are_clipped():
    assert clipped(gymnax.environments.spaces.Box(-2.0, 1.0, (2,)), jnp.array([-9.0, 3.0])).tolist() == [-2.0, 1.0]


def test_the_rest_of_the_library_works(getkey):
    """Evaluation, and oracles' and copies' wrappers, on an environment nobody here has heard of."""

    class Matching(gymnax.environments.environment.Environment):
        """Pays 1 for the number of the arm that is the task; three steps."""

        @property
        def default_params(self):
            return BernoulliBanditParams(means=jnp.eye(4)[0], max_steps_in_episode=3)

        def step_env(self, key, state, action, params):
            state = state.replace(time=state.time + 1)
            return jnp.ones(1), state, params.means[action], jnp.zeros((), bool), {}

        def reset_env(self, key, params):
            return jnp.ones(1), gymnax.EnvState(time=jnp.zeros((), jnp.int32))

        def action_space(self, params):
            return gymnax.environments.spaces.Discrete(4)

        def observation_space(self, params):
            return gymnax.environments.spaces.Box(1.0, 1.0, (1,))

    best = lambda key, split: {"means": jnp.eye(4)[jax.random.randint(key, (), 0, 4)]}
    env = from_gymnax(Matching(), sample_task=best)
    tasks = icrl_envs.sample_tasks(env, getkey(), 7)
    found = icrl_jax.evaluate(agents.uniform(env), env, tasks, getkey(), num_episodes=5)
    assert found.curves["return"].shape == (7, 5) and jnp.isfinite(found.curves["return"]).all()
    seen, two = icrl_envs.revealed(env), icrl_envs.copies(env, 2)
    assert isinstance(jax.eval_shape(seen.reset, getkey(), env.default_params)[0], icrl_envs.Revealed)
    _, state = jax.eval_shape(two.reset, getkey(), env.default_params)
    assert jax.eval_shape(two.step, getkey(), state, jnp.array([0, 1]), env.default_params)[2].shape == (2,)


def test_without_sample_task_there_is_one_task(getkey):
    env = from_gymnax("Pendulum-v1")
    for split in ("train", "test", "all"):
        chex.assert_trees_all_equal(env.sample_task(getkey(), split), env.default_params)
        assert jax.tree.leaves(env.tasks(split))[0].shape == (1,)
    assert int(env.default_params.max_steps_in_episode) == 200
    assert not any(x.weak_type for x in jax.tree.leaves(env.default_params))
    assert env.render is None


@pytest.mark.parametrize("name", [name for name in gymnax.registered_envs if "MNIST" not in name])  # it downloads
def test_every_gymnax_environment_traces(name):
    """In tasks that are traced; what a step returns fits what a reset returns."""
    env = from_gymnax(name, sample_task=lambda key, split: {})

    def run(key):
        task = env.sample_task(key)
        obs, state = env.reset(key, task)
        return (obs, state), env.step(key, state, env.action_space(task).sample(key), task)

    before, after = jax.eval_shape(jax.vmap(run), jax.random.split(jax.random.key(0), B))
    chex.assert_trees_all_equal_shapes_and_dtypes(before, after[:2])
    assert after[2].dtype == jnp.float32 and after[3].dtype == after[4].dtype == bool


def test_brax_is_quiet(capfd):  # before the others, as its import prints too
    from_brax("inverted_pendulum", backend="spring")
    assert capfd.readouterr() == ("", "")


def test_tasks_of_brax_are_traced_numbers(getkey):
    """Fast moves by `_dt` a step; tasks of different `_dt` share one trace."""
    env = from_brax("fast", lambda key, split: {"_dt": jax.random.uniform(key, minval=0.1)}, max_steps_in_episode=3)
    task = icrl_envs.sample_tasks(env, getkey(), B)
    assert len(set(task.values["_dt"].tolist())) == B
    assert env.default_params.values["_dt"] == np.float32(0.02) == env.env._dt
    one = jax.tree.map(lambda x: x[0], task)
    obs, state = env.reset(getkey(), one)
    speed, place = 0.0, 0.0
    for t in range(1, 4):
        obs, state, reward, terminated, truncated, info = env.step(getkey(), state, jnp.full(1, 9.0), one)
        speed += one.values["_dt"]
        place += speed * one.values["_dt"]
        np.testing.assert_allclose(info["final_observation"], [place, speed], rtol=1e-5)
        np.testing.assert_allclose(reward, place, rtol=1e-5)
        assert bool(truncated) == (t == 3) and not bool(terminated)
    assert obs.tolist() == [0.0, 0.0] and int(state.time) == 0


def test_actions_outside_the_box_of_brax_are_clipped(monkeypatch, getkey):
    env = from_brax("fast")
    task, state = env.default_params, env.reset_env(getkey(), env.default_params)[1]
    monkeypatch.setattr(env.env, "step", lambda inner, action: inner.replace(reward=action[0]))
    rewards = [env.step_env(getkey(), state, jnp.full(1, action), task)[2] for action in (9.0, -9.0, 0.5)]
    assert rewards == [1.0, -1.0, 0.5]


def test_brax_as_it_is():
    env = from_brax("fast")
    assert (
        env.default_params.values == {} and env.name == "Fast" and int(env.default_params.max_steps_in_episode) == 1000
    )
    assert env.tasks("test").max_steps_in_episode.shape == (1,)


@pytest.mark.slow
def test_physics_of_brax_is_the_task(getkey):
    """Two gravities in one batch; under Brax's own, it moves as Brax without us."""

    def gravity(key, split):
        return {"sys.gravity": jnp.array([0.0, 0.0, -1.0]) * jax.random.uniform(key, (1,), minval=1.0, maxval=20.0)}

    env, key, action = from_brax("inverted_pendulum", gravity, backend="spring"), getkey(), jnp.full(1, 0.5)

    @on_host
    @jax.vmap
    def ours(task):
        _, state = env.reset_env(key, task)
        step = lambda state, _: env.step_env(key, state, action, task)[1::-1]
        return jax.lax.scan(step, state, length=T)[1]

    @on_host
    def theirs():
        step = lambda state, _: (env.env.step(state, action),) * 2
        return jax.lax.scan(step, jax.tree.map(lambda x: x + 0, env.env.reset(key)), length=T)[1].obs

    tasks = jax.tree.map(lambda *x: jnp.stack(x), env.default_params, env.sample_task(getkey()))
    np.testing.assert_allclose(env.default_params.values["sys.gravity"], [0, 0, -9.81], rtol=1e-6)
    own, other = ours(tasks)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        np.testing.assert_allclose(own, theirs(), rtol=1e-4, atol=1e-6)
    assert abs(own - other)[-1, -1] > 1e-3  # the pole turns at another speed


@pytest.fixture(scope="module")
def grids():
    pytest.importorskip("xminigrid", reason="the extra `envs` is not installed")
    return from_xland("XLand-MiniGrid-R1-9x9", make_rulesets(10, num_rules=0, num_distractors=0), train_fraction=0.7)


def test_rulesets_of_xland_are_the_tasks(grids):
    goals = {split: {bytes(x) for x in np.asarray(grids.tasks(split).ruleset.goal)} for split in ("train", "test")}
    assert len(goals["train"]) == 7 and len(goals["test"]) == 3
    assert int(grids.default_params.max_steps_in_episode) == 243 and grids.num_actions == 6
    with pytest.raises(ValueError, match="split='dev'"):
        grids.tasks("dev")


def test_xland_pays_and_ends(grids, getkey):
    """The goal is to hold the red ball, which is in front of the agent; then the same, out of time."""
    task = grids.default_params
    ball = jnp.array([3, 1], jnp.uint8)
    task = task.replace(ruleset=task.ruleset.replace(goal=jnp.array([AGENT_HOLD_GOAL, 3, 1, 0, 0], jnp.uint8)))
    _, state = grids.reset(getkey(), task)
    world = state.world
    agent = world.agent.replace(position=jnp.array([4, 4]), direction=jnp.int32(0))
    state = state.replace(world=world.replace(grid=world.grid.at[3, 4].set(ball), agent=agent))
    step = on_host(grids.step)
    picked = step(getkey(), state, jnp.int32(3), task)
    np.testing.assert_allclose(picked[2], 1 - 0.9 / 243, rtol=1e-6)
    assert picked[3] and not picked[4] and picked[1].time == 0  # terminated, and reset
    _, after, reward, terminated, truncated, _ = step(getkey(), state, jnp.int32(1), task)
    assert reward == 0 and not terminated and not truncated and after.time == 1
    last = step(getkey(), state, jnp.int32(1), task.replace(max_steps_in_episode=jnp.int32(1)))
    assert not last[3] and last[4]

    image = np.asarray(jax.jit(grids.render)(state, task))
    assert image.shape == (144, 144, 3) and image.dtype == np.uint8
    assert image[3 * 16 + 8, 4 * 16 + 8].tolist() == [255, 0, 0]  # the ball
    assert (image[0] == 100).all()  # the wall


def test_minigrid_has_one_task(getkey):
    pytest.importorskip("xminigrid", reason="the extra `envs` is not installed")
    env = from_xland("MiniGrid-MemoryS8", view_size=5)
    assert env.name == "MiniGrid-MemoryS8" and env.sample_task(getkey(), "test").ruleset is None
    assert env.tasks("all").max_steps_in_episode.shape == (1,)
    obs, _ = jax.eval_shape(env.reset, getkey(), env.default_params)
    assert obs.shape == (5, 5, 2) and obs.dtype == jnp.uint8


@pytest.mark.parametrize("num_rules", [0, 1, 3])
def test_rulesets_can_be_solved(num_rules):
    """What the goal and each rule need is made by an earlier rule or lies about; no goal is reached for nothing."""
    rulesets = make_rulesets(97, num_rules, num_distractors=2, seed=5)
    assert rulesets.init_tiles.shape == (97, 4 + num_rules, 2) and rulesets.rules.shape == (97, max(num_rules, 1), 7)
    assert len({goal.tobytes() + rules.tobytes() for goal, rules, _ in zip(*rulesets, strict=True)}) == 97
    for goal, rules, init_tiles in zip(*rulesets, strict=True):
        there = {tuple(tile) for tile in init_tiles.tolist() if tile != [0, 0]}
        start = set(there)
        needed = {tuple(goal[1:3]), tuple(goal[3:5])} - {(0, 0)}
        assert (needed <= start) == (num_rules == 0)
        for rule in rules[::-1][:num_rules]:
            inputs, product = ([rule[1:3]], rule[3:5]) if rule[0] < 3 else ([rule[1:3], rule[3:5]], rule[5:7])
            for x in inputs:
                there.remove(tuple(x))
            there.add(tuple(product))
        assert needed <= there and len(there - needed) == 2  # the distractors are left
        pairs = [
            code[1:5] for code in (goal, *rules) if code[0] == (TILE_NEAR_GOAL if code is goal else TILE_NEAR_RULE)
        ]
        assert all(tuple(pair[:2]) < tuple(pair[2:]) for pair in pairs)  # (a, b) and (b, a) would be one task twice
    fewer = make_rulesets(13, num_rules, num_distractors=2, seed=5)
    chex.assert_trees_all_equal(fewer, jax.tree.map(lambda x: x[:13], rulesets))


@pytest.mark.slow
def test_craftax(getkey):
    pytest.importorskip("craftax", reason="the extra `craftax` is not installed")
    days = lambda key, split: {"day_length": jax.random.randint(key, (), 100, 500), "max_timesteps": T}
    env = from_craftax("Craftax-Classic-Symbolic-v1", sample_task=days)
    task = icrl_envs.sample_tasks(env, getkey(), B)

    @on_host
    @jax.vmap
    def walk(task, key):
        obs, state = env.reset(key, task)

        def step(state, key):
            _, state, _, *ended, _ = env.step(key, state, env.action_space(task).sample(key), task)
            return state, ended

        return obs, jax.lax.scan(step, state, jax.random.split(key, T))[1]

    obs, (terminated, truncated) = walk(task, jax.random.split(getkey(), B))
    assert len(set(task.rules.day_length.tolist())) > 1 and task.max_steps_in_episode.tolist() == [T] * B
    assert not terminated.any() and truncated.tolist() == [[False] * (T - 1) + [True]] * B
    assert obs.shape == (B, 1345)


@pytest.mark.parametrize(
    ("make", "package", "extra"), [(from_xland, "xminigrid", "envs"), (from_craftax, "craftax", "craftax")]
)
def test_missing_extra_is_named(make, package, extra, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if "editable" not in str(finder)])
    with pytest.raises(ImportError) as error:
        make()
    assert str(error.value) == f"{package} is not installed; it comes with: pip install 'icrl-jax[{extra}]'"


NO_SYS = lambda key, split: {"sys.gravity": 0.0}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: from_gymnax("CartPole-v9"), "env='CartPole-v9': must be one of CartPole-v1, Pendulum-v1"),
        (
            lambda: from_gymnax(gymnax.make("Pendulum-v1")[0], size=3),
            "kwargs={'size': 3}: must be empty where env is an",
        ),
        (lambda: from_brax("fly"), "env='fly': must be one of ant, fast"),
        (lambda: from_brax("fast", max_steps_in_episode=0), "max_steps_in_episode=0: must be an integer of at least 1"),
        (lambda: from_brax("fast", NO_SYS).default_params, "sample_task sets 'sys.gravity': Fast has no 'sys'"),
        (lambda: make_rulesets(0), "num_rulesets=0: must be an integer of at least 1"),
        (lambda: make_rulesets(2000, 0), r"num_rulesets=2000: with num_rules=0 there are few more than 13\d\d"),
        (lambda: make_rulesets(num_rules=9), r"num_rules=9: must be an integer in 0 \.\.= 8"),
        (lambda: make_rulesets(num_distractors=-1), r"num_distractors=-1: must be an integer in 0 \.\.= 8"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"env": "XLand"}, "env='XLand': must be one of XLand-MiniGrid-R1-9x9"),
        ({"benchmark": "tiny"}, "benchmark='tiny': must be one of trivial"),
        ({"benchmark": "small-1m", "rulesets": ()}, "benchmark='small-1m': must be None where rulesets are given"),
        ({"train_fraction": 1.0}, r"train_fraction=1.0: must be a number in \(0, 1\)"),
        ({"train_fraction": "x"}, r"train_fraction='x': must be a number in \(0, 1\)"),
        ({"num_rulesets": 1}, r"num_rulesets=1: must be an integer in 2 \.\.= 1000, the number of rulesets"),
        ({"env": "MiniGrid-FourRooms", "num_rulesets": 3}, "num_rulesets=3: must be None, because MiniGrid-FourRooms"),
    ],
)
def test_wrong_arguments_of_xland_are_refused(arguments, message):
    pytest.importorskip("xminigrid", reason="the extra `envs` is not installed")
    with pytest.raises(ValueError, match=message):
        from_xland(**arguments)


def test_tasks_of_another_kind_are_refused(carts, getkey):
    strange = from_gymnax("Pendulum-v1", sample_task=lambda key, split: carts.default_params)
    with pytest.raises(TypeError, match="sample_task returned EnvParams: must return EnvParams with the fields of"):
        strange.sample_task(getkey())

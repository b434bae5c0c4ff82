"""Logged data come back as they were logged, and what is wrong with them is said before anything learns from it."""

import dataclasses
import sys
from types import SimpleNamespace

import chex
import h5py
import jax
import numpy as np
import pytest

import icrl_envs
from icrl_jax.agents import as_learner, uniform
from icrl_jax.data.collect import collect_histories
from icrl_jax.data.logged import from_arrays, from_hdf5, from_minari, from_npz
from icrl_jax.data.store import write_histories
from icrl_jax.data.stored import open_histories

H, M, N, T = 5, 7, 3, 23
ENV = icrl_envs.make("dark_room", "ad_eps", observation="cell", size=3, horizon=H)
HARD = icrl_envs.make("dark_room_hard", "ad_eps", observation="cell", size=3, horizon=H)  # episodes end at the goal
ROBOT = icrl_envs.make("point_robot", num_steps=H)


def collected(env):
    tasks = icrl_envs.sample_tasks(env, jax.random.key(3), M, "train")
    collect = jax.jit(lambda: collect_histories(as_learner(uniform(env), env, N, T), env, tasks, jax.random.key(4), 1))
    return jax.device_get(collect())


@pytest.fixture(scope="module", params=[ENV, HARD, ROBOT], ids=lambda env: env.name)
def case(request):
    return request.param, collected(request.param)


def as_logged(histories):
    """As somebody else would have written them down."""
    t = histories.transitions
    wide = lambda x: np.asarray(x, np.int64 if np.issubdtype(x.dtype, np.integer) else np.float64)
    return {
        "obs": np.asarray(t.obs, np.int64) if t.obs.dtype.kind in "iu" else t.obs,
        "action": np.asarray(t.action, np.int64) if t.action.dtype.kind in "iu" else t.action,
        "reward": wide(t.feedback),
        "terminated": t.terminated,
        "truncated": t.truncated,
        "next_obs": np.asarray(t.next_obs, np.int64) if t.next_obs.dtype.kind in "iu" else t.next_obs,
        "update": histories.update,
    }


ROOM = collected(ENV)


def assert_same(found, expected):
    chex.assert_trees_all_equal(jax.device_get(found), expected)
    chex.assert_trees_all_equal_dtypes(jax.device_get(found), expected)
    assert found.form == expected.form


def test_logged_histories_are_those_that_were_collected(case):
    env, histories = case
    assert_same(from_arrays(env, as_logged(histories), histories.env_params), histories)


def test_they_come_back_from_npz_and_hdf5(case, tmp_path):
    env, histories = case
    params = {
        f"env_params.{f.name}": getattr(histories.env_params, f.name) for f in dataclasses.fields(env.default_params)
    }
    arrays = {**as_logged(histories), **params}
    del arrays["env_params.max_steps_in_episode"]  # the same in all tasks
    np.savez(tmp_path / "logged.npz", **arrays)
    with h5py.File(tmp_path / "logged.h5", "w") as file:
        for name, x in arrays.items():
            file[name] = x
    for found in (from_npz(env, tmp_path / "logged.npz"), from_hdf5(env, tmp_path / "logged.h5")):
        assert_same(found, histories)
    write_histories(tmp_path / "store", env, from_hdf5(env, tmp_path / "logged.h5"))
    assert_same(open_histories(tmp_path / "store").read_all(), histories)


def test_what_is_not_known_may_be_left_out():
    arrays = {name: x for name, x in as_logged(ROOM).items() if name not in ("next_obs", "update")}
    found = from_arrays(ENV, arrays)
    assert found.transitions.next_obs is None and found.env_params is None and not found.update.any()
    assert found.form.dtypes == ("int32", "int32", "float32", "bool", "bool")


def test_streams_may_differ_in_length_and_what_fills_them_up_does_not_count():
    arrays, steps = as_logged(ROOM), np.arange(M * N).reshape(M, N) % 11 + 5
    after = np.arange(T) >= steps[..., None]
    for name, wrong in (("obs", 999), ("action", -5), ("reward", np.nan), ("terminated", True), ("next_obs", -1)):
        arrays[name] = arrays[name].copy()
        arrays[name][after] = wrong
    found = from_arrays(ENV, {**arrays, "steps": steps})
    assert found.form.least_steps == 5
    np.testing.assert_array_equal(found.steps, steps)
    cut = lambda x: np.where(after.reshape(*after.shape, *[1] * (x.ndim - 3)), np.zeros_like(x), x)
    chex.assert_trees_all_equal(jax.device_get(found.transitions), jax.tree.map(cut, ROOM.transitions))


def entry(name, index, value):
    """The same data with one entry changed."""
    changed = as_logged(ROOM)
    changed[name] = changed[name].copy()
    changed[name][index] = value
    return {name: changed[name]}


LOGGED = as_logged(ROOM)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rewards": LOGGED["reward"]}, "arrays='rewards': must be among obs, action, reward"),
        ({"reward": LOGGED["reward"][0]}, r"reward=\(3, 23\): must be of shape \[M, N, T\]"),
        ({"obs": LOGGED["obs"][..., :1]}, r"obs=\(7, 3, 23, 1\): must be of shape \(7, 3, 23, 2\)"),
        ({"obs": LOGGED["obs"] + 0.5}, "obs=dtype.'float64'.: must be of integers"),
        (entry("obs", (2, 1, 13), 3), r"obs\[2, 1, 13\]=\[3, 3\]: must be in Box"),
        (entry("action", (6, 2, 22), 5), r"action\[6, 2, 22\]=5: must be in Discrete"),
        (entry("action", (0, 0, 0), -1), r"action\[0, 0, 0\]=-1: must be in Discrete"),
        ({"action": np.swapaxes(LOGGED["action"], 0, 1)}, r"action=\(3, 7, 23\): must be of shape"),
        (entry("reward", (1, 0, 3), np.inf), r"reward\[1, 0, 3\]=inf: must be finite"),
        ({"truncated": LOGGED["truncated"].astype(np.int8)}, "truncated=dtype.'int8'.: must be of bools"),
        (entry("truncated", (3, 1, 4), False), r"episode 0 of \[3, 1\]='10 steps': must be of exactly 5"),
        (entry("truncated", (3, 1, 11), True), r"episode 2 of \[3, 1\]='2 steps': must be of exactly 5"),
        (entry("next_obs", (4, 2, 7), (0, 0)), None),
        ({"steps": np.full((M, N), T + 1)}, "steps=.24.: must be in 1 ..= 23"),
        ({"steps": np.full((M, N), 0)}, "steps=.0.: must be in 1 ..= 23"),
        ({"steps": np.full((N, M), 5)}, r"steps=\(3, 7\): must be of shape \(7, 3\)"),
        ({"update": LOGGED["update"].astype(int) - 1}, r"update\[0, 0, 0\]=-1: must be in 0 ..= 4294967295"),
        ({"update": LOGGED["update"].astype(int) + 2**32}, r"update\[0, 0, 0\]=4294967296: must be in 0"),
    ],
)
def test_what_is_wrong_is_refused_naming_the_array_and_the_place(change, message):
    if message is None:  # a step that was left out
        change = entry("next_obs", (4, 2, 7), (LOGGED["next_obs"][4, 2, 7] + 1) % 3)
        message = r"next_obs\[4, 2, 7\]=.*: must be the obs of the next step"
    with pytest.raises(ValueError, match=message):
        from_arrays(ENV, {**LOGGED, **change})


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match="must be with action, truncated"):
        from_arrays(ENV, {name: x for name, x in LOGGED.items() if name not in ("action", "truncated")})
    np.savez(tmp_path / "logged.npz", **LOGGED, **{"env_params.gaol": np.zeros((M, 2))})
    with pytest.raises(ValueError, match="env_params='gaol': must be among max_steps_in_episode, goal"):
        from_npz(ENV, tmp_path / "logged.npz")


TASKS = ROOM.env_params


@pytest.mark.parametrize(
    "tasks, message",
    [
        (jax.tree.map(lambda x: x[1:], TASKS), r"env_params.max_steps_in_episode=\(6,\): must be of shape \(7,\)"),
        (TASKS.replace(goal=np.zeros((M, 3, 9), int)), r"env_params.goal=\(7, 3, 9\): must be of shape \(7, 2\)"),
        (TASKS.replace(goal=TASKS.goal + 0.5), "env_params.goal=dtype.*float.*: must be of integers"),
        (TASKS.replace(goal=np.full((M, 2), 2**40)), "env_params.goal=dtype.'int64'.: must be of numbers that int32"),
        (TASKS.replace(max_steps_in_episode=np.full(M, 99)), r"max_steps_in_episode=\[99\]: must be \[5\]"),
        (icrl_envs.make("gaussian_bandit").default_params, "'GaussianBanditParams': must be tasks of env=DarkRoom"),
    ],
)
def test_tasks_that_the_family_does_not_have_are_refused(tasks, message):
    with pytest.raises(ValueError, match=message):
        from_arrays(ENV, LOGGED, tasks)


def test_an_episode_that_is_too_long_is_refused_where_some_are_short():
    hard = as_logged(collected(HARD))
    assert hard["terminated"].any()
    with pytest.raises(ValueError, match="must be of at most 5 steps, as those of DarkRoomHard"):
        from_arrays(HARD, {**hard, "truncated": np.zeros_like(hard["truncated"])})


def as_minari(histories, m):
    """A data set as Minari gives it: episodes, each with one observation more than steps."""
    t = jax.tree.map(lambda x: x[m, 0], histories.transitions)
    ends = np.flatnonzero(t.terminated | t.truncated) + 1
    slices = [slice(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    episodes = [
        SimpleNamespace(
            observations=np.concatenate([t.obs[s], t.next_obs[s][-1:]]).astype(np.int64),
            actions=t.action[s].astype(np.int64),
            rewards=t.feedback[s].astype(np.float64),
            terminations=t.terminated[s],
            truncations=t.truncated[s],
        )
        for s in slices
    ]
    return SimpleNamespace(iterate_episodes=lambda: iter(episodes)), int(ends[-1])


def test_a_minari_data_set_is_the_history_of_a_task():
    hard = collected(HARD)
    datasets, steps = zip(*(as_minari(hard, m) for m in range(M)), strict=True)
    found = jax.device_get(from_minari(HARD, datasets, hard.env_params))
    assert found.shape == (M, 1, max(steps)) and found.steps[:, 0].tolist() == list(steps) and len(set(steps)) > 1
    for m, end in enumerate(steps):
        kept = jax.tree.map(lambda x, m=m, end=end: x[m, 0, :end], (found.transitions, hard.transitions))
        chex.assert_trees_all_equal(*kept)


def minari_episode(num_steps, first=0, **flags):
    """Walks back and forth between two cells."""
    no = np.zeros(num_steps, bool)
    obs = np.array([[0, t % 2] for t in range(first, first + num_steps + 1)])
    action, reward = np.zeros(num_steps, int), np.zeros(num_steps)
    given = {"observations": obs, "actions": action, "rewards": reward, "terminations": no, "truncations": no}
    return SimpleNamespace(**{**given, **flags})


def minari(*episodes):
    return SimpleNamespace(iterate_episodes=lambda: iter(episodes))


def test_the_end_of_a_minari_episode_is_an_end():
    """Even where nothing says so, and the next one begins where it stopped."""
    found = from_minari(HARD, [minari(minari_episode(3), minari_episode(2, first=3), minari_episode(4))])
    assert found.transitions.truncated[0, 0].tolist() == [False, False, True, False, True, *[False] * 4]
    with pytest.raises(ValueError, match=r"episode 0 of \[0, 0\]='3 steps': must be of exactly 5 steps"):
        from_minari(ENV, [minari(minari_episode(3), minari_episode(2, first=3))])


@pytest.mark.parametrize(
    "dataset, message",
    [
        (minari(), "datasets='one without an episode': must be of one episode"),
        (
            minari(minari_episode(3, observations={"cell": np.zeros((4, 2))})),
            "observations .*='dict': must be one array",
        ),
        (minari(minari_episode(3, actions=(np.zeros(3), np.zeros(3)))), "actions .*='tuple': must be one array"),
    ],
)
def test_minari_data_that_are_no_arrays_are_refused(dataset, message):
    with pytest.raises(ValueError, match=message):
        from_minari(ENV, [dataset])


@pytest.mark.parametrize(
    "read, package, extra",
    [(from_hdf5, "h5py", "data"), (lambda env, name: from_minari(env, [name]), "minari", "minari")],
)
def test_what_is_not_installed_is_asked_for_by_name(read, package, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}: pip install 'icrl-jax\[{extra}\]'"):
        read(ENV, "logged")

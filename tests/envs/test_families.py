"""One suite for every registered task family and preset: what a gymnax user and an in-context learner expect of it.

A new family is picked up from the registry. `SMALL` holds constructor arguments that make it small here, if it is big.
`BUILT` holds what is not in the registry: adapters of foreign environments, and environments made of others.
"""

import functools
import inspect
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces
from two_episodes import TwoEpisodes, on_host

import icrl_envs
from icrl_envs import from_brax, from_gymnax, from_xland, mixture, projected, registry
from icrl_envs.foreign import make_rulesets
from icrl_envs.task_family import split_key

SMALL: dict[str, dict[str, Any]] = {
    "bernoulli_bandit": {"num_arms": 5},
    "linear_bandit": {"num_arms": 5},
    "dueling_bandit": {"num_arms": 5, "dim": 2},
    "dark_room": {"size": 5, "horizon": 7},
    "dark_room_hard": {"size": 5, "horizon": 8},
    "dark_room_permuted": {"size": 4, "horizon": 7},
    "dark_key_to_door": {"size": 3, "horizon": 6},
    "point_robot": {"num_steps": 7},
    **{name: {"num_steps": 5} for name in ("cheetah_vel", "cheetah_dir", "ant_dir", "walker_params")},
    **{name: {"num_steps": 7} for name in ("reach", "push")},
    **{name: {"num_decks": 1} for name in ("repeat_first", "autoencode", "higher_lower")},
    "repeat_previous": {"num_decks": 1, "k": 3},
    "count_recall": {"num_decks": 1, "deck_type": "suits"},
    "concentration": {"num_decks": 1, "deck_type": "ranks"},
    "minesweeper": {"rows": 3, "columns": 4, "num_mines": 2},
    "battleship": {"board_size": 4, "ship_sizes": (3, 3)},
    "memory_bandit": {"num_arms": 5, "num_steps": 8},
    **{name: {"num_steps": 20} for name in ("stateless_cartpole", "stateless_pendulum")},
    **{name: {"num_steps": 20, "noise_sd": 0.2} for name in ("noisy_stateless_cartpole", "noisy_stateless_pendulum")},
    "memory_chain": {"memory_length": 5, "num_bits": 3},
    "pixel_room": {"pixels": 5, "num_headings": 8, "num_steps": 11},
    "house_navigation": {
        **{"height": 11, "width": 11, "min_rooms": 1, "max_rooms": 3, "num_kinds": 5},
        **{"min_objects": 4, "max_objects": 6, "view": 5, "num_steps": 60},
    },
}


def poles(key, split):
    return {"length": jax.random.uniform(key, minval=0.2, maxval=2.0), "max_steps_in_episode": 4}


def speeds(key, split):
    return {"_dt": jax.random.uniform(key, minval=0.1)}


def grids():
    pytest.importorskip("xminigrid", reason="the extra `envs` is not installed")
    return from_xland("XLand-MiniGrid-R1-9x9", make_rulesets(97, num_rules=0, num_distractors=0))


BUILT = {
    "two_episodes": TwoEpisodes,  # that of the tests themselves
    "projected": lambda: projected(icrl_envs.make("point_robot", **SMALL["point_robot"]), obs_size=3, action_size=5),
    "mixture": lambda: mixture(*(icrl_envs.make(x, **SMALL[x]) for x in ("repeat_first", "repeat_previous"))),
    "from_gymnax": lambda: from_gymnax("CartPole-v1", sample_task=poles),
    "from_brax": lambda: from_brax("fast", sample_task=speeds),
    "from_xland": grids,
}
LISTS = {"num_train", "num_test", "num_layouts", "test_goals", "test_velocities"}  # say only which tasks there are
PHYSICS = {"cheetah_vel", "cheetah_dir", "ant_dir", "walker_params"}  # slow to compile
WITHOUT_PICTURE = PHYSICS | {"two_episodes", "from_gymnax", "from_brax"}

EXACT_ONLY_IF_WHOLE = {"house_navigation"}  # as it says

B = 31  # tasks
T = 13  # steps of a random walk
SHORT = 5  # length of its episodes
SPLITS = ("train", "test", "all")
N = 1009  # rewards drawn to estimate a mean


def cases(small=True, without=()):
    """Everything in `BUILT`, and every family with every preset; what has the same arguments twice, once.

    `small`: with the arguments of `SMALL` on top. `without`: arguments that do not make a difference.
    """
    for name in BUILT:
        yield name, None
    for name in icrl_envs.FAMILIES:
        try:
            cls = icrl_envs.family(name)
        except Exception:  # then every test of it fails
            yield name, None
            continue
        seen = []
        bare = not cls.preset_required and not (name in PHYSICS and cls.presets)  # of which one is slow enough
        for preset in [*cls.presets, None] if bare else [*cls.presets]:
            given = {**cls.presets.get(preset, {}), **(SMALL.get(name, {}) if small else {})}
            arguments = inspect.signature(cls).bind_partial(**given)
            arguments.apply_defaults()
            arguments = {key: value for key, value in arguments.arguments.items() if key not in without}
            if arguments not in seen:
                yield name, preset
            seen.append(arguments)


def make(name, preset, small=True):
    if name in BUILT:
        return BUILT[name]()
    return icrl_envs.make(name, preset, **(SMALL.get(name, {}) if small else {}))


cached = functools.lru_cache(maxsize=None)(make)


class Case(NamedTuple):
    name: str
    preset: str | None
    env: Any

    @property
    def num_steps(self) -> int:
        """Whole episodes where the best actions are known, to compare with."""
        whole = self.env.episodic and self.env.optimal_action is not None
        return max(T, int(self.env.default_params.max_steps_in_episode)) if whole else T


FIRST = dict(reversed([*cases()]))


def marked(cases):
    for name, preset in cases:
        marks = [pytest.mark.slow] if name in PHYSICS else []
        yield pytest.param((name, preset), id=f"{name}-{preset}" if preset else name, marks=marks)


@pytest.fixture(params=marked(cases(without=LISTS)), scope="module")
def case(request):
    return Case(*request.param, cached(*request.param))


@pytest.fixture(params=marked(cases()), scope="module")
def drawing(request):
    """Every case, those that differ only in which tasks there are too."""
    return Case(*request.param, cached(*request.param))


@pytest.fixture(params=marked(FIRST.items()), scope="module")
def one(request):
    """One case of every family, for what its presets share."""
    return Case(*request.param, cached(*request.param))


@pytest.fixture(params=marked(cases(small=False)), scope="module")
def full(request):
    """Every preset at its true size; compiles nothing."""
    return Case(*request.param, make(*request.param, small=False))


class Step(NamedTuple):
    """One step; `next_obs` and `next_state` are those after the auto-reset."""

    obs: Any
    state: Any
    action: Any
    next_obs: Any
    next_state: Any
    reward: Any
    terminated: Any
    truncated: Any
    info: Any
    expected_reward: Any


def live(env, task, key, best, num_steps):
    """Follows random actions, or the best ones if `best`, through one task."""

    def step(carry, t):
        obs, state = carry
        key_act, key_step = jax.random.split(jax.random.fold_in(key, t))
        action = env.action_space(task).sample(key_act)
        if env.optimal_action is not None:
            action = jnp.where(best, env.optimal_action(state, task), action)
        expected = None if env.expected_reward is None else env.expected_reward(state, action, task)
        after = env.step(key_step, state, action, task)
        return after[:2], Step(obs, state, action, *after, expected)

    key, key_reset = jax.random.split(key)
    return jax.lax.scan(step, env.reset(key_reset, task), jnp.arange(num_steps))


@functools.partial(on_host, static_argnames=("env", "num_steps"))
def play(env, tasks, keys, best, num_steps):
    (_, state), steps = jax.vmap(lambda task, key: live(env, task, key, best, num_steps))(tasks, keys)
    pictures = None if env.render is None else jax.vmap(env.render)(state, tasks)
    return steps, pictures


@functools.cache
def keys(seed, n=B):
    return jax.random.split(jax.random.key(seed), n)


@functools.cache
def drawn(env):
    """B tasks of every split, drawn in one program; under "optimal" the optimal returns of the train tasks, as they are
    and shortened."""

    def draw(key):
        tasks = {split: env.sample_task(key, split) for split in SPLITS}
        train = tasks["train"], shortened(env, tasks["train"])
        return {**tasks, "optimal": env.optimal_return and [env.optimal_return(task) for task in train]}

    return on_host(jax.vmap(draw))(keys(1))


def shortened(env, tasks):
    """Lets episodes end after `SHORT` steps."""
    if not env.episodic:
        return tasks
    return tasks.replace(max_steps_in_episode=0 * tasks.max_steps_in_episode + SHORT)


@functools.cache
def walk(case):
    """Random steps in short episodes; one compiled program serves the tests of whole episodes too."""
    tasks = shortened(case.env, drawn(case.env)["train"])
    return play(case.env, tasks, keys(2), False, case.num_steps)


@functools.cache
def episodes(case, best, short):
    tasks = drawn(case.env)["train"]
    return play(case.env, shortened(case.env, tasks) if short else tasks, keys(3), best, case.num_steps)[0]


class Jitted:
    """What the tests of one environment call without a batch, jitted once."""

    def __init__(self, env):
        self.step, self.draw = jax.jit(env.step_env), jax.jit(env.sample_task)


jitted = functools.cache(Jitted)


def parts(space, x):
    """The boxes and discrete spaces that make up a space, each with what should lie in it."""
    if isinstance(space, spaces.Dict):
        for name, inner in space.spaces.items():
            yield from parts(inner, x[name] if isinstance(x, dict) else getattr(x, name))
    elif isinstance(space, spaces.Tuple):
        for inner, y in zip(space.spaces, x, strict=True):
            yield from parts(inner, y)
    else:
        yield space, x


def assert_inside(space, x, lead):
    for part, y in parts(space, x):
        assert y.shape == (*lead, *part.shape) and y.dtype == part.dtype
        inner = getattr(part, "space", part)  # a pair of actions
        if isinstance(inner, spaces.Discrete):
            assert (y >= 0).all() and (y < inner.n).all()
        else:
            assert (y >= np.asarray(inner.low)).all() and (y <= np.asarray(inner.high)).all()
        assert part.contains(y[(0,) * len(lead)])


def test_spaces_hold_and_everything_is_finite(case):
    steps, _ = walk(case)
    lead, params = steps.reward.shape, case.env.default_params
    for obs in (steps.obs, steps.next_obs, steps.info["final_observation"]):
        assert_inside(case.env.observation_space(params), obs, lead)
    assert_inside(case.env.action_space(params), steps.action, lead)
    assert steps.reward.dtype == np.float32 and lead == (B, case.num_steps)
    for flag in (steps.terminated, steps.truncated):
        assert flag.dtype == bool and flag.shape == lead
    chex.assert_tree_all_finite(steps)
    assert len(np.unique(steps.action.reshape(-1, *steps.action.shape[2:]), axis=0)) > 1


def test_truncation_is_the_time_limit_and_nothing_else(case):
    steps, _ = walk(case)
    done = steps.terminated | steps.truncated
    elapsed = np.zeros(B, np.int32)
    for t in range(done.shape[1]):
        np.testing.assert_array_equal(steps.state.time[:, t], elapsed)
        if case.env.episodic:
            running = ~steps.terminated[:, t]
            np.testing.assert_array_equal(steps.truncated[running, t], elapsed[running] + 1 == SHORT)
        elapsed = np.where(done[:, t], 0, elapsed + 1)
    if not case.env.episodic:
        assert not done.any()


def test_what_says_that_it_never_terminates_does_not(case):
    if case.env.terminates:
        pytest.skip("may terminate")
    assert not walk(case)[0].terminated.any() and not episodes(case, True, False).terminated.any()


def test_the_time_limit_terminates_nothing(case):
    """With another limit, what is `terminated` stays so, until an episode has ended."""
    if not case.env.episodic or (drawn(case.env)["train"].max_steps_in_episode <= SHORT).any():
        pytest.skip("has no limit, or one as low as that of the test")
    short, whole = (episodes(case, False, short) for short in (True, False))
    ended = np.cumsum(short.terminated | short.truncated, axis=1)[:, : SHORT - 1]
    running = np.concatenate([np.ones((B, 1), bool), ended == 0], axis=1)
    np.testing.assert_array_equal((short.terminated[:, :SHORT] & running), whole.terminated[:, :SHORT] & running)


def test_final_observations_are_kept_at_the_auto_reset(case):
    steps, _ = walk(case)
    done = steps.terminated | steps.truncated
    final = steps.info["final_observation"]
    same = lambda x, y, where: chex.assert_trees_all_equal(*jax.tree.map(lambda z: z[where], (x, y)))
    same(steps.next_obs, final, ~done)
    same(jax.tree.map(lambda x: x[:, 1:], steps.obs), jax.tree.map(lambda x: x[:, :-1], steps.next_obs), slice(None))


def test_final_observations_are_those_of_the_step(one):
    steps, t = walk(one)[0], SHORT - 1
    tasks = shortened(one.env, drawn(one.env)["train"])
    for i in range(3):
        now, task = jax.tree.map(lambda x: x[i, t], steps), jax.tree.map(lambda x: x[i], tasks)  # noqa: B023
        key_step = jax.random.split(jax.random.fold_in(jax.random.split(keys(2)[i])[0], t))[1]  # as in `live`
        obs, state, *_ = jitted(one.env).step(jax.random.split(key_step)[0], now.state, now.action, task)
        chex.assert_trees_all_close(obs, now.info["final_observation"], rtol=1e-5, atol=1e-6)
        assert state.time == now.state.time + 1


def forms(tree):
    """Structure, shapes and dtypes; where they are the same, a jitted function is traced once."""
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


def test_step_is_traced_once_for_all_tasks_and_gives_what_the_spaces_say(full):
    env, key = full.env, jax.random.key(0)
    train, test, every = (jax.eval_shape(functools.partial(env.sample_task, split=x), key) for x in SPLITS)
    assert forms(train) == forms(test) == forms(every)
    obs, state = jax.eval_shape(env.reset, key, train)
    action = jax.eval_shape(env.action_space(train).sample, key)
    next_obs, next_state, reward, terminated, truncated, info = jax.eval_shape(env.step, key, state, action, train)
    assert forms(state) == forms(next_state)
    assert forms(obs) == forms(next_obs) == forms(info["final_observation"])
    for part, x in parts(env.observation_space(env.default_params), obs):
        assert (x.shape, x.dtype) == (part.shape, part.dtype)
    assert [(x.shape, x.dtype) for x in (reward, terminated, truncated)] == [((), np.float32), ((), bool), ((), bool)]


def test_default_params_are_one_task(full):
    one, other = full.env.default_params, jax.eval_shape(full.env.sample_task, jax.random.key(0))
    assert jax.tree.structure(one) == jax.tree.structure(other)
    form = lambda x: (jnp.shape(x), jnp.asarray(x).dtype)
    assert jax.tree.map(form, one) == jax.tree.map(lambda x: (x.shape, x.dtype), other)


def test_the_same_key_gives_the_same_trajectory_with_and_without_jit(one):
    """Without jit in an environment made anew: nothing is drawn but from the key, and nothing kept between steps."""
    env, num_steps = make(one.name, one.preset), 2
    tasks = shortened(one.env, drawn(one.env)["train"])
    if one.name in PHYSICS:  # a step takes half a minute without jit; the body of `from_brax` stands for them
        chex.assert_trees_all_equal(play(one.env, tasks, keys(2), False, one.num_steps), walk(one))
        return
    with jax.disable_jit(one.name != "from_xland"):  # a step of which is thousands of operations
        again = live(env, jax.tree.map(lambda x: x[0], tasks), keys(2)[0], jnp.zeros((), bool), num_steps)[1]
    expected = jax.tree.map(lambda x: x[0, :num_steps], walk(one)[0])
    chex.assert_trees_all_close(jax.device_get(again), expected, rtol=1e-4, atol=1e-5)


def rows(tasks):
    """What tells tasks apart, for each of a batch."""
    leaves = [np.asarray(x) for x in jax.tree.leaves(tasks)]
    return [b"".join(x[i].tobytes() for x in leaves) for i in range(len(leaves[0]))]


def listed(env):
    return {split: rows(env.tasks(split)) for split in SPLITS}


def test_lists_of_tasks_are_disjoint(full):
    if full.env.tasks is None:
        pytest.skip("does not list its tasks")
    split = listed(full.env)
    assert len(split["train"]) + len(split["test"]) == len(split["all"]) == len(set(split["all"]))
    assert set(split["train"]) | set(split["test"]) == set(split["all"])


def test_train_and_test_tasks_are_disjoint(drawing):
    train, test = (set(rows(drawn(drawing.env)[split])) for split in ("train", "test"))
    assert train and test and not train & test
    if drawing.env.tasks is None:
        assert min(len(train), len(test)) > B // 2  # of very many
        return
    for split, tasks in listed(drawing.env).items():
        assert set(rows(drawn(drawing.env)[split])) <= set(tasks)


def test_a_task_of_a_batch_is_that_of_its_key(one):
    alone, batch = jitted(one.env).draw(keys(1)[2]), drawn(one.env)["train"]
    chex.assert_trees_all_close(alone, jax.tree.map(lambda x: x[2], batch), rtol=1e-6)


def test_sample_tasks_draws_one_task_from_each_key(getkey):
    env, key = cached("gaussian_bandit", None), getkey()
    for split in ("train", "test"):
        one_by_one = [env.sample_task(k, split) for k in jax.random.split(key, 3)]
        expected = jax.tree.map(lambda *x: np.stack(x), *one_by_one)
        chex.assert_trees_all_close(icrl_envs.sample_tasks(env, key, 3, split), expected, rtol=1e-6)
    chex.assert_trees_all_close(icrl_envs.sample_tasks(env, key, 3), expected, rtol=1e-6)  # held out unless told


def test_each_split_has_a_stream_of_its_own(getkey):
    key = getkey()
    assert len({jax.random.key_data(split_key(key, split)).tobytes() for split in SPLITS}) == 3


def test_an_unknown_split_is_refused(one, getkey):
    with pytest.raises(ValueError, match="split='validation': must be one of 'train', 'test', 'all'"):
        one.env.sample_task(getkey(), "validation")


def returns(case, best, short):
    """Return of the first episode in every task, float [B]; expected rewards of a bandit, which never ends."""
    steps = episodes(case, best, short)
    if not case.env.episodic:
        return steps.expected_reward.sum(1, dtype=np.float64)
    done = steps.terminated | steps.truncated
    assert done.any(1).all()
    in_first = np.cumsum(done, axis=1) - done == 0
    return (steps.info.get("reward", steps.reward) * in_first).sum(1, dtype=np.float64)


@pytest.mark.parametrize("short", [False, True], ids=["whole", "short"])
def test_the_best_actions_earn_the_optimal_return_and_at_least_what_random_ones_do(case, short):
    if case.env.optimal_action is None:
        pytest.skip("knows no best action")
    if short and (case.name in EXACT_ONLY_IF_WHOLE or not case.env.episodic):
        pytest.skip("is not exact where the limit is too low, or has none")
    oracle, random = returns(case, True, short), returns(case, False, short)
    assert oracle.mean() >= random.mean() - 2 * (oracle - random).std() / np.sqrt(B)
    optimal = drawn(case.env)["optimal"]
    if optimal is not None:
        optimal = optimal[short]
        assert optimal.dtype == np.float32 and optimal.shape == (B,)
        error = 3 * (oracle - optimal).std() / np.sqrt(B)
        np.testing.assert_allclose(oracle.mean(), optimal.mean(dtype=np.float64), rtol=1e-4, atol=error + 1e-4)


def test_no_action_has_an_advantage_over_the_best_one(one):
    env = one.env
    if env.optimal_advantage is None:
        pytest.skip("knows no advantage")
    steps, tasks = walk(one)[0], drawn(env)["train"]  # at their full length, or much would be out of reach

    @on_host
    @jax.vmap
    @functools.partial(jax.vmap, in_axes=(0, 0, None))
    def advantages(state, action, task):
        best = env.optimal_action(state, task)
        return env.optimal_advantage(state, action, task), env.optimal_advantage(state, best, task)

    drawn_action, best = advantages(steps.state, steps.action, tasks)
    assert drawn_action.dtype == np.float32 and drawn_action.max() <= 1e-6 and drawn_action.min() < 0
    np.testing.assert_allclose(best, 0, atol=1e-6)


def test_expected_reward_is_the_mean_of_the_reward(one):
    env = one.env
    if env.expected_reward is None:
        pytest.skip("knows no expected reward")
    some = jax.tree.map(lambda x: x[:5, 2], walk(one)[0])
    tasks = jax.tree.map(lambda x: x[:5], shortened(env, drawn(env)["train"]))

    @functools.partial(on_host)
    @functools.partial(jax.vmap, in_axes=(0, 0, None))
    def rewards(task, step, keys):
        def reward(key):
            _, _, reward, _, info = env.step_env(key, step.state, step.action, task)
            return info.get("reward", reward)

        best = None if env.optimal_action is None else env.optimal_action(step.state, task)
        best = best if best is None else env.expected_reward(step.state, best, task)
        return jax.vmap(reward)(keys), env.expected_reward(step.state, step.action, task), best

    rewards, expected, best = rewards(tasks, some, keys(4, N))
    assert expected.dtype == np.float32 and expected.shape == (5,)
    np.testing.assert_allclose(expected, some.expected_reward, rtol=1e-5, atol=1e-6)
    random = np.ptp(rewards, axis=1) > 0  # where it seems not, something rare may still have been missed
    error = np.where(random, 5 * rewards.std(1) / np.sqrt(N), 0) + 10 / N
    assert (np.abs(rewards.mean(1, dtype=np.float64) - expected) <= error).all()
    if not env.episodic and best is not None:
        assert (best >= expected).all()


def test_pictures_are_drawn_in_one_program_for_all_tasks(case):
    if case.name in WITHOUT_PICTURE:
        assert case.env.render is None
        return
    _, pictures = walk(case)
    assert pictures.dtype == np.uint8 and pictures.ndim == 4 and pictures.shape[0] == B and pictures.shape[3] == 3
    assert all(np.ptp(picture) > 0 for picture in pictures)


def outside(space):
    """Actions beyond the space, and the nearest ones inside."""
    inner = getattr(space, "space", space)
    if isinstance(inner, spaces.Discrete):
        high, low = np.full(space.shape, inner.n - 1, space.dtype), np.zeros(space.shape, space.dtype)
        return [(high + 3, high), (low - 2, low)]
    high, low = (np.broadcast_to(np.asarray(x, space.dtype), space.shape) for x in (inner.high, inner.low))
    return [(high + 1, high), (low - 1, low)]


def test_actions_outside_are_clipped_in_step_and_refused_by_check_action(one, getkey):
    env, key, step = one.env, getkey(), jitted(one.env).step
    task, state = jax.tree.map(lambda x: x[0], (shortened(env, drawn(env)["train"]), walk(one)[0].state))
    state, space = jax.tree.map(lambda x: x[0], state), env.action_space(task)
    icrl_envs.check_action(env, task, space.sample(getkey()))
    for action, nearest in outside(space):
        bad, good = (step(key, state, jnp.asarray(x), task) for x in (action, nearest))
        chex.assert_trees_all_equal(bad, good)
        icrl_envs.check_action(env, task, nearest)
        with pytest.raises(ValueError, match="(?s)^action=.*must lie in"):
            icrl_envs.check_action(env, task, action)
    with pytest.raises(ValueError, match="(?s)^action=.*must lie in"):
        icrl_envs.check_action(env, task, np.zeros((2, 3), space.dtype))


def arguments(cls):
    """Names of the constructor's arguments, those it hands on to its parents included."""
    names = []
    for parent in cls.__mro__:
        if "__init__" in vars(parent):
            parameters = inspect.signature(parent.__init__).parameters.values()
            names += [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)][1:]
            if not any(p.kind == p.VAR_KEYWORD for p in parameters):
                break
    return names


@pytest.mark.parametrize("name", icrl_envs.FAMILIES)
def test_wrong_constructor_arguments_are_refused(name):
    cls = icrl_envs.family(name)
    preset, refused = next(iter(cls.presets), None), []
    for argument in arguments(cls):
        try:
            icrl_envs.make(name, preset, **{argument: -7})
        except ValueError as error:
            assert str(error).startswith(f"{argument}=-7: must be ")
            refused.append(argument)
    assert refused or not arguments(cls)
    given = inspect.signature(cls).bind_partial(**cls.presets.get(preset, {}))
    given.apply_defaults()
    for argument in (name for name, value in given.arguments.items() if isinstance(value, str)):
        with pytest.raises(ValueError, match=f"^{argument}=array.*: must be "):
            icrl_envs.make(name, preset, **{argument: np.zeros(3)})


@pytest.mark.parametrize("name", icrl_envs.FAMILIES)
def test_papers_that_differ_are_not_mixed_silently(name):
    if icrl_envs.family(name).preset_required:
        with pytest.raises(ValueError, match=f"preset=None: papers differ on {name}; choose one of '"):
            registry.make(name)
    with pytest.raises(ValueError, match=f"preset='nobody': {name} has "):
        registry.make(name, "nobody")

"""The exact posterior over the tasks of a grid, against tasks simulated one by one in plain Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from two_episodes import on_host, spied

import icrl_envs
from icrl_jax.agents import posterior, prompted, uniform
from icrl_jax.agents.posterior import Belief, weights
from icrl_jax.core import TimeStep, Transition, partial
from icrl_jax.evaluate import evaluate
from icrl_jax.rollout import replay, rollout, start

T, SIZE = 101, 5
STEPS = {"+x": (1, 0), "-x": (-1, 0), "+y": (0, 1), "-y": (0, -1), "stay": (0, 0)}


def move(env, cell, name):
    return tuple(np.clip(np.add(cell, STEPS[name]), 0, env.size - 1))


def towards(cell, target):
    """First along x, then along y."""
    for axis, name in enumerate("xy"):
        if cell[axis] != target[axis]:
            return ("+" if cell[axis] < target[axis] else "-") + name
    return "stay"


# A world: (env, order, task, memory, cell, action) -> memory, next cell, reward; and the best move.


def dense(env, order, task, memory, cell, action):
    cell = move(env, cell, order[action])
    return memory, cell, float(cell == tuple(task.goal))


def once(env, order, task, memory, cell, action):
    cell = move(env, cell, order[action])
    there = cell == tuple(task.goal)
    return memory | {"found"} if there else memory, cell, float(there and "found" not in memory)


def keys(env, order, task, memory, cell, action):
    cell = move(env, cell, order[action])
    if "key" not in memory:
        takes = cell == tuple(task.key_cell)
        return memory | {"key"} if takes else memory, cell, float(takes)
    opens = cell == tuple(task.door_cell) and "door" not in memory
    return memory | {"door"} if opens else memory, cell, float(opens)


def permuted(env, order, task, memory, cell, action):
    return dense(env, order, task, memory, cell, task.permutation[action])


def best_action(order, task, memory, cell):
    if hasattr(task, "key_cell"):
        return order.index(towards(cell, task.door_cell if "key" in memory else task.key_cell))
    action = order.index(towards(cell, task.goal))
    return list(task.permutation).index(action) if hasattr(task, "permutation") else action


DPT, AD, EPS, AMAGO = (
    x.split() for x in ("+x -x +y -y stay", "-x +x -y +y stay", "stay -x +y +x -y", "-y -x +y +x stay")
)
ROOM = icrl_envs.make("dark_room", "dpt", size=SIZE, horizon=13)
CASES = {
    "dense": (ROOM, dense, DPT, {"goal": (1, 1)}),
    "once": (icrl_envs.make("dark_room_hard", "ad", size=SIZE, horizon=11), once, AD, {"goal": (2, 3)}),
    "ends": (icrl_envs.make("dark_room_hard", "ad_eps", size=SIZE, horizon=11), once, EPS, {"goal": (3, 3)}),
    "keys": (
        icrl_envs.make("dark_key_to_door", "dicp", size=3, horizon=17),
        keys,
        DPT,
        {"key_cell": (1, 0), "door_cell": (2, 1)},
    ),
    "timed": (
        icrl_envs.make("dark_key_to_door", "amago", size=3, horizon=17, start="random"),
        keys,
        AMAGO,
        {"key_cell": (0, 1), "door_cell": (1, 1)},
    ),
    "permuted": (
        icrl_envs.make("dark_room_permuted", "dicp", size=3, horizon=17),
        permuted,
        DPT,
        {"permutation": (2, 0, 4, 1, 3)},
    ),
}


def cell_of(env, obs):
    if env.observation == "index":
        return divmod(int(obs), env.size)
    if env.observation == "timed":
        return tuple(int(round(float(x) * env.size)) for x in obs[:2])
    return tuple(map(int, obs))


def listed(env):
    """All tasks, one by one."""
    tasks = jax.device_get(env.tasks("all"))
    number = len(jax.tree.leaves(tasks)[0])
    return [jax.tree.map(lambda x, i=i: x[i], tasks) for i in range(number)]


def by_enumeration(env, world, order, history):
    """Before each step, which tasks are still possible [T, M] and how often each action is best in them [T, A]."""
    tasks = listed(env)
    memories, possible = [frozenset()] * len(tasks), np.ones(len(tasks), bool)
    alive, probs = [], []
    for obs, action, feedback, next_obs, terminated, truncated in zip(*history, strict=True):
        cell = cell_of(env, obs)
        best = [best_action(order, task, memory, cell) for task, memory in zip(tasks, memories, strict=True)]
        alive.append(possible.copy())
        probs.append(np.bincount(np.array(best)[possible], minlength=5) / possible.sum())
        for m, task in enumerate(tasks):
            memories[m], after, reward = world(env, order, task, memories[m], cell, action)
            possible[m] &= reward == feedback and after == cell_of(env, next_obs)
        if terminated or truncated:
            memories = [frozenset()] * len(tasks)
    return np.stack(alive), np.stack(probs)


@on_host
def relive(agent, history):
    key = jax.random.key(0)
    return replay(spied(agent), agent.init(key), history, key)[1][1]


@pytest.mark.parametrize("name", CASES)
def test_the_belief_is_that_of_enumeration(name):
    env, world, order, truth = CASES[name]
    task = env.default_params.replace(**{field: jnp.array(x, jnp.int32) for field, x in truth.items()})
    agent = uniform(env)
    live = on_host(lambda key: rollout(agent, env, start(agent, env, task, key), key, T)[1].transition)
    history = live(jax.random.key(5))
    info, (possible, probs) = relive(posterior(env), history), by_enumeration(env, world, order, history)
    np.testing.assert_array_equal(info["carry"].misses == 0, possible)
    np.testing.assert_allclose(info["probs"], probs, atol=1e-6)
    left = possible.sum(1)
    assert (
        history.feedback.sum() >= (name != "permuted") and left[0] == len(listed(env)) and 1 <= left[-1] < left[0] / 2
    )


def separate(goal, num, seed) -> Transition:
    """Transitions of uniformly drawn cells and actions, as DPT's contexts in the dark room."""
    random = np.random.default_rng(seed)
    obs, actions = random.integers(0, SIZE, (num, 2)), random.integers(0, 5, num)
    next_obs = np.array([move(ROOM, cell, DPT[action]) for cell, action in zip(obs, actions, strict=True)])
    feedback, no = (next_obs == goal).all(1).astype(np.float32), np.zeros(num, bool)
    return Transition(*(x.astype(np.int32) for x in (obs, actions)), feedback, next_obs.astype(np.int32), no, no)


def test_separate_transitions_teach_too():
    found = 0
    for seed in range(5):
        history = separate((3, 1), 29, seed)
        info, (possible, probs) = relive(posterior(ROOM, "greedy"), history), by_enumeration(ROOM, dense, DPT, history)
        np.testing.assert_array_equal(info["carry"].misses == 0, possible)
        np.testing.assert_allclose(info["probs"], probs, atol=1e-6)
        found += history.feedback[:-1].any()
    assert 0 < found < 5


def decide(decision, history, key, obs, n=4001, tasks=None):
    """Carries, actions and probabilities of n decisions after a history."""
    agent = posterior(ROOM, decision, tasks)

    @on_host
    def run(keys):
        carry, _ = replay(agent, agent.init(key), history, key)
        last = TimeStep(jnp.asarray(obs), jax.tree.map(lambda x: x[-1], history), jnp.zeros((), bool))
        return jax.vmap(lambda key: agent.act(carry, key, last))(keys)

    carry, actions, info = run(jax.random.split(key, n))
    return carry, actions, info["probs"][0]


def test_each_way_to_decide(getkey):
    history, obs = separate((4, 4), 17, seed=0), (2, 2)
    assert not history.feedback.any()
    ends = history._replace(truncated=np.ones(17, bool))
    _, actions, probs = decide("step", history, getkey(), obs)
    assert (probs > 0.02).sum() == 3
    np.testing.assert_allclose(np.bincount(actions, minlength=5) / 4001, probs, atol=0.04)
    _, actions, same = decide("greedy", history, getkey(), obs)
    np.testing.assert_array_equal(same, probs)
    assert (actions == probs.argmax()).all()
    carry, actions, same = decide("episode", ends, getkey(), obs)
    np.testing.assert_array_equal(same, probs)
    tasks, possible = listed(ROOM), carry.known.misses[0] == 0
    share = np.bincount(carry.plan, minlength=25) / 4001
    np.testing.assert_allclose(share, possible / possible.sum(), atol=0.025)
    np.testing.assert_array_equal(actions, [best_action(DPT, tasks[m], (), obs) for m in carry.plan])
    carry, actions, _ = decide("episode", history, getkey(), obs, n=101)  # in the middle of an episode
    assert (carry.plan == carry.plan[0]).all() and (actions == actions[0]).all()


def test_a_task_that_is_not_listed_is_nearest_to_those_contradicted_least(getkey):
    """Rewards at a goal that no listed task has: all others are as wrong, but for those ruled out before."""
    tasks = ROOM.tasks("train")
    goal = tuple(np.asarray(ROOM.tasks("test").goal)[0])
    history = separate(goal, 59, seed=2)
    assert history.feedback[:-1].sum() >= 1
    carry, _, probs = decide("step", history, getkey(), (2, 2), n=3, tasks=tasks)
    visits = [(history.next_obs == goal).all(1).sum() for goal in np.asarray(tasks.goal)]
    misses = np.array(visits) + history.feedback.sum()
    np.testing.assert_array_equal(carry.misses[0], misses)
    p = on_host(weights)(Belief(carry.misses[0], ()))
    np.testing.assert_allclose(p, (misses == misses.min()) / (misses == misses.min()).sum(), rtol=1e-6)
    np.testing.assert_allclose(probs.sum(), 1, rtol=1e-6)


run = on_host(evaluate, static_argnames=("env", "num_episodes"))


def offline(agent, context):
    return prompted(agent, context, online=False)


def test_contexts_are_worth_the_whole_return_where_they_hold_the_goal_and_something_elsewhere(getkey):
    tasks, agent, key = ROOM.tasks("all"), posterior(ROOM, "greedy"), getkey()
    goals = np.asarray(tasks.goal)
    contexts = [separate(goal, 11, seed) for seed, goal in enumerate(goals)]
    contexts = jax.tree.map(lambda *x: np.stack(x), *contexts)
    found = run(partial(offline, agent), ROOM, tasks, key, num_episodes=1, context=contexts).metrics["mean_return"]
    blind = run(prompted(agent, online=False), ROOM, tasks, key, num_episodes=1).metrics["mean_return"]
    best, told = jax.vmap(ROOM.optimal_return)(tasks), contexts.feedback.any(1)
    assert 5 <= told.sum() <= 20
    np.testing.assert_array_equal(found[told], best[told])
    assert found.mean() > 2 * blind.mean()


def test_posterior_sampling_by_the_episode_finds_every_goal(getkey):
    """Each episode goes to a cell that may be the goal: after at most 24 of 25 it is found."""
    tasks = ROOM.tasks("all")
    curves = run(posterior(ROOM, "episode"), ROOM, tasks, getkey(), num_episodes=25).curves["return"]
    best = np.asarray(jax.vmap(ROOM.optimal_return)(tasks))
    np.testing.assert_array_equal(curves[:, -1], best)
    assert curves[:, 0].mean() < 0.5 * best.mean()
    found = np.maximum.accumulate(curves == best[:, None], axis=1)
    assert ((curves == best[:, None]) == found).mean() > 0.9  # once found, it is not left


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: posterior(icrl_envs.revealed(ROOM)),
            "env='DarkRoom': must be a dark room, a key-to-door room or a pixel",
        ),
        (lambda: posterior(ROOM, "best"), "decide='best': must be one of 'step', 'episode', 'greedy'"),
        (
            lambda: posterior(icrl_envs.make("dark_key_to_door", "amago")),
            "tasks=None: must be given, because DarkKeyToDoor does not list its tasks",
        ),
    ],
)
def test_wrong_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()

"""Steps of source algorithms per second: all tasks learned in one program, against a learner at a time in NumPy."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

import icrl_envs
from benchmarks import numpy_ppo, numpy_q_learning
from benchmarks.measure import Row, faster, in_turn
from icrl_jax.core import Learner, Tree
from icrl_jax.data.collect import collect_histories
from icrl_jax.methods.ppo import PPOConfig, ppo_learner
from icrl_jax.methods.sac import SACConfig, sac_learner
from icrl_jax.methods.sources import HistoriesConfig, gradient_source, make_learner


class Size(NamedTuple):
    """How much is learned in one call."""

    num_tasks: int = 65  # of the experiments; Zisman et al. 2024 train on so many rooms
    q_streams: int = 16
    q_steps: int = 2400
    numpy_learners: int = 4
    ppo_streams: int = 100  # actors of a learner (Laskin et al. 2022)
    ppo_rounds: int = 2
    sac_tasks: int = 4
    sac_rounds: int = 5
    rounds: int = 5


QUICK = Size(3, 2, 40, 2, ppo_streams=2, ppo_rounds=1, sac_tasks=1, sac_rounds=1, rounds=1)

ROOM = icrl_envs.make("dark_room", "dicp")  # AD's 9 x 9 room, its actions in the order of the NumPy room


def rows(quick: bool = False) -> Iterator[Row]:
    """A row for each source algorithm and NumPy loop."""
    size = QUICK if quick else Size()
    yield from q_learning_rows(size)
    yield ppo_row(size)
    yield sac_row(size)


def q_learning_rows(size: Size) -> Iterator[Row]:
    """Tabular Q-learning, each stream a learner of its own."""
    config = HistoriesConfig(num_streams=size.q_streams, num_steps=size.q_steps)
    learner, num_rounds = make_learner(ROOM, config, config.num_streams)
    tasks, rng = rooms(size.num_tasks), np.random.default_rng(0)
    every = np.repeat(np.asarray(tasks.goal), size.q_streams, axis=0)
    few = rng.permutation(every)[: size.numpy_learners]
    seconds = in_turn(
        {
            "ours": collected(learner, ROOM, tasks, num_rounds),
            "alone": partial(numpy_q_learning.one_by_one, few, ROOM.size, ROOM.horizon, size.q_steps, rng),
            "batched": partial(numpy_q_learning.all_at_once, every, ROOM.size, ROOM.horizon, size.q_steps, rng),
        },
        size.rounds,
    )
    ours = len(every) * size.q_steps / seconds["ours"]
    alone, batched = len(few) * size.q_steps / seconds["alone"], len(every) * size.q_steps / seconds["batched"]
    what, rate = "histories of Q-learning, learner-steps", f"{ours:,.0f} /s"
    learners = f"{size.num_tasks} tasks x {size.q_streams} streams x {size.q_steps:,} steps"
    yield faster(what, rate, f"{alone:,.0f} /s", ours / alone, 10, f"{learners}, a NumPy loop over {len(few)} of them")
    yield faster(
        what, rate, f"{batched:,.0f} /s", ours / batched, None, "a NumPy loop over steps, all learners at once"
    )


def ppo_row(size: Size) -> Row:
    """PPO: a learner for each task, its streams sharing one policy."""
    config = gradient_source(HistoriesConfig(source="ppo"), size.ppo_streams)
    assert isinstance(config, PPOConfig)
    tasks, rng = rooms(size.num_tasks), np.random.default_rng(0)
    alone = numpy_ppo.PPO(config, np.asarray(tasks.goal[0]), ROOM.size, ROOM.horizon, rng)
    sides = {"ours": collected(ppo_learner(ROOM, config), ROOM, tasks, size.ppo_rounds), "theirs": alone.learn}
    seconds = in_turn(sides, size.rounds)
    round_steps = config.num_streams * config.num_steps
    ours, theirs = size.num_tasks * size.ppo_rounds * round_steps / seconds["ours"], round_steps / seconds["theirs"]
    note = (
        f"{size.num_tasks} tasks x {config.num_streams} streams, {config.num_epochs} epochs of "
        f"{config.num_minibatches} minibatches a round; a NumPy loop that learns one task by hand-written gradients"
    )
    what = "histories of PPO, learner-steps"
    return faster(what, f"{ours:,.0f} /s", f"{theirs:,.0f} /s", ours / theirs, 100, note)


def sac_row(size: Size) -> Row:
    """SAC, for information."""
    env, config = icrl_envs.make("point_robot"), SACConfig(random_steps=0)
    tasks = icrl_envs.sample_tasks(env, jax.random.key(0), size.sac_tasks)
    collect = collected(sac_learner(env, config), env, tasks, size.sac_rounds)
    rate = size.sac_tasks * size.sac_rounds * config.num_steps / in_turn({"ours": collect}, size.rounds)["ours"]
    note = (
        f"{size.sac_tasks} tasks; point robot, width {config.model.width}, {config.batch_size} transitions a gradient"
    )
    return Row("histories of SAC, learner-steps", f"{rate:,.0f} /s", note=note)


def collected(learner: Learner, env: icrl_envs.TaskFamily, tasks: Tree, num_rounds: int) -> Callable:
    """Collects from scratch, and waits for it."""
    key = jax.random.key(0)
    return lambda: jax.block_until_ready(collect_histories(learner, env, tasks, key, num_rounds))


def rooms(num_tasks: int) -> Tree:
    """The first training tasks [M, ...]."""
    return jax.tree.map(lambda x: x[:num_tasks], ROOM.tasks("train"))

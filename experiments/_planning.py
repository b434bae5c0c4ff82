"""What experiments of DICP share: its backbone, from the same weights, and what planning costs."""

import dataclasses
import time
from typing import TypeVar

import jax
import numpy as np

from experiments import _episodes as episodes
from experiments._bandits import intervals, trained_agents
from icrl_envs import TaskFamily
from icrl_jax.core import Agent, Tree
from icrl_jax.evaluate import evaluate
from icrl_jax.methods.dicp import DICPConfig, DICPDPTConfig, DICPIDTConfig, dicp
from icrl_jax.run import Findings, Trained

Config = TypeVar("Config", DICPConfig, DICPIDTConfig, DICPDPTConfig)

COST = "act_ms"

WATCHED_TASKS = 8
"""In which one watches in training: planning takes its time."""

TIMED_TASKS = 5
"""In which acts are timed, one task after another."""


def score(env: TaskFamily, config, num_tasks: int):
    """`episodes.score` in a few tasks."""
    return episodes.score(env, config, min(num_tasks, WATCHED_TASKS))


def findings(trained: Trained) -> Findings:
    """Returns of DICP, in proportion to those of the same weights without planning, and the cost of both."""
    env, config = trained.env, trained.config
    backbone = dicp(env, without_planning(config.ad))
    found = episodes.findings(trained, "dicp_ad", config.ad.histories, reference="ad", others={"ad": backbone})
    tasks, _ = episodes.held_out(env, TIMED_TASKS)
    methods = {"dicp_ad": trained.method, "ad": backbone}
    with trained.watch.time("evaluate"):
        cost = {who: act_ms(trained_agents(method, trained.params)[0], env, tasks) for who, method in methods.items()}
    return found._replace(conditions={"one task at a time": intervals(COST, cost)})


def without_planning(config: Config) -> Config:
    """The same weights, which act as the policy does."""
    return dataclasses.replace(config, plan=dataclasses.replace(config.plan, plan_depth=0))


def act_ms(agent: Agent, env: TaskFamily, tasks: Tree) -> np.ndarray:
    """Milliseconds of an act, the environment's step included, in an episode of each task by itself, [1, B]."""
    num_tasks = jax.tree.leaves(tasks)[0].shape[0]
    one_by_one = [jax.tree.map(lambda x, b=b: x[b : b + 1], tasks) for b in range(num_tasks)]

    def seconds(task: Tree) -> float:
        begin = time.perf_counter()
        jax.block_until_ready(evaluate(agent, env, task, jax.random.key(episodes.EVAL_SEED), num_episodes=1))
        return time.perf_counter() - begin

    seconds(one_by_one[0])  # compiles
    return 1e3 * np.array([[seconds(task) for task in one_by_one]]) / int(env.default_params.max_steps_in_episode)

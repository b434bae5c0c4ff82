"""What the bandit experiments share: how a trained agent is held against the classical ones."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from icrl_envs import Bandit, revealed

from icrl_jax import statistics
from icrl_jax.core import Agent, Array, Transition, Tree
from icrl_jax.evaluate import evaluate, offline_suboptimality
from icrl_jax.run import Trained
from icrl_jax.run.training import Stopwatch

EVAL_SEED = 9_317
"""Seed of the held-out tasks and of their reward noise: the same for every agent, run and seed."""


def held_out(env: Bandit, num_tasks: int) -> Tree:
    """Test tasks [B, ...]."""
    return jax.vmap(partial(env.sample_task, split="test"))(jax.random.split(jax.random.key(EVAL_SEED), num_tasks))


def in_training(env: Bandit, num_tasks: int, horizon: int) -> Callable[[Agent, Array], dict[str, Array]]:
    """The regret on a few held-out tasks, after each chunk."""

    def quick(agent: Agent, key: Array) -> dict[str, Array]:
        regret = evaluate(agent, env, held_out(env, num_tasks), key, num_steps=horizon).metrics["cumulative_regret"]
        return {"regret": regret.mean()}

    return quick


class Evaluator:
    """Runs agents in the held-out tasks of one family; agents that differ only in their numbers share a compilation."""

    def __init__(self, env: Bandit, watch: Stopwatch):
        self.env, self.watch, self.compiled = env, watch, {}

    def online(self, agents: Sequence[Agent], env_params: Tree, horizon: int) -> tuple[np.ndarray, np.ndarray]:
        """Regret curves and actions of the agents of S seeds, each [S, B, T], all meeting the same noise."""
        run = partial(_online, env=self.env, horizon=horizon)
        runs = [self._call(run, agent, env_params, jax.random.key(EVAL_SEED)) for agent in agents]
        return jax.tree.map(lambda *x: np.stack(x), *runs)

    def offline(self, agents: Sequence[Agent], env_params: Tree, contexts: Transition) -> np.ndarray:
        """Suboptimality of the agents of S seeds after each prefix of the data sets, [S, B, N + 1]."""
        run, key = partial(_offline, env=self.env), jax.random.key(EVAL_SEED + 1)
        return np.stack([self._call(run, agent, env_params, contexts, key) for agent in agents])

    def contexts(self, behaviour: Agent, env_params: Tree, horizon: int) -> Transition:
        """One data set per task, [B, N, ...]."""
        run = partial(_contexts, env=revealed(self.env), horizon=horizon)
        return self._call(run, behaviour, env_params, jax.random.key(EVAL_SEED + 2))

    def _call(self, run, *args):
        shapes = tuple(jnp.shape(x) for x in jax.tree.leaves(args))
        kind = run.func, jax.tree.structure(args), shapes
        if kind not in self.compiled:
            with self.watch.time("compile"):
                self.compiled[kind] = jax.jit(run).lower(*args).compile()
        with self.watch.time("evaluate"):
            return jax.device_get(self.compiled[kind](*args))


def _online(agent, env_params, key, env, horizon):
    found = evaluate(agent, env, env_params, key, num_steps=horizon)
    return found.curves["regret"], found.record.transition.action


def _offline(agent, env_params, contexts, key, env):
    return offline_suboptimality(agent, env, env_params, contexts, key)


def _contexts(behaviour, env_params, key, env, horizon):
    return evaluate(behaviour, env, env_params, key, num_steps=horizon).record.transition


def trained_agents(trained: Trained, greedy: bool = False) -> list[Agent]:
    """The trained agent of each seed."""
    num_seeds = jax.tree.leaves(trained.params)[0].shape[0]
    each = [jax.tree.map(lambda x, s=s: x[s], trained.params) for s in range(num_seeds)]
    return [trained.method.agent(params, greedy=greedy) for params in each]


def intervals(metric: str, values: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """`results.json` entries from [S, B] values of each agent."""
    return {name: {metric: dict(statistics.interval(value))} for name, value in values.items()}


def sizes_shown(horizon: int, count: int = 25) -> Sequence[int]:
    """Data set sizes, roughly evenly spaced on a logarithmic axis."""
    return sorted({round(size) for size in np.geomspace(1, horizon, count)})


def with_intervals(values: dict[str, np.ndarray]) -> dict[str, Any]:
    """Curves with intervals, for figures, from [S, B, T] values of each agent."""
    return {name: statistics.curve(value) for name, value in values.items()}

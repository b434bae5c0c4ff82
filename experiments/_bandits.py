"""What the bandit experiments share: how a trained agent is held against the classical ones."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icrl_envs import TaskFamily, revealed, sample_tasks
from icrl_jax import report, statistics
from icrl_jax.core import Agent, Array, Method, Transition, Tree
from icrl_jax.evaluate import evaluate, offline_suboptimality
from icrl_jax.report.names import look
from icrl_jax.run import Findings, Trained
from icrl_jax.run.training import Stopwatch

METRIC = "cumulative_regret"

EVAL_SEED = 9_317
"""Seed of the test tasks and of their reward noise: the same for every agent, run and seed."""

VALIDATION_SEED = 4_021
"""Seed of the tasks that one watches and chooses by, in training and in sweeps: none of them is in the final tables."""


def held_out(env: TaskFamily, num_tasks: int) -> Tree:
    """Test tasks [B, ...]."""
    return sample_tasks(env, jax.random.key(EVAL_SEED + 3), num_tasks)


def score(env: TaskFamily, config: Any, num_tasks: int) -> Callable[[Agent, Array], Array]:
    """Cumulative regret in each validation task, [B]."""

    def regret(agent: Agent, key: Array) -> Array:
        tasks = sample_tasks(env, jax.random.key(VALIDATION_SEED), num_tasks)
        return evaluate(agent, env, tasks, key, num_steps=config.horizon).metrics["cumulative_regret"]

    return regret


QUICK_COMPILE: dict[str, Any] = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else {}
"""What runs only a few times is not worth LLVM's whole effort (a third less compile time, as fast)."""


class Evaluator:
    """Runs agents in the held-out tasks of one family; agents that differ only in their numbers share a compilation."""

    def __init__(self, env: TaskFamily, watch: Stopwatch):
        self.env, self.watch, self.compiled = env, watch, {}

    def online(self, agents: Sequence[Agent], env_params: Tree, horizon: int) -> tuple[np.ndarray, np.ndarray]:
        """Regret curves and actions of the agents of S seeds, each [S, B, T], all meeting the same noise."""
        run = partial(_online, env=self.env, horizon=horizon)
        runs = [self._call(run, agent, env_params, jax.random.key(EVAL_SEED)) for agent in agents]
        return jax.tree.map(lambda *x: np.stack(x), *runs)

    def duels(self, agents: Sequence[Agent], env_params: Tree, horizon: int) -> dict[str, np.ndarray]:
        """Curves of weak and strong regret of the agents of S seeds, each [S, B, T], where arms are compared."""
        run = partial(_duels, env=self.env, horizon=horizon)
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
        kind = run.func, jax.tree.structure(args), shapes  # the horizon shows in the shapes or is the same throughout
        if kind not in self.compiled:
            with self.watch.time("compile"):
                self.compiled[kind] = jax.jit(run).lower(*args).compile(QUICK_COMPILE)
        with self.watch.time("evaluate"):
            return jax.device_get(self.compiled[kind](*args))


def _online(agent, env_params, key, env, horizon):
    found = evaluate(agent, env, env_params, key, num_steps=horizon)
    return found.curves["regret"], found.record.transition.action


def _duels(agent, env_params, key, env, horizon):
    return evaluate(agent, env, env_params, key, num_steps=horizon).curves


def _offline(agent, env_params, contexts, key, env):
    return offline_suboptimality(agent, env, env_params, contexts, key)


def _contexts(behaviour, env_params, key, env, horizon):
    return evaluate(behaviour, env, env_params, key, num_steps=horizon).record.transition


def trained_agents(method: Method, params: Tree, greedy: bool | None = None) -> list[Agent]:
    """The trained agent of each seed."""
    return [method.agent(of_seed, greedy=greedy) for of_seed in each_seed(params)]


def each_seed(params: Tree) -> list[Tree]:
    """The parameters of each seed."""
    num_seeds = jax.tree.leaves(params)[0].shape[0]
    return [jax.tree.map(lambda x, s=s: x[s], params) for s in range(num_seeds)]


def intervals(metric: str, values: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """`results.json` entries from [S, B] values of each agent."""
    return {name: {metric: dict(statistics.interval(value))} for name, value in values.items()}


def with_intervals(values: dict[str, np.ndarray]) -> dict[str, Any]:
    """Curves with intervals, for figures, from [S, B, T] values of each agent."""
    return {name: statistics.curve(value) for name, value in values.items()}


def as_lists(drawn: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """`results.json` entries from curves with intervals, what -> agent -> curve: means and the intervals' ends."""
    found: dict[str, dict[str, Any]] = {}
    for what, curves in drawn.items():
        for name, curve in curves.items():
            ends = {f"{what}_{end}": curve[end] for end in ("low", "high")}
            found.setdefault(name, {}).update({what: curve["mean"], **ends})
    return found


def regret_findings(
    trained: Trained,
    online: dict[str, tuple[np.ndarray, np.ndarray]],
    conditions: dict[str, dict[str, dict[str, Any]]],
    suboptimality: dict[str, np.ndarray],
    means: np.ndarray | None,
    reference: str,
    name: str = "dpt",
) -> Findings:
    """The findings that all bandit experiments report.

    Args:
      online: agent -> regret curves and actions, each [S, B, T].
      conditions: as in `results.json`.
      suboptimality: agent -> [S, B, N + 1], under the standard data sets; none where nothing is learned offline.
      means: of the arms of each task, [B, A]; None where actions are no arms.
      reference: the agent that the others' regret is divided by.
      name: the agent that was trained.
    """
    regret = {name: curves for name, (curves, _) in online.items()}
    total = {name: curves[..., -1] for name, curves in regret.items()}
    drawn = {"regret": with_intervals(regret), "suboptimality": with_intervals(suboptimality)}
    sizes = sorted({round(size) for size in np.geomspace(1, trained.config.horizon, 25)})
    updates = [row["update"] for row in trained.metrics]
    loss, quick = (np.array([row[name] for row in trained.metrics]).T for name in ("loss", f"eval/{METRIC}"))
    label = f"{look(reference).label}, test tasks"
    goal = {"heldout_reference": float(total[reference].mean()), "heldout_reference_label": label}
    figures = [
        ("regret", report.regret_figure(drawn["regret"]), "Cumulative pseudo-regret on held-out tasks."),
        (
            "loss",
            report.loss_figure(updates, loss, heldout=(updates, quick), agent=name, **goal),
            "Training loss, and the regret on a few validation tasks as training goes on (dashed: on the test tasks).",
        ),
    ]
    if means is not None:
        arms = report.arm_choice_figure(online[name][1][0], means)
        figures.append(("arms", arms, f"The arms {look(name).label} pulls in a few held-out tasks."))
    if suboptimality:
        at_sizes = jax.tree.map(lambda x: x[sizes], drawn["suboptimality"])
        caption = "What the chosen arm loses to the best one, given a data set of the training behaviour."
        figures.insert(1, ("suboptimality", report.suboptimality_figure(sizes, at_sizes), caption))
    return Findings(
        agents=intervals(METRIC, total),
        conditions=conditions,
        curves=as_lists(drawn),
        figures=figures,
        reference=reference,
        ratios={name: dict(statistics.ratio_interval(x, total[reference])) for name, x in total.items()},
    )

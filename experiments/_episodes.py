# ruff: noqa: N806
"""What experiments on episodic families share: returns in context, beside the source, controls and the oracle."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments._bandits import each_seed, trained_agents
from icrl_envs import TaskFamily, revealed, sample_tasks
from icrl_jax import agents, report, statistics
from icrl_jax.core import Agent, Array, Method, Transition, Tree, partial
from icrl_jax.data.collect import collect_histories
from icrl_jax.data.histories import Histories, episode_returns
from icrl_jax.evaluate import evaluate
from icrl_jax.methods.sources import Distilled, HistoriesConfig, make_learner
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.run import Findings, Trained

METRIC = "final_return"

EVAL_SEED = 6_211
"""Seed of what is random in the final evaluation: the same for every agent, run and seed."""

VALIDATION_SEED = 5_077
"""Seed of the tasks that one watches and chooses by, in training and in sweeps."""

SHOWN_STREAMS = 4
"""Single histories in the figure of all."""

WATCHED_TASKS = 32
"""How many those are at most."""


def score(env: TaskFamily, config: Any, num_tasks: int, metric: str = METRIC) -> Callable[[Agent, Array], Array]:
    """Final return in each of some train tasks, [B]: where tasks can be listed, none is left to choose by.

    Raises:
      ValueError: more episodes than the model has positions for.
    """
    model, tokens = config.ad.model, config.ad.embedding.num_tokens * int(env.default_params.max_steps_in_episode)
    if isinstance(model, TransformerConfig):
        episodes = 1 if model.counts_episodes else config.eval_episodes
        model.check_horizon(episodes * tokens, f"tokens of eval_episodes={config.eval_episodes}")
    return watched(env, config, num_tasks, metric)


def watched(env: TaskFamily, config: Any, num_tasks: int, metric: str = METRIC) -> Callable[[Agent, Array], Array]:
    """`score`, for models that can number any inputs."""

    def found(agent: Agent, key: Array) -> Array:
        split = "train" if env.tasks is not None else "test"
        tasks = sample_tasks(env, jax.random.key(VALIDATION_SEED), min(num_tasks, WATCHED_TASKS), split)
        return evaluate(agent, env, tasks, key, num_episodes=config.eval_episodes).metrics[metric]

    return found


def held_out(env: TaskFamily, num_tasks: int) -> tuple[Tree, int]:
    """Test tasks [B, ...] and how often each is met: all that are listed, as often as fits, or so many drawn ones."""
    if env.tasks is None:
        return sample_tasks(env, jax.random.key(EVAL_SEED), num_tasks), 1
    tasks = env.tasks("test")
    listed = jax.tree.leaves(tasks)[0].shape[0]
    if listed > num_tasks:
        return jax.tree.map(lambda x: x[:num_tasks], tasks), 1
    return tasks, num_tasks // listed


def returns(agent: Agent, env: TaskFamily, tasks: Tree, repeats: int, num_episodes: int) -> np.ndarray:
    """Return of each episode, the mean over repeats, [B, E]."""
    many = jax.tree.map(lambda x: x.repeat(repeats, axis=0), tasks)
    found = evaluate(agent, env, many, jax.random.key(EVAL_SEED + 1), num_episodes=num_episodes)
    curve = np.asarray(found.curves["return"])
    return curve.reshape(-1, repeats, curve.shape[-1]).mean(axis=1)


def oracle_returns(env: TaskFamily, tasks: Tree, num_episodes: int) -> np.ndarray:
    """What the best actions earn in every episode, [1, B, E]."""
    once = returns(agents.oracle(env), revealed(env), tasks, 1, 1)[None]
    return np.broadcast_to(once, (*once.shape[:2], num_episodes))


def offline_returns(
    players: Mapping[str, Sequence[Callable[[Tree], Agent]]], env: TaskFamily, tasks: Tree, repeats: int, contexts: Tree
) -> dict[str, np.ndarray]:
    """Returns of one episode that each plays from a given context alone, the mean over repeats, [S, B].

    Args:
      players: for each name and seed, `context -> agent`.
      contexts: transitions, [B * repeats, T, ...].
    """
    many = jax.tree.map(lambda x: x.repeat(repeats, axis=0), tasks)
    key, found = jax.random.key(EVAL_SEED + 3), {}
    for who, of_seeds in players.items():
        played = [evaluate(player, env, many, key, num_episodes=1, context=contexts) for player in of_seeds]
        returns = np.stack([np.asarray(one.metrics["mean_return"]) for one in played])
        found[who] = returns.reshape(len(of_seeds), -1, repeats).mean(axis=-1)
    return found


def answering(answer: Callable[[Tree, Tree], Agent], params: Tree) -> list[Callable[[Tree], Agent]]:
    """For each seed, `context -> agent`, of `(params, context) -> agent`; one `answer` is compiled once."""
    return [partial(answer, of_seed) for of_seed in each_seed(params)]


def alone(method: Method) -> Callable[[Tree, Tree], Agent]:
    """`(params, context) -> agent`, which acts on a context alone by the likeliest action."""
    return lambda params, context: method.agent(params, context, online=False)


def first_steps(agent: Agent, world: TaskFamily, tasks: Tree, horizon: int) -> Transition:
    """The first transitions of an agent in each task, [B, horizon, ...]."""
    num_episodes = -(-horizon // int(world.default_params.max_steps_in_episode))
    shown = evaluate(agent, world, tasks, jax.random.key(EVAL_SEED + 4), num_episodes=num_episodes).record.transition
    return jax.tree.map(lambda x: x[:, :horizon], shown)


def source_returns(env: TaskFamily, histories: HistoriesConfig, tasks: Tree) -> np.ndarray:
    """What the source algorithm does in the test tasks, from scratch and for as long as its histories, [B, E]."""
    learner, num_rounds = make_learner(env, histories, histories.num_streams)
    made = collect_histories(learner, env, tasks, jax.random.key(EVAL_SEED + 2), num_rounds, next_obs=False)
    return whole_returns(made).mean(axis=1)


def whole_returns(histories: Histories) -> np.ndarray:
    """Return of each episode that every stream ended, [M, N, E]."""
    every = np.asarray(episode_returns(histories))  # nan where a stream had fewer
    return every[..., : int(np.isfinite(every).sum(axis=-1).min())]


def learning_curve(distilled: Distilled) -> dict[str, np.ndarray]:
    """Of histories as often as they are drawn: the mean return of each episode, where the middle 80 % of streams are,
    and a few single streams of tasks far apart in the list; `[E]` and `[K, E]`."""
    returns = whole_returns(distilled.histories)
    M, N, E = returns.shape
    weights = np.ones((M, N)) if distilled.weights is None else np.asarray(distilled.weights, float)
    streams, weights = returns.reshape(M * N, E), weights.reshape(M * N)
    low, high = np.quantile(streams, [0.1, 0.9], axis=0, weights=weights, method="inverted_cdf")
    drawn = np.flatnonzero(weights)
    each = streams[drawn[np.linspace(0, len(drawn) - 1, SHOWN_STREAMS).round().astype(int)]]
    return {"mean": np.average(streams, axis=0, weights=weights), "low": low, "high": high, "each": each}


def last_tenth(curves: np.ndarray) -> np.ndarray:
    """The mean return of the last episodes, as `evaluate` counts them."""
    return curves[..., -max(1, -(-curves.shape[-1] // 10)) :].mean(axis=-1)


METRICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "first_return": lambda x: x[..., 0],
    METRIC: last_tenth,
    "mean_return": lambda x: x.mean(axis=-1),
}
"""Of the returns of E episodes, [..., E]."""


def summary(curves: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """`results.json` entries of each agent from the returns of its episodes, [S, B, E]."""
    of_agent = lambda x: {metric: dict(statistics.interval(of(x))) for metric, of in METRICS.items()}
    return {name: of_agent(x) for name, x in curves.items()}


def findings(
    trained: Trained,
    name: str,
    histories: HistoriesConfig,
    metric: str = METRIC,
    reference: str = "oracle",
    others: Mapping[str, Method] | None = None,
) -> Findings:
    """Returns in context on held-out tasks: of the trained agent, called `name`, its controls, the source, the oracle
    and chance.

    Args:
      metric: by which the ratios to `reference` go.
      others: methods by which the same parameters act otherwise.
    """
    env, config, watch = trained.env, trained.config, trained.watch
    tasks, repeats = held_out(env, config.eval_tasks)
    num_episodes = config.eval_episodes
    with watch.time("evaluate"):
        learned = {name: (trained.method, trained.params), **trained.controls}
        learned |= {who: (method, trained.params) for who, method in (others or {}).items()}
        curves = {
            who: np.stack([returns(agent, env, tasks, repeats, num_episodes) for agent in trained_agents(*what)])
            for who, what in learned.items()
        }
        if histories.source != "logged":  # nobody there to learn anew
            curves["source"] = source_returns(env, histories, tasks)[None]
        curves["oracle"] = oracle_returns(env, tasks, num_episodes)
        curves["random"] = returns(agents.uniform(env), env, tasks, repeats, num_episodes)[None]
    num_learned = curves["source"].shape[-1] if "source" in curves else 0
    more = f" The source learns from scratch for {num_learned:,} episodes." if num_learned else ""
    found = online_findings(trained, name, curves, metric, reference, more)
    return found._replace(figures=[found.figures[0], *histories_figure(trained.data), *found.figures[1:]])


def online_findings(
    trained: Trained, name: str, curves: Mapping[str, np.ndarray], metric: str, reference: str, more: str = ""
) -> Findings:
    """What the returns of each episode, [S, B, E] of each agent, say.

    Args:
      name: the agent that was trained.
      more: to be said of them.
    """
    env = trained.env
    drawn = {who: statistics.curve(x) for who, x in curves.items()}
    updates = [row["update"] for row in trained.metrics]
    loss, watched = (np.array([row[what] for row in trained.metrics]).T for what in ("loss", f"eval/{metric}"))
    watched_label = f"{metric.replace('_', ' ')} on {'training' if env.tasks is not None else 'validation'} tasks"
    figures = [
        (
            "returns",
            report.curve_figure(drawn, "episode", "return", log=False),
            f"Return of each episode in {env.name}, on tasks that were held out of training. The context is empty at "
            f"first; no weight changes.{more}",
        ),
        (
            "loss",
            report.loss_figure(updates, loss, heldout=(updates, watched), heldout_label=watched_label, agent=name),
            f"Training loss, and the {metric.replace('_', ' ')} in context on a few tasks as training goes on.",
        ),
    ]
    compared = {who: METRICS[metric](x) for who, x in curves.items()}
    return Findings(
        agents=summary(curves),
        conditions={},
        curves={
            who: {"return": c["mean"], "return_low": c["low"], "return_high": c["high"]} for who, c in drawn.items()
        },
        figures=figures,
        reference=reference,
        ratios={who: dict(statistics.ratio_interval(x, compared[reference])) for who, x in compared.items()},
    )


def histories_figure(distilled: Distilled | None) -> list[tuple[str, Figure, str]]:
    """What was distilled, none or one; those on disk may be too many to be read for it."""
    if distilled is None:
        return []
    M, N, _ = distilled.histories.shape
    figure = report.curve_figure({"source": learning_curve(distilled)}, "episode", "return", log=False)
    caption = (
        f"What was distilled: return of each episode in the {N:,} histories of each of {M:,} training tasks. Thick: "
        f"their mean; band: the middle 80 % of them; thin: {SHOWN_STREAMS} single ones."
    )
    return [("histories", figure, caption)]

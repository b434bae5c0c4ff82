"""ICPO on dueling bandits: two arms meet, only the winner is told, and nobody ever says a reward (Dong et al. 2026).

make train EXPERIMENT=icpo_dueling_bandit                  weak regret 4.7, Double Thompson 7.4
make train EXPERIMENT=icpo_dueling_bandit PRESET=paper     20 arms and 10 features, for one GPU

Utilities are linear in features that all tasks share. ICPO learns that from comparisons in pretraining; the classics do
not know it, and no paper says that they should. Labels are drawn from the utilities, which somebody must know to make
the pretraining data. Beside ICPO, DP2T, which is told the best arm, and ICPO without its context.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from experiments import _bandits as bandits
from experiments import dit_dark_room
from experiments._preferences import NOISE, QUALITIES
from icrl_envs import TaskFamily, revealed, sample_tasks
from icrl_jax import agents, report, statistics
from icrl_jax.core import Agent, Array
from icrl_jax.data.behaviours import noisy_expert
from icrl_jax.data.preferences import in_pairs
from icrl_jax.evaluate import evaluate
from icrl_jax.methods.icpo import ICPOConfig
from icrl_jax.methods.supervised import OptimConfig
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.run import EnvSpec, Experiment, Findings, MethodSpec, RunOptions, Trained, main

METHOD = "icrl_jax.methods.icpo:icpo"
METRIC = "weak_regret"
REFERENCE = "double_thompson"


@dataclass(frozen=True)
class Config(RunOptions):
    """ICPO on dueling bandits."""

    num_arms: int = 10
    """Arms, A."""
    dim: int = 2
    """Features of an arm, d."""
    label_temperature: float = 1.0
    """Of labels; the paper's is 1."""
    label_noise: float = 0.0
    """Share of labels that are turned round, in training and in the test."""
    control: bool = True
    """Also trains DP2T on the same contexts."""
    icpo: ICPOConfig = field(default_factory=ICPOConfig)
    """The method."""

    @property
    def horizon(self) -> int:
        """Comparisons in a task."""
        return self.icpo.horizon


PRESETS = {
    "cpu": Config(
        preset="cpu",
        icpo=ICPOConfig(
            model=TransformerConfig(width=64, num_layers=3, num_heads=8, context_len=101, positions="none"),
            optim=OptimConfig(learning_rate=3e-3),
            num_updates=1000,
            batch_size=32,
            horizon=100,
            behaviours=("mixture", "noisy_expert"),
            num_asked=8,
            beta=0.3,
        ),
    ),
    "paper": Config(
        preset="paper",
        num_chunks=50,
        eval_tasks=200,
        num_arms=20,
        dim=10,
        icpo=ICPOConfig(
            model=dataclasses.replace(dit_dark_room.PAPER.model, context_len=201),
            optim=dit_dark_room.PAPER.optim,
            num_updates=78_000,  # those of the same authors' linear bandit; the paper's own are not known
            batch_size=64,
            horizon=200,
            behaviours=("mixture", "noisy_expert"),
            num_asked=8,
            beta=0.3,
            num_tasks=100_000,
        ),
    ),
}


def controls(config: Config) -> dict[str, MethodSpec]:
    """DP2T, unless `--no-control`."""
    told = dataclasses.replace(config.icpo, objective="labels")
    return {"dp2t": MethodSpec(METHOD, told)} if config.control else {}


def env_spec(config: Config) -> EnvSpec:
    """The bandit."""
    how = {"temperature": config.label_temperature, "noise": config.label_noise}
    return EnvSpec("dueling_bandit", "icprl", {"num_arms": config.num_arms, "dim": config.dim, **how})


def score(env: TaskFamily, config: Config, num_tasks: int) -> Callable[[Agent, Array], Array]:
    """Cumulative weak regret in each validation task, [B]."""

    def regret(agent: Agent, key: Array) -> Array:
        tasks = sample_tasks(env, jax.random.key(bandits.VALIDATION_SEED), num_tasks)
        return evaluate(agent, env, tasks, key, num_steps=config.horizon).metrics[METRIC]

    return regret


def findings(trained: Trained) -> Findings:
    """Online from nothing, also where labels are turned round and by other proposals; offline from three contexts."""
    config, env, horizon = trained.config, trained.env, trained.config.horizon
    tasks, evaluator = bandits.held_out(env, config.eval_tasks), bandits.Evaluator(env, trained.watch)
    learned = {"icpo": (trained.method, trained.params), **trained.controls}
    blind = lambda params: trained.method.agent(params, online=False, greedy=False)
    players: dict[str, list[Agent]] = {
        **{who: bandits.trained_agents(*what) for who, what in learned.items()},
        "no_context": [blind(params) for params in bandits.each_seed(trained.params)],
        "double_thompson": [agents.double_thompson(env.num_arms)],
        "rucb": [agents.rucb(env.num_arms)],
        "winner_stays": [agents.winner_stays(env.num_arms)],
        "random": [agents.uniform(env)],
    }
    online = {who: evaluator.duels(player, tasks, horizon) for who, player in players.items()}
    omniscient = bandits.Evaluator(revealed(env), trained.watch)
    online["oracle"] = omniscient.duels([agents.oracle(env)], tasks, horizon)

    noisy = bandits.Evaluator(env_spec(dataclasses.replace(config, label_noise=NOISE)).build(), trained.watch)
    shifted = {who: noisy.duels(players[who], tasks, horizon) for who in ("icpo", REFERENCE)}
    other = "samples" if config.icpo.proposal == "distinct" else "distinct"
    proposing = [agents.proposing(params.policy, other) for params in bandits.each_seed(trained.params)]
    conditions: dict[str, Any] = {
        f"noise_{NOISE:g}": summary(shifted),
        f"proposal_{other}": summary({"icpo": evaluator.duels(proposing, tasks, horizon)}),
    }
    offline = {}
    for quality, share in QUALITIES.items():
        contexts = evaluator.contexts(in_pairs(noisy_expert(env.env, share)), tasks, horizon)
        given = {
            who: evaluator.offline(bandits.trained_agents(*what, greedy=True), tasks, contexts)
            for who, what in learned.items()
        }
        conditions[f"offline_{quality}"] = bandits.intervals(
            "suboptimality", {who: x[..., -1] for who, x in given.items()}
        )
        offline[quality] = given
    return regret_findings(trained, online, conditions, offline["medium"])


def summary(online: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, Any]]:
    """`results.json` entries of each agent from curves of weak and strong regret, [S, B, T]."""
    return {
        who: {metric: dict(statistics.interval(curve[..., -1])) for metric, curve in curves.items()}
        for who, curves in online.items()
    }


def regret_findings(
    trained: Trained, online: dict[str, dict[str, np.ndarray]], conditions: dict, offline: dict
) -> Findings:
    """What is reported of curves of regret, and of suboptimality offline from medium contexts, [S, B, T + 1]."""
    weak, strong = ({who: curves[metric] for who, curves in online.items()} for metric in (METRIC, "strong_regret"))
    drawn = {METRIC: bandits.with_intervals(weak), "strong_regret": bandits.with_intervals(strong)}
    drawn["suboptimality"] = bandits.with_intervals(offline)
    sizes = sorted({round(size) for size in np.geomspace(1, trained.config.horizon, 25)})
    updates = [row["update"] for row in trained.metrics]
    loss, watched = (np.array([row[name] for row in trained.metrics]).T for name in ("loss", f"eval/{METRIC}"))
    goal = {
        "heldout_reference": float(weak[REFERENCE][..., -1].mean()),
        "heldout_reference_label": "Double Thompson, test tasks",
    }
    shown = "cumulative weak regret, mean over held-out tasks"
    figures = [
        (
            "weak_regret",
            report.regret_figure(drawn[METRIC], "comparison", shown, "Weak regret on unseen tasks"),
            "Cumulative weak regret: what the better of the two arms is below the best, as a probability to win.",
        ),
        (
            "suboptimality",
            report.suboptimality_figure(
                sizes, jax.tree.map(lambda x: x[sizes], drawn["suboptimality"]), "comparisons given"
            ),
            "What the chosen arm loses to the best one in utility, given comparisons of medium quality.",
        ),
        (
            "loss",
            report.loss_figure(
                updates,
                loss,
                heldout=(updates, watched),
                heldout_label="weak regret on validation tasks",
                agent="icpo",
                **goal,
            ),
            "Training loss, and the weak regret on a few validation tasks as training goes on (dashed: test tasks).",
        ),
    ]
    total = {who: curve[..., -1] for who, curve in weak.items()}
    return Findings(
        agents=summary(online),
        conditions=conditions,
        curves=bandits.as_lists(drawn),
        figures=figures,
        reference=REFERENCE,
        ratios={who: dict(statistics.ratio_interval(x, total[REFERENCE])) for who, x in total.items()},
    )


EXPERIMENT = Experiment(
    name="icpo_dueling_bandit",
    presets=PRESETS,
    env=env_spec,
    method=lambda config: MethodSpec(METHOD, config.icpo),
    metric=METRIC,
    score=score,
    findings=findings,
    controls=controls,
)

if __name__ == "__main__":
    main(EXPERIMENT, __doc__ or "")

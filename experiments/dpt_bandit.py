"""DPT on Gaussian bandits: a transformer that explores and exploits in context (Lee et al. 2023, section 5).

    make train                          about 3 minutes on two cores; regret 1.0x times Thompson sampling's
    make train PRESET=paper             the paper's setting, for one GPU: 10.31 against 9.20 after 500 steps
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from icrl_envs import BernoulliBandit, revealed

from experiments import bandits
from icrl_jax import agents, report, statistics
from icrl_jax.data.behaviours import mixture
from icrl_jax.methods.dpt import DPTConfig
from icrl_jax.methods.supervised import OptimConfig
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.run import EnvSpec, Experiment, Findings, MethodSpec, RunOptions, Trained, main


@dataclass(frozen=True)
class Config(RunOptions):
    """DPT on Gaussian bandits."""

    num_arms: int = 5
    """Arms, A."""
    noise_sd: float = 0.3
    """Standard deviation of the reward noise in training."""
    dpt: DPTConfig = field(default_factory=DPTConfig)
    """The method."""


PRESETS = {
    "cpu": Config(
        preset="cpu",
        dpt=DPTConfig(
            model=TransformerConfig(width=64, num_layers=3, num_heads=4, context_len=101, positions="none"),
            optim=OptimConfig(learning_rate=3e-3),
            num_updates=2000,
            horizon=100,
        ),
    ),
    "paper": Config(
        preset="paper",
        num_chunks=100,
        eval_tasks=200,
        dpt=DPTConfig(
            model=TransformerConfig(width=32, num_layers=4, num_heads=4, context_len=501, positions="none"),
            optim=OptimConfig(
                learning_rate=1e-4, weight_decay=1e-4, schedule="constant", warmup=0.0, beta2=0.999, clip=None
            ),
            num_updates=375_000,  # 300 epochs of 80,000 tasks in batches of 64
            num_tasks=80_000,
            shuffle=True,
            train_empty=False,
            horizon=500,
        ),
    ),
}


def findings(trained: Trained) -> Findings:
    """Online and offline, under the noise of training and under shifts of it."""
    config, env, horizon = trained.config, trained.env, trained.config.dpt.horizon
    evaluator = bandits.Evaluator(env, trained.watch)
    tasks = bandits.held_out(env, config.eval_tasks)
    dpt = bandits.trained_agents(trained)
    num_arms, noise_sd = config.num_arms, config.noise_sd
    thompson = agents.thompson_gaussian(num_arms, prior_mean=0.5, prior_var=1 / 12, noise_sd=noise_sd)
    classical = {
        "thompson": thompson,
        "ucb": agents.ucb(num_arms),
        "ucb1": agents.ucb1(num_arms),
        "empirical_mean": agents.empirical_mean(num_arms),
        "random": agents.uniform(env),
    }
    players = {"dpt": dpt, **{name: [agent] for name, agent in classical.items()}}
    runs = {name: evaluator.online(agent, tasks, horizon) for name, agent in players.items()}
    oracle = bandits.Evaluator(revealed(env), trained.watch)
    runs["oracle"] = oracle.online([agents.oracle(env)], tasks, horizon)
    regret = {name: curves for name, (curves, _) in runs.items()}
    total = {name: curves[..., -1] for name, curves in regret.items()}

    conditions = {}
    shifted = ("dpt", "thompson", "ucb", "empirical_mean")
    for sd in (0.0, 0.3, 0.5):
        other = tasks.replace(noise_sd=jnp.full_like(tasks.noise_sd, sd))
        found = {name: evaluator.online(players[name], other, horizon)[0][..., -1] for name in shifted}
        conditions[f"sd_{sd:g}"] = bandits.intervals("cumulative_regret", found)
    coins = BernoulliBandit(num_arms)
    flips, flip_tasks = bandits.Evaluator(coins, trained.watch), bandits.held_out(coins, config.eval_tasks)
    found = {name: flips.online(players[name], flip_tasks, horizon)[0][..., -1] for name in shifted}
    conditions["bernoulli"] = bandits.intervals("cumulative_regret", found)

    offline_players = {
        "dpt": bandits.trained_agents(trained, greedy=True),
        "thompson": [agents.thompson_gaussian(num_arms, 0.5, 1 / 12, noise_sd, draws=100)],
        "empirical_mean": [agents.empirical_mean(num_arms, unseen="never")],
        "lcb": [agents.lcb(num_arms)],
    }
    behaviours = {"offline_random": mixture(env)}
    behaviours |= {f"offline_expert_{omega:g}": mixture(env, expert=True, omega=omega) for omega in (0.0, 0.5, 1.0)}
    suboptimality = {}
    for name, behaviour in behaviours.items():
        contexts = evaluator.contexts(behaviour, tasks, horizon)
        lost = {who: evaluator.offline(agent, tasks, contexts) for who, agent in offline_players.items()}
        conditions[name] = bandits.intervals("suboptimality", {who: x[..., -1] for who, x in lost.items()})
        suboptimality[name] = lost

    return Findings(
        agents=bandits.intervals("cumulative_regret", total),
        conditions=conditions,
        curves={name: {"regret": x.mean(axis=(0, 1))} for name, x in regret.items()},
        figures=figures(trained, regret, suboptimality["offline_random"], runs["dpt"][1], tasks),
        metric="cumulative_regret",
        reference="thompson",
        ratios={name: dict(statistics.ratio_interval(x, total["thompson"])) for name, x in total.items()},
    )


def figures(trained, regret, suboptimality, actions, tasks):
    """What the report shows."""
    sizes = bandits.sizes_shown(trained.config.dpt.horizon)
    chosen = {name: values[..., sizes] for name, values in suboptimality.items()}
    updates = [row["update"] for row in trained.metrics]
    loss, held_out = (np.array([row[name] for row in trained.metrics]).T for name in ("loss", "eval/regret"))
    thompson = float(regret["thompson"][..., -1].mean())
    return [
        ("regret", report.regret_figure(bandits.with_intervals(regret)), "Cumulative pseudo-regret on held-out tasks."),
        (
            "suboptimality",
            report.suboptimality_figure(sizes, bandits.with_intervals(chosen)),
            "What the chosen arm loses to the best one, given a data set of random behaviour.",
        ),
        (
            "loss",
            report.loss_figure(updates, loss, heldout=(updates, held_out), heldout_reference=thompson),
            "Training loss, and the regret on a few held-out tasks as training goes on.",
        ),
        ("arms", report.arm_choice_figure(actions[0], tasks.means), "The arms DPT pulls in a few held-out tasks."),
    ]


EXPERIMENT = Experiment(
    name="dpt_bandit",
    presets=PRESETS,
    env=lambda config: EnvSpec("gaussian_bandit", None, {"num_arms": config.num_arms, "noise_sd": config.noise_sd}),
    method=lambda config: MethodSpec("icrl_jax.methods.dpt:dpt", config.dpt),
    in_training=lambda env, config: bandits.in_training(env, 128, config.dpt.horizon),
    findings=findings,
)

if __name__ == "__main__":
    main(EXPERIMENT, __doc__ or "")

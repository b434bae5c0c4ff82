"""DPT on Gaussian bandits: a transformer that explores and exploits in context (Lee et al. 2023, section 5).

make train                          four minutes on two cores; regret 1.10 times Thompson sampling's
make train PRESET=paper             the paper's setting, for one GPU: 10.31 against 9.20 after 500 steps
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import jax.numpy as jnp
import numpy as np

from experiments import _bandits as bandits
from icrl_envs import revealed
from icrl_envs.bandits import BernoulliBandit
from icrl_jax import agents
from icrl_jax.core import Agent
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
    offline_rules: Literal["paper", "code"] = "paper"
    """How the classics choose offline: as the paper writes, or as its code does."""
    dpt: DPTConfig = field(default_factory=DPTConfig)
    """The method."""

    @property
    def horizon(self) -> int:
        """Steps in a task."""
        return self.dpt.horizon


PRESETS = {
    "cpu": Config(
        preset="cpu",
        dpt=DPTConfig(
            model=TransformerConfig(width=64, num_layers=3, num_heads=8, context_len=101, positions="none"),
            optim=OptimConfig(learning_rate=3e-3),
            num_updates=4000,
            batch_size=32,
            horizon=100,
        ),
    ),
    "paper": Config(
        preset="paper",
        num_chunks=100,
        eval_tasks=200,
        dpt=DPTConfig(
            model=TransformerConfig(
                width=32, num_layers=4, num_heads=4, context_len=501, positions="none", dtype="float32"
            ),
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


def offline_classics(num_arms: int, rules: Literal["paper", "code"]) -> dict[str, list[Agent]]:
    """The paper leaves out arms that were never seen, and its LCB subtracts sqrt(1 / n); the code counts them as 0, and
    subtracts 0.8 / sqrt(n)."""
    code = rules == "code"
    unseen = "zero" if code else "never"
    return {
        "empirical_mean": [agents.empirical_mean(num_arms, unseen)],
        "lcb": [agents.lcb(num_arms, c=0.64 if code else 1.0, unseen=unseen)],
    }


def findings(trained: Trained) -> Findings:
    """Online and offline, under the noise of training and under shifts of it."""
    config, env, horizon = trained.config, trained.env, trained.config.dpt.horizon
    num_arms, noise_sd = config.num_arms, config.noise_sd
    tasks = bandits.held_out(env, config.eval_tasks)
    evaluator = bandits.Evaluator(env, trained.watch)
    thompson = partial(agents.thompson_gaussian, num_arms, prior_mean=0.5, prior_var=1 / 12, noise_sd=noise_sd or 0.3)
    players = {
        "dpt": bandits.trained_agents(trained.method, trained.params),
        "thompson": [thompson()],
        "ucb": [agents.ucb(num_arms)],
        "ucb1": [agents.ucb1(num_arms)],
        "empirical_mean": [agents.empirical_mean(num_arms)],
        "random": [agents.uniform(env)],
    }
    online = {name: evaluator.online(player, tasks, horizon) for name, player in players.items()}
    omniscient = bandits.Evaluator(revealed(env), trained.watch)
    online["oracle"] = omniscient.online([agents.oracle(env)], tasks, horizon)

    conditions = {}
    shifted = ("dpt", "thompson", "ucb", "empirical_mean")
    for sd in (0.0, 0.3, 0.5):
        other = tasks.replace(noise_sd=jnp.full_like(tasks.noise_sd, sd))
        found = {
            name: (online[name] if sd == noise_sd else evaluator.online(players[name], other, horizon))[0][..., -1]
            for name in shifted
        }
        conditions[f"sd_{sd:g}"] = bandits.intervals(bandits.METRIC, found)
    coins = BernoulliBandit(num_arms)
    flips, flip_tasks = bandits.Evaluator(coins, trained.watch), bandits.held_out(coins, config.eval_tasks)
    found = {name: flips.online(players[name], flip_tasks, horizon)[0][..., -1] for name in shifted}
    conditions["bernoulli"] = bandits.intervals(bandits.METRIC, found)

    offline_players = {
        "dpt": bandits.trained_agents(trained.method, trained.params, greedy=True),
        "thompson": [thompson(draws=100)],
        **offline_classics(num_arms, config.offline_rules),
    }
    sources = {
        "offline_random": (mixture(env), evaluator, tasks),
        "offline_bernoulli": (mixture(coins), flips, flip_tasks),
    }
    for omega in (0.0, 0.5, 1.0):
        sources[f"offline_expert_{omega:g}"] = mixture(env, expert=True, omega=omega), evaluator, tasks
    suboptimality = {}
    for name, (behaviour, where, there) in sources.items():
        contexts = where.contexts(behaviour, there, horizon)
        suboptimality[name] = {who: where.offline(player, there, contexts) for who, player in offline_players.items()}
        final = {who: values[..., -1] for who, values in suboptimality[name].items()}
        conditions[name] = bandits.intervals("suboptimality", final)

    means = np.asarray(tasks.means)
    return bandits.regret_findings(trained, online, conditions, suboptimality["offline_random"], means, "thompson")


EXPERIMENT = Experiment(
    name="dpt_bandit",
    presets=PRESETS,
    env=lambda config: EnvSpec("gaussian_bandit", None, {"num_arms": config.num_arms, "noise_sd": config.noise_sd}),
    method=lambda config: MethodSpec("icrl_jax.methods.dpt:dpt", config.dpt),
    metric=bandits.METRIC,
    score=bandits.score,
    findings=findings,
)

if __name__ == "__main__":
    main(EXPERIMENT, __doc__ or "")

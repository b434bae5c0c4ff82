"""DPT on linear bandits: it finds the features that its data source did not know (Lee et al. 2023, section 5).

make train EXPERIMENT=dpt_linear_bandit                 3 minutes on two cores: regret 5.6, LinUCB 3.4, source 14.1
make train EXPERIMENT=dpt_linear_bandit PRESET=paper    the paper's setting, for one GPU: 4.96 after 199 steps
                                                            (the curve in results.json; a run goes to 200),
                                                        LinUCB 3.91, Thompson sampling without features 18.3
"""

from dataclasses import dataclass, field

import jax
import numpy as np

from experiments import _bandits as bandits
from icrl_envs import revealed
from icrl_jax import agents
from icrl_jax.methods.dpt import DPTConfig, make_behaviour
from icrl_jax.methods.supervised import OptimConfig
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.run import EnvSpec, Experiment, Findings, MethodSpec, RunOptions, Trained, main


@dataclass(frozen=True)
class Config(RunOptions):
    """DPT on linear bandits."""

    num_arms: int = 10
    """Arms, A."""
    dim: int = 2
    """Features of an arm, d."""
    noise_sd: float = 0.3
    """Standard deviation of the reward noise."""
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
            num_updates=3200,
            batch_size=32,
            horizon=100,
            behaviour="thompson",
        ),
    ),
    "paper": Config(
        preset="paper",
        num_chunks=200,
        eval_tasks=200,
        dpt=DPTConfig(
            model=TransformerConfig(
                width=32, num_layers=4, num_heads=4, context_len=201, positions="none", dtype="float32"
            ),
            optim=OptimConfig(
                learning_rate=1e-4, weight_decay=1e-4, schedule="constant", warmup=0.0, beta2=0.999, clip=None
            ),
            num_updates=2_500_000,  # 200 epochs of 800,000 tasks in batches of 64
            num_tasks=800_000,
            behaviour="thompson",
            train_empty=False,
            horizon=200,
        ),
    ),
}


def findings(trained: Trained) -> Findings:
    """Online, and offline on the data that Thompson sampling without the features leaves."""
    config, env, horizon = trained.config, trained.env, trained.config.dpt.horizon
    tasks = bandits.held_out(env, config.eval_tasks)
    evaluator = bandits.Evaluator(env, trained.watch)
    source = make_behaviour(env, config.dpt)
    players = {
        "dpt": bandits.trained_agents(trained.method, trained.params),
        "linucb": [agents.linucb(env.features)],
        "thompson_linear": [agents.thompson_linear(env.features, 1 / config.dim, config.noise_sd or 0.3)],
        "source": [source],
        "random": [agents.uniform(env)],
    }
    online = {name: evaluator.online(player, tasks, horizon) for name, player in players.items()}
    omniscient = bandits.Evaluator(revealed(env), trained.watch)
    online["oracle"] = omniscient.online([agents.oracle(env)], tasks, horizon)

    contexts = evaluator.contexts(source, tasks, horizon)
    offline_players = {
        "dpt": bandits.trained_agents(trained.method, trained.params, greedy=True),
        "linreg": [agents.linucb(env.features, beta=0.0)],
        "thompson": [agents.thompson_gaussian(env.num_actions, 0.0, 1.0, 0.3, draws=100)],
    }
    suboptimality = {who: evaluator.offline(player, tasks, contexts) for who, player in offline_players.items()}
    final = {who: values[..., -1] for who, values in suboptimality.items()}
    conditions = {"offline_source": bandits.intervals("suboptimality", final)}
    means = np.asarray(jax.vmap(env.means)(tasks))
    return bandits.regret_findings(trained, online, conditions, suboptimality, means, "linucb")


EXPERIMENT = Experiment(
    name="dpt_linear_bandit",
    presets=PRESETS,
    env=lambda config: EnvSpec(
        "linear_bandit", None, {"num_arms": config.num_arms, "dim": config.dim, "noise_sd": config.noise_sd}
    ),
    method=lambda config: MethodSpec("icrl_jax.methods.dpt:dpt", config.dpt),
    metric=bandits.METRIC,
    score=bandits.score,
    findings=findings,
)

if __name__ == "__main__":
    main(EXPERIMENT, __doc__ or "")

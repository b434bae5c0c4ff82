"""AD on bandits whose good arms are not those of training: UCB distilled, and an expert (Laskin et al. 2022).

make train EXPERIMENT=ad_bandit                     regret 27.7, its source's 27.5, the expert's pupil's 62.7
make train EXPERIMENT=ad_bandit PRESET=paper        the paper's sizes, for one GPU

In 95 % of the training tasks the good arms are the odd ones, in 95 % of the test tasks the even ones. The paper does
not say how many tasks it takes, and which constant its UCB has.
"""

import dataclasses
from dataclasses import dataclass, field

import jax
import numpy as np

from experiments import _bandits as bandits
from experiments import _distilled as distilled
from icrl_envs import revealed
from icrl_jax import agents
from icrl_jax.methods.ad import ADConfig
from icrl_jax.methods.sources import HistoriesConfig, make_source
from icrl_jax.methods.supervised import OptimConfig
from icrl_jax.models.embeddings import EmbeddingConfig
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.run import EnvSpec, Experiment, Findings, MethodSpec, RunOptions, Trained, main


@dataclass(frozen=True)
class Config(RunOptions):
    """AD on bandits."""

    env_preset: str = "ad"
    """Which bandits."""
    control: bool = True
    """Also trains ED, the same model on an expert's pulls."""
    ad: ADConfig = field(default_factory=ADConfig)
    """The method."""

    def __post_init__(self):
        super().__post_init__()
        if self.ad.histories.source in ("ppo", "a2c", "sac"):
            allowed = "one that can be held against AD as an agent, so not ppo, a2c or sac"
            raise ValueError(f"source={self.ad.histories.source!r}: must be {allowed}")

    @property
    def horizon(self) -> int:
        """Steps in a task."""
        return self.ad.horizon


PULLS = EmbeddingConfig(inputs=("action", "feedback"))  # nothing else is seen

PRESETS = {
    "cpu": Config(
        preset="cpu",
        num_chunks=10,
        eval_tasks=1000,
        ad=ADConfig(
            model=TransformerConfig(width=64, num_layers=3, num_heads=8, context_len=100, positions="none"),
            embedding=PULLS,
            optim=OptimConfig(learning_rate=3e-3),
            histories=HistoriesConfig(source="ucb1", num_tasks=20_000, num_streams=1, num_steps=100),
            num_updates=2000,
            batch_size=32,
            horizon=100,
        ),
    ),
    "paper": Config(
        preset="paper",
        num_chunks=50,
        eval_tasks=1000,
        ad=ADConfig(
            model=TransformerConfig(width=64, num_layers=4, num_heads=4, context_len=2 * 100, mlp_ratio=32),
            embedding=dataclasses.replace(PULLS, tokens="modality"),
            optim=OptimConfig(learning_rate=3e-4, weight_decay=0.0),
            histories=HistoriesConfig(source="ucb1", num_tasks=100_000, num_streams=1, num_steps=100),
            num_updates=100_000,
            batch_size=128,
            horizon=100,
        ),
    ),
}


def findings(trained: Trained) -> Findings:
    """Online, beside the source, ED, Thompson sampling, the oracle and chance."""
    env, horizon = trained.env, trained.config.horizon
    tasks = bandits.held_out(env, trained.config.eval_tasks)
    evaluator = bandits.Evaluator(env, trained.watch)
    learned = {"ad": (trained.method, trained.params), **trained.controls}
    players = {name: bandits.trained_agents(*what) for name, what in learned.items()} | {
        "thompson": [agents.thompson_beta(env.num_actions)],
        "random": [agents.uniform(env)],
    }
    online = {name: evaluator.online(player, tasks, horizon) for name, player in players.items()}
    omniscient = bandits.Evaluator(revealed(env), trained.watch)
    histories = trained.config.ad.histories
    if histories.source != "logged":  # nobody there to learn anew
        source, where = make_source(env, histories)
        online["source"] = (evaluator if where is env else omniscient).online([source], tasks, horizon)
    online["oracle"] = omniscient.online([agents.oracle(env)], tasks, horizon)
    means = np.asarray(jax.vmap(env.means)(tasks))
    return bandits.regret_findings(trained, online, {}, {}, means, "source" if "source" in online else "thompson", "ad")


EXPERIMENT = Experiment(
    name="ad_bandit",
    presets=PRESETS,
    env=lambda config: EnvSpec("bernoulli_bandit", config.env_preset, {}),
    method=lambda config: MethodSpec(distilled.METHOD, config.ad),
    metric=bandits.METRIC,
    score=bandits.score,
    findings=findings,
    controls=distilled.EXPERT,
    notes=distilled.notes,
)

if __name__ == "__main__":
    main(EXPERIMENT, __doc__ or "")

"""DIT on linear bandits: the arm that paid best in a context is its label, the more the clearer (Dong et al. 2024).

make train EXPERIMENT=dit_linear_bandit                 8 minutes on two busy cores: regret 8.7, DPT 7.5, Thompson 14.1
make train EXPERIMENT=dit_linear_bandit PRESET=paper    the paper's 20 arms and 10 features, for one GPU: 18 and 22.5

Contexts are of random mixtures, and nobody says which arm is the best one. Beside DIT, on the same contexts: BC, which
imitates what was pulled next, and DPT, which is told. The classics but LinUCB do not know the features.
"""

import dataclasses
from dataclasses import dataclass, field

import jax
import numpy as np

from experiments import _bandits as bandits
from experiments import dit_dark_room
from icrl_envs import revealed
from icrl_jax import agents
from icrl_jax.methods.dit import DITConfig, make_behaviour
from icrl_jax.methods.supervised import OptimConfig
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.run import EnvSpec, Experiment, Findings, MethodSpec, RunOptions, Trained, main

METHOD = "icrl_jax.methods.dit:dit"


@dataclass(frozen=True)
class Config(RunOptions):
    """DIT on linear bandits."""

    num_arms: int = 10
    """Arms, A."""
    dim: int = 2
    """Features of an arm, d."""
    noise_sd: float = 0.3
    """Standard deviation of the reward noise."""
    control: bool = True
    """Also trains BC and DPT on the same contexts."""
    dit: DITConfig = field(default_factory=lambda: DITConfig(labels="best_arm", behaviour="mixture"))
    """The method."""

    @property
    def horizon(self) -> int:
        """Steps in a task."""
        return self.dit.horizon


PRESETS = {
    "cpu": Config(
        preset="cpu",
        dit=DITConfig(
            model=TransformerConfig(width=64, num_layers=3, num_heads=8, context_len=101, positions="none"),
            optim=OptimConfig(learning_rate=3e-3, clip=None),
            num_updates=1000,
            batch_size=32,
            horizon=100,
            labels="best_arm",
            behaviour="mixture",
        ),
    ),
    "paper": Config(
        preset="paper",
        num_chunks=50,
        eval_tasks=200,
        num_arms=20,
        dim=10,
        noise_sd=0.3**0.5,  # the text writes the variance
        dit=DITConfig(
            model=dataclasses.replace(dit_dark_room.PAPER.model, context_len=201),
            optim=dit_dark_room.PAPER.optim,
            num_updates=78_000,  # 50 epochs of 100,000 contexts in batches of 64
            batch_size=64,
            horizon=200,
            labels="best_arm",
            behaviour="mixture",
            num_tasks=100_000,
        ),
    ),
}


def controls(config: Config) -> dict[str, MethodSpec]:
    """What else can be learned from the same contexts, unless `--no-control`."""
    if not config.control:
        return {}
    changed = lambda labels: MethodSpec(METHOD, dataclasses.replace(config.dit, labels=labels, weights="uniform"))
    return {"bc": changed("next"), "dpt": changed("optimal")}


def findings(trained: Trained) -> Findings:
    """Online, and offline on data of the behaviour and of Thompson sampling."""
    config, env, horizon = trained.config, trained.env, trained.config.horizon
    tasks = bandits.held_out(env, config.eval_tasks)
    evaluator, omniscient = (bandits.Evaluator(world, trained.watch) for world in (env, revealed(env)))
    learned = {"dit": (trained.method, trained.params), **trained.controls}
    prior = {"prior_mean": 0.0, "prior_var": 1.0, "noise_sd": config.noise_sd or 0.3}
    players = {
        **{who: bandits.trained_agents(*what) for who, what in learned.items()},
        "linucb": [agents.linucb(env.features)],
        "thompson": [agents.thompson_gaussian(env.num_arms, **prior)],
        "ucb": [agents.ucb(env.num_arms)],
        "empirical_mean": [agents.empirical_mean(env.num_arms)],
        "random": [agents.uniform(env)],
    }
    behaviour = make_behaviour(env, config.dit)
    online = {who: evaluator.online(player, tasks, horizon) for who, player in players.items()}
    for who, player in {"behaviour": behaviour, "oracle": agents.oracle(env)}.items():
        online[who] = omniscient.online([player], tasks, horizon)

    offline_players = {
        **{who: bandits.trained_agents(*what, greedy=True) for who, what in learned.items()},
        "linreg": [agents.linucb(env.features, beta=0.0)],
        "thompson": [agents.thompson_gaussian(env.num_arms, **prior, draws=100)],
        "lcb": [agents.lcb(env.num_arms)],
        "empirical_mean": [agents.empirical_mean(env.num_arms, "never")],
    }
    suboptimality, conditions = {}, {}
    for source, maker in {"behaviour": behaviour, "thompson": players["thompson"][0]}.items():
        contexts = evaluator.contexts(maker, tasks, horizon)
        found = {who: evaluator.offline(player, tasks, contexts) for who, player in offline_players.items()}
        final = {who: values[..., -1] for who, values in found.items()}
        conditions[f"offline_{source}"] = bandits.intervals("suboptimality", final)
        suboptimality[source] = found
    means = np.asarray(jax.vmap(env.means)(tasks))
    return bandits.regret_findings(
        trained, online, conditions, suboptimality["behaviour"], means, "thompson", name="dit"
    )


EXPERIMENT = Experiment(
    name="dit_linear_bandit",
    presets=PRESETS,
    env=lambda config: EnvSpec(
        "linear_bandit", "dit", {"num_arms": config.num_arms, "dim": config.dim, "noise_sd": config.noise_sd}
    ),
    method=lambda config: MethodSpec(METHOD, config.dit),
    metric=bandits.METRIC,
    score=bandits.score,
    findings=findings,
    controls=controls,
)

if __name__ == "__main__":
    main(EXPERIMENT, __doc__ or "")

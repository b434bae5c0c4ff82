"""AD, IDT, DPT, DIT, and DICP on the first three, in one dark room: the same tasks, network, updates and evaluation.

make train EXPERIMENT=compare_dark_room                     7 x 7 cells, one table
make train EXPERIMENT=compare_dark_room PRESET=paper        the papers' room, for one GPU

What differs is what each is told: AD and IDT the histories of a learner, DPT the best action in any cell, DIT the
episodes of one who is mostly wrong. AD, IDT and DPT are DICP's weights without planning; IDT has the network thrice.
Beside them the source algorithm of the histories, the exact posterior over the goals, the oracle and chance.
"""

import dataclasses
from dataclasses import dataclass, field, fields
from typing import Any

import jax
import numpy as np

from experiments import _distilled as distilled
from experiments import _episodes as episodes
from experiments import _planning, dicp_dark_room
from experiments._bandits import intervals, trained_agents
from experiments.ad_dark_room import CELLS
from experiments.dpt_dark_room import OFFLINE, exactly, random_contexts
from icrl_envs import revealed
from icrl_jax import agents
from icrl_jax.agents import PlanConfig
from icrl_jax.core import Method, Tree
from icrl_jax.methods.dicp import DICPConfig, DICPDPTConfig, DICPIDTConfig, ForesightConfig, dicp, dicp_dpt, dicp_idt
from icrl_jax.methods.dit import DITConfig
from icrl_jax.methods.sources import HistoriesConfig
from icrl_jax.methods.supervised import OptimConfig
from icrl_jax.models.decider import DecisionConfig
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.run import EnvSpec, Experiment, Findings, MethodSpec, RunOptions, Trained, main


@dataclass(frozen=True)
class Config(RunOptions):
    """Supervised methods in one dark room."""

    room_size: int = 9
    """Cells on a side."""
    episode_steps: int = 20
    """Steps of an episode."""
    eval_episodes: int = 15
    """Episodes in a held-out task."""
    ad: DICPConfig = field(default_factory=DICPConfig)
    """DICP on AD; the others have its network, optimiser, updates, horizon, foresight and plans."""
    decisions: DecisionConfig = field(default_factory=DecisionConfig)
    """Those of IDT."""
    asked_decay: float = 1.0
    """Weight decay of DPT and DIT, whose labels could be learned by heart, cell by cell."""


PRESETS = {
    "cpu": Config(
        preset="cpu",
        room_size=7,
        episode_steps=14,
        num_chunks=5,
        eval_tasks=80,
        ad=dataclasses.replace(
            dicp_dark_room.CPU.ad,
            model=dataclasses.replace(dicp_dark_room.CPU.ad.model, context_len=15 * 14 + 1, positions="none"),
            num_updates=1000,
        ),
        decisions=DecisionConfig(decision_steps=7, target_return=14.0),
    ),
    "paper": Config(
        preset="paper",
        num_chunks=50,
        eval_tasks=80,
        eval_episodes=50,
        ad=DICPConfig(
            model=TransformerConfig(width=64, num_layers=4, num_heads=4, context_len=20 * 20 + 1, positions="none"),
            embedding=CELLS,
            optim=OptimConfig(learning_rate=1e-3),
            histories=HistoriesConfig(source="ppo", source_rate=3e-4, num_streams=100, num_steps=2000, stride=5),
            num_updates=50_000,
            batch_size=128,
            horizon=20 * 20,
            foresight=ForesightConfig(reward_values=(0.0, 1.0), dynamics_steps=64),
            plan=PlanConfig(),
        ),
        decisions=DecisionConfig(decision_steps=5, target_return=20.0),
    ),
}


def others(config: Config) -> dict[str, MethodSpec]:
    """What is trained beside DICP on AD."""
    ad = config.ad
    idt = DICPIDTConfig(**{each.name: getattr(ad, each.name) for each in fields(ad)}, decisions=config.decisions)
    shared: dict[str, Any] = {
        "model": ad.model,
        "num_updates": ad.num_updates,
        "batch_size": ad.batch_size,
        "horizon": ad.horizon,
        "integers": ad.embedding.integers,
    }
    optim = dataclasses.replace(ad.optim, weight_decay=config.asked_decay)
    dpt = DICPDPTConfig(**shared, optim=optim, behaviours=("random", "posterior"), foresight=ad.foresight, plan=ad.plan)
    dit = DITConfig(**shared, optim=dataclasses.replace(optim, clip=None))
    return {
        "dicp_idt": MethodSpec("icrl_jax.methods.dicp:dicp_idt", idt),
        "dicp_dpt": MethodSpec("icrl_jax.methods.dicp:dicp_dpt", dpt),
        "dit": MethodSpec("icrl_jax.methods.dit:dit", dit),
    }


def findings(trained: Trained) -> Findings:
    """Online from an empty context, and offline from separate random transitions."""
    env, config, watch = trained.env, trained.config, trained.watch
    tasks, repeats = episodes.held_out(env, config.eval_tasks)
    play = lambda agent, world=env: episodes.returns(agent, world, tasks, repeats, config.eval_episodes)
    learned = everyone(trained)
    with watch.time("evaluate"):
        curves = {who: np.stack([play(agent) for agent in trained_agents(*what)]) for who, what in learned.items()}
        curves["source"] = episodes.source_returns(env, config.ad.histories, tasks)[None]
        curves["posterior"] = play(agents.posterior(env))[None]
        curves["oracle"] = play(agents.oracle(env), revealed(env))[None]
        curves["random"] = play(agents.uniform(env))[None]
        many = jax.tree.map(lambda x: x.repeat(repeats, axis=0), tasks)
        contexts = random_contexts(env, many, config.ad.horizon)
        players: Any = {
            who: episodes.answering(episodes.alone(method), params) for who, (method, params) in learned.items()
        }
        players["posterior"] = [exactly(env)]
        conditions = {
            "offline_random": intervals(OFFLINE, episodes.offline_returns(players, env, tasks, repeats, contexts))
        }
    more = f" The source learns from scratch for {curves['source'].shape[-1]} episodes."
    found = episodes.online_findings(trained, "dicp_ad", curves, episodes.METRIC, "oracle", more)
    return found._replace(conditions=conditions)


def everyone(trained: Trained) -> dict[str, tuple[Method, Tree]]:
    """Methods and parameters of all that were trained, and of the weights of DICP without planning."""
    env, specs = trained.env, others(trained.config)
    learned = {"dicp_ad": (trained.method, trained.params), **trained.controls}
    backbones = {
        "ad": (dicp, trained.config.ad),
        "idt": (dicp_idt, specs["dicp_idt"].options),
        "dpt": (dicp_dpt, specs["dicp_dpt"].options),
    }
    for name, (build, options) in backbones.items():
        learned[name] = build(env, _planning.without_planning(options)), learned[f"dicp_{name}"][1]
    return learned


EXPERIMENT = Experiment(
    name="compare_dark_room",
    presets=PRESETS,
    env=lambda config: EnvSpec(
        "dark_room", "ad_eps", {"observation": "cell", "size": config.room_size, "horizon": config.episode_steps}
    ),
    method=lambda config: MethodSpec("icrl_jax.methods.dicp:dicp", config.ad),
    metric=episodes.METRIC,
    score=_planning.score,
    findings=findings,
    controls=others,
    notes=lambda env, options: distilled.notes(env, options[:2]),  # of those that distil
)

if __name__ == "__main__":
    main(EXPERIMENT, __doc__ or "")

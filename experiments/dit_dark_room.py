"""DIT in the dark room: imitate one who is mostly wrong, where it was good, and do far better (Dong et al. 2024).

make train EXPERIMENT=dit_dark_room                    12 minutes on two busy cores; DIT 34, BC 3, DPT 34 of 45
make train EXPERIMENT=dit_dark_room PRESET=paper       the paper's room and sizes, for one GPU
make train EXPERIMENT=dit_dark_room ARGS="--weights critic"      weights by advantages, as in its second version

Contexts are single episodes of a behaviour that takes the best action every fifth time and any otherwise. Beside DIT,
on the same contexts: BC, which imitates what was done next; WBC, which does so with DIT's weights; and DPT, which is
given the best actions as labels, the upper reference. In the small room `--expert-share` 0.1, 0.2, 0.3 and 0.4 earn 6,
14, 25 and 37 % of the oracle's return. What is seen counts from the next step on, which helps WBC most: with
`--update episode`, as in the paper, the same weights reach 35 (DIT), 31 (DPT), 24 (WBC) and 3 (BC).
"""

import dataclasses
from dataclasses import dataclass, field

import jax
import numpy as np

from experiments import _episodes as episodes
from experiments import dpt_dark_room
from experiments._bandits import intervals, trained_agents
from experiments.dpt_dark_room import OFFLINE
from icrl_envs import revealed
from icrl_jax import agents
from icrl_jax.core import Agent, Transition, Tree
from icrl_jax.methods.dit import DITConfig, make_behaviour
from icrl_jax.methods.supervised import OptimConfig
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.run import EnvSpec, Experiment, Findings, MethodSpec, RunOptions, Trained, main

METHOD = "icrl_jax.methods.dit:dit"


@dataclass(frozen=True)
class Config(RunOptions):
    """DIT in the dark room."""

    size: int = 7
    """Cells along one side of the room."""
    episode_steps: int = 49
    """Steps of an episode."""
    eval_episodes: int = 20
    """Episodes in a held-out task."""
    control: bool = True
    """Also trains BC, WBC and DPT on the same contexts."""
    dit: DITConfig = field(default_factory=DITConfig)
    """The method."""


PAPER = dpt_dark_room.PRESETS["paper"].dpt  # the same network, trained alike

PRESETS = {
    "cpu": Config(
        preset="cpu",
        num_chunks=10,
        eval_tasks=100,
        dit=DITConfig(
            model=TransformerConfig(width=64, num_layers=3, num_heads=4, context_len=50, positions="none"),
            optim=OptimConfig(learning_rate=3e-3, clip=None),
            num_updates=1000,
            batch_size=32,
            horizon=49,
            integers="tables",
        ),
    ),
    "paper": Config(
        preset="paper",
        num_chunks=50,
        eval_tasks=100,
        size=10,
        episode_steps=100,
        eval_episodes=40,
        dit=DITConfig(
            model=PAPER.model,
            optim=PAPER.optim,
            num_updates=50_000,  # 50 epochs of 64,000 contexts in batches of 64
            batch_size=64,
            horizon=100,
            update="episode",
            num_tasks=64_000,
        ),
    ),
}


def controls(config: Config) -> dict[str, MethodSpec]:
    """What else can be learned from the same contexts, unless `--no-control`."""
    if not config.control:
        return {}
    changed = lambda **changes: MethodSpec(METHOD, dataclasses.replace(config.dit, **changes))
    return {
        "bc": changed(labels="next", weights="uniform"),
        "wbc": changed(labels="next"),
        "dpt": changed(labels="optimal", weights="uniform"),
    }


def findings(trained: Trained) -> Findings:
    """Online from an empty context, and offline from one episode of chance, the behaviour or an expert.

    Offline actions are sampled, as online, or the likeliest: that alone takes the noise out of what BC imitates.
    """
    env, config, num_episodes = trained.env, trained.config, trained.config.eval_episodes
    tasks, repeats = episodes.held_out(env, config.eval_tasks)
    learned, world = {"dit": (trained.method, trained.params), **trained.controls}, revealed(env)
    sources = {"behaviour": make_behaviour(env, config.dit), "oracle": agents.oracle(env)}
    with trained.watch.time("evaluate"):
        curves = {
            who: np.stack(
                [episodes.returns(agent, env, tasks, repeats, num_episodes) for agent in trained_agents(*what)]
            )
            for who, what in learned.items()
        }
        for who, agent in sources.items():
            curves[who] = episodes.returns(agent, world, tasks, repeats, num_episodes)[None]
        curves["random"] = episodes.returns(agents.uniform(env), env, tasks, repeats, num_episodes)[None]
        many = jax.tree.map(lambda x: x.repeat(repeats, axis=0), tasks)
        makers = {"random": agents.uniform(world), "behaviour": sources["behaviour"], "expert": sources["oracle"]}
        conditions = {}
        for who, maker in makers.items():
            contexts = episodes.first_steps(maker, world, many, config.dit.horizon)
            for how, answer in ANSWERS.items():
                players = {name: episodes.answering(answer, params.policy) for name, (_, params) in learned.items()}
                found = episodes.offline_returns(players, env, tasks, repeats, contexts)
                conditions[f"offline_{who}{how}"] = intervals(OFFLINE, found)
    more = " The behaviour, whose episodes are the contexts of training, does not learn."
    return episodes.online_findings(trained, "dit", curves, episodes.METRIC, "oracle", more)._replace(
        conditions=conditions
    )


def _sampled(policy: Tree, context: Transition) -> Agent:
    return agents.trained(policy, context, online=False, greedy=False)


def _likeliest(policy: Tree, context: Transition) -> Agent:
    return agents.trained(policy, context, online=False, greedy=True)


ANSWERS = {"": _sampled, "_greedy": _likeliest}
"""How one acts from a context, by the ending of the condition's name."""


EXPERIMENT = Experiment(
    name="dit_dark_room",
    presets=PRESETS,
    env=lambda config: EnvSpec("dark_room", "dit", {"size": config.size, "horizon": config.episode_steps}),
    method=lambda config: MethodSpec(METHOD, config.dit),
    metric=episodes.METRIC,
    score=episodes.watched,
    findings=findings,
    controls=controls,
)

if __name__ == "__main__":
    main(EXPERIMENT, __doc__ or "")

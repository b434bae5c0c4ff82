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
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import numpy as np

from experiments import _episodes as episodes
from experiments._bandits import intervals, trained_agents
from icrl_envs import TaskFamily, revealed
from icrl_jax import agents
from icrl_jax.core import Agent, Transition, Tree, partial
from icrl_jax.evaluate import evaluate
from icrl_jax.methods.dit import DITConfig, Learned, make_behaviour
from icrl_jax.methods.supervised import OptimConfig
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.run import EnvSpec, Experiment, Findings, MethodSpec, RunOptions, Trained, main

METHOD, OFFLINE = "icrl_jax.methods.dit:dit", "offline_return"


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
            model=TransformerConfig(
                width=32, num_layers=4, num_heads=4, context_len=101, positions="none", dtype="float32"
            ),
            optim=OptimConfig(
                learning_rate=1e-3, weight_decay=1e-4, schedule="constant", warmup=0.0, beta2=0.999, clip=None
            ),
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
            contexts = made_by(maker, env, many, config.dit.horizon)
            for how, answer in ANSWERS.items():
                found = {name: offline(answer, params, env, many, contexts) for name, (_, params) in learned.items()}
                of_goals = {name: x.reshape(len(x), -1, repeats).mean(axis=-1) for name, x in found.items()}
                conditions[f"offline_{who}{how}"] = intervals(OFFLINE, of_goals)
    more = " The behaviour, whose episodes are the contexts of training, does not learn."
    return episodes.online_findings(trained, "dit", curves, episodes.METRIC, "oracle", more)._replace(
        conditions=conditions
    )


def made_by(maker: Agent, env: TaskFamily, tasks: Tree, horizon: int) -> Transition:
    """The first steps of an agent in each task, [B, horizon, ...]."""
    num_episodes = -(-horizon // int(env.default_params.max_steps_in_episode))
    key = jax.random.key(episodes.EVAL_SEED + 4)
    shown = evaluate(maker, revealed(env), tasks, key, num_episodes=num_episodes).record.transition
    return jax.tree.map(lambda x: x[:, :horizon], shown)


def offline(
    answer: Callable[[Tree, Transition], Agent], params: Learned, env: TaskFamily, tasks: Tree, contexts: Transition
) -> np.ndarray:
    """Returns of one episode that each seed plays from a given context alone, [S, B]."""
    key, num_seeds = jax.random.key(episodes.EVAL_SEED + 3), jax.tree.leaves(params)[0].shape[0]
    players = [partial(answer, jax.tree.map(lambda x, s=s: x[s], params.policy)) for s in range(num_seeds)]
    played = [evaluate(player, env, tasks, key, num_episodes=1, context=contexts) for player in players]
    return np.stack([np.asarray(one.metrics["mean_return"]) for one in played])


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

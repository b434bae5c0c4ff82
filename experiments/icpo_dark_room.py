"""ICPO in the dark room: which of two moves is better, and never whether one has arrived (Dong et al. 2026).

make train EXPERIMENT=icpo_dark_room                   a 7 x 7 room; 25 of 44, DPT with rewards 31
make train EXPERIMENT=icpo_dark_room PRESET=paper      the paper's room, for one GPU

Labels compare optimal advantages, which somebody must know to make the pretraining data, at a temperature of 1: the
better of two moves is preferred in 73 or 88 of 100 cases. Online the preferred of the two proposals moves, also where
they come from chance, which "random" shows; offline one action is proposed twice. DPT, on the same goals, is given the
rewards and the best actions. "No context" is ICPO whose context stays empty.
"""

import dataclasses
from dataclasses import dataclass, field
from functools import partial

import jax
import numpy as np

from experiments import _episodes as episodes
from experiments import dpt_dark_room
from experiments._bandits import each_seed, intervals, trained_agents
from experiments._preferences import NOISE, QUALITIES, world_of
from experiments.dpt_dark_room import OFFLINE
from icrl_envs import TaskFamily
from icrl_jax import agents
from icrl_jax.core import Agent, Array, Transition, Tree
from icrl_jax.data.behaviours import noisy_expert
from icrl_jax.data.preferences import compare, in_pairs
from icrl_jax.methods.dpt_mdp import DPTMDPConfig
from icrl_jax.methods.icpo import ICPOConfig
from icrl_jax.methods.supervised import OptimConfig
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.run import EnvSpec, Experiment, Findings, MethodSpec, RunOptions, Trained, main


@dataclass(frozen=True)
class Config(RunOptions):
    """ICPO in the dark room."""

    size: int = 7
    """Cells along one side of the room."""
    episode_steps: int = 49
    """Steps of an episode."""
    eval_episodes: int = 20
    """Episodes in a held-out task."""
    label_temperature: float = 1.0
    """Of labels; the paper's is 1."""
    label_noise: float = 0.0
    """Share of labels that are turned round, in training and in the test."""
    control: bool = True
    """Also trains DPT, with rewards."""
    icpo: ICPOConfig = field(default_factory=ICPOConfig)
    """The method."""


PRESETS = {
    "cpu": Config(
        preset="cpu",
        num_chunks=10,
        eval_tasks=100,
        icpo=ICPOConfig(
            model=TransformerConfig(width=64, num_layers=3, num_heads=4, context_len=99, positions="none"),
            optim=OptimConfig(learning_rate=3e-3, weight_decay=1.0),  # weaker: goals of training are learned by heart
            num_updates=1200,
            batch_size=16,
            horizon=98,
            behaviours=("random", "noisy_expert"),
            num_asked=8,
            beta=0.2,
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
        icpo=ICPOConfig(
            model=dpt_dark_room.PRESETS["paper"].dpt.model,
            optim=dpt_dark_room.PRESETS["paper"].dpt.optim,
            num_updates=125_000,  # those of DPT; the paper's own are not known
            batch_size=128,
            horizon=100,
            behaviours=("random", "noisy_expert"),
            num_asked=8,
            beta=0.2,
            num_tasks=80_000,
        ),
    ),
}


def env_spec(config: Config) -> EnvSpec:
    """The room, behind preferences."""
    room = {"family": "dark_room", "family_preset": "icprl", "size": config.size, "horizon": config.episode_steps}
    return EnvSpec(
        "icrl_envs:compared", None, {**room, "temperature": config.label_temperature, "noise": config.label_noise}
    )


def controls(config: Config) -> dict[str, MethodSpec]:
    """DPT with the same network, updates and number of transitions, unless `--no-control`."""
    if not config.control:
        return {}
    shared = ("model", "optim", "num_updates", "batch_size", "horizon", "integers", "num_tasks")
    options = {name: getattr(config.icpo, name) for name in shared}
    dpt = DPTMDPConfig(**options, behaviours=("random", "posterior"))
    return {"dpt": MethodSpec("icrl_jax.methods.icpo:dpt_with_rewards", dpt)}


def score(env: TaskFamily, config: Config, num_tasks: int):
    """Final return in each of some train tasks, [B], of whoever sees preferences or, as DPT, rewards."""

    def found(agent: Agent, key: Array) -> Array:
        return episodes.watched(world_of(agent, env), config, num_tasks)(agent, key)

    return found


def findings(trained: Trained) -> Findings:
    """Online from nothing, also where labels are turned round; offline from contexts of three qualities."""
    env, config = trained.env, trained.config
    tasks, repeats = episodes.held_out(env, config.eval_tasks)
    play = partial(episodes.returns, tasks=tasks, repeats=repeats, num_episodes=config.eval_episodes)
    learned = {"icpo": (trained.method, trained.params), **trained.controls}
    players = {who: trained_agents(*what) for who, what in learned.items()}
    blind = lambda params: trained.method.agent(params, online=False, greedy=False)
    players["no_context"] = [blind(params) for params in each_seed(trained.params)]
    players["random"] = [agents.uniform(env)]
    with trained.watch.time("evaluate"):
        curves = {
            who: np.stack([play(agent, world_of(agent, env)) for agent in of_seeds])
            for who, of_seeds in players.items()
        }
        curves["oracle"] = episodes.oracle_returns(env, tasks, config.eval_episodes)
        noisy = env_spec(dataclasses.replace(config, label_noise=NOISE)).build()
        shifted = {"icpo": np.stack([play(agent, noisy) for agent in players["icpo"]])}
        conditions = {f"noise_{NOISE:g}": episodes.summary(shifted)}
        given = {"icpo": episodes.answering(episodes.alone(trained.method), trained.params)}
        for quality, share in QUALITIES.items():
            contexts = comparisons(env, tasks, repeats, share, config.icpo.horizon)
            offline = episodes.offline_returns(given, env, tasks, repeats, contexts)
            conditions[f"offline_{quality}"] = intervals(OFFLINE, offline)
    more = " DPT sees rewards; the others see which of two actions is preferred, and the preferred one moves."
    reference = "dpt" if "dpt" in curves else "oracle"
    found = episodes.online_findings(trained, "icpo", curves, episodes.METRIC, reference, more)
    return found._replace(conditions=conditions)


def comparisons(env: TaskFamily, tasks: Tree, repeats: int, share: float, horizon: int) -> Transition:
    """A context of each task, repeated, whose proposals are the best action with this probability, else any."""
    many = jax.tree.map(lambda x: x.repeat(repeats, axis=0), tasks)
    keys = jax.random.split(jax.random.key(episodes.EVAL_SEED + 4), jax.tree.leaves(many)[0].shape[0])
    proposer = in_pairs(noisy_expert(env.env, share))  # type: ignore[attr-defined]
    return jax.jit(jax.vmap(lambda task, key: compare(env, proposer, task, key, horizon)[0]))(many, keys)


EXPERIMENT = Experiment(
    name="icpo_dark_room",
    presets=PRESETS,
    env=env_spec,
    method=lambda config: MethodSpec("icrl_jax.methods.icpo:icpo", config.icpo),
    metric=episodes.METRIC,
    score=score,
    findings=findings,
    controls=controls,
)

if __name__ == "__main__":
    main(EXPERIMENT, __doc__ or "")

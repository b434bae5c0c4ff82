"""DPT in the dark room: what is best in a cell that is asked about, given transitions of a room (Lee et al. 2023).

make train EXPERIMENT=dpt_dark_room                    a 7 x 7 room; 35 of 44, offline 42
make train EXPERIMENT=dpt_dark_room PRESET=paper       the paper's room and sizes, for one GPU

Held against the exact posterior over all goals, which is what the loss is lowest for: online it samples as DPT does,
offline it takes the likeliest action given the same contexts, separate random transitions or an expert's episodes. Who
does better offline has seen more than its context.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from experiments import _episodes as episodes
from experiments._bandits import intervals, trained_agents
from icrl_envs import TaskFamily, revealed
from icrl_jax import agents
from icrl_jax.core import Agent, Transition, Tree, partial
from icrl_jax.data.contexts import scattered
from icrl_jax.methods.dpt_mdp import DPTMDPConfig
from icrl_jax.methods.supervised import OptimConfig
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.rollout import no_transition
from icrl_jax.run import EnvSpec, Experiment, Findings, MethodSpec, RunOptions, Trained, main

OFFLINE = "offline_return"


@dataclass(frozen=True)
class Config(RunOptions):
    """DPT in the dark room."""

    size: int = 7
    """Cells along one side of the room."""
    episode_steps: int = 49
    """Steps of an episode."""
    eval_episodes: int = 20
    """Episodes in a held-out task."""
    dpt: DPTMDPConfig = field(default_factory=DPTMDPConfig)
    """The method."""


PRESETS = {
    "cpu": Config(
        preset="cpu",
        num_chunks=10,
        eval_tasks=100,
        dpt=DPTMDPConfig(
            model=TransformerConfig(width=64, num_layers=3, num_heads=4, context_len=148, positions="none"),
            # In a cell that is never the goal in training, staying is never right: weaker decay lets the model learn
            # that by heart, and then it leaves goals that are held out.
            optim=OptimConfig(learning_rate=3e-3, weight_decay=1.0),
            num_updates=3000,
            batch_size=16,
            horizon=147,
            behaviours=("random", "posterior"),
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
        dpt=DPTMDPConfig(
            model=TransformerConfig(
                width=32, num_layers=4, num_heads=4, context_len=101, positions="none", dtype="float32"
            ),
            optim=OptimConfig(
                learning_rate=1e-3, weight_decay=1e-4, schedule="constant", warmup=0.0, beta2=0.999, clip=None
            ),
            num_updates=125_000,  # 200 epochs of 80,000 contexts in batches of 128
            batch_size=128,
            horizon=100,
            query="first",
            update="episode",
            num_tasks=80_000,
            shuffle=True,
            train_empty=False,
        ),
    ),
}


def findings(trained: Trained, offline: Callable[[Trained, Tree, int], dict[str, dict]]) -> Findings:
    """Online from an empty context, and offline.

    Args:
      offline: `(trained, tasks, repeats) -> conditions`, from given contexts.
    """
    env, config = trained.env, trained.config
    tasks, repeats = episodes.held_out(env, config.eval_tasks)
    num_episodes, exact = config.eval_episodes, agents.posterior(env)
    if config.dpt.update == "episode":
        exact = agents.between_episodes(exact, no_transition(env, env.default_params))
    with trained.watch.time("evaluate"):
        players = {"dpt": trained_agents(trained.method, trained.params), "posterior": [exact]}
        players["random"] = [agents.uniform(env)]
        curves = {
            who: np.stack([episodes.returns(agent, env, tasks, repeats, num_episodes) for agent in of_seeds])
            for who, of_seeds in players.items()
        }
        curves["oracle"] = episodes.oracle_returns(env, tasks, num_episodes)
        conditions = offline(trained, tasks, repeats)
    found = episodes.online_findings(trained, "dpt", curves, episodes.METRIC, "oracle")
    return found._replace(conditions=conditions)


def offline(trained: Trained, tasks: Tree, repeats: int) -> dict[str, dict]:
    """Returns of one episode that is played by the likeliest action from random or an expert's transitions alone."""
    env, horizon = trained.env, trained.config.dpt.horizon
    many = jax.tree.map(lambda x: x.repeat(repeats, axis=0), tasks)
    learned = episodes.answering(episodes.alone(trained.method), trained.params)
    players, contexts = {"dpt": learned, "posterior": [exactly(env)]}, {}
    contexts["offline_random"] = random_contexts(env, many, horizon)
    contexts["offline_expert"] = episodes.first_steps(agents.oracle(env), revealed(env), many, horizon)
    return {
        name: intervals(OFFLINE, episodes.offline_returns(players, env, tasks, repeats, given))
        for name, given in contexts.items()
    }


def exactly(env: Any) -> Callable[[Transition], Agent]:
    """`context -> agent` that does what is best by the exact posterior."""
    return partial(_prompted, agents.posterior(env, "greedy"))


def _prompted(agent: Agent, context: Transition) -> Agent:
    return agents.prompted(agent, context, online=False)


def random_contexts(env: TaskFamily, tasks: Tree, horizon: int) -> Transition:
    """Separate transitions of each task, [B, horizon, ...]."""
    num_tasks = jax.tree.leaves(tasks)[0].shape[0]
    keys = jax.random.split(jax.random.key(episodes.EVAL_SEED + 4), num_tasks)
    return jax.jit(jax.vmap(lambda task, key: scattered(env, task, key, horizon)))(tasks, keys)


EXPERIMENT = Experiment(
    name="dpt_dark_room",
    presets=PRESETS,
    env=lambda config: EnvSpec("dark_room", "dpt", {"size": config.size, "horizon": config.episode_steps}),
    method=lambda config: MethodSpec("icrl_jax.methods.dpt_mdp:dpt_mdp", config.dpt),
    metric=episodes.METRIC,
    score=episodes.watched,
    findings=partial(findings, offline=offline),
)

if __name__ == "__main__":
    main(EXPERIMENT, __doc__ or "")

"""DPT on random tabular MDPs, beside the algorithms that it should be like (Lee et al. 2023; Lin et al. 2023).

make train EXPERIMENT=dpt_tabular_mdp                  9 minutes on two busy cores; regret 10.8, PSRL 11.1, UCB-VI 10.2
make train EXPERIMENT=dpt_tabular_mdp PRESET=paper     10 states, 4 actions, 30 episodes of 10 steps, for one GPU
make train EXPERIMENT=dpt_tabular_mdp ARGS="--asked anywhere --behaviours mixture"      without adaptive contexts

No paper has run it; the small MDPs have 4 states, 3 actions and 15 episodes of 5 steps. Labels are value iteration's in
the true MDP, contexts those of fixed mixtures of actions and of PSRL. Regret is what actions cost against the best one,
in expected reward until the end of the episode.

How alike two agents are is the total-variation distance of their action probabilities after the same history, the mean
over its steps. PSRL draws an MDP where an episode starts and keeps to it; DPT answers each step anew from all that it
has seen, those of the running episode too. What its loss is lowest for, and what it is compared with, is therefore
PSRL's posterior taken anew at every step: "posterior", the share of 100 drawn MDPs in which an action is best now. PSRL
itself, with as many draws, stands beside it: it differs by what the running episode has shown and by the error of two
such shares, which nobody is without. An untrained DPT is as far away as one who knows nothing. With `--asked anywhere`
DPT is told only what is best with a whole episode left.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _bandits as bandits
from experiments import _episodes as episodes
from icrl_envs import revealed, sample_tasks
from icrl_envs.tabular_mdp import TabularMDP, TabularMDPState
from icrl_envs.task_family import is_int, require
from icrl_jax import agents, report
from icrl_jax.core import Agent, Array, Transition, Tree
from icrl_jax.evaluate import Evaluation, action_probs, evaluate
from icrl_jax.methods.dpt_mdp import DPTMDPConfig
from icrl_jax.methods.supervised import OptimConfig
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.run import EnvSpec, Experiment, Findings, MethodSpec, RunOptions, Trained, main

DISTANCE = "tv_distance"

DRAWS = 100
"""MDPs drawn for each probability of an action."""

COMPARED_TASKS = 32
"""In which agents are compared step by step, at most: drawing so many takes its time."""


@dataclass(frozen=True)
class Config(RunOptions):
    """DPT on random tabular MDPs."""

    num_states: int = 4
    """States, S."""
    num_actions: int = 3
    """Actions, A."""
    episode_steps: int = 5
    """Steps of an episode, H; the context is made of whole ones."""
    concentration: float = 0.3
    """Of the Dirichlet law of transitions; small: nearly deterministic."""
    ucbvi_scale: float = 0.0003
    """Of UCB-VI's bonus: the best of 0.0003, 0.001, 0.003 and 0.01 on validation tasks. With the papers' 1 it would
    hope for everything for hundreds of episodes."""
    dpt: DPTMDPConfig = field(default_factory=DPTMDPConfig)
    """The method."""

    def __post_init__(self):
        super().__post_init__()
        require(is_int(self.episode_steps, 1), "episode_steps", self.episode_steps, "an integer of at least 1")
        whole = f"a multiple of episode_steps={self.episode_steps}"
        require(self.horizon % self.episode_steps == 0, "horizon", self.horizon, whole)

    @property
    def horizon(self) -> int:
        """Steps in a task."""
        return self.dpt.horizon

    @property
    def num_episodes(self) -> int:
        """Episodes in a task."""
        return self.horizon // self.episode_steps


PRESETS = {
    "cpu": Config(
        preset="cpu",
        num_chunks=10,
        eval_tasks=500,
        dpt=DPTMDPConfig(
            # How many steps are left is told by the place in the context, which learned positions know.
            model=TransformerConfig(width=64, num_layers=3, num_heads=4, context_len=76, positions="learned"),
            optim=OptimConfig(learning_rate=3e-3),
            num_updates=2500,
            batch_size=32,
            horizon=75,
            behaviours=("mixture", "posterior"),
            asked="visited",
        ),
    ),
    "paper": Config(
        preset="paper",
        num_states=10,
        num_actions=4,
        episode_steps=10,
        num_chunks=50,
        eval_tasks=500,
        dpt=DPTMDPConfig(
            model=TransformerConfig(
                width=128, num_layers=8, num_heads=4, context_len=301, positions="learned", dtype="float32"
            ),
            optim=OptimConfig(learning_rate=1e-3),
            num_updates=100_000,
            batch_size=128,
            horizon=300,
            behaviours=("mixture", "posterior"),
            asked="visited",
        ),
    ),
}


def regret(env: TabularMDP, env_params: Tree, transitions: Transition) -> Array:
    """What was lost up to each step of whole episodes, [T] -> float32 [T].

    The sum over steps of max_a Q*_h(s_h, a) - Q*_h(s_h, a_h). Over an episode its mean is V* - V of who acted (Kakade
    and Langford 2002, lemma 6.1), and it has less noise than returns.
    """
    steps = jnp.arange(transitions.action.shape[0], dtype=jnp.int32) % env.horizon

    def advantage(step: Array, transition: Transition) -> Array:
        state = TabularMDPState(time=step, at=transition.obs)  # type: ignore[arg-type]
        return env.optimal_advantage(state, transition.action, env_params)

    return -jnp.cumsum(jax.vmap(advantage)(steps, transitions))


def score(env: Any, config: Config, num_tasks: int) -> Callable[[Agent, Array], Array]:
    """Regret in each validation task, [B]."""

    def found(agent: Agent, key: Array) -> Array:
        tasks = sample_tasks(env, jax.random.key(bandits.VALIDATION_SEED), num_tasks)
        lived = evaluate(agent, env, tasks, key, num_episodes=config.num_episodes).record.transition
        return jax.vmap(lambda task, lived: regret(env, task, lived))(tasks, lived)[:, -1]

    return found


def findings(trained: Trained) -> Findings:
    """Regret and returns on held-out MDPs, and how near DPT is to the posterior step by step."""
    env, config = trained.env, trained.config
    tasks = bandits.held_out(env, config.eval_tasks)
    players = {
        "dpt": bandits.trained_agents(trained.method, trained.params),
        "psrl": [agents.psrl(env)],
        "posterior": [agents.psrl(env, decide="step")],
        "ucbvi": [agents.ucbvi(env, config.num_episodes, scale=config.ucbvi_scale)],
        "random": [agents.uniform(env)],
        "oracle": [agents.oracle(env)],
    }
    key = jax.random.key(bandits.EVAL_SEED)
    lost = jax.jit(jax.vmap(lambda task, lived: regret(env, task, lived)))

    def play(agent: Agent, who: str) -> Evaluation:
        world = revealed(env) if who == "oracle" else env
        return evaluate(agent, world, tasks, key, num_episodes=config.num_episodes)

    with trained.watch.time("evaluate"):
        played = {who: [play(agent, who) for agent in of_seeds] for who, of_seeds in players.items()}
        lived = {who: [one.record.transition for one in of_seeds] for who, of_seeds in played.items()}
        online = {
            who: (np.stack([lost(tasks, one) for one in ones]), np.stack([one.action for one in ones]))
            for who, ones in lived.items()
        }
        away = {who: distances(trained, players, lived[who]) for who in ("psrl", "dpt")}
    returns = {who: np.stack([one.curves["return"] for one in of_seeds]) for who, of_seeds in played.items()}
    conditions = {
        f"histories_{whose}": bandits.intervals(DISTANCE, {who: x.mean(axis=-1) for who, x in found.items()})
        for whose, found in away.items()
    }
    found = bandits.regret_findings(trained, online, conditions, {}, None, "psrl")
    drawn = {"return": bandits.with_intervals(returns), DISTANCE: bandits.with_intervals(away["psrl"])}
    return found._replace(
        agents={who: {**entries, **episodes.summary(returns)[who]} for who, entries in found.agents.items()},
        curves={who: {**entries, **bandits.as_lists(drawn)[who]} for who, entries in found.curves.items()},
        figures=[
            *found.figures,
            (
                "returns",
                report.curve_figure(drawn["return"], "episode", "return", log=False),
                "Return of each episode on MDPs that nobody was trained on. The context is empty at first.",
            ),
            (
                "distance",
                report.curve_figure(drawn[DISTANCE], "step", "total-variation distance", log=False),
                f"Distance between action probabilities and the posterior's, a share of {DRAWS} draws, after the same "
                "steps of PSRL.",
            ),
        ],
    )


def distances(
    trained: Trained, players: dict[str, list[Agent]], histories: Sequence[Transition]
) -> dict[str, np.ndarray]:
    """Total-variation distance from the posterior at each step of the histories of one agent's seeds, [S, B, T]."""
    env, key = trained.env, jax.random.key(bandits.EVAL_SEED + 4)
    untrained = trained.method.agent(jax.jit(lambda key: trained.method.init(key).params)(key))
    compared = {
        "dpt": players["dpt"],
        "untrained": [untrained],
        "psrl": [agents.psrl(env, DRAWS)],
        "ucbvi": players["ucbvi"],
    }
    probs = jax.jit(action_probs)
    few = [jax.tree.map(lambda x: x[:COMPARED_TASKS], history) for history in histories]
    exact = [probs(agents.psrl(env, DRAWS, "step"), history, key) for history in few]

    def distance(agent: Agent, s: int) -> Array:
        return jnp.sum(jnp.abs(probs(agent, few[s], key) - exact[s]), axis=-1) / 2

    found = {}
    for who, of_seeds in compared.items():
        pairs = [(of_seeds[s % len(of_seeds)], s % len(few)) for s in range(max(len(of_seeds), len(few)))]
        found[who] = np.stack([distance(agent, s) for agent, s in pairs])
    return found


EXPERIMENT = Experiment(
    name="dpt_tabular_mdp",
    presets=PRESETS,
    env=lambda config: EnvSpec(
        "tabular_mdp",
        None,
        {
            "num_states": config.num_states,
            "num_actions": config.num_actions,
            "horizon": config.episode_steps,
            "concentration": config.concentration,
            "start": "uniform",
        },
    ),
    method=lambda config: MethodSpec("icrl_jax.methods.dpt_mdp:dpt_mdp", config.dpt),
    metric=bandits.METRIC,
    score=score,
    findings=findings,
)

if __name__ == "__main__":
    main(EXPERIMENT, __doc__ or "")

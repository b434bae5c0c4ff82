"""RL^2 on bandits with two arms, beside the exact Bayes-optimal plan (Duan et al. 2016; Mikulik et al. 2020).

make train EXPERIMENT=rl2_bandit                    10 minutes; 1.98, the optimum 1.80 on these tasks
make train EXPERIMENT=rl2_bandit PRESET=paper       RL^2's sizes, for one GPU

Nobody tells the network what a bandit is: PPO on rewards alone, through a memory that lasts for the hundred pulls of a
task. Over the prior of the tasks no agent can do better than dynamic programming over what can be known (`bayes`),
whose regret is 1.748; at this horizon taking the arm of the better posterior mean (`greedy`, 2.66) and Thompson
sampling (2.79) are far from it. The condition "modes" is the trained network where it takes its likeliest arm in place
of drawing one.
"""

import dataclasses
from dataclasses import dataclass, field

import numpy as np

from experiments import _bandits as bandits
from experiments import _ppo
from icrl_envs import revealed
from icrl_jax import agents
from icrl_jax.methods.ppo import PPOConfig
from icrl_jax.methods.supervised import OptimConfig
from icrl_jax.models.embeddings import EmbeddingConfig
from icrl_jax.models.gru import GRUConfig
from icrl_jax.run import EnvSpec, Experiment, Findings, MethodSpec, RunOptions, Trained, main

PULLS = EmbeddingConfig(inputs=("action", "feedback", "obs"))  # the observation is 1, and so the token's bias


@dataclass(frozen=True)
class Config(RunOptions):
    """RL^2 on bandits with two arms."""

    ppo: PPOConfig = field(default_factory=PPOConfig)
    """The method."""

    def __post_init__(self):
        super().__post_init__()
        _ppo.check_remembers(self.ppo)
        if self.ppo.trial_steps is None or self.ppo.trial_steps > agents.LONGEST_PLAN:
            allowed = f"at most {agents.LONGEST_PLAN}, for which the optimum can be computed"
            raise ValueError(f"trial_steps={self.ppo.trial_steps!r}: must be {allowed}")

    @property
    def horizon(self) -> int:
        """Pulls in a task."""
        return self.ppo.trial_steps or 0  # never None


CPU = PPOConfig(
    model=GRUConfig(width=48),
    embedding=PULLS,
    optim=OptimConfig(learning_rate=3e-3, weight_decay=0.0, schedule="linear", warmup=0.0, clip=0.5, eps=1e-5),
    num_updates=800,
    num_streams=512,
    num_steps=100,
    num_epochs=4,
    num_minibatches=4,
    reward_scale=0.05,  # returns of up to 5
    discount=1.0,
    trace=0.95,
    returns="trial",
    entropy_weight=0.003,
    trial_episodes=None,
    trial_steps=100,
)

PRESETS = {
    "cpu": Config(preset="cpu", eval_tasks=10_000, ppo=CPU),
    "paper": Config(  # the size of its GRU, and about 250,000 steps a round; its optimiser was TRPO
        preset="paper",
        eval_tasks=10_000,
        ppo=dataclasses.replace(CPU, model=GRUConfig(width=256), num_streams=2560),
    ),
}


def findings(trained: Trained) -> Findings:
    """Regret on held-out bandits, all agents under the same noise."""
    env, horizon = trained.env, trained.config.horizon
    tasks, name = bandits.held_out(env, trained.config.eval_tasks), _ppo.name_of(trained.config.ppo.model)
    evaluator = bandits.Evaluator(env, trained.watch)
    players = {
        name: bandits.trained_agents(trained.method, trained.params),
        "bayes": [agents.bayes(horizon)],
        "thompson": [agents.thompson_beta(env.num_arms)],
        "greedy": [agents.bayes(1)],
        "ucb1": [agents.ucb1(env.num_arms)],
        "random": [agents.uniform(env)],
    }
    online = {who: evaluator.online(player, tasks, horizon) for who, player in players.items()}
    online["oracle"] = bandits.Evaluator(revealed(env), trained.watch).online([agents.oracle(env)], tasks, horizon)
    modes = bandits.trained_agents(trained.method, trained.params, greedy=True)
    greedy = {name: evaluator.online(modes, tasks, horizon)[0][..., -1], "bayes": online["bayes"][0][..., -1]}
    conditions = {"modes": bandits.intervals(bandits.METRIC, greedy)}
    return bandits.regret_findings(trained, online, conditions, {}, np.asarray(tasks.means), "bayes", name)


EXPERIMENT = Experiment(
    name="rl2_bandit",
    presets=PRESETS,
    env=lambda config: EnvSpec("bernoulli_bandit", None, {"num_arms": 2}),
    method=lambda config: MethodSpec("icrl_jax.methods.ppo:ppo", config.ppo),
    metric=bandits.METRIC,
    score=bandits.score,
    findings=findings,
    notes=_ppo.notes,
)

if __name__ == "__main__":
    main(EXPERIMENT, __doc__ or "")

"""Classical agents: the references that trained ones are compared with, and the sources they learn from."""

from icrl_jax.agents.bayes import LONGEST_PLAN, bayes, bayes_value
from icrl_jax.agents.between_episodes import between_episodes
from icrl_jax.agents.dueling import double_thompson, rucb, winner_stays
from icrl_jax.agents.index import empirical_mean, lcb, ucb, ucb1
from icrl_jax.agents.learner import learner
from icrl_jax.agents.linear import linucb, thompson_linear
from icrl_jax.agents.noise_curriculum import noise_curriculum
from icrl_jax.agents.oracle import oracle
from icrl_jax.agents.planning import PlanConfig, planning
from icrl_jax.agents.posterior import posterior
from icrl_jax.agents.prompted import prompted, trained
from icrl_jax.agents.proposing import proposing
from icrl_jax.agents.psrl import psrl
from icrl_jax.agents.q_learning import q_learning
from icrl_jax.agents.rereading import rereading
from icrl_jax.agents.sources import as_learner
from icrl_jax.agents.thompson import thompson_beta, thompson_gaussian
from icrl_jax.agents.ucbvi import ucbvi
from icrl_jax.agents.uniform import uniform

__all__ = [
    "LONGEST_PLAN",
    "PlanConfig",
    "as_learner",
    "bayes",
    "bayes_value",
    "between_episodes",
    "double_thompson",
    "empirical_mean",
    "lcb",
    "learner",
    "linucb",
    "noise_curriculum",
    "oracle",
    "planning",
    "posterior",
    "prompted",
    "proposing",
    "psrl",
    "q_learning",
    "rereading",
    "rucb",
    "thompson_beta",
    "thompson_gaussian",
    "thompson_linear",
    "trained",
    "ucb",
    "ucb1",
    "ucbvi",
    "uniform",
    "winner_stays",
]

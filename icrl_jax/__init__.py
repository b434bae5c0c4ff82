"""In-context reinforcement learning in one compiled JAX program.

import icrl_envs, icrl_jax
agent, env = icrl_jax.load("runs/dpt_bandit/latest")[:2]
"""

from icrl_jax.core import Agent, Learner, Method, TimeStep, TrainState, Transition
from icrl_jax.evaluate import Evaluation, evaluate
from icrl_jax.report import compare
from icrl_jax.rollout import Record, RolloutState, Trial, replay, rollout, start
from icrl_jax.run import load
from icrl_jax.train import Schedule, fit, train

__all__ = [
    "Agent",
    "Evaluation",
    "Learner",
    "Method",
    "Record",
    "RolloutState",
    "Schedule",
    "TimeStep",
    "TrainState",
    "Transition",
    "Trial",
    "compare",
    "evaluate",
    "fit",
    "load",
    "replay",
    "rollout",
    "start",
    "train",
]

"""The lower bound: an agent that learns nothing."""

from gymnax.environments.environment import Environment

from icrl_jax.agents.learner import Static, memoryless
from icrl_jax.core import Agent, Array, partial


def uniform(env: Environment) -> Agent:
    """Draws every action uniformly from the action space of `env`, whatever that is."""
    return memoryless(partial(_sample, Static(env)))


def _sample(env: Static, carry, key: Array, obs):
    return env.value.action_space(env.value.default_params).sample(key), {}

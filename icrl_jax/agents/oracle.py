"""The upper bound: an agent that is shown the task."""

from gymnax.environments.environment import Environment

from icrl_envs import Revealed
from icrl_envs.wrappers import Copies
from icrl_jax.agents.learner import Static, memoryless
from icrl_jax.core import Agent, Array, partial


def oracle(env: Environment) -> Agent:
    """Takes the best action, which it knows; it acts in `revealed(env)`.

    Raises:
      ValueError: the family defines no `optimal_action`, or `env` is `copies(...)`.
    """
    if getattr(env, "optimal_action", None) is None:
        raise ValueError(f"env={env.name}: must define optimal_action for an oracle to exist")
    if isinstance(env, Copies):
        raise ValueError("env=copies(...): must be one environment; vmap the oracle instead")
    return memoryless(partial(_best, Static(env)))


def _best(env: Static, carry, key: Array, obs):
    if not isinstance(obs, Revealed):
        raise TypeError("the oracle sees neither state nor task: let it act in revealed(env)")
    return env.value.optimal_action(obs.state, obs.params), {}

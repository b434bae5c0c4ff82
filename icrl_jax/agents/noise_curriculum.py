"""AD-eps: a demonstrator whose actions are noise at first and its own at last, so that it seems to learn.

Zisman et al., *Emergence of In-Context Reinforcement Learning from Noise Distillation*, ICML 2024,
https://arxiv.org/abs/2312.12275. Its histories are what AD is trained on; no learner is needed.
"""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces
from gymnax.environments.environment import Environment

from icrl_envs.task_family import is_int, is_name, require
from icrl_envs.wrappers import Copies
from icrl_jax.agents.arms import number
from icrl_jax.agents.learner import Static
from icrl_jax.core import Agent, Array, TimeStep, Tree, partial

Slope = Literal["to_last", "to_zero"]
"""How fast epsilon falls: so that it is `last` where the decay ends, or as if it were to be 0 there, so that a `last`
above 0 is met before (the paper's dark-room code)."""


class Curriculum(NamedTuple):
    """What the noisy demonstrator remembers."""

    memory: Tree  # the demonstrator's own
    progress: Array  # int32 []: steps of the schedule that are over


class Noise(NamedTuple):
    """A schedule of epsilon."""

    first: Array  # float32 []
    last: Array  # float32 []
    slope: Array  # float32 []: per step

    def at(self, progress: Array) -> Array:
        """Epsilon, float32 []."""
        return jnp.maximum(self.first - self.slope * progress.astype(jnp.float32), self.last)


def noise_curriculum(
    demonstrator: Agent,
    env: Environment,
    num_steps: int,
    last: float = 0.0,
    first: float = 1.0,
    decay: float = 0.9,
    slope: Slope = "to_last",
) -> Agent:
    """Acts as the demonstrator, but uniformly at random with probability epsilon, which falls after every step.

    Epsilon goes in a straight line from `first` to `last` over the share `decay` of the history, then stays. Every
    episode is worth as many steps of it as the time limit allows: one that ends early takes it on to its end. Where
    actions are continuous they are mixed instead, (1 - epsilon) a + epsilon u with u uniform in the box (Vintix, 2025,
    https://arxiv.org/abs/2501.19400).

    Args:
      demonstrator: any agent: `oracle(env)`, then in `revealed(env)`; a trained one.
      env: its actions are a `Discrete` or a bounded `Box`.
      num_steps: steps of a history: the number of episodes times their time limit.
      last: the epsilon of the final part: 0, or above for a demonstrator that stays poor (the paper's 0.5 in the dark
        room, 0.75 in Key-to-Door).
      first: the epsilon at the start, at least `last`.
      decay: in (0, 1].
      slope: see `Slope`.
    Raises:
      ValueError: a value outside its range, other actions, or `env` is `copies(...)`.
    """
    require(not isinstance(env, Copies), "env", env.name, "one environment, not copies(...)")
    space = env.action_space(env.default_params)
    bounded = isinstance(space, spaces.Box) and bool(np.isfinite(space.low).all() and np.isfinite(space.high).all())
    require(isinstance(space, spaces.Discrete) or bounded, "env", env.name, "one of discrete or bounded actions")
    require(is_int(num_steps, 1), "num_steps", num_steps, "an integer of at least 1")
    require(is_name(slope, get_args(Slope)), "slope", slope, " or ".join(map(repr, get_args(Slope))))
    first_eps = number("first", first, "in [0, 1]", lambda value: 0 <= value <= 1)
    last_eps = number("last", last, f"in [0, first={first}]", lambda value: 0 <= value <= first)
    share = number("decay", decay, "in (0, 1]", lambda value: 0 < value <= 1)
    fall = first_eps - (last_eps if slope == "to_last" else 0)
    noise = Noise(first_eps, last_eps, fall / (share * num_steps))
    with jax.ensure_compile_time_eval():
        limit = int(env.default_params.max_steps_in_episode)
    act = partial(_act_mixed if bounded else _act_replaced, Static((env, limit)), noise, demonstrator)
    return Agent(partial(_init, demonstrator), act)


def _init(demonstrator: Agent, key: Array) -> Curriculum:
    return Curriculum(demonstrator.init(key), jnp.zeros((), jnp.int32))


def _act_replaced(known: Static, noise: Noise, demonstrator: Agent, carry: Curriculum, key: Array, timestep: TimeStep):
    carry, epsilon, action, other, key_coin = _both(known, noise, demonstrator, carry, key, timestep)
    return carry, jnp.where(jax.random.bernoulli(key_coin, epsilon), other, action), {"epsilon": epsilon}


def _act_mixed(known: Static, noise: Noise, demonstrator: Agent, carry: Curriculum, key: Array, timestep: TimeStep):
    carry, epsilon, action, other, _ = _both(known, noise, demonstrator, carry, key, timestep)
    return carry, (1 - epsilon) * action + epsilon * other, {"epsilon": epsilon}


def _both(known: Static, noise: Noise, demonstrator: Agent, carry: Curriculum, key: Array, timestep: TimeStep) -> Any:
    """The demonstrator's action and a random one."""
    env, limit = known.value
    key_act, key_other, key_coin = jax.random.split(key, 3)
    memory, action, _ = demonstrator.act(carry.memory, key_act, timestep)
    over = carry.progress + 1
    ended = timestep.prev.terminated | timestep.prev.truncated
    over = jnp.where(ended, over + -over % limit, over)  # the whole episode, wherever it ended
    progress = jnp.where(timestep.reset, 0, over)
    other = env.action_space(env.default_params).sample(key_other)
    return Curriculum(memory, progress), noise.at(progress), action.astype(other.dtype), other, key_coin

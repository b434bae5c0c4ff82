"""What the memory families share: what a task is, and how observations are written.

**Task.** Every episode hides something new (a deck, a board, payout probabilities) and nothing persists over episodes.
So the tasks of a family differ in nothing but the stream of chance that their episodes are drawn from: `params.stream`
is folded into every key, by `stream_key`. Training tasks have even streams and test tasks odd ones, so no key gives a
training task and a test task the same draws.

**Observations** are float32 vectors, as networks take them: categories are one-hot, parts are concatenated in the order
of the original's tuple. The originals give integers and leave the encoding to wrappers, which encode them in this way.
The previous action and the first-step flag that published agents also see are no part of the observation: agents get
the previous transition from the rollout.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments.environment import EnvParams

from icrl_envs.task_family import NEVER, Split, TaskFamily, split_key


@struct.dataclass
class MemoryParams(EnvParams):
    """One task: the stream that its episodes are drawn from."""

    stream: jax.Array = struct.field(default_factory=lambda: jnp.zeros((), jnp.uint32))  # uint32 []
    max_steps_in_episode: int = NEVER


def stream_key(key: jax.Array, params: MemoryParams) -> jax.Array:
    """The key that all chance in a reset or step comes from; tasks of different streams never share one."""
    return jax.random.fold_in(key, params.stream)


def share(made: Any, of: int) -> jax.Array:
    """The share of `of` payments when `made` were made: none below 0, all from `of` on, float32 []."""
    return jnp.clip(made, 0, of).astype(jnp.float32) / of


class MemoryTask(TaskFamily):
    """What all memory families share; their `reset_env` and `step_env` draw with `stream_key(key, params)` only.

    Args:
      num_steps: the time limit, or the length of episodes that all have the same.
    """

    def __init__(self, num_steps: int):
        self.num_steps = num_steps

    @property
    def default_params(self) -> Any:
        """The stream 0, one of the training tasks."""
        return self._params(jnp.zeros((), jnp.uint32))

    def sample_task(self, key: jax.Array, split: Split = "train") -> Any:
        """Draws a stream: even for "train", odd for "test", any for "all"."""
        stream = jax.random.bits(split_key(key, split), (), jnp.uint32)
        if split == "train":
            stream &= jnp.uint32(0xFFFFFFFE)
        elif split == "test":
            stream |= jnp.uint32(1)
        return self._params(stream)

    def _params(self, stream):
        return MemoryParams(stream=stream, max_steps_in_episode=self.num_steps)

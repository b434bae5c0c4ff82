"""The memory chain of bsuite (Osband et al. 2020): one cue, a long wait, one question."""

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import EnvState

from icrl_envs.drawing import BLUE, GREY, ORANGE, RED, WHITE, cells
from icrl_envs.memory.recall import Recall
from icrl_envs.task_family import NEVER, is_int, require


@struct.dataclass
class MemoryChainState(EnvState):
    context: jax.Array  # int32 [bits]: the cue, 0 or 1 each
    query: jax.Array  # int32 []: the bit that is asked for


class MemoryChain(Recall):
    """Remember bits shown at the start until one of them is asked for (bsuite; S5 plots lengths 4, 8, ..., 2048).

    Observation: share of the wait that remains, index of the bit asked for (just before the end, else 0), the bits as
    -1 and 1 (at the start, else 0). Actions: the bit's value, 0 or 1; only the last counts. Reward: 1 right, -1 wrong.
    The episode terminates after memory_length + 1 steps: as in bsuite, the first observation is shown twice.

    Args:
      memory_length: at least 1.
      num_bits: at least 1.
    """

    def __init__(self, memory_length: int = 5, num_bits: int = 1):
        require(is_int(memory_length, 1, NEVER - 1), "memory_length", memory_length, f"an integer in 1 ..= {NEVER - 1}")
        require(is_int(num_bits, 1), "num_bits", num_bits, "an integer of at least 1")
        super().__init__(memory_length + 1, 1, 2)
        self.memory_length = memory_length
        self.num_bits = num_bits

    def first_state(self, key):
        """Draws the bits, and which one will be asked for."""
        key_context, key_query = jax.random.split(key)
        context = jax.random.bernoulli(key_context, 0.5, (self.num_bits,)).astype(jnp.int32)
        query = jax.random.randint(key_query, (), 0, self.num_bits)
        return MemoryChainState(time=jnp.int32(0), context=context, query=query)

    def next_state(self, key, state):
        """Nothing changes but the time."""
        return state

    def show(self, state):
        """The wait that remains, the question and the cue."""
        time = self._time_shown(state)
        wait = (self.memory_length - time).astype(jnp.float32) / self.memory_length
        question = jnp.where(time == self.memory_length - 1, state.query, 0).astype(jnp.float32)
        cue = jnp.where(time == 0, 2 * state.context - 1, 0).astype(jnp.float32)
        return jnp.concatenate([jnp.stack([wait, question]), cue])

    def _time_shown(self, state):
        return jnp.maximum(state.time - 1, 0)

    def answer(self, state):
        """The bit asked for."""
        return state.context[state.query]

    def observation_space(self, params=None) -> spaces.Box:
        """See the class."""
        return spaces.Box(-1.0, float(max(1, self.num_bits - 1)), (2 + self.num_bits,))

    def render(self, state, params):
        """The bits, a mark below the one that will be asked for, and what is on show."""
        bits = jnp.asarray([ORANGE, BLUE], jnp.uint8)[state.context]
        asked = jnp.arange(self.num_bits) == state.query
        mark = jnp.where(asked[:, None], jnp.asarray(RED, jnp.uint8)[None], jnp.asarray(WHITE, jnp.uint8)[None])
        shown = jnp.where(self._time_shown(state) == 0, bits, jnp.asarray(GREY, jnp.uint8)[None])
        return cells(jnp.stack([bits, mark, shown]))

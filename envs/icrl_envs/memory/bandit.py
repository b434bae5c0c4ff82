"""A bandit whose arms are drawn anew at every episode."""

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import EnvState

from icrl_envs import drawing
from icrl_envs.memory.episodes import MemoryTask, stream_key
from icrl_envs.task_family import is_int, require


@struct.dataclass
class MemoryBanditState(EnvState):
    """The hidden arms."""

    means: jax.Array  # float32 [A], in [0, 1)


class MemoryBandit(MemoryTask):
    """Find and pull the arm that pays most often (Morad et al. 2023, POPGym's MultiarmedBandit).

    Unlike in `BernoulliBandit`, the means, iid U[0, 1], belong to the episode and not to the task. Observation: whether
    the last pull paid, float32 [1]; 0 at the start. Actions: the arms. A pull that pays gives 1 / num_steps, any other
    -1 / num_steps. Never terminates; truncated after `num_steps`.

    Args:
      num_arms: A, at least 2.
      num_steps: length of an episode, at least 1.
    """

    presets = {
        "easy": {"num_arms": 10, "num_steps": 200},
        "medium": {"num_arms": 20, "num_steps": 400},
        "hard": {"num_arms": 30, "num_steps": 600},
    }
    rare_reset = True

    def __init__(self, num_arms: int = 10, num_steps: int = 200):
        require(is_int(num_arms, 2), "num_arms", num_arms, "an integer of at least 2")
        require(is_int(num_steps, 1), "num_steps", num_steps, "an integer of at least 1")
        super().__init__(num_steps)
        self.num_arms = num_arms

    def reset_env(self, key, params):
        """Draws the means."""
        means = jax.random.uniform(stream_key(key, params), (self.num_arms,))
        return jnp.zeros(1), MemoryBanditState(time=jnp.int32(0), means=means)

    def step_env(self, key, state, action, params):
        """Pulls one arm."""
        pays = jax.random.uniform(stream_key(key, params)) < self._mean(state, action)
        reward = jnp.where(pays, jnp.float32(1 / self.num_steps), jnp.float32(-1 / self.num_steps))
        return pays.astype(jnp.float32)[None], state.replace(time=state.time + 1), reward, jnp.zeros((), bool), {}

    def expected_reward(self, state, action, params):
        """Mean reward of one arm, float32 []."""
        return (2 * self._mean(state, action) - 1) / self.num_steps

    def optimal_advantage(self, state, action, params):
        """What an arm pays less than the best one, float32 []: no pull changes the later ones."""
        return 2 * (self._mean(state, action) - jnp.max(state.means)) / self.num_steps

    def optimal_action(self, state, params):
        """The arm that pays most often, int32 []."""
        return jnp.argmax(state.means).astype(jnp.int32)

    def optimal_return(self, params):
        """Of always pulling the best arm: the best of A uniform means is A / (A + 1) on average."""
        share = jnp.asarray(params.max_steps_in_episode, jnp.float32) / self.num_steps
        return share * jnp.float32((self.num_arms - 1) / (self.num_arms + 1))

    def _mean(self, state, action):
        return state.means[jnp.clip(action, 0, self.num_arms - 1)]

    @property
    def num_actions(self) -> int:
        """Number of arms."""
        return self.num_arms

    def action_space(self, params=None) -> spaces.Discrete:
        """The arms; actions outside are clipped."""
        return spaces.Discrete(self.num_arms)

    def observation_space(self, params=None) -> spaces.Box:
        """Whether the last pull paid."""
        return spaces.Box(0.0, 1.0, (1,))

    def render(self, state, params):
        """The means as bars."""
        return drawing.bars(state.means)

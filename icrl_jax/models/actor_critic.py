"""A policy that also says what it expects to earn: two heads on one sequence model."""

import jax
from flax import nnx
from gymnax.environments import spaces

from icrl_jax.core import Array, TimeStep, Tree
from icrl_jax.models.embeddings import EmbeddingConfig
from icrl_jax.models.heads import ActionHeadConfig, Prediction, Scalar, TwoHot, ValueHeadConfig, make_value_head
from icrl_jax.models.kinds import ModelConfig
from icrl_jax.models.layers import Aux
from icrl_jax.models.policy import Policy

Opinion = tuple[Prediction, Scalar | TwoHot]
"""What to do, and the return from here on."""


class ActorCritic(nnx.Module):
    """`policy`, which acts by itself once it is trained, and `critic`, a value read off the same features.

    Args:
        config, obs_space, action_space, key, embedding, head: as of `Policy`.
        value: how values are predicted.
    """

    def __init__(
        self,
        config: ModelConfig,
        obs_space: spaces.Space,
        action_space: spaces.Space,
        key: Array,
        embedding: EmbeddingConfig,
        head: ActionHeadConfig,
        value: ValueHeadConfig,
    ):
        key_policy, key_critic = jax.random.split(key)
        self.policy = Policy(config, obs_space, action_space, key_policy, embedding, head)
        self.critic = make_value_head(config.width, value, key_critic)

    @property
    def body(self) -> nnx.Module:
        """The sequence model."""
        return self.policy.body

    def __call__(self, carry: Tree, timesteps: TimeStep) -> tuple[Tree, Opinion, Aux]:
        """Reads whole histories [B, T, ...], and says the same as `step`: nothing is drawn."""
        carry, y_BTD, aux = self.policy.read(carry, timesteps)
        return carry, (self.policy.head(y_BTD), self.critic(y_BTD)), aux

    def step(self, carry: Tree, timestep: TimeStep) -> tuple[Tree, Opinion]:
        """Reads one input [B, ...]."""
        carry, y_BD = self.policy.read_step(carry, timestep)
        return carry, (self.policy.head(y_BD), self.critic(y_BD))

"""A sequence model with eyes and a mouth: transitions in, action logits out, one token per transition."""

import jax
import jax.numpy as jnp
from flax import nnx

from icrl_jax.core import Array, TimeStep, Tree
from icrl_jax.models.kinds import ModelConfig, make_model


class Policy(nnx.Module):
    """Logits over A actions after every input of a history (Lee et al. 2023, DPT, section 4).

    A token is a linear map of the last transition, concat(obs, one-hot action, next_obs, feedback); where a sequence
    starts it is the query instead, concat(obs, zeros).
    """

    def __init__(self, config: ModelConfig, obs_dim: int, num_actions: int, key: Array):
        key_embed, key_body, key_head = jax.random.split(key, 3)
        self.num_actions = num_actions
        self.embed = _linear(key_embed, 2 * obs_dim + num_actions + 1, config.width)
        self.body = make_model(config, key_body)
        self.head = _linear(key_head, config.width, num_actions)

    def __call__(self, carry: Tree, timesteps: TimeStep) -> tuple[Tree, Array, dict]:
        """Reads whole histories [B, T, ...], from an empty memory if `carry` is None; logits are float32 [B, T, A]."""
        carry, y_BTD, aux = self.body(carry, self._tokens(timesteps), timesteps.reset)
        return carry, self._logits(y_BTD), aux

    def step(self, carry: Tree, timestep: TimeStep) -> tuple[Tree, Array]:
        """Reads one input [B, ...]; logits are float32 [B, A]."""
        carry, y_BD = self.body.step(carry, self._tokens(timestep), timestep.reset)
        return carry, self._logits(y_BD)

    def _tokens(self, timestep: TimeStep) -> Array:
        prev, reset = timestep.prev, timestep.reset[..., None]
        after = [jax.nn.one_hot(prev.action, self.num_actions), prev.next_obs, prev.feedback[..., None]]
        seen = jnp.concatenate(
            [jnp.where(reset, timestep.obs, prev.obs), *(jnp.where(reset, 0.0, x) for x in after)], -1
        )
        return seen @ self.embed[...]

    def _logits(self, y: Array) -> Array:
        return y.astype(jnp.float32) @ self.head[...]


def _linear(key: Array, inputs: int, outputs: int) -> nnx.Param:
    return nnx.Param(jax.random.normal(key, (inputs, outputs)) * inputs**-0.5)

"""A sequence model with eyes and a mouth: time steps in, a prediction of the action out."""

import jax
import jax.numpy as jnp
from flax import nnx
from gymnax.environments import spaces

from icrl_jax.core import Array, TimeStep, Tree
from icrl_jax.models.embeddings import EmbeddingConfig, by_step, interleave, make_embedding
from icrl_jax.models.heads import ActionHeadConfig, Prediction, make_action_head
from icrl_jax.models.kinds import ModelConfig, make_model
from icrl_jax.models.layers import Aux
from icrl_jax.models.queries import answer_all, answer_beside, answer_step, read_step
from icrl_jax.models.transformer import TransformerConfig

TRANSITION, LINEAR = EmbeddingConfig(), ActionHeadConfig()


class Policy(nnx.Module):
    """What to do after every input of a history: a prediction, which one can sample from.

    Args:
        config: of the sequence model.
        obs_space, action_space: gymnax's, of the environment.
        key: for the initial weights.
        embedding: what a token is made of; where a time step takes several tokens, the last one answers; a query is
            not remembered (`queries.py`).
        head: how actions are predicted.
        decision_space: of what is predicted, where the actions of the history are others: of pairs, one of the two.
    """

    def __init__(
        self,
        config: ModelConfig,
        obs_space: spaces.Space,
        action_space: spaces.Space,
        key: Array,
        embedding: EmbeddingConfig = TRANSITION,
        head: ActionHeadConfig = LINEAR,
        decision_space: spaces.Space | None = None,
    ):
        key_embed, key_body, key_head = jax.random.split(key, 3)
        self.asks = embedding.tokens == "query"
        self.embed = make_embedding(obs_space, action_space, config.width, embedding, key_embed)
        self.body = make_model(config, key_body)
        self.head = make_action_head(decision_space or action_space, config.width, head, key_head)

    def check_horizon(self, num_steps: int, episode_steps: int, option: str = "num_steps") -> None:
        """Refuses more steps than its learned positions can number or, where they are counted by episode, more in one.

        Args:
            option: what the error calls `num_steps`.
        """
        config = self.body.config
        if isinstance(config, TransformerConfig):
            steps, what = (episode_steps, "episode_steps") if config.counts_episodes else (num_steps, option)
            config.check_horizon(steps * self.embed.num_tokens, what)

    def __call__(
        self, carry: Tree, timesteps: TimeStep, key: Array | None = None, mask: float = 0.0
    ) -> tuple[Tree, Prediction, Aux]:
        """Reads whole histories [B, T, ...], from an empty memory if `carry` is None; the prediction is [B, T, ...].

        `key` is for what is drawn in training only. `mask` is the probability with which a token is hidden, that is
        zero; it needs a key. No query is hidden. `Aux.losses` are for a method to add to its own.
        """
        carry, y_BTD, aux = self.read(carry, timesteps, key, mask)
        return carry, self.head(y_BTD), aux

    def step(self, carry: Tree, timestep: TimeStep) -> tuple[Tree, Prediction]:
        """Reads one input [B, ...]; the prediction is [B, ...]."""
        carry, y_BD = self.read_step(carry, timestep)
        return carry, self.head(y_BD)

    def read(
        self, carry: Tree, timesteps: TimeStep, key: Array | None = None, mask: float = 0.0
    ) -> tuple[Tree, Array, Aux]:
        """`__call__` up to the head: what the model says after each input [B, T, D], for other heads to read."""
        x, query_BTD, marks, key = self.tokens(timesteps, key, mask)
        if query_BTD is not None:
            return answer_all(self.body, carry, x, query_BTD, *marks, key)
        carry, y, aux = self.body(carry, x, *marks, key)
        return carry, by_step(y, self.embed.num_tokens)[:, :, -1], aux

    def read_beside(
        self, timesteps: TimeStep, query_BQD: Array, at_Q: Array, key: Array | None = None, mask: float = 0.0
    ) -> tuple[Array, Array, Aux]:
        """`read` from an empty memory [B, T, D], and what the model would answer Q queries, each after the step at[q]
        and forgotten again, [B, Q, D]."""
        x, asked_BTD, marks, key = self.tokens(timesteps, key, mask)
        return answer_beside(self.body, x, query_BQD, at_Q, *marks, self.embed.num_tokens, asked_BTD, key)

    def tokens(
        self, timesteps: TimeStep, key: Array | None = None, mask: float = 0.0
    ) -> tuple[Array, Array | None, tuple[Array, Array], Array | None]:
        """What the model is given: tokens in one sequence [B, T * N, D], the query of each step [B, T, D] where it is
        asked, which tokens begin a sequence and which an episode, and a key for what it draws."""
        x_BTND = self.embed(timesteps)
        x, query_BTD, reset, episode = x_BTND[:, :, 0], None, timesteps.reset, timesteps.begins_episode
        if self.asks:
            query_BTD = x_BTND[:, :, 1]
        else:
            x, reset, episode = interleave(x_BTND, reset, episode)
        if mask:
            key_mask, key = jax.random.split(key)  # type: ignore[arg-type]
            x = hidden(x, key_mask, mask)
        return x, query_BTD, (reset, episode), key

    def read_step(self, carry: Tree, timestep: TimeStep) -> tuple[Tree, Array]:
        """`step` up to the head, [B, D]."""
        x_BND, reset, episode = self.embed(timestep), timestep.reset, timestep.begins_episode
        if self.asks:
            return answer_step(self.body, carry, x_BND[:, 0], x_BND[:, 1], reset, episode)
        return read_step(self.body, carry, x_BND, reset, episode)


def hidden(x_BTD: Array, key: Array | None, mask: float) -> Array:
    """Tokens of which each is hidden, that is zero, with this probability; where that is 0 no key is needed."""
    if not mask:
        return x_BTD
    return jnp.where(jax.random.bernoulli(key, mask, x_BTD.shape[:2])[..., None], 0, x_BTD)  # type: ignore[arg-type]

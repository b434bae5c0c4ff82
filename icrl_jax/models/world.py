# ruff: noqa: N806
"""A policy that also knows what an action will bring: one model, asked about actions that nobody has taken yet.

Axes: B rows, T time, Q queries, N candidates.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from gymnax.environments import spaces

from icrl_jax.core import Array, TimeStep, Transition, Tree
from icrl_jax.models.decider import Decider
from icrl_jax.models.embeddings import EmbeddingConfig, make_embedding
from icrl_jax.models.heads import Dynamics, DynamicsHeadConfig, Prediction, make_dynamics_head
from icrl_jax.models.layers import Aux
from icrl_jax.models.policy import Policy


class World(nnx.Module):
    """A policy, and the reward and observation that would follow an action (Son et al. 2025, DICP).

    An observation and an action make a query, after all that the policy has read, which leaves no trace: so a planner
    asks about many actions at once, and what it imagines is read as if it had happened. The policy may be asked itself.

    Args:
        policy: whose sequence model is asked.
        obs_space, action_space: gymnax's, of the environment.
        embedding: how the policy reads; queries are made as its tokens are.
        head: how rewards and observations are predicted.
        key: for the initial weights.
    Raises:
        ValueError: observations that cannot be predicted.
    """

    def __init__(
        self,
        policy: Policy | Decider,
        obs_space: spaces.Space,
        action_space: spaces.Space,
        embedding: EmbeddingConfig,
        head: DynamicsHeadConfig,
        key: Array,
    ):
        key_ask, key_head = jax.random.split(key)
        width = policy.body.config.width
        asked = EmbeddingConfig("transition", ("obs", "action"), embedding.integers, embedding.hidden)
        self.policy = policy
        self.ask = make_embedding(obs_space, action_space, width, asked, key_ask)
        self.dynamics = make_dynamics_head(obs_space, width, head, key_head)

    @property
    def body(self) -> Tree:
        """The sequence model."""
        return self.policy.body

    def __call__(
        self,
        timesteps: Tree,
        obs: Tree,
        actions: Tree,
        at: Array,
        key: Array | None = None,
        mask: float = 0.0,
    ) -> tuple[Prediction, Dynamics, Aux]:
        """Reads whole histories [B, T, ...] from an empty memory: the prediction of the action at each step, [B, T],
        and of what an action brings after some of them, [B, Q].

        Args:
            timesteps: as the policy reads them: `TimeStep`, or, if it makes decisions, `Aimed`.
            obs, actions: what the queries are about, [B, T', ...], T' <= T.
            at: int32 [Q], in [0, T'): the steps after which they are answered.
            key, mask: as those of `Policy`; no query is hidden.
        """
        obs, action = jax.tree.map(lambda x: x[:, at], (obs, actions))
        query_BQD = self.ask.token(obs=obs, action=action)
        y_BTD, answer_BQD, aux = self.policy.read_beside(timesteps, query_BQD, at, key, mask)
        return self.policy.head(y_BTD), self.dynamics(answer_BQD), aux

    def step(self, carry: Tree, timestep: TimeStep) -> tuple[Tree, Prediction]:
        """Reads one input [B, ...]; the prediction of the action is [B, ...]."""
        return self.policy.step(carry, timestep)

    def foresee(self, carry: Tree, obs: Tree, actions: Tree) -> Dynamics:
        """What each of N actions [B, N, ...] would bring where `obs` [B, ...] is seen, [B, N]."""
        N = jax.tree.leaves(actions)[0].shape[1]
        obs = jax.tree.map(lambda x: jnp.repeat(x[:, None], N, axis=1), obs)
        return self.dynamics(self.body.peek(carry, self.ask.token(obs=obs, action=actions)))

    def branch(self, carry: Tree, n: int, depth: int) -> Tree:
        """n futures of each row, [B * n], with room for so many imagined transitions."""
        return self.body.branch(carry, n, depth * self.policy.embed.num_tokens)

    def imagine(self, carry: Tree, transition: Transition) -> tuple[Tree, Prediction]:
        """Reads a transition [B, ...] as if it had happened; the prediction of the action after it."""
        return self.step(carry, TimeStep(transition.next_obs, transition, jnp.zeros_like(transition.terminated)))

    def prune(self, carry: Tree, parent: Array) -> Tree:
        """Futures of which the i-th of row b goes on from what was its future parent[b, i], int32 [B, n]."""
        return self.body.prune(carry, parent)

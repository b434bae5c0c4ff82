# ruff: noqa: N803, N806
"""A policy in two levels: every few steps it makes a decision, and each action follows from the decision it is under.

Axes: B rows, T time, K decisions, c steps of each (C in names), S = B K, Z numbers of a decision, Q queries, N
candidates, D width.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from gymnax.environments import spaces

from icrl_envs.task_family import any_of_batch, require
from icrl_jax.core import Array, TimeStep, Transition, Tree
from icrl_jax.models.embeddings import EmbeddingConfig, make_embedding
from icrl_jax.models.heads import ActionHeadConfig, Prediction, make_action_head
from icrl_jax.models.heads.readout import Readout
from icrl_jax.models.kinds import ModelConfig, make_model
from icrl_jax.models.layers import Aux, fan_in, gather, linear
from icrl_jax.models.policy import LINEAR, TRANSITION, hidden
from icrl_jax.models.queries import answer_beside
from icrl_jax.models.transformer import TransformerConfig


@dataclass(frozen=True)
class DecisionConfig:
    """What decisions are."""

    decision_steps: int = 5
    """c: steps that are taken under one decision; a divisor of those of an episode."""
    decision_width: int = 8
    """Z: numbers that a decision consists of."""
    target_return: float = 1.0
    """What it asks each episode for when it acts, about the best that there is; returns-to-go are in units of it."""

    def __post_init__(self):
        for name, low in (("decision_steps", 2), ("decision_width", 1)):
            require(getattr(self, name) >= low, name, getattr(self, name), f"at least {low}")
        target = self.target_return
        require(0 < abs(target) < float("inf"), "target_return", target, "a finite number other than 0")


class Aimed(NamedTuple):
    """Histories, and the return that each of their episodes is to have."""

    timesteps: TimeStep  # [B, T, ...]
    target: Array  # float32 [B]


class Deciding(NamedTuple):
    """What a `Decider` remembers of one task, in n = 1 row or on n branches."""

    clock: Array  # int32 []: steps taken under the decision; c at first, when there is none
    to_go: Array  # float32 [n, 1]: what is left of the return that is asked for
    decision: Array  # float32 [n, Z]
    high: Tree  # of the model that makes decisions
    review: Tree  # of the one that reviews what was done under them
    low: Tree  # of the one that acts on them


class Decider(nnx.Module):
    """What to do after every input of a history, by decisions z that each stand for c steps (Huang et al. 2024, IDT).

    Three models of one config: "high" reads a token for each decision, of what is left of the return, the observation
    and the review of the decision before, and gives a Gaussian for z; "low" reads a token for each step, from the
    decision on, with z added to it, and gives the action; "review" reads the c transitions, and what it says after the
    last one, 2 Z numbers, is the review. So a context is c times as short, and all that low knows of it is in z.

    In training z is drawn, where there is a key for it; elsewhere it is the mean. A new episode begins with a decision.

    Args:
        config: of the three models; `context_len` counts steps, and "high" has one for as many decisions.
        obs_space, action_space: gymnax's, of the environment.
        key: for the initial weights.
        embedding: what a token of "low" is made of, one a step.
        decisions: what they are.
        head: how actions are predicted.
    """

    def __init__(
        self,
        config: ModelConfig,
        obs_space: spaces.Space,
        action_space: spaces.Space,
        key: Array,
        embedding: EmbeddingConfig = TRANSITION,
        decisions: DecisionConfig = DecisionConfig(),
        head: ActionHeadConfig = LINEAR,
    ):
        require(embedding.tokens == "transition", "tokens", embedding.tokens, "'transition', one for each step")
        keys = jax.random.split(key, 11)
        c, Z, D = decisions.decision_steps, decisions.decision_width, config.width
        token = lambda inputs, key: make_embedding(obs_space, action_space, D, replace(embedding, inputs=inputs), key)
        self.config, self.decisions = config, decisions
        self.embed = token(embedding.inputs, keys[0])
        self.embed_review = token(("obs", "action", "feedback", "next_obs"), keys[1])
        self.embed_high = token(("obs",), keys[2])
        self.told = fan_in(keys[3], (2 * Z + 1, D), 2 * Z + 1)
        self.under = fan_in(keys[4], (Z, D), Z)
        sees = -(-config.context_len // c) if isinstance(config, TransformerConfig) else 0
        self.high = make_model(seeing(config, sees), keys[5])
        self.review = make_model(seeing(config, c), keys[6])
        self.low = make_model(seeing(config, c + 1), keys[7])  # all steps of the decision, and a question
        self.summary = Readout(D, (2 * Z,), (), 1.0, keys[8])
        self.gaussian = Readout(D, (2, Z), (), 1.0, keys[9])
        self.head = make_action_head(action_space, D, head, keys[10])

    @property
    def body(self) -> "Decider":
        """The sequence model, for those who carry, peek, branch and prune its memory."""
        return self

    def check_horizon(self, num_steps: int, episode_steps: int, option: str = "num_steps") -> None:
        """As that of `Policy`."""
        if isinstance(self.config, TransformerConfig):
            counted = (episode_steps, "episode_steps") if self.config.counts_episodes else (num_steps, option)
            self.config.check_horizon(*counted)

    def __call__(
        self, carry: None, aimed: Aimed, key: Array | None = None, mask: float = 0.0
    ) -> tuple[None, Prediction, Aux]:
        """Reads whole histories [B, T, ...], from an empty memory; the prediction is [B, T, ...].

        Their episodes begin at multiples of c. `key` is for what is drawn in training only. `mask` is the probability
        with which a token of a step is hidden; it needs a key. What it remembers is not given back.
        """
        x_SCD, first_SC, key, aux = self._under_decisions(aimed, key, mask)
        _, y_SCD, aux_low = self.low(None, x_SCD, first_SC, None, key)
        y_BTD = y_SCD.reshape(*aimed.timesteps.reset.shape, -1)
        return None, self.head(y_BTD), gather([*aux, aux_low])

    def read_beside(
        self, aimed: Aimed, query_BQD: Array, at_Q: Array, key: Array | None = None, mask: float = 0.0
    ) -> tuple[Array, Array, Aux]:
        """As that of `Policy`; a query looks back at the steps that were taken under the same decision."""
        x_SCD, first_SC, key, aux = self._under_decisions(aimed, key, mask)
        B, T = aimed.timesteps.reset.shape
        S, c, D = x_SCD.shape
        query_SCD = jnp.zeros((B, T, D), query_BQD.dtype).at[:, at_Q].set(query_BQD).reshape(S, c, D)
        steps, never = jnp.arange(c, dtype=jnp.int32), jnp.zeros_like(first_SC)
        y_SCD, answer_SCD, aux_low = answer_beside(self.low, x_SCD, query_SCD, steps, first_SC, never, key=key)
        return y_SCD.reshape(B, T, D), answer_SCD.reshape(B, T, D)[:, at_Q], gather([*aux, aux_low])

    def _under_decisions(
        self, aimed: Aimed, key: Array | None, mask: float
    ) -> tuple[Array, Array, Array | None, list[Aux]]:
        """What "low" is to read: the steps of S = B K decisions, each a sequence [S, c, D], and which inputs begin one;
        a key for what it draws, and what "review" and "high" report."""
        (timesteps, target_B), c = aimed, self.decisions.decision_steps
        B, T = timesteps.reset.shape
        require(T % c == 0, "T", T, f"a multiple of decision_steps={c}")
        apart = lambda x: x.reshape(-1, c, *x.shape[2:])  # [B, T, ...] to [S, c, ...]
        firsts = lambda tree: jax.tree.map(lambda x: x[:, ::c], tree)  # [B, T, ...] to [B, K, ...]
        key_z, key_done, key_step, *keys = (None,) * 6 if key is None else jax.random.split(key, 6)
        first_BT = jnp.broadcast_to((jnp.arange(T) % c == 0)[None], (B, T))

        # The transition that followed input t is told by input t + 1; none has followed the last one.
        done_BTD = hidden(jnp.roll(self._done(timesteps.prev), -1, axis=1), key_done, mask)
        _, y_SCD, aux_review = self.review(None, apart(done_BTD), apart(first_BT), None, keys[0])
        review_BKZ = self.summary(y_SCD[:, -1]).reshape(B, T // c, -1)
        before_BKZ = jnp.pad(review_BKZ[:, :-1], ((0, 0), (1, 0), (0, 0)))

        now = firsts(timesteps)
        x_BKD = self._situation(before_BKZ, firsts(all_to_go(timesteps, target_B)), now)
        _, y_BKD, aux_high = self.high(None, x_BKD, now.reset, now.begins_episode, keys[1])
        z_SZ = self._decision(y_BKD, key_z).reshape(B * T // c, -1)

        step_BTD = hidden(self.embed(timesteps._replace(reset=first_BT))[:, :, 0], key_step, mask)
        x_SCD = apart(step_BTD) + linear(z_SZ, self.under[...])[:, None]
        return x_SCD, apart(first_BT), keys[2], [aux_review, aux_high]

    def init_carry(self, batch: int) -> Deciding:
        """An empty memory.

        Raises:
          ValueError: more than one row: each makes its decisions at times of its own, so tasks are to be vmapped.
        """
        require(batch == 1, "batch", batch, "1 for a model that makes decisions; vmap it over tasks")
        c, Z = self.decisions.decision_steps, self.decisions.decision_width
        memories = (model.init_carry(1) for model in (self.high, self.review, self.low))
        return Deciding(jnp.int32(c), jnp.zeros((1, 1)), jnp.zeros((1, Z)), *memories)

    def step(self, carry: Deciding, timestep: TimeStep) -> tuple[Deciding, Prediction]:
        """Reads one input of a task [1, ...], or of its branches [n, ...]; the prediction is [n, ...].

        That is a step of "review", one of "low" and, where a decision is due, one of "high".
        """
        starts, reset = timestep.begins_episode, timestep.reset
        everywhere = lambda flag: jnp.broadcast_to(flag, reset.shape)
        x = self._done(timestep.prev)
        review, y = self.review.step(carry.review, x, everywhere(carry.clock == 1))
        to_go = _to_go(carry.to_go, timestep, self.decisions.target_return)
        due = starts.any() | (carry.clock == self.decisions.decision_steps)

        def decide():
            x = self._situation(self.summary(y), to_go, timestep)
            high, y_high = self.high.step(carry.high, x, reset, starts)
            made = high, self._decision(y_high, None)
            return jax.tree.map(lambda new, old: jnp.where(due, new, old), made, (carry.high, carry.decision))

        high, decision = jax.lax.cond(any_of_batch(due), decide, lambda: (carry.high, carry.decision))
        x = self.embed(timestep._replace(reset=everywhere(due)))[:, 0] + linear(decision, self.under[...])
        low, y = self.low.step(carry.low, x, everywhere(due))
        return Deciding(jnp.where(due, 0, carry.clock) + 1, to_go, decision, high, review, low), self.head(y)

    def peek(self, carry: Deciding, x_BND: Array) -> Array:
        """What "low" would say to each of N candidates, [n, N, D]; none is remembered."""
        return self.low.peek(carry.low, x_BND)

    def branch(self, carry: Deciding, n: int, depth: int) -> Deciding:
        """n futures of a task, with room for so many steps."""
        to_go, decision = (jnp.repeat(x, n, axis=0) for x in (carry.to_go, carry.decision))
        high = self.high.branch(carry.high, n, -(-depth // self.decisions.decision_steps))
        review, low = self.review.branch(carry.review, n, depth), self.low.branch(carry.low, n, depth)
        return Deciding(carry.clock, to_go, decision, high, review, low)

    def prune(self, carry: Deciding, parent: Array) -> Deciding:
        """Futures of which the i-th goes on from what was the one numbered parent[0, i], int32 [1, n]."""
        to_go, decision = carry.to_go[parent[0]], carry.decision[parent[0]]
        models = (self.high, carry.high), (self.review, carry.review), (self.low, carry.low)
        return Deciding(carry.clock, to_go, decision, *(model.prune(memory, parent) for model, memory in models))

    def _done(self, transition: Transition) -> Array:
        """The token [..., D] of a transition, to be reviewed."""
        done = transition
        return self.embed_review.token(obs=done.obs, action=done.action, feedback=done.feedback, next_obs=done.next_obs)

    def _situation(self, review: Array, to_go: Array, timestep: TimeStep) -> Array:
        """The token [..., D] of which a decision is made; before the first one nothing was reviewed."""
        review = jnp.where(timestep.reset[..., None], 0, review)
        told = jnp.concatenate([to_go / self.decisions.target_return, review], axis=-1)
        return self.embed_high.token(obs=timestep.obs) + linear(told, self.told[...])

    def _decision(self, y: Array, key: Array | None) -> Array:
        """z [..., Z], drawn if there is a key, of what "high" says [..., D]: its mean, and the log of its variance."""
        mean, log_variance = jnp.moveaxis(self.gaussian(y), -2, 0)
        return mean if key is None else mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape)


def seeing(config: ModelConfig, num_inputs: int) -> ModelConfig:
    """The same model with so long a context, if it has one."""
    return replace(config, context_len=num_inputs) if isinstance(config, TransformerConfig) else config


def _to_go(before: Array, timestep: TimeStep, target: Array | float) -> Array:
    """What is left of the return at this input, [..., 1], given what was left at the one before."""
    return jnp.where(timestep.begins_episode[..., None], target, before - timestep.prev.feedback[..., None])


def all_to_go(timesteps: TimeStep, target_B: Array) -> Array:
    """`_to_go` at every input of histories, [B, T, 1]."""

    def step(before_B1: Array, timestep: TimeStep) -> tuple[Array, Array]:
        to_go_B1 = _to_go(before_B1, timestep, target_B[:, None])
        return to_go_B1, to_go_B1

    inputs = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), timesteps)
    return jnp.swapaxes(jax.lax.scan(step, jnp.zeros_like(target_B)[:, None], inputs)[1], 0, 1)

"""DPT, the Decision-Pretrained Transformer: predict the best action after every prefix of a context.

Lee, Xie, Pacchiano, Chandak, Finn, Nachum, Brunskill, *Supervised Pretraining Can Learn In-Context Reinforcement
Learning*, NeurIPS 2023, https://arxiv.org/abs/2306.14892. The minimiser of the loss is the posterior over the best
action, so sampling from the softmax is posterior (Thompson) sampling; online agents sample, offline ones take the
argmax.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from icrl_envs import revealed
from icrl_envs.bandits import Bandit
from icrl_jax.agents import thompson_gaussian, trained
from icrl_jax.core import Agent, Array, Method, TimeStep, Transition, Tree
from icrl_jax.data.behaviours import mixture
from icrl_jax.data.contexts import as_timesteps, shuffled
from icrl_jax.methods.supervised import OptimConfig, Row, supervised
from icrl_jax.models.embeddings import EmbeddingConfig
from icrl_jax.models.kinds import ModelConfig
from icrl_jax.models.policy import Policy
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.rollout import rollout, start


@dataclass(frozen=True)
class DPTConfig:
    """What DPT learns from, and with."""

    model: ModelConfig = field(default_factory=TransformerConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    num_updates: int = 2000
    """Gradient steps."""
    batch_size: int = 64
    """Tasks per update."""
    horizon: int = 100
    """Transitions in a context, n; the model answers after 0, 1, ..., n of them."""
    behaviour: Literal["mixture", "expert_mixture", "thompson"] = "mixture"
    """Who makes the contexts: random mixtures (the paper's bandits), mixtures with the best arm (its DPT-Exp), or
    independent-arm Gaussian Thompson sampling with prior N(0, 1) (its linear bandits)."""
    num_tasks: int | None = None
    """Pretraining tasks, one context each, held on the device (the paper's 80,000); None draws fresh ones for ever."""
    shuffle: bool = False
    """Permutes each context every time it is used (the paper's bandits); never where actions adapt to the context."""
    train_empty: bool = True
    """Counts the loss before any transition was seen (the paper leaves it out), which teaches the prior."""

    def __post_init__(self):
        check_sizes(self)
        if self.behaviour not in ("mixture", "expert_mixture", "thompson"):
            raise ValueError(f"behaviour={self.behaviour!r}: must be 'mixture', 'expert_mixture' or 'thompson'")
        if self.shuffle and (self.behaviour == "thompson" or self.num_tasks is None):
            why = "whose actions adapt to the context" if self.num_tasks else "whose contexts are used only once"
            raise ValueError(f"shuffle=True: must be False with {self._source()}, {why}")

    def tokens_per_row(self, env: Bandit) -> int:
        """Inputs of the model in one row: the query and every transition."""
        return self.horizon + 1

    def env_steps(self, env: Bandit, num_seeds: int) -> int:
        """Steps that are taken to make the contexts; fixed ones are made once."""
        return (self.num_tasks or self.num_updates * self.batch_size * num_seeds) * self.horizon

    def _source(self) -> str:
        return f"behaviour={self.behaviour!r}" if self.num_tasks else "num_tasks=None"


def check_sizes(config: Any) -> None:
    """Refuses counts below 1, and contexts that the model cannot see the whole of.

    Raises:
      ValueError: one of these.
    """
    for name in ("num_updates", "batch_size", "horizon", "num_tasks"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}={value!r}: must be at least 1")
    context_len = config.model.context_len
    if context_len is not None and config.horizon >= context_len:
        raise ValueError(
            f"horizon={config.horizon}: must be below model.context_len={context_len}, "
            "so that the query and every transition stay in sight"
        )
    if isinstance(config.model, TransformerConfig):
        config.model.check_horizon(config.horizon + 1, "horizon + 1")


TOKEN = EmbeddingConfig(inputs=("origin", "action", "next_obs", "feedback"))
"""A linear map of one transition; where a sequence starts, of the query in its place (section 4)."""

DATA_SEED = 20_231
"""Seed of the fixed pretraining tasks, the same for every training seed."""


class Example(NamedTuple):
    """One pretraining sample; [B, ...] in a batch."""

    context: Transition  # [T, ...]
    query_obs: Array  # float32 [O]
    target_action: Array  # int32 []


def dpt(env: Bandit, config: DPTConfig) -> Method:
    """DPT on tasks whose observation is constant (bandits): the query comes first, and the cache stays valid.

    `dpt_mdp` is for all others.

    Raises:
      ValueError: an environment of another kind.
    """
    if not isinstance(env, Bandit):
        raise ValueError(f"env={env.name}: dpt is built for bandits, whose query observation never changes")
    behaviour = make_behaviour(env, config)

    def init_params(key: Array) -> Policy:
        return Policy(config.model, env.observation_space(), env.action_space(), key, TOKEN)

    def draw(key: Array) -> Example:
        return sample_example(env, behaviour, config.horizon, key)

    def collect(data: Tree, row: Row) -> Example:
        if config.num_tasks is None:
            return draw(row.key)
        example = jax.tree.map(lambda x: x[row.index], data)
        return example._replace(context=shuffled(example.context, row.key)) if config.shuffle else example

    return supervised(
        init_params,
        collect,
        partial(prefix_loss, train_empty=config.train_empty),
        trained,
        config.optim,
        config.num_updates,
        config.batch_size,
        tokens_per_row=config.tokens_per_row(env),
        data=partial(dataset, draw, config.num_tasks) if config.num_tasks else None,
        num_samples=config.num_tasks,
        least_rows=config.model.least_rows(config.tokens_per_row(env)),
    )


def dataset(draw: Callable[[Array], Tree], num_tasks: int) -> Tree:
    """The fixed samples, [num_tasks, ...]."""
    return jax.lax.map(draw, jax.random.split(jax.random.key(DATA_SEED), num_tasks), batch_size=1024)


def make_behaviour(env: Bandit, config: DPTConfig) -> Agent:
    """The agent that makes the contexts."""
    if config.behaviour == "thompson":
        return thompson_gaussian(env.num_actions, prior_mean=0.0, prior_var=1.0, noise_sd=0.3)
    return mixture(env, expert=config.behaviour == "expert_mixture")


def sample_example(env: Bandit, behaviour: Agent, horizon: int, key: Array) -> Example:
    """Draws a training task, a context of `horizon` steps in it, and the best action."""
    key_task, key_start, key_rollout = jax.random.split(key, 3)
    env_params = env.sample_task(key_task, "train")
    world = revealed(env)
    state = start(behaviour, world, env_params, key_start)
    _, record = rollout(behaviour, world, state, key_rollout, horizon)
    query_obs, query_state, _ = state.timestep.obs
    return Example(record.transition, query_obs, env.optimal_action(query_state, env_params))


def prefix_loss(policy: Policy, batch: Example, key: Array, train_empty: bool = True) -> tuple[Array, dict]:
    """Cross-entropy of the best action after every prefix, the mean over prefixes and rows (section 4).

    The paper sums from one transition on (j = 1 ..= n); with `train_empty` the empty prefix counts too.
    """
    inputs = jax.vmap(as_timesteps)(batch.context, batch.query_obs)
    target_BT = jnp.broadcast_to(batch.target_action[:, None], inputs.reset.shape)
    return label_loss(policy, inputs, target_BT, key, train_empty)


def label_loss(
    policy: Policy, inputs: TimeStep, target_BT: Array, key: Array, train_empty: bool = True
) -> tuple[Array, dict]:
    """Cross-entropy of one label at each of the inputs [B, T], the first of which shows no transition."""
    _, prediction, aux = policy(None, inputs, key)
    losses_BT = -prediction.log_prob(prediction.encode(target_BT))
    loss = (losses_BT if train_empty else losses_BT[:, 1:]).mean()
    return loss + sum(aux.losses.values()), {"last_loss": losses_BT[:, -1].mean(), **aux.losses}

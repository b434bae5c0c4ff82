"""DIT, the Decision Importance Transformer: imitate a poor behaviour, most where what followed was good.

Dong, Guo, Fang, Yang, Tarokh: (W) *In-Context Reinforcement Learning Without Optimal Action Labels*, ICML 2024 workshop
on in-context learning; (C) *In-Context Reinforcement Learning From Suboptimal Historical Data*, ICML 2025,
https://arxiv.org/abs/2601.20116. It is DPT without its labels: contexts are whole trajectories of a behaviour that is
often wrong, and every action in one is a label for the state it was taken in, after every prefix of that trajectory,
weighted by how good it was. (W) reads that off the returns-to-go, (C) off a critic that learns in context too; of (C)
only the abstract was at hand, so its critic, temperature and cap are ours. Acting is DPT's, and so is the model but for
the query, which stands last (`dpt_mdp`): one pass answers another query after each prefix.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from icrl_envs import TaskFamily, revealed
from icrl_envs.bandits import Bandit
from icrl_envs.task_family import is_name, is_number, require
from icrl_jax.agents import between_episodes, trained
from icrl_jax.core import Agent, Array, Method, TimeStep, Transition, Tree
from icrl_jax.data.behaviours import mixture, noisy_expert
from icrl_jax.data.contexts import asked, timesteps_of
from icrl_jax.methods.dpt import check_sizes, dataset
from icrl_jax.methods.dpt_mdp import TOKENS, Update, ask_anywhere
from icrl_jax.methods.returns import gae
from icrl_jax.methods.supervised import OptimConfig, Row, supervised
from icrl_jax.models.actor_critic import ActorCritic
from icrl_jax.models.embeddings import EmbeddingConfig, Integers
from icrl_jax.models.heads import ActionHeadConfig, ValueHeadConfig
from icrl_jax.models.kinds import ModelConfig
from icrl_jax.models.policy import Policy
from icrl_jax.models.queries import check_asked
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.rollout import no_transition, rollout, start

Behaviour = Literal["noisy_expert", "mixture"]
Labels = Literal["pairs", "next", "best_arm", "optimal"]
Weights = Literal["returns", "critic", "uniform"]


@dataclass(frozen=True)
class DITConfig:
    """What DIT learns from, and with; its controls too."""

    model: ModelConfig = field(default_factory=TransformerConfig)
    optim: OptimConfig = field(default_factory=partial(OptimConfig, clip=None))
    """Not clipped: a batch that tells little should move the weights little."""
    num_updates: int = 2000
    """Gradient steps."""
    batch_size: int = 64
    """Contexts per update."""
    horizon: int = 100
    """Steps in a context, T, in order; the model answers after 0, 1, ..., T of them."""
    behaviour: Behaviour = "noisy_expert"
    """Who makes the contexts: "noisy_expert" takes the best action with probability `expert_share`, else any; "mixture"
    draws from random mixtures, one for each context (the papers' bandits)."""
    expert_share: float = 0.2
    """p of "noisy_expert", which sets its quality (the paper's dark room: 0.2, below 30 % of the best return)."""
    labels: Labels = "pairs"
    """What is to be said after a prefix: "pairs", the action of any step of the trajectory in its state (DIT); "next",
    that of the next step (behaviour cloning, BC and WBC); "best_arm", in bandits, the arm that paid best in the whole
    context (DIT); "optimal", what is best anywhere (DPT on the same contexts, the upper reference)."""
    weights: Weights = "returns"
    """Of labels: "returns", by returns-to-go above their mean (W); "critic", by advantages (C); "uniform", none."""
    discount: float = 0.8
    """gamma of the returns-to-go, for weights alone."""
    scale: float = 500.0
    """lambda, of weights by returns."""
    temperature: float = 0.3
    """eta, of weights by a critic: the smaller, the more the good actions count."""
    max_weight: float = 20.0
    """Cap of weights by a critic."""
    integers: Integers = "numbers"
    """Observations of integers are "numbers" or "tables", one-hot."""
    update: Update = "step"
    """Online, what was seen counts from the next step on, or from the next "episode" on (the paper)."""
    num_tasks: int | None = None
    """Pretraining contexts, held on the device (the paper's 64,000); None draws fresh ones for ever."""

    def __post_init__(self):
        check_sizes(self)
        for name, kind in (("behaviour", Behaviour), ("labels", Labels), ("weights", Weights), ("update", Update)):
            value, names = getattr(self, name), get_args(kind)
            require(is_name(value, names), name, value, "one of " + ", ".join(map(repr, names)))
        for name, high in (("expert_share", 1), ("discount", 1), ("scale", math.inf)):
            value = getattr(self, name)
            allowed = "a finite number of at least 0" if high == math.inf else f"a number in 0 ..= {high}"
            require(is_number(value, 0) and value <= high, name, value, allowed)
        for name in ("temperature", "max_weight"):
            value = getattr(self, name)
            require(is_number(value, 0) and value > 0, name, value, "a finite number above 0")
        weighs = {"best_arm": ("returns", "uniform"), "optimal": ("uniform",)}.get(self.labels, get_args(Weights))
        allowed = " or ".join(map(repr, weighs)) + f" with labels={self.labels!r}"
        require(self.weights in weighs, "weights", self.weights, allowed)

    def tokens_per_row(self, env: TaskFamily) -> int:
        """Inputs of the model in one row, queries included."""
        return (self.horizon + 1) * len(tokens_of(env).groups)

    def env_steps(self, env: TaskFamily, num_seeds: int) -> int:
        """Steps that are taken to make the contexts; fixed ones are made once."""
        return (self.num_tasks or self.num_updates * self.batch_size * num_seeds) * self.horizon


class Learned(NamedTuple):
    """What is trained."""

    policy: Policy  # which acts
    critic: Any  # an `ActorCritic`, of whose two answers only the value is asked for, or None


class Sample(NamedTuple):
    """One pretraining sample; [B, ...] in a batch."""

    context: Transition  # [T, ...]
    query_obs: Tree  # [T + 1, ...] with labels "optimal", else None
    target_action: Tree  # int32 [T + 1] with labels "optimal", else None


def tokens_of(env: TaskFamily) -> EmbeddingConfig:
    """What the model reads: a query that never changes need not be asked anew."""
    return TOKENS["first" if isinstance(env, Bandit) else "last"]


def dit(env: TaskFamily, config: DITConfig) -> Method:
    """DIT, or one of its controls, on any family that knows its best actions, which the behaviours take.

    Raises:
      ValueError: a family that does not; arms as labels where there are none; labels anywhere in a family that cannot
        be asked about places that nobody came to.
    """
    require(env.optimal_action is not None, "env", env.name, "a family with optimal_action, for its behaviours")
    has_arms = config.labels != "best_arm" or isinstance(env, Bandit)
    require(has_arms, "labels", config.labels, f"another, as {env.name} has no arms")
    can_ask = config.labels != "optimal" or env.reset_anywhere is not None
    require(can_ask, "labels", config.labels, f"another, as {env.name} has no reset_anywhere")
    blank, tokens = no_transition(env, env.default_params), tokens_of(env)
    if tokens.tokens == "query":
        check_asked(config.model)

    def init_params(key: Array) -> Learned:
        key_policy, key_critic = jax.random.split(key)
        spaces = env.observation_space(env.default_params), env.action_space(env.default_params)
        embedding = dataclasses.replace(tokens, integers=config.integers)
        policy, critic = Policy(config.model, *spaces, key_policy, embedding), None
        if config.weights == "critic":
            critic = ActorCritic(config.model, *spaces, key_critic, embedding, ActionHeadConfig(), ValueHeadConfig())
        return Learned(policy, critic)

    def draw(key: Array) -> Sample:
        return draw_sample(env, config, key)

    def collect(data: Tree, row: Row) -> Sample:
        return draw(row.key) if config.num_tasks is None else jax.tree.map(lambda x: x[row.index], data)

    def agent(
        params: Tree, context: Transition | None = None, online: bool = True, greedy: bool | None = None
    ) -> Agent:
        actor = trained(params.policy, context, online, greedy)
        return between_episodes(actor, blank) if online and config.update == "episode" else actor

    return supervised(
        init_params,
        collect,
        partial(weighted_loss, config=config, num_actions=env.num_actions),
        agent,
        config.optim,
        config.num_updates,
        config.batch_size,
        tokens_per_row=config.tokens_per_row(env),
        data=partial(dataset, draw, config.num_tasks) if config.num_tasks else None,
        num_samples=config.num_tasks,
        least_rows=config.model.least_rows(config.tokens_per_row(env)),
    )


def make_behaviour(env: TaskFamily, config: DITConfig) -> Agent:
    """The agent that makes the contexts, in `revealed(env)`."""
    return mixture(env) if config.behaviour == "mixture" else noisy_expert(env, config.expert_share)


def draw_sample(env: TaskFamily, config: DITConfig, key: Array) -> Sample:
    """Draws a training task and a trajectory in it, and, where labels are "optimal", T + 1 queries anywhere."""
    key_task, key_context, key_query = jax.random.split(key, 3)
    env_params = env.sample_task(key_task, "train")
    world, behaviour = revealed(env), make_behaviour(env, config)
    first = start(behaviour, world, env_params, key_context)
    context = rollout(behaviour, world, first, key_context, config.horizon)[1].transition
    if config.labels != "optimal":
        return Sample(context, None, None)
    keys = jax.random.split(key_query, config.horizon + 1)
    return Sample(context, *jax.vmap(partial(ask_anywhere, env, env_params))(keys))


class Asked(NamedTuple):
    """What is asked about one trajectory; T' is T + 1, or T where the label is what was done next."""

    inputs: TimeStep  # [T', ...]: a prefix and a query each
    target_action: Array  # int32 [T']
    weight: Array  # float32 [T']


def weighted_loss(
    learned: Learned, batch: Sample, key: Array, config: DITConfig, num_actions: int
) -> tuple[Array, dict]:
    """Weight times cross-entropy of each label, the mean over prefixes and rows; and the loss of the critic, if any."""
    key_pairs, key_policy = jax.random.split(key)
    critic_loss, log = jnp.zeros(()), {}
    if config.weights == "critic":
        weight_BT, critic_loss = advantage_weights(learned.critic, batch.context, config)
        log["critic_loss"] = critic_loss
    elif config.weights == "returns":
        weight_BT = jax.vmap(partial(return_weights, discount=config.discount, scale=config.scale))(batch.context)
    else:
        weight_BT = jnp.ones_like(batch.context.feedback)

    keys = jax.random.split(key_pairs, weight_BT.shape[0])
    of_one = partial(ask, config=config, num_actions=num_actions)
    inputs, target_BT, weight_BT = jax.vmap(of_one)(batch, weight_BT, keys)
    _, prediction, aux = learned.policy(None, inputs, key_policy)
    losses_BT = -weight_BT * prediction.log_prob(target_BT)
    log |= {"last_loss": losses_BT[:, -1].mean(), "nonzero_weights": (weight_BT > 0).mean(dtype=jnp.float32)}
    return losses_BT.mean() + critic_loss + sum(aux.losses.values()), {**log, **aux.losses}


def ask(sample: Sample, weight: Array, key: Array, config: DITConfig, num_actions: int) -> Asked:
    """What is asked after the prefixes of one trajectory whose steps count `weight` [T]."""
    context, num_prefixes = sample.context, config.horizon + 1
    if config.labels == "next":
        return Asked(timesteps_of(context), context.action, weight)
    if config.labels == "pairs":
        query_obs, target, weight = draw_pairs(key, context, weight, num_prefixes)
    elif config.labels == "best_arm":
        arm, margin = best_arm(context, num_actions)
        query_obs, target = jax.tree.map(lambda x: jnp.repeat(x[:1], num_prefixes, axis=0), (context.obs, arm[None]))
        weight = jnp.full(num_prefixes, config.scale * margin**2 if config.weights == "returns" else 1.0)
    else:
        query_obs, target, weight = sample.query_obs, sample.target_action, jnp.ones(num_prefixes)
    return Asked(asked(context, query_obs), target, weight)


def draw_pairs(key: Array, context: Transition, weight: Array, num: int) -> tuple[Tree, Array, Array]:
    """`num` steps of a trajectory [T]: what was seen, what was done, and what the step counts, each [num, ...].

    They are drawn in proportion to their weights and count the mean weight each: in expectation, that is the mean over
    all T steps, each with its own weight, but nothing is spent on steps that do not count.
    """
    index = jax.random.categorical(key, jnp.log(weight), shape=(num,))
    query_obs, action = jax.tree.map(lambda x: x[index], (context.obs, context.action))
    return query_obs, action, jnp.full(num, weight.mean())


def returns_to_go(context: Transition, discount: float) -> Array:
    """C_h = sum over h' >= h in its episode of discount^(h' - h) feedback_h', float32 [T]."""
    nothing, ends = jnp.zeros_like(context.feedback), context.terminated | context.truncated
    return gae(context.feedback, nothing, nothing, context.terminated, ends, discount, trace=1.0)


def return_weights(context: Transition, discount: float, scale: float) -> Array:
    """scale max(C_h - B, 0)^2, B the mean of C over the trajectory, float32 [T] (W, weights in MDPs).

    Steps below the mean count nothing, nor does a trajectory without reward.
    """
    returns = returns_to_go(context, discount)
    return scale * jnp.maximum(returns - returns.mean(), 0.0) ** 2


def advantage_weights(critic: ActorCritic, context: Transition, config: DITConfig) -> tuple[Array, Array]:
    """min(exp(A_h / temperature), max_weight), float32 [B, T], and the loss of the critic (C).

    A_h = C_h - V(o_h, D_h), V being what the critic expects from what was seen before step h alone: a whole trajectory
    would tell it how this one went. It is trained on C all along.
    """
    returns_BT = jax.vmap(partial(returns_to_go, discount=config.discount))(context)
    _, (_, value), aux = critic(None, jax.vmap(timesteps_of)(context))
    advantage_BT = returns_BT - jax.lax.stop_gradient(value.mean())
    weight_BT = jnp.exp(jnp.minimum(advantage_BT / config.temperature, math.log(config.max_weight)))
    return weight_BT, value.loss(returns_BT).mean() + sum(aux.losses.values())


def best_arm(context: Transition, num_arms: int) -> tuple[Array, Array]:
    """The arm with the best mean reward in the whole context, int32 [], and by how much it is above the mean of those
    that were pulled, float32 [] (W, bandits). Arms that were not pulled are nowhere the best."""
    pulled = jax.nn.one_hot(context.action, num_arms)
    counts, sums = pulled.sum(axis=0), pulled.T @ context.feedback
    means = sums / jnp.maximum(counts, 1.0)
    seen = counts > 0
    average = jnp.where(seen, means, 0.0).sum() / seen.sum(dtype=jnp.float32)
    arm = jnp.argmax(jnp.where(seen, means, -jnp.inf)).astype(jnp.int32)
    return arm, means[arm] - average

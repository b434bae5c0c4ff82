"""ICPO, in-context preference optimisation: learn, and act, from which of two actions is preferred, never from rewards.

Dong, He, Guo, Fang, Yang, Tarokh, *Learning in Context, Guided by Choice: A Reward-Free Paradigm for Reinforcement
Learning with Transformers*, 2026, https://arxiv.org/abs/2602.08244, where preferences are per step (I-PRL). It is DPT
whose contexts are comparisons (`data/preferences.py`), and whose label is another comparison of the same task, of which
the model is to give the preferred action the higher probability. DP2T, the supervised variant, is told the best action
instead. Only the abstract and the introduction were at hand: the form of the loss is reconstructed from them, and the
layout of tokens, what is asked, beta and what is proposed are ours.
"""

import dataclasses
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from icrl_envs.bandits import Bandit
from icrl_envs.task_family import is_int, is_name, is_number, require
from icrl_envs.wrappers import Preferences
from icrl_jax.agents import prompted
from icrl_jax.agents.proposing import Proposal, proposing
from icrl_jax.core import Agent, Array, Method, Transition, Tree
from icrl_jax.data.behaviours import mixture, noisy_expert
from icrl_jax.data.contexts import asked, scattered
from icrl_jax.data.preferences import compare, compare_anywhere, in_pairs
from icrl_jax.methods.dpt import check_sizes, dataset, label_loss
from icrl_jax.methods.dpt_mdp import TOKENS, DPTMDPConfig, ask_anywhere, dpt_mdp
from icrl_jax.methods.supervised import OptimConfig, Row, supervised
from icrl_jax.models.embeddings import EmbeddingConfig, Integers
from icrl_jax.models.heads import Prediction
from icrl_jax.models.kinds import ModelConfig
from icrl_jax.models.policy import Policy
from icrl_jax.models.queries import check_asked
from icrl_jax.models.transformer import TransformerConfig

Objective = Literal["preferences", "labels"]
Behaviour = Literal["random", "mixture", "noisy_expert"]
Asked = Literal["anywhere", "visited"]
Layout = Literal["ranked", "labelled"]
Reference = Literal["uniform", "learned"]


@dataclass(frozen=True)
class ICPOConfig:
    """What ICPO learns from, and with; DP2T too."""

    model: ModelConfig = field(default_factory=TransformerConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    num_updates: int = 2000
    """Gradient steps."""
    batch_size: int = 64
    """Contexts per update."""
    horizon: int = 100
    """Comparisons in a context, T; the model answers after 0, 1, ..., T of them."""
    objective: Objective = "preferences"
    """What is learned after a prefix: "preferences", which action of a pair is preferred (ICPO); "labels", the best
    action, which somebody must know (DP2T)."""
    behaviours: tuple[Behaviour, ...] = ("random",)
    """Who proposes in contexts, each as often. "random": separate comparisons, the state and both actions drawn anew
    for each; the others move by what is preferred. "mixture": actions from random mixtures; "noisy_expert": the best
    action with a probability that is drawn for each context, else any."""
    asked: Asked = "anywhere"
    """Where the comparisons to learn from are: any state and any two actions, each as likely; or, "visited", where the
    behaviour of the context comes to another time, and what it proposes there."""
    num_asked: int = 1
    """Comparisons to learn from after each prefix, all in one state: the model reads it once for all of them."""
    layout: Layout = "ranked"
    """A comparison is shown as the preferred action and the other one, or, "labelled", as proposed, with its label."""
    beta: float = 1.0
    """The policy is proportional to the reference times exp(advantage / beta), in units of the labels' temperature."""
    preferred_factor: float = 1.0
    """lambda on the preferred action's log-probability (the paper's, below 1, in Meta-World)."""
    other_factor: float = 1.0
    """lambda on the other action's log-probability (the paper's, below 1, in the dark room)."""
    reference: Reference = "uniform"
    """Of the KL penalty: "uniform" over actions, or "learned", what is proposed in such contexts."""
    proposal: Proposal = "samples"
    """What is compared online: two "samples", two "distinct" ones, or the likeliest action and a "challenger"."""
    temperature: float = 1.0
    """Of what is sampled to be compared: below 1 nearer to the likeliest action."""
    integers: Integers = "numbers"
    """Observations of integers are "numbers" or "tables", one-hot."""
    num_tasks: int | None = None
    """Pretraining contexts, held on the device; None draws fresh ones for ever."""

    def __post_init__(self):
        check_sizes(self)
        kinds = {"objective": Objective, "asked": Asked, "layout": Layout, "reference": Reference, "proposal": Proposal}
        for name, kind in kinds.items():
            value, names = getattr(self, name), get_args(kind)
            require(is_name(value, names), name, value, "one of " + ", ".join(map(repr, names)))
        given, names = self.behaviours, get_args(Behaviour)
        known = bool(given) and set(given) <= set(names)
        require(known, "behaviours", given, "one or more of " + ", ".join(map(repr, names)))
        for name in ("beta", "temperature"):
            value = getattr(self, name)
            require(is_number(value, 0) and value > 0, name, value, "a finite number above 0")
        for name in ("preferred_factor", "other_factor"):
            require(is_number(getattr(self, name), 0, 1), name, getattr(self, name), "a number in 0 ..= 1")
        require(is_int(self.num_asked, 1), "num_asked", self.num_asked, "an integer of at least 1")
        if self.asked == "visited":
            require("random" not in given, "asked", self.asked, "'anywhere' with behaviours that are 'random'")
            require(self.num_asked == 1, "num_asked", self.num_asked, "1 with asked='visited'")
        if self.objective == "labels":
            require(self.asked == "anywhere", "asked", self.asked, "'anywhere' with objective='labels'")
            require(self.reference == "uniform", "reference", self.reference, "'uniform' with objective='labels'")

    def tokens_per_row(self, env: Preferences) -> int:
        """Inputs of the model in one row, queries included."""
        return (self.horizon + 1) * len(tokens_of(env, self).groups)

    def env_steps(self, env: Preferences, num_seeds: int) -> int:
        """Comparisons that are made for the contexts and to learn from; fixed ones are made once."""
        apart = (self.horizon + 1) * self.num_asked if self.objective == "preferences" else 0
        rows = self.num_tasks or self.num_updates * self.batch_size * num_seeds
        return rows * (self.horizon + apart)


class Learned(NamedTuple):
    """What is trained."""

    policy: Policy  # which acts
    reference: Any  # a `Policy` of what is proposed, or None


class Sample(NamedTuple):
    """One pretraining sample; [B, ...] in a batch."""

    context: Transition  # comparisons [T, ...]
    query_obs: Tree  # [T + 1, ...]: where one is asked, after each prefix
    answer: Tree  # (pairs, labels) of comparisons there, [T + 1, K, ...]; the best actions with objective "labels"


def tokens_of(env: Preferences, config: ICPOConfig) -> EmbeddingConfig:
    """What the model reads: a query that never changes need not be asked anew."""
    tokens = TOKENS["first" if isinstance(env.env, Bandit) else "last"]
    if config.layout == "ranked":
        inputs = ("ranked", *(name for name in tokens.inputs if name not in ("action", "feedback")))
        tokens = dataclasses.replace(tokens, inputs=inputs)
    return dataclasses.replace(tokens, integers=config.integers)


def icpo(env: Preferences, config: ICPOConfig) -> Method:
    """ICPO, or DP2T, on any family whose actions can be compared; its agents act in `env` and propose pairs.

    Args:
      env: `preferences(...)`, whose feedback is a label: no reward is in any context.
    Raises:
      ValueError: another environment, or one that cannot be asked about places that nobody came to.
    """
    require(isinstance(env, Preferences), "env", env.name, "preferences(...), whose feedback says what is preferred")
    anywhere = config.asked == "anywhere" or "random" in config.behaviours
    can_ask = not anywhere or env.reset_anywhere is not None
    require(can_ask, "asked", config.asked, f"'visited', without 'random' behaviours: {env.name} has no reset_anywhere")
    tokens = tokens_of(env, config)
    if tokens.tokens == "query":
        check_asked(config.model)

    def make_policy(key: Array) -> Policy:
        obs_space, pairs = env.observation_space(env.default_params), env.action_space(env.default_params)
        one = env.env.action_space(env.default_params)
        return Policy(config.model, obs_space, pairs, key, tokens, decision_space=one)

    def init_params(key: Array) -> Learned:
        key_policy, key_reference = jax.random.split(key)
        return Learned(make_policy(key_policy), make_policy(key_reference) if config.reference == "learned" else None)

    def draw(key: Array) -> Sample:
        return draw_sample(env, config, key)

    def collect(data: Tree, row: Row) -> Sample:
        return draw(row.key) if config.num_tasks is None else jax.tree.map(lambda x: x[row.index], data)

    def agent(
        params: Tree, context: Transition | None = None, online: bool = True, greedy: bool | None = None
    ) -> Agent:
        likeliest = not online if greedy is None else greedy
        actor = proposing(params.policy, config.proposal, likeliest, config.temperature)
        return prompted(actor, context, online)

    return supervised(
        init_params,
        collect,
        partial(loss_of, config=config),
        agent,
        config.optim,
        config.num_updates,
        config.batch_size,
        tokens_per_row=config.tokens_per_row(env),
        data=partial(dataset, draw, config.num_tasks) if config.num_tasks else None,
        num_samples=config.num_tasks,
        least_rows=config.model.least_rows(config.tokens_per_row(env)),
    )


def dpt_with_rewards(env: Preferences, config: DPTMDPConfig) -> Method:
    """DPT on the rewards that `env`, a `preferences(...)`, hides, the upper reference; its agents act in `env.env`."""
    return dpt_mdp(env.env, config)


def draw_sample(env: Preferences, config: ICPOConfig, key: Array) -> Sample:
    """Draws a training task, a context of comparisons in it, and what is asked after each of its prefixes."""
    key_task, key_context, key_asked, key_which = jax.random.split(key, 4)
    env_params = env.sample_task(key_task, "train")
    made = [_make(env, config, name, env_params, key_context) for name in config.behaviours]
    which = jax.random.randint(key_which, (), 0, len(made))
    context, apart = jax.tree.map(lambda *x: jnp.stack(x)[which], *made)
    keys = jax.random.split(key_asked, config.horizon + 1)
    if config.objective == "labels":
        return Sample(context, *jax.vmap(partial(ask_anywhere, env.env, env_params))(keys))
    if config.asked == "anywhere":
        return Sample(context, *jax.vmap(partial(compare_anywhere, env, env_params, num=config.num_asked))(keys))
    return Sample(context, apart.obs, (apart.action[:, None], apart.feedback[:, None]))


def _make(env: Preferences, config: ICPOConfig, name: Behaviour, env_params: Any, key: Array) -> tuple[Transition, Any]:
    """A context, and comparisons of the same behaviour apart from it, if these are asked."""
    if name == "random":
        return scattered(env, env_params, key, config.horizon), None
    proposer = in_pairs(make_behaviour(env, name))
    if config.asked == "anywhere":
        return compare(env, proposer, env_params, key, config.horizon)[0], None
    return compare(env, proposer, env_params, key, config.horizon, config.horizon + 1)


def make_behaviour(env: Preferences, name: Behaviour) -> Agent:
    """The agent of a behaviour that is no "random" one, whose actions are proposed; it acts in `revealed(env.env)`."""
    return mixture(env.env) if name == "mixture" else noisy_expert(env.env, None)


def loss_of(learned: Learned, batch: Sample, key: Array, config: ICPOConfig) -> tuple[Array, dict]:
    """The loss of each comparison after its prefix, the mean over prefixes and rows, and that of the reference."""
    inputs = jax.vmap(asked)(batch.context, batch.query_obs)
    if config.objective == "labels":
        return label_loss(learned.policy, inputs, batch.answer, key)
    pair, label_BTK = batch.answer
    key_policy, key_reference = jax.random.split(key)
    _, prediction, aux = learned.policy(None, inputs, key_policy)
    log_prob_BTK2 = log_probs(prediction, pair)
    ratio_BTK2, reference_loss = log_prob_BTK2, jnp.zeros(())
    if config.reference == "learned":
        _, proposed, more = learned.reference(None, inputs, key_reference)
        reference_BTK2 = log_probs(proposed, pair)
        ratio_BTK2 = log_prob_BTK2 - jax.lax.stop_gradient(reference_BTK2)
        reference_loss = -reference_BTK2.mean() + sum(more.losses.values())

    factors = config.beta, config.preferred_factor, config.other_factor
    told_BTK = is_choice(pair, label_BTK.ndim).astype(jnp.float32)
    losses_BTK = told_BTK * preference_loss(ratio_BTK2, label_BTK, *factors)
    log = {
        "last_loss": losses_BTK[:, -1].mean(),
        "preferred_log_prob": jnp.where(label_BTK > 0.5, log_prob_BTK2[..., 0], log_prob_BTK2[..., 1]).mean(),
    }
    return losses_BTK.mean() + reference_loss + sum(aux.losses.values()), {**log, **aux.losses}


def log_probs(prediction: Prediction, pair: Array) -> Array:
    """Log-probabilities of both actions of pairs [B, T, K, 2, ...], float32 [B, T, K, 2]."""
    each = jax.vmap(lambda action: prediction.log_prob(prediction.encode(action)), in_axes=2, out_axes=2)
    return jnp.stack([each(pair[:, :, :, i]) for i in (0, 1)], axis=-1)


def is_choice(pair: Array, num_axes: int) -> Array:
    """Whether two actions differ, bool [...]: of one and the same, the label says nothing, and nothing is learned."""
    first, second = (jnp.take(pair, i, axis=num_axes) for i in (0, 1))
    return (first != second).any(axis=tuple(range(num_axes, first.ndim)))


def preference_loss(
    log_ratio: Array, label: Array, beta: float, preferred_factor: float = 1.0, other_factor: float = 1.0
) -> Array:
    """-log sigmoid(beta (f r_w - g r_l)), w being the preferred action and l the other; of a tie, half of either way.

    The optimum of an advantage A with a KL penalty to pi_b, pi proportional to pi_b exp(A / beta), put into the model
    of Bradley and Terry with r = log pi - log pi_b (Rafailov et al. 2023, DPO, equation 7), and two factors.

    Args:
      log_ratio: r, float32 [..., 2].
      label: float32 [...], 1 where the first is preferred, 0 where the second is, 1/2 for a tie.
      preferred_factor, other_factor: f and g.
    Returns:
      float32 [...].
    """
    first, second = log_ratio[..., 0], log_ratio[..., 1]
    first_wins = jax.nn.log_sigmoid(beta * (preferred_factor * first - other_factor * second))
    second_wins = jax.nn.log_sigmoid(beta * (preferred_factor * second - other_factor * first))
    return -(label * first_wins + (1 - label) * second_wins)

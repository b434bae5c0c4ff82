"""DPT on MDPs: what is best in a state that is asked about, after every prefix of a context (Lee et al. 2023).

The context is transitions of one task; the query is an observation, and the label `env.optimal_action` there. The
paper puts the query first, so that each new one is a new sequence and acting reads the whole context at every step. Put
last, the query looks back at a memory of transitions alone and is not remembered: acting reads each transition once,
and one context is asked about T + 1 states, one after every prefix.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from gymnax.environments import spaces

from icrl_envs import TaskFamily, revealed
from icrl_envs.bandits import Bandit
from icrl_envs.grid import Grid
from icrl_envs.pixel_room import PixelRoom
from icrl_envs.tabular_mdp import TabularMDP
from icrl_envs.task_family import is_name, require
from icrl_jax.agents import between_episodes, posterior, prompted, psrl, rereading
from icrl_jax.agents.in_context import in_context
from icrl_jax.core import Agent, Array, Method, Transition, Tree
from icrl_jax.data.behaviours import labelled, mixture, unrevealed
from icrl_jax.data.contexts import asked, scattered, shuffled
from icrl_jax.methods.dpt import TOKEN, Example, check_sizes, dataset, label_loss, prefix_loss
from icrl_jax.methods.supervised import OptimConfig, Row, supervised
from icrl_jax.models.embeddings import EmbeddingConfig, Integers
from icrl_jax.models.heads import ActionHeadConfig
from icrl_jax.models.heads.actions import Continuous
from icrl_jax.models.kinds import ModelConfig
from icrl_jax.models.policy import Policy
from icrl_jax.models.queries import check_asked
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.rollout import no_transition, rollout, start

Query = Literal["first", "last"]
Behaviour = Literal["random", "mixture", "expert_mixture", "posterior"]
Asked = Literal["anywhere", "visited"]
Update = Literal["step", "episode"]

TOKENS = {"first": TOKEN, "last": EmbeddingConfig("query", ("action", "feedback", "next_obs", "origin", "obs"))}
"""What the model reads: the query, then transitions; or transitions, and a query after each that it forgets."""


@dataclass(frozen=True)
class DPTMDPConfig:
    """What DPT learns from, and with."""

    model: ModelConfig = field(default_factory=TransformerConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    num_updates: int = 2000
    """Gradient steps."""
    batch_size: int = 64
    """Contexts per update."""
    horizon: int = 100
    """Transitions in a context, n; the model answers after 0, 1, ..., n of them."""
    query: Query = "last"
    """Where the query stands: "first" (the paper), one for each context; "last", one for each prefix, from a cache."""
    behaviours: tuple[Behaviour, ...] = ("random",)
    """Who makes the contexts, each as often. "random": separate transitions, state and action drawn anew for each (the
    paper's dark room); the others are rollouts. "mixture" and "expert_mixture": actions drawn from random mixtures,
    without or with the best one in them; "posterior": exact posterior sampling (PSRL in tabular MDPs), which is what
    the trained model will do, so that it knows the histories that it makes."""
    asked: Asked = "anywhere"
    """Queries: any place of the family, each as likely (the paper), or, "visited", where the behaviour itself came to,
    in order, which also asks about what a single observation hides."""
    integers: Integers = "numbers"
    """Observations of integers are "numbers" (the paper's code) or "tables", one-hot (its text)."""
    next_obs: bool = True
    """Shows where each transition led to, which the paper's contexts of pictures leave out."""
    image_channels: tuple[int, ...] = EmbeddingConfig.image_channels
    """Of each convolution over pictures, 3 x 3 with stride 2."""
    continuous: Continuous = "bins"
    """Actions that are numbers: "bins", each dimension in one of 11, which can tell a posterior of several peaks and
    actions at the bounds; or "tanh_gaussian"."""
    update: Update = "step"
    """Online, what was seen counts from the next step on, or from the next "episode" on (the paper)."""
    num_tasks: int | None = None
    """Pretraining contexts, held on the device (the paper's 80,000); None draws fresh ones for ever."""
    shuffle: bool = False
    """Permutes each context every time it is used (the paper's code)."""
    train_empty: bool = True
    """Counts the loss before any transition was seen (the paper leaves it out), which teaches the prior."""

    def __post_init__(self):
        check_sizes(self)
        kinds = {"query": Query, "asked": Asked, "update": Update, "continuous": Continuous}
        for name, kind in kinds.items():
            value, names = getattr(self, name), get_args(kind)
            require(is_name(value, names), name, value, "one of " + ", ".join(map(repr, names)))
        given, names = self.behaviours, get_args(Behaviour)
        known = bool(given) and set(given) <= set(names)
        require(known, "behaviours", given, "one or more of " + ", ".join(map(repr, names)))
        tokens_of(self)  # refuses channels that are none
        if self.query == "last":
            check_asked(self.model)
        if self.asked == "visited":
            require(self.query == "last", "asked", self.asked, "'anywhere' with query='first'")
            require("random" not in given, "asked", self.asked, "'anywhere' with behaviours that are 'random'")
            require(not self.shuffle, "shuffle", self.shuffle, "False with asked='visited', which keeps the order")
        if self.shuffle:
            require("posterior" not in given, "shuffle", self.shuffle, "False with 'posterior', whose actions adapt")
            require(self.num_tasks is not None, "shuffle", self.shuffle, "False where contexts are used only once")

    def tokens_per_row(self, env: TaskFamily) -> int:
        """Inputs of the model in one row, queries included."""
        return (self.horizon + 1) * len(TOKENS[self.query].groups)

    def env_steps(self, env: TaskFamily, num_seeds: int) -> int:
        """Steps that are taken to make the contexts; fixed ones are made once."""
        return (self.num_tasks or self.num_updates * self.batch_size * num_seeds) * self.horizon


def dpt_mdp(env: TaskFamily, config: DPTMDPConfig) -> Method:
    """DPT on any family that knows its best actions.

    Raises:
      ValueError: a family that does not, or that cannot be asked about places that nobody came to; mixtures of actions
        that cannot be listed.
    """
    last, blank = config.query == "last", no_transition(env, env.default_params)
    tokens, head = tokens_of(config), ActionHeadConfig(config.continuous)

    def init_params(key: Array) -> Policy:
        seen, done = env.observation_space(env.default_params), env.action_space(env.default_params)
        return Policy(config.model, seen, done, key, tokens, head)

    def actor(params: Tree, greedy: bool) -> Agent:
        from_cache = last or isinstance(env, Bandit)  # whose query never changes
        return in_context(params, greedy) if from_cache else rereading(params, config.horizon, blank, greedy)

    loss = partial(asked_loss if last else prefix_loss, train_empty=config.train_empty)
    return pretrained(env, config, init_params, loss, actor)


def tokens_of(config: DPTMDPConfig) -> EmbeddingConfig:
    """What a model reads with these options."""
    tokens = TOKENS[config.query]
    inputs = tuple(name for name in tokens.inputs if config.next_obs or name != "next_obs")
    reads = {"integers": config.integers, "image_channels": config.image_channels}
    return dataclasses.replace(tokens, inputs=inputs, **reads)


def pretrained(
    env: TaskFamily,
    config: DPTMDPConfig,
    init_params: Callable[[Array], Tree],
    loss: Callable[[Tree, Example, Array], tuple[Array, dict]],
    actor: Callable[[Tree, bool], Agent],
) -> Method:
    """What lowers a loss of contexts and of what is asked; see `dpt_mdp` and `supervised`.

    Args:
      actor: `(params, greedy) -> agent`, before any context.
    """
    require(env.optimal_action is not None, "env", env.name, "a family with optimal_action, which labels are")
    if env.reset_anywhere is None:
        require(config.asked == "visited", "asked", config.asked, f"'visited', as {env.name} has no reset_anywhere")
    for name in set(config.behaviours) - {"random"}:
        make_behaviour(env, name)  # refuses early what does not fit

    def draw(key: Array) -> Example:
        return sample_example(env, config, key)

    def collect(data: Tree, row: Row) -> Example:
        if config.num_tasks is None:
            return draw(row.key)
        example = jax.tree.map(lambda x: x[row.index], data)
        return example._replace(context=shuffled(example.context, row.key)) if config.shuffle else example

    def agent(
        params: Tree, context: Transition | None = None, online: bool = True, greedy: bool | None = None
    ) -> Agent:
        acting = prompted(actor(params, not online if greedy is None else greedy), context, online)
        if not online or config.update == "step":
            return acting
        return between_episodes(acting, no_transition(env, env.default_params))

    return supervised(
        init_params,
        collect,
        loss,
        agent,
        config.optim,
        config.num_updates,
        config.batch_size,
        tokens_per_row=config.tokens_per_row(env),
        data=partial(dataset, draw, config.num_tasks) if config.num_tasks else None,
        num_samples=config.num_tasks,
        least_rows=config.model.least_rows(config.tokens_per_row(env)),
    )


def asked_loss(policy: Policy, batch: Example, key: Array, train_empty: bool = True) -> tuple[Array, dict]:
    """Cross-entropy of the best action at each query, one for each prefix, the mean over prefixes and rows."""
    inputs = jax.vmap(asked)(batch.context, batch.query_obs)
    return label_loss(policy, inputs, batch.target_action, key, train_empty)


def sample_example(env: TaskFamily, config: DPTMDPConfig, key: Array) -> Example:
    """Draws a training task, a context in it, and what is asked: one query, or T + 1 where it stands last."""
    key_task, key_context, key_query, key_which = jax.random.split(key, 4)
    env_params = env.sample_task(key_task, "train")
    made = [_make(env, config, name, env_params, key_context) for name in config.behaviours]
    which = jax.random.randint(key_which, (), 0, len(made))
    context, visited = jax.tree.map(lambda *x: jnp.stack(x)[which], *made)
    if config.asked == "visited":
        return Example(context, *visited)
    ask = partial(ask_anywhere, env, env_params)
    if config.query == "first":
        return Example(context, *ask(key_query))
    return Example(context, *jax.vmap(ask)(jax.random.split(key_query, config.horizon + 1)))


def ask_anywhere(env: TaskFamily, env_params: Any, key: Array) -> tuple[Tree, Array]:
    """An observation of any place, each as likely, and the best action there."""
    obs, state = env.reset_anywhere(key, env_params)
    return obs, env.optimal_action(state, env_params)


def _make(
    env: TaskFamily, config: DPTMDPConfig, name: Behaviour, env_params: Any, key: Array
) -> tuple[Transition, Any]:
    """A context; and where it was, before each transition and after the last, if that is asked: (obs, best action)."""
    if name == "random":
        return scattered(env, env_params, key, config.horizon), None
    world, behaviour = revealed(env), labelled(make_behaviour(env, name), env)
    num_steps = config.horizon + (config.asked == "visited")
    _, record = rollout(behaviour, world, start(behaviour, world, env_params, key), key, num_steps)
    if config.asked == "anywhere":
        return record.transition, None
    context = jax.tree.map(lambda x: x[:-1], record.transition)
    return context, (record.transition.obs, record.info["target_action"])


def make_behaviour(env: TaskFamily, name: Behaviour) -> Agent:
    """The agent of a behaviour that is no "random" one, in `revealed(env)`.

    Raises:
      ValueError: no exact posterior is known for the family, or its actions are no list to mix.
    """
    if name != "posterior":
        listed = isinstance(env.action_space(env.default_params), spaces.Discrete)
        require(listed, "behaviours", name, f"'random' with the continuous actions of {env.name}")
        return mixture(env, expert=name == "expert_mixture")
    if isinstance(env, TabularMDP):
        return unrevealed(psrl(env))
    if not isinstance(env, Grid | PixelRoom):
        raise ValueError(f"behaviours={name!r}: must be others for {env.name}, neither a room nor a tabular MDP")
    return unrevealed(posterior(env, tasks=None if env.tasks is None else env.tasks("train")))

"""DICP, Distillation for In-Context Planning: predict what a learning algorithm does, and what comes of it; then plan.

Son, Lee, Kim, *Distilling Reinforcement Learning Algorithms for In-Context Model-Based Planning*, ICLR 2025,
https://arxiv.org/abs/2502.19009. AD copies its source, slowness included. The same transformer, which also predicts the
reward and the next observation of an action from the same context, looks ahead by itself and takes what promises most.
The paper supervises the last step of a window; here all are, so that plans are sound from the first step on. On DPT the
query stands last, and is answered from a cache, where the paper's stands first. On IDT plans that outlast the decision
they began under go on by new ones, where the paper's code keeps to it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp

from icrl_envs import TaskFamily
from icrl_envs.task_family import require
from icrl_jax.agents import PlanConfig, planning, prompted, trained
from icrl_jax.agents.in_context import in_context
from icrl_jax.core import Agent, Array, Method, Transition
from icrl_jax.data.contexts import asked
from icrl_jax.data.windows import Window
from icrl_jax.methods.ad import ADConfig, action_losses, distil
from icrl_jax.methods.dpt import Example
from icrl_jax.methods.dpt_mdp import DPTMDPConfig, pretrained, tokens_of
from icrl_jax.methods.idt import IDTConfig, episodes_of, make_decider
from icrl_jax.models.decider import Decider
from icrl_jax.models.embeddings import EmbeddingConfig
from icrl_jax.models.heads import ActionHeadConfig, Dynamics, DynamicsHeadConfig
from icrl_jax.models.kinds import ModelConfig
from icrl_jax.models.policy import LINEAR, Policy
from icrl_jax.models.queries import check_asked
from icrl_jax.models.world import World


@dataclass(frozen=True)
class ForesightConfig:
    """How a model learns what actions bring."""

    reward_values: tuple[float, ...] = ()
    """All rewards there are, rising, to tell them apart as classes; empty: by regression."""
    dynamics_weight: float = 1.0
    """xi: the weight of what an action brings beside the action."""
    dynamics_steps: int | None = None
    """At how many steps of a row, drawn anew for each update, it learns what the action brings; None is at all."""
    return_to_go: bool = False
    """Also learns what the rest of the episode pays, which plans then end in."""

    def __post_init__(self):
        weight, steps = self.dynamics_weight, self.dynamics_steps
        require(0 < weight < float("inf"), "dynamics_weight", weight, "a finite number above 0")
        require(steps is None or steps >= 1, "dynamics_steps", steps, "None or at least 1")

    def check_horizon(self, horizon: int) -> None:
        """Refuses more steps than a row has."""
        steps = self.dynamics_steps
        require(steps is None or steps <= horizon, "dynamics_steps", steps, f"None or at most horizon={horizon}")


@dataclass(frozen=True)
class DICPConfig(ADConfig):
    """What DICP on AD learns from, and with: as AD, and how it foresees and plans."""

    foresight: ForesightConfig = field(default_factory=ForesightConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)

    def __post_init__(self):
        super().__post_init__()
        check_asked(self.model)
        self.foresight.check_horizon(self.horizon)


@dataclass(frozen=True)
class DICPDPTConfig(DPTMDPConfig):
    """What DICP on DPT learns from, and with: as DPT, and how it foresees and plans."""

    foresight: ForesightConfig = field(default_factory=ForesightConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)

    def __post_init__(self):
        super().__post_init__()
        self.foresight.check_horizon(self.horizon)
        require(self.query == "last", "query", self.query, "'last', as plans share a cache")
        if self.foresight.return_to_go:
            known = "random" not in self.behaviours
            require(known, "return_to_go", True, "False with behaviours that are 'random', which have no episodes")
        require(self.update == "step", "update", self.update, "'step', as plans know how far the episode is")


@dataclass(frozen=True)
class DICPIDTConfig(IDTConfig):
    """What DICP on IDT learns from, and with: as IDT, and how it foresees and plans."""

    foresight: ForesightConfig = field(default_factory=ForesightConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)

    def __post_init__(self):
        super().__post_init__()
        check_asked(self.model)
        self.foresight.check_horizon(self.horizon)


def dicp(env: TaskFamily, config: DICPConfig) -> Method:
    """DICP on AD: the windows of `ad`, the same policy, and planning by what it foresees.

    Raises:
      ValueError: as `ad`; observations that cannot be predicted.
    """
    return _distilled(env, config, partial(make_world, env, config.model, config.embedding, config.foresight))


def dicp_idt(env: TaskFamily, config: DICPIDTConfig) -> Method:
    """DICP on IDT: the episodes of `idt`, the same decisions, and planning by what they are foreseen to bring.

    What is foreseen depends on the return that is asked for. In training that is what the task did pay; a target that a
    task cannot pay may mislead plans more than it does the policy.

    Raises:
      ValueError: as `idt`; observations that cannot be predicted.
    """

    def init_params(key: Array) -> World:
        key_policy, key_world = jax.random.split(key)
        return with_foresight(env, make_decider(env, config, key_policy), config.embedding, config.foresight, key_world)

    return _distilled(env, config, init_params, *episodes_of(env, config))


def _distilled(
    env: TaskFamily,
    config: DICPConfig | DICPIDTConfig,
    init_params: Callable[[Array], World],
    every: int = 1,
    made_of: Callable[[Window], Window] | None = None,
) -> Method:
    """DICP on a backbone that distils histories; `every` and `made_of` are those of `distil`."""
    jax.eval_shape(init_params, jax.random.key(0))  # refuses early what does not fit
    episode_steps = steps_of_episode(env)

    def agent(
        params: World, context: Transition | None = None, online: bool = True, greedy: bool | None = None
    ) -> Agent:
        if config.plan.plan_depth == 0:
            return trained(params, context, online, greedy, config.temperature)
        greedy = not online if greedy is None else greedy
        temperature = 0.0 if greedy else config.temperature
        return prompted(planning(params, config.plan, episode_steps, temperature), context, online)

    loss = partial(joint_loss, foresight=config.foresight, mask=config.mask, label_smoothing=config.label_smoothing)
    return distil(env, config, init_params, loss, agent, None, every, made_of)


def dicp_dpt(env: TaskFamily, config: DICPDPTConfig) -> Method:
    """DICP on DPT: the contexts of `dpt_mdp`, what is best in places that are asked about, and planning.

    Raises:
      ValueError: as `dpt_mdp`; observations that cannot be predicted.
    """
    head = ActionHeadConfig(config.continuous)
    init_params = partial(make_world, env, config.model, tokens_of(config), config.foresight, head=head)
    jax.eval_shape(init_params, jax.random.key(0))  # refuses early what does not fit
    episode_steps = steps_of_episode(env)

    def actor(params: World, greedy: bool) -> Agent:
        if config.plan.plan_depth == 0:
            return in_context(params, greedy)
        return planning(params, config.plan, episode_steps, 0.0 if greedy else 1.0)

    loss = partial(asked_joint_loss, foresight=config.foresight, train_empty=config.train_empty)
    return pretrained(env, config, init_params, loss, actor)


def make_world(
    env: TaskFamily,
    model: ModelConfig,
    embedding: EmbeddingConfig,
    foresight: ForesightConfig,
    key: Array,
    head: ActionHeadConfig = LINEAR,
) -> World:
    """The model for a family."""
    spaces = env.observation_space(env.default_params), env.action_space(env.default_params)
    key_policy, key_world = jax.random.split(key)
    return with_foresight(env, Policy(model, *spaces, key_policy, embedding, head), embedding, foresight, key_world)


def with_foresight(
    env: TaskFamily, policy: Policy | Decider, embedding: EmbeddingConfig, foresight: ForesightConfig, key: Array
) -> World:
    """A policy that also foresees."""
    spaces = env.observation_space(env.default_params), env.action_space(env.default_params)
    head = DynamicsHeadConfig(foresight.reward_values, return_to_go=foresight.return_to_go)
    return World(policy, *spaces, embedding, head, key)


def steps_of_episode(env: TaskFamily) -> int:
    """H, at most."""
    with jax.ensure_compile_time_eval():  # a number also where the caller jits
        return int(env.default_params.max_steps_in_episode)


def joint_loss(
    world: World,
    batch: Window,
    key: Array,
    foresight: ForesightConfig,
    mask: float = 0.0,
    label_smoothing: float = 0.0,
) -> tuple[Array, dict]:
    """L = -log f(a_t | C, o_t) + xi (-log g(r_t | C, o_t, a_t) - log g(o_{t+1} | C, o_t, a_t)), the mean over steps and
    rows, with C all before o_t in the window (Son et al.; entries of an observation are added up).

    Returns that are foreseen add -log g(R_t | C, o_t, a_t), the mean over steps whose episode ends in the window.
    With `dynamics_steps`, so many steps, drawn without replacement, stand for all in the mean of the second part.

    Raises:
      ValueError: histories without `next_obs`.
    """
    done = batch.transitions
    require(done.next_obs is not None, "next_obs", None, "in the histories that DICP distils")
    key, at = drawn_steps(key, done.feedback.shape[1], foresight.dynamics_steps)
    prediction, foreseen, aux = world(batch.timesteps, done.obs, done.action, at, key, mask)
    losses_BT = action_losses(prediction, done.action, label_smoothing)
    brought, log = dynamics_losses(foreseen, done, at)
    loss = losses_BT.mean() + foresight.dynamics_weight * brought + sum(aux.losses.values())
    return loss, {"last_loss": losses_BT[:, -1].mean(), **log, **aux.losses}


def asked_joint_loss(
    world: World, batch: Example, key: Array, foresight: ForesightConfig, train_empty: bool = True
) -> tuple[Array, dict]:
    """`joint_loss` where f is of the best action at each query, one for each prefix of a context, and g of what its own
    actions brought, each given the transitions before it."""
    done = batch.context
    key, at = drawn_steps(key, done.feedback.shape[1], foresight.dynamics_steps)
    inputs = jax.vmap(asked)(done, batch.query_obs)
    prediction, foreseen, aux = world(inputs, done.obs, done.action, at, key)
    losses_BT = -prediction.log_prob(prediction.encode(batch.target_action))
    brought, log = dynamics_losses(foreseen, done, at)
    loss = (losses_BT if train_empty else losses_BT[:, 1:]).mean() + foresight.dynamics_weight * brought
    return loss + sum(aux.losses.values()), {"last_loss": losses_BT[:, -1].mean(), **log, **aux.losses}


def drawn_steps(key: Array, num_steps: int, num_drawn: int | None) -> tuple[Array, Array]:
    """A key that is left, and steps out of so many, int32 [Q]: all, or some in a random order."""
    steps = jnp.arange(num_steps, dtype=jnp.int32)
    if num_drawn is None:
        return key, steps
    key_steps, key = jax.random.split(key)
    return key, jax.random.permutation(key_steps, steps)[:num_drawn]


def dynamics_losses(foreseen: Dynamics, done: Transition, at: Array) -> tuple[Array, dict]:
    """-log g of rewards, observations and, if foreseen, returns, at steps `at` [Q] of transitions [B, T, ...], the mean
    of each: (their sum, all)."""
    of_steps = lambda tree: jax.tree.map(lambda x: x[:, at], tree)
    log = {
        "reward_loss": foreseen.reward.loss(of_steps(done.feedback)).mean(),
        "obs_loss": foreseen.obs_loss(of_steps(done.next_obs)).mean(),
    }
    if foreseen.ret is not None:
        ret, known = of_steps(jax.vmap(returns_to_go)(done))
        losses = jnp.where(known, foreseen.ret.loss(ret), 0.0)
        log["return_loss"] = losses.sum() / jnp.maximum(known.sum(dtype=losses.dtype), 1)
    return sum(log.values(), jnp.zeros(())), log


def returns_to_go(transitions: Transition) -> tuple[Array, Array]:
    """What each episode paid from each step [T] on, and whether its end is there to know it by."""

    def back(after: tuple[Array, Array], step: tuple[Array, Array]):
        (ret, known), (reward, ends) = after, step
        found = reward + jnp.where(ends, 0.0, ret), ends | known
        return found, found

    steps = transitions.feedback, transitions.terminated | transitions.truncated
    return jax.lax.scan(back, (jnp.zeros(()), jnp.zeros((), bool)), steps, reverse=True)[1]

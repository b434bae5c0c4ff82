"""SAC: an actor that keeps its entropy up, twin critics, and a memory of all that happened; for continuous actions.

Haarnoja, Zhou, Abbeel, Levine, *Soft Actor-Critic*, ICML 2018, https://arxiv.org/abs/1801.01290; Haarnoja et al., *Soft
Actor-Critic Algorithms and Applications*, 2018, https://arxiv.org/abs/1812.05905 (two critics, learned temperature).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from gymnax.environments import spaces
from gymnax.environments.environment import Environment

from icrl_envs.task_family import any_of_batch
from icrl_jax.agents.in_context import empty_memory, step_one
from icrl_jax.agents.learner import Static
from icrl_jax.core import Agent, Array, Learner, TimeStep, TrainState, Transition, Tree, partial, select
from icrl_jax.methods.supervised import OptimConfig, descend, make_optimiser, make_schedule
from icrl_jax.models.embeddings import EmbeddingConfig, make_embedding
from icrl_jax.models.heads import INSIDE, ActionHeadConfig, ValueHeadConfig, make_value_head
from icrl_jax.models.layers import check_sizes
from icrl_jax.models.mlp import MLP, MLPConfig
from icrl_jax.models.policy import Policy
from icrl_jax.rollout import Record, rollout, start

SEES = EmbeddingConfig(inputs=("obs",), integers="tables")
WEIGHS = EmbeddingConfig(inputs=("obs", "action"), integers="tables")
HEAD, VALUE = ActionHeadConfig(sd="state"), ValueHeadConfig()


@dataclass(frozen=True)
class SACConfig:
    """What SAC learns from, and with."""

    model: MLPConfig = MLPConfig(width=256, num_layers=2, activation="relu")
    """Of the actor, and of each critic."""
    optim: OptimConfig = OptimConfig(
        learning_rate=3e-4, weight_decay=0.0, schedule="constant", warmup=0.0, beta2=0.999, clip=None
    )
    """Its schedule goes by rounds."""
    num_updates: int = 100
    """Rounds."""
    num_streams: int = 1
    """N, rollouts that share actor, critics and buffer."""
    num_steps: int = 20
    """T, steps of each stream in a round."""
    num_gradients: int = 1
    """Gradient steps after each step of all streams."""
    batch_size: int = 256
    """Transitions in a gradient step."""
    buffer_size: int = 10_000
    """How many transitions are remembered, the latest; a multiple of `num_streams`."""
    random_steps: int = 100
    """Transitions made by uniform actions at the start, without learning."""
    discount: float = 0.99
    """gamma."""
    tau: float = 0.005
    """How far the target critics follow the critics in each gradient step."""
    alpha: float = 0.2
    """Worth of a unit of entropy, or where it starts."""
    learn_alpha: bool = False
    """Moves alpha until the entropy is minus the number of dimensions, as if actions lay within -1 and 1."""

    def __post_init__(self):
        check_sizes(self, *("num_updates", "num_streams", "num_steps", "num_gradients", "batch_size", "buffer_size"))
        if self.buffer_size % self.num_streams:
            raise ValueError(f"buffer_size={self.buffer_size} must be a multiple of num_streams={self.num_streams}")
        if not isinstance(self.random_steps, int) or self.random_steps < 0:
            raise ValueError(f"random_steps={self.random_steps!r} must be 0 or a positive integer")
        if not 0 <= self.discount <= 1:
            raise ValueError(f"discount={self.discount!r} must be in [0, 1]")
        if not 0 < self.tau <= 1:
            raise ValueError(f"tau={self.tau!r} must be in (0, 1]")
        if not 0 < self.alpha < float("inf"):
            raise ValueError(f"alpha={self.alpha!r} must be finite and above 0")


class Critic(nnx.Module):
    """The soft value [B] of an action [B, A] where an observation [B, ...] was seen."""

    def __init__(self, config: MLPConfig, obs_space: spaces.Space, action_space: spaces.Space, key: Array):
        key_embed, key_body, key_head = jax.random.split(key, 3)
        self.embed = make_embedding(obs_space, action_space, config.width, WEIGHS, key_embed)
        self.body = MLP(config, key_body)
        self.head = make_value_head(config.width, VALUE, key_head)

    def __call__(self, seen: TimeStep, action: Array) -> Array:
        """`seen` [B] as the actor gets it; only its observation counts."""
        tokens = self.embed(seen._replace(prev=seen.prev._replace(action=action)))
        return self.head(self.body.step((), tokens[:, 0], seen.reset)[1]).mean()


class Weights(NamedTuple):
    """What is learned."""

    actor: Policy
    critics: Critic  # two, stacked
    log_alpha: Array  # float32 []


def sac_learner(env: Environment, config: SACConfig) -> Learner:
    """SAC as a source algorithm; all streams are in the one task that `init` is given.

    Raises:
      ValueError: actions that are not continuous.
    """
    action_space = env.action_space(env.default_params)
    if not isinstance(action_space, spaces.Box):
        raise ValueError(f"env={env.name}: must have continuous actions for sac_learner, not {action_space!r}")
    given = Static((env, config))
    return Learner(partial(_learner_init, given), partial(_learner_learn, given))


def _learner_init(given: Static, key: Array, env_params: Any) -> TrainState:
    env, config = given.value
    obs_space, action_space = env.observation_space(env.default_params), env.action_space(env.default_params)
    key_actor, key_critics, key_start = jax.random.split(key, 3)
    actor = Policy(config.model, obs_space, action_space, key_actor, SEES, HEAD)
    one_critic = lambda key: Critic(config.model, obs_space, action_space, key)
    critics = jax.vmap(one_critic)(jax.random.split(key_critics))
    weights = Weights(actor, critics, jnp.log(jnp.float32(config.alpha)))
    keys = jax.random.split(key_start, config.num_streams)
    rollouts = jax.vmap(lambda key: start(explorer(actor), env, env_params, key))(keys)
    blank = lambda x: jnp.zeros((config.buffer_size, *x.shape[1:]), x.dtype)
    extra = {"rollouts": rollouts, "buffer": jax.tree.map(blank, rollouts.timestep.prev), "targets": critics}
    opt_state = make_optimiser(config.optim).init(weights)  # type: ignore[arg-type]
    return TrainState(weights, opt_state, extra, None, jnp.zeros((), jnp.int32))


def _learner_learn(given: Static, state: TrainState, key: Array) -> tuple[TrainState, Record]:
    env, config = given.value
    key_play, key_learn = jax.random.split(key)
    keys = jax.random.split(key_play, config.num_streams)
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it, whatever the caller has set
        rate = jnp.float32(config.optim.learning_rate) * make_schedule(config.optim, config.num_updates)(state.step)

    def step(carry, _):
        learned, rollouts, buffer = carry
        t = rollouts.t[0]
        player = explorer(learned[0].actor, t * config.num_streams < config.random_steps)
        rollouts, record = jax.vmap(lambda state, key: rollout(player, env, state, key, 1))(rollouts, keys)
        record = jax.tree.map(lambda x: x[:, 0], record)
        buffer = store(buffer, record.transition, t)
        seen = (t + 1) * config.num_streams
        improved = lambda: improve(config, learned, buffer, seen, rate, jax.random.fold_in(key_learn, t))
        ready = seen > config.random_steps
        learned = jax.lax.cond(any_of_batch(ready), lambda: select(ready, improved(), learned), lambda: learned)
        return (learned, rollouts, buffer), record

    extra = state.extra
    carry = (state.params, state.opt_state, extra["targets"]), extra["rollouts"], extra["buffer"]
    carry, record = jax.lax.scan(step, carry, length=config.num_steps)
    (weights, opt_state, targets), rollouts, buffer = carry
    extra = {"rollouts": rollouts, "buffer": buffer, "targets": targets}
    return TrainState(weights, opt_state, extra, None, state.step + 1), record


def explorer(actor: Policy, random: Array | bool = False) -> Agent:
    """How the actor acts while it learns, or where `random` uniform actions; `info` holds the `choice` behind an action
    and its `log_prob`."""
    return Agent(partial(_init, actor), partial(_act, actor, jnp.asarray(random)))


def _init(actor, key: Array) -> Tree:
    return empty_memory(actor.body)


def _act(actor, random: Array, carry: Tree, key: Array, timestep: TimeStep) -> tuple[Tree, Array, dict]:
    carry, prediction = step_one(actor, carry, timestep)
    uniform = jnp.arctanh(jax.random.uniform(key, prediction.mean.shape, minval=-INSIDE, maxval=INSIDE))
    choice = jnp.where(random, uniform, prediction.sample(key))
    uniform_log_prob = -jnp.log(2 * _half_widths(prediction)).sum()
    log_prob = jnp.where(random, uniform_log_prob, prediction.log_prob(choice))
    return carry, prediction.decode(choice), {"choice": choice, "log_prob": log_prob}


def _half_widths(prediction: Any) -> Array:
    """Of the bounds of actions, [A]."""
    return (jnp.asarray(prediction.high) - jnp.asarray(prediction.low)) / 2


def store(buffer: Transition, transitions: Transition, t: Array) -> Transition:
    """Writes the N transitions of step t into a ring [C, ...], over the oldest ones once it is full."""
    capacity, rows = buffer.feedback.shape[0], transitions.feedback.shape[0]
    first = t % (capacity // rows) * rows
    return jax.tree.map(lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new, first, 0), buffer, transitions)


def improve(
    config: SACConfig, learned: tuple[Weights, Tree, Critic], buffer: Transition, seen: Array, rate: Array, key: Array
) -> tuple[Weights, Tree, Critic]:
    """Gradient steps on (weights, optimiser's memory, target critics), each on a batch of what the buffer holds.

    Args:
      seen: int32 [], how many transitions there were so far.
    """
    tx, filled = make_optimiser(config.optim), jnp.minimum(seen, config.buffer_size)

    def step(learned, key):
        weights, opt_state, targets = learned
        key_batch, key_loss = jax.random.split(key)
        index = jax.random.randint(key_batch, (config.batch_size,), 0, filled)
        batch = jax.tree.map(lambda x: x[index], buffer)
        gradient = jax.grad(loss)(weights, targets, batch, key_loss, config)
        weights, opt_state = descend(tx, rate, gradient, opt_state, weights)
        targets = jax.tree.map(lambda old, new: old + config.tau * (new - old), targets, weights.critics)
        return (weights, opt_state, targets), None

    return jax.lax.scan(step, learned, jax.random.split(key, config.num_gradients))[0]


def loss(weights: Weights, targets: Critic, batch: Transition, key: Array, config: SACConfig) -> Array:
    """The three losses together (Haarnoja et al. 2018b, equations 5, 7 and 18): none has a gradient for the others'.

    critics: (Q_i(s, a) - y)^2 / 2,  y = r + gamma (min_i Q'_i(s', a') - alpha log p(a' | s')), a' ~ p;  y = r at an end
    actor:   alpha log p(a | s) - min_i Q_i(s, a), a ~ p
    alpha:   alpha (-log p(a | s) - H), H the entropy wanted
    """
    key_now, key_next = jax.random.split(key)
    never, alpha = jnp.zeros_like(batch.terminated), jnp.exp(weights.log_alpha)
    alpha = alpha if config.learn_alpha else jax.lax.stop_gradient(alpha)
    fixed, price = jax.lax.stop_gradient((weights, alpha))
    now, after = (TimeStep(obs, batch, never) for obs in (batch.obs, batch.next_obs))

    _, later = fixed.actor.step((), after)
    choice = later.sample(key_next)
    following = _values(targets, after, later.decode(choice)).min(axis=0) - price * later.log_prob(choice)
    target = batch.feedback + jnp.where(batch.terminated, 0.0, config.discount * following)
    critic_loss = 0.5 * jnp.square(_values(weights.critics, now, batch.action) - target[None]).sum(axis=0)

    _, prediction = weights.actor.step((), now)
    choice = prediction.sample(key_now)
    log_prob = prediction.log_prob(choice)
    actor_loss = price * log_prob - _values(fixed.critics, now, prediction.decode(choice)).min(axis=0)

    half_widths = _half_widths(prediction)
    wanted = jnp.log(half_widths).sum() - half_widths.size
    alpha_loss = alpha * (-jax.lax.stop_gradient(log_prob) - wanted)
    return (critic_loss + actor_loss + alpha_loss).mean()


def _values(critics: Critic, seen: TimeStep, action: Array) -> Array:
    """Of both critics, [2, B]."""
    return jax.vmap(lambda critic: critic(seen, action))(critics)

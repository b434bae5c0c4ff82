# ruff: noqa: N806
"""ReLIC's partial updates: PPO that learns many times within a rollout, on a context that keeps growing.

A round is one trial of T steps in each of N streams, in U parts. After each part but the last the newest T / U steps
are learned from, read at the end of all that came before; then the past episodes change places, and the memory is made
anew by the weights there are now. After the last part all T steps are learned from. With U = 1 it is `ppo`.

Shapes are static: every update reads T inputs, of which those that have not happened yet are zeros, which nothing
before them sees. Gradients flow through all that is read. As in the paper's code, old probabilities of actions stay as
they were, so in the full update a ratio compares two contexts as well as two policies; in partial ones it starts at 1.

Elawady et al., *ReLIC: A Recipe for 64k Steps of In-Context Reinforcement Learning for Embodied AI*, 2024,
https://arxiv.org/abs/2410.02751, section 3.2.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from icrl_envs import TaskFamily
from icrl_jax.agents.in_context import stack_memories, unstack_memories
from icrl_jax.core import Array, Method, TrainState, Transition
from icrl_jax.data.contexts import timesteps_of
from icrl_jax.methods.ppo import (
    Experience,
    Numbers,
    PPOConfig,
    act,
    advantages,
    check_devices,
    learn,
    ppo,
    scheduled,
    value_of,
)
from icrl_jax.models.actor_critic import ActorCritic
from icrl_jax.models.kinds import kind_of
from icrl_jax.parallel import over_rows
from icrl_jax.rollout import Record, RolloutState


@dataclass(frozen=True)
class ReLICConfig(PPOConfig):
    """What ReLIC learns from, and with."""

    num_parts: int = 4
    """U, updates in a round: all but the last on the newest `num_steps / num_parts` steps alone."""
    permute: bool = True
    """Lets the finished episodes of each stream change places after each of those."""

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.num_parts, int) or self.num_parts < 1 or self.num_steps % self.num_parts:
            raise ValueError(f"num_parts={self.num_parts!r} must be a divisor of num_steps={self.num_steps}")
        if (self.trial_steps, self.trial_episodes) != (self.num_steps, None):
            raise ValueError(
                f"trial_steps={self.trial_steps!r}, trial_episodes={self.trial_episodes!r} must be "
                f"num_steps={self.num_steps} and None: a round is a trial"
            )
        if not self.has_memory:
            raise ValueError(f"model={kind_of(self.model)!r}: must be one that remembers what came before")

    def tokens_per_row(self, env: TaskFamily) -> int:
        """Inputs of the model in all epochs of all updates of a round, for each row of a minibatch."""
        return self.num_parts * super().tokens_per_row(env)


class Context(NamedTuple):
    """What a stream has lived through in this round, [T, ...]; zeros from where it stands."""

    record: Record  # its `info` holds `choice`, `log_prob` and `value`
    final_value: Array  # float32 [T], of `act`


def relic(env: TaskFamily, config: ReLICConfig) -> Method:
    """ReLIC of one policy on many train tasks.

    Raises:
      ValueError: as `ppo`.
    """
    plain = ppo(env, config)

    def update(state: TrainState, key: Array) -> tuple[TrainState, dict]:
        check_devices(config)
        return grow_and_learn(env, config, state, key)

    return Method(plain.init, update, plain.agent)


def grow_and_learn(env: TaskFamily, config: ReLICConfig, state: TrainState, key: Array) -> tuple[TrainState, dict]:
    """One round; the log is that of its full update, and of the partial ones what is marked so."""
    key_play, key_learn = jax.random.split(key)
    first, options = state.extra["rollouts"], scheduled(config, state.extra["hparams"], state.step)
    keys, part = jax.random.split(key_play, config.num_streams), config.num_steps // config.num_parts

    def play_part(params, rollouts, context, i):
        play = lambda shared, rows: jax.vmap(lambda *row: _play_part(env, config, *shared, *row))(*rows)
        return over_rows(play)((params, options, i * part), (first.timestep.prev, rollouts, context, keys))

    def one_more(carry, i):
        params, opt_state, rollouts, context = carry
        rollouts, context, experience = play_part(params, rollouts, context, i)
        key_part, key_order = jax.random.split(jax.random.fold_in(key_learn, i))
        newest = newest_part(experience, i * part, part)
        learned = learn(config, params, opt_state, options, newest, first.carry, key_part, spread=True)
        params, opt_state, log = learned
        go_back = lambda shared, rows: _reread(config, *shared, *rows)
        orders = jax.random.split(key_order, config.num_streams)
        rollouts, context = over_rows(go_back)((params, i + 1), (first, rollouts, context, orders))
        return (params, opt_state, rollouts, context), log

    carry, partial = (state.params, state.opt_state, first, _no_context(env, config, state.params, first)), {}
    if config.num_parts > 1:
        carry, log = jax.lax.scan(one_more, carry, jnp.arange(config.num_parts - 1))
        partial = {f"partial/{name}": log[name].mean() for name in ("loss", "kl", "ratio_gap")}
    params, opt_state, rollouts, context = carry
    rollouts, context, experience = play_part(params, rollouts, context, config.num_parts - 1)
    learned = learn(config, params, opt_state, options, experience, first.carry, key_learn, spread=True)
    params, opt_state, log = learned
    log |= {"feedback": context.record.transition.feedback.mean(), "learning_rate": options.learning_rate, **partial}
    return TrainState(params, opt_state, {**state.extra, "rollouts": rollouts}, None, state.step + 1), log


def _no_context(env, config: ReLICConfig, params: ActorCritic, rollouts: RolloutState) -> Context:
    """Zeros, [N, T, ...]."""
    live = lambda rollouts, key: _lived(env, config, params, rollouts, key, config.num_steps)[1]
    keys = jax.random.split(jax.random.key(0), config.num_streams)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(jax.vmap(live), rollouts, keys))


def _lived(env, config, params, state: RolloutState, key: Array, num_steps: int) -> tuple[RolloutState, Context]:
    state, (record, final_value) = act(env, params, state, key, config.trial, num_steps)
    return state, Context(record._replace(env_info={}), final_value)


def _play_part(
    env,
    config: ReLICConfig,
    params: ActorCritic,
    options: Numbers,
    start: Array,
    prev: Transition,
    state: RolloutState,
    context: Context,
    key: Array,
) -> tuple[RolloutState, Context, Experience]:
    """The next part of one stream, and what is learned from all that it has lived through; beyond, advantages are 0."""
    part = config.num_steps // config.num_parts
    state, lived = _lived(env, config, params, state, key, part)
    write = lambda whole, new: jax.lax.dynamic_update_slice_in_dim(whole, new, start, axis=0)
    context = jax.tree.map(write, context, lived)
    record, value = context.record, context.record.info["value"]
    ahead, now = value_of(params, state.carry, state.timestep), jnp.arange(config.num_steps) == start + part - 1
    next_value = jnp.where(now, ahead, jnp.append(value[1:], 0.0))
    advantage = advantages(config, options, record, value, next_value, context.final_value)
    chosen = record.info["choice"], record.info["log_prob"]
    timesteps = timesteps_of(record.transition, record.reset, prev)
    return state, context, Experience(timesteps, *chosen, advantage, advantage + value)


def newest_part(experience: Experience, start: Array, length: int) -> Experience:
    """All that was read, and of what is to be learned [N, T, ...] so many steps from `start` on."""
    cut = lambda x: jax.lax.dynamic_slice_in_dim(x, start, length, axis=1)
    choice, log_prob, advantage, ret = jax.tree.map(cut, experience[1:5])
    first = jnp.full(advantage.shape[0], start, jnp.int32)
    return Experience(experience.timestep, choice, log_prob, advantage, ret, first)


def _reread(
    config: ReLICConfig,
    params: ActorCritic,
    parts: Array,
    first: RolloutState,
    state: RolloutState,
    context: Context,
    keys: Array,
) -> tuple[RolloutState, Context]:
    """Memory and values of N streams as these weights have them, after so many parts; final values stay."""
    part = config.num_steps // config.num_parts
    if config.permute:
        context = jax.vmap(permuted, in_axes=(0, 0, None))(keys, context, parts * part)
    last = jax.tree.map(lambda x: x[:, parts * part - 1], context.record.transition)
    timesteps = jax.vmap(timesteps_of)(context.record.transition, context.record.reset, first.timestep.prev)

    def read(i, carry):
        memory, value = carry
        some = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, i * part, part, axis=1), timesteps)
        memory, (_, found), _ = params(memory, some)
        return memory, jax.lax.dynamic_update_slice_in_dim(value, found.mean(), i * part, axis=1)

    body, value = params.policy.body, context.record.info["value"]
    memory, value = jax.lax.fori_loop(0, parts, read, (stack_memories(body, first.carry), value))
    state = state._replace(
        carry=unstack_memories(body, memory, value.shape[0]), timestep=state.timestep._replace(prev=last)
    )
    info = {**context.record.info, "value": value}
    return state, context._replace(record=context.record._replace(info=info))


def permuted(key: Array, context: Context, now: Array) -> Context:
    """The context of one stream with its finished episodes in any order; the running one stays last.

    Args:
      now: int32 [], the steps that have happened; those beyond stay where they are.
    """
    transition = context.record.transition
    t, done = jnp.arange(transition.feedback.shape[0]), transition.terminated | transition.truncated
    episode = jnp.cumsum(done.astype(jnp.int32)) - done.astype(jnp.int32)
    place = jax.random.uniform(key, t.shape)[episode]
    place = jnp.where(episode == jnp.sum(done & (t < now)), 2.0, place)
    order = jnp.argsort(jnp.where(t < now, place, 3.0), stable=True)
    moved = jax.tree.map(lambda x: x[order], context)
    same = context.record  # where the trial began and ends does not move
    return moved._replace(record=moved.record._replace(reset=same.reset, trial_end=same.trial_end))

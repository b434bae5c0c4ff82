# ruff: noqa: N806
import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from two_episodes import TwoEpisodes, on_host

from icrl_jax.agents.in_context import stack_memories
from icrl_jax.core import Transition
from icrl_jax.data.contexts import timesteps_of
from icrl_jax.methods.ppo import Experience, PPOConfig, loss, numbers, play, ppo
from icrl_jax.methods.relic import (
    Context,
    ReLICConfig,
    _no_context,
    _play_part,
    _reread,
    newest_part,
    permuted,
    relic,
)
from icrl_jax.methods.supervised import OptimConfig
from icrl_jax.models.embeddings import EmbeddingConfig
from icrl_jax.models.gru import GRUConfig
from icrl_jax.models.mlp import MLPConfig
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.rollout import Record

ENV = TwoEpisodes()  # terminates where the secret is found, else truncates after three steps
N, T, U = 5, 21, 3
MODELS = {
    "gru": GRUConfig(width=6),
    "transformer": TransformerConfig(
        6, 1, 1, context_len=T, positions="episodes", max_episode_len=3, sink="kv0", num_kv_heads=1
    ),
}
OPTIONS = {
    "embedding": EmbeddingConfig(inputs=("action", "feedback", "done", "obs")),
    "optim": OptimConfig(learning_rate=0.03, weight_decay=0.0, schedule="constant", warmup=0.0, clip=None),
    **{"num_streams": N, "num_steps": T, "num_epochs": 2, "num_minibatches": 1},
    **{"trial_steps": T, "trial_episodes": None, "num_updates": 4},
}


def config(model="gru", num_parts=U, **options):
    return ReLICConfig(**{"model": MODELS.get(model, model), **OPTIONS, "num_parts": num_parts, **options})


def begin(method):
    """At the start all actions are as likely and all values zero: nothing could be told apart."""
    state = method.init(jax.random.key(0))
    head, critic = state.params.policy.head.readout, state.params.critic.readout
    head.out[...] = 100 * head.out[...]
    critic.out[...] = jax.random.normal(jax.random.key(7), critic.out.shape)
    return state


def two_rounds(method):
    @on_host
    def run(key):
        return jax.lax.scan(method.update, begin(method), jax.random.split(key, 2))

    return run(jax.random.key(1))


def test_one_part_is_ppo_bit_for_bit():
    state, log = two_rounds(relic(ENV, config("gru", 1)))
    plain, plain_log = two_rounds(ppo(ENV, PPOConfig(model=MODELS["gru"], **OPTIONS)))
    chex.assert_trees_all_equal(state, plain)
    chex.assert_trees_all_equal(log, plain_log)


@functools.cache
def learned_in_parts(model):
    return two_rounds(relic(ENV, config(model)))[1]


@pytest.mark.parametrize("model", MODELS)
def test_the_ratio_of_partial_updates_starts_at_one(model):
    """Acting went on from the memory that the new weights make of the episodes in their new order, and the update reads
    that again. The old probabilities of a full update are of other orders and weights."""
    log = learned_in_parts(model)
    assert (log["partial/ratio_gap"] < 1e-4).all() and (log["partial/kl"] > 1e-5).all()
    assert (log["ratio_gap"] > 1e-2).all()


def test_if_nothing_is_learned_or_moved_parts_are_as_if_there_were_none():
    still = dataclasses.replace(OPTIONS["optim"], learning_rate=1e-12)
    in_parts, log = two_rounds(relic(ENV, config("transformer", optim=still, permute=False)))
    at_once, plain_log = two_rounds(ppo(ENV, PPOConfig(model=MODELS["transformer"], **{**OPTIONS, "optim": still})))
    chex.assert_trees_all_close(in_parts.extra["rollouts"], at_once.extra["rollouts"], atol=1e-5)
    chex.assert_trees_all_close({name: log[name] for name in plain_log}, plain_log, atol=1e-5, rtol=1e-4)


def test_memory_and_values_are_those_that_new_weights_make_of_the_new_order():
    options, parts = config("transformer"), 2
    now = parts * T // U

    @on_host
    def run(key):
        state = begin(relic(ENV, options))
        first, keys = state.extra["rollouts"], jax.random.split(key, N)
        rollouts, context = first, _no_context(ENV, options, state.params, first)
        for i in range(parts):
            given = ENV, options, state.params, numbers(options), i * T // U
            play = lambda *row, given=given: _play_part(*given, *row)
            rollouts, context, _ = jax.vmap(play)(first.timestep.prev, rollouts, context, keys)
        params = jax.tree.map(lambda x: 1.3 * x, state.params)
        rollouts, after = _reread(options, params, jnp.int32(parts), first, rollouts, context, keys)
        lived = jax.tree.map(lambda x: x[:, :now], after.record)
        timesteps = jax.vmap(timesteps_of)(lived.transition, lived.reset, first.timestep.prev)
        memory, (_, value), _ = params(None, timesteps)
        _, (going_on, _) = params.step(stack_memories(params.policy.body, rollouts.carry), rollouts.timestep)
        _, (expected, _) = params.step(memory, rollouts.timestep)
        return context, after, lived, rollouts.timestep.prev, value.mean(), (going_on, expected)

    before, after, lived, prev, value, (going_on, expected) = run(jax.random.key(2))
    np.testing.assert_allclose(after.record.info["value"][:, :now], value, atol=1e-5)
    assert (after.record.info["value"][:, now:] == 0).all()
    chex.assert_trees_all_close(going_on, expected, atol=1e-5)
    chex.assert_trees_all_equal(prev, jax.tree.map(lambda x: x[:, -1], lived.transition))
    assert (lived.transition.obs != before.record.transition.obs[:, :now]).any()


def test_what_follows_a_part_counts_as_it_does_in_a_rollout_that_goes_on():
    """Of the first part: within an episode, the value of what is seen next."""
    options, plain = config("gru"), PPOConfig(model=MODELS["gru"], **{**OPTIONS, "num_steps": T // U})

    @on_host
    def run(key):
        state = begin(relic(ENV, options))
        first, keys, given = state.extra["rollouts"], jax.random.split(key, N), (state.params, numbers(options))
        context = _no_context(ENV, options, state.params, first)
        part = lambda *row: _play_part(ENV, options, *given, jnp.int32(0), *row)
        alone = lambda *row: play(ENV, plain, *given, *row, options.trial)
        in_part = jax.vmap(part)(first.timestep.prev, first, context, keys)[2]
        return in_part, jax.vmap(alone)(first, keys)[1]

    in_part, (record, experience) = run(jax.random.key(4))
    found = newest_part(in_part, 0, T // U)
    chex.assert_trees_all_close(found[1:5], experience[1:5], atol=1e-5)
    last = record.transition
    assert not (last.terminated | last.truncated)[:, -1].all() and not in_part.advantage[:, T // U :].any()


def test_episodes_move_whole_and_the_running_one_stays_last():
    """Against a plain loop: episodes of 2, 1, 3, 1 and, running, 2 steps; then two steps that have not happened."""
    lengths, now, long = [2, 1, 3, 1, 2], 9, 11
    ends, numbered = np.cumsum(lengths)[:-1] - 1, np.arange(long)
    done = np.isin(numbered, ends)
    terminated, truncated = done & (numbered % 2 == 0), done & (numbered % 2 == 1)
    transition = Transition(numbered, numbered, numbered, numbered, terminated, truncated)
    record = Record(transition, numbered == 0, np.zeros(long, bool), {"value": numbered}, {})
    moved = on_host(jax.vmap(lambda key: permuted(key, jax.tree.map(jnp.asarray, Context(record, numbered)), now)))(
        jax.random.split(jax.random.key(0), 600)
    )
    blocks = np.split(numbered[:now], ends + 1)
    seen = {}
    for row in moved.record.transition.obs:
        order = sorted(range(4), key=lambda e: list(row).index(blocks[e][0]))  # noqa: B023
        np.testing.assert_array_equal(row, np.concatenate([*(blocks[e] for e in order), blocks[4], [9, 10]]))
        seen[tuple(order)] = seen.get(tuple(order), 0) + 1
    assert len(seen) == 24 and max(seen.values()) < 60  # each order as likely: 25 of 600
    chex.assert_trees_all_equal(moved.record.info["value"], moved.final_value, moved.record.transition.action)
    np.testing.assert_array_equal(moved.record.reset, np.broadcast_to(record.reset, (600, long)))


def test_a_partial_update_is_about_the_newest_steps_alone_and_reads_all():
    """Its loss by hand, from predictions after the whole history; its gradient goes through what was read before."""
    method = ppo(ENV, PPOConfig(model=MODELS["gru"], **OPTIONS))
    keys, start, long = iter(list(jax.random.split(jax.random.key(3), 10))), 14, 7
    options = numbers(config(entropy_weight=0.0, value_weight=0.5, clip_ratio=None))

    @on_host
    def run():
        params, first = begin(method).params, method.init(next(keys)).extra["rollouts"]
        obs = jax.random.normal(next(keys), (N, T, 3))
        none = jnp.zeros((N, T), bool)
        action = jax.random.randint(next(keys), (N, T), 0, 5)
        reward, log_prob, advantage, ret = (jax.random.normal(next(keys), (N, T)) for _ in range(4))
        lived = Transition(obs, action, reward, obs, none, none)
        timesteps = jax.vmap(timesteps_of)(lived)
        batch = newest_part(Experience(timesteps, action, log_prob, advantage, ret), start, long)

        def partial_loss(timesteps):
            return loss(params, batch._replace(timestep=timesteps), first.carry, next(keys), options)[0]

        by_obs = lambda obs: partial_loss(timesteps._replace(obs=obs))
        _, (prediction, value), _ = params(None, timesteps)
        told = prediction.log_prob(action), value.mean(), log_prob, advantage, ret
        return partial_loss(timesteps), told, jax.grad(by_obs)(obs)

    found, told, slope = run()
    new, value, old, advantage, ret = (x[:, start : start + long] for x in told)
    expected = -(np.exp(new - old) * advantage).mean() + 0.25 * np.square(value - ret).mean()
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert (np.abs(slope[:, 0]).max(axis=-1) > 0).all() and not slope[:, start + long :].any()


WRONG = [
    ({"num_parts": 2}, "num_parts=2 must be a divisor of num_steps=21"),
    ({"num_parts": 0}, "num_parts=0 must be a divisor of num_steps=21"),
    ({"trial_steps": 7}, "trial_steps=7, trial_episodes=None must be num_steps=21 and None: a round is a trial"),
    ({"trial_episodes": 7}, "trial_steps=21, trial_episodes=7 must be num_steps=21 and None"),
    ({"model": MLPConfig()}, "model='mlp': must be one that remembers"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


def test_the_inputs_of_all_updates_are_counted():
    assert config().tokens_per_row(ENV) == U * config(num_parts=1).tokens_per_row(ENV) == U * 2 * T

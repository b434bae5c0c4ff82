"""A model of decisions acts as it is trained, sees the past alone, and makes each decision before what it is about."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from two_episodes import on_host

import icrl_envs
from icrl_jax.core import Transition
from icrl_jax.data.contexts import timesteps_of
from icrl_jax.models.decider import Aimed, Decider, DecisionConfig, all_to_go
from icrl_jax.models.embeddings import EmbeddingConfig
from icrl_jax.models.gru import GRUConfig
from icrl_jax.models.heads import DynamicsHeadConfig
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.models.world import World

B, C, Z, H, A, SIZE = 3, 3, 5, 6, 5, 7  # rows, steps and numbers of a decision, steps of an episode, actions, cells
T, TARGET = 4 * H, 3.0
ENV = icrl_envs.make("dark_room", "dicp", size=SIZE, horizon=H)
KEY = jax.random.key(0)
SPACES = ENV.observation_space(ENV.default_params), ENV.action_space(ENV.default_params)
CASES = {
    "transformer": TransformerConfig(12, 1, 2, context_len=T),
    "one that sees few decisions": TransformerConfig(12, 1, 2, context_len=3 * C, positions="rotary"),
    "gru": GRUConfig(12),
}


@functools.partial(jax.jit, static_argnums=0)
def make_world(case, key):
    embedding = EmbeddingConfig(integers="tables")
    policy = Decider(CASES[case], *SPACES, key, embedding, DecisionConfig(C, Z, TARGET))
    world = World(policy, *SPACES, embedding, DynamicsHeadConfig((0.0, 1.0, 2.0)), key)
    return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(key, x.shape), world)


@on_host
def histories(key):
    """Of three rows, one of which begins anew in the middle; (time steps, actions)."""
    keys = jax.random.split(key, 4)
    obs, next_obs = (jax.random.randint(k, (B, T, 2), 0, SIZE) for k in keys[:2])
    action, reward = jax.random.randint(keys[2], (B, T), 0, A), jax.random.randint(keys[3], (B, T), 0, 3)
    no, ends = jnp.zeros((B, T), bool), jnp.broadcast_to(jnp.arange(T)[None] % H == H - 1, (B, T))
    reset = jnp.zeros((B, T), bool).at[:, 0].set(True).at[1, 2 * H].set(True)
    transitions = Transition(obs, action, reward.astype(jnp.float32), next_obs, no, ends)
    return jax.vmap(timesteps_of)(transitions, reset), action


def live(world, timesteps, actions):
    """What is predicted and foreseen at each step of one history, a step at a time."""

    def act(carry, xs):
        timestep, action = xs
        carry, prediction = world.step(carry, jax.tree.map(lambda x: x[None], timestep))
        others = jnp.stack([(action + 1) % A, action])[None]
        foreseen = world.foresee(carry, timestep.obs[None], others)
        said = prediction.logits[0], foreseen.reward.logits[0, 1], foreseen.obs[0][0, 1]
        return carry, said

    return jax.lax.scan(act, world.body.init_carry(1), (timesteps, actions))[1]


@pytest.mark.parametrize("case", ["one that sees few decisions", "gru"])
def test_step_matches_call(case, getkey):
    """Of rows that begin anew at different times, too, and in what is foreseen."""
    world, (timesteps, actions) = make_world(case, getkey()), histories(getkey())
    at = jnp.array([7, 0, 23, 5, 12, 6])

    @on_host
    def both(world):
        aimed = Aimed(timesteps, jnp.full(B, TARGET))
        prediction, foreseen, _ = world(aimed, timesteps.obs, actions, at)
        logits, reward, obs = jax.vmap(live, in_axes=(None, 0, 0))(world, timesteps, actions)
        return (prediction.logits, foreseen.reward.logits, foreseen.obs[0]), (logits, reward[:, at], obs[:, at])

    for one, other in zip(*both(world), strict=True):
        assert one.shape == other.shape and one.std() > 0.1
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_what_is_left_of_the_return_is_counted_from_where_an_episode_starts():
    timesteps, _ = histories(KEY)
    targets = np.array([3, 5, 7], np.float32)
    found = on_host(all_to_go)(timesteps, targets)
    for b, t in np.ndindex(B, T):
        paid = timesteps.prev.feedback[b, t - t % H + 1 : t + 1]
        assert found[b, t, 0] == targets[b] - paid.sum()
    assert len(np.unique(found)) > 7


def test_a_reset_forgets_in_the_middle_of_a_decision_too(getkey):
    world, (timesteps, actions) = make_world("transformer", getkey()), histories(getkey())
    whole, cut = jax.tree.map(lambda x: x[0], (timesteps, actions)), C + 1
    both = jax.tree.map(lambda x: np.stack([x, np.roll(x, -cut, axis=0)]), whole)
    both[0].reset[0, cut], both[0].reset[1, 0] = True, True
    said = on_host(jax.vmap(live, in_axes=(None, 0, 0)))(world, *both)
    for x in said:
        np.testing.assert_allclose(x[0, cut:], x[1, :-cut], rtol=1e-4, atol=1e-5)


def test_all_sees_all_of_the_past_and_nothing_else(getkey):
    """By the gradients of rewards: an input tells the last one. Decisions see what was done before them only."""
    policy, (timesteps, _) = make_world("transformer", getkey()).policy, histories(getkey())
    timesteps = jax.tree.map(lambda x: x[0, : 2 * H], timesteps)

    def with_rewards(rewards):
        return timesteps._replace(prev=timesteps.prev._replace(feedback=rewards))

    def predicted(rewards):
        aimed = jax.tree.map(lambda x: x[None], Aimed(with_rewards(rewards), jnp.float32(TARGET)))
        return jnp.square(policy(None, aimed)[1].logits[0]).sum(axis=-1)

    def decided(rewards):
        def act(carry, timestep):
            carry, _ = policy.step(carry, jax.tree.map(lambda x: x[None], timestep))
            return carry, jnp.square(carry.decision[0]).sum()

        return jax.lax.scan(act, policy.init_carry(1), with_rewards(rewards))[1]

    rewards = timesteps.prev.feedback
    of_actions, of_decisions = on_host(lambda x: (jax.jacrev(predicted)(x), jax.jacrev(decided)(x)))(rewards)
    now, told = np.arange(2 * H)[:, None], np.arange(2 * H)[None]
    np.testing.assert_array_equal(of_actions != 0, (told <= now) & (told > 0))
    np.testing.assert_array_equal(of_decisions != 0, (told <= now - now % C) & (told > 0))


def test_decisions_are_drawn_in_training_only(getkey):
    """From the Gaussian whose mean is taken elsewhere."""
    policy, (timesteps, _) = make_world("transformer", getkey()).policy, histories(getkey())
    aimed, y, num = Aimed(timesteps, jnp.full(B, TARGET)), jax.random.normal(getkey(), (2, 12)), 4001

    @on_host
    def drawn(policy, key):
        draws = jax.vmap(lambda key: policy._decision(y, key))(jax.random.split(key, num))
        predict = lambda key: policy(None, aimed, key)[1].logits
        return draws, policy._decision(y, None), policy.gaussian(y)[:, 1], [predict(k) for k in (key, key, None)]

    draws, mean, log_variance, (one, same, taken) = drawn(policy, getkey())
    sd = np.exp(log_variance / 2)
    np.testing.assert_array_less(np.abs(draws.mean(0) - mean), 5 * sd / np.sqrt(num))
    np.testing.assert_allclose(draws.std(0), sd, rtol=0.06)
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - taken).max() > 0.1


def test_tokens_of_steps_are_hidden_with_a_probability(getkey):
    """All of them at last: then no action and no reward is told."""
    policy, (timesteps, _) = make_world("transformer", getkey()).policy, histories(getkey())
    other = timesteps._replace(prev=timesteps.prev._replace(action=(timesteps.prev.action + 1) % A))
    predict = on_host(
        lambda policy, timesteps, mask: policy(None, Aimed(timesteps, jnp.full(B, TARGET)), KEY, mask)[1].logits,
        static_argnums=2,
    )
    np.testing.assert_array_equal(predict(policy, timesteps, 1 - 1e-7), predict(policy, other, 1 - 1e-7))
    assert np.abs(predict(policy, timesteps, 0.5) - predict(policy, other, 0.5)).max() > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decision_steps": 1}, "decision_steps=1: must be at least 2"),
        ({"decision_width": 0}, "decision_width=0: must be at least 1"),
        ({"target_return": 0.0}, "target_return=0.0: must be a finite number other than 0"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DecisionConfig(**options)


def test_rows_that_would_decide_together_are_refused():
    with pytest.raises(ValueError, match="batch=2: must be 1 for a model that makes decisions; vmap it over tasks"):
        make_world("gru", KEY).body.init_carry(2)


def test_steps_that_fill_no_decision_are_refused():
    timesteps, _ = histories(KEY)
    cut = jax.tree.map(lambda x: x[:, :-1], timesteps)
    with pytest.raises(ValueError, match="T=23: must be a multiple of decision_steps=3"):
        make_world("gru", KEY).policy(None, Aimed(cut, jnp.full(B, TARGET)))

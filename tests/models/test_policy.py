"""A policy acts as it reads, with any model, tokens and actions, over the ends of episodes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from two_episodes import on_host, spied

import icrl_envs
from icrl_jax.agents.in_context import in_context
from icrl_jax.models.embeddings import EmbeddingConfig
from icrl_jax.models.gru import GRUConfig
from icrl_jax.models.heads import ActionHeadConfig, Categorical
from icrl_jax.models.mlp import MLPConfig
from icrl_jax.models.policy import Policy
from icrl_jax.models.s5 import S5Config
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.rollout import rollout, start

T, WIDTH = 13, 12  # steps, over the ends of episodes of 5
CASES = {
    "one token, discrete": (
        *("dark_room_hard", GRUConfig(WIDTH), EmbeddingConfig()),
        ActionHeadConfig(),
    ),
    "a token each, discrete, episodes marked": (
        "dark_room_hard",
        TransformerConfig(WIDTH, 2, 2, context_len=3 * T, positions="episodes", attend="episode"),
        EmbeddingConfig("modality", ("action", "feedback", "obs")),
        ActionHeadConfig(),
    ),
    "a token each, continuous": (
        *("point_robot", S5Config(WIDTH, 2, state_size=6), EmbeddingConfig("modality", ("action", "obs"))),
        ActionHeadConfig(sd="state"),
    ),
    "the current observation only, continuous": (
        *("point_robot", MLPConfig(WIDTH, 2), EmbeddingConfig(inputs=("obs",))),
        ActionHeadConfig(),
    ),
    "one token, bins": (
        *("point_robot", TransformerConfig(WIDTH, 1, 2, context_len=T), EmbeddingConfig(hidden=7)),
        ActionHeadConfig("bins", num_bins=5),
    ),
}


def small_env(name):
    sizes = {"dark_room_hard": {"preset": "ad", "size": 5, "horizon": 5}, "point_robot": {"num_steps": 5}}
    return icrl_envs.make(name, **sizes[name])


@functools.cache
def acted(case):
    """A policy, its own rollout, and what it saw, [1, T, ...]."""
    name, model, embedding, head = CASES[case]
    env = small_env(name)

    @on_host
    def run(key):
        policy = Policy(model, env.observation_space(), env.action_space(), key, embedding, head)
        task = env.sample_task(key)
        agent = spied(in_context(policy))
        return policy, rollout(agent, env, start(agent, env, task, key), key, T)[1]

    policy, record = run(jax.random.key(0))
    return policy, record, jax.tree.map(lambda x: x[None], record.info["timestep"])


read = jax.jit(lambda policy, timesteps: policy(None, timesteps)[1])


@jax.jit
def act(policy, timesteps):
    """The same a step at a time, [T, 1, ...]."""
    inputs = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), timesteps)
    return jax.lax.scan(policy.step, policy.body.init_carry(1), inputs)[1]


@pytest.mark.parametrize("case", CASES)
def test_acting_through_its_own_history_equals_reading_it(case):
    policy, record, timesteps = acted(case)
    prediction = read(policy, timesteps)
    chosen = prediction.encode(record.transition.action[None])
    np.testing.assert_allclose(record.info["log_prob"], prediction.log_prob(chosen)[0], atol=2e-3)
    assert ("probs" in record.info) == isinstance(prediction, Categorical)
    assert (record.transition.terminated | record.transition.truncated).sum() == 2
    assert np.ptp(record.info["log_prob"]) > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_step_matches_call(case):
    policy, _, timesteps = acted(case)
    stepped, called = act(policy, timesteps), read(policy, timesteps)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[:, 0], b[0], atol=1e-5), stepped, called)


@pytest.mark.parametrize("case", CASES)
def test_future_has_zero_gradient(case):
    """An answer depends on the feedback of the steps before it, and on no later one."""
    policy, _, timesteps = acted(case)
    if "feedback" not in CASES[case][2].inputs:
        pytest.skip("does not see the feedback")

    def answer(feedback):
        seen = timesteps._replace(prev=timesteps.prev._replace(feedback=feedback[None]))
        return sum(jnp.sin(x).reshape(T, -1).sum(axis=-1) for x in jax.tree.leaves(policy(None, seen)[1]))

    reach = np.abs(jax.jit(jax.jacobian(answer))(timesteps.prev.feedback[0])) > 0
    assert not np.triu(reach, 1).any()
    assert reach.diagonal()[1:].all()
    if getattr(CASES[case][1], "attend", "all") == "episode":
        episode = np.arange(T) // 5
        np.testing.assert_array_equal(reach[1:, 1:], np.tril(episode[:, None] == episode[None])[1:, 1:])


@pytest.mark.parametrize("mark", ["reset", "terminated", "truncated"])
def test_an_episode_begins_after_each_kind_of_end(mark):
    """For a model that sees no earlier one, whether it reads or acts."""
    policy, _, timesteps = acted("a token each, discrete, episodes marked")
    begins_at, none = 4, jnp.zeros((1, T), bool)
    marks = {name: none.at[:, begins_at].set(name == mark) for name in ("reset", "terminated", "truncated")}
    ends = {name: marks[name] for name in ("terminated", "truncated")}
    timesteps = timesteps._replace(prev=timesteps.prev._replace(**ends), reset=marks["reset"])
    feedback = timesteps.prev.feedback + (np.arange(T) < begins_at).astype(np.float32)[None]
    changed = timesteps._replace(prev=timesteps.prev._replace(feedback=feedback))
    for run in (lambda seen: read(policy, seen).logits[0], lambda seen: act(policy, seen).logits[:, 0]):
        differs = np.abs(run(changed) - run(timesteps)).max(axis=-1) > 1e-6
        np.testing.assert_array_equal(differs, np.arange(T) < begins_at)


def test_a_policy_greedily_takes_the_mode():
    policy, _, timesteps = acted("one token, bins")
    first = jax.tree.map(lambda x: x[:, 0], timesteps)
    carry, prediction = jax.jit(type(policy).step)(policy, policy.body.init_carry(1), first)
    agent = in_context(policy, greedy=True)
    one = jax.tree.map(lambda x: x[0], first)
    action = jax.jit(agent.act)(agent.init(jax.random.key(0)), jax.random.key(1), one)[1]
    np.testing.assert_allclose(action, prediction.decode(prediction.mode())[0], atol=1e-6)

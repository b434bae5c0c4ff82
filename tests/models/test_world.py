"""A model that foresees: in training it is asked as in acting, and branches of its memory go where they are told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from two_episodes import on_host

import icrl_envs
from icrl_jax.core import Transition
from icrl_jax.data.contexts import timesteps_of
from icrl_jax.models.embeddings import EmbeddingConfig
from icrl_jax.models.gru import GRUConfig
from icrl_jax.models.heads import DynamicsHeadConfig
from icrl_jax.models.kinds import make_model
from icrl_jax.models.policy import Policy
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.models.world import World

B, T, D, SIZE, A = 3, 11, 12, 5, 5
ENV = icrl_envs.make("dark_room", "dicp", size=SIZE, horizon=4)
SPACES = ENV.observation_space(ENV.default_params), ENV.action_space(ENV.default_params)


def transformer(**options):
    return TransformerConfig(**{"width": D, "num_layers": 2, "num_heads": 2, "context_len": 3 * T, **options})


CASES = {
    "one token, rotary": (transformer(positions="rotary"), "transition"),
    "a token each, learned": (transformer(positions="learned"), "modality"),
    "one token, which sees few": (transformer(positions="rotary", context_len=4), "transition"),
    "a token each, gru": (GRUConfig(D), "modality"),
    "a query": (transformer(positions="none"), "query"),
    "a query, gru": (GRUConfig(D), "query"),
}


def make_world(case, key):
    model, tokens = CASES[case]
    inputs = ("action", "feedback", "next_obs", "origin", "obs") if tokens == "query" else ("action", "feedback", "obs")
    embedding = EmbeddingConfig(tokens, inputs, integers="tables")
    policy = Policy(model, *SPACES, key, embedding)
    world = World(policy, *SPACES, embedding, DynamicsHeadConfig((0.0, 1.0, 2.0)), key)
    return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(key, x.shape), world)


def histories(key):
    """Of three rows, one of which begins anew in the middle; (time steps, actions)."""
    keys = jax.random.split(key, 4)
    obs, next_obs = (jax.random.randint(k, (B, T, 2), 0, SIZE) for k in keys[:2])
    action, reward = jax.random.randint(keys[2], (B, T), 0, A), jax.random.randint(keys[3], (B, T), 0, 3)
    no, ends = jnp.zeros((B, T), bool), jnp.broadcast_to(jnp.arange(T)[None] % 4 == 3, (B, T))
    reset = jnp.zeros((B, T), bool).at[:, 0].set(True).at[1, 6].set(True)
    transitions = Transition(obs, action, reward.astype(jnp.float32), next_obs, no, ends)
    return jax.vmap(timesteps_of)(transitions, reset), action


@pytest.mark.parametrize("case", CASES)
def test_it_is_asked_in_training_as_in_acting(case, getkey):
    world, (timesteps, actions) = make_world(case, getkey()), histories(getkey())
    at = jnp.array([7, 0, 10, 5, 6])

    @on_host
    def trained(world):
        prediction, foreseen, _ = world(timesteps, timesteps.obs, actions, at)
        return prediction.logits, foreseen.reward.logits, foreseen.obs

    @on_host
    def acting(world):
        def act(carry, xs):
            timestep, action = xs
            carry, prediction = world.step(carry, timestep)
            others = jnp.stack([(action + 1) % A, action], axis=1)
            foreseen = world.foresee(carry, timestep.obs, others)
            return carry, (prediction.logits, foreseen.reward.logits[:, 1], foreseen.obs[0][:, 1])

        inputs = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (timesteps, actions))
        said = jax.lax.scan(act, world.body.init_carry(B), inputs)[1]
        logits, reward, obs = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), said)
        return logits, reward[:, at], (obs[:, at],)

    for one, other in zip(jax.tree.leaves(trained(world)), jax.tree.leaves(acting(world)), strict=True):
        assert one.shape == other.shape and one.std() > 0.1
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("case", [case for case in CASES if "query" not in case])
def test_pruned_branches_go_on_from_their_parents(case, getkey):
    """And equal sequences that were read from the beginning."""
    body, n, depth = make_model(CASES[case][0], getkey()), 3, 3
    past, x = jax.random.normal(getkey(), (B, 5, D)), jax.random.normal(getkey(), (depth, B * n, D))
    parents = jnp.array([[[2, 0, 0], [1, 1, 2], [0, 2, 1]], [[0, 0, 1], [2, 1, 0], [2, 2, 0]]])
    reset = jnp.zeros((B, 5), bool)

    @on_host
    def branched(body):
        branches = body.branch(body(None, past, reset)[0], n, depth)
        for t in range(depth):
            branches = branches if t == 0 else body.prune(branches, parents[t - 1])
            branches, y = body.step(branches, x[t], jnp.zeros(B * n, bool))
        return y

    paths = []
    for b in range(B):
        for i in range(n):
            middle = int(parents[1, b, i])
            first = int(parents[0, b, middle])
            paths.append(jnp.stack([x[0, b * n + first], x[1, b * n + middle], x[2, b * n + i]]))
    whole = jnp.concatenate([jnp.repeat(past, n, axis=0), jnp.stack(paths)], axis=1)
    alone = on_host(lambda body: body(None, whole, jnp.zeros((B * n, 5 + depth), bool))[1][:, -1])(body)
    np.testing.assert_allclose(branched(body), alone, rtol=1e-3, atol=1e-4)

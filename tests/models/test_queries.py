"""Models that are asked: one pass over a sequence equals the loop, and no query leaves a trace."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from two_episodes import on_host

from icrl_jax.models.gru import GRUConfig
from icrl_jax.models.kinds import make_model
from icrl_jax.models.queries import answer_all, answer_step
from icrl_jax.models.s5 import S5Config
from icrl_jax.models.transformer import TransformerConfig

B, T, D = 3, 7, 12


def transformer(**options):
    return TransformerConfig(**{"width": D, "num_layers": 2, "num_heads": 2, "context_len": T, **options})


MODELS = {
    "none": transformer(positions="none"),
    "learned": transformer(positions="learned"),
    "rotary": transformer(positions="rotary", num_kv_heads=1, sink="kv"),
    "relative": transformer(positions="relative", context_len=11),
    "episodes": transformer(positions="episodes"),
    "short": transformer(positions="none", context_len=4),
    "s5": S5Config(width=D, num_layers=2),
    "gru": GRUConfig(width=D, num_layers=2),
}
RESETS = np.zeros((B, T), bool)
RESETS[:, 0] = True
RESETS[1, 3] = RESETS[2, 4] = RESETS[2, 5] = True
EPISODES = RESETS | (np.arange(T) == 2)


def inputs(key):
    key_x, key_query = jax.random.split(key)
    return jax.random.normal(key_x, (B, T, D)), jax.random.normal(key_query, (B, T, D))


@on_host
def whole(body, x, query):
    return answer_all(body, None, x, query, jnp.asarray(RESETS), jnp.asarray(EPISODES))[:2]


@on_host
def one_by_one(body, x, query):
    steps = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (x, query, RESETS, EPISODES))
    carry, answers = jax.lax.scan(lambda carry, now: answer_step(body, carry, *now), body.init_carry(B), steps)
    return carry, jnp.swapaxes(answers, 0, 1)


@pytest.mark.parametrize("name", MODELS)
def test_one_pass_equals_the_loop(name, getkey):
    body = make_model(MODELS[name], getkey())
    x, query = inputs(getkey())
    (carry, answers), (after, expected) = whole(body, x, query), one_by_one(body, x, query)
    np.testing.assert_allclose(answers, expected, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(
        next_answer(body, carry, x, query), next_answer(body, after, x, query), rtol=1e-3, atol=1e-5
    )


@on_host
def next_answer(body, carry, x, query):
    no = jnp.zeros(B, bool)
    return answer_step(body, carry, x[:, 2], query[:, 3], no, no)[1]


@pytest.mark.parametrize("name", ["none", "rotary", "gru"])
def test_an_answer_depends_on_its_query_and_on_what_came_before_since_the_reset(name, getkey):
    """By gradients: of other queries, of later inputs, of those before a reset and of the first they are zero."""
    body = make_model(MODELS[name], getkey())
    x, query = inputs(getkey())

    @on_host
    def sensitivity(x, query):
        def answer(x, query):
            y = answer_all(body, None, x, query, jnp.asarray(RESETS), jnp.asarray(EPISODES))[1]
            return (y**3).sum(axis=-1)  # the sum of a normalised output is always zero

        return jax.jacrev(answer, argnums=(0, 1))(x, query)

    by_input, by_query = ((np.abs(j).max(axis=-1) > 1e-9) for j in sensitivity(x, query))  # [B, T, B, T]
    for b in range(B):
        for t in range(T):
            start = np.flatnonzero(RESETS[b, : t + 1])[-1]
            seen = np.zeros((B, T), bool)
            seen[b, start + 1 : t + 1] = True
            np.testing.assert_array_equal(by_input[b, t], seen)
            np.testing.assert_array_equal(by_query[b, t], np.arange(B * T).reshape(B, T) == b * T + t)

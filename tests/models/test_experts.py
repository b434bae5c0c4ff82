# ruff: noqa: N802, N803, N806
"""However the experts are run, they give the same."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icrl_jax.models import experts as ways
from icrl_jax.models.experts import block_rows, make_plan, pays_to_sort, run_all, run_sorted
from icrl_jax.models.moe import TOKENS_TOGETHER

D, X = 13, 5


def assert_close(a, b, atol=1e-5, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=rtol), a, b)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize(("tokens", "experts"), [(1, X), (29, 2), (89, 11)])
def test_sorted_equals_dense_in_values_and_gradients(tokens, experts, platform, monkeypatch):
    """For numbers of tokens that no block divides, and with an expert that gets nothing."""
    monkeypatch.setattr(ways, "block_rows", lambda choices, experts: 8)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    keys = jax.random.split(jax.random.key(5), 4)
    x = jax.random.normal(jax.random.key(1), (tokens, D))
    logits = jax.random.normal(keys[0], (tokens, experts))
    weight, expert = jax.lax.top_k(logits if experts == 2 else logits.at[:, 0].set(-9.0), 2)
    up, down = (
        jax.random.normal(key, (experts, *size)) / 4 for key, size in zip(keys[1:], ((D, 6), (6, 3)), strict=False)
    )

    def found(run):
        loss = lambda x, weight, up, down: jnp.sin(run(x, expert, weight, up, down)).sum()
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))(x, weight, up, down)

    assert_close(found(run_sorted), found(run_all), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("crowd", [0, 1, 5])
def test_every_choice_has_a_row_in_a_block_of_its_expert(rows, crowd):
    """Whether tokens are spread, or all but one for each expert crowd into the first few."""
    expert = jax.random.randint(jax.random.key(8), (31, 2), 0, X)
    if crowd:
        expert = jnp.concatenate([expert % crowd, jnp.tile(jnp.arange(X)[:, None], (1, 2))])
    plan = make_plan(expert, X, rows)
    choice, owner = np.asarray(plan.choice), np.repeat(np.asarray(plan.expert)[:, None], rows, axis=1)
    real = choice < expert.size
    np.testing.assert_array_equal(np.sort(choice[real]), np.arange(expert.size))
    np.testing.assert_array_equal(owner[real], np.asarray(expert).reshape(-1)[choice[real]])
    np.testing.assert_array_equal(choice.reshape(-1)[np.asarray(plan.row).reshape(-1)], np.arange(expert.size))


def test_little_is_padding_on_cpu_and_few_copies_of_weights_are_made_elsewhere(monkeypatch):
    """Of 4,096 tokens, which training takes together, and 8 experts."""
    choices, experts = 2 * TOKENS_TOGETHER, 8
    rows = block_rows(choices, experts)
    plan = jax.eval_shape(partial(make_plan, num_experts=experts, rows=rows), jnp.zeros((choices // 2, 2), jnp.int32))
    assert choices < plan.choice.size < 1.1 * choices
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert block_rows(choices, experts) == 4 * rows


def test_few_tokens_are_dense_and_many_are_sorted():
    assert not pays_to_sort(1, 2, 8) and pays_to_sort(16_384, 2, 8)
    assert not pays_to_sort(16_384, 3, 3)

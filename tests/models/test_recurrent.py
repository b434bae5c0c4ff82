# ruff: noqa: N802, N803, N806
"""Models whose memory does not grow keep the contract of a sequence model, whatever the carry and the resets."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import assert_gradient_is_slope, call, running_means, scan_step

from icrl_jax.models.gru import GRUConfig
from icrl_jax.models.kinds import make_model as make
from icrl_jax.models.moe import MoEConfig
from icrl_jax.models.s5 import S5Config

B, D, T = 5, 7, 13
S5_CONFIG = S5Config(width=D, num_layers=2, state_size=6)
EXPERTS = MoEConfig(num_experts=5, num_task_experts=3, noise=True)
HARD = MoEConfig(num_task_experts=5, task_hard_router=True)
LAST = {"expert_layers": "last", "router": "tanh"}
CONFIGS = {
    "s5": S5_CONFIG,
    "s4d": S5Config(width=D, num_layers=2, kind="s4d", state_size=4),
    "s5-post-ffn": S5Config(width=D, num_layers=2, state_size=6, norm="post", gate="half_glu1", mlp_ratio=2),
    "s5-remat": S5Config(width=D, num_layers=2, state_size=6, norm="none", gate="half_glu2", remat=True),
    "s5-experts": S5Config(width=D, num_layers=2, state_size=6, mlp_ratio=2, moe=EXPERTS),
    "s5-hard-last": S5Config(
        width=D, num_layers=2, state_size=6, mlp_ratio=2, remat=True, moe=dataclasses.replace(HARD, **LAST)
    ),
    "gru": GRUConfig(width=D, num_layers=2),
    "lstm": GRUConfig(width=D, num_layers=2, cell="lstm"),
}
every_model = pytest.mark.parametrize("name", CONFIGS)


@functools.cache
def make_model(name, dtype="auto"):
    return make(dataclasses.replace(CONFIGS[name], dtype=dtype), jax.random.key(0))


def make_inputs(T=T, seed=1, batch=B):
    keys = jax.random.split(jax.random.key(seed))
    return jax.random.normal(keys[0], (batch, T, D)), jax.random.bernoulli(keys[1], 0.15, (batch, T))


@functools.cache
def used_carry(name):
    model = make_model(name)
    return scan_step(model, model.init_carry(B), *make_inputs(seed=2))[0]


def assert_close(a, b, atol=1e-5):
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=atol), a, b)


@every_model
def test_step_matches_call(name):
    """From a used carry and from nothing; and the carries agree."""
    model = make_model(name)
    x, reset = make_inputs()
    for stepped_from, called_from in ((used_carry(name),) * 2, (model.init_carry(B), None)):
        assert_close(scan_step(model, stepped_from, x, reset), call(model, called_from, x, reset))


@pytest.mark.parametrize("name", ["s5", "s4d", "s5-post-ffn", "gru", "lstm"])
def test_step_matches_call_in_half_precision(name):
    """Both make all their products in bfloat16; the memory is float32, and not rounded to fewer digits."""
    model, args = make_model(name, "bfloat16"), (used_carry(name), *make_inputs())
    (stepped, y), (called, y_called) = scan_step(model, *args), call(model, *args)
    for leaf in jax.tree.leaves((stepped, called)):
        assert leaf.dtype == jnp.float32 and (leaf.astype(jnp.bfloat16).astype(jnp.float32) != leaf).any()
    assert y.dtype == y_called.dtype == jnp.float32
    np.testing.assert_allclose(y, y_called, atol=0.1)
    assert np.abs(y - y_called).mean() < 0.01
    for run in (scan_step, call):
        products = re.findall(r":(\w+)\[[\d,]*\] = dot_general", str(jax.make_jaxpr(run)(model, *args)))
        assert set(products) == {"bf16"}


@every_model
def test_resets_equal_separate_sequences(name):
    model, (x, _), cuts = make_model(name), make_inputs(), [0, 3, 4, T]
    reset = jnp.zeros((B, T), bool).at[:, jnp.array(cuts[:-1])].set(True)
    _, together = call(model, used_carry(name), x, reset)
    for first, end in zip(cuts, cuts[1:], strict=False):
        _, apart = call(model, None, x[:, first:end], jnp.zeros((B, end - first), bool))
        assert_close(together[:, first:end], apart)


@every_model
def test_future_has_zero_gradient(name):
    """Nothing later, and nothing before a reset; everything else is seen."""
    model, reset_at = make_model(name), 6
    x, _ = make_inputs(batch=1)
    reset = jnp.zeros((1, T), bool).at[:, reset_at].set(True)
    reach = jax.jit(jax.jacobian(lambda x: jnp.square(model(None, x, reset)[1]).sum(axis=(0, 2))))(x)
    reach = np.asarray(jnp.abs(reach).sum(axis=(1, 3)))
    query, key = np.indices((T, T))
    expected = (key <= query) & ((key >= reset_at) == (query >= reset_at))
    np.testing.assert_array_equal(reach > 0, expected)


@every_model
def test_carry_is_a_memory_until_the_reset(name):
    """The gradient reaches the carry, and no further than to the first reset."""
    model, (x, _) = make_model(name), make_inputs()
    reset = jnp.zeros((B, T), bool).at[:, 4].set(True)
    loss = lambda carry, reset, t: jnp.square(model(carry, x, reset)[1][:, t]).sum()
    gradient = jax.jit(jax.grad(loss), static_argnums=2)
    reaches = lambda reset, t: max(jnp.abs(g).max() for g in jax.tree.leaves(gradient(used_carry(name), reset, t)))
    assert reaches(reset, 3) > 0 and reaches(reset, 4) == 0
    assert reaches(reset.at[:, 0].set(True), 3) == 0


@every_model
def test_peek_matches_discarded_step(name):
    model, carry = make_model(name), used_carry(name)
    candidates, _ = make_inputs(3, seed=3)
    stepped = [scan_step(model, carry, candidates[:, i : i + 1], jnp.zeros((B, 1), bool))[1][:, 0] for i in range(3)]
    assert_close(jax.jit(type(model).peek)(model, carry, candidates), jnp.stack(stepped, axis=1))


@every_model
def test_branch_matches_separate_steps(name):
    model, carry, n = make_model(name), used_carry(name), 3
    x, reset = make_inputs(4, seed=4, batch=B * n)
    branches, y = call(model, model.branch(carry, n, 4), x, reset)
    for i in range(n):
        alone, expected = scan_step(model, carry, x[i::n], reset[i::n])
        assert_close((jax.tree.map(lambda z: z[i::n], branches), y[i::n]), (alone, expected))  # noqa: B023


@every_model
def test_nan_before_a_reset_never_leaks_past_it(name):
    model, (x, _) = make_model(name), make_inputs()
    reset = jnp.zeros((B, T), bool).at[:, 4].set(True)
    spoiled = x.at[:, 2].set(jnp.nan)
    clean = call(model, None, x, reset)[1]
    before, _ = call(model, None, spoiled[:, :4], reset[:, :4])
    for y in (
        call(model, None, spoiled, reset)[1],
        scan_step(model, model.init_carry(B), spoiled, reset)[1],
        jnp.concatenate([x[:, :4], call(model, before, x[:, 4:], reset[:, 4:])[1]], axis=1),
    ):
        assert_close(y[:, 4:], clean[:, 4:])
    assert jnp.isnan(call(model, None, spoiled, reset)[1][:, 2:4]).all()
    past = jax.jit(jax.grad(lambda x: jnp.sin(model(None, x, reset)[1][:, 4:]).sum()))
    assert_close(past(spoiled)[:, 4:], past(x)[:, 4:])


def test_a_sequence_is_routed_by_the_mean_of_what_its_gate_has_seen():
    """Since the last reset; without normalisation the output is what the experts read and what they make of it."""
    config = dataclasses.replace(CONFIGS["s5-hard-last"], num_layers=1, norm="none")
    model, (x, reset) = make(config, jax.random.key(0)), make_inputs()
    _, y, aux = jax.jit(lambda model: model(None, x, reset))(model)
    h = aux.task_inputs[0]
    means = running_means(h, reset)
    block = jax.tree.map(lambda p: p[0], model.blocks)
    assert_close(y - h, block.ffn(h, None, means)[0])
    by_token, by_mean = (np.asarray(block.ffn.task.gate.route(z.reshape(-1, D), 2, None).expert) for z in (h, means))
    assert (by_token != by_mean).any()


@every_model
def test_gradients_match_finite_differences_in_float64(name):
    """Of the weights, the inputs and the carry, along one direction."""
    model, carry = make_model(name, "float64"), used_carry(name)
    x, reset = make_inputs()
    f = lambda args: jnp.sin(args[0](args[1], args[2], reset)[1].astype(jnp.float64)).sum()
    assert_gradient_is_slope(f, (model, carry, x))

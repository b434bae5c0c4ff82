# ruff: noqa: N802, N803, N806
"""The transformer keeps the contract of a sequence model, whatever the carry, the resets and the lengths."""

import dataclasses
import functools
import itertools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import call, scan_step

from icrl_jax.models.layers import layer_norm, linear
from icrl_jax.models.transformer import Transformer, TransformerConfig

B, D, C = 7, 12, 5
CONFIG = TransformerConfig(width=D, num_layers=2, num_heads=3, context_len=C, positions="none")
POSITIONS = {"none": CONFIG, "learned": CONFIG, "rotary": dataclasses.replace(CONFIG, num_heads=2)}


@functools.cache
def make_model(positions="none"):
    return Transformer(dataclasses.replace(POSITIONS[positions], positions=positions), jax.random.key(0))


def make_inputs(T, seed=1, batch=B):
    keys = jax.random.split(jax.random.key(seed))
    return jax.random.normal(keys[0], (batch, T, D)), jax.random.bernoulli(keys[1], 0.15, (batch, T))


peek = jax.jit(Transformer.peek)


@functools.cache
def used_carry(model, T=13):
    return scan_step(model, model.init_carry(B), *make_inputs(T, seed=2))[0]


@pytest.mark.parametrize(
    ("positions", "T"), [*itertools.product(POSITIONS, [3, 13]), ("learned", 1), ("learned", C), ("rotary", 1)]
)
def test_step_matches_call(positions, T):
    """From a used carry and from nothing, for T below, at and above C; and the carries agree."""
    model = make_model(positions)
    x, reset = make_inputs(T)
    for stepped_from, called_from in ((used_carry(model),) * 2, (model.init_carry(B), None)):
        stepped, called = (
            scan_step(model, stepped_from, x, reset),
            call(model, called_from, x, reset),
        )
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), stepped, called)


def test_init_carry_equals_no_carry():
    model = make_model("learned")
    x, reset = make_inputs(3)
    with_memory, without = (call(model, carry, x, reset) for carry in (model.init_carry(B), None))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), with_memory, without)


@pytest.mark.parametrize("positions", POSITIONS)
def test_resets_equal_separate_sequences(positions):
    model = make_model(positions)
    x, _ = make_inputs(11)
    cuts = [0, 3, 4, 11]
    reset = jnp.zeros((B, 11), bool).at[:, jnp.array(cuts[:-1])].set(True)
    _, together = call(model, used_carry(model), x, reset)
    for first, end in zip(cuts, cuts[1:], strict=False):
        _, apart = call(model, None, x[:, first:end], jnp.zeros((B, end - first), bool))
        np.testing.assert_allclose(together[:, first:end], apart, atol=1e-5)


def test_future_has_zero_gradient():
    """Nothing later, nothing before a reset, nothing older than the context of one layer times the layers."""
    model = make_model("learned")
    T, reset_at = 11, 6
    x, _ = make_inputs(T, batch=1)
    reset = jnp.zeros((1, T), bool).at[:, reset_at].set(True)
    reach = jax.jit(jax.jacobian(lambda x: jnp.square(model(None, x, reset)[1]).sum(axis=(0, 2))))(x)
    reach = np.asarray(jnp.abs(reach).sum(axis=(1, 3))) > 1e-6
    query, key = np.indices((T, T))
    expected = (key <= query) & ((key >= reset_at) == (query >= reset_at)) & (query - key <= 2 * (C - 1))
    np.testing.assert_array_equal(reach, expected)


@pytest.mark.parametrize("positions", POSITIONS)
def test_peek_matches_discarded_step(positions):
    model = make_model(positions)
    carry = used_carry(model)
    candidates, _ = make_inputs(3, seed=3)
    peeked = peek(model, carry, candidates)
    stepped = [scan_step(model, carry, candidates[:, i : i + 1], jnp.zeros((B, 1), bool))[1][:, 0] for i in range(3)]
    np.testing.assert_allclose(peeked, jnp.stack(stepped, axis=1), atol=1e-5)


@pytest.mark.parametrize("positions", POSITIONS)
def test_branch_matches_separate_steps(positions):
    """More steps on the branches than the cache is long, with resets; then a peek from there."""
    model, n, depth = make_model(positions), 3, 7
    carry = used_carry(model)
    x, reset = make_inputs(depth, seed=4, batch=B * n)
    copies = carry._replace(
        length=jnp.repeat(carry.length, n),
        k=jax.tree.map(lambda k: jnp.repeat(k, n, axis=0), carry.k),
        v=jax.tree.map(lambda v: jnp.repeat(v, n, axis=0), carry.v),
    )
    branches, y = call(model, model.branch(carry, n, depth), x, reset)
    copies, expected = scan_step(model, copies, x, reset)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    # One slot is left unused here, so that a next input exists.
    branches, _ = call(model, model.branch(carry, n, depth + 1), x, reset)
    np.testing.assert_allclose(peek(model, branches, x[:, :2]), peek(model, copies, x[:, :2]), atol=1e-5)
    with pytest.raises(ValueError, match="depth=2"):
        model(model.branch(carry, n, 2), x, reset)


def test_nan_before_a_reset_never_leaks_past_it():
    model = make_model("learned")
    x, _ = make_inputs(9)
    reset = jnp.zeros((B, 9), bool).at[:, 4].set(True)
    spoiled = x.at[:, 2].set(jnp.nan)
    clean = call(model, None, x, reset)[1]
    for y in (
        call(model, None, spoiled, reset)[1],
        scan_step(model, model.init_carry(B), spoiled, reset)[1],
        jnp.concatenate(
            [x[:, :4], call(model, call(model, None, spoiled[:, :4], reset[:, :4])[0], x[:, 4:], reset[:, 4:])[1]], 1
        ),
    ):
        np.testing.assert_allclose(y[:, 4:], clean[:, 4:], atol=1e-5)
    assert jnp.isnan(call(model, None, spoiled, reset)[1][:, 2:4]).all()
    assert jnp.isnan(scan_step(model, model.init_carry(B), spoiled, reset)[1][:, 2:4]).all()


def test_index_far_along_is_exact():
    """Rotary angles depend on differences of indices only, even where float32 cannot count and int32 wraps."""
    model = make_model("rotary")
    x, reset = make_inputs(4)
    near = scan_step(model, model.init_carry(B), x, reset)[1]
    far_start = model.init_carry(B)._replace(index=jnp.int32(400_000_000))
    np.testing.assert_allclose(scan_step(model, far_start, x, reset)[1], near, atol=1e-5)


def test_residual_variance_does_not_grow_with_depth():
    """Outputs are normalised, so look at the weights: fan-in, and smaller by sqrt(2 L) where the stream is written."""
    cfg = TransformerConfig(width=64, num_layers=2, num_heads=2)
    block = Transformer(cfg, jax.random.key(0)).blocks
    for weight, fan_in, scale in (
        (block.qkv, 64, 1),
        (block.out, 64, 4),
        (block.ffn.up, 64, 1),
        (block.ffn.down, 256, 4),
    ):
        np.testing.assert_allclose(weight[...].std() * (fan_in * scale) ** 0.5, 1, atol=0.03)
    model = Transformer(cfg, jax.random.key(1))
    _, y = call(model, None, jax.random.normal(jax.random.key(2), (5, 11, 64)), jnp.zeros((5, 11), bool))
    np.testing.assert_allclose(y.std(), 1, atol=0.05)
    assert y.dtype == jnp.float32


def test_gradients_match_finite_differences_in_float64():
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 4)
        args = (
            jax.random.normal(keys[0], (2, 3, 7), jnp.float64),
            jax.random.normal(keys[1], (7, 5), jnp.float64),
            jax.random.normal(keys[2], (5,), jnp.float64),
            jax.random.normal(keys[3], (5,), jnp.float64),
        )

        def f(args):
            x, w, scale, bias = args
            return jnp.sin(layer_norm(linear(x, w), scale, bias)).sum()

        direction = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), args)
        slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), jax.grad(f)(args), direction)))
        ahead = f(jax.tree.map(lambda x, d: x + 1e-6 * d, args, direction))
        behind = f(jax.tree.map(lambda x, d: x - 1e-6 * d, args, direction))
        np.testing.assert_allclose((ahead - behind) / 2e-6, slope, rtol=1e-6)


def test_step_is_differentiable():
    """Backpropagation through acting equals that through a whole sequence."""
    model = make_model()
    x, reset = make_inputs(3)
    stepped = jax.jit(jax.grad(lambda x: jnp.sin(scan_step(model, model.init_carry(B), x, reset)[1]).sum()))(x)
    called = jax.jit(jax.grad(lambda x: jnp.sin(call(model, None, x, reset)[1]).sum()))(x)
    np.testing.assert_allclose(stepped, called, atol=1e-5)


def test_vmapped_tasks_share_the_index_and_write_one_slot():
    """A batched index would turn the write into one scatter per task; a copy would read the whole cache."""
    model = make_model()
    x = jnp.zeros((11, 1, D))

    def rollout(carry):
        def step(carry, _):
            axes = carry._replace(index=None, length=0, k=(0, 0), v=(0, 0))
            return jax.vmap(lambda c, x: model.step(c, x, jnp.zeros(1, bool)), in_axes=(axes, 0), out_axes=(axes, 0))(
                carry, x
            )

        return jax.lax.scan(step, carry, length=3)

    empty = model.init_carry(1)
    carry = jax.tree.map(lambda leaf: jnp.zeros((11, *leaf.shape), leaf.dtype), empty)._replace(index=empty.index)
    jaxpr = str(jax.make_jaxpr(rollout)(carry))
    assert "dynamic_update_slice" in jaxpr
    assert "scatter" not in jaxpr


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(width=0), ["width=0", "positive"]),
        (dict(num_layers=-1), ["num_layers=-1", "positive"]),
        (dict(context_len=2.5), ["context_len=2.5", "positive integer"]),
        (dict(width=12, num_heads=5), ["num_heads=5", "width=12", "[1, 2, 3, 4, 6, 12]"]),
        (dict(width=12, num_heads=4, positions="rotary"), ["num_heads=4", "rotary", "even"]),
        (dict(positions="sinus"), ["positions='sinus'", "none, learned, rotary"]),
        (dict(dtype="int8"), ["dtype='int8'", "bfloat16"]),
    ],
)
def test_config_refuses_what_cannot_work(options, words):
    with pytest.raises(ValueError) as error:
        TransformerConfig(**options)
    assert all(word in str(error.value) for word in words)


def test_check_horizon_refuses_longer_than_the_table():
    config = TransformerConfig(context_len=10)
    config.check_horizon(10, "num_steps")
    with pytest.raises(ValueError, match=re.escape("num_steps=11") + ".*context_len=10"):
        config.check_horizon(11, "num_steps")
    TransformerConfig(context_len=10, positions="rotary").check_horizon(11)

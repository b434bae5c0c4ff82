# ruff: noqa: N802, N803, N806
"""A feed-forward network keeps the contract of a sequence model, and remembers nothing."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import assert_gradient_is_slope, call, scan_step

from icrl_jax.models.kinds import make_model, other_kind
from icrl_jax.models.mlp import MLPConfig
from icrl_jax.models.transformer import TransformerConfig

B, D, T, N = 5, 7, 11, 3
KEYS = jax.random.split(jax.random.key(1), 3)
X = jax.random.normal(KEYS[0], (B, T, D))
RESET = jax.random.bernoulli(KEYS[1], 0.2, (B, T))


def make(**options):
    return make_model(MLPConfig(width=D, **options), jax.random.key(0))


MODEL = make()


@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu"])
def test_it_is_biases_activations_and_maps(activation):
    model = make(activation=activation)
    act = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0), "gelu": jax.nn.gelu}[activation]
    y = np.asarray(X)
    for i, bias in enumerate(model.biases):
        y = y if i == 0 else y @ np.asarray(model.maps[i - 1][...])
        y = np.asarray(act(y + np.asarray(bias[...])))
    assert len(model.biases) == 3 and len(model.maps) == 2
    np.testing.assert_allclose(call(model, None, X, RESET)[1], y, atol=1e-5)


def test_an_input_of_zeros_says_something():
    assert jnp.abs(call(MODEL, None, jnp.zeros((1, 1, D)), RESET[:1, :1])[1]).min() > 0


def test_step_matches_call():
    assert MODEL.init_carry(B) == ()
    for carry in ((), None):
        called, stepped = call(MODEL, carry, X, RESET), scan_step(MODEL, (), X, RESET)
        assert called[0] == stepped[0] == ()
        np.testing.assert_allclose(called[1], stepped[1], atol=1e-6)


def test_step_matches_call_in_half_precision():
    """Both make all their products, one a map, in bfloat16."""
    model = make(dtype="bfloat16")
    (_, y), (_, y_called) = scan_step(model, (), X, RESET), call(model, None, X, RESET)
    assert y.dtype == y_called.dtype == jnp.float32
    np.testing.assert_allclose(y, y_called, atol=0.02)
    for run, x in ((model.step, X[:, 0]), (model, X)):
        products = re.findall(r":(\w+)\[[\d,]*\] = dot_general", str(jax.make_jaxpr(run)((), x, RESET)))
        assert products == ["bf16"] * 2


def test_resets_equal_separate_sequences():
    """Wherever they are, for nothing is remembered."""
    together = call(MODEL, None, X, RESET)[1]
    for first, end in itertools.pairwise([0, 3, 4, T]):
        apart = call(MODEL, None, X[:, first:end], jnp.zeros((B, end - first), bool))[1]
        np.testing.assert_allclose(together[:, first:end], apart, atol=1e-6)


def test_future_has_zero_gradient():
    """And so has the past: an output depends on its own input only."""
    reach = jax.jit(jax.jacobian(lambda x: jnp.sin(MODEL(None, x, RESET[:1])[1]).sum(axis=(0, 2))))(X[:1])
    reach = np.asarray(jnp.abs(reach).sum(axis=(1, 3)))
    np.testing.assert_array_equal(reach > 0, np.eye(T, dtype=bool))


def test_peek_and_branch_match_steps():
    candidates = X[:, :N]
    expected = call(MODEL, None, candidates, RESET[:, :N])[1]
    np.testing.assert_allclose(jax.jit(type(MODEL).peek)(MODEL, (), candidates), expected, atol=1e-6)
    assert MODEL.branch((), N, depth=2) == ()


def test_gradients_match_finite_differences_in_float64():
    model = make(dtype="float64")
    assert_gradient_is_slope(lambda args: jnp.sin(args[0](None, args[1], RESET)[1]).sum(), (model, X))


def test_it_is_one_of_the_kinds():
    config = other_kind(TransformerConfig(width=12, num_layers=2, num_heads=2), "mlp")
    assert config == MLPConfig(width=12, num_layers=2, dtype="auto") and config.context_len == 1


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(width=0), "width=0 must be a positive integer"),
        (dict(num_layers=0), "num_layers=0 must be a positive integer"),
        (dict(activation="sine"), "activation='sine' must be one of tanh, relu, gelu"),
        (dict(dtype="int8"), "dtype='int8' must be one of auto, float32, bfloat16, float64"),
    ],
)
def test_config_refuses_what_cannot_work(options, words):
    with pytest.raises(ValueError, match=words):
        MLPConfig(**options)

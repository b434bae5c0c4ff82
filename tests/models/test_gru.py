"""GRU and LSTM against flax's cells."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from icrl_jax.models.gru import GRU, GRUConfig

B, D, T = 5, 7, 11


def test_gru_is_that_of_flax():
    model = GRU(GRUConfig(width=D), jax.random.key(0))
    gates = jax.tree.map(lambda p: p[0] + 0.1, model.cells)  # biases that are not zero
    gates.new_bias[...] = jnp.zeros(D)  # which flax does not have
    model.cells = jax.tree.map(lambda p: p[None], gates)
    flax = nnx.GRUCell(D, D, rngs=nnx.Rngs(0))
    flax.dense_i.kernel[...], flax.dense_i.bias[...] = gates.input[...], gates.bias[...]
    flax.dense_h.kernel[...] = gates.memory[...]
    check(model, lambda h, x: flax(h, x)[0], lambda h: h)


def test_lstm_is_that_of_flax():
    model = GRU(GRUConfig(width=D, cell="lstm"), jax.random.key(0))
    gates = jax.tree.map(lambda p: p[0], model.cells)
    flax = nnx.OptimizedLSTMCell(D, D, rngs=nnx.Rngs(0))
    flax.dense_i.kernel[...], flax.dense_h.kernel[...] = gates.input[...], gates.memory[...]
    flax.dense_h.bias[...] = gates.bias[...]

    def step(hc, x):
        h, c = jnp.split(hc, 2, axis=-1)
        (c, h), _ = flax((c, h), x)
        return jnp.concatenate([h, c], axis=-1)

    check(model, step, lambda hc: hc[:, :D])


def check(model, step, output):
    x = jax.random.normal(jax.random.key(1), (B, T, D))
    (memory,), y, _ = jax.jit(type(model).__call__)(model, None, x, jnp.zeros((B, T), bool))
    (expected,) = model.init_carry(B)
    with jax.numpy_rank_promotion("allow"):
        for t in range(T):
            expected = step(expected, x[:, t])
            np.testing.assert_allclose(y[:, t], output(expected), atol=1e-5)
    np.testing.assert_allclose(memory, expected, atol=1e-5)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(width=0), "width=0 must be a positive integer"),
        (dict(num_layers=-1), "num_layers=-1 must be a positive integer"),
        (dict(cell="rnn"), "cell='rnn' must be one of gru, lstm"),
        (dict(dtype="int8"), "dtype='int8' must be one of auto, float32, bfloat16, float64"),
    ],
)
def test_config_refuses_what_cannot_work(options, words):
    with pytest.raises(ValueError, match=words):
        GRUConfig(**options)

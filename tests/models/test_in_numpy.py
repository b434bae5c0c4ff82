# ruff: noqa: N802, N803, N806
"""The transformer and a block of S5 in NumPy, in so many words: one row, one head and one input at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icrl_jax.models.s5 import S5, S5Config
from icrl_jax.models.transformer import Transformer, TransformerConfig

B, T, D = 3, 11, 24
S5_WIDTH, NUM_STATES = 7, 5


def random_model(make, config):
    """No parameter is zero, or one, not even of those that are at first."""
    rng = np.random.default_rng(0)
    model = jax.eval_shape(lambda: make(config, jax.random.key(0)))
    return jax.tree.map(lambda p: jnp.asarray(0.5 * rng.normal(size=p.shape), p.dtype), model)


def make_inputs(width):
    """Inputs, where sequences begin, and where episodes do."""
    rng = np.random.default_rng(1)
    x, reset, episode = rng.normal(size=(B, T, width)), rng.uniform(size=(B, T)) < 0.1, rng.uniform(size=(B, T)) < 0.2
    assert reset[:, 1:].any() and (episode & ~reset)[:, 1:].any()
    return x.astype(np.float32), reset, episode


def float64(module, *layer):
    return jax.tree.map(lambda p: np.asarray(p[layer], np.float64), module)


def gelu(x):
    return x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def normed(x, norm):
    normal = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
    return normal * norm.scale[...] + norm.bias[...]


def fed_forward(x, ffn):
    return gelu(x @ ffn.up[...]) @ ffn.down[...]


def rotated(x_K, count):
    """RoFormer's rotation; feature i is paired with i + K / 2."""
    half = len(x_K) // 2
    z = (x_K[:half] + 1j * x_K[half:]) * np.exp(1j * count * 10_000.0 ** (-np.arange(half) / half))
    return np.concatenate([z.real, z.imag])


def attended(cfg, block, x, start, turns):
    """What each query finds, [T, H * K], in the inputs from its start on, of which it sees the last C."""
    H, G, K = cfg.num_heads, cfg.num_kv_heads, D // cfg.num_heads
    q, k, v = np.split((x @ block.qkv[...]).reshape(T, H + 2 * G, K), (H, H + G), axis=1)
    found = np.zeros((T, H, K))
    for t in range(T):
        for h in range(H):
            g = h // (H // G)
            seen = range(max(start[t], t - cfg.context_len + 1), t + 1)
            scores = [rotated(q[t, h], turns[t]) @ rotated(k[s, g], turns[s]) for s in seen]
            values = [v[s, g] for s in seen]
            if cfg.sink == "kv":
                scores.append(q[t, h] @ block.sink_k[...][g])
                values.append(block.sink_v[...][g])
            p = np.exp(np.array(scores) / K**0.5)
            found[t, h] = p @ values / p.sum()
    return found.reshape(T, H * K)


def transformer(model, x, reset, episode):
    cfg, steps, counts = model.config, np.arange(T), np.zeros(T)
    start = [max([0, *np.flatnonzero(reset[: t + 1])]) for t in steps]
    if cfg.positions == "learned":
        x = x + float64(model.table[...])[steps - start]
    if cfg.positions == "rotary":
        counts = steps
    if cfg.positions == "episodes":
        begins = reset | episode
        first = [max([0, *np.flatnonzero(begins[: t + 1])]) for t in steps]
        x = x + float64(model.table[...])[steps - first]
        counts = [begins[start[t] + 1 : t + 1].sum() for t in steps]
    for layer in range(cfg.num_layers):
        block = float64(model.blocks, layer)
        x = x + attended(cfg, block, normed(x, block.attention_norm), start, counts) @ block.out[...]
        x = x + fed_forward(normed(x, block.ffn_norm), block.ffn)
    return normed(x, float64(model.norm))


@pytest.mark.parametrize(
    "positions, sink, context_len",
    [("none", "none", 5), ("learned", "kv", T), ("rotary", "kv", 5), ("episodes", "none", T)],
)
def test_transformer_is_attention_and_feed_forward_parts(positions, sink, context_len):
    """On a residual stream, normalised before each; with grouped heads, positions, Sink-KV and a limited context."""
    config = TransformerConfig(
        D, 2, 4, context_len, positions=positions, sink=sink, num_kv_heads=2, mlp_ratio=2, dtype="float32"
    )
    model, inputs = random_model(Transformer, config), make_inputs(D)
    found = jax.jit(lambda model, *inputs: model(None, *inputs)[1])(model, *inputs)
    for row in range(B):
        np.testing.assert_allclose(found[row], transformer(model, *(xs[row] for xs in inputs)), atol=1e-4)


def recurred(ssm, u, reset):
    """S5's recurrence in complex numbers, held step by step at zero order."""
    eigenvalues = -np.exp(ssm.log_decay[...]) + 1j * ssm.frequency[...]
    a = np.exp(eigenvalues * np.exp(ssm.log_dt[...]))
    b = ssm.b[...][:, :NUM_STATES] + 1j * ssm.b[...][:, NUM_STATES:]
    c = ssm.c[...][:NUM_STATES] - 1j * ssm.c[...][NUM_STATES:]
    state, y = 0, []
    for t in range(T):
        state = (0 if reset[t] else a * state) + (a - 1) / eigenvalues * (u[t] @ b)
        y.append((state @ c).real + ssm.skip[...] * u[t])
    return np.array(y)


def s5(model, x, reset):
    cfg, block = model.config, float64(model.blocks, 0)
    before = lambda x, norm: normed(x, norm) if cfg.norm == "pre" else x
    after = lambda x, norm: normed(x, norm) if cfg.norm == "post" else x
    y = recurred(block.ssm, before(x, block.norm), reset)
    through = sigmoid(gelu(y) @ block.gate[...])
    if cfg.gate == "full_glu":
        gated = gelu(y) @ block.value[...] * through
    else:
        gated = {"half_glu1": gelu(y), "half_glu2": y}[cfg.gate] * through
    x = after(x + gated, block.norm)
    x = after(x + fed_forward(before(x, block.ffn_norm), block.ffn), block.ffn_norm)
    return normed(x, float64(model.norm)) if cfg.norm == "pre" else x


@pytest.mark.parametrize("gate, norm", [("full_glu", "pre"), ("half_glu1", "none"), ("half_glu2", "post")])
def test_s5_is_a_recurrence_a_gate_and_a_feed_forward_part(gate, norm):
    """On a residual stream, normalised before each part, after it or nowhere."""
    config = S5Config(S5_WIDTH, 1, state_size=2 * NUM_STATES, gate=gate, norm=norm, mlp_ratio=2, dtype="float32")
    model, (x, reset, _) = random_model(S5, config), make_inputs(S5_WIDTH)
    found = jax.jit(lambda model, *inputs: model(None, *inputs)[1])(model, x, reset)
    for row in range(B):
        np.testing.assert_allclose(found[row], s5(model, x[row], reset[row]), atol=1e-4)

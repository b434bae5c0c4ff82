"""What is quick to train: a linear regression with all that a method has, and a DPT of a few hundred weights."""

import jax
import jax.numpy as jnp

import icrl_envs
from icrl_jax.agents import empirical_mean
from icrl_jax.core import Method
from icrl_jax.methods.dpt import DPTConfig
from icrl_jax.methods.supervised import OptimConfig, supervised
from icrl_jax.models.transformer import TransformerConfig

BANDIT = icrl_envs.make("gaussian_bandit", num_arms=3)
NUM_SAMPLES, WIDTH, BATCH = 103, 13, 5
TRACES = []  # one entry for each time the loss is traced


def regression(optim: OptimConfig | None = None, data=None) -> Method:
    """Fits y = x @ w to noisy samples of one fixed data set."""

    def init_params(key):
        return {"w": jax.random.normal(key, (WIDTH,))}

    def collect(data, row):
        x, y = data
        return x[row.index], y[row.index] + 0.1 * jax.random.normal(row.key)

    def loss(params, batch, key):
        TRACES.append(None)
        x, y = batch
        error = y - x @ params["w"]
        return (error**2).mean(), {"largest": jnp.abs(error).max()}

    def agent(params, context=None, online=True, greedy=None):
        return empirical_mean(3)

    optim = OptimConfig(learning_rate=0.1) if optim is None else optim
    data = samples if data is None else data
    return supervised(init_params, collect, loss, agent, optim, 12, BATCH, 1, data, NUM_SAMPLES)


def samples():
    x = jax.random.normal(jax.random.key(3), (NUM_SAMPLES, WIDTH))
    return x, x @ jnp.arange(1.0, WIDTH + 1)


def dpt_config(**options) -> DPTConfig:
    model = TransformerConfig(width=8, num_layers=1, num_heads=2, context_len=8, positions="none")
    return DPTConfig(**{"model": model, "num_updates": 12, "batch_size": 5, "horizon": 7, **options})

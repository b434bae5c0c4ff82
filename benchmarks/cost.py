"""The cost model, in the axis letters of `docs/performance.md`, and the matmul peak to hold it against."""

import importlib.util
from collections.abc import Callable

import jax
import jax.numpy as jnp

from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.parallel import over_rows, replicate


def token_flops(model: TransformerConfig, keys: float, inputs: int, outputs: int) -> float:
    """Forward pass of one token that sees so many keys: L (8 D^2 + 4 D F + 4 D keys) + 2 D (inputs + outputs)."""
    D, F = model.width, model.width * model.mlp_ratio
    return model.num_layers * (8 * D * D + 4 * D * F + 4 * D * keys) + 2 * D * (inputs + outputs)


def update_flops(model: TransformerConfig, batch_size: int, num_tokens: int, inputs: int, outputs: int) -> float:
    """3 B T (token): the backward pass costs twice the forward one; a token sees (T + 1) / 2 keys on average."""
    return 3 * batch_size * num_tokens * token_flops(model, (num_tokens + 1) / 2, inputs, outputs)


def large_products(size: int) -> dict[str, Callable[[], object]]:
    """One large float32 product, 2 size^3 FLOPs: XLA on one device, on all of them, PyTorch if it can be imported."""
    a, b = jax.random.normal(jax.random.key(0), (2, size, size))
    shared = replicate(b)
    matmul = jax.jit(jnp.matmul)
    split = jax.jit(lambda rows, shared: over_rows(lambda shared, rows: rows @ shared)(shared, rows))
    sides: dict[str, Callable[[], object]] = {
        "XLA, one device": lambda: jax.block_until_ready(matmul(a, b)),
        "XLA, all devices": lambda: jax.block_until_ready(split(a, shared)),
    }
    if importlib.util.find_spec("torch"):
        import torch

        left, right = torch.randn(size, size), torch.randn(size, size)
        sides["torch.mm"] = lambda: left @ right
    return sides

# ruff: noqa: N803, N806
"""What every query sees besides its inputs, so that a head may attend to nothing: Sink-KV.

References:
    Ahmad Elawady et al., ReLIC, 2024, https://arxiv.org/abs/2410.02751, section 3.2
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
from jax import Array

from icrl_jax.models.layers import at_least_float32
from icrl_jax.models.plain_attention import Sink, for_queries

SinkKind = Literal["none", "kv", "kv0", "k0v", "k0v0", "token"]

SinkKV = tuple[Array, Array] | None  # [G, K] each


def learned_sink(config: Any, block: Any) -> SinkKV:
    """The parameters of a block, or zeros where it has none."""
    zero = jnp.zeros((config.kv_heads, config.head_width))
    k, v = (getattr(block, name, None) for name in ("sink_k", "sink_v"))
    return zero if k is None else k[...], zero if v is None else v[...]


def token_sinks(token_D: Array, blocks: Sequence[Any]) -> list[SinkKV]:
    """Key and value in each layer of an input that sees only itself, and therefore finds its own value."""
    sinks, x_11D = [], token_D[None, None]
    for block in blocks:
        _, k, v = block.heads(x_11D)
        x_11D, *_ = block.merge(x_11D, for_queries(v, block.num_heads))
        sinks.append((k[0, 0], v[0, 0]))
    return sinks


def sink_scores(q_BTHK: Array, sink: SinkKV) -> Sink | None:
    """The queries, not turned so that the sink is nowhere, with its key."""
    if sink is None:
        return None
    k_GK, v_GK = sink
    H, K = q_BTHK.shape[2:]
    k_HK = for_queries(k_GK[None, None].astype(q_BTHK.dtype), H)[0, 0]
    score_BTH = jnp.einsum("bthk,hk->bth", q_BTHK, k_HK, preferred_element_type=at_least_float32(q_BTHK.dtype))
    return Sink(score_BTH * K**-0.5, v_GK)

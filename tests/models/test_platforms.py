# ruff: noqa: N806
"""Whole models on the code paths of accelerators, which are asked for by name and run here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import call, filled, scan_step

from icrl_jax.models.kinds import make_model
from icrl_jax.models.moe import MoEConfig
from icrl_jax.models.s5 import S5Config
from icrl_jax.models.transformer import TransformerConfig

B, T, D = 3, 11, 12
EXPERTS = MoEConfig(num_experts=5, dispatch="sorted")
ATTENTION = {"num_kv_heads": 2, "context_len": 5, "positions": "relative", "sink": "kv"}
CONFIGS = {
    "transformer": TransformerConfig(D, 1, 4, dtype="float32", moe=EXPERTS, **ATTENTION),
    "s5": S5Config(D, 1, state_size=6, mlp_ratio=2, dtype="float32", moe=EXPERTS),
}
assert_close = functools.partial(jax.tree.map, functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4))


@pytest.mark.parametrize("name", CONFIGS)
def test_step_matches_call_and_both_match_the_cpu(name, monkeypatch):
    """From a used carry, with resets; and so do gradients."""
    model = filled(lambda: make_model(CONFIGS[name], jax.random.key(0)))
    rng = np.random.default_rng(0)
    past, x = rng.normal(size=(2, B, T, D)).astype(np.float32)
    reset = rng.uniform(size=(B, T)) < 0.2
    weight = rng.normal(size=(B, T, D)).astype(np.float32)
    found = {}
    for platform in ("cpu", "gpu"):
        jax.clear_caches()  # of what was traced for another
        monkeypatch.setattr(jax, "default_backend", lambda platform=platform: platform)
        carry = call(model, None, past, reset)[0]
        gradient = jax.jit(jax.grad(lambda args: (weight * call(args[0], carry, args[1], reset)[1]).sum()))  # noqa: B023
        found[platform] = call(model, carry, x, reset), gradient((model, jnp.asarray(x)))
        assert_close(scan_step(model, carry, x, reset), found[platform][0])
    assert_close(found["gpu"], found["cpu"])

"""Which sequence models there are: one option, with sub-options of its own."""

from jax import Array

from icrl_jax.models.gru import GRU, GRUConfig
from icrl_jax.models.mlp import MLP, MLPConfig
from icrl_jax.models.s5 import S5, S5Config
from icrl_jax.models.transformer import Transformer, TransformerConfig

ModelConfig = TransformerConfig | S5Config | GRUConfig | MLPConfig

KINDS = {
    "transformer": (TransformerConfig, Transformer),
    "s5": (S5Config, S5),
    "gru": (GRUConfig, GRU),
    "mlp": (MLPConfig, MLP),
}

VARIANTS = {"s4d": "s5 --kind s4d", "lstm": "gru --cell lstm"}
"""Models that are an option of another."""


def kind_of(config: ModelConfig) -> str:
    """Its name in `KINDS`."""
    return next(name for name, (cls, _) in KINDS.items() if type(config) is cls)


def make_model(config: ModelConfig, key: Array) -> Transformer | S5 | GRU | MLP:
    """The sequence model of a config, with fresh weights."""
    return KINDS[kind_of(config)][1](config, key)


def other_kind(config: ModelConfig, name: str) -> ModelConfig:
    """The config of another kind, of the same width, depth and precision.

    Raises:
      ValueError: no such kind.
    """
    if name not in KINDS:
        hint = f"; did you mean --model {VARIANTS[name]}?" if name in VARIANTS else ""
        raise ValueError(f"model={name!r}: must be one of {', '.join(KINDS)}{hint}")
    cls = KINDS[name][0]
    if type(config) is cls:
        return config
    return cls(width=config.width, num_layers=config.num_layers, dtype=config.dtype)

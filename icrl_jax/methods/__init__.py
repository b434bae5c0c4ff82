"""Everything that is trained, one paper a file."""

from icrl_jax.methods.dpt import DPTConfig, dpt
from icrl_jax.methods.supervised import OptimConfig, supervised

__all__ = ["DPTConfig", "OptimConfig", "dpt", "supervised"]

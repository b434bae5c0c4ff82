"""What is read off a sequence model: actions, values, and what happens next.

A head is a module from y [..., D] to a prediction, a pytree of float32 arrays that maps and scans.
"""

from icrl_jax.models.heads.actions import ActionHeadConfig, make_action_head
from icrl_jax.models.heads.distributions import INSIDE, Bins, Categorical, Prediction, TanhGaussian
from icrl_jax.models.heads.dynamics import Dynamics, DynamicsHeadConfig, make_dynamics_head
from icrl_jax.models.heads.values import (
    Scalar,
    TwoHot,
    ValueHeadConfig,
    make_value_head,
    symlog_bins,
    two_hot,
)

__all__ = [
    "INSIDE",
    "ActionHeadConfig",
    "Bins",
    "Categorical",
    "Dynamics",
    "DynamicsHeadConfig",
    "Prediction",
    "Scalar",
    "TanhGaussian",
    "TwoHot",
    "ValueHeadConfig",
    "make_action_head",
    "make_dynamics_head",
    "make_value_head",
    "symlog_bins",
    "two_hot",
]

"""Everything that is trained, one paper a file."""

from icrl_jax.methods.ad import ADConfig, ad
from icrl_jax.methods.dpt import DPTConfig, dpt
from icrl_jax.methods.dpt_mdp import DPTMDPConfig, dpt_mdp
from icrl_jax.methods.ppo import PPOConfig, a2c, ppo, ppo_learner
from icrl_jax.methods.relic import ReLICConfig, relic
from icrl_jax.methods.sac import SACConfig, sac_learner
from icrl_jax.methods.supervised import OptimConfig, supervised

__all__ = [
    "ADConfig",
    "DPTConfig",
    "DPTMDPConfig",
    "OptimConfig",
    "PPOConfig",
    "ReLICConfig",
    "SACConfig",
    "a2c",
    "ad",
    "dpt",
    "dpt_mdp",
    "ppo",
    "ppo_learner",
    "relic",
    "sac_learner",
    "supervised",
]

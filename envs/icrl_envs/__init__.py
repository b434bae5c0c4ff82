"""Task families for in-context RL: gymnax environments whose parameters are the task."""

import difflib
from typing import Any

from icrl_envs.bandits import (
    Bandit,
    BernoulliBandit,
    BernoulliBanditParams,
    GaussianBandit,
    GaussianBanditParams,
    LinearBandit,
    LinearBanditParams,
)
from icrl_envs.task_family import Split, TaskFamily, check_action, sample_tasks
from icrl_envs.wrappers import Revealed, Wrapper, copies, preferences, revealed

FAMILIES = {
    "gaussian_bandit": GaussianBandit,
    "bernoulli_bandit": BernoulliBandit,
    "linear_bandit": LinearBandit,
}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {  # family -> paper -> constructor arguments
    "gaussian_bandit": {"dpt": {"num_arms": 5, "noise_sd": 0.3}},
    "bernoulli_bandit": {"dpt": {"num_arms": 5}},
    "linear_bandit": {"dpt": {"num_arms": 10, "dim": 2, "noise_sd": 0.3, "feature_seed": 1234}},
}


def make(name: str, preset: str | None = None, **kwargs: Any) -> TaskFamily:
    """Builds the task family `name`, e.g. `make("gaussian_bandit", num_arms=7)`; `env.default_params` is one task.

    Args:
      name: one of `icrl_envs.FAMILIES`.
      preset: the conventions of one paper; arguments given beside it win.
      **kwargs: constructor arguments of the family.
    Raises:
      ValueError: unknown name (the close ones are listed), unknown preset, or an argument outside its range.
    """
    if name not in FAMILIES:
        close = difflib.get_close_matches(name, FAMILIES, n=3, cutoff=0.4) or sorted(FAMILIES)
        raise ValueError(f"environment {name!r} is unknown; close names: {', '.join(close)}")
    presets = PRESETS.get(name, {})
    if preset is not None and preset not in presets:
        raise ValueError(f"preset={preset!r}: {name} has {', '.join(map(repr, presets)) or 'no presets'}")
    return FAMILIES[name](**{**presets.get(preset or "", {}), **kwargs})


__all__ = [
    "FAMILIES",
    "PRESETS",
    "Bandit",
    "BernoulliBandit",
    "BernoulliBanditParams",
    "GaussianBandit",
    "GaussianBanditParams",
    "LinearBandit",
    "LinearBanditParams",
    "Revealed",
    "Split",
    "TaskFamily",
    "Wrapper",
    "check_action",
    "copies",
    "make",
    "preferences",
    "revealed",
    "sample_tasks",
]

"""What experiments with PPO share: what their agents are called, and which options fit."""

from typing import Any

from icrl_envs import TaskFamily
from icrl_jax.methods.ppo import PPOConfig, check_devices
from icrl_jax.models.kinds import ModelConfig, kind_of


def name_of(model: ModelConfig) -> str:
    """What the agent is called: "ppo_gru", "ppo_s5", ..."""
    return f"ppo_{kind_of(model)}"


def check_remembers(config: PPOConfig) -> None:
    """Refuses models that could not learn anything in context.

    Raises:
      ValueError: such a model.
    """
    if not config.has_memory:
        raise ValueError(f"model={kind_of(config.model)!r}: must be one that remembers what came before")


def notes(env: TaskFamily, options: list[Any]) -> list[str]:
    """Nothing to tell; refuses what the devices cannot share evenly."""
    for config in options:
        check_devices(config)
    return []

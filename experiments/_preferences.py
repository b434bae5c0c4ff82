"""What the experiments on preferences share: what is asked of contexts and labels, and who sees which feedback."""

from typing import Any

import jax

from icrl_jax.core import Agent
from icrl_jax.models.embeddings import parts_of
from icrl_jax.models.policy import Policy

QUALITIES = {"low": 0.0, "medium": 0.5, "high": 1.0}
"""How often the best action is proposed in a given context; else any is."""

NOISE = 0.2
"""Share of labels that are turned round under the shift."""


def world_of(agent: Agent, env: Any) -> Any:
    """Where an agent acts: in `env`, a `preferences(...)`, or if its model reads single actions in `env.env`."""
    pair = tuple(part.shape for part in parts_of(env.action_space(env.default_params)))
    for policy in jax.tree.leaves(agent, is_leaf=lambda x: isinstance(x, Policy)):
        if isinstance(policy, Policy) and tuple(part.shape for part in policy.embed.action_parts) != pair:
            return env.env
    return env

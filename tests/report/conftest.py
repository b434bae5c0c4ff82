"""A run's results, small and made up."""

import copy

import numpy as np
import pytest

from icrl_jax.statistics import curve, interval


@pytest.fixture
def values():
    """agent -> cumulative regret ``[S, B, T]``."""
    rng = np.random.default_rng(0)
    slopes = {"dpt": 0.5, "thompson": 0.4, "ucb": 0.6, "random": 9.0}
    return {
        agent: np.cumsum(slope * rng.uniform(0.5, 1.5, size=(3 if agent == "dpt" else 1, 17, 23)), axis=-1)
        for agent, slope in slopes.items()
    }


@pytest.fixture
def curves(values):
    return {agent: curve(value, resamples=200) for agent, value in values.items()}


@pytest.fixture
def results(values):
    agents = {agent: {"cumulative_regret": interval(value[..., -1], resamples=200)} for agent, value in values.items()}
    return {
        "experiment": "dpt_bandit",
        "preset": "cpu",
        "method": "dpt",
        "env": "gaussian_bandit",
        "env_preset": None,
        "seeds": [0, 1, 2],
        "status": "complete",
        "seconds": {"compile": 8.0, "train": 512.5, "evaluate": 3.25},
        "env_steps": 1000,
        "tokens": 2000,
        "versions": {"jax": "0.10.2"},
        "hardware": "two cores",
        "commit": None,
        "agents": agents,
        "conditions": {"sd_0": {name: copy.deepcopy(agents[name]) for name in ("dpt", "thompson")}},
        "curves": {agent: {"regret": value.mean(axis=(0, 1)).tolist()} for agent, value in values.items()},
    }

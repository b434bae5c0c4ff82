"""Runs: options, progress, checkpoints, results, and a finished run back in one line."""

from icrl_jax.run.experiment import Experiment, Findings, Trained, main
from icrl_jax.run.load import Loaded, load
from icrl_jax.run.options import RunOptions
from icrl_jax.run.spec import EnvSpec, MethodSpec

__all__ = ["EnvSpec", "Experiment", "Findings", "Loaded", "MethodSpec", "RunOptions", "Trained", "load", "main"]

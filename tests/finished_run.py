"""Run folders as `make train` leaves them, but for the training: what documentation loads is there at once."""

from pathlib import Path

import numpy as np

from icrl_jax import checkpoint, report, statistics
from icrl_jax.methods.dpt import DPTConfig
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.run import EnvSpec, MethodSpec, folder
from icrl_jax.run.experiment import seed_keys
from icrl_jax.run.spec import to_json
from icrl_jax.train import init_seeds


def finish(runs_dir: Path, experiment: str, env_spec: EnvSpec) -> Path:
    """Makes `runs_dir/<experiment>/latest`, its network untrained and tiny."""
    model = TransformerConfig(width=8, num_layers=1, num_heads=2, context_len=101, positions="none")
    method_spec = MethodSpec("icrl_jax.methods.dpt:dpt", DPTConfig(model=model))
    described = {"experiment": experiment, **to_json(env_spec, method_spec), "seeds": [0], "options": {}}
    run_dir = folder.create(runs_dir, experiment, described)
    state = init_seeds(seed_keys([0]), method_spec.build(env_spec.build()))
    checkpoint.save(run_dir / folder.CHECKPOINTS, 1, state)
    regret = np.linspace(1.0, 2.0, 7)[None]
    results = {"experiment": experiment, "preset": "cpu", "method": "dpt", "env": env_spec.name, "env_preset": None}
    results |= {"seeds": [0], "status": "complete", "seconds": {"compile": 1.0, "train": 1.0, "evaluate": 1.0}}
    results |= {"env_steps": 1, "tokens": 1, **report.environment_facts(), "conditions": {}, "curves": {}}
    results["agents"] = {"dpt": {"cumulative_regret": dict(statistics.interval(regret))}}
    report.write_results(run_dir, results)
    return run_dir

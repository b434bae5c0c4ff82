import json
import sys
from pathlib import Path

import numpy as np
import pytest

from icrl_jax.run.experiment import guarded
from icrl_jax.run.options import parse
from icrl_jax.run.sweep import as_sweep, sweep

sys.path.insert(0, str(Path(__file__).parent))
from small import EXPERIMENT, OPTIONS  # noqa: E402

SWEEP = as_sweep(EXPERIMENT, (1e-3, 3e-2), num_seeds=2)


def run(*options):
    with guarded() as console:
        sweep(SWEEP, parse(SWEEP.name, SWEEP.presets, "A test.", list(map(str, options)), "sweep"), console)


def test_sweep_reports_every_rate_shows_the_diverged_one_and_resumes(tmp_path, capsys):
    rates = "--learning-rates", 1e-3, 1e30
    run(*OPTIONS, *rates, "--runs-dir", tmp_path)
    folder = (tmp_path / "sweep_dpt_bandit" / "latest").resolve()
    results = json.loads((folder / "results.json").read_text())
    good, diverged = (results["agents"][f"dpt at {rate:g}"]["cumulative_regret"] for rate in (1e-3, 1e30))
    assert len(good["per_seed"]) == 2 and np.isfinite(good["mean"])
    assert diverged["mean"] is None
    assert (folder / "figures" / "sweep.png").is_file() and (folder / "report.html").is_file()

    run("--resume", folder, "--runs-dir", tmp_path)
    again = json.loads((folder / "results.json").read_text())
    assert again["agents"] == results["agents"]
    assert again["seconds"]["train"] > 0  # of the first run

    with pytest.raises(SystemExit):
        run("--resume", folder, "--learning-rates", 1e-3, "--runs-dir", tmp_path)
    assert "learning_rates" in capsys.readouterr().err

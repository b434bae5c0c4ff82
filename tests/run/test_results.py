"""What a finished run leaves behind, from the whole of `dpt_bandit`, small."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from small import SIZES

from experiments import _bandits as bandits
from experiments import dpt_bandit
from icrl_jax import checkpoint, report
from icrl_jax.evaluate import evaluate
from icrl_jax.run import load

ROOT = Path(dpt_bandit.__file__).parents[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The command of the README, two seeds, from another process; (folder, what it printed)."""
    runs = tmp_path_factory.mktemp("runs")
    options = [
        *SIZES.split(),
        *["--num-updates", "12", "--num-chunks", "6", "--num-seeds", "2", "--seed", "5", "--tensorboard"],
    ]
    command = [sys.executable, "-m", "experiments.dpt_bandit", *options, "--runs-dir", str(runs)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=290)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return runs / "dpt_bandit" / "latest", done.stdout


@pytest.mark.slow
def test_the_folder_holds_what_the_design_says(finished):
    run_dir, said = finished
    assert os.readlink(run_dir) == run_dir.resolve().name  # relative, so that runs/ can be moved
    names = {path.name for path in run_dir.iterdir()}
    assert names >= {"config.json", "metrics.jsonl", "checkpoints", "figures", "report.html", "results.json"}
    assert not [name for name in names if name.startswith(".")]
    for name in ("regret", "suboptimality", "loss", "arms"):
        assert (run_dir / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert len((run_dir / "metrics.jsonl").read_text().splitlines()) == 6
    assert checkpoint.list_steps(run_dir / "checkpoints") == [2, 4, 6]
    assert len(list((run_dir / "tensorboard").glob("seed_*/events*"))) == 2
    assert f"report: {run_dir.resolve()}/report.html" in said


def test_results_obey_the_contract(finished):
    results = report.read_results(finished[0])
    expected = {"experiment": "dpt_bandit", "preset": "cpu", "method": "dpt", "env": "gaussian_bandit"}
    assert expected.items() <= results.items()
    assert results["env_preset"] is None and results["seeds"] == [5, 6] and results["status"] == "complete"
    assert results["env_steps"] == 2 * 12 * 4 * 7 and results["tokens"] == 2 * 12 * 4 * 8
    assert {"dpt", "thompson", "ucb", "ucb1", "empirical_mean", "random", "oracle"} <= results["agents"].keys()
    conditions = {"sd_0", "sd_0.3", "sd_0.5", "bernoulli", "offline_random", "offline_bernoulli"}
    assert conditions <= results["conditions"].keys()
    for name, metrics in results["agents"].items():
        regret = metrics["cumulative_regret"]
        assert regret["n"] == 11 and len(regret["per_seed"]) == (2 if name == "dpt" else 1)
        np.testing.assert_allclose(np.mean(regret["per_seed"]), regret["mean"])
        assert regret["low"] <= regret["mean"] <= regret["high"]
        curves = results["curves"][name]
        for what in ("regret", "suboptimality") if name in {"dpt", "thompson"} else ("regret",):
            low, mean, high = (np.array(curves[what + end]) for end in ("_low", "", "_high"))
            assert len(mean) == (7 if what == "regret" else 8)  # after each step; for each size of the data, from 0 on
            assert (low <= mean + 1e-6).all() and (mean <= high + 1e-6).all()
            assert (low < high).any() == (name != "oracle")
        curve = curves["regret"]
        assert len(curve) == 7 and np.all(np.diff(curve) >= -1e-6)
        np.testing.assert_allclose(curve[-1], regret["mean"], rtol=1e-5, atol=1e-7)
    assert results["agents"]["oracle"]["cumulative_regret"]["mean"] == 0
    assert all(results["seconds"][name] > 0 for name in ("compile", "train", "evaluate"))


def test_the_standard_condition_is_the_one_with_the_noise_of_training(finished):
    results = report.read_results(finished[0])
    for name, metrics in results["conditions"]["sd_0.3"].items():
        assert metrics == {"cumulative_regret": results["agents"][name]["cumulative_regret"]}


def test_the_report_opens_without_a_server(finished):
    html = (finished[0] / "report.html").read_text()
    assert html.count("data:image/png;base64,") >= 4
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)[^"']*""", html)
    assert "@import" not in html and "<script src" not in html
    assert "num_seeds" in html and "Thompson" in html


@pytest.mark.parametrize("seed", [0, 1])
def test_a_loaded_agent_reproduces_its_results(finished, seed):
    agent, env = load(finished[0], seed)[:2]
    tasks = bandits.held_out(env, 11)
    run = jax.jit(lambda agent: evaluate(agent, env, tasks, jax.random.key(bandits.EVAL_SEED), num_steps=7).metrics)
    regret = run(agent)["cumulative_regret"]
    saved = report.read_results(finished[0])["agents"]["dpt"]["cumulative_regret"]["per_seed"]
    np.testing.assert_allclose(regret.mean(), saved[seed], rtol=1e-5)
    assert abs(saved[0] - saved[1]) > 1e-3  # the seeds can be told apart


def test_loading_needs_no_script_and_works_from_anywhere(finished, tmp_path):
    code = "import sys; from icrl_jax.run import load; loaded = load(sys.argv[1]); print(loaded.env.num_arms); "
    code += "assert not [m for m in sys.modules if m.startswith('experiments')]"
    command = [sys.executable, "-c", code, str(finished[0])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "3"


def test_a_seed_that_the_run_does_not_have_is_refused(finished):
    with pytest.raises(ValueError, match=r"seed=2: .* has seeds 0 \.\.= 1"):
        load(finished[0], seed=2)


def test_config_holds_the_options_that_were_given(finished):
    config = json.loads((finished[0] / "config.json").read_text())
    assert config["seeds"] == [5, 6] and config["method"]["path"] == "icrl_jax.methods.dpt:dpt"
    assert config["options"]["dpt"]["model"]["width"] == config["method"]["options"]["model"]["width"] == 8
    assert config["env"] == {"name": "gaussian_bandit", "preset": None, "kwargs": {"num_arms": 3, "noise_sd": 0.3}}

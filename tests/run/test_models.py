"""Other sequence models than the presets' go the whole way of a run: training, checkpoints, resuming, `load`."""

import shutil
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import small
from small import EXPERIMENT, assert_same_run

import icrl_envs
from experiments import ad_bandit
from icrl_jax.evaluate import evaluate
from icrl_jax.report import read_results
from icrl_jax.run import load, main
from icrl_jax.run.options import parse

AD = ad_bandit.EXPERIMENT._replace(findings=partial(small.findings, name="ad"))
SIZES = "--width 8 --num-layers 2 --horizon 7 --batch-size 4 --eval-tasks 11 --num-updates 4 --num-chunks 2"


@pytest.mark.slow
def test_another_model_trains_resumes_and_is_loaded(tmp_path):
    model = "s5 --mlp-ratio 2 --num-experts 3 --top-k 1 --expert-layers last --noise"
    options = ["--model", *model.split(), *SIZES.split(), "--num-arms", "3", "--checkpoint-every", "1"]
    main(EXPERIMENT, "A test.", [*options, "--runs-dir", str(tmp_path)])
    whole = (tmp_path / "dpt_bandit" / "latest").resolve()
    cut = tmp_path / "dpt_bandit" / "cut"
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "2")
    main(EXPERIMENT, "A test.", ["--resume", str(cut), "--runs-dir", str(tmp_path)])
    assert_same_run(cut, whole)
    agent, env = load(whole)[:2]
    tasks = icrl_envs.sample_tasks(env, jax.random.key(0), 5)
    assert np.isfinite(evaluate(agent, env, tasks, jax.random.key(1), num_steps=7).curves["regret"]).all()


@pytest.mark.parametrize(
    ("experiment", "options"),
    [
        (AD, "--model gru --num-tasks 11 --num-steps 7 --no-control"),
        (EXPERIMENT, "--model gru --cell lstm --num-arms 3"),
        (EXPERIMENT, "--model s5 --kind s4d --state-size 4 --num-arms 3"),
    ],
    ids=["gru", "lstm", "s4d"],
)
def test_what_is_loaded_scores_what_the_run_reported(experiment, options, tmp_path):
    argv = [*options.split(), *SIZES.split(), "--num-layers", "1", "--runs-dir", str(tmp_path)]
    main(experiment, "A test.", argv)
    run_dir, config = tmp_path / experiment.name / "latest", parse(experiment.name, experiment.presets, "", argv)
    agent, env, _, params = load(run_dir)
    assert params.body.config == experiment.method(config).options.model
    (name,) = read_results(run_dir)["agents"]
    reported = read_results(run_dir)["agents"][name][experiment.metric]
    score = jax.jit(experiment.score(env, config, config.eval_tasks))
    np.testing.assert_allclose(score(agent, jax.random.key(5)).mean(), reported["mean"], rtol=1e-6)

"""Another sequence model than the presets' goes the whole way of a run: training, checkpoints, resuming, `load`."""

import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from small import EXPERIMENT, assert_same_run

import icrl_envs
from icrl_jax.evaluate import evaluate
from icrl_jax.run import load, main

SIZES = (
    "--num-arms 3 --width 8 --num-layers 2 --horizon 7 --batch-size 4 --eval-tasks 11 --num-updates 4 --num-chunks 2"
)


@pytest.mark.slow
def test_another_model_trains_resumes_and_is_loaded(tmp_path):
    model = "s5 --mlp-ratio 2 --num-experts 3 --top-k 1 --expert-layers last --noise"
    options = ["--model", *model.split(), *SIZES.split(), "--checkpoint-every", "1", "--runs-dir", str(tmp_path)]
    main(EXPERIMENT, "A test.", options)
    whole = (tmp_path / "dpt_bandit" / "latest").resolve()
    cut = tmp_path / "dpt_bandit" / "cut"
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "2")
    main(EXPERIMENT, "A test.", ["--resume", str(cut), "--runs-dir", str(tmp_path)])
    assert_same_run(cut, whole)
    agent, env = load(whole)[:2]
    tasks = icrl_envs.sample_tasks(env, jax.random.key(0), 5)
    assert np.isfinite(evaluate(agent, env, tasks, jax.random.key(1), num_steps=7).curves["regret"]).all()

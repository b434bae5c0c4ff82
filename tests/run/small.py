"""The experiment dpt_bandit, small, with an evaluation that costs little; `python small.py <options>` runs it."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import dpt_bandit
from icrl_jax import statistics
from icrl_jax.run import Findings, main

SIZES = "--num-arms 3 --width 8 --num-layers 1 --num-heads 2 --context-len 8 --horizon 7 --batch-size 4 --eval-tasks 11"
OPTIONS = [*SIZES.split(), *["--num-updates", "12", "--num-chunks", "6", "--num-seeds", "2"]]


def findings(trained, name="dpt"):
    score = jax.jit(EXPERIMENT.score(trained.env, trained.config, trained.config.eval_tasks))
    each = [jax.tree.map(lambda x, s=s: x[s], trained.params) for s in range(trained.config.num_seeds)]
    values = np.stack([score(trained.method.agent(params), jax.random.key(5)) for params in each])
    agents = {name: {EXPERIMENT.metric: dict(statistics.interval(values))}}
    return Findings(agents, {}, {}, [], None, {})


def endless(trained):
    """An evaluation that never returns to Python."""
    jax.jit(lambda: jax.lax.while_loop(lambda x: x >= 0, lambda x: 1 - x, 0))().block_until_ready()


EXPERIMENT = dpt_bandit.EXPERIMENT._replace(findings=findings)


def run(*options, folder=None, experiment=EXPERIMENT) -> Path:
    """Runs it in this process; returns the run folder."""
    argv = [*OPTIONS, *map(str, options)] if "--resume" not in options else [*map(str, options)]
    main(experiment, "A test.", [*argv, "--runs-dir", str(folder)])
    return (folder / "dpt_bandit" / "latest").resolve()


def refused(capsys, *options, folder=None, status=2, experiment=EXPERIMENT) -> str:
    """Runs it, expecting to be stopped with `status`; returns what stderr says, as one line."""
    with pytest.raises(SystemExit) as stop:
        run(*options, folder=folder, experiment=experiment)
    said = capsys.readouterr().err
    assert stop.value.code == status, said
    assert "Traceback" not in said
    return " ".join(said.split())


def metrics(run_dir):
    """The rows of metrics.jsonl without the times."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def weights(run_dir):
    """Every array of the newest checkpoint."""
    from icrl_jax import checkpoint

    step = checkpoint.list_steps(run_dir / "checkpoints")[-1]
    return step, checkpoint._read(run_dir / "checkpoints", step)[0]


def assert_same_run(one, other):
    """Bit for bit, in weights, optimiser and metrics."""
    assert metrics(one) == metrics(other)
    (step, arrays), (other_step, other_arrays) = weights(one), weights(other)
    assert step == other_step and arrays.keys() == other_arrays.keys()
    for name in arrays:
        assert arrays[name].tobytes() == other_arrays[name].tobytes(), name


if __name__ == "__main__":
    main(EXPERIMENT, "A test.", sys.argv[1:])

"""Every experiment: its presets build, and a few steps of it leave whole results."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import icrl_envs
from experiments import _bandits as bandits
from experiments import dpt_bandit
from icrl_jax import agents
from icrl_jax.core import Transition
from icrl_jax.evaluate import evaluate, offline_suboptimality
from icrl_jax.report import read_results
from icrl_jax.run.experiment import make_plan, run
from icrl_jax.run.options import parse

ROOT = Path(__file__).parent.parent
NAMES = sorted(p.stem for p in (ROOT / "experiments").glob("*.py") if not p.stem.startswith("_") and p.stem != "sweep")
EXPERIMENTS = {name: importlib.import_module(f"experiments.{name}").EXPERIMENT for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_presets_build(name):
    for config in EXPERIMENTS[name].presets.values():
        plan = make_plan(EXPERIMENTS[name], config)
        assert plan.schedule.num_chunks * plan.schedule.updates_per_chunk == plan.method_spec.options.num_updates
        assert plan.method_spec.options.num_updates >= 1000


def test_offline_the_classics_follow_the_paper_or_its_code():
    """After arm 0 paid -1 nine times and arm 1 -2 once; arm 2 was never seen."""
    pulls = [(0, -1.0)] * 9 + [(1, -2.0)]
    arms, rewards = (np.array(x) for x in zip(*pulls, strict=True))
    one, no = np.ones((10, 1), np.float32), np.zeros(10, bool)
    context = Transition(one, arms.astype(np.int32), rewards.astype(np.float32), one, no, no)
    env = icrl_envs.make("gaussian_bandit", num_arms=3)
    task = jax.tree.map(lambda x: jnp.asarray(x)[None], env.default_params.replace(means=jnp.arange(3.0)))
    for rules, best in (("paper", 0), ("code", 2)):
        for agent, *_ in dpt_bandit.offline_classics(3, rules).values():
            lost = offline_suboptimality(agent, env, task, jax.tree.map(lambda x: x[None], context), jax.random.key(0))
            assert lost[0, -1] == 2 - best


@pytest.mark.parametrize("name", NAMES)
def test_tasks_to_choose_by_are_not_those_of_the_final_tables(name):
    """Random arms cost something else in each task, and the key says which arms."""
    experiment, config, key = EXPERIMENTS[name], EXPERIMENTS[name].presets["cpu"], jax.random.key(0)
    env = experiment.env(config).build()
    random, tasks = agents.uniform(env), bandits.held_out(env, 11)
    watched = jax.jit(experiment.score(env, config, 11))(random, key)
    final = jax.jit(lambda: evaluate(random, env, tasks, key, num_steps=config.dpt.horizon).metrics)()
    assert (np.abs(watched - final[experiment.metric]) > 1e-3).all()


def test_linear_bandit_runs_a_few_steps(tmp_path):
    experiment = EXPERIMENTS["dpt_linear_bandit"]
    sizes = (
        "--num-arms 5 --width 8 --num-layers 1 --num-heads 2 --context-len 8 --horizon 7 --batch-size 4 --eval-tasks 11"
    )
    argv = [*sizes.split(), "--num-updates", "6", "--num-chunks", "3", "--runs-dir", str(tmp_path)]
    run_dir = run(experiment, parse(experiment.name, experiment.presets, "", argv), Console(quiet=True))
    results = read_results(run_dir)
    assert {"dpt", "linucb", "thompson_linear", "source", "random", "oracle"} == set(results["agents"])
    assert results["agents"]["oracle"]["cumulative_regret"]["mean"] == 0
    assert results["env_steps"] == 6 * 4 * 7


def test_an_unknown_experiment_is_refused_and_the_known_ones_are_listed(capsys):
    from experiments.sweep import find

    assert find("dpt_bandit").name == "dpt_bandit"
    with pytest.raises(SystemExit) as refused:
        find("dpt_bandits")
    assert refused.value.code == 2
    assert "experiment='dpt_bandits': must be one of dpt_bandit, dpt_linear_bandit" in capsys.readouterr().err

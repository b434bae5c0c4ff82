"""The documentation is true: its code runs, and every command, option, file and test it names exists."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import chex
import contract
import finished_run
import jax
import jax.numpy as jnp
import pytest

import icrl_envs
from icrl_jax.run import EnvSpec, folder
from icrl_jax.run.experiment import make_plan
from icrl_jax.run.options import parse
from icrl_jax.run.sweep import as_sweep
from icrl_jax.train import Schedule, train

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
HISTORIES = (ROOT / "docs" / "histories.md").read_text()
FAMILIES = (ROOT / "docs" / "task_families.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


@pytest.fixture
def at_root(monkeypatch):
    """`experiments` can be imported, as from the root of the repository."""
    monkeypatch.syspath_prepend(ROOT)


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def experiments():
    import importlib

    names = [path.stem for path in sorted((ROOT / "experiments").glob("*.py")) if path.stem != "__init__"]
    modules = {name: importlib.import_module(f"experiments.{name}") for name in names}
    return {name: module.EXPERIMENT for name, module in modules.items() if hasattr(module, "EXPERIMENT")}


@pytest.mark.slow
def test_python_in_the_readme_runs(tmp_path, monkeypatch, capsys):
    finished_run.finish(tmp_path / "runs", "dpt_bandit", EnvSpec("gaussian_bandit"))
    finished_run.finish(tmp_path / "runs", "dpt_linear_bandit", EnvSpec("linear_bandit"))
    monkeypatch.chdir(tmp_path)
    found = blocks(README, "python")
    assert len(found) == 2
    names = {}
    for block in found:
        exec(compile(block, "README.md", "exec"), names)
    printed = capsys.readouterr().out.replace("\\", "")  # of Markdown
    assert re.search(r"^DPT [\d.]+$", printed, re.MULTILINE)
    assert re.search(r"^Thompson sampling [56]\.", printed, re.MULTILINE)
    assert "dpt_bandit/" in printed and "dpt_linear_bandit/" in printed


@pytest.mark.slow
def test_python_in_the_architecture_runs(at_root, getkey):
    names = {}
    for block in blocks(ARCHITECTURE, "python"):
        exec(compile(block, "architecture.md", "exec"), names)
    import icrl_jax

    env = names["NeedleBandit"](5)
    tasks = jax.vmap(env.sample_task)(jax.random.split(getkey(), 7))
    softmax = names["softmax_mean"](5)
    found = icrl_jax.evaluate(softmax, env, tasks, getkey(), num_steps=11)
    assert jnp.isfinite(found.metrics["cumulative_regret"]).all()

    leaky = names["Leaky"](names["LeakyConfig"](width=7), getkey())
    x, reset = jax.random.normal(getkey(), (5, 11, 7)), jax.random.bernoulli(getkey(), 0.2, (5, 11))
    carry, _ = contract.call(leaky, None, x[:, ::-1], reset)
    chex.assert_trees_all_close(contract.scan_step(leaky, carry, x, reset), contract.call(leaky, carry, x, reset))

    model = names["TransformerConfig"](width=8, num_layers=1, num_heads=2, context_len=12)
    config = names["DPTConfig"](model=model, horizon=11, batch_size=8, num_updates=4)
    method = names["imitate"](env, config)
    state, log = jax.jit(lambda key: train(key, method, Schedule(2, 2)))(getkey())
    assert jnp.isfinite(log["loss"]).all()
    found = icrl_jax.evaluate(method.agent(state.params), env, tasks, getkey(), num_steps=11)
    assert jnp.isfinite(found.metrics["cumulative_regret"]).all()

    experiment = names["EXPERIMENT"]
    assert make_plan(experiment, experiment.presets["cpu"]).env.name == "BernoulliBandit"


def test_python_in_the_guide_to_histories_runs_and_its_command_fits(at_root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = blocks(HISTORIES, "python")
    exec(compile(block, "histories.md", "exec"), {})
    assert capsys.readouterr().out == "(7, 3, 60)\n"
    ((name, options),) = re.findall(r'EXPERIMENT=(\w+) ARGS="(.*--source logged.*)"', HISTORIES)
    experiment = experiments()[name]
    plan = make_plan(experiment, parse(name, experiment.presets, "", options.split()))
    assert plan.notes[0] == "histories: logged, streamed from data/logged"


@pytest.mark.slow
def test_python_in_the_guide_to_task_families_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks(FAMILIES, "python"):
        exec(compile(block, "task_families.md", "exec"), names)
    assert max(len(block.splitlines()) for block in blocks(FAMILIES, "python")) < 60
    oracle, random = map(float, capsys.readouterr().out.split())
    assert oracle == 1 and random < 0.9
    assert (tmp_path / "corridor.gif").stat().st_size > 0
    assert conformance_of(tmp_path, max(blocks(FAMILIES, "python"), key=len)) > 10
    assert names["env"].sample_task(jax.random.key(0)).length != names["env"].default_params.length


def conformance_of(folder, source):
    """Runs the suite as the guide says; how many tests passed."""
    (folder / "my_module.py").write_text(source)
    command = "-m pytest -q tests/envs/test_families.py --family my_module:Corridor -k my_module -p no:cacheprovider"
    environment = {**os.environ, "PYTHONPATH": str(folder), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, *command.split()], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    return int(re.search(r"(\d+) passed", done.stdout)[1])


def test_every_task_family_is_in_the_table():
    section = FAMILIES.split("## All families")[1]
    assert sorted(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == sorted(icrl_envs.FAMILIES)


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
    for text in (README, ARCHITECTURE, CONTRIBUTING):
        code = re.sub(r"  #.*", "", "\n".join(blocks(text, "sh") + re.findall(r"`([^`\n]+)`", text)))
        named = set(re.findall(r"\bmake ([a-z]+)", code))
        assert named <= targets, named - targets
    assert {"train", "test"} <= set(re.findall(r"^make ([a-z]+)", "\n".join(blocks(README, "sh")), re.MULTILINE))


def test_every_make_variable_and_its_value_exist(at_root):
    variables = set(re.findall(r"^([A-Z_]+) *=", MAKEFILE, re.MULTILINE))
    given = re.findall(r"make [a-z]+ .*?\b([A-Z_]+)=([\w<>]*)", README)
    assert {name for name, _ in given} <= variables
    assert {value for name, value in given if name == "EXPERIMENT"} - {"<name>"} <= experiments().keys()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {value for name, value in given if name == "JAX_EXTRA"} <= extras.keys()
    for experiment in experiments().values():
        assert {value for name, value in given if name == "PRESET"} - {"<preset>"} <= experiment.presets.keys()


@pytest.mark.parametrize("target", ["train", "sweep"])
def test_make_refuses_an_unknown_experiment_before_it_installs_anything(target, tmp_path, at_root):
    for name in ("nonsense", "sweep", "_bandits", ""):
        status, said = make_without_python(tmp_path, target, f"EXPERIMENT={name}")
        assert status == 2
        assert f"There is no experiment '{name}'. There are: {' '.join(experiments())}." in said
    _, said = make_without_python(tmp_path, target, "EXPERIMENT=dpt_linear_bandit")
    assert "false must be Python 3.11 or newer" in said  # a known one goes on to the installation


def make_without_python(folder, *arguments):
    """Runs make in a copy of the repository where nothing can be installed; its exit status and complaint."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "experiments", folder / "experiments", dirs_exist_ok=True)
    done = subprocess.run(["make", *arguments, "PYTHON=false"], cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stderr


def test_every_option_exists(at_root, capsys):
    help_of = {}
    for name, experiment in experiments().items():
        for each in (experiment, as_sweep(experiment, (1e-3,), 2)):
            with pytest.raises(SystemExit):
                parse(each.name, each.presets, "", ["--help"])
            help_of[each.name] = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
        assert help_of[name] >= {"--seed", "--resume"}
    for named, line in re.findall(r"^make (.*)ARGS=\"(.*)\"", README + HISTORIES, re.MULTILINE):
        experiment = re.search(r"EXPERIMENT=(\w+)", named)
        which = "sweep_" * ("--learning-rates" in line) + (experiment[1] if experiment else "dpt_bandit")
        assert set(re.findall(r"--[a-z][a-z-]*", line)) <= help_of[which], line


def test_every_experiment_is_in_the_table(at_root):
    rows = set(re.findall(r"^\| `(\w+)` \|(?:[^|\n]*\|){3}$", README, re.MULTILINE))
    assert rows == experiments().keys()


def test_every_dependency_has_a_line():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    direct = [
        *project["dependencies"],
        *(x for name in ("track", "envs", "craftax", "data", "minari") for x in extras[name]),
    ]
    section = README.split("## Dependencies")[1].split("\n## ")[0]
    listed = {
        name for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall(r"`([\w-]+)`", row)
    }
    assert listed - {"track", "envs", "data"} == {re.match(r"[\w-]+", each)[0] for each in direct}


def test_every_file_of_a_run_exists(tmp_path):
    section = README.split("## What a run leaves behind")[1].split("```")[0]
    named = {name.rstrip("/") for name in re.findall(r"^\| `([\w./]+)`", section, re.MULTILINE)}
    assert named == {"report.html", "results.json", "figures", folder.METRICS, folder.CHECKPOINTS, folder.CONFIG}


@pytest.mark.parametrize(
    "text",
    [README, ARCHITECTURE, FAMILIES, HISTORIES, CONTRIBUTING],
    ids=["README", "architecture", "task_families", "histories", "CONTRIBUTING"],
)
def test_every_path_exists(text):
    """Paths in links, and those in backticks that begin like a folder of ours."""
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    ours = r"`((?:icrl_jax|envs|experiments|tests|docs|notebooks|benchmarks)/[\w./]*)`"
    for path in [*links, *re.findall(ours, text)]:
        assert (ROOT / path).exists() or (ROOT / "docs" / path).exists(), path


def test_every_test_that_is_named_exists():
    written = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", ARCHITECTURE):
        assert f"def {name}(" in written, name


def test_the_documentation_names_no_machine_and_owes_nothing():
    for text in (README, ARCHITECTURE, FAMILIES, HISTORIES, CONTRIBUTING):
        assert "TODO" not in text
        assert not re.search(r"/home/|/root/|/tmp/|localhost", text)

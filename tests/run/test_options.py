"""What is refused, and how: one clear message naming option, value and what is allowed, before anything compiles."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import small
from small import refused

from icrl_envs.bandits import Bandit
from icrl_jax.methods.dpt import DPTConfig
from icrl_jax.methods.supervised import OptimConfig
from icrl_jax.models.gru import GRUConfig
from icrl_jax.models.s5 import S5Config
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.run import EnvSpec, MethodSpec, folder, load
from icrl_jax.run.folder import NotARunError
from icrl_jax.run.options import as_arguments, parse
from icrl_jax.run.spec import differences, from_dict, from_json, to_json
from icrl_jax.run.sweep import as_sweep


@pytest.fixture(autouse=True)
def nothing_compiles(monkeypatch):
    monkeypatch.setattr("icrl_jax.run.training.compile_chunk", None)
    monkeypatch.setattr("icrl_jax.run.training.init_seeds", None)


WRONG = [
    (("--width", -3), "width=-3 must be a positive integer"),
    (("--num-heads", 3), "num_heads=3 must divide width=8: one of [1, 2, 4, 8]"),
    (("--num-layers", 0), "num_layers=0 must be a positive integer"),
    (("--horizon", 8), "horizon=8: must be below model.context_len=8"),
    (("--positions", "foo"), "invalid choice 'foo' for argument '--positions'. Expected one of"),
    (("--num-updates", 0), "num_updates=0: must be at least 1"),
    (("--batch-size", -4), "batch_size=-4: must be at least 1"),
    (("--batch-size", "many"), "Error parsing --batch-size: invalid literal"),
    (("--num-tasks", 3), "batch_size=4: must be at most the number of samples, 3"),
    (("--num-chunks", 5), "num_chunks=5: must divide num_updates=12"),
    (("--num-chunks", 0), "num_chunks=0: must be at least 1"),
    (("--checkpoint-every", 0), "checkpoint_every=0: must be at least 1"),
    (("--eval-tasks", 0), "eval_tasks=0: must be at least 1"),
    (("--seed", -1), "seed=-1: must be at least 0"),
    (("--seed", 2**31 - 1), "seed=2147483647: must be at most 2147483646"),
    (("--num-seeds", 0), "num_seeds=0: must be at least 1"),
    (("--learning-rate", "nan"), "learning_rate=nan: must be a finite number above 0"),
    (("--warmup", 1), "warmup=1.0: must be in [0, 1)"),
    (("--num-arms", 1), "num_arms=1: must be an integer of at least 2"),
    (("--noise-sd", "inf"), "noise_sd=inf: must be a finite number of at least 0"),
    (("--behaviour", "nobody"), "invalid choice 'nobody' for argument '--behaviour'"),
    (("--preset", "huge"), "preset='huge': must be one of cpu, paper"),
    (("--nonsense", 3), "Unrecognized options: --nonsense"),
    (("--model", "lstm"), "transformer, s5, gru, mlp; did you mean --model gru --cell lstm?"),
    (("--model", "mlp"), "must be below model.context_len=1"),  # it would see no context
    (("--model", "s5"), "Unrecognized options: --num-heads"),  # those of the transformer
    (("--resume", "/nowhere"), "/nowhere is not a run folder: it holds no config.json"),
    (("--resume", "latest"), "dpt_bandit/latest is not a run folder: it holds no config.json"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_options_are_refused(options, message, tmp_path, capsys):
    assert message in refused(capsys, *options, folder=tmp_path)
    assert not list(tmp_path.iterdir())  # and leave nothing behind


def test_a_batch_that_the_devices_do_not_divide_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 3)
    said = refused(capsys, folder=tmp_path)
    assert said == "error: batch_size=4: must be a multiple of the 3 devices"


def test_an_unknown_environment_is_refused_naming_close_ones(tmp_path, capsys):
    experiment = small.EXPERIMENT._replace(env=lambda config: EnvSpec("gausian_bandit"))
    said = refused(capsys, folder=tmp_path, experiment=experiment)
    assert "gausian_bandit" in said and "gaussian_bandit" in said


CONFIGS = [
    ("", "config.json cannot be read"),
    ("{", "config.json cannot be read"),
    ("{}", "config.json lacks experiment, env, method, seeds, options"),
    ("[1]", "config.json lacks experiment"),
    ('{"experiment": "dpt_bandit", "seeds": [0], "options": {}}', "config.json lacks env, method"),
]


@pytest.mark.parametrize(("content", "message"), CONFIGS)
def test_a_folder_whose_config_is_not_one_is_refused(content, message, tmp_path, capsys):
    (tmp_path / "config.json").write_text(content)
    assert message in refused(capsys, "--resume", tmp_path, folder=tmp_path)
    with pytest.raises(NotARunError, match=f"{tmp_path} is not a run folder: {message}"):
        load(tmp_path)


def test_a_run_of_another_experiment_or_with_other_fields_is_refused(tmp_path, capsys):
    config = {"experiment": "ad_dark_room", "env": {}, "method": {}, "seeds": [0], "options": {"speed": 3}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "is a run of ad_dark_room, not of dpt_bandit" in refused(capsys, "--resume", tmp_path, folder=tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"experiment": "dpt_bandit"}))
    assert "Config has no option speed" in refused(capsys, "--resume", tmp_path, folder=tmp_path)


@pytest.mark.parametrize("spelling", ["--runs-dir {}", "--runs-dir={}", "--runs_dir {}", "--runs_dir={}"])
def test_the_run_to_resume_is_found_in_the_runs_folder_however_that_is_spelled(spelling, tmp_path):
    experiment = small.EXPERIMENT
    options = dataclasses.asdict(dataclasses.replace(experiment.presets["cpu"], seed=7))
    described = {"experiment": experiment.name, "env": {}, "method": {}, "seeds": [7], "options": options}
    folder.create(tmp_path, experiment.name, described)
    argv = ["--resume", "latest", *spelling.format(tmp_path).split()]
    config = parse(experiment.name, experiment.presets, "", argv)
    assert (config.seed, config.runs_dir) == (7, str(tmp_path))


def test_help_shows_every_option_with_its_default_and_meaning():
    command = [sys.executable, "-m", "experiments.dpt_bandit", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(small.dpt_bandit.__file__).parents[1])
    said = " ".join(done.stdout.split())
    assert done.returncode == 0
    for option in ("--num-seeds", "--resume", "--learning-rate", "--width", "--horizon", "--tensorboard", "--num-arms"):
        assert option in said
    for words in ("Tasks per update", "Peak learning rate", "(default: 0.003)", "make train"):
        assert words in said


@pytest.mark.parametrize(
    "model", [TransformerConfig(width=8, num_heads=2, context_len=8), S5Config(width=6), GRUConfig(cell="lstm")]
)
def test_specs_survive_json(model):
    config = DPTConfig(model=model, optim=OptimConfig(clip=None), horizon=7)
    env, method = EnvSpec("gaussian_bandit", None, {"num_arms": 3}), MethodSpec("icrl_jax.methods.dpt:dpt", config)
    saved = json.loads(json.dumps(to_json(env, method)))
    assert from_json(saved) == (env, method)
    assert isinstance(from_json(saved)[0].build(), Bandit)
    with pytest.raises(ValueError, match="OptimConfig has no option momentum"):
        from_dict(OptimConfig, {"momentum": 0.9})


def test_differences_are_named_leaf_by_leaf():
    old, new = {"a": 1, "b": {"c": 2, "d": 3}, "e": None}, {"a": 1, "b": {"c": 2, "d": 4}, "f": "x"}
    assert differences(old, new) == ["b.d: 3 -> 4", "f: None -> 'x'"]
    assert differences(old, old) == []


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "--seed 3 --learning-rate 0.0001 --width 16",
        "--clip None --num-tasks 101 --shuffle --no-train-empty --learning-rates 0.1 0.003",
        "--model s5 --state-size 6 --gate half_glu1 --width 16",
        "--model gru --cell lstm",
    ],
)
def test_the_command_that_a_report_shows_gives_the_same_configuration(typed):
    experiment = as_sweep(small.EXPERIMENT, (1e-3,), 2)
    config = parse(experiment.name, experiment.presets, "", typed.split())
    again = as_arguments(experiment.presets["cpu"], config)
    assert sorted(again.split()) == sorted(typed.split())
    assert parse(experiment.name, experiment.presets, "", again.split()) == config

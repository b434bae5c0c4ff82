"""The options every experiment has, and how a command line becomes a checked configuration."""

import argparse
import ast
import dataclasses
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from icrl_jax.models.kinds import KINDS, ModelConfig, kind_of, other_kind
from icrl_jax.run import folder
from icrl_jax.run.spec import differences, from_dict

FREE_ON_RESUME = ("resume", "runs_dir", "tensorboard")
"""Options that do not change the numbers of a run."""


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How to run, whatever is trained."""

    preset: str = "cpu"
    """Which defaults the other options have."""
    seed: int = 0
    """Seed of the first run."""
    num_seeds: int = 1
    """Runs trained at once, with seeds seed, seed + 1, ..."""
    num_chunks: int = 20
    """Parts of the training; progress, logs and a small held-out evaluation follow each."""
    checkpoint_every: int = 2
    """Chunks between two checkpoints; there is always one at the end."""
    eval_tasks: int = 1000
    """Held-out tasks of the final evaluation."""
    runs_dir: str = "runs"
    """Where run folders are made."""
    tensorboard: bool = False
    """Also writes TensorBoard events (extra `track`)."""
    resume: str | None = None
    """Continues a run: its folder, or "latest"."""

    def __post_init__(self):
        for name, low in (("seed", 0), ("num_seeds", 1), ("num_chunks", 1), ("checkpoint_every", 1), ("eval_tasks", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be at least {low}")
        if self.seed + self.num_seeds > 2**31:
            raise ValueError(f"seed={self.seed!r}: must be at most {2**31 - self.num_seeds}")
        if self.tensorboard and importlib.util.find_spec("tensorboardX") is None:
            raise ValueError("tensorboard=True: needs the package tensorboardX (pip install 'icrl-jax[track]')")


Config = TypeVar("Config", bound=RunOptions)


class OptionsError(Exception):
    """Options that were refused; the message names them."""


def parse(
    name: str, presets: Mapping[str, Config], doc: str, argv: Sequence[str] | None = None, module: str | None = None
) -> Config:
    """Reads the command line over the defaults of a preset, or over the options of the run to resume.

    Args:
      name: of the experiment, `experiments/<name>.py`.
      presets: the configuration of each.
      doc: what `--help` says first.
      module: the script, where it has another name.
    Raises:
      OptionsError: a value that is refused, an unknown preset, no run to resume, or options that differ from its own.
    """
    first_look = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first_look.add_argument("--model")
    chosen, argv = first_look.parse_known_args(sys.argv[1:] if argv is None else argv)
    for spellings in (("--preset",), ("--resume",), ("--runs-dir", "--runs_dir")):
        first_look.add_argument(*spellings)
    seen, _ = first_look.parse_known_args(argv)
    preset = seen.preset or "cpu"
    if preset not in presets:
        raise OptionsError(f"preset={preset!r}: must be one of {', '.join(presets)}")
    default: Any = presets[preset]
    saved = None
    try:
        if seen.resume is not None:
            run_dir = folder.find(seen.resume, name, Path(seen.runs_dir or default.runs_dir))
            saved = folder.read_config(run_dir)
            if saved["experiment"] != name:
                raise OptionsError(
                    f"resume={seen.resume!r}: {run_dir} is a run of {saved['experiment']}, not of {name}"
                )
            default = from_dict(type(default), saved["options"])
        if chosen.model is not None:
            default = with_model(default, chosen.model)
        config = tyro.cli(
            type(default),
            prog=f"python -m experiments.{module or name}",
            description=f"{doc}\n\n--model {'|'.join(KINDS)}: which sequence model; it has options of its own.",
            default=default,
            args=argv,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.AvoidSubcommands),
        )
    except (ValueError, folder.NotARunError) as error:
        raise OptionsError(str(error)) from None
    if saved is not None:
        _check_same(saved["options"], json.loads(json.dumps(dataclasses.asdict(config))), seen.resume)
    return config


def with_model(config: Any, name: str) -> Any:
    """The same options with another kind of sequence model, wherever among them it stands.

    Raises:
      ValueError: no such kind, or one that does not fit the other options.
    """
    if isinstance(config, ModelConfig):
        return other_kind(config, name)
    inner = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    changed = {key: with_model(value, name) for key, value in inner.items() if dataclasses.is_dataclass(value)}
    return dataclasses.replace(config, **changed)


def _model(config: Any) -> str | None:
    """The kind of sequence model among the options."""
    if isinstance(config, ModelConfig):
        return kind_of(config)
    inner = (getattr(config, field.name) for field in dataclasses.fields(config))
    return next((found for value in inner if dataclasses.is_dataclass(value) and (found := _model(value))), None)


def as_arguments(preset: RunOptions, config: RunOptions) -> str:
    """What to type after a preset to get this configuration, "" for the preset itself."""
    given, model = [], _model(config)
    if model is not None and model != _model(preset):
        preset = with_model(preset, model)
        given.append(f"--model {model}")
    for line in differences(dataclasses.asdict(preset), dataclasses.asdict(config)):
        option, value = line.split(": ", 1)
        name, value = option.split(".")[-1], ast.literal_eval(value.split(" -> ")[1])
        if name in ("resume", "runs_dir"):
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            given.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            values = value if isinstance(value, tuple) else (value,)
            given.append(" ".join([f"--{flag}", *map(str, values)]))
    return " ".join(given)


def _check_same(saved: dict[str, Any], given: dict[str, Any], resume: str | None) -> None:
    saved, given = ({name: side[name] for name in side.keys() - set(FREE_ON_RESUME)} for side in (saved, given))
    if found := differences(saved, given):
        raise OptionsError(f"resume={resume!r}: the run was started with other options: {'; '.join(found)}")

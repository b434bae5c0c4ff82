"""One experiment from its options to its report."""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from icrl_envs import TaskFamily
from matplotlib.figure import Figure
from rich.console import Console

from icrl_jax import checkpoint, report
from icrl_jax.core import Array, Method, Tree
from icrl_jax.run import folder
from icrl_jax.run.options import BadOptions, RunOptions, parse
from icrl_jax.run.spec import EnvSpec, MethodSpec, to_json
from icrl_jax.run.training import Interrupted, Stopwatch, training
from icrl_jax.train import Evaluate, NonFiniteLoss, Schedule


class Trained(NamedTuple):
    """What an experiment evaluates."""

    config: Any
    env: TaskFamily
    method: Method
    params: Tree  # seeds stacked [S, ...]
    metrics: list[dict[str, Any]]  # the rows of metrics.jsonl
    watch: Stopwatch


class Findings(NamedTuple):
    """What an evaluation found, in the words of `results.json`."""

    agents: dict[str, dict[str, Any]]
    conditions: dict[str, dict[str, dict[str, Any]]]
    curves: dict[str, dict[str, Any]]
    figures: list[tuple[str, Figure, str]]  # (file name, figure, caption)
    metric: str  # the one that the table shows first
    reference: str  # the agent that others are divided by
    ratios: dict[str, dict[str, Any]]


class Experiment(NamedTuple):
    """What a script in `experiments/` defines."""

    name: str
    presets: Mapping[str, Any]  # "cpu", "paper" -> its configuration, a dataclass that extends `RunOptions`
    env: Callable[[Any], EnvSpec]  # config -> environment
    method: Callable[[Any], MethodSpec]  # config -> method; its options have `num_updates`, `batch_size`, `horizon`
    in_training: Callable[[TaskFamily, Any], Evaluate]  # (env, config) -> a small evaluation after each chunk
    findings: Callable[[Trained], Findings]  # the final evaluation


def main(experiment: Experiment, doc: str, argv: Sequence[str] | None = None) -> None:
    """Runs an experiment from the command line; what the user can mend is one clear line, not a traceback."""
    console = Console(soft_wrap=True)
    try:
        config = parse(experiment.name, experiment.presets, doc, argv)
        run(experiment, config, console)
    except (BadOptions, folder.NotARun, checkpoint.CheckpointError, NonFiniteLoss) as error:
        _stop(console, str(error), 2 if isinstance(error, BadOptions) else 1)
    except OSError as error:
        _stop(console, f"cannot write the run: {error.strerror or error} ({error.filename or 'runs folder'})", 1)
    except Interrupted as interrupt:
        sys.exit(128 + interrupt.signal_number)


def run(experiment: Experiment, config: RunOptions, console: Console) -> Path:
    """Trains, evaluates, reports; returns the run folder.

    Raises:
      BadOptions: options that do not fit together, before anything compiles.
    """
    try:
        env_spec, method_spec = experiment.env(config), experiment.method(config)
        env = env_spec.build()
        method = method_spec.build(env)
        schedule = make_schedule(method_spec.options.num_updates, config.num_chunks)
        in_training = experiment.in_training(env, config)
    except ValueError as error:
        raise BadOptions(str(error)) from None
    seeds = list(range(config.seed, config.seed + config.num_seeds))
    described = {
        "experiment": experiment.name,
        **to_json(env_spec, method_spec),
        "seeds": seeds,
        "options": dataclasses.asdict(config),
    }
    run_dir = open_folder(experiment.name, config, described, console)
    watch = Stopwatch()
    keys = seed_keys(seeds)
    try:
        state = training(
            run_dir, config, method, keys, schedule, method_spec.options.batch_size, watch, console, in_training
        )
    except Interrupted:
        console.print(f"stopped and saved; to go on: {resume_command(experiment.name, run_dir)}")
        raise
    except NonFiniteLoss as error:
        raise NonFiniteLoss(f"{error}; the checkpoints before it are in {shown(run_dir / folder.CHECKPOINTS)}") from None
    console.print(f"evaluating on {config.eval_tasks:,} held-out tasks")
    trained = Trained(config, env, method, state.params, folder.read_metrics(run_dir), watch)
    findings = experiment.findings(trained)
    updates = method_spec.options.num_updates * method_spec.options.batch_size * len(seeds)
    results = {
        "experiment": experiment.name,
        "preset": config.preset,
        "method": method_spec.path.split(":")[1],
        "env": env_spec.name,
        "env_preset": env_spec.preset,
        "seeds": seeds,
        "status": "complete",
        "seconds": watch.seconds,
        "env_steps": updates * method_spec.options.horizon,
        "tokens": updates * (method_spec.options.horizon + 1),
        **report.environment_facts(),
        "agents": findings.agents,
        "conditions": findings.conditions,
        "curves": findings.curves,
    }
    write_up(run_dir, results, findings, described, trained.metrics, console)
    return run_dir


def make_schedule(num_updates: int, num_chunks: int) -> Schedule:
    """Cuts the training into equal chunks.

    Raises:
      ValueError: they cannot be equal.
    """
    if num_updates % num_chunks:
        raise ValueError(f"num_chunks={num_chunks}: must divide num_updates={num_updates}")
    return Schedule(num_chunks, num_updates // num_chunks)


def seed_keys(seeds: Sequence[int]) -> Array:
    """One key per seed, [S]."""
    return jnp.stack([jax.random.key(seed) for seed in seeds])


def open_folder(name: str, config: RunOptions, described: dict[str, Any], console: Console) -> Path:
    """The folder of a new run, or of the one to resume."""
    if config.resume is None:
        run_dir = folder.create(Path(config.runs_dir), name, described)
        console.print(f"{name}, preset {config.preset}: {_devices()}; run folder {shown(run_dir)}")
    else:
        run_dir = folder.find(config.resume, name, Path(config.runs_dir))
        folder.point_latest(run_dir)
        console.print(f"{name}: going on with {shown(run_dir)}; {_devices()}")
    return run_dir


def write_up(run_dir, results, findings: Findings, described, metrics, console: Console) -> None:
    """Writes results, figures and the report, and prints the table."""
    for name, figure, _ in findings.figures:
        report.save_figure(figure, run_dir, name)
    report.write_results(run_dir, results)
    about = {"metric": findings.metric, "reference": findings.reference, "ratios": findings.ratios}
    report.write_report(
        run_dir,
        results,
        figures=[(f"figures/{name}.png", caption) for name, _, caption in findings.figures],
        metrics={name: float(np.mean(value)) for name, value in metrics[-1].items()},
        config=described["options"],
        command=f"python -m experiments.{results['experiment']} --preset {results['preset']}",
        **about,
    )
    report.print_tables([report.final_table(findings.agents, **about), *report.condition_tables(findings.conditions)])
    seconds = "  ".join(f"{what} {value:.0f} s" for what, value in results["seconds"].items())
    console.print(f"{seconds}\nreport: {shown(run_dir)}/report.html   figures: {shown(run_dir)}/figures/", highlight=False)


def resume_command(name: str, run_dir: Path) -> str:
    """The line that continues a run."""
    return f"make train EXPERIMENT={name} ARGS='--resume {shown(run_dir)}'"


def shown(path: Path) -> str:
    """A path as a user would type it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _devices() -> str:
    kinds = [device.device_kind for device in jax.devices()]
    return f"{len(kinds)} x {kinds[0]}"


def _stop(console: Console, message: str, status: int) -> None:
    Console(stderr=True, soft_wrap=True).print(f"error: {message}", style="red", markup=False, highlight=False)
    sys.exit(status)

"""One experiment from its options to its report."""

import dataclasses
import gc
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from icrl_envs import TaskFamily, sample_tasks
from icrl_envs.film import write_png
from icrl_jax import checkpoint, report
from icrl_jax.core import Agent, Array, Method, TrainState, Tree
from icrl_jax.data.manifest import StoreError
from icrl_jax.parallel import check_rows
from icrl_jax.run import folder, signals
from icrl_jax.run.options import OptionsError, RunOptions, as_arguments, parse
from icrl_jax.run.spec import EnvSpec, MethodSpec, to_json
from icrl_jax.run.training import Stopwatch, training
from icrl_jax.train import Evaluate, NonFiniteLossError, Schedule


class Trained(NamedTuple):
    """What an experiment evaluates."""

    config: Any
    env: Any  # the task family, with what only this kind has
    method: Method
    params: Tree  # seeds stacked [S, ...]
    metrics: list[dict[str, Any]]  # the rows of metrics.jsonl
    watch: Stopwatch
    controls: dict[str, tuple[Method, Tree]]  # what else was trained, to be held against it: method and parameters
    data: Tree  # what it was trained on, as the method holds it; None where every batch is drawn afresh


class Findings(NamedTuple):
    """What an evaluation found, in the words of `results.json`."""

    agents: dict[str, dict[str, Any]]
    conditions: dict[str, dict[str, dict[str, Any]]]
    curves: dict[str, dict[str, Any]]
    figures: list[tuple[str, Figure, str]]  # (file name, figure, caption)
    reference: str | None  # the agent that others are divided by
    ratios: dict[str, dict[str, Any]]


Score = Callable[[Agent, Array], Array]
"""`(agent, key) -> float32 [B]`, compiled into the training loop."""

QUICK_TASKS = 128
"""Held-out tasks of the small evaluation after each chunk."""

PICTURE_SEED = 7_411
EPISODES = "figures/episodes.png"
CONTROLS = "controls"


class Experiment(NamedTuple):
    """What a script in `experiments/` defines."""

    name: str
    presets: Mapping[str, Any]  # "cpu", "paper" -> its configuration, a dataclass that extends `RunOptions`
    env: Callable[[Any], EnvSpec]  # config -> environment
    method: Callable[[Any], MethodSpec]  # config -> method; its options: see docs/architecture.md
    metric: str  # the one that says how good a trained agent is, e.g. "cumulative_regret"
    score: Callable[[TaskFamily, Any, int], Score]  # (env, config, B) -> that metric on B held-out tasks
    findings: Callable[[Trained], Findings]  # the final evaluation
    controls: Callable[[Any], dict[str, MethodSpec]] = lambda config: {}  # name -> what else is trained, and how
    # Environment, and options of the method and of its controls -> what a user should know before it starts; it may
    # refuse (ValueError) what does not fit.
    notes: Callable[[TaskFamily, list[Any]], list[str]] = lambda env, options: []


def main(experiment: Experiment, doc: str, argv: Sequence[str] | None = None) -> None:
    """Runs an experiment from the command line."""
    gc.freeze()  # what was imported stays: looking through it again and again is a tenth of the time to trace
    with guarded() as console:
        run(experiment, parse(experiment.name, experiment.presets, doc, argv), console)


@contextmanager
def guarded() -> Iterator[Console]:
    """Turns what the user can mend, and what a signal asks for, into a clear line and an exit status, no traceback."""
    console = Console(soft_wrap=True)
    try:
        with signals.note_signals(console), warnings.catch_warnings():
            # A full disk says so once, when the run itself cannot be written.
            warnings.filterwarnings("ignore", message="Error writing persistent compilation cache entry")
            yield console
    except (OptionsError, folder.NotARunError, checkpoint.CheckpointError, StoreError) as error:
        _stop(str(error), 2)
    except NonFiniteLossError as error:
        _stop(str(error), 1)
    except OSError as error:
        _stop(f"cannot write the run: {error.strerror or error} ({error.filename or 'runs folder'})", 1)
    except signals.Interrupted as interrupt:
        sys.exit(128 + interrupt.signal_number)


def run(experiment: Experiment, config: RunOptions, console: Console) -> Path:
    """Trains, evaluates, reports; returns the run folder.

    Raises:
      OptionsError: options that do not fit together, before anything compiles.
    """
    plan = make_plan(experiment, config)
    seeds = list(range(config.seed, config.seed + config.num_seeds))
    described = {"experiment": experiment.name, **to_json(plan.env_spec, plan.method_spec), "seeds": seeds}
    described["options"] = dataclasses.asdict(config)
    run_dir = open_folder(experiment.name, config, described, console)
    watch = Stopwatch()
    with resumable(f"make train EXPERIMENT={experiment.name}", run_dir, config, console):
        for note in plan.notes:
            console.print(note, highlight=False)
        state = train_plan(plan, run_dir, config, seed_keys(seeds), watch, console)
        controls = {}
        for name, (spec, method) in plan.controls.items():
            console.print(f"training {name}, a control")
            control = plan._replace(method_spec=spec, method=method)
            (folder_of := run_dir / CONTROLS / name).mkdir(parents=True, exist_ok=True)
            trained = train_plan(control, folder_of, config, seed_keys(seeds), watch, console)
            controls[name] = control.method, trained.params
        console.print(f"evaluating on {config.eval_tasks:,} held-out tasks")
        rows = folder.read_metrics(run_dir)
        trained = Trained(config, plan.env, plan.method, state.params, rows, watch, controls, state.data)
        findings = experiment.findings(trained)
        with watch.time("evaluate"):
            pictures = draw_episodes(run_dir, plan, state.params)
        results = make_results(experiment.name, config.preset, plan, seeds, watch, findings)
        command = shell_command(f"make train EXPERIMENT={experiment.name}", experiment, config)
        write_up(run_dir, results, findings, experiment.metric, described["options"], rows, command, console, pictures)
    return run_dir


def shell_command(make: str, experiment: Experiment, config: RunOptions) -> str:
    """What to type to get this run again."""
    arguments = as_arguments(experiment.presets[config.preset], config)
    return f"{make} PRESET={config.preset}" + (f" ARGS='{arguments}'" if arguments else "")


@contextmanager
def resumable(command: str, run_dir: Path, config: RunOptions, console: Console) -> Iterator[None]:
    """Says how to go on where SIGINT or SIGTERM stops the run, whatever it is doing."""
    try:
        yield
    except signals.Interrupted:
        command += f" PRESET={config.preset} ARGS='--resume {shown(run_dir)}'"
        console.print(f"stopped; what was trained is saved; to go on: {command}", highlight=False)
        raise


class Plan(NamedTuple):
    """What a configuration builds."""

    env_spec: EnvSpec
    method_spec: MethodSpec
    env: TaskFamily
    method: Method
    schedule: Schedule
    in_training: Evaluate
    controls: dict[str, tuple[MethodSpec, Method]]
    notes: list[str]  # what a user should know before it starts


def make_plan(experiment: Experiment, config: RunOptions) -> Plan:
    """Builds environment, method and schedule.

    Raises:
      OptionsError: options that do not fit together.
    """
    try:
        env_spec, method_spec = experiment.env(config), experiment.method(config)
        env = env_spec.build()
        specs = {"": method_spec, **experiment.controls(config)}
        methods = {name: spec.build(env) for name, spec in specs.items()}
        for method in methods.values():
            if method.feed is not None:
                method.feed.check()
        notes = experiment.notes(env, [spec.options for spec in specs.values()])
        method = methods.pop("")
        schedule = make_schedule(method_spec.options.num_updates, config.num_chunks)
        check_rows("batch_size", method_spec.options.batch_size)
        score = experiment.score(env, config, QUICK_TASKS)
    except ValueError as error:
        raise OptionsError(str(error)) from None
    controls = {name: (specs[name], control) for name, control in methods.items()}
    in_training = partial(_mean_score, experiment.metric, score)
    return Plan(env_spec, method_spec, env, method, schedule, in_training, controls, notes)


def _mean_score(metric: str, score: Score, agent: Agent, key: Array) -> dict[str, Array]:
    return {metric: score(agent, key).mean()}


def train_plan(
    plan: Plan,
    run_dir: Path,
    config: RunOptions,
    keys: Array,
    watch: Stopwatch,
    console: Console,
    **more: Any,
) -> TrainState:
    """`training`, with what a user should know when it stops early."""
    batch_size = plan.method_spec.options.batch_size
    try:
        return training(
            run_dir, config, plan.method, keys, plan.schedule, batch_size, watch, console, plan.in_training, **more
        )
    except NonFiniteLossError as error:
        saved = run_dir / folder.CHECKPOINTS
        kept = (
            f"the checkpoints before it are in {shown(saved)}"
            if saved.is_dir()
            else "no checkpoint was saved before it"
        )
        raise NonFiniteLossError(f"{error}; {kept}") from None


def make_results(
    name: str, preset: str, plan: Plan, seeds: Sequence[int], watch: Stopwatch, findings: Findings
) -> dict:
    """`results.json`; what was computed includes the controls."""
    trained = [plan.method_spec.options, *(spec.options for spec, _ in plan.controls.values())]
    tokens = sum(options.num_updates * options.batch_size * options.tokens_per_row(plan.env) for options in trained)
    return {
        "experiment": name,
        "preset": preset,
        "method": plan.method_spec.path.split(":")[1],
        "env": plan.env_spec.name,
        "env_preset": plan.env_spec.preset,
        "seeds": list(seeds),
        "status": "complete",
        "seconds": watch.seconds,
        "env_steps": sum(options.env_steps(plan.env, len(seeds)) for options in trained),
        "tokens": tokens * len(seeds),
        **report.environment_facts(),
        "agents": findings.agents,
        "conditions": findings.conditions,
        "curves": findings.curves,
    }


def draw_episodes(run_dir: Path, plan: Plan, params: Tree) -> list[tuple[str, str]]:
    """Draws the first seed's agent at work in two held-out tasks, where episodes end and the environment can draw.

    Returns:
      (path in `run_dir`, caption), none or one.
    """
    env = plan.env
    if not env.episodic or env.render is None:
        return []
    agent = plan.method.agent(jax.tree.map(lambda x: x[0], params))
    tasks = sample_tasks(env, jax.random.key(PICTURE_SEED), 2)
    num_steps = plan.method_spec.options.horizon
    picture = report.episodes_picture(agent, env, tasks, jax.random.key(PICTURE_SEED + 1), num_steps)
    if picture is None:
        return []
    write_png(run_dir / EPISODES, picture)
    return [(EPISODES, f"Two held-out tasks: the first episode, and the last whole one within {num_steps:,} steps.")]


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
    signals.check()  # before it there is nothing to resume
    if config.resume is None:
        run_dir = folder.create(Path(config.runs_dir), name, described)
        console.print(f"{name}, preset {config.preset}: {_devices()}; run folder {shown(run_dir)}")
    else:
        run_dir = folder.find(config.resume, name, Path(config.runs_dir))
        if run_dir.parent.name == name:
            folder.point_latest(run_dir)
        console.print(f"{name}: going on with {shown(run_dir)}; {_devices()}")
    return run_dir


def write_up(
    run_dir: Path,
    results: dict[str, Any],
    findings: Findings,
    metric: str,
    options: dict[str, Any],
    rows: list[dict[str, Any]],
    command: str,
    console: Console,
    pictures: Sequence[tuple[str, str]] = (),
) -> None:
    """Writes results, figures and the report, and prints the tables; `pictures` are there already."""
    for name, figure, _ in findings.figures:
        signals.check()
        report.save_figure(figure, run_dir, name)
    about = {"metric": metric, "reference": findings.reference, "ratios": findings.ratios}
    report.write_report(
        run_dir,
        results,
        figures=[*((f"figures/{name}.png", caption) for name, _, caption in findings.figures), *pictures],
        metrics={name: float(np.mean(value)) for name, value in rows[-1].items()},
        config=options,
        command=command,
        **about,
    )
    report.print_tables([report.final_table(findings.agents, **about), *report.condition_tables(findings.conditions)])
    report.write_results(run_dir, results)  # last: a folder with results is complete
    seconds = "  ".join(f"{what} {value:.0f} s" for what, value in results["seconds"].items())
    console.print(
        f"{seconds}\nreport: {shown(run_dir)}/report.html   figures: {shown(run_dir)}/figures/", highlight=False
    )


def shown(path: Path) -> str:
    """A path as a user would type it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _devices() -> str:
    kinds = [device.device_kind for device in jax.devices()]
    return f"{len(kinds)} x {kinds[0]}"


def _stop(message: str, status: int) -> None:
    Console(stderr=True, soft_wrap=True).print(f"error: {message}", style="red", markup=False, highlight=False)
    sys.exit(status)

"""Learning rates times seeds, trained at once in one compiled program."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from icrl_jax import report, statistics
from icrl_jax.methods.supervised import check_hparams
from icrl_jax.run import folder
from icrl_jax.run.experiment import (
    Experiment,
    Findings,
    make_plan,
    make_results,
    open_folder,
    resumable,
    seed_keys,
    shell_command,
    train_plan,
    write_up,
)
from icrl_jax.run.options import OptionsError, RunOptions
from icrl_jax.run.spec import to_json
from icrl_jax.run.training import Stopwatch

NOISE_SEED = 6_133
"""Seed of the reward noise, the same for every run; the tasks are those of the experiment's `score`."""


def as_sweep(experiment: Experiment, learning_rates: tuple[float, ...], num_seeds: int) -> Experiment:
    """The same experiment under the name "sweep_...", with the option `learning_rates` and several seeds by default."""
    presets = {}
    for name, config in experiment.presets.items():
        extra = ("learning_rates", tuple[float, ...], learning_rates)
        cls = dataclasses.make_dataclass("Sweep", [extra], bases=(type(config),), frozen=True)
        fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
        presets[name] = cls(**{**fields, "num_seeds": num_seeds})
    return experiment._replace(name=f"sweep_{experiment.name}", presets=presets, controls=lambda config: {})


def sweep(experiment: Experiment, config: RunOptions, console: Console) -> None:
    """Trains every learning rate with every seed; one table, one figure. A run that diverges is shown as such.

    Args:
      experiment: from `as_sweep`.
    Raises:
      OptionsError: options that do not fit together, before anything compiles.
    """
    plan = make_plan(experiment, config)
    rates: tuple[float, ...] = getattr(config, "learning_rates")  # noqa: B009  a field that `as_sweep` adds
    try:
        for rate in rates:
            check_hparams({"learning_rate": rate})
    except ValueError as error:
        raise OptionsError(str(error)) from None
    if not rates:
        raise OptionsError("learning_rates=(): must hold at least one")
    seeds = list(range(config.seed, config.seed + config.num_seeds))
    grid = list(itertools.product(rates, seeds))
    described: dict[str, Any] = {"experiment": experiment.name, **to_json(plan.env_spec, plan.method_spec)}
    described |= {"seeds": [seed for _, seed in grid], "options": dataclasses.asdict(config)}
    run_dir = open_folder(experiment.name, config, described, console)
    watch = Stopwatch()
    hparams = {"learning_rate": jnp.asarray([rate for rate, _ in grid], jnp.float32)}
    keys = seed_keys(described["seeds"])
    make = f"make sweep EXPERIMENT={experiment.name.removeprefix('sweep_')}"
    with resumable(make, run_dir, config, console):
        for note in plan.notes:
            console.print(note, highlight=False)
        state = train_plan(plan, run_dir, config, keys, watch, console, hparams=hparams, stop_nonfinite=False)
        console.print(f"evaluating on {config.eval_tasks:,} held-out tasks")
        score = experiment.score(plan.env, config, config.eval_tasks)
        key = jax.random.key(NOISE_SEED)
        score_all = jax.jit(lambda params: jax.lax.map(lambda one: score(plan.method.agent(one), key), params))
        with watch.time("compile"):
            compiled = score_all.lower(state.params).compile()
        with watch.time("evaluate"):
            values = np.asarray(compiled(state.params)).reshape(len(rates), len(seeds), -1)  # [R, S, B]
        diverged = ~np.isfinite(np.asarray(folder.read_metrics(run_dir)[-1]["loss"])).reshape(len(rates), len(seeds))
        values = np.where(diverged[..., None], np.nan, values)
        method = plan.method_spec.path.split(":")[1]
        agents = {
            f"{method} at {rate:g}": {experiment.metric: dict(statistics.interval(x))}
            for rate, x in zip(rates, values, strict=True)
        }
        figure = report.sweep_figure(rates, values.mean(axis=-1), experiment.metric, method)
        findings = Findings(agents, {}, {}, [("sweep", figure, "Every learning rate with every seed.")], None, {})
        results = make_results(experiment.name, config.preset, plan, described["seeds"], watch, findings)
        rows = folder.read_metrics(run_dir)
        command = shell_command(make, experiment, config)
        write_up(run_dir, results, findings, experiment.metric, described["options"], rows, command, console)

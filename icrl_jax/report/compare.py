"""Several finished runs in one table and one figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from rich.table import Table as RichTable

from icrl_jax.report.figures import Bar, comparison_figure
from icrl_jax.report.names import METRICS, is_trained, look, metric_facts, number
from icrl_jax.report.results import read_results
from icrl_jax.report.tables import Table, ranked, span, to_markdown, to_rich


class Comparison(NamedTuple):
    """What ``compare`` gives: print it with rich, save ``figure``, compute with ``rows``."""

    metric: str
    rows: list[dict[str, Any]]  # one per run and agent: run, folder, env, preset, agent, trained, mean, low, high, ...
    table: Table
    figure: Figure

    def __rich__(self) -> RichTable:
        return to_rich(self.table)

    def __str__(self) -> str:
        return to_markdown(self.table)


def compare(run_dirs: Sequence[str | Path], metric: str | None = None) -> Comparison:
    """Read the ``results.json`` of several runs and set their agents side by side, best first within an environment.

    An agent with exactly the same result in several runs (a classical one on the same held-out tasks) is shown once.

    Args:
      run_dirs: folders of finished runs; one without complete results is refused by name.
      metric: what to compare; by default the first metric that an agent of every run has.
    """
    folders = [Path(folder) for folder in ([run_dirs] if isinstance(run_dirs, str | Path) else run_dirs)]
    if not folders:
        raise ValueError("run_dirs is empty: nothing to compare")
    runs = {folder.resolve(): _complete(folder) for folder in folders}
    metric = metric or _common_metric(runs)
    rows = []
    for folder, results in runs.items():
        if not any(metric in metrics for metrics in results["agents"].values()):
            raise ValueError(f"{folder} has no agent with the metric {metric!r}; it has {_metrics(results) or 'none'}")
        for agent in ranked(results["agents"], metric):
            rows.append(_row(folder, results, agent, metric))
    merged = _merged(rows)
    return Comparison(metric, rows, _table(merged, metric), _figure(merged, metric))


def _complete(folder: Path) -> dict[str, Any]:
    results = read_results(folder)
    if results["status"] != "complete":
        raise ValueError(f"{folder}: the run is {results['status']!r}, not complete")
    if not results["agents"]:
        raise ValueError(f"{folder}: results.json holds no agents")
    return results


def _metrics(results: dict[str, Any]) -> list[str]:
    """Metrics of the trained agents (of all, where none is trained), the known ones in their usual order first."""
    agents = results["agents"]
    trained = [agent for agent in agents if _is_trained(agent, results)] or list(agents)
    found = list(dict.fromkeys(metric for agent in trained for metric in agents[agent]))
    return [metric for metric in METRICS if metric in found] + [metric for metric in found if metric not in METRICS]


def _common_metric(runs: dict[Path, dict[str, Any]]) -> str:
    each = {folder: _metrics(results) for folder, results in runs.items()}
    first = next(iter(each.values()))
    shared = [metric for metric in first if all(metric in metrics for metrics in each.values())]
    if not shared:
        listing = "; ".join(f"{folder.name}: {', '.join(metrics) or 'none'}" for folder, metrics in each.items())
        raise ValueError(f"the runs share no metric ({listing})")
    return shared[0]


def _is_trained(agent: str, results: dict[str, Any]) -> bool:
    return agent == results["method"] or is_trained(agent)


def _row(folder: Path, results: dict[str, Any], agent: str, metric: str) -> dict[str, Any]:
    entry = results["agents"][agent][metric]
    preset = results["env_preset"]
    return {
        "run": f"{results['experiment']}/{folder.name}",
        "folder": str(folder),
        "env": results["env"] + (f" ({preset})" if preset else ""),
        "preset": results["preset"],
        "method": results["method"],
        "agent": agent,
        "trained": _is_trained(agent, results),
        "metric": metric,
        **{name: entry[name] for name in ("mean", "low", "high", "n", "per_seed")},
        "seed_low": entry.get("seed_low"),
        "seed_high": entry.get("seed_high"),
        "train_seconds": results["seconds"]["train"],
    }


def _merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with equal results in one environment become one; environments together, best first inside each."""
    kept: dict[Any, dict[str, Any]] = {}
    for row in rows:
        same = (row["env"], row["agent"], row["trained"], row["mean"], row["low"], row["high"], row["n"])
        key = same if not row["trained"] else (row["folder"], row["agent"])
        if key in kept:
            kept[key] = {**kept[key], "copies": kept[key]["copies"] + 1}
        else:
            kept[key] = {**row, "copies": 1}
    sign = 1 if metric_facts(rows[0]["metric"]).lower_is_better else -1
    environments = list(dict.fromkeys(row["env"] for row in rows))

    def place(row: dict[str, Any]) -> tuple[int, bool, float]:
        missing = row["mean"] is None
        return environments.index(row["env"]), missing, 0.0 if missing else sign * row["mean"]

    return sorted(kept.values(), key=place)


def _run_name(row: dict[str, Any]) -> str:
    return row["run"] if row["copies"] == 1 else f"{row['copies']} runs alike"


def _table(rows: list[dict[str, Any]], metric: str) -> Table:
    facts = metric_facts(metric)
    several = len({row["env"] for row in rows}) > 1
    seeds = any(row["seed_low"] is not None for row in rows)
    columns = ["agent", "run", *(["environment"] if several else []), "mean", "95 % interval"]
    columns += [*(["over seeds"] if seeds else []), "seeds", "tasks"]
    cells = [
        [
            look(row["agent"]).label + (" *" if row["trained"] else ""),
            _run_name(row),
            *([row["env"]] if several else []),
            number(row["mean"]),
            span(row["low"], row["high"]),
            *([span(row["seed_low"], row["seed_high"])] if seeds else []),
            str(len(row["per_seed"])),
            str(row["n"]),
        ]
        for row in rows
    ]
    order = "lower is better" if facts.lower_is_better else "higher is better"
    where = "" if several else f" on {rows[0]['env']}"
    title = f"{facts.label[:1].upper()}{facts.label[1:]}{where} ({order})"
    return Table(title, columns, cells, [row["trained"] for row in rows], "* trained.")


def _figure(rows: list[dict[str, Any]], metric: str) -> Figure:
    folders = {row["folder"] for row in rows}

    def label(row: dict[str, Any]) -> str:
        name = look(row["agent"]).label
        return f"{name}  ·  {row['run']}" if len(folders) > 1 and row["copies"] == 1 else name

    def known(value: float | int | None) -> float:
        return float("nan") if value is None else value

    bars = [
        Bar(
            label=label(row),
            agent=row["agent"],
            mean=known(row["mean"]),
            low=known(row["low"]),
            high=known(row["high"]),
            group=row["env"],
            per_seed=[known(value) for value in row["per_seed"]],
        )
        for row in rows
    ]
    facts = metric_facts(metric)
    return comparison_figure(bars, metric, title=f"{facts.label[:1].upper()}{facts.label[1:]}, run by run")

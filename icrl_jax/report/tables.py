"""Final tables: rows are computed once and rendered for a terminal, as markdown or as HTML."""

import html
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable

from icrl_jax.report.names import REFERENCES, is_trained, look, metric_facts, number

Agents = Mapping[str, Mapping[str, Mapping[str, Any]]]  # agent -> metric -> interval, as in results.json
TRAINED_MARK = "*"
WIDEST = 200  # characters of a table in a log


class Table(NamedTuple):
    """A table of text; the first column is left-aligned, the others hold numbers."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    strong: list[bool]  # rows of trained agents
    note: str


def final_table(
    agents: Agents, metric: str, reference: str | None = None, ratios: Mapping[str, Mapping[str, Any]] | None = None
) -> Table:
    """Agents on one metric, best first.

    Args:
      agents: the ``agents`` of results.json; agents without the metric are left out.
      metric: which metric.
      reference: the agent that the ratio column divides by; None leaves that column out.
      ratios: agent -> ``statistics.ratio_interval(agent, reference)``; an agent without one gets the bare ratio.

    Returns:
      Columns: agent, mean, 95 % interval, interval over seeds alone (where any agent has several), ratio.
    """
    facts = metric_facts(metric)
    found = ranked(agents, metric)
    if reference is not None and reference not in found:
        raise ValueError(f"reference {reference!r} has no {metric}; agents that have it: {', '.join(found)}")
    entries = {agent: agents[agent][metric] for agent in found}
    with_seeds = any(entry.get("seed_low") is not None for entry in entries.values())
    columns = ["agent", "mean", "95 % interval"]
    columns += ["over seeds"] if with_seeds else []
    columns += [f"ratio to {look(reference).label}"] if reference else []
    rows = []
    for agent, entry in entries.items():
        row = [_name(agent), number(entry["mean"]), span(entry["low"], entry["high"])]
        row += [span(entry.get("seed_low"), entry.get("seed_high"))] if with_seeds else []
        if reference:
            row.append(_ratio(agent, reference, entries, ratios or {}))
        rows.append(row)
    order = "lower is better" if facts.lower_is_better else "higher is better"
    return Table(
        title=f"{facts.label[:1].upper()}{facts.label[1:]} ({order})",
        columns=columns,
        rows=rows,
        strong=[is_trained(agent) for agent in entries],
        note=_note(entries, with_seeds),
    )


def condition_tables(conditions: Mapping[str, Agents]) -> list[Table]:
    """The ``conditions`` of results.json: one table per metric, agents down, conditions across."""
    metrics = dict.fromkeys(
        metric for agents in conditions.values() for entries in agents.values() for metric in entries
    )
    return [_condition_table(conditions, metric) for metric in metrics]


def ranked(agents: Agents, metric: str) -> list[str]:
    """Names of the agents that have the metric, best first; those without a number last."""
    found = [agent for agent in agents if metric in agents[agent]]
    if not found:
        known = dict.fromkeys(name for entries in agents.values() for name in entries)
        raise ValueError(f"no agent has the metric {metric!r}; metrics there are: {', '.join(known) or 'none'}")
    sign = 1 if metric_facts(metric).lower_is_better else -1

    def place(agent: str) -> tuple[bool, float]:
        mean = agents[agent][metric]["mean"]
        return (True, 0.0) if _missing(mean) else (False, sign * mean)

    return sorted(found, key=place)


def default_reference(agents: Agents, metric: str) -> str | None:
    """The agent that others are best held against: a classical learner before an oracle; None if there is none."""
    return next((name for name in REFERENCES if metric in agents.get(name, {})), None)


def span(low: float | int | None, high: float | int | None) -> str:
    """An interval as text."""
    return "–" if _missing(low) or _missing(high) else f"{number(low)} … {number(high)}"


def to_rich(table: Table) -> RichTable:
    """For a terminal; also readable when piped, where it has neither colour nor box characters beyond rules."""
    rich = RichTable(title=table.title, caption=table.note or None, box=box.SIMPLE_HEAD, title_justify="left")
    rich.title_style, rich.caption_style, rich.caption_justify = "bold", "dim", "left"
    for i, column in enumerate(table.columns):
        rich.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row, strong in zip(table.rows, table.strong, strict=True):
        rich.add_row(*row, style="bold" if strong else None)
    return rich


def to_markdown(table: Table) -> str:
    """A GitHub-flavoured table, trained agents in bold."""
    lines = [f"**{_escape_markdown(table.title)}**", ""]
    lines.append("| " + " | ".join(map(_escape_markdown, table.columns)) + " |")
    lines.append("|" + "|".join([":--"] + ["--:"] * (len(table.columns) - 1)) + "|")
    for row, strong in zip(table.rows, table.strong, strict=True):
        cells = [_escape_markdown(cell) for cell in row]
        cells[0] = f"**{cells[0]}**" if strong else cells[0]
        lines.append("| " + " | ".join(cells) + " |")
    if table.note:
        lines += ["", _escape_markdown(table.note)]
    return "\n".join(lines) + "\n"


def to_html(table: Table) -> str:
    """A ``<figure>`` with a table inside; every cell escaped."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in table.columns)
    body = "\n".join(
        f"<tr{' class=strong' if strong else ''}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row, strong in zip(table.rows, table.strong, strict=True)
    )
    note = f"<figcaption>{html.escape(table.note)}</figcaption>" if table.note else ""
    return (
        f"<figure class=table><h3>{html.escape(table.title)}</h3><div class=scroll><table>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>{note}</figure>"
    )


def print_tables(tables: list[Table], console: Console | None = None) -> None:
    """Print tables; without a terminal they get the width they need, so nothing is wrapped in a log or a pipe."""
    console = console or Console()
    for table in tables:
        rich = to_rich(table)
        if not console.is_terminal:
            wide = Measurement.get(console, console.options.update(width=WIDEST), rich)
            console.width = max(console.width, min(wide.maximum, WIDEST))
        console.print(rich)


def _condition_table(conditions: Mapping[str, Agents], metric: str) -> Table:
    facts = metric_facts(metric)
    columns = [name for name, agents in conditions.items() if any(metric in entries for entries in agents.values())]
    merged: dict[str, Mapping[str, Any]] = {}
    for name in reversed(columns):  # the first condition that knows an agent decides its place
        merged.update({agent: entries for agent, entries in conditions[name].items() if metric in entries})
    names = ranked(merged, metric)
    cells = {agent: [conditions[name].get(agent, {}).get(metric) for name in columns] for agent in names}
    tasks = sorted({entry["n"] for row in cells.values() for entry in row if entry})
    note = f"Mean with 95 % interval in brackets; {' or '.join(map(str, tasks))} held-out tasks."
    return Table(
        title=f"{facts.label[:1].upper()}{facts.label[1:]} by condition"
        f" ({'lower' if facts.lower_is_better else 'higher'} is better)",
        columns=["agent", *columns],
        rows=[[_name(agent), *map(_mean_and_span, cells[agent])] for agent in names],
        strong=[is_trained(agent) for agent in names],
        note=f"{note} {TRAINED_MARK} trained." if any(map(is_trained, names)) else note,
    )


def _mean_and_span(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return ""
    return f"{number(entry['mean'])} [{span(entry['low'], entry['high'])}]"


def _ratio(agent: str, reference: str, entries: Mapping[str, Any], ratios: Mapping[str, Mapping[str, Any]]) -> str:
    if agent in ratios and agent != reference:
        ratio = ratios[agent]
        text = number(ratio["ratio"])
        return text if _missing(ratio["low"]) else f"{text} [{span(ratio['low'], ratio['high'])}]"
    return number(ratio_of_means(entries[agent]["mean"], entries[reference]["mean"]))


def ratio_of_means(mean: float | int | None, reference: float | int | None) -> float | None:
    """mean / reference where that has a meaning: both known, the reference above zero."""
    if mean is None or reference is None or _missing(mean) or not reference > 0:
        return None
    return mean / reference


def _name(agent: str) -> str:
    return f"{look(agent).label} {TRAINED_MARK}" if is_trained(agent) else look(agent).label


def _note(entries: Mapping[str, Mapping[str, Any]], with_seeds: bool) -> str:
    tasks = sorted({entry["n"] for entry in entries.values()})
    seeds = max(len(entry["per_seed"]) for agent, entry in entries.items())
    parts = [f"{' or '.join(map(str, tasks))} held-out tasks"]
    if any(map(is_trained, entries)):
        parts.append(f"{TRAINED_MARK} trained, {seeds} seed{'s' if seeds > 1 else ''}")
    parts.append(f"95 % interval: bootstrap over {'seeds and tasks' if seeds > 1 else 'tasks'}")
    if with_seeds:
        parts.append("over seeds: Student's t on the seeds' means, these tasks fixed")
    return "; ".join(parts) + "."


def _missing(value: float | int | None) -> bool:
    return value is None or math.isnan(value)


def _escape_markdown(text: str) -> str:
    for character in "\\|*_<`":
        text = text.replace(character, "\\" + character)
    return text

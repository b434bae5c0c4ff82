"""``report.html``: one self-contained page about one run. No script, no network; opens from the file system."""

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from icrl_jax.report.files import write_atomic
from icrl_jax.report.names import METRICS, is_trained, look, metric_facts, number
from icrl_jax.report.tables import (
    Agents,
    condition_tables,
    default_reference,
    final_table,
    ranked,
    ratio_of_means,
    span,
    to_html,
)

STYLE = """
:root { --ink: #1f2328; --soft: #656d76; --page: #ffffff; --card: #f6f8fa; --rule: #d8dee4; --accent: #0067a5; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #9aa4af; --page: #14171b; --card: #1d2126; --rule: #343a42; --accent: #6cb6f0; }
}
* { box-sizing: border-box; }
html { color-scheme: light dark; -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 56rem; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
header { border-bottom: 1px solid var(--rule); padding-bottom: 1.4rem; }
.kicker { color: var(--soft); font-size: .9rem; margin: 0; overflow-wrap: anywhere; }
h1 { font-size: clamp(1.5rem, 4.5vw, 2.1rem); line-height: 1.2; margin: .35rem 0 .5rem; text-wrap: balance; }
.lead { margin: 0; color: var(--soft); }
.status { color: #b35900; font-weight: 600; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .8rem; }
h3 { font-size: 1rem; margin: 0 0 .5rem; }
figure { margin: 0 0 1.8rem; }
figure img { display: block; width: 100%; height: auto; background: #fff; border: 1px solid var(--rule);
  border-radius: .6rem; padding: .3rem; }
figcaption { color: var(--soft); font-size: .88rem; margin-top: .5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .94rem; }
th, td { padding: .42rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { text-align: left; padding-left: .2rem; }
th { color: var(--soft); font-weight: 500; font-size: .86rem; }
tr.strong td { font-weight: 650; }
tr.strong td:first-child { color: var(--accent); }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .35rem 1.4rem; margin: 0;
  font-size: .94rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
pre { background: var(--card); border: 1px solid var(--rule); border-radius: .5rem; padding: .9rem 1rem;
  margin: .6rem 0; overflow-x: auto; font: .86rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
summary { cursor: pointer; color: var(--accent); }
@media print { body { max-width: none; } details > pre { display: block; } }
"""


def write_report(
    run_dir: str | Path,
    results: Mapping[str, Any],
    figures: Sequence[tuple[str | Path, str]] = (),
    metrics: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    command: str | None = None,
    metric: str | None = None,
    reference: str | None = None,
    ratios: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Write ``run_dir/report.html``.

    Args:
      run_dir: the run's folder.
      results: as in ``results.json``.
      figures: (path of a PNG or GIF, caption); a relative path is looked for in ``run_dir``.
      metrics: a few last numbers of training, name -> value.
      config: the run's configuration, shown as JSON.
      command: how to get this run again.
      metric: of the headline and the first table; by default the trained agents' first.
      reference: the agent to hold the others against; by default a classical one.
      ratios: agent -> ``statistics.ratio_interval(agent, reference)``.
    """
    folder = Path(run_dir)
    agents = results["agents"]
    metric = metric or main_metric(agents)
    sentence, detail = headline(results, metric, reference, ratios)
    parts = [_header(results, sentence, detail)]
    if metric is not None:
        parts.append(_tables(agents, metric, reference, ratios))
    if results["conditions"]:
        tables = "\n".join(map(to_html, condition_tables(results["conditions"])))
        parts.append(f"<section><h2>Under other conditions</h2>\n{tables}</section>")
    if figures:
        drawn = "\n".join(_figure(folder, path, caption) for path, caption in figures)
        parts.append(f"<section><h2>Figures</h2>\n{drawn}</section>")
    if metrics:
        parts.append(f"<section><h2>End of training</h2>{_definitions(metrics)}</section>")
    parts.append(_provenance(results, config, command))
    title = f"{results['experiment']}: {sentence}"
    page = _page(title, "\n".join(parts))
    return write_atomic(folder / "report.html", page.encode())


def headline(
    results: Mapping[str, Any],
    metric: str | None = None,
    reference: str | None = None,
    ratios: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[str, str]:
    """The run in one sentence, and the numbers behind it in another."""
    agents: Agents = results["agents"]
    metric = metric or main_metric(agents)
    if metric is None:
        return f"{look(results['method']).label} on {results['env']}", "No agent was evaluated."
    hero = _hero(results, metric)
    entry, facts = agents[hero][metric], metric_facts(metric)
    seeds = len(entry["per_seed"])
    over = f"{entry['n']} held-out tasks" + (f" and {seeds} seeds" if seeds > 1 else "")
    reference = reference or default_reference(agents, metric)
    if reference is None or reference == hero or metric not in agents.get(reference, {}):
        interval = span(entry["low"], entry["high"])
        return (
            f"{_owner(hero)} {facts.label} is {number(entry['mean'])}.",
            f"Mean over {over}; 95 % interval {interval}.",
        )
    against = agents[reference][metric]
    ratio = ratio_of_means(entry["mean"], against["mean"])
    numbers = f"{number(entry['mean'])} against {number(against['mean'])}, means over {over}"
    if ratio is None:
        return (
            f"{_owner(hero)} {facts.label} is {number(entry['mean'])}, {_owner(reference)} {number(against['mean'])}.",
            f"Means over {over}.",
        )
    given = (ratios or {}).get(hero)
    if given:
        numbers += f"; 95 % interval of the ratio {span(given['low'], given['high'])}"
    return f"{_owner(hero)} {facts.label} is {ratio:.2f} times {_owner(reference)}.", f"{numbers}."


def main_metric(agents: Agents) -> str | None:
    """The metric to show first: the first known one that a trained agent has, else any."""
    trained = [agent for agent in agents if is_trained(agent)] or list(agents)
    found = list(dict.fromkeys(metric for agent in trained for metric in agents[agent]))
    return next((metric for metric in METRICS if metric in found), found[0] if found else None)


def _hero(results: Mapping[str, Any], metric: str) -> str:
    """The run's own method, else its best trained agent, else its best."""
    names = ranked(results["agents"], metric)
    if results["method"] in names:
        return results["method"]
    return next((name for name in names if is_trained(name)), names[0])


def _owner(agent: str) -> str:
    label = look(agent).label
    return f"{label}'" if label.endswith("s") else f"{label}'s"


def _header(results: Mapping[str, Any], sentence: str, detail: str) -> str:
    environment = results["env"] + (f" ({results['env_preset']})" if results["env_preset"] else "")
    seeds = ", ".join(map(str, results["seeds"]))
    kicker = f"{results['experiment']} · preset {results['preset']} · {environment} · seeds {seeds}"
    status = "" if results["status"] == "complete" else f"<p class=status>This run is {escape(results['status'])}.</p>"
    return (
        f"<header><p class=kicker>{escape(kicker)}</p><h1>{escape(sentence)}</h1>"
        f"<p class=lead>{escape(detail)}</p>{status}</header>"
    )


def _tables(agents: Agents, metric: str, reference: str | None, ratios: Mapping[str, Mapping[str, Any]] | None) -> str:
    """The main metric first, with ratios; then every other metric."""
    others = dict.fromkeys(name for entries in agents.values() for name in entries if name != metric)
    tables = [final_table(agents, metric, reference or default_reference(agents, metric), ratios)]
    tables += [final_table(agents, name) for name in others]
    joined = "\n".join(map(to_html, tables))
    return f"<section><h2>On unseen tasks</h2>\n{joined}</section>"


def _figure(folder: Path, path: str | Path, caption: str) -> str:
    image = folder / path  # an absolute path stands for itself
    if not image.is_file():
        raise FileNotFoundError(f"figure {image} does not exist; save it before the report is written")
    encoded = base64.b64encode(image.read_bytes()).decode()
    text = escape(caption)
    source = f"data:image/{image.suffix[1:]};base64,{encoded}"
    return f'<figure><img alt="{text}" src="{source}"><figcaption>{text}</figcaption></figure>'


def _provenance(results: Mapping[str, Any], config: Mapping[str, Any] | None, command: str | None) -> str:
    seconds = {name: _duration(value) for name, value in results["seconds"].items()}
    facts = {
        "Time": ", ".join(f"{name} {value}" for name, value in seconds.items()),
        "Environment steps": _amount(results["env_steps"]),
        "Tokens": _amount(results["tokens"]),
        "Hardware": results["hardware"],
        "Versions": ", ".join(f"{name} {version}" for name, version in results["versions"].items()),
        "Commit": results["commit"] or "not from a git tree",
    }
    again = f"<h3>To run it again</h3><pre>{escape(command)}</pre>" if command else ""
    text = json.dumps(config, indent=2, ensure_ascii=False, default=str) if config else ""
    shown = f"<details><summary>Configuration</summary><pre>{escape(text)}</pre></details>" if config else ""
    return f"<section><h2>How it was made</h2>{again}{shown}<p></p>{_definitions(facts)}</section>"


def _definitions(facts: Mapping[str, Any]) -> str:
    rows = "".join(f"<dt>{escape(str(name))}</dt><dd>{escape(_text(value))}</dd>" for name, value in facts.items())
    return f"<dl>{rows}</dl>"


def _text(value: Any) -> str:
    return number(value) if isinstance(value, float) else str(value)


def _duration(seconds: float | int | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _amount(count: float | int | None) -> str:
    if count is None:
        return "–"
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if count >= size:
            return f"{count / size:.3g} {word}"
    return f"{count:,.0f}"


def _page(title: str, body: str) -> str:
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )

"""The figures of a report. Each takes plain numbers and returns a matplotlib ``Figure``; ``save_figure`` writes it.

Axes: S seeds, N tasks or updates as said, T steps, A arms, R learning rates. A curve is what ``statistics.curve``
gives: ``{"mean": [T], "low": [T], "high": [T]}``, where ``low`` and ``high`` may be missing, and ``each`` ``[K, T]``
may hold single ones, to be drawn thin.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from icrl_jax.report.names import look, metric_facts, number
from icrl_jax.report.style import (
    GRID,
    INK,
    LABEL_SIZE,
    MUTED,
    RULE,
    EndLabel,
    add_axes,
    darker,
    label_ends,
    new_figure,
    text_width,
    tidy,
    titles,
    top_margin,
)

Curves = Mapping[str, Mapping[str, Any]]

# Best arm dark blue, the worse the paler, then orange: ordered in lightness, safe for colour-blind readers.
GAPS = LinearSegmentedColormap.from_list("gaps", ["#0B3C6F", "#3F86B8", "#A9CFE0", "#F6E3B5", "#F0A24A", "#C8501E"])
RUNAWAY = 2.5  # a curve that ends this many times above all trained ones leaves the plot, and its label says so
MOST_COLUMNS = 800  # of a heat map
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
PLAIN_MINOR = FuncFormatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "235" else "")


class Bar(NamedTuple):
    """One line of ``comparison_figure``."""

    label: str
    agent: str
    mean: float | int
    low: float | int
    high: float | int
    group: str = ""
    per_seed: Sequence[float] = ()


def regret_figure(
    curves: Curves,
    xlabel: str = "step",
    ylabel: str = "cumulative regret, mean over held-out tasks",
    title: str | None = "Cumulative regret on unseen tasks",
) -> Figure:
    """Cumulative regret against steps, with intervals, one line per agent.

    Args:
      curves: agent -> ``mean`` ``[T]`` and optionally ``low`` and ``high`` ``[T]``. A curve far above all trained
        ones (random, mostly) leaves the plot at the top; its label says where it ends.
    """
    return curve_figure(curves, xlabel, ylabel, title, cut_runaways=True)


def suboptimality_figure(
    sizes: Any,
    curves: Curves,
    xlabel: str = "size of the offline data set",
    ylabel: str = "suboptimality, mean over held-out tasks",
    title: str | None = "Suboptimality from a given data set",
) -> Figure:
    """Offline suboptimality against data set size, both axes logarithmic.

    Args:
      sizes: ``[T]``, above zero.
      curves: agent -> curve at those sizes.
    """
    return curve_figure(curves, xlabel, ylabel, title, x=sizes, log=True)


def curve_figure(
    curves: Curves,
    xlabel: str,
    ylabel: str,
    title: str | None = None,
    x: Any = None,
    log: bool = False,
    cut_runaways: bool = False,
) -> Figure:
    """Lines with intervals, labelled at their right ends.

    Args:
      curves: agent -> curve.
      x: ``[T]``; 1 to T if None.
      log: both axes logarithmic.
      cut_runaways: let a curve far above the trained ones leave the plot.
    """
    lines = {agent: _floats(curves[agent]["mean"]) for agent in sorted(curves, key=_drawing_order)}
    if not lines:
        raise ValueError("curves is empty: nothing to draw")
    grid = np.arange(1, max(map(len, lines.values())) + 1) if x is None else _floats(x)
    for agent, mean in lines.items():
        if len(mean) > len(grid) or not len(mean):
            raise ValueError(f"curves[{agent!r}] has {len(mean)} points, x has {len(grid)}")
    ends = {agent: _last(mean) for agent, mean in lines.items()}
    away = _runaways(lines) if cut_runaways else []
    texts = {
        agent: f"{look(agent).label}  {number(ends[agent])}" + ("  (above the plot)" if agent in away else "")
        for agent in lines
    }
    figure = new_figure()
    right = text_width(figure, list(texts.values())) + 0.55
    axes = add_axes(figure, right=right, top=top_margin(title))
    if log:
        axes.set_xscale("log")
        axes.set_yscale("log")
    for agent, mean in lines.items():
        _line(axes, grid[: len(mean)], mean, curves[agent], agent)
    _limits(axes, grid, lines, curves, away, log)
    titles(axes, title, xlabel, ylabel)
    label_ends(
        axes,
        [EndLabel(ends[agent], texts[agent], look(agent).colour, look(agent).kind == "trained") for agent in lines],
    )
    return figure


def loss_figure(
    updates: Any,
    loss: Any,
    reference: float | int | None = None,
    reference_label: str = "reference",
    heldout: tuple[Any, Any] | None = None,
    heldout_label: str = "cumulative regret on held-out tasks",
    heldout_reference: float | int | None = None,
    heldout_reference_label: str = "reference",
    agent: str = "dpt",
    ylabel: str = "training loss",
    title: str | None = "Training",
) -> Figure:
    """Training loss of every seed, raw (thin) and smoothed, and optionally held-out performance beside it.

    Args:
      updates: ``[N]``, number of updates done at each point.
      loss: ``[S, N]``.
      reference: a horizontal line, such as the loss of the Bayes-optimal predictor.
      heldout: ``(updates [M], values [S, M])``, drawn in a second panel, unsmoothed.
      heldout_reference: a horizontal line in that panel, such as what Thompson sampling reaches.
      agent: whose colour to use.
    """
    steps, values = _floats(updates), np.atleast_2d(_floats(loss))
    if values.ndim != 2 or values.shape[1] != len(steps):
        raise ValueError(f"loss must be [S, N] with N = {len(steps)} updates, got shape {values.shape}")
    panels = 1 if heldout is None else 2
    figure = new_figure(7.6 if panels == 1 else 9.4, 3.9)
    width = figure.get_size_inches()[0]
    half = width / panels
    axes = add_axes(figure, right=0.3 + half * (panels - 1), top=top_margin(title))
    window = max(1, min(len(steps) // 40 * 2 + 1, 101))
    shades = _shades(look(agent).colour, len(values))
    for seed, (row, shade) in enumerate(zip(values, shades, strict=True)):
        if window > 1:
            axes.plot(steps, row, color=shade, linewidth=0.6, alpha=0.28)
        label = "" if len(values) == 1 else f"seed {seed}"
        axes.plot(steps, _smooth(row, window), color=shade, linewidth=2.0, label=label, solid_capstyle="round")
    smooth_ends = np.array([_smooth(row, window) for row in values])
    _loss_limits(axes, values, smooth_ends, reference)
    axes.set_xlim(0, steps[-1] * 1.02 or 1)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    _horizontal(axes, reference, reference_label)
    if len(values) > 1:
        _legend(axes)
    note = f"thin: every point; thick: mean of {window} neighbours" if window > 1 else ""
    titles(axes, title, "updates", f"{ylabel}   ({note})" if note else ylabel)
    if heldout is not None:
        second = add_axes(figure, left=half + 0.72, right=0.3, top=top_margin(title))
        _heldout(second, heldout, shades, heldout_reference, heldout_reference_label)
        titles(second, None, "updates", heldout_label)
        second.set_xlim(axes.get_xlim())
        second.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return figure


def arm_choice_figure(
    actions: Any,
    means: Any,
    title: str | None = "Which arm is pulled, task by task",
    max_tasks: int = 16,
) -> Figure:
    """Arm choices over time as a heat map: one row per task, coloured by how far the arm is from the task's best.

    Exploring shows as speckles at the left, settling on the best arm as a plain dark row. The arms' true means stand
    at the side in the same colours.

    Args:
      actions: ``[N, T]`` integers below A.
      means: ``[N, A]`` true means.
      max_tasks: rows shown; the first ones.
    """
    chosen, truth = np.asarray(actions), _floats(means)
    if chosen.ndim != 2 or truth.ndim != 2 or len(chosen) != len(truth) or not chosen.size:
        raise ValueError(f"actions must be [N, T] and means [N, A], got shapes {chosen.shape} and {truth.shape}")
    if not np.issubdtype(chosen.dtype, np.integer) or chosen.min() < 0 or chosen.max() >= truth.shape[1]:
        raise ValueError(
            f"actions must be integers from 0 to {truth.shape[1] - 1}, got {chosen.dtype} "
            f"from {chosen.min()} to {chosen.max()}"
        )
    chosen, truth = chosen[:max_tasks], truth[:max_tasks]
    gaps = truth.max(axis=1, keepdims=True) - truth
    scale = max(float(gaps.max()), 1e-9)
    num_tasks, num_steps = chosen.shape
    image, per_column = _columns(np.take_along_axis(gaps, chosen, axis=1))

    figure = new_figure(8.6, 1.55 + 0.25 * num_tasks)
    axes = add_axes(figure, left=0.55, right=2.75, bottom=0.85, top=top_margin(title))
    axes.grid(False)
    axes.imshow(
        image,
        aspect="auto",
        interpolation="nearest",
        cmap=GAPS,
        vmin=0,
        vmax=scale,
        extent=(0.5, num_steps + 0.5, num_tasks + 0.5, 0.5),
    )
    axes.hlines(np.arange(1, num_tasks) + 0.5, 0.5, num_steps + 0.5, color="white", linewidth=2.2)
    axes.set_yticks(np.arange(1, num_tasks + 1))
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    titles(axes, title, "step" if per_column == 1 else f"step ({per_column} to a column)", "held-out task")

    width = figure.get_size_inches()[0]
    side = add_axes(figure, left=width - 2.55, right=0.3, bottom=0.85, top=top_margin(title))
    rows = np.broadcast_to(np.arange(1, num_tasks + 1)[:, None], truth.shape)
    side.hlines(np.arange(1, num_tasks + 1), truth.min(axis=1), truth.max(axis=1), color=GRID, linewidth=2.0, zorder=1)
    side.scatter(truth, rows, c=gaps, cmap=GAPS, vmin=0, vmax=scale, s=34, edgecolors="white", linewidths=0.8, zorder=2)
    side.set_ylim(num_tasks + 0.5, 0.5)
    side.margins(x=0.09)
    side.set_yticks(np.arange(1, num_tasks + 1), labels=[])
    side.grid(False, axis="y")
    side.spines["left"].set_visible(False)
    side.tick_params(axis="y", length=0)
    side.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    titles(side, None, "mean reward", "true means of the arms")
    _gap_bar(figure, scale)
    return figure


def sweep_figure(
    learning_rates: Any,
    final_metric: Any,
    metric: str = "cumulative_regret",
    agent: str = "dpt",
    xlabel: str = "learning rate",
    title: str | None = "Learning-rate sweep",
) -> Figure:
    """Final metric against learning rate: every seed a dot, their mean a line, the best rate marked.

    Args:
      learning_rates: ``[R]``, above zero.
      final_metric: ``[R, S]``; a number that is not finite is a run that diverged, drawn as a cross at the edge.
    """
    rates, values = _floats(learning_rates), _floats(final_metric)
    if values.ndim != 2 or rates.ndim != 1 or len(values) != len(rates) or not values.size:
        raise ValueError(f"final_metric must be [R, S] with R = {rates.size} learning rates, got shape {values.shape}")
    order = np.argsort(rates)
    rates, values = rates[order], values[order]
    facts, colour = metric_facts(metric), look(agent).colour
    whole = np.isfinite(values).all(axis=1)
    figure = new_figure(6.6, 3.9)
    axes = add_axes(figure, right=0.35, top=top_margin(title))
    axes.set_xscale("log")
    axes.plot(rates[whole], values[whole].mean(axis=1), color=colour, linewidth=2.2, zorder=2)
    spots = np.broadcast_to(rates[:, None], values.shape)
    fine = np.isfinite(values)
    axes.scatter(spots[fine], values[fine], s=26, color=colour, alpha=0.45, edgecolors="none", zorder=3)
    axes.margins(0.07, 0.16)
    axes.xaxis.set_minor_formatter(NullFormatter())
    if not fine.all():
        _diverged(axes, rates[~whole], (~fine).sum(axis=1)[~whole], facts.lower_is_better)
    if whole.any():
        means = np.where(whole, values.mean(axis=1), np.inf if facts.lower_is_better else -np.inf)
        best = int(np.argmin(means) if facts.lower_is_better else np.argmax(means))
        edge = values[best].min() if facts.lower_is_better else values[best].max()
        _mark_best(axes, rates[best], float(means[best]), float(edge), colour, facts.lower_is_better)
    better = "lower" if facts.lower_is_better else "higher"
    titles(axes, title, xlabel, f"{facts.label} ({better} is better); dots: {values.shape[1]} seeds, line: their mean")
    return figure


def comparison_figure(bars: Sequence[Bar], metric: str, title: str | None = None) -> Figure:
    """Several runs or agents on one metric: a dot for the mean, a line for the interval, small ticks for the seeds.

    A mean far above all trained ones is an arrow at the edge, with its number beside it.

    Args:
      bars: drawn top to bottom in the order given; a new ``group`` (an environment, say) opens a new panel with its
        own axis.
    """
    if not bars:
        raise ValueError("bars is empty: nothing to compare")
    groups = list(dict.fromkeys(bar.group for bar in bars))
    facts = metric_facts(metric)
    row, gap, bottom = 0.31, 0.8, 0.62
    top = top_margin(title) + (0.1 if len(groups) > 1 else 0)
    height = top + bottom + row * len(bars) + gap * (len(groups) - 1) + 0.1 * len(groups)
    figure = new_figure(7.6, height)
    left = text_width(figure, [bar.label for bar in bars], bold=True) + 0.35
    right = text_width(figure, [number(bar.mean) for bar in bars], bold=True) + 0.35
    start = top
    for i, group in enumerate(groups):
        members = [bar for bar in bars if bar.group == group]
        size = row * len(members) + 0.1
        axes = add_axes(figure, left=left, right=right, top=start, bottom=height - start - size)
        _dots(axes, members)
        order = "lower is better" if facts.lower_is_better else "higher is better"
        titles(axes, title if i == 0 else None, facts.label if i == len(groups) - 1 else "", f"{group or order}")
        if group:
            axes.annotate(
                order,
                (1, 1),
                (0, 7),
                xycoords="axes fraction",
                textcoords="offset points",
                fontsize=LABEL_SIZE,
                color=MUTED,
                ha="right",
            )
        start += size + gap
    return figure


def _line(axes: Axes, x: np.ndarray, mean: np.ndarray, curve: Mapping[str, Any], agent: str) -> None:
    kind, colour = look(agent).kind, look(agent).colour
    width = {"trained": 2.6, "classical": 1.4, "reference": 1.2}[kind]
    if "low" in curve and "high" in curve:
        axes.fill_between(
            x,
            _floats(curve["low"]),
            _floats(curve["high"]),
            color=colour,
            alpha=0.2 if kind == "trained" else 0.11,
            linewidth=0,
            zorder=1,
        )
    for one in curve.get("each", ()):
        axes.plot(x, _floats(one), color=colour, linewidth=0.7, alpha=0.45, zorder=1)
    dashes = (0, (5, 3)) if agent != "random" else (0, (1.5, 2))
    axes.plot(
        x,
        mean,
        color=colour,
        linewidth=width,
        linestyle=dashes if kind == "reference" else "solid",
        zorder={"trained": 4, "classical": 3, "reference": 2}[kind],
        solid_capstyle="round",
        solid_joinstyle="round",
    )


def _drawing_order(agent: str) -> int:
    return ("reference", "classical", "trained").index(look(agent).kind)


def _runaways(lines: Mapping[str, np.ndarray]) -> list[str]:
    """Agents whose curve rises far above every trained one."""
    peaks = {agent: float(np.nanmax(mean)) for agent, mean in lines.items() if np.isfinite(mean).any()}
    return _far_above(peaks, [agent for agent in peaks if look(agent).kind == "trained"])


def _far_above(peaks: Mapping[Any, float], trained: Sequence[Any]) -> list[Any]:
    """Keys whose peak would squeeze the trained ones into a corner; none where nothing is trained."""
    ceiling = RUNAWAY * max((peaks[key] for key in trained), default=0.0)
    return [key for key, peak in peaks.items() if peak > ceiling > 0]


def _limits(
    axes: Axes, x: np.ndarray, lines: Mapping[str, np.ndarray], curves: Curves, away: Sequence[str], log: bool
) -> None:
    inside = [agent for agent in lines if agent not in away]
    axes.set_xlim(x[0], x[-1])
    if log:
        points = np.concatenate([lines[agent] for agent in inside])
        points = points[np.isfinite(points) & (points > 0)]
        if points.size:
            axes.set_ylim(points.min() / 1.6, points.max() * 1.35)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PLAIN)
        axes.yaxis.set_minor_formatter(PLAIN_MINOR)
        axes.grid(True, which="minor", axis="y", color=GRID, linewidth=0.4)
        axes.xaxis.set_minor_formatter(NullFormatter())
        return
    tops = [_floats(curves[agent].get("high", lines[agent])) for agent in inside]
    bottoms = [_floats(curves[agent].get("low", lines[agent])) for agent in inside]
    singles = [_floats(one) for agent in inside for one in curves[agent].get("each", ())]
    joined = np.concatenate([*tops, *bottoms, *singles, *(lines[agent] for agent in inside), [0.0]])
    low, high = np.nanmin(joined), np.nanmax(joined)
    room = 0.05 * (high - low or 1.0)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.set_ylim(low - (room if low < 0 else 0.3 * room), high + room)


def _heldout(
    axes: Axes, heldout: tuple[Any, Any], shades: Sequence[str], reference: float | int | None, label: str
) -> None:
    steps, values = _floats(heldout[0]), np.atleast_2d(_floats(heldout[1]))
    if values.shape[1] != len(steps):
        raise ValueError(f"heldout must be (updates [M], values [S, M]), got shapes {steps.shape}, {values.shape}")
    if len(values) != len(shades):
        raise ValueError(f"heldout has {len(values)} seeds, loss has {len(shades)}")
    for row, shade in zip(values, shades, strict=True):
        axes.plot(
            steps,
            row,
            color=shade,
            linewidth=1.8,
            marker="o",
            markersize=3.6,
            markeredgecolor="white",
            markeredgewidth=0.6,
        )
    known = np.append(values[np.isfinite(values)], reference if reference is not None else [])
    if known.size:
        low, high = min(0.0, known.min()), known.max()
        axes.set_ylim(low, high + 0.08 * (high - low or 1))
    _horizontal(axes, reference, label)


def _horizontal(axes: Axes, level: float | int | None, label: str) -> None:
    """A dashed line across, its label on it at the right, below or above depending on the room."""
    if level is None:
        return
    low, high = axes.get_ylim()
    below = (level - low) / (high - low) > 0.1
    axes.axhline(level, color=INK, linewidth=1.1, linestyle=(0, (5, 3)), zorder=5)
    axes.annotate(
        f"{label}  {number(level)}",
        (1, level),
        (-3, -4 if below else 4),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        fontsize=LABEL_SIZE,
        color=INK,
        ha="right",
        va="top" if below else "bottom",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0},
        zorder=6,
    )


def _loss_limits(axes: Axes, raw: np.ndarray, smooth: np.ndarray, reference: float | int | None) -> None:
    """Room for every smoothed point and nearly all raw ones, so that a first spike does not flatten the rest."""
    known = raw[np.isfinite(raw)]
    if not known.size:
        return
    low, high = np.quantile(known, 0.001), max(np.quantile(known, 0.995), np.nanmax(smooth))
    if reference is not None:
        low, high = min(low, reference), max(high, reference)
    below = 0.08 if reference is None or reference > low + 0.1 * (high - low) else 0.15  # room for its label
    axes.set_ylim(low - below * (high - low or 1), high + 0.06 * (high - low or 1))


def _smooth(row: np.ndarray, window: int) -> np.ndarray:
    """Centred moving mean ``[N]``: shrinks to the point itself at the steep start, looks back only at the end."""
    known = np.isfinite(row)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, row, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    index, half = np.arange(len(row)), window // 2
    first = np.maximum(index - half, 0)
    last = np.minimum(index + np.minimum(half, index), len(row) - 1)
    total, count = sums[last + 1] - sums[first], counts[last + 1] - counts[first]
    return np.where(known & (count > 0), total / np.maximum(count, 1), np.nan)


def _shades(colour: str, count: int) -> list[str]:
    """The colour and, for further seeds, lighter and darker relatives of it."""
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    if count == 1:
        return [colour]
    mixes = np.linspace(-0.45, 0.5, count)  # towards black, then towards white
    shades = [rgb * (1 + mix) if mix < 0 else rgb + (1 - rgb) * mix for mix in mixes]
    return ["#" + "".join(f"{round(255 * float(part)):02x}" for part in shade) for shade in shades]


def _legend(axes: Axes) -> None:
    legend = axes.legend(loc="upper right", frameon=False, fontsize=LABEL_SIZE, handlelength=1.4, ncols=2)
    for text in legend.get_texts():
        text.set_color(MUTED)


def _columns(gaps: np.ndarray) -> tuple[np.ndarray, int]:
    """``[N, T]`` with neighbouring steps averaged until a column is at least a pixel wide, and how many they are."""
    per_column = -(-gaps.shape[1] // MOST_COLUMNS)
    starts = np.arange(0, gaps.shape[1], per_column)
    counts = np.diff(np.append(starts, gaps.shape[1]))
    return np.add.reduceat(gaps, starts, axis=1) / counts, per_column


def _gap_bar(figure: Figure, scale: float) -> None:
    """The colour scale, small, under the heat map."""
    width, height = figure.get_size_inches()
    axes = figure.add_axes((0.55 / width, 0.22 / height, 1.5 / width, 0.1 / height))
    axes.imshow(np.linspace(0, 1, 200)[None], aspect="auto", cmap=GAPS, extent=(0, scale, 0, 1))
    axes.set_axis_off()
    axes.annotate(
        f"best arm (0)  …  worst gap ({number(scale)})   mean reward given up by the pull",
        (1, 0.5),
        (8, 0),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=LABEL_SIZE - 0.5,
        color=MUTED,
        va="center",
    )


def _diverged(axes: Axes, rates: np.ndarray, counts: np.ndarray, lower_is_better: bool) -> None:
    """Crosses at the bad edge of the plot for runs without a number."""
    edge, inward = (1.0, "top") if lower_is_better else (0.0, "bottom")
    shift = -1 if lower_is_better else 1
    for rate, count in zip(rates, counts, strict=True):
        axes.plot(
            [rate],
            [edge],
            marker="x",
            color=INK,
            markersize=7,
            markeredgewidth=1.6,
            clip_on=False,
            transform=axes.get_xaxis_transform(),
        )
        axes.annotate(
            f"{count} diverged",
            (rate, edge),
            (0, 8 * shift),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            fontsize=LABEL_SIZE - 0.5,
            color=INK,
            ha="center",
            va=inward,
        )


def _mark_best(axes: Axes, rate: float, mean: float, edge: float, colour: str, lower_is_better: bool) -> None:
    axes.plot(
        [rate],
        [mean],
        marker="o",
        markersize=9,
        markerfacecolor="white",
        markeredgecolor=colour,
        markeredgewidth=2.2,
        zorder=5,
    )
    axes.annotate(
        f"best: {rate:.2g} → {number(mean)}",
        (rate, edge),
        (0, -10 if lower_is_better else 10),
        textcoords="offset points",
        fontsize=LABEL_SIZE,
        color=darker(colour),
        fontweight="bold",
        ha="center",
        va="top" if lower_is_better else "bottom",
        zorder=6,
    )


def _dots(axes: Axes, bars: Sequence[Bar]) -> None:
    tidy(axes)
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(bars) - 0.45, -0.55)
    axes.set_yticks(range(len(bars)), labels=[bar.label for bar in bars], fontsize=LABEL_SIZE)
    peaks = {i: float(bar.mean) for i, bar in enumerate(bars) if np.isfinite(bar.mean)}
    trained = [i for i in peaks if look(bars[i].agent).kind == "trained"]
    away = _far_above(peaks, trained)
    for y, (bar, tick) in enumerate(zip(bars, axes.get_yticklabels(), strict=True)):
        style = look(bar.agent)
        trained = style.kind == "trained"
        tick.set_color(darker(style.colour))
        tick.set_fontweight("bold" if trained else "normal")
        axes.plot(
            [bar.low, bar.high],
            [y, y],
            color=style.colour,
            linewidth=3.4 if trained else 2.0,
            alpha=0.45,
            solid_capstyle="butt",
            zorder=2,
        )
        if len(bar.per_seed) > 1:
            axes.plot(
                bar.per_seed,
                np.full(len(bar.per_seed), y),
                linestyle="none",
                marker="|",
                markersize=9,
                markeredgewidth=1.2,
                color=darker(style.colour),
                zorder=3,
            )
        axes.plot(
            [bar.mean],
            [y],
            marker="o",
            markersize=8 if trained else 6,
            color=style.colour,
            markeredgecolor="white",
            markeredgewidth=0.9,
            zorder=4,
            clip_on=y in away,
        )
        axes.annotate(
            number(bar.mean),
            (1, y),
            (6, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            fontsize=LABEL_SIZE,
            color=darker(style.colour),
            va="center_baseline",
            fontweight="bold" if trained else "normal",
            annotation_clip=False,
        )
    known = [value for i, bar in enumerate(bars) if i not in away for value in (bar.mean, bar.low, bar.high)]
    known = [value for value in [*known, 0.0] if np.isfinite(value)]
    low, high = min(known), max(known)
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    axes.set_xlim(low - (0.03 * (high - low) if low < 0 else 0), high + 0.05 * (high - low or 1))
    for y in away:  # too far right to show: an arrow, beside its number
        axes.plot(
            [0.985],
            [y],
            marker=">",
            markersize=6,
            color=look(bars[y].agent).colour,
            clip_on=False,
            transform=axes.get_yaxis_transform(),
        )
    axes.axvline(0, color=RULE, linewidth=0.8, zorder=1)


def _floats(values: Any) -> np.ndarray:
    """Any numbers, None for those missing, as float64."""
    return np.asarray(values, dtype=np.float64)


def _last(mean: np.ndarray) -> float:
    known = mean[np.isfinite(mean)]
    return float(known[-1]) if known.size else float("nan")

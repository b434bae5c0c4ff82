"""The look of all figures: size, grid, direct labels at line ends, and saving. No pyplot, no global state."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from icrl_jax.report.files import write_atomic

INK, MUTED, RULE, GRID = "#222222", "#6B6B6B", "#B5B5B5", "#E9E9E9"
TITLE_SIZE, LABEL_SIZE, TICK_SIZE = 11.5, 9.5, 9.0
DPI = 160
LINE_HEIGHT = 0.17  # inches between two labels at line ends


class EndLabel(NamedTuple):
    """A label at the right end of a line."""

    y: float  # where the line ends, in data coordinates
    text: str
    colour: str
    strong: bool


def new_figure(width: float = 7.6, height: float = 4.3) -> Figure:
    """An empty figure of its own, drawn by Agg."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def add_axes(
    figure: Figure,
    left: float = 0.72,
    bottom: float = 0.62,
    right: float = 0.25,
    top: float = 0.55,
) -> Axes:
    """Axes that leave these margins, in inches."""
    width, height = figure.get_size_inches()
    axes = figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
    )
    return tidy(axes)


def tidy(axes: Axes) -> Axes:
    """Two quiet spines, a light grid behind the data."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(RULE)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=TICK_SIZE, length=3, color=RULE, which="both", labelcolor=MUTED)
    axes.tick_params(which="minor", length=0)
    return axes


def titles(axes: Axes, title: str | None, xlabel: str, ylabel: str) -> None:
    """The y label stands upright above the axis, under the title: no turned head needed."""
    axes.set_xlabel(xlabel, fontsize=LABEL_SIZE, color=MUTED, labelpad=6)
    axes.annotate(
        ylabel, (0, 1), (0, 7), xycoords="axes fraction", textcoords="offset points", fontsize=LABEL_SIZE, color=MUTED
    )
    if title:
        axes.annotate(
            title,
            (0, 1),
            (0, 24),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=TITLE_SIZE,
            color=INK,
            fontweight="bold",
        )


def top_margin(title: str | None) -> float:
    """Inches above the axes for the y label, and for the title where there is one."""
    return 0.68 if title else 0.38


def text_width(figure: Figure, texts: Sequence[str], size: float = LABEL_SIZE, bold: bool = False) -> float:
    """Width in inches of the longest text."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    widths = []
    for text in texts:
        artist = figure.text(0, 0, text, fontsize=size, fontweight="bold" if bold else "normal")
        widths.append(artist.get_window_extent(renderer).width / figure.dpi)
        artist.remove()
    return max(widths, default=0.0)


def label_ends(axes: Axes, labels: Sequence[EndLabel]) -> None:
    """Write labels in the right margin at their lines' ends, moved apart where they would overlap.

    Call last: the limits of the axes must be final. A thin leader joins a label to its line.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    height = axes.get_position().height * figure.get_size_inches()[1]
    shown = [label for label in labels if np.isfinite(label.y)]
    to_fraction = axes.transData + axes.transAxes.inverted()
    ends = [float(to_fraction.transform((axes.get_xlim()[1], label.y))[1]) for label in shown]
    places = spread(ends, LINE_HEIGHT / height)
    for label, end, place in zip(shown, ends, places, strict=True):
        inside = 0 <= end <= 1  # a line that has left the plot has no end to lead to
        axes.plot(
            [1.0, 1.022, 1.03] if inside else [],
            [end, place, place] if inside else [],
            transform=axes.transAxes,
            clip_on=False,
            color=label.colour,
            linewidth=0.8,
            alpha=0.7,
            solid_capstyle="butt",
        )
        axes.annotate(
            label.text,
            (1.03, place),
            (3, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=LABEL_SIZE,
            color=darker(label.colour),
            fontweight="bold" if label.strong else "normal",
            va="center_baseline",
            annotation_clip=False,
        )


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Positions at least ``gap`` apart, inside [0, 1] if they fit, in the same order, as close as can be (L2)."""
    order = np.argsort(places, kind="stable")
    blocks: list[list[float]] = []  # [sum of (place - offset), count], merged while out of order
    for i, index in enumerate(order):
        blocks.append([places[index] - i * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] >= blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    base = np.concatenate([np.full(int(count), total / count) for total, count in blocks]) if blocks else np.zeros(0)
    base = np.clip(base, 0, max(0.0, 1 - (len(places) - 1) * gap))
    moved = np.empty(len(places))
    moved[order] = base + gap * np.arange(len(places))
    return [float(place) for place in moved]


def darker(colour: str, most: float = 0.36) -> str:
    """The colour, darkened until its luminance lets it be read as text on white."""
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    while rgb @ np.array([0.2126, 0.7152, 0.0722]) > most:
        rgb = rgb * 0.94
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)


def save_figure(figure: Figure, run_dir: str | Path, name: str) -> Path:
    """Write ``run_dir/figures/<name>.png`` in one step and return its path."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return write_atomic(Path(run_dir) / "figures" / f"{name}.png", buffer.getvalue())

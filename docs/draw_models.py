"""Draws docs/img/models.png from what `make bench ARGS="--only models --json bench.json"` measured.

python docs/draw_models.py bench.json
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator

from icrl_jax.report import names, style

COLOURS = {
    "transformer": names.BLUE,
    "s5": names.VERMILLION,
    "s5, feed-forward": names.PURPLE,
    "s4d": names.ORANGE,
    "gru": names.GREEN,
    "lstm": names.PINK,
}
PANELS = {"us_a_token": "training, us a token", "mib": "training, MiB beside weights", "us_a_step": "acting, us a step"}


def main(source: str) -> None:
    """Three panels over the length of the sequence, both axes logarithmic."""
    points = [row["numbers"] for row in json.loads(Path(source).read_text())["rows"] if "model" in row["numbers"]]
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for axis, (quantity, label) in zip(axes, PANELS.items(), strict=True):
        draw(axis, [point for point in points if quantity in point], quantity, label)
    axes[0].legend(frameon=False, fontsize=style.LABEL_SIZE)
    figure.savefig(Path(__file__).parent / "img" / "models.png", dpi=110)


def draw(axis: Axes, points: list[dict], quantity: str, label: str) -> None:
    """A line for each model; the transformer's is wide and below, so that no line that runs along it hides it."""
    style.tidy(axis)
    for model, colour in COLOURS.items():
        line = [(point["length"], point[quantity]) for point in points if point["model"] == model]
        wide = {"linewidth": 4.5, "markersize": 9, "alpha": 0.6} if model == "transformer" else {"markersize": 4}
        axis.plot(*zip(*line, strict=True), marker="o", color=colour, label=model, **wide)
    axis.set(xscale="log", yscale="log")
    axis.set_xticks(lengths := sorted({point["length"] for point in points}), [f"{n:,}" for n in lengths])
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    axis.yaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("length of the sequence", fontsize=style.LABEL_SIZE, color=style.MUTED)
    axis.set_title(label, fontsize=style.LABEL_SIZE, loc="left", color=style.INK)


if __name__ == "__main__":
    main(sys.argv[1])

"""Figures: they hold the data given, labels keep apart, and files are whole PNGs. (Beauty is judged by eye.)"""

import numpy as np
import pytest
from matplotlib.image import imread

from icrl_jax.report import (
    Bar,
    arm_choice_figure,
    comparison_figure,
    curve_figure,
    loss_figure,
    regret_figure,
    save_figure,
    suboptimality_figure,
    sweep_figure,
)
from icrl_jax.report.figures import _columns, _smooth
from icrl_jax.report.names import look
from icrl_jax.report.style import spread


def texts(axes):
    return [text.get_text() for text in axes.texts]


def data_lines(axes, points):
    return [line for line in axes.lines if len(line.get_xdata()) == points]


def test_regret_lines_hold_the_means(curves):
    axes = regret_figure(curves).axes[0]
    lines = {line.get_color(): line for line in data_lines(axes, 23)}
    for agent in curves:
        np.testing.assert_array_equal(lines[look(agent).colour].get_ydata(), curves[agent]["mean"])
    assert lines[look("dpt").colour].get_linewidth() > 1.5 * lines[look("thompson").colour].get_linewidth()


def test_runaway_leaves_the_plot_and_says_so(curves):
    axes = regret_figure(curves).axes[0]
    assert axes.get_ylim()[1] < curves["random"]["mean"][-1] / 2
    assert axes.get_ylim()[1] > max(curves[agent]["high"][-1] for agent in ("dpt", "thompson", "ucb"))
    noted = [text for text in texts(axes) if "above the plot" in text]
    assert len(noted) == 1 and noted[0].startswith(f"Random  {curves['random']['mean'][-1]:.0f}")


def test_every_agent_is_labelled_inside_the_picture(curves):
    figure = regret_figure(curves)
    figure.canvas.draw()
    frame = figure.bbox
    shown = [text for text in figure.axes[0].texts if text.get_text()]
    assert len(shown) == len(curves) + 2  # and the y label and the title
    for text in shown:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= frame.width and box.y0 >= 0 and box.y1 <= frame.height


def test_single_curves_are_thin_and_inside():
    each = [[1.0, 2.0, 9.0], [0.0, -4.0, 1.0]]
    axes = curve_figure({"source": {"mean": [1.0, 1.0, 2.0], "each": each}}, "x", "y").axes[0]
    thin = [line for line in data_lines(axes, 3) if line.get_linewidth() == 0.7]
    np.testing.assert_array_equal([line.get_ydata() for line in thin], each)
    assert axes.get_ylim()[0] <= -4 and axes.get_ylim()[1] >= 9


def test_curves_without_intervals_or_numbers_are_drawn():
    figure = curve_figure({"dpt": {"mean": [1.0, None, 3.0]}, "ad": {"mean": [np.nan] * 3}}, "x", "y")
    figure.canvas.draw()
    with pytest.raises(ValueError, match="curves is empty"):
        regret_figure({})
    with pytest.raises(ValueError, match=r"curves\['dpt'\] has 3 points, x has 2"):
        suboptimality_figure([1, 2], {"dpt": {"mean": [1.0, 2.0, 3.0]}})


def test_suboptimality_axes_are_logarithmic():
    axes = suboptimality_figure([1, 10, 500], {"dpt": {"mean": [0.3, 0.1, 0.0]}}).axes[0]
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert axes.get_xlim() == (1, 500)


def test_loss_figure_draws_raw_and_smooth_per_seed():
    rng = np.random.default_rng(0)
    loss = 1 + rng.normal(size=(3, 400))
    figure = loss_figure(np.arange(400), loss, reference=0.5, heldout=([0, 400], np.ones((3, 2))), heldout_reference=2)
    main, second = figure.axes
    lines = data_lines(main, 400)
    assert len(lines) == 6
    np.testing.assert_array_equal(lines[0].get_ydata(), loss[0])
    assert np.std(lines[1].get_ydata()) < np.std(loss[0]) / 2
    assert len(second.lines) == 4
    with pytest.raises(ValueError, match=r"loss must be \[S, N\] with N = 5"):
        loss_figure(np.arange(5), np.ones((2, 4)))


def test_smoothing_is_a_mean_of_neighbours():
    row = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    np.testing.assert_allclose(_smooth(row, 3), [1, 7 / 3, 14 / 3, 28 / 3, 12])
    np.testing.assert_allclose(_smooth(row, 1), row)
    assert np.isnan(_smooth(np.array([1.0, np.nan, 3.0]), 3)).tolist() == [False, True, False]


def test_arm_choices_show_the_gap_of_the_pulled_arm():
    means = np.array([[0.1, 0.9], [0.7, 0.2]])
    figure = arm_choice_figure(np.array([[0, 1, 1], [1, 0, 0]]), means)
    image = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(image, [[0.8, 0, 0], [0.5, 0, 0]])
    np.testing.assert_allclose(figure.axes[1].collections[1].get_offsets()[:, 0], means.ravel())


def test_long_heat_maps_are_averaged():
    gaps = np.arange(2000.0)[None]
    image, per_column = _columns(gaps)
    assert per_column == 3 and image.shape == (1, 667)
    assert image[0, 0] == 1 and image[0, -1] == 1998.5


@pytest.mark.parametrize(
    ("actions", "means", "message"),
    [
        (np.zeros(3, int), np.zeros((1, 2)), r"actions must be \[N, T\]"),
        (np.zeros((2, 3), int), np.zeros((1, 2)), r"got shapes \(2, 3\) and \(1, 2\)"),
        (np.full((1, 3), 2), np.zeros((1, 2)), "integers from 0 to 1"),
        (np.zeros((1, 3)), np.zeros((1, 2)), "integers from 0 to 1, got float64"),
    ],
)
def test_arm_choices_refuse(actions, means, message):
    with pytest.raises(ValueError, match=message):
        arm_choice_figure(actions, means)


def test_sweep_marks_the_best_whole_rate_and_what_diverged():
    """Rate 0.1 has the lowest number but one run diverged: it is not the best."""
    figure = sweep_figure([0.1, 0.001, 0.01], [[1.0, np.nan], [5.0, 7.0], [4.0, 4.0]])
    found = texts(figure.axes[0])
    assert "best: 0.01 → 4.00" in found and "1 diverged" in found
    higher = sweep_figure([0.1, 0.01], [[1.0], [2.0]], metric="final_return")
    assert "best: 0.01 → 2.00" in texts(higher.axes[0])
    sweep_figure([0.1], [[np.nan]]).canvas.draw()


def test_comparison_has_one_panel_per_group():
    bars = [Bar("a", "dpt", 1, 0.5, 1.5, "x", [0.9, 1.1]), Bar("b", "ad", 2, 1, 3, "y"), Bar("c", "ucb", 1, 1, 1, "x")]
    figure = comparison_figure(bars, "cumulative_regret", "Runs")
    assert len(figure.axes) == 2
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["a", "c"]


def test_spread_keeps_order_distance_and_bounds():
    places = spread([0.5, 0.5, 0.52, 0.0, 1.4], 0.1)
    ordered = sorted(places)
    assert all(high - low > 0.1 - 1e-9 for low, high in zip(ordered, ordered[1:], strict=False))
    assert min(places) >= 0 and max(places) <= 1
    assert spread([0.2, 0.8], 0.1) == pytest.approx([0.2, 0.8])
    assert np.mean(spread([0.5, 0.5, 0.5], 0.1)) == pytest.approx(0.5)
    assert spread([], 0.1) == []


def test_saved_figure_is_a_whole_png(curves, tmp_path):
    path = save_figure(regret_figure(curves), tmp_path, "regret")
    assert path == tmp_path / "figures" / "regret.png"
    assert imread(path).shape[1] > 1000
    assert [file.name for file in path.parent.iterdir()] == ["regret.png"]

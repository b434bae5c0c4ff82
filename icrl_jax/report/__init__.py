"""Figures, tables and the report of a run."""

from icrl_jax.report.compare import Comparison, compare
from icrl_jax.report.figures import (
    Bar,
    arm_choice_figure,
    comparison_figure,
    curve_figure,
    loss_figure,
    regret_figure,
    suboptimality_figure,
    sweep_figure,
)
from icrl_jax.report.film import episodes_picture, film
from icrl_jax.report.html import headline, write_report
from icrl_jax.report.results import environment_facts, read_results, write_results
from icrl_jax.report.style import save_figure
from icrl_jax.report.tables import condition_tables, final_table, print_tables, to_markdown, to_rich

__all__ = [
    "Bar",
    "Comparison",
    "arm_choice_figure",
    "compare",
    "comparison_figure",
    "condition_tables",
    "curve_figure",
    "environment_facts",
    "episodes_picture",
    "film",
    "final_table",
    "headline",
    "loss_figure",
    "print_tables",
    "read_results",
    "regret_figure",
    "save_figure",
    "suboptimality_figure",
    "sweep_figure",
    "to_markdown",
    "to_rich",
    "write_report",
    "write_results",
]

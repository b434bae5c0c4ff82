"""Final tables: order, columns, marks, and that a pipe loses nothing."""

import io

import pytest
from rich.console import Console

from icrl_jax.report import condition_tables, final_table, print_tables, to_markdown
from icrl_jax.report.names import AGENTS, look, number
from icrl_jax.report.tables import to_html


def entry(mean, low=None, high=None, seeds=1, **more):
    return {"mean": mean, "low": low, "high": high, "n": 20, "per_seed": [mean] * seeds, **more}


AGENTS_SEEN = {
    "random": {"cumulative_regret": entry(164.0, 156.0, 172.0)},
    "dpt": {"cumulative_regret": entry(10.5, 10.0, 11.0, seeds=2, seed_low=9.0, seed_high=12.0)},
    "thompson": {"cumulative_regret": entry(10.0, 9.0, 11.0)},
    "broken": {"cumulative_regret": entry(None)},
    "lcb": {"suboptimality": entry(0.1)},
}


def test_best_is_first_and_missing_is_last():
    table = final_table(AGENTS_SEEN, "cumulative_regret")
    assert [row[0] for row in table.rows] == ["Thompson sampling", "DPT *", "Random", "broken *"]
    assert table.strong == [False, True, False, True]
    returns = {"a": {"final_return": entry(1.0)}, "b": {"final_return": entry(2.0)}}
    assert [row[1] for row in final_table(returns, "final_return").rows] == ["2.00", "1.00"]


def test_columns_hold_intervals_seeds_and_ratio():
    ratios = {"dpt": {"ratio": 1.05, "low": 0.98, "high": 1.125, "n": 20}}
    table = final_table(AGENTS_SEEN, "cumulative_regret", "thompson", ratios)
    assert table.columns == ["agent", "mean", "95 % interval", "over seeds", "ratio to Thompson sampling"]
    assert table.rows[1] == ["DPT *", "10.5", "10.0 … 11.0", "9.00 … 12.0", "1.05 [0.980 … 1.12]"]
    assert table.rows[2][3:] == ["–", "16.4"]
    assert table.rows[3][1:] == ["–", "–", "–", "–"]


def test_seeds_column_only_where_there_are_seeds():
    agents = {"thompson": AGENTS_SEEN["thompson"]}
    assert final_table(agents, "cumulative_regret").columns == ["agent", "mean", "95 % interval"]


def test_refuses_unknown_metric_and_reference():
    with pytest.raises(
        ValueError, match="no agent has the metric 'regret'; metrics there are: cumulative_regret, subopt"
    ):
        final_table(AGENTS_SEEN, "regret")
    with pytest.raises(ValueError, match="reference 'lcb' has no cumulative_regret"):
        final_table(AGENTS_SEEN, "cumulative_regret", "lcb")


def test_piped_table_is_not_wrapped():
    """A pipe is 80 columns wide to rich; every row must still be one line."""
    conditions = {f"condition_number_{i}": AGENTS_SEEN for i in range(4)}
    file = io.StringIO()
    print_tables(condition_tables(conditions), Console(file=file, width=80))
    rows = [line for line in file.getvalue().splitlines() if "Thompson sampling" in line]
    assert len(rows) == 1 and rows[0].count("10.0 [9.00 … 11.0]") == 4


def test_one_condition_table_per_metric():
    tables = condition_tables({"sd_0": {"dpt": AGENTS_SEEN["dpt"]}, "offline": {"lcb": AGENTS_SEEN["lcb"]}})
    assert [table.columns for table in tables] == [["agent", "sd_0"], ["agent", "offline"]]


def test_markdown_and_html_escape():
    agents = {"a|b<i>*": {"cumulative_regret": entry(1.0)}}
    table = final_table(agents, "cumulative_regret")
    line = next(line for line in to_markdown(table).splitlines() if line.startswith("| **"))
    assert "a\\|b\\<i>\\*" in line
    assert "<i>" not in to_html(table) and "a|b&lt;i&gt;*" in to_html(table)


@pytest.mark.parametrize(
    "together",
    [
        "dpt dit dicp_dpt bc wbc dp2t",
        "dpt thompson ucb empirical_mean lcb bayes ucb1 linucb",
        "ad ed ad_eps ad_lhf idt source",
        "ad dicp_ad idt dicp_idt dpt dicp_dpt dit posterior source",
        "icpo icrg dpt double_thompson rucb",
        "icpo dp2t no_context double_thompson rucb winner_stays",
        "icpo dpt no_context",
        "ppo_gru bayes thompson greedy ucb1",
        "ppo_s5 bayes thompson greedy ucb1",
        "ppo_transformer bayes greedy ucb1",
        "ppo_s5 ppo_gru ppo_transformer relic relic_full_updates relic_no_sink",
        "dpt ad psrl ucbvi source",
        "dpt dit bc wbc dp2t posterior psrl source",
        "dit bc wbc dpt behaviour",
        "dit bc dpt linucb thompson ucb empirical_mean lcb behaviour",
    ],
)
def test_agents_that_meet_differ_in_colour(together):
    names = together.split()
    assert set(names) <= set(AGENTS)
    assert len({look(name).colour for name in names}) == len(names)


def test_unknown_agent_has_a_fixed_look():
    assert look("mine") == look("mine") and look("mine").kind == "trained"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (None, "–"), (float("nan"), "–"), (0.03714, "0.0371"), (0.5, "0.500"), (9.375, "9.38"),
     (10.31, "10.3"), (163.6, "164"), (12345.6, "12,346"), (-4.5, "-4.50"), (3e-7, "3.0e-07"), (2e9, "2.0e+09")],
)  # fmt: skip
def test_numbers_read_well(value, text):
    assert number(value) == text

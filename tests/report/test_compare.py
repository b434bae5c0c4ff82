"""Several runs side by side."""

import copy
import io

import pytest
from rich.console import Console

from icrl_jax.report import compare, save_figure, write_results


@pytest.fixture
def runs(results, tmp_path):
    """Two runs that differ in their trained agent only."""
    write_results(tmp_path / "one", results)
    other = copy.deepcopy(results)
    regret = other["agents"]["dpt"]["cumulative_regret"]
    regret.update({name: 2 * regret[name] for name in ("mean", "low", "high")})
    write_results(tmp_path / "two", other)
    return [tmp_path / "one", tmp_path / "two"]


def test_rows_hold_every_run_and_agent(runs, results):
    found = compare(runs)
    assert found.metric == "cumulative_regret"
    assert len(found.rows) == 2 * len(results["agents"])
    means = {row["run"]: row["mean"] for row in found.rows if row["agent"] == "dpt"}
    assert means["dpt_bandit/two"] == 2 * means["dpt_bandit/one"]


def test_equal_classical_results_are_shown_once(runs, tmp_path):
    found = compare(runs)
    assert [row[0] for row in found.table.rows] == ["Thompson sampling", "DPT *", "UCB", "DPT *", "Random"]
    assert found.table.rows[0][1] == "2 runs alike"
    file = io.StringIO()
    Console(file=file, width=150).print(found)
    assert "dpt_bandit/two" in file.getvalue()
    assert "| **DPT" in str(found)
    assert save_figure(found.figure, tmp_path, "compare").is_file()


def test_environments_get_panels_of_their_own(runs, results, tmp_path):
    write_results(tmp_path / "three", {**results, "env": "linear_bandit"})
    found = compare([*runs, tmp_path / "three"])
    assert len(found.figure.axes) == 2
    assert "environment" in found.table.columns


def test_bad_folders_are_named(runs, results, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty has no results.json"):
        compare([*runs, tmp_path / "empty"])
    write_results(tmp_path / "early", {**results, "status": "running"})
    with pytest.raises(ValueError, match="early: the run is 'running', not complete"):
        compare([*runs, tmp_path / "early"])
    with pytest.raises(ValueError, match="one has no agent with the metric 'final_return'; it has"):
        compare(runs, metric="final_return")
    with pytest.raises(ValueError, match="run_dirs is empty"):
        compare([])


def test_runs_without_a_shared_metric_are_refused(runs, results, tmp_path):
    agents = {"ad": {"final_return": results["agents"]["dpt"]["cumulative_regret"]}}
    write_results(tmp_path / "ad", {**results, "agents": agents})
    with pytest.raises(ValueError, match="share no metric .one: cumulative_regret; ad: final_return"):
        compare([runs[0], tmp_path / "ad"])

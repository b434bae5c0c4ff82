"""``results.json``: what is written comes back, and what breaks the contract is named."""

import copy
import json

import numpy as np
import pytest

from icrl_jax.report import environment_facts, read_results, write_results
from icrl_jax.report.results import validate

# Written out once more, so that a field dropped from the code is noticed.
NAMES = ["experiment", "preset", "method", "env", "env_preset", "seeds", "status", "seconds", "env_steps", "tokens"]
NAMES += ["versions", "hardware", "commit", "agents", "conditions", "curves"]


def test_written_results_come_back(results, tmp_path):
    path = write_results(tmp_path, results)
    assert path == tmp_path / "results.json"
    assert read_results(tmp_path) == json.loads(json.dumps(results))


def test_numbers_without_a_value_become_null(results, tmp_path):
    results["agents"]["dpt"]["cumulative_regret"]["mean"] = float("nan")
    results["curves"]["dpt"]["regret"] = np.array([1.0, np.inf, 3.0])
    results["seeds"] = [np.int64(4)]
    write_results(tmp_path, results)
    assert "NaN" not in (tmp_path / "results.json").read_text()
    found = read_results(tmp_path)
    assert found["agents"]["dpt"]["cumulative_regret"]["mean"] is None
    assert found["curves"]["dpt"]["regret"] == [1.0, None, 3.0]
    assert found["seeds"] == [4]


def test_failed_write_leaves_the_old_file_and_no_litter(results, tmp_path):
    write_results(tmp_path, results)
    before = (tmp_path / "results.json").read_text()
    with pytest.raises(TypeError, match="cannot hold a object"):
        write_results(tmp_path, {**results, "hardware": object()})
    assert (tmp_path / "results.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("field", NAMES)
def test_every_field_is_required(results, field):
    del results[field]
    with pytest.raises(ValueError, match=rf"lack the field\(s\) {field}$"):
        validate(results)


def test_unknown_field_is_refused(results):
    with pytest.raises(ValueError, match="unknown field.* notes"):
        validate({**results, "notes": "hello"})


def edit(results, path, value):
    changed = copy.deepcopy(results)
    place = changed
    for name in path[:-1]:
        place = place[name]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("agents", "dpt", "cumulative_regret", "n"), None, "agents.dpt.cumulative_regret lacks n"),
        (("agents", "dpt", "cumulative_regret", "n"), 0, "agents.dpt.cumulative_regret.n must be"),
        (("agents", "dpt", "cumulative_regret", "per_seed"), [], "per_seed must be a list"),
        (("agents", "dpt", "cumulative_regret"), 9.5, "agents.dpt.cumulative_regret must hold mean, low"),
        (("conditions", "sd_0", "dpt", "cumulative_regret", "mean"), "9", "conditions.sd_0.dpt.cumulative_regret.mean"),
        (("seconds", "train"), None, "seconds lacks train"),
        (("seeds",), "0", "seeds must be list"),
        (("curves", "dpt", "regret"), [["a"]], "curves.dpt must map"),
    ],
)
def test_broken_entries_are_named(results, path, value, message):
    with pytest.raises(ValueError, match=message):
        validate(edit(results, path, value))


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} has no results.json"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ValueError, match="results.json is not valid JSON"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match="results.json: results lack"):
        read_results(tmp_path)


def test_environment_facts_fit_the_contract(results):
    facts = environment_facts()
    validate({**results, **facts})
    assert {"jax", "jaxlib", "flax", "optax", "numpy", "python", "icrl_jax"} <= set(facts["versions"])
    assert "cores" in facts["hardware"] and "JAX devices" in facts["hardware"]

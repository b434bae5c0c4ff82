"""The notebooks run from top to bottom, wherever they are started, and lie in git without outputs."""

from pathlib import Path

import finished_run
import nbclient
import nbformat
import pytest

from icrl_jax.run import EnvSpec

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
SMALLER = {  # what the test runs instead, so as not to train for half a minute
    "num_updates = 1500": "num_updates = 30",
    "sample_tasks(loaded.env, jax.random.key(1), 500)": "sample_tasks(loaded.env, jax.random.key(1), 20)",
}
FIGURES = {"bandits": 4}


def read(path):
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_valid_small_and_without_outputs(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert path.stat().st_size < 30_000
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None


def shrunk(notebook):
    """The same notebook at toy sizes; each change must find its place, so that the table above stays true."""
    for large, small in SMALLER.items():
        cells = [cell for cell in notebook.cells if cell.cell_type == "code" and large in cell.source]
        assert len(cells) == 1, large
        cells[0].source = cells[0].source.replace(large, small)
    return notebook


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_anywhere_and_writes_nothing(path, tmp_path, monkeypatch):
    finished_run.finish(tmp_path / "runs", "dpt_bandit", EnvSpec("gaussian_bandit", None, {"num_arms": 3}))
    here = tmp_path / "notebooks"
    here.mkdir()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    before = path.read_bytes(), sorted(path.parent.iterdir())
    notebook = shrunk(read(path))
    resources = {"metadata": {"path": str(here)}}
    nbclient.NotebookClient(notebook, timeout=250, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == FIGURES[path.stem]
    assert "cumulative regret after 100 steps" in outputs[-1].text  # the run was found and loaded
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert not list(here.iterdir())
    assert (path.read_bytes(), sorted(path.parent.iterdir())) == before

"""Runs that are stopped, killed or damaged, and taken up again."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import small
from small import assert_same_run, metrics, refused, run

from icrl_jax import checkpoint
from icrl_jax.checkpoint import DamagedCheckpoint
from icrl_jax.methods.dpt import dpt
from icrl_jax.run import folder as run_folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody disturbed."""
    return run(folder=tmp_path_factory.mktemp("whole"))


@pytest.fixture
def copied(whole, tmp_path):
    """The same, to be mistreated."""
    copy = tmp_path / "dpt_bandit" / whole.name
    shutil.copytree(whole, copy)
    (copy / "results.json").unlink()
    return copy


def forget_after(run_dir, chunk):
    """As if the run had been killed after this chunk, the metrics a little ahead of the checkpoint."""
    for step in checkpoint.list_steps(run_dir / "checkpoints"):
        if step > chunk:
            shutil.rmtree(run_dir / "checkpoints" / str(step))


@pytest.mark.slow
def test_killing_at_random_points_and_resuming_changes_no_bit(whole, tmp_path):
    """SIGKILL to a process of its own, several times over; then it is left to finish."""
    seed = int(time.time())
    print("seed", seed)
    command = [sys.executable, small.__file__, "--runs-dir", str(tmp_path)]
    rng, killed = random.Random(seed), 0
    for attempt in range(3):
        options = ["--resume", "latest"] if attempt else small.OPTIONS
        process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if attempt < 2:
            wait_for_rows(process, tmp_path, rng.randint(attempt + 1, 4))
            time.sleep(0.1 * rng.random())
            process.kill()
            killed += process.wait() == -signal.SIGKILL
        else:
            output, _ = process.communicate(timeout=200)
            assert process.returncode == 0, output
    assert killed >= 1
    resumed = (tmp_path / "dpt_bandit" / "latest").resolve()
    assert_same_run(resumed, whole)
    regret = [json.loads((x / "results.json").read_text())["agents"] for x in (resumed, whole)]
    assert regret[0] == regret[1]


def wait_for_rows(process, folder, number):
    """Until that many chunks are done, or the process is."""
    path = folder / "dpt_bandit" / "latest" / "metrics.jsonl"
    while process.poll() is None:
        if path.is_file() and len(path.read_text().splitlines()) >= number:
            return
        time.sleep(0.01)


@pytest.mark.parametrize("chunk", [0, 4])
def test_resuming_from_an_older_checkpoint_changes_no_bit(chunk, whole, copied):
    forget_after(copied, chunk)
    with (copied / "metrics.jsonl").open("a") as file:
        file.write('{"chunk": 7, "lo')  # cut short by the kill
    run("--resume", copied, folder=copied.parent.parent)
    assert_same_run(copied, whole)


def test_a_run_killed_before_its_evaluation_resumes_into_it(whole, copied, capsys):
    run("--resume", "latest", folder=link_latest(copied))
    said = capsys.readouterr().out
    assert "going on with" in said and "updates" not in said  # no chunk was trained again
    results = [json.loads((x / "results.json").read_text())["agents"] for x in (copied, whole)]
    assert results[0] == results[1]


def link_latest(run_dir):
    run_folder.point_latest(run_dir)
    return run_dir.parent.parent


def test_a_signal_in_training_saves_and_tells_how_to_resume(whole, tmp_path, capsys, monkeypatch):
    number = signal.SIGINT
    real = run_folder.append_metrics

    def signalled(run_dir, row):
        real(run_dir, row)
        if row["chunk"] == 3:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(run_folder, "append_metrics", signalled)
    with pytest.raises(SystemExit) as stop:
        run(folder=tmp_path)
    assert stop.value.code == 128 + number
    said = capsys.readouterr().out
    run_dir = (tmp_path / "dpt_bandit" / "latest").resolve()
    assert f"to go on: make train EXPERIMENT=dpt_bandit PRESET=cpu ARGS='--resume {run_dir}'" in said
    assert checkpoint.list_steps(run_dir / "checkpoints")[-1] == 3  # off the beat of every two chunks
    monkeypatch.undo()
    assert signal.getsignal(number) is not signal.SIG_DFL  # handlers are put back
    run(*re.search(r"--resume \S+(?=')", said)[0].split(), folder=tmp_path)
    assert_same_run(run_dir, whole)


def test_a_signal_in_the_evaluation_tells_how_to_resume(copied, capsys):
    number = signal.SIGTERM

    def signalled(trained):
        os.kill(os.getpid(), number)
        return small.findings(trained)

    experiment = small.EXPERIMENT._replace(findings=signalled)
    with pytest.raises(SystemExit) as stop:
        run("--resume", copied, folder=copied.parent.parent, experiment=experiment)
    said = capsys.readouterr().out
    assert stop.value.code == 128 + number and f"--resume {copied}" in said
    assert not (copied / "results.json").exists()


@pytest.mark.parametrize("moment", ["run folder", "evaluating on"])
def test_a_signal_outside_the_training_loop_ends_the_process_cleanly(moment, copied):
    """Just before everything is initialised and compiled, and before an evaluation."""
    options = ["--resume", copied] if moment == "evaluating on" else [*small.OPTIONS, "--runs-dir", copied.parent]
    with started(small.__file__, *options) as process:
        said = read_until(process, moment)
        process.send_signal(signal.SIGTERM)
        said += process.communicate()[0]
    assert process.returncode == 143, said
    assert "once more stops at once" in said and "to go on: make train" in said and "Traceback" not in said


def test_a_second_signal_ends_at_once_what_does_not_return_to_python(copied):
    """Where no handler of Python's would run."""
    code = "import small, sys; small.main(small.EXPERIMENT._replace(findings=small.endless), '', sys.argv[1:])"
    with started("-c", code, "--resume", copied) as process:
        read_until(process, "evaluating on")
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        read_until(process, "once more stops at once")
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=5)[0] == ""
    assert process.returncode == -signal.SIGTERM


@contextmanager
def started(*arguments):
    """A process of its own, which is killed should the test be stuck."""
    command, here = [sys.executable, *map(str, arguments)], Path(small.__file__).parent
    with subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        watchdog = threading.Timer(100, process.kill)
        watchdog.start()
        yield process
        watchdog.cancel()


def read_until(process, words):
    """What it says, up to the line with these words."""
    said = ""
    while words not in said:
        line = process.stdout.readline()
        assert line, f"ended without saying {words!r}: {said}"
        said += line
    return said


def test_a_damaged_newest_checkpoint_is_passed_over_aloud(whole, copied):
    for path in (copied / "checkpoints" / "6").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.warns(DamagedCheckpoint, match="checkpoint 6 .* falling back to checkpoint 4"):
        run("--resume", copied, folder=copied.parent.parent)
    assert_same_run(copied, whole)
    assert list((copied / "checkpoints").glob("set_aside_6_*"))


def test_checkpoints_that_are_none_are_refused_before_anything_compiles(copied, capsys, monkeypatch):
    for path in (copied / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    monkeypatch.setattr("icrl_jax.run.training.init_seeds", None)  # nothing may be built
    said = refused(capsys, "--resume", copied, folder=copied.parent.parent)
    assert said.startswith("error: checkpoint 6 in") and said.endswith("no checkpoint is whole")


def test_checkpoints_of_another_configuration_are_refused(copied, capsys):
    config = json.loads((copied / "config.json").read_text())
    for options in (config["options"]["dpt"], config["method"]["options"]):
        options["model"]["width"] = 16
    (copied / "config.json").write_text(json.dumps(config))
    said = refused(capsys, "--resume", copied, folder=copied.parent.parent)
    assert "does not fit this configuration; it differs in" in said and ".params" in said


def test_other_data_than_the_checkpoint_saw_are_refused_on_resume_but_not_by_load(tmp_path, capsys, monkeypatch):
    from icrl_jax.run import load

    run_dir = run("--num-tasks", 13, folder=tmp_path)
    before = load(run_dir, seed=1)
    monkeypatch.setitem(dpt.__globals__, "DATA_SEED", 4)
    said = refused(capsys, "--resume", run_dir, folder=tmp_path)
    assert "was trained on other data than was built now" in said
    after = load(run_dir, seed=1)
    np.testing.assert_array_equal(before.params.head.readout.out[...], after.params.head.readout.out[...])


def test_incompatible_options_are_refused_naming_the_field_with_both_values(copied, capsys):
    said = refused(capsys, "--resume", copied, "--width", 16, "--seed", 3, folder=copied.parent.parent)
    assert "the run was started with other options: dpt.model.width: 8 -> 16; seed: 0 -> 3" in said


def test_a_full_disk_is_one_clear_line(tmp_path):
    """Also where many writes fail at once, and of all that the interpreter adds until its end."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, *small.OPTIONS, "--runs-dir", str(tmp_path)],
        cwd=Path(small.__file__).parent,
        capture_output=True,
        text=True,
    )
    assert re.fullmatch(r"error: cannot write the run: File too large \(\S+/checkpoints\)\n", done.stderr), done.stderr
    assert done.returncode == 1 and "Traceback" not in done.stdout


FULL_DISK = """
import resource, sys
import numpy as np
import small
from icrl_jax import checkpoint

def save(directory, step, state, *rest):
    many = list(np.random.default_rng(0).normal(size=(200, 2000)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
    real(directory, step, state._replace(extra=many), *rest)

real, checkpoint.save = checkpoint.save, save
small.main(small.EXPERIMENT, "", sys.argv[1:])
"""


@pytest.mark.parametrize("place", ["runs", "runs/dpt_bandit"])
def test_an_unwritable_runs_folder_is_one_clear_line(place, tmp_path, capsys):
    """A file in the way: permissions do not stop root."""
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("in the way")
    said = refused(capsys, folder=tmp_path / "runs", status=1)
    assert said.startswith("error: cannot write the run: Not a directory (") and "runs/dpt_bandit" in said


def test_a_nonfinite_loss_keeps_the_last_good_checkpoint_and_names_the_update(copied, capsys, monkeypatch):
    forget_after(copied, 4)
    before, real = small.weights(copied), checkpoint.restore

    def poisoned(directory, target):
        restored = real(directory, target)
        extra = {**restored.state.extra, "hparams": {"learning_rate": jnp.full(2, jnp.inf)}}
        return restored._replace(state=restored.state._replace(extra=extra))

    monkeypatch.setattr(checkpoint, "restore", poisoned)
    said = refused(capsys, "--resume", copied, folder=copied.parent.parent, status=1)
    message = "error: the loss or the parameters of run 0 (counted from 0) are not finite at update "
    assert said.startswith(message) and 9 <= int(said[len(message) :].split(";")[0]) <= 10
    assert said.endswith(f"the checkpoints before it are in {copied}/checkpoints")
    assert checkpoint.list_steps(copied / "checkpoints") == [2, 4]
    assert before[1].keys() == small.weights(copied)[1].keys()
    for name, array in small.weights(copied)[1].items():
        assert array.tobytes() == before[1][name].tobytes()


def test_metrics_have_one_line_a_chunk_with_a_number_for_each_seed(whole):
    rows = metrics(whole)
    assert [row["chunk"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["update"] for row in rows] == [2, 4, 6, 8, 10, 12]
    for row in rows:
        assert all(len(row[name]) == 2 and np.isfinite(row[name]).all() for name in row.keys() - {"chunk", "update"})
    assert {"loss", "eval/cumulative_regret", "learning_rate", "gradient_norm"} <= rows[0].keys()

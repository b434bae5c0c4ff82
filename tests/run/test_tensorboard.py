"""TensorBoard's event files of a run that was killed and taken up again."""

import itertools
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

sys.path.insert(0, str(Path(__file__).parent))
import small

from icrl_jax import checkpoint


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    run(*small.OPTIONS, "--tensorboard", folder=folder)
    return (folder / "dpt_bandit" / "latest").resolve()


def run(*options, folder):
    """In a process of its own, which writes what it still holds back when it ends."""
    command = [sys.executable, small.__file__, *options, "--runs-dir", str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=200)


@pytest.mark.slow
def test_a_resumed_run_shows_every_step_once_and_in_order(whole, tmp_path):
    run_dir = tmp_path / "dpt_bandit" / whole.name
    shutil.copytree(whole, run_dir)
    for step in checkpoint.list_steps(run_dir / "checkpoints"):
        if step > 2:
            shutil.rmtree(run_dir / "checkpoints" / str(step))
    run("--resume", str(run_dir), "--tensorboard", folder=tmp_path)
    for seed in (0, 1):
        folder = run_dir / "tensorboard" / f"seed_{seed}"
        assert len(list(folder.iterdir())) == 2
        steps = shown(folder)
        assert {"loss", "learning_rate", "eval/cumulative_regret"} <= steps.keys()
        for name in steps:
            assert steps[name] == [2, 4, 6, 8, 10, 12], name


def shown(folder):
    """The steps of each scalar that TensorBoard shows: a session hides what was recorded from its first step on."""
    steps = {}
    for event in itertools.chain(*map(events, sorted(folder.iterdir()))):
        if event.session_log.status == SessionLog.START:
            steps = {name: [step for step in earlier if step < event.step] for name, earlier in steps.items()}
        for value in event.summary.value:
            steps.setdefault(value.tag, []).append(event.step)
    return steps


def events(path):
    """What a file records, in order: of each event its size, a checksum, the event, and its checksum."""
    data = path.read_bytes()
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        yield Event.FromString(data[12 : 12 + size])
        data = data[size + 16 :]

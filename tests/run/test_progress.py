"""Anything long says how far it is, how fast, and how long it will take."""

import io

import numpy as np
import pytest
from rich.console import Console

from icrl_jax.run.progress import Progress
from icrl_jax.train import Schedule

LOG = {"loss": np.array([1.5, 2.5]), "eval/cumulative_regret": np.array([6.0, 8.0]), "gradient_norm": np.array([9.0])}


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_shows_loss_speed_and_time_left(terminal):
    """Two chunks in 10 seconds after a resume; two more are left."""
    said = io.StringIO()
    console = Console(file=said, width=200, force_terminal=terminal)
    with Progress(console, Schedule(num_chunks=5, updates_per_chunk=4), first=1, tasks_per_update=7) as progress:
        progress.begin -= 10
        progress(3, LOG, None)
    said = said.getvalue()
    for words in ("12/20 updates", "loss 2", "cumulative_regret 7", "6 tasks/s", "10 s left"):
        assert words in said
    assert "gradient_norm" not in said

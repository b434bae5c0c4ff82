"""Windows of histories sampled from the device and from disk, and what an update of AD takes with each."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax

import icrl_envs
from benchmarks.measure import Row, in_turn, milliseconds
from experiments import ad_dark_room
from icrl_envs import TaskFamily
from icrl_jax.core import Array, Method, TrainState
from icrl_jax.data.histories import Distilled
from icrl_jax.data.windows import sample_window
from icrl_jax.methods.ad import ADConfig, ad
from icrl_jax.methods.sources import HistoriesConfig
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.train import Schedule, compile_chunk, fit, init_seeds, update_keys

HIDDEN = 0.95
"""Share of the speed of training from memory below which the disk is not hidden."""


class Size(NamedTuple):
    """What is timed: windows, and some chunks of training in a call."""

    config: ADConfig
    schedule: Schedule = Schedule(num_chunks=3, updates_per_chunk=4)
    rounds: int = 5


def sizes(quick: bool) -> Size:
    """The CPU preset of AD in the dark room, or next to nothing."""
    preset = ad_dark_room.PRESETS["cpu"].ad
    if not quick:
        return Size(preset)
    tiny = TransformerConfig(width=8, num_layers=1, num_heads=2, context_len=40)
    histories = HistoriesConfig(num_tasks=3, num_streams=2, num_steps=60)
    config = replace(preset, model=tiny, histories=histories, num_updates=4, batch_size=4, horizon=40)
    return Size(config, Schedule(2, 1), rounds=1)


def rows(quick: bool = False) -> Iterator[Row]:
    """One row for the windows, one for the update."""
    size = sizes(quick)
    env = icrl_envs.make("dark_room", "ad_eps", observation="cell")
    with tempfile.TemporaryDirectory() as folder:
        histories = replace(size.config.histories, store=str(Path(folder) / "store"))
        on_disk = ad(env, replace(size.config, histories=histories))
        yield window_row(env, size, on_disk)
        yield update_row(env, size, on_disk)


def window_row(env: TaskFamily, size: Size, on_disk: Method) -> Row:
    """All windows of a chunk at once; those of the device stay there, those of the disk are NumPy arrays."""
    num_updates, batch_size = size.schedule.updates_per_chunk, size.config.batch_size
    memory, keys = ad(env, size.config).init(jax.random.key(0)).data, update_keys(jax.random.key(1), num_updates)
    reader = opened(on_disk)
    sample = jax.jit(partial(drawn, length=size.config.horizon))
    rows = jax.random.split(jax.random.key(2), num_updates * batch_size)
    sides: dict[str, Callable[[], object]] = {
        "device": lambda: jax.block_until_ready(sample(memory, rows)),
        "disk": lambda: reader.read(keys),
    }
    seconds = in_turn(sides, size.rounds)
    per_second = {side: num_updates * batch_size / value for side, value in seconds.items()}
    note = f"{size.config.horizon} steps each; ours from disk, its pages in the system's cache; theirs from the device"
    ratio = per_second["disk"] / per_second["device"]
    return Row("windows sampled", f"{per_second['disk']:,.0f} /s", f"{per_second['device']:,.0f} /s", ratio, note=note)


def drawn(data: Distilled, keys: Array, length: int):
    """A window for each key."""
    return jax.vmap(lambda key: sample_window(data.histories, key, length, data.weights))(keys)


def update_row(env: TaskFamily, size: Size, on_disk: Method) -> Row:
    """`fit` over a few chunks; of what is read from disk, only the first chunk's is waited for."""
    sides = {"memory": Run(ad(env, size.config), size.schedule), "disk": Run(on_disk, size.schedule)}
    seconds = in_turn(sides, size.rounds)
    num_updates = size.schedule.num_chunks * size.schedule.updates_per_chunk
    each = {side: milliseconds(value / num_updates) for side, value in seconds.items()}
    ratio = seconds["memory"] / seconds["disk"]
    note = "ours from disk, read while the device computes; theirs from the device"
    return Row("AD update", each["disk"], each["memory"], ratio, f"{HIDDEN:g} x", ratio >= HIDDEN, note)


class Run:
    """Goes on with a training at every call."""

    def __init__(self, method: Method, schedule: Schedule):
        self.method, self.schedule, self.keys = method, schedule, jax.random.split(jax.random.key(3), 1)
        self.reader = None if method.feed is None else opened(method)
        self.state: TrainState = init_seeds(self.keys, method)
        self.chunk = compile_chunk(method, schedule, self.keys, self.state, reader=self.reader)

    def __call__(self) -> None:
        self.state = fit(self.keys, self.method, self.schedule, state=self.state, chunk=self.chunk, reader=self.reader)


def opened(method: Method):
    """The reader of a method that has a feed."""
    assert method.feed is not None
    return method.feed.open()

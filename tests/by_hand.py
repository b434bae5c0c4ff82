"""Histories whose every entry tells its task, stream and time, and what should be made of them in plain Python."""

import jax.numpy as jnp
import numpy as np

from icrl_jax.core import Transition
from icrl_jax.data.histories import Form, Histories

DTYPES = ("int32", "int32", "float32", "int32", "bool", "bool")


def histories(lengths, num_steps, episode_steps, terminates=True, num_tasks=3, num_streams=2) -> Histories:
    """`lengths(task, stream)` yields the lengths of the episodes."""
    shape = num_tasks, num_streams, num_steps
    where = np.stack(np.indices(shape), axis=-1).astype(np.uint8)  # [M, N, T, 3]
    done = np.zeros(shape, bool)
    for m, n in np.ndindex(shape[:2]):
        ends = np.cumsum(lengths(m, n)) - 1
        assert ends[-1] + 1 >= num_steps
        done[m, n, ends[ends < num_steps]] = True
    feedback = np.sum(where * np.float32([10_000, 1000, 1]), axis=-1, dtype=np.float32)
    terminated = done if terminates else np.zeros_like(done)
    transitions = Transition(where, where[..., 2] % 5, feedback, where + 1, terminated, done & ~terminated)
    form = Form(DTYPES, episode_steps, terminates, num_steps)
    steps = np.full(shape[:2], num_steps, np.int32)
    arrays = [jnp.asarray(x) for x in (where[..., 2] // 4, steps, np.arange(num_tasks))]
    return Histories(Transition(*map(jnp.asarray, transitions)), *arrays, form)


def ended(transitions) -> np.ndarray:
    return np.asarray(transitions.terminated | transitions.truncated)


def episodes(done, steps=None) -> list[np.ndarray]:
    """The times of each episode of one stream, bool [T]; the last may be unfinished."""
    times = np.arange(len(done) if steps is None else steps)
    return [x for x in np.split(times, np.flatnonzero(done[: len(times)]) + 1) if len(x)]


def dealt(done, k, steps=None) -> list[np.ndarray]:
    """The times that each of k hands gets: an episode to the one with the fewest steps."""
    hands = [[] for _ in range(k)]
    for episode in episodes(done, steps):
        min(hands, key=len).extend(episode)
    return [np.array(hand, int) for hand in hands]

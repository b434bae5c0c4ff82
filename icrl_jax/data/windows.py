"""Windows of histories: what a sequence model reads of them, and what it is to predict."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from icrl_envs.task_family import is_int, require
from icrl_jax.core import Array, TimeStep, Transition
from icrl_jax.data.contexts import timesteps_of
from icrl_jax.data.histories import Form, Histories, of_stream


class Window(NamedTuple):
    """A stretch of one stream in one task, [L, ...]. Every position is there to be predicted."""

    timesteps: (
        TimeStep  # what an agent would have been given that began to act, with an empty memory, at the first step
    )
    transitions: Transition  # what was then done, and what came of it: `action` is the target of AD


def sample_window(
    histories: Histories, key: Array, length: int, weights: Array | None = None, every: int = 1
) -> Window:
    """Draws `length` steps in a row of one stream, over the ends of episodes (Laskin et al. 2022, AD).

    All tasks are as likely, and so are all windows of a stream. A window of `stride_episodes(histories, k)` holds one
    episode in k, and may so span all that was learned.

    Args:
      length: L.
      weights: float32 [M, N], at least 0 and not all 0 in a task: the streams of a task in proportion to them; by
        default all alike (see `filters`).
      every: windows begin at a multiple of so many steps; with those of an episode, where all last as long, at its
        first.
    Raises:
      ValueError: a length below 1 or above what every stream is sure to hold.
    """
    check_length(histories.form, length)
    place = draw_place(histories.steps, key, length, weights, every)
    return window(histories, *place, length)


class Place(NamedTuple):
    """Where a window begins."""

    task: Array  # int32 []
    stream: Array  # int32 []
    first: Array  # int32 []: its first step


def draw_place(steps: Array, key: Array, length: int, weights: Array | None = None, every: int = 1) -> Place:
    """Where `sample_window` reads, by the same key; `steps` (int32 [M, N]) is how many each stream holds."""
    M, N = steps.shape
    if weights is not None:  # of another shape they would be read at indices that were moved inside
        require(weights.shape == (M, N), "weights", weights.shape, f"of shape {(M, N)}, or None")
    key_task, key_stream, key_first = jax.random.split(key, 3)
    task = jax.random.randint(key_task, (), 0, M)
    if weights is None:
        stream = jax.random.randint(key_stream, (), 0, N)
    else:
        stream = jax.random.categorical(key_stream, jnp.log(weights[task].astype(jnp.float32)))
    first = every * jax.random.randint(key_first, (), 0, (steps[task, stream] - length) // every + 1)
    return Place(task, stream, first)


def check_length(form: Form, length: int) -> None:
    """Refuses windows that some stream may not hold.

    Raises:
      ValueError: `length` below 1 or above what every stream is sure to hold.
    """
    allowed = f"an integer in 1 ..= {form.least_steps}, which every stream holds"
    require(is_int(length, 1, form.least_steps), "length", length, allowed)


def window(histories: Histories, task: Array, stream: Array, first: Array, length: int) -> Window:
    """The `length` steps of one stream from `first` on; the stream has to hold them."""
    return window_of(of_stream(histories, task, stream, first, length))


def window_of(transitions: Transition) -> Window:
    """The window of these transitions, [L, ...]."""
    return Window(timesteps_of(transitions), transitions)

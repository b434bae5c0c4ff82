"""Learning histories on the device, and what to take of them: whole episodes, never single steps."""

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from icrl_envs.task_family import is_int, require
from icrl_jax.core import Array, Transition, Tree


class Form(NamedTuple):
    """What is known of histories before they are made; static under jit."""

    dtypes: tuple[str, ...]  # of the leaves of a transition, before they were narrowed
    episode_steps: int  # H: no episode is longer
    terminates: bool  # whether some are shorter
    least_steps: int  # every stream holds at least so many


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Histories:
    """What N streams did while a source algorithm learned each of M tasks, in the order they did it.

    Episodes follow one another without a gap; the last one of a stream may be unfinished. Where streams differ in
    length, zeros fill them up. Integers take as few bytes as their space allows; `of_stream` gives them back.
    """

    transitions: Transition  # [M, N, T, ...]; `next_obs` is None where it was not kept
    update: Array  # unsigned [M, N, T]: which call of the source's `learn` made the step, counted from 0
    steps: Array  # int32 [M, N]: steps that a stream holds, at most T
    env_params: Tree  # [M, ...]: the tasks
    form: Form = field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, int, int]:
        """M, N and T."""
        return self.update.shape  # type: ignore[return-value]


class Distilled(NamedTuple):
    """What a method trains on."""

    histories: Histories
    weights: Array | None  # [M, N]: how often each is drawn, in proportion; None: all alike


def of_stream(histories: Histories, task: Array, stream: Array, first: Array, length: int) -> Transition:
    """Reads `length` steps of one stream from `first` on, with the types that the agent saw, [length, ...]."""

    def read(x):
        origin = [task, stream, first] + [0] * (x.ndim - 3)
        return jax.lax.dynamic_slice(x, origin, (1, 1, length, *x.shape[3:]))[0, 0]

    return widened(jax.tree.map(read, histories.transitions), histories.form)


def widened(transitions: Transition, form: Form) -> Transition:
    """The same with the types that the agent saw."""
    leaves, treedef = jax.tree.flatten(transitions)
    return treedef.unflatten(x.astype(dtype) for x, dtype in zip(leaves, form.dtypes, strict=True))


def episode_returns(histories: Histories) -> Array:
    """Sums the feedback of each episode, float32 [M, N, E]; nan where a stream has no such episode or did not end it.

    E is as many episodes as T steps may hold: T / H where none ends early, else T.
    """
    return jax.vmap(jax.vmap(partial(stream_returns, form=histories.form)))(histories.transitions)


def stream_returns(transitions: Transition, form: Form) -> Array:
    """`episode_returns` of one stream [T, ...], float32 [E]."""
    done = (transitions.terminated | transitions.truncated).astype(jnp.int32)
    num_episodes = done.size if form.terminates else done.size // form.episode_steps
    returns = jax.ops.segment_sum(transitions.feedback, jnp.cumsum(done) - done, num_segments=num_episodes)
    return jnp.where(jnp.arange(num_episodes) < jnp.sum(done), returns, jnp.nan)


def ascending(transitions: Transition, episode_steps: int) -> Transition:
    """The episodes of a stretch [T, ...], all of so many steps, in the order of their returns; equal ones stay so."""
    episodes = jax.tree.map(lambda x: x.reshape(-1, episode_steps, *x.shape[1:]), transitions)
    order = jnp.argsort(episodes.feedback.sum(axis=1), stable=True)
    return jax.tree.map(lambda x: x[order].reshape(-1, *x.shape[2:]), episodes)


def every_kth_episode(histories: Histories, k: int) -> Histories:
    """Keeps the first episode in k of every stream, so that what is left learns k times as fast (Laskin et al. 2022).

    These are episodes 0, k, 2k, ... where all are equally long. Where they are not, they are dealt as `Deal` says: one
    in k of every part of a stream all the same, but a k-th of its steps too, whatever happens.

    Raises:
      ValueError: k below 1, a single never-ending episode, or fewer than k of them.
    """
    return _dealt(histories, k, 1)


def stride_episodes(histories: Histories, k: int) -> Histories:
    """Deals the episodes of every stream to k streams, so that a window of one spans k times as much learning.

    Stream n k + p of the result holds the episodes p, p + k, p + 2k, ... of stream n where all are equally long; where
    they are not, see `Deal`. Nothing is lost.

    Returns:
      Histories [M, N k, about T / k].
    Raises:
      ValueError: as `every_kth_episode`.
    """
    return _dealt(histories, k, k)


def beginnings(histories: Histories, num_steps: int) -> Histories:
    """Keeps the first `num_steps` steps of every stream."""
    _, _, T = histories.shape
    require(is_int(num_steps, 1, T), "num_steps", num_steps, f"an integer in 1 ..= {T}")
    if num_steps == T:
        return histories
    transitions, update = jax.tree.map(lambda x: x[:, :, :num_steps], (histories.transitions, histories.update))
    steps = jnp.minimum(histories.steps, num_steps)
    form = histories.form._replace(least_steps=min(histories.form.least_steps, num_steps))
    return replace(histories, transitions=transitions, update=update, steps=steps, form=form)


def side_by_side(a: Histories, b: Histories) -> Histories:
    """The streams of both, in the same tasks and equally long, [M, N + N', T]."""
    join = lambda x, y: jnp.concatenate([x, y], axis=1)
    transitions, update, steps = jax.tree.map(
        join, (a.transitions, a.update, a.steps), (b.transitions, b.update, b.steps)
    )
    form = a.form._replace(least_steps=min(a.form.least_steps, b.form.least_steps))
    return replace(a, transitions=transitions, update=update, steps=steps, form=form)


class Deal(NamedTuple):
    """Episodes dealt like cards: each goes to the hand that holds the fewest steps so far, the first of several.

    With episodes of one length that is in turn. In any case, hands never differ by more than the longest episode, which
    bounds what each will hold before anything has happened.
    """

    held: Array  # int32 [k]: steps in each hand
    hand: Array  # int32 []: who gets the next step


def first_deal(k: int) -> Deal:
    """Before the first step."""
    return Deal(jnp.zeros(k, jnp.int32), jnp.zeros((), jnp.int32))


def deal(before: Deal, done: Array, most: int) -> tuple[Deal, Array]:
    """Deals the next steps of a stream, whose episodes end where `done` (bool [T]): the place of each, int32 [T].

    The hands lie one behind the other, with places for `most` steps each, which is enough (`room`).
    """

    def step(before: Deal, done):
        held = before.held.at[before.hand].add(1)
        after = jnp.where(done, jnp.argmin(held).astype(jnp.int32), before.hand)
        return Deal(held, after), before.hand * most + before.held[before.hand]

    return jax.lax.scan(step, before, done)


def room(form: Form, num_steps: int, k: int, hands: int) -> tuple[int, int]:
    """How many steps the first of k hands may hold of `num_steps`, and each of the first `hands` at least.

    Raises:
      ValueError: see `every_kth_episode`.
    """
    H, least = form.episode_steps, form.least_steps
    require(is_int(k, 1), "k", k, "an integer of at least 1")
    if k == 1:
        return num_steps, least
    allowed = f"at most the number of episodes: {least} steps hold {least // H} of {H}"
    require(k <= least // H, "k", k, allowed)
    if form.terminates:
        # A hand gets an episode while it holds no more than a k-th. Hands differ by no more than an episode.
        return min(num_steps, (num_steps - H) // k + H), max(0, math.ceil((least - (k - 1) * H) / k))
    held = lambda steps, hand: steps // (k * H) * H + min(max(steps % (k * H) - hand * H, 0), H)
    return held(num_steps, 0), held(least, hands - 1)


def _dealt(histories: Histories, k: int, hands: int) -> Histories:
    """The first `hands` of k hands."""
    M, N, T = histories.shape
    most, least = room(histories.form, T, k, hands)
    if k == 1:
        return histories

    def take(stream: tuple[Transition, Array], steps: Array, place: Array) -> tuple[Tree, Array]:
        place = jnp.where(jnp.arange(T) < steps, place, hands * most)  # nowhere, as the steps of the other hands
        index = jnp.full(hands * most, T).at[place].set(jnp.arange(T), mode="drop").reshape(hands, most)
        return jax.tree.map(lambda x: x.at[index].get(mode="fill", fill_value=0), stream), jnp.sum(index < T, axis=1)

    streams = histories.transitions, histories.update
    done = histories.transitions.terminated | histories.transitions.truncated
    place = jax.vmap(jax.vmap(lambda done: deal(first_deal(k), done, most)[1]))(done)
    # A task after another: the indices of all would take more memory than what they point at.
    dealt, steps = jax.lax.map(lambda task: jax.vmap(take)(*task), (streams, histories.steps, place))
    transitions, update = jax.tree.map(lambda x: x.reshape(M, N * hands, *x.shape[3:]), dealt)
    form = histories.form._replace(least_steps=least)
    return replace(histories, transitions=transitions, update=update, steps=steps.reshape(M, N * hands), form=form)

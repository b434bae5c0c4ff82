"""Histories collected: a source algorithm learns many tasks at once, in one compiled program."""

import math
import os
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces
from gymnax.environments.environment import Environment
from jax.core import Tracer

from icrl_envs.task_family import is_int, require
from icrl_envs.wrappers import Copies
from icrl_jax.core import Array, Learner, Transition, Tree
from icrl_jax.data.histories import Deal, Form, Histories, deal, first_deal, room
from icrl_jax.parallel import over_rows, pad_rows


def collect_histories(
    learner: Learner,
    env: Environment,
    env_params: Any,
    key: Array,
    num_rounds: int,
    keep_every: int = 1,
    next_obs: bool = True,
    max_bytes: float | None = None,
    first_task: Array | int = 0,
) -> Histories:
    """Lets a source algorithm learn M tasks, and keeps what its N streams did.

    Task m draws from `fold_in(key, m)`, so its history is the same among others. Tasks are spread over the devices.

    Args:
      env: where `learner` learns; it tells how few bytes hold an observation and when episodes end.
      env_params: the tasks, stacked [M, ...], with the time limit of the family.
      num_rounds: calls of `learner.learn`.
      keep_every: k, keeps only what `every_kth_episode` would, and holds no more than that.
      next_obs: whether to keep them. Within an episode they are the next `obs`; but not at its end, so for sequence
        models that read them (and learners into which a history is replayed) they are kept, every one.
      max_bytes: the memory there is; by default `free_bytes()`.
      first_task: which task of more the first of these is, int32 []: they can so be made a part after another.
    Raises:
      ValueError: a size below 1, tasks that are not stacked or have a time limit of their own, more than `max_bytes`,
        or `keep_every` as `every_kth_episode` refuses it.
    """
    _check(env, env_params, num_rounds)
    needed = predict_bytes(learner, env, env_params, num_rounds, keep_every, next_obs)
    sizes = {"streams": _sizes(learner, env_params)[1], "tasks": _num_tasks(env_params)}
    _check_memory(needed, max_bytes, sizes, keep_every if getattr(env, "episodic", True) else None)
    return _collect(learner, env, env_params, key, num_rounds, keep_every, next_obs, first_task)


def predict_bytes(
    learner: Learner, env: Environment, env_params: Any, num_rounds: int, keep_every: int = 1, next_obs: bool = True
) -> int:
    """The memory that `collect_histories` will take: the histories, and for all tasks the learner and one round.

    Not divided among devices, since training gives each of them a copy of the histories; these twice, where the devices
    do not divide the tasks. Nothing is computed.
    """
    # Called as `collect_histories` does, so that it is traced once for both.
    collect = lambda *given: _collect(given[0], env, *given[1:3], num_rounds, keep_every, next_obs, given[3])
    histories = jax.eval_shape(collect, learner, env_params, jax.random.key(0), 0)
    at_work = jax.eval_shape(_one_round, learner, _first(env_params))
    num_tasks = _num_tasks(env_params)
    uneven = num_tasks % jax.device_count() > 0  # then devices do a few tasks too many, and leaving those out is a copy
    return nbytes(histories) * (2 if uneven else 1) + num_tasks * nbytes(at_work)


@jax.jit  # never run; so it is traced once, whoever asks for its shapes
def _one_round(learner: Learner, env_params: Any) -> Tree:
    key = jax.random.key(0)
    return learner.learn(learner.init(key, env_params), key)


def nbytes(tree: Tree) -> int:
    """What arrays, or their shapes, take."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _num_tasks(env_params: Any) -> int:
    return jax.tree.leaves(env_params)[0].shape[0]


def _first(env_params: Any) -> Tree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), env_params)


def _sizes(learner: Learner, env_params: Any) -> tuple[int, int]:
    """T and N of one round."""
    _, record = jax.eval_shape(_one_round, learner, _first(env_params))
    return record.transition.feedback.shape


def _check(env: Environment, env_params: Any, num_rounds: int) -> None:
    require(is_int(num_rounds, 1), "num_rounds", num_rounds, "an integer of at least 1")
    require(not isinstance(env, Copies), "env", env.name, "one environment, not copies(...)")
    one, many = (jax.tree.map(jnp.ndim, params) for params in (env.default_params, env_params))
    require(one != many, "env_params", "one task", "stacked [M, ...], as `tasks` and `sample_tasks` give them")
    limits = env_params.max_steps_in_episode
    if not isinstance(limits, Tracer):
        found, limit = np.unique(limits).tolist(), episode_steps(env)
        require(found == [limit], "env_params.max_steps_in_episode", found, f"[{limit}], the family's time limit")


def _check_memory(needed: int, max_bytes: float | None, sizes: dict[str, int], keep_every: int | None) -> None:
    limit = free_bytes() if max_bytes is None else max_bytes
    if needed > limit:
        times = math.ceil(needed / limit)
        ways = [f"{size // times} of the {size} {name}" for name, size in sizes.items() if size >= times]
        ways += [f"keep_every={keep_every * times}"] if keep_every else []
        raise ValueError(
            f"max_bytes={limit / 2**20:,.1f} MiB: must be at least {needed / 2**20:,.1f} MiB for these histories; "
            f"it is enough for about {', or '.join([*ways, f'1/{times} of num_rounds'])}"
        )


def free_bytes() -> float:
    """The memory that the first device has left; a CPU reports none, and has its share of what the machine has."""
    stats = jax.local_devices()[0].memory_stats()
    if stats:
        return stats.get("bytes_limit", math.inf) - stats.get("bytes_in_use", 0)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / jax.local_device_count()


def episode_steps(env: Environment) -> int:
    """The time limit of the family."""
    with jax.ensure_compile_time_eval():  # a number also where the caller jits
        return int(env.default_params.max_steps_in_episode)


@partial(jax.jit, static_argnames=("env", "num_rounds", "keep_every", "next_obs"))
def _collect(learner, env, env_params, key, num_rounds, keep_every, next_obs, first_task) -> Histories:
    num_tasks = _num_tasks(env_params)
    round_steps, num_streams = _sizes(learner, env_params)
    num_steps = num_rounds * round_steps
    form = Form((), episode_steps(env), getattr(env, "terminates", True), num_steps)
    most, least = room(form, num_steps, keep_every, 1)
    update_dtype = np.min_scalar_type(num_rounds - 1)

    def of_interest(record) -> Transition:
        return record.transition if next_obs else record.transition._replace(next_obs=None)

    example = jax.eval_shape(lambda params: of_interest(_one_round(learner, params)[1]), _first(env_params))
    dtypes = _narrow(env, example)

    def one_task(shared, row) -> _Kept:
        learner, key = shared
        env_params, index = row
        key_init, key_rounds = jax.random.split(jax.random.fold_in(key, index))

        def learn(carry, i):
            state, kept = carry
            state, record = learner.learn(state, jax.random.fold_in(key_rounds, i))
            narrow = lambda x, dtype: jnp.swapaxes(x, 0, 1).astype(dtype)
            transitions = jax.tree.map(narrow, of_interest(record), dtypes)
            steps = transitions, jnp.full((num_streams, round_steps), i.astype(update_dtype))
            return (state, _keep_all(kept, steps, i) if keep_every == 1 else _keep_first_hand(kept, steps)), None

        blank = lambda x, dtype: jnp.zeros((num_streams, most, *x.shape[2:]), dtype)
        streams = jax.tree.map(blank, example, dtypes), jnp.zeros((num_streams, most), update_dtype)
        deals = jax.tree.map(lambda x: jnp.broadcast_to(x, (num_streams, *x.shape)), first_deal(keep_every))
        kept = _Kept(streams, jnp.zeros(num_streams, jnp.int32), deals)
        return jax.lax.scan(learn, (learner.init(key_init, env_params), kept), jnp.arange(num_rounds))[0][1]

    rows = pad_rows((env_params, first_task + jnp.arange(num_tasks)))
    kept = over_rows(jax.vmap(one_task, in_axes=(None, 0)))((learner, key), rows)
    (transitions, update), steps, _ = jax.tree.map(lambda x: x[:num_tasks], kept)
    names = tuple(x.dtype.name for x in jax.tree.leaves(example))
    return Histories(transitions, update, steps, env_params, form._replace(dtypes=names, least_steps=least))


class _Kept(NamedTuple):
    """The streams of one task as far as they have come."""

    streams: tuple[Transition, Array]  # transitions and update, [N, T, ...]; written in place
    steps: Array  # int32 [N]: of them
    deals: Deal  # [N, ...]: who gets the next steps, if not all are kept


def _keep_all(kept: _Kept, steps: tuple[Transition, Array], i: Array) -> _Kept:
    """Adds the steps of round i, [N, T, ...]."""
    num_steps = steps[1].shape[1]
    write = lambda stream, new: jax.lax.dynamic_update_slice_in_dim(stream, new, i * num_steps, axis=1)
    return kept._replace(streams=jax.tree.map(write, kept.streams, steps), steps=kept.steps + num_steps)


def _keep_first_hand(kept: _Kept, steps: tuple[Transition, Array]) -> _Kept:
    """Adds those steps of a round, [N, T, ...], whose episodes are dealt to the first hand."""
    transitions, update = steps
    most = kept.streams[1].shape[1]  # the places of other hands are beyond
    deals, place = jax.vmap(partial(deal, most=most))(kept.deals, transitions.terminated | transitions.truncated)
    at = jnp.arange(update.shape[0])[:, None], place
    streams = jax.tree.map(lambda stream, new: stream.at[at].set(new, mode="drop"), kept.streams, steps)
    return _Kept(streams, deals.held[:, 0], deals)


def _narrow(env: Environment, example: Transition) -> Transition:
    """The type that holds each leaf without loss: integers of known bounds in as few bytes as those need."""
    params = env.default_params
    obs, action = env.observation_space(params), env.action_space(params)
    types = jax.tree.map(lambda x: x.dtype, example)
    return types._replace(
        obs=narrowed(obs, types.obs), action=narrowed(action, types.action), next_obs=narrowed(obs, types.next_obs)
    )


def narrowed(space: Any, dtype: Any) -> Any:
    """The type that holds what lies in a space, and that was given as `dtype`, in as few bytes as it may."""
    space = getattr(space, "space", space)  # pairs of actions
    if isinstance(space, spaces.Discrete):
        low, high = 0, space.n - 1
    elif isinstance(space, spaces.Box) and jnp.issubdtype(space.dtype, jnp.integer):
        low, high = int(np.min(space.low)), int(np.max(space.high))
    else:
        return dtype
    if not (hasattr(dtype, "itemsize") and jnp.issubdtype(dtype, jnp.integer)):
        return dtype
    least = np.promote_types(np.min_scalar_type(low), np.min_scalar_type(high))
    return least if least.itemsize < dtype.itemsize else dtype

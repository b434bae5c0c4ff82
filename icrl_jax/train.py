"""The training loop: one compiled chunk, scanned on the device by `train` or called from the host by `fit`."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from icrl_envs.task_family import require
from icrl_jax import feed
from icrl_jax.core import SEED_AXES, Agent, Array, Method, Reader, TrainState, Tree
from icrl_jax.parallel import replicate

Evaluate = Callable[[Agent, Array], dict[str, Array]]
"""`(agent, key) -> metrics`, compiled into the chunk; held-out tasks, small and quick."""


Chunk = Callable[..., tuple[TrainState, dict]]
"""`(state, keys[S], i) -> (state, log [S])`, compiled; the state is donated. Of a method with a feed:
`(state, keys[S], i, fed [S, U, B, ...])`."""


class Schedule(NamedTuple):
    """How training is cut into chunks."""

    num_chunks: int
    updates_per_chunk: int


def make_chunk(method: Method, updates: int, evaluate: Evaluate | None = None) -> Callable:
    """The unit that is compiled: `(train_state, key) -> (train_state, log)`, `updates` rounds of learning.

    Of a method with a feed it is `(train_state, key, fed)`, what each update is fed stacked on axis 0.

    The log holds the mean over the updates of all that `method.update` logs, `first_nonfinite` (int32 []: the first
    update of the chunk whose loss was not finite, the last one if only the parameters after it are not, or -1), and
    what `evaluate` found afterwards, under `eval/`.
    """

    def chunk(state: TrainState, key: Array, *fed: Tree) -> tuple[TrainState, dict]:
        _, key_eval = jax.random.split(key)
        update = lambda state, inputs: method.update(state, *inputs)
        state, logs = jax.lax.scan(update, state, (update_keys(key, updates), *fed))
        bad = ~jnp.isfinite(logs["loss"])
        bad = bad.at[-1].set(bad[-1] | ~_all_finite(state.params))  # the next loss would show it, but too late
        log = {name: values.mean() for name, values in logs.items()}
        log["first_nonfinite"] = jnp.where(bad.any(), jnp.argmax(bad), -1)
        if evaluate is not None:
            log |= {f"eval/{name}": value for name, value in evaluate(method.agent(state.params), key_eval).items()}
        return state, log

    return chunk


def _all_finite(tree: Tree) -> Array:
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()


def init(key: Array, method: Method, hparams: dict | None = None) -> TrainState:
    """The first state of the run that `key` seeds; `train` and `fit` start from it."""
    return method.init(jax.random.split(key)[0], hparams)


def chunk_key(key: Array, i: Array | int) -> Array:
    """The key of chunk i of the run that `key` seeds."""
    return jax.random.fold_in(jax.random.split(key)[1], i)


def update_keys(key: Array, updates: int) -> Array:
    """The keys of the updates of the chunk that has this key, [updates]."""
    return jax.random.split(jax.random.split(key)[0], updates)


def train(
    key: Array, method: Method, schedule: Schedule, evaluate: Evaluate | None = None, hparams: dict | None = None
) -> tuple[TrainState, dict]:
    """Trains wholly on the device: jit it, and vmap it over keys (seeds) and hparams (learning rates, ...).

    Returns:
      The last state, and the log of every chunk, each entry [num_chunks].
    Raises:
      ValueError: the method has a feed, which only the host can read.
    """
    require(method.feed is None, "method", "one with a feed", "trained by `fit`: only the host reads what it is fed")
    chunk = make_chunk(method, schedule.updates_per_chunk, evaluate)
    chunks = jnp.arange(schedule.num_chunks)
    return jax.lax.scan(lambda state, i: chunk(state, chunk_key(key, i)), init(key, method, hparams), chunks)


class Callback(Protocol):
    """What `fit` calls after each chunk."""

    def __call__(self, done: int, log: dict[str, np.ndarray], state: TrainState) -> None:
        """`done` chunks are finished; `log` holds [S] arrays; `state` is donated after the call, so copy to keep."""


class NonFiniteLossError(FloatingPointError):
    """Training met a loss, or parameters, that are not finite numbers."""


def init_seeds(keys: Array, method: Method, hparams: dict | None = None) -> TrainState:
    """The first states of S runs [S, ...], with one copy of their data, on every device.

    Args:
      keys: one per run, [S].
      hparams: each entry float32 [S], where runs differ in them.
    """
    seeds = jax.vmap(lambda key, hparams: init(key, method, hparams), out_axes=SEED_AXES)
    return replicate(jax.jit(seeds)(keys, hparams))


def abstract_seeds(method: Method, num_seeds: int) -> TrainState:
    """The shapes of what `init_seeds` makes, nothing built and nothing compiled; without the data."""
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), num_seeds))
    return jax.eval_shape(jax.vmap(lambda key: init(key, method)._replace(data=None), out_axes=SEED_AXES), keys)


def compile_chunk(
    method: Method,
    schedule: Schedule,
    keys: Array,
    state: TrainState,
    evaluate: Evaluate | None = None,
    reader: Reader | None = None,
) -> Chunk:
    """Compiles one chunk of S runs; `reader` is that of a method with a feed."""
    updates = schedule.updates_per_chunk
    chunk = make_chunk(method, updates, evaluate)
    fed = () if reader is None else (feed.abstract_chunk(reader, feed.on_host(keys)[0], len(keys), updates),)

    def chunk_i(state, key, i, *fed):
        return chunk(state, chunk_key(key, i), *fed)

    given = jax.tree.map(lambda x: x.sharding, state)  # the next chunk takes the state as this one leaves it
    compiled = jax.jit(over_seeds(chunk_i), donate_argnums=0, out_shardings=(given, None))
    return compiled.lower(state, keys, np.int32(0), *fed).compile()


def over_seeds(function: Callable) -> Callable:
    """Runs `function(state, key, i, ...)` for S stacked states, with one copy of their data, keys, and what follows.

    By `vmap` where many seeds fill an accelerator better than one. On CPU one after another, in the same program: the
    cores are full with one, and batched products of small matrices are slower there.
    """
    if jax.default_backend() != "cpu":
        axes = SEED_AXES, 0, None
        return lambda *args: jax.vmap(function, (*axes, *[0] * (len(args) - 3)), (SEED_AXES, 0))(*args)

    def in_turn(state: TrainState, keys: Array, i: Array, *fed: Tree):
        def one(seed):
            of_seed, key, *fed = seed
            new, log = function(of_seed._replace(data=state.data, step=state.step), key, i, *fed)
            return new._replace(data=None), log

        new, logs = jax.lax.map(one, (state._replace(data=None, step=None), keys, *fed))
        return new._replace(data=state.data, step=new.step[0]), logs

    return in_turn


def fit(
    keys: Array,
    method: Method,
    schedule: Schedule,
    evaluate: Evaluate | None = None,
    callbacks: Sequence[Callback] = (),
    first: int = 0,
    state: TrainState | None = None,
    chunk: Chunk | None = None,
    reader: Reader | None = None,
    stop_nonfinite: bool = True,
) -> TrainState:
    """Trains from the host, S seeds at once: the same chunks as `train`, with a look at each log.

    What a method is fed is read a chunk ahead, while the device computes.

    Args:
      keys: one per seed, [S].
      callbacks: called in order after each chunk, once its losses are known to be finite.
      first: the chunk to begin with, where `state` is that of a resumed run.
      chunk: from `compile_chunk`, where it was compiled already.
      reader: of a method with a feed, where it was opened already.
      stop_nonfinite: False goes on where one of many runs diverges, as in sweeps.
    Returns:
      The last state, its seeds stacked on axis 0 but for the data, of which there is one copy.
    Raises:
      NonFiniteLossError: names the update and the seed, before any callback has seen that chunk.
    """
    keys = replicate(keys)
    state = init_seeds(keys, method) if state is None else state
    reader = method.feed.open() if reader is None and method.feed is not None else reader
    chunk = compile_chunk(method, schedule, keys, state, evaluate, reader) if chunk is None else chunk
    fed = _feeding(reader, keys, schedule.updates_per_chunk)
    with feed.Ahead(fed, first, schedule.num_chunks) as ahead:
        for i in range(first, schedule.num_chunks):
            state, log = chunk(state, keys, np.int32(i), *ahead.take(i))
            log = jax.device_get(log)
            bad = log.pop("first_nonfinite")
            for seed in np.flatnonzero(bad >= 0) if stop_nonfinite else ():
                update = i * schedule.updates_per_chunk + int(bad[seed]) + 1
                raise NonFiniteLossError(
                    f"the loss or the parameters of run {seed} (counted from 0) are not finite at update {update}"
                )
            for callback in callbacks:
                callback(i + 1, log, state)
    return state


def _feeding(reader: Reader | None, keys: Array, updates: int) -> Callable[[int], tuple[Tree, ...]]:
    """What chunk i is called with beside state, keys and i."""
    if reader is None:
        return lambda i: ()
    keys = feed.on_host(keys)
    return lambda i: (feed.read_chunk(reader, [update_keys(chunk_key(key, i), updates) for key in keys]),)

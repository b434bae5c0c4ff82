"""Supervised pretraining: draw a batch, lower a loss. DPT, AD, DIT and their kin differ only in the arguments."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from icrl_jax.core import Agent, Array, Feed, Method, Reader, TrainState, Tree
from icrl_jax.parallel import check_rows, mean_over_rows


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule."""

    learning_rate: float = 3e-3
    """Peak learning rate."""
    weight_decay: float = 1e-4
    """AdamW's decoupled weight decay."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Cosine or linear decay to zero after the warm-up, or constant."""
    warmup: float = 0.05
    """Share of the updates over which the learning rate rises from zero."""
    beta2: float = 0.99
    """Decay of Adam's second moment (0.999 is the usual default; short runs want less)."""
    clip: float | None = 1.0
    """Largest global norm of the gradient; None leaves it."""
    eps: float = 1e-8
    """Added to the root of Adam's second moment (PPO's is usually 1e-5)."""

    def __post_init__(self):
        check_hparams({"learning_rate": self.learning_rate})
        _require(0 <= self.weight_decay < float("inf"), "weight_decay", self.weight_decay, "a number of at least 0")
        schedules = "'cosine', 'linear' or 'constant'"
        _require(self.schedule in ("cosine", "linear", "constant"), "schedule", self.schedule, schedules)
        _require(0 <= self.warmup < 1, "warmup", self.warmup, "in [0, 1)")
        _require(0 < self.beta2 < 1, "beta2", self.beta2, "in (0, 1)")
        _require(self.clip is None or self.clip > 0, "clip", self.clip, "None or a number above 0")
        _require(0 < self.eps < float("inf"), "eps", self.eps, "a finite number above 0")


def check_hparams(hparams: Mapping[str, float]) -> None:
    """Validates traced hyper-parameters on the host, before they are traced.

    Raises:
      ValueError: an unknown name, or a value outside its range.
    """
    for name, value in hparams.items():
        _require(name == "learning_rate", "hparams", name, "'learning_rate'")
        _require(0 < value < float("inf"), name, value, "a finite number above 0")


class Row(NamedTuple):
    """What one row of a batch is made from; [B] in a batch."""

    index: Array  # int32 []: which sample of the data; each epoch visits every one once, in an order of its own
    key: Array  # fresh at every update


def supervised(
    init_params: Callable[[Array], Tree],
    collect: Callable[[Tree, Tree], Tree],
    loss: Callable[[Tree, Tree, Array], tuple[Array, dict]],
    agent: Callable[..., Agent],
    optim: OptimConfig,
    num_updates: int,
    batch_size: int,
    tokens_per_row: int,
    data: Callable[[], Tree] | None = None,
    num_samples: int | None = None,
    least_rows: int = 1,
    feed: Feed | None = None,
) -> Method:
    """Builds a `Method` that draws rows, collects their batch inside the compiled update, and takes a gradient step.

    Rows are spread over the devices; each device collects and learns from its own, and gradients are averaged.

    Args:
      init_params: `key -> params`.
      collect: `(data, row) -> example`, for one `Row`, vmapped.
      loss: `(params, batch, key) -> (float32 [], log)`, the mean over the batch; the key is for what it draws.
      agent: as `Method.agent`.
      optim: AdamW and its schedule, over `num_updates` updates.
      tokens_per_row: inputs of the model in one row, by which rows are gathered so that they fit a core's cache.
      data: builds the large constant arrays that all seeds share; the same at every call.
      num_samples: how many samples the data holds; None where every row is drawn afresh.
      least_rows: how many rows the model wants together, whatever the cache holds (`least_rows` of its config).
      feed: in place of `data` and `num_samples`, reads on the host what each row is made from, and hands it to
        `collect` as its `data`; its reader is given the keys of rows, [U, B].
    Raises:
      ValueError: `batch_size` outside 1 ..= num_samples; when training, not a multiple of the number of devices.
    """
    _require(batch_size >= 1, "batch_size", batch_size, "at least 1")
    if num_samples is not None:
        _require(batch_size <= num_samples, "batch_size", batch_size, f"at most the number of samples, {num_samples}")
    fed_only = feed is None or (data is None and num_samples is None)
    _require(fed_only, "feed", feed, "None with data or num_samples, which it stands for")
    schedule, tx = make_schedule(optim, num_updates), make_optimiser(optim)

    def loss_of_rows(shared, rows_and_fed):
        (params, data), (rows, fed) = shared, rows_and_fed
        batch = jax.vmap(collect, in_axes=(None if feed is None else 0, 0))(data if feed is None else fed, rows)
        return gradient_of_rows(loss, params, batch, rows.key, tokens_per_row, least_rows)

    loss_and_gradient = mean_over_rows(loss_of_rows)

    def init(key: Array, hparams: dict | None = None) -> TrainState:
        key_params, key_order = jax.random.split(key)
        params = init_params(key_params)
        hparams = {"learning_rate": optim.learning_rate, **(hparams or {})}
        extra = {"hparams": {name: jnp.float32(value) for name, value in hparams.items()}}
        if num_samples is not None:
            extra |= {"key_order": key_order, "order": jnp.arange(num_samples, dtype=jnp.int32)}
        return TrainState(params, tx.init(params), extra, data() if data else None, jnp.zeros((), jnp.int32))

    def update(state: TrainState, key: Array, fed: Tree = None) -> tuple[TrainState, dict]:
        check_rows("batch_size", batch_size)
        _require((fed is None) == (feed is None), "fed", fed, "what the feed of the method reads, as `fit` hands it on")
        if num_samples is None:
            index, extra = jnp.arange(batch_size), state.extra
        else:
            index, extra = _next_indices(state.extra, state.step, num_samples, batch_size)
        rows = Row(index, row_keys(key, batch_size))
        gradient, log = loss_and_gradient((state.params, state.data), (rows, fed))
        with jax.numpy_dtype_promotion("standard"):  # optax relies on it, whatever the caller has set
            rate = extra["hparams"]["learning_rate"] * schedule(state.step)
        params, opt_state = descend(tx, rate, gradient, state.opt_state, state.params)
        log |= {"gradient_norm": optax.tree.norm(gradient), "learning_rate": rate}
        return TrainState(params, opt_state, extra, state.data, state.step + 1), log

    return Method(init, update, agent, None if feed is None else _by_updates(feed, batch_size))


def row_keys(key: Array, batch_size: int) -> Array:
    """The keys of the rows of the update that has this key, [B]."""
    return jax.random.split(key, batch_size)


def _by_updates(feed: Feed, batch_size: int) -> Feed:
    """A feed that is given the keys of updates, of one that is given those of their rows."""
    of_rows = jax.jit(jax.vmap(partial(row_keys, batch_size=batch_size)))

    def open_(between: Callable[[int, int], None] | None = None) -> Reader:
        reader = feed.open(between)
        return reader._replace(read=lambda keys: reader.read(of_rows(keys)))

    return feed._replace(open=open_)


KEY_OF_LOSS = 2**31
"""Folded into the first row's key for what the loss of its group draws: no key that `collect` may have made of it."""

TOKENS_IN_CACHE = 1024
"""Inputs whose activations, forward and backward, stay in a core's cache at the widths that are trained on CPU."""


def rows_at_once(num_rows: int, tokens_per_row: int, least_rows: int = 1) -> int:
    """How many rows share one forward and backward pass on a device: all, but on CPU no more than its cache holds.

    There every pass over all rows reads and writes main memory; a few rows at a time is 1.7 times faster (DPT, width
    64, 101 tokens). But `least_rows`, if there are so many, go together in any case. Divides `num_rows`.
    """
    if jax.default_backend() != "cpu":
        return num_rows
    fits = lambda n: n <= least_rows or n * tokens_per_row <= TOKENS_IN_CACHE
    return max(n for n in range(1, num_rows + 1) if num_rows % n == 0 and fits(n))


def gradient_of_rows(
    loss: Callable, params: Tree, batch: Tree, keys: Array, tokens_per_row: int, least_rows: int = 1
) -> tuple[Tree, dict]:
    """The mean gradient over a device's rows [B, ...], a group of them after another, and the log.

    What a loss says of all its rows together, as the balance of experts, it then says of each group.
    """
    size = rows_at_once(keys.shape[0], tokens_per_row, least_rows)
    return _mean_over_groups(partial(_gradient, loss, params), (batch, keys), size)


def _gradient(loss, params, batch_and_keys) -> tuple[Tree, dict]:
    batch, keys = batch_and_keys
    key = jax.random.fold_in(keys[0], KEY_OF_LOSS)
    (value, log), gradient = jax.value_and_grad(loss, has_aux=True)(params, batch, key)
    return gradient, {"loss": value, **log}


def _mean_over_groups(function: Callable[[Tree], Tree], rows: Tree, size: int) -> Tree:
    """Averages `function` over groups of `size` rows, one group after another."""
    groups = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), rows)
    num_groups = jax.tree.leaves(groups)[0].shape[0]
    if num_groups == 1:
        return function(rows)
    function = jax.jit(function)  # so that its shapes and the loop share one trace
    zero = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, jax.tree.map(lambda x: x[0], groups))
    )
    add = lambda total, group: (jax.tree.map(jnp.add, total, function(group)), None)
    total, _ = jax.lax.scan(add, zero, groups)
    return jax.tree.map(lambda x: x / num_groups, total)


def make_optimiser(optim: OptimConfig) -> optax.GradientTransformation:
    """AdamW of unit learning rate, after clipping: `descend` multiplies by the rate, which is traced."""
    adamw = optax.adamw(1.0, b2=optim.beta2, eps=optim.eps, weight_decay=optim.weight_decay)
    return adamw if optim.clip is None else optax.chain(optax.clip_by_global_norm(optim.clip), adamw)


def descend(
    tx: optax.GradientTransformation, rate: Array, gradient: Tree, opt_state: Tree, params: Tree
) -> tuple[Tree, Tree]:
    """One step of an optimiser of unit learning rate: (params, opt_state)."""
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it, whatever the caller has set
        updates, opt_state = tx.update(gradient, opt_state, params)
    return jax.tree.map(lambda p, u: p + rate * u, params, updates), opt_state


def make_schedule(optim: OptimConfig, num_updates: int) -> optax.Schedule:
    """The factor on the learning rate at each update: linear warm-up to 1, then constant or a decay to 0."""
    warmup = round(optim.warmup * num_updates)
    decay_steps = max(1, num_updates - warmup)
    tail = {
        "constant": optax.constant_schedule(1.0),
        "cosine": optax.cosine_decay_schedule(1.0, decay_steps),
        "linear": optax.linear_schedule(1.0, 0.0, decay_steps),
    }[optim.schedule]
    rise = optax.linear_schedule(1.0 / max(1, warmup), 1.0, max(1, warmup - 1))
    return optax.join_schedules([rise, tail], [warmup])


def _next_indices(extra: dict, step: Array, num_samples: int, batch_size: int) -> tuple[Array, dict]:
    """The next batch of indices; a new epoch begins with a new order, and what does not fill a batch is left out."""
    updates_per_epoch = num_samples // batch_size
    epoch, position = step // updates_per_epoch, step % updates_per_epoch
    key_epoch = jax.random.fold_in(extra["key_order"], epoch)
    order = jax.lax.cond(
        position == 0,
        lambda order: jax.random.permutation(key_epoch, num_samples).astype(jnp.int32),
        lambda order: order,
        extra["order"],
    )
    return jax.lax.dynamic_slice_in_dim(order, position * batch_size, batch_size), {**extra, "order": order}


def _require(condition: bool, option: str, value: object, allowed: str) -> None:
    if not condition:
        raise ValueError(f"{option}={value!r}: must be {allowed}")

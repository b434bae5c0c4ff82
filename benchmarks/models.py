"""The sequence models side by side: training and acting as sequences grow, the scan against a GRU, imagined futures."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.measure import Row, faster, in_turn, milliseconds
from icrl_jax.agents.in_context import as_row, of_row
from icrl_jax.methods.supervised import gradient_of_rows
from icrl_jax.models.cache import Memory
from icrl_jax.models.gru import GRUConfig
from icrl_jax.models.kinds import ModelConfig, make_model
from icrl_jax.models.s5 import S5Config
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.parallel import mean_over_rows, replicate, rows_sharding


class Size(NamedTuple):
    """What is timed."""

    width: int = 64
    num_layers: int = 2
    lengths: Sequence[int] = (16, 64, 256, 1024, 4096, 16_384)
    tokens: int = 16_384  # in one batch of training, whatever the length
    rows: int = 16  # that act at once
    acts: int = 64  # in a call
    rounds: int = 3
    scan: tuple[int, int, int] = (32, 1024, 128)  # rows, length and width of one layer of S5 and one of GRU
    futures: tuple[int, int, int, int] = (1024, 25, 4, 5)  # context, branches, their depth; candidates of a peek
    long: tuple[int, int] = (65_536, 4096)  # inputs of one sequence; how many of them a transformer sees at once


QUICK = Size(8, 1, (4,), 16, 2, 3, 1, (2, 5, 8), (8, 3, 2, 2), (11, 5))


def models(size: Size, length: int) -> dict[str, ModelConfig]:
    """One of each kind, of one width and depth."""
    width, layers = size.width, size.num_layers
    return {
        "transformer": TransformerConfig(width, layers, max(1, width // 32), context_len=length, positions="rotary"),
        "s5": S5Config(width, layers, state_size=width),
        "s5, feed-forward": S5Config(width, layers, state_size=width, mlp_ratio=4),
        "s4d": S5Config(width, layers, kind="s4d", state_size=8),
        "gru": GRUConfig(width, layers),
        "lstm": GRUConfig(width, layers, cell="lstm"),
    }


def rows(quick: bool = False) -> Iterator[Row]:
    """Two rows per model and length, the comparison with a GRU, what a transformer's futures cost, and one very long
    sequence, learned from and remembered."""
    size = QUICK if quick else Size()
    yield scan_row(size)
    yield from future_rows(size)
    for length in size.lengths:
        yield from length_rows(size, length)
    yield from long_rows(size)
    yield from long_act_rows(size)


def scan_row(size: Size) -> Row:
    """Forward and backward through one layer of S5 and one of GRU."""
    B, T, D = size.scan  # noqa: N806
    sides = {"s5": S5Config(D, 1, state_size=D), "gru": GRUConfig(D, 1)}
    seconds = in_turn({name: training(config, B, T)[0] for name, config in sides.items()}, size.rounds)
    note = f"one layer each, {B} sequences of {T:,}, width {D}, forward and backward"
    ours, theirs = seconds["s5"], seconds["gru"]
    return faster("training, s5 against gru", milliseconds(ours), milliseconds(theirs), theirs / ours, 2, note)


def length_rows(size: Size, length: int) -> Iterator[Row]:
    """Every model at one length: a token of training, and an act with so much context."""
    configs = models(size, length)
    num_rows = jax.device_count() * max(1, size.tokens // (jax.device_count() * length))
    trained = {name: training(config, num_rows, length) for name, config in configs.items()}
    train = in_turn({name: run for name, (run, _) in trained.items()}, size.rounds)
    act = in_turn({name: acting(config, size.rows, size.acts) for name, config in configs.items()}, size.rounds)
    for name in configs:
        place = {"model": name, "length": length}
        token, mib = 1e6 * train[name] / (num_rows * length), trained[name][1] / 2**20
        note, numbers = f"{num_rows} rows; {mib:,.0f} MiB beside weights and inputs", {"us_a_token": token}
        what = f"training, {name}, length {length:,}"
        yield Row(what, f"{token:.3g} us a token", note=note, numbers={**place, **numbers, "mib": mib})
        step, note = 1e6 * act[name] / (size.acts * size.rows), f"{size.rows} rows at once"
        what = f"acting, {name}, context {length:,}"
        yield Row(what, f"{step:.3g} us a step", note=note, numbers={**place, "us_a_step": step})


def long_rows(size: Size) -> Iterator[Row]:
    """Forward and backward through one sequence, by models whose time grows no faster than it; and with `remat`."""
    length, context = size.long
    configs = models(size, context)
    for name in ("transformer", "s5", "gru"):
        sides = {"": configs[name]}
        if hasattr(configs[name], "remat"):
            sides[", remat"] = replace(configs[name], remat=True)
        runs = {side: training(config, 1, length) for side, config in sides.items()}
        seconds = in_turn({side: run for side, (run, _) in runs.items()}, rounds=1)
        for side, (_, bytes_needed) in runs.items():
            mib, seen = bytes_needed / 2**20, f", context {context:,}" if name == "transformer" else ""
            note = f"{size.num_layers} layers{seen}; {mib:,.0f} MiB beside weights and inputs"
            numbers = {"sequence": length, "kind": name + side, "seconds": seconds[side], "mib": mib}
            what = f"training, {name}{side}, one sequence of {length:,}"
            yield Row(what, f"{seconds[side]:.3g} s", note=note, numbers=numbers)


def long_act_rows(size: Size) -> Iterator[Row]:
    """Steps of one row after a very long sequence, all of it in a transformer's ring, or in the state of S5."""
    length, configs = size.long[0], models(size, size.long[0])
    runs = {name: acting(configs[name], 1, size.acts) for name in ("transformer", "s5")}
    for name, seconds in in_turn(runs, size.rounds).items():
        step = seconds / size.acts
        numbers = {"context": length, "kind": name, "seconds_a_step": step}
        yield Row(f"acting, {name}, after {length:,}", milliseconds(step), note="a step of one row", numbers=numbers)


def future_rows(size: Size) -> Iterator[Row]:
    """Branches that share their past against copies of it, and a peek against steps whose memory is thrown away."""
    context, n, depth, candidates = size.futures
    model = make_model(models(size, context)["transformer"], jax.random.key(0))
    carry, B, D = model.init_carry(size.rows), size.rows, size.width  # noqa: N806
    x = jax.random.normal(jax.random.key(1), (depth, B * n, D))

    @jax.jit
    def shared(model, carry, x):
        return follow(model, model.branch(carry, n, depth), x)

    @jax.jit
    def copied(model, carry, x):
        return follow(model, jax.tree.map(lambda z: jnp.repeat(z, n, axis=0) if z.ndim else z, carry), x)

    @jax.jit
    def peeked(model, carry, x):
        return model.peek(carry, x)

    @jax.jit
    def stepped(model, carry, x):
        never = jnp.zeros(B, bool)
        return jnp.stack([model.step(carry, x[:, i], never)[1] for i in range(candidates)], axis=1)

    x_peek = jax.random.normal(jax.random.key(2), (B, candidates, D))
    for what, sides, inputs in (
        (f"{n} branches of depth {depth} against copies of the cache", (shared, copied), x),
        (f"a peek at {candidates} candidates against discarded steps", (peeked, stepped), x_peek),
    ):
        calls = {f.__name__: lambda f=f: jax.block_until_ready(f(model, carry, inputs)) for f in sides}  # noqa: B023
        ours, theirs = in_turn(calls, size.rounds).values()
        note = f"transformer, {B} rows at once, context {context:,}"
        yield faster(what, milliseconds(ours), milliseconds(theirs), theirs / ours, None, note)


def follow(model: Any, carry: Any, x: jax.Array) -> jax.Array:
    """The outputs of steps [T, B, D] one after another."""
    never = jnp.zeros(x.shape[1], bool)
    return jax.lax.scan(lambda carry, x: model.step(carry, x, never), carry, x)[1]


def follow_one(model: Any, carry: Any, x: jax.Array) -> jax.Array:
    """The same of a single row, whose memory is kept without its axis, as an agent does."""

    def step(carry, x):
        carry, y = model.step(as_row(model, carry), x, jnp.zeros(1, bool))
        return of_row(carry), y

    return jax.lax.scan(step, of_row(carry), x)[1]


def training(config: ModelConfig, num_rows: int, length: int) -> tuple[Callable[[], object], int]:
    """The gradient of a batch as `supervised` takes it, and the bytes that this needs on all devices.

    Its rows are spread over the devices, and go through each a group after another; a single row is on one device.
    """
    keys = jax.random.split(jax.random.key(1), num_rows)
    x = jax.random.normal(jax.random.key(2), (num_rows, length, config.width))
    batch = x, jnp.zeros((num_rows, length), bool)  # without resets: attention would skip what lies before one

    def gradient(model, rows):
        return gradient_of_rows(mean_square, model, *rows, length, config.least_rows(length))[0]

    model, rows, devices = make_model(config, jax.random.key(0)), (batch, keys), 1
    if num_rows > 1:
        gradient, devices = mean_over_rows(gradient), jax.device_count()
        model, rows = replicate(model), jax.device_put(rows, rows_sharding(0))
    compiled = jax.jit(gradient).lower(model, rows).compile()
    memory: Any = compiled.memory_analysis()
    return lambda: jax.block_until_ready(compiled(model, rows)), devices * memory.temp_size_in_bytes


def mean_square(model: Any, batch: tuple[jax.Array, jax.Array], key: jax.Array) -> tuple[jax.Array, dict]:
    """A loss, as `supervised` wants it."""
    return jnp.square(model(None, *batch)[1]).mean(), {}


def acting(config: ModelConfig, num_rows: int, num_steps: int) -> Callable[[], object]:
    """Steps that go on from a memory of full length."""
    model = make_model(config, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (num_steps, num_rows, config.width))
    through = follow if num_rows > 1 else follow_one
    act = jax.jit(lambda model, carry, x: through(model, carry, x)[-1])
    carry = model.init_carry(num_rows)
    if isinstance(carry, Memory):
        full = jnp.full(num_rows, config.context_len, jnp.int32)
        carry = carry._replace(index=jnp.int32(config.context_len), length=full)
    return lambda: jax.block_until_ready(act(model, carry, x))

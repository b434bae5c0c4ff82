"""One update of DPT, data and all, against the same network, batch and optimiser in PyTorch."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp

import icrl_envs
from benchmarks.acting import make_policy
from benchmarks.collect import compiled as compiled_contexts
from benchmarks.cost import large_products, update_flops
from benchmarks.measure import Row, faster, in_turn, milliseconds
from icrl_jax.methods.dpt import DPTConfig, dpt
from icrl_jax.methods.supervised import OptimConfig
from icrl_jax.models import transformer
from icrl_jax.models.plain_attention import plain_attention
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.train import Schedule, compile_chunk, init_seeds

NO_TORCH = "PyTorch is not installed; for the comparison: pip install torch"


class Size(NamedTuple):
    """What is timed: some updates in a call."""

    config: DPTConfig
    updates: int = 4
    rounds: int = 7
    product: int = 2048  # rows of the matrices whose product tells the peak
    compile_torch: bool = True


def config(width, num_layers, num_heads, horizon: int, clip: float | None, batch_size: int = 64, dtype="auto"):
    """DPT on an endless stream of tasks, at a constant learning rate."""
    model = TransformerConfig(width, num_layers, num_heads, context_len=horizon + 1, positions="none", dtype=dtype)
    optim = OptimConfig(learning_rate=1e-4, schedule="constant", warmup=0.0, clip=clip)
    return DPTConfig(model, optim, horizon=horizon, batch_size=batch_size)


SIZES = {
    "cpu preset": Size(config(64, 3, 8, horizon=100, clip=1.0, batch_size=32)),
    "paper": Size(config(32, 4, 4, horizon=500, clip=None, dtype="float32"), updates=1, rounds=7),
}
QUICK = {"tiny": Size(config(8, 1, 2, horizon=5, clip=1.0, batch_size=4), 2, 1, product=64, compile_torch=False)}


def rows(quick: bool = False) -> Iterator[Row]:
    """Three rows per size: against PyTorch, against naive attention, against the matmul peak."""
    for name, size in (QUICK if quick else SIZES).items():
        yield from size_rows(name, size)


def size_rows(name: str, size: Size) -> Iterator[Row]:
    """All sides of one size in turn, and the products that tell the peak of the machine."""
    ours, naive = "ours", "XLA's plain attention"
    sides = {ours: our_updates(size), naive: our_updates(size, naive=True)}
    torch_sides, trouble = {}, NO_TORCH
    if importlib.util.find_spec("torch"):
        torch_sides, trouble = torch_updates(size)
    products = large_products(size.product)
    every = sides | torch_sides | products
    assert len(every) == len(sides) + len(torch_sides) + len(products), "two sides have one name"
    seconds = in_turn(every, size.rounds)
    update = {side: seconds[side] / size.updates for side in (*sides, *torch_sides)}

    what = f"update, {name}"
    if torch_sides:
        best = min(torch_sides, key=update.__getitem__)
        others = [f"{side} {milliseconds(update[side])}" for side in torch_sides if side != best]
        note = "; ".join(
            [_described(size.config), f"against {best}, with its data ready", *others, *filter(None, [trouble])]
        )
        yield faster(
            what, milliseconds(update[ours]), milliseconds(update[best]), update[best] / update[ours], 1.5, note
        )
    else:
        yield Row(what, milliseconds(update[ours]), aim="1.5 x", note=f"{_described(size.config)}; {trouble}")
    sizes = milliseconds(update[ours]), milliseconds(update[naive])
    yield faster(f"{what}, against {naive}", *sizes, update[naive] / update[ours], None)

    flops = update_flops(size.config.model, size.config.batch_size, size.config.horizon + 1, *_ends())
    peaks = {side: 2 * size.product**3 / seconds[side] for side in products}
    rate, peak = flops / update[ours], max(peaks.values())
    note = "; ".join(f"{side} {value / 1e9:.3g}" for side, value in peaks.items())
    yield Row(
        f"{what}, GFLOP/s, share of the matmul peak", f"{rate / 1e9:.3g}", f"{peak / 1e9:.3g}", rate / peak, note=note
    )


def _ends() -> tuple[int, int]:
    """Numbers that enter and leave the network with each token."""
    env = icrl_envs.make("gaussian_bandit")
    return 2 * env.observation_space().shape[0] + env.num_actions + 1, env.num_actions


def our_updates(size: Size, naive: bool = False) -> Callable[[], None]:
    """The chunk that training runs, without its evaluation; with XLA's plain attention where `naive`."""
    method = dpt(icrl_envs.make("gaussian_bandit"), replace(size.config, num_updates=size.updates))
    keys = jax.random.key(0)[None]
    state = init_seeds(keys, method)
    with with_naive_attention() if naive else contextlib.nullcontext():
        chunk = compile_chunk(method, Schedule(1, size.updates), keys, state)

    def run() -> None:
        nonlocal state
        state, log = chunk(state, keys, 0)
        jax.block_until_ready(log)

    return run


@contextlib.contextmanager
def with_naive_attention() -> Iterator[None]:
    """What a block was traced to before is forgotten, and so is afterwards what it was traced to within."""
    jax.clear_caches()
    with mock.patch.object(transformer, "attention", naive_attention):
        yield
    jax.clear_caches()


def naive_attention(q_BTHK, k_BSHK, v_BSHK, start_BT, window=None, sink=None):
    """`plain_attention` where the window never binds: an empty memory, and no more inputs than it holds."""
    own_T = jnp.arange(q_BTHK.shape[1], dtype=jnp.int32)
    return plain_attention(q_BTHK, k_BSHK, v_BSHK, jnp.clip(start_BT, 0, own_T[None]))


def torch_updates(size: Size) -> tuple[dict[str, Callable[[], None]], str]:
    """The same number of updates in PyTorch, eager and compiled; and what went wrong with compiling, if anything."""
    from benchmarks import torch_dpt

    env, cfg = icrl_envs.make("gaussian_bandit"), size.config
    policy = make_policy(cfg.model)
    contexts, batches = compiled_contexts("mixture", cfg.horizon), []
    for i in range(size.updates):
        batch = jax.device_get(contexts(jax.random.split(jax.random.key(i), cfg.batch_size)))
        batches.append(torch_dpt.tensors(batch, env.num_actions))
    sides, trouble = {"PyTorch": torch_dpt.make_update(torch_dpt.Network(policy), batches, cfg.optim)}, ""
    if size.compile_torch:
        compiled = torch_dpt.make_update(torch_dpt.Network(policy), batches, cfg.optim, compiled=True)
        try:
            compiled()
            sides["torch.compile"] = compiled
        except Exception as error:  # no C++ compiler, or none that it can use
            trouble = f"torch.compile failed: {type(error).__name__}"
    return sides, trouble


def _described(cfg: DPTConfig) -> str:
    model = cfg.model
    return f"B={cfg.batch_size} T={cfg.horizon + 1} D={model.width} H={model.num_heads} L={model.num_layers}"

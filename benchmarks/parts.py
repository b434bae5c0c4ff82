"""Where the time of an update goes: its parts, each compiled alone, forward and backward, on the same devices."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import optax

from benchmarks.acting import make_policy
from benchmarks.collect import compiled as compiled_contexts
from benchmarks.measure import Row, in_turn, milliseconds
from benchmarks.update import QUICK, SIZES, Size, our_updates
from icrl_jax.core import Tree
from icrl_jax.methods.supervised import OptimConfig
from icrl_jax.models.attention import attention
from icrl_jax.models.layers import layer_norm, linear
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.parallel import over_rows, replicate


def rows(quick: bool = False) -> Iterator[Row]:
    """One row per part and size: its share of the whole update."""
    for name, size in (QUICK if quick else SIZES).items():
        yield from size_rows(name, size)


def size_rows(name: str, size: Size) -> Iterator[Row]:
    """The ratio is the share of the update; what is fused or overlapped there may make the sum differ from one."""
    cfg, model = size.config, size.config.model
    B, T, D, H = cfg.batch_size, cfg.horizon + 1, model.width, model.num_heads
    F, L = D * model.mlp_ratio, model.num_layers
    x, wide = jnp.ones((B, T, D)), jnp.ones((B, T, F))
    qkv = jax.random.normal(jax.random.key(0), (3, B, T, H, D // H))
    keys, contexts = jax.random.split(jax.random.key(1), B), compiled_contexts(cfg.behaviour, cfg.horizon)
    shapes = ((D, 3 * D), (D, D), (D, F), (F, D))
    sides = {
        "the whole update": our_updates(size),
        "data generation": lambda: jax.block_until_ready(contexts(keys)),
        "attention": both_ways(_attend, tuple(qkv), ()),
        "projections": both_ways(_project, (x, x, x, wide), tuple(jnp.ones(shape) for shape in shapes)),
        "layer norms": both_ways(_normalise, (x,), (jnp.ones(D), jnp.zeros(D))),
        "GELU": both_ways(_gelu, (wide,), ()),
        "optimiser": optimiser_step(cfg.optim, model),
    }
    times = {
        "the whole update": 1 / size.updates,
        "attention": L,
        "projections": L,
        "layer norms": 2 * L + 1,
        "GELU": L,
    }
    seconds = {part: value * times.get(part, 1) for part, value in in_turn(sides, size.rounds).items()}
    whole = seconds.pop("the whole update")
    for part, value in seconds.items():
        yield Row(
            f"{part}, {name}", milliseconds(value), milliseconds(whole), value / whole, note="share of the update"
        )


def both_ways(function: Callable[[Tree, Tree], Tree], rows: Tree, shared: Tree) -> Callable[[], object]:
    """`function(shared, rows)` and its gradient with respect to both, the rows split over the devices."""

    def forward_and_backward(shared, rows):
        y, backward = jax.vjp(function, shared, rows)
        dshared, drows = backward(y)
        return jax.tree.map(lambda g: g[None], dshared), drows

    call = jax.jit(over_rows(forward_and_backward))
    shared = replicate(shared)
    return lambda: jax.block_until_ready(call(shared, rows))


def optimiser_step(optim: OptimConfig, model: TransformerConfig) -> Callable[[], object]:
    """Clipping and AdamW on the parameters of a `Policy`, on every device as in training."""
    params = replicate(make_policy(model))
    clip = optax.identity() if optim.clip is None else optax.clip_by_global_norm(optim.clip)
    tx = optax.chain(clip, optax.adamw(optim.learning_rate, b2=optim.beta2, weight_decay=optim.weight_decay))
    opt_state = replicate(tx.init(params))

    def step(gradient, opt_state, params):
        with jax.numpy_dtype_promotion("standard"):  # optax relies on it
            return tx.update(gradient, opt_state, params)

    call = jax.jit(step)
    return lambda: jax.block_until_ready(call(params, opt_state, params))


def _attend(_, qkv):
    q, k, v = qkv
    return attention(q, k, v, jnp.zeros(q.shape[:2], jnp.int32), q.shape[1])


def _project(weights, inputs):
    return tuple(linear(x, w) for x, w in zip(inputs, weights, strict=True))


def _normalise(weights, rows):
    (x,) = rows
    return layer_norm(x, *weights)


def _gelu(_, rows):
    (x,) = rows
    return jax.nn.gelu(x)

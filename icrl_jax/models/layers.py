"""What all sequence models are made of."""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from icrl_jax.core import Tree

Precision = Literal["auto", "float32", "bfloat16", "float64"]


class Aux(NamedTuple):
    """What a model reports besides its outputs."""

    losses: dict[str, Array]  # float32 []: weighted, for a method to add to its own
    task_inputs: tuple[Array, ...]  # [B, T, D], of each block with task-wise experts: what their gate sees


NOTHING = Aux({}, ())


def gather(reports: list[Aux]) -> Aux:
    """What all blocks report as one: each loss is the mean over the blocks that have it."""
    names = dict.fromkeys(name for report in reports for name in report.losses)
    each = {name: [report.losses[name] for report in reports if name in report.losses] for name in names}
    inputs = tuple(x for report in reports for x in report.task_inputs)
    return Aux({name: sum(values[1:], values[0]) / len(values) for name, values in each.items()}, inputs)


def precision(dtype: Precision) -> jnp.dtype:
    """What is computed in; "auto" is bfloat16 on accelerators, float32 on CPU. "float64" is for checks in JAX's x64."""
    if dtype == "auto":
        return jnp.dtype("float32" if jax.default_backend() == "cpu" else "bfloat16")
    return jnp.dtype(dtype)


def widened(x: Array) -> Array:
    """In float32 at least."""
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def at_least_float32(dtype: jnp.dtype) -> jnp.dtype:
    """What products of such arrays are summed in."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def check_sizes(config: Any, *options: str) -> None:
    """Refuses options that are not positive integers."""
    for option in options:
        value = getattr(config, option)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{option}={value!r} must be a positive integer")


def check_choices(config: Any, **options: Any) -> None:
    """Refuses options that are not among those of their `Literal`."""
    for option, allowed in options.items():
        if getattr(config, option) not in get_args(allowed):
            raise ValueError(f"{option}={getattr(config, option)!r} must be one of {', '.join(get_args(allowed))}")


@jax.custom_vjp
def linear(x: Array, w: Array) -> Array:
    """`x @ w` over the last axis, in the dtype of `x`.

    Products of bfloat16 are summed in float32, without being asked to: cuBLAS and the units of a TPU have no other way.
    The gradient of `w` is one tall product per call, written so that only `x` is transposed: left to itself, XLA on CPU
    fuses whatever produced the incoming gradient into a strided transpose of it, three times slower in all.
    """
    return x @ w.astype(x.dtype)


def _linear_forward(x, w):
    return linear(x, w), (x, w)


def _linear_backward(residuals, dy):
    x, w = residuals
    dw = jnp.matmul(x.reshape(-1, x.shape[-1]).T, dy.reshape(-1, dy.shape[-1]), preferred_element_type=w.dtype)
    return dy @ w.astype(dy.dtype).T, dw


linear.defvjp(_linear_forward, _linear_backward)


@jax.custom_vjp
def layer_norm(x: Array, scale: Array, bias: Array) -> Array:
    """Normalises the last axis in float32; its own gradient, with fewer passes over memory than the derived one."""
    return _layer_norm_forward(x, scale, bias)[0]


def _layer_norm_forward(x, scale, bias):
    x_f32 = x.astype(scale.dtype)
    mean = x_f32.mean(axis=-1, keepdims=True)
    rstd = lax.rsqrt(jnp.square(x_f32 - mean).mean(axis=-1, keepdims=True) + 1e-5)
    y = (x_f32 - mean) * rstd * along(scale, x_f32) + along(bias, x_f32)
    return y.astype(x.dtype), (x, mean, rstd, scale)


def _layer_norm_backward(residuals, dy):
    x, mean, rstd, scale = residuals
    normal, dy_f32 = (x.astype(scale.dtype) - mean) * rstd, dy.astype(scale.dtype)
    dnormal = dy_f32 * along(scale, dy_f32)
    dmean = dnormal.mean(axis=-1, keepdims=True)
    dscale = (dnormal * normal).mean(axis=-1, keepdims=True)
    dx = (rstd * (dnormal - dmean - normal * dscale)).astype(x.dtype)
    rows = tuple(range(x.ndim - 1))
    return dx, (dy_f32 * normal).sum(axis=rows), dy_f32.sum(axis=rows)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class LayerNorm(nnx.Module):
    """Parameters of `layer_norm`."""

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: Array) -> Array:
        return layer_norm(x, self.scale[...], self.bias[...])


class Mlp(nnx.Module):
    """The dense feed-forward part of a block. The config has `width`, `mlp_ratio` and `num_layers`."""

    def __init__(self, config: Any, key: Array):
        D, F = config.width, config.width * config.mlp_ratio
        key_up, key_down = jax.random.split(key)
        self.up = fan_in(key_up, (D, F), D)
        self.down = fan_in(key_down, (F, D), F * 2 * config.num_layers)

    def __call__(self, x: Array, key: Array | None = None) -> tuple[Array, Aux]:
        """[..., D] to [..., D], with nothing to report; `key` is for parts that draw."""
        return linear(jax.nn.gelu(linear(x, self.up[...])), self.down[...]), NOTHING


def fan_in(key: Array, shape: tuple[int, ...], inputs: int) -> nnx.Param:
    """Weights of variance 1 / `inputs`."""
    return nnx.Param(jax.random.normal(key, shape) * inputs**-0.5)


def pick(branches: Tree, parent_BN: Array) -> Tree:
    """Of rows [B * n, ...], n to each of B: those numbered parent[b, i] in [0, n), also [B * n, ...]."""
    B, n = parent_BN.shape
    row = (n * jnp.arange(B, dtype=parent_BN.dtype)[:, None] + parent_BN).reshape(-1)
    return jax.tree.map(lambda x: x[row], branches)


def along(values: Any, x: Array) -> Array:
    """Values along the last axes of `x`, with its rank and dtype."""
    values = jnp.asarray(values, x.dtype)
    return values.reshape((1,) * (x.ndim - values.ndim) + values.shape)

# ruff: noqa: N803, N806
"""What an agent is given to act on, as tokens of a sequence model: one for each transition, or one for each modality.

Spaces decide how values are read: a `Discrete` is a one-hot vector, so that the linear map after it is a learned table;
a `Box` is its numbers; images go through three convolutions; a `Dict` or `Tuple` is read part by part.

Axes: B rows, T time, N tokens of a step, D width, F features of what a token is made of.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from gymnax.environments import spaces
from jax import lax

from icrl_jax.core import Array, TimeStep, Transition, Tree
from icrl_jax.models.layers import check_choices, fan_in, linear

Input = Literal["obs", "origin", "action", "ranked", "feedback", "done", "next_obs"]
Tokens = Literal["transition", "modality", "query"]
Integers = Literal["numbers", "tables"]


@dataclass(frozen=True)
class EmbeddingConfig:
    """What a token is made of.

    Attributes:
        tokens: "transition" joins all inputs of a step in one token; "modality" makes one token of each, in the order
            of `inputs`, the last being where the model answers (Laskin et al. 2022, AD); "query" makes one of "obs",
            which is asked about and not remembered, beside one of all the others.
        inputs: "obs", the current observation; "origin", the one that the last action was taken in, or, where a
            sequence starts, the current one in its place (Lee et al. 2023, DPT's query); "action", "feedback" and
            "next_obs" of the last transition; "done", whether it ended the episode; "ranked", where the action was a
            pair and the feedback says which is preferred, the preferred one and then the other, a tie as half of each:
            what is shown is the same whichever came first.
        integers: what a bounded Box of integers is: "numbers", or "tables", a one-hot vector for each entry, such as
            the row and the column of a grid. Colours (0 to 255) are numbers always.
        hidden: units of a hidden layer between the inputs and a token; 0 is a linear map.
        image_channels: of each convolution, all 3 x 3 with stride 2.
    """

    tokens: Tokens = "transition"
    inputs: tuple[Input, ...] = ("action", "feedback", "obs")
    integers: Integers = "numbers"
    hidden: int = 0
    image_channels: tuple[int, ...] = (16, 32, 32)

    def __post_init__(self):
        check_choices(self, tokens=Tokens, integers=Integers)
        allowed = get_args(Input)
        if not self.inputs or len(set(self.inputs)) < len(self.inputs) or not set(self.inputs) <= set(allowed):
            raise ValueError(f"inputs={self.inputs!r} must be one or more of {', '.join(allowed)}, each at most once")
        if self.tokens == "query" and ("obs" not in self.inputs or len(self.inputs) < 2):
            raise ValueError(f'inputs={self.inputs!r} must have "obs" and others with tokens="query"')
        if not isinstance(self.hidden, int) or self.hidden < 0:
            raise ValueError(f"hidden={self.hidden!r} must be 0 or a positive integer")
        if not self.image_channels or any(not isinstance(c, int) or c < 1 for c in self.image_channels):
            raise ValueError(f"image_channels={self.image_channels!r} must be one or more positive integers")

    @property
    def num_tokens(self) -> int:
        """Tokens of a step that are remembered; a model's `context_len` and positions count them."""
        return 1 if self.tokens == "query" else len(self.groups)

    @property
    def groups(self) -> tuple[tuple[Input, ...], ...]:
        """The inputs of each token."""
        if self.tokens == "transition":
            return (self.inputs,)
        if self.tokens == "modality":
            return tuple((name,) for name in self.inputs)
        return tuple(name for name in self.inputs if name != "obs"), ("obs",)


class Part(NamedTuple):
    """One array of a space and how it is read. Plain values, so that equal spaces make equal modules."""

    path: tuple[str | int, ...]  # where it is in the observation
    shape: tuple[int, ...]
    dtype: str
    num_values: int = 0  # each entry is one of so many integers, from `low` on; 0: it is a number
    low: float = 0.0  # numbers are read as (x - low) * scale
    scale: float = 1.0
    image: bool = False

    @property
    def size(self) -> int:
        """Features of its entries."""
        return math.prod(self.shape) * max(self.num_values, 1)

    @property
    def num_axes(self) -> int:
        """Axes of what `read` gives, but for the leading ones."""
        return len(self.shape) + bool(self.num_values)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """H, W and C, the last with the values of each channel side by side."""
        return *self.shape[:2], self.shape[2] * max(self.num_values, 1)

    def read(self, tree: Tree, hide: Array | None = None) -> Array:
        """Its entries, float32 [..., *shape], or one-hot [..., *shape, num_values]; zeros where `hide` [...]."""
        x = self.of(tree)
        if self.num_values:
            index = x.astype(jnp.int32) - int(self.low)
            return jax.nn.one_hot(_blank(index, hide, -1), self.num_values, dtype=jnp.float32)
        return _blank((x.astype(jnp.float32) - self.low) * self.scale, hide, 0.0)

    def of(self, tree: Tree) -> Array:
        """The array itself; a part of a Dict is an item of a mapping or a field of a struct."""
        for name in self.path:
            tree = tree[name] if isinstance(name, int) or isinstance(tree, Mapping) else getattr(tree, name)
        return tree


SCALAR = Part((), (), "float32")


def parts_of(space: Any, integers: Integers = "numbers", option: str = "obs_space") -> tuple[Part, ...]:
    """The arrays of a space, in order.

    Raises:
      ValueError: a space of another kind, or without the bounds that `integers` asks for; it names `option`.
    """
    if isinstance(space, spaces.Discrete):
        return (Part((), (), jnp.dtype(space.dtype).name, num_values=space.n),)
    if isinstance(space, spaces.Box):
        return (_box(space, integers, option),)
    if isinstance(space, spaces.Dict | spaces.Tuple):
        children = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        return tuple(
            part._replace(path=(name, *part.path))
            for name, child in children
            for part in parts_of(child, integers, f"{option}[{name!r}]")
        )
    if hasattr(space, "space"):  # n of one space, as `copies` and `preferences` of icrl_envs have them
        inner = parts_of(space.space, integers, option)
        return tuple(part._replace(shape=(space.n, *part.shape), image=False) for part in inner)
    raise ValueError(f"{option}={space!r} must be a Box, a Discrete, or a Dict or Tuple of these")


def _box(space: spaces.Box, integers: Integers, option: str) -> Part:
    shape, dtype = tuple(space.shape), jnp.dtype(space.dtype)
    part = Part((), shape, dtype.name, image=len(shape) == 3)
    if not jnp.issubdtype(dtype, jnp.integer):
        return part
    low, high = float(np.min(space.low)), float(np.max(space.high))
    as_table = integers == "tables" and (low, high) != (0, 255)
    if not (as_table or part.image):
        return part
    if not -math.inf < low < high < math.inf:
        raise ValueError(f'{option}={space!r} must have finite bounds, as an image and for integers="tables"')
    if as_table:
        return part._replace(num_values=round(high - low) + 1, low=low)
    return part._replace(low=low, scale=1 / (high - low))


class ConvNet(nnx.Module):
    """Images [..., H, W, C] to [..., D]: convolutions that halve them, then a linear map."""

    def __init__(self, shape: tuple[int, ...], channels: tuple[int, ...], width: int, key: Array):
        *keys, key_out = jax.random.split(key, len(channels) + 1)
        height, breadth, c_in = shape
        kernels, biases = [], []
        for key_layer, c_out in zip(keys, channels, strict=True):
            kernels.append(fan_in(key_layer, (3, 3, c_in, c_out), 9 * c_in))
            biases.append(nnx.Param(jnp.zeros(c_out)))
            height, breadth, c_in = -(-height // 2), -(-breadth // 2), c_out
        self.kernels, self.biases = nnx.List(kernels), nnx.List(biases)
        self.out = fan_in(key_out, (height * breadth * c_in, width), height * breadth * c_in)

    def __call__(self, x: Array) -> Array:
        lead = x.shape[:-3]
        x_BHWC = x.reshape(-1, *x.shape[-3:])
        for kernel, bias in zip(self.kernels, self.biases, strict=True):
            x_BHWC = lax.conv_general_dilated(
                x_BHWC, kernel[...], window_strides=(2, 2), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x_BHWC = jax.nn.gelu(x_BHWC + bias[...].reshape(1, 1, 1, -1))
        return linear(x_BHWC.reshape(*lead, self.out.shape[0]), self.out[...])


class Projection(nnx.Module):
    """Features [..., F] to a token [..., D]: x W, or gelu(x V) W."""

    def __init__(self, features: int, width: int, hidden: int, key: Array):
        sizes = (features, hidden, width) if hidden else (features, width)
        keys = keys_for(key, len(sizes) - 1)
        self.maps = nnx.List(fan_in(k, (m, n), m) for k, m, n in zip(keys, sizes, sizes[1:], strict=False))

    def __call__(self, x: Array) -> Array:
        *hidden, out = self.maps
        for w in hidden:
            x = jax.nn.gelu(linear(x, w[...]))
        return linear(x, out[...])


class Embedding(nnx.Module):
    """Time steps to tokens; `make_embedding` builds one. What came before a reset counts as zeros.

    A token is a projection of its inputs, joined. A constant 1 is joined to them where there is a hidden layer, as its
    bias, and where a step has several tokens, so that the kind of each shows also where the input is zero.
    """

    def __init__(
        self,
        obs_parts: tuple[Part, ...],
        action_parts: tuple[Part, ...],
        width: int,
        config: EmbeddingConfig,
        key: Array,
    ):
        self.obs_parts, self.action_parts = obs_parts, action_parts
        self.groups = config.groups
        self.has_constant = config.tokens != "transition" or config.hidden > 0
        self.num_tokens = config.num_tokens

        # Shared by all that is an observation: what a picture shows does not depend on when it was seen.
        is_seen = not {"obs", "origin", "next_obs"}.isdisjoint(config.inputs)
        images = [part for part in obs_parts if part.image and is_seen]
        *keys, key_tokens = keys_for(key, len(images) + 1)
        self.images = nnx.List(
            ConvNet(part.image_shape, config.image_channels, width, k) for part, k in zip(images, keys, strict=True)
        )
        self.tokens = nnx.List(
            Projection(self._size(group, width), width, config.hidden, k)
            for group, k in zip(self.groups, keys_for(key_tokens, len(self.groups)), strict=True)
        )

    def __call__(self, timestep: TimeStep) -> Array:
        """[B, ...] or [B, T, ...] to float32 [B, N, D] or [B, T, N, D]."""
        prev, reset = timestep.prev, timestep.reset
        values = {
            "obs": (timestep.obs, None),
            "origin": (jax.tree.map(lambda now, last: _blank(last, reset, now), timestep.obs, prev.obs), None),
            "action": (prev.action, reset),
            "ranked": (prev, reset),
            "feedback": (prev.feedback, reset),
            "done": (prev.terminated | prev.truncated, reset),
            "next_obs": (prev.next_obs, reset),
        }
        tokens = [
            token(self._features([(name, *values[name]) for name in group]))
            for group, token in zip(self.groups, self.tokens, strict=True)
        ]
        return jnp.stack(tokens, axis=-2)

    def token(self, **inputs: Tree) -> Array:
        """The token [..., D] of some inputs by themselves: of a candidate action, say, that a planner peeks at.

        Raises:
          ValueError: inputs that are not those of one token.
        """
        names = tuple(inputs)
        if names not in self.groups:
            groups = ", ".join(" and ".join(group) for group in self.groups)
            raise ValueError(f"inputs={names!r} must be those of one token: {groups}")
        return self.tokens[self.groups.index(names)](self._features([(*item, None) for item in inputs.items()]))

    def _features(self, inputs: list[tuple[str, Tree, Array | None]]) -> Array:
        """Inputs (name, value, where to hide it), joined to [..., F]."""
        features = []
        for name, value, hide in inputs:
            images = iter(self.images)
            for part in self._parts(name):
                x = _ranked(part, value, hide) if name == "ranked" else part.read(value, hide)
                lead = x.shape[: x.ndim - part.num_axes]
                if part.image:
                    features.append(next(images)(x.reshape(*lead, *part.image_shape)))
                else:
                    features.append(x.reshape(*lead, part.size))
        if self.has_constant:
            features.append(jnp.ones((*features[0].shape[:-1], 1)))
        return jnp.concatenate(features, axis=-1)

    def _size(self, group: tuple[str, ...], width: int) -> int:
        """F."""
        parts = [part for name in group for part in self._parts(name)]
        return sum(width if part.image else part.size for part in parts) + self.has_constant

    def _parts(self, name: str) -> tuple[Part, ...]:
        if name in ("feedback", "done"):
            return (SCALAR,)
        return self.action_parts if name in ("action", "ranked") else self.obs_parts


def make_embedding(obs_space: Any, action_space: Any, width: int, config: EmbeddingConfig, key: Array) -> Embedding:
    """An embedding for an environment's spaces, its tokens as wide as the model, D; weights of variance 1 / fan-in.

    Raises:
      ValueError: spaces that cannot be read, or actions that are no pairs where these are to be ranked.
    """
    is_pair = hasattr(action_space, "space") and action_space.n == 2
    if "ranked" in config.inputs and not is_pair:
        raise ValueError(f'action_space={action_space!r} must be of pairs, as `preferences` has them, for "ranked"')
    obs_parts = parts_of(obs_space, config.integers, "obs_space")
    action_parts = tuple(p._replace(image=False) for p in parts_of(action_space, config.integers, "action_space"))
    return Embedding(obs_parts, action_parts, width, config, key)


def interleave(x_BTND: Array, *marks_BT: Array) -> tuple[Array, ...]:
    """The tokens of all steps in one sequence [B, T * N, D], and marks like resets, which a step's first token alone
    has, [B, T * N]."""
    B, T, N, D = x_BTND.shape
    marks = (jnp.pad(mark[..., None], ((0, 0), (0, 0), (0, N - 1))).reshape(B, T * N) for mark in marks_BT)
    return x_BTND.reshape(B, T * N, D), *marks


def by_step(y_BSD: Array, num_tokens: int) -> Array:
    """Back to [B, T, N, D]; a model answers at the last token of a step, `[:, :, -1]`."""
    B, S, D = y_BSD.shape
    return y_BSD.reshape(B, S // num_tokens, num_tokens, D)


def keys_for(key: Array, num: int) -> list[Array]:
    """So many keys: the key itself where one is enough."""
    return [key] if num == 1 else list(jax.random.split(key, num))


def _ranked(part: Part, prev: Transition, hide: Array | None) -> Array:
    """A part of the pair of actions as `Part.read` gives it, the preferred one first."""
    pair = part.read(prev.action, hide)
    label = _blank(prev.feedback, hide, 0.0)
    first_wins = label.reshape(*label.shape, *[1] * part.num_axes)
    return first_wins * pair + (1 - first_wins) * jnp.flip(pair, axis=-part.num_axes)


def _blank(x: Array, hide: Array | None, blank: Any) -> Array:
    """`x` [..., *shape], with `blank` in its place where `hide` [...]."""
    return x if hide is None else jnp.where(hide.reshape(hide.shape + (1,) * (x.ndim - hide.ndim)), blank, x)

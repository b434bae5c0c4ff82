"""The head for what happens next: the reward and the observation, and what the rest of the episode pays."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct

from icrl_jax.core import Array, Tree
from icrl_jax.models.embeddings import Integers, Part, parts_of
from icrl_jax.models.heads.readout import Readout, check_hidden
from icrl_jax.models.heads.values import NumberHead, Scalar, TwoHot, ValueHeadConfig, make_value_head
from icrl_jax.models.layers import check_choices


@dataclass(frozen=True)
class DynamicsHeadConfig:
    """How the next reward and observation are predicted.

    Attributes:
        reward_values: all rewards there are, rising, to tell them apart as classes; empty: by regression.
        integers: what a bounded Box of integers is: "tables", each entry a class, or "numbers", by regression.
        return_to_go: also predicts what the episode pays from this action on, by classification into bins.
        hidden: units of the hidden layers between the model and its answers.
    """

    reward_values: tuple[float, ...] = ()
    integers: Integers = "tables"
    hidden: tuple[int, ...] = ()
    return_to_go: bool = False

    def __post_init__(self):
        check_choices(self, integers=Integers)
        check_hidden(self.hidden)
        values = self.reward_values
        if values and (len(values) < 2 or any(a >= b for a, b in zip(values, values[1:], strict=False))):
            raise ValueError(f"reward_values={values!r} must be empty, or two or more rising numbers")


@struct.dataclass
class Dynamics:
    """The next reward and observation.

    References:
        Jaehyeon Son et al., Distilling Reinforcement Learning Algorithms for In-Context Model-Based Planning, 2025,
        https://arxiv.org/abs/2502.19009
    """

    reward: Scalar | TwoHot
    obs: tuple[Array, ...]  # of each part of an observation: means [..., *shape], or logits [..., *shape, values]
    parts: tuple[Part, ...] = struct.field(pytree_node=False)
    ret: Scalar | TwoHot | None = (
        None  # the sum of this reward and of all that follow in the episode, where it is predicted
    )

    def obs_loss(self, next_obs: Tree) -> Array:
        """[...]: cross-entropy, or half the squared error where it is numbers, summed over all entries."""
        losses = []
        for part, x in zip(self.parts, self.obs, strict=True):
            target = part.read(next_obs)
            each = -target * jax.nn.log_softmax(x) if part.num_values else 0.5 * jnp.square(x - target)
            losses.append(each.sum(axis=tuple(range(-part.num_axes, 0))))
        return sum(losses[1:], losses[0])

    def next_obs(self) -> Tree:
        """The likeliest, as the environment would give it: in its dtype, a Dict as a dict, a Tuple as a tuple."""
        return _nest([(part.path, _likeliest(part, x)) for part, x in zip(self.parts, self.obs, strict=True)])


class DynamicsHead(nnx.Module):
    """Reads the next reward and observation, and maybe the return, off what a model says after an action."""

    def __init__(self, parts: tuple[Part, ...], width: int, config: DynamicsHeadConfig, key: Array):
        self.parts = parts
        key_reward, *keys = jax.random.split(key, len(parts) + 1)
        self.reward = NumberHead(config.reward_values, width, config.hidden, key_reward)
        shapes = [part.shape + ((part.num_values,) if part.num_values else ()) for part in parts]
        value = ValueHeadConfig("two_hot", hidden=config.hidden)
        self.ret = make_value_head(width, value, jax.random.fold_in(key, 1)) if config.return_to_go else None
        self.obs = nnx.List(Readout(width, s, config.hidden, 0.0, k) for s, k in zip(shapes, keys, strict=True))

    def __call__(self, y: Array) -> Dynamics:
        ret = None if self.ret is None else self.ret(y)
        return Dynamics(self.reward(y), tuple(readout(y) for readout in self.obs), self.parts, ret)


def make_dynamics_head(obs_space: Any, width: int, config: DynamicsHeadConfig, key: Array) -> DynamicsHead:
    """The head for what an observation space holds.

    Raises:
      ValueError: a space that cannot be predicted.
    """
    parts = parts_of(obs_space, config.integers)
    if any(part.image for part in parts):
        raise ValueError(f"obs_space={obs_space!r} must hold no images, which are not predicted")
    return DynamicsHead(parts, width, config, key)


def _likeliest(part: Part, x: Array) -> Array:
    dtype = jnp.dtype(part.dtype)
    if part.num_values:
        return (jnp.argmax(x, axis=-1) + int(part.low)).astype(dtype)
    return x.astype(dtype) if jnp.issubdtype(dtype, jnp.floating) else jnp.round(x).astype(dtype)


def _nest(leaves: list[tuple[tuple[str | int, ...], Array]]) -> Tree:
    """A tree of dicts and tuples from its leaves and their paths."""
    if not leaves[0][0]:
        return leaves[0][1]
    names = dict.fromkeys(path[0] for path, _ in leaves)
    tree = {name: _nest([(path[1:], x) for path, x in leaves if path[0] == name]) for name in names}
    return tuple(tree.values()) if isinstance(leaves[0][0][0], int) else tree

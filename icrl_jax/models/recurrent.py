# ruff: noqa: N803, N806
"""What every model has in common whose memory does not grow: branches are copies, and a peek is a step not kept."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from icrl_jax.core import Tree
from icrl_jax.models.layers import pick


class Recurrent(nnx.Module):
    """A sequence model whose carry holds rows [B, ...] and nothing else; a subclass gives `init_carry`, `step` and
    `__call__`."""

    def peek(self, carry: Tree, x_BND: Array) -> Array:
        """The output [B, N, D] for each of N candidates, as if it alone came next; the carry stays as it is."""
        B, N, D = x_BND.shape
        copies = self.branch(carry, N, depth=1)
        y = self.step(copies, x_BND.reshape(B * N, D), jnp.zeros(B * N, bool))[1]  # type: ignore[attr-defined]
        return y.reshape(B, N, -1)

    def branch(self, carry: Tree, n: int, depth: int) -> Tree:
        """n branches per row, row-major [B * n, ...]; a memory of fixed size is copied, whatever their `depth`."""
        return jax.tree.map(lambda x: jnp.repeat(x, n, axis=0), carry)

    def prune(self, carry: Tree, parent_BN: Array) -> Tree:
        """Branches of which the i-th of row b goes on from what was its branch parent[b, i]."""
        return pick(carry, parent_BN)

"""Rows of a batch spread over whatever devices there are: real ones, or one virtual CPU device per core."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from icrl_jax.core import Tree

ROWS = "rows"


def rows_mesh() -> Mesh:
    """A mesh over all devices; its only axis is `ROWS`."""
    return Mesh(jax.devices(), (ROWS,), axis_types=(AxisType.Auto,))


def check_rows(option: str, rows: int) -> None:
    """Refuses a batch that the devices cannot share evenly.

    Raises:
      ValueError: names the option.
    """
    if rows % (devices := jax.device_count()):
        raise ValueError(f"{option}={rows!r}: must be a multiple of the {devices} devices")


def replicate(tree: Tree) -> Tree:
    """Puts a copy of every array on every device."""
    if jax.device_count() == 1:
        return jax.device_put(tree)  # without a mesh: programs compiled for plain arrays take them too
    return jax.device_put(tree, NamedSharding(rows_mesh(), PartitionSpec()))


def rows_sharding(axis: int) -> NamedSharding:
    """Spreads the rows of arrays, which are on this axis, over the devices."""
    return NamedSharding(rows_mesh(), PartitionSpec(*[None] * axis, ROWS))


def over_rows(function: Callable[[Tree, Tree], Tree]) -> Callable[[Tree, Tree], Tree]:
    """Runs `function(shared, rows)` with axis 0 of every array in `rows`, and of the result, split over the devices."""
    if jax.device_count() == 1:
        return function
    specs = PartitionSpec(), PartitionSpec(ROWS)
    return jax.shard_map(function, mesh=rows_mesh(), in_specs=specs, out_specs=PartitionSpec(ROWS), check_vma=False)


def mean_over_rows(function: Callable[[Tree, Tree], Tree]) -> Callable[[Tree, Tree], Tree]:
    """Runs `function(shared, rows)` on each device's share of the rows and averages what the devices return."""
    if jax.device_count() == 1:
        return function

    def averaged(shared, rows):
        return jax.lax.pmean(function(shared, rows), ROWS)

    specs = PartitionSpec(), PartitionSpec(ROWS)
    return jax.shard_map(averaged, mesh=rows_mesh(), in_specs=specs, out_specs=PartitionSpec(), check_vma=False)


def in_groups(function: Callable[[Tree, Tree], Tree], size: int) -> Callable[[Tree, Tree], Tree]:
    """Runs `function(shared, rows)` on `size` rows after another; `size` divides their number."""

    def grouped(shared, rows):
        if jax.tree.leaves(rows)[0].shape[0] == size:
            return function(shared, rows)
        groups = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), rows)
        results = jax.lax.map(lambda group: function(shared, group), groups)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results)

    return grouped


def one_after_another(function: Callable) -> Callable:
    """Under vmap, calls `function` for one row after another on CPU, and for all at once elsewhere.

    For loops that read and change one row's weights over and over: those then stay in a core's cache.
    """
    return jax.custom_batching.sequential_vmap(function) if jax.default_backend() == "cpu" else function


def pad_rows(tree: Tree, group: int = 1) -> Tree:
    """Repeats the first rows at the end until every device has as many, in whole groups."""
    multiple = jax.device_count() * group

    def pad(x):
        return jnp.concatenate([x, x[jnp.arange(-x.shape[0] % multiple) % x.shape[0]]])

    return jax.tree.map(pad, tree)

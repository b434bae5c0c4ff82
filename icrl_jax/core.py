"""The eight types every part of the library is written against.

Everything that acts is an `Agent`; everything that is trained is a `Method`.
Axis letters, here and everywhere: B rows (one task each), T time in context, D model width, A actions, S seeds.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

Array = jax.Array
Tree = Any  # any pytree of arrays


class Transition(NamedTuple):
    """One completed step of an environment, as a history keeps it."""

    obs: Tree  # what was seen before acting
    action: Tree  # int32 [] when discrete, float32 [A] when continuous
    feedback: Array  # float32 []: a reward, or a preference label where rewards are hidden
    next_obs: Tree  # the true observation after acting, also where an episode ended
    terminated: Array  # bool []: the episode is over; nothing follows, so bootstrap with zero
    truncated: Array  # bool []: the episode was cut short by a limit; bootstrap from `next_obs`


class TimeStep(NamedTuple):
    """What an agent is given to act on."""

    obs: Tree  # the current observation
    prev: Transition  # the last completed transition; zeros at the start of a sequence
    reset: Array  # bool []: this input starts a new sequence, so forget first

    @property
    def begins_episode(self) -> Array:
        """Whether an episode starts here, bool []."""
        return self.reset | self.prev.terminated | self.prev.truncated


class Agent(NamedTuple):
    """Something that acts in one task; `jax.vmap` makes it many.

    Both fields are `jax.tree_util.Partial`s over module-level functions, so an agent is a pytree whose leaves are its
    parameters: `jit` takes it as an argument and stacked agents vmap.
    Law: an agent learns only from `timestep.prev`, never from the action it returned, so that any logged history can
    be replayed into it.
    """

    init: Callable[[Array], Tree]  # key -> carry
    act: Callable[[Tree, Array, TimeStep], tuple[Tree, Tree, dict]]  # (carry, key, timestep) -> (carry, action, info)


class TrainState(NamedTuple):
    """All that training carries from one update to the next."""

    params: Tree  # what is learned
    opt_state: Tree  # the optimiser's memory
    extra: Tree  # what else a method carries: environment states, hyper-parameters, data order
    data: Tree  # large constant arrays, one copy for all seeds; rebuilt, not saved, on resume
    step: Array  # int32 []: updates done


class Method(NamedTuple):
    """Something that learns: the only plug-in point for training."""

    init: Callable[..., TrainState]  # (key, hparams=None) -> TrainState; hparams is a dict of traced float32 []
    update: Callable[..., tuple[TrainState, dict]]  # (train_state, key) -> (train_state, log); with a feed: (.., fed)
    agent: Callable[..., Agent]  # (params, context=None, online=True, greedy=None) -> Agent
    feed: "Feed | None" = None  # where the data are not on the device: what the host reads for each update


class Feed(NamedTuple):
    """Data that the host reads for the updates of a method, while the device computes the ones before."""

    check: Callable[[], None]  # refuses what does not fit before anything compiles; makes nothing
    open: Callable[..., "Reader"]  # (between=None) -> Reader; may have to make the data, `between(done, all)` in pauses


class Reader(NamedTuple):
    """Data that are open; reading the same keys gives the same again."""

    read: Callable[[Array], Tree]  # keys [U] of updates, on the host -> what each learns from, NumPy [U, B, ...]
    digest: str  # of all the data


class Learner(NamedTuple):
    """A source algorithm: it learns one task by acting in it, and hands out what it did. `jax.vmap` over tasks.

    Both fields are `partial`s, so that a learner is a pytree; T and N are fixed by how the learner was built.
    """

    init: Callable[[Array, Tree], Tree]  # (key, env_params) -> state
    learn: Callable[[Tree, Array], tuple[Tree, Any]]  # (state, key) -> (state, Record [T, N, ...])


SEED_AXES = TrainState(params=0, opt_state=0, extra=0, data=None, step=None)  # type: ignore[arg-type]
"""`vmap` axes of a `TrainState` whose seeds are stacked on axis 0 and share their data and their count of updates."""


def partial(function: Callable, /, *args: Tree, **kwargs: Tree) -> Partial:
    """Binds arguments to a module-level `function`; the result is a pytree whose leaves are those arguments."""
    return Partial(function, *args, **kwargs)


def select(condition: Array, on_true: Tree, on_false: Tree) -> Tree:
    """Chooses between two equal-shaped pytrees by one scalar bool."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), on_true, on_false)

"""XLand-MiniGrid as a task family: the ruleset is the task."""

from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import EnvParams, EnvState

from icrl_envs.foreign.common import Foreign, SampleTask, clipped, like, optional, strong
from icrl_envs.foreign.rulesets import Rulesets, make_rulesets
from icrl_envs.foreign_code import usual_promotion
from icrl_envs.task_family import Split, is_int, is_name, is_number, require, split_key

PIXELS = 16


@struct.dataclass
class XLandParams(EnvParams):
    """One task: goal, production rules and objects; None in the environments named MiniGrid, which have one task."""

    ruleset: Any = None  # xminigrid.types.RuleSet
    max_steps_in_episode: Any = 1


@struct.dataclass
class XLandState(EnvState):
    """XLand's state, and the time."""

    world: Any  # xminigrid.types.State, its key left out: nothing reads it


class FromXLand(Foreign):
    """See `from_xland`.

    Observation uint8 [V, V, 2], tile and colour of what is in view; actions forward, clockwise, counterclockwise, pick
    up, put down, toggle. Reaching the goal pays 1 - 0.9 * steps / limit and terminates. Every reset draws the places.
    """

    def __init__(self, env: Any, params: Any, name: str, rulesets: Any, splits: dict[str, np.ndarray], sample_task):
        self.env, self.xland_params, self.draw, self._name = env, params, sample_task, name
        self.rulesets, self.splits = rulesets, splits

    @property
    def name(self) -> str:
        """The id."""
        return self._name

    @property
    def default_params(self) -> XLandParams:
        """The first training task."""
        first = None if self.rulesets is None else jax.tree.map(lambda x: x[self.splits["train"][0]], self.rulesets)
        return XLandParams(ruleset=first, max_steps_in_episode=np.int32(self.xland_params.max_steps))

    def sample_task(self, key: jax.Array, split: Split = "train") -> XLandParams:
        """Draws one ruleset of a split."""
        if self.draw is not None or self.rulesets is None:
            return super().sample_task(key, split)
        members = jnp.asarray(self.splits[_known(split)])
        return self._params(members[jax.random.randint(split_key(key, split), (), 0, len(members))])

    def _params(self, index):
        ruleset = jax.tree.map(lambda x: jnp.asarray(x)[index], self.rulesets)
        return jax.tree.map(jnp.asarray, self.default_params).replace(ruleset=ruleset)

    @property
    def tasks(self) -> Any:
        """`split -> tasks`, all of them stacked; None where the user draws them."""
        if self.draw is not None or self.rulesets is None:
            return super().tasks
        return lambda split: jax.vmap(self._params)(jnp.asarray(self.splits[_known(split)]))

    def step_env(self, key, state, action, params):
        """One action; those outside the space are clipped."""
        from xminigrid.types import TimeStep

        action = clipped(self.action_space(), action)
        with usual_promotion():
            before = TimeStep(state.world, None, None, None, None)  # type: ignore[arg-type]  # only the state is read
            after = self.env.step(self._with(params), before, action)
            world = like(state.world, after.state)
            reward = jnp.asarray(after.reward, jnp.float32)
        return after.observation, XLandState(time=state.time + 1, world=world), reward, after.discount == 0, {}

    def reset_env(self, key, params):
        """Starts an episode: objects and agent somewhere else."""
        with usual_promotion():
            first = self.env.reset(self._with(params), key)
        world = first.state.replace(key=None)
        return first.observation, XLandState(time=jnp.zeros((), jnp.int32), world=strong(world))  # type: ignore[arg-type]

    def _with(self, params):
        own = self.xland_params.replace(max_steps=params.max_steps_in_episode)
        return own if params.ruleset is None else own.replace(ruleset=params.ruleset)

    @property
    def num_actions(self) -> int:
        """Six."""
        return int(self.env.num_actions(self.xland_params))

    def action_space(self, params=None) -> spaces.Discrete:
        """Forward, clockwise, counterclockwise, pick up, put down, toggle."""
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params=None) -> spaces.Box:
        """Tiles (13) and colours (12) as numbers."""
        return spaces.Box(0, 12, self.env.observation_shape(self.xland_params), jnp.uint8)

    def render(self, state: XLandState, params: XLandParams) -> jax.Array:
        """The whole grid in XLand's own pictures; what the agent carries is shown in the upper left corner."""
        tiles, agents = self._pictures
        grid, agent = state.world.grid, state.world.agent
        grid = grid.at[0, 0].set(jnp.where(agent.pocket[0] == 0, grid[0, 0], agent.pocket))
        image = jnp.asarray(tiles)[grid[..., 0], grid[..., 1]]
        image = image.at[agent.position[0], agent.position[1]].set(jnp.asarray(agents)[agent.direction])
        height, width = grid.shape[:2]
        return image.swapaxes(1, 2).reshape(height * PIXELS, width * PIXELS, 3)

    @cached_property
    def _pictures(self):
        """Of every tile in every colour, uint8 [13, 12, P, P, 3], and of the agent on the floor, uint8 [4, P, P, 3]."""
        from xminigrid.core.constants import NUM_COLORS, NUM_TILES, Colors, Tiles
        from xminigrid.rendering.rgb_render import render_tile

        def pictures(tiles, **kwargs):  # finer subdivision takes seconds
            return np.array([render_tile(tile, tile_size=PIXELS, subdivs=1, **kwargs) for tile in tiles], np.uint8)

        tiles = np.stack([pictures((tile, colour) for colour in range(NUM_COLORS)) for tile in range(NUM_TILES)])
        floor = (Tiles.FLOOR, Colors.BLACK)
        return tiles, np.concatenate([pictures([floor], agent_direction=turn) for turn in range(4)])


def _known(split: Split) -> Split:
    split_key(jax.random.key(0), split)  # refuses what is none
    return split


def from_xland(
    env: str = "XLand-MiniGrid-R1-9x9",
    rulesets: Any = None,
    benchmark: str | None = None,
    num_rulesets: int | None = None,
    sample_task: SampleTask | None = None,
    split_seed: int = 0,
    train_fraction: float = 0.8,
    **kwargs: Any,
) -> FromXLand:
    """XLand-MiniGrid as a task family (extra `envs`).

    Its tasks are rulesets: those given, those of a published benchmark, or by default 1,000 of `make_rulesets`. A
    seeded permutation splits them. The environments named "MiniGrid-..." have one task each.

    Args:
      env: a registered id.
      rulesets: `make_rulesets(...)`, or a stacked `xminigrid.types.RuleSet`.
      benchmark: "trivial-21k", "small-1m", ...; XLand-MiniGrid downloads it on first use.
      num_rulesets: how many of them to keep, drawn by `split_seed`; all by default. They all become constants of the
        compiled program, so keep some thousands of a million.
      sample_task: `(key, split) -> {"ruleset": ...}`, drawn by the user instead.
      split_seed: of the permutation.
      train_fraction: share of the training split, in (0, 1).
      **kwargs: XLand-MiniGrid's own parameters, `view_size=5`, `max_steps=243`, ...
    Raises:
      ImportError: XLand-MiniGrid is not installed.
      ValueError: unknown id or benchmark, or an argument outside its range.
    """
    xminigrid = optional("xminigrid", "envs")
    known = xminigrid.registered_environments()
    require(is_name(env, known), "env", env, f"one of {', '.join(known)}")
    xland, params = xminigrid.make(env, **kwargs)
    if not hasattr(params, "ruleset"):
        given = {"rulesets": rulesets, "benchmark": benchmark, "num_rulesets": num_rulesets, "sample_task": sample_task}
        for argument, value in given.items():
            require(value is None, argument, value, f"None, because {env} has one task")
        return FromXLand(xland, params, env, None, {}, None)
    require(rulesets is None or benchmark is None, "benchmark", benchmark, "None where rulesets are given")
    fits = is_number(train_fraction) and 0 < train_fraction < 1
    require(fits, "train_fraction", train_fraction, "a number in (0, 1)")
    if benchmark is not None:
        known = xminigrid.registered_benchmarks()
        require(is_name(benchmark, known), "benchmark", benchmark, f"one of {', '.join(known)}")
        loaded = xminigrid.load_benchmark(benchmark)
        rulesets = Rulesets(loaded.goals, loaded.rules, loaded.init_tiles)
    elif rulesets is None:
        rulesets = make_rulesets()
    return FromXLand(xland, params, env, *_split(rulesets, num_rulesets, split_seed, train_fraction), sample_task)


def _split(rulesets, num_rulesets, split_seed, train_fraction):
    """What is kept of the rulesets as XLand's own, and the indices of each split."""
    from xminigrid.types import RuleSet

    total = len(rulesets.goal)
    allowed = f"an integer in 2 ..= {total}, the number of rulesets"
    require(num_rulesets is None or is_int(num_rulesets, 2, total), "num_rulesets", num_rulesets, allowed)
    require(total >= 2, "rulesets", f"{total} of them", "at least 2, one for each split")
    order = np.random.default_rng(split_seed).permutation(total)[:num_rulesets]
    num_train = min(max(round(train_fraction * len(order)), 1), len(order) - 1)
    kept: Any = [np.asarray(x)[order] for x in (rulesets.goal, rulesets.rules, rulesets.init_tiles)]
    indices = np.arange(len(order))
    return RuleSet(*kept), {"train": indices[:num_train], "test": indices[num_train:], "all": indices}

"""Environment steps per second: every family, and some of them against the same or the like elsewhere."""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import gymnax
import jax
import jax.numpy as jnp
import numpy as np

import icrl_envs
from benchmarks import numpy_loop
from benchmarks.measure import Row, faster, in_turn
from icrl_envs.control.brax_task import BraxTask
from icrl_envs.foreign_code import usual_promotion
from icrl_jax.parallel import over_rows

NO_XLAND = "XLand-MiniGrid is not installed; for the comparison: pip install 'icrl-jax[envs]'"


COUNTERPARTS = {  # the same or the like in gymnax; its bandits have two arms
    "memory_chain": "MemoryChain-bsuite",
    "stateless_cartpole": "CartPole-v1",
    "stateless_pendulum": "Pendulum-v1",
    "point_robot": "PointRobot-misc",
    "gaussian_bandit": "GaussianBandit-misc",
    "bernoulli_bandit": "BernoulliBandit-misc",
}


class Size(NamedTuple):
    """What is timed in one call."""

    num_tasks: int = 4096
    num_steps: int = 100
    heavy_steps: int = 20  # where a step takes microseconds
    body_steps: int = 5  # where Brax simulates a body
    numpy_tasks: int = 32
    growth: Sequence[int] = (64, 512, 4096, 32_768)
    families: Sequence[str] = tuple(icrl_envs.FAMILIES)
    dark_rooms: Sequence[str] = ("dark_room", "dark_room_hard", "dark_room_permuted", "dark_key_to_door")
    counterparts: Sequence[str] = tuple(COUNTERPARTS)
    xland: bool = True
    rounds: int = 5


HEAVY = ("house_navigation",)  # beside XLand-MiniGrid and all that Brax simulates
QUICK = Size(8, 5, 2, 2, 3, (4, 8), ("gaussian_bandit",), ("dark_room_hard",), ("point_robot",), xland=False, rounds=1)


class World(NamedTuple):
    """An environment with its auto-reset, as pure functions."""

    sample_task: Callable[[jax.Array], Any]  # key -> task
    sample_action: Callable[[jax.Array, Any], Any]  # (key, task) -> action
    reset: Callable[[jax.Array, Any], Any]  # (key, task) -> state
    step: Callable[[jax.Array, Any, Any, Any], tuple[Any, Any]]  # (key, state, action, task) -> (state, what is seen)


def rows(quick: bool = False) -> Iterator[Row]:
    """The comparisons, the cost of a step as the batch grows, and a row per family."""
    size = QUICK if quick else Size()
    yield from dark_room_rows(size)
    yield numpy_row(size)
    for name in size.counterparts:
        yield versus_gymnax(name, COUNTERPARTS[name], size)
    if size.xland:
        yield xland_row(size)
    yield growth_row(size)
    for name in size.families:
        yield family_row(name, size)


def dark_room_rows(size: Size) -> Iterator[Row]:
    """Each dark room by its slowest preset against gymnax's cart-pole."""
    worlds = {"gymnax": gymnax_world("CartPole-v1")}
    for name in size.dark_rooms:
        for preset in icrl_envs.family(name).presets:
            worlds[f'{name} "{preset}"'] = family_world(icrl_envs.make(name, preset))
    plays = {name: Play(world, size.num_tasks, size.num_steps) for name, world in worlds.items()}
    note = plays["gymnax"].size
    rates = steps_per_second(plays, size.rounds)
    for name in size.dark_rooms:
        of_family = {what: rate for what, rate in rates.items() if what.split()[0] == name}
        slowest = min(of_family, key=lambda what: of_family[what])
        what = f"{slowest}, its slowest preset, against gymnax's CartPole-v1"
        yield compared(what, rates[slowest], rates["gymnax"], note, 1)


def numpy_row(size: Size) -> Row:
    """The plain dark room against an object in NumPy."""
    ours = Play(family_world(make("dark_room")), size.num_tasks, size.num_steps)
    plays: dict[str, Any] = {"ours": ours, "numpy": NumpyPlay(size.numpy_tasks, size.num_steps)}
    rates = steps_per_second(plays, size.rounds)
    note = f"{ours.size}, a NumPy loop over {size.numpy_tasks}"
    return compared("dark_room against a NumPy loop", rates["ours"], rates["numpy"], note)


def versus_gymnax(name: str, gymnax_id: str, size: Size) -> Row:
    """A family against what gymnax has of it."""
    env = make(name, num_arms=2) if name.endswith("bandit") else make(name)
    worlds = {"ours": family_world(env), "theirs": gymnax_world(gymnax_id)}
    plays = {side: Play(world, size.num_tasks, size.num_steps) for side, world in worlds.items()}
    rates = steps_per_second(plays, size.rounds)
    return compared(f"{name} against gymnax's {gymnax_id}", rates["ours"], rates["theirs"], plays["ours"].size)


def xland_row(size: Size) -> Row:
    """The adapter against the wrapper that it stands for."""
    if not importlib.util.find_spec("xminigrid"):
        return Row("steps, from_xland", "not measured", note=NO_XLAND)
    worlds = dict(zip(("ours", "theirs"), xland_worlds(), strict=True))
    plays = {side: Play(world, size.num_tasks, size.heavy_steps) for side, world in worlds.items()}
    rates = steps_per_second(plays, size.rounds)
    return compared("from_xland against its GymAutoResetWrapper", rates["ours"], rates["theirs"], plays["ours"].size)


def growth_row(size: Size) -> Row:
    """What a step costs in batches of several sizes, in calls of as many steps."""
    total, world = size.num_tasks * size.num_steps, family_world(make("dark_room"))
    plays = {str(n): Play(world, n, max(1, total // n)) for n in size.growth}
    rates = steps_per_second(plays, size.rounds)
    note = ", ".join(f"{nanoseconds(rate)} a step with {int(n):,} tasks" for n, rate in rates.items())
    return Row(
        "cost of a step in dark_room as the batch grows", f"{nanoseconds(max(rates.values()))} at best", note=note
    )


def family_row(name: str, size: Size) -> Row:
    """Random play in one family."""
    env = make(name)
    is_body = isinstance(env, BraxTask)
    num_steps = size.body_steps if is_body else size.heavy_steps if name in HEAVY else size.num_steps
    rate = steps_per_second({name: Play(family_world(env), size.num_tasks, num_steps)}, size.rounds)[name]
    return Row(f"steps, {name}", f"{rate:,.0f} /s", note=f"{nanoseconds(rate)} a step")


def compared(what: str, ours: float, theirs: float, note: str, times: float | None = None) -> Row:
    """A row from two rates."""
    note = f"{nanoseconds(ours)} a step against {nanoseconds(theirs)}; {note}"
    return faster(f"steps, {what}", f"{ours:,.0f} /s", f"{theirs:,.0f} /s", ours / theirs, times, note)


class Play:
    """Random play in many tasks at once, auto-resets included; each call goes on where the last one ended.

    Actions and the keys of the steps lie ready, so that only steps are timed. What is seen is written to memory at
    every step, as it is when an agent reads it.
    """

    def __init__(self, world: World, num_tasks: int, num_steps: int):
        self.steps, self.size = num_tasks * num_steps, f"{num_tasks:,} tasks x {num_steps} steps at once"
        begin, play = jax.vmap(partial(_begin, world, num_steps)), jax.vmap(partial(_play, world))
        keys = jax.random.split(jax.random.key(0), num_tasks)
        self.state, self.rows = jax.jit(over_rows(lambda _, keys: begin(keys)))((), keys)
        self.play = jax.jit(over_rows(lambda _, rows: play(*rows)))

    def __call__(self) -> Any:
        """What is seen last."""
        self.state, seen = jax.block_until_ready(self.play((), (self.state, self.rows)))
        return seen


class Rows(NamedTuple):
    """What is drawn beforehand for each task."""

    task: Any
    keys: jax.Array  # [T]
    actions: Any  # [T, ...]


def _begin(world, num_steps, key):
    key_task, key_reset, key_act, key_step = jax.random.split(key, 4)
    task = world.sample_task(key_task)
    actions = jax.vmap(world.sample_action, in_axes=(0, None))(jax.random.split(key_act, num_steps), task)
    return world.reset(key_reset, task), Rows(task, jax.random.split(key_step, num_steps), actions)


def _play(world, state, rows):
    def step(carry, inputs):
        (state, _), (key, action) = carry, inputs
        return world.step(key, state, action, rows.task), None

    _, nothing = jax.eval_shape(world.step, rows.keys[0], state, jax.tree.map(lambda x: x[0], rows.actions), rows.task)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), nothing)
    return jax.lax.scan(step, (state, nothing), (rows.keys, rows.actions))[0]


def steps_per_second(plays: Mapping[str, Any], rounds: int) -> dict[str, float]:
    """Each side's, in turn; a side is a call that makes `steps` steps."""
    seconds = in_turn(plays, rounds)
    return {name: play.steps / seconds[name] for name, play in plays.items()}


def nanoseconds(rate: float) -> str:
    """What one of so many per second takes, for the table."""
    return f"{float(f'{1e9 / rate:.3g}'):,g} ns"


def make(name: str, **arguments: Any) -> icrl_envs.TaskFamily:
    """A family as it is by default or, if it must be told, by the conventions of DPT or of its first paper."""
    presets, required = icrl_envs.family(name).presets, icrl_envs.family(name).preset_required
    preset = "dpt" if required and "dpt" in presets else next(iter(presets)) if required else None
    return icrl_envs.make(name, preset, **arguments)


def family_world(env: icrl_envs.TaskFamily) -> World:
    """A task family, in training tasks."""

    def step(key, state, action, task):
        obs, state, *outcome, _ = env.step(key, state, action, task)
        return state, (obs, *outcome)

    return World(env.sample_task, _sample_action(env), lambda key, task: env.reset(key, task)[1], step)


def gymnax_world(name: str) -> World:
    """gymnax's own, in its only task, whose numbers are constants of the program."""
    env, task = gymnax.make(name)

    def reset(key, _):
        with usual_promotion():
            return env.reset(key, task)[1]

    def step(key, state, action, _):
        with usual_promotion():
            obs, state, *outcome, _ = env.step(key, state, action, task)
            return state, (obs, *outcome)

    return World(lambda key: (), lambda key, _: env.action_space(task).sample(key), reset, step)


def xland_worlds() -> tuple[World, World]:
    """XLand-MiniGrid through our adapter and as its users step it, in the same tasks."""
    from xminigrid.wrappers import GymAutoResetWrapper

    ours = icrl_envs.from_xland()
    env = GymAutoResetWrapper(ours.env)

    def params(task):
        return ours.xland_params.replace(ruleset=task.ruleset)

    def reset(key, task):
        with usual_promotion():
            return env.reset(params(task), key)

    def step(key, timestep, action, task):  # the key of an auto-reset is in the state
        with usual_promotion():
            timestep = env.step(params(task), timestep, action)
        return timestep, (timestep.observation, timestep.reward, timestep.step_type, timestep.discount)

    return family_world(ours), World(ours.sample_task, _sample_action(ours), reset, step)


def _sample_action(env):
    return lambda key, task: env.action_space(task).sample(key)


class NumpyPlay:
    """Random play in dark rooms one after the other, each an object in NumPy."""

    def __init__(self, num_tasks: int, num_steps: int):
        env, rng = make("dark_room"), np.random.default_rng(0)
        goals = rng.integers(env.size, size=(num_tasks, 2))
        self.steps = num_tasks * num_steps
        self.rooms = [numpy_loop.DarkRoom(goal, env.size, env.horizon) for goal in goals]
        self.actions = rng.integers(env.num_actions, size=(num_tasks, num_steps))

    def __call__(self) -> None:
        """As many steps in each."""
        for room, actions in zip(self.rooms, self.actions, strict=True):
            for action in actions:
                if room.step(action)[2]:
                    room.reset()

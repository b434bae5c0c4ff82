"""Planning from a cache that all plans share, against reading the whole context again for each of them."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

import icrl_envs
from benchmarks.measure import Row, faster, in_turn, milliseconds
from icrl_jax.agents import PlanConfig, planning
from icrl_jax.agents.planning import Remembered
from icrl_jax.core import Agent, Array, TimeStep, Transition, Tree
from icrl_jax.models.embeddings import EmbeddingConfig
from icrl_jax.models.heads import DynamicsHeadConfig
from icrl_jax.models.layers import pick
from icrl_jax.models.policy import Policy
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.models.world import World

EPISODE_STEPS = 50


class Size(NamedTuple):
    """What is timed: the DICP paper's model, context and search, in the dark room and with a key and a door."""

    width: int = 32
    num_layers: int = 4
    num_tasks: int = 4
    searches: tuple[tuple[int, int, int], ...] = ((80, 10, 8), (200, 10, 16))  # context, plans, depth
    rounds: int = 3


QUICK = Size(width=8, num_layers=2, num_tasks=3, searches=((11, 3, 2),), rounds=1)


def rows(quick: bool = False) -> Iterator[Row]:
    """One row for each search."""
    size = QUICK if quick else Size()
    for context, beam, depth in size.searches:
        config = PlanConfig(beam, depth, plan_order="index")
        calls = sides(size, context, config)
        seconds = in_turn({name: lambda f=f: jax.block_until_ready(f()) for name, f in calls.items()}, size.rounds)
        ours, theirs = (x / size.num_tasks for x in seconds.values())
        note = f"an act in one of {size.num_tasks} tasks at once, width {size.width}, {size.num_layers} layers"
        what = f"planning, {beam} plans of {depth} steps, context {context}"
        yield faster(what, milliseconds(ours), milliseconds(theirs), theirs / ours, 10, note)


def sides(size: Size, context: int, config: PlanConfig) -> dict[str, Callable[[], Any]]:
    """An act after a context that leaves room for what is imagined, so that no window slides: actions and promises."""
    env = icrl_envs.make("dark_room", "dicp")
    spaces = env.observation_space(env.default_params), env.action_space(env.default_params)
    key = jax.random.key(0)
    embedding = EmbeddingConfig(inputs=("action", "feedback", "obs"), integers="tables")
    model = TransformerConfig(size.width, size.num_layers, 4, context_len=context, positions="rotary", dtype="float32")
    world = World(Policy(model, *spaces, key, embedding), *spaces, embedding, DynamicsHeadConfig(), key)
    world = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(key, x.shape), world)
    past = jax.random.normal(key, (size.num_tasks, context - config.plan_depth - 1, size.width))
    reset = jnp.zeros(past.shape[:2], bool)
    timesteps = first_timesteps(size.num_tasks)

    @jax.jit
    def act(agent: Agent, memories: Tree) -> tuple[Array, Array]:
        zero = jnp.zeros((), jnp.int32)
        act_one = lambda memory, timestep: agent.act(Remembered(memory, zero, zero), key, timestep)[1:]
        shared = jax.tree.map(lambda x: 0 if x.ndim else None, memories)
        action, info = jax.vmap(act_one, in_axes=(shared, 0))(memories, timesteps)
        return action, info["planned_return"]

    cached = world.body(None, past, reset)[0]
    again = jax.tree.map(lambda x: x, world)
    again.policy.body = Reread(world.body)
    padded = Inputs(jnp.pad(past, ((0, 0), (0, context - past.shape[1]), (0, 0))), jnp.int32(past.shape[1]))
    agents = [planning(model, config, EPISODE_STEPS, temperature=0.0) for model in (world, again)]
    return {"cached": lambda: act(agents[0], cached), "reread": lambda: act(agents[1], padded)}


def first_timesteps(num_tasks: int) -> TimeStep:
    """What is seen in each task, [B, ...]: other cells, and an action before."""
    cell = jnp.stack([jnp.arange(num_tasks) % 9, jnp.arange(num_tasks) * 2 % 9], axis=1).astype(jnp.int32)
    no, zero = jnp.zeros(num_tasks, bool), jnp.zeros(num_tasks, jnp.int32)
    return TimeStep(cell, Transition(cell, zero, jnp.zeros(num_tasks), cell, no, no), no)


class Inputs(NamedTuple):
    """A memory that is the inputs themselves."""

    x: Array  # [B, C, D]
    length: Array  # int32 []


class Reread(nnx.Module):
    """A sequence model without a cache: each output is read off a forward pass over all inputs."""

    def __init__(self, body: Any):
        self.body, self.config = body, body.config

    def init_carry(self, batch: int) -> Inputs:
        return Inputs(jnp.zeros((batch, self.config.context_len, self.config.width)), jnp.int32(0))

    def step(self, carry: Inputs, x: Array, reset: Array, episode: Array | None = None) -> tuple[Inputs, Array]:
        put = jax.lax.dynamic_update_slice_in_dim(carry.x, x[:, None], carry.length, axis=1)
        return Inputs(put, carry.length + 1), self._read(put, carry.length)

    def peek(self, carry: Inputs, x: Array) -> Array:
        rows, num = x.shape[:2]
        many = Inputs(jnp.repeat(carry.x, num, axis=0), carry.length)
        y = self.step(many, x.reshape(rows * num, -1), jnp.zeros(rows * num, bool))[1]
        return y.reshape(rows, num, -1)

    def branch(self, carry: Inputs, n: int, depth: int) -> Inputs:
        return Inputs(jnp.repeat(carry.x, n, axis=0), carry.length)

    def prune(self, carry: Inputs, parent: Array) -> Inputs:
        return Inputs(pick(carry.x, parent), carry.length)

    def _read(self, x: Array, index: Array) -> Array:
        y = self.body(None, x, jnp.zeros(x.shape[:2], bool))[1]
        return jax.lax.dynamic_index_in_dim(y, index, axis=1, keepdims=False)

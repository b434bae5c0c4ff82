"""The exact posterior over the tasks of a room, which are a list: what DPT is trained to be.

Lee et al. 2023, DPT: the minimiser of its loss is the posterior probability of each action to be the best one, the mean
over tasks drawn from the posterior; acting by a sample of it is posterior sampling.
"""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from icrl_envs.grid import Grid
from icrl_envs.pixel_room import PixelRoom
from icrl_envs.task_family import is_name, require
from icrl_jax.agents.learner import Static, given, learner
from icrl_jax.agents.planner import Planned, planner
from icrl_jax.core import Agent, Array, Transition, Tree, partial

Decide = Literal["step", "episode", "greedy"]
"""How the posterior becomes an action: the best one for a task drawn from it at every step, as DPT samples online; for
a task drawn when the episode starts, as PSRL and the theory of DPT (its theorem 1) have it; or the likeliest to be
best, as DPT acts offline."""


class Belief(NamedTuple):
    """What is known of M tasks."""

    misses: Array  # int32 [M]: how many steps went otherwise than in this task
    states: Tree  # [M, ...]: the hidden state, were this the task


def posterior(env: Grid | PixelRoom, decide: Decide = "step", tasks: Tree = None) -> Agent:
    """Knows the list of tasks and their rules, each as likely at first; rules out those that what it sees contradicts.

    Steps of a room are not random, so a task fits a step or does not: by its reward and by what was seen after it.
    Should no task fit all of them (it is not on the list), those count that were contradicted least often, the
    posterior under errors that almost never happen. The cell of a grid is taken from the observation, so that contexts
    of separate transitions teach too; what else the state hides (the key in hand, a goal that has paid, the place in a
    room of pictures) is followed from step to step, and acting by it takes an agent that goes on learning. What the
    start of an episode tells ("off_key", its picture) is not used.

    Args:
      env: a dark room, a key-to-door room or a pixel room.
      decide: see `Decide`.
      tasks: the list, stacked [M, ...]; by default `env.tasks("all")`. A model can know no others than it was trained
        on: for its own prior, `env.tasks("train")`.
    Returns:
      An `Agent` whose `info` holds, whatever it does, the posterior probability of each action to be
      `env.optimal_action`, `probs`, float32 [A].
    Raises:
      ValueError: another environment, one whose tasks are not listed, or an unknown `decide`.
    """
    known = isinstance(env, Grid | PixelRoom)
    require(known, "env", env.name, "a dark room, a key-to-door room or a pixel room, not wrapped")
    require(is_name(decide, get_args(Decide)), "decide", decide, "one of " + ", ".join(map(repr, get_args(Decide))))
    if tasks is None:
        require(env.tasks is not None, "tasks", tasks, f"given, because {env.name} does not list its tasks")
        tasks = env.tasks("all")
    num_tasks = jax.tree.leaves(tasks)[0].shape[0]
    starts = jax.vmap(partial(env.reset_env, jax.random.key(0)))(tasks)[1]  # in a grid, any cell
    first = Belief(jnp.zeros(num_tasks, jnp.int32), starts)
    learn = partial(_learn, Static(env), tasks, starts)
    if decide == "episode":
        init = partial(given, Planned(first, jnp.zeros((), jnp.int32)))
        return planner(init, learn, partial(_draw_task), partial(_act_on_drawn, Static(env), tasks))
    choose = _sample if decide == "step" else _likeliest
    return learner(partial(given, first), learn, partial(choose, Static(env), tasks))


def weights(belief: Belief) -> Array:
    """Posterior probability of each task, float32 [M]."""
    possible = (belief.misses == jnp.min(belief.misses)).astype(jnp.float32)
    return possible / jnp.sum(possible)


def _learn(env: Static, tasks: Tree, starts: Tree, belief: Belief, transition: Transition) -> Belief:
    room: Grid | PixelRoom = env.value
    ended = transition.terminated | transition.truncated

    def step(state, start, task):
        after, reward = room.next_state(room.placed(state, transition.obs), transition.action, task)
        fits = (reward == transition.feedback) & room.looks_like(after, transition.next_obs, task)
        return (~fits).astype(jnp.int32), jax.tree.map(lambda x, y: jnp.where(ended, x, y), start, after)

    misses, states = jax.vmap(step)(belief.states, starts, tasks)
    return Belief(belief.misses + misses, states)


def _best(env: Static, tasks: Tree, belief: Belief, obs: Tree) -> tuple[Array, Array]:
    """The best action in each task, int32 [M], and the posterior probability of each action to be it, float32 [A]."""
    room: Grid | PixelRoom = env.value
    best = jax.vmap(lambda state, task: room.optimal_action(room.placed(state, obs), task))(belief.states, tasks)
    return best, jnp.sum(weights(belief)[:, None] * jax.nn.one_hot(best, room.num_actions), axis=0)


def _sample(env: Static, tasks: Tree, belief: Belief, key: Array, obs: Tree) -> tuple[Array, dict]:
    _, probs = _best(env, tasks, belief, obs)
    return jax.random.categorical(key, jnp.log(probs)).astype(jnp.int32), {"probs": probs}


def _likeliest(env: Static, tasks: Tree, belief: Belief, key: Array, obs: Tree) -> tuple[Array, dict]:
    _, probs = _best(env, tasks, belief, obs)
    return jnp.argmax(probs).astype(jnp.int32), {"probs": probs}


def _draw_task(carry: Planned, key: Array) -> Array:
    return jax.random.categorical(key, jnp.log(weights(carry.known))).astype(jnp.int32)


def _act_on_drawn(env: Static, tasks: Tree, carry: Planned, key: Array, obs: Tree) -> tuple[Array, dict]:
    best, probs = _best(env, tasks, carry.known, obs)
    return best[carry.plan], {"probs": probs}

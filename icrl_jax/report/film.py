"""Pictures of an agent at work: its rollout with the states kept, drawn by the environment's `render`."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments.environment import Environment

from icrl_envs import Wrapper
from icrl_envs.film import evenly, stack, strip
from icrl_envs.wrappers import Copies
from icrl_jax.core import Agent, Array, Tree
from icrl_jax.rollout import rollout, start


class _Watched(Wrapper):
    """Puts the state that each step led to into `info`."""

    def step_env(self, key, state, action, params):
        obs, state, reward, terminated, info = self.env.step_env(key, state, action, params)
        return obs, state, reward, terminated, {**info, "watched": state}


def film(agent: Agent, env: Environment, env_params: Any, key: Array, num_steps: int) -> Array:
    """Rolls an agent out in one task, as `rollout` does, and draws the state that each step led to.

    Where an episode ends, its last state is shown, not the first one of the next. `icrl_envs.film` writes the frames as
    a GIF or lays some of them side by side.

    Returns:
      uint8 [T, H, W, 3].
    Raises:
      ValueError: the environment has no `render`, or is `copies(...)`.
    """
    _require_render(env)
    states, _ = _watch(agent, env, env_params, key, num_steps)
    return _draw(env, states, env_params)


def episodes_picture(agent: Agent, env: Environment, env_params: Any, key: Array, num_steps: int, count: int = 8):
    """Shows what an agent has learned in its context: in each task the first episode, and below it the last whole one.

    Args:
      env_params: the tasks, stacked [B, ...].
      count: pictures of each episode, evenly spaced in time.
    Returns:
      uint8 [height, width, 3], or None if no episode ends within `num_steps`.
    Raises:
      ValueError: the environment has no `render`, or is `copies(...)`.
    """
    _require_render(env)
    num_tasks = jax.tree.leaves(env_params)[0].shape[0]
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(num_tasks))  # as `evaluate` draws them
    states, done = jax.vmap(lambda task, key: _watch(agent, env, task, key, num_steps))(env_params, keys)
    rows, chosen = [], []
    for task, ends in enumerate(np.asarray(done)):
        for first, end in _first_and_last(np.flatnonzero(ends) + 1):
            steps = first + evenly(end - first, count)
            rows.append(len(steps))
            chosen += [(task, step) for step in steps]
    if not chosen:
        return None
    tasks, steps = np.array(chosen).T
    frames = np.asarray(_draw_chosen(env, states, env_params, tasks, steps))
    return stack([strip(row, count) for row in np.split(frames, np.cumsum(rows)[:-1])])


def _first_and_last(ends: np.ndarray) -> list[tuple[int, int]]:
    """The steps [first, end) of the first whole episode, and of the last."""
    episodes = list(zip([0, *ends][:-1], ends, strict=True))
    return [*episodes[:1], *episodes[1:][-1:]]


@partial(jax.jit, static_argnames=("env", "num_steps"))
def _watch(agent, env, env_params, key, num_steps) -> tuple[Tree, Array]:
    """The states that T steps led to, and which of them ended an episode."""
    watched = _Watched(env)
    _, record = rollout(agent, watched, start(agent, watched, env_params, key), key, num_steps)
    return record.env_info["watched"], record.transition.terminated | record.transition.truncated


@partial(jax.jit, static_argnames="env")
def _draw(env, states, env_params) -> Array:
    return jax.vmap(env.render, in_axes=(0, None))(states, env_params)


@partial(jax.jit, static_argnames="env")
def _draw_chosen(env, states, env_params, tasks, steps) -> Array:
    states = jax.tree.map(lambda x: x[tasks, steps], states)
    return jax.vmap(env.render)(states, jax.tree.map(lambda x: x[tasks], env_params))


def _require_render(env: Environment) -> None:
    if isinstance(env, Copies):
        raise ValueError("env=copies(...): must be one environment to be filmed")
    if getattr(env, "render", None) is None:
        raise ValueError(f"env={env.name}: must define render(state, params) to be filmed")

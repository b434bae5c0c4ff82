"""Policies that make pretraining contexts (Lee et al. 2023, DPT, appendix A); they act in `revealed(env)`."""

import jax
import jax.numpy as jnp
from icrl_envs import TaskFamily
from jax.tree_util import Partial

from icrl_jax.core import Agent, Array, TimeStep, Tree


def mixture(env: TaskFamily, expert: bool = False, omega: float | None = None) -> Agent:
    """Actions iid from (1 - omega) p1 + omega p2, which `init` draws: one behaviour for one context.

    p1 ~ Dirichlet(1, ..., 1); p2 is a point mass on a uniformly random action or, where `expert`, on the best one (the
    paper's DPT-Exp); omega is uniform on {0, 0.1, ..., 1} (the code's eleven values) unless it is given.

    Raises:
      ValueError: omega outside [0, 1].
    """
    if omega is not None and not 0 <= omega <= 1:
        raise ValueError(f"omega={omega!r}: must be in [0, 1], or None to draw it for each task")
    draw = Partial(_draw, jnp.zeros(env.num_actions), omega=None if omega is None else jnp.float32(omega))
    favourite = Partial(env.optimal_action) if expert else None
    return Agent(draw, Partial(_act, favourite=favourite))


def _draw(zeros: Array, key: Array, omega: Array | None) -> Tree:
    key_p1, key_p2, key_omega = jax.random.split(key, 3)
    p1 = jax.random.dirichlet(key_p1, zeros + 1.0)
    arm = jax.random.randint(key_p2, (), 0, zeros.size)
    return p1, arm, jax.random.randint(key_omega, (), 0, 11) / 10.0 if omega is None else omega


def _act(carry: Tree, key: Array, timestep: TimeStep, favourite) -> tuple[Tree, Array, dict]:
    key_p1, key_which = jax.random.split(key)
    p1, arm, omega = carry
    if favourite is not None:
        arm = favourite(timestep.obs.state, timestep.obs.params)
    other = jax.random.categorical(key_p1, jnp.log(p1)).astype(jnp.int32)
    return carry, jnp.where(jax.random.bernoulli(key_which, omega), arm, other), {}

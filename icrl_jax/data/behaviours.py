"""Policies that make pretraining contexts; they act in `revealed(env)`."""

import jax
import jax.numpy as jnp

from icrl_envs import TaskFamily
from icrl_jax.core import Agent, Array, TimeStep, Tree, partial


def mixture(env: TaskFamily, expert: bool = False, omega: float | None = None) -> Agent:
    """Actions iid from (1 - omega) p1 + omega p2, which `init` draws: one behaviour for one context (Lee et al.
    2023, DPT, appendix A).

    p1 ~ Dirichlet(1, ..., 1); p2 is a point mass on a uniformly random action or, where `expert`, on the best one (the
    paper's DPT-Exp); omega is uniform on {0, 0.1, ..., 1} (the code's eleven values) unless it is given.

    Raises:
      ValueError: omega outside [0, 1].
    """
    if omega is not None and not 0 <= omega <= 1:
        raise ValueError(f"omega={omega!r}: must be in [0, 1], or None to draw it for each task")
    omegas = jnp.linspace(0.0, 1.0, 11) if omega is None else jnp.full(11, omega, jnp.float32)
    init = partial(_init, jnp.ones(env.num_actions), omegas)
    return Agent(init, partial(_act, partial(env.optimal_action), jnp.asarray(expert)))


def noisy_expert(env: TaskFamily, share: float | None) -> Agent:
    """The best action with probability `share`, else a uniformly random one, which may be the best too (Dong et al.
    2024, DIT). Where it is None, `init` draws it for each context, U[0, 1].

    Raises:
      ValueError: a share outside [0, 1].
    """
    if share is not None and not 0 <= share <= 1:
        raise ValueError(f"share={share!r}: must be in [0, 1], or None to draw it for each context")
    alike = jnp.zeros(env.num_actions), jnp.zeros((), jnp.int32)
    init = partial(_any_share, alike) if share is None else partial(_same, (*alike, jnp.float32(share)))
    return Agent(init, partial(_act, partial(env.optimal_action), jnp.asarray(True)))


def labelled(agent: Agent, env: TaskFamily) -> Agent:
    """The same agent, with the best action where it acts in its `info`, as `target_action`."""
    return Agent(agent.init, partial(_act_labelled, agent, partial(env.optimal_action)))


def unrevealed(agent: Agent) -> Agent:
    """The same agent in `revealed(env)`, blind to what that shows."""
    return Agent(agent.init, partial(_act_unrevealed, agent))


def _act_unrevealed(agent: Agent, carry: Tree, key: Array, timestep: TimeStep):
    return agent.act(carry, key, timestep._replace(obs=timestep.obs.obs))


def _act_labelled(agent: Agent, optimal_action, carry: Tree, key: Array, timestep: TimeStep):
    carry, action, info = agent.act(carry, key, timestep)
    best = optimal_action(timestep.obs.state, timestep.obs.params)
    return carry, action, {**info, "target_action": best}


def _same(carry: Tree, key: Array) -> Tree:
    return carry


def _any_share(alike: Tree, key: Array) -> Tree:
    return *alike, jax.random.uniform(key)


def _init(rates: Array, omegas: Array, key: Array) -> Tree:
    key_p1, key_p2, key_omega = jax.random.split(key, 3)
    log_p1 = jnp.log(jax.random.exponential(key_p1, rates.shape))  # normalised exponentials are Dirichlet(1, ..., 1)
    return log_p1, jax.random.randint(key_p2, (), 0, rates.size), jax.random.choice(key_omega, omegas)


def _act(optimal_action, expert: Array, carry: Tree, key: Array, timestep: TimeStep) -> tuple[Tree, Array, dict]:
    key_p1, key_which = jax.random.split(key)
    log_p1, arm, omega = carry
    best = optimal_action(timestep.obs.state, timestep.obs.params)
    other = jax.random.categorical(key_p1, log_p1).astype(jnp.int32)
    action = jnp.where(jax.random.bernoulli(key_which, omega), jnp.where(expert, best, arm), other)
    return carry, action, {}

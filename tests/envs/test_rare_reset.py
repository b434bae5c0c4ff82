"""Families with `rare_reset` step as gymnax does, and compute resets only when an episode has ended."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments.environment import Environment

import icrl_envs
from icrl_envs.task_family import any_of_batch

B = 3
RARE = ["concentration", "dark_key_to_door", "memory_chain"]


def check_steps(env, last, times, getkey, atol):
    """Our step and gymnax's by the same keys and actions, in B tasks which are at these times."""
    tasks = jax.vmap(env.sample_task)(jax.random.split(getkey(), B))
    action = jax.vmap(lambda task, key: env.action_space(task).sample(key))(tasks, jax.random.split(getkey(), B))
    first = jax.jit(jax.vmap(env.reset_env))(jax.random.split(getkey(), B), tasks)[1]
    steps = [jax.jit(jax.vmap(step)) for step in (env.step, lambda *args: Environment.step(env, *args))]
    for now in times:
        state, keys = first.replace(time=jnp.array(now, jnp.int32)), jax.random.split(getkey(), B)
        ours, theirs = (step(keys, state, action, tasks) for step in steps)
        assert (ours[3] | ours[4]).tolist() == [time == last for time in now]
        chex.assert_trees_all_equal_dtypes(ours, theirs)
        chex.assert_trees_all_close(ours, theirs, atol=atol)


@pytest.mark.parametrize("name, wrap", [*((name, None) for name in RARE), ("battleship", icrl_envs.revealed)])
def test_step_is_that_of_gymnax(name, wrap, getkey):
    env = icrl_envs.make(name, "ad" if name == "dark_key_to_door" else None)
    last = int(env.default_params.max_steps_in_episode) - 1
    check_steps(wrap(env) if wrap else env, last, ([0, last, 1], [0, 0, 0], [last] * B), getkey, atol=1e-6)


@pytest.mark.parametrize("wrap", [lambda env: env, icrl_envs.revealed])
def test_resets_are_in_a_branch_and_only_where_they_are_rare(wrap):
    for name, rare in (("battleship", True), ("gaussian_bandit", False)):
        env = wrap(icrl_envs.make(name))
        assert env.rare_reset is rare
        _, state = env.reset(jax.random.key(0))
        batch = jax.tree.map(lambda x: jnp.stack([x, x]), state)
        program = jax.make_jaxpr(jax.vmap(env.step))(
            jax.random.split(jax.random.key(0)), batch, jnp.zeros(2, jnp.int32)
        )
        assert ("cond" in str(program)) is rare


def test_a_branch_on_a_batch_of_batches_stays_a_branch():
    def f(flag, x):
        return jax.lax.cond(any_of_batch(flag), lambda: jnp.where(flag, jnp.sin(x), x), lambda: x)

    flags, x = jnp.zeros((5, 7), bool).at[2, 3].set(True), jnp.ones((5, 7))
    twice = jax.vmap(jax.vmap(f))
    assert "cond" in str(jax.make_jaxpr(twice)(flags, x))
    np.testing.assert_allclose(twice(flags, x), np.where(flags, np.sin(1), 1), rtol=1e-6)

"""The in-context agent: a trained model that steps through its own history, one token an act, weights frozen."""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from icrl_jax.core import Agent, Array, TimeStep, Tree
from icrl_jax.models.decider import Decider
from icrl_jax.models.heads import Categorical, Prediction
from icrl_jax.models.policy import Policy


def in_context(policy: Tree, greedy: bool = False, temperature: float = 1.0) -> Agent:
    """Acts by a model with `step(carry, timestep[B]) -> (carry, prediction[B])`, reading each input once.

    It sees the last `context_len` inputs of a sequence. In longer ones than it was trained on, the query has left its
    sight: what it then does, nothing has taught it.

    Args:
      policy: the model, a pytree (`icrl_jax.models.policy.Policy`).
      greedy: takes the likeliest action instead of sampling.
      temperature: of what is sampled; below 1 it is nearer to the likeliest action, which 0 takes.
    Returns:
      An `Agent` whose `info` holds `log_prob` of the action taken and, where actions are discrete, their probabilities
      `probs`, float32 [A].
    """
    if greedy or temperature == 0:
        act = Partial(_act_greedy, policy)
    elif temperature == 1:
        act = Partial(_act_sampled, policy)
    else:
        act = Partial(_act_tempered, policy, jnp.float32(temperature))
    return Agent(Partial(_init, policy), act)


def check_horizon(agent: Tree, num_steps: int, episode_steps: int, option: str = "num_steps") -> None:
    """Refuses rollouts longer than a model in the agent can number the inputs of.

    Args:
      option: what the error calls `num_steps`.
    Raises:
      ValueError: more steps than its learned positions or, where they are counted by episode, more in one.
    """
    is_policy = lambda x: isinstance(x, Policy | Decider)
    for policy in filter(is_policy, jax.tree.leaves(agent, is_leaf=is_policy)):
        policy.check_horizon(num_steps, episode_steps, option)


def _init(policy, key: Array) -> Tree:
    return empty_memory(policy.body)


def _act_sampled(policy, carry: Tree, key: Array, timestep: TimeStep) -> tuple[Tree, Array, dict]:
    carry, prediction = step_one(policy, carry, timestep)
    return decide(carry, prediction, prediction.sample(key))


def _act_tempered(policy, temperature: Array, carry: Tree, key: Array, timestep: TimeStep) -> tuple[Tree, Array, dict]:
    carry, prediction = step_one(policy, carry, timestep)
    prediction = prediction.tempered(temperature)
    return decide(carry, prediction, prediction.sample(key))


def _act_greedy(policy, carry: Tree, key: Array, timestep: TimeStep) -> tuple[Tree, Array, dict]:
    carry, prediction = step_one(policy, carry, timestep)
    return decide(carry, prediction, prediction.mode())


def empty_memory(body: Tree) -> Tree:
    """The carry of a sequence model in one task, without the axis of its single row.

    Under vmap that axis would keep XLA from writing the cache in place. What has no axes, like the count of inputs, is
    shared by all rows.
    """
    return of_row(body.init_carry(1))


def step_one(policy: Tree, carry: Tree, timestep: TimeStep) -> tuple[Tree, Tree]:
    """`policy.step` in one task, for a carry from `empty_memory`."""
    carry, prediction = policy.step(as_row(policy.body, carry), jax.tree.map(lambda x: x[None], timestep))
    return of_row(carry), jax.tree.map(lambda x: x[0], prediction)


def stack_memories(body: Tree, carries: Tree) -> Tree:
    """The carry [N, ...] of a whole batch, from the carries of N tasks that were vmapped and began together."""
    batch = jax.eval_shape(lambda: body.init_carry(1))
    return jax.tree.map(lambda rows, many: many if rows.ndim else many[0], batch, carries)


def unstack_memories(body: Tree, carry: Tree, num_tasks: int) -> Tree:
    """The inverse of `stack_memories`."""
    batch = jax.eval_shape(lambda: body.init_carry(1))
    spread = lambda x: jnp.broadcast_to(x, (num_tasks, *x.shape))
    return jax.tree.map(lambda rows, x: x if rows.ndim else spread(x), batch, carry)


def as_row(body: Tree, carry: Tree) -> Tree:
    """The inverse of `of_row`; the model tells what has an axis of rows."""
    batch = jax.eval_shape(lambda: body.init_carry(1))
    return jax.tree.map(lambda rows, x: x[None] if rows.ndim else x, batch, carry)


def of_row(carry: Tree) -> Tree:
    """The carry of a single row without its axis."""
    return jax.tree.map(lambda x: x[0] if x.ndim else x, carry)


def decide(carry: Tree, prediction: Prediction, choice: Array) -> tuple[Tree, Array, dict]:
    """The return of `act`, of what was chosen."""
    probs = {"probs": prediction.probs} if isinstance(prediction, Categorical) else {}
    return carry, prediction.decode(choice), {"log_prob": prediction.log_prob(choice), **probs}

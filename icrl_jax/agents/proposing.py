"""The in-context agent where two actions are compared: a trained model proposes both, and sees which is preferred."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from icrl_envs.task_family import is_name, require
from icrl_jax.agents.arms import positive
from icrl_jax.agents.in_context import empty_memory, step_one
from icrl_jax.core import Agent, Array, TimeStep, Tree, partial
from icrl_jax.models.heads import Categorical, Prediction

Proposal = Literal["samples", "distinct", "challenger"]


def proposing(policy: Tree, proposal: Proposal = "samples", greedy: bool = False, temperature: float = 1.0) -> Agent:
    """Acts in `preferences(env)` by a model that predicts one action, reading each comparison once.

    Args:
      policy: the model, a pytree (`icrl_jax.models.policy.Policy`), that was shown pairs.
      proposal: "samples", two independent ones (the paper is silent); "distinct", the second drawn from the other
        actions, so that none is compared with itself; "challenger", the likeliest action and a sample.
      greedy: proposes the likeliest action twice, which is then taken.
      temperature: of what is sampled, above 0; below 1 it is nearer to the likeliest action.
    Returns:
      An `Agent` whose `info` holds `log_prob` of both actions, float32 [2], and, where actions are discrete, the
      probabilities of one sample, `probs`, float32 [A].
    Raises:
      ValueError: another proposal, or a temperature that is not above 0.
    """
    heat = positive("temperature", temperature)
    names = get_args(Proposal)
    require(is_name(proposal, names), "proposal", proposal, "one of " + ", ".join(map(repr, names)))
    propose = {"samples": _samples, "distinct": _distinct, "challenger": _challenger}[proposal]
    choose = partial(_likeliest if greedy else propose)
    return Agent(partial(_init, policy), partial(_act, choose, policy, heat))


def _init(policy: Tree, key: Array) -> Tree:
    return empty_memory(policy.body)


def _act(
    propose, policy: Tree, temperature: Array, carry: Tree, key: Array, timestep: TimeStep
) -> tuple[Tree, Tree, dict]:
    carry, prediction = step_one(policy, carry, timestep)
    prediction = prediction.tempered(temperature)
    choices = propose(prediction, *jax.random.split(key))
    log_prob = jnp.stack([prediction.log_prob(choice) for choice in choices])
    probs = {"probs": prediction.probs} if isinstance(prediction, Categorical) else {}
    return carry, jnp.stack([prediction.decode(choice) for choice in choices]), {"log_prob": log_prob, **probs}


def _likeliest(prediction: Prediction, key: Array, other: Array) -> tuple[Array, Array]:
    return prediction.mode(), prediction.mode()


def _samples(prediction: Prediction, key: Array, other: Array) -> tuple[Array, Array]:
    return prediction.sample(key), prediction.sample(other)


def _distinct(prediction: Prediction, key: Array, other: Array) -> tuple[Array, Array]:
    if not isinstance(prediction, Categorical):  # two samples never coincide
        return _samples(prediction, key, other)
    first = prediction.sample(key)
    taken = jax.nn.one_hot(first, prediction.logits.shape[-1], dtype=bool)
    return first, Categorical(jnp.where(taken, -jnp.inf, prediction.logits)).sample(other)


def _challenger(prediction: Prediction, key: Array, other: Array) -> tuple[Array, Array]:
    return prediction.mode(), prediction.sample(key)

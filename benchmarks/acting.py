"""Online evaluation through the cache, against reading the whole context again at every step."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

import icrl_envs
from benchmarks.measure import Row, faster, in_turn
from icrl_jax.agents.in_context import in_context
from icrl_jax.core import TimeStep
from icrl_jax.data.contexts import as_timesteps
from icrl_jax.evaluate import Evaluation, evaluate
from icrl_jax.methods.dpt import TOKEN
from icrl_jax.models.heads import Prediction
from icrl_jax.models.policy import Policy
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.parallel import over_rows, pad_rows


class Size(NamedTuple):
    """The DPT paper's bandit evaluation."""

    model: TransformerConfig = TransformerConfig(32, 4, 4, context_len=501, positions="none", dtype="float32")
    num_tasks: int = 200
    num_steps: int = 500
    lengths: int = 8  # context lengths at which recomputing is timed
    rounds: int = 3


QUICK = Size(
    TransformerConfig(8, 2, 2, context_len=12, positions="none"), num_tasks=4, num_steps=11, lengths=3, rounds=1
)


def rows(quick: bool = False) -> Iterator[Row]:
    """One row."""
    yield row(QUICK if quick else Size())


def row(size: Size) -> Row:
    """The cached side is a whole evaluation, tasks and rewards included; the other one is the network alone."""
    policy = make_policy(size.model)
    run = cached(size)
    inputs = whole_contexts(run(policy))
    lengths = np.unique(np.linspace(1, size.num_steps, size.lengths).round().astype(int))
    sides: dict[str, Callable[[], object]] = {"ours": lambda: jax.block_until_ready(run(policy))}
    for length in map(int, lengths):
        prefix = jax.tree.map(lambda x, n=length: x[:, :n], inputs)
        sides[str(length)] = partial(lambda prefix: jax.block_until_ready(recomputed(policy, prefix)), prefix)
    seconds = in_turn(sides, size.rounds)
    sampled = [seconds[str(length)] for length in lengths]
    theirs = float(np.interp(np.arange(1, size.num_steps + 1), lengths, sampled).sum())
    note = f"recomputing is timed at {len(lengths)} context lengths and summed over all steps by interpolation"
    what = f"online evaluation, {size.num_tasks} tasks x {size.num_steps} steps"
    return faster(what, f"{seconds['ours']:.3g} s", f"{theirs:.3g} s", theirs / seconds["ours"], 50, note)


def make_policy(model: TransformerConfig) -> Policy:
    """An untrained network; time does not depend on the weights."""
    env = icrl_envs.make("gaussian_bandit")
    return Policy(model, env.observation_space(), env.action_space(), jax.random.key(0), TOKEN)


def cached(size: Size) -> Callable[[Policy], Evaluation]:
    """`evaluate` as everybody calls it."""
    env = icrl_envs.make("gaussian_bandit")
    tasks = jax.vmap(partial(env.sample_task, split="test"))(jax.random.split(jax.random.key(1), size.num_tasks))
    return jax.jit(lambda policy: evaluate(in_context(policy), env, tasks, jax.random.key(2), size.num_steps))


def whole_contexts(evaluation: Evaluation) -> TimeStep:
    """All that the network read in an evaluation, [B, T, ...]: the input of step t is the last of the prefix t + 1."""
    transitions = evaluation.record.transition
    timesteps = jax.vmap(as_timesteps)(transitions, transitions.obs[:, 0])
    return jax.tree.map(lambda x: x[:, :-1], timesteps)


@jax.jit
def recomputed(policy: Policy, inputs: TimeStep) -> Prediction:
    """What the network answers to the last of some inputs [B, T, ...], from nothing."""
    num_tasks = inputs.reset.shape[0]
    last = lambda policy, inputs: jax.tree.map(lambda x: x[:, -1], policy(None, inputs)[1])
    return jax.tree.map(lambda x: x[:num_tasks], over_rows(last)(policy, pad_rows(inputs)))

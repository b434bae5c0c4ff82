# ruff: noqa: N806
"""Planning in imagination: a beam search over what a model says that actions would bring (Son et al. 2025, DICP).

Axes: n plans, A candidates for the next action of each.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from icrl_envs.task_family import is_name, require
from icrl_jax.agents.in_context import as_row, empty_memory, of_row
from icrl_jax.core import Agent, Array, TimeStep, Transition, Tree, partial
from icrl_jax.models.heads import Categorical, Prediction

Order = Literal["policy", "index"]
Score = Literal["mode", "mean"]


@jax.tree_util.register_static
@dataclass(frozen=True)
class PlanConfig:
    """How far and how widely to look ahead."""

    beam_width: int = 10
    """Plans that are kept at each depth."""
    plan_depth: int = 8
    """Steps that are imagined, at most to the end of the episode; 0 acts as the policy does."""
    plan_score: Score = "mode"
    """What a step promises: of the rewards that are foreseen the likeliest, or their "mean", to which much that is
    unlikely adds up: it leaves little to the policy, and wants a model that is right about it."""
    plan_order: Order = "policy"
    """Of plans that promise the same, the first are those that stay nearest to what the policy would do; or, "index",
    those of the plan that came first, in the order of actions (the paper's code)."""
    plan_samples: int = 10
    """Continuous actions: so many are tried after each plan, the likeliest and others drawn from the policy."""
    plan_after: int = 0
    """Steps in a task before which it acts as the policy does (the paper's code: until its context is full)."""

    def __post_init__(self):
        for name, low in (("beam_width", 1), ("plan_depth", 0), ("plan_samples", 2), ("plan_after", 0)):
            require(getattr(self, name) >= low, name, getattr(self, name), f"at least {low}")
        for name, kind in (("plan_score", Score), ("plan_order", Order)):
            value, names = getattr(self, name), get_args(kind)
            require(is_name(value, names), name, value, "one of " + ", ".join(map(repr, names)))


class Remembered(NamedTuple):
    """What such an agent carries."""

    memory: Tree  # of its model
    time: Array  # int32 []: steps taken in this episode
    lived: Array  # int32 []: steps taken since the last reset


def planning(model: Tree, config: PlanConfig, episode_steps: int, temperature: float = 1.0) -> Agent:
    """Takes the first action of the plan that promises most reward.

    Where all promise the same, it acts as the policy does. The model does not say when an episode terminates: a plan is
    as long as the episode may last. Where the model foresees returns, the last step of a plan promises its return, not
    its reward alone.

    Args:
      model: with `body`, `step`, `branch`, `imagine`, `foresee` and `prune` (`icrl_jax.models.world.World`).
      config: the budget; `plan_depth` is at least 1.
      episode_steps: H, steps of the longest episode.
      temperature: of the policy's choices; 0 takes the likeliest.
    Returns:
      An `Agent` whose `info` holds `planned_return`, what the plan promises, float32 [].
    Raises:
      ValueError: `plan_depth=0`.
    """
    require(config.plan_depth >= 1, "plan_depth", config.plan_depth, "at least 1 for an agent that plans")
    numbers = jnp.int32(episode_steps), jnp.float32(temperature)
    return Agent(partial(_init, model), partial(_act, model, config, *numbers))


def _init(model: Tree, key: Array) -> Remembered:
    zero = jnp.zeros((), jnp.int32)
    return Remembered(empty_memory(model.body), zero, zero)


def _act(
    model: Tree,
    config: PlanConfig,
    episode_steps: Array,
    temperature: Array,
    carry: Remembered,
    key: Array,
    timestep: TimeStep,
) -> tuple[Remembered, Tree, dict]:
    time, lived = jnp.where(timestep.begins_episode, 0, carry.time), jnp.where(timestep.reset, 0, carry.lived)
    now = jax.tree.map(lambda x: x[None], timestep)
    memory, prediction = model.step(as_row(model.body, carry.memory), now)
    steps_left = jnp.where(lived < config.plan_after, 0, episode_steps - time)  # none: no plan promises anything
    best = search(model, config, memory, prediction, now, steps_left, temperature, key)
    action = jax.tree.map(lambda x: x[0], best.first)
    return Remembered(of_row(memory), time + 1, lived + 1), action, {"planned_return": best.score[0]}


class Plans(NamedTuple):
    """n plans, the best one first."""

    last: Transition  # [n, ...]: their last steps, as they are imagined
    parent: Array  # int32 [n]: which of the plans one step shorter each goes on from
    first: Tree  # [n, ...]: the actions that they begin with
    score: Array  # float32 [n]: the rewards that they promise; -inf where there are not so many plans
    lag: Array  # float32 [n], at most 0: by how much the policy would rather have done something else, over all steps


def search(
    model: Tree,
    config: PlanConfig,
    memory: Tree,
    prediction: Prediction,
    now: TimeStep,
    steps_left: Array,
    temperature: Array,
    key: Array,
) -> Plans:
    """The best plans after a step: one compiled scan over their depth, from the memory that they share.

    Each plan is a branch of the memory. Of every branch the model is asked at once what all actions would bring, the
    best of these plans are kept, and only what those imagine is read.

    Args:
      memory: of one row, which has read `now` [1, ...].
      prediction: of the policy, [1].
      steps_left: int32 []: how many of the rewards count.
    """
    keys = jax.random.split(key, config.plan_depth)
    zeros, none = jnp.zeros(1), jnp.zeros(1, jnp.int32)
    root = Plans(now.prev._replace(next_obs=now.obs), none, None, zeros, zeros)
    longer = partial(_longer, model, config, temperature)
    at_last = lambda depth: jnp.asarray(depth == config.plan_depth - 1)
    plans = longer(memory, prediction, root, True, steps_left > 0, at_last(0), keys[0])

    if config.plan_depth == 1:
        return plans

    def deeper(carry: tuple[Tree, Plans], xs: tuple[Array, Array]) -> tuple[tuple[Tree, Plans], None]:
        (branches, plans), (depth, key) = carry, xs
        branches, prediction = model.imagine(model.prune(branches, plans.parent[None]), plans.last)
        by_policy = config.plan_order == "policy"
        plans = longer(branches, prediction, plans, by_policy, depth < steps_left, at_last(depth), key)
        return (branches, plans), None

    branches = model.branch(memory, config.beam_width, config.plan_depth - 1)
    depths = jnp.arange(1, config.plan_depth)
    (_, plans), _ = jax.lax.scan(deeper, (branches, plans), (depths, keys[1:]))
    return plans


def _longer(
    model: Tree,
    config: PlanConfig,
    temperature: Array,
    carry: Tree,
    prediction: Prediction,
    plans: Plans,
    by_policy: bool,
    counts: Array,
    at_last: Array,
    key: Array,
) -> Plans:
    """The best of all plans that go on from these by one action; those with equal scores as the policy would have it,
    or in order."""
    actions, wish = candidates(prediction, config.plan_samples, temperature, key)
    obs, num_kept = plans.last.next_obs, config.beam_width
    foreseen = model.foresee(carry, obs, actions)
    reward = foreseen.reward.mode()  # one that there is, to be read
    promised = foreseen.reward.mean() if config.plan_score == "mean" else reward
    if foreseen.ret is not None:
        promised = jnp.where(at_last, foreseen.ret.mean(), promised)
    score = plans.score[:, None] + jnp.where(counts, promised, 0.0)
    lag = plans.lag[:, None] + wish - wish.max(axis=1, keepdims=True)
    order = jnp.lexsort((-lag.reshape(-1) if by_policy else jnp.zeros(score.size), -score.reshape(-1)))[:num_kept]
    kept = jnp.pad(order, (0, num_kept - order.size))
    parent = kept // score.shape[1]
    of_kept = lambda tree: jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[kept], tree)
    of_parent = lambda tree: jax.tree.map(lambda x: x[parent], tree)
    taken, no = of_kept(actions), jnp.zeros(num_kept, bool)
    return Plans(
        Transition(of_parent(obs), taken, of_kept(reward), of_kept(foreseen.next_obs()), no, no),
        parent,
        taken if plans.first is None else of_parent(plans.first),
        jnp.where(jnp.arange(num_kept) < order.size, of_kept(score), -jnp.inf),
        of_kept(lag),
    )


def candidates(prediction: Prediction, num_samples: int, temperature: Array, key: Array) -> tuple[Tree, Array]:
    """Actions to try after each of n predictions, [n, A, ...], and how much the policy wishes for each, float32 [n, A].

    Of discrete actions all: wishes are logits with noise of that temperature, in whose order actions are drawn without
    replacement. Of continuous ones so many, draws and at last the likeliest, all wished for alike. The first of those
    that are wished for most is what the policy samples.
    """
    if isinstance(prediction, Categorical):
        logits = prediction.logits
        wish = logits + temperature * jax.random.gumbel(key, logits.shape)
        return jnp.broadcast_to(jnp.arange(logits.shape[1], dtype=jnp.int32)[None], logits.shape), wish
    tempered = prediction.tempered(jnp.maximum(temperature, 1e-6))
    draws = jax.vmap(tempered.sample)(jax.random.split(key, num_samples - 1))
    choices = jnp.swapaxes(jnp.concatenate([draws, prediction.mode()[None]]), 0, 1)
    return prediction.decode(choices), jnp.zeros(choices.shape[:2])

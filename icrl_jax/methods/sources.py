"""Where learning histories come from: a source algorithm, how long it learns, and which of what it did is distilled."""

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from gymnax.environments import spaces
from gymnax.environments.environment import Environment

from icrl_envs import TaskFamily, revealed, sample_tasks
from icrl_envs.bandits import Bandit
from icrl_envs.task_family import is_number, require
from icrl_jax.agents import noise_curriculum, oracle, q_learning, thompson_beta, thompson_gaussian, ucb1, uniform
from icrl_jax.agents.sources import as_learner
from icrl_jax.core import Agent, Array, Learner
from icrl_jax.data import filters
from icrl_jax.data.collect import collect_histories, episode_steps, nbytes, predict_bytes
from icrl_jax.data.histories import Distilled, beginnings, side_by_side, stride_episodes
from icrl_jax.methods.ppo import PPOConfig, a2c, ppo_learner
from icrl_jax.methods.sac import SACConfig, sac_learner

Algorithm = Literal[
    "q_learning",
    "ppo",
    "a2c",
    "sac",
    "ucb1",
    "thompson_gaussian",
    "thompson_beta",
    "noise_curriculum",
    "expert",
    "logged",
]

_SHARE = "in [0, 1]", lambda value: 0 <= value <= 1
_SOME_SHARE = "in (0, 1]", lambda value: 0 < value <= 1
_ABOVE_0 = "a finite number above 0", lambda value: value > 0

_ALLOWED = {
    "random_share": ("in [0, 1)", lambda value: 0 <= value < 1),
    "kept_share": _SOME_SHARE,
    "source_rate": _ABOVE_0,
    "source_discount": _SHARE,
    "q_initial": ("a finite number", lambda value: True),
    "q_epsilon": _SHARE,
    "noise_last": _SHARE,
    "noise_decay": _SOME_SHARE,
    "lhf_stability": ("a finite number of at least 0", lambda value: value >= 0),
    "lhf_temperature": _ABOVE_0,
}
"""Of the options that are numbers, and may be None."""


@dataclass(frozen=True)
class HistoriesConfig:
    """Which histories are made and distilled."""

    source: Algorithm = "q_learning"
    """Who learns; "noise_curriculum" (AD-eps) and "expert" (ED) are the oracle, with noise and without; "logged" takes
    what `store` holds as it is, and of these options no other."""
    store: str | None = None
    """Folder of histories on disk: made there if there are none yet, then streamed; None keeps them on the device."""
    num_tasks: int | None = None
    """Training tasks; None takes all that the family lists."""
    num_streams: int = 16
    """Histories of each task."""
    num_steps: int = 2400
    """Steps of a history."""
    stride: int = 1
    """Deals a history's episodes to so many, one in `stride` to each: a window then spans that much more learning."""
    shared: bool = False
    """Q-learning: all streams of a task teach one learner (the papers' actors), and so improve on evidence that their
    own past does not hold."""
    random_share: float = 0.0
    """Share of the streams in which a uniformly random agent acts instead (LHF's noisy data)."""
    kept_share: float = 1.0
    """Share of each history that is kept, from its beginning (LHF's half histories)."""
    source_rate: float | None = None
    """Learning rate of the source; None is 1 for Q-learning, right where nothing is random, else the source's own."""
    source_discount: float | None = None
    """gamma of the source; None is 0.9 for Q-learning, else the source's own."""
    q_initial: float = 5.0
    """Q-learning: all values before anything was seen; above what can be earned, they make it try everything."""
    q_epsilon: float = 0.0
    """Q-learning: probability of a random action."""
    q_rewards: int = 0
    """Q-learning: up to how many rewards of an episode it counts; for tasks that pay each once."""
    noise_last: float = 0.0
    """AD-eps: the probability of a random action at the end; above 0 the demonstrator stays poor."""
    noise_decay: float = 0.9
    """AD-eps: share of the history over which it falls from 1."""
    lhf: bool = False
    """LHF: draws histories by how much and how steadily they improve (`data/filters.py`); otherwise all alike. For
    episodes whose returns are at least 0."""
    lhf_stability: float = 1.0
    """LHF: lambda, the weight of stability."""
    lhf_temperature: float | None = None
    """LHF: alpha, of a softmax over the scores; None takes them as they are."""
    source_seed: int = 0
    """Of the histories: the same for all training seeds."""

    def __post_init__(self):
        if self.source not in get_args(Algorithm):
            raise ValueError(f"source={self.source!r}: must be one of {', '.join(get_args(Algorithm))}")
        for name in ("num_tasks", "num_streams", "num_steps", "stride"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value!r}: must be at least 1")
        for name in ("q_rewards", "source_seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be at least 0")
        for name, (allowed, fits) in _ALLOWED.items():
            value = getattr(self, name)
            require(value is None or is_number(value) and fits(value), name, value, allowed)
        if self.random_share > 0 and not 0 < self.num_random < self.num_streams:
            allowed = f"0, or make one of {self.num_streams} streams random and leave one to learn"
            raise ValueError(f"random_share={self.random_share!r}: must be {allowed}")
        if self.shared and self.q_rewards:
            raise ValueError(f"q_rewards={self.q_rewards!r}: must be 0 with shared=True")
        if self.source == "logged" and self.store is None:
            raise ValueError("store=None: must be the folder of the histories with source='logged'")
        if self.source == "logged" and self.lhf:
            raise ValueError("lhf=True: must be False with source='logged', whose store may hold weights of its own")
        if self.shared and self.source != "q_learning":
            raise ValueError(f"shared=True: is for source='q_learning', and must be False with source={self.source!r}")

    @property
    def num_random(self) -> int:
        """Streams in which a random agent acts."""
        return round(self.random_share * self.num_streams)

    @property
    def kept_steps(self) -> int:
        """Steps of a history that are kept."""
        return round(self.kept_share * self.num_steps)


def make_histories(
    env: TaskFamily, config: HistoriesConfig, first_task: Array | int = 0, num_tasks: int | None = None
) -> Distilled:
    """Collects, cuts, deals and filters the histories, in compiled code; the same at every call.

    Whether the memory can hold them all is for the caller to ask (`predicted_bytes`), who may want some or only shapes.

    Args:
      first_task, num_tasks: make only those of so many tasks, which are what they are among all; None: all.
    Raises:
      ValueError: a source that the family does not fit, histories shorter than an episode, or LHF where it cannot tell
        one history from another.
    """
    _check_episodes(env, config)
    key_tasks, key_source, key_random, key_filter = _keys(config)
    tasks = training_tasks(env, config, key_tasks)
    if num_tasks is not None:
        tasks = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first_task, num_tasks), tasks)
    collect = partial(collect_histories, env=env, env_params=tasks, max_bytes=math.inf, first_task=first_task)
    learner, by_chance, num_rounds = _learners(env, config)
    histories = collect(learner, key=key_source, num_rounds=num_rounds)
    if by_chance is not None:
        histories = side_by_side(histories, collect(by_chance, key=key_random, num_rounds=num_rounds))
    histories = beginnings(histories, config.kept_steps)
    weights = None
    if config.lhf:
        kept = filters.retention(histories, None, config.lhf_stability, config.lhf_temperature)
        weights = filters.resample(key_filter, kept, first_task)
    if config.stride > 1:
        histories = stride_episodes(histories, config.stride)
        weights = None if weights is None else jnp.repeat(weights, config.stride, axis=1)
    return Distilled(histories, weights)


def predicted_bytes(env: TaskFamily, config: HistoriesConfig) -> int:
    """The memory that `make_histories` will take at its peak; nothing is computed."""
    tasks = jax.eval_shape(partial(training_tasks, env, config), jax.random.key(0))
    learner, by_chance, num_rounds = _learners(env, config)
    predict = lambda learner: predict_bytes(learner, env, tasks, num_rounds)
    plain = dataclasses.replace(config, random_share=0.0, kept_share=1.0, stride=1, lhf=False)
    whole = held_bytes(env, plain)  # as all streams of all steps take
    peaks = [predict(learner)]
    if by_chance is not None:
        peaks += [
            whole * (config.num_streams - config.num_random) // config.num_streams + predict(by_chance),
            2 * whole,
        ]
    cut = whole * config.kept_steps // config.num_steps
    if cut < whole:
        peaks.append(whole + cut)
    if config.stride > 1:
        places = 8 * count_tasks(env, config) * config.num_streams * config.kept_steps  # twice an int32 for every step
        peaks.append(cut + places + held_bytes(env, config))
    return max(peaks)


def held_bytes(env: TaskFamily, config: HistoriesConfig) -> int:
    """What the histories take once they are made, in memory or on disk; nothing is computed."""
    return nbytes(jax.eval_shape(partial(make_histories, env, config)))


def _keys(config: HistoriesConfig) -> Array:
    """Of the tasks, the source, the random agent and the filter."""
    return jax.random.split(jax.random.key(config.source_seed), 4)


def _learners(env: TaskFamily, config: HistoriesConfig) -> tuple[Learner, Learner | None, int]:
    """The source, the random agent beside it if there is one, and how many rounds both take."""
    learner, num_rounds = make_learner(env, config, config.num_streams - config.num_random)
    if not config.num_random:
        return learner, None, num_rounds
    by_chance = as_learner(uniform(env), env, config.num_random, config.num_steps // num_rounds)
    return learner, by_chance, num_rounds


def _check_episodes(env: TaskFamily, config: HistoriesConfig) -> None:
    """Refuses histories that hold no episode or too few, and scores that would all be the same."""
    if not env.episodic:
        never = f"with env={env.name}, whose only episode never ends"
        require(config.stride == 1, "stride", config.stride, f"1 {never}")
        require(not config.lhf, "lhf", config.lhf, f"False {never}")
        return
    H = episode_steps(env)
    require(config.num_steps >= H, "num_steps", config.num_steps, f"at least {H}, an episode of env={env.name}")
    whole = f"enough to keep an episode, {H} of num_steps={config.num_steps}"
    require(config.kept_steps >= H, "kept_share", config.kept_share, whole)
    most = config.kept_steps // H
    require(config.stride <= most, "stride", config.stride, f"at most {most}, the episodes of a history")
    if config.lhf and env.optimal_return is not None:
        with jax.ensure_compile_time_eval():  # a number also where the caller jits
            best = float(_least_optimum(env, config))
        allowed = f"False with env={env.name}, where the best return of a task is {best:g}: it has to be above 0"
        require(best > 0, "lhf", config.lhf, allowed)


@partial(jax.jit, static_argnums=(0, 1))
def _least_optimum(env: TaskFamily, config: HistoriesConfig) -> Array:
    """The best return of the task where it is least, float32 []."""
    return jnp.min(jax.vmap(env.optimal_return)(training_tasks(env, config, _keys(config)[0])))


def training_tasks(env: TaskFamily, config: HistoriesConfig, key: Array) -> Any:
    """The train tasks [M, ...]: so many drawn, or all that the family lists.

    Raises:
      ValueError: a family that lists none, and `num_tasks` is None.
    """
    if config.num_tasks is not None:
        return sample_tasks(env, key, config.num_tasks, "train")
    if env.tasks is None:
        raise ValueError(f"num_tasks=None: must be given with env={env.name}, whose tasks cannot be listed")
    return env.tasks("train")


def count_tasks(env: TaskFamily, config: HistoriesConfig) -> int:
    """M."""
    tasks = jax.eval_shape(lambda key: training_tasks(env, config, key), jax.random.key(0))
    return jax.tree.leaves(tasks)[0].shape[0]


def make_learner(env: TaskFamily, config: HistoriesConfig, num_streams: int) -> tuple[Learner, int]:
    """The source algorithm on N streams, and in how many rounds it takes `num_steps` steps.

    Raises:
      ValueError: a source that the family does not fit; steps that are no whole number of its rounds.
    """
    if config.source in ("ppo", "a2c", "sac"):
        options = gradient_source(config, num_streams)
        if config.num_steps % options.num_steps:
            whole = f"a multiple of {options.num_steps}, a round of {config.source}"
            raise ValueError(f"num_steps={config.num_steps}: must be {whole}")
        actions = env.action_space(env.default_params)
        if config.source == "sac" and not isinstance(actions, spaces.Box):
            raise ValueError(f"source='sac': is for continuous actions, not for those of env={env.name}")
        learner = sac_learner(env, options) if isinstance(options, SACConfig) else ppo_learner(env, options)
        return learner, config.num_steps // options.num_steps
    agent, where = make_source(env, config)
    with jax.ensure_compile_time_eval():  # a number also where the caller jits
        round_steps = math.gcd(config.num_steps, int(env.default_params.max_steps_in_episode))
    return as_learner(agent, where, num_streams, round_steps, config.shared), config.num_steps // round_steps


def gradient_source(config: HistoriesConfig, num_streams: int) -> PPOConfig | SACConfig:
    """The source as all streams share it: one policy, or one actor with its buffer.

    A minibatch of PPO is one stream's worth of steps; A2C has the rates of AD's A3C.
    """
    if config.source == "ppo":
        options = PPOConfig(num_streams=num_streams, num_minibatches=num_streams)
    elif config.source == "a2c":
        options = a2c(num_streams=num_streams)
    else:
        whole = -(-SACConfig.buffer_size // num_streams) * num_streams
        options = SACConfig(num_streams=num_streams, buffer_size=whole)
    if config.source_rate is not None:
        optim = dataclasses.replace(options.optim, learning_rate=config.source_rate)
        options = dataclasses.replace(options, optim=optim)
    return options if config.source_discount is None else dataclasses.replace(options, discount=config.source_discount)


def make_source(env: TaskFamily, config: HistoriesConfig) -> tuple[Agent, Environment]:
    """The source as an agent, and the environment it acts in: what a source is that takes no gradient steps."""
    if config.source == "q_learning":
        rate = 1.0 if config.source_rate is None else config.source_rate
        discount = 0.9 if config.source_discount is None else config.source_discount
        constant = (config.q_epsilon, config.q_epsilon), (rate, rate)
        count = config.q_rewards
        return q_learning(env, *constant, discount=discount, initial=config.q_initial, count_rewards=count), env
    if config.source == "expert":
        return oracle(env), revealed(env)
    if config.source == "noise_curriculum":
        last, decay = config.noise_last, config.noise_decay
        return noise_curriculum(oracle(env), env, config.num_steps, last=last, decay=decay), revealed(env)
    if config.source == "logged":
        raise ValueError("source='logged': is none that could learn anew")
    bandit_agents = {"ucb1": ucb1, "thompson_gaussian": thompson_gaussian, "thompson_beta": thompson_beta}
    if config.source not in bandit_agents or not isinstance(env, Bandit):
        raise ValueError(f"source={config.source!r}: is for bandits, not for env={env.name}")
    return bandit_agents[config.source](env.num_actions), env

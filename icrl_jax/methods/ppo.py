"""PPO, and A2C as its simplest case: act with the policy, then take clipped gradient steps on what that brought.

One round is N streams of T steps by one policy, the next T of N rollouts that never end, and the update on them. It
is both a source algorithm, `ppo_learner`, whose streams share one task, and a method, `ppo`, whose streams meet many.
With a model that remembers, `ppo` is RL^2: the memory outlives episodes until a trial ends, and what the model is told
of the last action, reward and end of an episode (`embedding.inputs`) is all that it learns a new task from.

Schulman, Wolski, Dhariwal, Radford, Klimov, *Proximal Policy Optimization Algorithms*, 2017,
https://arxiv.org/abs/1707.06347; Mnih et al., *Asynchronous Methods for Deep Reinforcement Learning*, ICML 2016,
https://arxiv.org/abs/1602.01783 (A2C); Duan et al., *RL^2*, 2016, https://arxiv.org/abs/1611.02779.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from gymnax.environments.environment import Environment

from icrl_envs import TaskFamily
from icrl_envs.task_family import NEVER, any_of_batch
from icrl_jax.agents import trained
from icrl_jax.agents.in_context import empty_memory, stack_memories, step_one
from icrl_jax.agents.learner import Static
from icrl_jax.core import Agent, Array, Learner, Method, TimeStep, TrainState, Transition, Tree, partial
from icrl_jax.data.contexts import timesteps_of
from icrl_jax.methods.returns import gae
from icrl_jax.methods.supervised import (
    OptimConfig,
    descend,
    gradient_of_rows,
    make_optimiser,
    make_schedule,
    row_keys,
)
from icrl_jax.models.actor_critic import ActorCritic
from icrl_jax.models.embeddings import EmbeddingConfig
from icrl_jax.models.heads import ActionHeadConfig, ValueHeadConfig
from icrl_jax.models.kinds import ModelConfig
from icrl_jax.models.layers import check_choices, check_sizes
from icrl_jax.models.mlp import MLPConfig
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.parallel import check_rows, mean_over_rows, one_after_another, over_rows
from icrl_jax.rollout import Record, RolloutState, Trial, rollout, start

HEAD, VALUE = ActionHeadConfig(scale=0.01), ValueHeadConfig()


@dataclass(frozen=True)
class PPOConfig:
    """What PPO learns from, and with."""

    model: ModelConfig = field(default_factory=MLPConfig)
    embedding: EmbeddingConfig = field(default_factory=lambda: EmbeddingConfig(inputs=("obs",), integers="tables"))
    """What the model sees of a time step; by default the current observation only."""
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            learning_rate=1e-3, weight_decay=0.0, schedule="constant", warmup=0.0, beta2=0.999, clip=0.5, eps=1e-5
        )
    )
    """Its schedule goes by rounds."""
    num_updates: int = 50
    """Rounds."""
    num_streams: int = 100
    """N, rollouts that share the policy."""
    num_steps: int = 20
    """T, steps of each stream in a round."""
    num_epochs: int = 4
    """How often a round is gone through."""
    num_minibatches: int = 20
    """Gradient steps in an epoch: on whole streams, or, where the model has no memory, on steps of any stream."""
    clip_ratio: float | None = 0.2
    """How far the probability of an action may move in a round, as a share of it; None lets it move."""
    reward_scale: float = 1.0
    """What rewards are multiplied by, so that returns are of a size that the critic can learn."""
    discount: float = 0.99
    """gamma."""
    trace: float = 0.95
    """lambda of the advantages."""
    returns: Literal["episode", "trial"] = "episode"
    """What returns sum up: the rest of the episode, or, as RL^2 has it, of the trial."""
    normalise: bool = True
    """Shifts and scales advantages to mean 0 and deviation 1 in each minibatch."""
    entropy_weight: float = 0.01
    """Of the policy's entropy, a bonus."""
    value_weight: float = 0.5
    """Of half the squared error of the values."""
    trial_episodes: int | None = 1
    """Episodes after which a stream of `ppo` meets another task and forgets; with `trial_steps` None too, never."""
    trial_steps: int | None = None
    """Steps after which it does."""

    def __post_init__(self):
        check_sizes(self, "num_updates", "num_streams", "num_steps", "num_epochs", "num_minibatches")
        check_sizes(self, *(x for x in ("trial_episodes", "trial_steps") if getattr(self, x) is not None))
        check_choices(self, returns=Literal["episode", "trial"])
        for name in ("discount", "trace"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be in [0, 1]")
        for name in ("entropy_weight", "value_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)!r} must be finite and at least 0")
        if not 0 < self.reward_scale < float("inf"):
            raise ValueError(f"reward_scale={self.reward_scale!r} must be finite and above 0")
        if self.clip_ratio is not None and not 0 < self.clip_ratio < float("inf"):
            raise ValueError(f"clip_ratio={self.clip_ratio!r} must be None or finite and above 0")
        moe = getattr(self.model, "moe", None)
        if moe is not None and moe.noise:
            raise ValueError("noise=True must be False: PPO compares probabilities, which noise would change")
        if self.num_rows % self.num_minibatches:
            what = "num_streams" if self.has_memory else "num_streams * num_steps"
            raise ValueError(f"num_minibatches={self.num_minibatches} must divide {what}={self.num_rows}")

    @property
    def has_memory(self) -> bool:
        """Whether the model sees more than its current input."""
        return not isinstance(self.model, MLPConfig)

    @property
    def num_rows(self) -> int:
        """What minibatches are made of: streams, or where there is no memory single steps."""
        return self.num_streams if self.has_memory else self.num_streams * self.num_steps

    @property
    def batch_size(self) -> int:
        """What a gradient step is taken on: streams, or single steps."""
        return self.num_rows // self.num_minibatches

    @property
    def horizon(self) -> int:
        """T."""
        return self.num_steps

    def tokens_per_row(self, env: Environment) -> int:
        """Inputs of the model in all epochs of a round, for each row of a minibatch."""
        return self.num_epochs * self.num_minibatches * self.inputs_of_row

    @property
    def inputs_of_row(self) -> int:
        """Inputs of the model in a row of a minibatch."""
        return self.embedding.num_tokens * (self.num_steps if self.has_memory else 1)

    def env_steps(self, env: Environment, num_seeds: int) -> int:
        """Steps that are taken."""
        return self.num_updates * self.num_streams * self.num_steps * num_seeds

    @property
    def trial(self) -> Trial | None:
        """When a stream of `ppo` meets another task."""
        if self.trial_episodes is None and self.trial_steps is None:
            return None
        return Trial(self.trial_steps, self.trial_episodes)


class Numbers(NamedTuple):
    """Options that are traced, float32 []: those of `PPOConfig` by the same names, and the peak learning rate.

    A Method's `hparams` may give any of them, so that sweeps vmap over them.
    """

    learning_rate: Array
    discount: Array
    trace: Array
    clip_ratio: Array | None
    entropy_weight: Array
    value_weight: Array


def numbers(config: PPOConfig, hparams: Mapping[str, Any] | None = None) -> Numbers:
    """The options' numbers, but for those in `hparams`.

    Raises:
      ValueError: `hparams` names something else, or a `clip_ratio` where there is none.
    """
    given = dict(hparams or {})
    own = {name: getattr(config, name) for name in Numbers._fields[1:]}
    own = {name: value for name, value in own.items() if value is not None}
    own["learning_rate"] = config.optim.learning_rate
    if not given.keys() <= own.keys():
        raise ValueError(f"hparams={sorted(given)}: must be among {', '.join(sorted(own))}")
    traced = {name: jnp.asarray(value, jnp.float32) for name, value in {**own, **given}.items()}
    return Numbers(**{"clip_ratio": None, **traced})


def a2c(**options: Any) -> PPOConfig:
    """A2C: one step on each round, nothing clipped or normalised; `options` are those of `PPOConfig`.

    Rates as in AD's sources (Laskin et al. 2022, which run it asynchronously).
    """
    optim = OptimConfig(
        learning_rate=1e-4, weight_decay=0.0, schedule="constant", warmup=0.0, beta2=0.999, clip=None, eps=1e-6
    )
    plain = {"num_epochs": 1, "num_minibatches": 1, "clip_ratio": None, "normalise": False, "optim": optim}
    return PPOConfig(**{**plain, **options})


def ppo_learner(env: Environment, config: PPOConfig) -> Learner:
    """PPO as a source algorithm: all streams are in the one task that `init` is given, which never changes."""
    _check_positions(env, config, None)
    given = Static((env, config))
    return Learner(partial(_learner_init, given), partial(_learner_learn, given))


def _learner_init(given: Static, key: Array, env_params: Any) -> TrainState:
    env, config = given.value
    tasks = jax.tree.map(lambda x: jnp.broadcast_to(x, (config.num_streams, *jnp.shape(x))), env_params)
    return _begin(env, config, tasks, key)


def _learner_learn(given: Static, state: TrainState, key: Array) -> tuple[TrainState, Record]:
    env, config = given.value
    state, record, _ = play_and_learn(env, config, state, key)
    return state, record


def ppo(env: TaskFamily, config: PPOConfig) -> Method:
    """PPO of one policy on many train tasks, N at a time; a stream meets the next one where its trial ends.

    Streams are spread over the devices, and so are the rows of each minibatch. `hparams` are those of `Numbers`.

    Raises:
      ValueError: trials that would never end, or that are longer than the model can number; when training, streams or
        rows of a minibatch that the devices cannot share evenly.
    """
    if not env.episodic and config.trial_steps is None and config.trial_episodes is not None:
        raise ValueError(f"trial_steps=None: must be given with env={env.name}, whose only episode never ends")
    _check_positions(env, config, config.trial)

    def init(key: Array, hparams: dict | None = None) -> TrainState:
        key_tasks, key_begin = jax.random.split(key)
        tasks = jax.vmap(env.sample_task)(jax.random.split(key_tasks, config.num_streams))
        return _begin(env, config, tasks, key_begin, hparams)

    def update(state: TrainState, key: Array) -> tuple[TrainState, dict]:
        check_devices(config)
        state, _, log = play_and_learn(env, config, state, key, config.trial, spread=True)
        return state, log

    return Method(init, update, agent)


def check_devices(config: PPOConfig) -> None:
    """Refuses sizes that the devices cannot share evenly.

    Raises:
      ValueError: names the option.
    """
    check_rows("num_streams", config.num_streams)
    what = "num_streams" if config.has_memory else "num_streams * num_steps"
    check_rows(f"{what} / num_minibatches", config.batch_size)


def agent(
    params: ActorCritic, context: Transition | None = None, online: bool = True, greedy: bool | None = None
) -> Agent:
    """How the trained policy acts: it samples, or offline takes the mode, unless `greedy` says otherwise."""
    return trained(params.policy, context, online, greedy)


def explorer(params: ActorCritic) -> Agent:
    """How it acts while it learns; `info` holds the `choice` behind the action, its `log_prob`, and the `value`."""
    return Agent(partial(_init, params), partial(_act, params))


def _init(params, key: Array) -> Tree:
    return empty_memory(params.policy.body)


def _act(params, carry: Tree, key: Array, timestep: TimeStep) -> tuple[Tree, Tree, dict]:
    carry, (prediction, value) = step_one(params, carry, timestep)
    choice = prediction.sample(key)
    info = {"choice": choice, "log_prob": prediction.log_prob(choice), "value": value.mean()}
    return carry, prediction.decode(choice), info


def _check_positions(env, config: PPOConfig, trial: Trial | None) -> None:
    """Refuses sequences longer than a table of learned positions."""
    if not isinstance(config.model, TransformerConfig):
        return
    with jax.ensure_compile_time_eval():
        episode = int(env.default_params.max_steps_in_episode)
    limits = () if trial is None else (trial.steps, trial.episodes and trial.episodes * episode)
    longest = min((limit for limit in limits if limit is not None), default=NEVER)
    steps = min(episode, longest) if config.model.counts_episodes else longest
    config.model.check_horizon(steps * config.embedding.num_tokens, "inputs until the memory forgets")


def _begin(env, config: PPOConfig, tasks: Tree, key: Array, hparams: dict | None = None) -> TrainState:
    """Fresh weights, and one rollout in each of N tasks, about to begin."""
    key_params, key_start = jax.random.split(key)
    spaces = env.observation_space(env.default_params), env.action_space(env.default_params)
    params = ActorCritic(config.model, *spaces, key_params, config.embedding, HEAD, VALUE)
    keys = jax.random.split(key_start, config.num_streams)
    rollouts = jax.vmap(lambda task, key: start(explorer(params), env, task, key))(tasks, keys)
    extra = {"rollouts": rollouts, "hparams": numbers(config, hparams)}
    opt_state = make_optimiser(config.optim).init(params)  # type: ignore[arg-type]
    return TrainState(params, opt_state, extra, None, jnp.zeros((), jnp.int32))


class Experience(NamedTuple):
    """What is learned from; [N, T, ...] in a round."""

    timestep: TimeStep
    choice: Tree
    log_prob: Array  # of the choice, when it was made
    advantage: Array
    ret: Array  # the return that the value is to predict
    first: Array | None = None  # int32 [N]: the step of the first choice, the same for all; what is before is only read


def play_and_learn(
    env: Environment,
    config: PPOConfig,
    state: TrainState,
    key: Array,
    trial: Trial | None = None,
    spread: bool = False,
) -> tuple[TrainState, Record, dict]:
    """One round: the next T steps of N streams, and the update on them.

    Args:
      spread: whether streams are spread over the devices; not within what is spread already, as many learners are.
    Returns:
      The state, a `Record` [T, N, ...], and a log.
    """
    key_play, key_learn = jax.random.split(key)
    rollouts, options = state.extra["rollouts"], state.extra["hparams"]

    def play_all(shared, rows):
        params, options = shared
        return jax.vmap(lambda stream, key: play(env, config, params, options, stream, key, trial))(*rows)

    keys = jax.random.split(key_play, config.num_streams)
    play_rows = over_rows(play_all) if spread else play_all
    after, (record, experience) = play_rows((state.params, options), (rollouts, keys))
    options = scheduled(config, options, state.step)
    learn_one = partial(learn, config, spread=True) if spread else one_after_another(partial(learn, config))
    params, opt_state, log = learn_one(state.params, state.opt_state, options, experience, rollouts.carry, key_learn)
    log |= {"feedback": record.transition.feedback.mean(), "learning_rate": options.learning_rate}
    state = TrainState(params, opt_state, {**state.extra, "rollouts": after}, None, state.step + 1)
    return state, jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), record), log


def scheduled(config: PPOConfig, options: Numbers, step: Array) -> Numbers:
    """The numbers of the round that follows `step` others."""
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it, whatever the caller has set
        rate = options.learning_rate * make_schedule(config.optim, config.num_updates)(step)
    return options._replace(learning_rate=rate)


def play(
    env: Any,
    config: PPOConfig,
    params: ActorCritic,
    options: Numbers,
    state: RolloutState,
    key: Array,
    trial: Trial | None,
) -> tuple[RolloutState, tuple[Record, Experience]]:
    """T steps of one stream, with advantages from the values of the policy that took them."""
    first = state.timestep
    state, (record, final_value) = act(env, params, state, key, trial, config.num_steps)
    value = record.info["value"]
    next_value = jnp.append(value[1:], value_of(params, state.carry, state.timestep))
    advantage = advantages(config, options, record, value, next_value, final_value)
    chosen = record.info["choice"], record.info["log_prob"]
    timesteps = timesteps_of(record.transition, record.reset, first.prev)
    return state, (record, Experience(timesteps, *chosen, advantage, advantage + value))


def act(
    env: Any, params: ActorCritic, state: RolloutState, key: Array, trial: Trial | None, num_steps: int
) -> tuple[RolloutState, tuple[Record, Array]]:
    """So many steps of one stream, and what each final observation is worth, [T]; 0 where an episode goes on.

    Where an episode is truncated, it is the value of the true final observation, in a memory that goes on as if the
    episode did.
    """
    next_task = None if trial is None else env.sample_task

    def body(state, _):
        state, record = rollout(explorer(params), env, state, key, 1, next_task, trial)
        record = jax.tree.map(lambda x: x[0], record)
        final, never = record.transition, jnp.zeros((), bool)
        going_on = TimeStep(final.next_obs, final._replace(truncated=never), never)
        value = lambda: value_of(params, state.carry, going_on)
        return state, (record, jax.lax.cond(any_of_batch(final.truncated), value, lambda: jnp.zeros(())))

    return jax.lax.scan(body, state, length=num_steps)


def value_of(params: ActorCritic, carry: Tree, timestep: TimeStep) -> Array:
    """What one stream is worth from this input on, float32 []."""
    return step_one(params, carry, timestep)[1][1].mean()


def advantages(
    config: PPOConfig, options: Numbers, record: Record, value: Array, next_value: Array, final_value: Array
) -> Array:
    """Of the steps of one stream, [T]; `returns` says what is their end.

    Args:
      value, next_value: float32 [T], of the input of each step, and of the input after it.
      final_value: float32 [T], from `act`.
    """
    transition = record.transition
    if config.returns == "episode":
        next_value = jnp.where(transition.truncated, final_value, next_value)
        terminal, cut = transition.terminated, transition.terminated | transition.truncated
    else:
        terminal = cut = record.trial_end
    rewards = config.reward_scale * transition.feedback
    return gae(rewards, value, next_value, terminal, cut, options.discount, options.trace)


def learn(
    config: PPOConfig,
    params: ActorCritic,
    opt_state: Tree,
    options: Numbers,
    experience: Experience,
    memories: Tree,
    key: Array,
    spread: bool = False,
) -> tuple[ActorCritic, Tree, dict]:
    """All epochs on the experience [N, T, ...], read from the memories [N, ...] that the streams had at its start.

    Args:
      options: with the learning rate of this round.
      memories: as the agent of each stream holds its own.
      spread: whether the rows of a minibatch are spread over the devices.
    Returns:
      The parameters, the optimiser's memory, and a log of means over all steps; `ratio_gap` is of the first minibatch.
    """
    rows, tx = config.num_rows, make_optimiser(config.optim)
    if not config.has_memory:
        experience = jax.tree.map(lambda x: x.reshape(rows, 1, *x.shape[2:]), experience)
    key_order, key_loss = jax.random.split(key)
    keys = jax.random.split(key_order, config.num_epochs)
    order = jax.vmap(lambda key: jax.random.permutation(key, rows))(keys)
    order = order.reshape(-1, config.batch_size)
    tokens = config.inputs_of_row

    def gradient_of(shared, rows):
        params, options = shared
        batch, keys = rows
        of_params = lambda params, batch, key: loss(params, batch[0], batch[1], key, options)
        return gradient_of_rows(of_params, params, batch, keys, tokens, config.model.least_rows(tokens))

    mean_gradient = mean_over_rows(gradient_of) if spread else gradient_of

    def descend_once(carry, inputs):
        params, opt_state = carry
        index, key = inputs
        batch = experience, memories
        if config.num_minibatches > 1:
            batch = jax.tree.map(lambda x: x[index], batch)
        batch = standardised(batch[0]) if config.normalise else batch[0], batch[1]
        gradient, log = mean_gradient((params, options), (batch, row_keys(key, config.batch_size)))
        params, opt_state = descend(tx, options.learning_rate, gradient, opt_state, params)
        return (params, opt_state), {**log, "gradient_norm": optax.tree.norm(gradient)}

    keys = jax.random.split(key_loss, len(order))
    (params, opt_state), log = jax.lax.scan(descend_once, (params, opt_state), (order, keys))
    first_gap = log["ratio_gap"][0]
    return params, opt_state, {**{name: x.mean() for name, x in log.items()}, "ratio_gap": first_gap}


def standardised(batch: Experience) -> Experience:
    """With advantages of mean 0 and deviation 1."""
    advantage = batch.advantage
    return batch._replace(advantage=(advantage - advantage.mean()) / (advantage.std() + 1e-8))


def loss(
    params: ActorCritic, batch: Experience, memories: Tree, key: Array, options: Numbers
) -> tuple[Array, dict[str, Array]]:
    """The clipped surrogate (Schulman et al. 2017, equations 7 and 9), with r the ratio of new and old probability:

    - mean min(r A, clip(r, 1 - c, 1 + c) A) + value_weight (V - ret)^2 / 2 - entropy_weight H
    """
    memory = stack_memories(params.policy.body, memories)
    _, opinions, aux = params(memory, batch.timestep)
    if batch.first is not None:
        first, length = batch.first[0], batch.advantage.shape[1]
        opinions = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, length, axis=1), opinions)
    prediction, value = opinions
    log_ratio = prediction.log_prob(batch.choice) - batch.log_prob
    ratio, advantage = jnp.exp(log_ratio), batch.advantage
    gain = ratio * advantage
    if options.clip_ratio is not None:
        gain = jnp.minimum(gain, jnp.clip(ratio, 1 - options.clip_ratio, 1 + options.clip_ratio) * advantage)
    policy_loss, value_loss = -gain.mean(), value.loss(batch.ret).mean()
    entropy = prediction.entropy(key).mean()
    total = policy_loss + options.value_weight * value_loss - options.entropy_weight * entropy
    log = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy, **aux.losses}
    log |= {"kl": (ratio - 1 - log_ratio).mean(), "ratio_gap": jnp.abs(ratio - 1).max()}
    return total + sum(aux.losses.values()), log

"""One-line wrappers that compose: `revealed(env)`, `copies(env, n)`, `preferences(env)`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from gymnax.environments import spaces
from gymnax.environments.environment import Environment

from icrl_envs.task_family import TaskFamily, is_int, is_number, require


class Revealed(NamedTuple):
    """What an oracle sees: the observation with the hidden state and the task beside it."""

    obs: Any
    state: Any
    params: Any


def _inner(name: str) -> Any:
    return property(lambda self: getattr(self.env, name, getattr(TaskFamily, name, None)))


class Wrapper(TaskFamily):
    """An environment that is another one but for what it defines itself."""

    def __init__(self, env: Environment):
        self.env: Any = env

    def __getattr__(self, name: str) -> Any:  # what only the wrapped class has: `num_arms`, `features`, ...
        if name == "env":  # not set yet: while copying
            raise AttributeError(name)
        return getattr(self.env, name)

    name = _inner("name")
    default_params = _inner("default_params")
    num_actions = _inner("num_actions")
    episodic = _inner("episodic")
    terminates = _inner("terminates")
    rare_reset = _inner("rare_reset")
    sample_task = _inner("sample_task")
    tasks = _inner("tasks")
    optimal_action = _inner("optimal_action")
    expected_reward = _inner("expected_reward")
    optimal_advantage = _inner("optimal_advantage")
    optimal_return = _inner("optimal_return")
    render = _inner("render")
    step_env = _inner("step_env")
    reset_env = _inner("reset_env")
    is_truncated = _inner("is_truncated")
    is_terminated = _inner("is_terminated")
    action_space = _inner("action_space")
    observation_space = _inner("observation_space")
    state_space = _inner("state_space")


class _Revealed(Wrapper):
    def __init__(self, env):
        super().__init__(env)
        _require_one(env)

    def step_env(self, key, state, action, params):
        obs, state, reward, terminated, info = self.env.step_env(key, state, action, params)
        return Revealed(obs, state, params), state, reward, terminated, info

    def reset_env(self, key, params):
        obs, state = self.env.reset_env(key, params)
        return Revealed(obs, state, params), state


def revealed(env: Environment) -> Wrapper:
    """Shows `Revealed(obs, state, params)` to oracles and demonstrators; histories keep only the obs.

    Raises:
      ValueError: `env` is `copies(...)`.
    """
    return _Revealed(env)


class Copies(Wrapper):
    render: Any = None  # there are n pictures

    def __init__(self, env, n):
        super().__init__(env)
        require(is_int(n, 1), "n", n, "an integer of at least 1")
        self.n = n

    def step(self, key, state, action, params=None):  # gymnax's auto-reset, for each copy by itself
        params = self.default_params if params is None else params
        return jax.vmap(self.env.step, in_axes=(0, 0, 0, None))(jax.random.split(key, self.n), state, action, params)

    def step_env(self, key, state, action, params):
        keys = jax.random.split(key, self.n)
        return jax.vmap(self.env.step_env, in_axes=(0, 0, 0, None))(keys, state, action, params)

    def reset_env(self, key, params):
        return jax.vmap(self.env.reset_env, in_axes=(0, None))(jax.random.split(key, self.n), params)

    def is_truncated(self, state, params):
        return jax.vmap(self.env.is_truncated, in_axes=(0, None))(state, params)

    @property
    def expected_reward(self):
        inner = self.env.expected_reward
        return inner and jax.vmap(inner, in_axes=(0, 0, None))

    @property
    def optimal_advantage(self):
        inner = self.env.optimal_advantage
        return inner and jax.vmap(inner, in_axes=(0, 0, None))

    @property
    def optimal_action(self):
        inner = self.env.optimal_action
        return inner and jax.vmap(inner, in_axes=(0, None))

    def action_space(self, params=None):
        return _Stacked(self.env.action_space(params), self.n)

    def observation_space(self, params=None):
        return _Stacked(self.env.observation_space(params), self.n)


def copies(env: Environment, n: int) -> Wrapper:
    """Puts n copies of one task behind one learner: every field of a step leads with [n], and copies auto-reset alone.

    Raises:
      ValueError: n below 1.
    """
    return Copies(env, n)


def _require_one(env):
    if isinstance(env, Copies):
        raise ValueError(f"env=copies({env.env.name}, {env.n}): copies goes outermost, around every other wrapper")


class _Stacked(spaces.Space):
    """n independent draws of one space."""

    def __init__(self, space, n):
        self.space, self.n, self.shape, self.dtype = space, n, (n, *space.shape), space.dtype

    def __repr__(self):
        return f"{self.n} x {self.space!r}"

    def sample(self, key):
        return jax.vmap(self.space.sample)(jax.random.split(key, self.n))

    def contains(self, x):
        return jnp.all(jax.vmap(self.space.contains)(x))


class Preferences(Wrapper):
    """See `preferences`."""

    reset_anywhere = _inner("reset_anywhere")

    def __init__(self, env, score, temperature, noise, tie_margin):
        super().__init__(env)
        _require_one(env)
        allowed = "a finite number of at least 0 (0: the better action always wins)"
        require(is_number(temperature, 0), "temperature", temperature, allowed)
        require(is_number(noise, 0, 0.5), "noise", noise, "a number in 0 ..= 0.5")
        require(is_number(tie_margin, 0), "tie_margin", tie_margin, "a finite number of at least 0")
        self.temperature, self.noise, self.tie_margin = float(temperature), float(noise), float(tie_margin)
        # A gap of rewards is no regret where an action changes what comes after it.
        known = Wrapper(env)  # whose functions are None where a gymnax environment has none
        self._knows_regret = not known.episodic or (score is None and known.optimal_advantage is not None)
        if score is None:
            score = known.optimal_advantage or known.expected_reward
        if score is None:
            raise ValueError(
                f"score=None: must be given, because {env.name} knows no optimal_advantage and no expected_reward"
            )
        self.score = score

    def step_env(self, key, state, action, params):
        key_label, key_step = jax.random.split(key)
        scores = self._scores(state, action, params)
        first, not_second = self._label_law(scores[0] - scores[1])
        drawn = jax.random.uniform(key_label)
        label = jnp.where(drawn < first, 1.0, jnp.where(drawn < not_second, 0.5, 0.0))
        winner = jnp.where(drawn < (first + not_second) / 2, action[0], action[1])  # after a tie, either
        obs, next_state, reward, terminated, info = self.env.step_env(key_step, state, winner, params)
        info = {**info, "winner": winner, "reward": reward, **self._regrets(state, scores, params)}
        return obs, next_state, label, terminated, info

    def _scores(self, state, pair, params):
        return jax.vmap(self.score, in_axes=(None, 0, None))(state, pair, params)

    def _probability(self, margin):  # that an action is preferred to one whose score is `margin` lower
        if self.temperature == 0:
            return jnp.where(margin == 0, 0.5, (margin > 0).astype(jnp.float32))
        return jax.nn.sigmoid(margin / self.temperature)

    def _label_law(self, margin):  # P(label 1), and P(label 1 or 1/2), which is the same number without ties
        first, not_second = self._probability(margin - self.tie_margin), self._probability(margin + self.tie_margin)
        flipped = 1 - not_second, 1 - first
        return tuple((1 - self.noise) * p + self.noise * q for p, q in zip((first, not_second), flipped, strict=True))

    def _regrets(self, state, scores, params):
        if getattr(self.env, "optimal_action", None) is None or not self._knows_regret:
            return {}
        gaps = self.score(state, self.env.optimal_action(state, params), params) - scores
        return {"weak_regret": jnp.min(gaps), "strong_regret": jnp.max(gaps)}

    optimal_advantage: Any = None  # of a pair it is not that of either action

    @property
    def expected_reward(self):
        return self.env.expected_reward and self._expected_reward

    def _expected_reward(self, state, pair, params):
        scores = self._scores(state, pair, params)
        probability = sum(self._label_law(scores[0] - scores[1])) / 2
        rewards = jax.vmap(self.env.expected_reward, in_axes=(None, 0, None))(state, pair, params)
        return probability * rewards[0] + (1 - probability) * rewards[1]

    @property
    def optimal_action(self):
        return self.env.optimal_action and self._optimal_action

    def _optimal_action(self, state, params):
        best = self.env.optimal_action(state, params)
        return jnp.stack([best, best])

    def action_space(self, params=None):
        return _Stacked(self.env.action_space(params), 2)


def preferences(
    env: Environment,
    score: Callable | None = None,
    temperature: float = 1.0,
    noise: float = 0.0,
    tie_margin: float = 0.0,
) -> Preferences:
    """Takes a pair of actions (leading [2]), moves by the preferred one and returns only the label as feedback.

    The first action is preferred (label 1, else 0) with probability sigmoid((score_0 - score_1) / temperature), as
    Bradley and Terry 1952. With a margin there are ties (label 1/2), after which a fair coin says who moves: the first
    is then preferred with probability sigmoid((score_0 - score_1 - tie_margin) / temperature), the second likewise (Rao
    and Kupper 1967). With noise a label that is no tie is turned round with that probability.

    Rewards and regrets stay in `info`, for scoring only: `reward`, `winner`, who moved, and in bandits and where the
    score is the advantage `weak_regret` and `strong_regret`, the smaller and larger gap *of score* of the pair to the
    best action (those of `DuelingBandit` are gaps of the probability to win).

    Args:
      env: the environment whose rewards are hidden.
      score: `(state, action, params) -> float32 []`; by default the family's `optimal_advantage`, as in ICPRL, or where
        it has none, as in bandits, `expected_reward`.
      temperature: at least 0; at 0 the better action always wins, equal ones by a fair coin.
      noise: in 0 ..= 0.5.
      tie_margin: at least 0, in units of the score; at temperature 0, all gaps below it are ties.
    Raises:
      ValueError: a number outside its range, no score to compare by, or `env` is `copies(...)`.
    """
    return Preferences(env, score, temperature, noise, tie_margin)

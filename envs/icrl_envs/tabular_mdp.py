"""Random tabular MDPs, small enough to plan in exactly."""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import EnvParams, EnvState

from icrl_envs import drawing
from icrl_envs.planning import plan
from icrl_envs.task_family import NEVER, Split, TaskFamily, is_int, is_name, is_number, require, split_key

RewardLaw = Literal["bernoulli", "gaussian"]
Start = Literal["first", "uniform"]


@struct.dataclass
class TabularMDPParams(EnvParams):
    """One MDP."""

    transitions: jax.Array = struct.field(default_factory=lambda: jnp.ones((1, 1, 1)))  # float32 [S, A, S], P(s'|s, a)
    reward_means: jax.Array = struct.field(default_factory=lambda: jnp.zeros((1, 1)))  # float32 [S, A]
    noise_sd: jax.Array = struct.field(default_factory=lambda: jnp.zeros(()))  # float32 [], of Gaussian rewards
    start: jax.Array = struct.field(default_factory=lambda: jnp.ones(1))  # float32 [S], probabilities
    max_steps_in_episode: int = 1


@struct.dataclass
class TabularMDPState(EnvState):
    """Where the agent is."""

    at: jax.Array  # int32 []


class TabularMDP(TaskFamily):
    """Random MDPs with Dirichlet transitions, to compare with UCB-VI and posterior sampling.

    No paper has run these: Lin et al. 2023 (Transformers as Decision Makers) prove that transformers can run UCB-VI in
    tabular MDPs, and the sizes here are of that scale. The observation is the state (int32 []), actions are 0 ..= A - 1
    (int32 [], clipped into the range). An episode starts in state 0 or anywhere, never terminates, and is truncated
    after `horizon` steps. Both laws of the reward are conjugate to the prior of its means:

    - "bernoulli": 1 with probability reward_means[s, a], else 0; means U[0, 1] = Beta(1, 1);
    - "gaussian": N(reward_means[s, a], noise_sd^2); means N(0, 1).

    `optimal_action` plans anew at each call, in O(horizon S^2 A), the price of a few steps at the default sizes. Values
    kept in the task would go stale when a user edits it, and every task drawn would pay for them; `planning.plan` gives
    those of a whole episode at once.

    Args:
      num_states: S, at least 1.
      num_actions: A, at least 2.
      horizon: steps of an episode, at least 1; a task's `max_steps_in_episode` may be edited up to it.
      concentration: of the symmetric Dirichlet law of transitions[s, a], above 0; small: nearly deterministic.
      reward_law: "bernoulli" or "gaussian".
      noise_sd: of Gaussian rewards, at least 0; at 0 rewards are deterministic.
      start: "first" or "uniform".
    """

    terminates = False

    def __init__(
        self,
        num_states: int = 10,
        num_actions: int = 4,
        horizon: int = 10,
        concentration: float = 1.0,
        reward_law: RewardLaw = "bernoulli",
        noise_sd: float = 1.0,
        start: Start = "first",
    ):
        require(is_int(num_states, 1), "num_states", num_states, "an integer of at least 1")
        require(is_int(num_actions, 2), "num_actions", num_actions, "an integer of at least 2")
        require(is_int(horizon, 1, NEVER - 1), "horizon", horizon, "an integer of at least 1")
        require(
            is_number(concentration) and concentration > 0, "concentration", concentration, "a finite number above 0"
        )
        require(is_name(reward_law, get_args(RewardLaw)), "reward_law", reward_law, "'bernoulli' or 'gaussian'")
        require(is_number(noise_sd, 0), "noise_sd", noise_sd, "a finite number of at least 0")
        require(is_name(start, get_args(Start)), "start", start, "'first' or 'uniform'")
        self.num_states = num_states
        self._num_actions = num_actions
        self.horizon = horizon
        self.concentration = concentration
        self.reward_law = reward_law
        self.noise_sd = noise_sd
        first = np.eye(num_states, dtype=np.float32)[0]
        self.start = first if start == "first" else np.full(num_states, 1 / num_states, np.float32)

    @property
    def default_params(self) -> TabularMDPParams:
        """A ring: action a moves on by a states, and leaving the last state pays 1."""
        state, action = np.indices((self.num_states, self._num_actions))
        transitions = np.eye(self.num_states, dtype=np.float32)[(state + action) % self.num_states]
        return self._params(jnp.asarray(transitions), jnp.asarray(state == self.num_states - 1, jnp.float32))

    def sample_task(self, key: jax.Array, split: Split = "train") -> TabularMDPParams:
        """Draws transitions and the means of the rewards."""
        key_transitions, key_means = jax.random.split(split_key(key, split))
        shape = (self.num_states, self._num_actions)
        alpha = jnp.full(self.num_states, self.concentration, jnp.float32)
        transitions = jax.random.dirichlet(key_transitions, alpha, shape)
        means = jax.random.uniform if self.reward_law == "bernoulli" else jax.random.normal
        return self._params(transitions, means(key_means, shape))

    def _params(self, transitions, reward_means):
        return TabularMDPParams(
            transitions=transitions,
            reward_means=reward_means,
            noise_sd=jnp.float32(self.noise_sd if self.reward_law == "gaussian" else 0),
            start=jnp.asarray(self.start),
            max_steps_in_episode=self.horizon,
        )

    def step_env(self, key, state, action, params):
        """Pays for the action and moves."""
        key_reward, key_move = jax.random.split(key)
        mean = self.expected_reward(state, action, params)
        if self.reward_law == "bernoulli":
            reward = (jax.random.uniform(key_reward) < mean).astype(jnp.float32)
        else:
            reward = mean + params.noise_sd * jax.random.normal(key_reward)
        at = _draw(key_move, params.transitions[state.at, self._clipped(action)])
        return at, TabularMDPState(time=state.time + 1, at=at), reward, jnp.zeros((), bool), {}

    def reset_env(self, key, params):
        """Draws the first state."""
        at = _draw(key, params.start)
        return at, TabularMDPState(time=jnp.zeros((), jnp.int32), at=at)  # type: ignore[arg-type]

    def reset_anywhere(self, key, params):
        """Draws the first state uniformly."""
        at = jax.random.randint(key, (), 0, self.num_states)
        return at, TabularMDPState(time=jnp.zeros((), jnp.int32), at=at)  # type: ignore[arg-type]

    def expected_reward(self, state: TabularMDPState, action: Any, params: TabularMDPParams) -> jax.Array:
        """Mean reward of an action here, float32 []."""
        return params.reward_means[state.at, self._clipped(action)]

    def optimal_action(self, state: TabularMDPState, params: TabularMDPParams) -> jax.Array:
        """The action with the highest value with as many steps left, int32 []; the lowest such one if several.

        Should more than `horizon` be left, it is that for `horizon`.
        """
        values = self._plan(params.max_steps_in_episode - state.time, params)[state.at]
        return jnp.argmax(values).astype(jnp.int32)

    def optimal_advantage(self, state: TabularMDPState, action: Any, params: TabularMDPParams) -> jax.Array:
        """What an action costs against the best one, in expected reward until the end of the episode, float32 []."""
        values = self._plan(params.max_steps_in_episode - state.time, params)[state.at]
        return values[self._clipped(action)] - jnp.max(values)

    def optimal_return(self, params: TabularMDPParams) -> jax.Array:
        """Value of the first state under the best policy, averaged over the law of the start, float32 [].

        NaN for a task longer than `horizon`.
        """
        values = self._plan(params.max_steps_in_episode, params)
        known = params.max_steps_in_episode <= self.horizon
        return jnp.where(known, jnp.sum(params.start * jnp.max(values, axis=1)), jnp.nan)

    def _plan(self, steps_left, params):
        index = jnp.clip(self.horizon - steps_left, 0, self.horizon - 1)
        return plan(params.transitions, params.reward_means, self.horizon)[index]

    def _clipped(self, action):
        return jnp.clip(action, 0, self._num_actions - 1)

    def render(self, state: TabularMDPState, params: TabularMDPParams) -> jax.Array:
        """A column for each state: where the agent is, then for each action where it leads (blue) and what it pays.

        Pay is shown in green, from 0 (white) to 1, or from -2 to 2 where rewards are Gaussian.
        """
        here = jnp.arange(self.num_states) == state.at
        pay = params.reward_means.T if self.reward_law == "bernoulli" else 0.5 + params.reward_means.T / 4
        rows = [
            _shade(here[None].astype(jnp.float32), drawing.ORANGE),
            _shade(params.transitions[state.at], drawing.BLUE),
            _shade(pay, drawing.GREEN),
        ]
        return drawing.cells(jnp.concatenate(rows))

    @property
    def num_actions(self) -> int:
        """Number of actions."""
        return self._num_actions

    def action_space(self, params=None) -> spaces.Discrete:
        """The actions."""
        return spaces.Discrete(self._num_actions)

    def observation_space(self, params=None) -> spaces.Discrete:
        """The states."""
        return spaces.Discrete(self.num_states)


def _draw(key, probabilities):
    """Draws an index, int32 []: one uniform number, and no sum that rounding keeps below 1."""
    cumulative = jnp.cumsum(probabilities)
    level = jax.random.uniform(key) * cumulative[-1]
    return jnp.minimum(jnp.sum(cumulative <= level, dtype=jnp.int32), len(probabilities) - 1)


def _shade(share, colour):
    """White at 0, the colour at 1, uint8 [..., 3]."""
    white = jnp.asarray(drawing.WHITE, jnp.float32)
    towards = jnp.asarray(colour, jnp.float32) - white
    mixed = white[None, None] + jnp.clip(share, 0, 1)[..., None] * towards[None, None]
    return mixed.astype(jnp.uint8)

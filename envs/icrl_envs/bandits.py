"""Multi-armed bandits: one never-ending episode, one constant observation, A arms."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import EnvParams, EnvState

from icrl_envs import drawing
from icrl_envs.task_family import NEVER, Split, TaskFamily, is_int, is_number, require, split_key


@struct.dataclass
class GaussianBanditParams(EnvParams):
    """One Gaussian bandit: arm a pays N(means[a], noise_sd^2)."""

    means: jax.Array = struct.field(default_factory=lambda: jnp.zeros(1))  # float32 [A]
    noise_sd: jax.Array = struct.field(default_factory=lambda: jnp.zeros(()))  # float32 [], >= 0
    max_steps_in_episode: int = NEVER


@struct.dataclass
class BernoulliBanditParams(EnvParams):
    """One Bernoulli bandit: arm a pays 1 with probability means[a], else 0."""

    means: jax.Array = struct.field(default_factory=lambda: jnp.zeros(1))  # float32 [A], in [0, 1]
    max_steps_in_episode: int = NEVER


@struct.dataclass
class LinearBanditParams(EnvParams):
    """One linear bandit: arm a pays N(<theta, features[a]>, noise_sd^2)."""

    theta: jax.Array = struct.field(default_factory=lambda: jnp.zeros(1))  # float32 [d]
    features: Any = None  # float32 [A, d]; None where all tasks share the environment's
    noise_sd: jax.Array = struct.field(default_factory=lambda: jnp.zeros(()))  # float32 [], >= 0
    max_steps_in_episode: int = NEVER


class Bandit(TaskFamily):
    """What all bandits share. The observation stays the same, mostly 1 (float32 [1]); actions are arms (int32 [])."""

    episodic = False

    def __init__(self, num_arms: int):
        require(is_int(num_arms, 2), "num_arms", num_arms, "an integer of at least 2")
        self.num_arms = num_arms

    def means(self, params: Any) -> jax.Array:
        """Expected reward of every arm, float32 [A]."""
        raise NotImplementedError

    def observe(self, params: Any) -> jax.Array:
        """What is seen at every step: the constant 1."""
        return jnp.ones(1)

    def sample_reward(self, key: jax.Array, mean: jax.Array, params: Any) -> jax.Array:
        """Draws the reward of an arm whose mean is given, float32 []."""
        raise NotImplementedError

    def expected_reward(self, state: EnvState, action: Any, params: Any) -> jax.Array:
        """Mean reward of one arm, float32 []; arms outside the action space are clipped into it."""
        return self.means(params)[jnp.clip(action, 0, self.num_arms - 1)]

    def optimal_action(self, state: EnvState, params: Any) -> jax.Array:
        """The arm with the highest mean, int32 []; the lowest such index if several."""
        return jnp.argmax(self.means(params)).astype(jnp.int32)

    def bar_heights(self, params: Any) -> jax.Array:
        """The means as shares of the picture's height, float32 [A]."""
        return self.means(params)

    def render(self, state: EnvState, params: Any) -> jax.Array:
        """A bar for the mean of every arm, uint8 [96, 16 A, 3]."""
        return drawing.bars(self.bar_heights(params))

    def step_env(self, key, state, action, params):
        """Pulls one arm."""
        reward = self.sample_reward(key, self.expected_reward(state, action, params), params)
        return self.observe(params), EnvState(time=state.time + 1), reward, jnp.zeros((), bool), {}

    def reset_env(self, key, params):
        """Starts the one episode."""
        return self.observe(params), EnvState(time=jnp.zeros((), jnp.int32))  # type: ignore[arg-type]

    def reset_anywhere(self, key, params):
        """There is one state."""
        return self.reset_env(key, params)

    def is_truncated(self, state, params):
        """Never: the horizon of a bandit is the number of steps of the rollout."""
        return jnp.zeros((), bool)

    @property
    def num_actions(self) -> int:
        """Number of arms."""
        return self.num_arms

    def action_space(self, params=None) -> spaces.Discrete:
        """The arms."""
        return spaces.Discrete(self.num_arms)

    def observation_space(self, params=None) -> spaces.Box:
        """The constant 1."""
        return spaces.Box(1.0, 1.0, (1,))


class GaussianBandit(Bandit):
    """Means iid U[0, 1], Gaussian reward noise (Lee et al. 2023, DPT: 5 arms, sd 0.3).

    Args:
      num_arms: A, at least 2.
      noise_sd: standard deviation of the reward noise, at least 0.
    """

    presets = {"dpt": {"num_arms": 5, "noise_sd": 0.3}}

    def __init__(self, num_arms: int = 5, noise_sd: float = 0.3):
        super().__init__(num_arms)
        require(is_number(noise_sd, 0), "noise_sd", noise_sd, "a finite number of at least 0")
        self.noise_sd = noise_sd

    @property
    def default_params(self) -> GaussianBanditParams:
        """Evenly spaced means, the last arm best."""
        return self._params(jnp.linspace(0.0, 1.0, self.num_arms))

    def sample_task(self, key: jax.Array, split: Split = "train") -> GaussianBanditParams:
        """Draws the means of one bandit, each U[0, 1]."""
        return self._params(jax.random.uniform(split_key(key, split), (self.num_arms,)))

    def _params(self, means):
        return GaussianBanditParams(means=means, noise_sd=jnp.float32(self.noise_sd))

    def means(self, params):
        """Expected reward of every arm, float32 [A]."""
        return params.means

    def sample_reward(self, key, mean, params):
        """N(mean, noise_sd^2)."""
        return mean + params.noise_sd * jax.random.normal(key)


class BernoulliBandit(Bandit):
    """Means iid U[0, 1], rewards 0 or 1 (the test shift of Lee et al. 2023, DPT).

    With `odd_share` the good arms, whose means are U[1/2, 1], are the odd-numbered ones in that share of the train
    tasks and the even-numbered ones in that share of the test tasks; the means of the others are U[0, 1/2] (Laskin et
    al. 2022, AD: 10 arms, 0.95; "all" holds as many of either). That paper gives the share alone: the law of the means,
    and counting the arms from 0, follow the published code of Sinii et al. 2023 (Headless-AD).

    Args:
      num_arms: A, at least 2.
      odd_share: None, or a number in 0 ..= 1.
    """

    presets = {"dpt": {"num_arms": 5}, "ad": {"num_arms": 10, "odd_share": 0.95}, "provable": {"num_arms": 5}}

    def __init__(self, num_arms: int = 5, odd_share: float | None = None):
        super().__init__(num_arms)
        require(odd_share is None or is_number(odd_share, 0, 1), "odd_share", odd_share, "None or a number in 0 ..= 1")
        self.odd_share = odd_share

    @property
    def default_params(self) -> BernoulliBanditParams:
        """Evenly spaced means, the last arm best."""
        return BernoulliBanditParams(means=jnp.linspace(0.0, 1.0, self.num_arms))

    def sample_task(self, key: jax.Array, split: Split = "train") -> BernoulliBanditParams:
        """Draws the means of one bandit."""
        key = split_key(key, split)
        if self.odd_share is None:
            return BernoulliBanditParams(means=jax.random.uniform(key, (self.num_arms,)))
        key_means, key_good = jax.random.split(key)
        share = {"train": self.odd_share, "test": 1 - self.odd_share, "all": 0.5}[split]
        odd_is_good = jax.random.uniform(key_good) < share
        is_odd = np.arange(self.num_arms) % 2 == 1
        low = jnp.where(is_odd == odd_is_good, 0.5, 0.0)
        return BernoulliBanditParams(means=low + jax.random.uniform(key_means, (self.num_arms,)) / 2)

    def means(self, params):
        """Expected reward of every arm, float32 [A]."""
        return params.means

    def sample_reward(self, key, mean, params):
        """1 with probability `mean`, else 0."""
        return (jax.random.uniform(key) < mean).astype(jnp.float32)


class LinearBandit(Bandit):
    """Means linear in features: mean[a] = <theta, features[a]> (Lee et al. 2023, DPT).

    theta ~ N(0, I_d / d) is the task; features, each row N(0, I_d / d), are drawn once for all tasks by NumPy's legacy
    generator from `feature_seed`, as the paper's code does (10 arms, d = 2, seed 1234, sd 0.3).
    "dit" (Dong et al. 2024) has the same laws, 20 arms, d = 10, and noise of variance 0.3, as the text writes; the seed
    of its features is not known, and here is DPT's.

    Without a seed the features belong to the task too: their entries are U[-1, 1], theta ~ U[0, 1]^d, and the features
    are the observation, row by row (float32 [A d]). So it is in "provable" (Lin et al. 2023, Transformers as Decision
    Makers: 10 arms, d = 5, sd 1.5, 200 pulls).

    Args:
      num_arms: A, at least 2.
      dim: d, at least 1.
      noise_sd: standard deviation of the reward noise, at least 0.
      feature_seed: seed of the shared features, 0 ..= 2^31 - 1; None: each task has its own.
    """

    presets = {
        "dpt": {"num_arms": 10, "dim": 2, "noise_sd": 0.3, "feature_seed": 1234},
        "dit": {"num_arms": 20, "dim": 10, "noise_sd": 0.3**0.5, "feature_seed": 1234},
        "provable": {"num_arms": 10, "dim": 5, "noise_sd": 1.5, "feature_seed": None},
    }

    def __init__(self, num_arms: int = 10, dim: int = 2, noise_sd: float = 0.3, feature_seed: int | None = 1234):
        super().__init__(num_arms)
        require(is_int(dim, 1), "dim", dim, "an integer of at least 1")
        require(is_number(noise_sd, 0), "noise_sd", noise_sd, "a finite number of at least 0")
        known = feature_seed is None or is_int(feature_seed, 0)
        require(known, "feature_seed", feature_seed, f"None or an integer in 0 ..= {NEVER}")
        self.dim = dim
        self.noise_sd = noise_sd
        self.features = None  # float32 [A, d]
        if feature_seed is not None:
            legacy = np.random.RandomState(feature_seed)
            self.features = (legacy.standard_normal((num_arms, dim)) / np.sqrt(dim)).astype(np.float32)

    @property
    def default_params(self) -> LinearBanditParams:
        """theta along the first feature axis; features of its own are evenly spaced there."""
        own = None
        if self.features is None:
            own = jnp.linspace(-1.0, 1.0, self.num_arms)[:, None] * jnp.eye(1, self.dim)
        return self._params(jnp.eye(self.dim)[0], own)

    def sample_task(self, key: jax.Array, split: Split = "train") -> LinearBanditParams:
        """Draws theta, and features that the task has of its own."""
        key = split_key(key, split)
        if self.features is not None:
            return self._params(jax.random.normal(key, (self.dim,)) / np.sqrt(self.dim), None)
        key_theta, key_features = jax.random.split(key)
        own = jax.random.uniform(key_features, (self.num_arms, self.dim), minval=-1, maxval=1)
        return self._params(jax.random.uniform(key_theta, (self.dim,)), own)

    def _params(self, theta, features):
        theta, noise_sd = theta.astype(jnp.float32), jnp.float32(self.noise_sd)
        return LinearBanditParams(theta=theta, features=features, noise_sd=noise_sd)

    def means(self, params):
        """Expected reward of every arm, float32 [A]."""
        features = self.features if params.features is None else params.features
        return jnp.sum(features * params.theta[None], axis=-1)

    def observe(self, params):
        """The constant 1, or the task's own features."""
        return super().observe(params) if params.features is None else params.features.reshape(-1)

    def observation_space(self, params=None):
        """What `observe` shows."""
        if self.features is not None:
            return super().observation_space(params)
        return spaces.Box(-1.0, 1.0, (self.num_arms * self.dim,))

    def bar_heights(self, params):
        """Means of -2 ..= 2, the middle of the picture is 0."""
        return 0.5 + self.means(params) / 4

    def sample_reward(self, key, mean, params):
        """N(mean, noise_sd^2)."""
        return mean + params.noise_sd * jax.random.normal(key)

"""The dueling bandit: two arms meet, and only the winner is told."""

import jax.numpy as jnp

from icrl_envs.bandits import LinearBandit
from icrl_envs.wrappers import Preferences


class DuelingBandit(Preferences):
    """Utilities linear in features that all tasks share, and preferences for feedback (Dong et al. 2026, ICPRL).

    Task, features and utilities <theta, features[a]> are those of `LinearBandit`. The action is a pair of arms, int32
    [2], clipped into their range; the feedback is the label of Bradley and Terry: 1 if the first arm is preferred, of
    probability sigmoid((utility_0 - utility_1) / temperature), else 0. The observation is the constant 1; the one
    episode never ends. In `info`, for scoring only:

    - `winner`, and `reward`: its utility, whose mean is the `expected_reward` of a pair;
    - `weak_regret` and `strong_regret`: the smaller and the larger gap of the two arms, where the gap of arm b is
      P(the best arm beats b) - 1/2. Both are 0 for the `optimal_action`, the best arm twice.

    The paper's labels are the plain sigmoid; its numbers of arms and dimensions and its features are not known. "icprl"
    has the numbers of the same authors' linear bandit (Dong et al. 2024, DIT: 20 arms, d = 10).

    Args:
      num_arms: A, at least 2.
      dim: d, at least 1.
      temperature: at least 0; at 0 the better arm always wins.
      feature_seed: as in `LinearBandit`.
      noise, tie_margin: as in `preferences`; the regrets are those without either.
    """

    presets = {"icprl": {"num_arms": 20, "dim": 10, "temperature": 1.0, "feature_seed": 1234}}
    name = "DuelingBandit"

    def __init__(
        self,
        num_arms: int = 10,
        dim: int = 2,
        temperature: float = 1.0,
        feature_seed: int | None = 1234,
        noise: float = 0.0,
        tie_margin: float = 0.0,
    ):
        super().__init__(LinearBandit(num_arms, dim, 0.0, feature_seed), None, temperature, noise, tie_margin)

    def step_env(self, key, state, action, params):
        """Lets two arms meet."""
        return super().step_env(key, state, jnp.clip(action, 0, self.num_arms - 1), params)

    def _regrets(self, state, scores, params):
        gaps = self._probability(jnp.max(self.means(params)) - scores) - 0.5
        return {"weak_regret": jnp.min(gaps), "strong_regret": jnp.max(gaps)}

"""Data collection as papers' code has it: a Python object per environment, and a call per transition.

Modelled on what Lee et al. 2023 (DPT, https://arxiv.org/abs/2306.14892) published: one-hot actions, observations
copied, `choice` among all arms, and for Thompson sampling the posterior from the whole history at every step.
`LeanThompson` keeps it up to date instead, which is the least a NumPy loop can do.
"""

from typing import Literal, NamedTuple

import numpy as np

Behaviour = Literal["mixture", "thompson", "lean_thompson"]


class GaussianBandit:
    """One task: arm a pays N(means[a], noise_sd^2)."""

    def __init__(self, num_arms: int, noise_sd: float, rng: np.random.Generator):
        self.means, self.noise_sd, self.rng = rng.random(num_arms), noise_sd, rng
        self.obs = np.ones(1)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float]:
        arm = np.argmax(action)
        return self.obs.copy(), self.means[arm] + self.rng.normal(0, self.noise_sd)


class DarkRoom:
    """One task: a step that ends on the goal pays 1; the actions are +x, -x, +y, -y and stay."""

    moves = np.array([[1, 0], [-1, 0], [0, 1], [0, -1], [0, 0]])

    def __init__(self, goal: np.ndarray, size: int, horizon: int, start: int = 0):
        self.goal, self.size, self.horizon, self.start = goal, size, horizon, start
        self.reset()

    def reset(self) -> np.ndarray:
        self.cell, self.time = np.full(2, self.start), 0
        return self.cell.copy()

    def step(self, action: int) -> tuple[np.ndarray, float, bool]:
        self.cell = np.clip(self.cell + self.moves[action], 0, self.size - 1)
        self.time += 1
        return self.cell.copy(), float(np.all(self.cell == self.goal)), self.time == self.horizon


class Mixture:
    """(1 - omega) p1 + omega p2, as `icrl_jax.data.behaviours.mixture` has it."""

    def __init__(self, num_arms: int, rng: np.random.Generator):
        omega = rng.choice(np.linspace(0, 1, 11))
        self.probs = (1 - omega) * rng.dirichlet(np.ones(num_arms))
        self.probs[rng.integers(num_arms)] += omega
        self.rng = rng

    def act(self, actions: list[np.ndarray], rewards: list[float]) -> np.ndarray:
        return _one_hot(self.rng.choice(np.arange(len(self.probs)), p=self.probs), len(self.probs))


class Thompson:
    """Gaussian Thompson sampling with prior N(0, 1) on every mean."""

    def __init__(self, num_arms: int, noise_sd: float, rng: np.random.Generator):
        self.num_arms, self.noise_var, self.rng = num_arms, noise_sd**2, rng

    def act(self, actions: list[np.ndarray], rewards: list[float]) -> np.ndarray:
        means, variances = np.zeros(self.num_arms), np.ones(self.num_arms)
        if actions:
            arms, history = np.argmax(actions, axis=1), np.array(rewards)
            for arm in range(self.num_arms):
                found = history[arms == arm]
                variances[arm] = 1 / (1 + len(found) / self.noise_var)
                means[arm] = variances[arm] * np.sum(found) / self.noise_var
        return _one_hot(np.argmax(self.rng.normal(means, np.sqrt(variances))), self.num_arms)


class LeanThompson(Thompson):
    """The same agent, learning from one transition at a time."""

    def __init__(self, num_arms: int, noise_sd: float, rng: np.random.Generator):
        super().__init__(num_arms, noise_sd, rng)
        self.precision, self.weighted = np.ones(num_arms), np.zeros(num_arms)

    def act(self, actions: list[np.ndarray], rewards: list[float]) -> np.ndarray:
        if actions:
            self.precision += actions[-1] / self.noise_var
            self.weighted += actions[-1] * rewards[-1] / self.noise_var
        noise = self.rng.standard_normal(self.num_arms)
        return _one_hot(np.argmax(self.weighted / self.precision + noise / np.sqrt(self.precision)), self.num_arms)


class Contexts(NamedTuple):
    """Contexts of B tasks."""

    actions: np.ndarray  # int [B, T]
    rewards: np.ndarray  # float [B, T]
    target_actions: np.ndarray  # int [B]


def collect(
    behaviour: Behaviour,
    num_tasks: int,
    num_steps: int,
    rng: np.random.Generator,
    num_arms: int = 5,
    noise_sd: float = 0.3,
) -> Contexts:
    """One context in each of so many new tasks."""
    contexts = []
    for _ in range(num_tasks):
        env = GaussianBandit(num_arms, noise_sd, rng)
        agent = _agent(behaviour, num_arms, noise_sd, rng)
        obs, observations, actions, next_observations, rewards = np.ones(1), [], [], [], []
        for _ in range(num_steps):
            action = agent.act(actions, rewards)
            next_obs, reward = env.step(action)
            observations.append(obs)
            actions.append(action)
            next_observations.append(next_obs)
            rewards.append(reward)
            obs = next_obs
        np.array(observations), np.array(next_observations)  # kept by the papers, always 1 here
        contexts.append((np.argmax(actions, axis=1), np.array(rewards), np.argmax(env.means)))
    return Contexts(*map(np.stack, zip(*contexts, strict=True)))


def _agent(behaviour: Behaviour, num_arms: int, noise_sd: float, rng: np.random.Generator) -> Mixture | Thompson:
    if behaviour == "mixture":
        return Mixture(num_arms, rng)
    return (Thompson if behaviour == "thompson" else LeanThompson)(num_arms, noise_sd, rng)


def _one_hot(arm: int, num_arms: int) -> np.ndarray:
    action = np.zeros(num_arms)
    action[arm] = 1.0
    return action

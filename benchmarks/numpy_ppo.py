# ruff: noqa: N803
"""PPO in NumPy, forward and backward by hand: one learner of one task, as Stable-Baselines has it.

Its environments are Python objects that are stepped one after the other; the policy reads them all at once, and learns
from minibatches of their steps. Network, loss and optimiser are those of `icrl_jax.methods.ppo` with an `mlp`, in
float32; what a step needs is done once for all of it, and nothing is recorded for a derivative.

Axes: N streams, T steps, B steps in a minibatch, D width, A actions, F features of what is seen.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.numpy_loop import DarkRoom
from icrl_jax.methods.ppo import PPOConfig


class Weights(NamedTuple):
    """Of the network, or a gradient: views into one vector, which the optimiser moves at once."""

    inputs: np.ndarray  # [F, D]
    maps: np.ndarray  # [L - 1, D, D]
    biases: np.ndarray  # [L, D]
    policy: np.ndarray  # [D, A]
    value: np.ndarray  # [D]


def shapes_of(num_features: int, num_actions: int, width: int, num_layers: int) -> list[tuple[int, ...]]:
    """Of each of the `Weights`."""
    D, L = width, num_layers
    return [(num_features, D), (L - 1, D, D), (L, D), (D, num_actions), (D,)]


def views(vector: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> Weights:
    """The parts of a vector."""
    ends = np.cumsum([np.prod(shape, dtype=int) for shape in shapes])
    return Weights(*(part.reshape(shape) for part, shape in zip(np.split(vector, ends[:-1]), shapes, strict=True)))


class Batch(NamedTuple):
    """What is learned from, [B, ...]."""

    features: np.ndarray  # [B, F]
    action: np.ndarray  # int [B]
    log_prob: np.ndarray  # when it was chosen
    advantage: np.ndarray
    ret: np.ndarray


def one_hot(cells: np.ndarray, size: int) -> np.ndarray:
    """Row and column of cells [..., 2], each one-hot, float32 [..., 2 size]."""
    return np.eye(size, dtype=np.float32)[cells].reshape(*cells.shape[:-1], 2 * size)


def forward(weights: Weights, features: np.ndarray) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Outputs of each layer, log-probabilities [B, A] and values [B]."""
    layers = [np.tanh(features @ weights.inputs + weights.biases[0])]
    for matrix, bias in zip(weights.maps, weights.biases[1:], strict=True):
        layers.append(np.tanh(layers[-1] @ matrix + bias))
    logits = layers[-1] @ weights.policy
    logits -= logits.max(axis=1, keepdims=True)
    return layers, logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)), layers[-1] @ weights.value


def loss_and_gradient(weights: Weights, gradient: Weights, batch: Batch, config: PPOConfig) -> float:
    """Writes the gradient of the loss into `gradient`; see `icrl_jax.methods.ppo.loss`."""
    rows, clip = np.arange(len(batch.action)), config.clip_ratio
    layers, log_probs, value = forward(weights, batch.features)
    probs = np.exp(log_probs)
    ratio = np.exp(log_probs[rows, batch.action] - batch.log_prob)
    advantage = batch.advantage
    if config.normalise:
        advantage = (advantage - advantage.mean()) / (advantage.std() + np.float32(1e-8))
    gain = ratio * advantage
    moves = np.ones_like(gain)  # whether the gain does where the ratio does
    if clip is not None:
        clipped = np.clip(ratio, 1 - clip, 1 + clip) * advantage
        moves = (gain <= clipped).astype(np.float32)
        gain = np.minimum(gain, clipped)
    entropy = -(probs * log_probs).sum(axis=1)
    error = value - batch.ret
    loss = config.value_weight * 0.5 * (error * error).mean() - gain.mean() - config.entropy_weight * entropy.mean()

    share = np.float32(1 / len(rows))
    along = share * moves * ratio * advantage  # minus the derivative by the log-probability of the action
    d_logits = along[:, None] * probs
    d_logits[rows, batch.action] -= along
    d_logits += (config.entropy_weight * share) * probs * (log_probs + entropy[:, None])
    d_value = (config.value_weight * share) * error
    np.matmul(layers[-1].T, d_logits, out=gradient.policy)
    np.matmul(layers[-1].T, d_value, out=gradient.value)
    d_layer = d_logits @ weights.policy.T + d_value[:, None] * weights.value
    for i in reversed(range(len(layers))):
        d_layer *= 1 - layers[i] * layers[i]
        np.sum(d_layer, axis=0, out=gradient.biases[i])
        if i:
            np.matmul(layers[i - 1].T, d_layer, out=gradient.maps[i - 1])
            d_layer = d_layer @ weights.maps[i - 1].T
    np.matmul(batch.features.T, d_layer, out=gradient.inputs)
    return float(loss)


class Adam:
    """Of one vector of weights, after clipping of the gradient's norm."""

    def __init__(self, config: PPOConfig, size: int):
        self.optim, self.steps = config.optim, 0
        self.mean, self.square = np.zeros(size, np.float32), np.zeros(size, np.float32)

    def step(self, vector: np.ndarray, gradient: np.ndarray) -> None:
        """Moves `vector`."""
        optim = self.optim
        self.steps += 1
        if optim.clip is not None:
            gradient *= min(1.0, optim.clip / np.sqrt(gradient @ gradient))
        self.mean += 0.1 * (gradient - self.mean)
        self.square += (1 - optim.beta2) * (gradient * gradient - self.square)
        mean_share, root_share = 1 - 0.9**self.steps, np.sqrt(1 - optim.beta2**self.steps)
        vector -= (optim.learning_rate / mean_share) * self.mean / (np.sqrt(self.square) / root_share + optim.eps)


def advantages(
    rewards: np.ndarray, values: np.ndarray, next_values: np.ndarray, ended: np.ndarray, config: PPOConfig
) -> np.ndarray:
    """Of steps [T, N] whose episodes are only ever cut by their time limit; see `icrl_jax.methods.returns.gae`."""
    delta, following = rewards + config.discount * next_values - values, np.zeros_like(values[0])
    found = np.zeros_like(values)
    for t in reversed(range(len(rewards))):
        following = delta[t] + config.discount * config.trace * np.where(ended[t], 0, following)
        found[t] = following
    return found


class PPO:
    """A learner in N rooms that share a goal."""

    def __init__(self, config: PPOConfig, goal: np.ndarray, size: int, horizon: int, rng: np.random.Generator):
        self.config, self.rng, self.size = config, rng, size
        self.rooms = [DarkRoom(goal, size, horizon, size // 2) for _ in range(config.num_streams)]
        self.cells = np.stack([room.reset() for room in self.rooms])
        shapes = shapes_of(2 * size, len(DarkRoom.moves), config.model.width, config.model.num_layers)
        self.vector, self.slopes = (np.zeros(sum(map(np.prod, shapes)), np.float32) for _ in range(2))
        self.weights, self.gradient = views(self.vector, shapes), views(self.slopes, shapes)
        D = config.model.width
        for part, scale in zip(self.weights, (self.weights.inputs.shape[0], D, D, 1e4 * D, D), strict=True):
            part[...] = rng.standard_normal(part.shape) / np.sqrt(scale)
        self.adam = Adam(config, len(self.vector))

    def learn(self) -> tuple[np.ndarray, ...]:
        """One round: cells [T, N, 2], actions, rewards and ends [T, N] of the history."""
        history, log_probs, values, next_values = self.play()
        cells, actions, rewards, ended = history
        advantage = advantages(rewards, values, next_values, ended, self.config)
        features = one_hot(cells, self.size)
        whole = features, actions, log_probs, advantage, advantage + values
        self.improve(Batch(*(x.reshape(-1, *x.shape[2:]) for x in whole)))
        return history

    def play(self) -> tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray, np.ndarray]:
        """T steps of each room: the history, then log-probabilities, values and values of what followed, [T, N]."""
        steps, every = [], np.arange(len(self.rooms))
        for _ in range(self.config.num_steps):
            cells = self.cells
            _, log_probs, values = forward(self.weights, one_hot(cells, self.size))
            actions = np.argmax(log_probs + self.rng.gumbel(size=log_probs.shape), axis=1)
            outcomes = [room.step(action) for room, action in zip(self.rooms, actions, strict=True)]
            finals, rewards, ended = (np.array(x) for x in zip(*outcomes, strict=True))
            resets = [
                room.reset() if end else final for room, (final, _, end) in zip(self.rooms, outcomes, strict=True)
            ]
            self.cells = np.stack(resets)
            final_values = np.zeros_like(values)
            if ended.any():
                final_values = forward(self.weights, one_hot(finals, self.size))[2]
            rewards = rewards.astype(np.float32)
            steps.append((cells, actions, rewards, ended, log_probs[every, actions], values, final_values))
        *history, log_probs, values, final_values = (np.stack(x) for x in zip(*steps, strict=True))
        after = forward(self.weights, one_hot(self.cells, self.size))[2]
        next_values = np.where(history[3], final_values, np.concatenate([values[1:], after[None]]))
        return tuple(history), log_probs, values, next_values

    def improve(self, batch: Batch) -> None:
        """All epochs on a round."""
        num_rows = len(batch.action)
        for _ in range(self.config.num_epochs):
            order = self.rng.permutation(num_rows)
            for index in np.split(order, self.config.num_minibatches):
                minibatch = Batch(*(x[index] for x in batch))
                loss_and_gradient(self.weights, self.gradient, minibatch, self.config)
                self.adam.step(self.vector, self.slopes)

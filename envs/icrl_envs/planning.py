"""Exact planning in small known MDPs."""

import jax
import jax.numpy as jnp


def plan(transitions: jax.Array, rewards: jax.Array, horizon: int) -> jax.Array:
    """Backward induction: the undiscounted action values of every step of an episode.

    Q[h, s, a] = rewards[s, a] + sum_s' transitions[s, a, s'] max_a' Q[h + 1, s', a'], and Q[horizon] = 0.

    Args:
      transitions: P(s' | s, a), float32 [S, A, S].
      rewards: expected rewards, float32 [S, A].
      horizon: steps of an episode, at least 1.
    Returns:
      Q, float32 [horizon, S, A]; with k steps left the values are Q[horizon - k], whatever the length of the episode.
    """

    def back(values, _):
        q = rewards + jnp.sum(transitions * values[None, None], axis=2)  # a dot product would be rounded on some GPUs
        return jnp.max(q, axis=1), q

    return jax.lax.scan(back, jnp.zeros(rewards.shape[0]), None, length=horizon, reverse=True)[1]

"""How good actions were, from what followed them."""

import jax
import jax.numpy as jnp

from icrl_jax.core import Array


def gae(
    feedback: Array,
    value: Array,
    next_value: Array,
    terminal: Array,
    cut: Array,
    discount: Array | float,
    trace: Array | float,
) -> Array:
    """Generalised advantages [T] of one stream, whose sum with the values are the lambda-returns:

        A_t = delta_t + (0 where the sum is cut after t, else discount trace A_{t+1})
        delta_t = feedback_t + (0 where t is terminal, else discount next_value_t) - value_t

    Args:
      feedback, value: float32 [T], of each step and of what was seen before it.
      next_value: float32 [T], of what was truly seen after the step, whether or not an episode ended there.
      terminal: bool [T], nothing follows the step.
      cut: bool [T], what follows the step belongs to something else; at the last step the sum ends in any case.
      discount, trace: gamma and lambda, in [0, 1].

    References:
      John Schulman et al., High-Dimensional Continuous Control Using Generalized Advantage Estimation, 2016,
      https://arxiv.org/abs/1506.02438, equation 16
    """
    delta = feedback + jnp.where(terminal, 0.0, discount * next_value) - value

    def step(following, inputs):
        delta, cut = inputs
        advantage = delta + jnp.where(cut, 0.0, discount * trace * following)
        return advantage, advantage

    return jax.lax.scan(step, jnp.zeros_like(delta[0]), (delta, cut), reverse=True)[1]

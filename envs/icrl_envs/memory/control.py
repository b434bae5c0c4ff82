"""Classic control without the velocities, so that one must remember: `StatelessCartPole`, `StatelessPendulum`.

gymnax has both tasks with velocities; its steps neither run under strict dtype promotion nor keep the reward's scale,
and there is little in them, so the equations are written out here.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import EnvState

from icrl_envs import drawing
from icrl_envs.memory.episodes import MemoryTask, stream_key
from icrl_envs.task_family import is_int, is_name, is_number, lazy_split, require

NOISE = {"easy": {"noise_sd": 0.1}, "medium": {"noise_sd": 0.2}, "hard": {"noise_sd": 0.3}}


class StatelessControl(MemoryTask):
    """What both share: part of the state is observed, with Gaussian noise, clipped to the observation space."""

    def __init__(self, num_steps: int, noise_sd: float):
        require(is_int(num_steps, 1), "num_steps", num_steps, "an integer of at least 1")
        require(is_number(noise_sd, 0), "noise_sd", noise_sd, "a finite number of at least 0")
        super().__init__(num_steps)
        self.noise_sd = float(noise_sd)

    def _observe(self, key, obs):
        if self.noise_sd == 0:
            return obs
        space = self.observation_space(None)
        return jnp.clip(obs + self.noise_sd * jax.random.normal(key, obs.shape), space.low, space.high)


@struct.dataclass
class CartPoleState(EnvState):
    """Where the cart is and how the pole leans, to the right if positive."""

    x: jax.Array  # float32 []
    x_dot: jax.Array  # float32 []
    theta: jax.Array  # float32 []
    theta_dot: jax.Array  # float32 []


class StatelessCartPole(StatelessControl):
    """Keep a pole upright on a cart, seeing half of the state (Morad et al. 2023, POPGym's PositionOnlyCartPole).

    Observation: (x, theta), or (x', theta') if `observed` is "velocities" (POPGym's VelocityOnlyCartPole, which
    however shows (x, theta) at the reset), float32 [2]. Actions: push left, push right. Every step pays 1 / num_steps,
    the last one too. Starts uniform in [-0.05, 0.05]^4; ends (terminated) when |x| > 2.4 or |theta| > 12 degrees;
    truncated after `num_steps`.

    Args:
      num_steps: time limit, at least 1.
      observed: "positions" or "velocities".
      noise_sd: standard deviation of the observation noise, at least 0.
    """

    presets = {"easy": {"num_steps": 200}, "medium": {"num_steps": 400}, "hard": {"num_steps": 600}}

    def __init__(self, num_steps: int = 200, observed: str = "positions", noise_sd: float = 0.0):
        super().__init__(num_steps, noise_sd)
        require(is_name(observed, ("positions", "velocities")), "observed", observed, "'positions' or 'velocities'")
        self.observed = observed

    def reset_env(self, key, params):
        """Starts close to upright and at rest."""
        key_start, key_noise = lazy_split(stream_key(key, params))
        start = jax.random.uniform(key_start, (4,), minval=-0.05, maxval=0.05)
        state = CartPoleState(jnp.int32(0), *start)
        return self._observe(key_noise, self._seen(state)), state

    def step_env(self, key, state, action, params):
        """Pushes the cart for 0.02 seconds (explicit Euler; pole of 0.1 kg and 1 m, cart of 1 kg, 10 N)."""
        force = jnp.where(action >= 1, jnp.float32(10), jnp.float32(-10))
        sin, cos = jnp.sin(state.theta), jnp.cos(state.theta)
        push = (force + 0.05 * state.theta_dot**2 * sin) / 1.1
        theta_acceleration = (9.8 * sin - cos * push) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1))
        state = CartPoleState(
            time=state.time + 1,
            x=state.x + 0.02 * state.x_dot,
            x_dot=state.x_dot + 0.02 * (push - 0.05 * theta_acceleration * cos / 1.1),
            theta=state.theta + 0.02 * state.theta_dot,
            theta_dot=state.theta_dot + 0.02 * theta_acceleration,
        )
        terminated = (jnp.abs(state.x) > X_LIMIT) | (jnp.abs(state.theta) > THETA_LIMIT)
        obs = self._observe(stream_key(key, params), self._seen(state))
        return obs, state, jnp.float32(1 / self.num_steps), terminated, {}

    def optimal_action(self, state, params):
        """A linear controller that never drops the pole, int32 []."""
        lean = state.theta + 0.1 * state.x + 0.2 * (state.x_dot + state.theta_dot)
        return (lean > 0).astype(jnp.int32)

    def optimal_return(self, params):
        """The pole stays upright until the task's limit: 1 if that is `num_steps`."""
        return jnp.asarray(params.max_steps_in_episode, jnp.float32) / self.num_steps

    def _seen(self, state):
        seen = (state.x, state.theta) if self.observed == "positions" else (state.x_dot, state.theta_dot)
        return jnp.stack(seen)

    @property
    def num_actions(self) -> int:
        """Left and right."""
        return 2

    def action_space(self, params=None) -> spaces.Discrete:
        """Left and right; actions outside are clipped."""
        return spaces.Discrete(2)

    def observation_space(self, params=None) -> spaces.Box:
        """Twice the limits, so that the last observation of an episode is inside; velocities are unbounded."""
        largest = float(jnp.finfo(jnp.float32).max)
        high = jnp.array([2 * X_LIMIT, 2 * THETA_LIMIT] if self.observed == "positions" else [largest, largest])
        return spaces.Box(-high, high, (2,))

    def render(self, state, params):
        """The track from limit to limit, the cart and the pole."""
        image = drawing.blank(96, 160)
        cart = jnp.stack([0.5 + 0.4 * state.x / X_LIMIT, jnp.float32(0.15)])
        top = cart + 0.35 * jnp.stack([jnp.sin(state.theta), jnp.cos(state.theta)])
        image = drawing.line(image, jnp.array([0.1, 0.15]), jnp.array([0.9, 0.15]), 0.01, drawing.GREY)
        image = drawing.line(image, cart - jnp.array([0.06, 0]), cart + jnp.array([0.06, 0]), 0.07, drawing.DARK)
        return drawing.line(image, cart, top, 0.03, drawing.ORANGE)


X_LIMIT = 2.4
THETA_LIMIT = 12 * np.pi / 180


class NoisyStatelessCartPole(StatelessCartPole):
    """`StatelessCartPole` with noisy observations (Morad et al. 2023, POPGym's NoisyPositionOnlyCartPole)."""

    presets = NOISE

    def __init__(self, num_steps: int = 200, observed: str = "positions", noise_sd: float = 0.1):
        super().__init__(num_steps, observed, noise_sd)


@struct.dataclass
class PendulumState(EnvState):
    """The angle from upright, to the left if positive, and its velocity."""

    theta: jax.Array  # float32 []
    theta_dot: jax.Array  # float32 []


class StatelessPendulum(StatelessControl):
    """Swing a pendulum up without seeing its velocity (Morad et al. 2023, POPGym's PositionOnlyPendulum).

    Observation: (cos theta, sin theta), float32 [2]. Action: the torque, float32 [1] in [-2, 2]. The cost
    theta^2 + 0.1 theta'^2 + 0.001 torque^2 of the state *before* the step is scaled so that every step pays between
    -1 / num_steps and 1 / num_steps. Starts uniform in [-pi, pi] x [-1, 1]. Never terminates; truncated after
    `num_steps`.

    Args:
      num_steps: length of an episode, at least 1.
      noise_sd: standard deviation of the observation noise, at least 0.
    """

    presets = {"easy": {"num_steps": 200}, "medium": {"num_steps": 150}, "hard": {"num_steps": 100}}
    rare_reset = True

    def __init__(self, num_steps: int = 200, noise_sd: float = 0.0):
        super().__init__(num_steps, noise_sd)

    def reset_env(self, key, params):
        """Starts anywhere, slowly."""
        key_start, key_noise = lazy_split(stream_key(key, params))
        theta, theta_dot = jax.random.uniform(key_start, (2,), minval=-1, maxval=1)
        state = PendulumState(time=jnp.int32(0), theta=np.pi * theta, theta_dot=theta_dot)
        return self._observe(key_noise, self._seen(state)), state

    def step_env(self, key, state, action, params):
        """Applies the torque for 0.05 seconds (rod of 1 kg and 1 m, gravity 10)."""
        reward = self.expected_reward(state, action, params)
        theta_dot = state.theta_dot + 0.05 * (15 * jnp.sin(state.theta) + 3 * _torque(action))
        theta_dot = jnp.clip(theta_dot, -8, 8)
        state = PendulumState(time=state.time + 1, theta=state.theta + 0.05 * theta_dot, theta_dot=theta_dot)
        obs = self._observe(stream_key(key, params), self._seen(state))
        return obs, state, reward, jnp.zeros((), bool), {}

    def expected_reward(self, state, action, params):
        """What the state and the torque pay, float32 []."""
        angle = state.theta - 2 * np.pi * jnp.round(state.theta / (2 * np.pi))
        cost = angle**2 + 0.1 * state.theta_dot**2 + 0.001 * _torque(action) ** 2
        return (1 - 2 * cost / LARGEST_COST) / self.num_steps

    def _seen(self, state):
        return jnp.stack([jnp.cos(state.theta), jnp.sin(state.theta)])

    @property
    def num_actions(self) -> int:
        """Number of components of an action."""
        return 1

    def action_space(self, params=None) -> spaces.Box:
        """The torque; actions outside are clipped."""
        return spaces.Box(-2.0, 2.0, (1,))

    def observation_space(self, params=None) -> spaces.Box:
        """Cosine and sine of the angle."""
        return spaces.Box(-1.0, 1.0, (2,))

    def render(self, state, params):
        """The rod about its pivot; upright is up."""
        centre = jnp.array([0.5, 0.5])
        end = centre + 0.4 * jnp.stack([-jnp.sin(state.theta), jnp.cos(state.theta)])
        image = drawing.line(drawing.blank(96, 96), centre, end, 0.08, drawing.ORANGE)
        return drawing.disc(image, centre, 0.03, drawing.DARK)


LARGEST_COST = 16.2736044  # pi^2 + 0.1 * 8^2 + 0.001 * 2^2


def _torque(action):
    return jnp.clip(action[0], -2, 2)


class NoisyStatelessPendulum(StatelessPendulum):
    """`StatelessPendulum` with noisy observations (Morad et al. 2023, POPGym's NoisyPositionOnlyPendulum)."""

    presets = NOISE

    def __init__(self, num_steps: int = 200, noise_sd: float = 0.1):
        super().__init__(num_steps, noise_sd)

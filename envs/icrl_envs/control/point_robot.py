"""A point in the plane that must find a hidden goal by its distance alone."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import EnvParams, EnvState

from icrl_envs import drawing
from icrl_envs.control.drawn_tasks import DrawnTasks
from icrl_envs.task_family import is_name, is_number, require

STEP = 0.1  # how far a full action moves the point along each axis
VIEW = 1.5  # the picture shows -VIEW .. VIEW along both axes


@struct.dataclass
class PointRobotParams(EnvParams):
    """One goal."""

    goal: jax.Array = struct.field(default_factory=lambda: jnp.zeros(2))  # float32 [2]
    max_steps_in_episode: int = 20


@struct.dataclass
class PointRobotState(EnvState):
    """Where the point is."""

    position: jax.Array  # float32 [2]


class PointRobot(DrawnTasks):
    """A point robot (Rakelly et al. 2019, PEARL; conventions of Wu et al. 2025, T2MIR).

    The observation is the position (x, y), float32 [2]; the action, float32 [2], is clipped to [-1, 1] and moves the
    point by 0.1 of it. The reward is minus the distance to the goal after the move. The start is uniform within
    `start_range` of the origin along each axis; nothing terminates, the time limit truncates.

    Preset "t2mir": 45 goals to train on, drawn by us (the paper's own are not in its facts), and its 5 test goals.

    Args:
      num_steps: length of an episode, at least 1.
      goals: "square", uniform on [-1, 1]^2, or "half_circle", uniform on the upper half of the unit circle.
      start_range: at least 0.
      num_train: number of goals to train on; None: goals never run out.
      num_test: number of goals to test on, beside `num_train`.
      split_seed: seed of those goals.
      test_goals: the goals to test on, in place of `num_test` drawn ones; needs `num_train`.
    """

    terminates = False

    presets = {
        "t2mir": {
            "num_steps": 20,
            "goals": "square",
            "start_range": 0.1,
            "num_train": 45,
            "test_goals": ((-0.829, 0.132), (-0.341, 0.268), (0.633, -0.911), (-0.584, 0.262), (0.315, -0.501)),
        }
    }

    def __init__(
        self,
        num_steps: int = 20,
        goals: str = "square",
        start_range: float = 0.1,
        num_train: int | None = None,
        num_test: int = 5,
        split_seed: int = 0,
        test_goals: Sequence[Sequence[float]] | None = None,
    ):
        require(is_name(goals, ("square", "half_circle")), "goals", goals, "'square' or 'half_circle'")
        require(is_number(start_range, 0), "start_range", start_range, "a finite number of at least 0")
        published = None if test_goals is None else {"goal": test_goals}
        fits = test_goals is None or (num_train is not None and _are_points(test_goals))
        require(fits, "test_goals", test_goals, "None or, beside num_train, at least one finite point (x, y)")
        self.goals = goals
        self.start_range = float(start_range)
        super().__init__(num_steps, num_train, num_test, split_seed, published)

    @property
    def default_params(self) -> PointRobotParams:
        """The goal straight up, which both laws allow."""
        return self.params(goal=jnp.array([0.0, 1.0]))

    def draw(self, key):
        """One goal."""
        if self.goals == "square":
            return {"goal": jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)}
        angle = jax.random.uniform(key, maxval=np.pi)
        return {"goal": jnp.stack([jnp.cos(angle), jnp.sin(angle)])}

    def params(self, goal):
        """The task with this goal."""
        return PointRobotParams(goal=goal, max_steps_in_episode=self.num_steps)

    def reset_env(self, key, params):
        """Starts near the origin."""
        position = self.start_range * jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)
        return position, PointRobotState(time=jnp.zeros((), jnp.int32), position=position)  # type: ignore[arg-type]

    def reset_anywhere(self, key: jax.Array, params: PointRobotParams) -> tuple[jax.Array, PointRobotState]:
        """Anywhere in [-1, 1]^2, where goals are, each place as likely; the observation and the state."""
        position = jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)
        return position, PointRobotState(time=jnp.zeros((), jnp.int32), position=position)  # type: ignore[arg-type]

    def step_env(self, key, state, action, params):
        """Moves, then pays minus the distance."""
        position = _moved(state, action)
        state = PointRobotState(time=state.time + 1, position=position)
        return position, state, -_distance(position, params), jnp.zeros((), bool), {}

    def expected_reward(self, state: PointRobotState, action: jax.Array, params: PointRobotParams) -> jax.Array:
        """Minus the distance after the move: nothing is random."""
        return -_distance(_moved(state, action), params)

    def optimal_action(self, state: PointRobotState, params: PointRobotParams) -> jax.Array:
        """Straight to the goal along each axis by itself, which leaves no step farther from it than it need be."""
        return jnp.clip((params.goal - state.position) / STEP, -1.0, 1.0)

    def optimal_return(self, params: PointRobotParams) -> jax.Array:
        """Minus the summed distances of that path, averaged over starts by the midpoint rule (error below 1e-4).

        NaN for a task longer than `num_steps`.
        """
        n = 64 if self.start_range else 1
        start = self.start_range * (2 * (np.arange(n, dtype=np.float32)[:, None] + 0.5) / n - 1)
        moved = STEP * np.arange(1, self.num_steps + 1, dtype=np.float32)[:, None, None]
        left = jnp.maximum(jnp.abs(params.goal[None] - start)[None] - moved, 0.0)  # [num_steps, n, 2]
        return self.until_limit(-jnp.hypot(left[:, :, None, 0], left[:, None, :, 1]).mean((1, 2)), params)

    @property
    def num_actions(self) -> int:
        """Number of components of an action."""
        return 2

    def action_space(self, params=None) -> spaces.Box:
        """Shares of a full move along x and y."""
        return spaces.Box(-1.0, 1.0, (2,))

    def observation_space(self, params=None) -> spaces.Box:
        """The plane."""
        return spaces.Box(-jnp.inf, jnp.inf, (2,))

    def render(self, state: PointRobotState, params: PointRobotParams) -> jax.Array:
        """The goal (green) and the point (blue), uint8 [128, 128, 3]."""
        image = drawing.disc(drawing.blank(128, 128), _pixel(params.goal), 0.04, drawing.GREEN)
        return drawing.disc(image, _pixel(state.position), 0.03, drawing.BLUE)


def _are_points(goals):
    return np.size(goals) > 0 and np.shape(goals)[1:] == (2,) and bool(np.isfinite(goals).all())


def _moved(state, action):
    return state.position + STEP * jnp.clip(action, -1.0, 1.0)


def _distance(position, params):
    return jnp.hypot(*(position - params.goal))


def _pixel(point):
    return 0.5 + point / (2 * VIEW)

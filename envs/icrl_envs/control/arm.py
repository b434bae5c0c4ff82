"""A gripper above a table that reaches for, or pushes a puck to, a hidden goal."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import EnvParams, EnvState

from icrl_envs import drawing
from icrl_envs.control.drawn_tasks import DrawnTasks
from icrl_envs.task_family import is_int, require

STEP = 0.01  # metres that a full action moves the hand along each axis
HAND_START = np.array([0.0, 0.6, 0.2], np.float32)
HAND_LOW, HAND_HIGH = np.array([-0.5, 0.4, 0.02], np.float32), np.array([0.5, 1.0, 0.5], np.float32)
PUCK_LOW, PUCK_HIGH = np.array([-0.1, 0.6, 0.02], np.float32), np.array([0.1, 0.7, 0.02], np.float32)
NEAR_TABLE = 0.05  # a hand lower than this meets the puck
CONTACT = 0.02  # distance along the table below which hand and puck do not come
TOUCH = 0.03  # distance from hand to puck that counts as touching
SUCCESS = 0.05  # distance to the goal that counts as having reached it
PUCK_TO_GOAL = 0.15  # distance along the table that the law of tasks keeps between puck and goal


@struct.dataclass
class ArmParams(EnvParams):
    """One goal and where the puck starts."""

    goal: jax.Array = struct.field(default_factory=lambda: jnp.zeros(3))  # float32 [3], metres
    puck_start: jax.Array = struct.field(default_factory=lambda: jnp.zeros(3))  # float32 [3], metres
    max_steps_in_episode: int = 100


@struct.dataclass
class ArmState(EnvState):
    """Where hand and puck are and how wide the gripper is open."""

    hand: jax.Array  # float32 [3], metres
    opening: jax.Array  # float32 [], 0 (shut) to 1
    puck: jax.Array  # float32 [3], metres


class Arm(DrawnTasks):
    """What `Reach` and `Push` share: a gripper that is moved about, with the numbers of Meta-World ML1 (v2).

    This is not MuJoCo's Sawyer but an exact stand-in of a few lines: the hand goes where it is told, at most 1 cm a
    step along each axis and inside its box, and a hand near the table shoves the puck ahead of it by contact of two
    discs, without inertia, rotation or grasp. Boxes of starts and goals, observation layout, step and reward shape
    (`tolerance`) are Meta-World's, so returns are comparable in kind and not in number.

    The observation is the first `obs_size` numbers of Meta-World's: hand (x, y, z), gripper opening, puck (x, y, z),
    its quaternion (constant), and for 18 those of a second object (0). The action, float32 [4], is clipped to [-1, 1]:
    the hand's move along x, y, z by 0.01 of it, and the gripper, which shuts by 0.1 of it and matters for no reward.
    The start is fixed by the task; nothing terminates, the time limit truncates. `info["success"]`: at the goal.

    Presets: "t2mir" (Wu et al. 2025; 45 and 5 goals, 18 numbers), "dicp" (Son et al. 2025) and "lhf" (Chen et al.
    2025; 50 and 50 goals, 11 numbers), "icprl" (Dong et al. 2026; 45 and 5 goals, the rest not known and as "t2mir").
    The goals are drawn by us from Meta-World's law.

    Args:
      num_steps: length of an episode, at least 1.
      obs_size: 11 or 18.
      num_train: number of tasks to train on; None: tasks never run out.
      num_test: number of tasks to test on, beside `num_train`.
      split_seed: seed of those tasks.
    """

    goal_low: np.ndarray
    goal_high: np.ndarray

    preset_required = True
    presets = {
        "t2mir": {"num_steps": 100, "obs_size": 18, "num_train": 45, "num_test": 5},
        "dicp": {"num_steps": 100, "obs_size": 11, "num_train": 50, "num_test": 50},
        "lhf": {"num_steps": 100, "obs_size": 11, "num_train": 50, "num_test": 50},
        "icprl": {"num_steps": 100, "obs_size": 18, "num_train": 45, "num_test": 5},
    }

    terminates = False

    def __init__(
        self,
        num_steps: int = 100,
        obs_size: int = 18,
        num_train: int | None = None,
        num_test: int = 5,
        split_seed: int = 0,
    ):
        require(is_int(obs_size, 11) and obs_size in (11, 18), "obs_size", obs_size, "11 or 18")
        self.obs_size = obs_size
        super().__init__(num_steps, num_train, num_test, split_seed)

    def score(self, state: ArmState, params: ArmParams) -> tuple[jax.Array, jax.Array]:
        """Reward and success of being in `state`, float32 [] and bool []."""
        raise NotImplementedError

    @property
    def default_params(self) -> ArmParams:
        """Puck and goal in the middle of their boxes."""
        middles = (self.goal_low + self.goal_high) / 2, (PUCK_LOW + PUCK_HIGH) / 2
        return self.params(*map(jnp.asarray, middles))

    def draw(self, key):
        """Puck and goal, uniform in their boxes and not too close."""
        key_goal, key_puck = jax.random.split(key)
        tries = (16, 3)  # of which the first that fits; all of them fail once in 10^18 draws
        goal = jax.random.uniform(key_goal, tries, minval=self.goal_low[None], maxval=self.goal_high[None])
        puck = jax.random.uniform(key_puck, tries, minval=PUCK_LOW[None], maxval=PUCK_HIGH[None])
        first = jnp.argmax(jnp.hypot(*(goal - puck)[:, :2].T) >= PUCK_TO_GOAL)
        return {"goal": goal[first], "puck_start": puck[first]}

    def params(self, goal, puck_start):
        """The task with this goal and puck."""
        return ArmParams(goal=goal, puck_start=puck_start, max_steps_in_episode=self.num_steps)

    def reset_env(self, key, params):
        """Starts with the hand above the table and the gripper open."""
        state = ArmState(
            time=jnp.zeros((), jnp.int32),  # type: ignore[arg-type]
            hand=jnp.asarray(HAND_START),
            opening=jnp.ones(()),
            puck=params.puck_start,
        )
        return self._observe(state), state

    def step_env(self, key, state, action, params):
        """Moves the hand, and the puck if it is in the way."""
        state = _moved(state, action)
        reward, success = self.score(state, params)
        return self._observe(state), state, reward, jnp.zeros((), bool), {"success": success}

    def expected_reward(self, state: ArmState, action: jax.Array, params: ArmParams) -> jax.Array:
        """The reward itself: nothing is random."""
        return self.score(_moved(state, action), params)[0]

    def _observe(self, state):
        rest = np.array([0, 0, 0, 1] + 7 * [0], np.float32)  # a puck that never turns, and no second object
        return jnp.concatenate([state.hand, state.opening[None], state.puck, rest])[: self.obs_size]

    @property
    def num_actions(self) -> int:
        """Number of components of an action."""
        return 4

    def action_space(self, params=None) -> spaces.Box:
        """Shares of a full move along x, y and z, and of shutting the gripper."""
        return spaces.Box(-1.0, 1.0, (4,))

    def observation_space(self, params=None) -> spaces.Box:
        """Everything lies within 1 of the robot's foot."""
        return spaces.Box(-1.0, 1.0, (self.obs_size,))

    def render(self, state: ArmState, params: ArmParams) -> jax.Array:
        """From above (left) and from the side (right): goal green, puck orange, hand blue; uint8 [96, 192, 3]."""
        return jnp.concatenate([_panel(state, params, 0, 1), _panel(state, params, 1, 2)], axis=1)


class Reach(Arm):
    """Brings the hand to a goal in the air (Yu et al. 2020, Meta-World reach); all but this is as `Arm` says.

    Goals are uniform in x -0.1..0.1, y 0.8..0.9, z 0.05..0.3. The reward is 10 tolerance(distance from hand to goal),
    10 within 5 cm of it and 1 at 5 cm more than the distance at the start.
    """

    goal_low, goal_high = np.array([-0.1, 0.8, 0.05], np.float32), np.array([0.1, 0.9, 0.3], np.float32)

    def score(self, state, params):
        """How near the hand is to the goal."""
        distance = _norm(state.hand - params.goal)
        return 10 * tolerance(distance, SUCCESS, _norm(HAND_START - params.goal)), distance <= SUCCESS

    def optimal_action(self, state: ArmState, params: ArmParams) -> jax.Array:
        """Straight to the goal along each axis by itself, which leaves no step farther from it than it need be."""
        return jnp.append(jnp.clip((params.goal - state.hand) / STEP, -1.0, 1.0), jnp.zeros(()))

    def optimal_return(self, params: ArmParams) -> jax.Array:
        """The summed rewards of that path; NaN for a task longer than `num_steps`."""
        moved = STEP * np.arange(1, self.num_steps + 1, dtype=np.float32)[:, None]
        left = jnp.maximum(jnp.abs(params.goal - HAND_START)[None] - moved, 0.0)  # [num_steps, 3]
        return self.until_limit(10 * tolerance(_norm(left), SUCCESS, _norm(HAND_START - params.goal)), params)


class Push(Arm):
    """Pushes the puck to a goal on the table (Yu et al. 2020, Meta-World push); all but this is as `Arm` says.

    Goals are uniform in x -0.1..0.1, y 0.8..0.9. With near = tolerance(distance from hand to puck), which is 1 where
    they touch (3 cm), and placed = tolerance(distance from puck to goal), the reward is 2 near, and while they touch
    1 + 2 near + 5 placed more; it is 10 while the puck is within 5 cm of the goal. For near Meta-World has the caging
    of the puck by the fingers, and 2 cm for 3.
    """

    goal_low, goal_high = np.array([-0.1, 0.8, 0.02], np.float32), np.array([0.1, 0.9, 0.02], np.float32)

    def score(self, state, params):
        """How near the hand is to the puck and the puck to the goal."""
        to_puck, to_goal = _norm(state.hand - state.puck), _norm(state.puck - params.goal)
        near = tolerance(to_puck, TOUCH, _norm(HAND_START - params.puck_start))
        placed = tolerance(to_goal, SUCCESS, _norm(params.puck_start - params.goal))
        reward = 2 * near + jnp.where(to_puck <= TOUCH, 1 + 2 * near + 5 * placed, 0.0)
        success = to_goal <= SUCCESS
        return jnp.where(success, 10.0, reward), success


def tolerance(distance: jax.Array, bound: float, margin: jax.Array) -> jax.Array:
    """1 up to `bound`, then 1 / ((3 excess / margin)^2 + 1): a long tail that is 0.1 at an excess of `margin`."""
    excess = jnp.maximum(distance - bound, 0.0) / margin
    return 1 / ((3 * excess) ** 2 + 1)


def _moved(state, action):
    action = jnp.clip(action, -1.0, 1.0)
    hand = jnp.clip(state.hand + STEP * action[:3], HAND_LOW, HAND_HIGH)
    opening = jnp.clip(state.opening - 0.1 * action[3], 0.0, 1.0)
    return ArmState(time=state.time + 1, hand=hand, opening=opening, puck=_shoved(state.puck, hand))


def _shoved(puck, hand):
    """The puck, moved along the table until it is `CONTACT` from a hand that is down there."""
    offset = (puck - hand)[:2]
    distance = jnp.hypot(*offset)
    ahead = jnp.array([0.0, 1.0])  # where the puck goes from right under the hand
    direction = jnp.where(distance > 0, offset / jnp.maximum(distance, 1e-9), ahead)
    hit = (hand[2] < NEAR_TABLE) & (distance < CONTACT)
    shoved = jnp.append(hand[:2] + CONTACT * direction, puck[2])
    return jnp.where(hit, jnp.clip(shoved, HAND_LOW, HAND_HIGH), puck)


def _norm(x):
    return jnp.sqrt(jnp.sum(x**2, axis=-1))


def _panel(state, params, across, up):
    """One view, 96 pixels and 1 metre wide, in two of the three coordinates."""

    def pixel(point):
        return jnp.stack([point[across], point[up]]) + shift

    shift = np.array([0.5 if across == 0 else -0.1, -0.1 if up == 1 else 0.25], np.float32)
    image = drawing.blank(96, 96)
    image = drawing.line(
        image, pixel(HAND_START * np.array([1, 0, 1], np.float32)), pixel(state.hand), 0.03, drawing.GREY
    )
    image = drawing.disc(image, pixel(params.goal), SUCCESS, drawing.GREEN)
    image = drawing.disc(image, pixel(state.puck), 0.03, drawing.ORANGE)
    return drawing.disc(image, pixel(state.hand), 0.025, drawing.BLUE)

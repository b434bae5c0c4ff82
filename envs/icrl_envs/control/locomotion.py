"""Bodies that must find out how fast, which way or with what physics they are to walk."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments.environment import EnvParams

from icrl_envs.control.brax_task import BraxTask
from icrl_envs.task_family import is_number, require


@struct.dataclass
class CheetahVelParams(EnvParams):
    """One velocity to keep."""

    target_velocity: jax.Array = struct.field(default_factory=lambda: jnp.zeros(()))  # float32 [], m/s
    max_steps_in_episode: int = 200


@struct.dataclass
class CheetahDirParams(EnvParams):
    """One way to run."""

    direction: jax.Array = struct.field(default_factory=lambda: jnp.ones(()))  # float32 [], 1 (forward) or -1
    max_steps_in_episode: int = 200


@struct.dataclass
class AntDirParams(EnvParams):
    """One way to walk."""

    direction: jax.Array = struct.field(default_factory=lambda: jnp.zeros(()))  # float32 [], radians from the x axis
    max_steps_in_episode: int = 200


@struct.dataclass
class WalkerPhysics(EnvParams):
    """One body: factors on the numbers of the standard one."""

    mass_scale: jax.Array = struct.field(default_factory=lambda: jnp.ones(7))  # float32 [7], of links
    inertia_scale: jax.Array = struct.field(default_factory=lambda: jnp.ones(7))  # float32 [7], of links
    damping_scale: jax.Array = struct.field(default_factory=lambda: jnp.ones(6))  # float32 [6], of joints
    friction_scale: jax.Array = struct.field(default_factory=lambda: jnp.ones(8))  # float32 [8], of floor, then links
    max_steps_in_episode: int = 200


class Cheetah(BraxTask):
    """The body of the half cheetah: joint positions without x, joint velocities, and the torso's (x, y, z) if told."""

    body = "halfcheetah"
    torso_position = False

    @property
    def obs_size(self) -> int:
        """Length of the observation."""
        return 20 if self.torso_position else 17

    def start(self, key):
        """Uniform within 0.1, velocities normal with sd 0.1."""
        key_q, key_qd = jax.random.split(key)
        return jax.random.uniform(key_q, (9,), minval=-0.1, maxval=0.1), 0.1 * jax.random.normal(key_qd, (9,))

    def observe_body(self, physics):
        """float32 [17], or [20] with the torso's position."""
        torso = [physics.x.pos[0]] if self.torso_position else []
        return jnp.concatenate([physics.q[1:], physics.qd, *torso])


class CheetahVel(Cheetah):
    """A half cheetah that is to run at a hidden velocity (Finn et al. 2017; conventions of Wu et al. 2025, T2MIR).

    The observation is float32 [17], joint positions without x and joint velocities, and with `torso_position` the
    torso's (x, y, z) after them; the action is float32 [6]. The reward is -|v - target_velocity| - 0.05 |action|^2
    with v the mean velocity of the torso along x over the step (0.05 s). Nothing terminates, the time limit truncates.

    Presets: "t2mir": targets U[0, 3], 45 drawn by us to train on and the paper's 5 to test on. "dit" (Dong et al.
    2025): unseen target velocities too; nothing more is known of it, and all is as T2MIR but for the test targets.

    Args:
      num_steps: length of an episode, at least 1.
      max_velocity: targets are uniform between 0 and this, which is above 0.
      torso_position: whether the torso's position is seen, its x included.
      backend: "spring", "positional", "generalized" or "mjx"; see `BraxTask`.
      num_train: number of targets to train on; None: targets never run out.
      num_test: number of targets to test on, beside `num_train`.
      split_seed: seed of those targets.
      test_velocities: the targets to test on, in place of `num_test` drawn ones; needs `num_train`.
    """

    presets = {
        "t2mir": {
            "num_steps": 200,
            "max_velocity": 3.0,
            "torso_position": True,
            "num_train": 45,
            "test_velocities": (2.107, 1.242, 1.027, 1.788, 0.600),
        },
        "dit": {"num_steps": 200, "max_velocity": 3.0, "torso_position": True, "num_train": 45, "num_test": 5},
    }

    def __init__(
        self,
        num_steps: int = 200,
        max_velocity: float = 3.0,
        torso_position: bool = False,
        backend: str = "spring",
        num_train: int | None = None,
        num_test: int = 5,
        split_seed: int = 0,
        test_velocities: Sequence[float] | None = None,
    ):
        require(is_number(max_velocity) and max_velocity > 0, "max_velocity", max_velocity, "a finite number above 0")
        require(isinstance(torso_position, bool), "torso_position", torso_position, "True or False")
        published = None if test_velocities is None else {"target_velocity": test_velocities}
        fits = test_velocities is None or (num_train is not None and _are_velocities(test_velocities, max_velocity))
        allowed = f"None or, beside num_train, at least one number in 0 ..= {max_velocity}"
        require(fits, "test_velocities", test_velocities, allowed)
        self.max_velocity = float(max_velocity)
        self.torso_position = torso_position
        super().__init__(num_steps, backend, num_train, num_test, split_seed, published)

    @property
    def default_params(self) -> CheetahVelParams:
        """Half the highest target."""
        return self.params(target_velocity=jnp.float32(self.max_velocity / 2))

    def draw(self, key):
        """One target."""
        return {"target_velocity": jax.random.uniform(key, maxval=self.max_velocity)}

    def params(self, target_velocity):
        """The task with this target."""
        return CheetahVelParams(target_velocity=target_velocity, max_steps_in_episode=self.num_steps)

    def score(self, physics, velocity, action, params):
        """How far off the velocity is, and the cost of torques."""
        reward = -jnp.abs(velocity[0] - params.target_velocity) - 0.05 * jnp.sum(action**2)
        return reward, jnp.zeros((), bool)


class CheetahDir(Cheetah):
    """A half cheetah that is to run forward or backward (Finn et al. 2017; conventions of Rakelly et al. 2019, PEARL).

    Observation, action and end are those of `CheetahVel`. The reward is direction v - 0.05 |action|^2. There are two
    tasks: "train" is forward, "test" backward and "all" either, on which papers both train and test.

    Args:
      num_steps: length of an episode, at least 1.
      torso_position: whether the torso's position is seen, its x included.
      backend: "spring", "positional", "generalized" or "mjx"; see `BraxTask`.
    """

    def __init__(self, num_steps: int = 200, torso_position: bool = False, backend: str = "spring"):
        require(isinstance(torso_position, bool), "torso_position", torso_position, "True or False")
        self.torso_position = torso_position
        super().__init__(num_steps, backend, 1, 1, 0, {"direction": (-1.0,)})

    @property
    def default_params(self) -> CheetahDirParams:
        """Forward."""
        return self.params(direction=jnp.ones(()))

    def draw(self, key):
        """The task to train on: forward."""
        return {"direction": jnp.ones(())}

    def params(self, direction):
        """The task with this direction."""
        return CheetahDirParams(direction=direction, max_steps_in_episode=self.num_steps)

    def score(self, physics, velocity, action, params):
        """The velocity that way, and the cost of torques."""
        return params.direction * velocity[0] - 0.05 * jnp.sum(action**2), jnp.zeros((), bool)


class AntDir(BraxTask):
    """An ant that is to walk in a hidden direction of the plane (Rothfuss et al. 2019; as Rakelly et al. 2019, PEARL).

    The observation is float32 [27], joint positions without x and y, and joint velocities; the action is float32 [8].
    The reward is 1 + v . (cos direction, sin direction) - 0.5 |action|^2 with v the mean velocity of the torso over
    the step (0.05 s). It terminates where the torso is not 0.2 to 1 high; the time limit truncates. The direction is
    uniform on the circle. Contact costs of the original are left out: Brax reports no contact forces.

    Args:
      num_steps: length of an episode, at least 1.
      backend: "spring", "positional", "generalized" or "mjx"; see `BraxTask`.
      num_train: number of directions to train on; None: directions never run out.
      num_test: number of directions to test on, beside `num_train`.
      split_seed: seed of those directions.
    """

    body = "ant"
    obs_size = 27

    def __init__(
        self,
        num_steps: int = 200,
        backend: str = "spring",
        num_train: int | None = None,
        num_test: int = 5,
        split_seed: int = 0,
    ):
        super().__init__(num_steps, backend, num_train, num_test, split_seed)

    @property
    def default_params(self) -> AntDirParams:
        """Along the x axis."""
        return self.params(direction=jnp.zeros(()))

    def draw(self, key):
        """One direction."""
        return {"direction": jax.random.uniform(key, maxval=2 * np.pi)}

    def params(self, direction):
        """The task with this direction."""
        return AntDirParams(direction=direction, max_steps_in_episode=self.num_steps)

    def start(self, key):
        """Uniform within 0.1, velocities normal with sd 0.1."""
        key_q, key_qd = jax.random.split(key)
        return jax.random.uniform(key_q, (15,), minval=-0.1, maxval=0.1), 0.1 * jax.random.normal(key_qd, (14,))

    def observe_body(self, physics):
        """float32 [27]."""
        return jnp.concatenate([physics.q[2:], physics.qd])

    def score(self, physics, velocity, action, params):
        """The velocity that way, being upright, and the cost of torques."""
        along = velocity[0] * jnp.cos(params.direction) + velocity[1] * jnp.sin(params.direction)
        height = physics.x.pos[0, 2]
        return 1 + along - 0.5 * jnp.sum(action**2), (height < 0.2) | (height > 1.0)


class WalkerParams(BraxTask):
    """A walker whose own physics is hidden from it (Rothfuss et al. 2019; conventions of Wu et al. 2025, T2MIR).

    The observation is float32 [17], height, joint positions without x, and joint velocities clipped to +-10; the action
    is float32 [6]. The reward is v + 1 - 0.001 |action|^2 with v the mean velocity of the torso along x over the step
    (0.008 s), and 1 less where it has fallen: height not 0.8 to 2, or leaning more than 1 radian. Nothing terminates, a
    fall neither; the time limit truncates.

    The task has factors 1.5^U[-3, 3] on mass and inertia of each link and on the sliding friction of floor and links,
    and 1.3^U[-3, 3] on the damping of each joint. Of the paper's three factors on the inertia of a link the one for the
    axis on which a planar body turns is kept, of those on friction the sliding one, and of damping those of the six
    hinges: the others change nothing. Only the floor, the torso and the feet touch anything, and the slipperier of two
    that touch does not count. On "spring" and "positional", where Brax puts masses and inertias to a power that may be
    0, the factors act on what comes of it, and those on damping act on that of the links' angular velocities, as joints
    have none there.

    Preset "t2mir": 45 bodies to train on and 5 to test on, drawn by us from that law.

    Args:
      num_steps: length of an episode, at least 1.
      log_scale: the 3 above; more than 0 and at most 3.
      backend: "spring", "positional", "generalized" or "mjx"; see `BraxTask`.
      num_train: number of bodies to train on; None: bodies never run out.
      num_test: number of bodies to test on, beside `num_train`.
      split_seed: seed of those bodies.
    """

    body = "walker2d"
    obs_size = 17
    presets = {"t2mir": {"num_steps": 200, "log_scale": 3.0, "num_train": 45, "num_test": 5}}

    def __init__(
        self,
        num_steps: int = 200,
        log_scale: float = 3.0,
        backend: str = "spring",
        num_train: int | None = None,
        num_test: int = 5,
        split_seed: int = 0,
    ):
        require(
            is_number(log_scale, high=3) and log_scale > 0, "log_scale", log_scale, "a number above 0 and at most 3"
        )
        self.log_scale = float(log_scale)
        super().__init__(num_steps, backend, num_train, num_test, split_seed)

    @property
    def default_params(self) -> WalkerPhysics:
        """The standard body."""
        return WalkerPhysics(max_steps_in_episode=self.num_steps)

    def draw(self, key):
        """One body."""
        laws = {"mass": (1.5, 7), "inertia": (1.5, 7), "damping": (1.3, 6), "friction": (1.5, 8)}
        exponents = {
            name: jax.random.uniform(key, (n,), minval=-self.log_scale, maxval=self.log_scale)
            for key, (name, (_, n)) in zip(jax.random.split(key, len(laws)), laws.items(), strict=True)
        }
        return {f"{name}_scale": laws[name][0] ** exponent for name, exponent in exponents.items()}

    def params(self, **scales):
        """The task with this body."""
        return WalkerPhysics(**scales, max_steps_in_episode=self.num_steps)

    def system(self, params):
        """The standard system with every number scaled that a backend reads it from."""
        sys = self.brax.sys
        mass, inertia = sys.link.inertia.mass, jnp.diagonal(sys.link.inertia.i, axis1=1, axis2=2)
        if self.backend in ("spring", "positional"):
            mass, inertia = mass ** (1 - sys.spring_mass_scale), inertia ** (1 - sys.spring_inertia_scale)
        mass, inertia = mass * params.mass_scale, inertia * params.inertia_scale[:, None]
        damping = jnp.append(jnp.ones(3), params.damping_scale)  # the first three move the torso freely
        hinged = jnp.append(jnp.ones(1), params.damping_scale)  # each link but the torso hangs on one hinge
        return sys.tree_replace(
            {
                "link.inertia.mass": mass,
                "link.inertia.i": jax.vmap(jnp.diag)(inertia),
                "spring_mass_scale": 0.0,
                "spring_inertia_scale": 0.0,
                "link.constraint_ang_damping": sys.link.constraint_ang_damping * hinged,
                "dof.damping": sys.dof.damping * damping,
                "geom_friction": sys.geom_friction.at[:, 0].multiply(params.friction_scale),
                # mjx counts the world as a body and has its own copies
                "body_mass": sys.body_mass * jnp.append(jnp.ones(1), params.mass_scale),
                "body_inertia": sys.body_inertia * jnp.append(jnp.ones(1), params.inertia_scale)[:, None],
                "dof_damping": sys.dof_damping * damping,
            }
        )

    def start(self, key):
        """Uniform within 0.005, velocities too."""
        return tuple(jax.random.uniform(key, (2, 9), minval=-0.005, maxval=0.005))

    def observe_body(self, physics):
        """float32 [17]."""
        return jnp.concatenate([physics.x.pos[0, 2:], physics.q[2:], jnp.clip(physics.qd, -10.0, 10.0)])

    def score(self, physics, velocity, action, params):
        """The velocity forward, a bonus while standing, and the cost of torques."""
        height, lean = physics.x.pos[0, 2], physics.q[2]
        standing = (height > 0.8) & (height < 2.0) & (jnp.abs(lean) < 1.0)
        return velocity[0] + standing.astype(jnp.float32) - 0.001 * jnp.sum(action**2), jnp.zeros((), bool)


def _are_velocities(velocities, highest):
    try:
        velocities = np.asarray(velocities, np.float64)
    except (TypeError, ValueError):
        return False
    return velocities.ndim == 1 and velocities.size > 0 and bool(((velocities >= 0) & (velocities <= highest)).all())

"""Brax behind the gymnax interface: bodies whose physics is part of the task."""

import copy
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import EnvState

from icrl_envs.control.drawn_tasks import DrawnTasks
from icrl_envs.foreign_code import quiet_brax, usual_promotion
from icrl_envs.task_family import is_name, require

BACKENDS = ("spring", "positional", "generalized", "mjx")


@struct.dataclass
class BodyState(EnvState):
    """The state of Brax's physics pipeline: joints in `q`, `qd`, links in `x`, `xd`, and what the backend caches."""

    physics: Any


class BraxTask(DrawnTasks):
    """A body of Brax under physics that may depend on the task.

    A subclass names the `body` and says how it starts, what of it is seen (`obs_size` numbers) and what it is paid.
    Actions are torques, clipped to [-1, 1]. Time step, frame skip and strengths of joints are those of Brax's own
    environment of that body and backend.

    `backend` is "spring" unless said otherwise, the fastest by far on two CPU cores. 256 tasks there, in thousands of
    steps per second: spring, positional, generalized and mjx make 10, 3.6, 2.3 and 1.2 for the cheetah, 40, 15, 4.5 and
    1.9 for the walker, 18, 6.5, 6.1 and 7.2 for the ant; spring also compiles fastest, in 5 to 9 s. It is the coarsest:
    joints are stiff springs, and masses and inertias are those that keep these stable, not the body's. The nearest to
    MuJoCo, on which the papers ran, are mjx (its JAX port) and generalized. Returns of different backends do not
    compare.
    """

    body: str
    obs_size: Any
    rare_reset = True  # 7 to 40 % of the cost of a step, depending on body and backend

    def __init__(self, num_steps, backend, num_train, num_test, split_seed, published_test=None):
        require(is_name(backend, BACKENDS), "backend", backend, f"one of {', '.join(map(repr, BACKENDS))}")
        self.backend = backend
        self.dt = float(self.brax.dt)
        super().__init__(num_steps, num_train, num_test, split_seed, published_test)

    @property
    def brax(self) -> Any:
        """Brax's environment; kept outside, because it holds modules, which can be neither pickled nor copied."""
        return _load(self.body, self.backend)

    def system(self, params: Any) -> Any:
        """The Brax system of one task."""
        return self.brax.sys

    def start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Draws how far the joints are from where they rest, and their velocities."""
        raise NotImplementedError

    def observe_body(self, physics: Any) -> jax.Array:
        """What of the body is seen."""
        raise NotImplementedError

    def score(self, physics: Any, velocity: jax.Array, action: jax.Array, params: Any) -> tuple[jax.Array, jax.Array]:
        """Reward and termination on reaching `physics`, when the torso moved at `velocity`, float32 [3]."""
        raise NotImplementedError

    def reset_env(self, key, params):
        """Starts near rest."""
        offset, qd = self.start(key)
        with usual_promotion():
            physics = self._brax(params).pipeline_init(self.brax.sys.init_q + offset, qd)
        physics = jax.tree.map(lambda x: jnp.asarray(x, x.dtype), physics)  # no weak types, which retrace what steps
        return self.observe_body(physics), BodyState(time=jnp.zeros((), jnp.int32), physics=physics)  # type: ignore[arg-type]

    def step_env(self, key, state, action, params):
        """Applies the torques for one frame skip."""
        action = jnp.clip(action, -1.0, 1.0)
        with usual_promotion():
            physics = self._brax(params).pipeline_step(state.physics, action)
        velocity = (physics.x.pos[0] - state.physics.x.pos[0]) / self.dt
        reward, terminated = self.score(physics, velocity, action, params)
        return self.observe_body(physics), BodyState(time=state.time + 1, physics=physics), reward, terminated, {}

    def _brax(self, params):
        brax = copy.copy(self.brax)
        brax.sys = self.system(params)
        return brax

    @property
    def num_actions(self) -> int:
        """Number of components of an action."""
        return self.brax.action_size

    def action_space(self, params=None) -> spaces.Box:
        """Torques, as shares of the strongest."""
        return spaces.Box(-1.0, 1.0, (self.num_actions,))

    def observation_space(self, params=None) -> spaces.Box:
        """Joint positions and velocities, without bounds."""
        return spaces.Box(-jnp.inf, jnp.inf, (self.obs_size,))


@functools.cache
def _load(body: str, backend: str) -> Any:
    """Brax's environment of a body."""
    with jax.ensure_compile_time_eval(), quiet_brax() as envs:  # a family just unpickled may load it inside a trace
        return envs.get_environment(body, backend=backend)

"""Tasks that a learner can fail for one reason each; their values and best actions are known."""

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import EnvParams, EnvState

from icrl_envs import TaskFamily

KINDS = ("constant", "seen", "delayed", "acted", "matched", "endless")
BEST, NUM_ACTIONS = 2, 3


@struct.dataclass
class ProbeParams(EnvParams):
    kind: jax.Array = struct.field(default_factory=lambda: jnp.zeros((), jnp.int32))  # int32 []: which of KINDS
    max_steps_in_episode: int = 3


@struct.dataclass
class ProbeState(EnvState):
    obs: jax.Array  # float32 []


class Probes(TaskFamily):
    """All but two kinds last one step and pay at most 1:

    - constant: 1, whatever is seen (0) or done;
    - seen: what was seen, -1 or 1;
    - delayed: nothing at 0, then 1 at 1;
    - acted: 1 for action 2;
    - matched: 1 for action 0 where -1 is seen, or action 1 where 1 is seen;
    - endless: 1 at every step, cut off after three though nothing ends.
    """

    @property
    def default_params(self):
        return ProbeParams()

    def tasks(self, split="train"):
        return jax.vmap(lambda kind: ProbeParams(kind=kind))(jnp.arange(len(KINDS)))

    def sample_task(self, key, split="train"):
        return ProbeParams(kind=jax.random.randint(key, (), 0, len(KINDS)))

    def step_env(self, key, state, action, params):
        seen = state.obs
        rewards = [
            jnp.ones(()),
            seen,
            seen,
            action == BEST,
            action == (seen > 0).astype(jnp.int32),
            jnp.ones(()),
        ]
        reward = jnp.stack([jnp.asarray(r, jnp.float32) for r in rewards])[params.kind]
        is_delayed, is_endless = params.kind == KINDS.index("delayed"), params.kind == KINDS.index("endless")
        state = ProbeState(time=state.time + 1, obs=jnp.where(is_delayed, 1.0, seen))
        terminated = ~is_endless & (~is_delayed | (state.time == 2))
        return state.obs[None], state, reward, terminated, {}

    def reset_env(self, key, params):
        shows = (params.kind == KINDS.index("seen")) | (params.kind == KINDS.index("matched"))
        sign = jnp.where(jax.random.bernoulli(key), 1.0, -1.0)
        state = ProbeState(time=jnp.zeros((), jnp.int32), obs=jnp.where(shows, sign, 0.0))
        return state.obs[None], state

    @property
    def num_actions(self):
        return NUM_ACTIONS

    def action_space(self, params=None):
        return spaces.Discrete(NUM_ACTIONS)

    def observation_space(self, params=None):
        return spaces.Box(-1.0, 1.0, (1,))


@struct.dataclass
class AimParams(EnvParams):
    target: jax.Array = struct.field(default_factory=lambda: jnp.zeros(2))  # float32 [2]
    max_steps_in_episode: int = 1


class Aim(TaskFamily):
    """One step; pays minus the squared distance of the action, within -1 and 3, to the target."""

    @property
    def default_params(self):
        return AimParams()

    def step_env(self, key, state, action, params):
        reward = -jnp.square(action - params.target).sum()
        return jnp.zeros(1), EnvState(time=state.time + 1), reward, jnp.ones((), bool), {}

    def reset_env(self, key, params):
        return jnp.zeros(1), EnvState(time=jnp.zeros((), jnp.int32))

    def is_truncated(self, state, params):
        return jnp.zeros((), bool)

    @property
    def num_actions(self):
        return 2

    def action_space(self, params=None):
        return spaces.Box(-1.0, 3.0, (2,))

    def observation_space(self, params=None):
        return spaces.Box(-1.0, 1.0, (1,))

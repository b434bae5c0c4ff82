"""A tiny family with true episodes: only the last observation of one tells what pays in the next."""

import functools

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import EnvParams, EnvState

from icrl_envs import TaskFamily
from icrl_envs.task_family import split_key
from icrl_jax.agents import learner
from icrl_jax.core import Agent, TimeStep, Transition, partial

NUM_ACTIONS = 5
EPISODE_STEPS = 3
HIDDEN = -1.0


@struct.dataclass
class TwoEpisodesParams(EnvParams):
    secret: jax.Array = struct.field(default_factory=lambda: jnp.zeros((), jnp.int32))  # int32 []
    max_steps_in_episode: int = EPISODE_STEPS


@struct.dataclass
class TwoEpisodesState(EnvState):
    start: jax.Array  # float32 []: drawn anew at every reset
    found: jax.Array  # bool []


class TwoEpisodes(TaskFamily):
    """The secret action pays 1 and terminates the episode, which is truncated after three steps otherwise.

    The observation is (time, start, secret if the episode is over else -1).
    """

    @property
    def default_params(self):
        return TwoEpisodesParams()

    def tasks(self, split="train"):
        secrets = {"train": [0, 2, 4], "test": [1, 3], "all": [0, 1, 2, 3, 4]}[split]
        return TwoEpisodesParams(
            secret=jnp.array(secrets, jnp.int32), max_steps_in_episode=jnp.full(len(secrets), EPISODE_STEPS)
        )

    def sample_task(self, key, split="train"):
        key = split_key(key, split)
        tasks = self.tasks(split)
        index = jax.random.randint(key, (), 0, len(tasks.secret))
        return jax.tree.map(lambda x: x[index], tasks)

    def optimal_action(self, state, params):
        return params.secret

    def expected_reward(self, state, action, params):
        return (action == params.secret).astype(jnp.float32)

    def optimal_return(self, params):
        return jnp.ones(())

    def step_env(self, key, state, action, params):
        found = jnp.clip(action, 0, NUM_ACTIONS - 1) == params.secret
        state = TwoEpisodesState(time=state.time + 1, start=state.start, found=found)
        obs = self._obs(state, params, found | self.is_truncated(state, params))
        return obs, state, found.astype(jnp.float32), found, {"secret": params.secret}

    def reset_env(self, key, params):
        start = jax.random.uniform(key)
        state = TwoEpisodesState(time=jnp.zeros((), jnp.int32), start=start, found=jnp.zeros((), bool))
        return self._obs(state, params, jnp.zeros((), bool)), state

    def _obs(self, state, params, over):
        shown = jnp.where(over, params.secret.astype(jnp.float32), HIDDEN)
        return jnp.stack([state.time.astype(jnp.float32), state.start, shown])

    def is_truncated(self, state, params):
        return (state.time >= params.max_steps_in_episode) & ~state.found

    @property
    def num_actions(self):
        return NUM_ACTIONS

    def action_space(self, params=None):
        return spaces.Discrete(NUM_ACTIONS)

    def observation_space(self, params=None):
        return spaces.Box(HIDDEN, float(NUM_ACTIONS), (3,))


def scout() -> Agent:
    """Tries at random until an episode has ended, then plays the secret it was shown."""
    return learner(partial(_nothing_seen), partial(_look), partial(_play))


def _nothing_seen():
    return jnp.full((), -1, jnp.int32)


def _look(secret, transition: Transition):
    return jnp.maximum(secret, transition.next_obs[2].astype(jnp.int32))


def _play(secret, key, obs):
    return jnp.where(secret >= 0, secret, jax.random.randint(key, (), 0, NUM_ACTIONS)), {}


def constant(action) -> Agent:
    """Always takes the same action."""
    return learner(partial(_nothing_seen), partial(_look_away), partial(_repeat, jnp.asarray(action)))


def _look_away(carry, transition):
    return carry


def _repeat(action, carry, key, obs):
    return action, {}


def spied(agent: Agent) -> Agent:
    """Puts into `info` what an agent was given, and what it remembered afterwards."""
    return Agent(agent.init, partial(_spied_act, agent))


def _spied_act(agent: Agent, carry, key, timestep: TimeStep):
    carry, action, info = agent.act(carry, key, timestep)
    return carry, action, {**info, "timestep": timestep, "carry": carry}


def on_host(function, **kwargs):
    """Jits a function and hands out NumPy arrays: checks on those compile nothing."""
    jitted = jax.jit(function, **kwargs)

    @functools.wraps(function)
    def call(*args, **kwargs):
        return jax.device_get(jitted(*args, **kwargs))

    return call

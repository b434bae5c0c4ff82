"""DPT in a room of pictures: which of four boxes pays, and where to turn to get there (Lee et al. 2023, Miniworld).

make train EXPERIMENT=dpt_pixels                    pictures of 12 x 12; with --num-updates 500: 7 of 19.5, offline 11
make train EXPERIMENT=dpt_pixels PRESET=paper       the paper's room and sizes, for one GPU

What is seen is what lies ahead, and the heading; in the rooms of the test the boxes stand in arrangements that are held
out. Held against the exact posterior over all tasks, which knows the rules of the room: online it follows where it is
from the start and samples at each step, as DPT does; offline it is told the places of its context, and its own, and
takes the likeliest action. DPT has to see them.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from experiments import _episodes as episodes
from experiments import dpt_dark_room
from experiments._bandits import intervals
from experiments.dpt_dark_room import OFFLINE
from icrl_envs import Revealed, revealed
from icrl_envs.pixel_room import PixelRoom, PixelRoomState
from icrl_jax.agents.learner import Static, memoryless
from icrl_jax.core import Agent, Array, Transition, Tree, partial
from icrl_jax.methods.dpt_mdp import DPTMDPConfig
from icrl_jax.methods.supervised import OptimConfig
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.run import EnvSpec, Experiment, MethodSpec, RunOptions, Trained, main


@dataclass(frozen=True)
class Config(RunOptions):
    """DPT in a room of pictures."""

    pixels: int = 12
    """Side of a picture."""
    num_headings: int = 12
    """Turns in a full circle."""
    episode_steps: int = 25
    """Steps of an episode."""
    eval_episodes: int = 20
    """Episodes in a held-out task."""
    dpt: DPTMDPConfig = field(default_factory=DPTMDPConfig)
    """The method."""


PRESETS = {
    "cpu": Config(
        preset="cpu",
        num_chunks=10,
        eval_tasks=100,
        dpt=DPTMDPConfig(
            model=TransformerConfig(width=64, num_layers=3, num_heads=4, context_len=51, positions="none"),
            optim=OptimConfig(learning_rate=3e-3),
            num_updates=1500,
            batch_size=32,
            horizon=50,
            next_obs=False,
            image_channels=(16, 32),
        ),
    ),
    "paper": Config(
        preset="paper",
        num_chunks=50,
        eval_tasks=100,
        pixels=25,
        num_headings=24,
        episode_steps=50,
        eval_episodes=40,
        dpt=DPTMDPConfig(
            model=TransformerConfig(
                width=32, num_layers=4, num_heads=4, context_len=51, positions="none", dtype="float32"
            ),
            optim=OptimConfig(
                learning_rate=1e-4, weight_decay=1e-4, schedule="constant", warmup=0.0, beta2=0.999, clip=None
            ),
            num_updates=150_000,  # 200 epochs of 48,000 contexts in batches of 64, as the paper's script
            batch_size=64,
            horizon=50,
            query="first",
            update="episode",
            next_obs=False,
            image_channels=(16, 16),
            train_empty=False,
        ),
    ),
}


def offline(trained: Trained, tasks: Tree, repeats: int) -> dict[str, dict]:
    """As that of `dpt_dark_room`, with a posterior that is told the places of its context."""
    env, horizon = trained.env, trained.config.dpt.horizon
    many = jax.tree.map(lambda x: x.repeat(repeats, axis=0), tasks)
    keys = jax.random.split(jax.random.key(episodes.EVAL_SEED + 4), many.target.shape[0])
    learned = {"dpt": episodes.answering(episodes.alone(trained.method), trained.params)}
    told, found = {"posterior": [partial(_told, Static(env))]}, {}
    see, believe = (jax.jit(jax.vmap(partial(each, env))) for each in (transitions, belief))
    for name, choose in {"offline_random": scattered_places, "offline_expert": best_places}.items():
        states, actions = jax.jit(jax.vmap(partial(choose, env, horizon)))(many, keys)
        contexts = see(many, states, actions)
        returns = episodes.offline_returns(learned, env, tasks, repeats, contexts)
        returns |= episodes.offline_returns(told, revealed(env), tasks, repeats, believe(states, contexts))
        found[name] = intervals(OFFLINE, returns)
    return found


def scattered_places(env: PixelRoom, num: int, task: Tree, key: Array) -> tuple[PixelRoomState, Array]:
    """Separate states [num], and actions, each as likely."""
    key_states, key_actions = jax.random.split(key)
    _, states = jax.vmap(env.reset_anywhere, in_axes=(0, None))(jax.random.split(key_states, num), task)
    return states, jax.random.randint(key_actions, (num,), 0, env.num_actions)


def best_places(env: PixelRoom, num: int, task: Tree, key: Array) -> tuple[PixelRoomState, Array]:
    """The states [num] and actions of the oracle, one episode after another."""

    def step(state, t):
        state = jax.tree.map(lambda x, y: jnp.where(t % env.num_steps == 0, x, y), env.start_state(), state)
        action = env.optimal_action(state, task)
        return env.next_state(state, action, task)[0], (state, action)

    return jax.lax.scan(step, env.start_state(), jnp.arange(num))[1]


def transitions(env: PixelRoom, task: Tree, states: PixelRoomState, actions: Array) -> Transition:
    """What was seen of these steps, [T, ...]."""

    def one(state, action):
        after, reward = env.next_state(state, action, task)
        ended = jnp.zeros((), bool), env.is_truncated(after, task)
        return Transition(env.observe(state, task), action, reward, env.observe(after, task), *ended)

    return jax.vmap(one)(states, actions)


def belief(env: PixelRoom, states: PixelRoomState, context: Transition) -> Array:
    """The posterior probability of each task, float32 [M], after a context of known places, [T, ...]."""

    def fits(task):
        expected = transitions(env, task, states, context.action)
        seen = jnp.all(expected.next_obs["picture"] == context.next_obs["picture"], axis=(1, 2, 3))
        return jnp.sum(~(seen & (expected.feedback == context.feedback)))

    misses = jax.lax.map(fits, env.tasks("all"))
    possible = (misses == jnp.min(misses)).astype(jnp.float32)
    return possible / jnp.sum(possible)


def _told(env: Static, weights: Array) -> Agent:
    return memoryless(partial(_likeliest, env, env.value.tasks("all"), weights))


def _likeliest(env: Static, tasks: Tree, weights: Array, carry: Tree, key: Array, obs: Revealed) -> tuple[Any, dict]:
    best = jax.vmap(env.value.optimal_action, in_axes=(None, 0))(obs.state, tasks)
    shares = jnp.sum(weights[:, None] * jax.nn.one_hot(best, env.value.num_actions), axis=0)
    return jnp.argmax(shares).astype(jnp.int32), {}


EXPERIMENT = Experiment(
    name="dpt_pixels",
    presets=PRESETS,
    env=lambda config: EnvSpec(
        "pixel_room",
        None,
        {"pixels": config.pixels, "num_headings": config.num_headings, "num_steps": config.episode_steps},
    ),
    method=lambda config: MethodSpec("icrl_jax.methods.dpt_mdp:dpt_mdp", config.dpt),
    metric=episodes.METRIC,
    score=episodes.watched,
    findings=partial(dpt_dark_room.findings, offline=offline),
)

if __name__ == "__main__":
    main(EXPERIMENT, __doc__ or "")

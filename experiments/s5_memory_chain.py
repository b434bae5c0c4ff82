"""S5 and a GRU of equal size on the memory chain: one cue, a long wait, one question (Lu et al. 2023, section 4.1).

make train EXPERIMENT=s5_memory_chain                  on validation tasks S5 1.0 after 200 updates, the GRU 0.1 after 600
make train EXPERIMENT=s5_memory_chain PRESET=paper     a length of 512, for one GPU
make train EXPERIMENT=s5_memory_chain ARGS="--memory-length 16 --num-steps 17"     what the paper's LSTM remembers

The reward, 1 or -1, comes at the end and only there. PPO trains both networks alike, on whole episodes, so that the
gradient of the answer reaches the cue. The paper's S5 remembers over 512 steps and its LSTM over 16. Each network is
also asked after waits of other lengths, and an update of each is timed at lengths up to the longest.
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import numpy as np

from experiments import _bandits as bandits
from experiments import _ppo
from icrl_envs import TaskFamily, make, revealed, sample_tasks
from icrl_envs.task_family import is_int, require
from icrl_jax import agents, report, statistics
from icrl_jax.core import Agent, Array
from icrl_jax.evaluate import evaluate
from icrl_jax.methods.ppo import PPOConfig, ppo
from icrl_jax.methods.supervised import OptimConfig
from icrl_jax.models.embeddings import EmbeddingConfig
from icrl_jax.models.gru import GRUConfig
from icrl_jax.models.kinds import ModelConfig, make_model
from icrl_jax.models.s5 import S5Config
from icrl_jax.run import EnvSpec, Experiment, Findings, MethodSpec, RunOptions, Trained, main

METRIC, COST = "mean_return", "update_ms"

TIMED_ROUNDS = 3
"""Updates of each network that are timed at each length; they take turns."""


@dataclass(frozen=True)
class Config(RunOptions):
    """S5 and a GRU of equal size on the memory chain."""

    memory_length: int = 256
    """Steps from the cue to the question; an episode has one more."""
    asked_lengths: tuple[int, ...] = (64, 1024)
    """Others, after which the trained networks are asked too."""
    timed_lengths: tuple[int, ...] = (64, 256, 1024, 2048)
    """At which an update is timed."""
    control: bool = True
    """Also trains the GRU."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """The method."""

    def __post_init__(self):
        super().__post_init__()
        _ppo.check_remembers(self.ppo)
        for name in ("asked_lengths", "timed_lengths"):
            value = getattr(self, name)
            require(all(is_int(x, 1) for x in value), name, value, "integers of at least 1")


CPU = PPOConfig(
    model=S5Config(width=32, num_layers=2, state_size=32),
    embedding=EmbeddingConfig(inputs=("obs",)),
    optim=OptimConfig(learning_rate=3e-3, weight_decay=0.0, schedule="linear", warmup=0.0, clip=0.5, eps=1e-5),
    num_updates=800,
    num_streams=64,
    num_steps=257,  # an episode
    num_epochs=3,
    num_minibatches=2,
    discount=0.99,
    trace=0.0,  # only the last answer is paid for; with 0.9 the noise of all before it hid what it taught
    entropy_weight=0.001,
)

PRESETS = {
    "cpu": Config(preset="cpu", eval_tasks=1000, ppo=CPU),
    "paper": Config(
        preset="paper",
        memory_length=512,
        asked_lengths=(128, 2048),
        timed_lengths=(64, 256, 1024, 4096, 16_384),
        eval_tasks=1000,
        ppo=dataclasses.replace(
            CPU, model=S5Config(width=256, num_layers=4, state_size=256), num_updates=5000, num_steps=513
        ),
    ),
}


def num_weights(model: ModelConfig) -> int:
    """Weights of a sequence model."""
    return sum(x.size for x in jax.tree.leaves(jax.eval_shape(lambda key: make_model(model, key), jax.random.key(0))))


def rival(model: ModelConfig) -> GRUConfig:
    """A GRU of one layer, the widest that has no more weights."""
    limit = num_weights(model)
    width = int((limit / 6) ** 0.5)  # it has 6 D^2 + 4 D
    while 6 * width**2 + 4 * width > limit:
        width -= 1
    return GRUConfig(width=width)


def controls(config: Config) -> dict[str, MethodSpec]:
    """The GRU, unless it is itself what is trained."""
    if not config.control or isinstance(config.ppo.model, GRUConfig):
        return {}
    options = dataclasses.replace(config.ppo, model=rival(config.ppo.model))
    return {"ppo_gru": MethodSpec("icrl_jax.methods.ppo:ppo", options)}


def score(env: TaskFamily, config: Config, num_tasks: int) -> Callable[[Agent, Array], Array]:
    """Return of an episode in each validation task, [B]."""

    def found(agent: Agent, key: Array) -> Array:
        tasks = sample_tasks(env, jax.random.key(bandits.VALIDATION_SEED), num_tasks)
        return evaluate(agent, env, tasks, key, num_episodes=1).metrics[METRIC]

    return found


def findings(trained: Trained) -> Findings:
    """Returns after waits of each length, and how long an update takes at each."""
    config, watch = trained.config, trained.watch
    name = _ppo.name_of(config.ppo.model)
    learned = {name: (trained.method, trained.params), **trained.controls}
    players = {who: bandits.trained_agents(*what) for who, what in learned.items()}
    everyone = {**players, "random": [agents.uniform(trained.env)], "oracle": [agents.oracle(trained.env)]}
    with watch.time("evaluate"):
        asked = {config.memory_length: returns(trained.env, everyone, config.eval_tasks)}
        for length in config.asked_lengths:
            asked[length] = returns(make("memory_chain", memory_length=length), players, config.eval_tasks)
        milliseconds = {length: update_ms(config, length) for length in config.timed_lengths}
    final, cost = asked[config.memory_length], {who: [ms[who] for ms in milliseconds.values()] for who in learned}
    conditions = {f"length_{length}": bandits.intervals(METRIC, found) for length, found in asked.items()}
    conditions |= {f"update_{length}": bandits.intervals(COST, ms) for length, ms in milliseconds.items()}
    drawn = {who: statistics.curve(np.stack(ms, axis=-1)) for who, ms in cost.items()}
    updates = [row["update"] for row in trained.metrics]
    loss, watched = (np.array([row[what] for row in trained.metrics]).T for what in ("loss", f"eval/{METRIC}"))
    figures = [
        (
            "time",
            report.curve_figure(drawn, "steps of a stream", "milliseconds an update", x=config.timed_lengths, log=True),
            f"Time of an update, {config.ppo.num_streams} streams long as an episode, on this machine.",
        ),
        (
            "loss",
            report.loss_figure(updates, loss, heldout=(updates, watched), heldout_label="return", agent=name),
            "Training loss, and the return on a few validation tasks.",
        ),
    ]
    return Findings(
        agents=bandits.intervals(METRIC, final),
        conditions=conditions,
        curves=bandits.as_lists({COST: drawn}),
        figures=figures,
        reference=None,
        ratios={},
    )


def returns(env: TaskFamily, players: dict[str, list[Agent]], num_tasks: int) -> dict[str, np.ndarray]:
    """Return of an episode in each held-out task, [S, B]."""
    tasks, key = bandits.held_out(env, num_tasks), jax.random.key(bandits.EVAL_SEED)

    def play(agent: Agent, who: str) -> np.ndarray:
        world = revealed(env) if who == "oracle" else env
        return np.asarray(evaluate(agent, world, tasks, key, num_episodes=1).metrics[METRIC])

    return {who: np.stack([play(agent, who) for agent in of_seeds]) for who, of_seeds in players.items()}


def update_ms(config: Config, length: int) -> dict[str, np.ndarray]:
    """Milliseconds of single updates of each network on streams of this many steps, [1, rounds]; they take turns."""
    env = make("memory_chain", memory_length=length)
    specs = {_ppo.name_of(config.ppo.model): MethodSpec("icrl_jax.methods.ppo:ppo", config.ppo), **controls(config)}
    sides = {}
    for who, spec in specs.items():
        method = ppo(env, dataclasses.replace(spec.options, num_steps=length))
        sides[who] = jax.jit(method.update, donate_argnums=0), jax.jit(method.init)(jax.random.key(0))
    found: dict[str, list[float]] = {who: [] for who in sides}
    for i in range(1 + TIMED_ROUNDS):
        for who, (update, state) in sides.items():
            begin = time.perf_counter()
            sides[who] = update, jax.block_until_ready(update(state, jax.random.key(i))[0])
            found[who].append(1e3 * (time.perf_counter() - begin))
    return {who: np.array([ms[1:]]) for who, ms in found.items()}  # the first one compiles


EXPERIMENT = Experiment(
    name="s5_memory_chain",
    presets=PRESETS,
    env=lambda config: EnvSpec("memory_chain", None, {"memory_length": config.memory_length}),
    method=lambda config: MethodSpec("icrl_jax.methods.ppo:ppo", config.ppo),
    metric=METRIC,
    score=score,
    findings=findings,
    controls=controls,
    notes=_ppo.notes,
)

if __name__ == "__main__":
    main(EXPERIMENT, __doc__ or "")

"""DICP in the dark room: AD that also foresees what actions bring, and looks ahead before it acts (Son et al. 2025).

make train EXPERIMENT=dicp_dark_room                     8 minutes; 8.8 of 11.3 where AD, the same weights, has 7.5
make train EXPERIMENT=dicp_dark_room PRESET=paper        the paper's room, sizes and search, for one GPU

The model is asked at every step of a window, or at a few drawn ones, what comes of an action, not at the last one only,
so it plans from the first step on; the paper's code begins when the context is full ("paper" does so too).
"""

from dataclasses import dataclass, field

from experiments import _distilled as distilled
from experiments import _episodes as episodes
from experiments import _planning
from experiments.ad_dark_room import CELLS
from icrl_jax.agents import PlanConfig
from icrl_jax.methods.dicp import DICPConfig, ForesightConfig
from icrl_jax.methods.sources import HistoriesConfig
from icrl_jax.methods.supervised import OptimConfig
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.run import EnvSpec, Experiment, MethodSpec, RunOptions, main


@dataclass(frozen=True)
class Config(RunOptions):
    """DICP in the dark room."""

    env_preset: str = "dicp"
    """Whose conventions, and which goals are held out."""
    room_size: int = 9
    """Cells on a side."""
    episode_steps: int = 20
    """Steps of an episode."""
    eval_episodes: int = 15
    """Episodes in a held-out task."""
    ad: DICPConfig = field(default_factory=DICPConfig)
    """The method."""


CPU = Config(
    preset="cpu",
    env_preset="ad_eps",  # which holds out more goals
    room_size=7,
    episode_steps=14,
    num_chunks=5,
    eval_tasks=80,
    ad=DICPConfig(
        model=TransformerConfig(width=64, num_layers=3, num_heads=4, context_len=15 * 14),
        embedding=CELLS,
        optim=OptimConfig(learning_rate=3e-3),
        histories=HistoriesConfig(num_streams=16, num_steps=90 * 14, stride=6),
        num_updates=750,
        batch_size=32,
        horizon=15 * 14,
        foresight=ForesightConfig(reward_values=(0.0, 1.0), dynamics_steps=32),
        plan=PlanConfig(beam_width=5, plan_depth=6),
    ),
)
PAPER = Config(
    preset="paper",
    num_chunks=50,
    eval_tasks=80,
    eval_episodes=100,
    ad=DICPConfig(
        model=TransformerConfig(width=32, num_layers=4, num_heads=4, context_len=80, positions="rotary"),
        embedding=CELLS,
        optim=OptimConfig(learning_rate=1e-2, weight_decay=0.01, warmup=0.0),
        histories=HistoriesConfig(source="ppo", source_rate=3e-4, num_streams=100, num_steps=1000),
        num_updates=50_000,
        batch_size=512,
        horizon=80,
        foresight=ForesightConfig(reward_values=(0.0, 1.0)),
        plan=PlanConfig(plan_order="index", plan_after=80),
    ),
)

PRESETS = {"cpu": CPU, "paper": PAPER}

EXPERIMENT = Experiment(
    name="dicp_dark_room",
    presets=PRESETS,
    env=lambda config: EnvSpec(
        "dark_room",
        config.env_preset,
        {"observation": "cell", "size": config.room_size, "horizon": config.episode_steps},
    ),
    method=lambda config: MethodSpec("icrl_jax.methods.dicp:dicp", config.ad),
    metric=episodes.METRIC,
    score=_planning.score,
    findings=_planning.findings,
    notes=distilled.notes,
)

if __name__ == "__main__":
    main(EXPERIMENT, __doc__ or "")

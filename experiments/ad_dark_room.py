"""AD in the dark room: a transformer that learns to look for a goal it cannot see (Laskin et al. 2022).

make train EXPERIMENT=ad_dark_room                     13 minutes on two cores; from 0.9 to 14.1 of 16.4
make train EXPERIMENT=ad_dark_room PRESET=paper        the paper's sizes, for one GPU

Histories are of Q-learning that begins by hoping for much, each stream with a table of its own, so that all it knows
was seen in its history. A window holds every sixth episode, so that it spans the whole improvement. The paper does not
say how long its context is, how long it trains, or how long its sources learn; it has dropout, which is not built.
"""

import dataclasses
from dataclasses import dataclass, field

from experiments import _distilled as distilled
from experiments import _episodes as episodes
from icrl_jax.methods.ad import ADConfig
from icrl_jax.methods.sources import HistoriesConfig
from icrl_jax.methods.supervised import OptimConfig
from icrl_jax.models.embeddings import EmbeddingConfig
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.run import EnvSpec, Experiment, MethodSpec, RunOptions, main


@dataclass(frozen=True)
class Config(RunOptions):
    """AD in the dark room."""

    env_preset: str = "ad_eps"
    """Whose conventions, and which goals are held out."""
    eval_episodes: int = 20
    """Episodes in a held-out task."""
    control: bool = True
    """Also trains ED, the same model on an expert's episodes."""
    ad: ADConfig = field(default_factory=ADConfig)
    """The method."""

    def __post_init__(self):
        super().__post_init__()
        if self.eval_episodes < 1:
            raise ValueError(f"eval_episodes={self.eval_episodes!r}: must be at least 1")


# Row and column apart: a goal that was never rewarded is still made of a row and a column that were.
CELLS = EmbeddingConfig(inputs=("action", "feedback", "obs"), integers="tables")

PRESETS = {
    "cpu": Config(
        preset="cpu",
        num_chunks=10,
        eval_tasks=128,
        ad=ADConfig(
            model=TransformerConfig(width=64, num_layers=4, num_heads=4, context_len=400),
            embedding=CELLS,
            optim=OptimConfig(learning_rate=3e-3),
            histories=HistoriesConfig(num_streams=16, num_steps=120 * 20, stride=6),
            num_updates=1000,
            batch_size=32,
            horizon=20 * 20,
        ),
    ),
    "paper": Config(
        preset="paper",
        num_chunks=50,
        eval_tasks=160,
        eval_episodes=200,
        ad=ADConfig(
            # A FIFO of four episodes, three tokens a step, so positions must be relative; feed-forward width 2,048.
            model=TransformerConfig(
                width=64, num_layers=4, num_heads=4, context_len=3 * 80, positions="rotary", mlp_ratio=32
            ),
            embedding=dataclasses.replace(CELLS, tokens="modality"),
            optim=OptimConfig(learning_rate=3e-4, weight_decay=0.0),
            histories=HistoriesConfig(source="ppo", num_streams=100, num_steps=2000, stride=10),
            num_updates=100_000,
            batch_size=128,
            horizon=80,
            mask=0.3,
        ),
    ),
}


EXPERIMENT = Experiment(
    name="ad_dark_room",
    presets=PRESETS,
    env=lambda config: EnvSpec("dark_room", config.env_preset, {"observation": "cell"}),
    method=lambda config: MethodSpec(distilled.METHOD, config.ad),
    metric=episodes.METRIC,
    score=episodes.score,
    findings=lambda trained: episodes.findings(trained, "ad", trained.config.ad.histories),
    controls=distilled.EXPERT,
    notes=distilled.notes,
)

if __name__ == "__main__":
    main(EXPERIMENT, __doc__ or "")

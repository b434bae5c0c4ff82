"""AD where the goal pays once: whoever has found it has to come back by heart (Laskin et al. 2022).

make train EXPERIMENT=ad_dark_room_hard                     a room of 9 x 9 cells; from 0.2 to 0.7 of 1
make train EXPERIMENT=ad_dark_room_hard PRESET=paper        17 x 17 cells and the paper's sizes, for one GPU

What is seen does not tell whether the goal has paid in this episode, so that the source counts it.
"""

import dataclasses
from dataclasses import dataclass

from experiments import ad_dark_room
from icrl_jax.methods.sources import HistoriesConfig
from icrl_jax.run import EnvSpec, main


@dataclass(frozen=True)
class Config(ad_dark_room.Config):
    """AD in the dark room whose goal pays once."""

    env_preset: str = "ad"
    """Whose conventions, and which goals are held out."""
    room_size: int = 17
    """Cells on a side."""


CPU, PAPER = (ad_dark_room.PRESETS[name] for name in ("cpu", "paper"))
SOURCE = HistoriesConfig(num_streams=16, num_steps=120 * 20, stride=6, q_initial=1.0, q_rewards=1)

PRESETS = {
    "cpu": Config(
        preset="cpu",
        room_size=9,
        num_chunks=CPU.num_chunks,
        eval_tasks=CPU.eval_tasks,
        ad=dataclasses.replace(CPU.ad, histories=SOURCE),
    ),
    "paper": Config(
        preset="paper",
        num_chunks=PAPER.num_chunks,
        eval_tasks=PAPER.eval_tasks,
        eval_episodes=PAPER.eval_episodes,
        ad=dataclasses.replace(PAPER.ad, mask=0.5, label_smoothing=0.2),
    ),
}

EXPERIMENT = ad_dark_room.EXPERIMENT._replace(
    name="ad_dark_room_hard",
    presets=PRESETS,
    env=lambda config: EnvSpec("dark_room_hard", config.env_preset, {"observation": "cell", "size": config.room_size}),
)

if __name__ == "__main__":
    main(EXPERIMENT, __doc__ or "")

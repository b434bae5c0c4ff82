"""AD where a key has to be found before a door (Laskin et al. 2022): two things to remember, from any start.

make train EXPERIMENT=ad_key_to_door                     a room of 5 x 5 cells; from 0.4 to 1.8 of 2
make train EXPERIMENT=ad_key_to_door PRESET=paper        9 x 9 cells, 50 steps and the paper's sizes, for one GPU

What is seen does not tell whether the key is held, so that the source counts what an episode has paid.
"""

import dataclasses
from dataclasses import dataclass

from experiments import ad_dark_room
from icrl_jax.methods.sources import HistoriesConfig
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.run import EnvSpec, main


@dataclass(frozen=True)
class Config(ad_dark_room.Config):
    """AD in the room of a key and a door."""

    env_preset: str = "ad"
    """Whose conventions, and which pairs of cells are held out."""
    room_size: int = 9
    """Cells on a side."""
    episode_steps: int = 50
    """Steps of an episode."""


CPU, PAPER = (ad_dark_room.PRESETS[name] for name in ("cpu", "paper"))

PRESETS = {
    "cpu": Config(
        preset="cpu",
        room_size=5,
        episode_steps=20,
        num_chunks=CPU.num_chunks,
        eval_tasks=CPU.eval_tasks,
        ad=dataclasses.replace(
            CPU.ad,
            histories=HistoriesConfig(num_streams=16, num_steps=120 * 20, stride=6, q_initial=1.0, q_rewards=2),
        ),
    ),
    "paper": Config(
        preset="paper",
        num_chunks=PAPER.num_chunks,
        eval_tasks=PAPER.eval_tasks,
        eval_episodes=PAPER.eval_episodes,
        ad=dataclasses.replace(
            PAPER.ad,
            model=TransformerConfig(
                width=64, num_layers=4, num_heads=4, context_len=3 * 200, positions="rotary", mlp_ratio=32
            ),
            histories=HistoriesConfig(num_streams=16, num_steps=500 * 50, stride=10, q_initial=1.0, q_rewards=2),
            horizon=200,
        ),
    ),
}

EXPERIMENT = ad_dark_room.EXPERIMENT._replace(
    name="ad_key_to_door",
    presets=PRESETS,
    env=lambda config: EnvSpec(
        "dark_key_to_door",
        config.env_preset,
        {"observation": "cell", "size": config.room_size, "horizon": config.episode_steps},
    ),
)

if __name__ == "__main__":
    main(EXPERIMENT, __doc__ or "")

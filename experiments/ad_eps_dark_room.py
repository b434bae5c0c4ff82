"""AD-eps in the dark room: improvement learned from an expert under ever less noise (Zisman et al. 2024).

make train EXPERIMENT=ad_eps_dark_room                 6 minutes on two cores; from 0.3 to 9.7 of 16.4
make train EXPERIMENT=ad_eps_dark_room PRESET=paper    the paper's sizes, for one GPU

No learner is needed: the histories are the oracle's, each action replaced by a random one with a probability that falls
from 1 to 0 along the history. `--noise-last 0.5` keeps the demonstrator poor to the end, as in the paper.
"""

import dataclasses

from experiments import _episodes as episodes
from experiments import ad_dark_room
from experiments.ad_dark_room import CELLS, Config
from icrl_jax.methods.ad import ADConfig
from icrl_jax.methods.sources import HistoriesConfig
from icrl_jax.methods.supervised import OptimConfig
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.run import main

CPU = ad_dark_room.PRESETS["cpu"]

PRESETS = {
    "cpu": dataclasses.replace(
        CPU,
        control=False,
        ad=dataclasses.replace(
            CPU.ad, histories=dataclasses.replace(CPU.ad.histories, source="noise_curriculum"), num_updates=750
        ),
    ),
    "paper": Config(
        preset="paper",
        num_chunks=50,
        eval_tasks=160,
        eval_episodes=250,
        control=False,
        ad=ADConfig(
            model=TransformerConfig(width=512, num_layers=4, num_heads=4, context_len=3 * 80, positions="rotary"),
            embedding=dataclasses.replace(CELLS, tokens="modality"),
            optim=OptimConfig(learning_rate=3e-4, weight_decay=0.0),
            histories=HistoriesConfig(source="noise_curriculum", num_streams=25, num_steps=1000 * 20),
            num_updates=300_000,
            batch_size=512,
            horizon=80,
            temperature=0.0,
        ),
    ),
}

EXPERIMENT = ad_dark_room.EXPERIMENT._replace(
    name="ad_eps_dark_room",
    presets=PRESETS,
    findings=lambda trained: episodes.findings(trained, "ad_eps", trained.config.ad.histories),
)

if __name__ == "__main__":
    main(EXPERIMENT, __doc__ or "")

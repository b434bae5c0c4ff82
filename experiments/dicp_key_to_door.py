"""DICP where a key has to be found before a door: plans for two rewards, each of which is paid once (Son et al. 2025).

make train EXPERIMENT=dicp_key_to_door                     a room of 5 x 5 cells, any start
make train EXPERIMENT=dicp_key_to_door PRESET=paper        9 x 9 cells, 50 steps and the paper's sizes, for one GPU

What is seen does not tell whether the key is held: plans, too, have to remember it.
"""

import dataclasses

from experiments import ad_key_to_door, dicp_dark_room
from experiments.dicp_dark_room import CPU, PAPER
from icrl_jax.agents import PlanConfig
from icrl_jax.methods.sources import HistoriesConfig
from icrl_jax.run import main

SOURCE = ad_key_to_door.PRESETS["cpu"].ad.histories

PRESETS = {
    "cpu": dataclasses.replace(
        CPU,
        env_preset="ad",
        room_size=5,
        episode_steps=20,
        eval_tasks=64,
        eval_episodes=20,
        ad=dataclasses.replace(
            CPU.ad,
            model=dataclasses.replace(CPU.ad.model, num_layers=4, context_len=20 * 20),
            histories=SOURCE,
            horizon=20 * 20,
        ),
    ),
    "paper": dataclasses.replace(
        PAPER,
        episode_steps=50,
        ad=dataclasses.replace(
            PAPER.ad,
            model=dataclasses.replace(PAPER.ad.model, context_len=200),
            histories=HistoriesConfig(source="ppo", source_rate=3e-4, num_streams=100, num_steps=1000),
            batch_size=4096,
            horizon=200,
            plan=PlanConfig(plan_depth=16, plan_order="index", plan_after=200),
        ),
    ),
}

EXPERIMENT = dicp_dark_room.EXPERIMENT._replace(
    name="dicp_key_to_door",
    presets=PRESETS,
    env=ad_key_to_door.EXPERIMENT.env,
)

if __name__ == "__main__":
    main(EXPERIMENT, __doc__ or "")

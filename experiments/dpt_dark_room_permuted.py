"""DPT in the dark room of permuted actions: which action does what is all there is to find out (Lee et al. 2023).

make train EXPERIMENT=dpt_dark_room_permuted                    three minutes on two cores; 37.3 of 38
make train EXPERIMENT=dpt_dark_room_permuted PRESET=paper       the paper's room and sizes, for one GPU

The goal is always the far corner; 20 of the 120 permutations are held out. In its larger room the paper's DPT has 2.2
in the first episode, 79.0 in the second and about 80 after, of 83, and 83 offline from any context.
"""

import dataclasses

from experiments import dpt_dark_room
from icrl_jax.run import EnvSpec, main

CPU = dpt_dark_room.PRESETS["cpu"]

PRESETS = {
    **dpt_dark_room.PRESETS,
    "cpu": dataclasses.replace(
        CPU,
        dpt=dataclasses.replace(
            CPU.dpt,
            model=dataclasses.replace(CPU.dpt.model, context_len=99),
            horizon=98,  # two episodes: wherever one stands in the second, it holds a whole walk to the goal
            num_updates=1000,
        ),
    ),
}

EXPERIMENT = dpt_dark_room.EXPERIMENT._replace(
    name="dpt_dark_room_permuted",
    presets=PRESETS,
    env=lambda config: EnvSpec("dark_room_permuted", "dpt", {"size": config.size, "horizon": config.episode_steps}),
)

if __name__ == "__main__":
    main(EXPERIMENT, __doc__ or "")

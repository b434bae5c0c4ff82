"""LHF in the dark room: AD on the histories that show best how to learn, and on all of them (Chen et al. 2025).

make train EXPERIMENT=lhf_dark_room                     clean: 4.9 where AD has 4.6, not resolved at three seeds
make train EXPERIMENT=lhf_dark_room PRESET=noisy        in 3 of 10 histories nothing is learned: 3.2 and 1.1
make train EXPERIMENT=lhf_dark_room PRESET=paper        the paper's sizes, for one GPU

The paper compares the mean return over all test episodes, so that who learns faster is ahead. Its other scenarios are
presets too: "half" of each history, its beginning; "few", half as many histories (the text can be read as either);
"light", a smaller model.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial

from experiments import _distilled as distilled
from experiments import _episodes as episodes
from experiments import ad_dark_room
from experiments.ad_dark_room import CELLS
from icrl_jax.methods.ad import ADConfig
from icrl_jax.methods.sources import HistoriesConfig
from icrl_jax.methods.supervised import OptimConfig
from icrl_jax.models.transformer import TransformerConfig
from icrl_jax.run import EnvSpec, main

METRIC = "mean_return"


@dataclass(frozen=True)
class Config(ad_dark_room.Config):
    """AD in the dark room, on histories filtered and not."""

    room_size: int = 9
    """Cells on a side."""
    episode_steps: int = 20
    """Steps of an episode."""
    control: bool = True
    """Also trains AD on the same histories as they are."""


CPU = Config(
    preset="cpu",
    num_seeds=3,
    room_size=7,
    episode_steps=14,
    num_chunks=10,
    eval_tasks=80,
    eval_episodes=15,
    ad=ADConfig(
        model=TransformerConfig(width=32, num_layers=4, num_heads=4, context_len=15 * 14),
        embedding=CELLS,
        optim=OptimConfig(learning_rate=5e-3),
        histories=HistoriesConfig(num_streams=20, num_steps=90 * 14, stride=6, lhf=True),
        num_updates=1000,
        batch_size=32,
        horizon=15 * 14,
    ),
)
PAPER = Config(
    preset="paper",
    env_preset="lhf",
    num_seeds=3,
    num_chunks=50,
    eval_tasks=160,
    eval_episodes=100,
    ad=ADConfig(
        model=TransformerConfig(width=32, num_layers=4, num_heads=4, context_len=80, positions="rotary"),
        embedding=CELLS,
        optim=OptimConfig(learning_rate=1e-2, weight_decay=0.01),
        histories=HistoriesConfig(source="ppo", source_rate=3e-4, num_streams=100, num_steps=1000, lhf=True),
        num_updates=50_000,
        batch_size=512,
        horizon=80,
    ),
)


def scenario(preset: str, model: dict | None = None, **histories) -> Config:
    """The CPU preset on other histories, or with another model."""
    of_ad = {"histories": dataclasses.replace(CPU.ad.histories, **histories)}
    of_ad |= {"model": dataclasses.replace(CPU.ad.model, **model)} if model else {}
    return dataclasses.replace(CPU, preset=preset, ad=dataclasses.replace(CPU.ad, **of_ad))


PRESETS = {
    "cpu": CPU,
    "noisy": scenario("noisy", random_share=0.3),
    "half": scenario("half", kept_share=0.5, stride=3),
    "few": scenario("few", num_streams=10),
    "light": scenario("light", model=dict(width=16, num_layers=2, num_heads=2)),
    "paper": PAPER,
}


def findings(trained) -> episodes.Findings:
    """As AD's, in proportion to AD where it was trained."""
    reference = "ad" if trained.controls else "oracle"
    return episodes.findings(trained, "ad_lhf", trained.config.ad.histories, METRIC, reference)


EXPERIMENT = ad_dark_room.EXPERIMENT._replace(
    name="lhf_dark_room",
    presets=PRESETS,
    env=lambda config: EnvSpec(
        "dark_room",
        config.env_preset,
        {"observation": "cell", "size": config.room_size, "horizon": config.episode_steps},
    ),
    metric=METRIC,
    score=partial(episodes.score, metric=METRIC),
    findings=findings,
    controls=distilled.on_other_histories("ad", lhf=False),
)

if __name__ == "__main__":
    main(EXPERIMENT, __doc__ or "")

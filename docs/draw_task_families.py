"""Draws docs/img/task_families.png: four moments of an episode in each family that can be drawn."""

from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

import icrl_envs
from icrl_envs.film import strip

COLUMNS, FRAMES = 3, 4


def main() -> None:
    """Played by the best actions where they are known, else at random."""
    envs = [icrl_envs.make(name, next(iter(icrl_envs.family(name).presets), None)) for name in icrl_envs.FAMILIES]
    named = [(name, env) for name, env in zip(icrl_envs.FAMILIES, envs, strict=True) if env.render]
    rows = -(-len(named) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(12, 1.35 * rows), layout="constrained")
    for axis in axes.ravel():
        axis.axis("off")
    for axis, (name, env) in zip(axes.ravel(), named, strict=False):
        axis.imshow(strip(frames(env), FRAMES))
        axis.set_title(name, fontsize=9, loc="left")
    figure.savefig(Path(__file__).parent / "img" / "task_families.png", dpi=90)


def frames(env: icrl_envs.TaskFamily) -> np.ndarray:
    """The first steps in one held-out task, uint8 [T, H, W, 3]."""
    task = env.sample_task(jax.random.key(3), "test")

    def step(state, key):
        key_act, key_step = jax.random.split(key)
        choose = env.optimal_action or (lambda state, task: env.action_space(task).sample(key_act))
        state = env.step(key_step, state, choose(state, task), task)[1]
        return state, env.render(state, task)

    _, state = env.reset(jax.random.key(1), task)
    return np.asarray(jax.jit(lambda keys: jax.lax.scan(step, state, keys)[1])(jax.random.split(jax.random.key(2), 12)))


if __name__ == "__main__":
    main()

"""A finished run, back in one line."""

from pathlib import Path
from typing import NamedTuple

import jax

from icrl_envs import TaskFamily
from icrl_jax import checkpoint
from icrl_jax.core import Agent, Method, Tree
from icrl_jax.run import folder
from icrl_jax.run.spec import from_json
from icrl_jax.train import abstract_seeds


class Loaded(NamedTuple):
    """What `load` returns; unpack it as `agent, env = load(run_dir)[:2]`."""

    agent: Agent
    env: TaskFamily
    method: Method
    params: Tree


def load(run_dir: str | Path, seed: int = 0) -> Loaded:
    """Builds the trained agent and its environment from a run folder.

    Args:
      run_dir: as a run left it, e.g. "runs/dpt_bandit/latest".
      seed: which of the run's seeds, counted from 0.
    Raises:
      NotARunError: `run_dir` is not a run folder.
      CheckpointError: it holds no checkpoint that is whole.
      ValueError: no such seed.
    """
    run_dir = folder.find(run_dir)
    config = folder.read_config(run_dir)
    if not 0 <= seed < len(config["seeds"]):
        raise ValueError(f"seed={seed}: {run_dir} has seeds 0 ..= {len(config['seeds']) - 1}")
    try:
        env_spec, method_spec = from_json(config)
    except (AttributeError, ImportError, KeyError, TypeError, ValueError) as error:
        raise folder.NotARunError(
            f"{run_dir / folder.CONFIG} does not describe a run that can be built: {error}"
        ) from None
    env = env_spec.build()
    method = method_spec.build(env)
    state = checkpoint.restore(run_dir / folder.CHECKPOINTS, abstract_seeds(method, len(config["seeds"]))).state
    params = jax.tree.map(lambda x: x[seed], state.params)
    return Loaded(method.agent(params), env, method, params)

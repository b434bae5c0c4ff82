"""Logged data of others as learning histories: checked first, so that what trains on them need not ask.

docs/histories.md says what the arrays hold. They come from memory, from NPZ and HDF5 files and from Minari datasets.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces
from gymnax.environments.environment import Environment

from icrl_envs.task_family import require
from icrl_jax.core import Transition, Tree
from icrl_jax.data.collect import episode_steps, narrowed
from icrl_jax.data.histories import Form, Histories

NEEDED = ("obs", "action", "reward", "terminated", "truncated")
OPTIONAL = ("next_obs", "steps", "update")
TASKS = "env_params."
"""In files, what the name of an array of the tasks begins with."""


def from_arrays(env: Environment, arrays: Mapping[str, Any], env_params: Tree = None) -> Histories:
    """Histories of N streams in each of M tasks, T steps long.

    Args:
      env: whose spaces, time limit and conventions the data follow.
      arrays: `obs` [M, N, T, ...], `action` [M, N, T, ...], `reward` [M, N, T] (what the agent was given), `terminated`
        and `truncated` (bool [M, N, T]); and where they are known `next_obs` [M, N, T, ...] (the true final one, where
        an episode ended), `steps` (integers [M, N], how many each stream holds; T) and `update` (integers [M, N, T],
        which update of the learner made the step; 0).
      env_params: the tasks [M, ...]; None where they are not known.
    Raises:
      ValueError: names the array and, where one entry is wrong, its task, stream and step.
    """
    unknown = sorted(set(arrays) - {*NEEDED, *OPTIONAL})
    require(not unknown, "arrays", ", ".join(unknown), f"among {', '.join((*NEEDED, *OPTIONAL))}")
    missing = [name for name in NEEDED if name not in arrays]
    require(not missing, "arrays", ", ".join(arrays), f"with {', '.join(missing)}")
    given = {name: np.asarray(x) for name, x in arrays.items()}
    shape = given["reward"].shape
    require(len(shape) == 3 and min(shape) >= 1, "reward", shape, "of shape [M, N, T], each at least 1")
    steps = _steps(given.get("steps"), shape)
    inside = np.arange(shape[2]) < steps[..., None]  # [M, N, T]
    params = env.default_params
    seen, acted = env.observation_space(params), env.action_space(params)
    obs = _of_space("obs", given["obs"], seen, inside)
    next_obs = None if "next_obs" not in given else _of_space("next_obs", given["next_obs"], seen, inside)
    action = _of_space("action", given["action"], acted, inside)
    reward = _of_kind("reward", given["reward"], "biuf", shape).astype(np.float32)
    _check_all("reward", np.isfinite(reward), inside, reward, "finite")
    flags = ("terminated", "truncated")
    terminated, truncated = (_of_kind(name, given[name], "b", shape) & inside for name in flags)
    _check_episodes(env, terminated | truncated, inside)
    if next_obs is not None:
        _check_continuity(obs, next_obs, terminated | truncated, inside)
    update = _of_kind("update", given.get("update", np.zeros(shape, np.uint8)), "iu", shape)
    _check_all("update", (update >= 0) & (update < 2**32), inside, update, f"in 0 ..= {2**32 - 1}")
    tasks = None if env_params is None else _checked_tasks(env, env_params, shape[0])
    wide = Transition(obs, action, reward, next_obs, terminated, truncated)  # type: ignore[arg-type]
    types = wide._replace(
        obs=narrowed(seen, obs.dtype),
        action=narrowed(acted, action.dtype),
        next_obs=None if next_obs is None else narrowed(seen, obs.dtype),
        **{name: getattr(wide, name).dtype for name in ("feedback", "terminated", "truncated")},
    )
    kept = jax.tree.map(lambda x, dtype: jnp.asarray(_blank(x, inside).astype(dtype)), wide, types)
    terminates = bool(getattr(env, "terminates", True))
    form = Form(tuple(x.dtype.name for x in jax.tree.leaves(wide)), episode_steps(env), terminates, int(steps.min()))
    update = jnp.asarray(_blank(update, inside).astype(np.min_scalar_type(update.max())))
    return Histories(kept, update, jnp.asarray(steps), tasks, form)


def from_npz(env: Environment, path: str | Path) -> Histories:
    """Histories of an NPZ file that holds the arrays of `from_arrays`, the tasks as `env_params.<field>`.

    Raises:
      ValueError: as `from_arrays`; a field that tasks of `env` do not have.
    """
    with np.load(path, allow_pickle=False) as file:
        return _from_file(env, dict(file))


def from_hdf5(env: Environment, path: str | Path) -> Histories:
    """Histories of an HDF5 file with a data set for each of the arrays of `from_npz` (extra `data`).

    Raises:
      ImportError: h5py is not installed.
      ValueError: as `from_npz`.
    """
    try:
        import h5py  # type: ignore[import-not-found]
    except ImportError:
        raise ImportError("HDF5 files are read by h5py: pip install 'icrl-jax[data]'") from None
    with h5py.File(path, "r") as file:
        return _from_file(env, {name: np.asarray(data) for name, data in file.items()})


def from_minari(env: Environment, datasets: Sequence[Any], env_params: Tree = None) -> Histories:
    """Histories of Minari datasets, one of each task: their episodes one after another, [M, 1, T].

    Args:
      env: whose spaces and conventions they follow.
      datasets: names (extra `minari`; they have to be on this machine) or datasets.
      env_params: the tasks [M, ...]; None where they are not known.
    Raises:
      ImportError: a name, and Minari is not installed.
      ValueError: as `from_arrays`.
    """
    streams = [_of_minari(_loaded(dataset)) for dataset in datasets]
    require(len(streams) > 0, "datasets", datasets, "one for each task")
    steps = np.array([[len(stream["reward"])] for stream in streams])
    pad = lambda x: np.concatenate([x, np.zeros((steps.max() - len(x), *x.shape[1:]), x.dtype)])
    arrays = {name: np.stack([pad(stream[name]) for stream in streams])[:, None] for name in streams[0]}
    return from_arrays(env, {**arrays, "steps": steps}, env_params)


def _checked_tasks(env: Environment, env_params: Tree, num_tasks: int) -> Tree:
    """The tasks as those of `env` are, with its types; whether a number in them makes sense only the family knows."""
    default = env.default_params
    same = jax.tree.structure(env_params) == jax.tree.structure(default)
    require(same, "env_params", type(env_params).__name__, f"tasks of env={env.name}, {type(default).__name__}")

    def checked(path: Any, like: Any, given: Any) -> jax.Array:
        name, like = f"env_params{jax.tree_util.keystr(path)}", jnp.asarray(like)
        kinds = {"i": "iu", "u": "iu", "b": "b"}.get(like.dtype.kind, "biuf")
        given = _of_kind(name, np.asarray(given), kinds, (num_tasks, *like.shape))
        cast = given.astype(like.dtype)
        require(kinds != "iu" or bool((cast == given).all()), name, given.dtype, f"of numbers that {like.dtype} holds")
        return jnp.asarray(cast)

    tasks = jax.tree_util.tree_map_with_path(checked, default, env_params)
    found, limit = np.unique(tasks.max_steps_in_episode).tolist(), episode_steps(env)
    require(found == [limit], "env_params.max_steps_in_episode", found, f"[{limit}], the time limit of env={env.name}")
    return tasks


def _loaded(dataset: Any) -> Any:
    if not isinstance(dataset, str):
        return dataset
    try:
        import minari  # type: ignore[import-not-found]
    except ImportError:
        raise ImportError("Minari datasets are read by minari: pip install 'icrl-jax[minari]'") from None
    return minari.load_dataset(dataset)


def _of_minari(dataset: Any) -> dict[str, np.ndarray]:
    """The steps of all episodes; an episode has one observation more than it has steps. None goes on in the next."""
    episodes = list(dataset.iterate_episodes())
    require(len(episodes) > 0, "datasets", "one without an episode", "of one episode at least")
    for name in ("observations", "actions"):
        found = getattr(episodes[0], name)
        require(not isinstance(found, dict | tuple), f"{name} of a data set", type(found).__name__, "one array")

    def truncated(i: int) -> np.ndarray:
        flags = np.array(episodes[i].truncations)
        if i + 1 < len(episodes):  # the last one may be unfinished
            flags[-1] |= not episodes[i].terminations[-1]
        return flags

    fields = {
        "obs": lambda episode: np.asarray(episode.observations)[:-1],
        "next_obs": lambda episode: np.asarray(episode.observations)[1:],
        "action": lambda episode: np.asarray(episode.actions),
        "reward": lambda episode: np.asarray(episode.rewards),
        "terminated": lambda episode: np.asarray(episode.terminations),
    }
    found = {name: np.concatenate([of(episode) for episode in episodes]) for name, of in fields.items()}
    return found | {"truncated": np.concatenate([truncated(i) for i in range(len(episodes))])}


def _from_file(env: Environment, arrays: dict[str, np.ndarray]) -> Histories:
    tasks = {name.removeprefix(TASKS): arrays.pop(name) for name in list(arrays) if name.startswith(TASKS)}
    if not tasks:
        return from_arrays(env, arrays)
    default = env.default_params
    known = [field.name for field in dataclasses.fields(default)]
    unknown = sorted(set(tasks) - set(known))
    require(not unknown, "env_params", ", ".join(unknown), f"among {', '.join(known)}")
    num_tasks = len(next(iter(tasks.values())))
    # What the file does not say is the same in all tasks.
    stack = lambda x: np.broadcast_to(np.asarray(x), (num_tasks, *np.shape(x)))
    same = {name: jax.tree.map(stack, getattr(default, name)) for name in known if name not in tasks}
    return from_arrays(env, arrays, dataclasses.replace(default, **same, **tasks))


def _steps(steps: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    if steps is None:
        return np.full(shape[:2], shape[2], np.int32)
    steps = _of_kind("steps", steps, "iu", shape[:2])
    wrong = steps[(steps < 1) | (steps > shape[2])]
    require(wrong.size == 0, "steps", wrong[:1].tolist(), f"in 1 ..= {shape[2]}")
    return steps.astype(np.int32)


def _of_space(name: str, array: np.ndarray, space: Any, inside: np.ndarray) -> np.ndarray:
    """Checked, with the type of the space."""
    box = isinstance(space, spaces.Box)
    require(box or isinstance(space, spaces.Discrete), f"the space of {name}", space, "a Box or Discrete")
    whole = np.issubdtype(np.dtype(space.dtype), np.integer)
    array = _of_kind(name, array, "iu" if whole else "f", (*inside.shape, *space.shape))
    array = array if whole else array.astype(space.dtype)  # rounded as the bounds are; integers would wrap around
    low, high = (space.low, space.high) if box else (0, space.n - 1)
    fits = (array >= np.asarray(low)) & (array <= np.asarray(high)) & np.isfinite(array)
    _check_all(name, fits, inside, array, f"in {space!r}")
    return array.astype(space.dtype)


_KINDS = {"iu": "of integers", "f": "of floats", "biuf": "of numbers", "b": "of bools"}


def _of_kind(name: str, array: np.ndarray, kinds: str, shape: tuple[int, ...]) -> np.ndarray:
    require(array.shape == tuple(shape), name, array.shape, f"of shape {tuple(shape)}")
    require(array.dtype.kind in kinds, name, array.dtype, _KINDS[kinds])
    return array


def _check_all(name: str, fits: np.ndarray, inside: np.ndarray, array: np.ndarray, allowed: str) -> None:
    """Every entry inside the streams."""
    wrong = inside & ~fits.reshape(*inside.shape, -1).all(axis=-1)
    if wrong.any():
        m, n, t = np.argwhere(wrong)[0]
        require(False, f"{name}[{m}, {n}, {t}]", array[m, n, t].tolist(), allowed)


def _check_episodes(env: Environment, done: np.ndarray, inside: np.ndarray) -> None:
    """No episode is longer than the family's; where all of those are equally long, so are these."""
    limit = episode_steps(env)
    equal = not getattr(env, "terminates", True)
    for m, n in np.ndindex(done.shape[:2]):
        ends = np.flatnonzero(done[m, n])
        lengths = np.diff(np.append(ends, inside[m, n].sum() - 1), prepend=-1)
        wrong = lengths > limit
        if equal:
            wrong |= (lengths != limit) & (np.arange(len(lengths)) < len(ends))  # the last may be unfinished
        if wrong.any():
            i = int(wrong.argmax())
            allowed = f"of {'exactly' if equal else 'at most'} {limit} steps, as those of {env.name}"
            require(False, f"terminated or truncated: episode {i} of [{m}, {n}]", f"{lengths[i]} steps", allowed)


def _check_continuity(obs: np.ndarray, next_obs: np.ndarray, done: np.ndarray, inside: np.ndarray) -> None:
    """Within an episode what follows is what was seen next: no step was left out."""
    same = (next_obs[:, :, :-1] == obs[:, :, 1:]).reshape(*done[:, :, 1:].shape, -1).all(axis=-1)
    wrong = inside[:, :, 1:] & ~done[:, :, :-1] & ~same
    if wrong.any():
        m, n, t = np.argwhere(wrong)[0]
        allowed = "the obs of the next step, since the episode is not over"
        require(False, f"next_obs[{m}, {n}, {t}]", next_obs[m, n, t].tolist(), allowed)


def _blank(array: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Zeros after the end of each stream."""
    return np.where(inside.reshape(*inside.shape, *[1] * (array.ndim - 3)), array, np.zeros((), array.dtype))

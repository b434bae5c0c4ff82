"""Families by name: `make("gaussian_bandit", preset="dpt")`."""

import difflib
import importlib
from typing import Any

from icrl_envs.task_family import TaskFamily, require
from icrl_envs.wrappers import Preferences, preferences

FAMILIES: dict[str, str] = {  # name -> where its class is, imported when it is first made
    "gaussian_bandit": "icrl_envs.bandits:GaussianBandit",
    "bernoulli_bandit": "icrl_envs.bandits:BernoulliBandit",
    "linear_bandit": "icrl_envs.bandits:LinearBandit",
    "dueling_bandit": "icrl_envs.dueling_bandit:DuelingBandit",
    "dark_room": "icrl_envs.dark_room:DarkRoom",
    "dark_room_hard": "icrl_envs.dark_room:DarkRoomHard",
    "dark_room_permuted": "icrl_envs.dark_room:DarkRoomPermuted",
    "dark_key_to_door": "icrl_envs.dark_key_to_door:DarkKeyToDoor",
    "tabular_mdp": "icrl_envs.tabular_mdp:TabularMDP",
    "point_robot": "icrl_envs.control.point_robot:PointRobot",
    "cheetah_vel": "icrl_envs.control.locomotion:CheetahVel",
    "cheetah_dir": "icrl_envs.control.locomotion:CheetahDir",
    "ant_dir": "icrl_envs.control.locomotion:AntDir",
    "walker_params": "icrl_envs.control.locomotion:WalkerParams",
    "reach": "icrl_envs.control.arm:Reach",
    "push": "icrl_envs.control.arm:Push",
    "repeat_first": "icrl_envs.memory.repeat:RepeatFirst",
    "repeat_previous": "icrl_envs.memory.repeat:RepeatPrevious",
    "autoencode": "icrl_envs.memory.repeat:Autoencode",
    "count_recall": "icrl_envs.memory.cards:CountRecall",
    "higher_lower": "icrl_envs.memory.cards:HigherLower",
    "concentration": "icrl_envs.memory.cards:Concentration",
    "minesweeper": "icrl_envs.memory.minesweeper:MineSweeper",
    "battleship": "icrl_envs.memory.battleship:Battleship",
    "memory_bandit": "icrl_envs.memory.bandit:MemoryBandit",
    "stateless_cartpole": "icrl_envs.memory.control:StatelessCartPole",
    "noisy_stateless_cartpole": "icrl_envs.memory.control:NoisyStatelessCartPole",
    "stateless_pendulum": "icrl_envs.memory.control:StatelessPendulum",
    "noisy_stateless_pendulum": "icrl_envs.memory.control:NoisyStatelessPendulum",
    "memory_chain": "icrl_envs.memory.chain:MemoryChain",
    "pixel_room": "icrl_envs.pixel_room:PixelRoom",
    "house_navigation": "icrl_envs.house_navigation:HouseNavigation",
}


def family(name: str) -> Any:
    """The class of the family `name`; its docstring says what it holds, `presets` which papers' conventions it has.

    A family of your own is named by its import path, "module:Class", or "module:function" that returns one: so it can
    stand in the config of a run.

    Raises:
      ValueError: unknown name; the close ones are listed. Or a path that does not lead to anything.
    """
    require(isinstance(name, str), "name", name, "that of a family, or an import path 'module:Class'")
    path = name if ":" in name else FAMILIES.get(name)
    if path is None:
        close = difflib.get_close_matches(name, FAMILIES, n=3, cutoff=0.4) or sorted(FAMILIES)
        raise ValueError(f"environment {name!r} is unknown; close names: {', '.join(close)}")
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        if name in FAMILIES:
            raise
        raise ValueError(f"environment {name!r}: must be the import path of a family; {error}") from error


def make(name: str, preset: str | None = None, **kwargs: Any) -> TaskFamily:
    """Builds the task family `name`, e.g. `make("gaussian_bandit", num_arms=7)`; `env.default_params` is one task.

    Args:
      name: one of `icrl_envs.FAMILIES`, or the import path "module:Class" of your own.
      preset: the conventions of one paper; arguments given beside it win. Needed where papers differ.
      **kwargs: constructor arguments of the family.
    Raises:
      ValueError: unknown name (the close ones are listed), unknown or missing preset, or an argument outside its range.
    """
    build = family(name)
    presets = getattr(build, "presets", {})
    if preset is None and getattr(build, "preset_required", False):
        raise ValueError(f"preset=None: papers differ on {name}; choose one of {_listed(presets)}")
    if preset is not None and preset not in presets:
        raise ValueError(f"preset={preset!r}: {name} has {_listed(presets)}")
    return build(**{**presets.get(preset or "", {}), **kwargs})


def compared(
    family: str,
    family_preset: str | None = None,
    temperature: float = 1.0,
    noise: float = 0.0,
    tie_margin: float = 0.0,
    **kwargs: Any,
) -> Preferences:
    """`preferences` around a family by its name, which the config of a run can hold: `make("icrl_envs:compared", ...)`.

    Args:
      family, family_preset, **kwargs: as in `make`.
      temperature, noise, tie_margin: as in `preferences`.
    Raises:
      ValueError: as those two.
    """
    return preferences(make(family, family_preset, **kwargs), None, temperature, noise, tie_margin)


def _listed(presets) -> str:
    return ", ".join(map(repr, presets)) or "no presets"

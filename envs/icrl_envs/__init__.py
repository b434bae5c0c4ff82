"""Task families for in-context RL: gymnax environments whose parameters are the task.

`make(name)` builds a family, `family(name)` is its class; their modules are imported when they are first asked for.
"""

from icrl_envs.foreign import from_brax, from_craftax, from_gymnax, from_xland
from icrl_envs.mixture import mixture
from icrl_envs.planning import plan
from icrl_envs.projection import projected
from icrl_envs.registry import FAMILIES, compared, family, make
from icrl_envs.task_family import Split, TaskFamily, check_action, sample_tasks
from icrl_envs.wrappers import Revealed, Wrapper, copies, preferences, revealed

__all__ = [
    "FAMILIES",
    "Revealed",
    "Split",
    "TaskFamily",
    "Wrapper",
    "check_action",
    "compared",
    "copies",
    "family",
    "from_brax",
    "from_craftax",
    "from_gymnax",
    "from_xland",
    "make",
    "mixture",
    "plan",
    "preferences",
    "projected",
    "revealed",
    "sample_tasks",
]

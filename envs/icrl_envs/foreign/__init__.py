"""Environments of other libraries as task families; each library is imported when one of its environments is made."""

from icrl_envs.foreign.from_brax import from_brax
from icrl_envs.foreign.from_craftax import from_craftax
from icrl_envs.foreign.from_gymnax import from_gymnax
from icrl_envs.foreign.from_xland import from_xland
from icrl_envs.foreign.rulesets import make_rulesets

__all__ = ["from_brax", "from_craftax", "from_gymnax", "from_xland", "make_rulesets"]

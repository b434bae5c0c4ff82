"""Families by name, and by the import path of a user's own."""

import re

import pytest

import icrl_envs
from icrl_envs.bandits import GaussianBandit
from icrl_jax.run import EnvSpec


def small_dark_room(size=3):
    return icrl_envs.make("dark_room", "dpt", size=size)


def test_an_unknown_name_lists_close_ones():
    with pytest.raises(ValueError, match="environment 'dark_rom' is unknown; close names: dark_room"):
        icrl_envs.make("dark_rom")


def test_a_name_is_a_string():
    with pytest.raises(ValueError) as refused:
        icrl_envs.make(5)  # type: ignore[arg-type]
    assert str(refused.value) == "name=5: must be that of a family, or an import path 'module:Class'"


def test_where_papers_differ_a_preset_is_needed():
    with pytest.raises(ValueError, match="preset=None: papers differ on dark_room; choose one of 'ad', 'ad_eps'"):
        icrl_envs.make("dark_room")


def test_a_family_of_ones_own_is_named_by_its_path():
    env = EnvSpec("icrl_envs.bandits:GaussianBandit", "dpt", {"num_arms": 7}).build()
    assert type(env) is GaussianBandit and env.num_arms == 7
    assert icrl_envs.make(f"{__name__}:small_dark_room", size=4).size == 4


@pytest.mark.parametrize("path", ["nowhere_at_all:Family", "icrl_envs.bandits:NoBandit"])
def test_a_path_that_leads_nowhere_is_refused(path):
    with pytest.raises(ValueError, match=f"environment '{re.escape(path)}': must be the import path of a family; "):
        icrl_envs.make(path)

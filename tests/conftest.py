"""Strict JAX for every test: nothing broadcasts or changes its type silently."""

import gc
import itertools
import sys
from pathlib import Path

import jax
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `import two_episodes`, from wherever pytest was started

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_addoption(parser):
    parser.addoption("--family", action="append", default=[], help="module:Class of a task family of your own to try")


def pytest_configure(config):
    import icrl_envs

    icrl_envs.FAMILIES.update({path: path for path in config.getoption("--family")})


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Forgets a module's compiled programs: each C++ exception in JAX's own code searches all that are loaded, and with
    some thousands of them that takes most of the time."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def getkey():
    """A new key at every call, the same ones in every run."""
    seeds = itertools.count(1009)
    return lambda: jax.random.key(next(seeds))

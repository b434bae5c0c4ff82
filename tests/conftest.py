"""Strict JAX for every test: nothing broadcasts or changes its type silently.

Most of what the tests take is compilation, so programs are optimised little here. To test them as users run them:
JAX_DISABLE_MOST_OPTIMIZATIONS=0 JAX_USE_SHARDY_PARTITIONER=1 XLA_FLAGS= make test
"""

import collections
import gc
import itertools
import os
import sys
from pathlib import Path

# Before JAX is imported, and for the processes that tests start. Where there is a cache, as with `make test`, what one
# of them compiled the others need not, nor the next run.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
# A third of the time that programs take to compile.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_USE_SHARDY_PARTITIONER", "0")  # passes that every program pays; `test_parallel` has them
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # what a program would tell of where it comes from

import jax
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `import two_episodes`, from wherever pytest was started

gc.set_threshold(100_000, 50, 100)  # traces are trees of small objects, few of which are ever garbage

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_addoption(parser):
    parser.addoption("--family", action="append", default=[], help="module:Class of a task family of your own to try")


def pytest_configure(config):
    import icrl_envs

    icrl_envs.FAMILIES.update({path: path for path in config.getoption("--family")})


def pytest_collection_modifyitems(items):
    """The slowest files first, so that at the end no process waits long for another."""
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Forgets a module's compiled programs: each C++ exception in JAX's own code searches all that are loaded, and with
    some thousands of them that takes most of the time. What is left then stays, and is not looked through again."""
    yield
    jax.clear_caches()
    gc.collect()
    gc.freeze()


@pytest.fixture
def getkey():
    """A new key at every call, the same ones in every run."""
    seeds = itertools.count(1009)
    return lambda: jax.random.key(next(seeds))

"""How code of other libraries is run: under JAX's usual rules, and quietly."""

import contextlib
import importlib
import io
import warnings
from collections.abc import Iterator
from typing import Any

import jax


@contextlib.contextmanager
def usual_promotion() -> Iterator[None]:
    """Foreign code is written for JAX's own rules of promotion, however strict its caller is."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@contextlib.contextmanager
def quiet_brax() -> Iterator[Any]:
    """Brax's module of environments, in which to make one. Imported late: it takes seconds, prints and warns."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), usual_promotion():
        warnings.simplefilter("ignore")
        mujoco: Any = importlib.import_module("mujoco")
        envs = importlib.import_module("brax.envs")
        mujoco.set_mju_user_warning(lambda message: None)  # else it writes a log file where the program runs
        try:
            yield envs
        finally:
            mujoco.set_mju_user_warning(None)

"""Histories read from disk: streams where they are, checked before they are used."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from gymnax.environments.environment import Environment

from icrl_jax.core import Transition
from icrl_jax.data.histories import Histories
from icrl_jax.data.manifest import (
    MANIFEST,
    StoreError,
    check_same,
    check_sizes,
    chunk_file,
    describe_env,
    facts,
    grid,
    read_form,
    read_manifest,
)
from icrl_jax.data.skeleton import put_together
from icrl_jax.data.store import ARRAY, spec_of

CACHE_BYTES = 2**30
"""Chunks that are kept in memory once they were read."""


class StoredHistories:
    """Histories whose transitions are on disk; what is small about them is in memory.

    Every chunk is compared with its checksum when it is first read, and no file is read that has another size than it
    was written with.

    Attributes:
      directory: where they are.
      about: the manifest: environment, source, shapes, versions, and of every file its size and SHA-256.
      form, shape, steps, env_params: as in `Histories`, NumPy arrays.
      weights: [M, N], how often each stream is drawn, in proportion; None: all alike.
      digest: of the manifest, and so of every file.
    """

    def __init__(self, directory: Path, about: dict[str, Any]):
        self.directory, self.about, self.digest = directory, about, about["digest"]
        self.shape: tuple[int, int, int] = tuple(about["shape"])  # type: ignore[assignment]
        self.form = read_form(about)
        self._checked: set[str] = set()
        check_sizes(directory, about["files"])
        self._check(file for file in about["files"] if file.endswith(ARRAY))
        context = ts.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}})
        self._arrays = {name: _open(directory, name, context) for name in about["arrays"]}
        parts = about["tree"]["parts"]
        self.steps, self.weights, self.env_params = (self._whole(parts[x]) for x in ("steps", "weights", "env_params"))

    def transitions(self, task: np.ndarray, stream: np.ndarray, first: np.ndarray, length: int) -> Transition:
        """Reads K windows, each of one task, one stream and the `length` steps from `first` on.

        Args:
          task, stream, first: integers [K].
        Returns:
          NumPy arrays [K, length, ...], in as few bytes as they are kept; `form.dtypes` are what an agent saw.
        Raises:
          StoreError: names the file that is not what was written.
        """
        where = list(zip(task.tolist(), stream.tolist(), first.tolist(), strict=True))

        def read(name: str) -> list[Any]:
            self._check(set(self._files_of(name, where, length)))
            return [self._arrays[name][m, n, t : t + length].read() for m, n, t in where]

        skeleton = self.about["tree"]["parts"]["transitions"]
        coming = {name: read(name) for name in _names(skeleton)}
        return put_together(skeleton, {name: np.stack([self._result(x) for x in xs]) for name, xs in coming.items()})

    def read_all(self) -> Histories:
        """All of them, on the device."""
        self.verify()
        parts = self.about["tree"]["parts"]
        transitions, update = (self._whole(parts[x]) for x in ("transitions", "update"))
        whole = Histories(transitions, update, self.steps, self.env_params, self.form)
        return jax.tree.map(jnp.asarray, whole)

    def verify(self) -> None:
        """Reads every file again and compares it with its checksum.

        Raises:
          StoreError: names the file.
        """
        self._checked.clear()
        self._check(self.about["files"])

    def check_env(self, env: Environment) -> None:
        """Refuses histories of another environment, or of the same one under other conventions.

        Raises:
          StoreError: names what differs, with both values.
        """
        check_same(self.directory, self.about["env"], describe_env(env), "env")

    def _check(self, files: Iterable[str]) -> None:
        for file in files:
            if file not in self._checked:
                if (written := self.about["files"].get(file)) is None:
                    raise StoreError(f"{self.directory / file} is not listed in {MANIFEST}")
                if facts(self.directory / file) != written:
                    raise StoreError(f"{self.directory / file} is damaged: its bytes are not those that were written")
                self._checked.add(file)

    def _files_of(self, name: str, where: list[tuple[int, int, int]], length: int) -> Iterable[str]:
        num_tasks, num_streams, num_steps, *rest = self.about["arrays"][name]["chunk"]
        for m, n, t in where:
            for k in range(t // num_steps, (t + length - 1) // num_steps + 1):
                yield chunk_file(name, (m // num_tasks, n // num_streams, k, *[0] * len(rest)))

    def _whole(self, skeleton: Any) -> Any:
        names = list(_names(skeleton))
        for name in names:
            self._check(chunk_file(name, index) for index in np.ndindex(grid(self.about["arrays"][name])))
        coming = {name: self._arrays[name].read() for name in names}
        return put_together(skeleton, {name: self._result(x) for name, x in coming.items()})

    def _result(self, coming: Any) -> np.ndarray:
        try:
            return coming.result()
        except ValueError as error:  # TensorStore's: a chunk was damaged since it was checked; names the file
            raise StoreError(f"{self.directory}: {error}") from None


def open_histories(directory: str | Path) -> StoredHistories:
    """Opens what `write_histories` or a run with `--store` has left.

    Raises:
      StoreError: it is not there, unfinished, damaged, or a file has not the size it was written with.
    """
    directory = Path(directory)
    return StoredHistories(directory, read_manifest(directory))


def _open(directory: Path, name: str, context: ts.Context) -> ts.TensorStore:
    # A lost chunk is an error, and not zeros.
    spec = {**spec_of(directory, name), "fill_missing_data_reads": False}
    return ts.open(spec, read=True, open=True, context=context, recheck_cached_data="open").result()


def _names(skeleton: Any) -> Iterable[str]:
    if isinstance(skeleton, str):
        yield skeleton
    elif skeleton is not None:
        for part in skeleton["parts"].values():
            yield from _names(part)

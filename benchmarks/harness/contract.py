"""Interfaces of measured libraries: an Engine finds row numbers, a Database also stores ids and metadata.

Each runs in a separate process (worker.py), with one library in a process.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

K = 10
#: Candidates of a graph search, the same for every library with such a setting.
EF = (10, 12, 14, 16, 20, 24, 28, 34, 40, 48, 56, 68, 80, 96, 112, 136, 160, 200, 240, 320, 400, 512)
#: Lists that a search scans, the same for every library with lists.
PROBES = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
#: Number of candidates with which the recall of a build is measured.
EF_AFTER_BUILD = 64
M = 16
EF_CONSTRUCTION = 200

#: Settings of a search, by the library's own names.
Setting = dict[str, Any]


class Engine:
    """An index of vectors.

    Order of calls: `build` and `save`, or `load`; then `use` with a setting, and searches with `one` or `batch`.

    Args:
        scratch: an empty folder for this engine.
    """

    #: Name of the batch method in results.
    batch_by = "the library's batch call"

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._pool: ThreadPoolExecutor | None = None

    def build(self, base: Any, threads: int) -> None:
        """Indexes the rows of a (n, dim) float32 array under their numbers."""
        raise NotImplementedError

    def save(self, path: Path) -> None:
        """Stores what `build` made; the index need not be usable afterwards."""
        raise NotImplementedError

    def load(self, path: Path, rows: int, dim: int, threads: int) -> None:
        """Opens what `save` stored."""
        raise NotImplementedError

    def families(self) -> list[list[Setting]]:
        """Settings to sweep, each family from fast to thorough."""
        return [[{"ef": ef} for ef in EF]]

    def setting_after_build(self) -> Setting:
        """The setting whose recall is reported with a build."""
        return {"ef": EF_AFTER_BUILD}

    def use(self, setting: Setting) -> None:
        """Sets the setting of later searches."""
        raise NotImplementedError

    def one(self, query: Any) -> Sequence[Any]:
        """The row numbers (or ids that are row numbers) of the K nearest rows."""
        raise NotImplementedError

    def batch(self, queries: Any, threads: int) -> Sequence[Sequence[Any]]:
        """The row numbers of the K nearest rows, for many queries at once."""
        raise NotImplementedError

    def add_one(self, number: int, vector: Any) -> None:
        """Adds one row to a loaded index, searchable when the call returns."""
        raise NotImplementedError

    def batch_by_threads(self, queries: Any, threads: int) -> list[Sequence[Any]]:
        """A batch for libraries without a batch call: Python threads over single queries."""
        if threads == 1:
            return [self.one(query) for query in queries]
        self._pool = self._pool or ThreadPoolExecutor(threads)
        share = -(-len(queries) // threads)
        parts = self._pool.map(
            lambda first: [self.one(query) for query in queries[first : first + share]],
            range(0, len(queries), share),
        )
        return [hits for part in parts for hits in part]


class Database:
    """A whole database: it stores ids, vectors and metadata, and returns ids and metadata.

    Args:
        path: an empty folder for this database.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, base: Any, metadata: list[dict[str, str]]) -> None:
        """Adds all rows, ids being their numbers as text; searchable when the call returns."""
        raise NotImplementedError

    def store(self) -> None:
        """Makes the added rows durable, if `add` has not."""

    def settings(self) -> list[Setting]:
        """Settings to measure."""
        return [{}]

    def answer(self, queries: Any, setting: Setting) -> tuple[list[list[str]], list[float]]:
        """Ids of the hits of each query, whose metadata were read too, and the microseconds of each call."""
        raise NotImplementedError

    def close(self) -> None:
        """Closes files and ends threads."""

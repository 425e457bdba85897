"""Results of collections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.display import Record
from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.types import SearchResults

__all__ = [
    "CollectionProgress",
    "CollectionReport",
    "CollectionStats",
    "ProgressCallback",
    "ShardInfo",
    "ShardedResults",
    "Teller",
]


class ShardedResults(SearchResults):
    """The hits of one query over shards, nearest first: a SearchResults that says which shards answered.

    Attributes:
        shards: numbers of the shards that answered.
        missing: numbers of the shards that did not, where the search allowed that by `missing_ok`; else none.
        plan: how the search went in most of the shards.
    """

    shards: tuple[int, ...] = ()
    missing: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The hits, how they were found, and the shards, ready for JSON."""
        return {**super().to_dict(), "shards": list(self.shards), "missing": list(self.missing)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardInfo(Record):
    """A shard.

    Attributes:
        number: its number; a collection uses none twice.
        rows: live rows, as they were stored.
        superseded: whether its parts may hold deleted or replaced rows, until `vacuum`.
        first: least key of its range, with the routes ``hash`` and ``range``; else None.
    """

    number: int
    rows: int
    superseded: bool
    first: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionStats(Record):
    """State of a collection, as its root has it: no shard is asked.

    Attributes:
        cid: the root; None where a share CID opened it.
        route: ``nearest``, ``hash`` or ``range``.
        metric: ``cosine``, ``l2`` or ``dot``.
        dim: components of a vector; None where no row has one.
        rows: live rows of all shards, as they were stored.
        shards: the shards by number.
        curve: with ``nearest``, the share of the 10 nearest rows that are in the n most promising shards, for n from 1
            on, as measured by the build.
    """

    cid: str | None
    route: str
    metric: str
    dim: int | None
    rows: int
    shards: tuple[ShardInfo, ...]
    curve: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionReport(Record):
    """What `verify` read and found undamaged.

    Attributes:
        shards: shards read.
        parts: parts read, those of the root included.
        bytes: bytes read, as stored.
        rows: rows of the shards, tombstones included.
    """

    shards: int
    parts: int
    bytes: int
    rows: int


@dataclass(frozen=True, slots=True)
class CollectionProgress(Record):
    """Where a build, a change or a verification is.

    Attributes:
        stage: ``rows``, ``routes``, ``shards`` or ``root``.
        done, total: shards.
    """

    stage: str
    done: int
    total: int


ProgressCallback: TypeAlias = Callable[[CollectionProgress], None]


class Teller:
    """Calls a progress function, where there is one."""

    def __init__(self, progress: ProgressCallback | None) -> None:
        if progress is not None and not callable(progress):
            raise InvalidInputError(f"progress must be a function or None, got {type(progress).__name__}")
        self._progress = progress

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(CollectionProgress(stage, done, total))

    def counter(self, stage: str, total: int) -> Callable[[], None]:
        """A function that tells of one more."""
        done = 0

        def one_more() -> None:
            nonlocal done
            done += 1
            self(stage, done, total)

        return one_more

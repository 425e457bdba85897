"""What any index answers, and how it is asked what it misses.

A lazily loaded index needs parts that may still be in the store. So a caller that can wait asks first:

    gathered = Gathered()
    while (missing := index.missing(need, gathered)).keys:
        gathered.take(await parts.fetch(missing.keys, index.check_part))
    index.search(request, gathered)

An index in memory misses nothing, and is not asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.handle import Control, NativeStats
from fabstir_vectordb.config import Metric
from fabstir_vectordb.index.contents import Fetched, PartKey
from fabstir_vectordb.index.rows import Slots
from fabstir_vectordb.metadata.filter_parse import Filter
from fabstir_vectordb.metadata.schema import Schema
from fabstir_vectordb.params import SearchRequest
from fabstir_vectordb.types import FacetCount, Row, SearchResults

__all__ = ["BatchNeed", "FilterNeed", "Gathered", "Missing", "Need", "Reach", "ReadableIndex", "RowsNeed"]


class Reach(Enum):
    """Calls that need the same whatever they are about."""

    IDS = "ids, times and counts, which are always there"
    WHOLE = "every row"


@dataclass(frozen=True, slots=True)
class BatchNeed:
    """A search of many queries; the request's own query is not looked at."""

    queries: npt.NDArray[np.float32]
    request: SearchRequest


@dataclass(frozen=True, slots=True)
class RowsNeed:
    """Rows by id."""

    ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class FilterNeed:
    """What a filter takes, without the rows themselves."""


Need: TypeAlias = SearchRequest | BatchNeed | RowsNeed | FilterNeed | Reach


@dataclass(frozen=True, slots=True)
class Missing:
    """What a call lacks.

    Attributes:
        keys: parts to fetch; none where it can be answered.
        whole: it needs the whole index instead.
        optional: it can do without, should the whole not fit: call `stay_lazy`, and ask again.
    """

    keys: tuple[PartKey, ...] = ()
    whole: bool = False
    optional: bool = False


@dataclass(slots=True)
class Candidates:
    """What a search knows so far of one query.

    Attributes:
        allow: bitmap of the rows that may be hits; None for all.
        slots: the likeliest rows.
        parts: the parts that have them.
        hits: distance, id and slot of the nearest, once those parts are there.
    """

    allow: npt.NDArray[np.uint64] | None
    slots: Slots
    parts: list[PartKey]
    hits: list[tuple[float, bytes, int]] | None = None


@dataclass(slots=True)
class Gathered:
    """What one call of a lazily loaded index has gathered: parts, which stay while it runs, and what is known by them.

    Attributes:
        parts: bytes by key.
        requests, bytes: what came from the store for this call.
        candidates: one for each query.
        slots: the rows of a `RowsNeed`.
    """

    parts: dict[PartKey, bytes] = field(default_factory=dict)
    requests: int = 0
    bytes: int = 0
    candidates: list[Candidates] = field(default_factory=list)
    slots: Slots | None = None

    def take(self, fetched: Fetched) -> None:
        """Adds parts that were fetched."""
        self.parts.update(fetched.parts)
        self.requests += fetched.receipt.requests
        self.bytes += fetched.receipt.bytes


class ReadableIndex(Protocol):
    """An index that is read, whether all of it is in memory or not."""

    @property
    def is_whole(self) -> bool: ...
    @property
    def counts(self) -> NativeStats: ...
    @property
    def dim(self) -> int | None: ...
    @property
    def vector_dim(self) -> int | None: ...
    @property
    def metric(self) -> Metric: ...
    @property
    def schema(self) -> Schema | None: ...
    @property
    def live_count(self) -> int: ...
    @property
    def hidden_count(self) -> int: ...
    def superseded_since_save(self, row_bytes: int) -> int: ...
    @property
    def held_bytes(self) -> int: ...
    def missing(self, need: Need, gathered: Gathered) -> Missing: ...
    def search(
        self, request: SearchRequest, gathered: Gathered | None = None, control: Control | None = None
    ) -> SearchResults: ...
    def search_at_once(self, request: SearchRequest) -> SearchResults | None: ...
    def search_batch(
        self,
        queries: npt.NDArray[np.float32],
        request: SearchRequest,
        gathered: Gathered | None = None,
        control: Control | None = None,
    ) -> list[SearchResults]: ...
    def get(self, ids: Sequence[str], gathered: Gathered | None = None) -> list[Row | None]: ...
    def count_where(self, where: Filter) -> int: ...
    def facets(self, path: str, where: Filter) -> list[FacetCount]: ...
    def timestamps(self, ids: Sequence[str] | None) -> dict[str, float]: ...
    def stats(self) -> NativeStats: ...
    def forget_caches(self) -> bool: ...
    def close(self) -> None: ...

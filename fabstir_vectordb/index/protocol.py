"""The interface of an index for reads, and of its missing parts.

A lazily loaded index needs parts that may still be in the store. So a caller first fetches the missing parts:

    gathered = Gathered()
    while (missing := index.missing(need, gathered)).keys:
        gathered.take(await parts.fetch(missing.keys, index.check_part))
    index.search(request, gathered)

A whole index misses nothing, and needs no such loop.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import field
from enum import Enum
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.handle import Control, NativeStats
from fabstir_vectordb.config import Metric
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.index.contents import Fetched, PartKey
from fabstir_vectordb.index.grouping import Groups, Hit
from fabstir_vectordb.index.hybrid import Sides
from fabstir_vectordb.index.rows import Slots
from fabstir_vectordb.metadata.census import FacetQuery
from fabstir_vectordb.metadata.filter_parse import Filter
from fabstir_vectordb.metadata.schema import Schema
from fabstir_vectordb.metadata.values import Scalar
from fabstir_vectordb.params import SearchRequest
from fabstir_vectordb.text.query import ParsedQuery
from fabstir_vectordb.types import FacetCount, FieldInfo, FusedResult, Row, SearchResults

__all__ = [
    "BatchNeed",
    "ChosenNeed",
    "FilterNeed",
    "Gathered",
    "LikelyNeed",
    "Missing",
    "Need",
    "Reach",
    "ReadableIndex",
    "RowsNeed",
    "TextAnswer",
    "WordsNeed",
]


class Reach(Enum):
    """Needs that do not depend on a call's arguments."""

    IDS = "ids, times and counts, which are always there"
    WHOLE = "every row"


@dataclass(frozen=True, slots=True)
class BatchNeed:
    """The need of a search of many queries; the request's own query is not used."""

    queries: npt.NDArray[np.float32]
    request: SearchRequest


@dataclass(frozen=True, slots=True)
class LikelyNeed:
    """The need of a search of many queries for candidates alone: the likeliest rows by code, without their parts.

    Attributes:
        queries, request: as in `BatchNeed`.
        groups: for each query the values of the groups whose rows are wanted; none for those with the likeliest rows.
    """

    queries: npt.NDArray[np.float32]
    request: SearchRequest
    groups: Sequence[Sequence[Scalar]] = ()


@dataclass(frozen=True, slots=True)
class ChosenNeed:
    """The need of a search of many queries among the rows of the parts of given candidates.

    Attributes:
        queries, request: as in `BatchNeed`.
        slots: the candidates of each query.
        groups: for each query the values of the groups whose rows are wanted, beside the best ones of those parts.
    """

    queries: npt.NDArray[np.float32]
    request: SearchRequest
    slots: Sequence[Slots]
    groups: Sequence[Sequence[Scalar]] = ()


@dataclass(frozen=True, slots=True)
class RowsNeed:
    """The need of a read of rows by id.

    Attributes:
        ids: of the rows.
        vectors: whether their vectors are read, beside their metadata.
    """

    ids: Sequence[str]
    vectors: bool = True


@dataclass(frozen=True, slots=True)
class WordsNeed:
    """The need of a count of the rows that have the words of some texts."""

    queries: Sequence[ParsedQuery]


@dataclass(frozen=True, slots=True)
class FilterNeed:
    """The need of filters and fields: all metadata, without the rows themselves.

    Attributes:
        metadata: whether any metadata is read; a filter by ids or timestamps alone reads none.
    """

    metadata: bool = True


Need: TypeAlias = SearchRequest | BatchNeed | LikelyNeed | ChosenNeed | RowsNeed | WordsNeed | FilterNeed | Reach


@dataclass(frozen=True, slots=True)
class Missing:
    """The parts that a call lacks.

    Attributes:
        keys: parts to fetch; none where nothing is missing.
        whole: whether the call needs the whole index instead.
        optional: whether the call can do without the whole index, where that would not fit: then call `stay_lazy`, and
            `missing` again.
    """

    keys: tuple[PartKey, ...] = ()
    whole: bool = False
    optional: bool = False


@dataclass(slots=True)
class Candidates:
    """The candidates of one query.

    Attributes:
        allow: bitmap of the rows that may be hits; None for all.
        slots: the likeliest rows by code.
        parts: the parts with their vectors.
        distances: the distances of `slots`, as far as the codes tell; none where they were chosen elsewhere.
        hits: distance, id and slot of the nearest rows; None before those parts are fetched.
        groups: the groups of all rows, for a search with `group_by`.
        wanted: those whose hits are wanted, beside the best ones.
        found: groups with their candidates, later with their hits, in place of `hits` alone.
    """

    allow: npt.NDArray[np.uint64] | None
    slots: Slots
    parts: list[PartKey]
    distances: npt.NDArray[np.float64] | None = None
    hits: list[Hit] | None = None
    groups: Groups | None = None
    wanted: Collection[int] = ()
    found: list[tuple[int, list[Hit]]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TextAnswer:
    """The hits of a search with text, without metadata and vectors, and their slots."""

    hits: list[FusedResult]
    slots: Slots


@dataclass(slots=True)
class Gathered:
    """The data of one call of a lazily loaded index. Its parts stay in memory while the call runs.

    Attributes:
        parts: bytes of parts by key.
        requests, bytes: requests to the store and fetched bytes of this call.
        candidates: one for each query.
        slots: the rows of a `RowsNeed`.
        answers: one for each query of a search with text.
        sides: the same of a search whose candidates are joined with those of other shards.
    """

    parts: dict[PartKey, bytes] = field(default_factory=dict)
    requests: int = 0
    bytes: int = 0
    candidates: list[Candidates] = field(default_factory=list)
    slots: Slots | None = None
    answers: list[TextAnswer] = field(default_factory=list)
    sides: list[Sides] = field(default_factory=list)

    def take(self, fetched: Fetched) -> None:
        """Adds fetched parts."""
        self.parts.update(fetched.parts)
        self.requests += fetched.receipt.requests
        self.bytes += fetched.receipt.bytes


class ReadableIndex(Protocol):
    """The reads of an index, whole or lazily loaded."""

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
    def facets(self, query: FacetQuery) -> list[FacetCount]: ...
    def fields(self, where: Filter) -> list[FieldInfo]: ...
    def timestamps(self, ids: Sequence[str] | None) -> dict[str, float]: ...
    def stats(self) -> tuple[NativeStats, int]: ...
    def forget_caches(self) -> bool: ...
    def close(self) -> None: ...

"""What goes in and what comes out: plain, small and immutable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypedDict, overload

import numpy as np
import numpy.typing as npt

from fabstir_vectordb.config import UNSET, Unset
from fabstir_vectordb.metadata.arena import decode_metadata
from fabstir_vectordb.persist.versions import Progress, ProgressCallback

__all__ = [
    "AddResult",
    "CalibrationPoint",
    "DeleteResult",
    "FacetCount",
    "IndexSide",
    "LoadFields",
    "LoadOptions",
    "OptimizeProgress",
    "OptimizeResult",
    "Plan",
    "Progress",
    "ProgressCallback",
    "PruneReport",
    "RecallPoint",
    "RecallReport",
    "Receipt",
    "Row",
    "SearchFields",
    "SearchOptions",
    "SearchResult",
    "SearchResults",
    "SessionStats",
    "VacuumStats",
    "VectorInput",
    "VerifyReport",
    "VersionInfo",
]

Vector = npt.NDArray[np.float32]
Plan = Literal["flat", "graph", "lists", "hybrid", "filtered exact", "lazy"]


@dataclass(frozen=True, slots=True)
class VectorInput:
    """A row to add.

    Attributes:
        id: any non-empty string of at most 1 KiB of UTF-8.
        vector: dim numbers, kept as float32; None for a row that no search finds.
        metadata: any JSON-shaped value of at most 1 MiB, or None for none.
        timestamp: seconds since 1970 or an aware datetime; None for now.
        expires_at: when the row is gone from all answers, as `timestamp`; None for never.
    """

    id: str
    vector: Any
    metadata: Any = None
    timestamp: float | datetime | None = None
    expires_at: float | datetime | None = None


@dataclass(frozen=True, slots=True)
class AddResult:
    """How many rows an add added, replaced and skipped."""

    added: int
    replaced: int
    skipped: int


@dataclass(frozen=True, slots=True)
class DeleteResult:
    """What a delete deleted."""

    deleted_count: int
    deleted_ids: list[str]


@dataclass(frozen=True, slots=True)
class FacetCount:
    """A distinct value of a field, and how many rows have it."""

    value: Any
    count: int


@dataclass(frozen=True, slots=True)
class VacuumStats:
    """Rows a vacuum removed for good: from the graph, from the lists, and in all, flat ones included."""

    hnsw_removed: int
    ivf_removed: int
    total_removed: int


@dataclass(frozen=True, slots=True)
class Row:
    """A stored row.

    Attributes:
        id: the row's id.
        vector: dim float32, bit for bit as added; None for a row without.
        metadata: as added, or None.
        timestamp: seconds since 1970.
        expires_at: when the row is gone, seconds since 1970; None for never.
    """

    id: str
    vector: Vector | None = field(repr=False)
    metadata: Any
    timestamp: float
    expires_at: float | None = None


class SearchResult:
    """One hit.

    Attributes:
        id: the row's id.
        score: in [0, 1], larger is nearer.
        distance: cosine distance, Euclidean distance or negative inner product; sets the order.
        metadata: as added, or None; decoded at first use.
        vector: dim float32 bit for bit as added, where the search asked for vectors; else None.
    """

    __slots__ = ("_metadata", "distance", "id", "score", "vector")

    def __init__(
        self, id: str, score: float, distance: float, metadata: Any = None, vector: Vector | None = None
    ) -> None:
        self.id = id
        self.score = score
        self.distance = distance
        self._metadata = metadata
        self.vector = vector

    @property
    def metadata(self) -> Any:
        """The row's metadata, or None."""
        metadata = self._metadata
        if type(metadata) is bytearray:  # which no JSON-shaped value is: stored bytes, none of them for none
            metadata = self._metadata = decode_metadata(metadata) if metadata else None
        return metadata

    def __repr__(self) -> str:
        return f"SearchResult(id={self.id!r}, score={self.score:.4f}, distance={self.distance:.4f})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SearchResult):
            return NotImplemented
        return (self.id, self.score, self.distance) == (other.id, other.score, other.distance)

    def __hash__(self) -> int:
        return hash((self.id, self.score, self.distance))


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What an answer took from the store.

    Attributes:
        requests: requests for parts.
        bytes: bytes that came, as they are stored.
        cache_hits: parts that were there already.
    """

    requests: int = 0
    bytes: int = 0
    cache_hits: int = 0


NOTHING_FETCHED = Receipt()
"""The receipt of an answer from memory alone."""


class SearchResults(Sequence[SearchResult]):
    """The hits of one query, nearest first; with `mmr`, in the order in which they were chosen.

    Attributes:
        below_threshold: how many of the k nearest the threshold removed.
        plan: ``flat`` where no row can be nearer than those returned, ``graph`` where the graph was walked on codes and
            the best candidates were scored exactly, ``lists`` where lists of historical rows were scanned on codes
            instead (and recent rows, while they are few), ``hybrid`` where both was done, ``filtered exact`` where each
            row that the filter takes was looked at, ``lazy`` where the parts of the likeliest rows were scored exactly.
        receipt: what the answer took from the store; nothing once the index is in memory as a whole.
    """

    __slots__ = ("_hits", "below_threshold", "plan", "receipt")

    def __init__(self, hits: list[SearchResult], below_threshold: int, plan: Plan) -> None:
        self._hits = hits
        self.below_threshold = below_threshold
        self.plan = plan
        self.receipt = NOTHING_FETCHED

    def __len__(self) -> int:
        return len(self._hits)

    def __iter__(self) -> Iterator[SearchResult]:
        return iter(self._hits)

    @overload
    def __getitem__(self, position: int) -> SearchResult: ...
    @overload
    def __getitem__(self, position: slice) -> list[SearchResult]: ...
    def __getitem__(self, position: int | slice) -> SearchResult | list[SearchResult]:
        return self._hits[position]

    def __repr__(self) -> str:
        return f"SearchResults({self._hits!r}, below_threshold={self.below_threshold}, plan={self.plan!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallPoint:
    """What one setting finds, and how long it takes.

    Attributes:
        ef_search, nprobe: the setting; None for the default.
        exact: whether every row was to be scored.
        recall: share of the k nearest that came, on average.
        p50_us, p99_us: microseconds of one search in the native core, one at a time: half of them, and 99 % of them,
            took no longer.
        queries_per_s: of the same searches, one after the other.
    """

    ef_search: int | None
    nprobe: int | None
    exact: bool
    recall: float
    p50_us: float
    p99_us: float
    queries_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallReport:
    """How much of the truth searches find on the index's own rows.

    Attributes:
        k: neighbours that were asked for.
        sample: rows that were asked about.
        rows: rows that searches can return.
        default: of searches that name no setting; with what the session's `recall_target` takes, where it has one.
        points: of `ef_search` for the graph and `nprobe` for lists, each with the other at its default; the exact
            search comes last.
    """

    k: int
    sample: int
    rows: int
    default: RecallPoint
    points: tuple[RecallPoint, ...]

    def plot(self, path: str | Path) -> None:
        """Draws recall against latency, one line for `ef_search` and one for `nprobe`.

        Args:
            path: the picture, PNG, SVG or PDF by its suffix.

        Raises:
            InvalidConfigError: matplotlib, which the extra `plot` brings, is not installed.
            InvalidInputError: the suffix is that of no picture.
        """
        from fabstir_vectordb.plot import draw_recall

        draw_recall(self, Path(path))


@dataclass(frozen=True, slots=True)
class IndexSide:
    """One side of the index: the recent rows, or the historical ones.

    Attributes:
        index_type: ``flat`` or ``hnsw`` for recent rows, ``ivf`` for historical ones.
        vector_count: live rows.
        deleted_count: tombstones.
        list_count: lists; 0 for recent rows.
        ids: of the live rows, in the order of their slots.
    """

    index_type: Literal["flat", "hnsw", "ivf"]
    vector_count: int
    deleted_count: int
    list_count: int
    ids: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class OptimizeProgress:
    """How far an `optimize` has come.

    Attributes:
        stage: ``train``, ``migrate`` or ``vacuum``.
        rows_done, rows_total: rows looked at in this stage, and in all.
    """

    stage: Literal["train", "migrate", "vacuum"]
    rows_done: int
    rows_total: int


@dataclass(frozen=True, slots=True)
class OptimizeResult:
    """What an `optimize` did.

    Attributes:
        trained: whether lists were trained, for the first time or anew.
        migrated: rows that moved from the recent to the historical side.
        vacuum: what the vacuum removed.
    """

    trained: bool
    migrated: int
    vacuum: VacuumStats


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """How to search.

    Attributes:
        threshold: least score of a hit; UNSET takes the session's default, None drops nothing.
        include_vectors: fill `SearchResult.vector`.
        ef_search: candidates of the walk; more is slower and finds more. None lets the library choose.
        exact: score every row exactly, as ``plan="flat"`` then says; not together with `ef_search`.
        recall_target: instead of `ef_search` or `exact`, the expected share of the k nearest rows that is found, above
            0, at most 1. It takes the candidates that were enough for the index's own rows, or scores every row where
            no number of them is known to be: an average over queries like the rows, no promise for one of them. None
            takes the session's default.
        nprobe: lists of historical rows to look at, together with `ef_search` or without; no more than there are. None
            takes as many as held 99 % of the nearest rows when they were trained.
        filter: only rows whose metadata it takes: a dict of fields, in the manner of MongoDB; k of them come whenever
            there are k. None takes all rows.
        mmr: choose hits that also differ from each other, by maximal marginal relevance (Carbonell & Goldstein 1998):
            from 1, by nearness alone, to 0, by difference alone. They are chosen from the 4 k nearest rows, at least
            k + 32, that pass the threshold, and come in the order in which they are chosen; k is at most 1,000. None
            returns the nearest.
    """

    threshold: float | Unset | None = UNSET
    include_vectors: bool = False
    ef_search: int | None = None
    exact: bool = False
    recall_target: float | None = None
    filter: Mapping[str, Any] | None = None
    nprobe: int | None = None
    mmr: float | None = None


class SearchFields(TypedDict, total=False):
    """The fields of SearchOptions as keyword arguments."""

    threshold: float | Unset | None
    include_vectors: bool
    ef_search: int | None
    exact: bool
    recall_target: float | None
    filter: Mapping[str, Any] | None
    nprobe: int | None
    mmr: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How to load.

    Attributes:
        lazy_load: fetch what a first search needs, and the rest when it is needed; a small version comes as a whole.
            False fetches everything before the call returns.
        missing_ok: where no version was ever saved, start empty instead of raising.
        memory_budget_mb: another budget from this load on, in 10^6 bytes.
        discard_unsaved: drop unsaved changes instead of raising CONFLICT.
        progress: called after every part.
    """

    lazy_load: bool = True
    missing_ok: bool = False
    memory_budget_mb: int | None = None
    discard_unsaved: bool = False
    progress: ProgressCallback | None = None


class LoadFields(TypedDict, total=False):
    """The fields of LoadOptions as keyword arguments."""

    lazy_load: bool
    missing_ok: bool
    memory_budget_mb: int | None
    discard_unsaved: bool
    progress: ProgressCallback | None


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionInfo:
    """One saved version.

    Attributes:
        cid: opens it.
        saved_at: seconds since 1970, by the clock of the session that saved it.
        revision: the pointer's revision that named it; of a refused version, the one it lost against.
        vector_count: live rows, or None where only the pointer was known.
        deleted_count: tombstones, or None likewise.
        refused: stored, but never the newest, because another version came between.
    """

    cid: str
    saved_at: float
    revision: int
    vector_count: int | None
    deleted_count: int | None
    refused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneReport:
    """What `prune_history` takes away, or would.

    Attributes:
        versions: versions that go, newest first.
        blobs: stored objects that only those versions name.
        bytes: their size as stored.
        blobs_deleted: how many of them the store says it has deleted; 0 in a dry run.
    """

    versions: list[VersionInfo]
    blobs: int
    bytes: int
    blobs_deleted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What `verify` read and found whole.

    Attributes:
        cid: the version.
        parts: parts read.
        bytes: bytes read, as stored.
        rows: rows of the index, tombstones included.
    """

    cid: str
    parts: int
    bytes: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationPoint:
    """What a recall takes, as measured on the index's own rows.

    Attributes:
        k: hits asked for.
        recall: expected share of the k truly nearest rows that are found.
        ef_search: the candidates that a `recall_target` of it takes; None where no number of them is known to be
            enough, and every row is scored.
    """

    k: int
    recall: float
    ef_search: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStats:
    """Measured state of a session.

    Attributes:
        vector_count: live rows; those that have expired are deleted ones, but still counted where they are found.
        memory_usage_mb: resident memory of the index and its metadata, in 10^6 bytes.
        index_type: ``flat`` while every search scans, ``hnsw`` once there is a graph, ``ivf`` where all rows that are
            not scanned are on lists, ``hybrid`` with both.
        hnsw_vector_count: live rows that are found through the graph.
        ivf_vector_count: live rows on lists.
        deleted_count: tombstones that a vacuum would remove.
        without_vector_count: live rows that have no vector; they are among `vector_count`.
        memory_bytes: resident bytes by kind.
        plans: searches so far by plan.
        recall_calibration: the candidates that a `recall_target` takes, for some k and recalls, as measured on the
            index's own rows; empty before that was done, and where there is no graph: every search is exact, then.
        dirty: whether there are changes that no version holds.
        last_cid: the version loaded or saved last, or None.
    """

    vector_count: int
    memory_usage_mb: float
    index_type: Literal["flat", "hnsw", "ivf", "hybrid"]
    hnsw_vector_count: int
    ivf_vector_count: int
    deleted_count: int
    without_vector_count: int
    memory_bytes: Mapping[str, int]
    plans: Mapping[str, int]
    recall_calibration: tuple[CalibrationPoint, ...]
    dirty: bool
    last_cid: str | None

"""Inputs and results: plain, small and immutable.

Results have `to_dict()`, which is ready for JSON, and show themselves in a notebook. They compare by value. Rows, hits,
answers and inputs have a hash; a report that holds a list or a dict has none.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import FrozenInstanceError, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, SupportsIndex, overload

import numpy as np
import numpy.typing as npt

from fabstir_vectordb.arrow import data_frame, results_table
from fabstir_vectordb.config import Tier
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.display import Record, html_record, html_table, json_ready, short
from fabstir_vectordb.embedding import EmbedderInfo
from fabstir_vectordb.metadata.values import decode_metadata
from fabstir_vectordb.plot import draw_recall

__all__ = [
    "AddResult",
    "AddTextsResult",
    "CalibrationPoint",
    "DefaultSearch",
    "DeleteResult",
    "FacetCount",
    "FieldInfo",
    "FieldType",
    "FusedResult",
    "Highlight",
    "IndexSide",
    "OptimizeProgress",
    "OptimizeResult",
    "Plan",
    "Progress",
    "ProgressCallback",
    "PruneReport",
    "RecallPoint",
    "RecallReport",
    "Receipt",
    "RerankedResult",
    "Row",
    "ScanPage",
    "SearchGroup",
    "SearchResult",
    "SearchResults",
    "SessionStats",
    "UpdateResult",
    "VacuumStats",
    "VectorInput",
    "VerifyReport",
    "VersionInfo",
]

Vector = npt.NDArray[np.float32]
DefaultSearch = Literal["usual", "wider", "exact", "unknown"]
Plan = Literal[
    "flat",
    "graph",
    "lists",
    "hybrid",
    "filtered exact",
    "lazy",
    "grouped",
    "words",
    "flat + words",
    "graph + words",
    "lists + words",
    "hybrid + words",
    "filtered exact + words",
    "lazy + words",
]


def _same(one: Any, other: Any) -> bool:
    """Whether two values are equal. Arrays are equal where all of their numbers are."""
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return one is not None and other is not None and np.array_equal(one, other)
    try:
        return bool(one == other)
    except ValueError:  # an array inside a value: metadata holds none, but a hit made by hand may
        return bool(json_ready(one) == json_ready(other))


@dataclass(frozen=True, slots=True, eq=False)
class VectorInput:
    """A row to add.

    Attributes:
        id: any non-empty string of at most 1 KiB of UTF-8.
        vector: dim numbers, kept as float32; None for a row that no search finds.
        metadata: any JSON-shaped value of at most 1 MiB, with dates, aware datetimes and UUIDs as further values, or
            None for none.
        timestamp: seconds since 1970 or an aware datetime; None for now.
        expires_at: when the row leaves all answers, in the forms of `timestamp`; None for never.
    """

    id: str
    vector: Any = field(repr=False)
    metadata: Any = None
    timestamp: float | datetime | None = None
    expires_at: float | datetime | None = None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, VectorInput):
            return NotImplemented
        return all(_same(getattr(self, one.name), getattr(other, one.name)) for one in fields(VectorInput))

    def __hash__(self) -> int:
        return hash((self.id, self.timestamp))


@dataclass(frozen=True, slots=True)
class AddResult(Record):
    """How many rows an add added, replaced and skipped.

    Attributes:
        added: rows whose id was not live before.
        replaced: rows that took the place of a live row with the same id.
        skipped: items that were left out: their id was live, or occurs elsewhere in the call.
    """

    added: int
    replaced: int
    skipped: int


@dataclass(frozen=True, slots=True)
class AddTextsResult(AddResult):
    """What `add_texts` did.

    Attributes:
        ids: the id of each text, in the order of the texts; of a text that was skipped, too.
    """

    ids: list[str]


@dataclass(frozen=True, slots=True)
class DeleteResult(Record):
    """Which rows a delete deleted.

    Attributes:
        deleted_count: number of rows.
        deleted_ids: their ids.
    """

    deleted_count: int
    deleted_ids: list[str]

    def __repr__(self) -> str:
        return f"DeleteResult(deleted_count={self.deleted_count}, deleted_ids={short(self.deleted_ids)})"


@dataclass(frozen=True, slots=True)
class UpdateResult(Record):
    """Which rows an update by filter changed.

    Attributes:
        matched_count: rows that matched the filter.
        updated_count: those of them whose metadata is another now.
        updated_ids: their ids.
    """

    matched_count: int
    updated_count: int
    updated_ids: list[str]

    def __repr__(self) -> str:
        counts = f"matched_count={self.matched_count}, updated_count={self.updated_count}"
        return f"UpdateResult({counts}, updated_ids={short(self.updated_ids)})"


@dataclass(frozen=True, slots=True)
class FacetCount(Record):
    """A distinct value of a metadata field, and how many rows have it.

    Attributes:
        value: the value, in the type in which metadata returns it.
        count: number of rows that have it.
    """

    value: Any
    count: int


@dataclass(frozen=True, slots=True)
class FieldType(Record):
    """A type of values that a metadata field has.

    Attributes:
        type: ``null``, ``boolean``, ``number``, ``string``, ``date``, ``datetime``, ``uuid``, ``array`` or ``object``.
        count: number of rows that have such a value there, or in a list there.
        minimum, maximum: the least and the largest value, for numbers, strings, dates and datetimes; else None.
    """

    type: str
    count: int
    minimum: Any
    maximum: Any


@dataclass(frozen=True, slots=True)
class FieldInfo(Record):
    """A metadata field that rows have.

    Attributes:
        path: the field, as filters name it; keys that need quotes have them.
        count: number of rows that have it, null included.
        types: its types, the most frequent first; of a list the types of its values, too.
    """

    path: str
    count: int
    types: tuple[FieldType, ...]


@dataclass(frozen=True, slots=True)
class VacuumStats(Record):
    """How many rows a vacuum removed for good.

    Attributes:
        hnsw_removed: rows removed from the graph.
        ivf_removed: rows removed from lists.
        total_removed: all rows removed, those in neither included.
    """

    hnsw_removed: int
    ivf_removed: int
    total_removed: int


class _Fields:
    """Base of rows and hits: fields that compare by value, read as a mapping, and convert to a dict.

    Rows and hits are no dataclasses: tools that serialise the fields of a dataclass, such as FastAPI, fail at the array
    of a vector. `dict(hit)` is ready for JSON.
    """

    __slots__ = ()
    __match_args__: tuple[str, ...] = ()
    # Without this Python would iterate by calling `__getitem__` with 0, 1, ….
    __iter__ = None

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON: the vector as a list or None, dates as ISO strings, UUIDs as text."""
        return {name: json_ready(getattr(self, name)) for name in self.__match_args__}

    def keys(self) -> list[str]:
        """The names of the fields."""
        return list(self.__match_args__)

    def __getitem__(self, name: str) -> Any:
        """A field as `to_dict` gives it."""
        if name not in self.__match_args__:
            raise KeyError(name)
        return json_ready(getattr(self, name))

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(_same(getattr(self, name), getattr(other, name)) for name in self.__match_args__)

    @abstractmethod
    def __hash__(self) -> int:
        """Of the fields that have a hash: vectors and metadata have none."""

    def _repr_html_(self) -> str:
        return html_record(type(self).__name__, self.to_dict())


class Row(_Fields):
    """A stored row, immutable; it compares by value, and its hash is that of its id and timestamp.

    Attributes:
        id: the row's id.
        vector: dim float32, bit for bit as added; None for a row without.
        metadata: as added, or None.
        timestamp: seconds since 1970.
        expires_at: when the row leaves all answers, seconds since 1970; None for never.
    """

    __slots__ = __match_args__ = ("id", "vector", "metadata", "timestamp", "expires_at")

    id: str
    vector: Vector | None
    metadata: Any
    timestamp: float
    expires_at: float | None

    def __init__(
        self, id: str, vector: Vector | None, metadata: Any, timestamp: float, expires_at: float | None = None
    ) -> None:
        put = object.__setattr__
        put(self, "id", id)
        put(self, "vector", vector)
        put(self, "metadata", metadata)
        put(self, "timestamp", timestamp)
        put(self, "expires_at", expires_at)

    def __setattr__(self, name: str, value: object) -> None:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        return Row, (self.id, self.vector, self.metadata, self.timestamp, self.expires_at)

    def __hash__(self) -> int:
        return hash((self.id, self.timestamp))

    def __repr__(self) -> str:
        vector = "None" if self.vector is None else f"<{len(self.vector)} numbers>"
        times = f"timestamp={self.timestamp!r}, expires_at={self.expires_at!r}"
        return f"Row(id={self.id!r}, vector={vector}, metadata={short(self.metadata)}, {times})"


@dataclass(frozen=True, slots=True)
class ScanPage(Record):
    """One page of `scan_page`.

    Attributes:
        rows: the rows, in the order of insertion.
        cursor: the place after these rows: a string that any session with the same rows takes, now or later. Without
            rows it is the cursor that was given.
        has_more: whether rows followed when the page was read.
    """

    rows: tuple[Row, ...]
    cursor: str | None
    has_more: bool


class Highlight(NamedTuple):
    """A place where a text of a hit has words of the query.

    Attributes:
        field: path of the field.
        item: which of the field's strings, from 0; 0 where it is no list.
        start, end: ``text[start:end]`` is the place.
    """

    field: str
    item: int
    start: int
    end: int


class SearchResult(_Fields):
    """One hit; it compares by value, and its hash is that of its id, score and distance.

    Attributes:
        id: the row's id.
        score: in [0, 1], larger is nearer; sets the order of a search with text.
        distance: cosine distance, Euclidean distance or negative inner product; sets the order of a search without
            text. In a search with text, None for a hit that is no candidate of the vector.
        metadata: as added, or None; decoded at first use.
        vector: dim float32 bit for bit as added, where the search asked for vectors; else None.
    """

    __slots__ = ("_metadata", "distance", "id", "score", "vector")
    __match_args__ = ("id", "score", "distance", "metadata", "vector")

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
        if type(metadata) is bytearray:  # stored bytes, empty for None; no metadata value is a bytearray
            metadata = self._metadata = decode_metadata(metadata) if metadata else None
        return metadata

    @property
    def rerank_score(self) -> float | None:
        """The score that the function `rerank` gave; None for a search without."""
        return None

    @property
    def vector_score(self) -> float | None:
        """The score by vector; in a search with text, None for a hit that is no candidate of the vector."""
        return self.score

    @property
    def text_score(self) -> float | None:
        """The score by words, raw BM25; None for a row that the text does not match, and without text."""
        return None

    @property
    def vector_rank(self) -> int | None:
        """In a search with text, the place among the candidates of the vector, from 1; else None."""
        return None

    @property
    def text_rank(self) -> int | None:
        """In a search with text, the place among the candidates of the words, from 1; else None."""
        return None

    @property
    def highlights(self) -> list[Highlight] | None:
        """The places of its texts that have words of the query, where a search with text asked for them; else None."""
        return None

    def __repr__(self) -> str:
        return f"SearchResult(id={self.id!r}, score={self.score:.4f}, distance={self.distance:.4f})"

    def __hash__(self) -> int:
        return hash((self.id, self.score, self.distance))


class RerankedResult(SearchResult):
    """A hit of a search with `rerank`.

    Attributes:
        id, score, distance, metadata, vector: as in SearchResult; they do not set the order.
        vector_score, text_score, vector_rank, text_rank: those of the candidate.
        rerank_score: the score that the function gave; larger comes first.
    """

    __slots__ = ("_hit", "_rerank_score")
    __match_args__ = (*SearchResult.__match_args__, "rerank_score")

    def __init__(self, hit: SearchResult, rerank_score: float) -> None:
        super().__init__(hit.id, hit.score, hit.distance, hit._metadata, hit.vector)
        self._hit = hit
        self._rerank_score = rerank_score

    @property
    def vector_score(self) -> float | None:
        """The score by vector of the candidate."""
        return self._hit.vector_score

    @property
    def text_score(self) -> float | None:
        """The score by words of the candidate."""
        return self._hit.text_score

    @property
    def vector_rank(self) -> int | None:
        """The place of the candidate among those of the vector, in a search with text."""
        return self._hit.vector_rank

    @property
    def text_rank(self) -> int | None:
        """The place of the candidate among those of the words, in a search with text."""
        return self._hit.text_rank

    @property
    def highlights(self) -> list[Highlight] | None:
        """The places of words in the candidate, where a search with text asked for them."""
        return self._hit.highlights

    @property
    def rerank_score(self) -> float:
        """The score that the function gave."""
        return self._rerank_score

    def __repr__(self) -> str:
        scores = f"score={self.score:.4f}, distance={_rounded(self.distance)}, rerank_score={self.rerank_score:.4f}"
        return f"RerankedResult(id={self.id!r}, {scores})"

    __hash__ = SearchResult.__hash__


class FusedResult(SearchResult):
    """One hit of a search with text: a SearchResult that also says what each side gave.

    Attributes:
        vector_score: the score by vector, None for a hit that is no candidate of the vector.
        text_score: raw BM25, None for a row that the text does not match.
        vector_rank, text_rank: places among the candidates of each side, from 1; None for no candidate.
        highlights: the places of its texts that have words of the query, where the search asked for them; else None.
    """

    __slots__ = ("_highlights", "_ranks", "_text_score", "_vector_score")
    __match_args__ = (
        *SearchResult.__match_args__,
        *("vector_score", "text_score", "vector_rank", "text_rank", "highlights"),
    )

    def __init__(
        self,
        id: str,
        score: float,
        distance: float | None,
        vector_score: float | None,
        text_score: float | None,
        text_rank: int | None,
        vector_rank: int | None,
        metadata: Any = None,
        vector: Vector | None = None,
    ) -> None:
        # Searches without text, most of all searches, always have a distance: its type says so.
        super().__init__(id, score, distance, metadata, vector)  # type: ignore[arg-type]
        self._vector_score = vector_score
        self._text_score = text_score
        self._ranks = vector_rank, text_rank
        self._highlights: list[Highlight] | None = None

    def describe(self, metadata: Any, highlights: list[Highlight] | None) -> None:
        """Sets what is read after the hits are chosen.

        Args:
            metadata: the value, or its stored bytes as a bytearray, which are decoded at first use.
            highlights: places of words, or None.
        """
        self._metadata = metadata
        self._highlights = highlights

    @property
    def highlights(self) -> list[Highlight] | None:
        """The places of its texts that have words of the query, where the search asked for them; else None."""
        return self._highlights

    @property
    def vector_score(self) -> float | None:
        """The score by vector; None for a hit that is no candidate of the vector."""
        return self._vector_score

    @property
    def text_score(self) -> float | None:
        """The score by words, raw BM25; None for a row that the text does not match."""
        return self._text_score

    @property
    def vector_rank(self) -> int | None:
        """The place among the candidates of the vector, from 1; None for no candidate."""
        return self._ranks[0]

    @property
    def text_rank(self) -> int | None:
        """The place among the candidates of the words, from 1; None for no candidate."""
        return self._ranks[1]

    def __repr__(self) -> str:
        sides = f"vector_score={_rounded(self.vector_score)}, text_score={_rounded(self.text_score)}"
        return f"FusedResult(id={self.id!r}, score={self.score:.4f}, {sides})"

    __hash__ = SearchResult.__hash__


def _rounded(number: float | None) -> str:
    return "None" if number is None else f"{number:.4f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt(Record):
    """What an answer fetched from the store.

    Attributes:
        requests: requests for parts.
        bytes: bytes fetched, as stored.
        cache_hits: parts that were in memory already.
    """

    requests: int = 0
    bytes: int = 0
    cache_hits: int = 0


NOTHING_FETCHED = Receipt()
"""The receipt of an answer from memory alone."""


@dataclass(frozen=True, slots=True)
class SearchGroup(Record):
    """A group of hits: the best rows with one value of the field `group_by`.

    Attributes:
        value: the value.
        hits: its hits, nearest first.
    """

    value: Any
    hits: tuple[SearchResult, ...]


class SearchResults(tuple[SearchResult, ...]):
    """The hits of one query, nearest first; with `mmr`, in the order in which they were chosen; with `rerank`, in the
    order of its scores.

    With `group_by`, the hits of a group follow each other; the group with the nearest hit comes first.

    A tuple; a slice of it is a list of hits. Two answers are equal where their hits and `below_threshold` are equal.

    Attributes:
        below_threshold: how many of the k nearest rows the threshold removed.
        plan: how the search went. ``flat``: exactly, no row is nearer than those returned. ``graph``: a walk over the
            graph on codes, then exact scores of the best candidates. ``lists``: a scan of lists of historical rows on
            codes (and of recent rows, while they are few). ``hybrid``: both. ``filtered exact``: a scan of every row
            that matches the filter. ``lazy``: exact scores of the rows of the most promising parts. ``grouped``: more
            than one search, as the first did not find enough groups, or not enough hits of each. ``words``: by words
            alone; ``graph + words`` and others: by vector, in that way, and by words.
        receipt: what the answer fetched from the store; nothing once the whole index is in memory.
        groups: the hits by group, where the search had `group_by`; else none.
    """

    # An answer has none of its own that is as here: the first one would make a dict.
    below_threshold: int = 0
    plan: Plan = "graph"
    receipt: Receipt = NOTHING_FETCHED
    groups: tuple[SearchGroup, ...] = ()

    def __new__(cls, hits: Iterable[SearchResult], below_threshold: int, plan: Plan) -> Self:
        self = tuple.__new__(cls, hits)
        self.below_threshold = below_threshold
        self.plan = plan
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        hits: tuple[Any, ...] = tuple(self)
        if all(type(hit) is SearchResult for hit in hits):  # as columns, which take a fraction of the time
            columns = zip(*[(hit.id, hit.score, hit.distance, hit._metadata, hit.vector) for hit in hits], strict=True)
            return _of_columns, (type(self), tuple(columns), self.below_threshold, self.plan), self.__dict__
        return type(self), (hits, self.below_threshold, self.plan), self.__dict__

    def __copy__(self) -> Self:
        """The same hits: `__reduce__` is for another process."""
        found = type(self)(self, self.below_threshold, self.plan)
        found.__dict__.update(self.__dict__)
        return found

    @overload  # type: ignore[override]
    def __getitem__(self, position: SupportsIndex) -> SearchResult: ...
    @overload
    def __getitem__(self, position: slice) -> list[SearchResult]: ...
    def __getitem__(self, position: Any) -> Any:
        found = super().__getitem__(position)
        return list(found) if isinstance(position, slice) else found

    @property
    def ids(self) -> list[str]:
        """The ids of the hits, in their order."""
        return [hit.id for hit in self]

    def to_dicts(self) -> list[dict[str, Any]]:
        """The hits as dicts, ready for JSON or a data frame."""
        return [hit.to_dict() for hit in self]

    def to_arrow(self) -> Any:
        """The hits as a pyarrow Table: id, score, distance, vector where there are vectors, and each metadata field.

        A field has the type that its values share, or is JSON text where no type holds them all.

        Raises:
            InvalidConfigError: pyarrow, which the extra `arrow` brings, is not installed.
        """
        return results_table(self)

    def to_pandas(self) -> Any:
        """The hits as a pandas DataFrame, with the columns of `to_arrow`.

        Raises:
            InvalidConfigError: pyarrow or pandas is not installed.
        """
        return data_frame(results_table(self))

    def to_dict(self) -> dict[str, Any]:
        """The hits and how they were found, ready for JSON."""
        groups = {"groups": [{"value": one.value, "ids": [hit.id for hit in one.hits]} for one in self.groups]}
        return {
            "hits": self.to_dicts(),
            **(json_ready(groups) if self.groups else {}),
            "below_threshold": self.below_threshold,
            "plan": self.plan,
            "receipt": self.receipt.to_dict(),
        }

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SearchResults):
            return NotImplemented
        return self.below_threshold == other.below_threshold and tuple.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        equal = self.__eq__(other)
        return equal if equal is NotImplemented else not equal

    __hash__ = tuple.__hash__

    def __repr__(self) -> str:
        shown = [repr(hit) for hit in self[:_HITS_SHOWN]]
        if len(self) > _HITS_SHOWN:
            shown.append(f"… {len(self) - _HITS_SHOWN} more")
        return f"SearchResults([{', '.join(shown)}], below_threshold={self.below_threshold}, plan={self.plan!r})"

    def _repr_html_(self) -> str:
        rows = (
            [place, hit.id, f"{hit.score:.4f}", _rounded(hit.distance), hit.metadata] for place, hit in enumerate(self)
        )
        caption = f"{len(self)} hits, {self.below_threshold} below the threshold, plan {self.plan}"
        return html_table(caption, ["", "id", "score", "distance", "metadata"], rows, len(self))


def _of_columns(
    kind: type[SearchResults], columns: tuple[tuple[Any, ...], ...], below_threshold: int, plan: Plan
) -> SearchResults:
    return kind(map(SearchResult, *columns) if columns else (), below_threshold, plan)


#: Hits that the repr of an answer shows.
_HITS_SHOWN = 3


def results_of(hits: Iterable[SearchResult], below_threshold: int, plan: Plan) -> SearchResults:
    """`SearchResults(hits, below_threshold, plan)` in half of the time: each search makes one."""
    results = tuple.__new__(SearchResults, hits)
    if below_threshold:
        results.below_threshold = below_threshold
    if plan != SearchResults.plan:
        results.plan = plan
    return results


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallPoint(Record):
    """Recall and speed of one setting.

    Attributes:
        ef_search, nprobe: the setting; None for the default.
        exact: whether every row was scored.
        recall: mean share of the k nearest rows that were found.
        p50_us, p99_us: median and 99th percentile of the time of one search in the native core, in microseconds.
        queries_per_s: the same searches, one after the other.
    """

    ef_search: int | None
    nprobe: int | None
    exact: bool
    recall: float
    p50_us: float
    p99_us: float
    queries_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallReport(Record):
    """Recall and speed of searches, measured on the index's own rows.

    Attributes:
        k: neighbours asked for.
        sample: rows that were used as queries.
        rows: rows that searches can return.
        default: a search that names no setting, with the session's `recall_target` where it has one.
        points: values of `ef_search` for the graph and of `nprobe` for lists, each with the other at its default; the
            exact search comes last.
    """

    k: int
    sample: int
    rows: int
    default: RecallPoint
    points: tuple[RecallPoint, ...]

    def plot(self, path: str | Path) -> None:
        """Draws recall against latency, one line for `ef_search` and one for `nprobe`.

        Args:
            path: the file to write; its suffix, ``.png``, ``.svg`` or ``.pdf``, sets the format.

        Raises:
            InvalidConfigError: matplotlib, which the extra `plot` brings, is not installed.
            InvalidInputError: the suffix is not one of these.
        """
        draw_recall(self, Path(path))


@dataclass(frozen=True, slots=True)
class IndexSide(Record):
    """One side of the index: the recent rows, or the historical ones.

    Attributes:
        index_type: ``flat`` or ``hnsw`` for recent rows, ``ivf`` for historical ones.
        vector_count: live rows.
        deleted_count: tombstones.
        list_count: number of lists; 0 for recent rows.
        ids: ids of the live rows, in the order of their slots.
    """

    index_type: Literal["flat", "hnsw", "ivf"]
    vector_count: int
    deleted_count: int
    list_count: int
    ids: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Progress(Record):
    """How far a save, load or verification has come.

    Attributes:
        stage: ``parts``, ``index`` (a load builds its codes) or ``pointer``.
        parts_done, parts_total: parts finished, and in all.
        bytes_done, bytes_total: the same in bytes before compression.
        rows_done, rows_total: the same in rows. A row is spread over many parts, so `rows_done` is estimated from the
            share of bytes.
        eta_s: estimated seconds until the last part, at the speed so far; None before the first part.
    """

    stage: str
    parts_done: int
    parts_total: int
    bytes_done: int
    bytes_total: int
    rows_done: int
    rows_total: int
    eta_s: float | None


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class OptimizeProgress(Record):
    """How far an `optimize` has come.

    Attributes:
        stage: ``train``, ``migrate`` or ``vacuum``.
        rows_done, rows_total: rows processed in this stage, and in all.
    """

    stage: Literal["train", "migrate", "vacuum"]
    rows_done: int
    rows_total: int


@dataclass(frozen=True, slots=True)
class OptimizeResult(Record):
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
class VersionInfo(Record):
    """One saved version.

    Attributes:
        cid: its CID, for `load_user_vectors`.
        saved_at: seconds since 1970, by the clock of the session that saved it.
        revision: revision of the pointer that named it; for a refused version, the revision it lost against.
        vector_count: live rows, or None where only the pointer is known.
        deleted_count: tombstones, or None where only the pointer is known.
        refused: whether it was stored but never became the newest, because another session saved in between.
        head: whether it is the newest version, which `load_user_vectors()` loads.
    """

    cid: str
    saved_at: float
    revision: int
    vector_count: int | None
    deleted_count: int | None
    refused: bool
    head: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneReport(Record):
    """What `prune_history` removes, or would remove.

    Attributes:
        versions: versions that go, newest first.
        blobs: number of stored objects that only those versions use.
        bytes: size of these objects, as stored.
        blobs_deleted: how many of these objects the store reports as deleted; 0 in a dry run.
    """

    versions: list[VersionInfo]
    blobs: int
    bytes: int
    blobs_deleted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport(Record):
    """What `verify` read and found undamaged.

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
class CalibrationPoint(Record):
    """How many candidates a recall takes, as measured on the index's own rows.

    Attributes:
        k: hits asked for.
        recall: expected share of the k nearest rows that are found.
        ef_search: candidates of a search with this `recall_target`; None where no number is known to be enough, and
            the search scores every row.
    """

    k: int
    recall: float
    ef_search: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStats(Record):
    """Measured state of a session.

    Attributes:
        vector_count: live rows, without those that have expired.
        memory_usage_mb: resident memory of the index and its metadata, in 10^6 bytes.
        index_type: ``flat`` while every search scans, ``hnsw`` with a graph, ``ivf`` with lists, ``hybrid`` with both.
        hnsw_vector_count: live rows in the graph. This count and the next also have rows that have expired, until a
            change deletes them.
        ivf_vector_count: live rows on lists.
        deleted_count: tombstones that a vacuum would remove, expired rows included.
        without_vector_count: live rows that have no vector; they are included in `vector_count`.
        memory: the memory setting that the index has: what ``auto`` is at present, else the setting itself.
        memory_bytes: resident bytes by kind.
        plans: number of searches so far by plan.
        default_search: how a search for up to ten rows that names no setting goes, as measured on the index's own rows
            (one for more rows is measured apart, and may have to score every row where this one need not): ``usual``
            where the usual number of candidates, or fewer, finds 0.95 of the nearest rows, ``wider`` where it takes
            more candidates, ``exact`` where it scores every row. ``unknown`` while the index is lazily loaded, and
            until the first search after a load or a training of lists, which measures it.
        recall_calibration: candidates of a `recall_target`, for some k and recalls, as measured on the index's own
            rows. Empty before the first measurement, and where there is no graph.
        dirty: whether the session has changes that no version holds.
        last_cid: the version loaded or saved last, or None.
        superseded_bytes: about how many bytes, before compression, of deleted, replaced and expired rows and of
            replaced metadata that version holds; 0 after a `vacuum` and a save.
        embedder: name and dimension of the embedder of the index's texts; None where `add_texts` added none.
    """

    vector_count: int
    memory_usage_mb: float
    index_type: Literal["flat", "hnsw", "ivf", "hybrid"]
    hnsw_vector_count: int
    ivf_vector_count: int
    deleted_count: int
    without_vector_count: int
    memory: Tier
    memory_bytes: Mapping[str, int]
    plans: Mapping[str, int]
    recall_calibration: tuple[CalibrationPoint, ...]
    default_search: DefaultSearch
    dirty: bool
    last_cid: str | None
    superseded_bytes: int
    embedder: EmbedderInfo | None

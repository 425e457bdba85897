"""Rows and their metadata: everything a session does without I/O, synchronous and safe to call from threads.

Changes run one at a time under `_write`. A reader first tries without that lock: a generation counter is odd while a
change runs and another number afterwards, so the reader knows when it met one (a seqlock). In the end it reads under
the lock: however many changes come one after the other, it is not put off again. So slots, ids and metadata of
one reader never come from two different numberings, and a search that meets no change takes no lock of Python's.
`close` waits for the calls that are inside, since they use native memory.

A change takes from the system what it needs before it calls the native core; what follows that call cannot fail.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice, repeat
from operator import itemgetter
from typing import Any, Final, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.handle import (
    DIM_MAX,
    EF_MAX,
    ID_BYTES_MAX,
    K_MAX,
    LISTS_MAX,
    NO_SLOT,
    PLAN_FLAT,
    PLAN_GRAPH,
    PLAN_HYBRID,
    PLAN_LISTS,
    Control,
    NativeBusy,
    NativeCancelled,
    NativeIndex,
    NativeStats,
    NativeTooFew,
    pack_ids,
)
from fabstir_vectordb.budget import Forecast, kept_bytes, reserve_bytes
from fabstir_vectordb.calibration import Calibration, calibrate, missed_by_code
from fabstir_vectordb.config import Memory, Metric, Unset
from fabstir_vectordb.errors import (
    ConflictError,
    IndexStateError,
    IntegrityError,
    InvalidInputError,
    MemoryBudgetExceededError,
    NotFoundError,
)
from fabstir_vectordb.metadata.arena import MetadataArena, Staged, decode_metadata, encode_metadata
from fabstir_vectordb.metadata.changes import StoredPages, encode_changes, parse_changes
from fabstir_vectordb.metadata.columns import Column, Columns
from fabstir_vectordb.metadata.expiry import NEVER_US, NOTHING, Expiries, Hidden, Times, parse_expiry_page
from fabstir_vectordb.metadata.filter_eval import bitmap, bitmap_of, evaluate, slots_of
from fabstir_vectordb.metadata.filter_parse import EVERYTHING, Filter
from fabstir_vectordb.metadata.schema import Schema
from fabstir_vectordb.persist.load import LoadedVersion
from fabstir_vectordb.persist.versions import now_us
from fabstir_vectordb.recall import NO_RECALL, measure_recall
from fabstir_vectordb.types import (
    AddResult,
    CalibrationPoint,
    DeleteResult,
    FacetCount,
    IndexSide,
    Plan,
    RecallReport,
    Row,
    SearchResult,
    SearchResults,
    VacuumStats,
)

__all__ = [
    "Batch",
    "Cursor",
    "Index",
    "IndexClosed",
    "IndexSettings",
    "Matches",
    "check_ef",
    "check_exact",
    "check_k",
    "check_nprobe",
    "prepare_batch",
    "prepare_queries",
    "prepare_query",
]

OnConflict = Literal["error", "replace", "skip"]
_ON_CONFLICT: Final = ("error", "replace", "skip")
_FLOAT32: Final = np.dtype(np.float32)
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
#: Rows of the graph from which on their order is worth making.
ARRANGED_ROWS_MIN: Final = 4_096
_NO_STATS: Final = NativeStats(*[0] * len(NativeStats._fields))
#: What half of a change can look like to a reader: such an error is believed only when there was no change.
_HALF_CHANGED: Final = (IndexError, ValueError, NotFoundError)
#: Offset and size of a row's metadata, with the arena's room for growth.
_TABLE_BYTES_PER_ROW: Final = 14
#: An object of bytes beside what it holds, and its place in a list.
_BYTES_OBJECT: Final = 48
#: Numbers that are made of each row while slots change: the order, the map, and what is looked up with them.
_RENUMBERING_BYTES_PER_ROW: Final = 48
#: The time when a row expires, in a draft.
_EXPIRY_BYTES_PER_ROW: Final = 8
#: Slot and distance of a row that is streamed, twice while they are brought in order, and that order.
_STREAM_BYTES_PER_ROW: Final = 32
#: Pairs of k and recall target that are remembered: a program uses a few.
_EFFORTS_MAX: Final = 1_000
#: The last recall of the table of lists.
_LISTS_RECALL_MOST: Final = 0.999
_PLANS: Final[dict[int, Plan]] = {PLAN_FLAT: "flat", PLAN_GRAPH: "graph", PLAN_LISTS: "lists", PLAN_HYBRID: "hybrid"}
_FILTERED_PLANS: Final[dict[int, Plan]] = {**_PLANS, PLAN_FLAT: "filtered exact"}
#: Bytes of bitmaps, and of the filters they belong to, that are remembered until the next change: those of 600 filters
#: over 100,000 rows, of six over ten million.
_MATCHES_BYTES_MAX: Final = 8_000_000
_T = TypeVar("_T")
#: ef_search, exact and nprobe.
Effort = tuple[int, bool, int]


class IndexClosed(Exception):
    """The index was closed: its session was destroyed, or loaded another one in its place."""


class Cursor:
    """Where a scan stands; a vacuum moves it along with the rows.

    Attributes:
        next, end: the slots that are still to come.
        slots: slots in the order of the scan, of which `next` and `end` are then places; None while no vacuum has come
            between.
    """

    __slots__ = ("__weakref__", "end", "next", "slots")

    def __init__(self, end: int) -> None:
        self.next = 0
        self.end = end
        self.slots: npt.NDArray[np.uint32] | None = None

    def renumber(self, slot_map: npt.NDArray[np.uint32]) -> None:
        """Follows a vacuum, whose map holds NO_SLOT for rows that went."""
        to_come = slot_map[self.next : self.end] if self.slots is None else slot_map[self.slots[self.next : self.end]]
        self.slots = to_come[to_come != NO_SLOT]
        self.next, self.end = 0, len(self.slots)


@dataclass(frozen=True, slots=True)
class Matches:
    """The live rows that a filter takes.

    Attributes:
        generation: of the index; they are its rows as long as it has this one.
        rows: slots of the index.
        hidden: the expired rows that are not among them.
        allow: their bitmap.
        count: how many they are.
    """

    generation: int
    rows: int
    hidden: Hidden
    allow: npt.NDArray[np.uint64]
    count: int

    def slots(self) -> npt.NDArray[np.uint32]:
        """Their slots, ascending."""
        return slots_of(self.allow, self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSettings:
    """What an index is made with."""

    metric: Metric = "cosine"
    memory: Memory = "default"
    M: int = 16
    ef_construction: int = 200
    threads: int = 1
    chunk_size: int | None = None
    budget_bytes: int | None = None
    now_us: Callable[[], int] = now_us


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one add, checked as far as Python checks them: what is left to refuse is the native core's."""

    ids: Sequence[str]
    id_bytes: bytes
    id_offsets: npt.NDArray[np.uint64]
    vectors: npt.NDArray[np.float32]
    bare: npt.NDArray[np.uint8] | None
    """1 for a row without a vector, which is all zeros in `vectors`; None where each has one."""
    timestamps: npt.NDArray[np.int64]
    expires: Times | None
    """When rows expire; None where none of them does."""
    metadata: Sequence[bytes | None] | None
    copied: bool
    """Whether `vectors` is a copy of what the caller gave."""

    @property
    def metadata_bytes(self) -> int:
        """Bytes of metadata."""
        return sum(len(value) for value in self.metadata or () if value is not None)

    @property
    def nbytes(self) -> int:
        """Bytes that the batch holds beside what the caller gave."""
        vectors = self.vectors.nbytes if self.copied else 0
        arrays = self.id_offsets.nbytes + self.timestamps.nbytes + (0 if self.expires is None else self.expires.nbytes)
        return vectors + arrays + len(self.id_bytes) + self.metadata_bytes


# ---- Arguments to arrays -----------------------------------------------------------------------------------


def prepare_batch(
    ids: Sequence[str],
    vectors: Any,
    metadata: Sequence[Any] | None,
    timestamps: Any,
    now_us: Callable[[], int],
    dim: int | None,
    schema: Schema | None = None,
    expires_at: Any = None,
) -> Batch:
    """Checks and converts the arguments of an add.

    Args:
        ids: n strings.
        vectors: (n, dim) numbers, or n vectors and None among them; None for rows without.
        metadata: n JSON-shaped values or None, or None for no metadata at all.
        timestamps: n seconds since 1970 or aware datetimes (None among them: now), or None for now.
        now_us: the clock, read at most once.
        dim: the index's dimension, None while it has none.
        schema: what metadata must look like, if anything.
        expires_at: as `timestamps`, None for never.

    Raises:
        InvalidInputError: details has ``row`` where one row is at fault.
    """
    matrix, bare = _with_bare(vectors, ids, dim)
    n = len(matrix)
    if isinstance(ids, (str, bytes)):
        raise InvalidInputError("ids must be a sequence of strings, not one string")
    if not isinstance(ids, Iterable):
        raise InvalidInputError(f"ids must be a sequence of strings, got {type(ids).__name__}")
    ids = ids if isinstance(ids, (list, tuple)) else list(ids)
    _check_lengths(n, ids=ids, metadata=metadata, timestamps=timestamps, expires_at=expires_at)
    for row, text in enumerate(ids):
        if not isinstance(text, str):
            raise InvalidInputError(
                f"the id of row {row} must be a string, got {type(text).__name__}", details={"row": row}
            )
    id_bytes, offsets = pack_ids(ids)
    return Batch(
        ids=ids,
        id_bytes=id_bytes,
        id_offsets=offsets,
        vectors=matrix,
        bare=bare,
        timestamps=_timestamps(timestamps, n, now_us, "timestamp"),
        expires=None if expires_at is None else _timestamps(expires_at, n, lambda: NEVER_US, "expires_at"),
        metadata=_encoded(metadata, ids, schema),
        copied=matrix is not vectors,
    )


def prepare_query(query: Any) -> npt.NDArray[np.float32]:
    """A query as contiguous float32; its dimension is compared by the search.

    Raises:
        InvalidInputError: it is no vector of numbers, or too long.
    """
    if type(query) is np.ndarray and query.dtype == _FLOAT32 and query.ndim == 1 and query.flags.c_contiguous:
        vector = query
    else:
        vector = _numbers(query, "a query")
        if vector.ndim != 1:
            raise InvalidInputError(
                f"A query must be one vector, got an array of shape {vector.shape}; search_batch takes many",
                details={"shape": vector.shape},
            )
    if not 1 <= len(vector) <= DIM_MAX:
        _check_query_dim(len(vector), None)
    return vector


def prepare_queries(queries: Any, dim: int | None) -> npt.NDArray[np.float32]:
    """Queries as (n, dim) contiguous float32.

    Raises:
        InvalidInputError: they are no such array, or of another dimension.
    """
    matrix = _numbers(queries, "queries")
    if matrix.ndim != 2 and matrix.size:
        raise InvalidInputError(
            f"Queries must be an array of shape (n, dim), got {matrix.shape}", details={"shape": matrix.shape}
        )
    if matrix.ndim != 2:
        matrix = matrix.reshape(0, dim or 0)
    if len(matrix):
        _check_query_dim(matrix.shape[1], dim)
    return matrix


def _check_query_dim(actual: int, dim: int | None) -> None:
    if not 1 <= actual <= DIM_MAX:
        raise InvalidInputError(
            f"A vector has 1 to {DIM_MAX} dimensions, got {actual}", details={"limit": DIM_MAX, "actual": actual}
        )
    if dim is not None and actual != dim:
        raise InvalidInputError(
            f"Query vector dimension mismatch: expected {dim} dimensions, got {actual}",
            details={"expected": dim, "actual": actual},
        )


def _numbers(values: Any, what: str) -> npt.NDArray[np.float32]:
    try:
        array = np.asarray(values)
        if array.dtype == np.float32 and array.flags.c_contiguous and array.dtype.isnative:
            return array
        if array.dtype.kind not in "fiu":
            raise TypeError(f"they have dtype {array.dtype}")
        with np.errstate(over="ignore"):  # a float64 past float32's range: the core refuses the infinity
            return np.ascontiguousarray(array, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"{what} must be real numbers in a rectangular array: {error}") from None


def _with_bare(vectors: Any, ids: Any, dim: int | None) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8] | None]:
    """Vectors as an array, and which rows have none."""
    if vectors is None:
        n = len(ids) if isinstance(ids, Sized) else 0
        return np.zeros((n, dim or 1), dtype=np.float32), np.ones(n, dtype=np.uint8) if n else None
    if not isinstance(vectors, (list, tuple)) or all(vector is not None for vector in vectors):
        return _matrix(vectors, dim), None
    bare = np.array([vector is None for vector in vectors], dtype=np.uint8)
    try:
        given = _matrix([vector for vector in vectors if vector is not None], dim)
    except InvalidInputError as error:
        if "row" in error.details:
            # Rows without a vector were not counted.
            row = int(np.flatnonzero(bare == 0)[error.details["row"]])
            raise InvalidInputError(error.message, details={**error.details, "row": row}) from None
        raise
    matrix = np.zeros((len(bare), given.shape[1]), dtype=np.float32)
    matrix[bare == 0] = given
    return matrix, bare


def _seeming_shape(vectors: Any) -> tuple[int, int]:
    """Rows and components of what may be an array of vectors, or a list of them; zeros for anything else."""
    shape = getattr(vectors, "shape", None)
    if shape is None and isinstance(vectors, (list, tuple)):
        first = next((vector for vector in vectors if vector is not None), ())
        shape = len(vectors), len(first) if hasattr(first, "__len__") else 0
    return shape if isinstance(shape, tuple) and len(shape) == 2 else (0, 0)


def _matrix(vectors: Any, dim: int | None) -> npt.NDArray[np.float32]:
    if isinstance(vectors, (list, tuple)) and vectors:
        expected = dim
        for row, vector in enumerate(vectors):
            actual = len(vector) if hasattr(vector, "__len__") else None
            expected = actual if expected is None else expected
            if actual is not None and actual != expected:
                raise InvalidInputError(
                    f"Vector dimension mismatch: expected {expected}, got {actual}",
                    details={"expected": expected, "actual": actual, "row": row},
                )
    matrix = _numbers(vectors, "vectors")
    if matrix.size == 0 and (matrix.ndim < 2 or matrix.shape[0] == 0):
        return np.empty((0, dim or 1), dtype=np.float32)
    if matrix.ndim != 2:
        raise InvalidInputError(
            f"vectors must be an array of shape (n, dim), got {matrix.shape}", details={"shape": matrix.shape}
        )
    actual = matrix.shape[1]
    if not 1 <= actual <= DIM_MAX:
        raise InvalidInputError(
            f"A vector has 1 to {DIM_MAX} dimensions, got {actual}", details={"limit": DIM_MAX, "actual": actual}
        )
    if dim is not None and actual != dim:
        raise InvalidInputError(
            f"Vector dimension mismatch: expected {dim}, got {actual}", details={"expected": dim, "actual": actual}
        )
    return matrix


def _check_lengths(n: int, **arguments: Any) -> None:
    for name, values in arguments.items():
        if values is None:
            continue
        # A dict is one row's metadata, and would pass for a sequence of its keys.
        if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Sized):
            raise InvalidInputError(f"{name} must be a sequence with one entry a row, got {type(values).__name__}")
        if isinstance(values, np.ndarray) and values.ndim != 1:
            raise InvalidInputError(
                f"{name} must be a sequence with one entry a row, got an array of shape {values.shape}",
                details={"shape": values.shape},
            )
        if len(values) != n:
            raise InvalidInputError(
                f"There are {n} vectors and {len(values)} {name}", details={"vectors": n, name: len(values)}
            )


def _timestamps(values: Any, n: int, missing_us: Callable[[], int], what: str) -> npt.NDArray[np.int64]:
    if values is None:
        return np.full(n, missing_us(), dtype=np.int64) if n else np.empty(0, dtype=np.int64)
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiu":
        scaled = np.rint(values.astype(np.float64) * 1e6) if values.dtype.kind == "f" else None
        if scaled is not None and not (np.abs(scaled) < 2.0**63).all():
            row = int(np.flatnonzero(~(np.abs(scaled) < 2.0**63))[0])
            raise _bad_time(what, row, values[row])
        if scaled is not None:
            return scaled.astype(np.int64)
        values = values.tolist()
    out = np.empty(n, dtype=np.int64)
    missing: int | None = None
    for row, value in enumerate(values):
        if value is None:
            missing = missing_us() if missing is None else missing
            out[row] = missing
        else:
            out[row] = _microseconds(what, row, value)
    return out


def _microseconds(what: str, row: int, value: Any) -> int:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise InvalidInputError(
                f"the {what} of row {row} has no time zone: use an aware datetime", details={"row": row}
            )
        # Through integers: a float would lose microseconds.
        since = value - datetime.fromisoformat("1970-01-01T00:00:00+00:00")
        return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _bad_time(what, row, value)
    if isinstance(value, float) and not math.isfinite(value):
        raise _bad_time(what, row, value)
    microseconds = value * 1_000_000 if isinstance(value, int) else round(value * 1e6)
    if not _INT64_MIN <= microseconds <= _INT64_MAX:
        raise _bad_time(what, row, value)
    return microseconds


def _bad_time(what: str, row: int, value: Any) -> InvalidInputError:
    return InvalidInputError(
        f"the {what} of row {row} must be seconds since 1970 or an aware datetime, got {value!r}",
        details={"row": row},
    )


def _encoded(metadata: Sequence[Any] | None, ids: Sequence[str], schema: Schema | None) -> list[bytes | None] | None:
    if metadata is None:
        if schema is None:
            return None
        metadata = [None] * len(ids)
    encoded = []
    for row, value in enumerate(metadata):
        try:
            if schema is not None:
                schema.check(value)
            encoded.append(encode_metadata(value))
        except InvalidInputError as error:
            raise InvalidInputError(
                f"row {row} (id {_shown(ids[row])}): {error.message}",
                details={**error.details, "row": row, "id": ids[row]},
            ) from None
    return encoded


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")


def check_k(k: object) -> int:
    """A k that is an integer from 1 to K_MAX.

    Raises:
        InvalidInputError: it is not.
    """
    if type(k) is int and 1 <= k <= K_MAX:
        return k
    if isinstance(k, np.integer):
        k = int(k)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= K_MAX:
        raise InvalidInputError(
            f"k must be an integer between 1 and {K_MAX}, got {k!r}", details={"k": k, "limit": K_MAX}
        )
    return k


def check_ef(ef_search: object) -> int:
    """ef_search as the core wants it: 0 for None.

    Raises:
        InvalidInputError: it is no integer from 1 to EF_MAX.
    """
    if ef_search is None:
        return 0
    if type(ef_search) is int and 1 <= ef_search <= EF_MAX:
        return ef_search
    if isinstance(ef_search, np.integer):
        ef_search = int(ef_search)
    if isinstance(ef_search, bool) or not isinstance(ef_search, int) or not 1 <= ef_search <= EF_MAX:
        raise InvalidInputError(
            f"ef_search must be None or an integer between 1 and {EF_MAX}, got {ef_search!r}",
            details={"ef_search": ef_search, "limit": EF_MAX},
        )
    return ef_search


def check_nprobe(nprobe: object) -> int:
    """nprobe as the core wants it: 0 for None.

    Raises:
        InvalidInputError: it is no integer from 1 to LISTS_MAX.
    """
    if nprobe is None:
        return 0
    if isinstance(nprobe, np.integer):
        nprobe = int(nprobe)
    if isinstance(nprobe, bool) or not isinstance(nprobe, int) or not 1 <= nprobe <= LISTS_MAX:
        raise InvalidInputError(
            f"nprobe must be None or an integer between 1 and {LISTS_MAX}, got {nprobe!r}",
            details={"nprobe": nprobe, "limit": LISTS_MAX},
        )
    return nprobe


def check_exact(exact: object, ef_search: int) -> bool:
    """Whether a search is to score every row; `ef_search` as `check_ef` gives it.

    Raises:
        InvalidInputError: it is no bool, or there is an ef_search, too.
    """
    if exact is False:
        return False
    if not isinstance(exact, (bool, np.bool_)):
        raise InvalidInputError(f"exact must be True or False, got {exact!r}")
    if exact and ef_search:
        raise InvalidInputError(
            "an exact search scores every row and walks over no candidates: leave out exact or ef_search",
            details={"ef_search": ef_search},
        )
    return bool(exact)


# ---- Scores ------------------------------------------------------------------------------------------------


def _cosine_scores(distances: Iterable[float]) -> list[float]:
    """(1 + cos) / 2, cos = 1 - distance."""
    return [1.0 - distance / 2.0 for distance in distances]


def _l2_scores(distances: Iterable[float]) -> list[float]:
    """1 / (1 + d), d the Euclidean distance."""
    return [1.0 / (1.0 + distance) for distance in distances]


def _dot_scores(distances: Iterable[float]) -> list[float]:
    """The logistic function of the inner product."""
    return [_logistic(-distance) for distance in distances]


def _logistic(x: float) -> float:
    """1 / (1 + exp(-x)), without overflow on either side."""
    if x >= 0.0:
        return 1.0 / (1.0 + math.exp(max(-x, -745.0)))
    shrunk = math.exp(max(x, -745.0))
    return shrunk / (1.0 + shrunk)


SCORES: Final[dict[str, Callable[[Iterable[float]], list[float]]]] = {
    "cosine": _cosine_scores,
    "l2": _l2_scores,
    "dot": _dot_scores,
}


#: Least score of a hit where nobody names one; for cosine 0.7 is cos = 0.4.
_THRESHOLDS: Final[dict[str, float | None]] = {"cosine": 0.7, "l2": None, "dot": None}


# ---- The index ---------------------------------------------------------------------------------------------


class Index:
    """Rows with metadata, in memory.

    Args:
        settings: metric, graph and memory settings; `dim` is fixed by the first add.
    """

    def __init__(self, settings: IndexSettings) -> None:
        self.settings = settings
        self.native: NativeIndex | None = None
        self.last_change_us = 0
        self.schema: Schema | None = None
        self.changes = 0
        """Counts changes; a session is dirty while it differs from the count at the last save or load."""
        self.budget_bytes = settings.budget_bytes
        self.unsettled_bytes = 0
        """Most bytes that changes have taken and freed since the allocator was asked to give them back."""
        self.plans_used: dict[str, int] = dict.fromkeys(get_args(Plan), 0)
        self.counts = _NO_STATS
        """Native counts and memory after the last change: what may be asked for on an event loop's thread, where the
        native lock could make it wait for a whole change."""
        self._arena = MetadataArena()
        self._expiries = Expiries()
        self._stored_pages = StoredPages()
        self._columns = Columns()
        self._matches: dict[str, Matches] = {}
        self._matches_bytes = 0
        self._cursors: weakref.WeakSet[Cursor] = weakref.WeakSet()
        self.calibration: Calibration | None = None
        """What was measured of the rows; in no version, and no change."""
        self._efforts: dict[tuple[int, float], Effort] = {}
        # Live rows when it was measured last, or loaded, and the rows that came since.
        self._rows_then = self._rows_since = 0
        # The share of the nearest rows on lists that no number of lists finds; None where that is still to be measured.
        self._missed_by_code: float | None = None
        self._scores = SCORES[settings.metric]
        self._generation = 0
        self._write = threading.Lock()
        self._inside: deque[bool] = deque([True])
        self._empty = threading.Event()

    @classmethod
    def restore(cls, settings: IndexSettings, loaded: LoadedVersion) -> Index:
        """An index from a loaded version.

        Raises:
            IntegrityError: a page of metadata or of expiries breaks a rule.
        """
        self = cls(settings)
        self._restore(loaded)
        self._restore_metadata(loaded.pages, loaded.document_rows, parse_changes(loaded.changes, loaded.rows))
        return self

    def _restore_metadata(
        self, pages: Iterable[tuple[int, bytes]], rows_per_page: int, changes: Mapping[int, bytes | None]
    ) -> None:
        rows = self.counts.rows
        for number, page in pages:
            self._arena.restore_page(number, rows_per_page, page, rows)
        if changes:
            slots = np.fromiter(changes, dtype=np.uint32, count=len(changes))
            staged = self._arena.stage(list(changes.values()), int(slots[-1]) + 1)
            self._arena.commit(staged, slots, np.arange(len(changes)))
        if self.native is not None and self.counts.live < rows:
            # Pages may be older than the tombstones.
            everything = np.arange(rows, dtype=np.uint32)
            self._arena.drop(everything[~np.isin(everything, self.native.live_slots(0, rows))])
        self._stored_pages = StoredPages(rows_per_page, rows, changes)

    def _restore(self, loaded: LoadedVersion) -> None:
        """Everything but metadata."""
        native, rows = loaded.native, loaded.rows
        if loaded.expiry_pages:
            draft = self._expiries.draft(rows)
            for number, page in loaded.expiry_pages:
                slots, times = parse_expiry_page(number, loaded.document_rows, page, rows)
                draft[slots] = times
            live = np.empty(0, dtype=np.uint32) if native is None else native.live_slots(0, rows)
            if np.count_nonzero(draft[live] != NEVER_US) != np.count_nonzero(draft != NEVER_US):
                raise IntegrityError("a row that was deleted is said to expire")
            self._expiries = Expiries(draft)
        self.native = native
        self.last_change_us, self.schema = loaded.last_change_us, loaded.schema
        self.counts = self._native_stats()
        self._rows_then = self.counts.live

    @property
    def is_whole(self) -> bool:
        """Whether all of it is in memory."""
        return True

    @property
    def cache_bytes(self) -> int:
        """Bytes of parts that are kept beside the index."""
        return 0

    @property
    def held_bytes(self) -> int:
        """Bytes of all that is in memory, caches included."""
        return self.counts.bytes_total + self.metadata_bytes + self.column_bytes + self.cache_bytes

    def forget_caches(self) -> bool:
        """Lets go of what can be made or fetched again; whether there was anything."""
        with self._write:
            held = self.column_bytes > 0
            self._forget_columns()
            return held

    def make_room(self) -> None:
        """Lets go of columns where they take what saves and searches need."""
        if self.budget_bytes is not None and self.held_bytes + reserve_bytes(self.budget_bytes) > self.budget_bytes:
            self.forget_caches()

    def require_whole(self) -> None:
        """Does nothing where all of it is in memory; else says that it must be."""

    # ---- what a save reads

    @property
    def dim(self) -> int | None:
        """Components of a row in memory and in parts; None before the first add."""
        native = self.native  # once: `close` may run beside this
        return None if native is None else native.dim

    @property
    def vector_dim(self) -> int | None:
        """Components that a vector must have; None while no row has one."""
        return self.dim if self.counts.with_vector else None

    @property
    def metric(self) -> Metric:
        """The metric."""
        return self.settings.metric

    @property
    def M(self) -> int:
        """Links of a row."""
        return self.settings.M

    @property
    def ef_construction(self) -> int:
        """Candidates while linking."""
        return self.settings.ef_construction

    @property
    def chunk_size(self) -> int | None:
        """Rows a part, where fixed."""
        return self.settings.chunk_size

    def page_sizes(self, rows_per_page: int) -> dict[int, int]:
        """Bytes of the metadata pages, by number."""
        return self._arena.page_sizes(self.counts.rows, rows_per_page)

    def page(self, number: int, rows_per_page: int) -> bytes:
        """One metadata page."""
        return self._arena.page(number, self.counts.rows, rows_per_page)

    def pages_kept(
        self, rows_per_page: int, page_sizes: Mapping[int, int], stored: Collection[int]
    ) -> tuple[set[int], list[int]]:
        """Which of the base's pages need not be stored again, and the live rows in them that differ."""
        kept, changed = self._stored_pages.kept(rows_per_page, self.counts.rows, page_sizes, stored, self._arena.size)
        return kept, self._live(np.array(changed, dtype=np.uint32)).tolist()

    def changes_of(self, slots: Sequence[int]) -> bytes:
        """The part with the metadata of rows that differ from what the pages say."""
        return encode_changes([(slot, self._arena.get(slot)) for slot in slots])

    def pages_stored(self, rows_per_page: int, changed: Sequence[int]) -> None:
        """Says that pages are stored which hold what the rows say, but for those that differ."""
        self._stored_pages = StoredPages(rows_per_page, self.counts.rows, changed)

    def _are_bare(self, slots: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
        """Which of some slots have no vector."""
        if self.native is None or not self.counts.bare:
            return np.zeros(len(slots), dtype=np.bool_)
        return self.native.are_bare(slots)

    def _live(self, slots: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        """Those of some slots that are no tombstones."""
        if self.native is None or self.counts.live == self.counts.rows:
            return slots
        return slots[np.isin(slots, self.native.live_slots(0, self.counts.live))]

    def expiry_parts(self, rows_per_page: int) -> list[tuple[int, bytes]]:
        """The pages of a save that say when rows expire, by number."""
        return self._expiries.pages(rows_per_page)

    def graph_stored(self) -> None:
        """Says that the graph, as it is now, is stored: later saves may store the steps from there instead."""
        with self._write:
            if self.native is not None:
                self.native.graph_stored()

    # ---- who is inside
    #
    # `_inside` begins with whether the index is open; behind that it has an entry for every call that is inside. What a
    # deque does is atomic and in one order for all threads, with the GIL and without: either `close` sees a call that
    # enters, or that call sees that the index is closed. A lock, taken twice, would cost a search 0.3 µs.

    def _within(self, work: Callable[[], _T]) -> _T:
        """What `work` returns; `close` waits for it.

        No context manager: Ctrl-C is heard where a function of Python begins, and would keep an ``__exit__`` from
        taking the entry away. Calls of C, as here, are not interrupted, and what follows one is in the `try`.
        """
        inside = self._inside
        try:
            inside.append(True)
            if not inside[0]:
                raise IndexClosed
            return work()
        finally:
            inside.pop()
            if not inside[0] and len(inside) == 1:
                self._empty.set()

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """For worker threads alone, which hear no Ctrl-C."""
        self._inside.append(True)
        try:
            if not self._inside[0]:
                raise IndexClosed
            with self._write:
                self._generation += 1
                try:
                    self._bury_expired()
                    yield
                finally:
                    self.counts = self._native_stats()
                    self._efforts = {}  # after the counts, from which new ones come
                    self._generation += 1
        finally:
            self._inside.pop()
            if not self._inside[0] and len(self._inside) == 1:
                self._empty.set()

    def _consistent(self, read: Callable[[], _T], nowait: bool = False) -> _T:
        """The result of `read` with no change between its start and its end."""

        def undisturbed() -> _T:
            generation = self._generation
            if not generation & 1:
                try:
                    result = read()
                except _HALF_CHANGED:
                    if self._generation == generation:
                        raise
                else:
                    if self._generation == generation:
                        return result
            if nowait:
                raise NativeBusy
            with self._write:
                return read()

        return self._within(undisturbed)

    def close(self) -> None:
        """Waits for the calls inside, then frees native memory; idempotent."""
        self._inside[0] = False
        while len(self._inside) > 1:
            # With a limit, as Ctrl-C may stop the last one out before it says so.
            self._empty.wait(0.1)
        with self._write:
            native, self.native = self.native, None
            if native is not None:
                native.close()
            self._arena, self._expiries, self.counts = MetadataArena(), Expiries(), _NO_STATS
            self._forget_columns()

    # ---- changes

    def add(
        self, batch: Batch, on_conflict: str = "error", control: Control | None = None, for_lists: bool = False
    ) -> AddResult:
        """Adds rows: all or nothing.

        Args:
            batch: the rows.
            on_conflict: for ids that are live: ``error``, ``replace`` or ``skip``.
            control: progress and cancellation.
            for_lists: make no graph of them: `train`, `migrate` and `vacuum` follow before any save.

        Raises:
            InvalidInputError: a vector, id or `on_conflict` is refused; details has ``row`` and ``id``.
            ConflictError: an id is live already, or stands twice in the call.
            MemoryBudgetExceededError: they would not fit.
            IndexStateError: the native core had no memory or threads.
        """
        if on_conflict not in _ON_CONFLICT:
            raise InvalidInputError(f"on_conflict must be one of {', '.join(_ON_CONFLICT)}, got {on_conflict!r}")
        n = len(batch.ids)
        if n == 0:
            return AddResult(0, 0, 0)
        with self._changing():
            dim, expected = batch.vectors.shape[1], self.vector_dim
            if expected not in (None, dim) and batch.bare is not None and batch.bare.all():
                # Another add gave the index its first vector since the batch was prepared.
                batch, dim = replace(batch, vectors=np.zeros((n, expected), dtype=np.float32)), expected
            if expected is not None and dim != expected:
                raise InvalidInputError(
                    f"Vector dimension mismatch: expected {expected}, got {dim}",
                    details={"expected": expected, "actual": dim},
                )
            self._check_add_fits(dim, batch)
            staged = None if batch.metadata is None else self._arena.stage(batch.metadata, self.counts.rows + n)
            draft = self._draft(self.counts.rows + n, batch.expires is not None)
            native = self.native
            try:
                # The dimension is fixed only by an add that succeeds. The index that was there is not closed: a
                # reader may still be in it, and it goes with its last reference.
                if native is None:
                    native = self._new_native(dim)
                elif native.dim != dim:
                    native = native.with_dim(dim)
                slots, replaced = native.add(
                    batch.vectors,
                    batch.id_bytes,
                    batch.id_offsets,
                    batch.timestamps,
                    on_conflict,
                    control,
                    batch.bare,
                    for_lists,
                )
            except BaseException as error:
                if staged is not None:
                    self._arena.abandon(staged)
                if native is not None and native is not self.native:
                    native.close()
                if isinstance(error, (InvalidInputError, ConflictError)):
                    raise _named(error, batch) from None
                raise
            self.native = native
            return self._added(batch, staged, draft, slots, replaced)

    def _new_native(self, dim: int) -> NativeIndex:
        settings = self.settings
        return NativeIndex(
            dim,
            settings.metric,
            settings.memory,
            settings.M,
            settings.ef_construction,
            settings.threads,
            hash_seed=int.from_bytes(os.urandom(8), "little"),
        )

    def _check_add_fits(self, dim: int, batch: Batch) -> None:
        n, rows, forecast = len(batch.ids), self.counts.rows + len(batch.ids), self._forecast(dim)
        content = forecast.after_add(n, len(batch.id_bytes))
        scratch = forecast.add(n, len(batch.id_bytes)) + batch.nbytes
        metadata_bytes = batch.metadata_bytes
        if metadata_bytes:
            content += metadata_bytes + metadata_bytes // 8 + _TABLE_BYTES_PER_ROW * rows
            scratch += metadata_bytes + _BYTES_OBJECT * n + self._arena.staging_bytes(rows)
        if batch.expires is not None or not self._expiries.is_empty:
            content += _EXPIRY_BYTES_PER_ROW * rows
        if self.native is not None and self.native.dim != dim:
            scratch += self.counts.bytes_total + 4 * dim * self.counts.live
        self._check_grows(f"adding {n} rows", content, scratch)

    def _forecast(self, dim: int) -> Forecast:
        settings = self.settings
        return Forecast(
            dim=dim,
            metric=settings.metric,
            memory=settings.memory,
            M=settings.M,
            ef_construction=settings.ef_construction,
            threads=settings.threads,
            counts=self.counts,
        )

    def check_room(self, vectors: Any) -> None:
        """Refuses many vectors that cannot fit, as a caller gave them, before another array is made of them.

        Raises:
            MemoryBudgetExceededError: with the shortest ids and no metadata they would not fit.
        """
        n, dim = _seeming_shape(vectors)
        if self.budget_bytes is not None and 4 * n * dim > reserve_bytes(self.budget_bytes):
            self._check_grows(f"adding {n} rows", self._forecast(min(dim, DIM_MAX)).after_add(n, n), 0)

    def _check_grows(self, what: str, content: int, scratch: int) -> None:
        """Refuses a change after which there would be no room for saves and searches."""
        room = 0 if self.budget_bytes is None else reserve_bytes(self.budget_bytes)
        self.unsettled_bytes += scratch  # what is refused took some, too
        self._check_fits(what, content + max(scratch, room), "raise memory_budget_mb, or use memory='compact'")

    def _check_works(self, what: str, scratch: int) -> None:
        """Refuses a change that needs more beside the index, while it runs, than there is."""
        self._check_fits(what, self.counts.bytes_total + scratch, "save, and load with a larger memory_budget_mb")
        self.unsettled_bytes += scratch

    def _check_fits(self, what: str, beside_metadata: int, way_out: str = "raise memory_budget_mb") -> None:
        """Refuses what would take more than the budget.

        Args:
            what: names it.
            beside_metadata: bytes it needs in all, but for the metadata that is there already.
            way_out: what the user can do.
        """
        if self._is_over(beside_metadata + self.column_bytes):
            self._forget_columns()  # they can be made again
        if self._is_over(beside_metadata):
            assert self.budget_bytes is not None
            needed = self.metadata_bytes + beside_metadata + kept_bytes(self.budget_bytes)
            raise MemoryBudgetExceededError(
                f"{what} needs {needed / 1e6:.1f} MB in all, the budget is {self.budget_bytes / 1e6:.1f} MB: {way_out}",
                details={"needed_bytes": needed, "budget_bytes": self.budget_bytes},
            )

    def _is_over(self, beside_metadata: int) -> bool:
        budget = self.budget_bytes
        return budget is not None and self.metadata_bytes + beside_metadata > budget - kept_bytes(budget)

    def _added(
        self,
        batch: Batch,
        staged: Staged | None,
        draft: Times | None,
        slots: npt.NDArray[np.uint32],
        replaced: npt.NDArray[np.uint32],
    ) -> AddResult:
        kept = slots != NO_SLOT
        added, gone = int(kept.sum()), replaced[replaced != NO_SLOT]
        self._arena.drop(gone)
        if draft is not None and batch.expires is not None:
            draft[slots[kept]] = batch.expires[kept]
        self._expire_never(draft, gone)
        if staged is not None:
            self._arena.commit(staged, slots[kept], np.flatnonzero(kept))
        self._rows_since += added
        if added:
            self.changes += 1
            self.last_change_us = max(self.last_change_us, int(batch.timestamps[kept].max()))
        return AddResult(added - len(gone), len(gone), len(batch.ids) - added)

    # ---- rows that expire

    def _draft(self, rows: int, some_will_expire: bool = False) -> Times | None:
        """The times of as many rows for a change to fill in; None where no row expires."""
        return None if self._expiries.is_empty and not some_will_expire else self._expiries.draft(rows)

    def _expire_never(self, draft: Times | None, gone: npt.NDArray[np.uint32]) -> None:
        """Ends a change of rows: those that are gone do not expire any more, the others do as the draft says."""
        if draft is not None:
            draft[gone] = NEVER_US
            self._expiries = Expiries(draft)

    def _hidden(self) -> Hidden:
        """The rows that have expired by now; the clock is only read where there are any that may."""
        expiries = self._expiries
        return NOTHING if expiries.is_empty else expiries.hidden(self.settings.now_us())

    def _visible(self, slots: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        """Those of live slots that have not expired."""
        hidden = self._hidden().slots
        return slots[~np.isin(slots, hidden)] if len(hidden) else slots

    def _bury_expired(self) -> None:
        """Makes tombstones of rows that have expired: what a change begins with, so that it meets no hidden row."""
        slots = self._hidden().slots
        if self.native is None or not len(slots):
            return
        draft = self._draft(self.counts.rows)
        self.native.delete(*pack_ids(self.native.get_ids(slots)), False)
        self._arena.drop(slots)
        self._expire_never(draft, slots)
        self.counts = self._native_stats()
        self.changes += 1

    @property
    def hidden_count(self) -> int:
        """Rows that have expired and are no tombstones yet."""
        return len(self._hidden().slots)

    @property
    def live_count(self) -> int:
        """Rows that are neither deleted nor expired."""
        return self.counts.live - self.hidden_count

    # ---- other changes

    def update_metadata(self, id: str, metadata: Any, merge: bool = False) -> None:
        """Replaces a row's metadata, or merges a dict into it.

        Raises:
            NotFoundError: the id is not live.
            InvalidInputError: the metadata is refused, or there is no dict to merge with.
            MemoryBudgetExceededError: it would not fit.
        """
        id_bytes, offsets = _one_id(id)
        encoded = encode_metadata(metadata)
        with self._changing():
            slots = None if self.native is None else self.native.find(id_bytes, offsets)
            if slots is None or slots[0] == NO_SLOT:
                raise _not_found([id])
            if merge:
                metadata = _merged(self._arena.get(int(slots[0])), metadata)
                encoded = encode_metadata(metadata)
            if self.schema is not None:
                self.schema.check(metadata)
            if encoded is not None:
                end = int(slots[0]) + 1
                content, scratch = self.counts.bytes_total + len(encoded), len(encoded) + self._arena.staging_bytes(end)
                self._check_grows(f"metadata of {_shown(id)}", content, scratch)
            staged = self._arena.stage([encoded], int(slots[0]) + 1)
            self._arena.commit(staged, slots, np.zeros(1, dtype=np.intp))
            self._stored_pages.note([int(slots[0])])
            self._columns.touch(int(slots[0]))
            self.changes += 1

    def set_schema(self, schema: Schema | None) -> None:
        """Makes later metadata follow a schema, which what is there already does.

        Raises:
            InvalidInputError: a live row breaks it; details has ``id`` and ``path``.
        """
        with self._changing():
            if schema == self.schema:
                return
            if schema is not None and self.native is not None:
                for slot in self.native.live_slots(0, self.counts.live).tolist():
                    raw = self._arena.get(slot)
                    try:
                        schema.check(None if raw is None else decode_metadata(raw))
                    except InvalidInputError as error:
                        (id,) = self.native.get_ids(np.array([slot], dtype=np.uint32))
                        raise InvalidInputError(
                            f"the row {_shown(id)} breaks the schema: {error.message}",
                            details={**error.details, "id": id},
                        ) from None
            self.schema = schema
            self.changes += 1

    def delete(self, ids: Sequence[str], missing_ok: bool = False) -> DeleteResult:
        """Makes rows tombstones: all or nothing.

        Raises:
            NotFoundError: an id is not live, unless `missing_ok`.
        """
        id_bytes, offsets = pack_ids(ids)
        with self._changing():
            draft = self._draft(self.counts.rows)
            if self.native is None:
                slots = np.full(len(ids), NO_SLOT, dtype=np.uint32)
                if len(ids) and not missing_ok:
                    raise _not_found([ids[0]])
            else:
                try:
                    slots = self.native.delete(id_bytes, offsets, missing_ok)
                except NotFoundError as error:
                    raise _not_found([ids[error.details["row"]]]) from None
            deleted = [id for id, slot in zip(ids, slots.tolist(), strict=True) if slot != NO_SLOT]
            if deleted:
                self._arena.drop(slots[slots != NO_SLOT])
                self._expire_never(draft, slots[slots != NO_SLOT])
                self.changes += 1
            return DeleteResult(len(deleted), deleted)

    def delete_where(self, where: Filter) -> DeleteResult:
        """Makes the rows that a filter takes tombstones: all or nothing.

        Raises:
            MemoryBudgetExceededError: the columns it compares would not fit.
        """
        with self._changing():
            if self.native is None:
                return DeleteResult(0, [])
            slots = self._match(where).slots()
            ids = self.native.get_ids(slots)
            if len(slots):
                draft = self._draft(self.counts.rows)
                self.native.delete(*pack_ids(ids), False)
                self._arena.drop(slots)
                self._expire_never(draft, slots)
                self.changes += 1
            return DeleteResult(len(ids), ids)

    def check_optimizes(self) -> None:
        """Refuses to begin with what could not be brought to an end.

        Raises:
            MemoryBudgetExceededError: training, or the vacuum in the end, would not fit.
        """

        def check() -> None:
            with self._write:
                if self.native is not None:
                    forecast = self._forecast(self.native.dim)
                    self._check_works("training lists", forecast.train())
                    self._check_works("a vacuum", forecast.vacuum() + self._renumbering_bytes())

        self._within(check)

    def vacuum(self, control: Control | None = None) -> VacuumStats:
        """Removes tombstones and renumbers the rows: all or nothing.

        Raises:
            MemoryBudgetExceededError: what it needs beside the index would not fit.
            IndexStateError: the native core had no memory or threads.
            NativeCancelled: `control` asked for it.
        """
        with self._changing():
            before = self.counts
            removed = before.rows - before.live
            if self.native is None or not (removed or before.moved):
                return VacuumStats(0, 0, 0)
            self._check_works("a vacuum", self._forecast(self.native.dim).vacuum() + self._renumbering_bytes())
            # Their order is known, so the new arena can be made before the native core changes.
            native, kept = self.native, self.native.vacuum_order()
            self._renumber(kept, lambda: native.vacuum(control))
        from_lists = before.historical_deleted
        return VacuumStats(removed - from_lists if before.graph_rows else 0, from_lists, removed)

    def arrange(self, control: Control | None = None) -> bool:
        """Gives rows that are near each other slots that are, so that lazy loads fetch fewer parts; whether it did.

        Raises:
            MemoryBudgetExceededError: what it needs beside the index would not fit.
            IndexStateError: the native core had no memory or threads.
            NativeCancelled: `control` asked for it.
        """
        with self._changing():
            native, counts = self.native, self.counts
            if native is None or counts.graph_rows < ARRANGED_ROWS_MIN:
                return False
            self._check_works("an arrangement", self._forecast(native.dim).arrange() + self._renumbering_bytes())
            order = native.near_order(control)
            slot_map = np.empty_like(order)
            slot_map[order] = np.arange(len(order), dtype=np.uint32)

            def renumber() -> npt.NDArray[np.uint32]:
                native.renumber(order)
                return slot_map

            self._renumber(order, renumber)
            return True

    def _renumbering_bytes(self) -> int:
        """What the metadata takes twice while slots change; columns make room where they would be in the way."""
        rows = self.counts.rows
        needed = self._arena.compacted_bytes(rows) + self._expiries.nbytes + _RENUMBERING_BYTES_PER_ROW * rows
        if self._is_over(self.counts.bytes_total + needed + 2 * self.column_bytes):
            self._forget_columns()
        return needed + self.column_bytes

    def _renumber(self, kept: npt.NDArray[np.uint32], renumber: Callable[[], npt.NDArray[np.uint32]]) -> None:
        """What goes with a change of slots; `kept` are the old slots in the new order, `renumber` gives new by old."""
        arena, expiries = self._arena.compacted(kept), self._expiries.renumbered(kept)
        slot_map = renumber()
        self._arena, self._expiries, self._stored_pages = arena, expiries, StoredPages()
        try:
            self._columns.renumber(kept)
        except MemoryError:
            self._forget_columns()
        for cursor in self._cursors:
            cursor.renumber(slot_map)
        self.changes += 1

    def recall(self, sample: int, k: int, recall_target: float | None, control: Control | None = None) -> RecallReport:
        """How much of the truth searches find among the rows there are; of a target, what those find that have it.

        Raises:
            NativeCancelled: `control` asked for it.
        """

        effort = (0, False, 0) if recall_target is None else self._effort(k, recall_target, control=control)

        def measure() -> RecallReport:
            native, counts, hidden = self.native, self.counts, self._hidden()
            if native is None:
                return NO_RECALL
            slots = self._visible(native.live_slots(0, counts.live))
            slots = slots[~self._are_bare(slots)]
            return measure_recall(native, counts, slots, sample, k, hidden.allow, effort, control)

        return self._consistent(measure)

    # ---- recent and historical
    #
    # Beside reads, as slots stay what they are: with the lock of changes, but under an even generation.

    def train(self, cutoff_us: int, control: Control | None = None) -> bool:
        """Trains lists for what is historical or older than the cutoff, where that is due; whether it did.

        Raises:
            MemoryBudgetExceededError: it would not fit.
            IndexStateError: the native core had no memory or threads.
            NativeCancelled: `control` asked for it.
        """

        def train() -> bool:
            with self._write:
                counts, native = self.counts, self.native
                if native is None or (counts.lists and not counts.training_due):
                    return False
                self._check_works("training lists", self._forecast(native.dim).train())
                try:
                    native.train(cutoff_us, control)
                except NativeTooFew:
                    return False
                self._sides_changed()
                self._missed_by_code = None
                return True

        return self._within(train)

    def migrate(self, cutoff_us: int, step: int, first: int = 0) -> tuple[int, int | None]:
        """Moves at most `step` recent rows older than the cutoff to lists.

        Args:
            cutoff_us: microseconds since 1970.
            step: bounds the call.
            first: the slot to begin at.

        Returns:
            How many were moved, and where to go on, None at the end or where no lists were ever trained.

        Raises:
            MemoryBudgetExceededError: the lists would not fit.
            IndexStateError: the native core had no memory or threads.
        """

        def move() -> tuple[int, int | None]:
            with self._write:
                if self.native is None or not self.counts.lists:
                    return 0, None
                self._check_works("moving rows", self._forecast(self.native.dim).migrate(step))
                moved, after = self.native.migrate(cutoff_us, step, first)
                if moved:
                    self._sides_changed()
                return moved, None if after == NO_SLOT else after

        return self._within(move)

    def _sides_changed(self) -> None:
        self.counts = self._native_stats()
        self._efforts = {}
        self.changes += 1

    def side(self, historical: bool) -> IndexSide:
        """The rows of one side."""

        def read() -> IndexSide:
            with self._write:
                counts, native = self.counts, self.native
                if native is None:
                    return IndexSide("ivf" if historical else "flat", 0, 0, 0, ())
                slots = self._visible(native.live_slots(0, counts.live))
                words = native.historical()
                on_lists = (words[slots // 64] >> (slots % 64).astype(np.uint64)) & np.uint64(1) != 0
                slots = slots[on_lists if historical else ~on_lists]
                ids = tuple(native.get_ids(slots))
            deleted = counts.historical_deleted
            if historical:
                return IndexSide("ivf", len(ids), deleted, counts.lists, ids)
            kind: Literal["flat", "hnsw"] = "hnsw" if counts.graph_rows else "flat"
            return IndexSide(kind, len(ids), counts.rows - counts.live - deleted, 0, ids)

        return self._within(read)

    def timestamps(self, ids: Sequence[str] | None) -> dict[str, float]:
        """Seconds since 1970 of the live rows among ids, or of all."""

        def read() -> dict[str, float]:
            native = self.native
            if native is None:
                return {}
            if ids is None:
                slots = native.live_slots(0, self.counts.live)
            else:
                slots = native.find(*pack_ids(ids))
                slots = slots[slots != NO_SLOT]
            slots = self._visible(slots)
            times = native.get_timestamps(slots).tolist()
            return {id: us / 1e6 for id, us in zip(native.get_ids(slots), times, strict=True)}

        return self._consistent(read)

    # ---- what a recall takes
    #
    # Measured behind a change, with the lock of changes but under an even generation: reads go on beside it.

    @property
    def calibration_is_due(self) -> bool:
        """Whether as many rows have come as there were when it was measured, or a vacuum took half of them."""
        counts = self.counts
        return counts.graph_rows > 0 and (self._rows_since >= self._rows_then or 2 * counts.rows < self._rows_then)

    def calibrate_where_due(self, control: Control | None) -> None:
        """Measures anew where that is due; best effort, as no change depends on it."""
        with suppress(NativeCancelled, IndexStateError, IndexClosed, MemoryError):
            # What is known goes on to be used where this fails; else the first who asks measures.
            if self.calibration_is_due:
                self._calibrate(control)

    def _calibrate(self, control: Control | None, only_missing: bool = False) -> None:
        def measure() -> None:
            with self._write:
                counts = self.counts
                if self.native is None or not counts.graph_rows or (only_missing and self.calibration is not None):
                    return
                # Only recent rows: how many lists it takes was measured when they were trained.
                recent = ~self.native.historical() if counts.historical else None
                if counts.bare:
                    slots = self.native.live_slots(0, counts.live)
                    found = bitmap_of(slots[~self._are_bare(slots)], counts.rows)
                    recent = found if recent is None else found & recent
                self.calibration = calibrate(self.native, self.metric, _recent(counts), control, recent)
                self._rows_then, self._rows_since = counts.live, 0
                self._efforts = {}  # after the calibration, from which new ones come

        self._within(measure)

    def known_effort(self, k: int, recall_target: float) -> Effort | None:
        """ef_search, exact and nprobe of a search with a recall target; None where that is still to be found out."""
        return self._efforts.get((k, recall_target)) or (None if self._is_measured else (0, False, 0))

    @property
    def _is_measured(self) -> bool:
        """Whether there is anything to measure: else every search is exact."""
        return self.counts.graph_rows > 0 or self.counts.lists > 0

    def _effort(self, k: int, recall_target: float, nowait: bool = False, control: Control | None = None) -> Effort:
        while (effort := self.known_effort(k, recall_target)) is None:
            if nowait:
                raise NativeBusy
            if self.counts.graph_rows and self.calibration is None:
                self._calibrate(control, only_missing=True)
            if self.counts.historical and self._missed_by_code is None:
                self._measure_codes(control)
            self._find_effort(k, recall_target)
        return effort

    def _measure_codes(self, control: Control | None) -> None:
        def measure() -> None:
            with self._write:
                if self.native is not None and self.counts.historical:
                    self._missed_by_code = missed_by_code(self.native, self.native.historical(), control)

        self._within(measure)

    def _find_effort(self, k: int, recall_target: float) -> None:
        """What each side takes; each row that is looked for is on one of them."""

        def find() -> None:
            efforts = self._efforts  # once: what is found out here must not outlive a change
            calibration, counts, native = self.calibration, self.counts, self.native
            ef: int | None = 0
            exact, nprobe = False, 0
            lost = self._missed_by_code
            if native is None or (counts.graph_rows and calibration is None) or (counts.historical and lost is None):
                return  # a change came between
            if counts.graph_rows and calibration is not None:
                ef = calibration.ef_for(k, recall_target, _recent(counts))
                exact = ef is None
            if counts.historical and lost is not None:
                # The table is of the lists alone: what the codes lose is not theirs to miss.
                recall = recall_target + lost
                nprobe = native.probes(k, min(recall, 1.0))
                exact = exact or recall > _LISTS_RECALL_MOST
            if len(efforts) >= _EFFORTS_MAX:
                efforts.clear()
            efforts[k, recall_target] = (0, True, 0) if exact else (ef or 0, False, nprobe)

        self._within(find)

    # ---- what a filter takes
    #
    # Columns and matches are made under the lock of changes. Matches are good as long as the generation is theirs, so a
    # search whose filter is known meets no lock.

    def _match(self, where: Filter) -> Matches:
        """The rows that a filter takes; under `_write`."""
        known = self._known_matches(where)
        if known is not None:
            return known
        counts, rows, hidden = self.counts, self.counts.rows, self._hidden()
        mask = evaluate(where.node, self._up_to_date(where.paths), rows)
        if self.native is not None and counts.live < rows:
            live = np.zeros(rows, dtype=np.bool_)
            live[self.native.live_slots(0, counts.live)] = True
            mask = mask & live
        if len(hidden.slots):
            mask = mask.copy()  # it may be a column's own
            mask[hidden.slots] = False
        found = Matches(self._generation, rows, hidden, bitmap(mask), int(np.count_nonzero(mask)))
        if not self._generation & 1:  # else a change is under way, and this its own question
            self._remember(where.key, found)
        return found

    def _remember(self, key: str, found: Matches) -> None:
        size = found.allow.nbytes + len(key)
        # All that are remembered are of one generation and time: those of another are of no use.
        stale = any(
            matches.generation != found.generation or matches.hidden is not found.hidden
            for matches in islice(self._matches.values(), 1)
        )
        if stale or self._matches_bytes + size > _MATCHES_BYTES_MAX:
            self._forget_matches()
        self._matches[key] = found
        self._matches_bytes += size

    def _forget_matches(self) -> None:
        self._matches.clear()
        self._matches_bytes = 0

    def _up_to_date(self, paths: Sequence[str]) -> dict[str, Column]:
        """Columns of all rows, within the budget; under `_write`."""
        counts = self.counts
        what = f"filtering by {', '.join(map(_shown, paths))}"
        missing = self._columns.missing_bytes(paths, counts.rows)
        if self._is_over(counts.bytes_total + self.column_bytes + missing):
            self._forget_columns()
            missing = self._columns.missing_bytes(paths, counts.rows)
        self._check_fits(what, counts.bytes_total + missing)
        columns = self._columns.get(paths, self._arena, counts.rows)
        held = counts.bytes_total + self.column_bytes
        if self._is_over(held):
            self._forget_columns()
            self._check_fits(what, held)
        return columns

    def _matching(self, where: Filter, read: Callable[[Matches], _T], nowait: bool = False) -> _T:
        """The result of `read` over the rows that a filter takes, with no change in between."""

        def undisturbed() -> _T:
            known = self._known_matches(where)
            if known is not None:
                try:
                    result = read(known)
                except _HALF_CHANGED:
                    if self._generation == known.generation:
                        raise
                else:
                    if self._generation == known.generation:
                        return result
            if nowait:
                raise NativeBusy
            with self._write:
                return read(self._match(where))

        return self._within(undisturbed)

    def _known_matches(self, where: Filter) -> Matches | None:
        found = self._matches.get(where.key)
        if found is None or found.generation != self._generation or found.hidden is not self._hidden():
            return None
        return found

    def count_known(self, where: Filter) -> int | None:
        """How many rows a filter takes, where that is known without looking at them."""
        known = self._known_matches(where)
        return None if known is None else known.count

    def count_where(self, where: Filter) -> int:
        """How many live rows a filter takes."""
        return self._matching(where, lambda matches: matches.count)

    def ids_where(self, where: Filter, order: str | None, descending: bool) -> list[str]:
        """The ids of the live rows that a filter takes, in the order of a field, else of their slots."""

        def read(matches: Matches) -> list[str]:
            slots = matches.slots()
            if self.native is None or not len(slots):
                return []
            if order is not None:
                slots = slots[self._order(slots, order, descending)]
            return self.native.get_ids(slots)

        def locked() -> list[str]:
            with self._write:
                return read(self._match(where))

        return self._matching(where, read) if order is None else self._within(locked)

    def _order(self, slots: npt.NDArray[np.uint32], path: str, descending: bool) -> list[int]:
        """Positions of slots in the order of a field, those without a value of it last; under `_write`."""
        keys = self._up_to_date([path])[path].sort_keys(slots)
        held = sorted(
            ((key, position) for position, key in enumerate(keys) if key is not None),
            key=itemgetter(0),
            reverse=descending,
        )
        return [position for _, position in held] + [position for position, key in enumerate(keys) if key is None]

    def facets(self, path: str, where: Filter) -> list[FacetCount]:
        """The distinct values of a field among the rows that a filter takes, the most frequent first."""

        def locked() -> list[FacetCount]:
            with self._write:
                slots = self._match(where).slots()
                column = self._up_to_date([path])[path]
                counted = [FacetCount(value, count) for value, count in column.values(slots)]
                return sorted(counted, key=lambda facet: (-facet.count, repr(facet.value)))

        return self._within(locked)

    @property
    def column_bytes(self) -> int:
        """Bytes of columns and of what filters are known to take."""
        return self._columns.nbytes + self._matches_bytes

    def _forget_columns(self) -> None:
        self._columns.clear()
        self._forget_matches()

    # ---- reading

    def search(
        self,
        query: npt.NDArray[np.float32],
        k: int,
        threshold: float | Unset | None,
        include_vectors: bool = False,
        ef_search: int = 0,
        exact: bool = False,
        nprobe: int = 0,
        recall_target: float | None = None,
        where: Filter | None = None,
        nowait: bool = False,
        control: Control | None = None,
    ) -> SearchResults:
        """The k nearest rows of one query, of those that a filter takes; an UNSET threshold is the metric's own.

        A `recall_target` takes the place of `ef_search`, `exact` and `nprobe`; `control` stops the measuring of what it
        takes.

        Raises:
            InvalidInputError: the query is not finite, zero under cosine, or of another dimension.
            NativeBusy: with `nowait`, a change is under way, or the target or the filter is still to be measured.
        """
        if recall_target is not None:
            ef_search, exact, nprobe = self._effort(k, recall_target, nowait, control)
        if where is not None:
            asked = query, k, threshold, include_vectors, ef_search, exact, nprobe, nowait
            results = self._matching(
                where, lambda matches: self._nearest(self.native, *asked, matches.allow, _FILTERED_PLANS), nowait
            )
            self.plans_used[results.plan] += 1
            return results
        # `_consistent` and `_within` written out for a search that meets no change: calling them would take 0.7 µs.
        inside = self._inside
        try:
            inside.append(True)
            generation, native = self._generation, self.native
            if not generation & 1 and native is not None and inside[0] and self._expiries.is_empty:
                results = self._nearest(native, query, k, threshold, include_vectors, ef_search, exact, nprobe, nowait)
                if self._generation == generation:
                    self.plans_used[results.plan] += 1
                    return results
        except _HALF_CHANGED:
            if self._generation == generation:
                raise
        finally:
            inside.pop()
            if not inside[0] and len(inside) == 1:
                self._empty.set()

        asked = query, k, threshold, include_vectors, ef_search, exact, nprobe, nowait
        results = self._consistent(lambda: self._nearest(self.native, *asked, self._hidden().allow), nowait)
        self.plans_used[results.plan] += 1
        return results

    def _nearest(
        self,
        native: NativeIndex | None,
        query: npt.NDArray[np.float32],
        k: int,
        threshold: float | Unset | None,
        include_vectors: bool,
        ef_search: int,
        exact: bool,
        nprobe: int,
        nowait: bool,
        allow: npt.NDArray[np.uint64] | None = None,
        plans: Mapping[int, Plan] = _PLANS,
    ) -> SearchResults:
        if native is None:
            return SearchResults([], 0, plans[PLAN_FLAT])
        if len(query) != native.dim:
            _check_query_dim(len(query), self.vector_dim)
            return SearchResults([], 0, plans[PLAN_FLAT])  # no row has a vector yet
        with_slots = include_vectors or not self._arena.is_empty
        slots, distances, ids, plan = native.search_one(query, k, ef_search, exact, nowait, with_slots, nprobe, allow)
        return self._results(native, slots, distances, ids, plans[plan], threshold, include_vectors)

    def _check_query(self, query: npt.NDArray[np.float32]) -> None:
        _check_query_dim(len(query), self.vector_dim)

    def search_batch(
        self,
        queries: npt.NDArray[np.float32],
        k: int,
        threshold: float | Unset | None,
        include_vectors: bool = False,
        ef_search: int = 0,
        exact: bool = False,
        nprobe: int = 0,
        recall_target: float | None = None,
        where: Filter | None = None,
        control: Control | None = None,
    ) -> list[SearchResults]:
        """The k nearest rows of each query, of those that a filter takes, in one native call.

        Raises:
            InvalidInputError: a query is refused; details has ``row``.
            MemoryBudgetExceededError: the columns that the filter compares would not fit.
        """
        if recall_target is not None:
            ef_search, exact, nprobe = self._effort(k, recall_target, control=control)
        if where is not None:
            return self._search_where(queries, k, threshold, include_vectors, ef_search, exact, nprobe, where, control)
        results = self._consistent(
            lambda: self._nearest_of_each(
                queries, k, threshold, include_vectors, ef_search, exact, nprobe, self._hidden().allow, _PLANS, control
            )
        )
        self._note_plans(results)
        return results

    def _search_where(
        self,
        queries: npt.NDArray[np.float32],
        k: int,
        threshold: float | Unset | None,
        include_vectors: bool,
        ef_search: int,
        exact: bool,
        nprobe: int,
        where: Filter,
        control: Control | None = None,
    ) -> list[SearchResults]:
        def read(matches: Matches) -> list[SearchResults]:
            allowed = matches.allow, _FILTERED_PLANS
            return self._nearest_of_each(
                queries, k, threshold, include_vectors, ef_search, exact, nprobe, *allowed, control
            )

        results = self._matching(where, read)
        self._note_plans(results)
        return results

    def _nearest_of_each(
        self,
        queries: npt.NDArray[np.float32],
        k: int,
        threshold: float | Unset | None,
        include_vectors: bool,
        ef_search: int,
        exact: bool,
        nprobe: int,
        allow: npt.NDArray[np.uint64] | None,
        plans: Mapping[int, Plan],
        control: Control | None,
    ) -> list[SearchResults]:
        native = self.native
        if native is None or not len(queries):
            return [SearchResults([], 0, plans[PLAN_FLAT]) for _ in queries]
        _check_query_dim(queries.shape[1], self.vector_dim)
        if queries.shape[1] != native.dim:
            return [SearchResults([], 0, plans[PLAN_FLAT]) for _ in queries]
        hits = native.search(queries, k, ef_search=ef_search, exact=exact, nprobe=nprobe, allow=allow, control=control)
        out = []
        for row, ids in enumerate(hits.ids):
            n = len(ids)
            slots, distances = hits.slots[row, :n].tolist(), hits.distances[row, :n].tolist()
            plan = plans[int(hits.plans[row])]
            out.append(self._results(native, slots, distances, ids, plan, threshold, include_vectors))
        return out

    def _note_plans(self, results: Sequence[SearchResults]) -> None:
        for result in results:
            self.plans_used[result.plan] += 1

    def _results(
        self,
        native: NativeIndex,
        slots: Sequence[int],
        distances: Sequence[float],
        ids: Sequence[str],
        plan: Plan,
        threshold: float | Unset | None,
        include_vectors: bool,
    ) -> SearchResults:
        """Hits of what was found; no slots: no row has metadata, and vectors are not wanted."""
        scores = self._scores(distances)
        n = self._passing(scores, threshold)
        if n < len(scores):
            ids, slots = ids[:n], slots[:n]
        # One hit for each id: map ends with the shortest of them.
        if not slots:
            hits = list(map(SearchResult, ids, scores, distances))
        else:
            vectors = native.get_vectors(np.array(slots, dtype=np.uint32)) if include_vectors else repeat(None)
            hits = list(map(SearchResult, ids, scores, distances, self._arena.get_many(slots), vectors))
        return SearchResults(hits, len(scores) - n, plan)

    def _passing(self, scores: Sequence[float], threshold: float | Unset | None) -> int:
        """How many of some hits pass: scores fall with distance, so it is a prefix."""
        least = _THRESHOLDS[self.metric] if isinstance(threshold, Unset) else threshold
        n = len(scores)
        if least is not None and n and scores[-1] < least:
            while n and scores[n - 1] < least:
                n -= 1
        return n

    def get(self, ids: Sequence[str]) -> list[Row | None]:
        """Rows by id, in the order asked for; None for an id that is not live."""
        id_bytes, offsets = pack_ids(ids)

        def read() -> list[Row | None]:
            native = self.native
            if native is None:
                return [None] * len(ids)
            slots = native.find(id_bytes, offsets)
            live = (slots != NO_SLOT) & ~np.isin(slots, self._hidden().slots)
            found = [id for id, is_live in zip(ids, live, strict=True) if is_live]
            rows = iter(self._rows(native, slots[live], found))
            return [next(rows) if is_live else None for is_live in live]

        return self._consistent(read)

    def cursor(self) -> Cursor:
        """The start of a scan over the rows that are there now."""

        def start() -> Cursor:
            with self._write:
                cursor = Cursor(self.counts.rows)
                self._cursors.add(cursor)
                return cursor

        return self._within(start)

    def scan(self, cursor: Cursor, most: int, where: Filter | None = None) -> list[Row]:
        """The next live rows that a filter takes, in slot order, none at the end; moves the cursor past them.

        Under the lock: a vacuum between the reading and the moving would leave the cursor in another numbering.
        """

        def page() -> list[Row]:
            with self._write:
                if self.native is None or cursor.next >= cursor.end:
                    return []
                slots = self._page_of_slots(self.native, cursor, most, where)
                return self._rows(self.native, slots, self.native.get_ids(slots))

        return self._within(page)

    def _page_of_slots(
        self, native: NativeIndex, cursor: Cursor, most: int, where: Filter | None
    ) -> npt.NDArray[np.uint32]:
        """The slots of a page; moves the cursor past them."""
        if where is None and len(self._hidden().slots):
            where = EVERYTHING  # it knows what is hidden
        if cursor.slots is not None:
            taken = native.live_slots(0, self.counts.live) if where is None else self._match(where).slots()
            places = np.flatnonzero(np.isin(cursor.slots[cursor.next : cursor.end], taken))[:most] + cursor.next
            cursor.next = int(places[-1]) + 1 if len(places) else cursor.end
            return cursor.slots[places]
        if where is None:
            slots = native.live_slots(cursor.next, most)
        else:
            slots = self._match(where).slots()
            slots = slots[np.searchsorted(slots, cursor.next) :][:most]
        slots = slots[slots < cursor.end]
        if len(slots):
            cursor.next = int(slots[-1]) + 1
        return slots

    # ---- all hits, nearest first

    def stream(self, query: npt.NDArray[np.float32], where: Filter, control: Control | None = None) -> Cursor:
        """The start of a stream over the rows that a filter takes now, in the order of their distances.

        Raises:
            InvalidInputError: the query is not finite, zero under cosine, or of another dimension.
            MemoryBudgetExceededError: that order, or the columns that the filter compares, would not fit.
            NativeCancelled: `control` asked for it.
        """

        def start() -> Cursor:
            # Under the lock: a vacuum before the cursor is known would leave it in another numbering.
            with self._write:
                cursor = Cursor(0)
                if self.native is not None:
                    _check_query_dim(len(query), self.vector_dim)
                    self._check_fits("a stream", self.counts.bytes_total + _STREAM_BYTES_PER_ROW * self.counts.live)
                    slots = self._match(where).slots()
                    slots = slots[~self._are_bare(slots)]
                    if len(query) == self.native.dim:  # else no row has a vector yet
                        slots = self._nearest_first(self.native, query, slots, control)
                    cursor.slots = slots
                    cursor.end = len(cursor.slots)
                self._cursors.add(cursor)
                return cursor

        return self._within(start)

    def _nearest_first(
        self,
        native: NativeIndex,
        query: npt.NDArray[np.float32],
        slots: npt.NDArray[np.uint32],
        control: Control | None,
    ) -> npt.NDArray[np.uint32]:
        """Live slots in the order of their distances, ties by id; under `_write`."""
        found, distances = np.empty_like(slots), np.empty(len(slots))
        # As many at a time as a search may return: each row is scored once, however many there are.
        for first in range(0, max(len(slots), 1), K_MAX):
            some = slots[first : first + K_MAX]
            hits = native.search(
                query[np.newaxis],
                max(len(some), 1),
                exact=True,
                allow=bitmap_of(some, self.counts.rows),
                with_ids=False,
                control=control,
            )
            found[first : first + K_MAX] = hits.slots[0, : len(some)]
            distances[first : first + K_MAX] = hits.distances[0, : len(some)]
        order = np.argsort(distances)
        found, distances = found[order], distances[order]
        equal = np.flatnonzero(distances[1:] == distances[:-1])
        if len(equal):
            tied = np.union1d(equal, equal + 1)
            ids = native.get_ids(found[tied])
            by_id = sorted(range(len(tied)), key=lambda place: (distances[tied[place]], ids[place]))
            found[tied] = found[tied[by_id]]
        return found

    def stream_page(
        self,
        cursor: Cursor,
        query: npt.NDArray[np.float32],
        most: int,
        threshold: float | Unset | None,
        include_vectors: bool,
    ) -> list[SearchResult]:
        """The next hits of a stream that are still live, none at the end; moves the cursor past them."""

        def page() -> list[SearchResult]:
            with self._write:  # as `scan`
                native, hits = self.native, SearchResults([], 0, "flat")
                while native is not None and cursor.slots is not None and cursor.next < cursor.end and not hits:
                    slots = cursor.slots[cursor.next : cursor.next + most]
                    allow = bitmap_of(self._visible(slots), self.counts.rows)
                    found = native.search(query[np.newaxis], len(slots), exact=True, allow=allow)
                    n = int(found.counts[0])
                    nearest = found.slots[0, :n].tolist(), found.distances[0, :n].tolist(), found.ids[0]
                    hits = self._results(native, *nearest, "flat", threshold, include_vectors)
                    # Scores only fall.
                    cursor.next = cursor.end if hits.below_threshold else cursor.next + len(slots)
                return list(hits)

        return self._within(page)

    def _rows(self, native: NativeIndex, slots: npt.NDArray[np.uint32], ids: Sequence[str]) -> list[Row]:
        metadata = [self._arena.get(slot) for slot in slots.tolist()]
        return self._made_rows(native, slots, ids, native.get_vectors(slots), metadata)

    def _made_rows(
        self,
        native: NativeIndex,
        slots: npt.NDArray[np.uint32],
        ids: Sequence[str],
        vectors: npt.NDArray[np.float32],
        metadata: Sequence[bytes | None],
    ) -> list[Row]:
        times, expires, bare = native.get_timestamps(slots), self._expiries.of(slots), self._are_bare(slots).tolist()
        rows = []
        for position, (id, raw) in enumerate(zip(ids, metadata, strict=True)):
            value = None if raw is None else decode_metadata(raw)
            vector = None if bare[position] else vectors[position]
            rows.append(Row(id, vector, value, int(times[position]) / 1e6, expires[position]))
        return rows

    def _fresh_stats(self) -> NativeStats:
        stats, hidden = self._native_stats(), self._hidden().slots
        return stats._replace(bare=stats.bare - int(self._are_bare(hidden).sum()))

    def stats(self) -> NativeStats:
        """Native counts and memory, expired rows not among the bare ones; while a change runs, those from before it."""

        def fresh() -> NativeStats:
            # Searches, too, allocate: fresher than `counts`, where that costs no waiting.
            taken: list[bool] = []
            try:
                # In one call of C: Ctrl-C cannot come between the taking and its being noted.
                taken.extend(map(self._write.acquire, (False,)))
                return self._fresh_stats() if taken[0] else self.counts
            finally:
                if taken and taken[0]:
                    self._write.release()

        return self._within(fresh)

    def _native_stats(self) -> NativeStats:
        return _NO_STATS if self.native is None else self.native.stats()

    @property
    def metadata_bytes(self) -> int:
        """Bytes of metadata held, and of when rows expire."""
        return self._arena.nbytes + self._expiries.nbytes

    @property
    def recall_calibration(self) -> tuple[CalibrationPoint, ...]:
        """What some recalls take, as far as it is known and matters."""
        calibration, counts = self.calibration, self.counts
        return () if calibration is None or not counts.graph_rows else calibration.points(_recent(counts))


def _recent(counts: NativeStats) -> int:
    """Live rows with a vector that are on no list."""
    return counts.live - counts.historical - counts.bare


def _one_id(id: str) -> tuple[bytes, npt.NDArray[np.uint64]]:
    if not isinstance(id, str):
        raise InvalidInputError(f"an id must be a string, got {type(id).__name__}")
    return pack_ids([id])


def _merged(stored: bytes | None, update: Any) -> Any:
    current = {} if stored is None else decode_metadata(stored)
    if not isinstance(current, dict) or not isinstance(update, Mapping):
        raise InvalidInputError("merge=True needs a dict to merge into a dict")
    return {**current, **update}


def _not_found(ids: Sequence[str]) -> NotFoundError:
    return NotFoundError(f"Vector not found: there is no row with id {_shown(ids[0])}", details={"id": ids[0]})


def _named(error: InvalidInputError | ConflictError, batch: Batch) -> InvalidInputError | ConflictError:
    """The native core speaks of rows; people know ids."""
    row = error.details.get("row", 0)
    id = batch.ids[row]
    details = {**error.details, "id": id}
    size = int(batch.id_offsets[row + 1] - batch.id_offsets[row])
    if isinstance(error, ConflictError):
        first = error.details.get("first_row")
        where = "already exists in the index" if first is None else f"stands in rows {first} and {row} of this call"
        hint = "; on_conflict='replace' or 'skip' allows it" if first is None else ""
        return ConflictError(f"duplicate id {_shown(id)}: it {where}{hint}", details=details)
    if size == 0:
        return InvalidInputError(f"the id of row {row} is empty", details=details)
    if size > ID_BYTES_MAX:
        return InvalidInputError(
            f"the id of row {row} takes {size} bytes of UTF-8, the limit is {ID_BYTES_MAX}",
            details={**details, "limit": ID_BYTES_MAX, "size": size},
        )
    return InvalidInputError(f"row {row} (id {_shown(id)}): {error.message}", details=details)

"""One method per C function: check, allocate, call, check, return.

numpy arrays go in and come out; statuses become this package's errors, with the C file and line in ``details``.
The GIL is released while C runs. A `NativeIndex` may be used from several threads; closing it while a call is
under way is the caller's mistake, which index/gate.py prevents. An array of the wrong type or shape, and a call after
`close`, raise before C sees them: it would read memory that is not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from struct import Struct
from typing import Any, Literal, NamedTuple, NoReturn, overload

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.library import ffi, lib
from fabstir_vectordb.errors import (
    ConflictError,
    IndexStateError,
    IntegrityError,
    InternalError,
    InvalidInputError,
    NotFoundError,
    VectorDBError,
)

__all__ = [
    "DIM_MAX",
    "EF_MAX",
    "ID_BYTES_MAX",
    "K_MAX",
    "LISTS_MAX",
    "LISTS_ROWS_MIN",
    "M_MAX",
    "M_MIN",
    "NO_SLOT",
    "PART_BARE",
    "PART_CODES",
    "PART_GRAPH",
    "PART_GRAPH_HEAD",
    "PART_IDS",
    "PART_LISTS",
    "PART_LISTS_HEAD",
    "PART_TIMESTAMPS",
    "PART_TOMBSTONES",
    "PART_VECTORS",
    "PLAN_FLAT",
    "PLAN_GRAPH",
    "PLAN_HYBRID",
    "PLAN_LISTS",
    "ROWS_MAX",
    "STEPS_MAX",
    "THREADS_MAX",
    "WORK_ADD",
    "WORK_ARRANGE",
    "WORK_TRAIN",
    "WORK_VACUUM",
    "Control",
    "NativeBusy",
    "NativeCancelled",
    "NativeIndex",
    "NativeStats",
    "NativeTooFew",
    "NativeUntrained",
    "PartInfo",
    "SearchHits",
    "estimate_bytes",
    "estimate_work",
    "kernels",
    "pack_ids",
    "settle",
    "settle_thread",
]

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
UInt8Array = npt.NDArray[np.uint8]
UInt32Array = npt.NDArray[np.uint32]
UInt64Array = npt.NDArray[np.uint64]

DIM_MAX = int(lib.FVDB_DIM_MAX)
EF_MAX = int(lib.FVDB_EF_MAX)
ID_BYTES_MAX = int(lib.FVDB_ID_BYTES_MAX)
K_MAX = int(lib.FVDB_K_MAX)
LISTS_MAX = int(lib.FVDB_LISTS_MAX)
#: Rows with a vector that lists are trained on, at least.
LISTS_ROWS_MIN = int(lib.FVDB_LISTS_ROWS_MIN)
M_MIN = int(lib.FVDB_M_MIN)
M_MAX = int(lib.FVDB_M_MAX)
ROWS_MAX = int(lib.FVDB_ROWS_MAX)
STEPS_MAX = int(lib.FVDB_STEPS_MAX)
THREADS_MAX = int(lib.FVDB_THREADS_MAX)
NO_SLOT = int(lib.FVDB_NO_SLOT)
PLAN_FLAT = int(lib.FVDB_PLAN_FLAT)
PLAN_GRAPH = int(lib.FVDB_PLAN_GRAPH)
PLAN_LISTS = int(lib.FVDB_PLAN_LISTS)
PLAN_HYBRID = int(lib.FVDB_PLAN_HYBRID)
WORK_ADD = int(lib.FVDB_WORK_ADD)
WORK_VACUUM = int(lib.FVDB_WORK_VACUUM)
WORK_TRAIN = int(lib.FVDB_WORK_TRAIN)
WORK_ARRANGE = int(lib.FVDB_WORK_ARRANGE)
# Kinds of parts.
PART_VECTORS = int(lib.FVDB_PART_VECTORS)
PART_CODES = int(lib.FVDB_PART_CODES)
PART_IDS = int(lib.FVDB_PART_IDS)
PART_TIMESTAMPS = int(lib.FVDB_PART_TIMESTAMPS)
PART_TOMBSTONES = int(lib.FVDB_PART_TOMBSTONES)
PART_GRAPH = int(lib.FVDB_PART_GRAPH)
PART_GRAPH_HEAD = int(lib.FVDB_PART_GRAPH_HEAD)
PART_LISTS = int(lib.FVDB_PART_LISTS)
PART_LISTS_HEAD = int(lib.FVDB_PART_LISTS_HEAD)
PART_BARE = int(lib.FVDB_PART_BARE)

_NOWAIT, _EXACT = int(lib.FVDB_SEARCH_NOWAIT), int(lib.FVDB_SEARCH_EXACT)

_METRICS = {"cosine": lib.FVDB_METRIC_COSINE, "l2": lib.FVDB_METRIC_L2, "dot": lib.FVDB_METRIC_DOT}
_MEMORY = {"default": lib.FVDB_MEMORY_DEFAULT, "compact": lib.FVDB_MEMORY_COMPACT}
_ON_CONFLICT = {
    "error": lib.FVDB_ON_CONFLICT_ERROR,
    "replace": lib.FVDB_ON_CONFLICT_REPLACE,
    "skip": lib.FVDB_ON_CONFLICT_SKIP,
}
_UINT64_MAX = 2**64 - 1
_FLOATS = ffi.typeof("float[]")

# Room for the ids of one search: most ids are shorter, and a search whose ids are longer is repeated with the
# bytes it turned out to need.
_ID_ROOM_PER_HIT = 64


class NativeBusy(Exception):
    """A writer holds the index, and the call asked not to wait."""


class NativeCancelled(Exception):
    """The call was cancelled through its control word; nothing changed."""


class NativeTooFew(Exception):
    """There are too few rows to train lists on; nothing changed."""


class NativeUntrained(Exception):
    """There are no lists that rows could move to; nothing changed."""


_ERRORS: dict[int, type[VectorDBError]] = {
    lib.FVDB_ERR_ARGUMENT: InvalidInputError,
    lib.FVDB_ERR_NOT_FINITE: InvalidInputError,
    lib.FVDB_ERR_ZERO_VECTOR: InvalidInputError,
    lib.FVDB_ERR_ID: InvalidInputError,
    lib.FVDB_ERR_DUPLICATE_ID: ConflictError,
    lib.FVDB_ERR_NOT_FOUND: NotFoundError,
    lib.FVDB_ERR_MEMORY: IndexStateError,
    lib.FVDB_ERR_FORMAT: IntegrityError,
    lib.FVDB_ERR_TOO_MANY: IndexStateError,
    lib.FVDB_ERR_THREAD: IndexStateError,
}


class NativeStats(NamedTuple):
    """Counts and resident bytes, as fvdb_stats of the header describes them."""

    rows: int
    live: int
    graph_rows: int
    historical: int
    historical_deleted: int
    bare: int
    with_vector: int
    moved: int
    lists: int
    nprobe: int
    training_due: int
    bytes_vectors: int
    bytes_codes: int
    bytes_graph: int
    bytes_lists: int
    bytes_ids: int
    bytes_timestamps: int
    bytes_scratch: int
    bytes_total: int
    id_bytes: int


class PartInfo(NamedTuple):
    """A part that a save writes: its kind (FVDB_PART_*), number within the kind, and size in bytes."""

    kind: int
    number: int
    size: int


class SearchHits(NamedTuple):
    """Results of a search over n queries.

    Attributes:
        slots: (n, k) uint32; entries past a query's count are NO_SLOT.
        distances: (n, k) float64, ascending; +inf past a count.
        counts: n uint32.
        plans: n uint32, PLAN_*.
        ids: for each query, the ids of its results; empty where they were left out.
    """

    slots: UInt32Array
    distances: Float64Array
    counts: UInt32Array
    plans: UInt32Array
    ids: list[list[str]]


class Control:
    """Progress of a native call, and the way to cancel it from another thread."""

    __slots__ = ("_word",)

    def __init__(self) -> None:
        self._word = ffi.new("fvdb_control *")

    @property
    def pointer(self) -> Any:
        """The C word."""
        return self._word

    @property
    def done(self) -> int:
        """Rows done so far."""
        return int(self._word.done)

    @property
    def total(self) -> int:
        """Rows in all, 0 while unknown."""
        return int(self._word.total)

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return bool(self._word.cancel)

    def cancel(self) -> None:
        """Asks the call to stop; it raises NativeCancelled soon after and leaves nothing behind."""
        self._word.cancel = 1


def kernels() -> str:
    """Name of the SIMD kernels in use: scalar, avx2, avx512 or neon."""
    return _text(lib.fvdb_kernels())


def settle() -> None:
    """Gives memory that was freed but kept by the allocator back to the system, where it knows how."""
    lib.fvdb_settle()


def settle_thread() -> None:
    """The same of what only this thread can give back."""
    lib.fvdb_settle_thread()


def pack_ids(ids: Sequence[str]) -> tuple[bytes, UInt64Array]:
    """The ids' UTF-8 bytes one after the other, with their n + 1 offsets.

    Args:
        ids: n strings; that they are strings is the caller's promise.

    Returns:
        The bytes, and n + 1 uint64 offsets into them.

    Raises:
        InvalidInputError: a string holds a lone surrogate; details has its row.
    """
    offsets = np.zeros(len(ids) + 1, dtype=np.uint64)
    joined = "".join(ids)
    if joined.isascii():
        lengths = np.fromiter(map(len, ids), dtype=np.uint64, count=len(ids))
        np.cumsum(lengths, out=offsets[1:])
        return joined.encode("ascii"), offsets
    try:
        encoded = [text.encode() for text in ids]
    except UnicodeEncodeError:
        row = next(row for row, text in enumerate(ids) if not _encodes(text))
        raise InvalidInputError(
            f"the id of row {row} holds a lone surrogate, which UTF-8 cannot encode", details={"row": row}
        ) from None
    np.cumsum(np.fromiter(map(len, encoded), dtype=np.uint64, count=len(ids)), out=offsets[1:])
    return b"".join(encoded), offsets


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(pointer: Any) -> str:
    return str(ffi.string(pointer).decode()) if pointer != ffi.NULL else ""


def _pointer(ctype: str, array: npt.NDArray[Any]) -> Any:
    # numpy's address of nothing means nothing to C; every call takes NULL for zero entries, but for `allow`.
    return ffi.from_buffer(ctype, array) if array.size else ffi.NULL


def _expect(name: str, array: npt.NDArray[Any], dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        raise InternalError(
            f"{name} must be C-contiguous {np.dtype(dtype)} of shape {shape}, got {array.dtype} of shape {array.shape}",
            details={"argument": name, "expected_shape": shape, "actual_shape": array.shape},
        )


def _expect_ids(id_bytes: bytes, id_offsets: UInt64Array) -> int:
    _expect("id_offsets", id_offsets, np.uint64, (max(len(id_offsets), 1),))
    if id_offsets[0] != 0 or int(id_offsets[-1]) != len(id_bytes) or (id_offsets[1:] < id_offsets[:-1]).any():
        raise InternalError("id_offsets must rise from 0 to the size of id_bytes")
    return len(id_offsets) - 1


def _raise(status: int, diag: Any) -> NoReturn:
    if status == lib.FVDB_ERR_CANCELLED:
        raise NativeCancelled
    if status == lib.FVDB_ERR_BUSY:
        raise NativeBusy
    if status == lib.FVDB_ERR_TOO_FEW:
        raise NativeTooFew
    if status == lib.FVDB_ERR_UNTRAINED:
        raise NativeUntrained
    message = _text(diag.message) or _text(lib.fvdb_status_text(status))
    expected, actual = int(diag.expected), int(diag.actual)
    details: dict[str, Any] = {"row": int(diag.row)}
    if expected:
        details["expected"] = expected
    if (expected or actual) and actual != _UINT64_MAX and status != lib.FVDB_ERR_DUPLICATE_ID:
        details["actual"] = actual
    if status == lib.FVDB_ERR_DUPLICATE_ID:
        details["first_row"] = None if actual == _UINT64_MAX else actual
    # For whoever debugs the core, under one key.
    details["native"] = {
        "status": int(status),
        "file": _text(diag.file).replace("\\", "/").rpartition("native/src/")[2],
        "line": int(diag.line),
    }
    raise _ERRORS.get(status, InternalError)(message, details=details)


def _config(dim: int, metric: str, memory: str, M: int, ef_construction: int, threads: int, hash_seed: int = 0) -> Any:
    return ffi.new(
        "fvdb_config *",
        {
            "dim": dim,
            "metric": _METRICS[metric],
            "memory": _MEMORY[memory],
            "M": M,
            "ef_construction": ef_construction,
            "threads": threads,
            "hash_seed": hash_seed,
        },
    )


def estimate_bytes(
    dim: int,
    *,
    metric: str,
    memory: str,
    M: int,
    ef_construction: int,
    rows: int,
    id_bytes: int,
    graph_rows: int | None = None,
    historical: int = 0,
    threads: int = 1,
) -> int:
    """Resident bytes an index of these settings will need.

    Args:
        dim, metric, memory, M, ef_construction, threads: as `NativeIndex`.
        rows: rows, whose ids take `id_bytes` bytes.
        id_bytes: UTF-8 bytes.
        graph_rows: rows in the graph; None for all of them.
        historical: rows on lists.
    """
    config = _config(dim, metric, memory, M, ef_construction, threads)
    return int(lib.fvdb_estimate_bytes(config, rows, rows if graph_rows is None else graph_rows, historical, id_bytes))


def estimate_work(
    dim: int,
    kind: int,
    *,
    metric: str,
    memory: str,
    M: int,
    ef_construction: int,
    threads: int,
    rows: int,
    graph_rows: int,
    historical: int = 0,
    added: int = 0,
    id_bytes: int = 0,
) -> int:
    """Most bytes that a call takes beside the index while it runs, its arguments not counted.

    Args:
        dim, metric, memory, M, ef_construction, threads: as `NativeIndex`.
        kind: WORK_ADD, WORK_VACUUM, WORK_TRAIN, or WORK_ARRANGE for `near_order` and `renumber`.
        rows: rows of the index, those that are added included.
        graph_rows: rows in the graph when the call is over.
        historical: rows on lists.
        added: rows that an add adds.
        id_bytes: UTF-8 bytes of the ids: of an add's rows, else of all.
    """
    config = _config(dim, metric, memory, M, ef_construction, threads)
    return int(lib.fvdb_estimate_work(config, kind, rows, graph_rows, historical, added, id_bytes))


def _bitmap(allow: UInt64Array) -> Any:
    """A bitmap as C takes it."""
    _expect("allow", allow, np.uint64, (len(allow),))
    # NULL would allow every slot: a bitmap of no words, which allows none, needs an address too.
    return _pointer("uint64_t[]", allow) if len(allow) else ffi.new("uint64_t[1]")


class _Answer:
    """Memory that answers of up to k results come in: allocating it would cost as much as a small walk."""

    __slots__ = ("c", "distance_bytes", "distances", "id_bytes", "id_ends", "slot_bytes", "slots")

    def __init__(self, k: int) -> None:
        self.slots, self.distances = ffi.new("uint32_t[]", k), ffi.new("double[]", k)
        self.slot_bytes, self.distance_bytes = ffi.buffer(self.slots), ffi.buffer(self.distances)
        self.id_ends = ffi.new("uint64_t[]", k)
        self.c = ffi.new("fvdb_answer *")
        self.c.slots, self.c.distances, self.c.id_ends = self.slots, self.distances, self.id_ends
        self.reserve(k * _ID_ROOM_PER_HIT)

    def reserve(self, size: int) -> None:
        """Makes room for ids."""
        room = ffi.new("uint8_t[]", size)
        self.c.id_bytes, self.c.id_capacity = room, size
        self.id_bytes = ffi.buffer(room)  # keeps the room alive

    def ids_by_ends(self, n: int) -> list[str]:
        """The ids of the answer, where one holds a 0 byte itself."""
        ends = ffi.unpack(self.id_ends, n)
        starts = [0, *(end + 1 for end in ends[:-1])]
        return [self.id_bytes[start:end].decode() for start, end in zip(starts, ends, strict=True)]


# Answers of so many results are kept by their index for the next search.
_SPARE_K = 128
# A Struct takes half the time of ffi.unpack.
_DOUBLES = [Struct(f"={n}d").unpack_from for n in range(_SPARE_K + 1)]
_UINT32S = [Struct(f"={n}I").unpack_from for n in range(_SPARE_K + 1)]


class NativeIndex:
    """An index in native memory.

    Args:
        dim: components of a vector, 1 to DIM_MAX.
        metric: ``cosine``, ``l2`` or ``dot``.
        memory: ``default`` or ``compact``.
        M: links of a row on upper levels, M_MIN to M_MAX.
        ef_construction: candidates while linking, 1 to EF_MAX.
        threads: most threads a call may use.
        hash_seed: seed of the id table; changes no answer and no saved byte.

    Raises:
        InvalidInputError: a setting is out of range, or FVDB_KERNELS names kernels this CPU cannot run.
        IndexStateError: memory or a lock could not be had.
    """

    __slots__ = ("_index", "_query_bytes", "_spare", "dim")

    def __init__(
        self, dim: int, metric: str, memory: str, M: int, ef_construction: int, threads: int, hash_seed: int = 0
    ) -> None:
        out, diag = ffi.new("fvdb_index **"), ffi.new("fvdb_diag *")
        config = _config(dim, metric, memory, M, ef_construction, threads, hash_seed)
        status = lib.fvdb_create(config, out, diag)
        if status:
            _raise(status, diag)
        self._own(out[0], dim)

    def _own(self, index: Any, dim: int) -> None:
        self.dim, self._query_bytes = dim, 4 * dim
        # Answers that no call uses. The pop and the append of a list are atomic, with the GIL and without.
        self._spare: list[_Answer] = []
        self._index = ffi.gc(index, lib.fvdb_free)

    @classmethod
    def load_begin(
        cls,
        dim: int,
        *,
        metric: str,
        memory: str,
        M: int,
        ef_construction: int,
        threads: int,
        rows: int,
        graph_rows: int,
        rows_per_part: int,
        rows_per_group: int,
        stored_rows: int | None = None,
        lists: int = 0,
        has_codes: bool,
        has_bare: bool = False,
        hash_seed: int = 0,
    ) -> NativeIndex:
        """An index that takes `load_part` for each of its parts, then `load_end` or `load_lazy`, and nothing before.

        Args:
            dim, metric, memory, M, ef_construction, threads, hash_seed: as of a new one.
            rows: rows, tombstones included.
            graph_rows: rows in the graph.
            rows_per_part: rows of a part with vectors.
            rows_per_group: rows of a part of another kind.
            stored_rows: rows before the first whose links are in no part; None for all.
            lists: number of lists.
            has_codes: there are parts of codes and a head of the graph.
            has_bare: there are rows without a vector.

        Raises:
            InvalidInputError: a setting is out of range.
            IndexStateError: memory could not be had.
        """
        out, diag = ffi.new("fvdb_index **"), ffi.new("fvdb_diag *")
        config = _config(dim, metric, memory, M, ef_construction, threads, hash_seed)
        load = ffi.new(
            "fvdb_load *",
            {
                "rows": rows,
                "graph_rows": graph_rows,
                "stored_rows": rows if stored_rows is None else stored_rows,
                "lists": lists,
                "rows_per_part": rows_per_part,
                "rows_per_group": rows_per_group,
                "has_codes": has_codes,
                "has_bare": has_bare,
            },
        )
        status = lib.fvdb_load_begin(config, load, out, diag)
        if status:
            _raise(status, diag)
        return cls._owning(out[0], dim)

    @classmethod
    def _owning(cls, index: Any, dim: int) -> NativeIndex:
        self = cls.__new__(cls)
        self._own(index, dim)
        return self

    def with_dim(self, dim: int) -> NativeIndex:
        """A copy for vectors of another dimension, the same rows in the same slots.

        Raises:
            InvalidInputError: dim is out of range, or a row has a vector.
            IndexStateError: memory could not be had.
        """
        out, diag = ffi.new("fvdb_index **"), ffi.new("fvdb_diag *")
        status = lib.fvdb_with_dim(self._index, dim, out, diag)
        if status:
            _raise(status, diag)
        return self._owning(out[0], dim)

    def load_part(self, raw: bytes | bytearray | memoryview) -> None:
        """Reads one part's uncompressed bytes; safe on untrusted bytes and from several threads.

        Raises:
            IntegrityError: they break a rule of the format.
            IndexStateError: memory could not be had.
        """
        diag = ffi.new("fvdb_diag *")
        status = lib.fvdb_load_part(self._index, ffi.from_buffer(raw) if len(raw) else ffi.NULL, len(raw), diag)
        if status:
            _raise(status, diag)

    def load_end(self, steps: Sequence[int] = (), control: Control | None = None) -> None:
        """Checks the parts against each other and makes the index whole.

        Args:
            steps: as `graph_steps` gave them.
            control: stops it.

        Raises:
            IntegrityError: a part is missing, or they do not fit together.
            IndexStateError: memory or threads could not be had.
            NativeCancelled: `control` asked for it.
        """
        diag = ffi.new("fvdb_diag *")
        ends = ffi.new("uint32_t[]", list(steps))
        status = lib.fvdb_load_end(self._index, ends, len(steps), control.pointer if control else ffi.NULL, diag)
        if status:
            _raise(status, diag)

    # ---- lazy loads

    def load_lazy(self) -> None:
        """Ends a load of which only codes, ids, timestamps, tombstones and the graph's head came.

        What there is answers `find`, `get_ids`, `get_timestamps`, `live_slots`, `stats` and the calls of this group,
        and nothing else; it never changes.

        Raises:
            IntegrityError: a part is missing, or they do not fit together.
            IndexStateError: memory could not be had.
        """
        diag = ffi.new("fvdb_diag *")
        status = lib.fvdb_load_lazy(self._index, diag)
        if status:
            _raise(status, diag)

    def candidates(self, query: Float32Array, k: int, allow: UInt64Array | None = None) -> UInt32Array:
        """The slots of the k live rows nearest to a query as far as their codes tell, nearest first.

        Raises:
            InvalidInputError: the query is not finite, or zero under cosine.
            IndexStateError: memory could not be had.
        """
        _expect("query", query, np.float32, (self.dim,))
        out, count, diag = np.empty(k, dtype=np.uint32), ffi.new("uint32_t *"), ffi.new("fvdb_diag *")
        status = lib.fvdb_candidates(
            self._index,
            _pointer("float[]", query),
            k,
            ffi.NULL if allow is None else _bitmap(allow),
            0 if allow is None else len(allow),
            _pointer("uint32_t[]", out),
            count,
            diag,
        )
        if status:
            _raise(status, diag)
        return out[: count[0]]

    def check_part(self, raw: bytes) -> None:
        """Checks a part with vectors before `search_part` or `part_vectors`; safe on untrusted bytes.

        Raises:
            IntegrityError: it breaks a rule of the format.
        """
        diag = ffi.new("fvdb_diag *")
        status = lib.fvdb_part_check(self._index, ffi.from_buffer(raw), len(raw), diag)
        if status:
            _raise(status, diag)

    def search_part(
        self, raw: bytes, query: Float32Array, k: int, allow: UInt64Array | None = None
    ) -> tuple[UInt32Array, npt.NDArray[np.float64]]:
        """The k live rows of a checked part nearest to a query: slots and exact distances, nearest first.

        Raises:
            InvalidInputError: the query is not finite, or zero under cosine.
            IndexStateError: memory could not be had.
        """
        _expect("query", query, np.float32, (self.dim,))
        slots, distances = np.empty(k, dtype=np.uint32), np.empty(k, dtype=np.float64)
        count, diag = ffi.new("uint32_t *"), ffi.new("fvdb_diag *")
        status = lib.fvdb_part_search(
            self._index,
            ffi.from_buffer(raw),
            len(raw),
            _pointer("float[]", query),
            k,
            ffi.NULL if allow is None else _bitmap(allow),
            0 if allow is None else len(allow),
            _pointer("uint32_t[]", slots),
            _pointer("double[]", distances),
            count,
            diag,
        )
        if status:
            _raise(status, diag)
        return slots[: count[0]], distances[: count[0]]

    def part_vectors(self, raw: bytes, slots: UInt32Array) -> Float32Array:
        """The exact vectors of slots that a checked part has, (n, dim) float32.

        Raises:
            NotFoundError: the part does not have a slot.
        """
        _expect("slots", slots, np.uint32, (len(slots),))
        out, diag = np.empty((len(slots), self.dim), dtype=np.float32), ffi.new("fvdb_diag *")
        pointers = _pointer("uint32_t[]", slots), len(slots), _pointer("float[]", out)
        status = lib.fvdb_part_vectors(self._index, ffi.from_buffer(raw), len(raw), *pointers, diag)
        if status:
            _raise(status, diag)
        return out

    def close(self) -> None:
        """Frees all memory at once; idempotent. No other call may be under way."""
        index, self._index = self._index, None  # cffi refuses None with a TypeError; C would follow a NULL
        self._spare.clear()  # they hold the ids of the last hits
        if index is not None:
            ffi.release(index)

    def leave_to_parent(self) -> None:
        """Never frees the memory: in a child process, locks of threads that are not there would make that wait."""
        if self._index is not None:
            ffi.gc(self._index, None)

    # ---- add and search

    def add(
        self,
        vectors: Float32Array,
        id_bytes: bytes,
        id_offsets: UInt64Array,
        timestamps: Int64Array,
        on_conflict: str = "error",
        control: Control | None = None,
        bare: UInt8Array | None = None,
        for_lists: bool = False,
    ) -> tuple[UInt32Array, UInt32Array]:
        """Adds rows: all or nothing.

        Args:
            vectors: (n, dim) float32, C-contiguous.
            id_bytes, id_offsets: as `pack_ids` gives them.
            timestamps: n int64, microseconds since 1970-01-01T00:00:00Z.
            on_conflict: ``error``, ``replace`` or ``skip`` for ids that are live.
            control: progress and cancellation.
            bare: n uint8, 1 for a row without a vector, which is all zeros in `vectors`; None for none.
            for_lists: leave the rows out of the graph, of which there is none: `train`, `migrate` and `vacuum` follow
                before any save.

        Returns:
            Two arrays of n uint32: the slot of each row (NO_SLOT when skipped) and the slot it replaced
            (NO_SLOT when none).

        Raises:
            InvalidInputError, ConflictError: details has ``row``; nothing was added.
            IndexStateError: memory or threads could not be had, or a limit was passed.
            NativeCancelled: `control` asked for it.
        """
        n = _expect_ids(id_bytes, id_offsets)
        _expect("vectors", vectors, np.float32, (n, self.dim))
        _expect("timestamps", timestamps, np.int64, (n,))
        slots, replaced = np.empty(n, dtype=np.uint32), np.empty(n, dtype=np.uint32)
        rows, diag = ffi.new("fvdb_rows *"), ffi.new("fvdb_diag *")
        rows.n = n
        rows.vectors = _pointer("float[]", vectors)
        rows.id_bytes = ffi.from_buffer("uint8_t[]", id_bytes)
        rows.id_offsets = _pointer("uint64_t[]", id_offsets)
        rows.timestamps = _pointer("int64_t[]", timestamps)
        rows.for_lists = for_lists
        if bare is not None:
            _expect("bare", bare, np.uint8, (n,))
            rows.bare = _pointer("uint8_t[]", bare)
        status = lib.fvdb_add(
            self._index,
            rows,
            _ON_CONFLICT[on_conflict],
            _pointer("uint32_t[]", slots),
            _pointer("uint32_t[]", replaced),
            control.pointer if control else ffi.NULL,
            diag,
        )
        if status:
            _raise(status, diag)
        return slots, replaced

    @overload
    def search_one(
        self,
        query: Float32Array,
        k: int,
        ef_search: int = 0,
        exact: bool = False,
        nowait: Literal[False] = False,
        with_slots: bool = True,
        nprobe: int = 0,
        allow: UInt64Array | None = None,
    ) -> tuple[Sequence[int], Sequence[float], list[str], int]: ...
    @overload
    def search_one(
        self,
        query: Float32Array,
        k: int,
        ef_search: int = 0,
        exact: bool = False,
        nowait: bool = False,
        with_slots: bool = True,
        nprobe: int = 0,
        allow: UInt64Array | None = None,
    ) -> tuple[Sequence[int], Sequence[float], list[str], int] | None: ...
    def search_one(
        self,
        query: Float32Array,
        k: int,
        ef_search: int = 0,
        exact: bool = False,
        nowait: bool = False,
        with_slots: bool = True,
        nprobe: int = 0,
        allow: UInt64Array | None = None,
    ) -> tuple[Sequence[int], Sequence[float], list[str], int] | None:
        """The k nearest rows of one query, with as little around the C call as Python allows.

        Args:
            query: dim float32, C-contiguous.
            k: 1 to K_MAX.
            ef_search: 0 lets the library choose.
            exact: score every row exactly.
            nowait: return None instead of waiting for a writer.
            with_slots: False leaves the slots out, for callers that need none.
            nprobe: lists to look at; 0 lets the library choose.
            allow: as of `search`.

        Returns:
            Slots, distances and ids of the results, nearest first, and the plan.

        Raises:
            InvalidInputError: `k` or `ef_search` is out of range, or the query is not finite or zero.
            IndexStateError: memory could not be had.
        """
        if query.nbytes != self._query_bytes:
            _expect("query", query, np.float32, (self.dim,))
        try:
            answer = self._spare.pop() if k <= _SPARE_K else _Answer(k)
        except IndexError:
            answer = _Answer(_SPARE_K)
        c, flags = answer.c, (_EXACT if exact else 0) | (_NOWAIT if nowait else 0)
        if allow is not None:
            bitmap = _bitmap(allow)  # a name keeps it alive
            c.allow, c.allow_words = bitmap, len(allow)
        vector = ffi.from_buffer(_FLOATS, query)
        while status := lib.fvdb_search_one(self._index, vector, k, ef_search, nprobe, flags, c):
            if status == lib.FVDB_ERR_BUSY:
                c.allow, c.allow_words = ffi.NULL, 0
                self._spare.append(answer)
                return None
            if status != lib.FVDB_ERR_BUFFER:
                _raise(status, c.diag)
            answer.reserve(int(c.diag.expected))
        n = c.count
        if n <= _SPARE_K:
            slots = _UINT32S[n](answer.slot_bytes) if with_slots else ()
            distances = _DOUBLES[n](answer.distance_bytes)
        else:
            slots, distances = ffi.unpack(answer.slots, n), ffi.unpack(answer.distances, n)
        ids = answer.id_bytes[: c.id_size - 1].decode().split("\0") if n else []
        if len(ids) != n:
            ids = answer.ids_by_ends(n)
        plan = c.plan
        if allow is not None:
            c.allow, c.allow_words = ffi.NULL, 0
        if k <= _SPARE_K:
            self._spare.append(answer)
        return slots, distances, ids, plan

    def search(
        self,
        queries: Float32Array,
        k: int,
        *,
        ef_search: int = 0,
        exact: bool = False,
        nowait: bool = False,
        allow: UInt64Array | None = None,
        with_ids: bool = True,
        control: Control | None = None,
        nprobe: int = 0,
    ) -> SearchHits:
        """The k nearest rows of each query, in one native call.

        Args:
            queries: (n, dim) float32, C-contiguous.
            k: 1 to K_MAX.
            ef_search: 0 lets the library choose.
            exact: score every row exactly.
            nowait: raise NativeBusy instead of waiting for a writer.
            allow: bitmap of slots that may be returned (bit s % 64 of word s // 64), None for all.
            with_ids: False leaves the ids out, for callers that need none.
            control: cancellation.
            nprobe: lists to look at; 0 lets the library choose.

        Raises:
            InvalidInputError: a parameter is out of range, or a query is not finite or zero (details ``row``).
            NativeBusy, NativeCancelled: as asked for.
            IndexStateError: memory or threads could not be had.
        """
        n = len(queries)
        _expect("queries", queries, np.float32, (n, self.dim))
        bitmap = ffi.NULL if allow is None else _bitmap(allow)
        slots, distances = np.empty((n, k), dtype=np.uint32), np.empty((n, k), dtype=np.float64)
        counts, plans = np.empty(n, dtype=np.uint32), np.empty(n, dtype=np.uint32)
        offsets = np.zeros(n * k + 1 if with_ids else 0, dtype=np.uint64)
        params = ffi.new("fvdb_search_params *", [k, ef_search, exact, nowait, nprobe])
        diag = ffi.new("fvdb_diag *")
        room = n * k * _ID_ROOM_PER_HIT if with_ids else 0
        while True:
            id_bytes = np.empty(max(room, 1), dtype=np.uint8)
            status = lib.fvdb_search(
                self._index,
                _pointer("float[]", queries),
                n,
                params,
                bitmap,
                0 if allow is None else len(allow),
                _pointer("uint32_t[]", slots),
                _pointer("double[]", distances),
                _pointer("uint32_t[]", counts),
                _pointer("uint32_t[]", plans),
                _pointer("uint8_t[]", id_bytes),
                len(id_bytes),
                _pointer("uint64_t[]", offsets),
                control.pointer if control else ffi.NULL,
                diag,
            )
            if status == lib.FVDB_ERR_BUFFER:
                room = int(diag.expected)
                continue
            if status:
                _raise(status, diag)
            break
        if not with_ids:
            return SearchHits(slots, distances, counts, plans, [])
        ids = _unpack_ids(id_bytes[: int(offsets[-1])].tobytes(), offsets)
        per_query = [ids[i * k : i * k + int(count)] for i, count in enumerate(counts)]
        return SearchHits(slots, distances, counts, plans, per_query)

    # ---- rows

    def find(self, id_bytes: bytes, id_offsets: UInt64Array) -> UInt32Array:
        """Slots of ids, NO_SLOT for ids that are not live."""
        n = _expect_ids(id_bytes, id_offsets)
        slots = np.empty(n, dtype=np.uint32)
        lib.fvdb_find(
            self._index,
            ffi.from_buffer("uint8_t[]", id_bytes),
            _pointer("uint64_t[]", id_offsets),
            n,
            _pointer("uint32_t[]", slots),
        )
        return slots

    def get_vectors(self, slots: UInt32Array) -> Float32Array:
        """The exact vectors of slots, (n, dim) float32.

        Raises:
            NotFoundError: a slot is past the end.
        """
        _expect("slots", slots, np.uint32, (len(slots),))
        out = np.empty((len(slots), self.dim), dtype=np.float32)
        diag = ffi.new("fvdb_diag *")
        pointers = _pointer("uint32_t[]", slots), len(slots), _pointer("float[]", out)
        status = lib.fvdb_get_vectors(self._index, *pointers, diag)
        if status:
            _raise(status, diag)
        return out

    def are_bare(self, slots: UInt32Array) -> npt.NDArray[np.bool_]:
        """Which rows have no vector.

        Raises:
            NotFoundError: a slot is past the end.
        """
        _expect("slots", slots, np.uint32, (len(slots),))
        out, diag = np.empty(len(slots), dtype=np.uint8), ffi.new("fvdb_diag *")
        pointers = _pointer("uint32_t[]", slots), len(slots), _pointer("uint8_t[]", out)
        status = lib.fvdb_are_bare(self._index, *pointers, diag)
        if status:
            _raise(status, diag)
        return out.astype(np.bool_)

    def get_timestamps(self, slots: UInt32Array) -> Int64Array:
        """The timestamps of slots, n int64 microseconds since 1970.

        Raises:
            NotFoundError: a slot is past the end.
        """
        _expect("slots", slots, np.uint32, (len(slots),))
        out = np.empty(len(slots), dtype=np.int64)
        diag = ffi.new("fvdb_diag *")
        pointers = _pointer("uint32_t[]", slots), len(slots), _pointer("int64_t[]", out)
        status = lib.fvdb_get_timestamps(self._index, *pointers, diag)
        if status:
            _raise(status, diag)
        return out

    def get_ids(self, slots: UInt32Array) -> list[str]:
        """The ids of slots.

        Raises:
            NotFoundError: a slot is past the end.
        """
        _expect("slots", slots, np.uint32, (len(slots),))
        offsets = np.zeros(len(slots) + 1, dtype=np.uint64)
        diag = ffi.new("fvdb_diag *")
        room = len(slots) * _ID_ROOM_PER_HIT
        while True:
            out = np.empty(max(room, 1), dtype=np.uint8)
            status = lib.fvdb_get_ids(
                self._index,
                _pointer("uint32_t[]", slots),
                len(slots),
                _pointer("uint8_t[]", out),
                len(out),
                _pointer("uint64_t[]", offsets),
                diag,
            )
            if status == lib.FVDB_ERR_BUFFER:
                room = int(diag.expected)
                continue
            if status:
                _raise(status, diag)
            return _unpack_ids(out[: int(offsets[-1])].tobytes(), offsets)

    def live_slots(self, first: int, capacity: int) -> UInt32Array:
        """At most `capacity` live slots from `first` on, ascending."""
        out = np.empty(capacity, dtype=np.uint32)
        count = ffi.new("uint32_t *")
        lib.fvdb_live_slots(self._index, first, _pointer("uint32_t[]", out), capacity, count)
        return out[: count[0]]

    # ---- recent and historical

    def train(self, cutoff_us: int, control: Control | None = None) -> None:
        """Trains lists for the historical rows and the recent ones older than `cutoff_us`.

        Raises:
            NativeTooFew: these rows are not worth lists.
            IndexStateError: memory or threads could not be had.
            NativeCancelled: `control` asked for it.
        """
        diag = ffi.new("fvdb_diag *")
        status = lib.fvdb_train(self._index, cutoff_us, control.pointer if control else ffi.NULL, diag)
        if status:
            _raise(status, diag)

    def migrate(self, cutoff_us: int, step: int, first: int = 0) -> tuple[int, int]:
        """Moves at most `step` recent rows older than `cutoff_us` to their lists, beginning at slot `first`.

        Returns:
            How many were moved, and the slot to go on from, NO_SLOT when there are no more.

        Raises:
            NativeUntrained: there are no lists.
            IndexStateError: memory or threads could not be had.
        """
        after, moved, diag = ffi.new("uint32_t *", first), ffi.new("uint32_t *"), ffi.new("fvdb_diag *")
        status = lib.fvdb_migrate(self._index, cutoff_us, step, after, moved, diag)
        if status:
            _raise(status, diag)
        return int(moved[0]), int(after[0])

    def historical(self) -> UInt64Array:
        """Bitmap of the live rows on lists, as `search` takes one."""
        out = np.empty((self.stats().rows + 63) // 64, dtype=np.uint64)
        diag = ffi.new("fvdb_diag *")
        status = lib.fvdb_historical(self._index, _pointer("uint64_t[]", out), len(out), diag)
        if status:
            _raise(status, diag)
        return out

    def probes(self, k: int, recall: float) -> int:
        """Lists that hold this share of the k nearest historical rows, as measured at training; 0 without lists."""
        return int(lib.fvdb_probes(self._index, k, recall))

    # ---- delete, vacuum, statistics

    def delete(self, id_bytes: bytes, id_offsets: UInt64Array, missing_ok: bool) -> UInt32Array:
        """Makes the rows of ids tombstones: all or nothing.

        Returns:
            The slot of each id, NO_SLOT for one that was not live or stood earlier in the call.

        Raises:
            NotFoundError: an id is not live and `missing_ok` is false; details has ``row``.
        """
        n = _expect_ids(id_bytes, id_offsets)
        slots, diag = np.empty(n, dtype=np.uint32), ffi.new("fvdb_diag *")
        status = lib.fvdb_delete(
            self._index,
            ffi.from_buffer("uint8_t[]", id_bytes),
            _pointer("uint64_t[]", id_offsets),
            n,
            missing_ok,
            _pointer("uint32_t[]", slots),
            diag,
        )
        if status:
            _raise(status, diag)
        return slots

    def vacuum_order(self) -> UInt32Array:
        """The live slots in the order that a vacuum would give them now."""
        out = np.empty(self.stats().live, dtype=np.uint32)
        diag = ffi.new("fvdb_diag *")
        status = lib.fvdb_vacuum_order(self._index, _pointer("uint32_t[]", out), len(out), diag)
        if status:
            _raise(status, diag)
        return out

    def vacuum(self, control: Control | None = None) -> UInt32Array:
        """Removes tombstones, takes historical rows out of the graph and renumbers: all or nothing.

        Returns:
            Old slot -> new slot, NO_SLOT for removed rows.

        Raises:
            IndexStateError: memory or threads could not be had.
            NativeCancelled: `control` asked for it.
        """
        slot_map = np.empty(self.stats().rows, dtype=np.uint32)
        diag = ffi.new("fvdb_diag *")
        word = control.pointer if control else ffi.NULL
        status = lib.fvdb_vacuum(self._index, _pointer("uint32_t[]", slot_map), len(slot_map), word, diag)
        if status:
            _raise(status, diag)
        return slot_map

    def near_order(self, control: Control | None = None) -> UInt32Array:
        """All slots in an order in which recent rows that are near each other stand together.

        Raises:
            IndexStateError: memory or threads could not be had.
            NativeCancelled: `control` asked for it.
        """
        out = np.empty(self.stats().rows, dtype=np.uint32)
        diag = ffi.new("fvdb_diag *")
        word = control.pointer if control else ffi.NULL
        status = lib.fvdb_near_order(self._index, _pointer("uint32_t[]", out), len(out), word, diag)
        if status:
            _raise(status, diag)
        return out

    def renumber(self, order: UInt32Array) -> None:
        """Gives the row of slot ``order[i]`` the slot i, tombstones too: all or nothing.

        Raises:
            InvalidInputError: it is no order of all slots, or moves rows that a vacuum put in front.
            IndexStateError: memory could not be had.
        """
        _expect("order", order, np.uint32, (len(order),))
        diag = ffi.new("fvdb_diag *")
        status = lib.fvdb_renumber(self._index, _pointer("uint32_t[]", order), len(order), diag)
        if status:
            _raise(status, diag)

    def stats(self) -> NativeStats:
        """Counts and memory; O(1)."""
        out = ffi.new("fvdb_stats *")
        lib.fvdb_get_stats(self._index, out)
        return NativeStats(*(int(getattr(out, name)) for name in NativeStats._fields))

    # ---- parts

    def parts(self, rows_per_part: int, rows_per_group: int) -> list[PartInfo]:
        """The parts of the index as it is now, in a fixed order.

        Args:
            rows_per_part: rows of a part with vectors.
            rows_per_group: rows of a part of another kind.
        """
        count, diag = ffi.new("uint32_t *"), ffi.new("fvdb_diag *")
        lib.fvdb_parts(self._index, rows_per_part, rows_per_group, ffi.NULL, 0, count, diag)
        out = ffi.new("fvdb_part[]", count[0])
        status = lib.fvdb_parts(self._index, rows_per_part, rows_per_group, out, count[0], count, diag)
        if status:
            _raise(status, diag)
        return [PartInfo(int(part.kind), int(part.number), int(part.size)) for part in out]

    def graph_steps(self) -> tuple[int, list[int]]:
        """Rows of the stored graph, 0 where it must be stored anew, and of rows after each add since then."""
        steps, count = ffi.new("uint32_t[]", STEPS_MAX), ffi.new("uint32_t *")
        stored = lib.fvdb_graph_steps(self._index, steps, count)
        return int(stored), ffi.unpack(steps, count[0])

    def graph_stored(self) -> None:
        """Says that the graph is stored as it is now."""
        lib.fvdb_graph_stored(self._index)

    def write_part(self, rows_per_part: int, rows_per_group: int, kind: int, number: int, size: int) -> bytearray:
        """The bytes of one part; `size` as `parts` gave it."""
        raw = bytearray(size)
        written, diag = ffi.new("uint64_t *"), ffi.new("fvdb_diag *")
        target = ffi.from_buffer("uint8_t[]", raw, require_writable=True)
        status = lib.fvdb_part_write(
            self._index, rows_per_part, rows_per_group, kind, number, target, size, written, diag
        )
        if status:
            _raise(status, diag)
        if written[0] != size:
            raise InternalError(f"part {kind}.{number} has {written[0]} bytes, not {size}: it changed meanwhile")
        return raw


def _unpack_ids(text: bytes, offsets: UInt64Array) -> list[str]:
    bounds = offsets.tolist()
    return [text[start:end].decode() for start, end in pairwise(bounds)]

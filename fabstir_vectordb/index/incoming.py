"""Checks and converts the arguments of callers: rows to arrays, queries and options to requests. No index is used here.

An exception of a foreign array or iterable becomes INVALID_INPUT, with that exception as its cause.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import fields
from datetime import datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.handle import DIM_MAX, ID_BYTES_MAX, pack_ids
from fabstir_vectordb.config import UNSET, Unset, check_recall_target, check_threshold
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import ConflictError, InvalidInputError, MemoryBudgetExceededError
from fabstir_vectordb.metadata.expiry import NEVER_US, Times
from fabstir_vectordb.metadata.filter_parse import parse_filter
from fabstir_vectordb.metadata.values import encode_metadata, shown as value_shown
from fabstir_vectordb.params import (
    OPTION_NAMES,
    SearchOptions,
    SearchRequest,
    check_bool,
    check_ef,
    check_exact,
    check_groups,
    check_k,
    check_mmr,
    check_nprobe,
    check_rerank,
    check_text,
    make_options,
    recall_target_excludes,
)
from fabstir_vectordb.types import VectorInput

__all__ = [
    "Batch",
    "check_query_dim",
    "make_request",
    "named",
    "one_id",
    "prepare_batch",
    "prepare_queries",
    "prepare_query",
    "seeming_shape",
    "shown",
    "take_ids",
    "take_items",
    "taken",
]

_FLOAT32: Final = np.dtype(np.float32)
_ON_CONFLICT: Final = ("error", "replace", "skip")
_SEARCH_OPTIONS: Final = OPTION_NAMES["SearchOptions"]
#: Seconds since 1970 of the years 1 to 9999, the range of a datetime. Present times in milliseconds lie outside.
_SECONDS_MIN, _SECONDS_END = -62_135_596_800, 253_402_300_800
_YEAR_MIN, _YEAR_MAX = 1, 9_999


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one add, checked by Python. The native core checks the rest: numbers, ids and conflicts."""

    ids: Sequence[str]
    id_bytes: bytes
    id_offsets: npt.NDArray[np.uint64]
    vectors: npt.NDArray[np.float32]
    vectorless: npt.NDArray[np.uint8] | None
    """1 for a row without a vector, which is all zeros in `vectors`; None where every row has a vector."""
    timestamps: npt.NDArray[np.int64]
    expires: Times | None
    """Expiry times; None where no row expires."""
    metadata: Sequence[bytes | None] | None
    copied: bool
    """Whether `vectors` is a copy of the caller's array."""

    @property
    def metadata_bytes(self) -> int:
        """Bytes of metadata."""
        return sum(len(value) for value in self.metadata or () if value is not None)

    @property
    def nbytes(self) -> int:
        """Bytes that the batch holds in addition to the caller's objects."""
        vectors = self.vectors.nbytes if self.copied else 0
        arrays = self.id_offsets.nbytes + self.timestamps.nbytes + (0 if self.expires is None else self.expires.nbytes)
        return vectors + arrays + len(self.id_bytes) + self.metadata_bytes


def prepare_batch(
    ids: Sequence[str],
    vectors: Any,
    metadata: Sequence[Any] | None,
    timestamps: Any,
    now_us: Callable[[], int],
    dim: int | None,
    expires_at: Any = None,
    room_bytes: int | None = None,
) -> Batch:
    """Checks and converts the arguments of an add.

    Args:
        ids: n strings.
        vectors: (n, dim) numbers, or a list of n vectors and None for rows without; None where no row has a vector.
        metadata: n JSON-shaped values or None, or None for no metadata at all.
        timestamps: n seconds since 1970, aware datetimes or datetime64, or None for now; also None for single rows. The
            k-th row of a call gets now and k microseconds, so that timestamps tell the order of insertion.
        now_us: the clock, read at most once.
        dim: the index's dimension, None while it has none.
        expires_at: in the forms of `timestamps`; None for never.
        room_bytes: most bytes that the encoded metadata may take; None for no limit.

    Raises:
        InvalidInputError: details has ``row`` where one row is at fault.
        MemoryBudgetExceededError: the metadata takes more than `room_bytes`; encoding stops there.
    """
    if isinstance(ids, (str, bytes)):
        raise InvalidInputError("ids must be a sequence of strings, not one string")
    if not isinstance(ids, Iterable):
        raise InvalidInputError(f"ids must be a sequence of strings, got {type(ids).__name__}")
    matrix, vectorless = _with_vectorless(vectors, ids, dim)
    n = len(matrix)
    ids = ids if isinstance(ids, (list, tuple)) else taken(ids, "ids")
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
        vectorless=vectorless,
        timestamps=_timestamps(timestamps, n, now_us, "timestamp", 1),
        expires=None if expires_at is None else _timestamps(expires_at, n, lambda: NEVER_US, "expires_at", 0),
        metadata=None if metadata is None else encode_values(taken(metadata, "metadata"), ids, room_bytes),
        copied=matrix is not vectors,
    )


def check_ids(batch: Batch) -> None:
    """Checks the sizes of ids, which the native core would check later.

    Raises:
        InvalidInputError: an id is empty or longer than ID_BYTES_MAX; details has ``row`` and ``id``.
    """
    sizes = np.diff(batch.id_offsets)
    wrong = np.flatnonzero((sizes == 0) | (sizes > ID_BYTES_MAX))
    if len(wrong):
        raise named(InvalidInputError("", details={"row": int(wrong[0])}), batch)


def check_on_conflict(on_conflict: object) -> None:
    """Checks an answer to ids that are live already.

    Raises:
        InvalidInputError: it is none of ``error``, ``replace`` and ``skip``.
    """
    if on_conflict not in _ON_CONFLICT:
        raise InvalidInputError(f"on_conflict must be one of {', '.join(_ON_CONFLICT)}, got {value_shown(on_conflict)}")


def rows_kept(ids: Sequence[str], is_live: Callable[[int], bool], on_conflict: str) -> list[int]:
    """The places of the rows that an add keeps: of equal ids ``replace`` keeps the last, ``skip`` the first.

    Args:
        ids: ids of the rows.
        is_live: whether the id at a place is live already.
        on_conflict: ``error``, ``replace`` or ``skip``; with ``error`` an add keeps all rows, or is refused.
    """
    if on_conflict == "replace":
        last = {id: row for row, id in enumerate(ids)}
        return [row for row, id in enumerate(ids) if last[id] == row]
    if on_conflict == "skip":
        first: dict[str, int] = {}
        for row, id in enumerate(ids):
            first.setdefault(id, row)
        return [row for row, id in enumerate(ids) if first[id] == row and not is_live(row)]
    return list(range(len(ids)))


def take_items(items: object) -> Sequence[Any]:
    """The items of an add, read from their iterable; `as_input` makes rows of them.

    To be called on the caller's thread: the iterable may read from an object of that thread, such as a database cursor.

    Raises:
        InvalidInputError: `items` is no iterable of rows, or the iterable failed.
    """
    if isinstance(items, (str, bytes, Mapping)) or not isinstance(items, Iterable):
        raise InvalidInputError(f"items must be VectorInputs or mappings, got {type(items).__name__}")
    return items if isinstance(items, (list, tuple)) else taken(items, "items")


def as_input(row: int, item: object) -> VectorInput:
    """One row from a VectorInput, or a mapping with its keys.

    Raises:
        InvalidInputError: `item` is something else; details has ``row``.
    """
    if isinstance(item, VectorInput):
        return item
    if not isinstance(item, Mapping):
        raise InvalidInputError(
            f"row {row} must be a VectorInput or a mapping, got {type(item).__name__}", details={"row": row}
        )
    try:
        return VectorInput(**item)
    except TypeError:
        known = ", ".join(field.name for field in fields(VectorInput))
        raise InvalidInputError(
            f"row {row} needs id and vector and knows only {known}; it has {', '.join(map(str, item))}",
            details={"row": row},
        ) from None


def take_ids(ids: object) -> list[str]:
    """Ids as a list of strings.

    Raises:
        InvalidInputError: `ids` is no iterable of strings, or the iterable failed.
    """
    if isinstance(ids, (str, bytes)):
        raise InvalidInputError("ids must be a sequence of strings, not one string")
    if not isinstance(ids, Iterable):
        raise InvalidInputError(f"ids must be a sequence of strings, got {type(ids).__name__}")
    listed = taken(ids, "ids")
    for row, text in enumerate(listed):
        if not isinstance(text, str):
            raise InvalidInputError(f"an id must be a string, got {type(text).__name__}", details={"row": row})
    return listed


def one_id(id: object) -> str:
    """Checks that an id is a string, and returns it.

    Raises:
        InvalidInputError: the id is no string.
    """
    if not isinstance(id, str):
        raise InvalidInputError(f"an id must be a string, got {type(id).__name__}")
    return id


def taken(values: Iterable[Any], what: str) -> list[Any]:
    """The items of a foreign iterable.

    Raises:
        InvalidInputError: the iterable failed; its exception is the cause.
    """
    try:
        return list(values)
    except Exception as error:
        raise InvalidInputError(f"{what} could not be read: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


# ---- A search ----------------------------------------------------------------------------------------------


def make_request(
    vector: npt.NDArray[np.float32],
    k: Any,
    options: SearchOptions | Mapping[str, Any] | None,
    given: Mapping[str, Any],
    *,
    default_threshold: float | Unset | None,
    default_target: float | None,
) -> SearchRequest:
    """Makes a search request. It checks all arguments, as far as they do not depend on the rows.

    Args:
        vector: the query, from `prepare_query`.
        k: rows to find.
        options, given: options, and single fields that override them.
        default_threshold, default_target: the session's values, for a search without its own.

    Raises:
        InvalidInputError: `k` or an option is refused.
    """
    k = check_k(k)
    if options is None and _SEARCH_OPTIONS.issuperset(given):
        # Without a SearchOptions object, which would take some microseconds.
        get = given.get
        threshold, include_vectors, filter = get("threshold", UNSET), get("include_vectors", False), get("filter")
        ef_search, exact, nprobe = get("ef_search"), get("exact", False), get("nprobe")
        recall_target, mmr = get("recall_target"), get("mmr")
        group_by, group_size = get("group_by"), get("group_size", 1)
        rerank, rerank_k = get("rerank"), get("rerank_k")
        text, fusion, alpha, highlight = get("text"), get("fusion"), get("alpha"), get("highlight", False)
    else:
        chosen = make_options(SearchOptions, options, given)
        threshold, include_vectors, filter = chosen.threshold, chosen.include_vectors, chosen.filter
        ef_search, exact, nprobe = chosen.ef_search, chosen.exact, chosen.nprobe
        recall_target, mmr = chosen.recall_target, chosen.mmr
        group_by, group_size = chosen.group_by, chosen.group_size
        rerank, rerank_k = chosen.rerank, chosen.rerank_k
        text, fusion, alpha, highlight = chosen.text, chosen.fusion, chosen.alpha, chosen.highlight
    said = None
    if text is not None or fusion is not None or alpha is not None or highlight is not False:
        said = check_text(text, fusion, alpha, highlight)
    if threshold is UNSET:
        # A default is meant for the metric's scores; with text, scores are others.
        threshold = default_threshold if said is None else None
    elif threshold is not None:
        check_threshold("threshold", threshold, InvalidInputError)
    if include_vectors is not False:
        include_vectors = check_bool("include_vectors", include_vectors)
    ef = 0 if ef_search is None else check_ef(ef_search)
    probes = 0 if nprobe is None else check_nprobe(nprobe)
    if exact is not False:
        exact = check_exact(exact, ef or probes)
    if recall_target is not None:
        recall_target = check_recall_target(recall_target, InvalidInputError)
        if ef or exact or probes:
            raise recall_target_excludes(recall_target, ef_search, exact, nprobe)
    elif default_target is not None and not (ef or exact or probes):
        recall_target = default_target
    if mmr is not None:
        mmr = check_mmr(mmr, k)
    if group_by is not None or group_size != 1:
        group_by, group_size = check_groups(group_by, group_size, k, mmr)
    candidates = 0
    if rerank is not None or rerank_k is not None:
        rerank, candidates = check_rerank(rerank, rerank_k, k, group_size, mmr)
    where = None if filter is None else parse_filter(filter)
    # The same as SearchRequest(...), in a third of the time.
    others = group_by, group_size, rerank, candidates, said
    asked = vector, k, threshold, include_vectors, ef, exact, probes, recall_target, where, mmr, *others
    return tuple.__new__(SearchRequest, asked)


def prepare_query(query: Any, dim: int | None = None) -> npt.NDArray[np.float32]:
    """A query as contiguous float32.

    Args:
        query: numbers of one vector, or an array of one row.
        dim: the index's dimension; None for any.

    Raises:
        InvalidInputError: `query` is no vector of numbers, or has another dimension.
    """
    if type(query) is np.ndarray and query.dtype == _FLOAT32 and query.ndim == 1 and query.flags.c_contiguous:
        vector = query
    else:
        vector = _numbers(query, "a query")
        if vector.ndim == 2 and len(vector) == 1:
            vector = vector[0]
        if vector.ndim != 1:
            raise InvalidInputError(
                f"A query must be one vector, got an array of shape {vector.shape}; search_batch takes many",
                details={"shape": vector.shape},
            )
    if len(vector) != dim:
        check_query_dim(len(vector), dim)
    return vector


def prepare_queries(queries: Any, dim: int | None) -> npt.NDArray[np.float32]:
    """Queries as (n, dim) contiguous float32.

    Raises:
        InvalidInputError: `queries` is no such array, or has another dimension.
    """
    matrix = _numbers(queries, "queries")
    if matrix.ndim != 2 and matrix.size:
        raise InvalidInputError(
            f"Queries must be an array of shape (n, dim), got {matrix.shape}", details={"shape": matrix.shape}
        )
    if matrix.ndim != 2:
        matrix = matrix.reshape(0, dim or 0)
    if len(matrix):
        check_query_dim(matrix.shape[1], dim)
    return matrix


def check_query_dim(actual: int, dim: int | None) -> None:
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
        raise InvalidInputError(f"{what} must be real numbers in a rectangular array: {error}") from error
    except Exception as error:  # any exception of a foreign array, such as a tensor that tracks gradients
        raise InvalidInputError(f"{what} could not be read as an array of numbers: {_reason(error)}") from error


def _with_vectorless(
    vectors: Any, ids: Any, dim: int | None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8] | None]:
    """Vectors as an array, and which rows have none."""
    if vectors is None:
        n = len(ids) if isinstance(ids, Sized) else 0
        return np.zeros((n, dim or 1), dtype=np.float32), np.ones(n, dtype=np.uint8) if n else None
    if not isinstance(vectors, (list, tuple)) or all(vector is not None for vector in vectors):
        return _matrix(vectors, dim), None
    vectorless = np.array([vector is None for vector in vectors], dtype=np.uint8)
    try:
        given = _matrix([vector for vector in vectors if vector is not None], dim)
    except InvalidInputError as error:
        if "row" in error.details:
            # Rows without a vector were not counted.
            row = int(np.flatnonzero(vectorless == 0)[error.details["row"]])
            raise InvalidInputError(error.message, details={**error.details, "row": row}) from None
        raise
    matrix = np.zeros((len(vectorless), given.shape[1]), dtype=np.float32)
    matrix[vectorless == 0] = given
    return matrix, vectorless


def seeming_shape(vectors: Any) -> tuple[int, int]:
    """Rows and components of an array or a list of vectors, unchecked; zeros for anything else."""
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
        # A dict is the metadata of one row; as a sequence it would be its keys.
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


def _timestamps(values: Any, n: int, missing_us: Callable[[], int], what: str, step_us: int) -> npt.NDArray[np.int64]:
    """Microseconds since 1970; a missing time is `missing_us`, and `step_us` more for each row before it."""
    if values is None:
        return missing_us() + step_us * np.arange(n, dtype=np.int64) if n else np.empty(0, dtype=np.int64)
    if isinstance(values, np.ndarray) and values.dtype.kind == "M":
        return _of_datetime64(values, what, 0)
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        fits = (values >= _SECONDS_MIN) & (values < _SECONDS_END)  # False for NaN
        if not fits.all():
            row = int(np.flatnonzero(~fits)[0])
            raise _bad_time(what, row, values[row])
        return np.rint(values.astype(np.float64) * 1e6).astype(np.int64)
    out = np.empty(n, dtype=np.int64)
    missing: int | None = None
    for row, value in enumerate(values.tolist() if isinstance(values, np.ndarray) else taken(values, what)):
        if value is None:
            missing = missing_us() if missing is None else missing
            out[row] = missing + step_us * row
        else:
            out[row] = _microseconds(what, row, value)
    return out


def _of_datetime64(values: npt.NDArray[Any], what: str, first_row: int) -> npt.NDArray[np.int64]:
    """Microseconds since 1970 of datetime64 values of any unit; numpy takes them as UTC."""
    if np.datetime_data(values.dtype)[0] == "generic":
        raise _bad_time(what, first_row, "a datetime64 without a unit")
    # The range is checked in years, as a conversion to microseconds may overflow.
    years = values.astype("datetime64[Y]").astype(np.int64) + 1970
    bad = np.isnat(values) | (years < _YEAR_MIN) | (years > _YEAR_MAX)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise _bad_time(what, first_row + row, values[row])
    return values.astype("datetime64[us]").astype(np.int64)


def _microseconds(what: str, row: int, value: Any) -> int:
    if isinstance(value, datetime):
        if not value == value:  # noqa: PLR0124  # pandas' NaT is a datetime, too
            raise _bad_time(what, row, value)
        if value.tzinfo is None:
            raise InvalidInputError(
                f"the {what} of row {row} has no time zone: use an aware datetime", details={"row": row}
            )
        # Through integers: a float would lose microseconds.
        since = value - datetime.fromisoformat("1970-01-01T00:00:00+00:00")
        return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    if isinstance(value, np.datetime64):
        return int(_of_datetime64(np.array([value]), what, row)[0])
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _can_be_said(value):
        raise _bad_time(what, row, value)
    return value * 1_000_000 if isinstance(value, int) else round(value * 1e6)


def _can_be_said(seconds: float) -> bool:
    """Whether the seconds lie in the years 1 to 9999, the range of a datetime; False for NaN."""
    return _SECONDS_MIN <= seconds < _SECONDS_END


def _bad_time(what: str, row: int, value: Any) -> InvalidInputError:
    hint = ""
    number: Any = value if isinstance(value, (int, float, np.number)) and not isinstance(value, bool) else 0
    if number >= _SECONDS_END:
        hint = f": the last year is {_YEAR_MAX}; milliseconds are divided first (value / 1000)"
    text = str(value) if isinstance(value, np.datetime64) else value_shown(value)
    return InvalidInputError(
        f"the {what} of row {row} must be seconds since 1970, an aware datetime or a datetime64, got {text}{hint}",
        details={"row": row},
    )


def encode_values(metadata: Sequence[Any], ids: Sequence[str], room_bytes: int | None) -> list[bytes | None]:
    """The CBOR bytes of rows' metadata.

    Raises:
        InvalidInputError: a value is refused; details has ``row`` and ``id``.
        MemoryBudgetExceededError: the bytes are more than `room_bytes`.
    """
    return within_room(map(encode_metadata, metadata), ids, room_bytes)


def within_room(values: Iterable[bytes | None], ids: Sequence[str], room_bytes: int | None) -> list[bytes | None]:
    """Encoded metadata of rows, made one row after the other and as long as there is room.

    Raises:
        InvalidInputError: a value could not be made; details has ``row`` and ``id``.
        MemoryBudgetExceededError: the bytes are more than `room_bytes`.
    """
    encoded: list[bytes | None] = []
    made, size = iter(values), 0
    for row, id in enumerate(ids):
        try:
            raw = next(made)
        except InvalidInputError as error:
            raise of_row(error, row, id) from None
        encoded.append(raw)
        size += 0 if raw is None else len(raw)
        if room_bytes is not None and size > room_bytes:
            raise MemoryBudgetExceededError(
                f"the metadata of {len(ids)} rows needs more than the {room_bytes / 1e6:.1f} MB that memory_budget_mb "
                "leaves for it: raise it, or add fewer rows at a time",
                details={"needed_bytes": size, "room_bytes": room_bytes, "row": row},
            )
    return encoded


def of_row(error: InvalidInputError, row: int, id: str) -> InvalidInputError:
    """The error, with the row and its id."""
    return InvalidInputError(
        f"row {row} (id {shown(id)}): {error.message}", details={**error.details, "row": row, "id": id}
    )


def shown(text: str) -> str:
    """An id for an error text."""
    return repr(text if len(text) <= 80 else text[:77] + "...")


def named(error: InvalidInputError | ConflictError, batch: Batch) -> InvalidInputError | ConflictError:
    """An error of the native core, which has row numbers, with the id of the row."""
    row = error.details.get("row", 0)
    id = batch.ids[row]
    details = {**error.details, "id": id}
    size = int(batch.id_offsets[row + 1] - batch.id_offsets[row])
    if isinstance(error, ConflictError):
        first = error.details.get("first_row")
        where = "already exists in the index" if first is None else f"occurs in rows {first} and {row} of this call"
        hint = "; on_conflict='replace' or 'skip' allows it" if first is None else ""
        return ConflictError(f"duplicate id {shown(id)}: it {where}{hint}", details=details)
    if size == 0:
        return InvalidInputError(f"the id of row {row} is empty", details=details)
    if size > ID_BYTES_MAX:
        return InvalidInputError(
            f"the id of row {row} takes {size} bytes of UTF-8, the limit is {ID_BYTES_MAX}",
            details={**details, "limit": ID_BYTES_MAX, "size": size},
        )
    return InvalidInputError(f"row {row} (id {shown(id)}): {error.message}", details=details)

"""Rows on their way into shards: from what a caller has, to checked arrays that are cut up and sent to tasks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.handle import pack_ids
from fabstir_vectordb.errors import ConflictError, InvalidInputError, VectorDBError
from fabstir_vectordb.index.incoming import Batch, as_input, prepare_batch, take_ids, taken
from fabstir_vectordb.metadata.expiry import NEVER_US
from fabstir_vectordb.tables import read_batches
from fabstir_vectordb.types import Row, VectorInput

__all__ = [
    "IDS_SHOWN",
    "check_unique",
    "checked_batches",
    "joined",
    "part",
    "picked",
    "rows_batch",
    "take_adds",
    "take_batches",
    "vectors_of",
    "with_vector",
]

_KEYS: Final = ("ids", "vectors", "metadata", "timestamps", "expires_at")
#: Most ids in the details of an error.
IDS_SHOWN: Final = 10


def checked_batches(batches: object, now_us: int, dim: int | None = None) -> Iterator[Batch]:
    """A caller's batches, one after the other.

    Args:
        batches: a table of Arrow or the path of a Parquet file, or an iterable whose items are tables, mappings with
            the arguments of `add_batch`, or lists of VectorInputs or of mappings.
        now_us: the timestamp of rows without one, microseconds since 1970.
        dim: components of a vector; None for that of the first one.

    Yields:
        Rows. Batches without a vector may have another dimension than the others.

    Raises:
        InvalidInputError: a row or a batch is refused.
    """
    if _is_table(batches):
        items: Iterable[Any] = [batches]
    elif isinstance(batches, (bytes, Mapping)) or not isinstance(batches, Iterable):
        raise InvalidInputError(f"batches must be an iterable of batches, got {type(batches).__name__}")
    else:
        items = batches
    try:
        for item in items:
            for one in _prepared(item, now_us, dim):
                if dim is None and len(one.ids) and with_vector(one).any():
                    dim = one.vectors.shape[1]
                yield one
    except VectorDBError:
        raise
    except Exception as error:
        raise InvalidInputError(f"batches could not be read: {type(error).__name__}: {error}") from error


def take_batches(batches: object, now_us: int, dim: int | None = None) -> Batch:
    """All rows of a caller's batches, as one batch.

    Args:
        batches, now_us, dim: as `checked_batches`.

    Returns:
        The rows.

    Raises:
        InvalidInputError: a row or a batch is refused.
        ConflictError: an id occurs twice; details has ``ids``.
    """
    found: list[Batch] = []
    for one in checked_batches(batches, now_us, dim):
        found.append(one)
        if dim is None and len(one.ids) and with_vector(one).any():
            dim = one.vectors.shape[1]
    batch = joined(found, dim)
    check_unique(batch.ids)
    return batch


def take_adds(adds: object, now_us: int, dim: int | None) -> Batch:
    """The rows of a change: one list of rows or one batch, or what `take_batches` takes.

    Raises:
        InvalidInputError, ConflictError: as `take_batches`.
    """
    if isinstance(adds, Mapping):
        return take_batches([adds], now_us, dim)
    if not _is_table(adds) and isinstance(adds, Iterable) and not isinstance(adds, (str, bytes)):
        rows = taken(adds, "adds")
        is_row = bool(rows) and (isinstance(rows[0], VectorInput) or (isinstance(rows[0], Mapping) and "id" in rows[0]))
        return take_batches([rows] if is_row else rows, now_us, dim)
    return take_batches(adds, now_us, dim)


def _is_table(value: object) -> bool:
    return isinstance(value, (str, Path)) or any(
        hasattr(value, name) for name in ("__arrow_c_stream__", "__arrow_c_array__")
    )


def _prepared(item: Any, now_us: int, dim: int | None) -> Iterable[Batch]:
    if isinstance(item, Batch):  # a task of a dataset's sink has checked it
        if dim is not None and with_vector(item).any() and item.vectors.shape[1] != dim:
            raise InvalidInputError(f"vectors have {item.vectors.shape[1]} components here, and {dim} elsewhere")
        yield item
    elif _is_table(item):
        for table in read_batches(item):
            yield _checked(*table, now_us, dim)
    elif isinstance(item, Mapping) and "ids" in item:
        unknown = [name for name in item if name not in _KEYS]
        if unknown or "vectors" not in item:
            raise InvalidInputError(f"a batch has ids, vectors and at most {', '.join(_KEYS[2:])}, got {list(item)}")
        ids, vectors, *others = (item.get(name) for name in _KEYS)
        yield _checked(ids, vectors, others[0], others[1], others[2], now_us, dim)
    elif isinstance(item, Sequence) and not isinstance(item, (str, bytes)):
        inputs = [as_input(row, one) for row, one in enumerate(item)]
        yield _checked(
            [one.id for one in inputs],
            [one.vector for one in inputs],
            [one.metadata for one in inputs],
            [one.timestamp for one in inputs],
            [one.expires_at for one in inputs],
            now_us,
            dim,
        )
    else:
        raise InvalidInputError(
            f"a batch is a table, a mapping with ids and vectors, or a list of rows, got {type(item).__name__}"
        )


def _checked(
    ids: Any, vectors: Any, metadata: Any, timestamps: Any, expires_at: Any, now_us: int, dim: int | None
) -> Batch:
    ids = take_ids(ids)
    if timestamps is None:
        timestamps = np.full(len(ids), now_us, dtype="datetime64[us]")
    elif not isinstance(timestamps, np.ndarray):
        # All the same: an order of the batches must not show in the rows.
        timestamps = [now_us / 1e6 if value is None else value for value in taken(timestamps, "timestamps")]
    batch = prepare_batch(ids, vectors, metadata, timestamps, lambda: now_us, dim, expires_at)
    finite = np.isfinite(batch.vectors).all(axis=1)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise InvalidInputError(f"the vector of row {row} has a number that is not finite", details={"row": row})
    return batch


def check_unique(ids: Sequence[str]) -> None:
    """Refuses ids of which one occurs twice.

    Raises:
        ConflictError: details has ``ids``, at most ten of them.
    """
    if len(set(ids)) == len(ids):
        return
    seen: set[str] = set()
    twice: list[str] = []
    for id in ids:
        if id in seen and len(twice) < IDS_SHOWN:
            twice.append(id)
        seen.add(id)
    raise ConflictError(f"the id {twice[0]!r} occurs twice among the rows", details={"ids": twice})


def with_vector(batch: Batch) -> npt.NDArray[np.bool_]:
    """Which rows have a vector."""
    if batch.vectorless is None:
        return np.ones(len(batch.ids), dtype=np.bool_)
    return np.equal(batch.vectorless, 0)


def vectors_of(batch: Batch) -> npt.NDArray[np.float32]:
    """The vectors of the rows that have one."""
    return batch.vectors if batch.vectorless is None else batch.vectors[with_vector(batch)]


def part(batch: Batch, start: int, end: int) -> Batch:
    """The rows of a batch from one place to another."""
    if start == 0 and end >= len(batch.ids):
        return batch
    return _at(batch, range(start, min(end, len(batch.ids))))


def picked(batch: Batch, places: npt.NDArray[np.intp]) -> Batch:
    """Some rows of a batch, in the order of their ids: so a task stores the same version, however its rows came."""
    return _at(batch, sorted(places.tolist(), key=batch.ids.__getitem__))


def _at(batch: Batch, order: Sequence[int]) -> Batch:
    ids = [batch.ids[place] for place in order]
    id_bytes, id_offsets = pack_ids(ids)
    places = np.array(order, dtype=np.intp)
    vectorless = None if batch.vectorless is None else batch.vectorless[places]
    expires = None if batch.expires is None else batch.expires[places]
    metadata = None if batch.metadata is None else [batch.metadata[place] for place in order]
    # What other rows have must not show.
    return Batch(
        ids=ids,
        id_bytes=id_bytes,
        id_offsets=id_offsets,
        vectors=batch.vectors[places],
        vectorless=None if vectorless is None or not vectorless.any() else vectorless,
        timestamps=batch.timestamps[places],
        expires=None if expires is None or (expires == NEVER_US).all() else expires,
        metadata=None if metadata is None or all(value is None for value in metadata) else metadata,
        copied=True,
    )


def joined(batches: Sequence[Batch], dim: int | None) -> Batch:
    """The rows of several batches as one.

    Args:
        batches: the batches; those without a vector may have another dimension.
        dim: components of a vector; None where no row has one.
    """
    batches = [batch for batch in batches if len(batch.ids)]
    width = dim or 1
    if len(batches) == 1 and batches[0].vectors.shape[1] == width:
        return batches[0]
    ids = [id for batch in batches for id in batch.ids]
    id_bytes, id_offsets = pack_ids(ids)
    vectors = np.zeros((len(ids), width), dtype=np.float32)
    vectorless = np.zeros(len(ids), dtype=np.uint8)
    start = 0
    for batch in batches:
        end = start + len(batch.ids)
        if batch.vectors.shape[1] == width:
            vectors[start:end] = batch.vectors
        vectorless[start:end] = 0 if batch.vectorless is None else batch.vectorless
        start = end
    times = [batch.timestamps for batch in batches]
    expires = None
    if any(batch.expires is not None for batch in batches):
        never = [np.full(len(batch.ids), NEVER_US, dtype=np.int64) for batch in batches]
        expires = np.concatenate(
            [other if batch.expires is None else batch.expires for batch, other in zip(batches, never, strict=True)]
        )
    metadata: list[bytes | None] | None = None
    if any(batch.metadata is not None for batch in batches):
        metadata = [value for batch in batches for value in batch.metadata or [None] * len(batch.ids)]
    return Batch(
        ids=ids,
        id_bytes=id_bytes,
        id_offsets=id_offsets,
        vectors=vectors,
        vectorless=vectorless if vectorless.any() else None,
        timestamps=np.concatenate(times) if times else np.empty(0, dtype=np.int64),
        expires=expires,
        metadata=metadata,
        copied=True,
    )


def rows_batch(rows: Sequence[Row], dim: int | None) -> Batch:
    """Stored rows as a batch."""
    return prepare_batch(
        [row.id for row in rows],
        [row.vector for row in rows],
        [row.metadata for row in rows],
        [row.timestamp for row in rows],
        int,
        dim,
        [row.expires_at for row in rows],
    )

"""Metadata as CBOR bytes by slot.

The table of offsets ends at the last slot with metadata, so an index without metadata takes no memory here. A change
appends bytes; old bytes are dropped when they are more than those in use. Steps that may run out of memory (`stage`,
`compacted`) come before a change; the steps of the change itself (`commit`, `drop`) allocate almost nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.fields import VALUE_TEXT, FieldCells, read_field
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import IntegrityError
from fabstir_vectordb.metadata.values import METADATA_BYTES_MAX, check_stored, decode_metadata, key_of

__all__ = [
    "TABLE_BYTES_PER_ROW",
    "MetadataArena",
    "Staged",
    "StoredValues",
    "page_row",
    "page_sizes",
    "parse_page",
]

#: Size for a slot without metadata; every CBOR item has at least one byte.
_ABSENT: Final = 0
#: Page header: rows (u32), then for each row its size + 1, 0 where it has none (u32).
_CELL: Final = np.dtype("<u4")
#: Rows whose bytes are copied at a time.
_CHUNK_ROWS: Final = 4_096
#: Offset and size of a row's metadata, with room for growth.
TABLE_BYTES_PER_ROW: Final = 14
#: Offset and size of a row, and temporary arrays for them.
_COMPACTED_BYTES_PER_ROW: Final = 32
#: Metadata may come from others, who must not choose values that collide.
_SEED: Final = int.from_bytes(os.urandom(8), "little")


# ---- Bytes by slot -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Staged:
    """Values whose bytes are in the arena, but which belong to no slot yet."""

    start: int
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int32]


class StoredValues:
    """The metadata of some slots, read a few at a time: all of them as values of their own would take several times as
    much memory.

    Attributes:
        sizes: bytes of each, 0 for none.
    """

    __slots__ = ("_arena", "_slots", "sizes")

    def __init__(self, arena: MetadataArena, slots: npt.NDArray[np.uint32]) -> None:
        self._arena, self._slots = arena, slots
        self.sizes = arena.sizes(slots)

    def __len__(self) -> int:
        return len(self._slots)

    def __getitem__(self, rows: slice) -> list[bytearray]:
        return self._arena.get_many(self._slots[rows].tolist())


class MetadataArena:
    """CBOR bytes by slot, for one writer. A reader beside it may see half of a change; the gate detects this."""

    __slots__ = ("_data", "_offset_at", "_offsets", "_size_at", "_sizes", "_used", "is_empty")

    def __init__(self) -> None:
        self._data = bytearray()
        self._used = 0
        self.is_empty = True
        """Whether no metadata was ever staged."""
        self._set_table(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int32))

    def _set_table(self, offsets: npt.NDArray[np.int64], sizes: npt.NDArray[np.int32]) -> None:
        self._offsets, self._sizes = offsets, sizes
        # A memoryview gives one number in a quarter of the time that an array takes.
        self._offset_at, self._size_at = offsets.data, sizes.data

    @property
    def nbytes(self) -> int:
        """Bytes held, spare room included."""
        return (self._data.__sizeof__() if self._data else 0) + self._table_bytes

    def get(self, slot: int) -> bytes | None:
        """The bytes of a slot, or None."""
        return bytes(self.get_many([slot])[0]) or None

    def get_many(self, slots: Sequence[int]) -> list[bytearray]:
        """The bytes of slots, empty for slots without metadata."""
        offset_at, size_at, data = self._offset_at, self._size_at, self._data
        try:
            return [data[(start := offset_at[slot]) : start + size_at[slot]] for slot in slots]
        except IndexError:  # the table ends at the last slot with metadata
            return [self.get_many([slot])[0] if slot < len(size_at) else bytearray() for slot in slots]

    def read_field(
        self, slots: npt.NDArray[np.int64], text: bytes, steps: npt.NDArray[np.uint32], room: int
    ) -> tuple[FieldCells, list[Any]]:
        """The values of slots at a path, and the table of values: large integers as int, all others as keys.

        Under the lock of changes: the arena cannot grow while C reads it.

        Args:
            slots: any slots; those past the end have no metadata.
            text, steps: the path, as `path.packed` makes it.
            room: expected number of values of lists.

        Raises:
            IntegrityError: the bytes of a slot are damaged.
            IndexStateError: there was not enough memory.
        """
        offsets, sizes = np.zeros(len(slots), dtype=np.int64), np.full(len(slots), _ABSENT, dtype=np.int32)
        known = slots < len(self._sizes)
        offsets[known], sizes[known] = self._offsets[slots[known]], self._sizes[slots[known]]
        data = self._data
        cells = read_field(data, offsets, sizes, text, steps, _SEED, room)
        n_texts = np.count_nonzero(cells.value_kinds == VALUE_TEXT)
        # One `decode` and one `split` take a third of the time of a `decode` for each text.
        texts = str(cells.texts[:-1].data, "utf-8").split("\0") if n_texts else []
        if len(texts) == n_texts == len(cells.value_kinds):
            return cells, texts
        # If a text has a 0 byte itself, each is decoded alone.
        rest = iter(texts) if len(texts) == n_texts else None

        def value(start: int, size: int, kind: int) -> Any:
            if kind == VALUE_TEXT and rest is not None:
                return next(rest)
            raw = data[start : start + size]
            return raw.decode() if kind == VALUE_TEXT else key_of(decode_metadata(raw))

        table = (cells.value_starts, cells.value_sizes, cells.value_kinds)
        return cells, list(map(value, *(column.tolist() for column in table)))

    def values(self, slots: npt.NDArray[np.uint32]) -> StoredValues:
        """The bytes of slots, read where they are asked for."""
        return StoredValues(self, slots)

    def sizes(self, slots: npt.NDArray[np.uint32]) -> npt.NDArray[np.int32]:
        """Bytes of slots' metadata, 0 for none."""
        sizes = np.full(len(slots), _ABSENT, dtype=np.int32)
        known = slots < len(self._sizes)
        sizes[known] = self._sizes[slots[known]]
        return sizes

    @property
    def used_bytes(self) -> int:
        """Bytes of the metadata of all slots."""
        return self._used

    @property
    def has_superseded(self) -> bool:
        """Whether bytes are held that no slot uses any more."""
        return len(self._data) > self._used

    def stage(self, values: Sequence[bytes | None], slots_end: int) -> Staged:
        """Stores values before a change, so that `commit` needs no memory; `abandon` removes them.

        Args:
            values: one for each row of the change; None for no metadata.
            slots_end: upper bound of the change's slots, exclusive.
        """
        if len(self._data) > 2 * self._used + METADATA_BYTES_MAX:
            self._become(self.compacted(np.arange(len(self._sizes))))
        sizes = np.fromiter((_ABSENT if v is None else len(v) for v in values), dtype=np.int32, count=len(values))
        start = len(self._data)
        offsets = start + _starts(sizes)
        self._reserve(slots_end)
        self.is_empty = False
        self._data += b"".join([value for value in values if value is not None])
        return Staged(start, offsets, sizes)

    def commit(self, staged: Staged, slots: npt.NDArray[np.uint32], rows: npt.NDArray[np.intp]) -> None:
        """Assigns staged values to slots.

        Args:
            staged: the result of `stage`.
            slots: the slots, each once.
            rows: the index of the staged value for each slot.
        """
        self._used += _total(staged.sizes[rows]) - _total(self._sizes[slots])
        self._offsets[slots] = staged.offsets[rows]
        self._sizes[slots] = staged.sizes[rows]

    def staging_bytes(self, slots_end: int) -> int:
        """Additional bytes that `stage` may take, without the values."""
        compacts = len(self._data) > 2 * self._used + METADATA_BYTES_MAX
        grows = slots_end > len(self._sizes)
        return (self.compacted_bytes(len(self._sizes)) if compacts else 0) + (self._table_bytes if grows else 0)

    def compacted_bytes(self, rows: int) -> int:
        """Upper bound of the bytes of a `compacted` arena with so many slots."""
        return self._used + self._used // 8 + _COMPACTED_BYTES_PER_ROW * rows

    @property
    def _table_bytes(self) -> int:
        return self._offsets.nbytes + self._sizes.nbytes

    def abandon(self, staged: Staged) -> None:
        """Removes staged values."""
        del self._data[staged.start :]

    def drop(self, slots: npt.NDArray[np.uint32]) -> None:
        """Removes the metadata of slots."""
        slots = slots[slots < len(self._sizes)]
        self._used -= _total(self._sizes[slots])
        self._sizes[slots] = _ABSENT

    def compacted(self, kept: npt.NDArray[np.integer[Any]]) -> MetadataArena:
        """A new arena with some slots, renumbered from 0 in their order, and without bytes that no slot uses."""
        new = MetadataArena()
        known = kept < len(self._sizes)
        sizes = np.full(len(kept), _ABSENT, dtype=np.int32)
        sizes[known] = self._sizes[kept[known]]
        slots = kept[known]
        for first in range(0, len(slots), _CHUNK_ROWS):  # in chunks, to avoid a second copy of all bytes
            new._data += b"".join(self._runs(slots[first : first + _CHUNK_ROWS]))
        new._used = len(new._data)
        new.is_empty = not new._used
        # Slots without metadata at the end need no entry.
        held = np.flatnonzero(sizes != _ABSENT)
        sizes = sizes[: held[-1] + 1 if len(held) else 0].copy()
        new._set_table(_starts(sizes), sizes)
        return new

    def _become(self, other: MetadataArena) -> None:
        self._data, self._used = other._data, other._used
        self._set_table(other._offsets, other._sizes)

    def _reserve(self, n: int) -> None:
        have = len(self._sizes)
        if n <= have:
            return
        grown = max(n, have + have // 8)
        offsets, sizes = np.zeros(grown, dtype=np.int64), np.full(grown, _ABSENT, dtype=np.int32)
        offsets[:have], sizes[:have] = self._offsets, self._sizes
        self._set_table(offsets, sizes)

    def _runs(self, slots: Any) -> list[bytearray]:
        """The bytes of slots, in their order, as few pieces.

        Rows mostly lie one after the other, so they are a few runs of bytes. A loop over rows would hold the GIL, and
        so block the event loop.
        """
        sizes = self._sizes[slots]
        held = sizes != _ABSENT
        starts = self._offsets[slots][held]
        ends = starts + sizes[held]
        breaks = np.flatnonzero(starts[1:] != ends[:-1])
        firsts = starts[np.append(0, breaks + 1)] if len(starts) else starts
        lasts = ends[np.append(breaks, -1)] if len(ends) else ends
        return [self._data[start:stop] for start, stop in zip(firsts.tolist(), lasts.tolist(), strict=True)]

    # ---- pages of a save

    def page_sizes(self, rows: int, rows_per_page: int) -> dict[int, int]:
        """Bytes of the pages that hold any metadata, by number; a page covers `rows_per_page` slots."""
        out: dict[int, int] = {}
        for number, first in enumerate(range(0, rows, rows_per_page)):
            end = min(first + rows_per_page, rows)
            sizes = self._sizes[first : min(end, len(self._sizes))]
            held = sizes[sizes != _ABSENT]
            if len(held):
                out[number] = (1 + end - first) * _CELL.itemsize + _total(held)
        return out

    def page(self, number: int, rows: int, rows_per_page: int) -> bytes:
        """A page: u32 number of rows, for each row a u32 of its size + 1 (0: none), then the rows' bytes."""
        first = number * rows_per_page
        end = min(first + rows_per_page, rows)
        sizes = self._sizes[first : min(end, len(self._sizes))]
        cells = np.zeros(1 + end - first, dtype=_CELL)
        cells[0] = end - first
        cells[1 : 1 + len(sizes)] = np.where(sizes == _ABSENT, 0, sizes + 1)
        return cells.tobytes() + b"".join(self._runs(slice(first, first + len(sizes))))

    def size(self, slot: int) -> int:
        """Bytes of a slot's metadata, 0 for none."""
        return int(self._size_at[slot]) if slot < len(self._size_at) else 0

    def restore_page(self, number: int, rows_per_page: int, page: bytes, rows: int) -> None:
        """Stores the metadata of a page from a store.

        Args:
            number: the page.
            rows_per_page: slots a page covers.
            page: its bytes.
            rows: slots of the index.

        Raises:
            IntegrityError: the page breaks a rule of the format.
        """
        values = parse_page(number, rows_per_page, page, rows)
        first = number * rows_per_page
        slots = np.arange(first, first + len(values), dtype=np.uint32)
        self.commit(self.stage(values, first + len(values)), slots, np.arange(len(values)))


def _total(sizes: npt.NDArray[np.int32]) -> int:
    return int(sizes.sum(dtype=np.int64))


def _starts(sizes: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """The offset of each value when the values lie end to end."""
    ends = np.cumsum(sizes, dtype=np.int64)
    return ends - sizes


def page_sizes(number: int, rows_per_page: int, page: bytes, rows: int | None = None) -> npt.NDArray[np.int64]:
    """The sizes of the rows of an untrusted page, -1 for a row without metadata.

    Args:
        number: the page.
        rows_per_page: slots a page covers.
        page: its bytes.
        rows: slots of the index; None to believe the page's own number of rows.

    Raises:
        IntegrityError: a size breaks a rule, or the sizes do not add up to the page.
    """
    claimed = int.from_bytes(page[: _CELL.itemsize], "little")
    covered = claimed if rows is None else min(rows_per_page, rows - number * rows_per_page)
    header = (1 + covered) * _CELL.itemsize
    if claimed != covered or not 0 < covered <= rows_per_page or len(page) < header:
        raise IntegrityError(f"metadata page {number} is cut off, or covers other rows")
    sizes = np.frombuffer(page, dtype=_CELL, count=1 + covered)[1:].astype(np.int64) - 1
    if int(sizes.max()) > METADATA_BYTES_MAX or header + int(sizes[sizes > 0].sum()) != len(page):
        raise IntegrityError(f"metadata page {number} has another size than its rows add up to")
    return sizes


def page_row(number: int, rows_per_page: int, page: bytes, rows: int, slot: int) -> bytes | None:
    """The CBOR bytes of one row of an untrusted page.

    Raises:
        IntegrityError: the bytes or a size break a rule.
    """
    sizes = page_sizes(number, rows_per_page, page, rows)
    place = slot - number * rows_per_page
    if sizes[place] < 0:
        return None
    start = (1 + len(sizes)) * _CELL.itemsize + int(sizes[:place].clip(0).sum())
    raw = page[start : start + int(sizes[place])]
    check_stored(raw, f"metadata page {number}")
    return raw


def parse_page(number: int, rows_per_page: int, page: bytes, rows: int | None = None) -> list[bytes | None]:
    """The rows of an untrusted page.

    Args:
        number, rows_per_page, page, rows: as `page_sizes`.

    Returns:
        For each slot of the page its CBOR bytes, or None.

    Raises:
        IntegrityError: a size, or the CBOR of a row, breaks a rule.
    """
    sizes = page_sizes(number, rows_per_page, page, rows)
    values: list[bytes | None] = []
    at = (1 + len(sizes)) * _CELL.itemsize
    for size in sizes.tolist():
        if size < 0:
            values.append(None)
            continue
        raw = bytes(page[at : at + size])
        at += size
        check_stored(raw, f"metadata page {number}")
        values.append(raw)
    return values

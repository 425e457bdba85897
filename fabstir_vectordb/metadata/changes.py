"""Metadata that differs from the stored pages.

A page can only be stored as a whole, so one changed text would store all its neighbours again. So a version may reuse
the pages of an earlier one, and store the changed metadata in one part. A page is stored anew where more than an eighth
of it changed, or where it gets more rows.

Deleted rows are no change: a reader ignores the metadata of tombstones. Their bytes, and those of replaced metadata, go
when the page is stored anew, or with the save after the next vacuum. Until then they are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fabstir_vectordb.errors import IntegrityError
from fabstir_vectordb.metadata.values import METADATA_BYTES_MAX, check_stored

__all__ = ["StoredPages", "encode_changes", "parse_changes"]

_CELL = np.dtype("<u4")
# A page is stored anew when more than one byte in so many changed.
_CHANGED_SHARE = 8


class StoredPages:
    """The pages of the base, and the rows whose metadata differs from them.

    Args:
        rows_per_page: rows that a page covers; 0 where there is no base.
        rows: rows that all pages cover.
        changed: rows that differ.
    """

    def __init__(self, rows_per_page: int = 0, rows: int = 0, changed: Iterable[int] = ()) -> None:
        self._rows_per_page = rows_per_page
        self._rows = rows
        self._changed = set(changed)
        # Rows whose metadata was replaced since the base was stored; and the rows of the base, after a vacuum those
        # that were left.
        self._replaced: set[int] = set()
        self._base_rows = rows
        self.rows_gone = 0
        """Rows of the base that were deleted, replaced or expired since it was stored."""
        self.bytes_gone = 0
        """Bytes of metadata in the base that were replaced or deleted since it was stored."""

    @property
    def has_superseded(self) -> bool:
        """Whether pages that a save would keep hold replaced metadata."""
        return bool(self._changed)

    def note(self, slots: Iterable[int]) -> None:
        """Notes that the metadata of rows changed."""
        self._changed.update(slot for slot in slots if slot < self._rows)

    def note_replaced(self, slot: int, size: int) -> None:
        """Notes that the metadata of a row, of so many bytes, is about to be replaced."""
        if slot < self._base_rows and slot not in self._replaced:
            self._replaced.add(slot)
            self.bytes_gone += size

    def note_gone(self, slots: npt.NDArray[np.uint32], size_of: Callable[[int], int]) -> None:
        """Notes that rows are about to become tombstones."""
        gone = slots[slots < self._base_rows].tolist()
        self.rows_gone += len(gone)
        self.bytes_gone += sum(size_of(slot) for slot in gone if slot not in self._replaced)

    def renumbered(self, rows: int) -> StoredPages:
        """The state after slots were renumbered or replaced metadata was removed: no page may be kept."""
        fresh = StoredPages()
        fresh._base_rows, fresh.rows_gone, fresh.bytes_gone = rows, self.rows_gone, self.bytes_gone
        return fresh

    def kept(
        self,
        rows_per_page: int,
        rows: int,
        page_sizes: Mapping[int, int],
        stored: Collection[int],
        size_of: Callable[[int], int],
    ) -> tuple[set[int], list[int]]:
        """The pages of the base that the new version keeps, and the rows in them that differ.

        Args:
            rows_per_page: rows that a page of the new version covers.
            rows: rows of the new version.
            page_sizes: bytes of its pages if they were stored anew, by number.
            stored: numbers of the base's pages that may be reused.
            size_of: bytes of a row's metadata, 0 for none.
        """
        if rows_per_page != self._rows_per_page:
            return set(), []
        changed: dict[int, list[int]] = {}
        for slot in sorted(self._changed):
            changed.setdefault(slot // rows_per_page, []).append(slot)
        kept: set[int] = set()
        for number in page_sizes.keys() & set(stored):
            end = (number + 1) * rows_per_page
            size = sum(map(size_of, changed.get(number, ())))
            if min(end, rows) == min(end, self._rows) and size * _CHANGED_SHARE <= page_sizes[number]:
                kept.add(number)
        return kept, [slot for number in sorted(kept) for slot in changed.get(number, ())]


def encode_changes(rows: Sequence[tuple[int, bytes | None]]) -> bytes:
    """The part with changed metadata.

    It is: u32 number of rows, for each u32 its slot, for each u32 its size + 1 (0: none), then the rows' bytes.

    Args:
        rows: slot and CBOR bytes, or None for a row without metadata, in the order of slots.
    """
    slots = [slot for slot, _ in rows]
    sizes = [0 if raw is None else len(raw) + 1 for _, raw in rows]
    head = np.array([len(rows), *slots, *sizes], dtype=_CELL)
    return head.tobytes() + b"".join(raw for _, raw in rows if raw is not None)


def parse_changes(raw: bytes, rows: int | None = None) -> dict[int, bytes | None]:
    """The rows of an untrusted part with changed metadata.

    Args:
        raw: its bytes, none where there is no such part.
        rows: slots of the index, or None where they are not known.

    Returns:
        CBOR bytes by slot, None for a row that has none.

    Raises:
        IntegrityError: a slot, a size or the CBOR of a row breaks a rule.
    """
    if not raw:
        return {}
    count = int.from_bytes(raw[: _CELL.itemsize], "little")
    head = (1 + 2 * count) * _CELL.itemsize
    if not count or len(raw) < head:
        raise IntegrityError("changed metadata is cut off, or there is none")
    slots = np.frombuffer(raw, dtype=_CELL, count=1 + count)[1:].astype(np.int64)
    sizes = np.frombuffer(raw, dtype=_CELL, count=1 + 2 * count)[1 + count :].astype(np.int64) - 1
    if (np.diff(slots) <= 0).any() or (rows is not None and int(slots[-1]) >= rows):
        raise IntegrityError("changed metadata is of rows out of order, or beyond the last row")
    if int(sizes.max()) > METADATA_BYTES_MAX or head + int(sizes[sizes > 0].sum()) != len(raw):
        raise IntegrityError("changed metadata has another size than its rows add up to")
    changes: dict[int, bytes | None] = {}
    at = head
    for slot, size in zip(slots.tolist(), sizes.tolist(), strict=True):
        if size < 0:
            changes[slot] = None
            continue
        value = bytes(raw[at : at + size])
        at += size
        check_stored(value, "changed metadata")
        changes[slot] = value
    return changes

"""Metadata as CBOR bytes by slot.

Rows without metadata cost nothing: the table of offsets only reaches to the last slot that has some. A change
appends; the bytes it leaves behind are dropped when they outweigh what is in use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import cbor2
import numpy as np
import numpy.typing as npt

from fabstir_vectordb.errors import IntegrityError, InvalidInputError
from fabstir_vectordb.s5.cbor import decode as decode_strict

__all__ = ["METADATA_BYTES_MAX", "MetadataArena", "decode_metadata", "encode_metadata", "parse_page"]

#: CBOR bytes of one row's metadata.
METADATA_BYTES_MAX: Final = 1 << 20
#: Nesting of one row's metadata; the reader of stored bytes refuses more.
METADATA_DEPTH_MAX: Final = 60

_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1
_ABSENT: Final = -1
#: Page header: rows (u32), then for each row its size + 1, 0 where it has none (u32).
_CELL: Final = np.dtype("<u4")


class _Bound:
    """Counts the bytes a value would take, so that a huge one is refused before it is encoded whole."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = METADATA_BYTES_MAX

    def take(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise InvalidInputError(
                f"metadata takes more than {METADATA_BYTES_MAX} bytes", details={"limit": METADATA_BYTES_MAX}
            )


def encode_metadata(value: Any) -> bytes | None:
    """The CBOR bytes of a JSON-shaped value; None stands for no metadata.

    Args:
        value: None, bool, int within 64 bits, finite float, str, or lists and str-keyed dicts of these.

    Returns:
        The bytes, or None for None.

    Raises:
        InvalidInputError: the value has another shape (the message names the path), or takes more than
            METADATA_BYTES_MAX bytes.
    """
    if value is None:
        return None
    _check(value, "", 0, _Bound())
    return cbor2.dumps(value)


def _check(value: Any, path: str, depth: int, bound: _Bound) -> None:
    if depth > METADATA_DEPTH_MAX:
        raise InvalidInputError(
            f"metadata is nested more than {METADATA_DEPTH_MAX} deep at {path or 'its top'}",
            details={"path": path, "limit": METADATA_DEPTH_MAX},
        )
    match value:
        case None | bool():
            bound.take(1)
        case int():
            if not _INT_MIN <= value <= _INT_MAX:
                raise _refused(path, "an integer that does not fit 64 bits")
            bound.take(1 + (0 if -24 <= value < 24 else 1 if -256 <= value < 256 else 2 if abs(value) < 65536 else 4))
        case float():
            if not math.isfinite(value):
                raise _refused(path, f"{value}, which JSON does not know")
            bound.take(9)
        case str():
            bound.take(1 + len(value))
            if not value.isascii():
                try:
                    bound.take(len(value.encode()) - len(value))
                except UnicodeEncodeError:
                    raise _refused(path, "a lone surrogate") from None
        case list() | tuple():
            bound.take(1)
            for position, item in enumerate(value):
                _check(item, f"{path}[{position}]", depth + 1, bound)
        case dict():
            bound.take(1)
            for key, item in value.items():
                if not isinstance(key, str):
                    raise _refused(path, f"a key of type {type(key).__name__}")
                inner = f"{path}.{key}" if path else key
                _check(key, inner, depth + 1, bound)
                _check(item, inner, depth + 1, bound)
        case _:
            raise _refused(path, f"a value of type {type(value).__name__}")


def _refused(path: str, what: str) -> InvalidInputError:
    return InvalidInputError(
        f"metadata must be JSON-shaped: {path or 'its top'} holds {what}", details={"path": path}
    )


def decode_metadata(raw: bytes) -> Any:
    """The value of stored metadata bytes."""
    return cbor2.loads(raw)


class MetadataArena:
    """CBOR bytes by slot; not thread-safe for writers, readers see the old or the new bytes of a slot."""

    __slots__ = ("_data", "_offsets", "_sizes", "_used")

    def __init__(self) -> None:
        self._data = bytearray()
        self._offsets: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._sizes: npt.NDArray[np.int32] = np.empty(0, dtype=np.int32)
        self._used = 0

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return len(self._data) + self._offsets.nbytes + self._sizes.nbytes

    def get(self, slot: int) -> bytes | None:
        """The bytes of a slot, or None."""
        offsets, sizes, data = self._offsets, self._sizes, self._data
        if slot >= len(sizes):
            return None
        size = int(sizes[slot])
        if size == _ABSENT:
            return None
        start = int(offsets[slot])
        return bytes(data[start : start + size])

    def put_many(self, slots: Sequence[int], values: Sequence[bytes | None]) -> None:
        """Sets the bytes of slots; None takes them away."""
        if not any(value is not None for value in values) and not len(self._sizes):
            return
        self._reserve(max(slots, default=-1) + 1)
        for slot, value in zip(slots, values, strict=True):
            old = int(self._sizes[slot])
            if old != _ABSENT:
                self._used -= old
            if value is None:
                self._sizes[slot] = _ABSENT
                continue
            self._offsets[slot] = len(self._data)
            self._sizes[slot] = len(value)
            self._data += value
            self._used += len(value)
        if len(self._data) > 2 * self._used + METADATA_BYTES_MAX:
            self._rewrite(np.arange(len(self._sizes)))

    def compact(self, slot_map: npt.NDArray[np.uint32], removed: int) -> None:
        """Follows a vacuum.

        Args:
            slot_map: old slot -> new slot.
            removed: the number that stands for "gone" in it.
        """
        self._rewrite(np.flatnonzero(slot_map != removed))

    def _reserve(self, n: int) -> None:
        have = len(self._sizes)
        if n <= have:
            return
        grown = max(n, have + have // 8)
        offsets, sizes = np.zeros(grown, dtype=np.int64), np.full(grown, _ABSENT, dtype=np.int32)
        offsets[:have], sizes[:have] = self._offsets, self._sizes
        self._offsets, self._sizes = offsets, sizes

    def _rewrite(self, kept: npt.NDArray[np.intp]) -> None:
        """Keeps some slots, renumbered in their order, and drops bytes that no slot uses."""
        kept = kept[kept < len(self._sizes)]
        sizes = self._sizes[kept]
        offsets = np.zeros(len(kept), dtype=np.int64)
        data = bytearray()
        for position, slot in enumerate(kept):
            offsets[position] = len(data)
            if sizes[position] != _ABSENT:
                start = int(self._offsets[slot])
                data += self._data[start : start + int(sizes[position])]
        self._data, self._offsets, self._sizes, self._used = data, offsets, sizes, len(data)

    # ---- pages: what a save writes

    def pages(self, rows: int, rows_per_page: int) -> list[tuple[int, bytes]]:
        """The pages that hold any metadata, by number; a page covers `rows_per_page` slots.

        A page is: u32 number of rows, for each row a u32 of its size + 1 (0: none), then the rows' bytes.
        """
        out: list[tuple[int, bytes]] = []
        for number, first in enumerate(range(0, rows, rows_per_page)):
            end = min(first + rows_per_page, rows)
            sizes = self._sizes[first : min(end, len(self._sizes))].astype(np.int64)
            held = sizes != _ABSENT
            if not held.any():
                continue
            cells = np.zeros(1 + end - first, dtype=_CELL)
            cells[0] = end - first
            cells[1 : 1 + len(sizes)] = np.where(held, sizes + 1, 0)
            # Rows mostly lie one after the other, so a page is a few runs of bytes: row by row it would keep the event
            # loop waiting for the GIL.
            starts = self._offsets[first : first + len(sizes)][held]
            ends = starts + sizes[held]
            breaks = np.flatnonzero(starts[1:] != ends[:-1])
            runs = zip(starts[np.append(0, breaks + 1)].tolist(), ends[np.append(breaks, -1)].tolist(), strict=True)
            out.append((number, cells.tobytes() + b"".join([self._data[start:stop] for start, stop in runs])))
        return out

    def restore_page(self, number: int, rows_per_page: int, page: bytes, rows: int) -> None:
        """Takes in a page that was read from a store.

        Args:
            number: the page.
            rows_per_page: slots a page covers.
            page: its bytes.
            rows: slots of the index.

        Raises:
            IntegrityError: its bytes break a rule.
        """
        values = parse_page(number, rows_per_page, page, rows)
        first = number * rows_per_page
        self.put_many(range(first, first + len(values)), values)


def parse_page(number: int, rows_per_page: int, page: bytes, rows: int | None = None) -> list[bytes | None]:
    """The rows of an untrusted page.

    Args:
        number: the page.
        rows_per_page: slots a page covers.
        page: its bytes.
        rows: slots of the index, or None to take the page's own word for how many it covers.

    Returns:
        For each slot of the page its CBOR bytes, or None.

    Raises:
        IntegrityError: a size, or the CBOR of a row, breaks a rule.
    """
    claimed = int.from_bytes(page[: _CELL.itemsize], "little")
    covered = claimed if rows is None else min(rows_per_page, rows - number * rows_per_page)
    header = (1 + covered) * _CELL.itemsize
    if claimed != covered or not 0 < covered <= rows_per_page or len(page) < header:
        raise IntegrityError(f"metadata page {number} is cut off, or covers other rows")
    sizes = np.frombuffer(page, dtype=_CELL, count=1 + covered)[1:].astype(np.int64) - 1
    if int(sizes.max()) > METADATA_BYTES_MAX or header + int(sizes[sizes > 0].sum()) != len(page):
        raise IntegrityError(f"metadata page {number} has another size than its rows add up to")
    values: list[bytes | None] = []
    at = header
    for size in sizes.tolist():
        if size < 0:
            values.append(None)
            continue
        raw = bytes(page[at : at + size])
        at += size
        decode_strict(raw, max_bytes=METADATA_BYTES_MAX, what=f"metadata page {number}")
        values.append(raw)
    return values

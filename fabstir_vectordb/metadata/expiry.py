"""Expiry times of rows, by slot.

An expired row is hidden from every read, by the session's clock. The next change makes a tombstone of it, which a
vacuum removes. An `Expiries` object never changes: a change of rows takes a draft before it begins, fills it in, and
replaces the object by a new one. So a reader sees either the old times or the new ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import IntegrityError
from fabstir_vectordb.metadata.filter_eval import bitmap

__all__ = ["NEVER_US", "NOTHING", "Expiries", "Hidden", "parse_expiry_page"]

Times = npt.NDArray[np.int64]

#: The time of rows that do not expire.
NEVER_US: Final = 2**63 - 1
_BEFORE_US: Final = -(2**63)
#: Page header: number of entries.
_COUNT: Final = np.dtype("<u4")
_ROW: Final = np.dtype("<u4")
_TIME: Final = np.dtype("<i8")


@dataclass(frozen=True, slots=True)
class Hidden:
    """The rows that have expired at some time.

    Attributes:
        since_us, until_us: the range of times for which these rows are right, the end excluded.
        slots: slots of the expired rows, ascending.
        allow: bitmap of all other rows; None where no row is hidden.
    """

    since_us: int
    until_us: int
    slots: npt.NDArray[np.uint32]
    allow: npt.NDArray[np.uint64] | None


#: No row has expired, whatever the time.
NOTHING: Final = Hidden(_BEFORE_US, NEVER_US, np.empty(0, dtype=np.uint32), None)


class Expiries:
    """Expiry times of all rows.

    Args:
        times: microseconds since 1970 by slot, NEVER_US for rows that do not expire; the object takes the array over.
    """

    __slots__ = ("_hidden", "_times", "is_empty")

    def __init__(self, times: Times | None = None) -> None:
        self.is_empty = times is None or int(times.min(initial=NEVER_US)) == NEVER_US
        """Whether no row expires."""
        self._times: Times = np.empty(0, dtype=np.int64) if times is None or self.is_empty else times
        self._hidden = NOTHING if self.is_empty else Hidden(0, 0, NOTHING.slots, None)

    @property
    def nbytes(self) -> int:
        """Bytes held, the remembered hidden rows included."""
        hidden = self._hidden
        return self._times.nbytes + hidden.slots.nbytes + (0 if hidden.allow is None else hidden.allow.nbytes)

    def hidden(self, now_us: int) -> Hidden:
        """The rows that have expired by now; the same object while they stay the same."""
        known = self._hidden
        if known.since_us <= now_us < known.until_us:
            return known
        gone = self._times <= now_us
        since, until = self._times[gone].max(initial=_BEFORE_US), self._times[~gone].min(initial=NEVER_US)
        slots = np.flatnonzero(gone).astype(np.uint32)
        # Several threads may compute this at once, with equal results.
        self._hidden = Hidden(int(since), int(until), slots, bitmap(~gone) if len(slots) else None)
        return self._hidden

    def among(self, wanted: Callable[[npt.NDArray[np.uint32]], npt.NDArray[np.bool_]]) -> Expiries:
        """The times of some of the rows that expire, in no known order.

        Args:
            wanted: which of given slots are among them.
        """
        slots = np.flatnonzero(self._times != NEVER_US).astype(np.uint32)
        return Expiries(self._times[slots[wanted(slots)]])

    def of(self, slots: npt.NDArray[np.uint32]) -> list[float | None]:
        """Expiry times of slots, seconds since 1970; None for never."""
        if self.is_empty:
            return [None] * len(slots)
        return [None if time == NEVER_US else time / 1e6 for time in self._times[slots].tolist()]

    def draft(self, rows: int) -> Times:
        """A copy of the times with so many rows, for a change to fill in."""
        times = np.full(rows, NEVER_US, dtype=np.int64)
        n = min(rows, len(self._times))
        times[:n] = self._times[:n]
        return times

    def renumbered(self, kept: npt.NDArray[np.integer[Any]]) -> Expiries:
        """The times of given slots, renumbered from 0 in their order."""
        return Expiries(None if self.is_empty else self._times[kept])

    # ---- pages of a save

    def pages(self, rows_per_page: int) -> list[tuple[int, bytes]]:
        """The pages with rows that expire, by number; a page covers `rows_per_page` slots.

        A page is: u32 number of such rows, for each a u32 of its place in the page, for each an i64 of its time.
        """
        out = []
        slots = np.flatnonzero(self._times != NEVER_US)
        for number in np.unique(slots // rows_per_page).tolist():
            of_page = slots[slots // rows_per_page == number]
            places, times = of_page - number * rows_per_page, self._times[of_page]
            head = np.array([len(of_page)], dtype=_COUNT)
            out.append((number, head.tobytes() + places.astype(_ROW).tobytes() + times.astype(_TIME).tobytes()))
        return out


def parse_expiry_page(
    number: int, rows_per_page: int, page: bytes, rows: int | None = None
) -> tuple[npt.NDArray[np.int64], Times]:
    """The rows of an untrusted page that expire.

    Args:
        number: the page.
        rows_per_page: slots a page covers.
        page: its bytes.
        rows: slots of the index, or None where they are not known.

    Returns:
        Slots, ascending, and their times in microseconds since 1970.

    Raises:
        IntegrityError: the page breaks a rule of the format.
    """
    n = int.from_bytes(page[: _COUNT.itemsize], "little")
    if not 0 < n <= rows_per_page or len(page) != _COUNT.itemsize + n * (_ROW.itemsize + _TIME.itemsize):
        raise IntegrityError(f"expiry page {number} has another size than its rows take")
    places = np.frombuffer(page, dtype=_ROW, count=n, offset=_COUNT.itemsize).astype(np.int64)
    times = np.frombuffer(page, dtype=_TIME, offset=_COUNT.itemsize + n * _ROW.itemsize).astype(np.int64)
    slots = number * rows_per_page + places
    if (np.diff(places) <= 0).any() or places[-1] >= rows_per_page or (rows is not None and slots[-1] >= rows):
        raise IntegrityError(f"expiry page {number} has rows out of order, or beyond its end")
    if (times == NEVER_US).any():
        raise IntegrityError(f"expiry page {number} has a row that never expires")
    return slots, times

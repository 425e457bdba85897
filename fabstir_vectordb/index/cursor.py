"""Scans and streams: pages of rows in the order of slots or distances. Their cursors stay valid across a vacuum."""

from __future__ import annotations

import weakref
from typing import Final

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.handle import K_MAX, NO_SLOT, Control, NativeIndex
from fabstir_vectordb.config import Unset
from fabstir_vectordb.index.filters import Filters
from fabstir_vectordb.index.gate import Gate
from fabstir_vectordb.index.incoming import check_query_dim
from fabstir_vectordb.index.rows import Rows, Slots
from fabstir_vectordb.index.searcher import PLANS, Searcher
from fabstir_vectordb.metadata.filter_eval import bitmap_of
from fabstir_vectordb.metadata.filter_parse import EVERYTHING, Filter
from fabstir_vectordb.types import Row, SearchResult, SearchResults

__all__ = ["Cursor", "Cursors"]

#: Bytes of a streamed row: slot and distance, their copies while they are sorted, and the order.
_STREAM_BYTES_PER_ROW: Final = 32


class Cursor:
    """The position of a scan or stream. A vacuum renumbers it with the rows.

    Attributes:
        next, end: the range of slots still to come; positions in `slots` where that is not None.
        slots: slots in the order of the scan; None for a scan before the first vacuum.
    """

    __slots__ = ("__weakref__", "end", "next", "slots")

    def __init__(self, end: int) -> None:
        self.next = 0
        self.end = end
        self.slots: Slots | None = None

    def renumber(self, slot_map: Slots) -> None:
        """Renumbers the slots after a vacuum, whose map holds NO_SLOT for removed rows."""
        to_come = slot_map[self.next : self.end] if self.slots is None else slot_map[self.slots[self.next : self.end]]
        self.slots = to_come[to_come != NO_SLOT]
        self.next, self.end = 0, len(self.slots)


class Cursors:
    """The scans and streams of an index.

    All methods hold the lock: a vacuum between reading and moving a cursor would leave it with old slots.

    Args:
        rows, gate, filters, searcher: of the index.
    """

    def __init__(self, rows: Rows, gate: Gate, filters: Filters, searcher: Searcher) -> None:
        self._rows = rows
        self._gate = gate
        self._filters = filters
        self._searcher = searcher
        self._open: weakref.WeakSet[Cursor] = weakref.WeakSet()

    def renumber(self, slot_map: Slots) -> None:
        """Renumbers all cursors after a vacuum, whose map holds NO_SLOT for removed rows; inside a change."""
        for cursor in self._open:
            cursor.renumber(slot_map)

    # ---- in the order of slots

    def scan(self) -> Cursor:
        """The start of a scan over the rows of this moment."""

        def start() -> Cursor:
            cursor = Cursor(self._rows.counts.rows)
            self._open.add(cursor)
            return cursor

        return self._gate.alone(start)

    def page(self, cursor: Cursor, most: int, where: Filter | None) -> list[Row]:
        """The next live rows that match a filter, in slot order, none at the end; moves the cursor past them."""

        def page() -> list[Row]:
            if cursor.next >= cursor.end:
                return []
            slots = self._page_of_slots(cursor, most, where)
            return self._rows.of(slots, self._rows.core.get_ids(slots))

        return self._gate.alone(page)

    def _page_of_slots(self, cursor: Cursor, most: int, where: Filter | None) -> Slots:
        """The slots of a page; moves the cursor past them."""
        rows = self._rows
        if where is None and len(rows.hidden().slots):
            where = EVERYTHING  # the matches of a filter exclude expired rows
        if cursor.slots is not None:
            taken = rows.core.live_slots(0, rows.counts.live) if where is None else self._filters.match(where).slots()
            places = np.flatnonzero(np.isin(cursor.slots[cursor.next : cursor.end], taken))[:most] + cursor.next
            cursor.next = int(places[-1]) + 1 if len(places) else cursor.end
            return cursor.slots[places]
        if where is None:
            slots = rows.core.live_slots(cursor.next, most)
        else:
            slots = self._filters.match(where).slots()
            slots = slots[np.searchsorted(slots, cursor.next) :][:most]
        slots = slots[slots < cursor.end]
        if len(slots):
            cursor.next = int(slots[-1]) + 1
        return slots

    # ---- in the order of distances

    def stream(self, query: npt.NDArray[np.float32], where: Filter, control: Control | None) -> Cursor:
        """The start of a stream over the rows that match a filter now, in the order of their distances.

        Raises:
            InvalidInputError: the query is not finite, zero under cosine, or of another dimension.
            MemoryBudgetExceededError: the order of the rows, or the columns of the filter, would not fit.
            NativeCancelled: `control` asked for it.
        """

        def start() -> Cursor:
            rows = self._rows
            check_query_dim(len(query), rows.vector_dim)
            rows.budget.require("a stream", rows.nbytes + _STREAM_BYTES_PER_ROW * rows.counts.live)
            slots = self._filters.match(where).slots()
            slots = slots[~rows.are_vectorless(slots)]
            if rows.native is not None and len(query) == rows.native.dim:  # else no row has a vector yet
                slots = self._nearest_first(rows.native, query, slots, control)
            cursor = Cursor(len(slots))
            cursor.slots = slots
            self._open.add(cursor)
            return cursor

        return self._gate.alone(start)

    def _nearest_first(
        self, native: NativeIndex, query: npt.NDArray[np.float32], slots: Slots, control: Control | None
    ) -> Slots:
        """Live slots in the order of their distances, ties by id."""
        found, distances = np.empty_like(slots), np.empty(len(slots))
        # K_MAX rows a call, the most that a search returns; so each row is scored once.
        for first in range(0, max(len(slots), 1), K_MAX):
            some = slots[first : first + K_MAX]
            hits = native.search(
                query[np.newaxis],
                max(len(some), 1),
                exact=True,
                allow=bitmap_of(some, self._rows.counts.rows),
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
            rows, hits = self._rows, SearchResults([], 0, "flat")
            native = rows.native
            while native is not None and cursor.slots is not None and cursor.next < cursor.end and not hits:
                slots = cursor.slots[cursor.next : cursor.next + most]
                allow = bitmap_of(rows.visible(slots), rows.counts.rows)
                found = native.search(query[np.newaxis], len(slots), exact=True, allow=allow)
                (hits,) = self._searcher.results(native, found, PLANS, threshold, include_vectors)
                # Scores fall from page to page: after the first hit below the threshold none can pass.
                cursor.next = cursor.end if hits.below_threshold else cursor.next + len(slots)
            return list(hits)

        return self._gate.alone(page)

"""Scans and streams: pages of rows in the order of insertion or of distances.

The order of insertion is that of timestamps, equal ones by id: slots change with a vacuum, and before the first save.
The cursor of a scan or stream is renumbered with the rows. A cursor that a caller keeps is a timestamp and an id, so it
means the same place in any session, and when its row is gone.
"""

from __future__ import annotations

import weakref
from bisect import bisect_right
from typing import Any, Final, NamedTuple

import cbor2
import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.handle import NO_SLOT, Control
from fabstir_vectordb.config import Unset
from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.index.filters import Filters
from fabstir_vectordb.index.gate import Gate
from fabstir_vectordb.index.hybrid import RANKING_BYTES_PER_ROW, Hybrid, Ranking
from fabstir_vectordb.index.incoming import check_query_dim
from fabstir_vectordb.index.rows import Rows, Slots
from fabstir_vectordb.index.searcher import PLANS, Scorer, Searcher, nearest_first
from fabstir_vectordb.metadata.filter_eval import bitmap_of, slots_of
from fabstir_vectordb.metadata.filter_parse import EVERYTHING, Filter
from fabstir_vectordb.metadata.values import shown
from fabstir_vectordb.params import SearchRequest
from fabstir_vectordb.s5.base64url import from_base64url, to_base64url
from fabstir_vectordb.types import Row, SearchResult, SearchResults

__all__ = ["PAGE_ROWS_MAX", "Cursor", "Cursors", "Place", "decode_place", "encode_place"]

#: Most rows of a page that a caller may ask for.
PAGE_ROWS_MAX: Final = 10_000
#: Slots of a scan that are looked at together.
_WINDOW_ROWS: Final = 16_384
#: The first number of a kept cursor: how the rest is written.
_PLACE_FORM: Final = 1
#: More characters than the longest id makes.
_PLACE_CHARS_MAX: Final = 2_000
#: Bytes of a streamed row: slot and distance, their copies while they are sorted, and the order.
_STREAM_BYTES_PER_ROW: Final = 32


class Cursor:
    """The position of a scan or stream. A vacuum renumbers it with the rows.

    Attributes:
        next, end: the range of slots still to come; positions in `slots` where that is not None.
        slots: slots in the order of the scan; None where that is the order of the slots themselves.
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


class TextCursor(Cursor):
    """The position of a stream with text.

    Attributes:
        ranking: the rows of its start.
        places: the place in `ranking` of each slot in `slots`.
    """

    __slots__ = ("places", "ranking")

    def __init__(self, ranking: Ranking) -> None:
        super().__init__(len(ranking.slots))
        self.slots = ranking.slots
        self.ranking = ranking
        self.places = np.arange(self.end)

    def renumber(self, slot_map: Slots) -> None:
        """As `Cursor.renumber`."""
        assert self.slots is not None
        stay = slot_map[self.slots[self.next : self.end]] != NO_SLOT
        self.places = self.places[self.next : self.end][stay]
        super().renumber(slot_map)


class Place(NamedTuple):
    """A place in the order of insertion: right after a row, whether it is still there or not.

    Attributes:
        time_us: the row's timestamp.
        id: its id, UTF-8.
    """

    time_us: int
    id: bytes


def encode_place(place: Place) -> str:
    """A place as a string for callers to keep."""
    return to_base64url(cbor2.dumps([_PLACE_FORM, *place]))


def decode_place(text: object) -> Place:
    """The place of a string from `encode_place`.

    Raises:
        InvalidInputError: it is no such string.
    """
    form: Any = None
    if isinstance(text, str) and len(text) <= _PLACE_CHARS_MAX and text.isascii():
        try:
            raw = from_base64url(text)
            # A list of three: a small integer, a timestamp and an id, and nothing else.
            form = cbor2.loads(raw) if raw[:2] == bytes([0x83, _PLACE_FORM]) else None
        except (ValueError, cbor2.CBORDecodeError):
            form = None
    if isinstance(form, list) and len(form) == 3:
        place = Place(form[1], form[2])
        is_sound = type(place.time_us) is int and abs(place.time_us) < 2**63 and type(place.id) is bytes
        if is_sound and encode_place(place) == text:
            return place
    raise InvalidInputError(f"cursor must be a string that scan_page returned, got {shown(text)}")


class Cursors:
    """The scans and streams of an index.

    All methods hold the lock: a vacuum between reading and moving a cursor would leave it with old slots.

    Args:
        rows, gate, filters, searcher, hybrid: of the index.
    """

    def __init__(self, rows: Rows, gate: Gate, filters: Filters, searcher: Searcher, hybrid: Hybrid) -> None:
        self._rows = rows
        self._gate = gate
        self._filters = filters
        self._searcher = searcher
        self._hybrid = hybrid
        self._scorer = Scorer(rows.metric)
        self._open: weakref.WeakSet[Cursor] = weakref.WeakSet()

    def renumber(self, slot_map: Slots) -> None:
        """Renumbers all cursors after a vacuum, whose map holds NO_SLOT for removed rows; inside a change."""
        for cursor in self._open:
            cursor.renumber(slot_map)

    # ---- in the order of insertion

    def scan(self) -> Cursor:
        """The start of a scan over the rows of this moment."""

        def start() -> Cursor:
            rows = self._rows
            cursor = Cursor(rows.counts.rows)
            slots = rows.core.live_slots(0, rows.counts.live)
            if np.any(np.diff(rows.core.get_timestamps(slots)) <= 0):
                cursor.slots = self._by_insertion(slots)
                cursor.end = len(slots)
            self._open.add(cursor)
            return cursor

        return self._gate.alone(start)

    def page(self, cursor: Cursor, most: int, where: Filter | None) -> list[Row]:
        """The next live rows that match a filter, none at the end; moves the cursor past them."""

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
            found: list[Slots] = []
            n = 0
            # Window by window: a page must not take the time of all rows that are still to come.
            while n < most and cursor.next < cursor.end:
                window = cursor.slots[cursor.next : cursor.next + _WINDOW_ROWS]
                places = np.flatnonzero(_are_among(window, taken))[: most - n]
                found.append(window[places])
                n += len(places)
                cursor.next += int(places[-1]) + 1 if n == most else len(window)
            return np.concatenate(found) if found else cursor.slots[:0]
        if where is None:
            slots = rows.core.live_slots(cursor.next, most)
        else:
            slots = self._filters.match(where).slots()
            slots = slots[np.searchsorted(slots, cursor.next) :][:most]
        slots = slots[slots < cursor.end]
        if len(slots):
            cursor.next = int(slots[-1]) + 1
        return slots

    def page_after(self, place: Place | None, most: int, where: Filter) -> tuple[list[Row], Place | None, bool]:
        """The next live rows that match a filter after a place; the place after them, and whether there are more."""

        def page() -> tuple[list[Row], Place | None, bool]:
            rows = self._rows
            slots = self._filters.match(where).slots()
            times = rows.core.get_timestamps(slots)
            if place is not None:
                later = times > place.time_us
                equal = np.flatnonzero(times == place.time_us)
                ids = rows.core.get_ids(slots[equal])
                later[equal] = [id.encode() > place.id for id in ids]
                slots, times = slots[later], times[later]
            n = len(slots)
            if n > most:
                # Rows with the timestamp of the last one compete by their ids.
                slots = slots[times <= np.partition(times, most - 1)[most - 1]]
            slots = self._by_insertion(slots)[:most]
            if not len(slots):
                return [], place, False
            ids = rows.core.get_ids(slots)
            last = Place(int(rows.core.get_timestamps(slots[-1:])[0]), ids[-1].encode())
            return rows.of(slots, ids), last, n > most

        return self._gate.alone(page)

    def _by_insertion(self, slots: Slots) -> Slots:
        """Live slots in the order of insertion."""
        return slots[self._rows.order(slots, self._rows.core.get_timestamps(slots))]

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
            slots, _ = nearest_first(rows, query, self._filters.match(where).slots(), control)
            cursor = Cursor(len(slots))
            cursor.slots = slots
            self._open.add(cursor)
            return cursor

        return self._gate.alone(start)

    def stream_page_after(
        self,
        query: npt.NDArray[np.float32],
        where: Filter,
        after: tuple[float, str] | None,
        most: int,
        include_vectors: bool,
    ) -> tuple[list[SearchResult], bool]:
        """The nearest rows that match a filter and lie beyond a place, and whether there are more.

        Args:
            query: the vector.
            where: the filter.
            after: distance and id of the row before; None for the first rows.
            most: most rows of the page.
            include_vectors: whether hits have vectors.

        Raises:
            InvalidInputError, MemoryBudgetExceededError: as `stream`.
        """

        def page() -> tuple[list[SearchResult], bool]:
            rows, native = self._rows, self._rows.native
            check_query_dim(len(query), rows.vector_dim)
            rows.budget.require("a stream", rows.nbytes + _STREAM_BYTES_PER_ROW * rows.counts.live)
            slots, distances = nearest_first(rows, query, self._filters.match(where).slots(), None)
            first = 0
            if after is not None:
                first, end = (int(np.searchsorted(distances, after[0], side)) for side in ("left", "right"))
                first += bisect_right(rows.core.get_ids(slots[first:end]), after[1])
            found = slots[first : first + most]
            if native is None or not len(found):
                return [], False
            allow = bitmap_of(found, rows.counts.rows)
            answer = native.search(query[np.newaxis], len(found), exact=True, allow=allow)
            (hits,) = self._searcher.results(native, answer, PLANS, None, include_vectors)
            return list(hits), first + most < len(slots)

        return self._gate.alone(page)

    def text_stream(self, request: SearchRequest, where: Filter, control: Control | None) -> TextCursor:
        """The start of a stream with text, by falling score; without a vector, where the request's query is empty.

        Raises:
            InvalidInputError: there is no text index, or the query is refused.
            MemoryBudgetExceededError: the order of the rows, or the columns of the filter, would not fit.
            NativeCancelled: `control` asked for it.
        """

        def start() -> TextCursor:
            rows, near = self._rows, None
            rows.budget.require("a stream", rows.nbytes + RANKING_BYTES_PER_ROW * rows.counts.rows)
            terms = self._hybrid.terms(request, 0)
            allow = self._hybrid.allowed(terms, self._filters.match(where).allow)
            assert allow is not None
            if len(request.query):
                check_query_dim(len(request.query), rows.vector_dim)
                near = nearest_first(rows, request.query, slots_of(allow, rows.counts.rows), control)
            cursor = TextCursor(self._hybrid.everything(near, terms, request, allow))
            self._open.add(cursor)
            return cursor

        return self._gate.alone(start)

    def text_page(self, cursor: TextCursor, request: SearchRequest, most: int) -> list[SearchResult]:
        """The next hits of a stream with text that are still live, none at the end; moves the cursor past them."""

        def page() -> list[SearchResult]:
            rows, hits = self._rows, SearchResults([], 0, "words")
            while cursor.slots is not None and cursor.next < cursor.end and not hits:
                slots = cursor.slots[cursor.next : cursor.next + most]
                here = np.isin(slots, rows.visible(rows.live(slots)))
                kept, places = slots[here], cursor.places[cursor.next : cursor.next + most][here]
                found = cursor.ranking.hits(places, rows.core.get_ids(kept), self._scorer)
                hits = self._hybrid.described(found, kept, request, self._hybrid.terms(request, 0), "words")
                # Scores fall from page to page: after the first hit below the threshold none can pass.
                cursor.next = cursor.end if hits.below_threshold else cursor.next + len(slots)
            return list(hits)

        return self._gate.alone(page)

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


def _are_among(slots: Slots, ascending: Slots) -> npt.NDArray[np.bool_]:
    """Which slots occur among ascending ones."""
    if not len(ascending):
        return np.zeros(len(slots), dtype=np.bool_)
    at = np.minimum(np.searchsorted(ascending, slots), len(ascending) - 1)
    found: npt.NDArray[np.bool_] = ascending[at] == slots
    return found

"""The index in memory: every operation of a session that needs no I/O. Synchronous and thread-safe.

Each method passes the call on, inside the gate, to the class that does the work.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import compress, repeat
from typing import Any, Final, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.handle import K_MAX, NO_SLOT, Control, NativeIndex, NativeStats
from fabstir_vectordb._native.text import NativeText, TextPart
from fabstir_vectordb.config import Metric, Unset
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.index.aging import Aging, vacuum_comes_first
from fabstir_vectordb.index.budget import Budget
from fabstir_vectordb.index.contents import IndexContents, TextShape
from fabstir_vectordb.index.cursor import Cursor, Cursors, Place, TextCursor, encode_place
from fabstir_vectordb.index.efforts import Efforts
from fabstir_vectordb.index.filters import FilterCache, Filters, Matches
from fabstir_vectordb.index.fitting import check_room
from fabstir_vectordb.index.gate import Gate
from fabstir_vectordb.index.grouping import Groups
from fabstir_vectordb.index.hybrid import Hybrid, depth_of
from fabstir_vectordb.index.incoming import Batch, check_on_conflict, encode_values, prepare_batch, within_room
from fabstir_vectordb.index.protocol import Gathered, Missing, Need
from fabstir_vectordb.index.repeat import Repeat, repeat_of
from fabstir_vectordb.index.rows import Rows, Slots
from fabstir_vectordb.index.searcher import Searcher
from fabstir_vectordb.index.shard_reads import WholeReads
from fabstir_vectordb.metadata.census import FacetQuery
from fabstir_vectordb.metadata.filter_eval import are_in
from fabstir_vectordb.metadata.filter_parse import EVERYTHING, Filter
from fabstir_vectordb.metadata.schema import Schema
from fabstir_vectordb.metadata.update import REPLACE, MetadataUpdate
from fabstir_vectordb.metadata.values import encode_metadata
from fabstir_vectordb.params import IndexParams, RunParams, SearchRequest
from fabstir_vectordb.text.settings import TextSettings
from fabstir_vectordb.types import (
    AddResult,
    CalibrationPoint,
    DefaultSearch,
    DeleteResult,
    FacetCount,
    FieldInfo,
    IndexSide,
    Row,
    ScanPage,
    SearchResult,
    SearchResults,
    UpdateResult,
    VacuumStats,
)

__all__ = ["Index", "Sample", "side_of", "timestamps_of"]

_NOTHING_MISSING: Final = Missing()
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Sample:
    """The rows on which recall is measured.

    Attributes:
        native: the native rows.
        counts: their counts.
        slots: slots that searches can return.
        allow: bitmap without the expired rows; None where no row has expired.
    """

    native: NativeIndex
    counts: NativeStats
    slots: Slots
    allow: npt.NDArray[np.uint64] | None


class Index:
    """Rows with metadata, in memory.

    Attributes:
        shard_reads: what a collection asks of it.

    Args:
        params: parameters that a version stores; the first vector sets the dimension.
        run: parameters of this process.
    """

    def __init__(self, params: IndexParams, run: RunParams) -> None:
        self.params = params
        self.gate = Gate()
        self._cache = FilterCache()
        self._budget = Budget(run.budget_bytes, self._cache)
        self._rows = Rows(params, run, self._budget)
        self._filters = Filters(self._rows, self.gate, self._cache)
        self._searcher = Searcher(self._rows)
        self._hybrid = Hybrid(self._rows)
        self._cursors = Cursors(self._rows, self.gate, self._filters, self._searcher, self._hybrid)
        self.efforts = Efforts(self._rows, self.gate)
        self.shard_reads = WholeReads(self._rows, self.gate, self._filters, self._hybrid, self._cursors, self.efforts)
        self._aging = Aging(self._rows, self.gate, self._cache, self._cursors, self.efforts)

    @classmethod
    def restore(cls, params: IndexParams, run: RunParams, contents: IndexContents) -> Index:
        """An index from a loaded version.

        Raises:
            IntegrityError: a page of metadata or of expiries breaks a rule.
        """
        self = cls(params, run)
        rows = self._rows
        rows.restore(contents)
        rows.restore_metadata(contents.pages, contents.document_rows, rows.parse_changes(contents))
        self.efforts.loaded()
        return self

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with self.gate.changing():
            try:
                self._rows.bury_expired()
                yield
            finally:
                self._rows.refresh()
                self.efforts.changed()  # after the counts, which it reads

    def close(self) -> None:
        """Waits for the calls under way, then frees native memory; idempotent."""
        self.gate.close()
        with self.gate.lock:
            self._rows.free()
            self._cache.clear()

    # ---- properties that wait for nothing

    @property
    def is_whole(self) -> bool:
        """Whether all of it is in memory."""
        return True

    def missing(self, need: Need, gathered: Gathered) -> Missing:
        """Nothing is missing: the whole index is in memory."""
        return _NOTHING_MISSING

    @property
    def native(self) -> NativeIndex | None:
        """The native rows, None before the first add."""
        return self._rows.native

    @property
    def counts(self) -> NativeStats:
        """Native counts and memory after the last change."""
        return self._rows.counts

    @property
    def dim(self) -> int | None:
        """Components of a row in memory and in parts; None before the first add."""
        return self._rows.dim

    @property
    def vector_dim(self) -> int | None:
        """Components that a vector must have; None while no row has one."""
        return self._rows.vector_dim

    @property
    def schema(self) -> Schema | None:
        """The schema of metadata, or None."""
        return self._rows.schema

    @property
    def changes(self) -> int:
        """Number of changes; a session is dirty while it differs from the number at the last save or load."""
        return self._rows.changes

    @property
    def last_change_us(self) -> int:
        """The latest timestamp of a row that was added, microseconds since 1970."""
        return self._rows.last_change_us

    @property
    def metric(self) -> Metric:
        """The metric."""
        return self.params.metric

    @property
    def M(self) -> int:
        """Links of a row."""
        return self.params.M

    @property
    def ef_construction(self) -> int:
        """Candidates while linking."""
        return self.params.ef_construction

    @property
    def chunk_size(self) -> int | None:
        """Rows of a part; None where the size of a row decides."""
        return self.params.chunk_size

    @property
    def plans_used(self) -> dict[str, int]:
        """Searches so far by plan."""
        return self._searcher.plans_used

    def count_plans(self, plans_used: Mapping[str, int]) -> None:
        """Adds the counts of the index that this one replaces."""
        self._searcher.plans_used.update(plans_used)

    @property
    def hidden_count(self) -> int:
        """Rows that have expired and are no tombstones yet."""
        return self._rows.counted()[1]

    @property
    def live_count(self) -> int:
        """Rows that are neither deleted nor expired.

        Raises:
            IndexClosed: the index is closed.
        """
        counts, hidden = self.gate.within(self._rows.counted)
        return counts.live - hidden

    # ---- memory

    @property
    def budget_bytes(self) -> int | None:
        """Most bytes of memory; None for no limit."""
        return self._budget.limit_bytes

    @budget_bytes.setter
    def budget_bytes(self, budget_bytes: int | None) -> None:
        self._budget.limit_bytes = budget_bytes

    @property
    def untrimmed_bytes(self) -> int:
        """Upper bound of the bytes that changes have freed since the allocator last returned memory."""
        return self._budget.untrimmed_bytes

    @untrimmed_bytes.setter
    def untrimmed_bytes(self, size: int) -> None:
        self._budget.untrimmed_bytes = size

    @property
    def metadata_bytes(self) -> int:
        """Bytes of metadata and of expiry times."""
        return self._rows.metadata_bytes

    @property
    def native_text(self) -> NativeText | None:
        """The native index of words, None without one."""
        return self._rows.texts.native

    @property
    def text(self) -> TextSettings | None:
        """The settings of the text index, or None."""
        return self._rows.texts.settings

    @property
    def text_bytes(self) -> int:
        """Bytes of the text index."""
        return self._rows.texts.nbytes

    @property
    def column_bytes(self) -> int:
        """Bytes of columns and of remembered matches of filters."""
        return self._cache.nbytes

    @property
    def cache_bytes(self) -> int:
        """Bytes of cached parts: none."""
        return 0

    @property
    def held_bytes(self) -> int:
        """Bytes of memory held, caches included."""
        return self._rows.nbytes + self._cache.nbytes

    def forget_caches(self) -> bool:
        """Frees columns and matches of filters; returns whether there were any."""
        with self.gate.lock:
            held = self._cache.nbytes > 0
            self._budget.clear_cache()
            return held

    def make_room(self) -> None:
        """Frees columns where they take memory that saves and searches need."""
        limit = self._budget.limit_bytes
        if limit is not None and self.held_bytes + self._budget.reserve > limit:
            self.forget_caches()

    def check_room(self, vectors: Any) -> None:
        """Refuses vectors that cannot fit in the budget, before an array is made from a caller's list of them.

        Raises:
            MemoryBudgetExceededError: with the shortest ids and no metadata they would not fit.
        """
        check_room(self._rows, vectors)

    @property
    def metadata_room_bytes(self) -> int | None:
        """Bytes that new metadata may take at most; None for no limit."""
        return self._budget.left(self._rows.nbytes)

    # ---- reads of a save

    def page_sizes(self, rows_per_page: int) -> dict[int, int]:
        """Bytes of the metadata pages, by number."""
        return self._rows.page_sizes(rows_per_page)

    def page(self, number: int, rows_per_page: int) -> bytes:
        """One metadata page."""
        return self._rows.page(number, rows_per_page)

    def pages_kept(
        self, rows_per_page: int, page_sizes: Mapping[int, int], stored: Collection[int]
    ) -> tuple[set[int], list[int]]:
        """The pages of the base that a save keeps, and the live rows in them whose metadata differs."""
        return self._rows.pages_kept(rows_per_page, page_sizes, stored)

    def changes_of(self, slots: Sequence[int]) -> bytes:
        """The part with the metadata of rows that differ from the stored pages."""
        return self._rows.changes_of(slots)

    def pages_stored(self, rows_per_page: int, changed: Sequence[int]) -> None:
        """Notes that the stored pages hold the metadata of all rows, except of those that differ."""
        self._rows.pages_stored(rows_per_page, changed)

    def metadata_size(self, slot: int) -> int:
        """Bytes of a row's metadata, 0 for none."""
        return self._rows.arena.size(slot)

    def superseded_since_save(self, row_bytes: int) -> int:
        """Bytes of the last stored version whose rows were deleted, replaced or have expired since.

        Args:
            row_bytes: mean bytes of a stored row without its metadata.
        """
        return self._rows.superseded_since_save(row_bytes)

    def expiry_parts(self, rows_per_page: int) -> list[tuple[int, bytes]]:
        """The pages of expiry times for a save, by number."""
        return self._rows.expiries.pages(rows_per_page)

    def text_parts(self) -> tuple[TextShape, Sequence[TextPart]] | None:
        """The parts of the text index; None without one."""
        return self._rows.texts.parts()

    def write_text_part(self, part: TextPart, chunk_bytes: int) -> bytearray:
        """The bytes of one part of the text index."""
        return self._rows.texts.write_part(part, chunk_bytes)

    @property
    def text_superseded_bytes(self) -> int:
        """About the bytes of words that removed rows and replaced texts still have in the text index."""
        return self._rows.texts.superseded_bytes

    def graph_stored(self) -> None:
        """Notes that the present graph is stored: later saves may store only the steps since then."""
        with self.gate.lock:
            self._rows.core.graph_stored()

    # ---- changes

    def add(
        self, batch: Batch, on_conflict: str = "error", control: Control | None = None, for_lists: bool = False
    ) -> AddResult:
        """Adds rows: all or nothing. Where there are many tombstones, a vacuum runs first, even if the add is refused.

        Args:
            batch: the rows.
            on_conflict: for ids that are live: ``error``, ``replace`` or ``skip``. Of rows with the same id in one
                call, ``replace`` keeps the last and ``skip`` the first; the others count as skipped.
            control: progress and cancellation.
            for_lists: put the rows in no graph: `train`, `migrate` and `vacuum` follow before any save.

        Raises:
            InvalidInputError: a vector, id or `on_conflict` is refused; details has ``row`` and ``id``.
            ConflictError: with ``error``, an id is live already, or occurs twice in the call.
            MemoryBudgetExceededError: the rows would not fit.
            IndexStateError: there was not enough memory, or no thread could start.
        """
        check_on_conflict(on_conflict)
        if not len(batch.ids):
            return AddResult(0, 0, 0)
        with self._changing():
            return self._add(batch, on_conflict, control, for_lists)

    def _add(self, batch: Batch, on_conflict: str, control: Control | None, for_lists: bool = False) -> AddResult:
        if not for_lists and vacuum_comes_first(self.counts):
            self._aging.vacuum(control)
            self._rows.refresh()
        result = self._rows.add(batch, on_conflict, control, for_lists)
        self.efforts.added(result.added + result.replaced)
        return result

    def update_vectors(self, ids: Sequence[str], vectors: Any, control: Control | None = None) -> None:
        """Replaces the vectors of live rows: all or nothing. Metadata, timestamps and expiries stay as they are.

        Raises:
            NotFoundError: an id is not live.
            InvalidInputError: a vector is refused, or an id occurs twice.
            MemoryBudgetExceededError: they would not fit.
            IndexStateError: there was not enough memory, or no thread could start.
        """
        self.check_room(vectors)
        batch = prepare_batch(ids, vectors, None, None, self._rows.run.now_us, self.vector_dim)
        if batch.vectorless is not None:
            raise InvalidInputError(
                "a new vector must be numbers, not None", details={"row": int(batch.vectorless.argmax())}
            )
        if not len(batch.ids):
            return
        with self._changing():
            self._add(self._rows.with_vectors(batch), "replace", control)

    def update_metadata(self, id: str, metadata: Any) -> None:
        """Replaces a row's metadata. See `update_many`."""
        self.update_many([id], [metadata], REPLACE)

    def update_many(self, ids: Sequence[str], metadata: Sequence[Any], update: MetadataUpdate) -> None:
        """Updates the metadata of rows: all or nothing.

        Args:
            ids: different rows.
            metadata: a value for each.
            update: what becomes of these values.

        Raises:
            NotFoundError: an id is not live.
            InvalidInputError: a value is refused, an id occurs twice, or there is no dict to merge with.
            MemoryBudgetExceededError: they would not fit.
        """
        if len(ids) != len(metadata):
            raise InvalidInputError(f"There are {len(ids)} ids and {len(metadata)} values of metadata")
        encoded = encode_values(metadata, ids, self.metadata_room_bytes)
        with self._changing():
            slots = self._rows.require(ids)
            self._update(slots, ids, self._updated(slots, ids, encoded, update))

    def update_where(self, where: Filter, metadata: Any, update: MetadataUpdate) -> UpdateResult:
        """Updates the metadata of the rows that match a filter: all or nothing.

        Rows whose metadata stays the same, byte for byte, are left alone.

        Raises:
            InvalidInputError: the value is refused, or a row has no dict to merge with.
            MemoryBudgetExceededError: the columns of the filter, or the new metadata, would not fit.
        """
        value = encode_metadata(metadata)
        with self._changing():
            rows = self._rows
            slots = self._filters.match(where).slots()
            ids = rows.core.get_ids(slots)
            encoded = self._updated(slots, ids, repeat(value), update)
            differs = [new != rows.arena.get(slot) for slot, new in zip(slots.tolist(), encoded, strict=True)]
            matched, slots, ids = len(ids), slots[differs], list(compress(ids, differs))
            self._update(slots, ids, list(compress(encoded, differs)))
            return UpdateResult(matched, len(ids), ids)

    def _updated(
        self, slots: Slots, ids: Sequence[str], values: Iterable[bytes | None], update: MetadataUpdate
    ) -> list[bytes | None]:
        """The new metadata of rows, within the budget; inside a change."""
        rows, room = self._rows, self.metadata_room_bytes
        stored = map(rows.arena.get, slots.tolist())
        return within_room(map(update.applied, stored, values), ids, room)

    def _update(self, slots: Slots, ids: Sequence[str], encoded: Sequence[bytes | None]) -> None:
        self._rows.update_metadata(slots, ids, encoded)
        self._cache.touch(slots)

    def set_schema(self, schema: Schema | None) -> None:
        """Sets the schema of metadata, which every live row must fulfil already.

        Raises:
            InvalidInputError: a live row breaks it; details has ``id`` and ``path``.
        """
        with self._changing():
            self._rows.set_schema(schema)

    def set_text(self, settings: TextSettings | None, control: Control | None = None) -> None:
        """Makes the text index anew, from the metadata of all live rows; None for no text index.

        Raises:
            InvalidInputError: the language is unknown.
            MemoryBudgetExceededError: it would not fit.
            IndexStateError: there was not enough memory.
            NativeCancelled: `control` asked for it.
        """
        with self._changing():
            self._rows.set_text(settings, control)

    def delete(self, ids: Sequence[str], missing_ok: bool = False) -> DeleteResult:
        """Makes tombstones of rows: all or nothing.

        Raises:
            NotFoundError: an id is not live, unless `missing_ok`.
            MemoryBudgetExceededError: the work would not fit.
        """
        with self._changing():
            deleted = self._rows.delete(ids, missing_ok)
            return DeleteResult(len(deleted), deleted)

    def delete_where(self, where: Filter) -> DeleteResult:
        """Makes tombstones of the rows that match a filter: all or nothing.

        Raises:
            MemoryBudgetExceededError: the columns of the filter, or the work, would not fit.
        """
        with self._changing():
            slots = self._filters.match(where).slots()
            ids = self._rows.core.get_ids(slots)
            self._rows.remove(slots, ids)
            return DeleteResult(len(ids), ids)

    def clear(self) -> int:
        """Removes all rows, at once and for good; returns how many were live. The schema stays."""
        with self._changing():
            live, self.params = self.counts.live, replace(self.params, embedder=None)
            if self.counts.rows:
                self._cursors.renumber(np.full(self.counts.rows, NO_SLOT, dtype=np.uint32))
                self._rows.clear()
                self._cache.clear()
            return live

    # ---- recent and historical

    def check_optimizes(self) -> None:
        """Checks that an `optimize` will have enough memory to its end.

        Raises:
            MemoryBudgetExceededError: training, or the final vacuum, would not fit.
        """
        self._aging.check()

    def vacuum(self, control: Control | None = None) -> VacuumStats:
        """Removes tombstones and renumbers the rows: all or nothing. No later save names a page with replaced metadata.

        Raises:
            MemoryBudgetExceededError: its working memory would not fit.
            IndexStateError: there was not enough memory, or no thread could start.
            NativeCancelled: `control` asked for it.
        """
        with self._changing():
            return self._aging.vacuum(control)

    def arrange(self, control: Control | None = None) -> bool:
        """Gives near rows near slots, so that lazy loads fetch fewer parts; returns whether it did.

        Raises:
            MemoryBudgetExceededError: its working memory would not fit.
            IndexStateError: there was not enough memory, or no thread could start.
            NativeCancelled: `control` asked for it.
        """
        with self._changing():
            return self._aging.arrange(control)

    def train(self, cutoff_us: int, control: Control | None = None) -> bool:
        """Trains lists for rows that are historical or older than the cutoff, where due; returns whether it did.

        Raises:
            MemoryBudgetExceededError: the training would not fit.
            IndexStateError: there was not enough memory, or no thread could start.
            NativeCancelled: `control` asked for it.
        """
        return self._aging.train(cutoff_us, control)

    def migrate(self, cutoff_us: int, step: int, first: int = 0) -> tuple[int, int | None]:
        """Moves at most `step` recent rows older than the cutoff to lists.

        Args:
            cutoff_us: microseconds since 1970.
            step: most rows of this call.
            first: the slot to begin at.

        Returns:
            How many rows moved, and the slot at which to continue; None at the end, or where there are no lists.

        Raises:
            MemoryBudgetExceededError: the lists would not fit.
            IndexStateError: there was not enough memory, or no thread could start.
        """
        return self._aging.migrate(cutoff_us, step, first)

    def side(self, historical: bool) -> IndexSide:
        """The rows of one side."""
        return self.gate.alone(side_of, self._rows, historical)

    # ---- candidates of searches, as measured

    @property
    def calibration_is_due(self) -> bool:
        """Whether the index is to be measured again."""
        return self.efforts.is_due

    def calibrate_where_due(self, control: Control | None) -> None:
        """Measures the index again where due. Errors are ignored, as no change depends on it."""
        self.efforts.calibrate_where_due(control)

    @property
    def default_search(self) -> DefaultSearch:
        """How a search that names no setting goes; see `SessionStats.default_search`."""
        return self.efforts.default_search

    @property
    def recall_calibration(self) -> tuple[CalibrationPoint, ...]:
        """Candidates of some recalls; empty before they are measured and without a graph."""
        return self.efforts.points

    def sampled(self, read: Callable[[Sample | None], _T]) -> _T:
        """The result of `read`, called with the rows that searches can return; with None before the first add."""

        def sampled() -> _T:
            rows, hidden = self._rows, self._rows.hidden()
            if rows.native is None:
                return read(None)
            return read(Sample(rows.native, rows.counts, rows.visible(rows.slots_with_vector()), hidden.allow))

        return self.gate.read(sampled)

    # ---- searches

    def search(
        self, request: SearchRequest, gathered: Gathered | None = None, control: Control | None = None
    ) -> SearchResults:
        """The k nearest rows of one query.

        Args:
            request: the search.
            gathered: only for a lazily loaded index; not used here.
            control: stops the measurement that a recall target may need first.

        Raises:
            InvalidInputError: the query is not finite, zero under cosine, or of another dimension.
            MemoryBudgetExceededError: the columns of the filter would not fit.
            IndexStateError: there was not enough memory.
        """
        if request.group_by is not None:
            return self._search_groups(request.query[np.newaxis], request, control)[0]
        if request.text is not None:
            return self._search_text(request.query[np.newaxis], request, control)[0]
        request = self.efforts.find_request(request, control)
        searcher, where = self._searcher, request.where
        if where is None:
            found = self.gate.read(searcher.nearest, request, None, False)
        else:
            found = self._filters.read(where, lambda matches: searcher.nearest(request, matches, False))
        assert found is not None  # it waited
        searcher.plans_used[found.plan] += 1
        return found

    def _search_text(
        self, queries: npt.NDArray[np.float32], request: SearchRequest, control: Control | None
    ) -> list[SearchResults]:
        """The best rows for each query and text; queries without components are searches by words alone."""
        asked = request
        if queries.shape[1]:
            # What is measured is the recall of a search by vector, for as many rows as that gives.
            asked = self.efforts.find_request_for(depth_of(request.k), request, control)

        def found(matches: Matches | None) -> list[SearchResults]:
            return [self._hybrid.search(query, asked, place, matches) for place, query in enumerate(queries)]

        results = self.gate.read(found, None) if asked.where is None else self._filters.read(asked.where, found)
        self._searcher.note(results)
        return results

    def search_at_once(self, request: SearchRequest) -> SearchResults | None:
        """`search` on a thread that must not wait: None where the search is long, or a change runs."""
        if request.text is not None:
            return None
        where, searcher = request.where, self._searcher
        known_request = None if request.group_by is not None else self.efforts.known_request(request)
        if known_request is None:
            return None
        request = known_request
        if where is None:
            if not searcher.is_short(request, None):
                return None
            found = self.gate.try_read(searcher.nearest, request, None, True)
        else:
            known = self._filters.known(where)
            if known is None or not searcher.is_short(request, known.count):
                return None
            found = self._filters.try_read(where, lambda matches: searcher.nearest(request, matches, True))
        if not isinstance(found, SearchResults):
            return None
        searcher.plans_used[found.plan] += 1
        return found

    def repeat(self, request: SearchRequest, nowait: bool) -> Repeat | None:
        """A search that was done, for other queries; None where it has to be resolved anew each time.

        Args:
            request: the search.
            nowait: whether it was done by `search_at_once`.
        """
        return repeat_of(self.gate, self.efforts, self._searcher, self._rows, self._filters, request, nowait)

    def search_batch(
        self,
        queries: npt.NDArray[np.float32],
        request: SearchRequest,
        gathered: Gathered | None = None,
        control: Control | None = None,
    ) -> list[SearchResults]:
        """The k nearest rows of each query, on all threads; the request's own query is not used.

        Raises:
            InvalidInputError: a query is refused; details has ``row``.
            MemoryBudgetExceededError, IndexStateError: as `search`.
        """
        if request.group_by is not None:
            return self._search_groups(queries, request, control)
        if request.text is not None:
            return self._search_text(queries, request, control)
        request = self.efforts.find_request(request, control)
        searcher, where = self._searcher, request.where
        if where is None:
            results = self.gate.read(searcher.nearest_of_each, queries, request, None, control)
        else:
            results = self._filters.read(
                where, lambda matches: searcher.nearest_of_each(queries, request, matches, control)
            )
        searcher.note(results)
        return results

    def _search_groups(
        self, queries: npt.NDArray[np.float32], request: SearchRequest, control: Control | None
    ) -> list[SearchResults]:
        """The best rows of the groups with the nearest rows, of each query."""
        assert request.group_by is not None
        best = self._searcher.best_of_groups if request.text is None else self._hybrid.best_of_groups
        if request.text is None:
            request = self.efforts.find_request_for(min(request.k * request.group_size, K_MAX), request, control)

        def search(matches: Matches, groups: Groups) -> list[SearchResults]:
            return best(queries, request, matches, groups, control)

        results = self._filters.read_groups(request.where or EVERYTHING, request.group_by or "", search)
        self._searcher.note(results)
        return results

    # ---- other reads

    def get(self, ids: Sequence[str], gathered: Gathered | None = None) -> list[Row | None]:
        """Rows by id, in the order asked for; None for an id that is not live."""
        return self.gate.read(self._rows.get, ids)

    def timestamps(self, ids: Sequence[str] | None) -> dict[str, float]:
        """Seconds since 1970 of the live rows among ids, or of all."""
        return self.gate.read(timestamps_of, self._rows, ids)

    def count_where(self, where: Filter) -> int:
        """How many live rows match a filter."""
        return self._filters.count(where)

    def ids_where(self, where: Filter, order: str | None, descending: bool) -> list[str]:
        """The ids of the live rows that match a filter, in the order of a field, else of their slots."""
        return self._filters.ids(where, order, descending)

    def facets(self, query: FacetQuery) -> list[FacetCount]:
        """A page of the distinct values of a field."""
        return self._filters.facets(query)

    def fields(self, where: Filter) -> list[FieldInfo]:
        """The fields of the rows that match a filter."""
        return self._filters.fields(where)

    def cursor(self) -> Cursor:
        """The start of a scan over the rows of this moment."""
        return self._cursors.scan()

    def scan(self, cursor: Cursor, most: int, where: Filter | None = None) -> list[Row]:
        """The next live rows that match a filter, none at the end; moves the cursor past them."""
        return self._cursors.page(cursor, most, where)

    def scan_page(self, place: Place | None, most: int, where: Filter) -> ScanPage:
        """The next live rows that match a filter after a place in the order of insertion."""
        rows, last, has_more = self._cursors.page_after(place, most, where)
        return ScanPage(tuple(rows), None if last is None else encode_place(last), has_more)

    def stream(self, query: npt.NDArray[np.float32], where: Filter, control: Control | None = None) -> Cursor:
        """The start of a stream over the rows that match a filter now, in the order of their distances.

        Raises:
            InvalidInputError: the query is not finite, zero under cosine, or of another dimension.
            MemoryBudgetExceededError: the order of the rows, or the columns of the filter, would not fit.
            NativeCancelled: `control` asked for it.
        """
        return self._cursors.stream(query, where, control)

    def stream_page(
        self,
        cursor: Cursor,
        query: npt.NDArray[np.float32],
        most: int,
        threshold: float | Unset | None,
        include_vectors: bool,
    ) -> list[SearchResult]:
        """The next hits of a stream that are still live, none at the end; moves the cursor past them."""
        return self._cursors.stream_page(cursor, query, most, threshold, include_vectors)

    def text_stream(self, request: SearchRequest, where: Filter, control: Control | None = None) -> TextCursor:
        """The start of a stream with text over the rows that match a filter now, by falling score.

        Raises:
            InvalidInputError: there is no text index, or the query is refused.
            MemoryBudgetExceededError: the order of the rows, or the columns of the filter, would not fit.
            NativeCancelled: `control` asked for it.
        """
        return self._cursors.text_stream(request, where, control)

    def text_page(self, cursor: TextCursor, request: SearchRequest, most: int) -> list[SearchResult]:
        """The next hits of a stream with text that are still live, none at the end; moves the cursor past them."""
        return self._cursors.text_page(cursor, request, most)

    def stats(self) -> tuple[NativeStats, int]:
        """Native counts and memory, without expired rows in `vectorless`, and the number of expired rows.

        During a change they are those from before it.
        """

        def fresh() -> tuple[NativeStats, int]:
            # Searches allocate memory, too: read fresh values, where the lock is free.
            taken: list[bool] = []
            try:
                # One call of C takes the lock and notes it: Ctrl-C cannot come in between.
                taken.extend(map(self.gate.lock.acquire, (False,)))
                return fresh_stats(self._rows) if taken[0] else self._rows.counted()
            finally:
                if taken and taken[0]:
                    self.gate.lock.release()

        return self.gate.within(fresh)


# ---- Reads of rows -----------------------------------------------------------------------------------------


def fresh_stats(rows: Rows) -> tuple[NativeStats, int]:
    """Native counts and memory, without expired rows in `vectorless`, and the number of these; under the lock."""
    stats, (counts, hidden) = rows.core.stats(), rows.counted()
    return stats._replace(vectorless=counts.vectorless), hidden


def timestamps_of(rows: Rows, ids: Sequence[str] | None) -> dict[str, float]:
    """Seconds since 1970 of the live rows among ids, or of all."""
    if ids is None:
        slots = rows.core.live_slots(0, rows.counts.live)
    else:
        slots = rows.find(ids)
        slots = slots[slots != NO_SLOT]
    slots = rows.visible(slots)
    times = rows.core.get_timestamps(slots).tolist()
    return {id: us / 1e6 for id, us in zip(rows.core.get_ids(slots), times, strict=True)}


def side_of(rows: Rows, historical: bool) -> IndexSide:
    """The rows of one side; under the lock."""
    counts = rows.counts
    slots = rows.visible(rows.core.live_slots(0, counts.live))
    words = rows.core.historical()
    on_lists = are_in(words, slots)
    ids = tuple(rows.core.get_ids(slots[on_lists if historical else ~on_lists]))
    deleted = counts.historical_deleted
    if historical:
        return IndexSide("ivf", len(ids), deleted, counts.lists, ids)
    kind: Literal["flat", "hnsw"] = "hnsw" if counts.graph_rows else "flat"
    return IndexSide(kind, len(ids), counts.rows - counts.live - deleted, 0, ids)

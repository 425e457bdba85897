"""A lazily loaded index: most of its parts are still in the store.

In memory are ids, times, tombstones, and codes of one bit for each dimension. A search finds the likeliest rows by
these codes, and scores every row of the parts that hold them. Rows of a part lie near each other, so these few parts
hold most of the nearest rows. Scores and distances are those of the whole index, bit for bit.

Nothing here waits for a network. `missing` returns the parts that a call lacks; the caller fetches them, and calls it
again until nothing is missing. Changes, and other calls that need the whole index, are not here: for these the session
replaces it by a whole index.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any, Final, get_args

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.handle import NO_SLOT, Control, NativeIndex, NativeStats
from fabstir_vectordb._native.text import NativeText
from fabstir_vectordb.config import Metric
from fabstir_vectordb.errors import InternalError
from fabstir_vectordb.index.budget import Budget
from fabstir_vectordb.index.contents import VECTORS, IndexContents, LazyShape, PartSource
from fabstir_vectordb.index.filters import FilterCache, Filters
from fabstir_vectordb.index.gate import Gate
from fabstir_vectordb.index.hybrid import Hybrid
from fabstir_vectordb.index.incoming import check_query_dim
from fabstir_vectordb.index.index import fresh_stats, timestamps_of
from fabstir_vectordb.index.lazy_near import LazyNear
from fabstir_vectordb.index.lazy_rows import NOTHING, WHOLE, LazyRows
from fabstir_vectordb.index.lazy_text import LazyText
from fabstir_vectordb.index.protocol import (
    BatchNeed,
    Candidates,
    ChosenNeed,
    FilterNeed,
    Gathered,
    LikelyNeed,
    Missing,
    Need,
    Reach,
    RowsNeed,
    WordsNeed,
)
from fabstir_vectordb.index.rows import Rows
from fabstir_vectordb.index.searcher import Scorer, results_of_groups
from fabstir_vectordb.index.shard_reads import LazyReads
from fabstir_vectordb.metadata.census import FacetQuery
from fabstir_vectordb.metadata.filter_parse import Filter
from fabstir_vectordb.metadata.schema import Schema
from fabstir_vectordb.params import IndexParams, RunParams, SearchRequest
from fabstir_vectordb.text.settings import TextSettings
from fabstir_vectordb.types import (
    CalibrationPoint,
    DefaultSearch,
    FacetCount,
    FieldInfo,
    Plan,
    Receipt,
    Row,
    SearchResult,
    SearchResults,
)

__all__ = ["LazyIndex"]

# Share of the parts with vectors in the cache from which on the rest is fetched.
_NEARLY_SHARE: Final = 0.75
# Most queries of a call: each reads all codes, in some five milliseconds for 100,000 rows.
_BATCH_MAX: Final = 64


class LazyIndex:
    """The rows of a lazily loaded version. They are read-only, until a whole index replaces this one.

    Attributes:
        parts: the source of the parts in the store.
        last_change_us: the latest timestamp of a row that was added, microseconds since 1970.
        shard_reads: what a collection asks of it.

    Args:
        params, run: as for `Index`.
        contents: the parts that were loaded first.
        parts: the source of the other parts.
        shape: layout of the rows in the parts.
        become_whole: ask for the whole index once most of its parts are in memory.

    Raises:
        IntegrityError: a page of expiries, or changed metadata, breaks a rule of the format.
    """

    def __init__(
        self,
        params: IndexParams,
        run: RunParams,
        contents: IndexContents,
        parts: PartSource,
        shape: LazyShape,
        become_whole: bool = True,
    ) -> None:
        self.params = params
        self.gate = Gate()
        self.parts = parts
        self._shape = shape
        self._cache = FilterCache()
        self._budget = Budget(run.budget_bytes, self._cache)
        self._rows = Rows(params, run, self._budget)
        self._rows.restore(contents)
        self._rows.counts = self._of_version(self._rows.counts)
        self._filters = Filters(self._rows, self.gate, self._cache)
        self._scorer = Scorer(params.metric)
        self._held = LazyRows(self._rows, parts, shape, self._rows.parse_changes(contents), self.gate, self._budget)
        self._near = LazyNear(self._rows, self._held, self._filters)
        self._text = LazyText(self._rows, self._held, self._near, Hybrid(self._rows), self._filters)
        self.shard_reads = LazyReads(self._rows, self._held, self.gate)
        self._stays_lazy = not become_whole
        self.plans_used: dict[str, int] = dict.fromkeys(get_args(Plan), 0)
        self.changes = 0
        self.untrimmed_bytes = 0

    def _of_version(self, stats: NativeStats) -> NativeStats:
        """Counts of the version. Its graph and lists are not in the native index here."""
        shape = self._shape
        return stats._replace(graph_rows=shape.graph_rows, historical=shape.historical, lists=shape.lists)

    def close(self) -> None:
        """Waits for the calls under way, then frees native memory and parts; idempotent."""
        self.gate.close()
        with self.gate.lock:
            self._rows.free()
            self._cache.clear()
        self.parts.close()

    def stay_lazy(self) -> None:
        """Notes that the whole index would not fit: only calls that cannot do without it ask for it again."""
        self._stays_lazy = True

    def check_part(self, raw: bytes) -> None:
        """Checks a part with vectors; `close` waits for it.

        Raises:
            IntegrityError: the part breaks a rule of the format.
            IndexClosed: another index replaced this one meanwhile.
        """
        self.gate.within(lambda: self._native.check_part(raw))

    @property
    def _native(self) -> NativeIndex:
        native = self._rows.native
        assert native is not None  # a version that is loaded lazily has rows
        return native

    # ---- properties that wait for nothing

    @property
    def is_whole(self) -> bool:
        """False: before a change the session replaces this index by a whole one."""
        return False

    @property
    def native(self) -> NativeIndex | None:
        """The native rows."""
        return self._rows.native

    @property
    def counts(self) -> NativeStats:
        """Counts of the version, and memory."""
        return self._rows.counts

    @property
    def dim(self) -> int | None:
        """Components of a row."""
        return self._rows.dim

    @property
    def vector_dim(self) -> int | None:
        """Components that a vector must have; None while no row has one."""
        return self._rows.vector_dim

    @property
    def metric(self) -> Metric:
        """The metric."""
        return self.params.metric

    @property
    def schema(self) -> Schema | None:
        """The schema of metadata, or None."""
        return self._rows.schema

    @property
    def hidden_count(self) -> int:
        """Rows that have expired."""
        return self._rows.counted()[1]

    def superseded_since_save(self, row_bytes: int) -> int:
        """Bytes of the version whose rows have expired; nothing else changes in this index."""
        return self._rows.superseded_since_save(row_bytes)

    @property
    def live_count(self) -> int:
        """Rows that are neither deleted nor expired.

        Raises:
            IndexClosed: the index is closed.
        """
        counts, hidden = self.gate.within(self._rows.counted)
        return counts.live - hidden

    @property
    def default_search(self) -> DefaultSearch:
        """Nothing is measured in a lazily loaded index."""
        return "unknown"

    @property
    def recall_calibration(self) -> tuple[CalibrationPoint, ...]:
        """Nothing is measured in a lazily loaded index."""
        return ()

    @property
    def calibration_is_due(self) -> bool:
        """Nothing is measured in a lazily loaded index."""
        return False

    # ---- memory

    @property
    def budget_bytes(self) -> int | None:
        """Most bytes of memory; None for no limit."""
        return self._budget.limit_bytes

    @budget_bytes.setter
    def budget_bytes(self, budget_bytes: int | None) -> None:
        self._budget.limit_bytes = budget_bytes

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
        """Bytes of cached parts."""
        return self.parts.nbytes

    @property
    def held_bytes(self) -> int:
        """Bytes of memory held, caches included."""
        return self._rows.nbytes + self._cache.nbytes + self.parts.nbytes

    def forget_caches(self) -> bool:
        """Frees columns and cached parts; returns whether there were any."""
        with self.gate.lock:
            held = self._cache.nbytes + self.parts.nbytes > 0
            self._cache.clear()
            self.parts.clear()
            return held

    def make_room(self) -> None:
        """Frees columns and cached parts where they take memory that saves and searches need."""
        limit = self._budget.limit_bytes
        if limit is not None and self.held_bytes + self._budget.reserve > limit:
            self.forget_caches()

    # ---- missing parts

    def missing(self, need: Need, gathered: Gathered) -> Missing:
        """The parts that a call still lacks. The parts that are in memory are put into `gathered`.

        Args:
            need: the data that the call needs.
            gathered: the data of this call, empty at first.

        Raises:
            InvalidInputError: a query is not finite, zero under cosine, or of another dimension.
            IntegrityError: a page of metadata breaks a rule of the format.
            MemoryBudgetExceededError: the metadata, or the columns of the filter, would not fit.
            IndexClosed: another index replaced this one.
        """
        return self.gate.within(self._missing, need, gathered)

    def _missing(self, need: Need, gathered: Gathered) -> Missing:
        if need is Reach.IDS:
            return NOTHING
        if isinstance(need, RowsNeed):
            if gathered.slots is None:
                slots = self._rows.find(need.ids)
                gathered.slots = slots[slots != NO_SLOT]
            parts = self._held.parts_of(gathered.slots) if need.vectors else []
            return self._held.lacking([*parts, *self._held.pages_of(gathered.slots)], gathered)
        if isinstance(need, WordsNeed):
            return self._text.missing_words(need.queries, gathered)
        if isinstance(need, FilterNeed):
            return self._held.missing_metadata(gathered) if need.metadata else NOTHING
        if isinstance(need, SearchRequest):
            need = BatchNeed(need.query[np.newaxis], need)
        if isinstance(need, BatchNeed | LikelyNeed | ChosenNeed) and len(need.queries) <= _BATCH_MAX:
            return self._missing_of_search(need, gathered)
        return WHOLE

    def _missing_of_search(self, need: BatchNeed | LikelyNeed | ChosenNeed, gathered: Gathered) -> Missing:
        queries, request = need.queries, need.request
        if request.exact:
            return WHOLE
        # By vector, too, groups are of all rows, in the order of their distances.
        needs_rows = queries.size or request.include_vectors or (request.text and request.text.totals is not None)
        if request.text is not None and request.group_by is not None and needs_rows:
            return WHOLE
        if (request.text is None or queries.size) and self._is_nearly_here():
            return Missing(whole=True, optional=True)
        if request.text is not None:
            if isinstance(need, LikelyNeed):
                return self._text.missing_likely(queries, request, gathered)
            return self._text.missing(queries, request, gathered, need.slots if isinstance(need, ChosenNeed) else None)
        if not len(queries):
            return NOTHING
        check_query_dim(queries.shape[1], self.vector_dim)
        if queries.shape[1] != self._native.dim:
            return NOTHING  # no row has a vector
        if not gathered.candidates:
            if request.group_by is not None or (request.where is not None and request.where.needs_metadata):
                lacking = self._held.missing_metadata(gathered)
                if lacking is not NOTHING:
                    return lacking
            self._take_candidates(need, gathered)
        if isinstance(need, LikelyNeed):
            return NOTHING
        # Pages of metadata begin at the same rows as parts: the candidates' pages mostly cover the other rows of their
        # parts, too.
        keys = [key for one in gathered.candidates for key in (*one.parts, *self._held.pages_of(one.slots))]
        lacking = self._held.lacking(keys, gathered)
        if lacking is not NOTHING:
            return lacking
        for query, one in zip(queries, gathered.candidates, strict=True):
            if one.hits is None:
                one.hits = self._near.nearest(query, request, one, gathered)
        nearest = [slot for one in gathered.candidates for _, _, slot in one.hits or ()]
        return self._held.lacking(self._held.pages_of(np.array(nearest, dtype=np.uint32)), gathered)

    def _take_candidates(self, need: BatchNeed | LikelyNeed | ChosenNeed, gathered: Gathered) -> None:
        near, queries, request = self._near, need.queries, need.request
        if request.group_by is not None:
            if isinstance(need, ChosenNeed):
                near.take_candidates_of_groups(need, request.group_by, gathered)
            else:
                wanted = need.groups if isinstance(need, LikelyNeed) else ()
                near.find_candidates_of_groups(queries, request, request.group_by, gathered, wanted)
            return
        taken = [near.allowed(request)] * len(queries)
        if isinstance(need, ChosenNeed):
            near.take_candidates(need.slots, gathered, taken)
        else:
            near.find_candidates(queries, request, gathered, taken)

    def _is_nearly_here(self) -> bool:
        """Whether most parts are in memory, so that a whole index, a hundred times as fast, is worth loading."""
        if self._stays_lazy:
            return False
        return self.parts.count(VECTORS) >= _NEARLY_SHARE * len(self.parts.numbers(VECTORS))

    # ---- searches

    def search_at_once(self, request: SearchRequest) -> None:
        """None: every search is long."""
        return

    def repeat(self, request: SearchRequest, nowait: bool) -> None:
        """None: each search asks first which parts it lacks."""
        return

    def search(
        self, request: SearchRequest, gathered: Gathered | None = None, control: Control | None = None
    ) -> SearchResults:
        """The k nearest rows of one query, among the rows of the gathered parts.

        `nprobe` has no effect; `ef_search` is the number of candidates.

        Args:
            request: the search.
            gathered: the data of this call, complete by `missing`.
            control: has no effect, as nothing here takes long.

        Raises:
            InternalError: `missing` was not called before.
        """
        return self.search_batch(request.query[np.newaxis], request, gathered, control)[0]

    def search_batch(
        self,
        queries: npt.NDArray[np.float32],
        request: SearchRequest,
        gathered: Gathered | None = None,
        control: Control | None = None,
    ) -> list[SearchResults]:
        """`search` for each of many queries."""

        def results() -> list[SearchResults]:
            if request.text is not None and request.group_by is not None and gathered is not None:
                return self._text.groups(queries, request, request.group_by, gathered)
            if request.text is not None:
                if gathered is None or len(gathered.answers) != len(queries):
                    raise InternalError("a lazily loaded index is asked what it misses first")
                plan: Plan = "lazy + words" if queries.shape[1] else "words"
                return self._text.results(request, plan, gathered)
            if not len(queries) or queries.shape[1] != self._native.dim:
                return [SearchResults([], 0, "lazy") for _ in queries]
            if gathered is None or len(gathered.candidates) != len(queries):
                raise InternalError("a lazily loaded index is asked what it misses first")
            return [self._results(one, request, gathered) for one in gathered.candidates]

        found = self.gate.within(results)
        for one in found:
            self.plans_used[one.plan] += 1
        return found

    def _results(self, one: Candidates, request: SearchRequest, gathered: Gathered) -> SearchResults:
        results = self._hits(one, request, gathered) if one.groups is None else self._grouped(one, request, gathered)
        used = {*one.parts, *self._held.pages_of(one.slots)}
        cached = max(len(used) - gathered.requests, 0)
        results.receipt = Receipt(requests=gathered.requests, bytes=gathered.bytes, cache_hits=cached)
        return results

    def _grouped(self, one: Candidates, request: SearchRequest, gathered: Gathered) -> SearchResults:
        def describe(slots: list[int]) -> Iterable[tuple[bytearray, npt.NDArray[np.float32] | None]]:
            vectors: Iterable[Any] = repeat(None)
            if request.include_vectors:
                vectors = self._held.vectors_of(np.array(slots, dtype=np.uint32), gathered)
            return zip(self._rows.arena.get_many(slots), vectors, strict=False)

        assert one.groups is not None
        return results_of_groups(one.found, one.groups, self._scorer, request.threshold, describe, "lazy")

    def _hits(self, one: Candidates, request: SearchRequest, gathered: Gathered) -> SearchResults:
        nearest = one.hits or []
        scored = self._scorer.scores([distance for distance, _, _ in nearest])
        n, scores = int(self._scorer.passing(scored, request.threshold)), scored.tolist()
        slots = np.array([slot for _, _, slot in nearest[:n]], dtype=np.uint32)
        vectors: Iterable[npt.NDArray[np.float32] | None] = (
            self._held.vectors_of(slots, gathered) if request.include_vectors else repeat(None)
        )
        hits = [
            SearchResult(id.decode(), score, distance, bytearray(self._held.metadata_of(slot, gathered) or b""), vector)
            for (distance, id, slot), score, vector in zip(nearest[:n], scores, vectors, strict=False)
        ]
        return SearchResults(hits, len(scores) - n, "lazy")

    # ---- other reads

    def get(self, ids: Sequence[str], gathered: Gathered | None = None) -> list[Row | None]:
        """Rows by id, in the order asked for; None for an id that is not live.

        Raises:
            InternalError: `missing` was not called before.
        """

        def rows() -> list[Row | None]:
            if gathered is None or gathered.slots is None:
                raise InternalError("a lazily loaded index is asked what it misses first")
            slots, known = self._rows.find(ids), set(self._rows.visible(gathered.slots).tolist())
            live = [slot in known for slot in slots.tolist()]
            found = [id for id, is_live in zip(ids, live, strict=True) if is_live]
            of = slots[np.array(live, dtype=np.bool_)]
            metadata = [self._held.metadata_of(slot, gathered) for slot in of.tolist()]
            made = iter(self._rows.made(of, found, self._held.vectors_of(of, gathered), metadata))
            return [next(made) if is_live else None for is_live in live]

        return self.gate.within(rows)

    def timestamps(self, ids: Sequence[str] | None) -> dict[str, float]:
        """Seconds since 1970 of the live rows among ids, or of all."""
        return self.gate.within(timestamps_of, self._rows, ids)

    def count_where(self, where: Filter) -> int:
        """How many live rows a filter takes; to be called after `missing`."""
        return self._filters.count(where)

    def facets(self, query: FacetQuery) -> list[FacetCount]:
        """A page of the distinct values of a field; to be called after `missing`."""
        return self._filters.facets(query)

    def fields(self, where: Filter) -> list[FieldInfo]:
        """The fields of the rows that match a filter; to be called after `missing`."""
        return self._filters.fields(where)

    def stats(self) -> tuple[NativeStats, int]:
        """Counts of the version, and memory, without expired rows in `vectorless`, and the number of expired rows."""
        stats, hidden = self.gate.alone(fresh_stats, self._rows)
        return self._of_version(stats), hidden

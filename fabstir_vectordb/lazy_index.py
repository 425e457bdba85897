"""An index most of which is still in the store.

It knows its rows: ids, times, which are live. For a search it asks their codes, a bit a dimension, where the nearest
may be, and scores every row of the parts that hold the likeliest: rows of a part lie near each other, so that these few
parts hold most of the nearest. Scores and distances are those of the whole index, bit for bit.

Nothing here waits for a network: what is missing is raised (`persist.lazy`), and whoever can wait fetches it and asks
again. What needs the whole, changes above all, says so likewise, and the session puts a whole index in its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.handle import Control, NativeBusy, NativeIndex, NativeStats
from fabstir_vectordb.config import Unset
from fabstir_vectordb.index import Cursor, Effort, Index, IndexSettings
from fabstir_vectordb.metadata.arena import page_row
from fabstir_vectordb.metadata.changes import parse_changes
from fabstir_vectordb.metadata.columns import Column
from fabstir_vectordb.metadata.filter_parse import Filter
from fabstir_vectordb.persist.contents import DOCUMENTS, VECTORS, PartKey
from fabstir_vectordb.persist.lazy import WholeNeeded
from fabstir_vectordb.persist.load import LazyVersion, LoadedVersion
from fabstir_vectordb.types import IndexSide, Receipt, Row, SearchResult, SearchResults

__all__ = ["LazyIndex"]

# Rows by code whose parts are fetched, as a multiple of k: on 100,000 sentence embeddings these parts hold 96, 99 and
# 99.7 % of the ten nearest (docs/decisions/0016).
_CANDIDATES: tuple[tuple[float, float], ...] = ((0.95, 1.2), (0.99, 2.4), (1.0, 6.0))
# Share of the vectors that the cache has kept when the rest is worth fetching.
_NEARLY_SHARE = 0.75
_CANDIDATES_MIN = 8
_CANDIDATES_MAX = 10_000

_Slots = npt.NDArray[np.uint32]


class LazyIndex(Index):
    """The rows of a version that was loaded lazily; it is only read, until a whole index takes its place."""

    def __init__(self, settings: IndexSettings) -> None:
        super().__init__(settings)
        self._lazy: LazyVersion | None = None
        self._has_metadata = False
        self._stays_lazy = False
        self._changes: dict[int, bytes | None] = {}

    @classmethod
    def of(cls, settings: IndexSettings, loaded: LoadedVersion) -> LazyIndex:
        """The index of a version that was loaded lazily.

        Raises:
            IntegrityError: a page of expiries, or changed metadata, breaks a rule.
        """
        self = cls(settings)
        self._lazy = loaded.lazy
        self._restore(loaded)
        self.lazy.parts.check = self._check_part
        self._changes = parse_changes(loaded.changes, loaded.rows)
        return self

    def _check_part(self, raw: bytes) -> None:
        """Checks a part with vectors; `close` waits for it.

        Raises:
            IntegrityError: it breaks a rule of the format.
            IndexClosed: a whole index took this one's place meanwhile.
        """

        def check() -> None:
            assert self.native is not None
            self.native.check_part(raw)

        self._within(check)

    @property
    def lazy(self) -> LazyVersion:
        """What loads the rest."""
        assert self._lazy is not None
        return self._lazy

    @property
    def is_whole(self) -> bool:
        """False: the session puts a whole index in its place before it changes anything."""
        return False

    @property
    def cache_bytes(self) -> int:
        """Bytes of parts that are kept."""
        return self.lazy.parts.cache.nbytes

    def forget_caches(self) -> bool:
        """Lets go of parts, too."""
        held = self.cache_bytes > 0
        self.lazy.parts.cache.clear()
        return super().forget_caches() or held

    def close(self) -> None:
        """Lets go of parts, too, and of those that are on their way."""
        super().close()
        self.lazy.parts.cache.bytes_max = 0
        self.lazy.parts.cache.clear()

    def require_whole(self) -> None:
        """Asks for the whole index.

        Raises:
            WholeNeeded: always.
        """
        raise WholeNeeded

    def _native_stats(self) -> NativeStats:
        # What the version has: the native index has no graph and no lists.
        manifest = self.lazy.opened.manifest
        return (
            super()
            ._native_stats()
            ._replace(graph_rows=manifest.graph_rows, historical=manifest.historical, lists=manifest.lists)
        )

    def known_effort(self, k: int, recall_target: float) -> Effort | None:
        """None: no search is short."""
        return None

    # ---- metadata

    def _up_to_date(self, paths: Sequence[str]) -> dict[str, Column]:
        if not self._has_metadata:
            manifest, parts = self.lazy.opened.manifest, self.lazy.parts
            keys = [(DOCUMENTS, number) for number in parts.numbers(DOCUMENTS)]
            self._check_fits("metadata", self.counts.bytes_total + parts.size(keys))
            pages = [(number, page) for (_, number), page in parts.get(keys).items()]
            self._restore_metadata(pages, manifest.layout.document_rows, self._changes)
            self._has_metadata = True
        return super()._up_to_date(paths)

    def _pages_of(self, slots: _Slots) -> list[PartKey]:
        """The pages that have metadata of slots, where it is not here already."""
        if self._has_metadata:
            return []
        numbers = np.unique(slots // self.lazy.opened.manifest.layout.document_rows).tolist()
        return [key for number in numbers if (key := (DOCUMENTS, number)) in self.lazy.parts.stored]

    def _metadata_of(self, slot: int, pages: Mapping[PartKey, bytes]) -> bytes | None:
        if self._has_metadata:
            return self._arena.get(slot)
        if slot in self._changes:
            return self._changes[slot]
        manifest = self.lazy.opened.manifest
        number = slot // manifest.layout.document_rows
        page = pages.get((DOCUMENTS, number))
        return None if page is None else page_row(number, manifest.layout.document_rows, page, manifest.rows, slot)

    # ---- vectors

    def _parts_of(self, slots: _Slots) -> list[PartKey]:
        """The parts that have the vectors of slots."""
        rows = self.lazy.opened.manifest.layout.rows_per_part
        return [(VECTORS, number) for number in np.unique(slots // rows).tolist()]

    def _vectors_of(
        self, native: NativeIndex, slots: _Slots, parts: Mapping[PartKey, bytes]
    ) -> npt.NDArray[np.float32]:
        out = np.empty((len(slots), native.dim), dtype=np.float32)
        numbers = slots // self.lazy.opened.manifest.layout.rows_per_part
        for number in np.unique(numbers).tolist():
            here = numbers == number
            out[here] = native.part_vectors(parts[VECTORS, number], slots[here])
        return out

    def _rows(self, native: NativeIndex, slots: _Slots, ids: Sequence[str]) -> list[Row]:
        found = self.lazy.parts.get([*self._parts_of(slots), *self._pages_of(slots)])
        metadata = [self._metadata_of(slot, found) for slot in slots.tolist()]
        return self._made_rows(native, slots, ids, self._vectors_of(native, slots, found), metadata)

    # ---- search

    def search(
        self,
        query: npt.NDArray[np.float32],
        k: int,
        threshold: float | Unset | None,
        include_vectors: bool = False,
        ef_search: int = 0,
        exact: bool = False,
        nprobe: int = 0,
        recall_target: float | None = None,
        where: Filter | None = None,
        nowait: bool = False,
        control: Control | None = None,
    ) -> SearchResults:
        """The k nearest rows of one query among the parts that are likeliest to have them.

        `nprobe` makes no difference; `ef_search` is the number of candidates.

        Raises:
            PartsNeeded, WholeNeeded: see `persist.lazy`.
            InvalidInputError, NativeBusy: as of the whole index.
        """
        if nowait:
            raise NativeBusy
        if exact:
            raise WholeNeeded
        if self._is_nearly_here():
            raise WholeNeeded(optional=True)
        most = candidates_for(k, ef_search, recall_target)

        def read(allow: npt.NDArray[np.uint64] | None) -> SearchResults:
            assert self.native is not None
            self._check_query(query)
            if len(query) != self.native.dim:
                return SearchResults([], 0, "lazy")  # no row has a vector
            return self._nearest_by_parts(self.native, query, k, most, threshold, include_vectors, allow)

        if where is None:
            results = self._consistent(lambda: read(self._hidden().allow))
        else:
            results = self._matching(where, lambda matches: read(matches.allow))
        self.plans_used[results.plan] += 1
        return results

    def search_batch(
        self,
        queries: npt.NDArray[np.float32],
        k: int,
        threshold: float | Unset | None,
        include_vectors: bool = False,
        ef_search: int = 0,
        exact: bool = False,
        nprobe: int = 0,
        recall_target: float | None = None,
        where: Filter | None = None,
        control: Control | None = None,
    ) -> list[SearchResults]:
        """`search` for each of many queries; more of them than a few need the whole index.

        Raises:
            PartsNeeded, WholeNeeded, InvalidInputError: as `search`.
        """
        if len(queries) > _BATCH_MAX:
            raise WholeNeeded
        effort = ef_search, exact, nprobe, recall_target, where, False, control
        return [self.search(query, k, threshold, include_vectors, *effort) for query in queries]

    def _is_nearly_here(self) -> bool:
        """Whether most of it came, and a whole index, a hundred times as fast, is the better home for it."""
        parts = self.lazy.parts
        return not self._stays_lazy and parts.cache.count(VECTORS) >= _NEARLY_SHARE * len(parts.numbers(VECTORS))

    def stay_lazy(self) -> None:
        """The whole would not fit: it is not asked for again where a call can do without."""
        self._stays_lazy = True

    def _nearest_by_parts(
        self,
        native: NativeIndex,
        query: npt.NDArray[np.float32],
        k: int,
        most: int,
        threshold: float | Unset | None,
        include_vectors: bool,
        allow: npt.NDArray[np.uint64] | None,
    ) -> SearchResults:
        likely = native.candidates(query, most, allow)
        likely_parts = self._parts_of(likely)
        # Pages begin where parts do: those of the candidates have the metadata of every row beside them.
        found = self.lazy.parts.get([*likely_parts, *self._pages_of(likely)])
        rows: list[tuple[float, bytes, int]] = []
        for key in likely_parts:
            slots, distances = native.search_part(found[key], query, k, allow)
            ids = (id.encode() for id in native.get_ids(slots))
            rows += zip(distances.tolist(), ids, slots.tolist(), strict=True)
        nearest = sorted(rows)[:k]
        scores = self._scores([distance for distance, _, _ in nearest])
        n = self._passing(scores, threshold)
        slots = np.array([slot for _, _, slot in nearest[:n]], dtype=np.uint32)
        pages = {**found, **self.lazy.parts.get([key for key in self._pages_of(slots) if key not in found])}
        vectors: Iterable[npt.NDArray[np.float32] | None] = (
            self._vectors_of(native, slots, found) if include_vectors else repeat(None)
        )
        hits = [
            SearchResult(id.decode(), score, distance, bytearray(self._metadata_of(slot, pages) or b""), vector)
            for (distance, id, slot), score, vector in zip(nearest[:n], scores, vectors, strict=False)
        ]
        results = SearchResults(hits, len(scores) - n, "lazy")
        results.receipt = Receipt(cache_hits=len(found))
        return results

    # ---- what takes the whole

    def cursor(self) -> Cursor:
        """A scan reads every row.

        Raises:
            WholeNeeded: always.
        """
        raise WholeNeeded

    def stream(self, query: npt.NDArray[np.float32], where: Filter, control: Control | None = None) -> Cursor:
        """A stream scores every row.

        Raises:
            WholeNeeded: always.
        """
        raise WholeNeeded

    def side(self, historical: bool) -> IndexSide:
        """Lists say which rows are on which side.

        Raises:
            WholeNeeded: always.
        """
        raise WholeNeeded


# Queries of one call: each asks all codes, in some two milliseconds for 100,000 rows.
_BATCH_MAX = 64


def candidates_for(k: int, ef_search: int, recall_target: float | None) -> int:
    """How many of the nearest rows by code have their parts fetched.

    Args:
        k: rows that are asked for.
        ef_search: so many, where given.
        recall_target: share of the k nearest that is asked for.
    """
    if ef_search:
        return min(max(k, ef_search), _CANDIDATES_MAX)
    target = recall_target or 0.0
    share = next((share for recall, share in _CANDIDATES if target <= recall), _CANDIDATES[-1][1])
    return min(max(int(share * k + 0.5), _CANDIDATES_MIN), _CANDIDATES_MAX)

"""A search that is asked again with another query. All else of it is resolved once, and holds while no row changes."""

from __future__ import annotations

from typing import Any

import numpy as np

from fabstir_vectordb._native.handle import Asked, NativeIndex, floats_of
from fabstir_vectordb.index.efforts import Efforts, Verdict
from fabstir_vectordb.index.filters import Filters
from fabstir_vectordb.index.gate import Gate
from fabstir_vectordb.index.rows import NoRows, Rows
from fabstir_vectordb.index.searcher import FILTERED_PLANS, PLANS, Searcher
from fabstir_vectordb.metadata.filter_parse import Filter
from fabstir_vectordb.params import SearchRequest
from fabstir_vectordb.types import SearchResult, SearchResults, results_of

__all__ = ["Repeat", "repeat_of"]

_ndarray = np.ndarray
_FLOAT32 = np.dtype(np.float32)


class Repeat:
    """The last search, ready for another query.

    It holds while the generation of the index, and the verdict on its default search, are those it was made under: the
    rows, their metadata, and the candidates that were measured to find enough of them are the same then.
    """

    __slots__ = (
        "_asked",
        "_core",
        "_efforts",
        "_filters",
        "_gate",
        "_generation",
        "_searcher",
        "_shape",
        "_verdict",
        "_where",
        "_with_slots",
    )

    def __init__(
        self,
        gate: Gate,
        generation: int,
        efforts: Efforts,
        verdict: Verdict | None,
        searcher: Searcher,
        core: NativeIndex,
        asked: Asked,
        with_slots: bool,
        filters: Filters,
        where: Filter | None,
    ) -> None:
        self._gate, self._generation = gate, generation
        self._efforts, self._verdict = efforts, verdict
        self._searcher, self._core, self._asked, self._with_slots = searcher, core, asked, with_slots
        self._shape = (core.dim,)
        # The rows that match are looked up each time, as they take more memory than one of many searches may hold.
        self._filters, self._where = filters, where

    @property
    def holds(self) -> bool:
        """Whether it may answer: no row has changed since it was made."""
        return self._gate.generation == self._generation and self._gate.is_open

    def search(self, query: Any) -> SearchResults | None:
        """The answer; None for a query that must be checked first, and where the search does not hold any more.

        All in one function, as most searches are of this kind: with one for each step they took 0.6 µs more, and twice
        that with cold caches.

        Raises:
            InvalidInputError: the query is not finite, or zero under cosine.
            IndexStateError: there was not enough memory.
        """
        if (
            type(query) is not _ndarray
            or query.dtype is not _FLOAT32
            or query.shape != self._shape
            or self._efforts.verdict is not self._verdict
        ):
            return None
        try:
            floats = floats_of(query)
        except ValueError:  # it is not C-contiguous
            return None
        gate, generation, searcher = self._gate, self._generation, self._searcher
        inside = gate.inside
        try:  # the steps of `Gate.try_read`
            inside.append(True)
            if gate.generation != generation or not inside[0]:
                return None
            try:
                allowed, plans = None, PLANS
                if self._where is not None:
                    matches = self._filters.known(self._where)
                    if matches is None:  # forgotten
                        return None
                    allowed, plans = matches.allowed, FILTERED_PLANS
                answer = self._core.search_again(floats, self._asked, self._with_slots, allowed)
                if answer is None:  # it would have to wait
                    return None
                slots, distances, ids, number, scores, below = answer
                plan = plans[number]
                if slots:
                    found = searcher.described(self._core, slots, distances, ids, scores, below, plan, False)
                else:
                    found = results_of(map(SearchResult, ids, scores, distances), below, plan)
            except Exception:
                if gate.generation == generation:
                    raise
                return None
            if gate.generation != generation:
                return None
        finally:
            inside.pop()
            if not inside[0] and len(inside) == 1:
                gate.emptied.set()
        searcher.plans_used[plan] += 1
        return found


def repeat_of(
    gate: Gate,
    efforts: Efforts,
    searcher: Searcher,
    rows: Rows,
    filters: Filters,
    request: SearchRequest,
    nowait: bool,
) -> Repeat | None:
    """A search that was done, for other queries; None where it has to be resolved anew each time.

    Args:
        gate, efforts, searcher, rows, filters: of the index.
        request: the search.
        nowait: whether it must not wait, as of `Searcher.nearest`.
    """
    generation, core, verdict = gate.generation, rows.core, efforts.verdict
    where, matched = request.where, None
    is_plain = request.text is None and request.group_by is None
    if generation & 1 or not is_plain or request.include_vectors or isinstance(core, NoRows):
        return None
    if where is not None:
        matches = filters.known(where)
        if matches is None:
            return None
        matched = matches.count
    elif not rows.expiries.is_empty:  # rows expire without a change
        return None
    # What it takes was measured, and is measured anew only with a new verdict or after a change.
    resolved = None if verdict is None else efforts.known_request(request)
    if resolved is None:
        return None
    request = resolved
    if nowait and not searcher.is_short(request, matched):
        return None
    least = searcher.scorer.least(request.threshold)
    asked = request.k, request.ef_search, request.exact, nowait, request.nprobe, least
    return Repeat(gate, generation, efforts, verdict, searcher, core, asked, not rows.arena.is_empty, filters, where)

"""Searches with text of a lazily loaded index: the words' parts, beside those of the vector's side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fabstir_vectordb.index.contents import PartKey
from fabstir_vectordb.index.filters import Filters, Matches
from fabstir_vectordb.index.grouping import Groups
from fabstir_vectordb.index.hybrid import Hybrid, Near, Stored, depth_of, no_text_index
from fabstir_vectordb.index.incoming import check_query_dim
from fabstir_vectordb.index.lazy_near import LazyNear
from fabstir_vectordb.index.lazy_rows import NOTHING, LazyRows
from fabstir_vectordb.index.protocol import Gathered, Missing, TextAnswer
from fabstir_vectordb.index.rows import Rows, Slots
from fabstir_vectordb.index.searcher import Scorer
from fabstir_vectordb.metadata.filter_parse import EVERYTHING
from fabstir_vectordb.params import SearchRequest
from fabstir_vectordb.text.clauses import TermsQuery
from fabstir_vectordb.text.query import ParsedQuery
from fabstir_vectordb.types import Plan, Receipt, SearchResults

__all__ = ["LazyText"]


class LazyText:
    """Searches by words, or by vector and words. Each method is a read, and is called inside the gate.

    Args:
        rows: the rows.
        held: their parts.
        near: searches by vector.
        hybrid: what joins both sides.
        filters: the filters of the index.
    """

    def __init__(self, rows: Rows, held: LazyRows, near: LazyNear, hybrid: Hybrid, filters: Filters) -> None:
        self._rows = rows
        self._held = held
        self._near = near
        self._hybrid = hybrid
        self._filters = filters
        self._scorer = Scorer(rows.metric)

    def missing(
        self,
        queries: npt.NDArray[np.float32],
        request: SearchRequest,
        gathered: Gathered,
        chosen: Sequence[Slots] | None = None,
    ) -> Missing:
        """The parts that a search lacks. Words and vectors are fetched side by side.

        The vector's side fetches no more than a search without text: its candidates are the best of all rows of the
        parts that such a search fetches. Required and excluded clauses say which rows may be candidates, so with such
        clauses the words come first. A search by words alone with `group_by` needs all metadata, and no rows.

        Args:
            queries, request, gathered: as for `LazyIndex.missing`.
            chosen: the candidates of each vector, where they were chosen elsewhere from those of `missing_likely`.
        """
        held = self._held
        by_vector = len(queries) > 0 and queries.shape[1] > 0
        if by_vector:
            check_query_dim(queries.shape[1], self._rows.vector_dim)
        if not gathered.answers and not gathered.sides:
            if request.group_by is not None or (request.where is not None and request.where.needs_metadata):
                lacking = held.missing_metadata(gathered)
                if lacking is not NOTHING:
                    return lacking
            asked = self._terms(queries, request)
            wanted = self._wanted(asked)
            waits = wanted and any(terms.has_signs for terms in asked)
            if by_vector and queries.shape[1] == held.native.dim and not gathered.candidates and not waits:
                taken = self._allowed(asked, request)
                if chosen is None:
                    self._near.find_candidates(queries, request, gathered, taken)
                else:
                    self._near.take_candidates(chosen, gathered, taken)
            near = [key for one in gathered.candidates for key in (*one.parts, *held.pages_of(one.slots))]
            lacking = held.lacking([*wanted, *near], gathered)
            if lacking is not NOTHING:
                return lacking
            if wanted:
                self._take(wanted, gathered)
                return self.missing(queries, request, gathered, chosen)  # words are known now, and need postings
            if request.group_by is not None:
                return NOTHING
            for place, terms in enumerate(asked):
                self._answer(queries[place], request, terms, place, gathered)
        found = [slot for answer in gathered.answers for slot in answer.slots.tolist()]
        slots = np.array(found, dtype=np.uint32)
        keys = held.pages_of(slots)
        if request.include_vectors and len(slots):
            keys = [*keys, *held.parts_of(slots)]
        return held.lacking(keys, gathered)

    def missing_words(self, queries: Sequence[ParsedQuery], gathered: Gathered) -> Missing:
        """The parts that a count of the words of some texts lacks."""
        if self._rows.texts.settings is None:
            raise no_text_index()
        return self._missing_terms([self._rows.texts.compile(query) for query in queries], gathered)

    def missing_likely(self, queries: npt.NDArray[np.float32], request: SearchRequest, gathered: Gathered) -> Missing:
        """The parts that a count of the words lacks; then the likeliest rows of each vector are among `gathered`."""
        check_query_dim(queries.shape[1], self._rows.vector_dim)
        if request.where is not None and request.where.needs_metadata:
            lacking = self._held.missing_metadata(gathered)
            if lacking is not NOTHING:
                return lacking
        asked = self._terms(queries, request)
        lacking = self._missing_terms(asked, gathered)
        if lacking is NOTHING and queries.shape[1] == self._held.native.dim:
            self._near.find_candidates(queries, request, gathered, self._allowed(asked, request))
        return lacking

    def _missing_terms(self, asked: Sequence[TermsQuery], gathered: Gathered) -> Missing:
        while wanted := self._wanted(asked):
            lacking = self._held.lacking(wanted, gathered)
            if lacking is not NOTHING:
                return lacking
            self._take(wanted, gathered)
        return NOTHING

    def _terms(self, queries: npt.NDArray[np.float32], request: SearchRequest) -> list[TermsQuery]:
        return [self._hybrid.terms(request, place) for place in range(len(queries))]

    def _allowed(self, asked: Sequence[TermsQuery], request: SearchRequest) -> list[npt.NDArray[np.uint64] | None]:
        """The rows that hits may be, for each text."""
        allow = self._near.allowed(request)
        return [self._hybrid.allowed(terms, allow) for terms in asked]

    def _wanted(self, asked: Sequence[TermsQuery]) -> list[PartKey]:
        return [key for terms in asked for key in self._rows.texts.missing(terms)]

    def _take(self, wanted: Sequence[PartKey], gathered: Gathered) -> None:
        for key in dict.fromkeys(wanted):
            self._rows.texts.take(key, gathered.parts.pop(key))

    def _answer(
        self,
        query: npt.NDArray[np.float32],
        request: SearchRequest,
        terms: TermsQuery,
        place: int,
        gathered: Gathered,
    ) -> None:
        one = gathered.candidates[place] if gathered.candidates else None
        allow = one.allow if one else self._hybrid.allowed(terms, self._near.allowed(request))
        near = None
        if len(query):
            rows: list[tuple[float, bytes, int]] = []
            if one:
                rows = self._near.nearest(query, request._replace(k=depth_of(request.k)), one, gathered)
            distances = [distance for distance, _, _ in rows]
            slots = np.array([slot for _, _, slot in rows], dtype=np.uint32)
            near = Near(slots, distances, self._scorer.scores(distances).tolist(), "lazy")
        assert request.text is not None
        if request.text.totals is None:
            gathered.answers.append(TextAnswer(*self._hybrid.joined(near, terms, request, allow)))
        else:
            plan: Plan = "words" if near is None else "lazy + words"
            gathered.sides.append(self._hybrid.sides(near, terms, request, allow, plan))

    def groups(
        self, queries: npt.NDArray[np.float32], request: SearchRequest, group_by: str, gathered: Gathered
    ) -> list[SearchResults]:
        """The results of searches by words alone with `group_by`, whose parts are all there."""

        def search(matches: Matches, groups: Groups) -> list[SearchResults]:
            return self._hybrid.best_of_groups(queries, request, matches, groups, None)

        found = self._filters.read_groups(request.where or EVERYTHING, group_by, search)
        for results in found:
            results.receipt = Receipt(requests=gathered.requests, bytes=gathered.bytes, cache_hits=0)
        return found

    def results(self, request: SearchRequest, plan: Plan, gathered: Gathered) -> list[SearchResults]:
        """The results of a search whose parts are all there."""

        def metadata(slots: Slots) -> Sequence[bytearray]:
            return [bytearray(self._held.metadata_of(slot, gathered) or b"") for slot in slots.tolist()]

        stored = Stored(metadata, lambda slots: self._held.vectors_of(slots, gathered))
        found = []
        for place, (hits, slots) in enumerate((answer.hits, answer.slots) for answer in gathered.answers):
            results = self._hybrid.described(hits, slots, request, self._hybrid.terms(request, place), plan, stored)
            cached = max(len(gathered.parts) - gathered.requests, 0)
            results.receipt = Receipt(requests=gathered.requests, bytes=gathered.bytes, cache_hits=cached)
            found.append(results)
        return found

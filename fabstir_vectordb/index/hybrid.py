"""Searches with text: by words alone, or by vector and words, whose candidates are fused.

With text the score sets the order, ties by id. Required and excluded clauses of the query hold for the hits of both
sides. Each side is asked for `depth_for(k)` rows, so k hits come whenever k rows match either side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.handle import K_MAX, PLAN_FLAT, Control
from fabstir_vectordb._native.text import TextQuery
from fabstir_vectordb.config import Unset
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import IntegrityError, InvalidInputError
from fabstir_vectordb.index.filters import Matches
from fabstir_vectordb.index.grouping import Groups, first_of_groups
from fabstir_vectordb.index.incoming import check_query_dim
from fabstir_vectordb.index.rows import NoRows, Rows, Slots
from fabstir_vectordb.index.searcher import FILTERED_PLANS, PLANS, Scorer, nearest_first
from fabstir_vectordb.metadata.filter_eval import bitmap, slots_of
from fabstir_vectordb.params import SearchRequest
from fabstir_vectordb.text.clauses import TermsQuery
from fabstir_vectordb.text.fusion import DEPTH_MIN, Fused, Side, depth_for, fuse, fuse_all, ordered
from fabstir_vectordb.types import FusedResult, Plan, SearchGroup, SearchResult, SearchResults

__all__ = [
    "RANKING_BYTES_PER_ROW",
    "Hybrid",
    "Near",
    "Ranking",
    "Sides",
    "Stored",
    "by_words",
    "depth_of",
    "depth_of_groups",
    "fused_hits",
    "no_text_index",
    "passes",
]

Float64Array = npt.NDArray[np.float64]
Bitmap = npt.NDArray[np.uint64]

#: Plans of the vector's side, beside words.
_BESIDE: Final[dict[Plan, Plan]] = {
    "flat": "flat + words",
    "graph": "graph + words",
    "lists": "lists + words",
    "hybrid": "hybrid + words",
    "filtered exact": "filtered exact + words",
}
#: Bytes of a row where all are put in order: what each side gave, and the order, with copies while they are sorted.
RANKING_BYTES_PER_ROW: Final = 200
_NO_SLOTS: Final[Slots] = np.empty(0, dtype=np.uint32)
_NO_SCORES: Final = np.empty(0, dtype=np.float64)


def no_text_index() -> InvalidInputError:
    """The error for a search with text where no field is indexed."""
    return InvalidInputError(
        "the index has no text fields: create it with text_fields=('text',), or call set_text_fields",
        details={"option": "text"},
    )


def depth_of(k: int) -> int:
    """How many candidates each side gives."""
    return min(depth_for(k), K_MAX)


def depth_of_groups(groups: Groups, side: Side, request: SearchRequest) -> int:
    """How many candidates a side gives for groups: so many that they are of k groups, and as for k times the hits."""
    found = first_of_groups(groups, side.slots, request.k, 1)
    least = found[-1][1][0] + 1 if len(found) == request.k else len(side.slots)
    return max(least, depth_for(request.k * request.group_size))


@dataclass(frozen=True, slots=True)
class Near:
    """The candidates of the vector's side, nearest first, ties by id."""

    slots: Slots
    distances: Sequence[float]
    scores: Sequence[float]
    plan: Plan


@dataclass(frozen=True, slots=True)
class Said:
    """The candidates of the words' side, highest score first, ties by id."""

    slots: Slots
    scores: Float64Array


@dataclass(frozen=True, slots=True)
class Ranking:
    """Rows in the order of their scores, and what each side gave; `distances` and `vector_ranks` are None without one.

    Rows that a side lacks have the text score 0, the distance NaN and the rank 0.
    """

    slots: Slots
    scores: Float64Array
    text_scores: Float64Array
    text_ranks: npt.NDArray[np.int64]
    distances: Float64Array | None
    vector_ranks: npt.NDArray[np.int64] | None

    def hits(self, places: npt.NDArray[np.intp], ids: Sequence[str], scorer: Scorer) -> list[FusedResult]:
        """The hits at some places, without metadata."""
        distances: Iterable[float | None] = repeat(None)
        near: Iterable[float | None] = repeat(None)
        vector_ranks: Iterable[int] = repeat(0)
        if self.distances is not None and self.vector_ranks is not None:
            distances = self.distances[places].tolist()
            near, vector_ranks = scorer.scores(self.distances[places]).tolist(), self.vector_ranks[places].tolist()
        columns = (self.scores[places].tolist(), self.text_scores[places].tolist(), self.text_ranks[places].tolist())
        return [
            FusedResult(
                id,
                score,
                distance if vector_rank else None,
                near_score if vector_rank else None,
                raw or None,
                text_rank or None,
                vector_rank or None,
            )
            for id, score, raw, text_rank, distance, near_score, vector_rank in zip(
                ids, *columns, distances, near, vector_ranks, strict=False
            )
        ]


class Sides(NamedTuple):
    """The candidates of both sides of one shard, by id, which are joined with those of other shards.

    Attributes:
        near, distances, near_scores, near_text: ids of the vector's side, nearest first, ties by id, their distances
            and scores, and their scores by words, 0 for a row that the text does not match.
        said, said_scores: ids of the words' side, highest score first, ties by id, and their scores.
        plan: how the search went.
    """

    near: Sequence[str]
    distances: Sequence[float]
    near_scores: Sequence[float]
    near_text: Sequence[float]
    said: Sequence[str]
    said_scores: Sequence[float]
    plan: Plan


class Stored(NamedTuple):
    """What rows hold, by their slots: metadata as it is stored, and vectors as rows of an array."""

    metadata: Callable[[Slots], Iterable[bytearray]]
    vectors: Callable[[Slots], npt.NDArray[np.float32]]


class Hybrid:
    """Searches with text. Each method is a read, and is called inside the gate.

    Args:
        rows: the rows.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._scorer = Scorer(rows.metric)

    def search(
        self, query: npt.NDArray[np.float32], request: SearchRequest, place: int, matches: Matches | None
    ) -> SearchResults:
        """The best rows in memory for a vector and a text, or for a text alone where the vector is empty.

        Args:
            query: the vector.
            request: the search, its recall target resolved; its own vector is not used.
            place: which text of the request.
            matches: the rows that match its filter; None without a filter.

        Raises:
            InvalidInputError: there is no text index, or the vector is refused.
            IndexStateError: there was not enough memory.
        """
        near, terms, allow = self._asked(query, request, place, matches)
        hits, slots = self.joined(near, terms, request, allow)
        return self.described(hits, slots, request, terms, "words" if near is None else _BESIDE[near.plan])

    def candidates(
        self, query: npt.NDArray[np.float32], request: SearchRequest, place: int, matches: Matches | None
    ) -> Sides:
        """The candidates of `search`, for a shard whose rows are some of those that are searched.

        Raises:
            InvalidInputError, IndexStateError: as `search`.
        """
        near, terms, allow = self._asked(query, request, place, matches)
        return self.sides(near, terms, request, allow, "words" if near is None else _BESIDE[near.plan])

    def _asked(
        self, query: npt.NDArray[np.float32], request: SearchRequest, place: int, matches: Matches | None
    ) -> tuple[Near | None, TermsQuery, Bitmap | None]:
        """The vector's candidates, the text in terms of the index, and the rows that may be hits."""
        terms = self.terms(request, place)
        allow = self.allowed(terms, self._rows.hidden().allow if matches is None else matches.allow)
        near = self._near(query, request, allow, PLANS if matches is None else FILTERED_PLANS) if len(query) else None
        return near, terms, allow

    def sides(
        self, near: Near | None, terms: TermsQuery, request: SearchRequest, allow: Bitmap | None, plan: Plan
    ) -> Sides:
        """The candidates of both sides, which `joined` would join.

        Args:
            near, terms, request, allow: as for `joined`.
            plan: how the search went.
        """
        ids_of = self._rows.core.get_ids
        said = self._said(terms, request.k if near is None else depth_of(request.k), allow)
        if near is None:
            near = Near(_NO_SLOTS, (), (), plan)
        return Sides(
            ids_of(near.slots),
            near.distances,
            near.scores,
            self._text_scores(terms, near.slots),
            ids_of(said.slots),
            said.scores.tolist(),
            plan,
        )

    def terms(self, request: SearchRequest, place: int) -> TermsQuery:
        """One text of a request in terms of the index.

        Raises:
            InvalidInputError: there is no text index.
        """
        texts, asked = self._rows.texts, request.text
        assert asked is not None
        if texts.settings is None:
            raise no_text_index()
        return texts.compile(asked.query(place), asked.totals)

    def allowed(self, terms: TermsQuery, allow: Bitmap | None) -> Bitmap | None:
        """The rows that hits may be, by the filter and by required and excluded clauses; None for all."""
        texts, count = self._rows.texts, self._rows.counts.rows
        for query in terms.signed:
            found = texts.mask(query, count)
            allow = found if allow is None else found & allow
        for query in terms.refused:
            others = bitmap(np.ones(count, dtype=np.bool_)) if allow is None else allow
            allow = others & ~texts.mask(query, count)
        return allow

    def joined(
        self, near: Near | None, terms: TermsQuery, request: SearchRequest, allow: Bitmap | None
    ) -> tuple[list[FusedResult], Slots]:
        """The k best hits, without metadata, and their slots.

        Args:
            near: the candidates of the vector; None for a search by words alone.
            terms: the text.
            request: the search.
            allow: as `allowed` gives it.
        """
        if near is None:
            said = self._said(terms, request.k, allow)
            return by_words(self._rows.core.get_ids(said.slots), said.scores), said.slots
        return self._fused(near, self._said(terms, depth_of(request.k), allow), terms, request)

    def best_of_groups(
        self,
        queries: npt.NDArray[np.float32],
        request: SearchRequest,
        matches: Matches,
        groups: Groups,
        control: Control | None,
    ) -> list[SearchResults]:
        """The best rows of the best groups, of each query: all rows that match either side are put in order.

        Each side gives so many candidates that they are of k groups, at least as many as for k times `group_size` hits.

        Args:
            queries: the vectors; without components for searches by words alone.
            request: the search; its own vector is not used.
            matches: the rows that match the filter.
            groups: the groups of all rows.
            control: stops it.

        Raises:
            MemoryBudgetExceededError: the order of the rows would not fit.
            InvalidInputError, IndexStateError, NativeCancelled: as `search` and `nearest_first`.
        """
        best = self._best_of_groups
        return [best(query, request, place, matches, groups, control) for place, query in enumerate(queries)]

    def _best_of_groups(
        self,
        query: npt.NDArray[np.float32],
        request: SearchRequest,
        place: int,
        matches: Matches,
        groups: Groups,
        control: Control | None,
    ) -> SearchResults:
        rows, near = self._rows, None
        rows.budget.require("groups of a search with text", rows.nbytes + RANKING_BYTES_PER_ROW * rows.counts.rows)
        terms = self.terms(request, place)
        allow = self.allowed(terms, matches.allow)
        assert allow is not None
        if len(query):
            check_query_dim(len(query), rows.vector_dim)
            near = nearest_first(rows, query, slots_of(allow, rows.counts.rows), control)

        ranking = self.everything(near, terms, request, allow, lambda side: depth_of_groups(groups, side, request))
        found = first_of_groups(groups, ranking.slots, request.k, request.group_size)
        at = np.array([one for _, places in found for one in places], dtype=np.intp)
        hits = ranking.hits(at, rows.core.get_ids(ranking.slots[at]), self._scorer)
        of = [group for group, places in found for _ in places]
        kept = [row for row, hit in enumerate(hits) if passes(hit, request)]
        chosen = [hits[row] for row in kept]
        self._fill(chosen, ranking.slots[at[kept]], request, terms)
        members: dict[int, list[SearchResult]] = {}
        for row in kept:
            members.setdefault(of[row], []).append(hits[row])
        plan: Plan = (
            "words" if near is None else _BESIDE[(PLANS if request.where is None else FILTERED_PLANS)[PLAN_FLAT]]
        )
        results = SearchResults(chosen, len(hits) - len(kept), plan)
        results.groups = tuple(
            SearchGroup(groups.values[group], tuple(of_group)) for group, of_group in members.items()
        )
        return results

    def everything(
        self,
        near: tuple[Slots, Float64Array] | None,
        terms: TermsQuery,
        request: SearchRequest,
        allow: Bitmap,
        depth: Callable[[Side], int] = lambda _: DEPTH_MIN,
    ) -> Ranking:
        """All rows that match either side, in order.

        Args:
            near: the rows with a vector and their distances, nearest first; None for a search by words alone.
            terms: the text.
            request: the search.
            allow: as `allowed` gives it.
            depth: how many rows of a side are its candidates; those beyond have the score 0 where both sides are asked.
        """
        rows, asked = self._rows, request.text
        assert asked is not None
        words = self._all_words(terms, slots_of(allow, rows.counts.rows))
        if near is None:
            ranks = np.arange(1, len(words.slots) + 1)
            return Ranking(words.slots, words.values / (1.0 + words.values), words.values, ranks, None, None)
        vector = Side(near[0], -near[1])
        fused, after = fuse_all(asked.fusion, asked.alpha, vector, words, (depth(vector), depth(words)))
        places = rows.order(fused.slots, -fused.scores, -after)
        found = fused.slots[places]
        text_scores = np.zeros(rows.counts.rows)
        text_scores[words.slots] = words.values
        distances = np.full(rows.counts.rows, np.nan)
        distances[near[0]] = near[1]
        return Ranking(
            found,
            fused.scores[places],
            text_scores[found],
            fused.words_ranks[places],
            distances[found],
            fused.vector_ranks[places],
        )

    def all_sides(self, query: npt.NDArray[np.float32], request: SearchRequest, matches: Matches) -> Sides:
        """All rows that match a filter, as candidates of both sides, without the scores of the vector's side.

        Raises:
            InvalidInputError: there is no text index, or the query is refused.
            MemoryBudgetExceededError: the order of the rows would not fit.
        """
        rows = self._rows
        rows.budget.require("a stream", rows.nbytes + RANKING_BYTES_PER_ROW * rows.counts.rows)
        terms = self.terms(request, 0)
        allow = self.allowed(terms, matches.allow)
        assert allow is not None
        slots = slots_of(allow, rows.counts.rows)
        near, distances = _NO_SLOTS, _NO_SCORES
        if len(query):
            check_query_dim(len(query), rows.vector_dim)
            near, distances = nearest_first(rows, query, slots, None)
        words = self._all_words(terms, slots)
        ids_of = rows.core.get_ids
        return Sides(ids_of(near), distances.tolist(), (), (), ids_of(words.slots), words.values.tolist(), "words")

    def _all_words(self, terms: TermsQuery, slots: Slots) -> Side:
        """Those of some rows that the text matches, by falling score, ties by id."""
        raw = np.array(self._text_scores(terms, slots))
        said = np.flatnonzero(raw > 0.0)
        order = ordered(raw[said], len(said), lambda places: self._rows.core.get_ids(slots[said[places]]))
        return Side(slots[said[order]], raw[said[order]])

    # ---- one side

    def _near(
        self, query: npt.NDArray[np.float32], request: SearchRequest, allow: Bitmap | None, plans: Mapping[int, Plan]
    ) -> Near:
        core = self._rows.core
        if len(query) != core.dim or isinstance(core, NoRows):
            check_query_dim(len(query), self._rows.vector_dim)
            return Near(_NO_SLOTS, (), (), plans[PLAN_FLAT])  # no row has a vector yet
        k, ef_search, exact, nprobe = depth_of(request.k), request.ef_search, request.exact, request.nprobe
        slots, distances, _, plan, scores, _ = core.search_one(query, k, ef_search, exact, False, True, nprobe, allow)
        return Near(np.array(slots, dtype=np.uint32), distances, scores, plans[plan])

    def _said(self, terms: TermsQuery, n: int, allow: Bitmap | None) -> Said:
        """The n best rows by words. Where equal scores end the list, all rows with that score compete by their ids."""
        if terms.scored is None:
            return Said(_NO_SLOTS, _NO_SCORES)
        asked, texts = n, self._rows.texts
        while True:
            asked = min(asked + 1, K_MAX)
            slots, scores, _ = texts.search(terms.scored, asked, allow)
            if len(slots) < asked or scores[n - 1] > scores[-1]:
                break
            if asked == K_MAX:  # more rows have that score than a search gives
                slots, scores = self._all_said(terms.scored, allow, float(scores[n - 1]))
                break
            asked *= 2
        if len(slots) and int(slots.max()) >= self._rows.counts.rows:
            raise IntegrityError("the text index has words of rows that the version does not have")
        core = self._rows.core
        order = ordered(scores, n, lambda places: core.get_ids(slots[places]))
        return Said(slots[order], scores[order])

    def _all_said(self, query: TextQuery, allow: Bitmap | None, least: float) -> tuple[Slots, Float64Array]:
        """All rows with a score of at least `least`, which is above 0."""
        count = self._rows.counts.rows
        slots = np.arange(count, dtype=np.uint32) if allow is None else slots_of(allow, count)
        scores = self._rows.texts.scores(query, slots)
        return slots[scores >= least], scores[scores >= least]

    # ---- hits

    def _fused(
        self, near: Near, said: Said, terms: TermsQuery, request: SearchRequest
    ) -> tuple[list[FusedResult], Slots]:
        asked = request.text
        assert asked is not None
        fused = fuse(
            asked.fusion,
            asked.alpha,
            Side(near.slots, -np.array(near.distances, dtype=np.float64)),
            Side(said.slots, said.scores),
        )
        core = self._rows.core
        order = ordered(fused.scores, request.k, lambda places: core.get_ids(fused.slots[places]))
        chosen = fused.slots[order]
        return fused_hits(
            fused, order, core.get_ids(chosen), self._text_scores(terms, chosen), near.distances, near.scores
        ), chosen

    def _text_scores(self, terms: TermsQuery, slots: Slots) -> list[float]:
        """The scores by words of any rows, candidates or not; 0 for a row that does not match."""
        if terms.scored is None:
            return [0.0] * len(slots)
        scores: list[float] = self._rows.texts.scores(terms.scored, slots).tolist()
        return scores

    def described(
        self,
        hits: list[FusedResult],
        slots: Slots,
        request: SearchRequest,
        terms: TermsQuery,
        plan: Plan,
        stored: Stored | None = None,
    ) -> SearchResults:
        """The hits whose score passes the threshold, with metadata, and with vectors if asked for.

        Args:
            hits, slots: the hits, scores falling, and their slots.
            request, terms, plan: the search, its text, and how it went.
            stored: what the rows hold; None for rows in memory.
        """
        # Scores fall, so those that pass are the first ones.
        n = sum(passes(hit, request) for hit in hits)
        self._fill(hits[:n], slots[:n], request, terms, stored)
        return SearchResults(hits[:n], len(hits) - n, plan)

    def _fill(
        self,
        hits: Sequence[FusedResult],
        slots: Slots,
        request: SearchRequest,
        terms: TermsQuery,
        stored: Stored | None = None,
    ) -> None:
        rows = self._rows
        if stored is None:
            stored = Stored(lambda slots: rows.arena.get_many(slots.tolist()), rows.core.get_vectors)
        is_highlit = request.text is not None and request.text.highlight
        for hit, metadata in zip(hits, stored.metadata(slots), strict=True):
            hit.describe(metadata, rows.texts.highlights(metadata, terms) if is_highlit else None)
        if request.include_vectors and hits:
            vectors, vectorless = stored.vectors(slots), rows.are_vectorless(slots).tolist()
            for hit, vector, is_vectorless in zip(hits, vectors, vectorless, strict=True):
                hit.vector = None if is_vectorless else vector


def passes(hit: FusedResult, request: SearchRequest) -> bool:
    """Whether a hit passes the threshold; the default one does not apply with text."""
    least = request.threshold
    return least is None or isinstance(least, Unset) or hit.score >= least


def fused_hits(
    fused: Fused,
    order: Sequence[int],
    ids: Sequence[str],
    text_scores: Sequence[float],
    distances: Sequence[float],
    near_scores: Sequence[float],
) -> list[FusedResult]:
    """The hits of both sides, without metadata.

    Args:
        fused: all candidates.
        order: the places of the hits among them, best first.
        ids, text_scores: of the hits.
        distances, near_scores: of the vector's candidates, nearest first.
    """
    scores, hits = fused.scores.tolist(), []
    for id, place, raw in zip(ids, order, text_scores, strict=True):
        rank, said_rank = int(fused.vector_ranks[place]), int(fused.words_ranks[place])
        distance, near_score = (distances[rank - 1], near_scores[rank - 1]) if rank else (None, None)
        hits.append(FusedResult(id, scores[place], distance, near_score, raw or None, said_rank or None, rank or None))
    return hits


def by_words(ids: Sequence[str], raw: Float64Array) -> list[FusedResult]:
    """The hits of words alone: s / (1 + s) of BM25's s is a score in [0, 1]."""
    scores, given = (raw / (1.0 + raw)).tolist(), raw.tolist()
    return [FusedResult(id, scores[place], None, None, given[place], place + 1, None) for place, id in enumerate(ids)]

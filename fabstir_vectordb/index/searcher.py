"""Searches of the rows in memory: the native call, scores, thresholds, plans, and which searches are short."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain, compress, islice, repeat
from typing import Any, Final, get_args

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.handle import (
    K_MAX,
    PLAN_FLAT,
    PLAN_GRAPH,
    PLAN_HYBRID,
    PLAN_LISTS,
    Allowed,
    Control,
    NativeIndex,
    SearchHits,
    scores_of,
)
from fabstir_vectordb.config import METRICS, Unset
from fabstir_vectordb.index.filters import Matches
from fabstir_vectordb.index.grouping import Groups, Hit, best_of_groups
from fabstir_vectordb.index.incoming import check_query_dim
from fabstir_vectordb.index.rows import NoRows, Rows, Slots
from fabstir_vectordb.metadata.columns import Mask
from fabstir_vectordb.metadata.filter_eval import bitmap, bitmap_of
from fabstir_vectordb.params import SearchRequest
from fabstir_vectordb.types import Plan, SearchGroup, SearchResult, SearchResults, results_of

__all__ = ["SCORES", "Scorer", "Searcher", "results_of_groups"]

PLANS: Final[dict[int, Plan]] = {PLAN_FLAT: "flat", PLAN_GRAPH: "graph", PLAN_LISTS: "lists", PLAN_HYBRID: "hybrid"}
FILTERED_PLANS: Final[dict[int, Plan]] = {**PLANS, PLAN_FLAT: "filtered exact"}

# A search is short when it runs below a millisecond, so that a worker thread is not worth its cost: a walk of this many
# candidates, or a scan of this many float32 values.
_SHORT_EF_MAX: Final = 1_000
_SHORT_SCAN_VALUES_MAX: Final = 1 << 20
# Lists are scanned by code, which is a few times faster.
_SHORT_PROBED_VALUES_MAX: Final = 1 << 23


# ---- Scores ------------------------------------------------------------------------------------------------


def _scores(metric: str, distances: npt.ArrayLike) -> npt.NDArray[np.float64]:
    given = np.asarray(distances, dtype=np.float64)
    return scores_of(metric, np.ascontiguousarray(given).ravel()).reshape(given.shape)


#: Functions from distances to scores of the same shape; the header of the native library has the formulas.
SCORES: Final[dict[str, Callable[[npt.ArrayLike], npt.NDArray[np.float64]]]] = {
    metric: partial(_scores, metric) for metric in METRICS
}

#: Default threshold, the least score of a hit; for cosine 0.7 is cos = 0.4.
_THRESHOLDS: Final[dict[str, float | None]] = {"cosine": 0.7, "l2": None, "dot": None}


class Scorer:
    """Scores and thresholds of one metric.

    Attributes:
        scores: a function from distances to scores.
    """

    def __init__(self, metric: str) -> None:
        self.scores = SCORES[metric]
        self._default = _THRESHOLDS[metric]

    def least(self, threshold: float | Unset | None) -> float:
        """The least score of a hit."""
        if isinstance(threshold, Unset):
            threshold = self._default
        return -math.inf if threshold is None else float(threshold)

    def passing(self, scores: npt.NDArray[np.float64], threshold: float | Unset | None) -> npt.NDArray[np.intp]:
        """How many hits of each query pass the threshold. Scores fall with distance, so these are the first ones."""
        return np.asarray(np.count_nonzero(scores >= self.least(threshold), axis=-1))


def results_of_groups(
    found: Sequence[tuple[int, Sequence[Hit]]],
    groups: Groups,
    scorer: Scorer,
    threshold: float | Unset | None,
    describe: Callable[[list[int]], Iterable[tuple[bytearray, npt.NDArray[np.float32] | None]]],
    plan: Plan,
) -> SearchResults:
    """Hits in the order of their groups.

    Args:
        found: groups, and the hits of each.
        groups: the groups of all rows.
        scorer, threshold: scores, and the least of a hit.
        describe: stored metadata and vectors of slots.
        plan: how the search went.
    """
    flat = [(group, hit) for group, hits in found for hit in hits]
    scores = scorer.scores(np.array([hit[0] for _, hit in flat], dtype=np.float64)).tolist()
    least = scorer.least(threshold)
    kept = [(*one, score) for one, score in zip(flat, scores, strict=True) if score >= least]
    described = describe([hit[2] for _, hit, _ in kept]) if kept else []
    members: dict[int, list[SearchResult]] = {}
    for (group, (distance, id, _), score), (raw, vector) in zip(kept, described, strict=True):
        members.setdefault(group, []).append(SearchResult(id.decode(), score, distance, raw, vector))
    results = SearchResults((hit for hits in members.values() for hit in hits), len(flat) - len(kept), plan)
    results.groups = tuple(SearchGroup(groups.values[group], tuple(hits)) for group, hits in members.items())
    return results


def nearest_first(
    rows: Rows, query: npt.NDArray[np.float32], slots: Slots, control: Control | None
) -> tuple[Slots, npt.NDArray[np.float64]]:
    """Those of live slots that have a vector, in the order of their distances, ties by id; and the distances.

    Raises:
        InvalidInputError: the query is not finite, or zero under cosine.
        IndexStateError, NativeCancelled: as `Searcher.nearest_of_each`.
    """
    native, slots = rows.native, slots[~rows.are_vectorless(slots)]
    if native is None or len(query) != native.dim:
        return slots[:0], np.empty(0)  # no row has a vector yet
    found, distances = np.empty_like(slots), np.empty(len(slots))
    # K_MAX rows a call, the most that a search returns; so each row is scored once.
    for first in range(0, max(len(slots), 1), K_MAX):
        some = slots[first : first + K_MAX]
        hits = native.search(
            query[np.newaxis],
            max(len(some), 1),
            exact=True,
            allow=bitmap_of(some, rows.counts.rows),
            with_ids=False,
            control=control,
        )
        found[first : first + K_MAX] = hits.slots[0, : len(some)]
        distances[first : first + K_MAX] = hits.distances[0, : len(some)]
    order = rows.order(found, distances)
    return found[order], distances[order]


# ---- Searches ----------------------------------------------------------------------------------------------


class Searcher:
    """Searches of the rows in memory. Each method is a read, and is called inside the gate.

    Attributes:
        scorer: scores and thresholds.
        plans_used: searches so far by plan.

    Args:
        rows: the rows.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self.scorer = Scorer(rows.metric)
        self.plans_used: dict[str, int] = dict.fromkeys(get_args(Plan), 0)

    def note(self, results: Sequence[SearchResults]) -> None:
        """Counts searches by plan."""
        for result in results:
            self.plans_used[result.plan] += 1

    def nearest(self, request: SearchRequest, matches: Matches | None, nowait: bool) -> SearchResults | None:
        """The nearest rows.

        Args:
            request: the search, its recall target resolved.
            matches: the rows that match its filter; None without a filter.
            nowait: return None where a writer holds the native index, instead of waiting.

        Raises:
            InvalidInputError: the query is not finite, zero under cosine, or of another dimension.
            IndexStateError: there was not enough memory.
        """
        query, k, threshold, include_vectors, ef_search, exact, nprobe = request[:7]
        rows = self._rows
        core = rows.core
        allow: npt.NDArray[np.uint64] | Allowed | None
        if matches is not None:
            allow, plans = matches.allowed, FILTERED_PLANS
        else:
            allow, plans = None if rows.expiries.is_empty else rows.hidden().allow, PLANS
        if len(query) != core.dim or isinstance(core, NoRows):
            check_query_dim(len(query), rows.vector_dim)
            return SearchResults([], 0, plans[PLAN_FLAT])  # no row has a vector yet
        with_slots = include_vectors or not rows.arena.is_empty
        least = -math.inf if threshold is None else self.scorer.least(threshold)
        answer = core.search_one(query, k, ef_search, exact, nowait, with_slots, nprobe, allow, least)
        if answer is None:
            return None
        slots, distances, ids, plan, scores, below = answer
        if not slots:
            return results_of(map(SearchResult, ids, scores, distances), below, plans[plan])
        return self.described(core, slots, distances, ids, scores, below, plans[plan], include_vectors)

    def nearest_of_each(
        self,
        queries: npt.NDArray[np.float32],
        request: SearchRequest,
        matches: Matches | None,
        control: Control | None,
    ) -> list[SearchResults]:
        """The nearest rows of each query; the request's own query is not used.

        Raises:
            InvalidInputError: a query is refused; details has ``row``.
            IndexStateError: there was not enough memory, or no thread could start.
            NativeCancelled: `control` asked for it.
        """
        rows = self._rows
        core, dim = rows.core, queries.shape[1]
        allow, plans = (rows.hidden().allow, PLANS) if matches is None else (matches.allow, FILTERED_PLANS)
        if not len(queries) or dim != core.dim or isinstance(core, NoRows):
            if len(queries):
                check_query_dim(dim, rows.vector_dim)
            return [SearchResults([], 0, plans[PLAN_FLAT]) for _ in queries]

        # Hits are made, up to a third of the work, while threads that Python knows nothing of look for the next ones.
        steps = core.search_in_steps(
            queries,
            request.k,
            ef_search=request.ef_search,
            exact=request.exact,
            nprobe=request.nprobe,
            allow=allow,
            control=control,
        )
        # Not `closing`, in whose own code a KeyboardInterrupt would leave them open.
        try:
            # Vectors are read under the native lock. It has one reader already, who would wait behind a waiting writer.
            each = list(steps) if request.include_vectors else steps
            found = (self.results(core, hits, plans, request.threshold, request.include_vectors) for hits in each)
            return list(chain.from_iterable(found))
        finally:
            steps.close()

    def best_of_groups(
        self,
        queries: npt.NDArray[np.float32],
        request: SearchRequest,
        matches: Matches,
        groups: Groups,
        control: Control | None,
    ) -> list[SearchResults]:
        """The best rows of the groups with the nearest rows, of each query; the request's own query is not used.

        Raises:
            InvalidInputError, IndexStateError, NativeCancelled: as `nearest_of_each`.
        """
        return [self._best_of_groups(query, request, matches, groups, control) for query in queries]

    def _best_of_groups(
        self,
        query: npt.NDArray[np.float32],
        request: SearchRequest,
        matches: Matches,
        groups: Groups,
        control: Control | None,
    ) -> SearchResults:
        rows, core = self._rows, self._rows.core
        plans = PLANS if request.where is None else FILTERED_PLANS
        if len(query) != core.dim or isinstance(core, NoRows):
            check_query_dim(len(query), rows.vector_dim)
            return SearchResults([], 0, plans[PLAN_FLAT])
        used: list[Plan] = []

        def search(mask: Mask, most: int, exact: bool) -> Iterable[Hit]:
            exact = exact or request.exact
            hits = core.search(
                query[np.newaxis],
                most,
                ef_search=0 if exact else request.ef_search,
                exact=exact,
                nprobe=0 if exact else request.nprobe,
                allow=bitmap(mask),
                control=control,
            )
            used.append(plans[int(hits.plans[0])])
            return zip(hits.distances[0].tolist(), map(str.encode, hits.ids[0]), hits.slots[0].tolist(), strict=False)

        slots = matches.slots()
        mask = np.zeros(matches.rows, dtype=np.bool_)
        mask[slots[~rows.are_vectorless(slots)]] = True
        assert request.group_by is not None
        found = best_of_groups(groups, mask, request.k, request.group_size, search)
        plan = used[0] if len(used) == 1 else "grouped" if used else plans[PLAN_FLAT]

        def describe(slots: list[int]) -> Iterable[tuple[bytearray, npt.NDArray[np.float32] | None]]:
            vectors = core.get_vectors(np.array(slots, dtype=np.uint32)) if request.include_vectors else repeat(None)
            return zip(rows.arena.get_many(slots), vectors, strict=False)

        return results_of_groups(found.groups, groups, self.scorer, request.threshold, describe, plan)

    def results(
        self,
        core: NativeIndex,
        hits: SearchHits,
        plans: Mapping[int, Plan],
        threshold: float | Unset | None,
        include_vectors: bool,
    ) -> list[SearchResults]:
        """Hits of the rows found for each query."""
        # All of them at once, as a call of numpy takes as long as the hits of a query.
        scores = self.scorer.scores(hits.distances)
        passing = np.minimum(self.scorer.passing(scores, threshold), hits.counts)
        ids: Iterable[str] = hits.all_ids
        kept: Any = ...
        if int(passing.sum()) < scores.size:
            places = np.arange(scores.shape[1])
            kept = places < passing[:, np.newaxis]
            ids = compress(ids, kept[places < hits.counts[:, np.newaxis]].tolist())
        columns: list[Iterable[Any]] = [ids, scores[kept].ravel().tolist(), hits.distances[kept].ravel().tolist()]
        if include_vectors or not self._rows.arena.is_empty:
            columns.append(self._rows.arena.get_many(hits.slots[kept].ravel().tolist()))
        if include_vectors:
            # A hit that its caller keeps holds the vectors of one query, not those of all.
            each = zip(hits.slots, passing, strict=True)
            columns.append(chain.from_iterable(core.get_vectors(slots[:n]) for slots, n in each))
        made = map(SearchResult, *columns)
        numbers = zip(passing.tolist(), hits.counts.tolist(), hits.plans.tolist(), strict=True)
        return [results_of(islice(made, n), count - n, plans[plan]) for n, count, plan in numbers]

    def described(
        self,
        core: NativeIndex,
        slots: Sequence[int],
        distances: Sequence[float],
        ids: Sequence[str],
        scores: Sequence[float],
        below: int,
        plan: Plan,
        include_vectors: bool,
    ) -> SearchResults:
        """Hits with the present metadata of their slots, and with vectors if asked for."""
        vectors = core.get_vectors(np.array(slots, dtype=np.uint32)) if include_vectors else repeat(None)
        # One hit for each slot: map ends with its shortest argument.
        hits = map(SearchResult, ids, scores, distances, self._rows.arena.get_many(slots), vectors)
        return results_of(hits, below, plan)

    def is_short(self, request: SearchRequest, matched: int | None) -> bool:
        """Whether a search is so short that it should run without a change of threads.

        Args:
            request: the search, its recall target resolved.
            matched: number of rows that match its filter; None without a filter.
        """
        counts, dim = self._rows.counts, self._rows.core.dim
        k, ef, exact, nprobe = request.k, request.ef_search, request.exact, request.nprobe
        graph_rows = counts.graph_rows
        if matched is not None:
            # Few rows are scanned. Among many, a walk skips the rows that do not match.
            if matched * dim <= _SHORT_SCAN_VALUES_MAX:
                return True
            return not exact and graph_rows > 0 and max(k, ef) * counts.rows <= _SHORT_EF_MAX * matched
        if exact or not (graph_rows or counts.lists):
            return counts.rows * dim <= _SHORT_SCAN_VALUES_MAX
        historical = counts.historical
        recent = counts.live - historical
        # Where most rows of the graph are no candidates, the walk is long, or a scan by code replaces it. A worker
        # thread is better where that scan is long, too.
        if max(k, ef) > _SHORT_EF_MAX or (2 * recent <= graph_rows and recent * dim > _SHORT_PROBED_VALUES_MAX):
            return False
        if not historical:
            return True
        probed = historical * max(k // 10, 1) * (nprobe or counts.nprobe) // max(counts.lists, 1)
        return probed * dim <= _SHORT_PROBED_VALUES_MAX

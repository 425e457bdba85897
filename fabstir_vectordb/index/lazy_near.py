"""Searches by vector of a lazily loaded index: the likeliest rows by code, then exact scores in the parts of these."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.handle import K_MAX
from fabstir_vectordb.index.filters import Filters, Matches
from fabstir_vectordb.index.grouping import Groups, Hit, best_of_groups, first_of_groups
from fabstir_vectordb.index.lazy_rows import LazyRows
from fabstir_vectordb.index.protocol import Candidates, ChosenNeed, Gathered
from fabstir_vectordb.index.rows import Rows, Slots
from fabstir_vectordb.metadata.columns import Mask
from fabstir_vectordb.metadata.filter_eval import bitmap
from fabstir_vectordb.metadata.filter_parse import EVERYTHING
from fabstir_vectordb.metadata.values import Scalar
from fabstir_vectordb.params import SearchRequest

__all__ = ["LazyNear", "candidates_for"]

Bitmap = npt.NDArray[np.uint64]

# Recall target, and candidates as a multiple of k: on 100,000 sentence embeddings the parts of these candidates hold
# 96, 99 and 99.7 % of the ten nearest (docs/decisions/0016).
_CANDIDATES: Final[tuple[tuple[float, float], ...]] = ((0.95, 1.2), (0.99, 2.4), (1.0, 6.0))
_CANDIDATES_MIN: Final = 8
_CANDIDATES_MAX: Final = 10_000


class LazyNear:
    """Searches by vector. Each method is a read, and is called inside the gate.

    Args:
        rows: the rows.
        held: their parts.
        filters: the filters of the index.
    """

    def __init__(self, rows: Rows, held: LazyRows, filters: Filters) -> None:
        self._rows = rows
        self._held = held
        self._filters = filters

    def find_candidates(
        self,
        queries: npt.NDArray[np.float32],
        request: SearchRequest,
        gathered: Gathered,
        taken: Sequence[Bitmap | None],
    ) -> None:
        """The likeliest rows for each query among those that it may take; None for all."""
        most = candidates_for(request.k, request.ef_search, request.recall_target)
        for query, allow in zip(queries, taken, strict=True):
            likely, distances = self._held.native.candidates(query, most, allow)
            gathered.candidates.append(Candidates(allow, likely, self._held.parts_of(likely), distances))

    def take_candidates(
        self,
        slots: Sequence[Slots],
        gathered: Gathered,
        taken: Sequence[Bitmap | None],
    ) -> None:
        """The candidates of each query that were chosen elsewhere, from those of `find_candidates`."""
        gathered.candidates += [
            Candidates(allow, chosen, self._held.parts_of(chosen)) for chosen, allow in zip(slots, taken, strict=True)
        ]

    def take_candidates_of_groups(self, need: ChosenNeed, group_by: str, gathered: Gathered) -> None:
        """The same of those of `find_candidates_of_groups`."""
        mask, groups = self._groups(need.request, group_by)
        allow, wanted = bitmap(mask), need.groups or repeat(())
        gathered.candidates += [
            Candidates(allow, chosen, self._held.parts_of(chosen), groups=groups, wanted=groups.numbers(values))
            for chosen, values in zip(need.slots, wanted, strict=False)
        ]

    def allowed(self, request: SearchRequest) -> Bitmap | None:
        """The rows that the filter takes and that have not expired; None for all."""
        if request.where is not None:
            return self._filters.read(request.where, lambda matches: matches.allow)
        return self._rows.hidden().allow

    def find_candidates_of_groups(
        self,
        queries: npt.NDArray[np.float32],
        request: SearchRequest,
        group_by: str,
        gathered: Gathered,
        wanted: Sequence[Sequence[Scalar]] = (),
    ) -> None:
        """The likeliest rows of the groups with the likeliest rows, or of the groups with the wanted values."""
        mask, groups = self._groups(request, group_by)
        # So many groups; where there are fewer, as many rows of them as a search for all their hits without groups.
        hits = min(request.k * request.group_size, _CANDIDATES_MAX)
        most = candidates_for(hits, request.ef_search, request.recall_target)
        size = request.group_size
        for query, values in zip(queries, wanted or repeat(None), strict=False):

            def by_code(mask: Mask, most: int, exact: bool, query: Any = query) -> Iterable[Hit]:
                slots, distances = self._held.native.candidates(query, most, bitmap(mask))
                return zip(distances.tolist(), repeat(b""), slots.tolist(), strict=False)

            if values is None:
                found = best_of_groups(groups, mask, most, size, by_code)
                count = len(found.groups)
                if (deep := group_depth(most, count, size)) > size:
                    found = best_of_groups(groups, mask, count, deep, by_code)
            else:
                numbers = groups.numbers(values)
                own, rows_of = groups.only(numbers), groups.rows_of(numbers)
                deep = group_depth(most, len(numbers), size)
                found = best_of_groups(own, mask & rows_of, len(numbers), deep, by_code)
            rows = sorted({hit for _, hits in found.groups for hit in hits})
            likely = np.array([slot for _, _, slot in rows], dtype=np.uint32)
            distances = np.array([distance for distance, _, _ in rows], dtype=np.float64)
            parts = self._held.parts_of(likely)
            gathered.candidates.append(
                Candidates(bitmap(mask), likely, parts, distances, groups=groups, found=found.groups)
            )

    def _groups(self, request: SearchRequest, group_by: str) -> tuple[Mask, Groups]:
        """The rows that the filter takes and that have a vector, and the groups of all rows."""

        def of_all(matches: Matches, groups: Groups) -> tuple[Mask, Groups]:
            slots = matches.slots()
            mask = np.zeros(matches.rows, dtype=np.bool_)
            mask[slots[~self._rows.are_vectorless(slots)]] = True
            return mask, groups

        return self._filters.read_groups(request.where or EVERYTHING, group_by, of_all)

    def nearest(
        self, query: npt.NDArray[np.float32], request: SearchRequest, one: Candidates, gathered: Gathered
    ) -> list[Hit]:
        """The nearest rows in the candidates' parts; with `group_by`, those of the best groups and the wanted ones."""
        rows: list[Hit] = []
        k = request.k if one.groups is None else min(self._held.shape.rows_per_part, K_MAX)
        for key in one.parts:
            slots, distances = self._held.native.search_part(gathered.parts[key], query, k, one.allow)
            ids = (id.encode() for id in self._held.native.get_ids(slots))
            rows += zip(distances.tolist(), ids, slots.tolist(), strict=True)
        rows.sort()
        if one.groups is None:
            return rows[:k]
        ranked = np.array([slot for _, _, slot in rows], dtype=np.uint32)
        found = first_of_groups(one.groups, ranked, len(one.groups.values), request.group_size)
        one.found = [
            (group, [rows[at] for at in places])
            for place, (group, places) in enumerate(found)
            if place < request.k or group in one.wanted
        ]
        return [hit for _, hits in one.found for hit in hits]


def group_depth(most: int, groups: int, size: int) -> int:
    """How many rows of each group are candidates.

    Args:
        most: the number of candidates of a search.
        groups: the number of groups among them.
        size: most hits of a group, which is the least.
    """
    return max(size, -(-most // max(groups, 1)))


def candidates_for(k: int, ef_search: int, recall_target: float | None) -> int:
    """The number of candidates: the nearest rows by code, whose parts a search fetches.

    Args:
        k: rows asked for.
        ef_search: the number of candidates where it is given; 0 for none.
        recall_target: share of the k nearest rows asked for, or None.
    """
    if ef_search:
        return min(max(k, ef_search), _CANDIDATES_MAX)
    target = recall_target or 0.0
    share = next((share for recall, share in _CANDIDATES if target <= recall), _CANDIDATES[-1][1])
    return min(max(int(share * k + 0.5), _CANDIDATES_MIN), _CANDIDATES_MAX)

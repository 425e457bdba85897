"""The answer of a shard to some queries, on its way to another process: columns, of which few hits are made there.

A collection keeps the nearest of all shards' hits. With 8 shards it makes one in eight of those that come, and a column
is pickled in a fraction of the time of as many objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, TypeAlias

from fabstir_vectordb.types import NOTHING_FETCHED, Plan, Receipt, SearchGroup, SearchResult, SearchResults

__all__ = ["Found", "Hits", "ShardHits"]


class _Columns(NamedTuple):
    """The hits of all queries, one after the other: the arguments of a SearchResult."""

    ids: list[str]
    scores: list[float]
    distances: list[float]
    metadata: list[Any]
    vectors: list[Any]


class ShardHits:
    """The hits of one query in a shard of another process, nearest first; each is made when it is read.

    Attributes:
        below_threshold, plan, receipt: as of SearchResults.
        groups: none.
        ids, distances: those of all hits.
    """

    __slots__ = ("_columns", "_first", "below_threshold", "distances", "ids", "plan", "receipt")
    groups: tuple[SearchGroup, ...] = ()

    def __init__(
        self, columns: _Columns, first: int, end: int, below_threshold: int, plan: Plan, receipt: Receipt
    ) -> None:
        self._columns, self._first = columns, first
        self.below_threshold, self.plan, self.receipt = below_threshold, plan, receipt
        self.ids, self.distances = columns.ids[first:end], columns.distances[first:end]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, place: int) -> SearchResult:
        of, at = self._columns, range(self._first, self._first + len(self.ids))[place]
        return SearchResult(of.ids[at], of.scores[at], of.distances[at], of.metadata[at], of.vectors[at])

    def __iter__(self) -> Iterator[SearchResult]:
        return map(self.__getitem__, range(len(self.ids)))


#: The hits of one query in a shard, of this process or of another one.
Hits: TypeAlias = SearchResults | ShardHits


class Found(list[SearchResults]):
    """The hits of each query in a shard. Another process gets a list of ShardHits, where no query asked for groups."""

    def __reduce__(self) -> tuple[Any, ...]:
        if any(one.groups for one in self):
            return list, (list(self),)
        hits = [hit for one in self for hit in one]
        columns = _Columns(
            [hit.id for hit in hits],
            [hit.score for hit in hits],
            [hit.distance for hit in hits],
            [hit._metadata for hit in hits],
            [hit.vector for hit in hits],
        )
        ends = list(accumulate((len(one) for one in self), initial=0))
        receipts = [None if one.receipt is NOTHING_FETCHED else one.receipt for one in self]
        others = [one.below_threshold for one in self], [one.plan for one in self], receipts
        return _shard_hits, (tuple(columns), ends, *others)


def _shard_hits(
    columns: Sequence[list[Any]],
    ends: Sequence[int],
    below_threshold: Iterable[int],
    plans: Iterable[Plan],
    receipts: Iterable[Receipt | None],
) -> list[ShardHits]:
    found = _Columns(*columns)
    return [
        ShardHits(found, first, end, below, plan, receipt or NOTHING_FETCHED)
        for (first, end), below, plan, receipt in zip(pairwise(ends), below_threshold, plans, receipts, strict=True)
    ]

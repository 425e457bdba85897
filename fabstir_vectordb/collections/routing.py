"""Which shard a row belongs to, and which shards are worth asking for a query.

With ``nearest``, each shard has many centroids, and a row goes to the shard of its nearest one. k-means (Lloyd 1982)
finds the centroids on a sample; then they are grouped, near ones together, so that shards have about equally many rows.
As few centroids as shards would make shards of very different sizes. Groups begin as halves of halves, cut across the
direction in which centroids differ most; then centroids go to the group with the nearest mean, as far as sizes stay
about equal (docs/decisions/0040). With ``hash`` and ``range``, each shard has a range of keys: the BLAKE3 of the id, or
the id itself.

A collection's CID must not depend on a machine, and a matrix product in floats does: libraries add in different orders.
So vectors are rounded to integers, whose products and sums are exact in float64, in whatever order they are added.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import field
from typing import Final

import numpy as np
import numpy.typing as npt

from fabstir_vectordb.config import Metric
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.s5.cid import blake3_hash

__all__ = [
    "CENTROIDS_PER_SHARD",
    "SAMPLE_MAX",
    "Centroids",
    "hash_key",
    "ranges",
    "sample_size",
    "shard_of_key",
    "shards_for",
    "target_in",
    "train",
    "unit_of",
]

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.intp]

#: Fewer make shards of less equal sizes, and more make the root larger and a query's choice of shards slower.
CENTROIDS_PER_SHARD: Final = 16
#: Rows of the sample for each centroid, and in all: 65,536 x 384 numbers take 200 MB while they are trained.
_SAMPLE_PER_CENTROID: Final = 64
SAMPLE_MAX: Final = 65_536
_ROUNDS: Final = 10
#: The largest integer of a component. A product of two rows of 4,096 components is below 2^43, far from 2^53.
_UNIT: Final = 2.0**15
#: Components of rows outside the sample's range. Products stay below 2^48.
_FAR: Final = 2.0**20
_BLOCK_BYTES: Final = 16_000_000
#: Products of components from which on a choice of shards takes longer than what another thread adds to a search.
_AT_ONCE_MAX: Final = 2**20
#: Rounds that find the direction in which centroids differ most, and rounds in which centroids go to nearer groups.
_TURNS: Final = 16
_MOVES: Final = 10
#: A move leaves both groups within this part of their mean size. With more, groups fit a little better, and the largest
#: shard, for which a search waits, has more rows.
_SLACK: Final = 0.1


def unit_of(sample: npt.NDArray[np.float32]) -> float:
    """The scale of the integers: the largest component of a sample, 1 where it has no other than 0."""
    return float(np.abs(sample).max(initial=0.0)) or 1.0


def _integers(rows: npt.NDArray[np.float32], metric: Metric, scale: float) -> Floats:
    """Rows as integers in float64. Under cosine rows are divided by their length, and `scale` has no meaning."""
    wide = rows.astype(np.float64)
    if metric != "cosine":
        return np.clip(np.rint(wide / scale * _UNIT), -_FAR, _FAR)
    largest = np.abs(wide).max(axis=1, keepdims=True, initial=0.0)
    # Integers first, so that the sum of squares is exact, and with it the length.
    whole = np.rint(wide / np.where(largest > 0, largest, 1.0) * _UNIT)
    length = np.sqrt(np.square(whole).sum(axis=1, keepdims=True))
    return np.rint(whole / np.where(length > 0, length, 1.0) * _UNIT)


def _distances(rows: Floats, centroids: Floats, squares: Floats | None = None) -> Floats:
    """Squared distances without the part that is the same for all centroids, exactly.

    Args:
        rows: (n, dim).
        centroids: (m, dim).
        squares: sums of the squares of each centroid, where they are known.
    """
    product = rows @ centroids.T
    product *= -2.0
    product += np.square(centroids).sum(axis=1) if squares is None else squares
    return product


def _nearest(rows: Floats, centroids: Floats) -> Numbers:
    """The nearest centroid of each row, the first of equally near ones."""
    block = max(1, _BLOCK_BYTES // (8 * len(centroids)))
    found = [_distances(rows[start : start + block], centroids).argmin(axis=1) for start in range(0, len(rows), block)]
    return np.concatenate(found) if found else np.empty(0, dtype=np.intp)


def sample_size(centroids: int) -> int:
    """Rows of the sample that trains so many centroids."""
    return min(_SAMPLE_PER_CENTROID * centroids, SAMPLE_MAX)


def train(sample: npt.NDArray[np.float32], count: int, metric: Metric, scale: float) -> npt.NDArray[np.float32]:
    """Centroids of a sample, by k-means.

    Args:
        sample: (n, dim) rows by ascending BLAKE3 of their ids; the first ones are the first centroids.
        count: number of centroids.
        metric, scale: of the collection.

    Returns:
        At most `count` centroids: those without rows are left out. Under cosine none is zero.
    """
    rows = _integers(sample, metric, scale)
    centroids = np.unique(rows[: 4 * count], axis=0, return_index=True)[1]
    chosen = rows[np.sort(centroids)[:count]]
    for _ in range(_ROUNDS):
        of_row = _nearest(rows, chosen)
        order = np.argsort(of_row, kind="stable")
        starts = np.unique(of_row[order], return_index=True)[1]
        sums = np.add.reduceat(rows[order], starts, axis=0)  # of integers, so exact
        means = sums / np.diff([*starts, len(rows)])[:, np.newaxis]
        if metric == "cosine":
            # A mean of opposite directions has none; its first row stands for it.
            zero = ~means.any(axis=1)
            means[zero] = rows[order[starts[zero]]]
            means = _integers(means.astype(np.float32), metric, scale)
        means = np.rint(means)
        if np.array_equal(means, chosen):
            break
        chosen = means
    unit = 1.0 if metric == "cosine" else scale
    return (chosen / _UNIT * unit).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Centroids:
    """The centroids of shards.

    Attributes:
        vectors: (n, dim) float32, as the root has them.
        shards: the number of the shard of each.
        metric, scale: of the collection.
    """

    vectors: npt.NDArray[np.float32]
    shards: Numbers
    metric: Metric
    scale: float
    _integers: Floats = field(init=False, repr=False, compare=False)
    _squares: Floats = field(init=False, repr=False, compare=False)
    _order: Numbers = field(init=False, repr=False, compare=False)
    _numbers: Numbers = field(init=False, repr=False, compare=False)
    _starts: Numbers = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_integers", _integers(self.vectors, self.metric, self.scale))
        object.__setattr__(self, "_squares", np.square(self._integers).sum(axis=1))
        order = np.argsort(self.shards, kind="stable")
        numbers, starts = np.unique(self.shards[order], return_index=True)
        for name, value in (("_order", order), ("_numbers", numbers), ("_starts", starts)):
            object.__setattr__(self, name, value)

    @classmethod
    def alone(cls, vectors: npt.NDArray[np.float32], metric: Metric, scale: float) -> Centroids:
        """Centroids of which each stands for itself, until they are grouped."""
        return cls(vectors, np.arange(len(vectors)), metric, scale)

    def grouped(self, weights: npt.NDArray[np.integer], numbers: Sequence[int]) -> Centroids:
        """The centroids in shards of about equally many rows.

        Args:
            weights: how many rows each has; at least as many centroids as shards.
            numbers: of the shards.

        Returns:
            The centroids with their shards.
        """
        groups = np.empty(len(weights), dtype=np.intp)
        _halve(self._integers, weights, np.arange(len(weights)), range(len(numbers)), groups)
        _improve(self._integers, weights, groups, len(numbers))
        return Centroids(self.vectors, np.array(numbers, dtype=np.intp)[groups], self.metric, self.scale)

    def nearest(self, rows: npt.NDArray[np.float32]) -> Numbers:
        """The number of the shard of each row."""
        block = max(1, _BLOCK_BYTES // (8 * rows.shape[1])) if rows.size else 1
        found = [
            self.shards[_nearest(_integers(rows[start : start + block], self.metric, self.scale), self._integers)]
            for start in range(0, len(rows), block)
        ]
        return np.concatenate(found) if found else np.empty(0, dtype=np.intp)

    def ranked(self, queries: npt.NDArray[np.float32]) -> Numbers:
        """The numbers of all shards for each query, the most promising first.

        A shard is as promising as its nearest centroid; under the metric ``dot``, as the one with the largest product.
        Shards whose centroids are equally near come in the order of their numbers.
        """
        asked = _integers(queries, self.metric, self.scale)
        if self.metric == "dot":
            scores = -(asked @ self._integers.T)
        else:
            scores = _distances(asked, self._integers, self._squares)
        best = np.minimum.reduceat(scores[:, self._order], self._starts, axis=1)
        return np.asarray(self._numbers[np.argsort(best, axis=1, kind="stable")])

    def promising(self, queries: npt.NDArray[np.float32], count: int) -> dict[int, Numbers]:
        """The places of the queries that have a shard among their `count` most promising ones, by its number."""
        best = self.ranked(queries)[:, :count]
        return {number: np.flatnonzero((best == number).any(axis=1)) for number in sorted(set(best.ravel().tolist()))}

    def ranks_at_once(self, queries: int) -> bool:
        """Whether `promising` of so many queries takes less than another thread would take to begin."""
        return queries * self.vectors.size <= _AT_ONCE_MAX


def _halve(
    centroids: Floats, weights: npt.NDArray[np.integer], members: Numbers, numbers: Sequence[int], groups: Numbers
) -> None:
    """Divides centroids among groups: in two, across the direction in which they differ most, then each half again."""
    if len(numbers) == 1:
        groups[members] = numbers[0]
        return
    left = len(numbers) // 2
    order = np.argsort(_places(centroids[members]), kind="stable")
    before = np.cumsum(weights[members[order]])
    target = int(before[-1]) * left / len(numbers)
    # Each side needs a centroid for each of its groups.
    cut = int(np.abs(before - target).argmin()) + 1
    cut = min(max(cut, left), len(members) - (len(numbers) - left))
    _halve(centroids, weights, members[order[:cut]], numbers[:left], groups)
    _halve(centroids, weights, members[order[cut:]], numbers[left:], groups)


def _places(points: Floats) -> Floats:
    """Where points are along the direction in which they differ most: their first principal component.

    Found by power iteration (von Mises and Pollaczek-Geiringer 1929), with integers: products stay below 2^46.
    """
    centred = _whole(points - np.rint(points.mean(axis=0)))
    places: Floats = centred @ centred[np.square(centred).sum(axis=1).argmax()]
    for _ in range(_TURNS):
        places = centred @ _whole(_whole(places) @ centred)
    return places


def _whole(values: Floats) -> Floats:
    """Values as integers, the largest one as `_UNIT`."""
    whole: Floats = np.rint(values / (np.abs(values).max(initial=0.0) or 1.0) * _UNIT)
    return whole


def _improve(centroids: Floats, weights: npt.NDArray[np.integer], groups: Numbers, count: int) -> None:
    """Lets centroids go to the group with the nearest mean that has room, those that gain most first."""
    sizes = np.zeros(count, dtype=np.int64)
    np.add.at(sizes, groups, weights)
    least, most = (int(sizes.sum()) / count * part for part in (1.0 - _SLACK, 1.0 + _SLACK))
    block = max(1, _BLOCK_BYTES // (8 * count))
    for _ in range(_MOVES):
        before = groups.copy()
        order = np.argsort(groups, kind="stable")
        starts = np.searchsorted(groups[order], np.arange(count))
        means = np.rint(np.add.reduceat(centroids[order], starts, axis=0) / np.bincount(groups)[:, np.newaxis])
        own, nearest = (
            np.square(means).sum(axis=1)[some] - 2.0 * (centroids * means[some]).sum(axis=1)
            for some in (groups, _nearest(centroids, means))
        )
        wanting = np.argsort(nearest - own, kind="stable")[: np.count_nonzero(nearest < own)]
        for start in range(0, len(wanting), block):
            some = wanting[start : start + block]
            for centroid, distances in zip(some.tolist(), _distances(centroids[some], means), strict=True):
                old, weight = groups[centroid], weights[centroid]
                if sizes[old] - weight < least:  # so no group loses its last centroid
                    continue
                with_room = np.where(sizes + weight > most, np.inf, distances)
                new = with_room.argmin()
                if with_room[new] < own[centroid]:
                    groups[centroid] = new
                    sizes[old] -= weight
                    sizes[new] += weight
        if np.array_equal(groups, before):
            return


def shards_for(curve: Sequence[float], target: float) -> tuple[int, float] | None:
    """How many of the most promising shards a search asks, for a recall.

    Half of what the target allows to miss may be missed by the choice of shards.

    Args:
        curve: the share of the nearest rows in the n most promising shards, for n from 1 on.
        target: the recall, above 0 and at most 1.

    Returns:
        The number of shards, and the recall target in each of them; None where no number is enough.
    """
    for count, share in enumerate(curve, 1):
        if share >= (1.0 + target) / 2.0:
            return count, min(1.0, target / share) if count == 1 else target_in(count, target)
    return None


def target_in(shards: int, target: float) -> float:
    """The recall target in each of some shards, for a recall over them.

    Of several shards, each may miss half of what the target allows: most are asked for a query that is unlike their
    rows, which is harder than those that a target is measured with. Of a million rows in 8 shards, a target of 0.95
    in each found 0.948, and that in one index 0.965; 0.975 in each finds 0.973 (docs/collections.md).

    Args:
        shards: how many are asked.
        target: above 0 and at most 1.
    """
    return target if shards == 1 else (1.0 + target) / 2.0


# ---- by keys


def hash_key(id: str) -> str:
    """The key of an id with the route ``hash``: the first 8 bytes of its BLAKE3, in hex."""
    return blake3_hash(id.encode("utf-8"))[:8].hex()


def ranges(keys: Sequence[str], parts: int, first: str = "") -> list[str]:
    """Divides rows into ranges of about equally many.

    Args:
        keys: the key of each row.
        parts: number of ranges.
        first: least key of the first range.

    Returns:
        The least key of each range, ascending; fewer than `parts` where there are fewer different keys.
    """
    ordered = sorted(keys)
    cuts = {ordered[len(ordered) * part // parts] for part in range(1, parts)} if ordered else set()
    return [first, *sorted(cut for cut in cuts if cut > first)]


def shard_of_key(firsts: Sequence[str], key: str) -> int:
    """The place of the range that has a key, among the ascending least keys of ranges."""
    return max(0, bisect_right(firsts, key) - 1)

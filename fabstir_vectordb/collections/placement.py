"""Where rows go: the division of many rows among new shards, for a build, a split and a merge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np

from fabstir_vectordb.collections.records import Route
from fabstir_vectordb.collections.routing import (
    CENTROIDS_PER_SHARD,
    SAMPLE_MAX,
    Centroids,
    Numbers,
    hash_key,
    ranges,
    sample_size,
    shard_of_key,
    train,
    unit_of,
)
from fabstir_vectordb.collections.rows import vectors_of, with_vector
from fabstir_vectordb.collections.sampling import Sample, Sampler
from fabstir_vectordb.config import Metric
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.index.incoming import Batch

__all__ = ["Placement", "homes", "key_of", "place", "sampler_of", "scale_of"]


_T = TypeVar("_T")


class Kept(Protocol[_T]):
    """What keeps something for each block of rows: a list, or a spool."""

    def append(self, value: _T, /) -> None:
        """Keeps one more."""

    def __iter__(self) -> Iterator[_T]:
        """All of them, in order."""
        ...


@dataclass(frozen=True, slots=True)
class Placement:
    """A division of rows among shards.

    Attributes:
        homes: number of the shard of each row, by block.
        numbers: of the shards that have rows, ascending.
        centroids: of these shards, with ``nearest``.
        firsts: the least key of each shard, with ``hash`` and ``range``.
    """

    homes: Kept[Numbers]
    numbers: Sequence[int]
    centroids: Centroids | None
    firsts: Mapping[int, str]


def key_of(route: Route, id: str) -> str:
    """The key of a row with ``hash`` or ``range``."""
    return hash_key(id) if route == "hash" else id


def sampler_of(route: Route, shards: int) -> Sampler:
    """Takes the sample by which `place` divides rows among so many shards."""
    is_nearest = route == "nearest"
    return Sampler(sample_size(CENTROIDS_PER_SHARD * shards) if is_nearest else SAMPLE_MAX, is_nearest)


def scale_of(sample: Sample) -> float:
    """The scale of a new collection's integers."""
    return unit_of(sample.vectors[: sample_size(CENTROIDS_PER_SHARD)])


def place(
    route: Route,
    blocks: Iterable[Batch],
    sample: Sample,
    numbers: Sequence[int],
    metric: Metric,
    scale: float,
    keep: Callable[[], Kept[Numbers]],
    first: str = "",
) -> Placement:
    """Divides rows among new shards of about the same size.

    Args:
        route: of the collection.
        blocks: all rows of the new shards, which are read more than once; with ``nearest``, at least one has a vector.
        sample: of these rows, as `sampler_of` takes it.
        numbers: of the new shards. Fewer are used where there are too few different rows.
        metric, scale: of the collection.
        keep: makes what keeps a number for each row.
        first: with ``hash`` and ``range``, the least key of the first shard.

    Returns:
        The division. It depends on the rows, not on their order.

    Raises:
        InvalidInputError: with ``nearest``, no row has a vector; or a vector has no direction under cosine.
    """
    found = keep()
    used: set[int] = set()
    if route != "nearest":
        firsts = ranges([key_of(route, id) for id in sample.ids], len(numbers), first)
        for block in blocks:
            of_row = np.array([numbers[shard_of_key(firsts, key_of(route, id))] for id in block.ids], dtype=np.intp)
            used.update(of_row.tolist())
            found.append(of_row)
        return Placement(found, sorted(used), None, dict(zip(numbers, firsts, strict=False)))
    if not sample.ids:
        raise InvalidInputError("route='nearest' needs vectors: with rows that have none, take 'hash' or 'range'")
    alone = Centroids.alone(train(sample.vectors, CENTROIDS_PER_SHARD * len(numbers), metric, scale), metric, scale)
    near, weights, row = keep(), np.zeros(len(alone.vectors), dtype=np.int64), 0
    for block in blocks:
        vectors = vectors_of(block)
        if metric == "cosine" and not vectors.any(axis=1).all():
            place_of_row = int(np.flatnonzero(with_vector(block))[np.flatnonzero(~vectors.any(axis=1))[0]])
            raise InvalidInputError(
                f"the vector of row {row + place_of_row} is zero, and cosine needs a direction",
                details={"row": row + place_of_row, "id": block.ids[place_of_row]},
            )
        of_vector = alone.nearest(vectors)
        weights += np.bincount(of_vector, minlength=len(weights))
        near.append(of_vector)
        row += len(block.ids)
    centroids = alone.grouped(weights, numbers[: len(alone.vectors)])
    for block, of_vector in zip(blocks, near, strict=True):
        of_row = _spread(block, centroids.shards[of_vector], centroids)
        used.update(np.unique(of_row).tolist())
        found.append(of_row)
    has_rows = np.isin(centroids.shards, sorted(used))
    if not has_rows.all():
        centroids = Centroids(centroids.vectors[has_rows], centroids.shards[has_rows], metric, scale)
    return Placement(found, sorted(used), centroids, {})


def homes(rows: Batch, centroids: Centroids) -> Numbers:
    """The shard of each row with ``nearest``; rows without a vector are spread by the BLAKE3 of their id."""
    return _spread(rows, centroids.nearest(vectors_of(rows)), centroids)


def _spread(rows: Batch, of_vector: Numbers, centroids: Centroids) -> Numbers:
    """The shard of each row, of which those with a vector have one already."""
    there = with_vector(rows)
    found = np.empty(len(rows.ids), dtype=np.intp)
    found[there] = of_vector
    numbers = np.unique(centroids.shards)
    for row in np.flatnonzero(~there).tolist():
        found[row] = numbers[int(hash_key(rows.ids[row]), 16) % len(numbers)]
    return found

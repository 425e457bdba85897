"""Where rows go: the division of many rows among new shards, for a build, a split and a merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fabstir_vectordb.collections.records import Route
from fabstir_vectordb.collections.routing import (
    CENTROIDS_PER_SHARD,
    Centroids,
    Numbers,
    hash_key,
    ranges,
    sample_of,
    shard_of_key,
    train,
    unit_of,
)
from fabstir_vectordb.collections.rows import vectors_of, with_vector
from fabstir_vectordb.config import Metric
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.index.incoming import Batch

__all__ = ["Placement", "homes", "key_of", "place", "scale_of"]


@dataclass(frozen=True, slots=True)
class Placement:
    """A division of rows among shards.

    Attributes:
        homes: number of the shard of each row.
        centroids: of these shards, with ``nearest``.
        firsts: the least key of each shard, with ``hash`` and ``range``.
    """

    homes: Numbers
    centroids: Centroids | None
    firsts: Mapping[int, str]

    @property
    def numbers(self) -> list[int]:
        """The shards that have rows, ascending."""
        return [int(number) for number in np.unique(self.homes)]


def key_of(route: Route, id: str) -> str:
    """The key of a row with ``hash`` or ``range``."""
    return hash_key(id) if route == "hash" else id


def scale_of(rows: Batch) -> float:
    """The scale of a new collection's integers."""
    vectors = vectors_of(rows)
    ids = _ids_with_vector(rows)
    return unit_of(vectors[sample_of(ids, CENTROIDS_PER_SHARD)]) if ids else 1.0


def place(
    route: Route, rows: Batch, numbers: Sequence[int], metric: Metric, scale: float, first: str = ""
) -> Placement:
    """Divides rows among new shards of about the same size.

    Args:
        route: of the collection.
        rows: all rows of the new shards; with ``nearest``, at least one has a vector.
        numbers: of the new shards. Fewer are used where there are too few different rows.
        metric, scale: of the collection.
        first: with ``hash`` and ``range``, the least key of the first shard.

    Returns:
        The division. It depends on the rows, not on their order.

    Raises:
        InvalidInputError: with ``nearest``, no row has a vector; or a vector has no direction under cosine.
    """
    if route != "nearest":
        keys = [key_of(route, id) for id in rows.ids]
        firsts = ranges(keys, len(numbers), first)
        of_row = np.array([numbers[shard_of_key(firsts, key)] for key in keys], dtype=np.intp)
        return Placement(of_row, None, dict(zip(numbers, firsts, strict=False)))
    vectors, ids = vectors_of(rows), _ids_with_vector(rows)
    if not ids:
        raise InvalidInputError("route='nearest' needs vectors: with rows that have none, take 'hash' or 'range'")
    if metric == "cosine" and not vectors.any(axis=1).all():
        row = int(np.flatnonzero(with_vector(rows))[np.flatnonzero(~vectors.any(axis=1))[0]])
        raise InvalidInputError(
            f"the vector of row {row} is zero, and cosine needs a direction", details={"row": row, "id": rows.ids[row]}
        )
    count = CENTROIDS_PER_SHARD * len(numbers)
    trained = train(vectors[sample_of(ids, count)], count, metric, scale)
    centroids = Centroids.grouped(trained, vectors, numbers[: len(trained)], metric, scale)
    of_row = homes(rows, centroids)
    used = np.isin(centroids.shards, np.unique(of_row))
    if not used.all():
        centroids = Centroids(centroids.vectors[used], centroids.shards[used], metric, scale)
    return Placement(of_row, centroids, {})


def homes(rows: Batch, centroids: Centroids) -> Numbers:
    """The shard of each row with ``nearest``; rows without a vector are spread by the BLAKE3 of their id."""
    there = with_vector(rows)
    found = np.empty(len(rows.ids), dtype=np.intp)
    found[there] = centroids.nearest(rows.vectors[there])
    numbers = np.unique(centroids.shards)
    for row in np.flatnonzero(~there).tolist():
        found[row] = numbers[int(hash_key(rows.ids[row]), 16) % len(numbers)]
    return found


def _ids_with_vector(rows: Batch) -> list[str]:
    there: npt.NDArray[np.bool_] = with_vector(rows)
    return list(rows.ids) if there.all() else [rows.ids[row] for row in np.flatnonzero(there).tolist()]

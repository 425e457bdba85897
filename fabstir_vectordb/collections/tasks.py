"""The tasks of readers: each opens one shard by its share CID and asks it one thing. Their results can be pickled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fabstir_vectordb.collections.open_shards import opened
from fabstir_vectordb.collections.records import Recipe
from fabstir_vectordb.params import SearchFields
from fabstir_vectordb.types import FacetCount, Row, ScanPage, SearchResults

__all__ = ["Dirt", "count", "dirt", "facets", "get", "live_ids", "scan_page", "search", "warm"]


class Dirt(NamedTuple):
    """What a shard holds beside its live rows.

    Attributes:
        rows: tombstones, and rows that have expired.
        bytes: bytes of deleted and replaced rows and of replaced metadata.
    """

    rows: int
    bytes: int


def search(
    recipe: Recipe, share: str, queries: npt.NDArray[np.float32], k: int, fields: SearchFields
) -> list[SearchResults]:
    """The k nearest rows of a shard for each of some queries."""
    with opened(recipe, share) as session:
        if len(queries) == 1:
            return [session.search(queries[0], k, **fields)]
        return session.search_batch(queries, k, **fields)


def count(recipe: Recipe, share: str, filter: Mapping[str, Any] | None) -> int:
    """How many rows of a shard match a filter."""
    with opened(recipe, share) as session:
        return session.count(filter)


def facets(
    recipe: Recipe, share: str, field: str, filter: Mapping[str, Any] | None, text: str | None
) -> list[FacetCount]:
    """All distinct values of a field in a shard."""
    with opened(recipe, share) as session:
        return session.facets(field, filter, search=text)


def get(recipe: Recipe, share: str, ids: Sequence[str]) -> list[Row | None]:
    """Rows of a shard by id; None for an id that it does not have."""
    with opened(recipe, share) as session:
        return session.get(ids)


def live_ids(recipe: Recipe, share: str, ids: Sequence[str]) -> list[str]:
    """Those of some ids that a shard has."""
    with opened(recipe, share) as session:
        return list(session.get_timestamps(ids))


def scan_page(recipe: Recipe, share: str, filter: Mapping[str, Any] | None, limit: int, cursor: str | None) -> ScanPage:
    """The next rows of a shard in the order of insertion."""
    with opened(recipe, share) as session:
        return session.scan_page(filter, limit=limit, cursor=cursor)


def dirt(recipe: Recipe, share: str) -> Dirt:
    """What a shard holds beside its live rows."""
    with opened(recipe, share) as session:
        stats = session.get_stats()
        return Dirt(stats.deleted_count, stats.superseded_bytes)


def warm(recipe: Recipe, share: str) -> None:
    """Fetches all of a shard."""
    with opened(recipe, share) as session:
        session.warm()

"""The tasks of readers: each opens one shard by its share CID and asks it one thing. Their results can be pickled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.text import TextTotals
from fabstir_vectordb.blocking import run_here
from fabstir_vectordb.collections.columns import Found
from fabstir_vectordb.collections.open_shards import opened
from fabstir_vectordb.collections.records import Recipe
from fabstir_vectordb.index.hybrid import Sides
from fabstir_vectordb.index.incoming import make_request
from fabstir_vectordb.index.protocol import (
    BatchNeed,
    ChosenNeed,
    Gathered,
    LikelyNeed,
    Need,
    Reach,
    RowsNeed,
    WordsNeed,
)
from fabstir_vectordb.index.rows import Slots
from fabstir_vectordb.index.shard_reads import Likely
from fabstir_vectordb.metadata.filter_parse import EVERYTHING, parse_filter
from fabstir_vectordb.metadata.values import Scalar
from fabstir_vectordb.params import SearchFields, SearchRequest
from fabstir_vectordb.sync import VectorDBSession
from fabstir_vectordb.text.query import parse_query
from fabstir_vectordb.types import (
    FacetCount,
    FieldInfo,
    Receipt,
    Row,
    ScanPage,
    SearchGroup,
    SearchResult,
)

__all__ = [
    "Counted",
    "Dirt",
    "Some",
    "Told",
    "all_sides",
    "all_sides_of_groups",
    "chosen",
    "contents",
    "count",
    "count_words",
    "dirt",
    "facets",
    "fields",
    "get",
    "likely_of_groups",
    "live_ids",
    "near_page",
    "nearest",
    "of_groups",
    "scan_page",
    "search",
    "sides",
    "timestamps",
    "warm",
]


_T = TypeVar("_T")


class Dirt(NamedTuple):
    """What a shard holds beside its live rows.

    Attributes:
        rows: tombstones, and rows that have expired.
        bytes: bytes of deleted and replaced rows and of replaced metadata.
    """

    rows: int
    bytes: int


class Told(NamedTuple):
    """What a shard says, and what it fetched for it.

    Attributes:
        value: the answer.
        receipt: what was fetched.
    """

    value: Any
    receipt: Receipt


class Counted(NamedTuple):
    """The first of what a shard says to some texts.

    Attributes:
        totals: how many of its rows have each of the words.
        likely: its likeliest rows for each query, where it is lazily opened and they were asked for; else None.
    """

    totals: TextTotals
    likely: list[Likely] | None


class Some(NamedTuple):
    """The queries that one shard gets.

    Attributes:
        queries: (n, dim).
        places: of those that are meant, None for all.
    """

    queries: npt.NDArray[np.float32]
    places: npt.NDArray[np.intp] | None = None

    def rows(self) -> npt.NDArray[np.float32]:
        """The queries that are meant."""
        return self.queries if self.places is None else self.queries[self.places]


def search(recipe: Recipe, share: str, some: Some, k: int, fields: SearchFields) -> Found:
    """The k nearest rows of a shard for each of some queries."""
    with opened(recipe, share) as session:
        return _found(session, some.rows(), k, fields)


def nearest(recipe: Recipe, share: str, some: Some, k: int, fields: SearchFields) -> Found | list[Likely]:
    """`search`, but of a lazily opened shard the likeliest rows alone, no part of which is fetched."""
    queries = some.rows()
    with opened(recipe, share) as session:
        if session._verbs._runtime.index.is_whole:
            return _found(session, queries, k, fields)
        request = _request(queries, k, fields)
        found: Found | list[Likely] = _read(session, LikelyNeed(queries, request), _likely_or_found(queries, request))
        return found


def _likely_or_found(
    queries: npt.NDArray[np.float32], request: SearchRequest
) -> Callable[[Any, Gathered], list[Likely] | Found]:
    """The read of `nearest`, of a shard that may have come into memory meanwhile."""

    def read(index: Any, gathered: Gathered) -> list[Likely] | Found:
        if index.is_whole:
            return Found(index.search_batch(queries, request))
        likely: list[Likely] = index.shard_reads.likely(len(queries), gathered)
        return likely

    return read


def likely_of_groups(
    recipe: Recipe,
    share: str,
    queries: npt.NDArray[np.float32],
    groups: Sequence[Sequence[Scalar]],
    k: int,
    fields: SearchFields,
) -> list[Likely] | Found:
    """The likeliest rows of some groups of a lazily opened shard; of one that is in memory by now what `nearest` gives.

    Args:
        recipe, share: the shard.
        queries: (n, dim).
        groups: for each query, the values of the groups.
        k, fields: of the search.
    """
    request = _request(queries, k, fields)
    with opened(recipe, share) as session:
        found: list[Likely] | Found = _read(
            session, LikelyNeed(queries, request, groups), _likely_or_found(queries, request)
        )
        return found


def chosen(
    recipe: Recipe,
    share: str,
    queries: npt.NDArray[np.float32],
    slots: Sequence[Slots],
    groups: Sequence[Sequence[Scalar]],
    k: int,
    fields: SearchFields,
) -> Found:
    """The k nearest rows among those of the parts of chosen rows, for each of some queries.

    Args:
        recipe, share: the shard.
        queries: (n, dim).
        slots: for each query, rows that `nearest` gave. They mean the same in every process, as a share never changes.
        groups: for each query of a search with groups of several rows, the values of the groups whose rows are wanted,
            beside the best ones of those parts.
        k: hits that are wanted.
        fields: options of the search.
    """
    request = _request(queries, k, fields)
    with opened(recipe, share) as session:
        return _read(
            session,
            ChosenNeed(queries, request, slots, groups),
            lambda index, gathered: Found(index.search_batch(queries, request, gathered)),
        )


def _found(session: VectorDBSession, queries: npt.NDArray[np.float32], k: int, fields: SearchFields) -> Found:
    if len(queries) == 1:
        return Found([session.search(queries[0], k, **fields)])
    return Found(session.search_batch(queries, k, **fields))


def of_groups(
    recipe: Recipe,
    share: str,
    queries: npt.NDArray[np.float32],
    wanted: Sequence[tuple[int, Sequence[Any]]],
    field: str,
    size: int,
    fields: SearchFields,
) -> list[list[SearchGroup]]:
    """The nearest rows of some groups of a shard.

    Args:
        recipe, share: the shard.
        queries: (n, dim).
        wanted: places of queries, and the values of the groups that are wanted for each.
        field: whose values make groups.
        size: most rows of a group.
        fields: options of the search.
    """
    exactly: SearchFields = {**fields, "exact": True, "ef_search": None, "nprobe": None, "recall_target": None}
    where = fields["filter"] or {}
    with opened(recipe, share) as session:

        def group(place: int, value: Any) -> SearchGroup:
            # Without $exists, None would be the value of rows that do not have the field, too.
            own = {"$and": [where, {field: {"$exists": True}}, {field: {"$eq": value}}]}
            among: SearchFields = {**exactly, "filter": own}
            return SearchGroup(value, tuple(session.search(queries[place], size, **among)))

        return [[group(place, value) for value in values] for place, values in wanted]


def count_words(
    recipe: Recipe,
    share: str,
    texts: Sequence[str],
    queries: npt.NDArray[np.float32] | None,
    k: int,
    fields: SearchFields,
) -> Told:
    """How many rows of a shard have each of the words of some texts, and its likeliest rows: a `Counted`.

    Args:
        recipe, share: the shard.
        texts: of the searches.
        queries: (n, dim), for whose likeliest rows a lazily opened shard is asked; None for none.
        k: hits that are wanted of all shards.
        fields: options of the search.
    """
    words = [parse_query(text) for text in texts]
    need: Need = WordsNeed(words) if queries is None else LikelyNeed(queries, _request(queries, k, fields))

    def counted(index: Any, gathered: Gathered) -> Counted:
        likely = None
        if queries is not None and not index.is_whole:
            likely = index.shard_reads.likely(len(queries), gathered)
        return Counted(index.shard_reads.totals(words), likely)

    with opened(recipe, share) as session:
        return _told(session, need, counted)


def sides(
    recipe: Recipe,
    share: str,
    queries: npt.NDArray[np.float32],
    k: int,
    fields: SearchFields,
    totals: TextTotals,
    slots: Sequence[Slots] | None,
) -> Told:
    """The candidates of a shard for each of some queries with text: a list of `Sides`.

    Args:
        recipe, share: the shard.
        queries: (n, dim), or (n, 0) for searches by words alone.
        k: hits that are wanted of all shards.
        fields: options of the search.
        totals: the numbers of all shards by which scores count.
        slots: for each query, rows that `count_words` gave: a lazily opened shard looks for the nearest ones in their
            parts; None for those of its own choice.
    """
    request = _with_totals(queries, k, fields, totals)
    need: Need = BatchNeed(queries, request) if slots is None else ChosenNeed(queries, request, slots)
    with opened(recipe, share) as session:
        return _told(
            session,
            need,
            lambda index, gathered: index.shard_reads.sides(queries, request, gathered),
        )


def near_page(
    recipe: Recipe,
    share: str,
    query: npt.NDArray[np.float32],
    filter: Mapping[str, Any] | None,
    after: tuple[float, str] | None,
    limit: int,
    include_vectors: bool,
) -> tuple[list[SearchResult], bool]:
    """The nearest rows of a shard beyond a distance and id, and whether there are more."""
    where = EVERYTHING if filter is None else parse_filter(filter)
    with opened(recipe, share) as session:
        found: tuple[list[SearchResult], bool] = _read(
            session,
            Reach.WHOLE,
            lambda index, _: index.shard_reads.near_page(query, where, after, limit, include_vectors),
        )
        return found


def all_sides(
    recipe: Recipe, share: str, query: npt.NDArray[np.float32], fields: SearchFields, totals: TextTotals
) -> Sides:
    """All rows of a shard that match a filter and either side of a search; see `sides`."""
    request = _with_totals(query, 1, fields, totals)
    where = EVERYTHING if request.where is None else request.where
    with opened(recipe, share) as session:
        found: Sides = _read(session, Reach.WHOLE, lambda index, _: index.shard_reads.all_sides(query, request, where))
        return found


def all_sides_of_groups(
    recipe: Recipe, share: str, query: npt.NDArray[np.float32], fields: SearchFields, totals: TextTotals, field: str
) -> tuple[Sides, dict[str, list[Scalar]]]:
    """`all_sides`, and the values of a field, which make groups, by the ids of its rows."""
    request = _with_totals(query, 1, fields, totals)
    where = EVERYTHING if request.where is None else request.where
    with opened(recipe, share) as session:
        found: tuple[Sides, dict[str, list[Scalar]]] = _read(
            session, Reach.WHOLE, lambda index, _: index.shard_reads.all_sides_of_groups(query, request, where, field)
        )
        return found


def contents(recipe: Recipe, share: str, ids: Sequence[str], include_vectors: bool) -> Told:
    """The metadata of rows of a shard, as stored bytes, and their vectors."""
    with opened(recipe, share) as session:
        return _told(
            session,
            RowsNeed(ids, include_vectors),
            lambda index, gathered: index.shard_reads.contents(ids, include_vectors, gathered),
        )


def _told(session: VectorDBSession, need: Need, read: Callable[[Any, Gathered], Any]) -> Told:
    """The result of a read that is no verb of a session, with its receipt."""

    def told(index: Any, gathered: Gathered) -> Told:
        value = read(index, gathered)
        cached = max(len(gathered.parts) - gathered.requests, 0)
        return Told(value, Receipt(requests=gathered.requests, bytes=gathered.bytes, cache_hits=cached))

    return _read(session, need, told)


def _read(session: VectorDBSession, need: Need, read: Callable[[Any, Gathered], _T]) -> _T:
    return run_here(session._verbs._runtime.read(need, read))


def _request(query: Any, k: int, fields: SearchFields) -> SearchRequest:
    return make_request(query, k, None, fields, default_threshold=None, default_target=None)


def _with_totals(query: Any, k: int, fields: SearchFields, totals: TextTotals) -> SearchRequest:
    """A request whose words count by the rows of all shards."""
    request = _request(query, k, fields)
    assert request.text is not None
    return request._replace(text=request.text._replace(totals=totals))


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


def timestamps(recipe: Recipe, share: str, ids: Sequence[str] | None) -> dict[str, float]:
    """The timestamps of rows of a shard, of all for None."""
    with opened(recipe, share) as session:
        return session.get_timestamps(ids)


def fields(recipe: Recipe, share: str, filter: Mapping[str, Any] | None) -> list[FieldInfo]:
    """The metadata fields of a shard's rows."""
    with opened(recipe, share) as session:
        return session.fields(filter)


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

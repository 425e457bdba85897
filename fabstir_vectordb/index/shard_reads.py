"""Reads of one shard whose answers a collection joins: numbers of words, candidates of both sides, contents of hits.

A search with text over shards takes three rounds. The first sums up how many rows have each word, the second finds
candidates whose scores count by these sums, and the third reads the metadata of the hits that were chosen from all.
Each method is to be called after `missing`, as every read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.handle import NO_SLOT, Control
from fabstir_vectordb._native.text import TextTotals
from fabstir_vectordb.errors import InternalError, NotFoundError
from fabstir_vectordb.index.cursor import Cursors
from fabstir_vectordb.index.efforts import Efforts
from fabstir_vectordb.index.filters import Filters, Matches
from fabstir_vectordb.index.gate import Gate
from fabstir_vectordb.index.grouping import Groups
from fabstir_vectordb.index.hybrid import Hybrid, Sides, depth_of, no_text_index
from fabstir_vectordb.index.lazy_rows import LazyRows
from fabstir_vectordb.index.protocol import Gathered
from fabstir_vectordb.index.rows import Rows, Slots
from fabstir_vectordb.metadata.filter_parse import Filter
from fabstir_vectordb.metadata.values import Scalar
from fabstir_vectordb.params import SearchRequest
from fabstir_vectordb.text.query import ParsedQuery
from fabstir_vectordb.types import Receipt

__all__ = ["Content", "LazyReads", "Likely", "ShardReads", "WholeReads"]

#: Metadata of a row as it is stored, empty for none, and its vector where that was asked for and the row has one.
Content: TypeAlias = tuple[bytearray, npt.NDArray[np.float32] | None]


class Likely(NamedTuple):
    """The likeliest rows of a lazily loaded shard for a query, by their codes, nearest first.

    Attributes:
        slots: of the rows, uint32.
        distances: as far as the codes tell, float64; they can be compared with those of other shards.
        receipt: what was fetched for a filter, or for groups.
        groups: with `group_by` the values of the groups that each row is one of the likeliest rows of; else none.
    """

    slots: Slots
    distances: npt.NDArray[np.float64]
    receipt: Receipt
    groups: Sequence[Sequence[Scalar]] = ()


class ShardReads(Protocol):
    """What a collection asks of a shard."""

    def totals(self, queries: Sequence[ParsedQuery]) -> TextTotals:
        """The numbers of rows and words by which scores of some texts count."""
        ...

    def sides(
        self,
        queries: npt.NDArray[np.float32],
        request: SearchRequest,
        gathered: Gathered | None = None,
        control: Control | None = None,
    ) -> list[Sides]:
        """The candidates of a search with text, for each of many queries; the request has the totals of all shards."""
        ...

    def contents(self, ids: Sequence[str], include_vectors: bool, gathered: Gathered | None = None) -> list[Content]:
        """The metadata of rows, in the order asked for, and their vectors.

        Raises:
            NotFoundError: an id is not there.
        """
        ...


class WholeReads:
    """The reads of an index in memory.

    Args:
        rows, gate, filters, hybrid, cursors, efforts: of the index.
    """

    def __init__(
        self, rows: Rows, gate: Gate, filters: Filters, hybrid: Hybrid, cursors: Cursors, efforts: Efforts
    ) -> None:
        self._rows = rows
        #: The nearest rows beyond a place: a stream that can go on elsewhere.
        self.near_page = cursors.stream_page_after
        self._gate = gate
        self._filters = filters
        self._hybrid = hybrid
        self._efforts = efforts

    def totals(self, queries: Sequence[ParsedQuery]) -> TextTotals:
        """See `ShardReads`."""
        return self._gate.read(totals_of, self._rows, queries)

    def sides(
        self,
        queries: npt.NDArray[np.float32],
        request: SearchRequest,
        gathered: Gathered | None = None,
        control: Control | None = None,
    ) -> list[Sides]:
        """See `ShardReads`."""
        asked = request
        if queries.shape[1]:
            asked = self._efforts.find_request_for(depth_of(request.k), request, control)

        def found(matches: Matches | None) -> list[Sides]:
            return [self._hybrid.candidates(query, asked, place, matches) for place, query in enumerate(queries)]

        return self._gate.read(found, None) if asked.where is None else self._filters.read(asked.where, found)

    def contents(self, ids: Sequence[str], include_vectors: bool, gathered: Gathered | None = None) -> list[Content]:
        """See `ShardReads`."""

        def contents() -> list[Content]:
            rows = self._rows
            slots = found_slots(rows, ids)
            metadata = rows.arena.get_many(slots.tolist())
            return with_vectors(rows, slots, metadata, rows.core.get_vectors(slots) if include_vectors else None)

        return self._gate.read(contents)

    def all_sides(self, query: npt.NDArray[np.float32], request: SearchRequest, where: Filter) -> Sides:
        """All rows that match a filter, for a stream with text; see `Hybrid.all_sides`."""
        return self._filters.read(where, lambda matches: self._hybrid.all_sides(query, request, matches))

    def all_sides_of_groups(
        self, query: npt.NDArray[np.float32], request: SearchRequest, where: Filter, field: str
    ) -> tuple[Sides, dict[str, list[Scalar]]]:
        """`all_sides`, and the values of a field, which make groups, by the ids of its rows; see `Hybrid`."""

        def read(matches: Matches, groups: Groups) -> tuple[Sides, dict[str, list[Scalar]]]:
            sides = self._hybrid.all_sides(query, request, matches)
            ids = list(dict.fromkeys((*sides.near, *sides.said)))
            of_rows = map(groups.of, self._rows.find(ids).tolist())
            return sides, {id: [groups.values[one] for one in of] for id, of in zip(ids, of_rows, strict=True) if of}

        return self._filters.read_groups(where, field, read)


class LazyReads:
    """The reads of a lazily loaded index.

    Args:
        rows, held, gate: of the index.
    """

    def __init__(self, rows: Rows, held: LazyRows, gate: Gate) -> None:
        self._rows = rows
        self._held = held
        self._gate = gate

    def totals(self, queries: Sequence[ParsedQuery]) -> TextTotals:
        """See `ShardReads`."""
        return self._gate.within(totals_of, self._rows, queries)

    def sides(
        self,
        queries: npt.NDArray[np.float32],
        request: SearchRequest,
        gathered: Gathered | None = None,
        control: Control | None = None,
    ) -> list[Sides]:
        """See `ShardReads`."""
        if gathered is None or len(gathered.sides) != len(queries):
            raise InternalError("a lazily loaded index is asked what it misses first")
        return gathered.sides

    def likely(self, n: int, gathered: Gathered) -> list[Likely]:
        """The likeliest rows for each of n queries, once `missing` of a `LikelyNeed` found them."""
        receipt = Receipt(requests=gathered.requests, bytes=gathered.bytes, cache_hits=0)
        if not gathered.candidates:  # no row has a vector
            return [Likely(np.empty(0, np.uint32), np.empty(0), receipt)] * n
        found = []
        for one in gathered.candidates:
            assert one.distances is not None
            groups: dict[int, list[Scalar]] = {}
            if one.groups is not None:
                groups = {slot: [] for slot in one.slots.tolist()}
                for group, hits in one.found:
                    for _, _, slot in hits:
                        groups[slot].append(one.groups.values[group])
            found.append(Likely(one.slots, one.distances, receipt, list(groups.values())))
        return found

    def contents(self, ids: Sequence[str], include_vectors: bool, gathered: Gathered | None = None) -> list[Content]:
        """See `ShardReads`."""

        def contents() -> list[Content]:
            assert gathered is not None
            slots = found_slots(self._rows, ids)
            metadata = [bytearray(self._held.metadata_of(slot, gathered) or b"") for slot in slots.tolist()]
            vectors = self._held.vectors_of(slots, gathered) if include_vectors else None
            return with_vectors(self._rows, slots, metadata, vectors)

        return self._gate.within(contents)


def totals_of(rows: Rows, queries: Sequence[ParsedQuery]) -> TextTotals:
    """The numbers of an index by which scores of some texts count.

    Raises:
        InvalidInputError: there is no text index.
    """
    texts = rows.texts
    if texts.settings is None:
        raise no_text_index()
    return texts.totals(texts.compile(query) for query in queries)


def found_slots(rows: Rows, ids: Sequence[str]) -> Slots:
    """The slots of ids, expired ones included.

    Raises:
        NotFoundError: an id is not there.
    """
    slots = rows.find(ids)
    missing = np.flatnonzero(slots == NO_SLOT)
    if len(missing):
        raise NotFoundError(f"no row has the id {ids[int(missing[0])]!r}")
    return slots


def with_vectors(
    rows: Rows, slots: Slots, metadata: Iterable[bytearray], vectors: npt.NDArray[np.float32] | None
) -> list[Content]:
    """The contents of rows from their metadata and vectors."""
    if vectors is None:
        return list(zip(metadata, repeat(None)))
    lacking: Any = rows.are_vectorless(slots).tolist()
    return [
        (raw, None if is_lacking else vector)
        for raw, vector, is_lacking in zip(metadata, vectors, lacking, strict=True)
    ]

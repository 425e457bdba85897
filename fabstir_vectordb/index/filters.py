"""Evaluation of filters: columns of metadata, and remembered matches of recent filters.

Columns and matches are made under the lock of changes. Matches are valid while the generation of the index is theirs,
so a search with a remembered filter takes no lock.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import islice
from operator import itemgetter
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.handle import Allowed
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.index.gate import Busy, Gate
from fabstir_vectordb.index.grouping import Groups, groups_of
from fabstir_vectordb.index.incoming import shown
from fabstir_vectordb.index.rows import Rows, Slots
from fabstir_vectordb.metadata.census import Census, FacetQuery
from fabstir_vectordb.metadata.columns import Column, Columns
from fabstir_vectordb.metadata.expiry import Hidden
from fabstir_vectordb.metadata.filter_eval import bitmap, evaluate, slots_of
from fabstir_vectordb.metadata.filter_parse import ID, TIMESTAMP, Filter
from fabstir_vectordb.metadata.row_fields import IdField, TimeField
from fabstir_vectordb.metadata.values import Scalar, decode_metadata
from fabstir_vectordb.types import FacetCount, FieldInfo, FieldType

__all__ = ["FilterCache", "Filters", "Matches"]

#: Most bytes of remembered matches, their filters included: 600 filters over 100,000 rows, six over ten million.
MATCHES_BYTES_MAX: Final = 8_000_000

#: Groups of a row, and temporary arrays to make them.
_GROUPING_BYTES_PER_ROW: Final = 40
#: Fields whose groups are remembered.
_GROUPS_MAX: Final = 4

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Matches:
    """The live rows that match a filter.

    Attributes:
        generation: generation of the index for which they are valid.
        rows: slots of the index.
        hidden: the expired rows, which are excluded.
        allow: bitmap of the matching rows.
        count: number of matching rows.
        allowed: the rows as searches take them: few of them one by one, too.
    """

    generation: int
    rows: int
    hidden: Hidden
    allow: npt.NDArray[np.uint64]
    count: int
    allowed: Allowed

    @property
    def nbytes(self) -> int:
        """Bytes of the rows."""
        return self.allow.nbytes + self.allowed.nbytes

    def slots(self) -> Slots:
        """Their slots, ascending."""
        return slots_of(self.allow, self.rows)


class FilterCache:
    """Columns and remembered matches of filters; all of them can be made again."""

    def __init__(self) -> None:
        self.columns = Columns()
        self._matches: dict[str, Matches] = {}
        self._matches_bytes = 0
        self._groups: dict[str, tuple[int, Groups]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.columns.nbytes + self._matches_bytes + sum(groups.nbytes for _, groups in self._groups.values())

    def clear(self) -> None:
        """Frees all of it."""
        self.columns.clear()
        self._forget_matches()
        self._groups.clear()

    def get(self, key: str) -> Matches | None:
        """The remembered matches of a filter, or None; they may be out of date."""
        return self._matches.get(key)

    def remember(self, key: str, found: Matches) -> None:
        """Remembers the matches of a filter."""
        size = found.nbytes + len(key)
        # All remembered matches have one generation and time; those of another are useless.
        stale = any(
            matches.generation != found.generation or matches.hidden is not found.hidden
            for matches in islice(self._matches.values(), 1)
        )
        if stale or self._matches_bytes + size > MATCHES_BYTES_MAX:
            self._forget_matches()
        self._matches[key] = found
        self._matches_bytes += size

    def groups(self, path: str, generation: int) -> Groups | None:
        """The remembered groups of a field, or None where they are out of date."""
        known = self._groups.get(path)
        return known[1] if known is not None and known[0] == generation else None

    def remember_groups(self, path: str, generation: int, groups: Groups) -> None:
        """Remembers the groups of a field, and forgets those that are out of date."""
        self._groups = {one: known for one, known in self._groups.items() if known[0] == generation}
        if len(self._groups) == _GROUPS_MAX:
            self._groups.clear()
        self._groups[path] = generation, groups

    def _forget_matches(self) -> None:
        self._matches.clear()
        self._matches_bytes = 0

    def touch(self, slots: Slots) -> None:
        """Notes that the metadata of rows has changed."""
        for slot in slots.tolist():
            self.columns.touch(slot)

    def renumber(self, kept: Slots) -> None:
        """Renumbers the columns; `kept` are the old slots in the new order."""
        try:
            self.columns.renumber(kept)
        except MemoryError:
            self.clear()


class Filters:
    """The filters of an index.

    Args:
        rows, gate: objects of the index.
        cache: columns and remembered matches.
    """

    def __init__(self, rows: Rows, gate: Gate, cache: FilterCache) -> None:
        self._rows = rows
        self._gate = gate
        self._cache = cache

    def match(self, where: Filter) -> Matches:
        """The rows that match a filter; under the lock.

        Raises:
            MemoryBudgetExceededError: the columns of the filter would not fit.
        """
        known = self.known(where)
        if known is not None:
            return known
        rows, hidden, generation = self._rows, self._rows.hidden(), self._gate.generation
        counts = rows.counts
        mask = evaluate(where.node, self._fields(where.paths, where.list_paths), counts.rows)
        if counts.live < counts.rows:
            live = np.zeros(counts.rows, dtype=np.bool_)
            live[self._live_slots()] = True
            mask = mask & live
        if len(hidden.slots):
            mask = mask.copy()  # it may be an array of a column
            mask[hidden.slots] = False
        allow, count = bitmap(mask), int(np.count_nonzero(mask))
        # A search that gets few rows one by one does not look at the bits of all; they take half of its memory at most.
        few = np.flatnonzero(mask).astype(np.uint32) if count <= counts.rows // 64 else None
        found = Matches(generation, counts.rows, hidden, allow, count, Allowed(allow, few))
        if not generation & 1:  # an odd generation: this is a part of a running change
            self._cache.remember(where.key, found)
        return found

    def known(self, where: Filter) -> Matches | None:
        """The remembered matches of a filter, where they are still valid."""
        found = self._cache.get(where.key)
        if found is None or found.generation != self._gate.generation or found.hidden is not self._rows.hidden():
            return None
        return found

    def _live_slots(self) -> Slots:
        return self._rows.core.live_slots(0, self._rows.counts.live)

    def _fields(
        self, paths: Sequence[str], list_paths: Collection[str] = ()
    ) -> dict[str, Column | IdField | TimeField]:
        """Fields of all rows, those of metadata as columns; under the lock."""
        rows, count = self._rows, self._rows.counts.rows
        fields: dict[str, Column | IdField | TimeField] = {}
        if ID in paths:
            fields[ID] = IdField(count, self._live_slots(), rows.core.get_ids, rows.find)
        if TIMESTAMP in paths:
            fields[TIMESTAMP] = TimeField(count, self._live_slots(), rows.core.get_timestamps)
        of_metadata = [path for path in paths if path not in fields]
        return {**fields, **self._columns(of_metadata, list_paths)} if of_metadata else fields

    def _columns(self, paths: Sequence[str], list_paths: Collection[str] = ()) -> dict[str, Column]:
        """Columns of all rows, within the budget; under the lock."""
        rows, budget, cache = self._rows, self._rows.budget, self._cache
        columns, count = cache.columns, rows.counts.rows
        what = f"filtering by {', '.join(map(shown, paths))}"
        missing = columns.missing_bytes(paths, count)
        if budget.is_over(rows.nbytes + cache.nbytes + missing):
            budget.clear_cache()
            missing = columns.missing_bytes(paths, count)
        budget.require(what, rows.nbytes + missing)
        found = columns.get(paths, rows.arena, count, list_paths)
        held = rows.nbytes + cache.nbytes
        if budget.is_over(held):
            budget.clear_cache()
            budget.require(what, held)
        return found

    def read(self, where: Filter, read: Callable[[Matches], _T]) -> _T:
        """The result of `read`, called with the rows that match a filter, without a change in between."""

        def locked() -> _T:
            return read(self.match(where))

        found = self.try_read(where, read)
        return self._gate.alone(locked) if isinstance(found, Busy) or found is None else found

    def try_read(self, where: Filter, read: Callable[[Matches], _T]) -> _T | Busy | None:
        """`read` with remembered matches; None where there are none, BUSY where a change came in between."""

        def checked() -> _T | None:
            known = self.known(where)
            return None if known is None else read(known)

        return self._gate.try_read(checked)

    def read_groups(self, where: Filter, path: str, read: Callable[[Matches, Groups], _T]) -> _T:
        """`read` with the rows that match a filter and the groups of a field, without a change in between."""

        def checked() -> _T | None:
            known, groups = self.known(where), self._cache.groups(path, self._gate.generation)
            return None if known is None or groups is None else read(known, groups)

        def locked() -> _T:
            return read(self.match(where), self._groups(path))

        found = self._gate.try_read(checked)
        return self._gate.alone(locked) if isinstance(found, Busy) or found is None else found

    def _groups(self, path: str) -> Groups:
        """The groups of all rows by a field, within the budget; under the lock."""
        rows, generation = self._rows, self._gate.generation
        groups = self._cache.groups(path, generation)
        if groups is None:
            column = self._columns([path])[path]
            needed = rows.nbytes + self._cache.nbytes + _GROUPING_BYTES_PER_ROW * rows.counts.rows
            rows.budget.require(f"grouping by {shown(path)}", needed)
            groups = groups_of(column)
            self._cache.remember_groups(path, generation, groups)
        return groups

    def count(self, where: Filter) -> int:
        """How many live rows match a filter."""
        return self.read(where, lambda matches: matches.count)

    def ids(self, where: Filter, order: str | None, descending: bool) -> list[str]:
        """The ids of the live rows that match a filter, in the order of a field, else of their slots."""

        def read(matches: Matches) -> list[str]:
            slots = matches.slots()
            if order is not None and len(slots):
                slots = slots[self._order(slots, order, descending)]
            return self._rows.core.get_ids(slots)

        return self.read(where, read) if order is None else self._gate.alone(lambda: read(self.match(where)))

    def _order(self, slots: Slots, path: str, descending: bool) -> list[int]:
        """Positions of slots in the order of a field, those without a value of it last; under the lock."""
        keys = self._fields([path])[path].sort_keys(slots)
        held = sorted(
            ((key, position) for position, key in enumerate(keys) if key is not None),
            key=itemgetter(0),
            reverse=descending,
        )
        return [position for _, position in held] + [position for position, key in enumerate(keys) if key is None]

    def facets(self, query: FacetQuery) -> list[FacetCount]:
        """A page of the distinct values of a field among the rows that match a filter."""

        def locked() -> list[tuple[Scalar, int]]:
            slots = self.match(query.where).slots()
            return list(self._columns([query.path])[query.path].values(slots))

        return [FacetCount(value, count) for value, count in query.page(self._gate.alone(locked))]

    def fields(self, where: Filter) -> list[FieldInfo]:
        """The fields of the rows that match a filter."""

        def census(matches: Matches) -> list[FieldInfo]:
            counted = Census()
            for slot in matches.slots().tolist():
                raw = self._rows.arena.get(slot)
                if raw is not None:
                    counted.add(decode_metadata(raw))
            return [
                FieldInfo(one.path, one.rows, tuple(FieldType(*of_type) for of_type in one.types))
                for one in counted.found()
            ]

        return self.read(where, census)

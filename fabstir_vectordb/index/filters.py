"""What filters take: columns of metadata, and the rows that recent filters took.

Columns and matches are made under the lock of changes. Matches are good as long as the generation is theirs, so a
search whose filter is known meets no lock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from fabstir_vectordb.index.gate import Busy, Gate
from fabstir_vectordb.index.incoming import shown
from fabstir_vectordb.index.rows import Rows, Slots
from fabstir_vectordb.metadata.columns import Column, Columns
from fabstir_vectordb.metadata.expiry import Hidden
from fabstir_vectordb.metadata.filter_eval import bitmap, evaluate, slots_of
from fabstir_vectordb.metadata.filter_parse import Filter
from fabstir_vectordb.types import FacetCount

__all__ = ["FilterCache", "Filters", "Matches"]

#: Bytes of bitmaps, and of the filters they belong to, that are remembered until the next change: those of 600 filters
#: over 100,000 rows, of six over ten million.
MATCHES_BYTES_MAX: Final = 8_000_000

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Matches:
    """The live rows that a filter takes.

    Attributes:
        generation: of the index; they are its rows as long as it has this one.
        rows: slots of the index.
        hidden: the expired rows that are not among them.
        allow: their bitmap.
        count: how many they are.
    """

    generation: int
    rows: int
    hidden: Hidden
    allow: npt.NDArray[np.uint64]
    count: int

    def slots(self) -> Slots:
        """Their slots, ascending."""
        return slots_of(self.allow, self.rows)


class FilterCache:
    """Columns, and what filters are known to take; all of it can be made again."""

    def __init__(self) -> None:
        self.columns = Columns()
        self._matches: dict[str, Matches] = {}
        self._matches_bytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.columns.nbytes + self._matches_bytes

    def clear(self) -> None:
        """Lets go of all of it."""
        self.columns.clear()
        self._forget_matches()

    def get(self, key: str) -> Matches | None:
        """What a filter took when it was asked last."""
        return self._matches.get(key)

    def remember(self, key: str, found: Matches) -> None:
        """Notes what a filter takes."""
        size = found.allow.nbytes + len(key)
        # All that are remembered are of one generation and time: those of another are of no use.
        stale = any(
            matches.generation != found.generation or matches.hidden is not found.hidden
            for matches in islice(self._matches.values(), 1)
        )
        if stale or self._matches_bytes + size > MATCHES_BYTES_MAX:
            self._forget_matches()
        self._matches[key] = found
        self._matches_bytes += size

    def _forget_matches(self) -> None:
        self._matches.clear()
        self._matches_bytes = 0

    def touch(self, slots: Slots) -> None:
        """Notes that rows have other metadata."""
        for slot in slots.tolist():
            self.columns.touch(slot)

    def renumber(self, kept: Slots) -> None:
        """Follows rows to other slots; `kept` are the old ones in the new order."""
        try:
            self.columns.renumber(kept)
        except MemoryError:
            self.clear()


class Filters:
    """The filters of an index.

    Args:
        rows, gate: of the index.
        cache: what it remembers of filters.
    """

    def __init__(self, rows: Rows, gate: Gate, cache: FilterCache) -> None:
        self._rows = rows
        self._gate = gate
        self._cache = cache

    def match(self, where: Filter) -> Matches:
        """The rows that a filter takes; under the lock.

        Raises:
            MemoryBudgetExceededError: the columns that it compares would not fit.
        """
        known = self.known(where)
        if known is not None:
            return known
        rows, hidden, generation = self._rows, self._rows.hidden(), self._gate.generation
        counts = rows.counts
        mask = evaluate(where.node, self._columns(where.paths), counts.rows)
        if counts.live < counts.rows:
            live = np.zeros(counts.rows, dtype=np.bool_)
            live[rows.core.live_slots(0, counts.live)] = True
            mask = mask & live
        if len(hidden.slots):
            mask = mask.copy()  # it may be a column's own
            mask[hidden.slots] = False
        found = Matches(generation, counts.rows, hidden, bitmap(mask), int(np.count_nonzero(mask)))
        if not generation & 1:  # else a change is under way, and this its own question
            self._cache.remember(where.key, found)
        return found

    def known(self, where: Filter) -> Matches | None:
        """The same, where it is known without looking at the rows."""
        found = self._cache.get(where.key)
        if found is None or found.generation != self._gate.generation or found.hidden is not self._rows.hidden():
            return None
        return found

    def _columns(self, paths: Sequence[str]) -> dict[str, Column]:
        """Columns of all rows, within the budget; under the lock."""
        rows, budget, cache = self._rows, self._rows.budget, self._cache
        columns, count = cache.columns, rows.counts.rows
        what = f"filtering by {', '.join(map(shown, paths))}"
        missing = columns.missing_bytes(paths, count)
        if budget.is_over(rows.nbytes + cache.nbytes + missing):
            cache.clear()
            missing = columns.missing_bytes(paths, count)
        budget.require(what, rows.nbytes + missing)
        found = columns.get(paths, rows.arena, count)
        held = rows.nbytes + cache.nbytes
        if budget.is_over(held):
            cache.clear()
            budget.require(what, held)
        return found

    def read(self, where: Filter, read: Callable[[Matches], _T]) -> _T:
        """The result of `read` over the rows that a filter takes, with no change in between."""

        def locked() -> _T:
            return read(self.match(where))

        found = self.try_read(where, read)
        return self._gate.alone(locked) if isinstance(found, Busy) or found is None else found

    def try_read(self, where: Filter, read: Callable[[Matches], _T]) -> _T | Busy | None:
        """The same, where it is known what the filter takes, else None; BUSY where a change came between."""

        def checked() -> _T | None:
            known = self.known(where)
            return None if known is None else read(known)

        return self._gate.try_read(checked)

    def count(self, where: Filter) -> int:
        """How many live rows a filter takes."""
        return self.read(where, lambda matches: matches.count)

    def ids(self, where: Filter, order: str | None, descending: bool) -> list[str]:
        """The ids of the live rows that a filter takes, in the order of a field, else of their slots."""

        def read(matches: Matches) -> list[str]:
            slots = matches.slots()
            if order is not None and len(slots):
                slots = slots[self._order(slots, order, descending)]
            return self._rows.core.get_ids(slots)

        return self.read(where, read) if order is None else self._gate.alone(lambda: read(self.match(where)))

    def _order(self, slots: Slots, path: str, descending: bool) -> list[int]:
        """Positions of slots in the order of a field, those without a value of it last; under the lock."""
        keys = self._columns([path])[path].sort_keys(slots)
        held = sorted(
            ((key, position) for position, key in enumerate(keys) if key is not None),
            key=itemgetter(0),
            reverse=descending,
        )
        return [position for _, position in held] + [position for position, key in enumerate(keys) if key is None]

    def facets(self, path: str, where: Filter) -> list[FacetCount]:
        """The distinct values of a field among the rows that a filter takes, the most frequent first."""

        def locked() -> list[FacetCount]:
            slots = self.match(where).slots()
            column = self._columns([path])[path]
            counted = [FacetCount(value, count) for value, count in column.values(slots)]
            return sorted(counted, key=lambda facet: (-facet.count, repr(facet.value)))

        return self._gate.alone(locked)

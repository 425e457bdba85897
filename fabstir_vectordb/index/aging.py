"""How an index ages: lists are trained, old rows move to them, a vacuum removes what is deleted, rows get a new order.

`Aging` does one such thing. `AgingSteps` is their one sequence; `optimize`, the maintainer and `from_parts` drive it.
Moving rows goes on beside reads, as slots stay what they are: under the lock, but with an even generation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import numpy as np

from fabstir_vectordb._native.handle import NO_SLOT, Control, NativeStats, NativeTooFew
from fabstir_vectordb.errors import MemoryBudgetExceededError
from fabstir_vectordb.index.cursor import Cursors
from fabstir_vectordb.index.efforts import Efforts
from fabstir_vectordb.index.filters import FilterCache
from fabstir_vectordb.index.gate import Gate
from fabstir_vectordb.index.rows import Rows, Slots
from fabstir_vectordb.types import VacuumStats

__all__ = ["STEP_ROWS", "Aging", "AgingSteps", "Step", "vacuum_comes_first", "vacuum_is_due"]

#: Rows that move in one step: some milliseconds beside searches, 0.1 ms in their way.
STEP_ROWS: Final = 1_000
#: Rows of the graph from which on their order is worth making.
ARRANGED_ROWS_MIN: Final = 4_096
#: A vacuum in the background comes when so many rows, and one row in so many, are tombstones or still in the graph
#: though they moved: they make walks longer by about that part.
_IDLE_ROWS_MIN: Final = 1_000
_IDLE_SHARE: Final = 5
#: An add is preceded by a vacuum when there are at least so many tombstones, and at least as many as live rows. So
#: tombstones never take more than the rows themselves, and each vacuum is paid for by as many deletes as it keeps rows.
#: Counts of rows alone decide, never memory or threads: equal histories of calls have equal CIDs on all machines.
TOMBSTONES_MIN: Final = 1_000
TOMBSTONES_PER_LIVE_ROW: Final = 1
#: Numbers that are made of each row while slots change: the order, the map, and what is looked up with them.
_RENUMBERING_BYTES_PER_ROW: Final = 48


def vacuum_is_due(counts: NativeStats, expired_count: int) -> bool:
    """Whether a vacuum in the background pays for what it holds up."""
    idle = counts.rows - counts.live + expired_count + counts.moved
    return idle >= _IDLE_ROWS_MIN and idle * _IDLE_SHARE >= counts.rows


def vacuum_comes_first(counts: NativeStats) -> bool:
    """Whether an add is preceded by a vacuum."""
    tombstones = counts.rows - counts.live
    return tombstones >= max(TOMBSTONES_MIN, TOMBSTONES_PER_LIVE_ROW * counts.live)


class Aging:
    """Changes of where rows are, none of what they say.

    Args:
        rows, gate, cache, cursors, efforts: of the index; whatever knows slots follows the rows to new ones.
    """

    def __init__(self, rows: Rows, gate: Gate, cache: FilterCache, cursors: Cursors, efforts: Efforts) -> None:
        self._rows = rows
        self._gate = gate
        self._cache = cache
        self._cursors = cursors
        self._efforts = efforts

    def check(self) -> None:
        """Refuses to begin with what could not be brought to an end.

        Raises:
            MemoryBudgetExceededError: training, or the vacuum in the end, would not fit.
        """

        def check() -> None:
            if self._rows.native is not None:
                forecast = self._rows.forecast()
                self._require("training lists", forecast.train())
                self._require("a vacuum", forecast.vacuum() + self._renumbering_bytes())

        self._gate.alone(check)

    def _require(self, what: str, scratch: int) -> None:
        self._rows.budget.require_work(what, self._rows.nbytes, scratch)

    # ---- lists, beside reads

    def train(self, cutoff_us: int, control: Control | None) -> bool:
        """See `Index.train`."""

        def train() -> bool:
            counts, native = self._rows.counts, self._rows.native
            if native is None or (counts.lists and not counts.training_due):
                return False
            self._require("training lists", self._rows.forecast().train())
            try:
                native.train(cutoff_us, control)
            except NativeTooFew:
                return False
            self._sides_changed()
            self._efforts.trained()
            return True

        return self._gate.alone(train)

    def migrate(self, cutoff_us: int, step: int, first: int) -> tuple[int, int | None]:
        """See `Index.migrate`."""

        def move() -> tuple[int, int | None]:
            native = self._rows.native
            if native is None or not self._rows.counts.lists:
                return 0, None
            self._require("moving rows", self._rows.forecast().migrate(step))
            moved, after = native.migrate(cutoff_us, step, first)
            if moved:
                self._sides_changed()
            return moved, None if after == NO_SLOT else after

        return self._gate.alone(move)

    def _sides_changed(self) -> None:
        self._rows.refresh()
        self._efforts.changed()
        self._rows.changes += 1

    # ---- new slots, inside a change

    def vacuum(self, control: Control | None) -> VacuumStats:
        """See `Index.vacuum`; inside a change."""
        rows, before = self._rows, self._rows.counts
        native, removed = rows.native, before.rows - before.live
        if native is None or not (removed or before.moved):
            if rows.has_superseded:
                self._require("a vacuum", self._renumbering_bytes())
                rows.forget_superseded()
                self._cache.clear()
            return VacuumStats(0, 0, 0)
        self._require("a vacuum", rows.forecast().vacuum() + self._renumbering_bytes())
        # Their order is known, so what follows the rows can be made before the native core changes.
        self._renumber(native.vacuum_order(), lambda: native.vacuum(control))
        from_lists = before.historical_deleted
        return VacuumStats(removed - from_lists if before.graph_rows else 0, from_lists, removed)

    def arrange(self, control: Control | None) -> bool:
        """See `Index.arrange`; inside a change."""
        rows = self._rows
        native = rows.native
        if native is None or rows.counts.graph_rows < ARRANGED_ROWS_MIN:
            return False
        self._require("an arrangement", rows.forecast().arrange() + self._renumbering_bytes())
        order = native.locality_order(control)
        slot_map = np.empty_like(order)
        slot_map[order] = np.arange(len(order), dtype=np.uint32)

        def renumber() -> Slots:
            native.renumber(order)
            return slot_map

        self._renumber(order, renumber)
        return True

    def _renumber(self, kept: Slots, renumber: Callable[[], Slots]) -> None:
        slot_map = self._rows.renumber(kept, renumber)
        self._cache.renumber(kept)
        self._cursors.renumber(slot_map)

    def _renumbering_bytes(self) -> int:
        """What the metadata takes twice while slots change; columns make room where they would be in the way."""
        rows, cache = self._rows, self._cache
        count = rows.counts.rows
        needed = rows.arena.compacted_bytes(count) + rows.expiries.nbytes + _RENUMBERING_BYTES_PER_ROW * count
        if rows.budget.is_over(rows.nbytes + needed + 2 * cache.nbytes):
            cache.clear()
        return needed + cache.nbytes


# ---- The sequence ------------------------------------------------------------------------------------------


class Ages(Protocol):
    """An index that ages."""

    @property
    def counts(self) -> NativeStats: ...
    @property
    def hidden_count(self) -> int: ...
    def check_optimizes(self) -> None: ...
    def train(self, cutoff_us: int, control: Control | None = None) -> bool: ...
    def migrate(self, cutoff_us: int, step: int, first: int = 0) -> tuple[int, int | None]: ...
    def vacuum(self, control: Control | None = None) -> VacuumStats: ...
    def arrange(self, control: Control | None = None) -> bool: ...


@dataclass(frozen=True, slots=True)
class Step:
    """One step.

    Attributes:
        stage: ``check``, ``train``, ``migrate``, ``vacuum`` or ``arrange``.
        rows_done: rows of the stage that earlier steps looked at.
        holds_up_reads: reads wait until it is over.
        run: does it, to the index that is there by then.
    """

    stage: Literal["check", "train", "migrate", "vacuum", "arrange"]
    rows_done: int
    holds_up_reads: bool
    run: Callable[[Ages, Control | None], None]


class AgingSteps:
    """Train, migrate, train again where that is due, vacuum, arrange: one step after the other.

    Each step is run before the next one is asked for:

        >>> for step in (steps := AgingSteps(cutoff_us)):
        ...     step.run(index, None)

    Attributes:
        trained: whether lists were trained, for the first time or anew.
        migrated: rows that moved to lists.
        vacuumed: what the vacuum removed.

    Args:
        cutoff_us: rows before it move, microseconds since 1970.
        in_background: vacuum only where it pays for what it holds up, and leave the order of rows alone.
        arranges: give rows that are near each other slots that are, where slots changed anyway.
    """

    def __init__(self, cutoff_us: int, *, in_background: bool = False, arranges: bool = True) -> None:
        self.trained = False
        self.migrated = 0
        self.vacuumed = VacuumStats(0, 0, 0)
        self._cutoff_us = cutoff_us
        self._in_background = in_background
        self._arranges = arranges and not in_background
        self._first: int | None = 0

    def __iter__(self) -> Iterator[Step]:
        if not self._in_background:
            yield Step("check", 0, False, lambda index, _: index.check_optimizes())
        yield Step("train", 0, False, self._train)
        while self._first is not None:
            yield Step("migrate", self._first, False, self._migrate)
        yield Step("train", 0, False, self._train)
        yield Step("vacuum", 0, True, self._vacuum)
        if self._arranges and (self.migrated or self.vacuumed.total_removed):
            # Rows got other slots, and parts other bytes, anyway.
            yield Step("arrange", 0, True, self._arrange)

    def _train(self, index: Ages, control: Control | None) -> None:
        self.trained = index.train(self._cutoff_us, control) or self.trained

    def _migrate(self, index: Ages, control: Control | None) -> None:
        moved, self._first = index.migrate(self._cutoff_us, STEP_ROWS, self._first or 0)
        self.migrated += moved

    def _vacuum(self, index: Ages, control: Control | None) -> None:
        if not self._in_background or vacuum_is_due(index.counts, index.hidden_count):
            self.vacuumed = index.vacuum(control)

    def _arrange(self, index: Ages, control: Control | None) -> None:
        with suppress(MemoryBudgetExceededError):
            index.arrange(control)

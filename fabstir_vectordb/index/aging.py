"""Aging of an index: training lists, moving old rows to them, vacuum, and a new order of the rows.

`Aging` does single steps. `AgingSteps` is their sequence, which `optimize`, the maintainer and `from_parts` run. Reads
run on while rows move to lists, as their slots stay the same: the lock is held, but the generation stays even.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final, Literal, Protocol

import numpy as np

from fabstir_vectordb._native.handle import NO_SLOT, Control, NativeStats, NativeTooFew
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import MemoryBudgetExceededError
from fabstir_vectordb.index.cursor import Cursors
from fabstir_vectordb.index.efforts import Efforts
from fabstir_vectordb.index.filters import FilterCache
from fabstir_vectordb.index.fitting import after_give_way, forecast_of, give_way
from fabstir_vectordb.index.gate import Gate
from fabstir_vectordb.index.rows import Rows, Slots
from fabstir_vectordb.types import VacuumStats

__all__ = ["STEP_ROWS", "Aging", "AgingSteps", "Step", "vacuum_comes_first", "vacuum_is_due"]

#: Rows that move in one step. It takes some milliseconds, and blocks searches for 0.1 ms.
STEP_ROWS: Final = 1_000
#: Rows of the graph from which on `Aging.arrange` is worth its time.
ARRANGED_ROWS_MIN: Final = 4_096
#: A vacuum in the background runs when at least so many rows, and at least one row in so many, are idle: tombstones, or
#: moved rows that are still in the graph. Idle rows make walks longer by about their share.
_IDLE_ROWS_MIN: Final = 1_000
_IDLE_SHARE: Final = 5
#: A vacuum runs before an add when there are at least so many tombstones, and at least as many as live rows. So
#: tombstones never take more memory than the rows, and there is a delete for each row that a vacuum keeps. Only counts
#: of rows decide, never memory or threads: equal histories of calls have equal CIDs on all machines.
TOMBSTONES_MIN: Final = 1_000
TOMBSTONES_PER_LIVE_ROW: Final = 1
#: Bytes of the temporary arrays of a renumbering: the order, the slot map, and lookups with them.
_RENUMBERING_BYTES_PER_ROW: Final = 48


def vacuum_is_due(counts: NativeStats, expired_count: int) -> bool:
    """Whether a vacuum in the background is worth the reads that it blocks."""
    idle = counts.rows - counts.live + expired_count + counts.moved
    return idle >= _IDLE_ROWS_MIN and idle * _IDLE_SHARE >= counts.rows


def vacuum_comes_first(counts: NativeStats) -> bool:
    """Whether a vacuum runs before an add."""
    tombstones = counts.rows - counts.live
    return tombstones >= max(TOMBSTONES_MIN, TOMBSTONES_PER_LIVE_ROW * counts.live)


class Aging:
    """Changes of the place of rows, not of their content.

    Args:
        rows, gate, cache, cursors, efforts: objects of the index. Those that hold slots are renumbered with the rows.
    """

    def __init__(self, rows: Rows, gate: Gate, cache: FilterCache, cursors: Cursors, efforts: Efforts) -> None:
        self._rows = rows
        self._gate = gate
        self._cache = cache
        self._cursors = cursors
        self._efforts = efforts

    def check(self) -> None:
        """Checks that an `optimize` will have enough memory to its end.

        Raises:
            MemoryBudgetExceededError: training, or the final vacuum, would not fit.
        """

        def check() -> None:
            if self._rows.native is not None:
                held, forecast = after_give_way(self._rows)
                budget = self._rows.budget
                budget.require_work("training lists", held, forecast.train())
                budget.require_work("a vacuum", held, forecast.vacuum() + self._renumbering_bytes())

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
            self._require("training lists", forecast_of(self._rows).train())
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
            self._require("moving rows", forecast_of(self._rows).migrate(step))
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
                rows.budget.clear_cache()
            return VacuumStats(0, 0, 0)
        give_way(rows, forecast_of(rows).vacuum() + self._renumbering_bytes())
        self._require("a vacuum", forecast_of(rows).vacuum() + self._renumbering_bytes())
        # The new order is known in advance, so metadata can be renumbered before the native core changes.
        self._renumber(native.vacuum_order(), lambda: native.vacuum(control))
        from_lists = before.historical_deleted
        return VacuumStats(removed - from_lists if before.graph_rows else 0, from_lists, removed)

    def arrange(self, control: Control | None) -> bool:
        """See `Index.arrange`; inside a change."""
        rows = self._rows
        native = rows.native
        if native is None or rows.counts.graph_rows < ARRANGED_ROWS_MIN:
            return False
        give_way(rows, forecast_of(rows).arrange() + self._renumbering_bytes())
        self._require("an arrangement", forecast_of(rows).arrange() + self._renumbering_bytes())
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
        """Bytes of the copies of metadata and words during a renumbering; columns go where they would not fit."""
        rows, cache = self._rows, self._cache
        count = rows.counts.rows
        needed = rows.arena.compacted_bytes(count) + rows.expiries.nbytes + _RENUMBERING_BYTES_PER_ROW * count
        needed += rows.texts.mapped_bytes
        if rows.budget.is_over(rows.nbytes + needed + 2 * cache.nbytes):
            rows.budget.clear_cache()
        return needed + cache.nbytes


# ---- The sequence ------------------------------------------------------------------------------------------


class Ages(Protocol):
    """The aging methods of an index."""

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
    """One step of aging.

    Attributes:
        stage: ``check``, ``train``, ``migrate``, ``vacuum`` or ``arrange``.
        rows_done: rows that earlier steps of the stage processed.
        holds_up_reads: whether reads wait until it is over.
        run: runs the step on an index.
    """

    stage: Literal["check", "train", "migrate", "vacuum", "arrange"]
    rows_done: int
    holds_up_reads: bool
    run: Callable[[Ages, Control | None], None]


class AgingSteps:
    """The steps of aging in their order: train, migrate, train again where due, vacuum, arrange.

    Run each step before you take the next one:

        >>> for step in (steps := AgingSteps(cutoff_us)):
        ...     step.run(index, None)

    Attributes:
        trained: whether lists were trained, for the first time or anew.
        migrated: rows that moved to lists.
        vacuumed: what the vacuum removed.

    Args:
        cutoff_us: rows with an older timestamp move, microseconds since 1970.
        in_background: vacuum only where it is worth the reads that it blocks, and keep the order of rows.
        arranges: give near rows near slots, where slots have changed anyway.
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
            # Slots, and so the bytes of parts, have changed anyway.
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

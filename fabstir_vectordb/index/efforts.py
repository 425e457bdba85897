"""What a recall target takes: candidates of the walk, lists to look at, or a scan of every row.

Measured behind a change, under the lock of changes but with an even generation: reads go on beside it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.handle import Control, NativeCancelled, NativeIndex, NativeStats
from fabstir_vectordb.calibration import Calibration, calibrate, missed_by_code
from fabstir_vectordb.config import Metric
from fabstir_vectordb.errors import IndexStateError
from fabstir_vectordb.index.gate import Gate, IndexClosed
from fabstir_vectordb.metadata.filter_eval import bitmap_of
from fabstir_vectordb.types import CalibrationPoint

__all__ = ["Effort", "Efforts", "MeasuredRows"]

#: Pairs of k and recall target that are remembered: a program uses a few.
_EFFORTS_MAX: Final = 1_000
#: The last recall of the table of lists.
_LISTS_RECALL_MOST: Final = 0.999
#: ef_search, exact and nprobe.
Effort = tuple[int, bool, int]


class MeasuredRows(Protocol):
    """The rows that are measured."""

    @property
    def native(self) -> NativeIndex | None: ...
    @property
    def counts(self) -> NativeStats: ...
    @property
    def metric(self) -> Metric: ...
    def are_bare(self, slots: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]: ...


class Efforts:
    """What recall targets take on an index's own rows.

    Args:
        rows: the rows.
        gate: their gate.
    """

    def __init__(self, rows: MeasuredRows, gate: Gate) -> None:
        self._rows = rows
        self._gate = gate
        self.calibration: Calibration | None = None
        """What was measured of the rows; in no version, and no change."""
        self._efforts: dict[tuple[int, float], Effort] = {}
        # Live rows when it was measured last, or loaded, and the rows that came since.
        self._rows_then = self._rows_since = 0
        # The share of the nearest rows on lists that no number of lists finds; None where that is still to be measured.
        self._missed_by_code: float | None = None

    # ---- what happened to the rows

    def loaded(self) -> None:
        """The rows came from a version."""
        self._rows_then = self._rows.counts.live

    def added(self, count: int) -> None:
        """Rows were added."""
        self._rows_since += count

    def changed(self) -> None:
        """The rows, or their sides, changed: efforts are found out anew. Called after the new counts are there."""
        self._efforts = {}

    def trained(self) -> None:
        """Lists were trained: what their codes lose is measured anew."""
        self._missed_by_code = None

    # ---- measuring

    @property
    def is_due(self) -> bool:
        """Whether as many rows have come as there were when it was measured, or a vacuum took half of them."""
        counts = self._rows.counts
        return counts.graph_rows > 0 and (self._rows_since >= self._rows_then or 2 * counts.rows < self._rows_then)

    def calibrate_where_due(self, control: Control | None) -> None:
        """Measures anew where that is due; best effort, as no change depends on it."""
        with suppress(NativeCancelled, IndexStateError, IndexClosed, MemoryError):
            # What is known goes on to be used where this fails; else the first who asks measures.
            if self.is_due:
                self._gate.alone(self._calibrate, control)

    def _calibrate(self, control: Control | None, only_missing: bool = False) -> None:
        rows, counts = self._rows, self._rows.counts
        native = rows.native
        if native is None or not counts.graph_rows or (only_missing and self.calibration is not None):
            return
        # Only recent rows: how many lists it takes was measured when they were trained.
        recent = ~native.historical() if counts.historical else None
        if counts.bare:
            slots = native.live_slots(0, counts.live)
            found = bitmap_of(slots[~rows.are_bare(slots)], counts.rows)
            recent = found if recent is None else found & recent
        self.calibration = calibrate(native, rows.metric, _recent(counts), control, recent)
        self._rows_then, self._rows_since = counts.live, 0
        self._efforts = {}  # after the calibration, from which new ones come

    def known(self, k: int, recall_target: float) -> Effort | None:
        """ef_search, exact and nprobe of a search with a recall target; None where that is still to be found out."""
        return self._efforts.get((k, recall_target)) or (None if self._is_measured else (0, False, 0))

    @property
    def _is_measured(self) -> bool:
        """Whether there is anything to measure: else every search is exact."""
        counts = self._rows.counts
        return counts.graph_rows > 0 or counts.lists > 0

    def find(self, k: int, recall_target: float, control: Control | None = None) -> Effort:
        """The same, found out where it is not known yet.

        Raises:
            NativeCancelled: `control` asked for it.
            IndexStateError: memory or threads could not be had.
        """
        while (effort := self.known(k, recall_target)) is None:
            counts = self._rows.counts
            if counts.graph_rows and self.calibration is None:
                self._gate.alone(self._calibrate, control, only_missing=True)
            if counts.historical and self._missed_by_code is None:
                self._gate.alone(self._measure_codes, control)
            self._gate.within(self._find, k, recall_target)
        return effort

    def _measure_codes(self, control: Control | None) -> None:
        native = self._rows.native
        if native is not None and self._rows.counts.historical:
            self._missed_by_code = missed_by_code(native, native.historical(), control)

    def _find(self, k: int, recall_target: float) -> None:
        """What each side takes; each row that is looked for is on one of them."""
        efforts = self._efforts  # once: what is found out here must not outlive a change
        calibration, counts, native = self.calibration, self._rows.counts, self._rows.native
        ef: int | None = 0
        exact, nprobe = False, 0
        lost = self._missed_by_code
        if native is None or (counts.graph_rows and calibration is None) or (counts.historical and lost is None):
            return  # a change came between
        if counts.graph_rows and calibration is not None:
            ef = calibration.ef_for(k, recall_target, _recent(counts))
            exact = ef is None
        if counts.historical and lost is not None:
            # The table is of the lists alone: what the codes lose is not theirs to miss.
            recall = recall_target + lost
            nprobe = native.probes(k, min(recall, 1.0))
            exact = exact or recall > _LISTS_RECALL_MOST
        if len(efforts) >= _EFFORTS_MAX:
            efforts.clear()
        efforts[k, recall_target] = (0, True, 0) if exact else (ef or 0, False, nprobe)

    @property
    def points(self) -> tuple[CalibrationPoint, ...]:
        """What some recalls take, as far as it is known and matters."""
        calibration, counts = self.calibration, self._rows.counts
        return () if calibration is None or not counts.graph_rows else calibration.points(_recent(counts))


def _recent(counts: NativeStats) -> int:
    """Live rows with a vector that are on no list."""
    return counts.live - counts.historical - counts.bare

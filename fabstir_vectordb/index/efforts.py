"""What searches take on an index's own rows: candidates of the walk, lists to look at, or a scan of every row.

Two questions are asked of the rows. What does a recall target take? And does the default find what it should? Codes and
graphs that serve sentence embeddings can fail on other data, and no answer shows it. Where a sample of the rows says
that the default would find less than 0.95 of the nearest, it takes more candidates, or scores every row. Each is asked
for a few neighbours and for many, since a graph that finds the ten nearest may lose the hundred nearest.

Measured behind a change, under the lock of changes but with an even generation: reads go on beside it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.handle import EF_DEFAULT_MIN, Control, NativeCancelled, NativeIndex, NativeStats
from fabstir_vectordb.calibration import KS, Asked, Calibration, ask, calibrate, missed_by_code, sample_size
from fabstir_vectordb.config import Metric
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import IndexStateError
from fabstir_vectordb.index.gate import Gate, IndexClosed
from fabstir_vectordb.metadata.expiry import Expiries
from fabstir_vectordb.metadata.filter_eval import are_in, bitmap_of
from fabstir_vectordb.params import SearchRequest
from fabstir_vectordb.types import CalibrationPoint, DefaultSearch

__all__ = ["Effort", "Efforts", "MeasuredRows", "Verdict"]

#: Recall on the sample below which the default is not left to itself, up to so many rows: searches are to find 0.95.
#: Queries can be harder than rows and strangers, by 0.03 on small indexes, where more candidates cost little. Sentence
#: embeddings have 0.985 (20,000 rows) and 0.97 (100,000).
_SAMPLE_RECALL_MIN: Final = ((32_768, 0.975), (2**63, 0.96))
#: What the replacement of the default aims at. Aiming at 0.98 had 0.949 of queries on rows of zeros and ones under l2.
_REPLACEMENT_TARGET: Final = 0.99
#: Candidates of the default for up to KS[0] rows where half of them miss nothing of the sample, from the most on.
#: Queries are harder than the sample: where 24 candidates missed nothing of it, they missed 0.004 of 2,000 queries on
#: tight clusters, and 48 missed 0.0002. Half as many rows again may come until it is measured anew, which takes 1.4
#: times the candidates.
_FEWER: Final = (48, 32, 24, 16)
#: Multiples of the lists that training says a recall takes, tried in turn where the default falls short: rows may have
#: come, gone or changed since, and the table of training is a mean.
_WIDENINGS: Final = (1, 2, 4, 8)
#: Rows and strangers that are asked for: of 0.95, 48 x 10 neighbours tell 0.97 apart.
_JUDGING_SAMPLE: Final = 48
#: Rows and strangers that are asked for before few rows are scanned, where the walk with the most candidates missed no
#: more than this share: one row of 54 that nothing finds makes up half of it, though there may be one in 400.
_SECOND_SAMPLE: Final = 216
_MISSED_BY_CHANCE: Final = 0.05
#: Candidates of which a walk may miss this share at most: else it is found out, for a search that names as many,
#: whether more of them help at all.
_WIDE_EF: Final = 256
_WIDE_MISSED_MAX: Final = 0.004
#: Share of the rows there were at the last measuring that may come until the next.
_DUE_SHARE: Final = 0.5

#: Pairs of k and recall target that are remembered: a program uses a few.
_EFFORTS_MAX: Final = 1_000
#: The last recall of the table of lists.
_LISTS_RECALL_MOST: Final = 0.999
#: ef_search, exact and nprobe.
Effort = tuple[int, bool, int]
_EXACT: Final[Effort] = (0, True, 0)


@dataclass(frozen=True, slots=True)
class Finding:
    """How the default stands for one number of neighbours.

    Attributes:
        suffices: it finds enough as it is.
        fewer: of _FEWER, the candidates that find enough, too, of all rows, as long as these are as they were measured;
            0 where it takes all that it has.
        exact: nothing less than a scan of every row finds enough.
        widening: one of _WIDENINGS, with which it finds enough otherwise.
    """

    suffices: bool
    fewer: int = 0
    exact: bool = False
    widening: int = 1


@dataclass(frozen=True, slots=True)
class Verdict:
    """How the default stands on the index's own rows.

    Attributes:
        few, many: for as many neighbours as the first and the last of KS.
        misses_widely: even searches with many candidates miss rows, or every row is scored anyway, so there may be a
            number from which on more candidates find no more.
    """

    few: Finding
    many: Finding
    misses_widely: bool = False

    def of(self, k: int) -> Finding:
        """How it stands for k neighbours; between the two numbers that were asked for, what both need."""
        if k <= KS[0]:
            return self.few
        if k >= KS[-1]:
            return self.many
        few, many = self.few, self.many
        return Finding(
            few.suffices and many.suffices,
            exact=few.exact or many.exact,
            widening=max(few.widening, many.widening),
        )


_FINE: Final = Verdict(Finding(True), Finding(True))
_SCANS: Final = Finding(False, exact=True)


class MeasuredRows(Protocol):
    """The rows that are measured."""

    @property
    def native(self) -> NativeIndex | None: ...
    @property
    def counts(self) -> NativeStats: ...
    @property
    def metric(self) -> Metric: ...
    @property
    def expiries(self) -> Expiries: ...
    def are_vectorless(self, slots: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]: ...
    def slots_with_vector(self) -> npt.NDArray[np.uint32]: ...


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
        # The memory setting under which it was measured: walks of another one take other candidates.
        self._memory = rows.counts.memory
        self.verdict: Verdict | None = _FINE
        """How the default stands; None where that is still to be measured."""

    # ---- what happened to the rows

    def loaded(self) -> None:
        """The rows came from a version."""
        self._rows_then, self._memory = self._rows.counts.live, self._rows.counts.memory
        self.verdict = None if self._is_measured else _FINE

    def added(self, count: int) -> None:
        """Rows were added."""
        self._rows_since += count

    def changed(self) -> None:
        """The rows, or their sides, changed: efforts are found out anew. Called after the new counts are there."""
        self._efforts = {}
        if self._rows.counts.memory != self._memory:
            self._memory = self._rows.counts.memory
            self.calibration = None
            self._rows_since = max(self._rows_since, self._rows_then)  # it is due
        if not self._is_measured:
            self.verdict = _FINE
            self._rows_then = self._rows_since = 0
        elif self._rows_then == 0:
            self.verdict = None  # the first graph

    def trained(self) -> None:
        """Lists were trained: what their codes lose, and how the default stands, is measured anew."""
        self._missed_by_code = None
        self.verdict = None

    # ---- measuring

    @property
    def is_due(self) -> bool:
        """Whether half as many rows have come as there were when it was measured, or a vacuum took half of them."""
        counts = self._rows.counts
        grown = self._rows_since >= _DUE_SHARE * self._rows_then
        return self._is_measured and (grown or 2 * counts.rows < self._rows_then)

    def calibrate_where_due(self, control: Control | None) -> None:
        """Measures anew where that is due; best effort, as no change depends on it.

        What is known goes on to be used meanwhile. Where this fails, the first search that asks measures.
        """
        with suppress(NativeCancelled, IndexStateError, IndexClosed, MemoryError):
            if self.is_due:
                try:
                    self._gate.alone(self._measure, control)
                except BaseException:
                    self.verdict = None
                    self._rows_then = 0  # due again
                    raise

    def _measure(self, control: Control | None) -> None:
        """All of it. Where every row is in the graph, what it is asked for serves both questions."""
        counts = self._rows.counts
        asked = self._ask(None, sample_size(_recent(counts)), control)
        self._calibrate(asked if not counts.historical else self._ask_recent(control))
        self._judge(asked, control)

    def _ask(self, of: npt.NDArray[np.uint64] | None, n: int, control: Control | None) -> Asked | None:
        """Asks for rows that have a vector, or for those of them in a bitmap."""
        rows, counts = self._rows, self._rows.counts
        native = rows.native
        if native is None or not self._is_measured:
            return None
        slots = rows.slots_with_vector()
        if of is not None:
            slots = slots[are_in(of, slots)]
        allow = None if len(slots) == counts.live else bitmap_of(slots, counts.rows)
        return ask(native, rows.metric, slots, n, allow, control)

    def _ask_recent(self, control: Control | None) -> Asked | None:
        """Asks for rows of the graph: how many lists the others take was measured when they were trained."""
        counts, native = self._rows.counts, self._rows.native
        recent = ~native.historical() if native is not None and counts.historical else None
        return self._ask(recent, sample_size(_recent(counts)), control)

    def _calibrate(self, asked: Asked | None) -> None:
        if self._rows.counts.graph_rows:
            self.calibration = calibrate(asked, _recent(self._rows.counts))
            self._efforts = {}  # after the calibration, from which new ones come

    def _judge(self, asked: Asked | None, control: Control | None) -> None:
        """How the default stands, and what is to take its place where it falls short."""
        live = self._rows.counts.live
        self._rows_then, self._rows_since = live, 0
        if asked is None:
            self.verdict = _FINE
            return
        missed = 1.0 - next(recall for most, recall in _SAMPLE_RECALL_MIN if live <= most)
        few, many = (self._judge_for(k, asked, missed, control) for k in KS)
        if few.exact and self._may_be_chance:
            more = self._ask(None, _SECOND_SAMPLE, control)
            if more is not None:
                asked = more
                self._calibrate(asked)
                few, many = (self._judge_for(k, asked, missed, control) for k in KS)
        misses_widely = few.exact or many.exact or (asked.missed(KS[0], _WIDE_EF) or 0.0) > _WIDE_MISSED_MAX
        self.verdict = Verdict(few, many, misses_widely)
        self._efforts = {}  # they look at as many lists as it says

    def _judge_for(self, k: int, asked: Asked, missed: float, control: Control | None) -> Finding:
        """How the default stands for k neighbours; and where it falls short, whether more candidates do."""
        bound = asked.missed(k, 0)
        if bound is None or bound <= missed:
            # What scans does so because the default has as many candidates as it has.
            walks = bound is not None and self._is_as_measured
            return Finding(True, fewer=_fewer(asked) if walks and k == KS[0] else 0)
        self._prepare(control)
        for widening in _WIDENINGS:
            effort = _at_least_default(k, self._measured(k, _REPLACEMENT_TARGET, widening) or _EXACT)
            if effort == _EXACT:
                return _SCANS
            if _finds_enough(asked, k, effort, missed):
                return Finding(False, widening=widening)
            if not effort[2]:  # no lists: no wider search is tried
                return _SCANS
        return _SCANS

    @property
    def _is_as_measured(self) -> bool:
        """Whether all rows are in the graph, and none was deleted since they were measured, or can expire.

        Of tight clusters under dot 16 candidates find all, and 0.83 once three quarters of the rows are tombstones.
        Expired rows are left out as by a filter.
        """
        counts = self._rows.counts
        return not counts.historical and counts.rows == counts.live >= self._rows_then and self._rows.expiries.is_empty

    @property
    def _may_be_chance(self) -> bool:
        """Whether so few of the nearest were missed that a sample of usual size says too little of walks."""
        curves = () if self.calibration is None or self._rows.counts.historical else self.calibration.curves
        return bool(curves) and curves[0].k == KS[0] and curves[0].missed[-1] <= _MISSED_BY_CHANCE

    def _ceiling(self, exact: bool) -> int | None:
        """Candidates from which on more do not help: of the graph as measured, of lists as assumed.

        Where the default scores every row, more candidates than it would have had must not find less.
        """
        curves = () if self.calibration is None else self.calibration.curves
        of_graph = curves[0].ceiling if curves else None
        return _WIDE_EF if of_graph is None and (exact or not curves) else of_graph

    @property
    def _is_prepared(self) -> bool:
        counts = self._rows.counts
        has_graph = not counts.graph_rows or self.calibration is not None
        return has_graph and (not counts.historical or self._missed_by_code is not None)

    def _prepare(self, control: Control | None) -> None:
        """Measures what `_find` needs and does not have yet."""
        counts = self._rows.counts
        if counts.graph_rows and self.calibration is None:
            self._calibrate(self._ask_recent(control))
        if counts.historical and self._missed_by_code is None:
            self._measure_codes(control)

    def known_request(self, request: SearchRequest) -> SearchRequest | None:
        """A search with what it takes filled in; None where that is still to be found out."""
        verdict = self.verdict
        if request.recall_target is not None:
            effort = self.known(request.k, request.recall_target)
        elif request.exact:
            return request
        elif verdict is None:
            effort = None
        elif request.ef_search or request.nprobe:
            return self._raised(request, verdict)
        elif (finding := verdict.of(request.k)).suffices:
            fewer = finding.fewer if request.where is None and self._is_as_measured else 0
            return request._replace(ef_search=fewer) if fewer else request
        else:
            effort = _EXACT if finding.exact else self.known(request.k, _REPLACEMENT_TARGET)
            effort = effort and _at_least_default(request.k, effort)
        return None if effort is None else _with(request, effort)

    def _raised(self, request: SearchRequest, verdict: Verdict) -> SearchRequest | None:
        """A search that names its candidates: a scan where it names many, and more of them do not help."""
        if request.ef_search < _WIDE_EF or not verdict.misses_widely:
            return request
        if not self._is_prepared:
            return None
        ceiling = self._ceiling(verdict.of(request.k).exact)
        return _with(request, _EXACT) if ceiling is not None and request.ef_search >= ceiling else request

    def find_request(self, request: SearchRequest, control: Control | None = None) -> SearchRequest:
        """The same, found out where it is not known yet.

        Raises:
            NativeCancelled: `control` asked for it.
            IndexStateError: memory or threads could not be had.
        """
        while (found := self.known_request(request)) is None:
            if request.recall_target is not None:
                self.find(request.k, request.recall_target, control)
            elif self.verdict is None:
                self._gate.alone(self._judge_where_missing, control)
            elif request.ef_search or request.nprobe:
                self._gate.alone(self._prepare, control)
            else:
                self.find(request.k, _REPLACEMENT_TARGET, control)
        return found

    def find_request_for(self, n: int, request: SearchRequest, control: Control | None = None) -> SearchRequest:
        """`find_request` for a search that gives n rows, whatever the k of the request. Raises as `find_request`."""
        return self.find_request(request._replace(k=n), control)._replace(k=request.k)

    def default(self, k: int, recall_target: float | None, control: Control | None = None) -> Effort:
        """ef_search, exact and nprobe of a search that names none of them. Raises as `find_request`."""
        request = SearchRequest(np.empty(0, dtype=np.float32), k, recall_target=recall_target)
        found = self.find_request(request, control)
        return found.ef_search, found.exact, found.nprobe

    @property
    def default_search(self) -> DefaultSearch:
        """What a search for few rows takes that names no setting, in a word."""
        if self.verdict is None:
            return "unknown"
        few = self.verdict.few
        return "usual" if few.suffices else "exact" if few.exact else "wider"

    def _judge_where_missing(self, control: Control | None) -> None:
        # A search waits for this: fewer rows than an add asks for.
        if self.verdict is None:
            self._judge(self._ask(None, _JUDGING_SAMPLE, control), control)

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
            if not self._is_prepared:  # else no lock is taken: searches go on beside a measuring
                self._gate.alone(self._prepare, control)
            self._gate.within(self._find, k, recall_target)
        return effort

    def _measure_codes(self, control: Control | None) -> None:
        native = self._rows.native
        if native is not None and self._rows.counts.historical:
            self._missed_by_code = missed_by_code(native, native.historical(), control)

    def _find(self, k: int, recall_target: float) -> Effort | None:
        """What a recall takes, remembered; None where a change came between."""
        efforts = self._efforts  # once: what is found out here must not outlive a change
        widening = 1 if self.verdict is None else self.verdict.of(k).widening
        effort = self._measured(k, recall_target, widening)
        if effort is not None:
            if len(efforts) >= _EFFORTS_MAX:
                efforts.clear()
            efforts[k, recall_target] = effort
        return effort

    def _measured(self, k: int, recall_target: float, widening: int) -> Effort | None:
        """What each side takes; each row that is looked for is on one of them."""
        calibration, counts, native = self.calibration, self._rows.counts, self._rows.native
        ef: int | None = 0
        exact, nprobe = False, 0
        lost = self._missed_by_code
        if native is None or not self._is_prepared:
            return None
        if counts.graph_rows and calibration is not None:
            ef = calibration.ef_for(k, recall_target, _recent(counts))
            exact = ef is None
        if counts.historical and lost is not None:
            # The table is of the lists alone: what the codes lose is not theirs to miss.
            recall = recall_target + lost
            nprobe = min(widening * native.probes(k, min(recall, 1.0)), counts.lists)
            exact = exact or recall > _LISTS_RECALL_MOST
        return _EXACT if exact else (ef or 0, False, nprobe)

    @property
    def points(self) -> tuple[CalibrationPoint, ...]:
        """What some recalls take, as far as it is known and matters."""
        calibration, counts = self.calibration, self._rows.counts
        return () if calibration is None or not counts.graph_rows else calibration.points(_recent(counts))


def _recent(counts: NativeStats) -> int:
    """Live rows with a vector that are on no list."""
    return counts.live - counts.historical - counts.vectorless


def _at_least_default(k: int, effort: Effort) -> Effort:
    """An effort with no fewer candidates than the default has."""
    ef_search, exact, nprobe = effort
    return effort if exact else (max(ef_search, EF_DEFAULT_MIN, k + k // 2), False, nprobe)


def _fewer(asked: Asked) -> int:
    """The fewest candidates of _FEWER of which half find all that was asked for; 0 for none."""
    fewest = 0
    for ef in _FEWER:
        if not asked.finds_all(KS[0], max(KS[0], ef // 2)):
            break
        fewest = ef
    return fewest


def _finds_enough(asked: Asked, k: int, effort: Effort, missed: float) -> bool:
    """Whether searches for k rows miss no larger share of the nearest."""
    ef_search, _, nprobe = effort
    bound = asked.missed(k, ef_search, nprobe)
    return bound is None or bound <= missed


def _with(request: SearchRequest, effort: Effort) -> SearchRequest:
    ef_search, exact, nprobe = effort
    return request._replace(ef_search=ef_search, exact=exact, nprobe=nprobe, recall_target=None)

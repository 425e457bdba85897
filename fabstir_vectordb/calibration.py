"""How many candidates a walk needs for a recall that is asked for, measured on the index's own rows.

A sample of rows is asked for, whose true neighbours an exact scan knows, in two ways. Neither is a query from outside:

- *left out*: the row itself, which its answer must not hold. What coding loses of it is what it loses of a query from
  outside, but the walk is easier: the row is in the graph and leads to its neighbours.
- *stranger*: a + b - x for a row x and two of its nearest, a and b. It is as far from a as b is from x, so it lies
  where rows lie, and nothing of the graph leads there. Where clusters are narrow, coding loses less of it.

Each is easier in a way in which the other is not, so the worse of the two counts (docs/decisions/0011-recall-target.md
has the measurements, also of other strangers). Nothing of it is stored: a loaded index is measured again.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.handle import EF_MAX, Control, NativeIndex, SearchHits
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.metadata.filter_eval import are_in
from fabstir_vectordb.types import CalibrationPoint

__all__ = ["KS", "Asked", "Calibration", "Curve", "ask", "calibrate", "missed_by_code", "sample_size"]

#: The k that are measured. A smaller one takes what the first takes: the nearest row is found more easily than the ten
#: nearest on average. Between them ef is interpolated, beyond the last it grows in proportion to k.
KS: Final = (10, 100)
#: Recalls that `Calibration.points` shows.
RECALLS: Final = (0.9, 0.95, 0.99)

# Rows that are asked for, as many as an add pays for with a few per cent of its time: SCALE x the root of the rows.
_SAMPLE_SCALE: Final = 0.5
_SAMPLE_LEAST: Final = 48
_SAMPLE_MOST: Final = 128
# One in so many of them is asked for with the last of KS: it tells of ten times as many neighbours, and its exact scan
# takes four times as long.
_SHARE_OF_LAST_K: Final = 3
# The neighbours among which a stranger's are chosen.
_NEAR: Final = 32
# The ladder of ef: its step, and where it ends: a walk takes about as long as a scan, so few are missed that a sample
# says no more, or two steps have helped by less than a tenth (codes can lose rows that no candidates bring back).
_STEP: Final = 1.7
_ROWS_PER_EF: Final = 40
_MISSED_LEAST: Final = 0.001
_MISSED_FEW: Final = 0.002
_STANDSTILL: Final = 0.9
# Rows may double until the next calibration, and ef grows with a power of them: 0 to 0.8 measured over smaller adds,
# which link less well than one that doubles the rows (0012). Nearer to the worst: a target is to be met.
_GROWTH: Final = 0.75
_SEED: Final = 20_261_123

Float32Array = npt.NDArray[np.float32]
UInt32Array = npt.NDArray[np.uint32]
UInt64Array = npt.NDArray[np.uint64]
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Curve:
    """Upper bounds of the share of the k nearest rows that a walk misses.

    Attributes:
        k: rows asked for.
        efs: candidates, ascending.
        missed: the bounds, descending; as many.
    """

    k: int
    efs: tuple[int, ...]
    missed: tuple[float, ...]

    @property
    def ceiling(self) -> int | None:
        """The ef from which on more candidates are not known to help, though some rows are missed; None for none."""
        return self.efs[-1] if self.missed[-1] > _MISSED_FEW else None

    def ef_for(self, missed: float) -> float:
        """The least ef that misses no more, infinite where none is known.

        Between two that were measured on a line between logarithms: misses fall about like a power of ef.
        """
        if missed < self.missed[-1]:
            return math.inf
        return float(np.exp(np.interp(math.log(missed), np.log(self.missed[::-1]), np.log(self.efs[::-1]))))


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured of an index.

    Attributes:
        rows: live rows at that time.
        curves: by k of KS, those at which searches walk.
    """

    rows: int
    curves: tuple[Curve, ...]

    def ef_for(self, k: int, recall_target: float, rows: int) -> int | None:
        """The least ef_search whose expected recall of the k nearest is the target.

        Args:
            k: 1 to K_MAX.
            recall_target: above 0, at most 1.
            rows: live rows now.

        Returns:
            It, or None where no walk is known to reach the target: an exact search does.
        """
        if not self.curves:
            return None
        missed, low, high = 1.0 - recall_target, self.curves[0], self.curves[-1]
        if k <= low.k:
            ef = low.ef_for(missed)
        elif k < high.k:
            part = math.log(k / low.k) / math.log(high.k / low.k)
            ef = low.ef_for(missed) ** (1.0 - part) * high.ef_for(missed) ** part
        else:
            ef = high.ef_for(missed) * k / high.k
        ef *= max(1.0, rows / self.rows) ** _GROWTH
        # Less a trifle, which logarithms add to a whole number.
        return max(k, math.ceil(ef - 1e-6)) if ef <= EF_MAX else None

    def points(self, rows: int) -> tuple[CalibrationPoint, ...]:
        """What the recalls of RECALLS take, with so many live rows now."""
        return tuple(
            CalibrationPoint(k=curve.k, recall=recall, ef_search=self.ef_for(curve.k, recall, rows))
            for curve in self.curves
            for recall in RECALLS
        )


# ---- Measuring ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Queries:
    """Queries, and how far their nearest rows are.

    Attributes:
        vectors: (n, dim).
        own: the slot of each query's row, which is no answer to it; None for strangers.
        reaches: by k, the distances of the k-th nearest rows of the first queries, (at most n,).
    """

    vectors: Float32Array
    own: UInt32Array | None
    reaches: dict[int, Float64Array]


@dataclass(frozen=True, slots=True)
class Asked:
    """An index and what it is asked, in both ways.

    Attributes:
        native: the index; nobody changes it meanwhile.
        allow: bitmap of the rows that are looked for; None for all.
        queries: those of each way.
        control: cancellation.
    """

    native: NativeIndex
    allow: UInt64Array | None
    queries: tuple[_Queries, ...]
    control: Control | None

    def missed(self, k: int, ef: int, nprobe: int = 0) -> float | None:
        """An upper bound of the share of the k nearest that a search misses; None where all of them scan.

        Raises:
            NativeCancelled, IndexStateError: as `ask`.
        """
        bounds = []
        for queries in self.queries:
            shares = self._missed(queries, k, ef, nprobe)
            if shares is None:
                return None
            # One standard error above the mean; by Laplace's rule of succession one more of all rows asked for is
            # missed, since that none was does not mean that none will be.
            n = len(shares)
            bounds.append(float(shares.mean() + shares.std() / math.sqrt(n) + 1.0 / (n * k)))
        return max(bounds)

    def finds_all(self, k: int, ef: int) -> bool:
        """Whether walks with so many candidates miss none of the k nearest of any query; false where one scans.

        Raises:
            NativeCancelled, IndexStateError: as `ask`.
        """
        missed = (self._missed(queries, k, ef, 0) for queries in self.queries)
        return all(shares is not None and not shares.any() for shares in missed)

    def _missed(self, queries: _Queries, k: int, ef: int, nprobe: int) -> Float64Array | None:
        """The share of the k nearest of each query that a search misses; None where all of them scan."""
        reach = queries.reaches[k]
        n, own = len(reach), queries.own
        hits = self.native.search(
            queries.vectors[:n],
            k + (own is not None),
            ef_search=ef,
            nprobe=nprobe,
            allow=self.allow,
            with_ids=False,
            control=self.control,
        )
        if not hits.plans.any():
            return None
        # By distance: of rows that are equally far any will do.
        found = _others(hits, None if own is None else own[:n], k)[1]
        shares: Float64Array = (found > reach[:, None]).mean(axis=1)
        return shares


def sample_size(live: int) -> int:
    """How many rows an index of so many live ones is asked for where its graph is measured."""
    return min(max(_SAMPLE_LEAST, round(_SAMPLE_SCALE * math.sqrt(live))), _SAMPLE_MOST)


def ask(
    native: NativeIndex,
    metric: str,
    slots: UInt32Array,
    n: int,
    allow: UInt64Array | None = None,
    control: Control | None = None,
) -> Asked | None:
    """Asks an index for rows of its own, and for strangers between them; the same for equal indexes.

    Args:
        native: the index; nobody changes it meanwhile.
        metric: its metric.
        slots: rows to choose from.
        n: how many are chosen, at most.
        allow: bitmap of `slots`, where searches could return other rows.
        control: cancellation.

    Returns:
        It; None where no row has more than ``KS[-1]`` others.

    Raises:
        NativeCancelled: `control` asked for it.
        IndexStateError: memory or threads could not be had.
    """
    first_k, last_k = KS
    if len(slots) <= last_k + 1:
        return None
    rng = np.random.default_rng(_SEED)
    chosen = slots[rng.choice(len(slots), min(n, len(slots)), replace=False)]
    head = -(-len(chosen) // _SHARE_OF_LAST_K)

    def exact(queries: Float32Array, k: int) -> SearchHits:
        return native.search(queries, k, exact=True, allow=allow, with_ids=False, control=control)

    rows = native.get_vectors(chosen)
    near, distances = _others(exact(rows, _NEAR + 1), chosen, _NEAR)
    far = _others(exact(rows[:head], last_k + 1), chosen[:head], last_k)[1]
    strangers = _strangers(native, metric, rows, near, rng)
    strangers_near = exact(strangers, first_k).distances
    strangers_far = exact(strangers[:head], last_k).distances
    queries = (
        _Queries(rows, chosen, {first_k: distances[:, first_k - 1], last_k: far[:, -1]}),
        _Queries(strangers, None, {first_k: strangers_near[:, -1], last_k: strangers_far[:, -1]}),
    )
    return Asked(native, allow, queries, control)


def calibrate(asked: Asked | None, live: int) -> Calibration:
    """Measures the graph of an index; the same for equal indexes.

    Args:
        asked: the index, asked for `sample_size` rows of the graph; None where they are too few to measure.
        live: live rows of the graph.

    Raises:
        NativeCancelled, IndexStateError: as `ask`.
    """
    if asked is None:
        return Calibration(live, ())
    curves = (_curve(asked, k, live / _ROWS_PER_EF) for k in KS)
    return Calibration(live, tuple(curve for curve in curves if curve.efs))


def missed_by_code(native: NativeIndex, allow: UInt64Array, control: Control | None = None) -> float:
    """An upper bound of the share of the nearest rows on lists that their codes lose, however many lists are looked at.

    Half of the lists hold all of the nearest; what a search of those misses, the codes put too far away. Rows are asked
    for, left out themselves.

    Args:
        native: the index; nobody changes it meanwhile.
        allow: bitmap of the rows on lists.
        control: cancellation.

    Raises:
        NativeCancelled, IndexStateError: as `ask`.
    """
    k = KS[0]
    stats = native.stats()
    slots = native.live_slots(0, stats.live)
    slots = slots[are_in(allow, slots)]
    if len(slots) <= k:
        return 0.0
    n = min(len(slots), _SAMPLE_MOST)
    slots = slots[np.random.default_rng(_SEED).choice(len(slots), n, replace=False)]
    rows = native.get_vectors(slots)
    truth = native.search(rows, k + 1, exact=True, allow=allow, with_ids=False, control=control)
    reach = _others(truth, slots, k)[1][:, -1]
    asked = Asked(native, allow, (_Queries(rows, slots, {k: reach}),), control)
    return asked.missed(k, 0, nprobe=max(1, stats.lists // 2)) or 0.0


def _others(hits: SearchHits, own: UInt32Array | None, most: int) -> tuple[UInt32Array, Float64Array]:
    """The nearest `most` slots and distances, without each query's own row."""
    if own is None:
        return hits.slots, hits.distances
    stays = hits.slots != own[:, None]
    stays[stays.all(axis=1), -1] = False  # its own row was not found: without the last, then
    return hits.slots[stays].reshape(len(own), most), hits.distances[stays].reshape(len(own), most)


def _strangers(
    native: NativeIndex, metric: str, rows: Float32Array, near: UInt32Array, rng: np.random.Generator
) -> Float32Array:
    """a + b - x for each row x, a and b two of the rows near it."""
    number = np.arange(len(rows))
    first = rng.integers(_NEAR, size=len(rows))
    second = (first + rng.integers(1, _NEAR, size=len(rows))) % _NEAR
    x, a, b = (
        _comparable(metric, vectors)
        for vectors in (rows, native.get_vectors(near[number, first]), native.get_vectors(near[number, second]))
    )
    with np.errstate(over="ignore"):
        out = (a + b - x).astype(np.float32)
    # What no query may be: past the range of float32, or zero. The row is asked for once more instead.
    bad = ~np.isfinite(out).all(axis=1) | ~out.any(axis=1)
    out[bad] = rows[bad]
    return out


def _comparable(metric: str, vectors: Float32Array) -> Float64Array:
    """Rows as the metric sees them: under cosine their length says nothing."""
    wide = vectors.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True) if metric == "cosine" else wide


def _curve(asked: Asked, k: int, ef_most: float) -> Curve:
    efs: list[int] = []
    missed: list[float] = []
    step, last = float(k), min(ef_most, EF_MAX)
    while step <= last:
        share = asked.missed(k, round(step))
        if share is None:
            break
        efs.append(round(step))
        # More candidates find no fewer: what says otherwise is chance.
        missed.append(min([*missed[-1:], share]))
        if missed[-1] <= _MISSED_LEAST or (len(missed) > 2 and missed[-1] > _STANDSTILL * missed[-3]):
            break
        if round(step) >= math.floor(last):
            break
        step = min(step * _STEP, last)
    return Curve(k, tuple(efs), tuple(missed))

"""The arithmetic of calibrations, and measuring rows that are no points in general position."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fabstir_vectordb._native.handle import EF_MAX, Control, NativeCancelled, NativeIndex, pack_ids
from fabstir_vectordb.calibration import Calibration, Curve, ask, calibrate, sample_size

TEN = Curve(10, (10, 20, 40), (0.2, 0.1, 0.05))
HUNDRED = Curve(100, (100, 200, 400), (0.08, 0.04, 0.02))
BOTH = Calibration(1_000_000, (TEN, HUNDRED))


def filled(rows: np.ndarray, metric: str, memory: str = "default") -> NativeIndex:
    index = NativeIndex(rows.shape[1], metric, memory, 8, 40, 2)
    index.add(rows.astype(np.float32), *pack_ids([str(row) for row in range(len(rows))]), np.zeros(len(rows), np.int64))
    return index


def delete(index: NativeIndex, names: list[str]) -> None:
    index.delete(*pack_ids(names), missing_ok=False)


def ef(calibration: Calibration, k: int, recall: float, rows: int = 1_000_000) -> int | None:
    return calibration.ef_for(k, recall, rows)


def measured(index: NativeIndex, metric: str, control: Control | None = None) -> Calibration:
    live = index.stats().live
    return calibrate(ask(index, metric, index.live_slots(0, live), sample_size(live), None, control), live)


def test_ef_lies_between_what_was_measured_where_misses_fall_as_a_power_of_it() -> None:
    assert [ef(BOTH, 10, recall) for recall in (0.1, 0.8, 0.9, 0.95)] == [10, 10, 20, 40]
    # Half as many for twice the candidates: at half of that on the way, the root of two times as many.
    assert ef(BOTH, 10, 1 - 0.1 / math.sqrt(2)) == math.ceil(20 * math.sqrt(2))
    assert [ef(BOTH, 10, recall) for recall in (0.951, 0.999, 1.0)] == [None] * 3


def test_ef_grows_with_k_between_curves_and_beyond_them() -> None:
    assert [ef(BOTH, k, 0.92) for k in (1, 5, 10)] == [ef(BOTH, 10, 0.92)] * 3
    between = [ef(BOTH, k, 0.92) or 0 for k in range(10, 101)]
    assert between == sorted(between)
    assert (between[0], between[-1]) == (ef(BOTH, 10, 0.92), 100)
    assert [ef(BOTH, k, 0.92) for k in (200, 10_000)] == [200, 10_000]
    assert ef(BOTH, 200, 0.96) == 400
    assert ef(BOTH, 10_000, 0.98) == 40_000
    # Where one of the two is known to be too little, nothing is known of what lies between.
    assert [ef(BOTH, k, 0.97) for k in (10, 50)] == [None, None]
    assert ef(BOTH, 100, 0.97) == math.ceil(200 * 2 ** (math.log(4 / 3) / math.log(2)))
    assert ef(Calibration(10, (TEN,)), 30, 0.8, 10) == 30
    assert ef(Calibration(10, (TEN,)), 30, 0.9, 10) == 60


def test_ef_grows_with_the_rows_and_ends_at_its_limit() -> None:
    assert ef(BOTH, 10, 0.9, 500_000) == 20
    assert ef(BOTH, 10, 0.9, 2_000_000) == math.ceil(20 * 2**0.75)
    assert ef(BOTH, 10_000, 0.98, 2_000_000) == math.ceil(40_000 * 2**0.75)
    assert ef(BOTH, 10_000, 0.98, 4_000_000) is None
    assert EF_MAX == 100_000


def test_nothing_measured_is_nothing_known() -> None:
    assert ef(Calibration(5, ()), 10, 0.5, 5) is None
    assert Calibration(5, ()).points(5) == ()


def test_points_are_what_is_taken() -> None:
    for rows in (1_000_000, 1_700_000):
        points = BOTH.points(rows)
        assert [(point.k, point.recall) for point in points] == [(k, r) for k in (10, 100) for r in (0.9, 0.95, 0.99)]
        assert [point.ef_search for point in points] == [ef(BOTH, point.k, point.recall, rows) for point in points]


@pytest.mark.parametrize("memory", ["default", "compact"])
@pytest.mark.parametrize("metric", ["cosine", "l2", "dot"])
def test_rows_of_every_kind_can_be_measured(metric: str, memory: str) -> None:
    rng = np.random.default_rng(20_261_123)
    points = rng.standard_normal((2_500, 8))
    kinds = {
        "in general position": points,
        "on a line": points[:, :1] * np.ones(8) + [1, 0, 0, 0, 0, 0, 0, 0],
        "equal": np.ones((2_500, 8)),
        "few, many times": points[rng.integers(20, size=2_500)],
        "near the end of float32": points * 3e37,
        "opposite": np.where(rng.random((2_500, 1)) < 0.5, 1, -1) * np.ones(8),
    }
    if metric != "cosine":
        kinds["zero, most of them"] = points * (rng.random((2_500, 1)) < 0.1)
    for kind, rows in kinds.items():
        index = filled(rows, metric, memory)
        found = measured(index, metric)
        assert found == measured(index, metric), kind
        for curve in found.curves:
            assert 0 < curve.missed[-1] <= curve.missed[0], kind
            assert list(curve.missed) == sorted(curve.missed, reverse=True), kind
        index.close()


def test_few_rows_among_tombstones_are_scanned_and_not_measured() -> None:
    rows = np.random.default_rng(3).standard_normal((2_000, 8))
    index = filled(rows, "l2")
    delete(index, [str(row) for row in range(1_850)])
    assert measured(index, "l2").curves == ()
    delete(index, [str(row) for row in range(1_850, 1_990)])
    assert measured(index, "l2").curves == ()
    index.close()


def test_measuring_can_be_cancelled() -> None:
    index = filled(np.random.default_rng(4).standard_normal((2_000, 8)), "l2")
    control = Control()
    control.cancel()
    with pytest.raises(NativeCancelled):
        measured(index, "l2", control)
    index.close()


def test_a_measured_ef_is_enough_for_queries_from_outside() -> None:
    rng = np.random.default_rng(20_261_123)
    centres = rng.standard_normal((50, 24))
    points = (centres[rng.integers(50, size=8_400)] + rng.standard_normal((8_400, 24))).astype(np.float32)
    base, queries = points[:8_000], points[8_000:]
    for memory in ("default", "compact"):
        index = filled(base, "l2", memory)
        found = measured(index, "l2")
        for k in (1, 10, 100):
            truth = index.search(queries, k, exact=True).distances[:, -1:]
            for recall in (0.9, 0.95, 0.99):
                candidates = found.ef_for(k, recall, len(base))
                hits = index.search(queries, k, ef_search=candidates or 0, exact=candidates is None)
                assert (hits.distances <= truth).mean() >= recall - 0.01, (memory, k, recall, candidates)
        # A walk is enough for most: else this would say nothing.
        assert found.ef_for(10, 0.95, len(base)) is not None
        index.close()

"""The index against exact, on its own rows; and the picture of it."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import anyio
import numpy as np
import pytest
from saving import session_on

from fabstir_vectordb import InvalidConfigError, InvalidInputError, RecallReport, SessionError, sync

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]

NOW = 1_700_000_000.0


def rows_of(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 24)).astype(np.float32)


async def measured(count: int, *, old: int = 0, **options: int) -> RecallReport:
    async with await session_on("memory:recall", clock=lambda: NOW, index_name=f"i{count}-{old}") as session:
        times = np.where(np.arange(count) < old, 1.0, NOW)
        await session.add_batch([str(row) for row in range(count)], rows_of(count), timestamps=times)
        if old:
            await session.optimize()
        return await session.recall(50, **options)


async def test_more_candidates_find_more_of_the_truth() -> None:
    report = await measured(3_000)
    assert (report.k, report.sample, report.rows) == (10, 50, 3_000)
    walks = [point for point in report.points if point.ef_search]
    assert [point.ef_search for point in walks] == sorted(point.ef_search or 0 for point in walks)
    assert walks[0].recall < walks[-1].recall
    assert walks[-1].recall > 0.99
    assert walks[0].recall <= report.default.recall
    exact = report.points[-1]
    assert (exact.exact, exact.recall, exact.ef_search, exact.nprobe) == (True, 1.0, None, None)
    for point in (*report.points, report.default):
        assert 0 < point.p50_us <= point.p99_us
        assert 0 < point.queries_per_s <= 2e6 / point.p50_us  # half of the searches took at least the median


async def test_the_default_is_what_the_session_aims_at() -> None:
    async with await session_on("memory:recall-target", recall_target=0.95) as session:
        await session.add_batch([str(row) for row in range(3_000)], rows_of(3_000))
        aimed = (await session.recall(100)).default
        assert aimed.ef_search is not None
        assert 0.9 < aimed.recall < 1
    async with await session_on("memory:recall-certain", recall_target=1.0) as session:
        await session.add_batch([str(row) for row in range(3_000)], rows_of(3_000))
        certain = (await session.recall(20)).default
        assert (certain.exact, certain.ef_search, certain.recall) == (True, None, 1.0)


async def test_lists_have_a_line_of_their_own() -> None:
    report = await measured(3_000, old=1_500)
    assert any(point.ef_search for point in report.points)
    probes = [point for point in report.points if point.nprobe]
    assert [point.nprobe for point in probes] == [1 << step for step in range(len(probes))]
    assert probes[-1].recall > probes[0].recall
    only_lists = await measured(2_000, old=2_000, k=5)
    assert only_lists.k == 5
    assert not [point for point in only_lists.points if point.ef_search]


@pytest.mark.parametrize("count", [0, 1, 2, 30])
async def test_few_rows_are_found_without_fail(count: int) -> None:
    report = await measured(count)
    assert report.default.recall == 1.0
    assert report.rows == count
    assert report.sample == (count if count > 1 else 0)
    assert report.k <= 10


async def test_it_is_the_same_each_time_and_knows_who_is_gone() -> None:
    async with await session_on("memory:recall-same", clock=lambda: NOW) as session:
        ids = [str(row) for row in range(2_000)]
        expires = [NOW - 1 if row % 4 == 0 else None for row in range(2_000)]
        await session.add_batch(ids, rows_of(2_000), expires_at=expires)
        await session.delete_by_metadata({"x": 1})
        await session.delete_vector("1")
        one, other = await session.recall(40), await session.recall(40)
        assert one.rows == await session.count() == 1_499
        shares = [[(p.ef_search, p.recall) for p in (r.default, *r.points)] for r in (one, other)]
        assert shares[0] == shares[1]


async def test_bad_arguments_and_cancellation() -> None:
    async with await session_on("memory:recall-bad") as session:
        await session.add_batch([str(row) for row in range(3_000)], rows_of(3_000))
        for wrong in (0, -1, 1.5, True, "9", 10_001):
            with pytest.raises(InvalidInputError, match="sample"):
                await session.recall(wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="k must"):
            await session.recall(k=1_001)
        with anyio.move_on_after(0.02) as scope:
            await session.recall(10_000)
        assert scope.cancelled_caught
        assert await session.count() == 3_000
    with pytest.raises(SessionError):
        await session.recall()


async def test_the_picture_shows_every_point(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` brings matplotlib")
    report = await measured(400, old=200)
    for suffix in (".svg", ".png"):
        report.plot(tmp_path / f"recall{suffix}")
        assert (tmp_path / f"recall{suffix}").stat().st_size > 1_000
    few = dataclasses.replace(report, points=report.points[-1:])
    few.plot(str(tmp_path / "few.svg"))
    assert "recall@10" in (tmp_path / "few.svg").read_text() or (tmp_path / "few.svg").stat().st_size > 1_000
    with pytest.raises(InvalidInputError, match=r"\.svg"):
        report.plot(tmp_path / "recall.txt")


async def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = await measured(30)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InvalidConfigError, match=r"drawing needs matplotlib: .* -m pip install .*matplotlib"):
        report.plot(tmp_path / "recall.svg")


def test_the_synchronous_twin_measures_too() -> None:
    with sync.VectorDBSession.create(s5_portal="memory:", user_seed_phrase="x", session_id="s") as session:
        session.add_batch(["a", "b", "c"], rows_of(3))
        assert session.recall(3, k=1).default.recall == 1.0

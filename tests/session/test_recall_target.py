"""A recall asked for by name: what it becomes, when the rows are measured, and that measuring changes nothing else."""

from __future__ import annotations

import threading
import uuid
from functools import partial
from typing import Any

import anyio
import pytest
from holding import turns, until
from saving import PHRASE, add_rows, content, rows, session_on

import fabstir_vectordb.index.efforts
from fabstir_vectordb import (
    IndexStateError,
    InvalidConfigError,
    InvalidInputError,
    SearchOptions,
    VectorDBSession,
    sync,
)
from fabstir_vectordb._native.handle import NativeCancelled
from fabstir_vectordb.calibration import Asked, Calibration, calibrate

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]

COUNT = 2500
"""Enough for a graph, whose calibration then takes milliseconds."""


class Measured:
    """Stands in place of `calibrate`: says when it was called, and on which thread; may be held, or fail.

    Attributes:
        live: live rows at each call.
        threads: the thread of each.
        fails: raised instead.
        inside: calls that are held.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.live: list[int] = []
        self.threads: list[int] = []
        self.fails: Exception | None = None
        self.inside = 0
        self._go = threading.Event()
        self._go.set()
        patch.setattr(fabstir_vectordb.index.efforts, "calibrate", self._calibrate)

    def hold(self) -> None:
        """Later calls wait for `let_go`, or for their cancellation."""
        self._go.clear()

    def let_go(self) -> None:
        """Lets them run."""
        self._go.set()

    def _calibrate(self, asked: Asked | None, live: int) -> Calibration:
        control = None if asked is None else asked.control
        self.live.append(live)
        self.threads.append(threading.get_ident())
        self.inside += 1
        while not self._go.wait(0.001):
            if control is not None and control.cancelled:
                break
        self.inside -= 1
        if self.fails is not None:
            raise self.fails
        return calibrate(asked, live)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    return Measured(monkeypatch)


async def table(session: VectorDBSession) -> dict[tuple[int, float], int | None]:
    points = (await session.get_stats()).recall_calibration
    return {(point.k, point.recall): point.ef_search for point in points}


# ---- what it becomes


async def test_a_target_takes_the_candidates_that_were_measured() -> None:
    base, queries = rows(12_000, 12), rows(5, 12, seed=4)
    async with await session_on("memory:", threads=2) as session:
        await session.add_batch([str(row) for row in range(len(base))], base)
        known = await table(session)
        assert set(known) == {(k, recall) for k in (10, 100) for recall in (0.9, 0.95, 0.99)}
        for k in (10, 100):
            taken = [known[k, recall] or 100_000 for recall in (0.9, 0.95, 0.99)]
            assert k <= taken[0] <= taken[1] <= taken[2]
        assert known[10, 0.9] is not None
        for (k, recall), ef in known.items():
            same: dict[str, Any] = {"exact": True} if ef is None else {"ef_search": ef}
            batch = await session.search_batch(queries, k, threshold=None, recall_target=recall)
            for query, many in zip(queries, batch, strict=True):
                options = SearchOptions(threshold=None, recall_target=recall)
                hits = await session.search(query, k, options)
                want = await session.search(query, k, threshold=None, **same)
                assert list(hits) == list(want) == list(many)
                assert hits.plan == want.plan == many.plan == ("flat" if ef is None else "graph")


async def test_all_of_the_nearest_are_found_by_a_scan() -> None:
    async with await session_on("memory:") as session:
        await add_rows(session, COUNT)
        assert (await session.search(rows(1)[0], 3, threshold=None)).plan == "graph"
        assert (await session.search(rows(1)[0], 3, threshold=None, recall_target=1)).plan == "flat"


async def test_a_call_wins_over_the_sessions_target(measured: Measured) -> None:
    query = rows(1, seed=3)[0]
    async with await session_on("memory:", recall_target=1.0) as session:
        await add_rows(session, COUNT)
        for fields, plan in [
            ({}, "flat"),
            ({"recall_target": None}, "flat"),
            ({"recall_target": 0.5}, "graph"),
            ({"ef_search": 12}, "graph"),
            ({"exact": True}, "flat"),
        ]:
            assert (await session.search(query, 3, threshold=None, **fields)).plan == plan, fields
            assert (await session.search_batch([query], 3, threshold=None, **fields))[0].plan == plan, fields
    async with await session_on("memory:", recall_target=0.5) as session:
        await add_rows(session, COUNT)
        assert (await session.search(query, 3, threshold=None)).plan == "graph"
        assert (await session.search(query, 3, threshold=None, exact=True)).plan == "flat"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"recall_target": 0.9, "ef_search": 10}, "give it or these"),
        ({"recall_target": 0.9, "exact": True}, "give it or these"),
        *(({"recall_target": bad}, "above 0, at most 1") for bad in (0, 1.01, -1, True, float("nan"), "0.9", [0.9])),
    ],
)
async def test_targets_that_make_no_sense_are_refused(fields: dict[str, Any], message: str) -> None:
    async with await session_on("memory:") as session:
        await add_rows(session, 3)
        with pytest.raises(InvalidInputError, match=message):
            await session.search(rows(1)[0], 1, **fields)
        with pytest.raises(InvalidInputError, match=message):
            await session.search_batch(rows(1), 1, **fields)
    if len(fields) == 1:
        with pytest.raises(InvalidConfigError, match=message) as caught:
            await session_on("memory:", **fields)
        assert caught.value.details["field"] == "recall_target"


def test_the_twin_takes_targets_too() -> None:
    with sync.VectorDBSession.create(
        s5_portal="memory:", user_seed_phrase=PHRASE, session_id="s", recall_target=0.9
    ) as session:
        session.add_batch([str(row) for row in range(COUNT)], rows(COUNT))
        assert session.get_stats().recall_calibration
        query = rows(1, seed=3)[0]
        assert session.search(query, 5, threshold=None).plan == "graph"
        assert session.search_batch([query], 5, threshold=None, recall_target=1.0)[0].plan == "flat"


# ---- when rows are measured


async def test_rows_are_measured_where_there_is_a_graph_and_again_when_half_as_many_came(measured: Measured) -> None:
    async with await session_on("memory:", threads=2) as session:
        await add_rows(session, 200)
        hits = await session.search(rows(1)[0], 3, recall_target=0.99)
        assert (hits.plan, measured.live, await table(session)) == ("flat", [], {})
        await add_rows(session, COUNT - 200, first=200)
        assert measured.live == [COUNT]
        assert await table(session)
        half = COUNT // 2
        await add_rows(session, half - 1, first=COUNT)
        assert measured.live == [COUNT]
        await add_rows(session, 1, first=COUNT + half - 1)
        assert measured.live == [COUNT, COUNT + half]
        # Rows in place of others are others, too.
        await add_rows(session, COUNT + half, on_conflict="replace")
        assert measured.live == [COUNT, COUNT + half, COUNT + half]
        await session.search(rows(1)[0], 3, recall_target=0.99)
        assert len(measured.live) == 3


async def test_rows_are_measured_again_when_a_vacuum_leaves_less_than_half(measured: Measured) -> None:
    async with await session_on("memory:", threads=2) as session:
        await add_rows(session, 3000)
        for first, left in ((0, 1600), (1400, 1300)):
            await session.delete([f"row-{row:06d}" for row in range(first, 3000 - left)])
            await session.vacuum()
            assert await session.count() == left
        assert measured.live == [3000, 1300]
        # Too few for a graph: every search is exact, and what was measured says nothing any more.
        await session.delete([f"row-{row:06d}" for row in range(1700, 2900)])
        await session.vacuum()
        assert await table(session) == {}
        assert (await session.search(rows(1)[0], 3, recall_target=0.9)).plan == "flat"
        assert measured.live == [3000, 1300]


async def test_a_loaded_index_is_measured_by_the_first_search_that_asks(measured: Measured) -> None:
    loop_thread = threading.get_ident()
    async with await session_on(f"memory:{uuid.uuid4()}") as session:
        await add_rows(session, COUNT)
        before = await table(session)
        cid = await session.save_to_s5()
        await session.load_user_vectors()
        await session.search(rows(1)[0], 3)
        await add_rows(session, 1, first=COUNT)
        await session.delete_vector(f"row-{COUNT:06d}")
        assert (len(measured.live), await table(session)) == (1, {})
        await session.load_user_vectors(discard_unsaved=True)
        await session.search(rows(1)[0], 3)
        measured.hold()
        plans: list[str] = []

        async def ask() -> None:
            plans.append((await session.search(rows(1)[0], 3, threshold=None, recall_target=0.9)).plan)

        async def ask_many() -> None:
            plans.append((await session.search_batch(rows(2), 3, threshold=None, recall_target=0.9))[0].plan)

        async with anyio.create_task_group() as group:
            for search in (ask, ask, ask_many):
                group.start_soon(search)
            await until(lambda: measured.inside == 1)
            # Who asks for no recall does not wait.
            assert (await session.search(rows(1)[0], 3, threshold=None)).plan == "graph"
            await turns()
            assert plans == []
            measured.let_go()
        assert plans == ["graph"] * 3
        assert len(measured.live) == 2
        assert loop_thread not in measured.threads
        # Measuring is no change, equal rows are measured alike, and no byte of it is saved.
        assert await table(session) == before
        assert not (await session.get_stats()).dirty
        assert await session.save_to_s5() == cid


async def test_searches_run_beside_the_measuring_of_an_add(measured: Measured) -> None:
    base = rows(2 * COUNT)
    async with await session_on("memory:") as session:
        await session.add_batch([str(row) for row in range(COUNT)], base[:COUNT])
        measured.hold()
        async with anyio.create_task_group() as group:
            group.start_soon(session.add_batch, [str(row) for row in range(COUNT, 2 * COUNT)], base[COUNT:])
            await until(lambda: measured.inside == 1)
            # The rows are in, and what was measured before still serves.
            for fields in ({}, {"recall_target": 0.9}):
                assert (await session.search(base[-1], 1, threshold=None, **fields))[0].id == str(2 * COUNT - 1)
            with anyio.fail_after(30):
                (row,) = await session.get([str(2 * COUNT - 1)])
                assert row is not None
                assert (await session.search_batch(base[-1:], 1, threshold=None))[0][0].id == row.id
            assert measured.inside == 1
            measured.let_go()
        assert measured.live == [COUNT, 2 * COUNT]


# ---- what goes wrong


async def test_a_search_that_measures_can_be_cancelled(measured: Measured) -> None:
    async with await session_on(f"memory:{uuid.uuid4()}") as session:
        await add_rows(session, COUNT)
        await session.save_to_s5()
        await session.load_user_vectors()
        measured.hold()
        with anyio.fail_after(30), anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(partial(session.search, rows(1)[0], 3, recall_target=0.9))
                await until(lambda: measured.inside == 1)
                scope.cancel()
        assert scope.cancelled_caught
        assert measured.inside == 0
        measured.let_go()
        assert await session.search(rows(1)[0], 3, recall_target=0.9)
        assert await table(session)


async def test_an_add_cancelled_while_it_measures_has_added_its_rows(measured: Measured) -> None:
    async with await session_on("memory:") as session:
        measured.hold()
        async with anyio.create_task_group() as group:
            group.start_soon(add_rows, session, COUNT)
            await until(lambda: measured.inside == 1)
            group.cancel_scope.cancel()
        assert measured.inside == 0
        assert group.cancel_scope.cancelled_caught
        assert len(await content(session)) == COUNT
        assert await table(session) == {}
        assert (await session.get_stats()).dirty
        measured.let_go()
        hits = await session.search(rows(1)[0], 1, threshold=None, recall_target=0.9)
        assert (hits[0].id, measured.live) == ("row-000000", [COUNT, COUNT])
        assert await table(session)


@pytest.mark.parametrize("failure", [IndexStateError("no memory"), MemoryError(), NativeCancelled()])
async def test_an_add_that_cannot_measure_has_added_its_rows(failure: Exception, measured: Measured) -> None:
    async with await session_on("memory:") as session:
        measured.fails = failure
        await add_rows(session, COUNT)
        assert await session.count() == COUNT
        assert await table(session) == {}
        if isinstance(failure, IndexStateError):
            with pytest.raises(IndexStateError):
                await session.search(rows(1)[0], 1, recall_target=0.9)
        measured.fails = None
        await add_rows(session, 1, first=COUNT)
        assert await table(session)
        assert measured.live[-1] == COUNT + 1


async def test_a_version_is_the_same_whether_rows_were_measured_or_not(measured: Measured) -> None:
    cids = set()
    for failure in (None, NativeCancelled()):
        measured.fails = failure
        async with await session_on(f"memory:{uuid.uuid4()}") as session:
            await add_rows(session, COUNT)
            assert bool(await table(session)) == (failure is None)
            cids.add(await session.save_to_s5())
    assert len(cids) == 1

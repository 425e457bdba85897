"""Rows that expire: gone from every answer at their time, deleted by the next change, kept by saves until then."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import anyio
import numpy as np
import pytest
from holding import Held
from saving import Objects, rows, session_on

from fabstir_vectordb import ConflictError, InvalidInputError, Maintainer, NotFoundError, VectorDBSession, VectorInput
from fabstir_vectordb.persist.parts import split_name

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]


class Clock:
    """Seconds since 1970, set by hand."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def filled(clock: Clock, uri: str = "memory:", count: int = 2_000, **fields: Any) -> VectorDBSession:
    """Row n expires at 1,000 + n seconds; each tenth never does."""
    session = await session_on(uri, clock=clock, **fields)
    ids, metadata = [str(row) for row in range(count)], [{"n": row} for row in range(count)]
    expires = [None if row % 10 == 0 else 1_000.0 + row for row in range(count)]
    await session.add_batch(ids, rows(count), metadata, expires_at=expires)
    return session


async def shown(session: VectorDBSession) -> set[str]:
    """The ids that there are, by every way of asking."""
    query = rows(1, seed=4)[0]
    scanned = [row.id async for row in session.scan()]
    ids = set(scanned)
    assert len(ids) == len(scanned) == await session.count() == await session.count({})
    assert {row.id async for row in session.scan({"n": {"$gte": 0}})} == ids
    assert {row.id async for row in session.scan(order="-n")} == ids
    assert {hit.id async for hit in session.search_stream(query, threshold=None)} == ids
    for options in ({}, {"exact": True}, {"filter": {"n": {"$exists": True}}}):
        hits = await session.search(query, 2_000, threshold=None, **options)
        (many,) = await session.search_batch([query], 2_000, threshold=None, **options)
        assert {hit.id for hit in hits} == {hit.id for hit in many} == ids
    assert {str(facet.value) for facet in await session.facets("n")} == ids
    assert {row.id for row in await session.get([str(n) for n in range(2_000)]) if row is not None} == ids
    assert set(await session.get_timestamps()) == ids
    assert set((await session.get_recent_index()).ids) == ids
    stats = await session.get_stats()
    assert stats.vector_count == len(ids)
    return ids


def alive(now: float, count: int = 2_000) -> set[str]:
    return {str(row) for row in range(count) if row % 10 == 0 or 1_000.0 + row > now}


async def test_rows_are_gone_from_their_moment_on(clock: Clock) -> None:
    async with await filled(clock) as session:
        for now in (1_000.0, 1_001.0, 1_001.5, 1_700.0, 5_000.0, 1_300.25, 0.0):
            clock.now = now
            assert await shown(session) == alive(now)
            plans = {(await session.search(rows(1)[0], 3)).plan, (await session.search_batch(rows(1), 3))[0].plan}
            assert plans <= {"flat", "graph"}
        (row, never) = await session.get(["7", "10"])
        assert row is not None and row.expires_at == 1_007.0
        assert never is not None and never.expires_at is None


async def test_the_next_change_deletes_what_has_expired(clock: Clock) -> None:
    async with await filled(clock) as session:
        clock.now = 1_500.5
        with pytest.raises(NotFoundError):
            await session.delete_vector("499")
        with pytest.raises(NotFoundError):
            await session.update_metadata("498", {})
        assert (await session.delete_vector("11", missing_ok=True)).deleted_count == 0
        assert await session.count() == (await session.get_stats()).vector_count == len(alive(1_500.5))
        assert (await session.get_stats()).deleted_count == 450
        clock.now = 0.0
        assert await shown(session) == alive(1_500.5)
        removed = await session.vacuum()
        assert removed.total_removed == 450
        assert await shown(session) == alive(1_500.5)
        clock.now = 1_502.0
        assert await shown(session) == alive(1_502.0)
        assert (await session.vacuum()).total_removed == 2
        deleted = await session.delete_by_metadata({"n": {"$lt": 505}})
        assert {int(id) for id in deleted.deleted_ids} == {*range(0, 505, 10), 503, 504}


async def test_the_id_of_an_expired_row_is_free(clock: Clock) -> None:
    async with await filled(clock) as session:
        with pytest.raises(ConflictError):
            await session.add_batch(["5"], rows(1))
        clock.now = 1_005.0
        assert (await session.add_batch(["5"], rows(1))).added == 1
        assert (await session.add_batch(["4"], rows(1), on_conflict="skip")).added == 1
        assert (await session.add_batch(["3"], rows(1), on_conflict="replace")).replaced == 0
        clock.now = 9_000.0
        assert {"3", "4", "5"} <= {row.id async for row in session.scan()}


async def test_replacing_a_row_replaces_its_expiry(clock: Clock) -> None:
    async with await filled(clock) as session:
        later = datetime.fromtimestamp(3_000, UTC)
        items = [VectorInput("5", rows(1)[0]), VectorInput("6", rows(1)[0], expires_at=later)]
        await session.add_vectors(items, on_conflict="replace")
        await session.add_batch(["7"], rows(1), expires_at=[0.0], on_conflict="skip")
        await session.update_metadata("8", {"n": -8})
        found = await session.get(["5", "6", "7", "8"])
        assert [row and row.expires_at for row in found] == [None, 3_000.0, 1_007.0, 1_008.0]
        await session.add_batch(["9"], rows(1), expires_at=np.array([999.5]), on_conflict="replace")
        assert await session.get(["9"]) == [None]


async def test_saves_keep_expiries_and_change_nothing(clock: Clock, tmp_path: Any) -> None:
    uri = tmp_path.as_uri()
    async with await filled(clock, uri, chunk_size=72) as session:
        cid = await session.save_to_s5()
        clock.now = 1_500.0
        assert await session.count() == len(alive(1_500.0))
        assert not (await session.get_stats()).dirty
        assert await session.save_to_s5() == cid
        assert (await session.verify()).rows == 2_000
    names = [part.name for part in Objects(tmp_path).manifest(cid).parts]
    assert [name for name in names if name.startswith("expiries")] == [f"expiries.000{n}" for n in range(4)]
    assert all(split_name(name) for name in names)
    async with await session_on(uri, clock=clock) as session:
        await session.load_user_vectors()
        assert await shown(session) == alive(1_500.0)
        assert not (await session.get_stats()).dirty
        clock.now = 1_000.0
        assert await shown(session) == alive(1_000.0)
        (row,) = await session.get(["1234"])
        assert row is not None and row.expires_at == 2_234.0


async def test_an_index_without_expiries_stores_none(clock: Clock, tmp_path: Any) -> None:
    async with await session_on(tmp_path.as_uri(), clock=clock) as session:
        await session.add_batch(["a", "b"], rows(2), expires_at=[None, 1_001.0])
        clock.now = 1_002.0
        await session.update_metadata("a", {"x": 1})
        cid = await session.save_to_s5()
    assert not [part for part in Objects(tmp_path).manifest(cid).parts if part.name.startswith("expiries")]


async def test_a_stream_leaves_out_what_expires_meanwhile(clock: Clock) -> None:
    async with await filled(clock) as session:
        seen = []
        async for hit in session.search_stream(rows(1)[0], threshold=None):
            clock.now = 9_000.0
            seen.append(hit.id)
        assert set(seen[512:]) <= alive(9_000.0)
        assert alive(9_000.0) <= set(seen)


async def test_times_take_memory_only_where_rows_expire(clock: Clock) -> None:
    async with await session_on("memory:", clock=clock) as session:
        await session.add_batch([str(row) for row in range(1_000)], rows(1_000), expires_at=[None] * 1_000)
        assert (await session.get_stats()).memory_bytes["metadata"] == 0
        await session.add_batch(["x"], rows(1), expires_at=[5_000.0])
        assert (await session.get_stats()).memory_bytes["metadata"] == 8 * 1_001


async def test_maintenance_removes_what_has_expired(clock: Clock) -> None:
    async with await filled(clock) as session:
        maintainer = Maintainer(session, interval_s=0.01)
        async with anyio.create_task_group() as group:
            group.start_soon(maintainer.run)
            await anyio.sleep(0.05)
            assert session._runtime.index.counts.rows == 2_000
            clock.now = 9_000.0
            with anyio.fail_after(30):
                while session._runtime.index.counts.rows > 200:  # noqa: ASYNC110  # nothing tells
                    await anyio.sleep(0.01)
            group.cancel_scope.cancel()
        assert await shown(session) == alive(9_000.0)


@pytest.mark.parametrize("bad", ["tomorrow", True, float("nan"), datetime(2026, 1, 1), 1e300])
async def test_a_bad_expiry_is_refused(bad: Any) -> None:
    async with await session_on(f"memory:{uuid.uuid4()}") as session:
        with pytest.raises(InvalidInputError, match="expires_at of row 1"):
            await session.add_batch(["a", "b"], rows(2), expires_at=[None, bad])
        with pytest.raises(InvalidInputError, match="2 vectors and 1 expires_at"):
            await session.add_batch(["a", "b"], rows(2), expires_at=[None])
        assert await session.count() == 0


@pytest.mark.parametrize("method", ["delete", "stats"])
async def test_counts_beside_a_change_leave_out_what_has_expired(
    method: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a change makes tombstones of expired rows, and when it has made them and its counts are not there yet."""

    async def counted() -> tuple[int, ...]:
        stats = await session.get_stats()
        return await session.count(), stats.vector_count, stats.without_vector_count, stats.deleted_count

    async with await session_on("memory:", clock=clock) as session:
        await session.add_batch(["a", "b", "c", "d"], rows(4), expires_at=[None, 1_010.0, 1_020.0, None])
        await session.add_batch(["e", "f", "g"], None, expires_at=[1_010.0, None, 1_010.0])
        clock.now = 1_015.0
        before = (4, 4, 1, 3)
        assert await counted() == before
        with Held(monkeypatch, method) as held:
            async with anyio.create_task_group() as group:
                group.start_soon(session.delete_vector, "a")
                await held.entered()
                during = [await counted()]
                clock.now = 1_025.0  # the clock goes on, whoever changes
                during.append(await counted())
                held.let_go()
        assert during == [before, (3, 3, 1, 4)]
        assert await counted() == (2, 2, 1, 5)

"""Recent rows and historical ones: moving, searching both as one, saving, and what reads see meanwhile."""

from __future__ import annotations

import itertools
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest
from saving import PHRASE, Objects, rows_on_topics

from fabstir_vectordb import InvalidConfigError, InvalidInputError, Maintainer, OptimizeProgress, VectorDBSession, sync

DIM, DAY = 24, 86_400.0
NOW = 1_700_000_000.0
CENTRES = np.random.default_rng(7).standard_normal((30, DIM))
_names = itertools.count()
pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]


def rows(n: int, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    rng = np.random.default_rng(seed)
    return (CENTRES[rng.integers(30, size=n)] + rng.standard_normal((n, DIM)) * 1.5).astype(np.float32)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def settings(clock: Clock, **more: Any) -> dict[str, Any]:
    name = f"memory:hybrid{next(_names)}"
    return {"s5_portal": name, "user_seed_phrase": "hybrid", "session_id": "t", "clock": clock, "threads": 2, **more}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def session(clock: Clock) -> AsyncIterator[VectorDBSession]:
    async with await VectorDBSession.create(settings(clock)) as session:
        yield session


async def fill(session: VectorDBSession, n: int, age_days: float, prefix: str, seed: int) -> None:
    times = np.full(n, NOW - age_days * DAY) + np.arange(n) / 1000
    await session.add_batch([f"{prefix}{i}" for i in range(n)], rows(n, seed), timestamps=times)


async def recall(session: VectorDBSession, **options: Any) -> float:
    found = wanted = 0
    for query in rows(40, 99):
        near = await session.search(query, 10, threshold=None, **options)
        truth = {hit.id for hit in await session.search(query, 10, threshold=None, exact=True)}
        assert len({hit.id for hit in near}) == len(near) == len(truth)
        assert [hit.distance for hit in near] == sorted(hit.distance for hit in near)
        found += len(truth & {hit.id for hit in near})
        wanted += len(truth)
    return found / wanted


@pytest.mark.parametrize("memory", ["default", "compact"])
async def test_a_row_on_two_lists_is_found_once(clock: Clock, memory: str, tmp_path: Path) -> None:
    n = 2_500
    vectors = rows_on_topics(n, DIM)
    where = settings(clock, memory=memory, s5_portal=tmp_path.as_uri(), user_seed_phrase=PHRASE)

    async def check(session: VectorDBSession, gone: set[int]) -> None:
        for options in ({"nprobe": 5}, {"nprobe": 10_000}, {"filter": {"n": {"$lt": 7}}, "nprobe": 20}):
            for query in vectors[::200]:
                found = [int(hit.id) for hit in await session.search(query, 50, threshold=None, **options)]
                assert len(set(found)) == len(found) == 50
                assert not gone.intersection(found)
                assert "filter" not in options or all(row % 10 < 7 for row in found)
        near = await session.search(vectors[3], 50, threshold=None, nprobe=10_000, ef_search=400)
        assert near.plan in {"lists", "flat"}
        assert near.ids == (await session.search(vectors[3], 50, threshold=None, exact=True)).ids

    async with await VectorDBSession.create(where) as session:
        expires = [NOW + DAY if row % 7 == 0 else NOW + 100 * DAY for row in range(n)]
        await session.add_batch(
            [str(row) for row in range(n)],
            vectors,
            [{"n": row % 10} for row in range(n)],
            [NOW - 30 * DAY] * n,
            expires_at=expires,
        )
        assert (await session.optimize()).migrated == n
        await check(session, set())
        await session.delete([str(row) for row in range(0, n, 11)])
        gone = set(range(0, n, 11))
        await check(session, gone)
        cid = await session.save_to_s5()
        assert "historical.second.0000" in Objects(tmp_path).files(cid)
        clock.now += 2 * DAY
        gone |= set(range(0, n, 7))
        await check(session, gone)
        await session.vacuum()
        await check(session, gone)
    clock.now -= 2 * DAY
    async with await VectorDBSession.create(where) as session:
        await session.load_user_vectors(cid)
        await check(session, set(range(0, n, 11)))
        assert (await session.get_stats()).ivf_vector_count == n - len(range(0, n, 11))


async def test_old_rows_move_and_both_sides_are_searched(session: VectorDBSession) -> None:
    await fill(session, 2_500, 30, "old", 1)
    await fill(session, 2_000, 1, "new", 2)
    before = await session.get_stats()
    assert (before.index_type, before.hnsw_vector_count, before.ivf_vector_count) == ("hnsw", 4_500, 0)
    told: list[OptimizeProgress] = []
    done = await session.optimize(told.append)
    assert (done.trained, done.migrated, done.vacuum.total_removed) == (True, 2_500, 0)
    assert {step.stage for step in told} == {"train", "migrate", "vacuum"}
    assert all(step.rows_done <= step.rows_total for step in told)
    stats = await session.get_stats()
    assert (stats.index_type, stats.hnsw_vector_count, stats.ivf_vector_count) == ("hybrid", 2_000, 2_500)
    assert stats.memory_bytes["graph"] < before.memory_bytes["graph"] / 2
    recent, historical = await session.get_recent_index(), await session.get_historical_index()
    assert (recent.index_type, recent.vector_count, historical.index_type) == ("hnsw", 2_000, "ivf")
    assert set(recent.ids) == {f"new{i}" for i in range(2_000)}
    assert set(historical.ids) == {f"old{i}" for i in range(2_500)}
    assert await recall(session) >= 0.95
    assert await recall(session, nprobe=historical.list_count) >= 0.97
    assert {"hybrid"} <= {plan for plan, n in (await session.get_stats()).plans.items() if n}
    assert (await session.optimize()).migrated == 0


async def test_rows_keep_what_they_are_through_all_of_it(session: VectorDBSession, clock: Clock) -> None:
    await fill(session, 1_500, 30, "a", 1)
    told = {"id": "told", "vector": rows(1, 5)[0], "metadata": {"page": 7}, "timestamp": NOW - 9 * DAY}
    await session.add_vectors([told])
    await fill(session, 1_500, 1, "b", 2)
    await session.delete_vector("a3")
    await session.optimize()
    assert await session.get(["a3"]) == [None]
    (row,) = await session.get(["told"])
    assert row is not None
    assert row.metadata == {"page": 7}
    assert row.vector.tobytes() == rows(1, 5)[0].tobytes()
    assert await session.get_timestamps(["told", "nobody"]) == {"told": NOW - 9 * DAY}
    assert len(await session.get_timestamps()) == 3_000
    (hit,) = await session.search(rows(1, 5)[0], 1, threshold=None)
    assert (hit.id, hit.metadata) == ("told", {"page": 7})
    clock.now += 30 * DAY
    done = await session.optimize()
    assert done.migrated == 1_500
    stats = await session.get_stats()
    assert (stats.index_type, stats.ivf_vector_count, stats.hnsw_vector_count) == ("ivf", 3_000, 0)
    removed = await session.delete_vector("told")
    assert removed.deleted_count == 1
    assert (await session.get_historical_index()).deleted_count == 1
    vacuumed = await session.vacuum()
    assert (vacuumed.hnsw_removed, vacuumed.ivf_removed, vacuumed.total_removed) == (0, 1, 1)
    assert await recall(session) >= 0.95


async def test_few_rows_are_scanned_whatever_side_they_are_on(session: VectorDBSession) -> None:
    assert (await session.optimize()).migrated == 0
    await fill(session, 40, 30, "few", 1)
    assert (await session.optimize()).trained is False
    await fill(session, 100, 30, "more", 2)
    assert (await session.optimize()).migrated == 140
    assert (await session.get_historical_index()).vector_count == 140
    assert await recall(session) == 1.0


async def test_a_saved_version_has_both_sides(clock: Clock) -> None:
    where = settings(clock)
    async with await VectorDBSession.create(where) as session:
        await fill(session, 3_000, 30, "old", 1)
        await fill(session, 1_500, 1, "new", 2)
        await session.optimize()
        await fill(session, 300, 20, "late", 3)
        cid = await session.save_to_s5()
        answers = [[hit.id for hit in await session.search(query, 10)] for query in rows(20, 50)]
        await session.optimize()
        later = await session.save_to_s5()
    for threads in (1, 2):
        async with await VectorDBSession.create({**where, "threads": threads}) as session:
            await session.load_user_vectors(cid)
            assert [[hit.id for hit in await session.search(query, 10)] for query in rows(20, 50)] == answers
            stats = await session.get_stats()
            assert (stats.vector_count, stats.ivf_vector_count) == (4_800, 3_000)
            assert (await session.optimize()).migrated == 300
            assert await session.save_to_s5(on_conflict="overwrite") == later
            assert (await session.verify(later)).rows == 4_800


async def test_a_recall_that_is_asked_for_is_met_on_both_sides(session: VectorDBSession) -> None:
    await fill(session, 3_000, 30, "old", 1)
    await fill(session, 3_000, 1, "new", 2)
    for _ in range(2):
        for target in (0.9, 0.98):
            assert await recall(session, recall_target=target) >= target - 0.02
        assert (await session.search(rows(1, 1)[0], 10, recall_target=1.0)).plan == "flat"
        await session.optimize()


async def test_rows_that_left_do_not_make_a_default_scan_all_rows(clock: Clock) -> None:
    rng = np.random.default_rng(1)
    within = rng.standard_normal((4_000, 20)) @ rng.standard_normal((20, 40)) + rng.standard_normal((4_000, 40)) * 0.5
    base, gone = within.astype(np.float32), [str(i) for i in rng.permutation(4_000)[:2_400]]
    config = settings(clock)
    async with await VectorDBSession.create(config) as session:
        await session.add_batch([str(i) for i in range(4_000)], base, timestamps=np.full(4_000, NOW - 30 * DAY))
        await session.optimize()
        await session.delete(gone)
        await session.optimize()
        await session.save_to_s5()
    async with await VectorDBSession.create(config) as session:
        await session.load_user_vectors()
        found = truth = 0
        for query in base[:60]:
            exact = await session.search(query, 10, threshold=None, exact=True)
            hits = await session.search(query, 10, threshold=None)
            assert hits.plan == "lists"
            found, truth = found + len(set(hits.ids) & set(exact.ids)), truth + len(exact)
        assert found >= 0.97 * truth
        assert (await session.get_stats()).default_search == "wider"


async def test_what_codes_lose_is_found_all_the_same(session: VectorDBSession) -> None:
    narrow = CENTRES[np.arange(3_000) % 30] + np.random.default_rng(3).standard_normal((3_000, DIM)) * 0.02
    await session.add_batch([str(i) for i in range(3_000)], narrow, timestamps=np.full(3_000, NOW - 30 * DAY))
    await session.optimize()
    for fields in ({}, {"recall_target": 0.98}):
        found = [await session.search(query, 10, threshold=None, **fields) for query in narrow[:50]]
        truth = [await session.search(query, 10, threshold=None, exact=True) for query in narrow[:50]]
        shared = [len(set(one.ids) & set(all.ids)) for one, all in zip(found, truth, strict=True)]
        assert sum(shared) >= 0.97 * 500, fields


async def test_filters_find_what_there_is_on_both_sides(session: VectorDBSession) -> None:
    for prefix, age, seed in (("old", 30, 1), ("new", 1, 2)):
        tags = [{"n": i % 100} for i in range(2_000)]
        await session.add_batch(
            [f"{prefix}{i}" for i in range(2_000)], rows(2_000, seed), tags, np.full(2_000, NOW - age * DAY)
        )
    for _ in range(2):
        for below in (1, 10, 60):
            where = {"n": {"$lt": below}}
            hits = await session.search(rows(1, 60)[0], 30, threshold=None, filter=where)
            assert len(hits) == 30
            assert all(hit.metadata["n"] < below for hit in hits)
        assert await session.count({"n": 5}) == 40
        await session.optimize()


async def test_a_scan_goes_on_through_a_vacuum_that_reorders(session: VectorDBSession) -> None:
    await fill(session, 3_000, 30, "old", 1)
    await fill(session, 200, 1, "new", 2)
    seen: list[str] = []
    async for row in session.scan():
        seen.append(row.id)
        if len(seen) == 700:
            await session.delete_vector("old2999")
            await session.optimize()
        if len(seen) == 1_500:
            await session.delete_vector("old2998")
            await session.vacuum()
    assert sorted(seen) == sorted([f"old{i}" for i in range(2_998)] + [f"new{i}" for i in range(200)])


async def test_searches_meanwhile_miss_nothing(session: VectorDBSession) -> None:
    await fill(session, 4_000, 30, "old", 1)
    await fill(session, 2_000, 1, "new", 2)
    kept = [f"old{i}" for i in range(0, 4_000, 200)] + [f"new{i}" for i in range(0, 2_000, 200)]
    vectors = {row.id: row.vector for row in await session.get(kept) if row is not None}
    done = anyio.Event()

    async def look() -> None:
        while not done.is_set():
            for id, vector in vectors.items():
                hits = await session.search(vector, 10, threshold=None)
                ids = [hit.id for hit in hits]
                assert ids[0] == id
                assert len(set(ids)) == 10
                assert not deleted.intersection(ids)
            await anyio.lowlevel.checkpoint()

    deleted: set[str] = set()
    async with anyio.create_task_group() as group:
        group.start_soon(look)
        for round in range(3):
            gone = [f"old{i}" for i in range(1 + round, 4_000, 200)]
            for id in gone:
                await session.delete_vector(id)
            deleted.update(gone)
            await session.optimize()
            await fill(session, 300, 20, f"late{round}-", 10 + round)
        done.set()


def test_threads_that_search_meanwhile_miss_nothing(clock: Clock) -> None:
    with sync.VectorDBSession.create(settings(clock)) as session:
        vectors = rows(3_000, 1)
        session.add_batch([f"r{i}" for i in range(3_000)], vectors, timestamps=np.full(3_000, NOW - 30 * DAY))
        stop, wrong = threading.Event(), []

        def look(first: int) -> None:
            while not stop.is_set():
                for i in range(first, 3_000, 500):
                    ids = [hit.id for hit in session.search(vectors[i], 5, threshold=None)]
                    if ids[0] != f"r{i}" or len(set(ids)) != 5:
                        wrong.append((i, ids))

        threads = [threading.Thread(target=look, args=(first,)) for first in (0, 7)]
        for thread in threads:
            thread.start()
        session.optimize()
        for i in range(1, 3_000, 500):
            session.delete_vector(f"r{i}")
        session.vacuum()
        session.add_batch([f"s{i}" for i in range(1_500)], rows(1_500, 2), timestamps=np.full(1_500, NOW - 20 * DAY))
        session.optimize()
        stop.set()
        for thread in threads:
            thread.join()
        assert wrong == []


async def test_a_maintainer_works_pauses_and_ends(session: VectorDBSession) -> None:
    await fill(session, 2_000, 30, "old", 1)
    maintainer = Maintainer(session, interval_s=0.01)
    maintainer.pause()
    async with anyio.create_task_group() as group:
        group.start_soon(maintainer.run)
        await anyio.sleep(0.1)
        assert (await session.get_stats()).ivf_vector_count == 0
        maintainer.resume()
        with anyio.fail_after(30):
            while (await session.get_stats()).index_type != "ivf":  # noqa: ASYNC110  # nothing tells when
                await anyio.sleep(0.01)
        group.cancel_scope.cancel()
    assert await recall(session) >= 0.95


async def test_options_are_checked(session: VectorDBSession, clock: Clock) -> None:
    for nprobe in (0, -1, True, 1.5, "all"):
        with pytest.raises(InvalidInputError, match="nprobe"):
            await session.search([1.0], 1, nprobe=nprobe)
    for more in ({"exact": True}, {"recall_target": 0.9}):
        with pytest.raises(InvalidInputError):
            await session.search([1.0], 1, nprobe=3, **more)
    for window in (0, -1.0, float("inf"), True, "week"):
        with pytest.raises(InvalidConfigError, match="recent_window_s"):
            await VectorDBSession.create(settings(clock, recent_window_s=window))

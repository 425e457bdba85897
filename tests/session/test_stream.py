"""Streams: every row in the order of its score, whatever happens to the rows meanwhile."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import numpy as np
import pytest
from saving import PHRASE, rows, session_on

from fabstir_vectordb import (
    InvalidInputError,
    MemoryBudgetExceededError,
    SearchResult,
    SessionError,
    VectorDBSession,
    sync,
)

pytestmark = pytest.mark.anyio


async def filled(count: int, **fields: Any) -> VectorDBSession:
    session = await session_on("memory:", **{"threads": 2, **fields})
    metadata = [{"even": row % 2 == 0, "row": row} for row in range(count)]
    await session.add_batch([str(row) for row in range(count)], rows(count), metadata)
    return session


async def streamed(session: VectorDBSession, query: Any, **options: Any) -> list[SearchResult]:
    return [hit async for hit in session.search_stream(query, **options)]


@pytest.mark.parametrize("metric", ["cosine", "l2", "dot"])
@pytest.mark.one_loop
async def test_a_stream_is_a_search_for_everything(metric: str) -> None:
    async with await filled(2_000, metric=metric) as session:
        query = rows(1, seed=4)[0]
        hits = await streamed(session, query, threshold=None)
        found = await session.search(query, 2_000, threshold=None, exact=True)
        assert hits == list(found)
        assert [hit.metadata for hit in hits] == [hit.metadata for hit in found]
        assert all(hit.vector is None for hit in hits)

        even = await streamed(session, query, threshold=None, filter={"even": True}, include_vectors=True)
        with_vectors = await session.search(query, 2_000, threshold=None, exact=True, include_vectors=True)
        assert even == [hit for hit in with_vectors if hit.metadata["even"]]
        assert all(np.array_equal(hit.vector, rows(2_000)[int(hit.id)]) for hit in even)

        cut = await streamed(session, query, threshold=found[700].score)
        assert cut == [hit for hit in found if hit.score >= found[700].score]


async def test_the_default_threshold_is_that_of_a_search() -> None:
    async with await filled(300) as session:
        query = rows(1, seed=4)[0]
        assert await streamed(session, query) == list(await session.search(query, 300, exact=True))


@pytest.mark.one_loop
async def test_more_hits_come_than_a_search_may_return() -> None:
    count = 25_000
    vectors = np.random.default_rng(7).standard_normal((count, 4)).astype(np.float32)
    async with await session_on("memory:", metric="l2", ef_construction=8, M=4) as session:
        await session.add_batch([str(row) for row in range(count)], vectors)
        hits = await streamed(session, vectors[0])
    distances = np.linalg.norm(vectors.astype(np.float64) - vectors[0], axis=1)
    assert [int(hit.id) for hit in hits] == np.argsort(distances, kind="stable").tolist()
    assert np.allclose([hit.distance for hit in hits], np.sort(distances))


async def test_equal_rows_come_in_the_order_of_their_ids() -> None:
    count = 1_500
    ids = [f"é{row}" if row % 3 else f"{row}" for row in range(count)]
    np.random.default_rng(1).shuffle(ids)
    async with await session_on("memory:", metric="l2") as session:
        await session.add_batch(ids, np.array([[float(row % 2), 1.0] for row in range(count)]))
        hits = await streamed(session, [0.0, 1.0])
    near, far = ([ids[row] for row in range(count) if row % 2 == side] for side in (0, 1))
    assert [hit.id for hit in hits] == sorted(near, key=str.encode) + sorted(far, key=str.encode)


async def test_a_stream_follows_changes_and_a_vacuum() -> None:
    async with await filled(2_000) as session:
        query = rows(1, seed=4)[0]
        order = [hit.id for hit in await session.search(query, 2_000, threshold=None, exact=True)]
        seen: list[str] = []
        async with aclosing(session.search_stream(query, threshold=None)) as stream:
            async for hit in stream:
                seen.append(hit.id)
                if len(seen) == 100:
                    for id in (order[0], order[1_000], order[1_999]):
                        await session.delete_vector(id)
                    await session.add_batch(["new", order[1_200]], rows(2), on_conflict="replace")
                    await session.update_metadata(order[1_300], {"told": "late"})
                    await session.vacuum()
                if hit.id == order[1_300]:
                    assert hit.metadata == {"told": "late"}
        gone = {order[1_000], order[1_200], order[1_999]}
        assert seen == [id for id in order if id not in gone]


async def test_a_page_of_deleted_rows_is_no_end() -> None:
    async with await filled(2_000) as session:
        query = rows(1, seed=4)[0]
        order = [hit.id for hit in await session.search(query, 2_000, threshold=None, exact=True)]
        seen: list[str] = []
        async with aclosing(session.search_stream(query, threshold=None)) as stream:
            async for hit in stream:
                if not seen:
                    await session.delete_by_metadata({"row": {"$in": [int(id) for id in order[512:1_700]]}})
                seen.append(hit.id)
        assert seen == order[:512] + order[1_700:]


async def test_an_empty_index_streams_nothing() -> None:
    async with await session_on("memory:") as session:
        assert await streamed(session, [1.0, 2.0]) == []
        await session.add_batch(["a"], [[1.0, 0.0]])
        await session.delete_vector("a")
        assert await streamed(session, [1.0, 2.0]) == []


@pytest.mark.parametrize(
    ("query", "options", "message"),
    [
        ([1.0, float("nan"), 0.0], {}, "NaN or infinity"),
        ([0.0, 0.0, 0.0], {}, "zero"),
        ([1.0, 0.0], {}, "Query vector dimension mismatch: expected 3"),
        ([[1.0, 0.0, 0.0]] * 2, {}, "one vector"),
        ([1.0, 0.0, 0.0], {"threshold": 2}, "threshold"),
        ([1.0, 0.0, 0.0], {"filter": {"a": {"$near": 1}}}, "near"),
    ],
)
async def test_what_is_wrong_is_said_before_the_first_hit(query: Any, options: Any, message: str) -> None:
    async with await session_on("memory:") as session:
        await session.add_batch(["a"], [[1.0, 0.0, 0.0]])
        with pytest.raises(InvalidInputError, match=message):
            await anext(session.search_stream(query, **options))


async def test_a_stream_ends_with_its_session_and_its_rows() -> None:
    async with await filled(2_000) as session:
        stream = session.search_stream(rows(1)[0], threshold=None)
        await anext(stream)
        await session.load_user_vectors(missing_ok=True, discard_unsaved=True)
        with pytest.raises(SessionError, match="begin again"):
            [hit async for hit in stream]
    session = await filled(2_000)
    stream = session.search_stream(rows(1)[0], threshold=None)
    await anext(stream)
    await session.destroy()
    with pytest.raises(SessionError):
        [hit async for hit in stream]


@pytest.mark.one_loop
async def test_the_order_of_a_stream_must_fit_the_budget() -> None:
    async with await filled(4_000) as session:
        before = await session.get_stats()
        session._runtime.index.budget_bytes = int(before.memory_usage_mb * 1e6) + 50_000
        with pytest.raises(MemoryBudgetExceededError, match="a stream"):
            await anext(session.search_stream(rows(1)[0]))


def test_streams_without_a_loop_are_the_same() -> None:
    with sync.VectorDBSession.create(s5_portal="memory:", user_seed_phrase=PHRASE, session_id="s") as session:
        session.add_batch([str(row) for row in range(1_500)], rows(1_500))
        query = rows(1, seed=4)[0]
        assert list(session.search_stream(query, threshold=None)) == list(
            session.search(query, 1_500, threshold=None, exact=True)
        )

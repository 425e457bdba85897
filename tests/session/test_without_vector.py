"""Rows without a vector: stored, filtered, read back and counted, never a hit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from saving import Objects, session_on

from fabstir_vectordb import ConflictError, InvalidInputError, VectorDBSession, VectorInput
from fabstir_vectordb.persist import load as load_module

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]


DIM, NOW = 16, 1_700_000_000.0


def rows_of(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)


async def mixed(uri: str = "memory:", count: int = 3_000, **fields: Any) -> VectorDBSession:
    """Each third row has no vector."""
    session = await session_on(uri, clock=lambda: NOW, **fields)
    vectors = [None if row % 3 == 0 else vector for row, vector in enumerate(rows_of(count))]
    await session.add_batch(
        [f"row-{row}" for row in range(count)], vectors, [{"n": row, "bare": row % 3 == 0} for row in range(count)]
    )
    return session


def vectorless(id: str) -> bool:
    return int(id.split("-")[1]) % 3 == 0


@pytest.mark.parametrize("memory", ["default", "compact"])
@pytest.mark.parametrize("metric", ["cosine", "l2", "dot"])
async def test_no_search_finds_them(metric: str, memory: str) -> None:
    async with await mixed(metric=metric, memory=memory) as session:
        assert await session.count() == 3_000
        stats = await session.get_stats()
        assert (stats.vector_count, stats.without_vector_count) == (3_000, 1_000)
        for query in rows_of(5, 2):
            for options in ({}, {"exact": True}, {"recall_target": 0.95}, {"mmr": 0.5}, {"ef_search": 500}):
                hits = await session.search(query, 20, threshold=None, **options)
                assert len(hits) == 20, options
                assert not any(vectorless(hit.id) for hit in hits), options
            few = await session.search(query, 10, threshold=None, filter={"n": {"$lt": 12}})
            assert len(few) == 8
            none = await session.search(query, 10, threshold=None, filter={"bare": True})
            assert len(none) == 0
        stream = [hit.id async for hit in session.search_stream(rows_of(1, 3)[0], threshold=None)]
        assert len(stream) == 2_000
        assert not any(map(vectorless, stream))
        batch = await session.search_batch(rows_of(40, 4), 2_500, threshold=None)
        assert {len(hits) for hits in batch} == {2_000}
        assert (await session.recall(50)).rows == 2_000


async def test_recall_beside_them_is_as_without(tmp_path: Path) -> None:
    async with await mixed() as session, await session_on("memory:") as other:
        with_vector = [row for row in range(3_000) if row % 3]
        await other.add_batch([f"row-{row}" for row in with_vector], rows_of(3_000)[with_vector])
        found = [(await one.recall(100)).default.recall for one in (session, other)]
        assert found[0] >= found[1] - 0.02


async def test_they_are_read_filtered_changed_and_deleted() -> None:
    async with await mixed(count=300) as session:
        first, second = await session.get(["row-0", "row-1"])
        assert first is not None and second is not None
        assert first.vector is None
        assert second.vector is not None
        assert await session.count({"bare": True}) == 100
        scanned = [row async for row in session.scan({"bare": True})]
        assert len(scanned) == 100
        assert all(row.vector is None for row in scanned)
        await session.update_metadata("row-0", {"n": -1, "bare": True})
        assert await session.count({"n": -1}) == 1
        await session.delete_vector("row-3")
        assert (await session.delete_by_metadata({"bare": True})).deleted_count == 99
        assert (await session.get_stats()).without_vector_count == 0
        assert (await session.vacuum()).total_removed == 100
        assert len(await session.search(rows_of(1)[0], 300, threshold=None)) == 200


async def test_a_row_gains_and_loses_its_vector() -> None:
    vector = rows_of(1, 9)[0]
    async with await mixed() as session:
        await session.add_vectors([VectorInput("row-0", vector)], on_conflict="replace")
        assert (await session.search(vector, 1))[0].id == "row-0"
        await session.add_vectors([{"id": "row-0", "vector": None}], on_conflict="replace")
        assert all(hit.id != "row-0" for hit in await session.search(vector, 50, threshold=None))
        assert (await session.get(["row-0"]))[0].vector is None  # type: ignore[union-attr]
        result = await session.add_batch(["row-0", "new"], None, on_conflict="skip")
        assert (result.added, result.skipped) == (1, 1)


async def test_an_index_without_any_vector_has_no_dimension_yet(tmp_path: Path) -> None:
    uri = tmp_path.as_uri()
    async with await session_on(uri) as session:
        await session.add_batch(["a", "b", "c"], None, [{"n": 1}, {"n": 2}, None])
        await session.delete_vector("b")
        assert await session.count({"n": 1}) == 1
        for size in (1, 3, 384):
            assert len(await session.search(np.ones(size), 5)) == 0
            assert len((await session.search_batch(np.ones((2, size)), 5))[1]) == 0
        assert [hit async for hit in session.search_stream(np.ones(7))] == []
        await session.save_to_s5()
    async with await session_on(uri) as session:
        await session.load_user_vectors()
        assert await session.count() == 2
        await session.add_vectors([VectorInput("d", [1.0, 2.0, 3.0], {"n": 4})])
        assert [row.id async for row in session.scan()] == ["a", "c", "d"]
        assert [hit.id for hit in await session.search([1.0, 2.0, 3.0], 5)] == ["d"]
        with pytest.raises(InvalidInputError, match="expected 3, got 2"):
            await session.add_vectors([VectorInput("e", [1.0, 2.0])])
        with pytest.raises(InvalidInputError, match="expected 3 dimensions, got 2"):
            await session.search([1.0, 2.0], 1)
        cid = await session.save_to_s5()
        (row,) = await session.get(["a"])
        assert row is not None and (row.vector, row.metadata) == (None, {"n": 1})
    async with await session_on(uri) as session:
        await session.load_user_vectors(cid)
        with pytest.raises(InvalidInputError, match="expected 3"):
            await session.add_batch(["f"], [[1.0]])


async def test_a_first_vector_that_is_refused_changes_nothing(tmp_path: Path) -> None:
    async with await session_on(tmp_path.as_uri(), clock=lambda: NOW) as session:
        await session.add_batch(["a", "b", "c"], None, [{"n": 1}, {"n": 2}, {"n": 3}], expires_at=[None, None, NOW + 9])
        await session.delete_vector("b")
        cid = await session.save_to_s5()
        with pytest.raises(ConflictError):
            await session.add_batch(["d", "a"], rows_of(2))
        assert not (await session.get_stats()).dirty
        assert await session.save_to_s5() == cid
        await session.add_batch(["d", "b"], rows_of(2))
        rows = {row.id: (row.metadata, row.expires_at) async for row in session.scan()}
        assert rows == {"a": ({"n": 1}, None), "b": (None, None), "c": ({"n": 3}, NOW + 9), "d": (None, None)}


async def test_the_dimension_goes_with_the_last_vector(tmp_path: Path) -> None:
    uri = tmp_path.as_uri()
    async with await session_on(uri) as session:
        await session.add_batch(["a", "b"], [None, [1.0, 2.0]])
        await session.delete_vector("b")
        with pytest.raises(InvalidInputError, match="expected 2, got 3"):
            await session.add_batch(["c"], [[1.0, 2.0, 3.0]])
        await session.vacuum()
        cid = await session.save_to_s5()
        await session.add_batch(["c"], [[1.0, 2.0, 3.0]])
        assert [hit.id for hit in await session.search([1.0, 2.0, 3.0], 5)] == ["c"]
    async with await session_on(uri) as session:
        await session.load_user_vectors(cid)
        await session.add_batch(["c"], [[1.0, 2.0, 3.0]])
        assert await session.count() == 2


@pytest.mark.parametrize("memory", ["default", "compact"])
async def test_vectors_that_come_after_many_without_are_found(memory: str) -> None:
    async with await session_on("memory:", memory=memory) as session:
        await session.add_batch([f"bare-{row}" for row in range(1_500)], None)
        assert (await session.get_stats()).index_type == "flat"
        vectors = rows_of(2_500)
        await session.add_batch([f"row-{row}" for row in range(2_500)], vectors)
        assert (await session.get_stats()).hnsw_vector_count == 2_500
        assert (await session.recall(100)).default.recall >= 0.9
        await session.delete([f"row-{row}" for row in range(900, 2_500)])
        await session.vacuum()
        assert (await session.get_stats()).index_type == "flat"
        assert {hit.id for hit in await session.search(vectors[0], 1_000)} <= {f"row-{row}" for row in range(900)}


async def test_expired_ones_are_not_counted() -> None:
    now = NOW
    async with await session_on("memory:", clock=lambda: now) as session:
        await session.add_batch(["a", "b"], None, expires_at=[NOW + 1, None])
        assert (await session.get_stats()).without_vector_count == 2
        now += 2
        stats = await session.get_stats()
        assert (stats.vector_count, stats.without_vector_count) == (1, 1)


@pytest.mark.parametrize("lazy", [True, False])
async def test_saved_and_loaded_they_are_the_same(tmp_path: Path, lazy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "_LAZY_BYTES_MIN", 0)
    uri, query = tmp_path.as_uri(), rows_of(1, 5)[0]
    async with await mixed(uri, chunk_size=200, count=5_000) as session:
        await session.delete_vector("row-6")
        cid = await session.save_to_s5()
        before = [(row.id, None if row.vector is None else row.vector.tobytes()) async for row in session.scan()]
        exact = [hit.id for hit in await session.search(query, 30, threshold=None, exact=True)]
        await session.verify()
    assert "bare.0000" in Objects(tmp_path).files(cid)
    async with await session_on(uri, clock=lambda: NOW) as session:
        await session.load_user_vectors(cid, lazy_load=lazy)
        assert (await session.get_stats()).without_vector_count == 1_666
        hits = await session.search(query, 30, threshold=None, ef_search=400)
        assert len(hits) == 30
        assert not any(vectorless(hit.id) for hit in hits)
        (row,) = await session.get(["row-9"])
        assert row is not None and row.vector is None
        assert [hit.id for hit in await session.search(query, 30, threshold=None, exact=True)] == exact
        after = [(row.id, None if row.vector is None else row.vector.tobytes()) async for row in session.scan()]
        assert after == before
        await session.vacuum()
        assert (await session.get_stats()).without_vector_count == 1_666


async def test_an_index_that_has_none_stores_no_marks(tmp_path: Path) -> None:
    async with await session_on(tmp_path.as_uri()) as session:
        await session.add_batch(["a", "b"], [None, [1.0, 2.0]])
        await session.delete_vector("a")
        await session.vacuum()
        cid = await session.save_to_s5()
    assert "bare.0000" not in Objects(tmp_path).files(cid)


async def test_old_ones_stay_where_they_are() -> None:
    async with await session_on("memory:", clock=lambda: NOW) as session:
        vectors = [None if row % 3 == 0 else vector for row, vector in enumerate(rows_of(3_000))]
        await session.add_batch([f"row-{row}" for row in range(3_000)], vectors, timestamps=[1.0] * 3_000)
        result = await session.optimize()
        assert result.migrated == 2_000
        hits = await session.search(rows_of(1, 6)[0], 50, threshold=None)
        assert len(hits) == 50
        assert not any(vectorless(hit.id) for hit in hits)
        assert await session.count() == 3_000
        await session.add_batch([f"row-{row}" for row in range(3_000, 3_300)], None)
        await session.optimize()
        assert await session.count() == 3_300


async def test_what_is_no_vector_is_still_refused() -> None:
    async with await session_on("memory:") as session:
        with pytest.raises(InvalidInputError, match="expected 2, got 3") as caught:
            await session.add_batch(["a", "b", "c"], [None, [1.0, 2.0], [1.0, 2.0, 3.0]])
        assert caught.value.details["row"] == 2
        with pytest.raises(InvalidInputError):
            await session.add_batch(["a", "b"], [None, [0.0, 0.0]])
        with pytest.raises(InvalidInputError):
            await session.add_batch(["a"], [None, None])
        with pytest.raises(InvalidInputError):
            await session.add_batch("ab", None)
        assert await session.count() == 0

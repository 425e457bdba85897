"""Adding and searching: results against brute force, scores, thresholds, conflicts, and everything that is refused."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from saving import rows, session_on

from fabstir_vectordb import (
    ConflictError,
    InvalidInputError,
    MemoryBudgetExceededError,
    SearchOptions,
    VectorDBError,
    VectorInput,
)

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]


def reference(base: np.ndarray, query: np.ndarray, metric: str) -> np.ndarray:
    a, q = base.astype(np.float64), query.astype(np.float64)
    if metric == "l2":
        return np.sqrt(((a - q) ** 2).sum(axis=1))
    dot = a @ q
    return -dot if metric == "dot" else 1 - dot / np.sqrt((a * a).sum(axis=1) * (q @ q))


@pytest.mark.parametrize("count", [300, 3000])
@pytest.mark.parametrize("memory", ["default", "compact"])
@pytest.mark.parametrize("metric", ["cosine", "l2", "dot"])
async def test_hits_are_the_nearest_rows_with_exact_distances(metric: str, memory: str, count: int) -> None:
    base, queries = rows(count, 24), rows(20, 24, seed=5)
    async with await session_on("memory:", metric=metric, memory=memory, threads=2) as session:
        await session.add_batch([str(i) for i in range(count)], base)
        found = 0
        for query in queries:
            want = reference(base, query, metric)
            order = np.argsort(want, kind="stable")[:10]
            hits = await session.search(query, 10, threshold=None, include_vectors=True)
            assert len(hits) == 10
            assert hits.plan == ("flat" if count == 300 else "graph")
            assert [hit.distance for hit in hits] == sorted(hit.distance for hit in hits)
            for hit in hits:
                assert hit.distance == pytest.approx(want[int(hit.id)], abs=1e-9)
                assert hit.vector is not None
                assert hit.vector.tobytes() == base[int(hit.id)].tobytes()
                assert 0.0 <= hit.score <= 1.0
            found += len({hit.id for hit in hits} & {str(i) for i in order})
        assert found >= (200 if count == 300 else 190)


@pytest.mark.parametrize(
    ("metric", "query", "score", "distance"),
    [
        ("cosine", [2.0, 0.0], 1.0, 0.0),
        ("cosine", [-1.0, 0.0], 0.0, 2.0),
        ("cosine", [0.0, 3.0], 0.5, 1.0),
        ("l2", [1.0, 0.0], 1.0, 0.0),
        ("l2", [1.0, 4.0], 0.2, 4.0),
        ("dot", [2.0, 0.0], 1 / (1 + math.exp(-2.0)), -2.0),
        ("dot", [-2000.0, 0.0], 0.0, 2000.0),
        ("dot", [2000.0, 0.0], 1.0, -2000.0),
    ],
)
async def test_scores_follow_their_formulas(metric: str, query: list[float], score: float, distance: float) -> None:
    async with await session_on("memory:", metric=metric) as session:
        await session.add_vectors([VectorInput("a", [1.0, 0.0])])
        hit = (await session.search(query, 1, threshold=None))[0]
        assert (hit.score, hit.distance) == (pytest.approx(score, abs=1e-15), pytest.approx(distance, abs=1e-15))


async def test_a_cut_is_counted() -> None:
    async with await session_on("memory:") as session:
        await session.add_vectors([{"id": "near", "vector": [1, 0]}, {"id": "far", "vector": [-1, 0.1]}])
        hits = await session.search([1, 0], 5)
        assert [hit.id for hit in hits] == ["near"]
        assert hits.below_threshold == 1
        assert len(await session.search([1, 0], 5, threshold=None)) == 2
        assert len(await session.search([1, 0], 5, SearchOptions(threshold=1.0))) == 1
    async with await session_on("memory:", default_threshold=None) as session:
        await session.add_vectors([{"id": "far", "vector": [-1, 0.1]}])
        assert len(await session.search([1, 0], 5)) == 1
    async with await session_on("memory:", metric="l2") as session:
        await session.add_vectors([{"id": "far", "vector": [1e6, 0]}])
        assert len(await session.search([1, 0], 5)) == 1


async def test_equal_distances_are_ordered_by_id() -> None:
    async with await session_on("memory:") as session:
        await session.add_batch(["b", "ä", "a", "aa"], np.ones((4, 3), np.float32))
        assert [hit.id for hit in await session.search([1, 1, 1], 4)] == ["a", "aa", "b", "ä"]


@pytest.mark.parametrize("has_metadata", [True, False])
async def test_a_batch_of_many_queries_gives_what_searches_give(has_metadata: bool) -> None:
    base, queries = rows(300, 8), rows(300, 8, seed=4)
    async with await session_on("memory:", threads=2) as session:
        metadata = [{"n": i} for i in range(300)] if has_metadata else None
        await session.add_batch([f"\u00e9{i}" if i % 2 else f"{i}" for i in range(300)], base, metadata)
        many = await session.search_batch(queries, 5, threshold=0.9)
        assert [hits.below_threshold for hits in many].count(0) not in (0, 300)
        for query, hits in zip(queries, many, strict=True):
            one = await session.search(query, 5, threshold=0.9)
            assert hits == one and [hit.metadata for hit in hits] == [hit.metadata for hit in one]
        queries[290] = 0
        with pytest.raises(InvalidInputError) as caught:
            await session.search_batch(queries, 5)
        assert caught.value.details["row"] == 290


async def test_search_batch_gives_what_search_gives() -> None:
    base = rows(2500, 16)
    async with await session_on("memory:", threads=2) as session:
        await session.add_batch([f"r{i}" for i in range(2500)], base, [{"n": i} for i in range(2500)])
        queries = rows(30, 16, seed=3)
        many = await session.search_batch(queries, 7, threshold=0.5, include_vectors=True)
        for query, hits in zip(queries, many, strict=True):
            single = await session.search(query, 7, threshold=0.5, include_vectors=True)
            assert list(hits) == list(single)
            assert [hit.metadata for hit in hits] == [hit.metadata for hit in single]
            assert hits.below_threshold == single.below_threshold
        assert await session.search_batch(np.empty((0, 16)), 3) == []


@pytest.mark.parametrize("memory", ["default", "compact"])
@pytest.mark.parametrize("metric", ["cosine", "l2", "dot"])
async def test_an_exact_search_finds_every_one_of_the_nearest(metric: str, memory: str) -> None:
    base, queries = rows(3000, 24), rows(20, 24, seed=5)
    async with await session_on("memory:", metric=metric, memory=memory, threads=2) as session:
        await session.add_batch([str(i) for i in range(3000)], base)
        await session.delete_vector("17")
        many = await session.search_batch(queries, 10, threshold=None, exact=True)
        for query, hits in zip(queries, many, strict=True):
            want = reference(base, query, metric)
            want[17] = np.inf
            for found in (
                hits,
                await session.search(query, 10, threshold=None, exact=True),
                await session.search(query, 10, SearchOptions(threshold=None, exact=np.bool_(True))),  # type: ignore[arg-type]
            ):
                assert found.plan == "flat"
                assert [hit.id for hit in found] == [str(i) for i in np.argsort(want, kind="stable")[:10]]
        walked = await session.search(queries[0], 10, SearchOptions(exact=True), exact=False, ef_search=10)
        assert walked.plan == "graph"
        plans = (await session.get_stats()).plans
        assert {plan: count for plan, count in plans.items() if count} == {"flat": 60, "graph": 1}


async def test_results_are_a_sequence() -> None:
    async with await session_on("memory:") as session:
        await session.add_batch(["a", "b", "c"], np.eye(3))
        hits = await session.search([1, 0.5, 0.1], 3, threshold=None)
        assert [hit.id for hit in hits[:2]] == ["a", "b"]
        assert hits[-1].id == "c"
        assert "SearchResult(id='a'" in repr(hits)
        assert hits[0] == hits[0]
        assert hits[0] != "a"
        assert len({hits[0], hits[0]}) == 1


async def test_an_empty_index_answers_with_nothing() -> None:
    async with await session_on("memory:") as session:
        assert list(await session.search([1, 2], 3)) == []
        assert [list(hits) for hits in await session.search_batch([[1, 2]], 3)] == [[]]
        assert await session.get(["x"]) == [None]
        assert await session.count() == 0
        assert [row async for row in session.scan()] == []


async def test_more_hits_than_rows() -> None:
    async with await session_on("memory:") as session:
        await session.add_batch(["a", "b"], np.eye(2))
        assert len(await session.search([1, 1], 10_000, threshold=None)) == 2


async def test_on_conflict() -> None:
    async with await session_on("memory:") as session:
        first = await session.add_batch(["a", "b"], np.eye(2), [{"v": 1}, {"v": 1}])
        assert (first.added, first.replaced, first.skipped) == (2, 0, 0)
        with pytest.raises(ConflictError, match="duplicate id 'b'") as caught:
            await session.add_batch(["c", "b"], np.eye(2))
        assert caught.value.details["id"] == "b"
        skipped = await session.add_batch(["b", "c"], np.ones((2, 2)), [{"v": 2}, {"v": 2}], on_conflict="skip")
        assert (skipped.added, skipped.replaced, skipped.skipped) == (1, 0, 1)
        replaced = await session.add_batch(["a", "d"], np.ones((2, 2)), [{"v": 3}, None], on_conflict="replace")
        assert (replaced.added, replaced.replaced, replaced.skipped) == (1, 1, 0)
        got = [row for row in await session.get(["a", "b", "c", "d"]) if row is not None]
        assert [row.metadata for row in got] == [{"v": 3}, {"v": 1}, {"v": 2}, None]
        assert await session.count() == 4
        with pytest.raises(ConflictError, match="rows 0 and 1"):
            await session.add_batch(["x", "x"], np.eye(2))
        with pytest.raises(InvalidInputError, match="on_conflict"):
            await session.add_batch(["y"], [[1, 2]], on_conflict="merge")
        await session.delete_vector("d")
        await session.add_batch(["d"], [[1, 2]])


async def test_a_failed_batch_leaves_nothing_behind() -> None:
    base = rows(1000, 8)
    base[700, 3] = np.nan
    async with await session_on("memory:") as session:
        for _ in range(2):
            with pytest.raises(InvalidInputError, match=r"row 700 .*NaN") as caught:
                await session.add_batch([f"r{i}" for i in range(1000)], base, [{"n": i} for i in range(1000)])
            assert caught.value.details["row"] == 700
            assert caught.value.details["id"] == "r700"
            assert caught.value.details["native"]["line"] > 0
        stats = await session.get_stats()
        assert stats.vector_count == 0
        assert not stats.dirty
        # The failed rows had 8 dimensions; nothing was fixed by them.
        await session.add_vectors([VectorInput("a", [1.0] * 5)])


BAD_ROWS: list[tuple[dict[str, Any], str]] = [
    ({"id": "", "vector": [1, 2]}, "is empty"),
    ({"id": "x" * 1025, "vector": [1, 2]}, "1025 bytes of UTF-8, the limit is 1024"),
    ({"id": "\ud800", "vector": [1, 2]}, "lone surrogate"),
    ({"id": 7, "vector": [1, 2]}, "must be a string"),
    ({"id": "a", "vector": [1, math.inf]}, "NaN or infinity"),
    ({"id": "a", "vector": [1, 1e39]}, "NaN or infinity"),
    ({"id": "a", "vector": [0, 0]}, "zero vector"),
    ({"id": "a", "vector": [1, 2, 3]}, "Vector dimension mismatch: expected 2, got 3"),
    ({"id": "a", "vector": [1]}, "Vector dimension mismatch: expected 2, got 1"),
    ({"id": "a", "vector": ["x", "y"]}, "real numbers"),
    ({"id": "a", "vector": [1j, 2]}, "real numbers"),
    ({"id": "a", "vector": [None, 1]}, "real numbers|shape"),
    ({"id": "a"}, "needs id and vector"),
    ({"id": "a", "vector": [1, 2], "extra": 1}, "needs id and vector"),
    ({"id": "a", "vector": [1, 2], "metadata": {1: 2}}, "key of type int"),
    ({"id": "a", "vector": [1, 2], "metadata": {"x": {"y": [1, b"z"]}}}, r"x\.y\[1\] holds a value of type bytes"),
    ({"id": "a", "vector": [1, 2], "metadata": math.nan}, "nan"),
    ({"id": "a", "vector": [1, 2], "metadata": 2**64}, "64 bits"),
    ({"id": "a", "vector": [1, 2], "metadata": "x" * 2**21}, "more than 1048576 bytes"),
    ({"id": "a", "vector": [1, 2], "metadata": ["\ud800"]}, "lone surrogate"),
    ({"id": "a", "vector": [1, 2], "timestamp": datetime(2026, 1, 1)}, "time zone"),
    ({"id": "a", "vector": [1, 2], "timestamp": math.nan}, "timestamp"),
    ({"id": "a", "vector": [1, 2], "timestamp": "now"}, "timestamp"),
    ({"id": "a", "vector": [1, 2], "timestamp": 1e300}, "timestamp"),
    ({"id": "a", "vector": [1, 2], "timestamp": True}, "timestamp"),
]


@pytest.mark.parametrize(("bad", "message"), BAD_ROWS)
async def test_bad_rows_are_refused_before_anything_changes(bad: dict[str, Any], message: str) -> None:
    async with await session_on("memory:") as session:
        await session.add_vectors([{"id": "good", "vector": [1, 1]}])
        with pytest.raises(InvalidInputError, match=message):
            await session.add_vectors([{"id": "other", "vector": [1, 1]}, bad])
        assert await session.count() == 1


async def test_bad_arrays_are_refused() -> None:
    async with await session_on("memory:") as session:
        for arguments, message in [
            ((["a"], np.zeros((1, 4097))), "1 to 4096 dimensions"),
            ((["a"], np.zeros((1, 0))), "1 to 4096 dimensions"),
            ((["a"], np.zeros(3)), "shape"),
            ((["a"], np.ones((2, 3))), "2 vectors and 1 ids"),
            (("a", np.ones((1, 3))), "not one string"),
            ((["a"], np.ones((1, 3)), []), "1 vectors and 0 metadata"),
            ((["a"], np.ones((1, 3)), None, [1, 2]), "1 vectors and 2 timestamps"),
            ((["a"], np.ones((1, 3)), None, np.array([np.nan])), "timestamp"),
            ((["a"], np.ones((1, 3)), None, 5), "timestamps must be a sequence"),
            ((["a"], np.ones((1, 3)), None, np.ones((1, 1))), "timestamps must be a sequence"),
            ((["a"], np.ones((1, 3)), {"text": "for one row"}), "metadata must be a sequence .* got dict"),
            ((["a"], np.ones((1, 3)), "x"), "metadata must be a sequence .* got str"),
            ((["a"], np.ones((1, 3)), iter([None])), "metadata must be a sequence"),
            ((5, np.ones((1, 3))), "ids must be a sequence of strings, got int"),
            ((None, np.ones((1, 3))), "ids must be a sequence of strings, got NoneType"),
        ]:
            with pytest.raises(InvalidInputError, match=message):
                await session.add_batch(*arguments)
        with pytest.raises(InvalidInputError, match="VectorInput or a mapping"):
            await session.add_vectors([3])  # type: ignore[list-item]
        for items in (None, 5, "ab", {"id": "a", "vector": [1, 2]}):
            with pytest.raises(InvalidInputError, match="VectorInputs or mappings"):
                await session.add_vectors(items)  # type: ignore[arg-type]
        for queries in (np.ones((3, 0)), np.ones((1, 1, 2)), None, 5, [[1, 2], [1]]):
            with pytest.raises(InvalidInputError):
                await session.search_batch(queries, 1)
        assert (await session.add_vectors([])).added == 0


@pytest.mark.parametrize(
    ("query", "k", "fields", "message"),
    [
        ([1, 2], 0, {}, "k must be"),
        ([1, 2], -1, {}, "k must be"),
        ([1, 2], 10_001, {}, "between 1 and 10000"),
        ([1, 2], True, {}, "k must be"),
        ([1, 2], 1.5, {}, "k must be"),
        ([1, 2, 3], 1, {}, "Query vector dimension mismatch: expected 2 dimensions, got 3"),
        ([[1, 2], [1, 2]], 1, {}, "search_batch"),
        ([math.nan, 2], 1, {}, "NaN"),
        ([0, 0], 1, {}, "zero vector"),
        ("ab", 1, {}, "no embedder"),
        ([1, 2], 1, {"threshold": 2}, "between 0 and 1"),
        ([1, 2], 1, {"threshold": "x"}, "between 0 and 1"),
        ([1, 2], 1, {"ef_search": 0}, "ef_search"),
        ([1, 2], 1, {"ef_search": 100_001}, "ef_search"),
        ([1, 2], 1, {"lists": 3}, "lists is not one of"),
        ([1, 2], 1, {"exact": True, "ef_search": 10}, "leave out exact or ef_search"),
        ([1, 2], 1, {"exact": 1}, "exact must be True or False, got 1"),
        ([1, 2], 1, {"exact": None}, "exact must be True or False, got None"),
        ([1, 2], 1, {"exact": "yes", "ef_search": 10}, "exact must be True or False"),
    ],
)
async def test_bad_searches_are_refused(query: Any, k: Any, fields: dict[str, Any], message: str) -> None:
    async with await session_on("memory:") as session:
        await session.add_vectors([{"id": "a", "vector": [1, 1]}])
        with pytest.raises(InvalidInputError, match=message):
            await session.search(query, k, **fields)
        if not isinstance(query, str):
            with pytest.raises(VectorDBError):
                await session.search_batch([query], k, **fields)
        with pytest.raises(InvalidInputError, match="SearchOptions"):
            await session.search([1, 2], 1, [("threshold", 0)])  # type: ignore[arg-type]


async def test_a_search_that_repeats_another_is_checked_like_it() -> None:
    """Options that are the same objects as those of the last search are not checked again; equal ones are."""
    async with await session_on("memory:") as session:
        await session.add_vectors([{"id": str(n), "vector": [1, n], "metadata": {"n": n}} for n in range(4)])
        near: dict[str, Any] = {"threshold": 1, "exact": True}
        for query in ([1, 0], [1, 3]):
            assert [hit.distance for hit in await session.search(query, 1, **near)] == [0.0]
        with pytest.raises(InvalidInputError, match="k must be"):
            await session.search([1, 0], True, **near)
        with pytest.raises(InvalidInputError, match="exact must be"):
            await session.search([1, 0], 1, threshold=1, exact=1)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="include_vector is not one of"):
            await session.search([1, 0], 1, threshold=1, include_vector=True)  # type: ignore[call-arg]
        assert [hit.vector is None for hit in await session.search([1, 0], 1, threshold=1)] == [True]
        assert len(await session.search([1, 0], 4, SearchOptions(threshold=None))) == 4
        assert len(await session.search([1, 0], 4, {"threshold": 1})) == 1
        assert len(await session.search([1, 0], 4)) == 3
        chosen = {"n": 1}
        for n in (1, 2):
            chosen["n"] = n
            assert [hit.id for hit in await session.search([1, 0], 4, filter=chosen, threshold=None)] == [str(n)]


async def test_ids_of_every_plane_and_values_of_every_shape_come_back() -> None:
    ids = ["a\0b", "é", "漢字", "🦀", "\U000e0001", "\U0010ffff", "x" * 1024, " ", "../..", "Ωmega" * 100]
    values: list[Any] = [None, True, 0, -(2**63), 2**64 - 1, 1.5, -0.0, 5e-324, "ß🦀", [1, [2, {"a": [None]}]]]
    async with await session_on("memory:") as session:
        await session.add_batch(ids, rows(len(ids), 8), [{"v": value, "": {}} for value in values])
        got = await session.get(ids)
        for row, id, value in zip(got, ids, values, strict=True):
            assert row is not None
            assert row.id == id
            assert row.metadata == {"v": value, "": {}}
            assert type(row.metadata["v"]) is type(value)
        assert math.copysign(1, got[6].metadata["v"]) == -1  # type: ignore[union-attr]


async def test_timestamps_are_kept_to_the_microsecond() -> None:
    zone = timezone(timedelta(hours=5, minutes=30))
    aware = [datetime(2026, 1, 2, 3, 4, 5, 678901, UTC), datetime(2026, 1, 2, tzinfo=zone)]
    given = [0, 1.5, -1, 1_700_000_000.123456, *aware]
    async with await session_on("memory:", clock=lambda: 42.25) as session:
        await session.add_batch([str(i) for i in range(6)], np.ones((6, 2)), None, given)
        await session.add_vectors([VectorInput("now", [1, 2]), VectorInput("then", [1, 2], timestamp=7)])
        got = [row.timestamp for row in await session.get([*map(str, range(6)), "now", "then"]) if row]
        assert got[:4] == [0, 1.5, -1, 1_700_000_000.123456]
        assert got[4:6] == [moment.timestamp() for moment in aware]
        assert got[6:] == [42.25, 7]


async def test_what_would_not_fit_is_refused_before_anything_changes() -> None:
    async with await session_on("memory:", memory_budget_mb=1) as session:
        await session.add_batch([str(i) for i in range(1000)], rows(1000, 16))
        before = await session.get_stats()
        with pytest.raises(MemoryBudgetExceededError, match="memory_budget_mb") as caught:
            await session.add_batch([f"x{i}" for i in range(20_000)], rows(20_000, 16))
        assert caught.value.details["needed_bytes"] > caught.value.details["budget_bytes"] == 1_000_000
        assert isinstance(caught.value, MemoryError)
        with pytest.raises(MemoryBudgetExceededError):
            await session.add_vectors([VectorInput("y", rows(1, 16)[0], "m" * 900_000)])
        assert (await session.get_stats()).vector_count == before.vector_count

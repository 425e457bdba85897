"""Filters in a session: as many hits as there are, the right ones, and never those of another version."""

from __future__ import annotations

import threading
import uuid
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import anyio
import numpy as np
import pytest
from saving import PHRASE, SEED, rows, session_on

from fabstir_vectordb import (
    FacetCount,
    InvalidInputError,
    MemoryBudgetExceededError,
    SearchOptions,
    SessionError,
    VectorDBSession,
    sync,
)
from fabstir_vectordb.metadata.columns import Columns

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]


COUNT = 6_000


def metadata(row: int) -> dict[str, Any]:
    return {
        "n": row,
        "half": row % 2 == 0,
        "ten": f"group {row % 10}",
        "tags": [f"t{row % 3}", f"u{row % 7}"],
        "source": {"page": row % 100},
        **({"rare": True} if row % 1_000 == 3 else {}),
    }


async def filled(uri: str = "memory:", count: int = COUNT, **fields: Any) -> VectorDBSession:
    session = await session_on(uri, **{"threads": 2, **fields})
    await session.add_batch([str(row) for row in range(count)], rows(count), [metadata(row) for row in range(count)])
    return session


FILTERS: list[tuple[Any, Any]] = [
    ({"half": True}, lambda m: m["half"]),
    ({"ten": "group 4"}, lambda m: m["ten"] == "group 4"),
    ({"source.page": {"$lt": 1}}, lambda m: m["source"]["page"] < 1),
    ({"rare": True}, lambda m: "rare" in m),
    ({"n": {"$in": [5, 17, 4_000]}}, lambda m: m["n"] in (5, 17, 4_000)),
    ({"n": 77}, lambda m: m["n"] == 77),
    ({"n": -1}, lambda m: False),
    ({"tags": "t1", "half": False}, lambda m: "t1" in m["tags"] and not m["half"]),
    ({"$or": [{"rare": {"$exists": True}}, {"n": {"$gte": 5_990}}]}, lambda m: "rare" in m or m["n"] >= 5_990),
    ({}, lambda m: True),
]


@pytest.mark.parametrize("memory", ["default", "compact"])
async def test_k_rows_come_whenever_k_rows_match(memory: str) -> None:
    base, queries = rows(COUNT).astype(np.float64), rows(20, seed=3)
    unit = base / np.linalg.norm(base, axis=1, keepdims=True)
    async with await filled(memory=memory) as session:
        for filter, takes in FILTERS:
            allowed = np.array([row for row in range(COUNT) if takes(metadata(row))], dtype=int)
            shared = 0
            for k in (1, 10, 50):
                options = SearchOptions(threshold=None, filter=filter)
                batch = await session.search_batch(queries, k, options)
                for query, many in zip(queries, batch, strict=True):
                    hits = await session.search(query, k, threshold=None, filter=filter)
                    assert [hit.id for hit in hits] == [hit.id for hit in many]
                    assert len(hits) == min(k, len(allowed))
                    assert all(takes(hit.metadata) for hit in hits)
                    near = allowed[np.argsort(-(unit[allowed] @ query), kind="stable")[:k]]
                    shared += len({hit.id for hit in hits} & {str(row) for row in near})
                    if hits.plan == "filtered exact":
                        assert [hit.id for hit in hits] == [str(row) for row in near]
                    exact = await session.search(query, k, threshold=None, filter=filter, exact=True)
                    assert [hit.id for hit in exact] == [str(row) for row in near]
                    assert exact.plan == "filtered exact"
            wanted = len(queries) * sum(min(k, len(allowed)) for k in (1, 10, 50))
            assert shared >= 0.97 * wanted, filter
        plans = (await session.get_stats()).plans
        assert plans["graph"] > 0
        assert plans["filtered exact"] > 0


async def test_the_threshold_cuts_what_the_filter_took() -> None:
    async with await filled(count=100) as session:
        query = rows(1)[0]
        every = await session.search(query, 100, threshold=None, filter={"half": True})
        cut = await session.search(query, 100, threshold=every[9].score, filter={"half": True})
        assert [hit.id for hit in cut] == [hit.id for hit in every[:10]]
        assert cut.below_threshold == len(every) - 10


async def test_answers_follow_every_change() -> None:
    query = rows(1)[0]
    async with await filled(count=2_000) as session:

        async def found(filter: Any) -> list[str]:
            hits = await session.search(query, 2_000, threshold=None, filter=filter)
            ids = sorted((hit.id for hit in hits), key=int)
            assert len(ids) == await session.count(filter) == len([row async for row in session.scan(filter)])
            return ids

        assert await found({"rare": True}) == ["3", "1003"]
        await session.update_metadata("3", {"rare": False})
        assert await found({"rare": True}) == ["1003"]
        await session.update_metadata("4", {"rare": True}, merge=True)
        assert await found({"rare": True}) == ["4", "1003"]
        await session.delete_vector("1003")
        assert await found({"rare": True}) == ["4"]
        await session.add_batch(["1003", "7"], rows(2, seed=9), [{"rare": True}, None], on_conflict="replace")
        assert await found({"rare": True}) == ["4", "1003"]
        assert await found({"n": 7}) == []
        await session.vacuum()
        assert await found({"rare": True}) == ["4", "1003"]
        assert len(await found({"n": {"$exists": False}})) == 3
        await session.add_batch(["2000"], rows(1, seed=10), [metadata(2_004)])
        assert await found({"rare": True}) == ["4", "1003"]
        assert await found({"n": 2_004}) == ["2000"]


async def test_filters_are_asked_of_a_loaded_version() -> None:
    uri = f"memory:{uuid.uuid4()}"
    async with await filled(uri, count=1_500) as session:
        await session.count({"rare": True})
        await session.save_to_s5()
    async with await session_on(uri) as session:
        await session.load_user_vectors()
        assert await session.count({"rare": True}) == 2
        assert [row.id async for row in session.scan({"rare": True})] == ["3", "1003"]


async def test_rows_are_deleted_by_what_they_say() -> None:
    async with await filled(count=1_000) as session:
        gone = await session.delete_by_metadata({"ten": {"$in": ["group 1", "group 2"]}})
        assert gone.deleted_count == len(gone.deleted_ids) == 200
        assert gone.deleted_ids[:3] == ["1", "2", "11"]
        assert await session.count() == 800
        assert await session.count({"ten": "group 1"}) == 0
        assert (await session.delete_by_metadata({"ten": "group 1"})).deleted_ids == []
        for nothing in ({}, {"$and": [{}]}, {"$and": [{}, {}]}):
            with pytest.raises(InvalidInputError, match="every row"):
                await session.delete_by_metadata(nothing)
        with pytest.raises(InvalidInputError, match="must be a dict"):
            await session.delete_by_metadata(None)  # type: ignore[arg-type]
        assert await session.count() == 800
    async with await session_on("memory:") as session:
        assert (await session.delete_by_metadata({"a": 1})).deleted_count == 0


async def test_a_scan_goes_in_the_order_of_a_field() -> None:
    values: list[Any] = [3, "b", None, {"v": 1}, True, 2**64 - 1, 2.5, "a", False, [1], -1]
    async with await session_on("memory:") as session:
        given = [{"v": value, "even": row % 2 == 0} for row, value in enumerate(values)]
        await session.add_batch([str(row) for row in range(len(values))], rows(len(values)), given)
        await session.add_batch(["none"], rows(1, seed=5))
        ids = [row.id async for row in session.scan(order="v")]
        assert ids == ["2", "8", "4", "10", "6", "0", "5", "7", "1", "3", "9", "none"]
        ids = [row.id async for row in session.scan(order="-v")]
        assert ids == ["1", "7", "5", "0", "6", "10", "4", "8", "2", "3", "9", "none"]
        assert [row.id async for row in session.scan({"even": True}, order="v")] == ["2", "8", "4", "10", "6", "0"]
        assert [row.id async for row in session.scan({"v": {"$gt": 0}})] == ["0", "5", "6", "9"]
        with pytest.raises(InvalidInputError, match="no field"):
            [row async for row in session.scan(order="-")]
        with pytest.raises(InvalidInputError, match="must be a string"):
            [row async for row in session.scan(order=3)]  # type: ignore[arg-type]


@pytest.mark.parametrize("order", [None, "n"])
async def test_a_scan_survives_what_happens_to_the_rows(order: str | None) -> None:
    async with await filled(count=3_000) as session:
        seen = []
        async for row in session.scan({"half": True}, order=order):
            if not seen:
                for gone in (2_000, 2_002, 1):
                    await session.delete_vector(str(gone))
                await session.vacuum()
                await session.add_batch(["late"], rows(1, seed=8), [{"half": True, "n": 5_000}])
            seen.append(int(row.id))
        assert seen == [row for row in range(0, 3_000, 2) if row not in (2_000, 2_002)]


async def test_facets_count_rows() -> None:
    async with await filled(count=100) as session:
        assert await session.facets("half") == [FacetCount(False, 50), FacetCount(True, 50)]
        assert (await session.facets("tags"))[0] == FacetCount("t0", 34)
        assert await session.facets("tags", {"n": {"$lt": 2}}) == [
            FacetCount(tag, 1) for tag in ("t0", "t1", "u0", "u1")
        ]
        await session.delete_vector("0")
        assert await session.facets("n", {"n": {"$lt": 3}}) == [FacetCount(1, 1), FacetCount(2, 1)]
        assert await session.facets("unknown") == []
        with pytest.raises(InvalidInputError):
            await session.facets("a..b")
    async with await session_on("memory:") as session:
        assert await session.facets("a") == []
        assert await session.count({"a": 1}) == 0
        assert list(await session.search([1.0], 3, filter={"a": 1})) == []


async def test_dates_and_dotted_keys_through_a_session_and_a_load() -> None:
    uri = f"memory:{uuid.uuid4()}"
    noon = datetime(2024, 1, 31, 12, tzinfo=timezone(timedelta(hours=2)))
    given: list[Any] = [
        {"v1.0": "keep", "at": noon, "day": noon.date(), "key": uuid.UUID(int=7), "n": 2**60},
        {"v1": {"0": "drop"}, "at": noon + timedelta(days=1), "day": noon.date() + timedelta(days=1), "n": 2**60 + 1},
        {"at": "2024-01-31T12:00:00+02:00", "day": "2024-01-31", "key": str(uuid.UUID(int=7)), "n": np.int64(5)},
    ]
    async with await session_on(uri) as session:
        await session.add_batch(["0", "1", "2"], np.eye(3), given)
        await session.save_to_s5()
    async with await session_on(uri) as session:
        await session.load_user_vectors()
        rows_back = await session.get(["0", "1", "2"])
        assert [row and row.metadata for row in rows_back] == given
        assert rows_back[0] and rows_back[0].metadata["at"].utcoffset() == timedelta(hours=2)
        utc = noon.astimezone(UTC)
        for filter, ids in [
            ({"at": utc}, ["0"]),
            ({"at": {"$gt": utc}}, ["1"]),
            ({"day": date(2024, 1, 31)}, ["0"]),
            ({"day": "2024-01-31"}, ["2"]),
            ({"key": {"$in": [uuid.UUID(int=7)]}}, ["0"]),
            ({"n": {"$gt": 2**60}}, ["1"]),
            ({"n": np.float32(5)}, ["2"]),
            ({"v1.0": {"$exists": True}}, ["0", "1"]),
            ({'"v1.0"': {"$exists": True}}, ["0"]),
        ]:
            assert [row.id async for row in session.scan(filter)] == ids
            assert await session.count(filter) == len(ids)
        assert [row.id async for row in session.scan(order="at")] == ["2", "0", "1"]
        assert [row.id async for row in session.scan(order="-day")] == ["1", "0", "2"]
        assert [row.id async for row in session.scan(order='"v1.0"')] == ["0", "1", "2"]
        assert set(await session.facets("at")) == {FacetCount(row["at"], 1) for row in given}
        assert {type(facet.value) for facet in await session.facets("n")} == {int}
        assert await session.facets("v1.0") == [FacetCount("drop", 1), FacetCount("keep", 1)]
        assert (await session.delete_by_metadata({"v1.0": {"$ne": "keep"}})).deleted_ids == ["1", "2"]


class Shy(str):
    """A text that always shows itself alike."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "shy"

    __str__ = __repr__


async def test_answers_are_remembered_by_value() -> None:
    async with await session_on("memory:") as session:
        given = [{"u": Shy("a"), "n": 1}, {"u": Shy("b"), "n": True}, {"u": "c", "n": 2**60}]
        await session.add_batch(["0", "1", "2"], np.eye(3), given)
        for filter, ids in [
            ({"u": Shy("a")}, ["0"]), ({"u": Shy("b")}, ["1"]), ({"u": "b"}, ["1"]), ({"n": 1}, ["0"]),
            ({"n": True}, ["1"]), ({"n": 1.0}, ["0"]), ({"n": {"$in": [Shy("b"), 2**60]}}, ["2"]),
            ({"n": 2**60 + 1}, []),
        ]:  # fmt: skip
            assert [row.id async for row in session.scan(filter)] == ids
        assert await session.count({"n": {"$gt": 10**5000}}) == 0
        assert await session.count({"n": {"$lt": 10**5000}}) == 2


def test_the_twin_filters_too() -> None:
    with sync.VectorDBSession.create(s5_portal="memory:", user_seed_phrase=PHRASE, session_id="s") as session:
        session.add_batch([str(row) for row in range(100)], rows(100), [metadata(row) for row in range(100)])
        assert session.search(rows(1)[0], 1, filter={"n": 0})[0].id == "0"
        assert session.search_batch(rows(1), 1, threshold=None, filter={"n": 5})[0][0].id == "5"
        assert session.count({"half": True}) == 50
        assert session.count() == 100
        assert [row.id for row in session.scan({"rare": True})] == ["3"]
        assert next(iter(session.scan(order="-n"))).id == "99"
        assert session.facets("half")[0].count == 50
        assert session.delete_by_metadata({"rare": True}).deleted_ids == ["3"]


# ---- beside changes


async def test_a_known_filter_is_answered_on_the_loop_and_a_new_one_in_a_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: list[int] = []
    real = Columns.get

    def get(columns: Columns, *args: Any) -> Any:
        threads.append(threading.get_ident())
        return real(columns, *args)

    monkeypatch.setattr(Columns, "get", get)
    async with await filled(count=500) as session:
        for _ in range(3):
            await session.search(rows(1)[0], 3, filter={"half": True})
        assert len(threads) == 1
        assert threads[0] != threading.get_ident()
        await session.delete_vector("1")
        await session.search(rows(1)[0], 3, filter={"half": True})
        assert len(threads) == 2
        assert threading.get_ident() not in threads


async def test_no_answer_mixes_two_versions() -> None:
    """Every row's mark is in its id as well; rows change their marks all the time."""
    async with await session_on("memory:", threads=2) as session:
        base = rows(1_200)
        done = False

        async def change() -> None:
            nonlocal done
            random = np.random.default_rng(SEED)
            for mark in range(1, 8):
                await session.add_batch([f"{mark}.{row}" for row in range(1_200)], base, [{"mark": mark}] * 1_200)
                await session.delete_by_metadata({"mark": mark - 1})
                if random.random() < 0.5:
                    await session.vacuum()
            done = True

        async def look() -> None:
            while not done:
                for mark in range(8):
                    hits = await session.search(base[0], 5, threshold=None, filter={"mark": mark})
                    assert {hit.id.split(".")[0] for hit in hits} <= {str(mark)}
                    assert all(hit.metadata == {"mark": mark} for hit in hits)
                    assert len(hits) in (0, 5)
                    (many,) = await session.search_batch(base[:1], 5, threshold=None, filter={"mark": mark})
                    assert all(hit.metadata == {"mark": mark} for hit in many)

        async with anyio.create_task_group() as group:
            group.start_soon(change)
            group.start_soon(look)
        assert await session.count({"mark": 7}) == await session.count() == 1_200


# ---- memory


async def test_columns_are_counted_and_give_way() -> None:
    async with await filled(count=4_000) as session:
        session._runtime.index.budget_bytes = 3_000_000
        stats = await session.get_stats()
        assert stats.memory_bytes["columns"] == 0
        before = stats.memory_usage_mb
        await session.count({"n": {"$gt": 5}})
        stats = await session.get_stats()
        assert stats.memory_bytes["columns"] >= 13 * 4_000
        assert stats.memory_usage_mb - before == pytest.approx(stats.memory_bytes["columns"] / 1e6, rel=0.01)
        for field in ("n", "half", "ten", "tags", "source.page", "rare", *(f"f{i}" for i in range(40))):
            await session.count({field: 1})
            # Fresh counts; the budget was held against those of the last change.
            assert (await session.get_stats()).memory_usage_mb <= 3 * 1.001
        with pytest.raises(MemoryBudgetExceededError) as caught:
            await session.count({"$or": [{f"f{i}": 1} for i in range(60)]})
        assert caught.value.details["needed_bytes"] > 3e6
        assert await session.count({"half": True}) == 2_000


async def test_what_filters_take_is_remembered_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fabstir_vectordb.index.filters.MATCHES_BYTES_MAX", 20_000)
    evaluated: list[str] = []
    real = Columns.get

    def get(columns: Columns, paths: Any, *args: Any) -> Any:
        evaluated.extend(paths)
        return real(columns, paths, *args)

    monkeypatch.setattr(Columns, "get", get)
    async with await filled(count=4_000) as session:
        await session.count({"n": 0})
        fields = (await session.get_stats()).memory_bytes["columns"]
        for n in range(200):
            assert await session.count({"n": n}) == 1
            assert (await session.get_stats()).memory_bytes["columns"] <= fields + 20_000
        before = len(evaluated)
        assert await session.count({"n": 199}) == 1
        assert len(evaluated) == before
        # The values of a filter are not remembered with its rows, however many they are.
        assert await session.count({"n": {"$in": list(range(100_000))}}) == 4_000
        assert await session.count({"n": 199}) == 1
        assert len(evaluated) == before + 1
        await session.delete_vector("7")
        assert await session.count({"n": 7}) == 0


async def test_a_destroyed_session_filters_nothing() -> None:
    session = await filled(count=10)
    await session.count({"half": True})
    await session.destroy()
    for call in (session.count({"half": True}), session.facets("half"), session.delete_by_metadata({"half": True})):
        with pytest.raises(SessionError):
            await call


def test_a_filter_in_itself_is_refused_before_anything_changes() -> None:
    endless: Any = {}
    endless["$not"] = endless
    shared: Any = {}
    for _ in range(30):
        shared = {"$and": [shared, shared]}
    with sync.VectorDBSession.create(s5_portal="memory:", user_seed_phrase="x", session_id="x") as session:
        session.add_batch(["a"], [[1.0, 0.0]], [{"n": 1}])
        for filter in (endless, shared, {"n" * 20_000_000: 1}):
            with pytest.raises(InvalidInputError):
                session.count(filter)
            with pytest.raises(InvalidInputError):
                session.search([1.0, 0.0], 1, filter=filter)
            with pytest.raises(InvalidInputError):
                session.delete_by_metadata(filter)
            with pytest.raises(InvalidInputError):
                session.update_by_metadata(filter, {"n": 2})
        assert [row and row.metadata for row in session.get(["a"])] == [{"n": 1}]

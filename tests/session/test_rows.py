"""Rows by many at once, new vectors, clearing; what foreign arrays, iterables and clocks may do to an add."""

from __future__ import annotations

import gc
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from saving import session_on

from fabstir_vectordb import (
    ConflictError,
    InvalidInputError,
    LoadOptions,
    MemoryBudgetExceededError,
    NotFoundError,
    SearchOptions,
    VectorInput,
)
from fabstir_vectordb._native.handle import NativeIndex
from fabstir_vectordb.index import Index, prepare_batch
from fabstir_vectordb.index.aging import TOMBSTONES_MIN
from fabstir_vectordb.params import IndexParams, RunParams, SearchRequest
from fabstir_vectordb.sync import VectorDBSession as SyncSession

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]

BASE = np.random.default_rng(20_261_126).standard_normal((40, 4)).astype(np.float32)
IDS = [f"r{row}" for row in range(40)]


async def filled(**settings: Any) -> Any:
    session = await session_on("memory:", **settings)
    await session.add_batch(IDS, BASE, [{"n": row} for row in range(40)])
    return session


# ---- many rows in one call


async def test_many_rows_are_deleted_by_one_call_or_none_is() -> None:
    async with await filled() as session:
        with pytest.raises(NotFoundError, match="nobody"):
            await session.delete(["r1", "nobody", "r2"])
        assert await session.count() == 40
        gone = await session.delete(iter(["r2", "r1", "r2"]))
        assert (gone.deleted_count, gone.deleted_ids) == (2, ["r2", "r1"])
        assert (await session.delete(["nobody", "r3"], missing_ok=True)).deleted_ids == ["r3"]
        assert (await session.delete([])).deleted_count == 0
        assert await session.count() == 37
        assert await session.get(["r1", "r2", "r3"]) == [None] * 3
        for bad in ("r4", 4, [4], None):
            with pytest.raises(InvalidInputError):
                await session.delete(bad)


async def test_metadata_of_many_rows_is_replaced_or_merged_by_one_call_or_none_is() -> None:
    async with await filled() as session:
        await session.update_metadata({"r1": {"n": -1}, "r2": None})
        await session.update_metadata({"r3": {"more": 1}, "r4": {"n": -4}}, merge=True)
        got = [row.metadata for row in await session.get(["r1", "r2", "r3", "r4"])]
        assert got == [{"n": -1}, None, {"n": 3, "more": 1}, {"n": -4}]
        assert await session.count({"n": {"$lt": 0}}) == 2
        for bad, error in [
            ({"r5": 1, "nobody": 2}, NotFoundError),
            ({"r5": 1, "r6": object()}, InvalidInputError),
            ({5: 1}, InvalidInputError),
        ]:
            with pytest.raises(error):
                await session.update_metadata(bad)
        with pytest.raises(InvalidInputError, match="second argument"):
            await session.update_metadata({"r5": 1}, 2)
        with pytest.raises(InvalidInputError, match="merge must be True or False"):
            await session.update_metadata("r5", {}, merge="no")
        assert (await session.get(["r5"]))[0].metadata == {"n": 5}


async def test_a_new_vector_leaves_metadata_time_and_expiry_alone() -> None:
    async with await session_on("memory:", clock=lambda: 50.0) as session:
        await session.add_batch(["a", "b"], BASE[:2], [{"n": 1}, None], [10.0, 20.0], expires_at=[100.0, None])
        await session.update_vector("a", BASE[2])
        (row,) = await session.get(["a"])
        assert np.array_equal(row.vector, BASE[2])
        assert (row.metadata, row.timestamp, row.expires_at) == ({"n": 1}, 10.0, 100.0)
        assert [hit.id for hit in await session.search(BASE[2], 1)] == ["a"]
        for bad in (None, [1.0], "abcd", [float("nan")] * 4):
            with pytest.raises(InvalidInputError):
                await session.update_vector("a", bad)
        with pytest.raises(NotFoundError):
            await session.update_vector("nobody", BASE[3])
        assert await session.count() == 2


async def test_clearing_leaves_an_empty_index_of_any_dimension() -> None:
    async with await filled() as session:
        await session.set_schema({"n": "number"})
        assert await session.clear() == 40
        assert (await session.get_stats()).deleted_count == 0
        assert await session.count() == await session.count({"n": 1}) == 0
        assert await session.get(["r1"]) == [None]
        assert list(await session.search(BASE[0], 3)) == []
        await session.add_vectors([VectorInput("x", [1.0, 2.0], {"n": 1})])
        with pytest.raises(InvalidInputError, match="schema"):
            await session.add_vectors([VectorInput("y", [1.0, 2.0], {"n": "one"})])
        cleared = await session.clear(), await session.clear()
        assert cleared == (1, 0)


async def test_a_scan_that_was_begun_ends_when_all_rows_are_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fabstir_vectordb.session.SCAN_PAGE_ROWS", 5)
    async with await filled() as session, aclosing(session.scan()) as scan:
        assert (await anext(scan)).id == "r0"
        await session.clear()
        assert [row.id async for row in scan] == ["r1", "r2", "r3", "r4"]


async def test_of_rows_with_one_id_in_one_call_the_last_replaces_and_the_first_is_kept_by_skip() -> None:
    twice = [VectorInput("a", [1.0, 0.0], "first"), VectorInput("b", [1.0, 1.0]), VectorInput("a", [0.0, 1.0], "last")]
    for on_conflict, kept in (("replace", "last"), ("skip", "first")):
        async with await session_on("memory:") as session:
            result = await session.add_vectors(twice, on_conflict=on_conflict)
            assert (result.added, result.replaced, result.skipped) == (2, 0, 1)
            assert (await session.get(["a"]))[0].metadata == kept
            result = await session.add_vectors(twice, on_conflict=on_conflict)
            assert (result.added, result.replaced, result.skipped) == ((0, 2, 1) if kept == "last" else (0, 0, 3))
            assert await session.count() == 2
            with pytest.raises(ConflictError, match="rows 0 and 2"):
                await session.add_vectors(twice)


def test_the_synchronous_twin_has_the_same_verbs() -> None:
    with SyncSession.create(s5_portal="memory:", user_seed_phrase="a secret", session_id="s") as session:
        session.add_batch(IDS, BASE)
        assert session.delete(id for id in IDS[:3]).deleted_count == 3
        session.update_metadata({"r4": 4, "r5": 5})
        session.update_vector("r6", BASE[0])
        assert session.search(BASE[:1], 1)[0].id == "r6"
        assert session.clear() == 37


# ---- tombstones


async def test_upserts_of_the_same_rows_never_pile_up_tombstones() -> None:
    rows = np.random.default_rng(1).standard_normal((500, 16)).astype(np.float32)
    ids = [f"r{row}" for row in range(500)]
    async with await session_on("memory:") as session:
        for round in range(12):
            await session.add_batch(ids, rows + round, on_conflict="replace")
            stats = await session.get_stats()
            assert stats.vector_count == 500
            assert stats.deleted_count < TOMBSTONES_MIN + 500
        assert np.array_equal((await session.get(["r7"]))[0].vector, rows[7] + 11)


async def test_tier_threads_and_budget_do_not_decide_when_tombstones_go(tmp_path: Path) -> None:
    rows = np.random.default_rng(2).standard_normal((600, 16)).astype(np.float32)
    ids = [f"r{row}" for row in range(600)]
    cids, deleted = [], []
    for number, (memory, threads, budget) in enumerate([("default", 1, 512), ("default", 2, 20), ("compact", 1, 512)]):
        settings = {"memory": memory, "threads": threads, "memory_budget_mb": budget}
        async with await session_on((tmp_path / str(number)).as_uri(), **settings) as session:
            for round in range(4):
                await session.add_batch(ids, rows + round, None, [9.0] * 600, on_conflict="replace")
                deleted.append((await session.get_stats()).deleted_count)
            cids.append(await session.save_to_s5())
    assert deleted == [0, 600, 1_200, 600] * 3
    assert cids[0] == cids[1]


async def test_a_refusal_beside_tombstones_names_the_vacuum() -> None:
    async with await session_on("memory:", memory_budget_mb=2) as session:
        rows = np.zeros((200, 256), dtype=np.float32) + 1
        await session.add_batch([f"r{row}" for row in range(200)], rows)
        await session.delete([f"r{row}" for row in range(50)])
        with pytest.raises(MemoryBudgetExceededError, match=r"call vacuum\(\), which frees 50 deleted rows"):
            await session.add_batch([f"s{row}" for row in range(3_000)], np.ones((3_000, 256), dtype=np.float32))


# ---- foreign objects


class _Gradients:
    """Refuses to become an array, as a tensor does that tracks gradients."""

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")

    def __len__(self) -> int:
        return 4


async def test_an_array_that_cannot_be_read_is_bad_input_with_its_own_error_as_the_cause() -> None:
    async with await filled() as session:
        for call in (
            session.search(_Gradients(), 1),
            session.add_batch(["x"], _Gradients()),
            session.add_vectors([VectorInput("x", _Gradients())]),
            session.search_batch([_Gradients()], 1),
        ):
            with pytest.raises(InvalidInputError, match="requires grad") as caught:
                await call
            assert isinstance(caught.value.__cause__, RuntimeError)
        assert await session.count() == 40


def rows_of_a_database(connection: sqlite3.Connection) -> Iterator[VectorInput]:
    for id, x in connection.execute("SELECT id, x FROM rows"):
        yield VectorInput(id, [x, 1.0])


def _broken() -> Iterator[VectorInput]:
    yield VectorInput("a", [1.0, 1.0])
    raise OSError("the file is gone")


def a_database() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE rows (id TEXT, x REAL)")
    connection.executemany("INSERT INTO rows VALUES (?, ?)", [("a", 1.0), ("b", 2.0)])
    return connection


async def test_items_are_taken_on_the_callers_thread() -> None:
    connection = a_database()
    async with await session_on("memory:") as session:
        assert (await session.add_vectors(rows_of_a_database(connection))).added == 2
        with pytest.raises(InvalidInputError, match="the file is gone") as caught:
            await session.add_vectors(_broken())
        assert isinstance(caught.value.__cause__, OSError)
        assert await session.count() == 2
    connection.close()


def test_the_synchronous_twin_takes_items_on_the_callers_thread_too() -> None:
    connection = a_database()
    settings = {"s5_portal": "memory:", "user_seed_phrase": "a secret", "session_id": "s"}
    with SyncSession.create(**settings) as sync:
        assert sync.add_vectors(rows_of_a_database(connection)).added == 2
    with SyncSession.from_parts(recent=rows_of_a_database(connection), **settings) as sync:
        assert sync.count() == 2
    connection.close()


# ---- times


async def test_milliseconds_are_refused_with_a_hint() -> None:
    async with await session_on("memory:") as session:
        for times in ([1.79e12], [1_790_000_000_000], np.array([1.79e12]), np.array([1_790_000_000_000])):
            for name in ("timestamps", "expires_at"):
                with pytest.raises(InvalidInputError, match=r"value / 1000"):
                    await session.add_batch(["a"], BASE[:1], **{name: times})
        with pytest.raises(InvalidInputError, match="seconds since 1970"):
            await session.add_batch(["a"], BASE[:1], timestamps=[-(10.0**11)])
        with pytest.raises(InvalidInputError, match="an integer of 16610 bits"):
            await session.add_batch(["a"], BASE[:1], timestamps=[10**5000])
        assert await session.count() == 0


@pytest.mark.parametrize("unit", ["Y", "D", "h", "s", "ms", "us", "ns"])
async def test_datetime64_of_any_unit_is_a_time(unit: Any) -> None:
    moment = np.datetime64("1970-01-01T00:00:00", unit) if unit == "ns" else np.datetime64("2026-01-01", unit)
    seconds = moment.astype("datetime64[s]").astype(np.int64)
    async with await session_on("memory:") as session:
        await session.add_batch(["a", "b"], BASE[:2], timestamps=np.array([moment, moment]))
        await session.add_batch(["c", "d"], BASE[:2], timestamps=[moment, None])
        times = await session.get_timestamps(["a", "b", "c"])
        assert set(times.values()) == {float(seconds)}
        for bad in (np.datetime64("NaT", unit), np.datetime64("NaT")):
            for values in ([bad], np.array([bad])):
                with pytest.raises(InvalidInputError, match="timestamp of row 0"):
                    await session.add_batch(["e"], BASE[:1], timestamps=values)
    far = np.array(["300000-01-01"], dtype="datetime64[D]")
    with pytest.raises(InvalidInputError, match="row 0"):
        prepare_batch(["a"], BASE[:1], None, far, lambda: 0, None)


class _Stamp(datetime):
    """Stands for pandas' Timestamp, which is a datetime."""


def test_a_subclass_of_datetime_is_a_time() -> None:
    moment = _Stamp(2026, 1, 1, tzinfo=UTC) + timedelta(microseconds=1)
    batch = prepare_batch(["a"], BASE[:1], None, [moment], lambda: 0, None)
    assert batch.timestamps.tolist() == [1_767_225_600_000_001]


# ---- what errors say


async def test_details_of_a_native_error_are_facts_and_name_the_c_source_under_one_key() -> None:
    async with await filled() as session:
        with pytest.raises(ConflictError) as caught:
            await session.add_batch(["x", "r3"], BASE[:2])
        assert set(caught.value.details) == {"row", "id", "first_row", "native"}
        assert caught.value.details["first_row"] is None
        with pytest.raises(InvalidInputError) as refused:
            await session.add_batch(["x"], np.full((1, 4), np.nan))
        assert set(refused.value.details) == {"row", "id", "native"}
        assert refused.value.details["native"]["file"].endswith(".c")


async def test_a_version_that_does_not_fit_is_refused_in_a_whole_sentence(tmp_path: Path) -> None:
    async with await session_on(tmp_path.as_uri()) as session:
        await session.add_batch([f"r{row}" for row in range(3_000)], np.ones((3_000, 256), dtype=np.float32))
        await session.save_to_s5()
    async with await session_on(tmp_path.as_uri(), memory_budget_mb=2) as session:
        with pytest.raises(MemoryBudgetExceededError, match=r"needs about \d+\.\d MB, more than the 2\.0 MB"):
            await session.load_user_vectors(lazy_load=False)


# ---- options


@pytest.mark.parametrize(
    "options",
    [
        {"include_vectors": "no"},
        {"include_vectors": 1},
        {"threshold": "0.5"},
        {"exact": 0},
        {"filter": [("n", 1)]},
        {"mmr": 2},
        {"nothing": 1},
        {"recall_target": 0.9, "ef_search": 10},
    ],
)
async def test_bad_search_options_are_refused_in_every_form(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        SearchOptions(**options)
    async with await filled() as session:
        for call in (
            session.search(BASE[0], 1, **options),
            session.search(BASE[0], 1, options),
            session.search_batch(BASE[:2], 1, options),
        ):
            with pytest.raises(InvalidInputError):
                await call
        hits = await session.search(BASE[0], 40, {"threshold": 0.0}, include_vectors=np.bool_(True))
        assert len(hits) == 40
        assert np.array_equal(hits[0].vector, BASE[0])


@pytest.mark.parametrize("name", ["missing_ok", "discard_unsaved", "lazy_load", "become_whole"])
async def test_bad_load_options_are_refused_and_nothing_is_dropped(name: str) -> None:
    async with await filled() as session:
        for value in ("no", 1, 0, None):
            with pytest.raises(InvalidInputError, match=f"{name} must be True or False"):
                LoadOptions(**{name: value})
            with pytest.raises(InvalidInputError, match=f"{name} must be True or False"):
                await session.load_user_vectors(**{name: value})
        assert await session.count() == 40
        with pytest.raises(InvalidInputError, match="dry_run must be True or False"):
            await session.prune_history(1, "no")


async def test_the_dimension_is_checked_before_the_filter() -> None:
    async with await filled() as session:
        for query in ([1.0, 2.0], np.ones(5)):
            with pytest.raises(InvalidInputError, match="dimension mismatch: expected 4"):
                await session.search(query, 1, filter={"n": {"$near": 1}})
        with pytest.raises(InvalidInputError, match="dimension mismatch: expected 4"):
            await session.search_batch(np.ones((2, 5)), 1, filter={"n": {"$near": 1}})


async def test_a_query_of_one_row_is_a_query() -> None:
    async with await filled() as session:
        assert [hit.id for hit in await session.search(BASE[7:8], 1)] == ["r7"]
        assert [hit.id for hit in await session.search([BASE[7].tolist()], 1)] == ["r7"]


# ---- memory


def test_metadata_beyond_the_budget_is_refused_before_much_of_it_is_encoded() -> None:
    encoded = 0

    class Text(list[str]):
        def __iter__(self) -> Iterator[str]:
            nonlocal encoded
            encoded += 1
            return super().__iter__()

    values = [Text(["x" * 100_000]) for _ in range(1_000)]
    with pytest.raises(MemoryBudgetExceededError, match="metadata of 1000 rows"):
        prepare_batch([f"r{i}" for i in range(1_000)], None, values, None, lambda: 0, 4, None, 2_000_000)
    assert encoded <= 50


def test_no_id_of_the_last_search_outlives_the_index() -> None:
    index = Index(IndexParams(), RunParams())
    index.add(prepare_batch(["a-secret-id"], BASE[:1], None, None, lambda: 0, None))
    assert index.search(SearchRequest(BASE[0], 1, None))[0].id == "a-secret-id"
    native = index.native
    assert native is not None
    answers = [bytes(answer.id_bytes) for answer in native._spare]
    assert any(b"a-secret-id" in held for held in answers)
    index.close()
    assert not native._spare
    gc.collect()
    from fabstir_vectordb._native.search import _Answer

    kept = [one for one in gc.get_objects() if isinstance(one, _Answer)]
    assert not any(b"a-secret-id" in bytes(one.id_bytes) for one in kept)


# ---- half of a change


@pytest.mark.parametrize("error", [EOFError, KeyError, RuntimeError, ValueError])
def test_a_read_that_met_a_change_is_read_again_whatever_it_raised(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    index = Index(IndexParams(), RunParams())
    index.add(prepare_batch(IDS, BASE, [{"n": row} for row in range(40)], None, lambda: 0, None))
    real, met = NativeIndex.get_timestamps, 0

    def torn(native: NativeIndex, slots: Any) -> Any:
        nonlocal met
        met += 1
        if met == 1:
            changing = threading.Thread(target=index.update_metadata, args=("r1", {"n": "changed"}))
            changing.start()
            changing.join()
            raise error("half of a row")
        return real(native, slots)

    monkeypatch.setattr(NativeIndex, "get_timestamps", torn)
    (row,) = index.get(["r1"])
    assert row is not None
    assert row.metadata == {"n": "changed"}
    met = 1

    def broken(native: NativeIndex, slots: Any) -> Any:
        raise error("no change came")

    monkeypatch.setattr(NativeIndex, "get_timestamps", broken)
    with pytest.raises(error, match="no change came"):
        index.get(["r1"])
    index.close()

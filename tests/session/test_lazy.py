"""Sessions whose index is loaded lazily: they answer from few parts, and are in all else as if it were whole."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest
from saving import PHRASE, Objects, session_on

from fabstir_vectordb import (
    F,
    IntegrityError,
    InternalError,
    InvalidConfigError,
    InvalidInputError,
    MemoryBudgetExceededError,
    NotFoundError,
    SearchResults,
    VectorDBSession,
    sync,
)
from fabstir_vectordb._native.handle import NativeIndex
from fabstir_vectordb.index.lazy import LazyIndex
from fabstir_vectordb.index.lazy_near import candidates_for
from fabstir_vectordb.index.protocol import Gathered, Missing, Reach
from fabstir_vectordb.params import SearchRequest
from fabstir_vectordb.persist import load as load_module
from fabstir_vectordb.persist.version import PersistSettings

pytestmark = pytest.mark.anyio

SEED, DIM, ROWS, CHUNK = 20_261_124, 32, 6_000, 128
START = 1_700_000_000.0


@pytest.fixture(autouse=True)
def small_versions_are_loaded_lazily(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "_LAZY_BYTES_MIN", 0)


def rows_of(count: int, seed: int) -> np.ndarray:
    """Rows in clusters, in no order."""
    rng = np.random.default_rng(seed)
    middles = np.random.default_rng(SEED).standard_normal((60, DIM)) * 1.5
    return (middles[rng.integers(0, 60, count)] + rng.standard_normal((count, DIM))).astype(np.float32)


def described(row: int) -> dict[str, Any]:
    return {"text": f"row {row}", "n": row, "kind": ["even", "odd"][row % 2]}


async def fill(session: VectorDBSession, count: int = ROWS, first: int = 0, **more: Any) -> None:
    ids = [f"row-{row:05d}" for row in range(first, first + count)]
    metadata = [described(row) if row % 10 else None for row in range(first, first + count)]
    times = START + np.arange(count)
    await session.add_batch(ids, rows_of(count, SEED + first), metadata, times, **more)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A version of many parts, with tombstones."""
    root = tmp_path_factory.mktemp("lazy")

    async def save() -> str:
        async with await session_on(root.as_uri(), chunk_size=CHUNK, clock=lambda: START) as session:
            await fill(session)
            for row in range(0, 500, 7):
                await session.delete_vector(f"row-{row:05d}")
            return await session.save_to_s5()

    return root, anyio.run(save)


@contextlib.asynccontextmanager
async def opened(saved: tuple[Path, str], lazy: bool = True, **fields: Any) -> AsyncIterator[VectorDBSession]:
    async with await session_on(saved[0].as_uri(), **{"clock": lambda: START, **fields}) as session:
        await session.load_user_vectors(saved[1], lazy_load=lazy)
        yield session


class Requests:
    """Counts what a session asks its store for."""

    def __init__(self, session: VectorDBSession, monkeypatch: pytest.MonkeyPatch) -> None:
        self.got: Counter[bytes] = Counter()
        self.put = 0
        store: Any = session._workspace.store
        get, put = store.get, store.put

        async def counted_get(digest: bytes, *args: Any) -> bytes:
            self.got[digest] += 1
            await anyio.lowlevel.checkpoint()
            return await get(digest, *args)

        async def counted_put(data: Any) -> Any:
            self.put += 1
            return await put(data)

        monkeypatch.setattr(store, "get", counted_get)
        monkeypatch.setattr(store, "put", counted_put)


def summary(results: SearchResults) -> list[tuple[str, float, float, Any]]:
    return [(hit.id, hit.score, hit.distance, hit.metadata) for hit in results]


@pytest.mark.one_loop
async def test_a_first_answer_takes_few_parts_and_is_near_the_exact_one(saved: tuple[Path, str]) -> None:
    parts = len(Objects(saved[0]).manifest(saved[1]).parts)
    found = asked = 0
    async with opened(saved, lazy=False) as whole:
        for query in rows_of(30, 5):
            exact = await whole.search(query, 10, threshold=None, exact=True)
            async with opened(saved) as session:
                results = await session.search(query, 10, threshold=None, include_vectors=True)
                assert results.plan == "lazy"
                assert 0 < results.receipt.requests < parts / 2
                assert results.receipt.bytes > 0
                by_id = {row.id: row for row in await whole.get([hit.id for hit in results]) if row is not None}
                distances = {hit.id: (hit.score, hit.distance) for hit in exact}
                for hit in results:
                    assert hit.metadata == by_id[hit.id].metadata
                    assert np.array_equal(hit.vector, by_id[hit.id].vector)
                    assert distances.get(hit.id, (hit.score, hit.distance)) == (hit.score, hit.distance)
                assert [hit.distance for hit in results] == sorted(hit.distance for hit in results)
                again = await session.search(query, 10, threshold=None)
                assert summary(again) == summary(results)
                assert (again.receipt.requests, again.receipt.bytes) == (0, 0)
                assert again.receipt.cache_hits >= results.receipt.requests
            found += len(distances.keys() & by_id.keys())
            asked += 10
    assert found / asked >= 0.9


@pytest.mark.one_loop
async def test_more_candidates_find_more(saved: tuple[Path, str]) -> None:
    async with opened(saved, lazy=False) as whole:
        for query in rows_of(5, 6):
            exact = summary(await whole.search(query, 10, threshold=None, exact=True))
            async with opened(saved) as session:
                wide = await session.search(query, 10, threshold=None, recall_target=1.0)
                assert wide.plan == "lazy"
                assert len({hit.id for hit in wide} & {hit[0] for hit in exact}) >= 9
                assert summary(await session.search(query, 10, threshold=None, ef_search=5_000)) == exact


def test_how_many_candidates() -> None:
    assert [candidates_for(k, 0, None) for k in (1, 5, 10, 100, 10_000)] == [8, 8, 12, 120, 10_000]
    assert [candidates_for(10, 0, target) for target in (0.5, 0.95, 0.96, 0.99, 0.999, 1.0)] == [12, 12, 24, 24, 60, 60]
    assert [candidates_for(10, ef, 0.5) for ef in (1, 64, 100_000)] == [10, 64, 10_000]


@pytest.mark.one_loop
async def test_thresholds_filters_and_mmr_hold(saved: tuple[Path, str]) -> None:
    async with opened(saved) as session, opened(saved, lazy=False) as whole:
        for query in rows_of(5, 7):
            some = await session.search(query, 50, threshold=0.8)
            assert all(hit.score >= 0.8 for hit in some)
            assert some.below_threshold == 50 - len(some)
            odd = await session.search(query, 20, threshold=None, filter={"kind": "odd", "n": {"$lt": 3_000}})
            assert odd.plan == "lazy"
            assert len(odd) == 20
            assert all(hit.metadata["kind"] == "odd" and hit.metadata["n"] < 3_000 for hit in odd)
            rare = {"n": {"$in": [11, 22, 33]}}
            assert {hit.id for hit in await session.search(query, 5, threshold=None, filter=rare)} == {
                "row-00011", "row-00022", "row-00033",
            }  # fmt: skip
            assert await session.count(rare) == await whole.count(rare) == 3
            diverse = await session.search(query, 5, mmr=0.5, threshold=None)
            assert len({hit.id for hit in diverse}) == 5
        assert await session.facets("kind") == await whole.facets("kind")
        assert not session._runtime.index.is_whole


async def test_rows_come_back_without_the_whole(saved: tuple[Path, str]) -> None:
    ids = ["row-00001", "row-00007", "row-05999", "row-00010", "nobody"]
    async with opened(saved) as session, opened(saved, lazy=False) as whole:
        got, expected = await session.get(ids), await whole.get(ids)
        assert [row is None for row in got] == [False, True, False, False, True]
        for one, other in zip(got, expected, strict=True):
            if one is not None and other is not None:
                assert (one.id, one.metadata, one.timestamp) == (other.id, other.metadata, other.timestamp)
                assert np.array_equal(one.vector, other.vector)
        assert await session.count() == await whole.count() == ROWS - 72
        assert await session.get_timestamps(ids) == await whole.get_timestamps(ids)
        stats, others = await session.get_stats(), await whole.get_stats()
        for name in ("vector_count", "index_type", "hnsw_vector_count", "deleted_count", "dirty", "last_cid"):
            assert getattr(stats, name) == getattr(others, name), name
        assert 0 < stats.memory_bytes["cache"] < others.memory_bytes["vectors"]
        assert stats.memory_usage_mb < others.memory_usage_mb
        assert not session._runtime.index.is_whole


@pytest.mark.parametrize("verb", ["scan", "ordered scan", "stream", "exact", "sides", "many queries", "warm"])
async def test_what_takes_the_whole_gets_it(saved: tuple[Path, str], verb: str) -> None:
    query = rows_of(1, 8)[0]

    async def do(session: VectorDBSession) -> Any:
        if verb == "scan":
            return [row.id async for row in session.scan({"kind": "odd"})]
        if verb == "ordered scan":
            return [row.id async for row in session.scan({"n": {"$lt": 50}}, order="-n")]
        if verb == "stream":
            return [hit.id async for hit in session.search_stream(query, threshold=0.75)]
        if verb == "exact":
            return summary(await session.search(query, 30, exact=True, threshold=None))
        if verb == "sides":
            return await session.get_recent_index(), await session.get_historical_index()
        if verb == "many queries":
            return [summary(one) for one in await session.search_batch(rows_of(100, 9), 3, exact=True)]
        return await session.warm()

    async with opened(saved) as session, opened(saved, lazy=False) as whole:
        await session.search(query, 5)
        assert await do(session) == await do(whole)
        assert session._runtime.index.is_whole
        hits = await session.search(query, 5, threshold=None)
        assert (hits.plan, hits.receipt.requests, hits.receipt.cache_hits) == ("graph", 0, 0)
        assert (await session.get_stats()).memory_bytes["cache"] == 0


async def test_a_batch_of_a_few_is_answered_lazily(saved: tuple[Path, str]) -> None:
    async with opened(saved) as session:
        queries = rows_of(3, 10)
        each = await session.search_batch(queries, 4, threshold=None)
        assert [summary(one) for one in each] == [summary(await session.search(q, 4, threshold=None)) for q in queries]
        assert all(one.plan == "lazy" and one.receipt == each[0].receipt for one in each)
        assert not session._runtime.index.is_whole


async def test_changes_and_saves_are_those_of_a_whole_index(saved: tuple[Path, str]) -> None:
    cids, contents = [], []
    for lazy in (True, False):
        async with opened(saved, lazy) as session:
            await session.search(rows_of(1, 11)[0], 3)
            await session.update_metadata("row-00001", {"n": -1})
            await fill(session, 50, first=ROWS)
            await session.delete_by_metadata({"n": 5})
            cids.append(await session.save_to_s5(on_conflict="overwrite"))
            contents.append([(row.id, row.metadata) async for row in session.scan()])
            assert not (await session.get_stats()).dirty
    assert cids[0] == cids[1]
    assert contents[0] == contents[1]


async def test_an_unchanged_save_fetches_and_stores_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with await session_on(tmp_path.as_uri(), chunk_size=CHUNK) as session:
        await fill(session, 2_000)
        cid = await session.save_to_s5()
    async with await session_on(tmp_path.as_uri()) as session:
        await session.load_user_vectors()
        requests = Requests(session, monkeypatch)
        assert await session.save_to_s5() == cid
        assert not requests.put
        vectors = {entry.hash for name, entry in Objects(tmp_path).files(cid).items() if name.startswith("vectors")}
        assert not vectors & requests.got.keys()
        assert [version.cid for version in await session.history()] == [cid]


async def test_a_part_is_fetched_once_however_many_searches_wait(
    saved: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(saved) as session:
        requests = Requests(session, monkeypatch)
        query = rows_of(1, 12)[0]
        answers: list[SearchResults] = []

        async def ask() -> None:
            answers.append(await session.search(query, 10, threshold=None))

        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(ask)
        assert len({str(summary(answer)) for answer in answers}) == 1
        assert set(requests.got.values()) == {1}
        assert sum(answer.receipt.requests for answer in answers) == len(requests.got)


async def test_the_cache_stays_within_its_bytes(saved: tuple[Path, str]) -> None:
    async with opened(saved, cache_size_mb=1) as session, opened(saved, lazy=False) as whole:
        native = (await session.get_stats()).memory_bytes
        index = session._runtime.index
        assert isinstance(index, LazyIndex)
        parts: Any = index.parts
        assert parts.cache.bytes_max == 1_000_000
        parts.cache.bytes_max = 200_000  # the set is smaller than the least there is
        for query in rows_of(40, 13):
            await session.search(query, 10, threshold=None)
            stats = await session.get_stats()
            assert stats.memory_bytes["cache"] <= 200_000
        assert not session._runtime.index.is_whole
        assert (await session.get_stats()).memory_bytes["codes"] == native["codes"]
        assert await session.count({"kind": "odd"}) == await whole.count({"kind": "odd"})


async def test_an_index_most_of_whose_parts_came_becomes_whole(saved: tuple[Path, str]) -> None:
    async with opened(saved) as session:
        for query in rows_of(400, 14):
            results = await session.search(query, 10, threshold=None)
            if results.plan != "lazy":
                break
        assert session._runtime.index.is_whole
    # Unless it would not fit.
    async with opened(saved, memory_budget_mb=2) as session:
        for query in rows_of(200, 14):
            assert (await session.search(query, 10, threshold=None)).plan == "lazy"


@pytest.mark.one_loop
async def test_an_index_that_is_to_stay_lazy_stays_lazy(saved: tuple[Path, str]) -> None:
    async with await session_on(saved[0].as_uri()) as session:
        await session.load_user_vectors(become_whole=False)
        for query in rows_of(400, 14):
            assert (await session.search(query, 10, threshold=None)).plan == "lazy"
        assert await session.count({"kind": "odd"}) > 0
        assert not session._runtime.index.is_whole
        # What every row is needed for gets it all the same.
        await session.delete(["row-00001"])
        assert session._runtime.index.is_whole


async def test_codes_are_held_as_the_bits_that_were_fetched(saved: tuple[Path, str]) -> None:
    async with await session_on(saved[0].as_uri()) as session:
        await session.load_user_vectors(become_whole=False)
        held = (await session.get_stats()).memory_bytes
        # One bit a dimension, in words of 64 bits, and a factor of four bytes; codes of four bits took 36 bytes.
        assert held["codes"] <= ROWS * (8 + 8)
        assert held["vectors"] == held["graph"] == 0
        await session.search(rows_of(1, 14)[0], 10, threshold=None)
        assert (await session.get_stats()).memory_bytes["codes"] == held["codes"]


async def test_an_index_says_what_it_misses_and_scans_its_codes_once(
    saved: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await session_on(saved[0].as_uri()) as session:
        await session.load_user_vectors(become_whole=False)
        index = session._runtime.index
        assert isinstance(index, LazyIndex)
        scans = 0
        real = NativeIndex.candidates

        def candidates(native: NativeIndex, *args: Any) -> Any:
            nonlocal scans
            scans += 1
            return real(native, *args)

        monkeypatch.setattr(NativeIndex, "candidates", candidates)
        request, gathered = SearchRequest(rows_of(1, 21)[0], 5, None), Gathered()
        missing = index.missing(request, gathered)
        assert missing.keys
        assert not missing.whole
        with pytest.raises(InternalError, match="asked what it misses first"):
            index.search(request)
        hits = await session.search(request.query, 5, threshold=None)
        assert hits.receipt.requests == len(missing.keys)
        assert index.missing(request, gathered).keys == ()
        assert summary(index.search(request, gathered)) == summary(hits)
        assert scans == 2  # one of each search
        assert index.missing(request._replace(exact=True), Gathered()).whole
        assert index.missing(Reach.WHOLE, Gathered()).whole
        assert index.missing(Reach.IDS, Gathered()) == Missing()


async def test_expired_rows_do_not_come(tmp_path: Path) -> None:
    now = START
    async with await session_on(tmp_path.as_uri(), chunk_size=CHUNK, clock=lambda: now) as session:
        expires = [START + 10 if row % 2 else None for row in range(2_000)]
        await fill(session, 2_000, expires_at=expires)
        await session.save_to_s5()
    async with await session_on(tmp_path.as_uri(), clock=lambda: now) as session:
        await session.load_user_vectors()
        index = session._runtime.index
        assert isinstance(index, LazyIndex)
        index.stay_lazy()
        query = rows_of(1, 15)[0]
        assert any(int(hit.id[4:]) % 2 for hit in await session.search(query, 20, threshold=None))
        now = START + 11
        hits = await session.search(query, 20, threshold=None)
        assert len(hits) == 20
        assert not any(int(hit.id[4:]) % 2 for hit in hits)
        assert await session.count() == 1_000
        assert (await session.get(["row-00001"]))[0] is None
        assert not session._runtime.index.is_whole


async def test_a_damaged_or_lost_part_is_found_when_it_is_needed(tmp_path: Path) -> None:
    async with await session_on(tmp_path.as_uri(), chunk_size=CHUNK) as session:
        await fill(session, 2_000)
        cid = await session.save_to_s5()
    paths = {name: path for name, path in Objects(tmp_path).of_version(cid).items() if name.startswith("vectors")}
    kept = {path: path.read_bytes() for path in paths.values()}
    query = rows_of(1, 16)[0]
    async with await session_on(tmp_path.as_uri()) as session:
        await session.load_user_vectors()
        for path, raw in kept.items():
            path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
        with pytest.raises(IntegrityError):
            await session.search(query, 5)
        for path in kept:
            path.unlink()
        with pytest.raises(NotFoundError):
            await session.search(query, 5)
        with pytest.raises(NotFoundError):
            await session.add_batch(["new"], [query])
        assert await session.count() == 2_000
        for path, raw in kept.items():
            path.write_bytes(raw)
        assert len(await session.search(query, 5, threshold=None)) == 5
        await session.add_batch(["new"], [query])
        assert (await session.search(query, 1))[0].id == "new"


async def test_a_cancelled_fetch_is_fetched_again(saved: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    query = rows_of(1, 17)[0]
    async with opened(saved) as session:
        store: Any = session._workspace.store
        get, stuck, asked = store.get, True, anyio.Event()

        async def hang(digest: bytes, *args: Any) -> bytes:
            if stuck:
                asked.set()
                await anyio.sleep_forever()
            return await get(digest, *args)

        monkeypatch.setattr(store, "get", hang)
        answers: list[SearchResults] = []

        async def wait() -> None:
            answers.append(await session.search(query, 5, threshold=None))

        async with anyio.create_task_group() as group:
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as inner:
                    inner.start_soon(session.search, query, 5)
                    await asked.wait()
                    group.start_soon(wait)
                    await anyio.wait_all_tasks_blocked()
                    stuck = False
                    scope.cancel()
        assert len(answers[0]) == 5


async def test_a_whole_index_may_take_its_place_while_parts_are_on_their_way(
    saved: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    query = rows_of(1, 21)[0]
    async with opened(saved) as session:
        store: Any = session._workspace.store
        get, asked, held = store.get, anyio.Event(), anyio.Event()
        names = {entry.hash: name for name, entry in Objects(saved[0]).files(saved[1]).items()}

        async def late(digest: bytes, *args: Any) -> bytes:
            blob = await get(digest, *args)
            if names[digest].startswith("vectors") and not held.is_set():
                asked.set()
                await held.wait()
            return blob

        answers: list[SearchResults] = []

        async def ask() -> None:
            answers.append(await session.search(query, 5, threshold=None))

        async with anyio.create_task_group() as group:
            monkeypatch.setattr(store, "get", late)
            group.start_soon(ask)
            await asked.wait()
            monkeypatch.setattr(store, "get", get)
            await session.warm()
            assert session._runtime.index.is_whole
            held.set()
        assert (answers[0].plan, len(answers[0])) == ("graph", 5)


async def test_what_does_not_fit_as_a_whole_is_still_searched(saved: tuple[Path, str]) -> None:
    async with opened(saved, memory_budget_mb=2) as session:
        query = rows_of(1, 18)[0]
        before = summary(await session.search(query, 5, threshold=None))
        for refused in (session.warm(), session.delete_vector("row-00001"), session.search(query, 5, exact=True)):
            with pytest.raises(MemoryBudgetExceededError):
                await refused
        assert summary(await session.search(query, 5, threshold=None)) == before
        assert not (await session.get_stats()).dirty
    manifest = Objects(saved[0]).manifest(saved[1])
    parts: Any = {(1, 0): SimpleNamespace(record=SimpleNamespace(size=10_000))}
    settings = PersistSettings(index_name="default", budget_bytes=800_000)
    # An eighth is for allocators, and two parts on their way are five times in memory.
    room = load_module._room_for_parts(manifest, parts, 1_000_000, settings)
    assert (room.cache_bytes, room.transfers) == (700_000 - ROWS * 72 - 100_000, 2)
    with pytest.raises(MemoryBudgetExceededError) as caught:
        load_module._room_for_parts(manifest, parts, 1, dataclasses.replace(settings, budget_bytes=ROWS * 72))
    assert caught.value.details == {"needed_bytes": ROWS * 81, "budget_bytes": ROWS * 72}


async def test_a_shared_version_is_read_lazily_and_saved_as_ones_own(saved: tuple[Path, str], tmp_path: Path) -> None:
    async with opened(saved) as owner:
        await owner.vacuum()
        shared = await owner.share(await owner.save_to_s5(on_conflict="overwrite"))
    async with await session_on(saved[0].as_uri(), user_seed_phrase="somebody else") as session:
        await session.load_user_vectors(shared)
        assert (await session.search(rows_of(1, 19)[0], 3, threshold=None)).plan == "lazy"
        cid = await session.save_to_s5()
        assert cid != saved[1]
        assert session._runtime.index.is_whole


async def test_bad_arguments_are_refused_before_anything_is_fetched(
    saved: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidConfigError, match="cache_size_mb"):
        await session_on("memory:", cache_size_mb=0)
    async with opened(saved) as session:
        requests = Requests(session, monkeypatch)
        for query in (np.zeros(DIM), np.full(DIM, np.nan), np.ones(DIM + 1)):
            with pytest.raises(InvalidInputError):
                await session.search(query, 3)
        with pytest.raises(InvalidInputError, match="lazy_load"):
            await session.load_user_vectors(lazy_load="yes")
        assert not requests.got


def test_the_synchronous_twin_fetches_too(saved: tuple[Path, str]) -> None:
    query = rows_of(1, 20)[0]
    with sync.VectorDBSession.create(
        s5_portal=saved[0].as_uri(), user_seed_phrase=PHRASE, session_id="test", clock=lambda: START
    ) as session:
        session.load_user_vectors(saved[1])
        first = session.search(query, 5, threshold=None)
        assert first.plan == "lazy"
        assert first.receipt.requests > 0
        assert summary(session.search_batch([query], 5, threshold=None)[0]) == summary(first)
        assert session.get(["row-00001"])[0] is not None
        assert session.count({"kind": "odd"}) > 0
        assert len(list(session.scan())) == ROWS - 72
        assert session.search(query, 5, threshold=None).plan == "graph"
        session.warm()
        session.delete_vector("row-00001")


async def test_filters_by_id_and_time_fetch_no_metadata(
    saved: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(saved) as session:
        requests = Requests(session, monkeypatch)
        assert await session.count(F.id.starts_with("row-0599")) == 10
        assert await session.count((F.timestamp >= START + 5_990) & (F.id != "row-05999")) == 9
        assert not requests.got
        found = await session.search(rows_of(1, 1)[0], 3, threshold=None, filter=F.timestamp >= START + 5_990)
        assert (found.plan, len(found)) == ("lazy", 3)
        assert all(hit.id >= "row-05990" for hit in found)
        assert session._runtime.index.metadata_bytes == 0
        assert await session.count(F("n") >= 5_990) == 9
        assert session._runtime.index.metadata_bytes > 0

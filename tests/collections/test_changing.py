"""Changes of a collection: all or nothing by one move of the root, the same whatever ran twice, an id in one shard."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gathering import DIM, PHRASE, ROWS, START_S, batch, bits, seen, settings, vectors

from fabstir_vectordb import (
    ConflictError,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    StorageError,
    VectorDBSession,
    VectorInput,
    forget_memory_store,
)
from fabstir_vectordb.collections import Collection, build, fingerprints, threads
from fabstir_vectordb.collections.fingerprints import _decoded, _encoded, _of, blob_of
from fabstir_vectordb.collections.records import Route
from fabstir_vectordb.s5.cid import multibase_encode
from fabstir_vectordb.s5.compress import compress
from fabstir_vectordb.storage.local_dir import LocalDirStore

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]


@pytest.fixture
def memory() -> Iterator[str]:
    name = str(uuid.uuid4())
    yield f"memory:{name}"
    forget_memory_store(name)


def row(number: int, near: int, **metadata: Any) -> VectorInput:
    """A row that is near to another one of `batch`."""
    vector = vectors()[near] + np.float32(0.01)
    return VectorInput(f"row-{number:04d}", vector, metadata or {"n": number}, START_S + number)


async def rows_of(many: Collection) -> list[Any]:
    return [bits(row) async for row in many.scan()]


async def test_it_holds_what_one_index_would(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # With fingerprints of two bits, most of which several ids have.
    monkeypatch.setattr(fingerprints, "_of", lambda ids, of=fingerprints._of: of(ids) >> 30)
    await compare(memory, "nearest", 1, 2)


@pytest.mark.long
@pytest.mark.parametrize("route", ["nearest", "hash", "range"])
@pytest.mark.parametrize("seed", range(6))
async def test_it_holds_what_one_index_would_for_long(memory: str, route: Route, seed: int) -> None:
    await compare(memory, route, seed, 12)


async def compare(uri: str, route: Route, seed: int, steps: int) -> None:
    """Random changes, vacuums and rebalances, against a single session; scan shows an id that is in two shards."""
    print(f"route {route}, seed {seed}")
    chance = random.Random(f"{route} {seed}")
    rows, fields = batch(60), settings(uri)
    await build(fields, [rows], shards=2, route=route)
    one = await VectorDBSession.create(s5_portal="memory:", user_seed_phrase=PHRASE, session_id="one", threads=1)
    async with one, await Collection.open(fields) as many:
        await one.add_batch(rows["ids"], rows["vectors"], rows["metadata"], rows["timestamps"])
        for step in range(steps):
            adds = [row(number, chance.randrange(60), step=step) for number in chance.sample(range(90), 8)]
            deletes = [f"row-{n:04d}" for n in chance.sample(range(90), 5)]
            deletes = [id for id in deletes if id not in {item.id for item in adds}]
            if step % 5 == 3:
                deletes += [f"row-{n:04d}" for n in range(40) if f"row-{n:04d}" not in {item.id for item in adds}]
            cid = await many.change(adds, deletes, missing_ok=True)
            await one.delete(deletes, missing_ok=True)
            await one.add_vectors(adds, on_conflict="replace")
            assert await many.change(adds, deletes, missing_ok=True) == cid
            if step % 3 == 2:
                await many.vacuum()
            if step % 2:
                await many.rebalance(rows_max=40, rows_min=9)
            expected = [bits(row) async for row in one.scan()]
            assert await rows_of(many) == expected
            assert (await many.stats()).rows == len(expected) == await many.count()
            for query in vectors(3, seed=step):
                found = await many.search(query, 12, exact=True, threshold=None)
                assert seen(found) == seen(await one.search(query, 12, exact=True, threshold=None))
        sizes = [shard.rows for shard in (await many.stats()).shards]
        assert max(sizes) <= 50
        assert (await many.verify()).shards == len(sizes)
    async with await Collection.open(fields) as again:
        assert await rows_of(again) == expected


async def test_only_touched_shards_are_stored_and_a_moved_row_leaves_its_old_shard(memory: str) -> None:
    rows = batch()
    await build(settings(memory), [rows], shards=3)
    async with await Collection.open(settings(memory)) as many:
        before = {number: shard.cid for number, shard in many._snapshot.shards.items()}
        homes = dict(zip(rows["ids"], many._snapshot.centroids.nearest(rows["vectors"]).tolist(), strict=True))
        first, other = rows["ids"][0], next(id for id in rows["ids"] if homes[id] != homes[rows["ids"][0]])
        place = rows["ids"].index(other)
        await many.change([VectorInput(first, rows["vectors"][place], {"moved": True}, START_S)])
        after = {number: shard.cid for number, shard in many._snapshot.shards.items()}
        changed = {number for number in before if before[number] != after[number]}
        assert changed == {homes[first], homes[other]}
        assert await many.count() == ROWS
        assert (await many.get([first]))[0].metadata == {"moved": True}
        dirty = {shard.number for shard in (await many.stats()).shards if shard.superseded}
        assert dirty == {homes[first]}
        with pytest.raises(ConflictError, match="vacuum") as refused:
            await many.share()
        assert refused.value.details["shards"] == [homes[first]]
        await many.vacuum()
        share = await many.share()
    async with await Collection.open_share(share, settings(memory)["s5_portal"]) as reader:
        assert await reader.count({"moved": True}) == 1


class Counted:
    """Threads that count the tasks of each kind."""

    def __init__(self) -> None:
        self.engine = threads(2)
        self.tasks: list[str] = []

    def submit(self, key: str, task: Callable[..., Any], /, *args: Any) -> Future[Any]:
        self.tasks.append(task.__name__)
        return self.engine.submit(key, task, *args)


async def test_only_the_shard_that_has_an_id_is_asked_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields, counted = settings(tmp_path), Counted()
    await build(fields, [batch(80)], shards=4)
    async with await Collection.open(fields, engine=counted) as many:
        assert [found.id for found in await many.get(["row-0007"]) if found] == ["row-0007"]
        assert await many.get(["nobody"]) == [None]
        assert counted.tasks == ["get"]
        await many.change(deletes=["row-0008"])
        await many.change([row(100, 3)])
        assert counted.tasks == ["get", "live_ids", "change_shard", "change_shard"]
        assert (await many.get(["row-0008", "row-0100"]))[0] is None
        other = (await many.get(["row-0009"]))[0]
        report = await many.verify()
    async with await Collection.open(fields, memory_budget_mb=1) as poor:
        poor._ids._room = 4 * 25  # of one shard, at most
        assert [bits(found) for found in await poor.get(["row-0009"])] == [bits(other)]
        assert len(poor._ids._held) <= 1
        # A shard that does not fit, or has no fingerprints, takes no place from the others.
        first, *others = poor._snapshot.shards
        poor._ids._room = 4 * sum(poor._snapshot.shards[other].rows for other in others)
        for fingerprints_of in (poor._snapshot.shards[first].fingerprints, None):
            large = replace(poor._snapshot.shards[first], rows=10**6, fingerprints=fingerprints_of)
            at = poor._snapshot.with_shards(
                {first: large}, poor._snapshot.centroids, poor._snapshot.settings.next_shard
            )
            poor._ids._bytes.clear()
            assert (await poor._ids.shards_of(at, ["nobody"])) == {first: ["nobody"]}
        # What a root says of rows is not what fingerprints take.
        small = {number: replace(shard, rows=0) for number, shard in poor._snapshot.shards.items()}
        at = poor._snapshot.with_shards(small, poor._snapshot.centroids, poor._snapshot.settings.next_shard)
        poor._ids._held, poor._ids._bytes = {}, {}
        for _ in range(2):
            await poor._ids.shards_of(at, ["nobody"])
            assert 0 < sum(one.nbytes for one in poor._ids._held.values()) <= poor._ids._room
    assert report.shards == 4


@pytest.mark.parametrize("repair", ["vacuum", "change"])
async def test_lost_fingerprints_are_told_and_stored_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, repair: str
) -> None:
    """Missing ones by a vacuum, damaged ones by a change of another shard."""
    fields, is_missing = settings(tmp_path), repair == "vacuum"
    await build(fields, [batch(40)], shards=2)
    async with await Collection.open(fields) as many:
        before, report = await rows_of(many), await many.verify()
        number, blob = next((n, blob_of(one.fingerprints or "")) for n, one in many._snapshot.shards.items())
        other = (await many._ids.shards_of(many._snapshot, [id for id, *_ in before]))[1 - number][0]
    name = multibase_encode(blob.hash)[1:]
    path = tmp_path / "blobs" / name[:2] / name
    path.unlink()
    if not is_missing:
        path.write_bytes(bytes(blob.size))
    async with await Collection.open(fields) as many:
        with pytest.raises(IntegrityError, match="fingerprints") as damaged:
            await many.verify()
        assert damaged.value.details["shard"] == number
        assert [(one["part"], one["cid"], one["missing"]) for one in damaged.value.details["bad"]] == [
            ("fingerprints", str(blob), is_missing)
        ]
        if is_missing:
            cid = (await many.stats()).cid
            assert await many.vacuum() == cid
        else:
            for _ in range(2):
                assert [bits(one) for one in await many.get([id for id, *_ in before])] == before
            assert (await many.get(["nobody"])) == [None]
            await many.change(deletes=[other])
            before = [one for one in before if one[0] != other]
        assert [one.message.partition(" are lost")[0] for one in caplog.records] == [
            f"collection 'big': the fingerprints of shard {number}"
        ]
        assert not many._ids.lost(many._snapshot)
    async with await Collection.open(fields) as many:
        assert (await many.verify()).shards == report.shards
        assert await rows_of(many) == before


async def test_fingerprints_that_were_lost_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = settings(tmp_path)
    await build(fields, [batch(40)], shards=2)
    async with await Collection.open(fields) as many:
        at = many._snapshot
        ids = [id for id, *_ in await rows_of(many)]
        both = {number: sorted(of) for number, of in (await many._ids.shards_of(at, ids)).items()}
    name = multibase_encode(blob_of(at.shards[0].fingerprints or "").hash)[1:]
    path = tmp_path / "blobs" / name[:2] / name
    away = path.rename(tmp_path / "away")
    async with await Collection.open(fields) as many:
        assert len((await many._ids.shards_of(at, ids))[0]) == 40
        away.rename(path)
        assert len((await many._ids.shards_of(at, ids))[0]) == 40
        later = SimpleNamespace(monotonic=lambda: time.monotonic() + fingerprints._AGAIN_S)
        monkeypatch.setattr(fingerprints, "time", later)
        assert {number: sorted(of) for number, of in (await many._ids.shards_of(at, ids)).items()} == both
        assert not many._ids.lost(at)


def test_fingerprints_are_read_as_they_were_written_and_damaged_ones_refused() -> None:
    for count in (0, 1, 2, 5_000):
        ids = [f"row-{number}" for number in range(count)]
        plain = _encoded(ids) or b""
        assert np.array_equal(_decoded(plain), np.unique(_of(ids)))
    assert len(plain) < 3 * count
    twice = (2).to_bytes(4, "little") + compress(bytes(8))
    bomb = (10**6).to_bytes(4, "little") + compress(bytes(4 * 10**6))
    wrapped = (2).to_bytes(4, "little") + compress(b"\xff\x02" + b"\xff\x00" * 3)
    for wrong in (b"", plain[:-1], (4_999).to_bytes(4, "little") + plain[4:], twice, wrapped, bomb):
        with pytest.raises(IntegrityError):
            _decoded(wrong)


async def test_a_refused_change_changes_nothing(memory: str) -> None:
    await build(settings(memory), [batch(40)], shards=2)
    async with await Collection.open(settings(memory)) as many, await Collection.open(settings(memory)) as late:
        expected, cid = await rows_of(many), (await many.stats()).cid
        for error, adds, deletes in (
            (NotFoundError, [row(50, 0)], ["nothing"]),
            (InvalidInputError, [row(50, 0)], ["row-0050"]),
            (InvalidInputError, [VectorInput("new", [1.0] * (DIM + 1))], []),
            (InvalidInputError, [VectorInput("new", [float("nan")] * DIM)], []),
            (ConflictError, [row(50, 0), row(50, 1)], []),
            (InvalidInputError, 7, []),
        ):
            with pytest.raises(error):
                await many.change(adds, deletes)
        assert (await rows_of(many), (await many.stats()).cid) == (expected, cid)
        assert await many.change() == cid
        newest = await many.change([row(50, 0)])
        # The other one does not know of it: its change is refused, and works after a refresh.
        with pytest.raises(ConflictError, match="newer version"):
            await late.change([row(51, 1)])
        assert await rows_of(late) == expected
        assert await late.refresh() is True
        assert await late.refresh() is False
        assert (await late.stats()).cid == newest
        await late.change([row(51, 1)])
        assert await late.count() == 42


class Full:
    """A disk that has room for so many more objects, and is gone after one too many."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.room = 0
        self.lock = threading.Lock()  # the tasks of a change that failed may still run
        self.real = LocalDirStore.put

        async def put(store: LocalDirStore, data: Any) -> Any:
            with self.lock:
                self.room -= 1
                is_full = self.room < 0
            if is_full:
                raise StorageError("the disk is full")
            return await self.real(store, data)

        real_get = LocalDirStore.get

        async def get(store: LocalDirStore, *args: Any) -> Any:
            if self.room < 0:
                raise StorageError("the disk is gone")
            return await real_get(store, *args)

        patch.setattr(LocalDirStore, "put", put)
        patch.setattr(LocalDirStore, "get", get)

    def has_room(self, objects: int) -> None:
        with self.lock:
            self.room = objects


async def test_a_store_that_fails_leaves_the_old_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await build(settings(tmp_path), [batch(40)], shards=2)
    async with await Collection.open(settings(tmp_path)) as many:
        expected = await rows_of(many)
        store = Full(monkeypatch)
        fails_at = 0
        while True:
            store.has_room(fails_at)
            try:
                await many.change([row(50, 0), row(51, 20)], ["row-0003"])
                break
            except StorageError:
                store.has_room(1_000)
                assert await rows_of(many) == expected
                fails_at += 12
        assert fails_at > 6
        store.has_room(1_000)  # what is left of the last room may be too little to open the new shards
        assert await many.count() == 41


async def test_pruning_keeps_every_shard_that_a_kept_root_names(memory: str) -> None:
    await build(settings(memory), [batch(80)], shards=2, route="range")
    async with await Collection.open(settings(memory)) as many:
        first = (await many.stats()).cid
        second = await many.change([row(3, 0)])
        await many.change([row(79, 1)])
        await many.vacuum()
        expected = await rows_of(many)
        assert [version.cid for version in await many.history()][-1] == first
        planned = await many.prune_history(2)
        assert [version.cid for version in planned.versions] == [second, first]
        done = await many.prune_history(2, dry_run=False)
        assert (done.blobs, done.blobs_deleted) == (planned.blobs, planned.blobs)
        assert done.blobs > 4
        assert await rows_of(many) == expected
        assert (await many.verify()).shards == 2
        for version in await many.history():
            async with await Collection.open(settings(memory), cid=version.cid) as old:
                assert await old.count() == 80
        assert (await many.prune_history(2, dry_run=False)).blobs == 0
        await many.change([row(5, 1)])
    with pytest.raises(NotFoundError):
        await Collection.open(settings(memory), cid=first)


async def test_a_second_build_and_wrong_rows_are_refused(memory: str) -> None:
    good = settings(memory)
    for error, batches, fields in (
        (InvalidInputError, [], {}),
        (InvalidInputError, [{"ids": ["a"]}], {}),
        (InvalidInputError, 7, {}),
        (InvalidInputError, [batch(3)], {"shards": 0}),
        (InvalidInputError, [batch(3)], {"route": "random"}),
        (InvalidInputError, [{"ids": ["a"], "vectors": None}], {}),
        (InvalidInputError, [{"ids": ["a"], "vectors": [[0.0, 0.0]]}], {}),
        (ConflictError, [batch(3), batch(3)], {}),
    ):
        with pytest.raises(error):
            await build(good, batches, **fields)
    told: list[str] = []
    await build(
        good, [[VectorInput("a", [1.0, 0.0]), {"id": "b", "vector": None}]], progress=lambda p: told.append(p.stage)
    )
    assert told == ["rows", "routes", "shards", "root"]
    with pytest.raises(ConflictError, match="already"):
        await build(good, [batch(3)])
    async with await Collection.open(good) as many:
        assert [hit.id for hit in await many.search([1.0, 0.1], 5)] == ["a"]
        assert [row.id async for row in many.scan()] == ["a", "b"]

"""Blobs that are kept on the disk between sessions, where the user asks for it."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from saving import add_rows, content, session_on

from fabstir_vectordb import InvalidConfigError
from fabstir_vectordb.persist.disk_cache import DiskCache
from fabstir_vectordb.storage import open_store

pytestmark = pytest.mark.anyio


def files(directory: Path) -> list[Path]:
    return [path for path in (directory / "blobs").rglob("*") if path.is_file()]


class Counted:
    """A session whose store counts what it is asked."""

    def __init__(self, session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gets = 0
        store = session._workspace.store._store
        get = store.get

        async def counted(*args: Any) -> bytes:
            self.gets += 1
            return await get(*args)

        monkeypatch.setattr(store, "get", counted)


async def test_a_second_session_asks_for_no_blob_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"memory:{uuid.uuid4()}"
    async with await session_on(uri) as session:
        await add_rows(session, 1_500)
        await session.save_to_s5()
        expected = await content(session)
    fields = {"disk_cache_dir": tmp_path / "cache", "disk_cache_mb": 10}
    for wanted in (True, False):
        async with await session_on(uri, **fields) as session:
            counted = Counted(session, monkeypatch)
            await session.load_user_vectors()
            assert await content(session) == expected
            assert (counted.gets > 0) is wanted
        monkeypatch.undo()
    assert files(tmp_path / "cache")


async def test_what_is_saved_is_kept_and_nothing_is_in_clear(tmp_path: Path) -> None:
    uri = f"memory:{uuid.uuid4()}"
    async with await session_on(uri, disk_cache_dir=str(tmp_path)) as session:
        await add_rows(session, 200)
        await session.save_to_s5()
        vector = (await session.get(["row-000001"]))[0].vector.tobytes()  # type: ignore[union-attr]
    kept = files(tmp_path)
    assert len(kept) > 5
    for path in kept:
        raw = path.read_bytes()
        for needle in (b"sentence", b"row-0", b"vectors", vector[:8]):
            assert needle not in raw, path
    async with await session_on("memory:elsewhere-empty", disk_cache_dir=str(tmp_path)) as session:
        # Pointers are the store's to say.
        await session.load_user_vectors(missing_ok=True)
        assert await session.count() == 0


async def test_a_damaged_file_is_fetched_again(tmp_path: Path) -> None:
    uri = f"memory:{uuid.uuid4()}"
    async with await session_on(uri, disk_cache_dir=tmp_path) as session:
        await add_rows(session, 300)
        await session.save_to_s5()
        expected = await content(session)
    for number, path in enumerate(files(tmp_path)):
        raw = path.read_bytes()
        path.write_bytes((raw[:-1], b"", raw[:-1] + bytes([raw[-1] ^ 1]))[number % 3])
    async with await session_on(uri, disk_cache_dir=tmp_path) as session:
        await session.load_user_vectors()
        assert await content(session) == expected


async def test_it_stays_within_its_bytes_and_keeps_what_was_used_last(tmp_path: Path) -> None:
    store = open_store(f"memory:{uuid.uuid4()}")
    cache = DiskCache(store, tmp_path, 100_000)
    blobs = [os.urandom(9_000) for _ in range(30)]
    ids = []
    for number, blob in enumerate(blobs):
        ids.append(await cache.put(blob))
        os.utime(cache._disk.blob_path(ids[-1].hash), (number, number))
        if number == 8:
            assert await cache.get(ids[0].hash, ids[0].size) == blobs[0]  # used: it outlives those that came after it
        assert sum(path.stat().st_size for path in files(tmp_path)) <= 100_000
    here = {path.name for path in files(tmp_path)}
    assert cache._disk.blob_path(ids[0].hash).name in here
    assert cache._disk.blob_path(ids[1].hash).name not in here
    for id, blob in zip(ids, blobs, strict=True):
        assert await cache.get(id.hash, id.size) == blob
    huge = os.urandom(95_000)
    await cache.put(huge)
    assert not any(path.stat().st_size == 95_000 for path in files(tmp_path))
    assert await cache.has(ids[0].hash)
    assert await cache.delete(ids[0].hash)
    assert not await cache.has(ids[0].hash)


async def test_a_directory_that_takes_nothing_is_no_trouble(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    uri = f"memory:{uuid.uuid4()}"
    async with await session_on(uri, disk_cache_dir=blocked / "cache") as session:
        await add_rows(session, 20)
        cid = await session.save_to_s5()
        await session.load_user_vectors(cid)
        assert await session.count() == 20


def test_processes_share_a_directory(tmp_path: Path) -> None:
    script = (
        "import anyio, os, sys\n"
        "from pathlib import Path\n"
        "from fabstir_vectordb.persist.disk_cache import DiskCache\n"
        "from fabstir_vectordb.storage import open_store\n"
        "async def main():\n"
        "    store = open_store(Path(sys.argv[1], 'store').as_uri())\n"
        "    cache = DiskCache(store, Path(sys.argv[1], 'cache'), 60_000)\n"
        "    blobs = [bytes([n]) * (4_000 + n) for n in range(40)]\n"
        "    for _ in range(3):\n"
        "        for blob in blobs:\n"
        "            id = await cache.put(blob)\n"
        "            assert await cache.get(id.hash, id.size) == blob\n"
        "anyio.run(main)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    for process in running:
        assert process.communicate(timeout=120)[1] == b""
        assert process.returncode == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"disk_cache_dir": "relative/path"}, "absolute path"),
        ({"disk_cache_dir": 5}, "absolute path"),
        ({"disk_cache_dir": "/x", "encrypt_at_rest": False}, "in clear"),
        ({"disk_cache_mb": 0}, "disk_cache_mb"),
    ],
)
async def test_settings_that_make_no_sense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfigError, match=message):
        await session_on("memory:", **fields)

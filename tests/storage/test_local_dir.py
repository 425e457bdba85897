"""The local directory: the shared contract, its layout, crashes, other processes and a failing disk."""

from __future__ import annotations

import base64
import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

pytest.register_assert_rewrite("contract")

from contract import LARGE, PUBLIC_KEY, StoreContract, check_one_store_serves_several_event_loops, entry  # noqa: E402

from fabstir_vectordb.errors import IntegrityError, InvalidConfigError, StorageError  # noqa: E402
from fabstir_vectordb.s5.cid import BlobId  # noqa: E402
from fabstir_vectordb.storage import LocalDirStore, local_dir, open_store  # noqa: E402

POSIX = pytest.mark.skipif(os.name == "nt", reason="POSIX only")


def blob_path(root: Path, blob: BlobId) -> Path:
    name = base64.urlsafe_b64encode(blob.hash).decode().rstrip("=")
    return root / "blobs" / name[:2] / name


def files_below(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


class TestLocalDirStore(StoreContract):
    @pytest.fixture
    def address(self, tmp_path: Path) -> str:
        return (tmp_path / "a new # directory").as_uri()

    def damage_blob(self, store: Any, blob: BlobId, data: bytes) -> None:
        blob_path(store._root, blob).write_bytes(data)

    def damage_pointer(self, store: Any, public_key: bytes, data: bytes) -> None:
        (store._root / "pointers" / public_key.hex()).write_bytes(data)


@pytest.fixture
def store(tmp_path: Path) -> LocalDirStore:
    return LocalDirStore(tmp_path / "store")


# --- layout


@pytest.mark.anyio
async def test_layout(store: LocalDirStore, tmp_path: Path) -> None:
    blob = await store.put(b"hello")
    await store.set_pointer(entry(1))
    assert files_below(tmp_path / "store") == {
        "blobs/6o/6o8WPbOGgpJeRJHF5Y1Ls1Bu-MFOt4qG6QjFYkpnIA8",
        f"pointers/{PUBLIC_KEY.hex()}",
        "pointers.lock",
    }
    assert blob_path(tmp_path / "store", blob).read_bytes() == b"hello"
    assert (tmp_path / "store" / "pointers" / PUBLIC_KEY.hex()).read_bytes() == entry(1).serialize()


@pytest.mark.anyio
async def test_reading_makes_no_directory(store: LocalDirStore, tmp_path: Path) -> None:
    assert not await store.has(bytes(32))
    assert not await store.delete(bytes(32))
    assert await store.get_pointer(PUBLIC_KEY) is None
    assert not (tmp_path / "store").exists()


@pytest.mark.anyio
async def test_good_file_is_not_written_again(store: LocalDirStore, tmp_path: Path) -> None:
    blob = await store.put(LARGE)
    path = blob_path(tmp_path / "store", blob)
    before = path.stat()
    await store.put(LARGE)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.anyio
async def test_damage_in_every_mebibyte_is_repaired(store: LocalDirStore, tmp_path: Path) -> None:
    data = LARGE * 2 + b"tail"
    blob = await store.put(data)
    path = blob_path(tmp_path / "store", blob)
    for place in (0, 2**20 - 1, 2**20, len(data) - 1):
        damaged = bytearray(data)
        damaged[place] ^= 0x80
        path.write_bytes(damaged)
        await store.put(data)
        assert path.read_bytes() == data


@pytest.mark.anyio
async def test_file_larger_than_any_blob_is_refused_unread(store: LocalDirStore, tmp_path: Path) -> None:
    blob = await store.put(b"hello")
    with blob_path(tmp_path / "store", blob).open("r+b") as file:
        file.truncate(2**31)  # sparse
    with pytest.raises(IntegrityError) as caught:
        await store.get(blob.hash, blob.size)
    assert caught.value.details["actual"] == 2**31


# --- durability


@pytest.mark.anyio
@POSIX
async def test_bytes_reach_the_disk_before_the_name(
    store: LocalDirStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def record_fsync(descriptor: int) -> None:
        steps.append("flush directory" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "flush file")
        fsync(descriptor)

    def record_replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(self, target)

    await store.put(b"first, so that the directories are there")
    blob = BlobId.of(b"hello")
    blob_path(tmp_path / "store", blob).parent.mkdir()
    (tmp_path / "store" / "pointers").mkdir()
    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_replace)
    await store.put(b"hello")
    await store.set_pointer(entry(1))
    if sys.platform == "linux":
        # The first flush is of the directory above, as another process made the file's own.
        assert steps == ["flush directory", "flush file", "rename", "flush directory"] * 2


@pytest.mark.anyio
@POSIX
async def test_new_directories_are_flushed_into_their_parents(
    store: LocalDirStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[Path] = []
    real = local_dir.flush_directory

    def record(path: Path) -> None:
        flushed.append(path)
        real(path)

    monkeypatch.setattr(local_dir, "flush_directory", record)
    blob = await store.put(b"hello")
    folder = blob_path(tmp_path / "store", blob).parent
    for directory in (tmp_path, tmp_path / "store", tmp_path / "store" / "blobs", folder):
        assert directory in flushed


@pytest.mark.anyio
@POSIX
async def test_file_system_that_cannot_flush_directories_is_accepted(
    store: LocalDirStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert await store.put(b"hello") == BlobId.of(b"hello")


@pytest.mark.anyio
@pytest.mark.parametrize("step", ["fsync", "replace"])
async def test_failed_write_leaves_the_old_state_and_no_temporary_file(
    store: LocalDirStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    await store.put(b"kept")
    await store.set_pointer(entry(1))
    before = files_below(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os if step == "fsync" else Path, step, fail)
    for call in (lambda: store.put(b"new"), lambda: store.set_pointer(entry(2))):
        with pytest.raises(StorageError) as caught:
            await call()
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.details == {"errno": errno.ENOSPC}
        assert "No space left on device" in str(caught.value)
    monkeypatch.undo()
    assert files_below(tmp_path) == before
    assert await store.get_pointer(PUBLIC_KEY) == entry(1)


@pytest.mark.anyio
async def test_old_leftovers_of_killed_processes_are_swept_and_nothing_else(tmp_path: Path) -> None:
    temporary = tmp_path / "store" / "tmp"
    temporary.mkdir(parents=True)
    day = 24 * 60 * 60
    ages = {"123-" + "a" * 32: 2 * day, "124-" + "b" * 32: 60, "somebody's file": 3 * day}
    for name, age_s in ages.items():
        (temporary / name).write_bytes(b"half")
        os.utime(temporary / name, (time.time() - age_s,) * 2)
    await LocalDirStore(tmp_path / "store").put(b"hello")
    assert {path.name for path in temporary.iterdir()} == {"124-" + "b" * 32, "somebody's file"}


@pytest.mark.anyio
async def test_sweeping_that_fails_does_not_fail_the_save(
    store: LocalDirStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scandir(_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(local_dir.os, "scandir", scandir)
    assert await store.put(b"hello") == BlobId.of(b"hello")


# --- errors of the system


@pytest.mark.anyio
async def test_root_that_is_a_file_is_a_storage_error_with_its_errno(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = LocalDirStore(tmp_path / "file")
    calls = (
        lambda: store.put(b"x"),
        lambda: store.get(bytes(32), 1),
        lambda: store.has(bytes(32)),
        lambda: store.delete(bytes(32)),
        lambda: store.get_pointer(PUBLIC_KEY),
        lambda: store.set_pointer(entry(1)),
    )
    for call in calls:
        with pytest.raises(StorageError) as caught:
            await call()
        assert caught.value.errno == errno.ENOTDIR
        assert caught.value.details["errno"] == errno.ENOTDIR
        assert str(tmp_path / "file") in str(caught.value)


@pytest.mark.anyio
async def test_directory_in_the_place_of_a_blob_is_an_error(store: LocalDirStore, tmp_path: Path) -> None:
    path = blob_path(tmp_path / "store", BlobId.of(b"hello"))
    (path / "inside").mkdir(parents=True)
    with pytest.raises(StorageError):
        await store.put(b"hello")
    with pytest.raises(IntegrityError, match="not a regular file"):
        await store.get(BlobId.of(b"hello").hash, 5)
    assert not await store.has(BlobId.of(b"hello").hash)
    assert not list((tmp_path / "store" / "tmp").iterdir())


@pytest.mark.anyio
@POSIX
async def test_disk_that_fails_to_flush_a_directory_is_a_storage_error(
    store: LocalDirStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.put(b"hello")

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    # The file is there already, so that only its directory is flushed.
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError) as caught:
        await store.put(b"hello")
    assert caught.value.errno == errno.EIO


@pytest.mark.anyio
@POSIX
async def test_a_pointer_that_a_loss_of_power_may_undo_is_not_taken_for_moved(
    store: LocalDirStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save whose write failed asks for the pointer, and counts as done if it moved anyway."""
    await store.set_pointer(entry(1))
    real = os.fsync

    def fail(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fail)
        for call in (lambda: store.set_pointer(entry(2)), lambda: store.get_pointer(PUBLIC_KEY)):
            with pytest.raises(StorageError):
                await call()
    assert await store.get_pointer(PUBLIC_KEY) == entry(2)


@pytest.mark.anyio
async def test_missing_permission_is_a_storage_error(store: LocalDirStore, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = await store.put(b"hello")

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    # Refused by a patch and not by file modes, because those do not bind the root user of a container.
    monkeypatch.setattr(os, "open", refuse)
    for call in (
        lambda: store.get(blob.hash, blob.size),
        lambda: store.put(b"hello"),
        lambda: store.get_pointer(PUBLIC_KEY),
    ):
        with pytest.raises(StorageError) as caught:
            await call()
        assert caught.value.errno == errno.EACCES


# --- other loops, other processes


def test_one_store_serves_several_event_loops(store: LocalDirStore) -> None:
    check_one_store_serves_several_event_loops(store)


@pytest.mark.anyio
async def test_work_does_not_block_the_event_loop(store: LocalDirStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real = store._put
    monkeypatch.setattr(store, "_put", lambda data: time.sleep(0.2) or real(data))
    ticks = 0
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.put, b"hello")
        while ticks < 5:
            await anyio.sleep(0.01)
            ticks += 1
    assert ticks == 5


WRITER = """
import sys, anyio
from fabstir_vectordb.errors import ConflictError
from fabstir_vectordb.s5.registry import RegistryEntry
from fabstir_vectordb.storage import open_store

async def main():
    store = open_store(sys.argv[1])
    won = 0
    for revision in range(1, 41):
        await store.put(b"shared %d" % revision)
        try:
            await store.set_pointer(RegistryEntry.sign(b"s" * 32, revision, sys.argv[2].encode()))
            won += 1
        except ConflictError:
            pass
    print(won)

anyio.run(main)
"""


def test_several_processes_never_both_win_a_revision(store: LocalDirStore, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, store.uri]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    processes = [
        subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True, env=environment) for name in "abc"
    ]
    won = [int(process.communicate(timeout=60)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    # Forty revisions; each was won at most once, and the last one by somebody.
    assert sum(won) <= 40
    final = anyio.run(store.get_pointer, PUBLIC_KEY)
    assert final is not None
    assert final.revision == 40
    assert not list((tmp_path / "store" / "tmp").iterdir())


# --- addresses


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:///data/store", "/data/store"),
        ("file:/data/store", "/data/store"),
        ("file://localhost/data/store", "/data/store"),
        ("FILE:///data/a%20b%23c%3F%25", "/data/a b#c?%"),
        ("file:///data/é", "/data/é"),
    ],
)
@POSIX
def test_file_address_names_a_path(uri: str, path: str) -> None:
    store = open_store(uri)
    assert isinstance(store, LocalDirStore)
    assert store._root == Path(path)
    again = open_store(store.uri)
    assert isinstance(again, LocalDirStore)
    assert again._root == Path(path)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        None,
        5,
        "file:",
        "file://",
        "file:relative/path",
        "file://host/path",
        "file:///a?b",
        "file:///a#b",
        "file:///a%00b",
        "/absolute/path",
        "relative",
        "ftp://host/",
        "s3://bucket",
    ],
)
def test_address_of_no_store_is_refused_with_the_ones_that_work(uri: Any) -> None:
    with pytest.raises(InvalidConfigError, match=r"file:///absolute/path|percent|%3F"):
        open_store(uri)

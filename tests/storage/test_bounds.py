"""What hostile portals and directories cost: memory and time stay bounded, and the error is a typed one.

Each kind of lying portal speaks over loopback to a session in a process of its own, whose peak memory is compared with
what it was before the session had met that portal.
"""

from __future__ import annotations

import gzip
import os
import socket
import stat
import subprocess
import sys
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Final

import anyio
import pytest

from fabstir_vectordb.errors import IntegrityError, StorageError
from fabstir_vectordb.s5.cid import BlobId
from fabstir_vectordb.s5.keys import ed25519_public_key
from fabstir_vectordb.s5.registry import RegistryEntry, pointer_data
from fabstir_vectordb.storage import LocalDirStore, MemoryStore
from fabstir_vectordb.storage.base import AtMost

HELLO = BlobId.of(b"hello")
SEED = b"s" * 32
PUBLIC_KEY = ed25519_public_key(SEED)
BUDGET_MB: Final = 64
GROWTH_MB: Final = BUDGET_MB + 30
_PIECE: Final = bytes(1 << 20)
#: More than any client would take by mistake and not be noticed, and few enough to be over soon.
_FLOOD_MB: Final = 400

Speaker = Callable[[socket.socket, Event], None]


def _flood(connection: socket.socket, closed: Event, piece: bytes = _PIECE) -> None:
    for _ in range(_FLOOD_MB):
        if closed.is_set():
            return
        connection.sendall(piece)


def _says(head: bytes, *, flood: bool = True, piece: bytes = _PIECE) -> Speaker:
    def speak(connection: socket.socket, closed: Event) -> None:
        connection.sendall(head)
        if flood:
            _flood(connection, closed, piece)

    return speak


def _drips(connection: socket.socket, closed: Event) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while not closed.wait(0.05):
        connection.sendall(b"x")


def _endless_head(connection: socket.socket, closed: Event) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while not closed.is_set():
        connection.sendall(b"X-Header: " + b"x" * 10_000 + b"\r\n")


def _endless_early_hints(connection: socket.socket, closed: Event) -> None:
    while not closed.is_set():
        connection.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 100)


def _bomb(coding: bytes) -> Speaker:
    data = gzip.compress(bytes(200 << 20), 1) if coding == b"gzip" else zlib.compress(bytes(200 << 20), 1)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n" % (coding, len(data))
    return _says(head + data, flood=False)


_OK: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
_CHUNK: Final = b"%x\r\n" % len(_PIECE) + _PIECE + b"\r\n"

KINDS: Final[dict[str, Callable[[], Speaker]]] = {
    "endless body": lambda: _says(_OK + b"\r\n"),
    "endless chunks": lambda: _says(_OK + b"Transfer-Encoding: chunked\r\n\r\n", piece=_CHUNK),
    "one endless chunk": lambda: _says(_OK + b"Transfer-Encoding: chunked\r\n\r\nffffffff\r\n"),
    "huge Content-Length": lambda: _says(_OK + b"Content-Length: 99999999999999999999\r\n\r\n"),
    "Content-Length too small": lambda: _says(_OK + b"Content-Length: 3\r\n\r\n"),
    "endless error": lambda: _says(b"HTTP/1.1 400 Bad\r\n\r\n"),
    "endless busy": lambda: _says(b"HTTP/1.1 503 Busy\r\nRetry-After: 0\r\n\r\n"),
    "endless redirect": lambda: _says(b"HTTP/1.1 307 Moved\r\nLocation: /x\r\n\r\n"),
    "endless absence": lambda: _says(b"HTTP/1.1 404 Not Found\r\n\r\n"),
    "endless header": lambda: _endless_head,
    "endless early hints": lambda: _endless_early_hints,
    "gzip bomb": lambda: _bomb(b"gzip"),
    "deflate bomb": lambda: _bomb(b"deflate"),
    "drip": lambda: _drips,
    "endless JSON": lambda: _says(_OK + b'\r\n{"node": "', piece=b"x" * (1 << 20)),
    "deep JSON": lambda: _says(_OK + b"\r\n", piece=b"[" * (1 << 20)),
}
#: The ways in which most memory went, which end at once.
QUICK: Final = ("endless body", "endless chunks", "endless error", "gzip bomb", "endless redirect")


@contextmanager
def lying(speak: Speaker, honest: Callable[[str], bytes | None] = lambda path: None) -> Iterator[str]:
    """A server that speaks so to everybody, but for paths that it answers honestly."""

    def answer(connection: socket.socket) -> None:
        with connection:
            try:
                asked = b""
                while b"\r\n\r\n" not in asked and (more := connection.recv(65_536)):
                    asked += more
                body = honest(asked.split(b" ")[1].decode()) if asked.count(b" ") >= 2 else None
                if body is None:
                    speak(connection, closed)
                else:
                    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
                    connection.sendall(head + body)
            except OSError:
                pass  # the client has had enough

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            Thread(target=answer, args=(connection,), daemon=True).start()

    closed = Event()
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        thread = Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        closed.set()
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(20)


_CLIENT = """
import resource, sys
import anyio
from fabstir_vectordb import VectorDBError, VectorDBSession, new_seed_phrase
from fabstir_vectordb.s5.cid import BlobId, ShareCid
from fabstir_vectordb.s5.registry import RegistryEntry, pointer_data
from fabstir_vectordb.storage import open_store
import fabstir_vectordb.storage.wire, tenacity, email.utils

PHRASE = "amid romance hotel blue most myself guess host lobby rubber hook victim about odds child"
blob = BlobId(bytes(32), 1_000_000)

def peak_mb():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024

async def tried(call):
    try:
        await call()
    except VectorDBError as error:
        return str(error)
    return "no error"

async def main():
    # What a session takes by itself comes first: numpy, keys, certificates, a first error.
    async with await VectorDBSession.create(s5_portal="memory:warm", session_id="s", user_seed_phrase=PHRASE) as warm:
        await warm.add_batch(["a"], [[1.0, 0.0]])
        await warm.save_to_s5()
        await warm.load_user_vectors()
    dead = open_store("portal+http://127.0.0.1:1", max_retries=0)
    await tried(lambda: dead.put(b"x"))
    await dead.aclose()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = peak_mb()
    for uri in sys.argv[2:]:
        async with await VectorDBSession.create(
            s5_portal=uri, session_id="s", user_seed_phrase=PHRASE, memory_budget_mb=int(sys.argv[1]), max_retries=0,
            timeout_s=0.5,
        ) as session:
            for call in (
                lambda: session.load_user_vectors(missing_ok=True),
                lambda: session.load_user_vectors(str(blob)),
                lambda: session.load_user_vectors(str(BlobId(blob.hash, 0))),
                lambda: session.load_user_vectors(ShareCid(bytes(32), blob.hash).reveal()),
                lambda: session.load_user_vectors(str(BlobId(blob.hash, 2**31 - 1))),
                session.history,
                session.list_indexes,
                lambda: session.verify(str(blob)),
                lambda: session.share(str(blob)),
            ):
                outcome = await tried(call)
                if outcome == "no error":
                    print("WRONG no error", uri)
            await session.add_batch(["a"], [[1.0, 0.0]])
            print(uri, await tried(session.save_to_s5))
        store = open_store(uri, max_retries=0, timeout_s=0.5)
        await tried(lambda: store.has(blob.hash))
        await tried(lambda: store.delete(blob.hash))
        await store.aclose()
    print("GROWTH", peak_mb() - before)

anyio.run(main)
"""


def _pointer_to_a_root(path: str) -> bytes | None:
    """Every pointer leads to a root, so that the lie meets the fetch of a blob whose size nobody knows."""
    import json
    from urllib.parse import parse_qs, urlsplit

    parts = urlsplit(path)
    if parts.path == "/s5/version":
        return b'{"node": "1"}'
    if parts.path == "/health":
        return b'{"status": "ok"}'
    if parts.path == "/s5/registry" and "pk" in parse_qs(parts.query):
        wanted = parse_qs(parts.query)["pk"][0]
        return json.dumps(_entries().get(wanted, {})).encode() if wanted in _entries() else None
    return None


def _entries() -> dict[str, dict[str, object]]:
    from fabstir_vectordb.persist.version import CATALOGUE_PATH, history_path, index_path
    from fabstir_vectordb.s5.keys import Identity
    from fabstir_vectordb.s5.phrase import parse_phrase

    phrase = "amid romance hotel blue most myself guess host lobby rubber hook victim about odds child"
    identity = Identity(parse_phrase(phrase))
    found = {}
    for path in (index_path("default"), history_path("default"), CATALOGUE_PATH):
        document = RegistryEntry.sign(identity.path_keys(path).write_seed, 1, pointer_data(bytes(32))).to_portal_json()
        found[str(document["pk"])] = document
    return found


def _growth_mb(*speakers: Speaker) -> float:
    with ExitStack() as stack:
        uris = []
        for speak in speakers:
            only_blobs = stack.enter_context(lying(speak, _pointer_to_a_root))
            uris += [f"portal+{only_blobs}", f"gateway+{stack.enter_context(lying(speak))}", only_blobs]
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _CLIENT, str(BUDGET_MB), *uris],
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3_000:]
    assert "WRONG" not in done.stdout, done.stdout
    return float(done.stdout.rsplit("GROWTH", 1)[1])


LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")


@LINUX
def test_lying_portals_cost_bounded_memory() -> None:
    assert _growth_mb(*(KINDS[kind]() for kind in QUICK)) < GROWTH_MB


@LINUX
@pytest.mark.long
@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_of_lying_portal_costs_bounded_memory(kind: str) -> None:
    assert _growth_mb(KINDS[kind]()) < GROWTH_MB


# ---- directories


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    # By its name alone: paths of sockets are short.
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(here)


def _link(path: Path) -> None:
    target = path.parent / "target"
    target.write_bytes(b"hello")
    path.symlink_to(target)


def _endless_link(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # as /dev/zero
    except PermissionError:
        pytest.skip("only root makes devices")


PLACES: Final[dict[str, Callable[[Path], object]]] = {
    "fifo": _fifo,
    "socket": _socket,
    "link": _link,
    "link to a device": _endless_link,
    "loop": _loop,
    "device": _device,
    "directory": Path.mkdir,
}


@pytest.mark.anyio
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX files")
@pytest.mark.parametrize("place", list(PLACES))
async def test_what_is_no_regular_file_is_an_error_and_blocks_nobody(tmp_path: Path, place: str) -> None:
    store = LocalDirStore(tmp_path / "store")
    await store.put(b"hello")
    await store.set_pointer(RegistryEntry.sign(SEED, 1, pointer_data(HELLO.hash)))
    blob = store.blob_path(HELLO.hash)
    pointer = tmp_path / "store" / "pointers" / PUBLIC_KEY.hex()
    for path in (blob, pointer):
        path.unlink()
        PLACES[place](path)
    with anyio.fail_after(20):
        for size in (5, AtMost(5)):
            with pytest.raises(IntegrityError, match="not a regular file") as caught:
                await store.get(HELLO.hash, size)
            assert caught.value.details["hash"] == HELLO.hash.hex()
        assert not await store.has(HELLO.hash)
        with pytest.raises(IntegrityError, match="not a regular file") as caught:
            await store.get_pointer(PUBLIC_KEY)
        assert caught.value.details["public_key"] == PUBLIC_KEY.hex()
        if place != "directory":  # which no rename replaces
            await store.put(b"hello")
            assert await store.get(HELLO.hash, 5) == b"hello"
            await store.set_pointer(RegistryEntry.sign(SEED, 2, pointer_data(HELLO.hash)))
            assert await store.get_pointer(PUBLIC_KEY) is not None


@pytest.mark.anyio
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX files")
@pytest.mark.parametrize("linked", ["", "blobs", "pointers"])
async def test_what_lies_behind_a_dangling_link_is_not_taken_for_absent(tmp_path: Path, linked: str) -> None:
    root, disk = tmp_path / "store", tmp_path / "disk"
    store = LocalDirStore(root)
    await store.put(b"hello")
    await store.set_pointer(RegistryEntry.sign(SEED, 1, pointer_data(HELLO.hash)))
    (root / linked).rename(disk)
    (root / linked).symlink_to(disk)
    assert await store.get(HELLO.hash, 5) == b"hello"
    assert await store.get_pointer(PUBLIC_KEY) is not None
    disk.rename(tmp_path / "unplugged")
    calls: list[Callable[[], Awaitable[object]]]
    calls = [lambda: store.get_pointer(PUBLIC_KEY)] if linked == "pointers" else [lambda: store.get(HELLO.hash, 5)]
    if linked != "pointers":
        calls.append(lambda: store.has(HELLO.hash))
    for call in calls:
        with pytest.raises(StorageError, match="target of this symbolic link"):
            await call()


@pytest.mark.anyio
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX files")
async def test_a_fifo_in_place_of_the_lock_is_an_error(tmp_path: Path) -> None:
    store = LocalDirStore(tmp_path)
    os.mkfifo(tmp_path / "pointers.lock")
    with anyio.fail_after(20), pytest.raises(IntegrityError, match="not a regular file"):
        await store.set_pointer(RegistryEntry.sign(SEED, 1, pointer_data(HELLO.hash)))


@pytest.mark.anyio
@pytest.mark.skipif(sys.platform == "win32", reason="needs sparse files")
async def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalDirStore(tmp_path)
    await store.put(b"hello")
    with store.blob_path(HELLO.hash).open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(IntegrityError) as caught:
        await store.get(HELLO.hash, AtMost(1 << 20))
    assert caught.value.details["actual"] == 1 << 40
    with pytest.raises(IntegrityError):
        await store.get(HELLO.hash, 5)


@pytest.mark.anyio
async def test_a_memory_stores_blob_above_its_bound_is_not_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore("a bound")
    blob = await store.put(bytes(10))
    monkeypatch.setattr("fabstir_vectordb.storage.memory.check_blob", lambda *_: pytest.fail("was hashed"))
    with pytest.raises(IntegrityError):
        await store.get(blob.hash, AtMost(9))
    store.clear()

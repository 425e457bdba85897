"""What the network stores do when a portal is slow, broken, forgetful or hostile; on loopback."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from threading import Event, Thread

import anyio
import pytest
from serving import Recorder, running
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response

from fabstir_vectordb.errors import (
    IntegrityError,
    NotFoundError,
    OperationTimeoutError,
    S5Error,
    StorageError,
    VectorDBError,
)
from fabstir_vectordb.s5.cid import BlobId, blake3_hash
from fabstir_vectordb.s5.keys import ed25519_public_key
from fabstir_vectordb.s5.registry import RegistryEntry, pointer_data
from fabstir_vectordb.storage import open_store
from fabstir_vectordb.storage.exchange import HttpSettings
from fabstir_vectordb.storage.http import HttpClient, base_url_of
from fabstir_vectordb.storage.retry import asked_pause

HELLO = BlobId.of(b"hello")
SEED = b"s" * 32
ENTRY = RegistryEntry.sign(SEED, 1, pointer_data(HELLO.hash))


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fabstir_vectordb.storage.retry._pause", lambda state: 0.0)


@contextmanager
def speaking(*pieces: bytes, pause_s: float = 0.0) -> Iterator[str]:
    """A server that says these bytes to whoever comes, whatever they ask, and then nothing more."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65_536)
                try:
                    for piece in pieces:
                        connection.sendall(piece)
                        if pause_s and closed.wait(pause_s):
                            return
                except OSError:
                    pass  # the client has had enough

    closed = Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        closed.set()
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)
    assert not thread.is_alive()


# ---- slow


@pytest.mark.anyio
async def test_a_trickle_ends_at_the_time_limit() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
    with speaking(head, *[b"x"] * 1_000, pause_s=0.02) as address:
        async with aclosing(open_store(f"portal+{address}", timeout_s=0.5, max_retries=0)) as store:
            with anyio.fail_after(5), pytest.raises(OperationTimeoutError):
                await store.get(HELLO.hash, 200_000)


@pytest.mark.anyio
async def test_a_request_that_waits_its_turn_does_not_run_out_of_time() -> None:
    async def slow(request: Request) -> Response:
        await anyio.sleep(0.5)
        return Response(b"hello")

    with running(Recorder(slow)) as address:
        async with (
            aclosing(open_store(f"portal+{address}", timeout_s=2, max_retries=0)) as store,
            anyio.create_task_group() as group,
        ):
            for _ in range(48):  # six rounds of half a second
                group.start_soon(store.get, HELLO.hash, 5)


# ---- broken


@pytest.mark.anyio
async def test_an_upload_is_tried_again_after_a_500() -> None:
    answers = iter([500, 500])
    cid = HELLO.to_text("base58btc")
    recorder = Recorder(lambda request: JSONResponse({"cid": cid, "success": True}, next(answers, 200)))
    with running(recorder) as address:
        for kind in ("portal+", "gateway+"):
            async with aclosing(open_store(kind + address)) as store:
                await store.put(b"hello")
            answers = iter([500, 500])
    assert len(recorder.asked) == 6


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("locations", "error"), [({"locations": []}, NotFoundError), ({"locations": [{}]}, StorageError), (None, S5Error)]
)
async def test_trouble_is_not_taken_for_a_loss(locations: object, error: type[VectorDBError]) -> None:
    def answer(request: Request) -> Response:
        if "storage_locations" in request.url.path:
            return PlainTextResponse("down", 500) if locations is None else JSONResponse(locations)
        return PlainTextResponse("could not find it", 500)

    with running(Recorder(answer)) as address:
        async with aclosing(open_store(f"portal+{address}")) as store:
            with pytest.raises(error):
                await store.get(HELLO.hash, 5)


@pytest.mark.anyio
async def test_a_redirect_to_a_dead_host_is_one_route_less() -> None:
    with socket.create_server(("127.0.0.1", 0)) as dead:
        elsewhere = f"http://127.0.0.1:{dead.getsockname()[1]}"

    def answer(request: Request) -> Response:
        if "/s5/blob/" in request.url.path:
            return RedirectResponse(f"{elsewhere}/gone", 307)
        return Response(b"hello") if "download" in request.url.path else Response(status_code=404)

    recorder = Recorder(answer)
    with running(recorder) as address:
        async with aclosing(open_store(f"portal+{address}", max_retries=0)) as store:
            assert await store.get(HELLO.hash, 5) == b"hello"
            recorder._answer = lambda request: RedirectResponse(f"{elsewhere}/gone", 307)
            with pytest.raises(S5Error) as caught:
                await store.get(HELLO.hash, 5)
    assert caught.value.details["redirected_to"] == elsewhere.removeprefix("http://")


@pytest.mark.parametrize(
    ("uri", "authority"),
    [
        ("http://LocalHost:80/a/", "localhost"),
        ("https://h:443", "h"),
        ("http://h:443", "h:443"),
        ("http://[::1]:5", "[::1]:5"),
    ],
)
def test_a_server_has_one_name(uri: str, authority: str) -> None:
    assert HttpClient(base_url_of(uri), HttpSettings()).authority == authority


@pytest.mark.anyio
@pytest.mark.parametrize("target", ["/again", "nothing://x", "http://["])
async def test_a_wrong_redirect_is_named(target: str) -> None:
    recorder = Recorder(lambda request: RedirectResponse(target, 307))
    with running(recorder) as address:
        async with aclosing(open_store(f"portal+{address}", max_retries=0)) as store:
            with pytest.raises(S5Error, match=r"redirect|protocol|location"):
                await store.get(HELLO.hash, 5)
    assert len(recorder.asked) <= 30


@pytest.mark.anyio
async def test_the_body_of_a_redirect_is_bounded() -> None:
    head = b"HTTP/1.1 307 Moved\r\nLocation: /x\r\nContent-Length: 1000000000\r\n\r\n"
    with speaking(head, *[bytes(65_536)] * 400) as address:
        async with aclosing(open_store(f"portal+{address}", timeout_s=5, max_retries=0)) as store:
            with anyio.fail_after(20), pytest.raises(VectorDBError):
                await store.get(HELLO.hash, 5)


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["portal+", "gateway+"])
async def test_what_came_damaged_is_looked_at_twice(kind: str) -> None:
    asked: Counter[str] = Counter()

    def answer(request: Request) -> Response:
        asked[request.url.path] += 1
        is_first = asked[request.url.path] == 1
        if "registry" in request.url.path:
            return JSONResponse({} if is_first else ENTRY.to_portal_json())
        if "pointers" in request.url.path:
            return Response(b"\x07" if is_first else ENTRY.serialize())
        return Response(b"hallo" if is_first else b"hello")

    with running(Recorder(answer)) as address:
        async with aclosing(open_store(kind + address)) as store:
            assert await store.get_pointer(ed25519_public_key(SEED)) == ENTRY
            if kind == "gateway+":
                assert await store.get(HELLO.hash, 5) == b"hello"


@pytest.mark.anyio
async def test_a_gateways_answer_that_was_lost_is_still_success() -> None:
    held: dict[str, bytes] = {}

    async def answer(request: Request) -> Response:
        path = request.url.path
        if request.method == "PUT":
            held[path] = await request.body()
            return PlainTextResponse("lost", 500)
        return Response(held[path]) if path in held else JSONResponse({"error": "Path not found"}, 404)

    with running(Recorder(answer)) as address:
        async with aclosing(open_store(f"gateway+{address}", max_retries=0)) as store:
            await store.set_pointer(ENTRY)
            assert await store.get_pointer(ENTRY.public_key) == ENTRY


@pytest.mark.anyio
async def test_a_gateway_that_stores_nothing_is_an_error() -> None:
    with running(Recorder(lambda request: PlainTextResponse("no", 507 if request.method == "PUT" else 404))) as address:
        async with aclosing(open_store(f"gateway+{address}", max_retries=0)) as store:
            with pytest.raises(S5Error, match="507"):
                await store.set_pointer(ENTRY)
    forgetful = Recorder(lambda request: JSONResponse({"success": True}, 200 if request.method == "PUT" else 404))
    with running(forgetful) as address:
        async with aclosing(open_store(f"gateway+{address}", max_retries=0)) as store:
            with pytest.raises(S5Error, match="does not give it back"):
                await store.set_pointer(ENTRY)


@pytest.mark.anyio
async def test_a_compressed_answer_is_not_unpacked() -> None:
    import gzip

    bomb = gzip.compress(bytes(100_000_000))
    with running(Recorder(lambda request: Response(bomb, headers={"content-encoding": "gzip"}))) as address:
        async with aclosing(open_store(f"gateway+{address}")) as store:
            with pytest.raises(IntegrityError):
                await store.get(HELLO.hash, 5)


# ---- secrets


@pytest.mark.anyio
async def test_a_portal_that_repeats_the_token_puts_it_in_no_error_or_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    token = "a-very-secret-token"
    recorder = Recorder(lambda request: PlainTextResponse(f"you sent {request.headers.get('authorization')}", 418))
    with running(recorder) as address:
        for kind in ("portal+", "gateway+"):
            async with aclosing(open_store(kind + address, token=token, max_retries=0)) as store:
                for call in (
                    store.put(b"x"),
                    store.get(HELLO.hash, 5),
                    store.has(HELLO.hash),
                    store.set_pointer(ENTRY),
                ):
                    with pytest.raises(VectorDBError) as caught:
                        await call
                    shown = str(caught.value) + repr(caught.value.details) + repr(store) + repr(vars(store))
                    assert token not in shown
    assert recorder.asked[0][2]["authorization"] == f"Bearer {token}"
    assert token not in caplog.text


@pytest.mark.anyio
async def test_cookies_are_not_kept() -> None:
    cookie = {"set-cookie": "s5-auth-token=theirs; Path=/"}
    recorder = Recorder(lambda request: Response(b"hello", headers=cookie))
    with running(recorder) as address:
        async with aclosing(open_store(f"portal+{address}")) as store:
            for _ in range(3):
                await store.get(HELLO.hash, 5)
    assert all("cookie" not in headers for _, _, headers, _ in recorder.asked)


# ---- nothing is left


@pytest.mark.anyio
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts the entries of /proc/self/fd")
async def test_closed_and_cancelled_stores_leave_no_connection() -> None:
    async def slow(request: Request) -> Response:
        await anyio.sleep(0.02)
        return Response(b"hello")

    with running(Recorder(slow)) as address:
        await anyio.sleep(0.05)
        before = len(os.listdir("/proc/self/fd"))
        for round in range(6):
            store = open_store(f"portal+{address}")
            with anyio.move_on_after(0.03 * round):
                async with anyio.create_task_group() as group:
                    for _ in range(10):
                        group.start_soon(store.get, HELLO.hash, 5)
            await store.aclose()
        for _ in range(500):  # the server's ends close a little later
            if len(os.listdir("/proc/self/fd")) <= before:
                break
            await anyio.sleep(0.01)
        assert len(os.listdir("/proc/self/fd")) <= before


def test_the_pause_a_server_asks_for() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    assert 15 < asked_pause(soon) <= 20
    assert asked_pause("7") == 7
    assert asked_pause("1000000") == asked_pause("9" * 400) == asked_pause("Fri, 31 Dec 9999 00:00:00 -0000") == 60
    for nonsense in (None, "", "soon", "-5", "nan", "inf", "1e9", "\u0663", "Thu, 01 Jan 1970 00:00:00 GMT"):
        assert asked_pause(nonsense) == 0.0


def test_hashes_are_asked_for_in_each_form_that_nodes_know() -> None:
    recorder = Recorder(
        lambda request: JSONResponse({"node": "1"}) if "version" in request.url.path else Response(status_code=404)
    )

    async def ask() -> None:
        async with aclosing(open_store(f"portal+{address}")) as store:
            with pytest.raises(NotFoundError):
                await store.get(blake3_hash(b"hello"), 5)

    with running(recorder) as address:
        anyio.run(ask)
    assert recorder.asked.pop()[1] == "/s5/version"
    forms = [BlobId.parse(path.rpartition("/")[2]) for _, path, _, _ in recorder.asked]
    assert [form.size for form in forms] == [5, 5, 0, 5, 5]
    assert {form.hash for form in forms} == {HELLO.hash}
    assert [path.rpartition("/")[0] for _, path, _, _ in recorder.asked] == ["/s5/blob"] * 3 + ["/s5/download", ""]
    assert [method for method, *_ in recorder.asked] == ["GET"] * 5

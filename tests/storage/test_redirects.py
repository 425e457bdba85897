"""Where reads may be sent on to, and that nothing else is sent on at all."""

from __future__ import annotations

import socket
from contextlib import aclosing
from typing import Any

import anyio
import pytest
from serving import Recorder, running
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from fabstir_vectordb import InvalidConfigError, VectorDBSession
from fabstir_vectordb.errors import IntegrityError, S5Error, VectorDBError
from fabstir_vectordb.s5.cid import BlobId
from fabstir_vectordb.s5.keys import ed25519_public_key
from fabstir_vectordb.s5.registry import RegistryEntry, pointer_data
from fabstir_vectordb.storage import open_store, wire
from fabstir_vectordb.storage.addresses import PrivateAddressError, check_is_public, is_public

HELLO = BlobId.of(b"hello")
SEED = b"s" * 32
ENTRY = RegistryEntry.sign(SEED, 1, pointer_data(HELLO.hash))

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fabstir_vectordb.storage.retry._pause", lambda state: 0.0)


@pytest.fixture
def portal_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the portal on loopback for one of the internet."""
    monkeypatch.setattr(wire.Wire, "_is_public", lambda self, response: True)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("93.184.216.34", True),
        ("2606:4700::1111", True),
        ("64:ff9b::5db8:d822", True),
        ("127.0.0.1", False),
        ("127.8.8.8", False),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("fe80::1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("2002:7f00:1::", False),
        ("2002:c0a8:101::1", False),
        ("localhost", False),
        ("", False),
    ],
)
async def test_which_addresses_are_public(address: str, expected: bool) -> None:
    assert is_public(address) is expected


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "2130706433", "0x7f000001", "017700000001", "127.1", "localhost", "::1", "::ffff:127.0.0.1"]
)
async def test_every_spelling_of_a_private_address_is_seen_through(host: str) -> None:
    with pytest.raises(PrivateAddressError):
        await check_is_public(host, 80)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_read_follows_to_another_host_without_token_and_cookie(status: int) -> None:
    there = Recorder(lambda request: Response(b"hello", headers={"set-cookie": "theirs=1; Path=/"}))
    with running(there) as elsewhere:
        elsewhere = elsewhere.replace("127.0.0.1", "user:secret@localhost")
        portal = Recorder(
            lambda request: RedirectResponse(f"{elsewhere}/there", status, headers={"set-cookie": "s5-auth-token=mine"})
        )
        with running(portal) as address:
            async with aclosing(open_store(f"portal+{address}", token="mine")) as store:
                for _ in range(2):
                    assert await store.get(HELLO.hash, 5) == b"hello"
    for _, _, headers, _ in there.asked:
        assert not headers.keys() & {"authorization", "cookie"}
        assert "mine" not in str(headers)
    assert all("cookie" not in headers for _, _, headers, _ in portal.asked)


async def test_a_read_that_comes_back_to_the_portal_has_no_token_any_more() -> None:
    def answer(request: Request) -> Response:
        if request.url.path == "/end":
            return Response(b"hello")
        return RedirectResponse(f"{other}/on", 307)

    portal = Recorder(answer)
    with running(portal) as address, running(Recorder(lambda r: RedirectResponse(f"{address}/end", 307))) as other:
        async with aclosing(open_store(f"portal+{address}", token="mine")) as store:
            assert await store.get(HELLO.hash, 5) == b"hello"
    (last,) = (headers for _, path, headers, _ in portal.asked if path == "/end")
    assert "authorization" not in last


@pytest.mark.usefixtures("portal_is_public")
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"])
async def test_no_host_of_the_internet_sends_a_read_into_a_private_network(name: str) -> None:
    secret = Recorder(lambda request: Response(b"hello"))
    with running(secret) as inside:
        port = inside.rpartition(":")[2]
        portal = Recorder(lambda request: RedirectResponse(f"http://{name}:{port}/admin", 307))
        with running(portal) as address:
            async with aclosing(open_store(f"portal+{address}", max_retries=0)) as store:
                with pytest.raises(S5Error, match="private address") as caught:
                    await store.get(HELLO.hash, 5)
                assert not caught.value.retryable
                assert "allow_private_redirects" in str(caught.value)
            assert not secret.asked
            async with aclosing(open_store(f"portal+{address}", max_retries=0, private_redirects=True)) as store:
                if name != "[::ffff:127.0.0.1]":  # the server listens on IPv4 alone
                    assert await store.get(HELLO.hash, 5) == b"hello"


@pytest.mark.usefixtures("portal_is_public")
async def test_a_name_that_turns_private_after_it_was_checked_gets_no_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    async def passes(host: str, port: int) -> None:
        pass

    monkeypatch.setattr(wire, "check_is_public", passes)
    secret = Recorder(lambda request: Response(b"hello"))
    with running(secret) as inside:
        portal = Recorder(lambda request: RedirectResponse(f"{inside.replace('127.0.0.1', 'localhost')}/admin", 307))
        with running(portal) as address:
            async with aclosing(open_store(f"portal+{address}", max_retries=0)) as store:
                with pytest.raises(S5Error, match=r"private address.*localhost"):
                    await store.get(HELLO.hash, 5)
    assert not secret.asked


async def test_each_hop_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = Recorder(lambda request: Response(b"hello"))
    with (
        running(secret) as inside,
        running(Recorder(lambda request: RedirectResponse(f"{inside}/admin", 307))) as public,
        running(Recorder(lambda request: RedirectResponse(f"{public}/on", 307))) as address,
    ):
        port = int(public.rpartition(":")[2])
        monkeypatch.setattr(wire.Wire, "_is_public", lambda self, response: response.request.url.port == port)
        async with aclosing(open_store(f"portal+{address}", max_retries=0)) as store:
            with pytest.raises(S5Error, match="private address"):
                await store.get(HELLO.hash, 5)
    assert not secret.asked


@pytest.mark.parametrize("kind", ["portal+", "gateway+", ""])
async def test_nothing_but_reads_of_blobs_is_sent_on(kind: str) -> None:
    there = Recorder(lambda request: JSONResponse({"node": "1", "status": "ok", "cid": str(HELLO), "success": True}))
    with running(there) as elsewhere:
        portal = Recorder(lambda request: RedirectResponse(f"{elsewhere}{request.url.path}", 307))

        async def seed(authority: str) -> bytes:
            return SEED

        with running(portal) as address:
            uri = kind + address
            async with aclosing(open_store(uri, token="mine", account_seed=seed, max_retries=0)) as store:
                calls: list[Any] = [
                    lambda: store.put(b"hello"),
                    lambda: store.get_pointer(ed25519_public_key(SEED)),
                    lambda: store.set_pointer(ENTRY),
                    lambda: store.has(HELLO.hash),
                    lambda: store.delete(HELLO.hash),
                ]
                for call in calls:
                    with pytest.raises(S5Error, match="only reads of blobs follow a redirect") as caught:
                        await call()
                    assert not caught.value.retryable
                    assert caught.value.details["redirected_to"] == elsewhere.removeprefix("http://")
                    assert "mine" not in str(caught.value) + str(caught.value.details)
    assert not there.asked


async def test_a_portal_that_is_down_is_named_and_not_the_blob() -> None:
    with socket.create_server(("127.0.0.1", 0)) as dead:
        address = f"http://127.0.0.1:{dead.getsockname()[1]}"
    for kind in ("portal+", "gateway+", ""):
        async with aclosing(open_store(kind + address, token="mine", max_retries=0)) as store:
            for call in (
                lambda: store.get(HELLO.hash, 5),
                lambda: store.put(b"hello"),
                lambda: store.get_pointer(ENTRY.public_key),
            ):
                with pytest.raises(S5Error, match=r"The portal 127.0.0.1:\d+ cannot be reached: ") as caught:
                    await call()
                assert caught.value.retryable
                assert caught.value.details["host"] == address.removeprefix("http://")
                assert "/s5" not in caught.value.message
                assert "mine" not in str(caught.value) + str(caught.value.details)


async def test_strange_headers_are_no_foreign_errors() -> None:
    many = [(b"set-cookie", b"a=%d; Domain=evil.example" % number) for number in range(3)]
    late = b"Mon, 99 Foo 99999999999999999999 00:00:00 +99"
    headers = [*many, (b"set-cookie", b"a=1; Path=/x"), (b"retry-after", late)]

    def answer(request: Request) -> Response:
        response = Response(b"hello" if "blob" in request.url.path else b"\xff\xfe{", 200)
        response.raw_headers += headers
        return response

    with running(Recorder(answer)) as address:
        async with aclosing(open_store(f"portal+{address}", max_retries=0)) as store:
            assert await store.get(HELLO.hash, 5) == b"hello"
            with pytest.raises(IntegrityError):
                await store.put(b"x")
    busy = Response(b"", 503)
    busy.raw_headers += headers
    with running(Recorder(lambda request: busy)) as address:
        async with aclosing(open_store(f"portal+{address}", max_retries=0)) as store:
            with pytest.raises(S5Error, match="503"):
                await store.put(b"x")


@pytest.mark.parametrize("token", ["a\r\nX: y", "a b", "a\x00", "ä", "", "x" * 5_000, None, 3])
async def test_a_token_that_no_header_can_hold_is_refused(token: Any) -> None:
    async def seed(authority: str) -> bytes:
        return SEED

    def answer(request: Request) -> Response:
        if "account" in request.url.path:
            return JSONResponse({"challenge": "B" * 43, "authToken": token})
        return Response(status_code=401)

    with running(Recorder(answer)) as address:
        async with aclosing(open_store(f"portal+{address}", account_seed=seed)) as store:
            with pytest.raises(S5Error, match="sent no valid token"):
                await store.put(b"x")


async def test_httpx_is_loaded_by_the_first_request_and_not_by_the_session() -> None:
    import sys

    script = (
        "import sys, anyio\n"
        "from fabstir_vectordb import VectorDBSession\n"
        "async def main():\n"
        "    for uri in ('http://127.0.0.1:1', 'https://portal.example/x', 'gateway+http://localhost:5522'):\n"
        "        await VectorDBSession.create(s5_portal=uri, session_id='s', user_seed_phrase='a b c d e f g h')\n"
        "anyio.run(main)\n"
        "print(sorted({'httpx', 'tenacity', 'http.cookiejar', 'email.utils'} & set(sys.modules)))\n"
    )
    done = await anyio.run_process([sys.executable, "-W", "ignore", "-c", script], check=False)
    assert done.stdout.decode().strip() == "[]", done.stderr.decode()


@pytest.mark.parametrize("call", ["get", "has", "put"])
async def test_a_portal_that_never_answers_is_named(call: str) -> None:
    async def silent(request: Request) -> Response:
        await anyio.sleep(0.6)
        return Response()

    with running(Recorder(silent)) as address:
        async with aclosing(open_store(f"portal+{address}", timeout_s=0.2, max_retries=0)) as store:
            arguments: dict[str, tuple[Any, ...]] = {"get": (HELLO.hash, 5), "has": (HELLO.hash,), "put": (b"x",)}
            with pytest.raises(VectorDBError, match=r"The portal 127.0.0.1:\d+ did not answer within 0.2 s"):
                await getattr(store, call)(*arguments[call])


async def test_a_session_passes_the_permission_on() -> None:
    async def created(**fields: Any) -> VectorDBSession:
        return await VectorDBSession.create(
            s5_portal="portal+http://127.0.0.1:1",
            session_id="s",
            user_seed_phrase="amid romance hotel blue most myself guess host lobby rubber hook victim about odds child",
            **fields,
        )

    for allowed in (False, True):
        async with await created(allow_private_redirects=allowed) as session:
            store: Any = session._workspace.store
            assert store._http._settings.private_redirects is allowed
    with pytest.raises(InvalidConfigError, match="allow_private_redirects"):
        await created(allow_private_redirects="yes")

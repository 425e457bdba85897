"""The portal and gateway stores: the shared contract over the package's own portal, and what only they do."""

from __future__ import annotations

import json
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import anyio
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response

pytest.register_assert_rewrite("contract")

from contract import PUBLIC_KEY, StoreContract, check_one_store_serves_several_event_loops, entry  # noqa: E402
from serving import Recorder, running, serving  # noqa: E402

from fabstir_vectordb import VectorDBSession  # noqa: E402
from fabstir_vectordb.errors import (  # noqa: E402
    ConflictError,
    IntegrityError,
    InvalidConfigError,
    NotFoundError,
    OperationTimeoutError,
    S5Error,
)
from fabstir_vectordb.s5.cid import BlobId  # noqa: E402
from fabstir_vectordb.storage import Store, open_store  # noqa: E402
from fabstir_vectordb.storage.base import AtMost  # noqa: E402
from fabstir_vectordb.storage.local_dir import LocalDirStore  # noqa: E402

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "s5_vectors.json").read_text("utf-8"))
PHRASE = "amid romance hotel blue most myself guess host lobby rubber hook victim about odds child"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("portal")


@pytest.fixture(scope="module")
def portal(root: Path) -> Iterator[str]:
    with serving(root) as address:
        yield address


@pytest.fixture(autouse=True)
def _empty(root: Path) -> None:
    for file in root.rglob("*"):
        if file.is_file():
            file.unlink()


class TestS5PortalStore(StoreContract):
    prefix = "portal+"

    @pytest.fixture
    def address(self, portal: str) -> str:
        return self.prefix + portal

    @pytest.fixture(autouse=True)
    def _root(self, root: Path) -> None:
        self.root = root

    def damage_blob(self, store: Any, blob: BlobId, data: bytes) -> None:
        LocalDirStore(self.root).blob_path(blob.hash).write_bytes(data)

    def damage_pointer(self, store: Any, public_key: bytes, data: bytes) -> None:
        (self.root / "pointers" / public_key.hex()).write_bytes(data)

    async def test_damaged_pointer_is_noticed_and_its_owner_can_replace_it(self, store: Store) -> None:
        """The portal notices; the store says so."""
        await store.set_pointer(entry(1))
        self.damage_pointer(store, PUBLIC_KEY, b"\x07")
        with pytest.raises(S5Error, match="damaged"):
            await store.get_pointer(PUBLIC_KEY)
        await store.set_pointer(entry(1))
        assert await store.get_pointer(PUBLIC_KEY) == entry(1)


@pytest.mark.one_loop  # after the first request it is the store of the class above
class TestProbedStore(TestS5PortalStore):
    prefix = ""


class TestFabstirGatewayStore(StoreContract):
    @pytest.fixture
    def address(self, portal: str) -> str:
        return f"gateway+{portal}"

    @pytest.fixture(autouse=True)
    def _root(self, root: Path) -> None:
        self.root = root

    def damage_blob(self, store: Any, blob: BlobId, data: bytes) -> None:
        path = LocalDirStore(self.root).blob_path(blob.hash)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def damage_pointer(self, store: Any, public_key: bytes, data: bytes) -> None:
        (file,) = (self.root / "gateway").glob(f"*{public_key.hex()}*")
        other = BlobId.of(data)
        file.write_text(str(other))
        self.damage_blob(store, other, data)


@pytest.mark.parametrize("kind", ["", "portal+", "gateway+"])
def test_one_store_serves_several_event_loops(portal: str, kind: str) -> None:
    check_one_store_serves_several_event_loops(open_store(kind + portal))


# ---- what goes over the wire


@pytest.mark.anyio
async def test_an_upload_is_that_of_s5js() -> None:
    (captured,) = (one for one in VECTORS["http_capture"] if one["path"] == "/s5/upload")
    content = bytes(captured["part_size"])
    recorder = Recorder(lambda request: JSONResponse({"cid": BlobId.of(content).to_text("base58btc")}))
    with running(recorder) as address:
        async with aclosing(open_store(f"portal+{address}", token="S5Atoken")) as store:
            await store.put(content)
    ((method, path, headers, body),) = recorder.asked
    assert (method, path) == (captured["method"], captured["path"])
    assert headers["authorization"] == captured["headers"]["authorization"]
    kind, _, boundary = headers["content-type"].partition("; boundary=")
    assert kind == "multipart/form-data"
    assert headers["accept"] == captured["headers"]["accept"]
    head, _, rest = body.partition(b"\r\n\r\n")
    expected = [line.replace("<boundary>", boundary) for line in captured["part_headers"]]
    assert head.decode().split("\r\n") == expected
    assert rest.removesuffix(f"\r\n--{boundary}--\r\n".encode()) == content


#: Statuses of Fabstir's newest bridge, where they are other than those of the captured gateway.
BRIDGE_STATUS = {"PUT": 201, "DELETE": 204}


def test_the_gateway_answers_as_the_captured_one_or_the_newest_bridge(portal: str) -> None:
    import httpx

    with httpx.Client(base_url=portal) as client:
        for one in VECTORS["gateway_capture"]:
            body = one.get("request_body")
            answer = client.request(
                one["method"],
                one["path"],
                content=None if body is None else body.encode(),
                headers=one.get("request_headers"),
            )
            status = BRIDGE_STATUS.get(one["method"], one["status"])
            if "Range" in (one.get("request_headers") or {}):
                status = 206  # neither gateway knows ranges
            assert answer.status_code == status, one
            if one["method"] == "DELETE":
                assert answer.content == b""
            elif isinstance(one["body"], (dict, list)):
                expected: Any = one["body"]
                # Newer hosts want to know the CID, and more than the names.
                if one["method"] == "PUT":
                    content = (body or "").encode()
                    path = unquote(one["path"].removeprefix("/s5/fs/"))
                    expected = {**expected, "path": path, "size": len(content)}
                    expected["cid"] = BlobId.of(content).to_text("base32")
                elif one["path"] == "/health":
                    port = int(portal.rpartition(":")[2])
                    bridge = {name: answer.json()[name] for name in ("service", "timestamp")}
                    bridge |= {"status": "healthy", "connected": True, "peerCount": 0}
                    expected = {**expected, **bridge, "port": port}
                elif isinstance(expected, list):
                    expected = answer.json() if {type(row) for row in answer.json()} <= {dict} else None
                assert answer.json() == expected, one
                assert one["content_type"].startswith(answer.headers["content-type"])
            elif one["body"] is not None and answer.is_success:
                assert answer.text == one["body"], one
            if "content_length" in one:
                assert int(answer.headers["content-length"]) == one["content_length"]
        assert client.get("/health").json()["storage_size"] == 2


def test_the_gateway_store_asks_as_its_own_client_does_but_for_the_type(portal: str) -> None:
    captured = next(one for one in VECTORS["gateway_capture"] if one["method"] == "PUT")
    recorder = Recorder(lambda request: JSONResponse({"success": True}))

    async def put() -> None:
        async with aclosing(open_store(f"gateway+{address}")) as store:
            await store.put(b"abc")

    with running(recorder) as address:
        anyio.run(put)
    ((method, path, headers, body),) = recorder.asked
    assert (method, body) == ("PUT", b"abc")
    assert path.startswith("/s5/fs/home/")
    # The newest gateway refuses the type that the older ones' client sends, and they read none.
    for name, value in {**captured["request_headers"], "Content-Type": "application/octet-stream"}.items():
        assert headers[name.lower()] == value


# ---- who is who


@pytest.mark.anyio
async def test_an_address_that_is_neither_is_named() -> None:
    with running(Recorder(lambda request: PlainTextResponse("hello"))) as address:
        async with aclosing(open_store(address)) as store:
            with pytest.raises(S5Error, match="neither as an S5 node") as caught:
                await store.put(b"x")
            assert not caught.value.retryable


@pytest.mark.anyio
async def test_an_address_is_asked_once_what_it_is(portal: str) -> None:
    recorder = Recorder(
        lambda request: (
            JSONResponse({"status": "ok", "success": True})
            if request.url.path in ("/s5/health",) or request.method == "PUT"
            else PlainTextResponse("no", 404)
        )
    )
    with running(recorder) as address:
        async with aclosing(open_store(address)) as store:
            async with anyio.create_task_group() as group:
                for number in range(5):
                    group.start_soon(store.put, b"%d" % number)
            assert Counter(path for method, path, *_ in recorder.asked if method == "GET") == {
                "/s5/version": 1,
                "/health": 1,
                "/s5/health": 1,
            }


@pytest.mark.parametrize(
    "uri",
    [
        "http://",
        "http:///x",
        "https://user:secret@host",
        "http://host?auth_token=secret",
        "http://host:99999",
        "http://[",
        "http://\n",
        "http://a\x00b",
    ],
)
def test_addresses_that_are_none_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(InvalidConfigError) as caught:
        open_store(uri)
    assert "secret" not in str(caught.value)
    with pytest.raises(InvalidConfigError, match="unknown scheme"):
        open_store(uri.replace("http", "ftp"))
    with pytest.raises(InvalidConfigError, match="unknown scheme"):
        open_store(f"other+{uri}")


# ---- tokens


@pytest.mark.anyio
async def test_a_portal_wants_its_token(tmp_path: Path) -> None:
    with serving(tmp_path, token="right") as address:
        for token in (None, "wrong"):
            async with aclosing(open_store(f"portal+{address}", token=token)) as store:
                with pytest.raises(S5Error, match="portal_token") as caught:
                    await store.put(b"x")
                assert not caught.value.retryable
                assert caught.value.details == {"status": 401}
                assert "wrong" not in str(caught.value)
                with pytest.raises(S5Error, match="portal_token"):
                    await store.set_pointer(entry(1))
        async with aclosing(open_store(f"portal+{address}", token="right")) as store:
            blob = await store.put(b"x")
            assert await store.get(blob.hash, 1) == b"x"
            await store.set_pointer(entry(1))
            assert await store.delete(blob.hash)
            assert not await store.delete(blob.hash)


@pytest.mark.anyio
async def test_the_token_goes_to_no_other_host() -> None:
    other = Recorder(lambda request: Response(b"hello"))
    with running(other) as elsewhere:
        elsewhere = elsewhere.replace("127.0.0.1", "localhost")
        first = Recorder(lambda request: RedirectResponse(f"{elsewhere}/there", 307))
        with running(first) as address:
            async with aclosing(open_store(f"portal+{address}", token="mine")) as store:
                assert await store.get(BlobId.of(b"hello").hash, 5) == b"hello"
    assert first.asked[0][2]["authorization"] == "Bearer mine"
    assert "authorization" not in other.asked[0][2]


# ---- portals that are wrong


@pytest.mark.anyio
@pytest.mark.parametrize("wrong", [b"hellO", b"hell", b"hello and more", b"", bytes(1_000_000)])
async def test_wrong_bytes_are_an_error_and_a_good_route_is_looked_for(wrong: bytes) -> None:
    blob = BlobId.of(b"hello")
    everywhere = Recorder(lambda request: Response(wrong))
    with running(everywhere) as address:
        async with aclosing(open_store(f"portal+{address}")) as store:
            for size in (5, AtMost(100)):
                with pytest.raises(IntegrityError):
                    await store.get(blob.hash, size)
    assert len(everywhere.asked) == 10
    one_good = Recorder(lambda request: Response(b"hello" if "download" in request.url.path else wrong))
    with running(one_good) as address:
        async with aclosing(open_store(f"portal+{address}")) as store:
            assert await store.get(blob.hash, 5) == b"hello"
            asked = len(one_good.asked)
            assert await store.get(blob.hash, 5) == b"hello"
            assert len(one_good.asked) == asked + 1


@pytest.mark.anyio
async def test_redirects_without_end_and_to_nowhere_are_named() -> None:
    for target in ("/again", "nothing://x", "http://["):
        with running(Recorder(lambda request, target=target: RedirectResponse(target, 307))) as address:
            async with aclosing(open_store(f"portal+{address}", max_retries=0)) as store:
                with pytest.raises((S5Error, NotFoundError)):
                    await store.get(bytes(32), 5)


@pytest.mark.anyio
@pytest.mark.parametrize("answer", ["", "{}", "[]", '{"cid": 3}', '{"cid": "zzz"}', "x" * 100_000])
async def test_an_upload_must_be_acknowledged_by_its_cid(answer: str) -> None:
    with running(Recorder(lambda request: Response(answer))) as address:
        async with aclosing(open_store(f"portal+{address}")) as store:
            with pytest.raises((S5Error, IntegrityError)):
                await store.put(b"x")
    other = BlobId.of(b"y").to_text("base58btc")
    with running(Recorder(lambda request: JSONResponse({"cid": other}))) as address:
        async with aclosing(open_store(f"portal+{address}")) as store:
            with pytest.raises(IntegrityError):
                await store.put(b"x")


@pytest.mark.anyio
async def test_forged_and_strange_pointers_are_errors() -> None:
    good = entry(3)
    documents: list[Any] = [
        {},
        [],
        {**good.to_portal_json(), "revision": 4},
        {**good.to_portal_json(), "signature": "A" * 86},
        entry(3, seed=b"t" * 32).to_portal_json(),
        {**good.to_portal_json(), "data": "A" * 300},
    ]
    for document in documents:
        with running(Recorder(lambda request, document=document: JSONResponse(document))) as address:
            async with aclosing(open_store(f"portal+{address}")) as store:
                with pytest.raises(IntegrityError):
                    await store.get_pointer(PUBLIC_KEY)


@pytest.mark.anyio
async def test_an_error_after_the_pointer_moved_is_success(tmp_path: Path) -> None:
    moved = LocalDirStore(tmp_path)

    async def answer(request: Request) -> Response:
        if request.method == "POST":
            await moved.set_pointer(entry(5))
            return PlainTextResponse("something broke", 500)
        found = await moved.get_pointer(PUBLIC_KEY)
        return Response(status_code=404) if found is None else JSONResponse(found.to_portal_json())

    with running(Recorder(answer)) as address:
        async with aclosing(open_store(f"portal+{address}")) as store:
            await store.set_pointer(entry(5))
            with pytest.raises(ConflictError):
                await store.set_pointer(entry(5, b"other"))


# ---- portals that are slow or busy


@pytest.mark.anyio
async def test_not_now_is_asked_again_as_late_as_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("fabstir_vectordb.storage.retry.anyio.sleep", sleep)
    answers = iter([(503, {}), (429, {"Retry-After": "7"}), (502, {"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"})])
    content = b"hello"

    def answer(request: Request) -> Response:
        status, headers = next(answers, (200, {}))
        cid = BlobId.of(content).to_text("base58btc")
        return PlainTextResponse("busy", status, headers) if status != 200 else JSONResponse({"cid": cid})

    recorder = Recorder(answer)
    with running(recorder) as address:
        async with aclosing(open_store(f"portal+{address}")) as store:
            await store.put(content)
    assert len(recorder.asked) == 4
    assert len(pauses) == 3
    assert pauses[1] == 7
    assert pauses[0] <= 0.2 and pauses[2] <= 0.8


@pytest.mark.anyio
async def test_busy_for_ever_ends_with_an_error() -> None:
    recorder = Recorder(lambda request: PlainTextResponse("try\nlater\x1b[31m", 503))
    with running(recorder) as address:
        async with aclosing(open_store(f"portal+{address}", max_retries=1)) as store:
            with pytest.raises(S5Error, match="503: try later") as caught:
                await store.put(b"x")
    assert caught.value.retryable
    assert caught.value.details["status"] == 503
    assert caught.value.message.isprintable()
    assert len(recorder.asked) == 2


@pytest.mark.anyio
async def test_a_silent_portal_is_a_timeout_and_a_closed_one_an_error() -> None:
    over = threading.Event()

    async def silent(request: Request) -> Response:
        await anyio.to_thread.run_sync(over.wait)
        return Response()

    with running(Recorder(silent)) as address:
        async with aclosing(open_store(f"portal+{address}", timeout_s=0.2, max_retries=0)) as store:
            with pytest.raises(OperationTimeoutError) as caught:
                await store.put(b"x")
            assert caught.value.retryable
        over.set()
    async with aclosing(open_store(f"portal+{address}", max_retries=1)) as store:
        with pytest.raises(S5Error):
            await store.put(b"x")


# ---- sessions


async def _filled(uri: str, **fields: Any) -> tuple[VectorDBSession, str]:
    session = await VectorDBSession.create(
        s5_portal=uri, user_seed_phrase=PHRASE, session_id="s", clock=lambda: 1.7e9, **fields
    )
    await session.add_batch(["a", "b"], [[1.0, 0.0], [0.0, 1.0]], [{"text": "one"}, None])
    return session, await session.save_to_s5()


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["", "portal+", "gateway+"])
async def test_a_version_has_the_same_cid_and_blobs_as_in_a_directory(
    portal: str, root: Path, tmp_path: Path, kind: str
) -> None:
    session, cid = await _filled(kind + portal)
    async with session:
        local, local_cid = await _filled(tmp_path.as_uri())
        async with local:
            assert cid == local_cid
        served, stored = (
            {file.name for file in (place / "blobs").rglob("*") if file.is_file()} for place in (root, tmp_path)
        )
        # A gateway has no registry: its marker, and its pointers of index, history and catalogue, are files.
        assert stored <= served
        assert len(served - stored) == (4 if kind == "gateway+" else 0)
        await session.load_user_vectors()
        assert (await session.search([1.0, 0.1], 1))[0].metadata == {"text": "one"}
        assert [version.cid for version in await session.history()] == [cid]
        assert await session.list_indexes() == ["default"]
        await session.verify(cid)


@pytest.mark.anyio
async def test_of_two_writers_over_a_portal_one_is_told(portal: str) -> None:
    one, _ = await _filled(portal)
    async with one:
        two = await VectorDBSession.create(s5_portal=portal, user_seed_phrase=PHRASE, session_id="t")
        async with two:
            await two.load_user_vectors()
            await two.add_batch(["c"], [[1.0, 1.0]])
            await one.add_batch(["d"], [[1.0, 2.0]])
            await two.save_to_s5()
            with pytest.raises(ConflictError):
                await one.save_to_s5()
            assert await one.count() == 3


@pytest.mark.anyio
@pytest.mark.one_loop
async def test_many_users_share_a_portal(portal: str) -> None:
    async def use(number: int) -> None:
        async with await VectorDBSession.create(
            s5_portal=portal, user_seed_phrase=f"{PHRASE}", session_id="s", index_name=f"of-{number}"
        ) as session:
            await session.add_batch([f"row {number}"], [[float(number), 1.0]])
            await session.save_to_s5()
            await session.load_user_vectors()
            assert [row.id async for row in session.scan()] == [f"row {number}"]

    async with anyio.create_task_group() as group:
        for number in range(6):
            group.start_soon(use, number)


def test_secrets_are_in_no_repr() -> None:
    from fabstir_vectordb import VectorDBConfig
    from fabstir_vectordb.storage.exchange import HttpSettings

    secret = uuid.uuid4().hex
    config = VectorDBConfig(s5_portal="http://x", user_seed_phrase="a", session_id="s", portal_token=secret)
    assert secret not in repr(config) + repr(HttpSettings(token=secret))
    wrong: list[dict[str, Any]] = [{"timeout_s": 0}, {"timeout_s": True}, {"max_retries": -1}]
    for bad in [*wrong, {"portal_token": "a\nb"}, {"portal_token": 3}]:
        with pytest.raises(InvalidConfigError) as caught:
            VectorDBConfig(s5_portal="http://x", user_seed_phrase="a", session_id="s", **bad)
        assert caught.value.details["field"] == next(iter(bad))

"""The gateway store on the newest gateway, and what becomes of a 404 when the portal behind it is down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import anyio
import pytest

pytest.register_assert_rewrite("contract")

from bridge import Bridge, old_gateway  # noqa: E402
from contract import PUBLIC_KEY, StoreContract, entry  # noqa: E402
from serving import Recorder, running  # noqa: E402
from starlette.requests import Request  # noqa: E402
from starlette.responses import Response  # noqa: E402

from fabstir_vectordb import VectorDBSession  # noqa: E402
from fabstir_vectordb.errors import InvalidInputError, NotFoundError, S5Error, VectorDBError  # noqa: E402
from fabstir_vectordb.s5.cid import BlobId  # noqa: E402
from fabstir_vectordb.storage import open_store  # noqa: E402
from fabstir_vectordb.storage.fabstir_gateway import _blob_path, _pointer_path  # noqa: E402

PHRASE = "amid romance hotel blue most myself guess host lobby rubber hook victim about odds child"
HELLO = BlobId.of(b"hello")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fabstir_vectordb.storage.retry._pause", lambda state: 0.0)


@pytest.fixture(scope="module")
def _served() -> Iterator[tuple[Bridge, str]]:
    bridge = Bridge()
    with running(bridge) as address:
        yield bridge, address


@pytest.fixture
def bridge(_served: tuple[Bridge, str]) -> Bridge:
    bridge, _ = _served
    bridge.files.clear()
    bridge.puts.clear()
    bridge.is_down = False
    return bridge


@pytest.fixture
def address(_served: tuple[Bridge, str]) -> str:
    return _served[1]


class TestNewestGateway(StoreContract):
    @pytest.fixture
    def address(self, _served: tuple[Bridge, str], bridge: Bridge) -> str:
        self.bridge = bridge
        return f"gateway+{_served[1]}"

    def damage_blob(self, store: Any, blob: BlobId, data: bytes) -> None:
        self.bridge.files[_blob_path(blob.hash).removeprefix("/s5/fs/")] = data

    def damage_pointer(self, store: Any, public_key: bytes, data: bytes) -> None:
        self.bridge.files[_pointer_path(public_key).removeprefix("/s5/fs/")] = data


async def _session(uri: str, **fields: Any) -> VectorDBSession:
    return await VectorDBSession.create(
        s5_portal=uri, user_seed_phrase=PHRASE, session_id="s", max_retries=0, threads=1, **fields
    )


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["", "gateway+"])
async def test_a_version_is_saved_and_found_on_the_newest_gateway(bridge: Bridge, address: str, kind: str) -> None:
    async with await _session(kind + address) as session:
        await session.add_batch(["a", "b"], [[1.0, 0.0], [0.0, 1.0]])
        cid = await session.save_to_s5()
    assert set(bridge.puts) == {"application/octet-stream"}
    async with await _session(kind + address) as session:
        await session.load_user_vectors()
        assert await session.count() == 2
        assert [version.cid for version in await session.history()] == [cid]


@pytest.mark.anyio
async def test_an_older_gateway_gets_the_type_that_it_takes() -> None:
    gateway = old_gateway()
    with running(gateway) as address:
        async with aclosing(open_store(f"gateway+{address}")) as store:
            await store.put(b"one")
            await store.put(b"two")
            await store.set_pointer(entry(1))
            assert await store.get_pointer(PUBLIC_KEY) == entry(1)
    assert gateway.puts[:3] == ["application/octet-stream", "application/cbor", "application/cbor"]


@pytest.mark.anyio
async def test_a_fresh_gateway_starts_empty(bridge: Bridge, address: str) -> None:
    async with await _session(address) as session:
        await session.load_user_vectors(missing_ok=True)
        assert await session.count() == 0
        assert await session.history() == []
        assert await session.list_indexes() == []
        with pytest.raises(NotFoundError):
            await session.load_user_vectors()
    assert [name.rpartition("/")[2] for name in bridge.files] == ["marker.bin"]


@pytest.mark.anyio
@pytest.mark.parametrize("has_data", [True, False])
async def test_what_a_gateway_lacks_while_its_portal_is_down_is_not_taken_for_absent(
    bridge: Bridge, address: str, has_data: bool
) -> None:
    async with await _session(address) as session:
        await session.add_batch(["a"], [[1.0, 0.0]])
        if has_data:
            await session.save_to_s5()
    bridge.is_down = True
    async with await _session(address) as session:
        for call in (
            lambda: session.load_user_vectors(missing_ok=True),
            session.load_user_vectors,
            session.history,
            session.list_indexes,
        ):
            with pytest.raises(S5Error, match="portal behind it cannot be reached") as caught:
                await call()
            assert caught.value.retryable
        bridge.is_down = False
        await session.load_user_vectors(missing_ok=True)
        assert await session.count() == has_data


@pytest.mark.anyio
async def test_no_store_call_believes_a_gateway_whose_portal_is_down(bridge: Bridge, address: str) -> None:
    async with aclosing(open_store(f"gateway+{address}", max_retries=0)) as store:
        await store.put(b"hello")
        await store.set_pointer(entry(7))
        before = dict(bridge.files)
        bridge.is_down = True
        calls = (
            lambda: store.get(HELLO.hash, 5),
            lambda: store.has(HELLO.hash),
            lambda: store.delete(HELLO.hash),
            lambda: store.get_pointer(PUBLIC_KEY),
            # A lower revision must not pass for the first one.
            lambda: store.set_pointer(entry(1)),
        )
        for call in calls:
            with pytest.raises(S5Error):
                await call()
        assert bridge.files == before


@pytest.mark.anyio
async def test_a_portal_that_comes_back_between_two_questions_is_asked_again(bridge: Bridge, address: str) -> None:
    async with aclosing(open_store(f"gateway+{address}", max_retries=0)) as store:
        assert await store.get_pointer(PUBLIC_KEY) is None  # leaves the marker
        await store.set_pointer(entry(3))
        get = bridge.files.get

        class Late(dict[str, bytes]):
            asked = 0

            def get(self, name: str, default: Any = None) -> Any:
                Late.asked += "pointers" in name
                return None if Late.asked == 1 and "pointers" in name else get(name, default)

        bridge.files = Late(bridge.files)
        try:
            assert await store.get_pointer(PUBLIC_KEY) == entry(3)
        finally:
            bridge.files = dict(bridge.files)


@pytest.mark.anyio
async def test_what_no_node_takes_in_one_upload_is_refused_before_it_is_sent(
    bridge: Bridge, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fabstir_vectordb.storage.base.UPLOAD_BYTES_MAX", 10)
    for kind in ("gateway+", "portal+"):
        async with aclosing(open_store(kind + address)) as store:
            with pytest.raises(InvalidInputError, match="chunk_size") as caught:
                await store.put(bytes(11))
            assert caught.value.details == {"limit": 10, "actual": 11}
    assert not bridge.puts


@pytest.mark.anyio
async def test_a_server_that_is_no_node_has_no_say_about_what_is_absent() -> None:
    with running(Recorder(lambda request: Response(status_code=404))) as address:
        async with aclosing(open_store(f"portal+{address}", max_retries=0)) as store:
            for call in (lambda: store.get_pointer(PUBLIC_KEY), lambda: store.get(HELLO.hash, 5)):
                with pytest.raises(S5Error, match="does not answer as an S5 node"):
                    await call()
        async with await _session(f"portal+{address}") as session:
            with pytest.raises(S5Error):
                await session.load_user_vectors(missing_ok=True)


@pytest.mark.anyio
async def test_a_slow_first_upload_is_waited_for() -> None:
    async def slow(request: Request) -> Response:
        await anyio.sleep(0.3)
        return Response(b'{"cid": "z"}', 201)

    with running(Recorder(slow)) as address:
        async with aclosing(open_store(f"gateway+{address}", timeout_s=2, max_retries=0)) as store:
            await store.put(b"x")
        async with aclosing(open_store(f"gateway+{address}", timeout_s=0.1, max_retries=0)) as store:
            with pytest.raises(VectorDBError, match="did not answer"):
                await store.put(b"x")

"""The portal's websocket /s5/p2p: what S5.js asks of it, and clients that lie, flood, or never read."""

from __future__ import annotations

import base64
import contextlib
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import nacl.signing
import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    Request,
    TextMessage,
)

pytest.register_assert_rewrite("contract")

from contract import OTHER_SEED, PUBLIC_KEY, SEED, entry  # noqa: E402
from serving import serving  # noqa: E402

from fabstir_vectordb.portal import app, messages, p2p, server  # noqa: E402
from fabstir_vectordb.s5.cid import BlobId  # noqa: E402
from fabstir_vectordb.s5.keys import ed25519_public_key  # noqa: E402
from fabstir_vectordb.s5.registry import RegistryEntry  # noqa: E402
from fabstir_vectordb.storage.local_dir import LocalDirStore  # noqa: E402

CHALLENGE = bytes(range(64))
QUERY = bytes([messages.REGISTRY_QUERY]) + messages.pack_bytes(PUBLIC_KEY)
#: A query that is always answered: of the blob that `root` has.
STORED = BlobId.of(b"stored")


def blob_query(blob: BlobId, types: bytes = b"\x92\x03\x05") -> bytes:
    return bytes([messages.BLOB_QUERY]) + messages.pack_bytes(b"\x1f" + blob.hash) + types


class Client:
    """One websocket to a portal, which sends and receives when it is told to."""

    def __init__(self, address: str, query: str = "", receive_bytes: int | None = None, **headers: str) -> None:
        host, port = address.removeprefix("http://").split(":")
        self.socket = socket.socket()
        if receive_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(20)
        self.socket.connect((host, int(port)))
        self._connection = WSConnection(ConnectionType.CLIENT)
        named = headers.pop("Host", f"{host}:{port}")
        extra = [(name.encode(), value.encode()) for name, value in headers.items()]
        self.send_event(Request(host=named, target=f"/s5/p2p{query}", extra_headers=extra))
        self._events: Iterator[Event] = iter(())
        self.opened = self.event()

    def close(self) -> None:
        self.socket.close()

    def send_event(self, event: Event) -> None:
        self.socket.sendall(self._connection.send(event))

    def send(self, message: bytes) -> None:
        self.send_event(BytesMessage(message))

    def event(self) -> Event:
        while True:
            for event in self._events:
                return event
            data = self.socket.recv(65_536)
            self._connection.receive_data(data or None)
            self._events = self._connection.events()

    def receive(self) -> bytes:
        event = self.event()
        assert isinstance(event, BytesMessage), event
        return bytes(event.data)

    def closed(self) -> int:
        """The code with which the portal closes, whatever it sends before."""
        while True:
            event = self.event()
            if isinstance(event, CloseConnection):
                return event.code

    def greet(self, seed: bytes = OTHER_SEED) -> Client:
        """Proves a key, as S5.js does."""
        self.send(messages.opening(CHALLENGE))
        asked = messages.Reader(self.receive()[1:]).binary()
        self.send(messages.answer_to(asked, seed))
        assert messages.verified_answer(self.receive()) == CHALLENGE
        return self


@pytest.fixture
def root(tmp_path: Path) -> Path:
    LocalDirStore(tmp_path)._put(b"stored")
    return tmp_path


@pytest.fixture
def connect(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Client]]:
    """Connects to a portal that serves `root`; settings are those of the client."""
    clients: list[Client] = []

    def listen(host: str, port: int) -> socket.socket:
        listener = server.listen(host, port)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8_192)  # soon full
        return listener

    monkeypatch.setattr("serving.listen", listen)
    with serving(root) as address:

        def new(**settings: object) -> Client:
            clients.append(Client(address, **settings))  # type: ignore[arg-type]
            return clients[-1]

        new.address = address  # type: ignore[attr-defined]
        yield new
        for client in clients:
            client.close()


def test_entries_are_kept_told_and_replaced_by_higher_revisions_only(connect: Callable[..., Client]) -> None:
    reader, writer = connect().greet(), connect().greet(SEED)
    address = connect.address  # type: ignore[attr-defined]
    reader.send(QUERY)
    reader.send(blob_query(STORED))
    assert reader.receive()[:1] == b"\x05"  # so nothing was said of the unknown entry
    writer.send(entry(3).serialize())
    assert reader.receive() == entry(3).serialize()
    assert httpx.get(f"{address}/s5/registry", params={"pk": _base64url(PUBLIC_KEY)}).json()["revision"] == 3
    # A lower revision is answered by the stored entry, an equal one not at all; nobody else is told.
    for revision in (2, 3):
        writer.send(entry(revision).serialize())
    writer.send(QUERY)
    assert [writer.receive(), writer.receive()] == [entry(3).serialize()] * 2
    # What comes by HTTP is told, too; who asks again is answered.
    assert httpx.post(f"{address}/s5/registry", json=entry(4).to_portal_json()).status_code == 204
    assert reader.receive() == writer.receive() == entry(4).serialize()
    reader.send(QUERY)
    assert reader.receive() == entry(4).serialize()


def test_a_blob_is_found_at_an_address_that_the_portal_signs(connect: Callable[..., Client]) -> None:
    client = connect().greet()
    client.send(blob_query(BlobId.of(b"nowhere")))
    client.send(blob_query(STORED, b"\x91\x07"))
    client.send(blob_query(STORED))
    record = client.receive()
    assert record[:35] == b"\x05\x1f" + STORED.hash + b"\x03"
    assert record[39:40] == b"\x01"
    size = int.from_bytes(record[40:42], "little")
    assert httpx.get(record[42 : 42 + size].decode()).content == b"stored"
    signed, key, signature = record[: 43 + size], record[43 + size : 76 + size], record[76 + size :]
    nacl.signing.VerifyKey(key[1:]).verify(signed, signature)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xff",
        b"\x0d",
        b"\x0d\xc4\x21" + PUBLIC_KEY[:20],
        b"\x0d\xc4\x05short",
        b"\x0d\xc5\xff\xff" + PUBLIC_KEY,
        b"\x0d\xc6\x00\x00\x00\x21" + PUBLIC_KEY,
        b"\x0d\xc4\x21\xee" + PUBLIC_KEY[1:],
        b"\x04\xc4\x21\x12" + STORED.hash + b"\x91\x03",
        b"\x04\xc4\x21\x1f" + STORED.hash,
        b"\x04\xc4\x21\x1f" + STORED.hash + b"\x9f\x03",
        b"\x04\xc4\x21\x1f" + STORED.hash + b"\x91\xcc\x03",
        b"\x07",
        entry(5).serialize()[:-1],
        entry(5).serialize()[:-1] + b"\0",
        entry(5).serialize().replace(PUBLIC_KEY, ed25519_public_key(OTHER_SEED)),
        RegistryEntry.sign(SEED, 2**48 + 1, b"").serialize(),
        "text",
    ],
    ids=repr,
)
def test_malformed_and_forged_messages_end_the_connection(
    connect: Callable[..., Client], root: Path, message: bytes | str
) -> None:
    client, other = connect().greet(), connect().greet(SEED)
    client.send_event(TextMessage(message) if isinstance(message, str) else BytesMessage(message))
    assert client.closed() in (1003, 1008)
    assert not (root / "pointers").exists()
    other.send(blob_query(STORED))
    assert other.receive()[:1] == b"\x05"


def test_a_message_that_is_too_long_ends_the_connection_before_it_is_kept(connect: Callable[..., Client]) -> None:
    client = connect().greet()
    client.send(b"\x0d" + bytes(server.MESSAGE_BYTES_MAX))
    assert client.closed() == 1009
    # In pieces, too.
    client = connect().greet()
    piece = BytesMessage(bytes(1_000), message_finished=False)
    try:
        for _ in range(100):
            client.send_event(piece)
        assert client.closed() == 1009
    except ConnectionError:
        pass  # it has gone before all was sent


@pytest.mark.parametrize("lie", ["key", "challenge", "nothing proven", "no challenge"])
def test_who_does_not_prove_a_key_gets_nothing(connect: Callable[..., Client], root: Path, lie: str) -> None:
    client = connect()
    asked = messages.Reader(client.receive()[1:]).binary()
    if lie == "key":
        honest = messages.answer_to(asked, SEED)
        client.send(honest.replace(PUBLIC_KEY, ed25519_public_key(OTHER_SEED)))
    elif lie == "challenge":
        client.send(messages.answer_to(bytes(len(asked)), SEED))
    elif lie == "no challenge":
        client.send(messages.opening(b""))
    else:
        client.send(entry(1).serialize())
    assert client.closed() == 1008
    assert not (root / "pointers").exists()


def test_who_says_nothing_is_closed(connect: Callable[..., Client], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(p2p, "PROOF_S", 0.05)
    assert connect().closed() == 1008


def test_the_number_of_clients_is_limited(connect: Callable[..., Client], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(p2p, "PEERS_MOST", 2)
    clients = [connect().greet() for _ in range(2)]
    refused = connect().opened
    assert isinstance(refused, RejectConnection)
    assert refused.status_code == 503
    clients[0].close()
    clients[1].send(blob_query(STORED))
    clients[1].receive()
    assert _soon(lambda: isinstance(connect().opened, AcceptConnection))


def test_of_a_flood_of_keys_the_last_are_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(p2p, "KEYS_MOST", 10)
    made: list[p2p.Peers] = []

    class Watched(p2p.Peers):
        def __init__(self, store: LocalDirStore) -> None:
            super().__init__(store)
            made.append(self)

    monkeypatch.setattr(app, "Peers", Watched)
    with serving(root) as address:
        with closing(Client(address).greet()) as client:
            client.send(QUERY)
            for number in range(50):
                client.send(bytes([messages.REGISTRY_QUERY]) + messages.pack_bytes(b"\xed" + bytes([number]) * 32))
            client.send(QUERY)
            client.send(QUERY)
            client.send(blob_query(STORED))
            client.receive()
            assert len(made[0]._askers) == 10
            assert PUBLIC_KEY in made[0]._askers
        assert _soon(lambda: not made[0]._askers)
        assert made[0].count == 0


@pytest.mark.skipif(not hasattr(select, "poll"), reason="this system has no poll")
@pytest.mark.parametrize("way", ["requests", "pings"])
def test_a_client_that_never_reads_is_given_up(
    connect: Callable[..., Client], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(server, "TAKE_S", 0.2)
    monkeypatch.setattr(p2p, "WAITING_MOST", 4)
    other = connect().greet(SEED)
    client = connect(receive_bytes=4_096).greet()
    client.send(QUERY)
    event = Ping(payload=bytes(125)) if way == "pings" else BytesMessage(blob_query(STORED))
    request = client._connection.send(event) * 200
    client.socket.settimeout(0.1)
    with contextlib.suppress(OSError):  # reset, or nothing more is taken from it
        for _ in range(2_000):
            client.socket.sendall(request)
    # Nobody waits for it, not even who sets the entry that it has asked for.
    other.send(entry(1).serialize())
    other.send(QUERY)
    assert other.receive() == entry(1).serialize()
    ended = select.poll()
    ended.register(client.socket, 0)  # errors and hang-ups only: it does not read
    assert ended.poll(20_000)


def test_pages_of_foreign_origins_and_names_do_not_connect(root: Path) -> None:
    with serving(root, origins=["http://app.example"]) as address:
        for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            with closing(Client(address, **headers)) as client:
                assert isinstance(client.opened, RejectConnection)
                assert client.opened.status_code == 403
        for headers in ({"Origin": "http://app.example"}, {"Origin": address}):
            with closing(Client(address, **headers)) as client:
                client.greet()


def test_a_portal_with_a_token_takes_entries_with_it_only(root: Path) -> None:
    with serving(root, "sesame") as address:
        with closing(Client(address).greet()) as client:
            client.send(QUERY)
            client.send(entry(1).serialize())
            assert client.closed() == 1008
        assert not (root / "pointers").exists()
        with closing(Client(address, "?auth_token=sesame").greet()) as client:
            client.send(entry(1).serialize())
            client.send(QUERY)
            assert client.receive() == entry(1).serialize()


def test_clients_without_a_token_set_entries_at_one_rate_for_all(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    wait = p2p.Peers._wait_of_strangers

    def waited(peers: p2p.Peers, now: float) -> float:
        waits.append(wait(peers, 5.0))  # as if all came at one time
        return 0.0

    monkeypatch.setattr(p2p, "STRANGERS_ENTRIES_MOST", 2)
    monkeypatch.setattr(p2p.Peers, "_wait_of_strangers", waited)
    with serving(root, "sesame", accounts=True) as address:
        for revision, query in enumerate(["", "", "", "", "?auth_token=sesame"], 1):
            with closing(Client(address, query).greet()) as client:
                client.send(entry(revision).serialize())
                client.send(QUERY)
                assert client.receive() == entry(revision).serialize()
    assert waits == pytest.approx([0, 0, 0.1, 0.2])


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _soon(holds: Callable[[], bool]) -> bool:
    for _ in range(200):
        if holds():
            return True
        threading.Event().wait(0.01)
    return False

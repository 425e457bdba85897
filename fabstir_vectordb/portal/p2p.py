"""The portal as a node of the S5 network, for clients that connect to its websocket ``/s5/p2p``.

S5.js reads and writes registry entries, and finds blobs, over this websocket alone. A client proves its key, then asks
for entries and for addresses of blobs, and sends entries. It is sent each later revision of an entry that it has asked
for, since S5.js asks once. The portal itself connects to no node.

No client must exhaust the portal. The numbers of clients, of entries that one has asked for, of messages that wait for
one, and of entries that clients without a token set in a second are limited; `server` limits the size of a message and
the time that a client takes to receive.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from typing import Final

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

from fabstir_vectordb.errors import ConflictError, IntegrityError, InvalidInputError, VectorDBError
from fabstir_vectordb.portal import messages
from fabstir_vectordb.s5.base64url import to_base64url
from fabstir_vectordb.s5.cid import is_multihash
from fabstir_vectordb.s5.registry import RegistryEntry, is_public_key
from fabstir_vectordb.storage.local_dir import LocalDirStore
from fabstir_vectordb.storage.s5_account import CHALLENGE_BYTES

__all__ = ["Peers"]

#: Most clients at once.
PEERS_MOST: int = 128
#: Most entries of whose later revisions one client is told; beyond, the entry asked for longest ago is dropped.
KEYS_MOST: int = 4_096
#: Most messages that wait for one client.
WAITING_MOST: int = 256
#: Entries a second that all clients without a token set, where others have one; and how many at once before that.
STRANGERS_ENTRIES_S: float = 10.0
STRANGERS_ENTRIES_MOST: int = 200
#: Most seconds for a client to prove its key.
PROOF_S: float = 20.0
#: Most bytes of a client's challenge; S5.js sends 64, lib5 32.
_CHALLENGE_BYTES_MAX: Final = 255
#: Seconds until a storage location expires; a client asks again then.
_LOCATION_S: Final = 60 * 60
#: Status codes of a closed websocket (RFC 6455, 7.4.1): unfit data, refused, failed here.
_UNFIT: Final = 1003
_REFUSED: Final = 1008
_FAILED: Final = 1011

logger = logging.getLogger(__name__)


class _ClosingError(Exception):
    """The connection ends, with a status code and a reason for the client."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class _Peer:
    """One connected client: what it has asked for, and what waits for it. Cancelling `scope` ends the connection."""

    def __init__(
        self, socket: WebSocket, may_write: bool, is_stranger: bool, outbox: MemoryObjectSendStream[bytes]
    ) -> None:
        self.socket = socket
        self.may_write = may_write
        self.is_stranger = is_stranger
        self.keys: dict[bytes, None] = {}
        self._outbox = outbox
        self.scope = anyio.CancelScope()

    async def answer(self, message: bytes) -> None:
        """Sends a message, after those before it. Waits if too many wait; the client's next request waits, too."""
        await self._outbox.send(message)

    def push(self, message: bytes) -> None:
        """Sends a message that the client has not just asked for; ends the connection if too many wait."""
        try:
            self._outbox.send_nowait(message)
        except anyio.WouldBlock:
            self.scope.cancel()
        except anyio.ClosedResourceError:
            pass  # the connection is ending

    async def deliver(self, inbox: MemoryObjectReceiveStream[bytes]) -> None:
        """Sends what waits, until the client has gone."""
        with contextlib.suppress(WebSocketDisconnect):
            async for message in inbox:
                await self.socket.send_bytes(message)
        self.scope.cancel()


class Peers:
    """The clients that are connected to a portal.

    Args:
        store: the portal's blobs and entries.
    """

    def __init__(self, store: LocalDirStore) -> None:
        self._store = store
        self._seed = secrets.token_bytes(32)
        self._peers: set[_Peer] = set()
        self._askers: dict[bytes, set[_Peer]] = {}
        # When the entries of strangers that were let in would have come at their rate.
        self._strangers_at = 0.0

    @property
    def count(self) -> int:
        """Number of connected clients."""
        return len(self._peers)

    async def set(self, entry: RegistryEntry, giver: _Peer | None = None) -> None:
        """Stores an entry and sends it to all clients that have asked for its key, except the one that gave it.

        Raises:
            ConflictError, IntegrityError, InvalidInputError, StorageError: as `Store.set_pointer`.
        """
        await self._store.set_pointer(entry)
        for peer in list(self._askers.get(entry.public_key, ())):
            if peer is not giver:
                peer.push(entry.serialize())

    async def serve(self, socket: WebSocket, may_write: bool, is_stranger: bool) -> None:
        """Talks with one client until the connection ends.

        Args:
            socket: the connection, not accepted yet.
            may_write: whether entries are taken from this client.
            is_stranger: whether they are taken at the rate that all strangers share.
        """
        if len(self._peers) >= PEERS_MOST:
            await socket.send_denial_response(PlainTextResponse("too many clients are connected", 503))
            return
        outbox, inbox = anyio.create_memory_object_stream[bytes](WAITING_MOST)
        peer = _Peer(socket, may_write, is_stranger, outbox)
        self._peers.add(peer)
        closing = _ClosingError(_REFUSED, "too slow")
        try:
            with outbox, inbox, peer.scope:
                await socket.accept()
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(peer.deliver, inbox)
                    try:
                        await self._converse(peer)
                    except _ClosingError as error:
                        closing = error
                    tasks.cancel_scope.cancel()
            await socket.close(closing.code, closing.reason)
        except (WebSocketDisconnect, RuntimeError):
            pass  # the client has gone, or the server has closed the connection
        finally:
            self._peers.discard(peer)
            for key in list(peer.keys):
                self._drop(peer, key)

    async def _converse(self, peer: _Peer) -> None:
        try:
            with anyio.fail_after(PROOF_S):
                await self._greet(peer)
            while True:
                await self._handle(peer, await _next(peer))
        except TimeoutError:
            raise _ClosingError(_REFUSED, "the challenge was not answered in time") from None
        except (InvalidInputError, IntegrityError) as error:
            raise _ClosingError(_REFUSED, error.message[:100]) from None
        except (VectorDBError, OSError) as error:
            logger.error("/s5/p2p: %s", error)
            raise _ClosingError(_FAILED, "the disk of this portal failed") from None

    async def _greet(self, peer: _Peer) -> None:
        """Both sides prove their keys.

        The client's challenge is answered last. S5.js counts as connected from this answer on, and would otherwise send
        requests before its own proof.
        """
        challenge = secrets.token_bytes(CHALLENGE_BYTES)
        await peer.answer(messages.opening(challenge))
        asked: bytes | None = None
        is_proven = False
        while asked is None or not is_proven:
            raw = await _next(peer)
            if raw[:1] == bytes([messages.OPENING]):
                asked = messages.Reader(raw[1:]).binary()
                if not 0 < len(asked) <= _CHALLENGE_BYTES_MAX:
                    raise InvalidInputError(f"a challenge must have 1 to {_CHALLENGE_BYTES_MAX} bytes")
            elif messages.verified_answer(raw) == challenge:
                is_proven = True
            else:
                raise IntegrityError("the answer is to another challenge")
        await peer.answer(messages.answer_to(asked, self._seed))

    async def _handle(self, peer: _Peer, raw: bytes) -> None:
        reader = messages.Reader(raw)
        kind = reader.integer()
        if kind == messages.REGISTRY_QUERY:
            await self._answer_entry(peer, reader.binary())
        elif kind == messages.BLOB_QUERY:
            await self._answer_location(peer, reader.binary(), reader.integers())
        elif kind == messages.ENTRY:
            await self._take(peer, RegistryEntry.parse(raw))
        # Other messages of the protocol, such as the addresses of other nodes, have no use here.

    async def _answer_entry(self, peer: _Peer, key: bytes) -> None:
        if not is_public_key(key):
            raise InvalidInputError("a registry query must have a public key of 33 bytes")
        self._note(peer, key)
        try:
            entry = await self._store.get_pointer(key)
        except IntegrityError as error:  # as if it were missing, so that its owner can repair it
            logger.error("/s5/p2p: %s", error)
            return
        if entry is not None:
            await peer.answer(entry.serialize())

    async def _answer_location(self, peer: _Peer, multihash: bytes, types: list[int]) -> None:
        if not is_multihash(multihash):
            raise InvalidInputError("a blob query must have a BLAKE3 multihash of 33 bytes")
        if messages.FILE_LOCATION in types and await self._store.has(multihash[1:]):
            url = _address_of(peer.socket, multihash[1:])
            expiry_s = int(time.time()) + _LOCATION_S
            await peer.answer(messages.storage_location(multihash, url, expiry_s, self._seed))

    async def _take(self, peer: _Peer, entry: RegistryEntry) -> None:
        if not peer.may_write:
            raise _ClosingError(_REFUSED, "entries need a token: connect to /s5/p2p?auth_token=...")
        if peer.is_stranger:
            # The client waits, and its next messages with it: honest ones lose nothing.
            await anyio.sleep(self._wait_of_strangers(anyio.current_time()))
        try:
            await self.set(entry, peer)
        except ConflictError:
            stored = await self._store.get_pointer(entry.public_key)
            if stored is not None and stored.revision > entry.revision:
                await peer.answer(stored.serialize())

    def _wait_of_strangers(self, now: float) -> float:
        """Seconds that an entry of a stranger, which came now, has to wait; it counts from now on."""
        earliest = now - STRANGERS_ENTRIES_MOST / STRANGERS_ENTRIES_S
        self._strangers_at = max(self._strangers_at, earliest) + 1 / STRANGERS_ENTRIES_S
        return max(0.0, self._strangers_at - now)

    def _note(self, peer: _Peer, key: bytes) -> None:
        """Remembers that a client has asked for a key."""
        peer.keys.pop(key, None)
        peer.keys[key] = None
        self._askers.setdefault(key, set()).add(peer)
        if len(peer.keys) > KEYS_MOST:
            self._drop(peer, next(iter(peer.keys)))

    def _drop(self, peer: _Peer, key: bytes) -> None:
        del peer.keys[key]
        self._askers[key].discard(peer)
        if not self._askers[key]:
            del self._askers[key]


async def _next(peer: _Peer) -> bytes:
    """The next message of a client.

    Raises:
        _ClosingError: the client has gone, or sent text.
    """
    message = await peer.socket.receive()
    if message["type"] == "websocket.disconnect":
        raise _ClosingError(_REFUSED, "gone")
    raw = message.get("bytes")
    if raw is None:
        raise _ClosingError(_UNFIT, "messages must be binary")
    return bytes(raw)


def _address_of(socket: WebSocket, hash: bytes) -> str:
    """The address of a blob on the host that the client has connected to."""
    scheme = "https" if socket.url.scheme == "wss" else "http"
    return f"{scheme}://{socket.url.netloc}{socket.scope.get('root_path', '')}/s5/storage/{to_base64url(hash)}"

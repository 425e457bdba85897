"""A store on a Fabstir gateway: files by path under ``/s5/fs/``.

File names use only what every version of the gateway keeps unchanged: paths under ``home/``, the characters
``[A-Za-z0-9._-]``, and the suffix ``.bin``.

A gateway replaces files without comparing revisions. When two sessions move a pointer at the same moment, both may
believe that they succeeded. The pointer is therefore read before and after the write, which narrows the race to one
request.

A gateway answers 404 for a missing file. The newest gateway also answers 404 while the portal behind it is down.
A 404 is therefore accepted only after the gateway has returned a marker, a small file of fixed content. If the marker
is missing too, it is written and read back. This succeeds on a new gateway and fails while the portal is down.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import anyio
import anyio.to_thread

from fabstir_vectordb.errors import ConflictError, IntegrityError, S5Error, StorageError, VectorDBError
from fabstir_vectordb.s5.base64url import to_base64url
from fabstir_vectordb.s5.cid import BlobId
from fabstir_vectordb.s5.registry import RegistryEntry
from fabstir_vectordb.storage.base import (
    ENTRY_BYTES_MAX,
    AtMost,
    check_blob,
    check_fetch,
    check_hash,
    check_new_entry,
    check_pointer_advances,
    check_public_key,
    check_upload_size,
    missing_blob,
    parse_pointer,
    size_max,
)
from fabstir_vectordb.storage.exchange import ANSWER_BYTES_MAX, Answer, reason_of
from fabstir_vectordb.storage.http import HttpClient
from fabstir_vectordb.storage.loops import LoopLock
from fabstir_vectordb.storage.retry import second_look

__all__ = ["FabstirGatewayStore"]

_HOME: Final = "/s5/fs/home/fabstir-vectordb"
_MARKER_PATH: Final = f"{_HOME}/marker.bin"
_MARKER: Final = b"fabstir_vectordb: this gateway can be written and read\n"
#: The type that the newest gateway accepts, then the type that its oldest client sends. Older gateways ignore the type.
_CONTENT_TYPES: Final = ("application/octet-stream", "application/cbor")
_UNSUPPORTED: Final = 415


def _blob_path(hash: bytes) -> str:
    name = to_base64url(hash)
    return f"{_HOME}/blobs/{name[:2]}/{name}.bin"


def _pointer_path(public_key: bytes) -> str:
    return f"{_HOME}/pointers/{public_key.hex()}.bin"


class FabstirGatewayStore:
    """Blobs and pointers as files of a gateway; see ``base.Store`` for the methods.

    Args:
        http: client for the gateway.
    """

    def __init__(self, http: HttpClient) -> None:
        self._http = http
        self._moving = LoopLock()
        self._content_type = 0

    @property
    def uri(self) -> str:
        """The gateway's address with the prefix ``gateway+``."""
        return f"gateway+{self._http.base_url}"

    async def put(self, data: bytes | bytearray | memoryview) -> BlobId:
        """Store a blob."""
        check_upload_size(memoryview(data).nbytes)
        content = bytes(data)
        blob = await anyio.to_thread.run_sync(BlobId.of, content)
        await self._put(_blob_path(blob.hash), content, "store a blob")
        return blob

    async def get(self, hash: bytes, size: int | AtMost) -> bytes:
        """Return a blob after checking its hash."""
        check_fetch(hash, size)
        return await second_look(partial(self._get, hash, size))

    async def _get(self, hash: bytes, size: int | AtMost) -> bytes:
        # One byte more than the blob has, so that a larger file is noticed.
        answer = await self._read(
            "GET", _blob_path(hash), "read a blob", body_most=size_max(size) + 1, redirects=True, hashed=True
        )
        if answer is None:
            raise missing_blob(hash, size)
        return check_blob(answer.body, hash, size, answer.digest)

    async def has(self, hash: bytes) -> bool:
        """Return whether there is a file for the blob."""
        check_hash(hash)
        return await self._read("HEAD", _blob_path(hash), "look for a blob", body_most=ANSWER_BYTES_MAX) is not None

    async def delete(self, hash: bytes) -> bool:
        """Delete a blob's file; return whether there was one."""
        # Some gateways give the same answer whether or not the file existed, so ask first.
        if not await self.has(hash):
            return False
        answer = await self._http.request("DELETE", _blob_path(hash), body_most=ANSWER_BYTES_MAX)
        if not answer.ok and answer.status != 404:
            raise _failed("delete a blob", answer)
        return answer.ok

    async def _read(self, method: str, path: str, doing: str, *, body_most: int, **settings: Any) -> Answer | None:
        """The answer to a read, or None if the file is missing and the gateway has shown that it can read files."""
        ask = partial(self._http.request, method, path, body_most=body_most, **settings)
        answer = await ask()
        if answer.status == 404:
            await self._show_that_it_answers()
            # The portal behind the gateway may have been down during the first request.
            answer = await ask()
        if answer.status == 404:
            return None
        if not answer.ok:
            raise _failed(doing, answer)
        return answer

    async def _show_that_it_answers(self) -> None:
        """Reads the marker; writes it first if it is missing.

        Raises:
            S5Error: the gateway does not return the marker, so its 404 does not mean that a file is missing.
        """
        if await self._has_marker():
            return
        failure: VectorDBError | None = None
        try:
            await self._put(_MARKER_PATH, _MARKER, "write a marker")
        except VectorDBError as error:
            failure = error  # the marker may have arrived nevertheless
        if not await self._has_marker():
            reason = "it accepted a marker file and does not give it back" if failure is None else failure.message
            raise S5Error(
                f"The gateway {self._http.authority} answers, but the portal behind it cannot be reached: {reason}",
                details={"host": self._http.authority, **({} if failure is None else failure.details)},
            )

    async def _has_marker(self) -> bool:
        answer = await self._http.request("GET", _MARKER_PATH, body_most=ANSWER_BYTES_MAX)
        if not answer.ok and answer.status != 404:
            raise _failed("read a marker", answer)
        return answer.ok and answer.body == _MARKER

    async def get_pointer(self, public_key: bytes) -> RegistryEntry | None:
        """Return the current entry of a pointer, or ``None``."""
        check_public_key(public_key)
        return await second_look(partial(self._get_pointer, public_key))

    async def _get_pointer(self, public_key: bytes) -> RegistryEntry | None:
        where = f"{public_key.hex()} of {self._http.base_url}"
        try:
            answer = await self._read("GET", _pointer_path(public_key), "read a pointer", body_most=ENTRY_BYTES_MAX)
        except IntegrityError as error:
            raise IntegrityError(
                f"The stored pointer {where} is damaged: {error.message}",
                details={"public_key": public_key.hex(), "where": where},
            ) from None
        return None if answer is None else parse_pointer(answer.body, public_key, where)

    async def set_pointer(self, entry: RegistryEntry) -> None:
        """Move a pointer. The revision is compared before and after the write, as the gateway does not compare it."""
        check_new_entry(entry)
        failure: VectorDBError | None = None
        async with self._moving.here():
            check_pointer_advances(await self._stored(entry.public_key), entry)
            try:
                await self._put(_pointer_path(entry.public_key), entry.serialize(), "move a pointer")
            except VectorDBError as error:
                failure = error  # the entry may have arrived nevertheless
            stored = await self._stored(entry.public_key)
        if stored == entry:
            return
        if stored is None or stored.revision < entry.revision:
            raise failure or StorageError(
                "The gateway accepted a pointer and does not give it back",
                details={"public_key": entry.public_key.hex(), "revision": entry.revision},
                retryable=True,
            )
        raise ConflictError(
            "Another writer moved the pointer at the same moment",
            details={
                "public_key": entry.public_key.hex(),
                "stored_revision": None if stored is None else stored.revision,
                "revision": entry.revision,
            },
        )

    async def _stored(self, public_key: bytes) -> RegistryEntry | None:
        try:
            return await self.get_pointer(public_key)
        except IntegrityError:
            return None  # a damaged entry is treated as absent, so that its owner can repair it

    async def _put(self, path: str, content: bytes, doing: str) -> None:
        for kind in range(self._content_type, len(_CONTENT_TYPES)):
            answer = await self._http.request(
                "PUT",
                path,
                body_most=ANSWER_BYTES_MAX,
                content=content,
                headers={"Content-Type": _CONTENT_TYPES[kind], "X-S5-Encryption": "xchacha20-poly1305"},
            )
            if answer.status != _UNSUPPORTED:
                break
        if not answer.ok:
            raise _failed(doing, answer)
        self._content_type = kind

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()


def _failed(doing: str, answer: Answer) -> StorageError:
    return StorageError(
        f"Could not {doing}: the gateway answered {answer.status}: {reason_of(answer)}",
        details={"status": answer.status},
    )

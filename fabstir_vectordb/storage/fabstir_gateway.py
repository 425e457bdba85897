"""A store on a Fabstir gateway: files by path under ``/s5/fs/``.

Names are what every version of the gateway leaves alone: under ``home/``, of ``[A-Za-z0-9._-]``, ending in ``.bin``. A
gateway compares nothing when a file is replaced, so of two sessions that move a pointer at the same moment both may
believe that they did: it is read before and after, which leaves a window of one request.
"""

from __future__ import annotations

import base64
from functools import partial
from typing import Final

import anyio
import anyio.to_thread

from fabstir_vectordb.errors import ConflictError, IntegrityError, StorageError, VectorDBError
from fabstir_vectordb.s5.cid import BlobId
from fabstir_vectordb.s5.registry import RegistryEntry
from fabstir_vectordb.storage.base import (
    BLOB_BYTES_MAX,
    ENTRY_BYTES_MAX,
    check_blob,
    check_blob_size,
    check_hash,
    check_new_entry,
    check_pointer_advances,
    check_public_key,
    missing_blob,
    parse_pointer,
)
from fabstir_vectordb.storage.http import Answer, HttpClient, reason_of
from fabstir_vectordb.storage.retry import second_look

__all__ = ["FabstirGatewayStore"]

_HOME: Final = "/s5/fs/home/fabstir-vectordb"
#: As the gateway's own client sends; no version of it reads either.
_HEADERS: Final = {"Content-Type": "application/cbor", "X-S5-Encryption": "xchacha20-poly1305"}


def _blob_path(hash: bytes) -> str:
    name = base64.urlsafe_b64encode(hash).decode().rstrip("=")
    return f"{_HOME}/blobs/{name[:2]}/{name}.bin"


def _pointer_path(public_key: bytes) -> str:
    return f"{_HOME}/pointers/{public_key.hex()}.bin"


class FabstirGatewayStore:
    """Blobs and pointers as files of a gateway; see ``base.Store`` for the methods.

    Args:
        http: its address and how to talk to it.
    """

    def __init__(self, http: HttpClient) -> None:
        self._http = http
        self._moving = anyio.Lock()

    @property
    def uri(self) -> str:
        """The gateway's address, and that it is one."""
        return f"gateway+{self._http.base_url}"

    async def put(self, data: bytes | bytearray | memoryview) -> BlobId:
        """Store a blob."""
        check_blob_size(memoryview(data).nbytes)
        content = bytes(data)
        blob = await anyio.to_thread.run_sync(BlobId.of, content)
        await self._put(_blob_path(blob.hash), content, "store a blob")
        return blob

    async def get(self, hash: bytes, size: int | None = None) -> bytes:
        """Return a blob after checking its hash."""
        check_hash(hash)
        return await second_look(partial(self._get, hash, size))

    async def _get(self, hash: bytes, size: int | None) -> bytes:
        answer = await self._http.request("GET", _blob_path(hash), body_most=_most(size))
        if answer.status == 404:
            raise missing_blob(hash, size)
        if not answer.ok:
            raise _failed("read a blob", answer)
        return await anyio.to_thread.run_sync(partial(check_blob, answer.body, hash, size))

    async def has(self, hash: bytes) -> bool:
        """Return whether there is a file for the blob."""
        check_hash(hash)
        answer = await self._http.request("HEAD", _blob_path(hash))
        if not answer.ok and answer.status != 404:
            raise _failed("look for a blob", answer)
        return answer.ok

    async def delete(self, hash: bytes) -> bool:
        """Delete a blob's file; return whether there was one, as far as the gateway tells."""
        check_hash(hash)
        answer = await self._http.request("DELETE", _blob_path(hash))
        if not answer.ok and answer.status != 404:
            raise _failed("delete a blob", answer)
        return answer.ok

    async def get_pointer(self, public_key: bytes) -> RegistryEntry | None:
        """Return the current entry of a pointer, or ``None``."""
        check_public_key(public_key)
        return await second_look(partial(self._get_pointer, public_key))

    async def _get_pointer(self, public_key: bytes) -> RegistryEntry | None:
        where = f"{public_key.hex()} of {self._http.base_url}"
        try:
            answer = await self._http.request("GET", _pointer_path(public_key), body_most=ENTRY_BYTES_MAX)
        except IntegrityError as error:
            raise IntegrityError(
                f"The stored pointer {where} is damaged: {error.message}",
                details={"public_key": public_key.hex(), "where": where},
            ) from None
        if answer.status == 404:
            return None
        if not answer.ok:
            raise _failed("read a pointer", answer)
        return parse_pointer(answer.body, public_key, where)

    async def set_pointer(self, entry: RegistryEntry) -> None:
        """Move a pointer, read it before and after; best effort, as the gateway compares nothing."""
        check_new_entry(entry)
        failure: VectorDBError | None = None
        async with self._moving:
            check_pointer_advances(await self._stored(entry.public_key), entry)
            try:
                await self._put(_pointer_path(entry.public_key), entry.serialize(), "move a pointer")
            except VectorDBError as error:
                failure = error  # it may have arrived all the same
            stored = await self._stored(entry.public_key)
        if stored == entry:
            return
        if stored is None or stored.revision < entry.revision:
            raise failure or StorageError(
                "The gateway took a pointer and does not give it back",
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
            return None  # damaged counts as none, so that its owner can repair it

    async def _put(self, path: str, content: bytes, doing: str) -> None:
        answer = await self._http.request("PUT", path, content=content, headers=_HEADERS)
        if not answer.ok:
            raise _failed(doing, answer)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()


def _most(size: int | None) -> int:
    """Bytes to read of a blob: one too many shows that it is another one."""
    return BLOB_BYTES_MAX if size is None else size + 1


def _failed(doing: str, answer: Answer) -> StorageError:
    return StorageError(
        f"Could not {doing}: the gateway answered {answer.status}: {reason_of(answer)}",
        details={"status": answer.status},
    )

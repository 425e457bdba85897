"""Answers with the bytes of a blob: whole or one range of it (RFC 9110, 14), or none if the client has them (13.1.2).

A blob never changes under its hash, so the hash is its entity tag, as on a node: the base64url of ``1f`` and the hash.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import BinaryIO, Final

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fabstir_vectordb.errors import NotFoundError
from fabstir_vectordb.s5.base64url import to_base64url
from fabstir_vectordb.storage.local_dir import LocalDirStore
from fabstir_vectordb.storage.regular import open_regular

__all__ = ["BlobResponse", "entity_tag"]

#: Bytes read from the disk at once. An index's parts are smaller.
_READ_BYTES: Final = 4 * 1024 * 1024
#: A position has at most 18 digits: Python refuses to parse thousands of them.
_RANGE: Final = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
_TAG: Final = re.compile(r'"[^"]*"')


def entity_tag(hash: bytes) -> str:
    """Returns the entity tag of a blob, with its quotation marks."""
    return '"' + to_base64url(b"\x1f" + hash) + '"'


class BlobResponse(Response):
    """The answer to a request for a blob, read from its file while it is sent. The bytes are not checked: clients do.

    Args:
        request: a GET or HEAD.
        store: the store that has the blob. Its file is opened when the answer is sent.
        hash: BLAKE3-256 of the blob, 32 bytes.
    """

    def __init__(self, request: Request, store: LocalDirStore, hash: bytes) -> None:
        super().__init__()
        self._request = request
        self._store = store
        self._hash = hash
        self._tag = entity_tag(hash)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the answer.

        Raises:
            NotFoundError: there is no such file.
            IntegrityError: it is not a regular file.
            StorageError: the directory is missing.
        """
        headers = {"ETag": self._tag, "Accept-Ranges": "bytes"}
        if _is_named(self._request.headers.get("if-none-match", ""), self._tag):
            await Response(status_code=304, headers=headers)(scope, receive, send)
            return
        try:
            file = await anyio.to_thread.run_sync(open_regular, self._store.blob_path(self._hash))
        except FileNotFoundError:
            await self._store.has(self._hash)  # raises if the whole directory is missing, as on an unmounted disk
            raise NotFoundError("not found") from None
        with file:
            size = os.fstat(file.fileno()).st_size
            status, first, last = _wanted(self._request.headers, self._tag, size)
            if status == 416:
                refused = {**headers, "Content-Range": f"bytes */{size}"}
                await Response(status_code=416, headers=refused)(scope, receive, send)
                return
            if status == 206:
                headers["Content-Range"] = f"bytes {first}-{last}/{size}"
            headers["Content-Length"] = str(last + 1 - first)
            headers["Content-Type"] = "application/octet-stream"
            raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
            await send({"type": "http.response.start", "status": status, "headers": raw})
            if self._request.method != "HEAD":
                await self._send_bytes(file, first, last + 1 - first, send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_bytes(self, file: BinaryIO, first: int, left: int, send: Send) -> None:
        file.seek(first)
        while left > 0 and not await self._request.is_disconnected():
            piece = await anyio.to_thread.run_sync(file.read, min(left, _READ_BYTES))
            if not piece:
                return  # the file was cut meanwhile; the server closes the incomplete answer
            left -= len(piece)
            await send({"type": "http.response.body", "body": piece, "more_body": True})


def _is_named(listed: str, tag: str) -> bool:
    """Whether an If-None-Match header names the tag."""
    return listed.strip() == "*" or tag in _TAG.findall(listed)


def _wanted(headers: Mapping[str, str], tag: str, size: int) -> tuple[int, int, int]:
    """The status of an answer (200, 206 or 416), and the first and last byte of its body.

    Several ranges, other units, and ranges of another version (If-Range) are answered with all of the blob.
    """
    whole = 200, 0, size - 1
    wanted = headers.get("range", "").strip()
    if not wanted.startswith("bytes=") or "," in wanted or headers.get("if-range", tag).strip() != tag:
        return whole
    match = _RANGE.fullmatch(wanted)
    if match is None or not (match[1] or match[2]):
        return 416, 0, 0
    if not match[1]:  # the last bytes
        first, last = max(0, size - int(match[2])), size - 1
    else:
        first, last = int(match[1]), min(int(match[2] or size), size - 1)
        if match[2] and int(match[2]) < int(match[1]):
            return 416, 0, 0
    return (416, 0, 0) if first >= size else (206, first, last)

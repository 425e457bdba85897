"""Resumable uploads of large blobs: tus 1.0.0 with creation and expiration, as S5 nodes take them.

::

    <32>-<size>[-<43>]    an upload: its id, the size of the blob in bytes, the base64url of the blob's hash; the file
                          holds the bytes that have arrived, its modification time is that of the last ones

Uploads outlive a restart. ``Upload-Metadata`` has the hash, as nodes want it. An upload without a hash is taken too, as
Fabstir's bridge takes it. The answer to the last piece has the CID in ``X-S5-CID``, as the bridge's has.
"""

from __future__ import annotations

import base64
import contextlib
import mmap
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from fabstir_vectordb.errors import InvalidInputError, NotFoundError
from fabstir_vectordb.portal import body
from fabstir_vectordb.s5.base64url import from_base64url, to_base64url
from fabstir_vectordb.s5.cid import blake3_hash, is_multihash
from fabstir_vectordb.storage.base import BLOB_BYTES_MAX
from fabstir_vectordb.storage.local_dir import LocalDirStore
from fabstir_vectordb.storage.regular import open_regular

__all__ = ["Uploads"]

#: Most unfinished uploads.
UPLOADS_MOST: int = 64
#: Seconds after its last bytes until an unfinished upload is removed: a day.
EXPIRES_S: float = 24 * 60 * 60
#: Bytes of a body that are written at once.
_WRITTEN_BYTES: Final = 1024 * 1024
_VERSION: Final = "1.0.0"
_PIECE_TYPE: Final = "application/offset+octet-stream"
_ID: Final = re.compile(r"[0-9a-f]{32}")
_NAME: Final = re.compile(r"(?P<id>[0-9a-f]{32})-(?P<size>[0-9]{1,10})(?:-(?P<hash>[A-Za-z0-9_-]{43}))?")
_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_METADATA_BYTES_MAX: Final = 4_096


class _Upload(NamedTuple):
    """An unfinished upload: its file, and the size and hash that the blob will have."""

    path: Path
    size: int
    hash: bytes | None


class Uploads:
    """The unfinished uploads of a portal, and the routes by which they come.

    Args:
        root: directory of the files; the first upload creates it.
        store: takes the finished blobs.
    """

    def __init__(self, root: Path, store: LocalDirStore) -> None:
        self._root = root
        self._store = store
        self._busy: set[str] = set()

    async def options(self, request: Request) -> Response:
        """Says what is spoken here."""
        most = str(BLOB_BYTES_MAX)
        return _answer(204, {"Tus-Version": _VERSION, "Tus-Extension": "creation,expiration", "Tus-Max-Size": most})

    async def create(self, request: Request) -> Response:
        """Begins an upload; 409 if the blob is stored already, as on a node."""
        if (refusal := _refused(request)) is not None:
            return refusal
        size = _number(request, "Upload-Length")
        if size > BLOB_BYTES_MAX:
            return _answer(413, text=f"a blob has at most {BLOB_BYTES_MAX} bytes")
        hash = _hash_in(request.headers.get("upload-metadata", ""))
        if hash is not None and await self._store.has(hash):
            return _answer(409, text="the blob is stored already")
        upload = await anyio.to_thread.run_sync(self._new, size, hash)
        if upload is None:
            return _answer(503, {"Retry-After": "60"}, f"{UPLOADS_MOST} uploads are unfinished")
        id = upload.path.name[:32]
        headers = {"Location": f"{request.scope.get('root_path', '')}/s5/upload/tus/{id}", **_expiry(upload)}
        if size == 0:  # there will be no piece
            headers |= await self._finish(upload)
        return _answer(201, headers)

    async def state(self, request: Request) -> Response:
        """Says how many bytes have arrived."""
        if (refusal := _refused(request)) is not None:
            return refusal
        upload = await anyio.to_thread.run_sync(self._find, request.path_params["id"])
        arrived = _arrived(upload)
        headers = {"Upload-Offset": str(arrived), "Upload-Length": str(upload.size), **_expiry(upload)}
        with self._alone(upload) as is_alone:
            if is_alone and arrived == upload.size:
                # The disk had failed, or the portal was ended, when the last piece came. The client would believe that
                # all is done.
                headers |= await self._finish(upload)
        return _answer(200, {**headers, "Cache-Control": "no-store"})

    async def append(self, request: Request) -> Response:
        """Takes the next bytes. Those that arrived before a connection broke are kept."""
        if (refusal := _refused(request)) is not None:
            return refusal
        if request.headers.get("content-type", "").lower() != _PIECE_TYPE:
            return _answer(415, text=f"a piece must have the type {_PIECE_TYPE}")
        offset = _number(request, "Upload-Offset")
        upload = await anyio.to_thread.run_sync(self._find, request.path_params["id"])
        with self._alone(upload) as is_alone:
            if not is_alone:
                return _answer(423, text="another request is writing to this upload")
            arrived = _arrived(upload)
            if offset != arrived:
                return _answer(409, {"Upload-Offset": str(arrived)}, f"{arrived} bytes have arrived, not {offset}")
            arrived = await _write(request, upload, offset)
            headers = {"Upload-Offset": str(arrived)}
            headers |= await self._finish(upload) if arrived == upload.size else _expiry(upload)
            return _answer(204, headers)

    async def _finish(self, upload: _Upload) -> dict[str, str]:
        """Stores the blob, removes the upload, and returns the header that names the blob.

        Raises:
            InvalidInputError: the bytes have another hash than the client said.
        """
        try:
            with open_regular(upload.path) as file, _mapped(file, upload.size) as data:
                if upload.hash not in (None, await anyio.to_thread.run_sync(blake3_hash, data)):
                    raise InvalidInputError("the bytes that arrived have another hash")
                blob = await self._store.put(data)
        except InvalidInputError:
            await anyio.to_thread.run_sync(_remove, upload.path)
            raise
        await anyio.to_thread.run_sync(_remove, upload.path)
        return {"X-S5-CID": blob.to_text("base32")}

    @contextmanager
    def _alone(self, upload: _Upload) -> Iterator[bool]:
        """Whether no other request writes to the upload; keeps others away meanwhile."""
        name = upload.path.name
        if name in self._busy:
            yield False
            return
        self._busy.add(name)
        try:
            yield True
        finally:
            self._busy.discard(name)

    def _new(self, size: int, hash: bytes | None) -> _Upload | None:
        """Creates an upload's file, after removing those that have expired; None if there are too many."""
        self._root.mkdir(parents=True, exist_ok=True)
        count, oldest = 0, time.time() - EXPIRES_S
        with os.scandir(self._root) as entries:
            for entry in entries:
                if entry.name in self._busy or _changed(Path(entry.path)) > oldest:
                    count += 1
                else:
                    _remove(Path(entry.path))
        if count >= UPLOADS_MOST:
            return None
        name = f"{secrets.token_hex(16)}-{size}"
        if hash is not None:
            name += "-" + to_base64url(hash)
        path = self._root / name
        path.open("xb").close()
        return _Upload(path, size, hash)

    def _find(self, id: str) -> _Upload:
        """The upload with this id.

        Raises:
            NotFoundError: there is none, or it has expired.
        """
        if _ID.fullmatch(id) and self._root.is_dir():
            for path in self._root.iterdir():
                match = _NAME.fullmatch(path.name)
                if match is None or match["id"] != id:
                    continue
                if path.name in self._busy or _changed(path) > time.time() - EXPIRES_S:
                    hash = match["hash"]
                    return _Upload(path, int(match["size"]), from_base64url(hash) if hash else None)
        raise NotFoundError("there is no such upload")


async def _write(request: Request, upload: _Upload, offset: int) -> int:
    """Appends a request's body to an upload's file and returns how many bytes have arrived now."""
    waiting = bytearray()
    with upload.path.open("r+b") as file:
        file.seek(offset)

        async def write() -> None:
            nonlocal offset
            offset += await anyio.to_thread.run_sync(file.write, bytes(waiting))
            waiting.clear()

        try:
            async for piece in body.pieces(request):
                if offset + len(waiting) + len(piece) > upload.size:
                    raise InvalidInputError(f"Upload-Length is {upload.size}, and more bytes came")
                waiting += piece
                if len(waiting) >= _WRITTEN_BYTES:
                    await write()
        finally:
            with anyio.CancelScope(shield=True):
                await write()
                await anyio.to_thread.run_sync(file.flush)
    return offset


@contextmanager
def _mapped(file: BinaryIO, size: int) -> Iterator[memoryview]:
    """The bytes of a file without a copy in memory."""
    if size == 0:  # an empty file cannot be mapped
        yield memoryview(b"")
        return
    with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
        yield view


def _refused(request: Request) -> Response | None:
    """The answer to a client that speaks another version."""
    if request.headers.get("tus-resumable") == _VERSION:
        return None
    return _answer(412, {"Tus-Version": _VERSION}, f"this is tus {_VERSION}")


def _answer(status: int, headers: dict[str, str] | None = None, text: str | None = None) -> Response:
    headers = {"Tus-Resumable": _VERSION, **(headers or {})}
    return Response(None, status, headers) if text is None else PlainTextResponse(text, status, headers)


def _arrived(upload: _Upload) -> int:
    return upload.path.lstat().st_size


def _changed(path: Path) -> float:
    """When a file was last written, as Unix time; long ago if it has gone."""
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0


def _expiry(upload: _Upload) -> dict[str, str]:
    return {"Upload-Expires": formatdate(_changed(upload.path) + EXPIRES_S, usegmt=True)}


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _number(request: Request, header: str) -> int:
    value = request.headers.get(header, "")
    if _NUMBER.fullmatch(value) is None:
        raise InvalidInputError(f"{header} must be a number")
    return int(value)


def _hash_in(metadata: str) -> bytes | None:
    """The hash in an Upload-Metadata header: base64 of the text that is the base64url of the multihash.

    Raises:
        InvalidInputError: the hash is malformed.
    """
    if len(metadata) > _METADATA_BYTES_MAX:
        raise InvalidInputError(f"Upload-Metadata has at most {_METADATA_BYTES_MAX} bytes")
    for pair in metadata.split(","):
        name, _, value = pair.strip().partition(" ")
        if name != "hash":
            continue
        try:
            multihash = from_base64url(base64.b64decode(value, validate=True).decode("ascii"))
        except ValueError:
            raise InvalidInputError("the hash in Upload-Metadata is not base64 of base64url") from None
        if not is_multihash(multihash):
            raise InvalidInputError("the hash in Upload-Metadata must be 1e or 1f and 32 bytes")
        return multihash[1:]
    return None

"""The portal's routes: S5's HTTP API (uploads, downloads, registry) and, beside it, a Fabstir gateway's files.

Answers and status codes are those of the S5 reference, oddities included: what fails is mostly a 500 with plain text.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Awaitable, Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote

import anyio.to_thread
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from fabstir_vectordb.errors import IntegrityError, InvalidInputError, NotFoundError, VectorDBError
from fabstir_vectordb.s5.cid import BlobId, multibase_encode
from fabstir_vectordb.s5.registry import RegistryEntry
from fabstir_vectordb.storage.base import check_hash
from fabstir_vectordb.storage.local_dir import LocalDirStore

__all__ = ["UPLOAD_BYTES_MAX", "create_app"]

#: Most bytes of one upload, as a node's default (``http.api.maxMemoryUploadSizeMB``).
UPLOAD_BYTES_MAX: Final = 34_000_000
#: Blobs up to this size ignore a Range, as on a node.
_RANGES_FROM: Final = 262_144
#: Bytes of a gateway's path: it becomes a file name, percent-encoded.
_PATH_BYTES_MAX: Final = 240
_OCTETS: Final = "application/octet-stream"

_Handler = Callable[[Request], Awaitable[Response]]


class _TooLargeError(Exception):
    """An upload is larger than the limit."""


class _Portal:
    def __init__(self, root: Path, token: str | None) -> None:
        self.store = LocalDirStore(root)
        self._files = root / "gateway"
        self._token = token

    # ---- who may

    def restricted(self, handler: _Handler) -> _Handler:
        """A route that needs the token, where there is one."""

        @wraps(handler)
        async def guarded(request: Request) -> Response:
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            given = given or request.cookies.get("s5-auth-token", "") or request.query_params.get("auth_token", "")
            if self._token is not None and given != self._token:
                return JSONResponse({"error": "Unauthorized"}, 401)
            return await handler(request)

        return guarded

    # ---- S5

    async def version(self, request: Request) -> Response:
        return JSONResponse({"node": "fabstir_vectordb portal"})

    async def hello(self, request: Request) -> Response:
        return PlainTextResponse("fabstir_vectordb portal: an S5 node for development")

    async def upload(self, request: Request) -> Response:
        if request.headers.get("content-type", "").startswith("multipart/form-data"):
            _check_length(request)
            async with request.form(max_files=1, max_part_size=UPLOAD_BYTES_MAX) as form:
                part = form.get("file")
                if not isinstance(part, UploadFile):
                    return PlainTextResponse("there is no part named file", 500)
                data = await part.read(UPLOAD_BYTES_MAX + 1)
        else:
            data = await _body(request)
        if len(data) > UPLOAD_BYTES_MAX:
            raise _TooLargeError
        blob = await self.store.put(data)
        return JSONResponse({"cid": multibase_encode(blob.to_old_bytes(), "base58btc")})

    async def blob(self, request: Request) -> Response:
        """Where a blob is: here, under its hash alone, open to all as a storage node's address is."""
        blob = BlobId.parse(request.path_params["cid"].partition(".")[0])
        if not await self.store.has(blob.hash):
            return PlainTextResponse("not found", 404)
        return RedirectResponse(f"/s5/storage/{_base64url(blob.hash)}", 307)

    async def storage(self, request: Request) -> Response:
        return Response(await self._read(_from_base64url(request.path_params["hash"])), media_type=_OCTETS)

    async def download(self, request: Request) -> Response:
        blob = BlobId.parse(request.path_params["cid"].partition(".")[0])
        data = await self._read(blob.hash)
        return Response(data, media_type=_OCTETS, headers={"ETag": f'"{_base64url(bytes([0x1F]) + blob.hash)}"'})

    async def content(self, request: Request) -> Response:
        blob = BlobId.parse(request.path_params["cid"].partition(".")[0])
        data = await self._read(blob.hash)
        wanted = request.headers.get("range")
        if wanted is None or blob.size <= _RANGES_FROM:
            return Response(data, media_type=_OCTETS)
        return _range(data, wanted)

    async def _read(self, hash: bytes) -> bytes:
        """A blob as it lies there: who asked checks its hash, and is to see what became of it."""
        check_hash(hash)
        try:
            return await anyio.to_thread.run_sync(self.store.blob_path(hash).read_bytes)
        except FileNotFoundError:
            raise NotFoundError("not found") from None

    async def locations(self, request: Request) -> Response:
        multihash = _from_base64url(request.path_params["multihash"])
        found = await self.store.has(multihash[1:])
        here = f"{str(request.base_url).rstrip('/')}/s5/storage/{_base64url(multihash[1:])}"
        place = {"type": 5, "parts": [here], "expiry": 2**31 - 1, "nodeId": "z", "score": 1}
        return JSONResponse({"locations": [place] if found else []})

    async def get_entry(self, request: Request) -> Response:
        entry = await self.store.get_pointer(_from_base64url(request.query_params.get("pk", "")))
        return Response(status_code=404) if entry is None else JSONResponse(entry.to_portal_json())

    async def set_entry(self, request: Request) -> Response:
        try:
            document = await request.json()
        except ValueError:
            return PlainTextResponse("no JSON", 500)
        await self.store.set_pointer(RegistryEntry.from_portal_json(document))
        return Response(status_code=204)

    async def delete(self, request: Request) -> Response:
        blob = BlobId.parse(request.path_params["cid"])
        if not await self.store.delete(blob.hash):
            return PlainTextResponse("not found", 404)
        return Response(status_code=200)

    # ---- a gateway's files (version A of the reference)

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "mode": "real", "initialized": True, "port": request.url.port})

    async def file(self, request: Request) -> Response:
        path = unquote(request.scope["raw_path"].decode("ascii", "replace").partition("?")[0])
        path = path.removeprefix("/s5/fs/")
        if not path or request.method == "POST":
            return JSONResponse({"error": "Path not found"}, 404)
        if request.method == "GET" and path.endswith("/"):
            return JSONResponse(await anyio.to_thread.run_sync(self._listed, path))
        name = self._name(path)
        match request.method:
            case "PUT":
                data = await _body(request)
                await anyio.to_thread.run_sync(self._write, name, data)
                return JSONResponse({"success": True})
            case "DELETE":
                try:
                    await anyio.to_thread.run_sync(name.unlink)
                except FileNotFoundError:
                    return JSONResponse({"error": "Path not found"}, 404)
                return JSONResponse({"success": True})
        try:
            data = await anyio.to_thread.run_sync(name.read_bytes)
        except FileNotFoundError:
            return JSONResponse({"error": "Path not found"}, 404)
        return Response(data, media_type=_OCTETS)

    def _name(self, path: str) -> Path:
        # One file name for the whole path: no path leads anywhere else.
        name = quote(path, safe="").replace(".", "%2E")
        if not path or len(name) > _PATH_BYTES_MAX:
            raise InvalidInputError(f"a path has 1 to {_PATH_BYTES_MAX} bytes, percent-encoded")
        return self._files / name

    def _listed(self, prefix: str) -> list[str]:
        if not self._files.is_dir():
            return []
        paths = (unquote(entry.name) for entry in self._files.iterdir() if "." not in entry.name)
        return sorted(path for path in paths if path.startswith(prefix))

    def _write(self, name: Path, data: bytes) -> None:
        self._files.mkdir(parents=True, exist_ok=True)
        fresh = name.with_name(f"{name.name[:200]}.{id(data)}")
        fresh.write_bytes(data)
        fresh.replace(name)


def create_app(root: Path, token: str | None = None) -> Starlette:
    """The portal as an ASGI application.

    Args:
        root: a directory, laid out as ``file:`` stores are.
        token: what uploads, downloads and registry writes need as ``Authorization: Bearer``; None for nothing.
    """
    portal = _Portal(root, token)
    restricted = portal.restricted
    routes = [
        ("/", portal.hello, ["GET"]),
        ("/health", portal.health, ["GET"]),
        ("/s5/version", portal.version, ["GET"]),
        ("/s5/upload", restricted(portal.upload), ["POST"]),
        ("/s5/blob/{cid}", portal.blob, ["GET"]),
        ("/s5/storage/{hash}", portal.storage, ["GET"]),
        ("/s5/download/{cid}", restricted(portal.download), ["GET"]),
        ("/s5/debug/storage_locations/{multihash}", portal.locations, ["GET"]),
        ("/s5/registry", portal.get_entry, ["GET"]),
        ("/s5/registry", restricted(portal.set_entry), ["POST"]),
        ("/s5/delete/{cid}", restricted(portal.delete), ["DELETE"]),
        ("/s5/fs/{path:path}", restricted(portal.file), ["GET", "HEAD", "PUT", "DELETE", "POST"]),
        ("/{cid}", restricted(portal.content), ["GET"]),
    ]
    handlers: dict[Any, Any] = {
        NotFoundError: partial(_answered, 404),
        VectorDBError: partial(_answered, 500),
        _TooLargeError: _too_large,
    }
    return Starlette(
        routes=[Route(path, handler, methods=methods) for path, handler, methods in routes], exception_handlers=handlers
    )


async def _answered(status: int, request: Request, error: Exception) -> Response:
    assert isinstance(error, VectorDBError)
    return PlainTextResponse(error.message, status)


async def _too_large(request: Request, error: Exception) -> Response:
    return PlainTextResponse(f"an upload has at most {UPLOAD_BYTES_MAX} bytes", 500)


def _check_length(request: Request) -> None:
    length = request.headers.get("content-length", "")
    # A form has a few hundred bytes around its file.
    if length.isdecimal() and int(length) > UPLOAD_BYTES_MAX + 4_096:
        raise _TooLargeError


async def _body(request: Request) -> bytes:
    _check_length(request)
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > UPLOAD_BYTES_MAX:
            raise _TooLargeError
    return bytes(data)


def _range(data: bytes, wanted: str) -> Response:
    """One range, as a node honours it: past the end all of the blob comes, what is no range is a 416."""
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted.strip())
    if match is None or int(match[1]) >= len(data):
        return Response(status_code=416)
    first, last = int(match[1]), int(match[2] or len(data) - 1)
    if last >= len(data) or last < first:
        return Response(data, media_type=_OCTETS)
    headers = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
    return Response(data[first : last + 1], 206, headers, _OCTETS)


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _from_base64url(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
    except (ValueError, binascii.Error):
        raise IntegrityError("not base64url") from None

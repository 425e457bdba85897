"""The portal's routes: S5's HTTP API (uploads, downloads, registry), its websocket, and the files of a Fabstir gateway.

Answers follow the S5 reference, including its oddities: a request that a node rejects gets a 500 with plain text.
A malformed request gets a 400, so that clients do not retry it. Ranges and conditions are those of HTTP on every route,
where a node knows them on some. The gateway answers as Fabstir's newest bridge does.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from functools import partial, wraps
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp
from starlette.websockets import WebSocket

from fabstir_vectordb.errors import IntegrityError, InvalidInputError, NotFoundError, VectorDBError
from fabstir_vectordb.portal import body
from fabstir_vectordb.portal.accounts import LOGIN, REGISTER, TOKEN_S, Accounts
from fabstir_vectordb.portal.download import BlobResponse
from fabstir_vectordb.portal.gateway import GatewayFiles
from fabstir_vectordb.portal.guard import Guard
from fabstir_vectordb.portal.messages import FILE_LOCATION
from fabstir_vectordb.portal.p2p import Peers
from fabstir_vectordb.portal.tus import Uploads
from fabstir_vectordb.s5.base64url import from_base64url, to_base64url
from fabstir_vectordb.s5.cid import BlobId, multibase_encode
from fabstir_vectordb.s5.registry import RegistryEntry
from fabstir_vectordb.storage.base import UPLOAD_BYTES_MAX, check_hash
from fabstir_vectordb.storage.local_dir import LocalDirStore

__all__ = ["create_app"]

#: Most bytes of a multipart form besides its file.
_FORM_BYTES_MAX: Final = 4_096
#: Highest revision that nodes accept.
_REVISION_MAX: Final = 2**48

logger = logging.getLogger(__name__)

_Handler = Callable[[Request], Awaitable[Response]]


class _Portal:
    def __init__(self, root: Path, token: str | None, accounts: bool) -> None:
        self.store = LocalDirStore(root, revision_max=_REVISION_MAX)
        self.peers = Peers(self.store)
        self.uploads = Uploads(root / "uploads", self.store)
        self._files = GatewayFiles(root / "gateway", self.store)
        self._accounts = Accounts(root / "accounts") if accounts else None
        self._token = token

    # ---- access

    def restricted(self, handler: _Handler) -> _Handler:
        """Wraps a route that requires a token, if the portal has a token or accounts."""

        @wraps(handler)
        async def guarded(request: Request) -> Response:
            if self._is_open or self._is_known(_token_of(request)):
                return await handler(request)
            return JSONResponse({"error": "Unauthorized"}, 401)

        return guarded

    @property
    def _is_open(self) -> bool:
        return self._token is None and self._accounts is None

    def _is_known(self, token: str) -> bool:
        return self._is_invited(token) or (self._accounts is not None and self._accounts.knows(token))

    def _is_invited(self, token: str) -> bool:
        return self._token is not None and secrets.compare_digest(token.encode(), self._token.encode())

    async def account(self, request: Request) -> Response:
        """Sends a challenge, or checks the answer to one. Registering requires the portal's token, if it has one."""
        if self._accounts is None:
            return PlainTextResponse("this portal has no accounts", 404)
        deed = REGISTER if request.url.path.endswith("/register") else LOGIN
        if deed == REGISTER and self._token is not None and not self._is_invited(_token_of(request)):
            return JSONResponse({"error": "Registration needs an invitation"}, 401)
        if request.method == "GET":
            key = _from_base64url(request.query_params.get("pubKey", ""))
            challenge = await anyio.to_thread.run_sync(self._accounts.challenge, deed, key)
            return JSONResponse({"challenge": to_base64url(challenge)})
        document = await _document(request)
        key, response, signature = (_field(document, name) for name in ("pubKey", "response", "signature"))
        authority = request.headers.get("host", "")
        token = await anyio.to_thread.run_sync(self._accounts.prove, deed, key, response, signature, authority)
        answer = JSONResponse({"authToken": token})
        answer.set_cookie("s5-auth-token", token, max_age=TOKEN_S, httponly=True, secure=True)
        return answer

    # ---- S5

    async def version(self, request: Request) -> Response:
        return JSONResponse({"node": "fabstir_vectordb portal"})

    async def hello(self, request: Request) -> Response:
        return PlainTextResponse("fabstir_vectordb portal: an S5 node for development")

    async def upload(self, request: Request) -> Response:
        kind = request.headers.get("content-type", "")
        data = await _body(request)
        if kind.lower().startswith("multipart/form-data"):
            file = _file_of(data, kind)
            if file is None:
                return PlainTextResponse("there is no part named file", 400)
            data = file
        if len(data) > UPLOAD_BYTES_MAX:
            raise body.TooLargeError
        blob = await self.store.put(data)
        return JSONResponse({"cid": multibase_encode(blob.to_old_bytes(), "base58btc")})

    async def blob(self, request: Request) -> Response:
        """Redirects to the address of a blob by hash, which needs no token, as on a storage node."""
        blob = _blob_of(request)
        if not await self.store.has(blob.hash):
            return PlainTextResponse("not found", 404)
        return RedirectResponse(f"{request.scope.get('root_path', '')}/s5/storage/{to_base64url(blob.hash)}", 307)

    async def storage(self, request: Request) -> Response:
        return self._content(request, _from_base64url(request.path_params["hash"]))

    async def content(self, request: Request) -> Response:
        return self._content(request, _blob_of(request).hash)

    def _content(self, request: Request, hash: bytes) -> Response:
        check_hash(hash)
        return BlobResponse(request, self.store, hash)

    async def locations(self, request: Request) -> Response:
        multihash = _from_base64url(request.path_params["multihash"])
        check_hash(multihash[1:])
        found = await self.store.has(multihash[1:])
        here = f"{str(request.base_url).rstrip('/')}/s5/storage/{to_base64url(multihash[1:])}"
        place = {"type": FILE_LOCATION, "parts": [here], "expiry": 2**31 - 1, "nodeId": "z", "score": 1}
        return JSONResponse({"locations": [place] if found else []})

    async def get_entry(self, request: Request) -> Response:
        entry = await self.store.get_pointer(_from_base64url(request.query_params.get("pk", "")))
        return Response(status_code=404) if entry is None else JSONResponse(entry.to_portal_json())

    async def set_entry(self, request: Request) -> Response:
        document = await _document(request)
        try:
            entry = RegistryEntry.from_portal_json(document)
            entry.verify()
        except IntegrityError as error:
            raise InvalidInputError(error.message) from None
        await self.peers.set(entry)
        return Response(status_code=204)

    async def p2p(self, socket: WebSocket) -> None:
        """Talks with a client of the S5 network.

        Entries are signed by the owners of their keys, so nodes take them from everybody. A portal with a token takes
        none without it; one with accounts cannot ask for a token, since S5.js connects before it has one, and takes
        few in a second from all who have none.
        """
        is_known = self._is_open or self._is_known(_token_of(socket))
        await self.peers.serve(socket, is_known or self._accounts is not None, is_stranger=not is_known)

    async def delete(self, request: Request) -> Response:
        blob = _blob_of(request)
        if not await self.store.delete(blob.hash):
            return PlainTextResponse("not found", 404)
        return Response(status_code=200)

    # ---- a gateway's files

    async def health(self, request: Request) -> Response:
        """The fields of the newest bridge, and those of version A."""
        count = await anyio.to_thread.run_sync(self._files.count)
        port = request.url.port or (443 if request.url.scheme == "https" else 80)
        bridge = {"service": "fabstir_vectordb portal", "timestamp": datetime.now(UTC).isoformat(), "connected": True}
        state = {"status": "healthy", "mode": "mock", "initialized": True, "port": port, "portal": "none"}
        return JSONResponse({**bridge, **state, "peerCount": self.peers.count, "storage_size": count})

    async def file(self, request: Request) -> Response:
        # The undecoded path: after decoding, a slash within a name looks like a slash between names.
        raw = request.scope["raw_path"].decode("ascii", "replace")
        path = unquote(raw.partition("?")[0].partition("/s5/fs/")[2])
        if request.method == "GET" and path.endswith("/"):
            return JSONResponse(await anyio.to_thread.run_sync(self._files.listed, path))
        if not path or request.method == "POST":
            return _no_path()
        if request.method == "PUT":
            blob = await self.store.put(await _body(request))
            await anyio.to_thread.run_sync(self._files.set, path, blob)
            # Fabstir's host software knows CIDs in base32 only.
            stored = {"success": True, "path": path, "size": blob.size, "cid": blob.to_text("base32")}
            return JSONResponse(stored, 201)
        if request.method == "DELETE":
            await anyio.to_thread.run_sync(self._files.remove, path)
            return Response(status_code=204)
        found = await anyio.to_thread.run_sync(self._files.get, path)
        return _no_path() if found is None else self._content(request, found.hash)


def create_app(
    root: Path,
    token: str | None = None,
    *,
    accounts: bool = False,
    hosts: Iterable[str] = (),
    origins: Iterable[str] = (),
) -> ASGIApp:
    """The portal as an ASGI application.

    Args:
        root: a directory with the layout of a ``file:`` store, and the folders ``gateway``, ``uploads`` and
            ``accounts``.
        token: token that uploads, downloads and registry writes require as ``Authorization: Bearer``; None for no
            token.
        accounts: also let in clients that have registered and logged in. Registering requires the token, if there is
            one.
        hosts, origins: names of the portal that requests may use, and origins of web pages that may use the portal;
            see `Guard`.

    Raises:
        InvalidConfigError: a host or an origin is malformed.
    """
    portal = _Portal(root, token, accounts)
    restricted, uploads = portal.restricted, portal.uploads
    routes: list[tuple[str, _Handler, list[str]]] = [
        ("/", portal.hello, ["GET"]),
        ("/health", portal.health, ["GET"]),
        ("/s5/version", portal.version, ["GET"]),
        ("/s5/account/register", portal.account, ["GET", "POST"]),
        ("/s5/account/login", portal.account, ["GET", "POST"]),
        ("/s5/upload", restricted(portal.upload), ["POST"]),
        ("/s5/upload/tus", restricted(uploads.create), ["POST"]),
        ("/s5/upload/tus", uploads.options, ["OPTIONS"]),
        ("/s5/upload/tus/{id}", uploads.state, ["HEAD"]),
        ("/s5/upload/tus/{id}", uploads.append, ["PATCH"]),
        ("/s5/blob/{cid}", portal.blob, ["GET"]),
        ("/s5/storage/{hash}", portal.storage, ["GET"]),
        ("/s5/download/{cid}", restricted(portal.content), ["GET"]),
        ("/s5/debug/storage_locations/{multihash}", portal.locations, ["GET"]),
        ("/s5/registry", portal.get_entry, ["GET"]),
        ("/s5/registry", restricted(portal.set_entry), ["POST"]),
        ("/s5/delete/{cid}", restricted(portal.delete), ["DELETE"]),
        ("/s5/fs/{path:path}", restricted(portal.file), ["GET", "HEAD", "PUT", "DELETE", "POST"]),
        ("/{cid}", restricted(portal.content), ["GET"]),
    ]
    handlers: dict[Any, Any] = {
        NotFoundError: partial(_answered, 404),
        InvalidInputError: partial(_answered, 400),
        VectorDBError: partial(_answered, 500),
        OSError: _broken,
        body.TooLargeError: _too_large,
        body.SlowClientError: _too_slow,
    }
    served: list[BaseRoute] = [Route(path, handler, methods=methods) for path, handler, methods in routes]
    served.append(WebSocketRoute("/s5/p2p", portal.p2p))
    return Guard(Starlette(routes=served, exception_handlers=handlers), hosts, origins)


async def _answered(status: int, request: Request, error: Exception) -> Response:
    assert isinstance(error, VectorDBError)
    return PlainTextResponse(error.message, status)


async def _too_large(request: Request, error: Exception) -> Response:
    return PlainTextResponse(f"more than {UPLOAD_BYTES_MAX} bytes: /s5/upload/tus takes them", 500)


async def _too_slow(request: Request, error: Exception) -> Response:
    return PlainTextResponse("the rest of the body did not come in time", 408, {"Connection": "close"})


async def _broken(request: Request, error: Exception) -> Response:
    assert isinstance(error, OSError)
    logger.error("%s %s: %s", request.method, request.url.path, error)
    return PlainTextResponse(f"the disk of this portal failed: {error.strerror}", 500)


def _blob_of(request: Request) -> BlobId:
    """The blob that a path names, without its file extension."""
    return BlobId.parse(request.path_params["cid"].partition(".")[0])


def _no_path() -> Response:
    return JSONResponse({"error": "Path not found"}, 404)


def _token_of(request: HTTPConnection) -> str:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and given.strip():
        return given.strip()
    return request.cookies.get("s5-auth-token", "") or request.query_params.get("auth_token", "")


async def _document(request: Request) -> Any:
    try:
        return json.loads(await _body(request))
    except (ValueError, RecursionError):
        raise InvalidInputError("the body is not JSON") from None


def _field(document: Any, name: str) -> bytes:
    text = document.get(name) if isinstance(document, dict) else None
    if not isinstance(text, str):
        raise InvalidInputError(f"{name} is missing")
    return _from_base64url(text)


async def _body(request: Request) -> bytes:
    return await body.whole(request, UPLOAD_BYTES_MAX + _FORM_BYTES_MAX)


def _file_of(body: bytes, content_type: str) -> bytes | None:
    """The part named ``file`` of a form (RFC 7578), or None. Parsed here: libraries leave a spool file open."""
    boundary = re.search(r'boundary="?([^";,]+)', content_type)
    if boundary is None:
        return None
    # Bytes before the first boundary and after the last one are not parts.
    for part in (b"\r\n" + body).split(b"\r\n--" + boundary[1].encode("latin-1"))[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        if re.search(rb'content-disposition:[^\r\n]*;\s*name="?file"?\s*(;|\r|$)', head, re.IGNORECASE):
            return content
    return None


def _from_base64url(text: str) -> bytes:
    try:
        return from_base64url(text)
    except ValueError:
        raise InvalidInputError("not base64url") from None

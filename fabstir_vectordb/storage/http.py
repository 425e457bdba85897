"""HTTP for the stores that need it: one server, from any event loop, a few requests at a time, repeated where it helps.

A request is repeated when the connection fails, when nothing comes within the time limit, and on answers that say "not
now"; `retry` says how. All requests made here may be repeated: blobs are named by what they hold, and a pointer is read
back. `wire` does the exchange itself; the first request loads it.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Container, Mapping
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit, urlunsplit

import anyio.lowlevel
import anyio.to_thread

from fabstir_vectordb.errors import InvalidConfigError
from fabstir_vectordb.storage.exchange import Answer, HttpSettings, Request
from fabstir_vectordb.storage.retry import repeated

if TYPE_CHECKING:
    from fabstir_vectordb.storage.wire import Wire

__all__ = ["HttpClient", "base_url_of"]

_WIRE: Final = "fabstir_vectordb.storage.wire"
#: Addresses that need no library to be read: a name of letters and digits, or 127.0.0.1.
_PLAIN: Final = re.compile(
    r"(?P<scheme>https?)://(?P<host>(?:[a-z][a-z0-9-]*\.)*[a-z](?:[a-z0-9-]*[a-z0-9])?|127\.0\.0\.1)"
    r"(?::(?P<port>[1-9][0-9]{0,3}))?(?:/[a-z0-9._~/-]*)?",
    re.ASCII,
)
_USUAL_PORTS: Final = {"http": "80", "https": "443"}


def base_url_of(uri: str) -> str:
    """An ``http(s)`` address without its trailing slash.

    Raises:
        InvalidConfigError: it has no host, or holds credentials, a query or a fragment; none of it is repeated.
    """
    try:
        parts = urlsplit(uri)
        host, _, _ = parts.hostname, parts.port, _authority_of(uri)
    except ValueError:
        raise InvalidConfigError("s5_portal is no valid http address", details={"field": "s5_portal"}) from None
    if not host or parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise InvalidConfigError(
            "s5_portal must be http(s)://host[:port][/path] and nothing else: give a token as portal_token",
            details={"field": "s5_portal"},
        )
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))


def _authority_of(url: str) -> str:
    """The host of an address, and its port where that is not the usual one, as a request names it.

    Raises:
        ValueError: it is no address.
    """
    plain = _PLAIN.fullmatch(url.lower())
    if plain is None:
        authority: str = import_module(_WIRE).normal_authority(url)
        return authority
    port = plain["port"]
    return plain["host"] if port in (None, _USUAL_PORTS[plain["scheme"]]) else f"{plain['host']}:{port}"


class HttpClient:
    """Requests to one server, from any event loop.

    Args:
        base_url: as `base_url_of` gives it.
        settings: time limits and token.

    Attributes:
        base_url: the server's address.
        authority: its host, and its port where that is not the usual one.
        token: what is sent to it from now on.
    """

    def __init__(self, base_url: str, settings: HttpSettings) -> None:
        self.base_url = base_url
        self.token = settings.token
        self.authority = _authority_of(base_url)
        self._settings = settings
        # Connections belong to an event loop, this object does not.
        self._wires: dict[object, Wire] = {}

    async def aclose(self) -> None:
        """Closes the connections of this event loop; requests after it open new ones."""
        wire = self._wires.pop(anyio.lowlevel.current_token(), None)
        if wire is not None:
            await wire.aclose()

    async def request(
        self,
        method: str,
        path: str,
        *,
        body_most: int,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        file: bytes | None = None,
        document: Any = None,
        redirects: bool = False,
        hashed: bool = False,
        final: Container[int] = (),
    ) -> Answer:
        """Sends a request until it is answered.

        Args:
            method, path, params, headers: of the request.
            body_most: most bytes of a good answer; a longer one is refused as soon as that shows.
            content: a body as it is.
            file: a body as the file ``file`` of a multipart form.
            document: a body as JSON.
            redirects: follow them, without the token where the host is another; else a redirect is an error.
            hashed: hash the answer while it comes.
            final: statuses that are an answer here, though elsewhere they say "not now".

        Returns:
            The answer, whatever its status, but for those that say "not now".

        Raises:
            OperationTimeoutError: there was no answer in time.
            S5Error: there was none at all, or only "not now", or a redirect that is not followed; details has
                ``status`` where there was one. Of both, details has ``redirected_to`` where it is not this server that
                failed.
            IntegrityError: the answer is longer than it may be, or compressed.
        """
        sent = dict(headers or {})
        pieces = [] if content is None else [content]
        if file is not None:
            pieces, sent["Content-Type"] = _form(file)
        if document is not None:
            pieces, sent["Content-Type"] = [json.dumps(document).encode()], "application/json"
        if pieces or method in ("PUT", "POST"):
            sent["Content-Length"] = str(sum(map(len, pieces)))
        if self.token is not None:
            sent["Authorization"] = f"Bearer {self.token}"
        asked = Request(method, path, params, sent, pieces, body_most, redirects, hashed, final)
        return await repeated(partial(self._once, asked), self._settings.max_retries)

    async def _once(self, asked: Request) -> Answer:
        wire = await self._open()
        # Whoever waits for a turn does not use up the time of the request.
        async with wire.requests:
            return await wire.exchange(self.base_url + asked.path, asked)

    async def _open(self) -> Wire:
        here = anyio.lowlevel.current_token()
        if here not in self._wires:
            module = await anyio.to_thread.run_sync(import_module, _WIRE)
            wire = await module.open_wire(self.authority, self._settings)
            if here not in self._wires:  # else another task was faster
                self._wires[here] = wire
        return self._wires[here]


def _form(file: bytes) -> tuple[list[bytes], str]:
    """A multipart form with one file, as S5.js sends it, in pieces, and its content type (RFC 7578)."""
    boundary = secrets.token_hex(16)
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="file"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    return [head.encode(), file, f"\r\n--{boundary}--\r\n".encode()], f"multipart/form-data; boundary={boundary}"

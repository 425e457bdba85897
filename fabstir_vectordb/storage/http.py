"""HTTP client for network stores: one server, any event loop, a few requests at a time, with retries.

A request is retried when the connection fails, when no answer comes within the time limit, and on statuses that mean
"try later"; `retry` has the rules. Every request of the stores is safe to repeat: a blob is named by its hash, and a
pointer is read back. `wire` does the exchange itself; the first request loads it.
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
#: Addresses that are parsed without loading httpx: a name of letters and digits, or 127.0.0.1.
_PLAIN: Final = re.compile(
    r"(?P<scheme>https?)://(?P<host>(?:[a-z][a-z0-9-]*\.)*[a-z](?:[a-z0-9-]*[a-z0-9])?|127\.0\.0\.1)"
    r"(?::(?P<port>[1-9][0-9]{0,3}))?(?:/[a-z0-9._~/-]*)?",
    re.ASCII,
)
_USUAL_PORTS: Final = {"http": "80", "https": "443"}


def base_url_of(uri: str) -> str:
    """An ``http(s)`` address without its trailing slash.

    Raises:
        InvalidConfigError: the address has no host, or has credentials, a query or a fragment. The message repeats
            none of them, as they may be secret.
    """
    try:
        parts = urlsplit(uri)
        host, _, _ = parts.hostname, parts.port, _authority_of(uri)
    except ValueError:
        raise InvalidConfigError("s5_portal is not a valid http address", details={"field": "s5_portal"}) from None
    if not host or parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise InvalidConfigError(
            "s5_portal must be http(s)://host[:port][/path] and nothing else: give a token as portal_token",
            details={"field": "s5_portal"},
        )
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))


def _authority_of(url: str) -> str:
    """The authority of an address as a request names it: the host, and the port unless it is the default port.

    Raises:
        ValueError: the URL is malformed.
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
        base_url: the server's address, as `base_url_of` returns it.
        settings: time limits and token.

    Attributes:
        base_url: the server's address.
        authority: the server's host, and its port unless it is the default port.
        token: access token for the next requests.
    """

    def __init__(self, base_url: str, settings: HttpSettings) -> None:
        self.base_url = base_url
        self.token = settings.token
        self.authority = _authority_of(base_url)
        self._settings = settings
        # Connections belong to one event loop; this client serves several.
        self._wires: dict[object, Wire] = {}

    async def aclose(self) -> None:
        """Closes the connections of this event loop; later requests open new ones."""
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
        """Sends a request, with retries, and returns the answer.

        Args:
            method, path, params, headers: parts of the request.
            body_most: most bytes of a successful answer; a longer answer is refused before it is read to its end.
            content: the body as bytes.
            file: the body as the file ``file`` of a multipart form.
            document: the body as a value to encode as JSON.
            redirects: whether to follow redirects, without the token if the host differs; if False, a redirect is an
                error.
            hashed: whether to hash the answer while it is received.
            final: statuses to return as answers, though they usually cause a retry.

        Returns:
            The answer. Its status may be any but those that cause a retry.

        Raises:
            OperationTimeoutError: no answer came in time. If the target of a redirect failed, details has
                ``redirected_to``.
            S5Error: the connection failed, every attempt got a status that causes a retry, or a redirect was not
                followed. details has ``status`` if an answer came, and ``redirected_to`` if the target of a redirect
                failed.
            IntegrityError: the answer is too long, or compressed.
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
        # Time spent waiting for a free request does not count towards the time limit.
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
    """The pieces of a multipart form with one file, as S5.js sends it, and its content type (RFC 7578)."""
    boundary = secrets.token_hex(16)
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="file"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    return [head.encode(), file, f"\r\n--{boundary}--\r\n".encode()], f"multipart/form-data; boundary={boundary}"

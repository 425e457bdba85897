"""Protection of the portal against web pages: refuses requests of foreign origins and requests for foreign host names.

A web page can send requests to a portal on the machine of its reader. The browser then names the page's origin
(``Origin``, ``Sec-Fetch-Site``). A page's owner can also point a host name of theirs to the portal's address (DNS
rebinding), so that the browser takes page and portal for one origin; then ``Host`` has the foreign name. Other programs
do not send the first two headers. They are let in if ``Host`` is one of the portal's own names.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final

from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fabstir_vectordb.errors import InvalidConfigError

__all__ = ["Guard"]

_AUTHORITY: Final = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?", re.ASCII)
_ORIGIN: Final = re.compile(r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?", re.ASCII)
#: Values of Sec-Fetch-Site for a request by a page of the portal itself, or by the browser's user.
_OWN_SITES: Final = (b"same-origin", b"none")
_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
#: Headers of answers that pages may read.
_EXPOSED: Final = (
    "Accept-Ranges",
    "Content-Range",
    "ETag",
    "Location",
    "Tus-Resumable",
    "Upload-Expires",
    "Upload-Length",
    "Upload-Offset",
    "X-S5-CID",
)
#: Schemes of the pages whose requests and websockets have these schemes.
_PAGE_SCHEMES: Final = {"ws": "http", "wss": "https"}
#: Tell the browser not to embed the answer in pages of other origins, and not to guess its type.
_OWN_HEADERS: Final = [(b"cross-origin-resource-policy", b"same-origin"), (b"x-content-type-options", b"nosniff")]
#: Header of a preflight in which some browsers ask whether a public page may use a portal in a private network.
_PRIVATE_NETWORK: Final = b"access-control-request-private-network"
_SHARED_HEADERS: Final = [(b"access-control-allow-private-network", b"true"), (b"x-content-type-options", b"nosniff")]


class Guard:
    """An ASGI application that passes requests on to another, except foreign ones.

    Args:
        app: the guarded application.
        hosts: names and addresses of the portal that ``Host`` may have, besides ``localhost`` and loopback addresses.
            An unspecified address (``0.0.0.0``, ``::``) allows every address, but no names.
        origins: origins whose pages may use the portal, such as ``http://localhost:3000``.

    Raises:
        InvalidConfigError: a host or an origin is malformed.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str] = (), origins: Iterable[str] = ()) -> None:
        self._hosts = {_host(host) for host in hosts}
        self._any_address = bool(self._hosts & {"0.0.0.0", "::"})
        self._origins = [_origin(origin) for origin in origins]
        self._app = app
        # Answers preflights and adds CORS headers, for allowed origins.
        self._shared = CORSMiddleware(
            app,
            allow_origins=self._origins,
            allow_methods=_METHODS,
            allow_headers=["*"],
            expose_headers=_EXPOSED,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 403 to a foreign request; passes any other on."""
        is_shared, refusal = self._judge(scope)
        if scope["type"] == "websocket":  # browsers apply CORS to none, so the refusal is all
            await (refusal or self._app)(scope, receive, send)
            return

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = _SHARED_HEADERS if is_shared else _OWN_HEADERS
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        if refusal is not None:
            await refusal(scope, receive, send_marked)
        elif is_shared:
            # This header is answered here, as some versions of the library refuse it and others ignore it.
            asked = [(name, value) for name, value in scope["headers"] if name != _PRIVATE_NETWORK]
            await self._shared({**scope, "headers": asked}, receive, send_marked)
        else:
            await self._app(scope, receive, send_marked)

    def _judge(self, scope: Scope) -> tuple[bool, Response | None]:
        """Whether the request comes from a page of an allowed origin, and the refusal if the request is foreign."""
        headers, scheme = scope["headers"], scope["scheme"]
        named = [value.decode("latin-1") for name, value in headers if name == b"host"]
        for authority in named:
            if not self._is_own_name(authority):
                return False, _refused("Host", authority, "--allow-host")
        origins = [value.decode("latin-1") for name, value in headers if name == b"origin"]
        is_shared = False
        for origin in origins:
            if origin in self._origins:
                is_shared = True
            elif not (named and origin.lower() == f"{_PAGE_SCHEMES.get(scheme, scheme)}://{named[0]}".lower()):
                return False, _refused("Origin", origin, "--allow-origin")
        sites = [value for name, value in headers if name == b"sec-fetch-site"]
        if not is_shared and any(site not in _OWN_SITES for site in sites):
            return False, _refused("Sec-Fetch-Site", sites[0].decode("latin-1"), "--allow-origin")
        return is_shared, None

    def _is_own_name(self, authority: str) -> bool:
        match = _AUTHORITY.fullmatch(authority)
        if match is None:
            return False
        host = match["host"].lower().strip("[]")
        if host == "localhost" or host in self._hosts:
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        # DNS rebinding needs a host name, so an address in Host is safe.
        return address.is_loopback or self._any_address or str(address) in self._hosts


def _refused(header: str, value: str, option: str) -> Response:
    shown = "".join(letter if letter.isprintable() else "?" for letter in value[:100])
    return JSONResponse({"error": f"{header} {shown!r} is foreign to this portal: {option} lets it in"}, 403)


def _host(text: str) -> str:
    host = text.lower().strip("[]")
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    match = _AUTHORITY.fullmatch(host)
    if match is None or match["port"] is not None:
        raise InvalidConfigError(f"an allowed host must be a name or an address without a port, got {text!r}")
    return host


def _origin(text: str) -> str:
    origin = text.lower().removesuffix("/")
    if _ORIGIN.fullmatch(origin) is None:
        raise InvalidConfigError(f"an allowed origin must be http(s)://host[:port], got {text!r}")
    return origin

"""One exchange over HTTP: a request, its redirects, and an answer that is bounded and hashed while it streams.

Only this module knows httpx. It is loaded by the first request, not by the first session: httpx and the certificates
take longer than everything else that a session needs to start.
"""

from __future__ import annotations

import io
import ssl
from collections.abc import Mapping
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Final, NamedTuple
from urllib.request import getproxies

import anyio
import anyio.to_thread
import httpx
from blake3 import blake3

from fabstir_vectordb.errors import IntegrityError, OperationTimeoutError, S5Error, VectorDBError
from fabstir_vectordb.storage.addresses import PrivateAddressError, check_is_public, is_public
from fabstir_vectordb.storage.exchange import Answer, HttpSettings, Request, shown
from fabstir_vectordb.storage.retry import NotNowError, asked_pause

__all__ = ["REDIRECTS_MAX", "REQUESTS_MAX", "Wire", "normal_authority", "open_wire"]

#: Requests at a time: a S5 node takes one to two seconds an upload, and eight keep a link busy.
REQUESTS_MAX: Final = 8
#: Hops of one request.
REDIRECTS_MAX: Final = 5
#: A transfer gets the time limit, and beyond it a second for so many bytes that have moved.
_SLOWEST_BYTES_PER_S: Final = 64 * 1024
#: Bytes of an answer that says why something failed, or where to ask instead.
_REASON_BYTES_MAX: Final = 4 * 1024
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_NOT_NOW: Final = frozenset([408, 425, 429, 500, 502, 503, 504])


class _Body(httpx.AsyncByteStream):
    """A request's body, without a generator: one that a failed request leaves unfinished troubles trio."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    def __aiter__(self) -> _Pieces:
        return _Pieces(self._pieces)


class _Pieces:
    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = iter(pieces)

    def __aiter__(self) -> _Pieces:
        return self

    async def __anext__(self) -> bytes:
        for piece in self._pieces:
            return piece
        raise StopAsyncIteration


class _Read(NamedTuple):
    """What came of an answer's body."""

    body: bytes
    digest: bytes | None
    is_whole: bool


class _Watch:
    """Looks at each new connection to a redirect's target, and closes one that leads to a private address.

    The host was resolved and checked before; this is for a name that has another address a moment later. httpx calls
    it before a byte is sent.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._is_direct = True

    async def __call__(self, event: str, info: Mapping[str, Any]) -> None:
        if event == "connection.connect_tcp.started":
            self._is_direct = info["host"] == self._host  # else it is a proxy of the user's
        elif event == "connection.connect_tcp.complete" and self._is_direct:
            stream = info["return_value"]
            address = _peer(stream)
            if address is not None and not is_public(address):
                await stream.aclose()
                raise PrivateAddressError(self._host, address)


class Wire:
    """The connections of one event loop: to one server, and to the hosts that it sends reads on to.

    Args:
        authority: the server's host, and its port where that is not the usual one.
        settings: time limits and permissions.
        certificates: whom to trust.

    Attributes:
        requests: how many may run at a time.
    """

    def __init__(self, authority: str, settings: HttpSettings, certificates: ssl.SSLContext) -> None:
        self.requests = anyio.CapacityLimiter(REQUESTS_MAX)
        self._authority = authority
        self._settings = settings
        self._certificates = certificates
        self._client = self._new_client()
        # Connections whose address was checked, apart from those whose address was not.
        self._checked: httpx.AsyncClient | None = None

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._client.aclose()
        if self._checked is not None:
            await self._checked.aclose()

    async def exchange(self, url: str, asked: Request) -> Answer:
        """Sends a request once.

        Args:
            url: where to.
            asked: the request.

        Raises:
            NotNowError: another attempt may succeed.
            S5Error, IntegrityError: none will.
        """
        limit_s = self._settings.timeout_s + sum(map(len, asked.content)) / _SLOWEST_BYTES_PER_S
        try:
            with anyio.fail_after(limit_s) as limit:
                return await self._follow(url, asked, limit)
        except TimeoutError:
            raise NotNowError(self._late(asked, None, "did not answer")) from None
        except httpx.ConnectTimeout as error:
            raise NotNowError(self._late(asked, error, "cannot be reached: no connection came about")) from None
        except httpx.TimeoutException as error:
            raise NotNowError(self._late(asked, error, "did not answer")) from None
        except httpx.ConnectError as error:
            raise NotNowError(self._failed(asked, error, f"cannot be reached: {_said(error)}")) from None
        except (httpx.UnsupportedProtocol, httpx.LocalProtocolError) as error:
            # The text of the second may hold a header, and a header the token.
            raise self._failed(asked, error, f"cannot be asked ({type(error).__name__})", retryable=False) from None
        except httpx.TransportError as error:
            raise NotNowError(self._failed(asked, error, f"broke off: {_said(error)}")) from None
        except PrivateAddressError as error:
            raise S5Error(
                f"The portal {self._authority} redirects a read to a private address: {error}. "
                "allow_private_redirects=True permits it",
                details={**self._details(asked, error.host), "address": error.address},
                retryable=False,
            ) from None
        except httpx.InvalidURL as error:
            raise S5Error(
                f"The address of the portal {self._authority} or of its redirect is wrong: {error}", retryable=False
            ) from None

    async def _follow(self, url: str, asked: Request, limit: anyio.CancelScope) -> Answer:
        target, client = httpx.URL(url, params=asked.params or None), self._client
        origin = _place(target)
        extensions: dict[str, Any] = {}
        headers = dict(asked.headers)
        for _ in range(1 + REDIRECTS_MAX):
            request = client.build_request(asked.method, target, headers=headers, extensions=extensions)
            request.stream = _Body(asked.content)
            response = await client.send(request, stream=True)
            try:
                comes_from_public = self._is_public(response)
                read = await _read(response, asked, limit)
            finally:
                with anyio.CancelScope(shield=True):
                    await response.aclose()
            location = response.headers.get("Location")
            if response.status_code not in _REDIRECTS or location is None:
                return self._answer(response, read, asked)
            target = self._next(response, location, asked)
            if _place(target) != origin:
                # The token is the portal's alone.
                headers = {name: value for name, value in headers.items() if name != "Authorization"}
                if (comes_from_public or client is self._checked) and not self._settings.private_redirects:
                    client, extensions = await self._guarded(target, asked)
        raise S5Error(
            f"The portal {self._authority} redirects more than {REDIRECTS_MAX} times",
            details={**self._details(asked), "redirected_to": _host(target, asked)},
            retryable=False,
        )

    def _next(self, response: httpx.Response, location: str, asked: Request) -> httpx.URL:
        """The target of a redirect; only reads follow one."""
        target = response.request.url.join(location)
        if not asked.redirects:
            elsewhere = _host(target, asked)
            raise S5Error(
                f"The portal {self._authority} redirects {asked.method} {asked.path} to {elsewhere}: "
                "only reads of blobs follow a redirect. If that host is the portal, name it as s5_portal",
                details={**self._details(asked), "status": response.status_code, "redirected_to": elsewhere},
                retryable=False,
            )
        # Userinfo in the location would become an Authorization header of the server's choice.
        return target.copy_with(userinfo=b"", fragment=None)

    async def _guarded(self, target: httpx.URL, asked: Request) -> tuple[httpx.AsyncClient, dict[str, Any]]:
        """The client for a host that a public host has redirected to, after checking where that host is."""
        host = target.raw_host.decode()
        try:
            await check_is_public(host, target.port or (443 if target.scheme == "https" else 80))
        except OSError as error:
            elsewhere = _host(target, asked)
            raise S5Error(
                f"{self._subject(elsewhere)} cannot be reached: {error.strerror or 'its name has no address'}",
                details=self._details(asked, elsewhere),
            ) from None
        if self._checked is None:
            self._checked = self._new_client()
        return self._checked, {"trace": _Watch(host)}

    def _is_public(self, response: httpx.Response) -> bool:
        """Whether the host that answered is one of the internet; so is one behind a proxy, or of unknown address."""
        address = _peer(response.extensions.get("network_stream"))
        return address is None or is_public(address) or any(kind in _proxies() for kind in ("http", "https", "all"))

    def _answer(self, response: httpx.Response, read: _Read, asked: Request) -> Answer:
        status, body = response.status_code, read.body
        if response.is_success:
            coding = response.headers.get("Content-Encoding", "identity").strip().lower()
            if coding not in ("", "identity"):
                raise IntegrityError(
                    f"The portal {self._authority} compressed its answer ({coding[:20]!r}), which was not asked for",
                    details=self._details(asked),
                )
            if not read.is_whole:
                raise IntegrityError(
                    f"The answer of the portal {self._authority} has more than {asked.body_most} bytes",
                    details={**self._details(asked), "limit": asked.body_most},
                )
        else:
            body = _without_token(body[:_REASON_BYTES_MAX], asked)
        if status in _NOT_NOW and status not in asked.final:
            error = S5Error(
                f"The portal {self._authority} answered {status}: {shown(body)}",
                details={**self._details(asked), "status": status},
            )
            raise NotNowError(error, asked_pause(response.headers.get("Retry-After")))
        return Answer(status, body, _cookies(response), read.digest)

    def _late(self, asked: Request, error: httpx.RequestError | None, what: str) -> VectorDBError:
        elsewhere = self._elsewhere(asked, error)
        return OperationTimeoutError(
            f"{self._subject(elsewhere)} {what} within {self._settings.timeout_s:g} s",
            details={**self._details(asked, elsewhere), "timeout_s": self._settings.timeout_s},
        )

    def _failed(self, asked: Request, error: httpx.RequestError, what: str, retryable: bool | None = None) -> S5Error:
        elsewhere = self._elsewhere(asked, error)
        return S5Error(
            f"{self._subject(elsewhere)} {what}", details=self._details(asked, elsewhere), retryable=retryable
        )

    def _subject(self, elsewhere: str | None) -> str:
        portal = f"The portal {self._authority}"
        return portal if elsewhere is None else f"{elsewhere}, to which the portal {self._authority} redirects,"

    def _details(self, asked: Request, elsewhere: str | None = None) -> dict[str, Any]:
        details: dict[str, Any] = {"host": self._authority, "request": f"{asked.method} {asked.path}"}
        return details if elsewhere is None else {**details, "redirected_to": elsewhere}

    def _elsewhere(self, asked: Request, error: httpx.RequestError | None) -> str | None:
        """The host that failed, where it is one that this server has redirected to."""
        if error is None or error.request.url.netloc.decode() == self._authority:
            return None
        return _host(error.request.url, asked)

    def _new_client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            verify=self._certificates,
            timeout=httpx.Timeout(self._settings.timeout_s, pool=None),
            limits=httpx.Limits(max_connections=REQUESTS_MAX),
            headers={"User-Agent": "fabstir_vectordb", "Accept-Encoding": "identity"},
            # A portal sets its token as a cookie, too; what goes where is decided here alone.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )


async def open_wire(authority: str, settings: HttpSettings) -> Wire:
    """The connections of this event loop; none of them is open yet."""
    return Wire(authority, settings, await anyio.to_thread.run_sync(_certificates))


def normal_authority(url: str) -> str:
    """The authority of an address as a request has it.

    Raises:
        ValueError: httpx takes it for no address.
    """
    try:
        return httpx.URL(url).netloc.decode()
    except httpx.InvalidURL as error:
        raise ValueError(str(error)) from None


@cache
def _certificates() -> ssl.SSLContext:
    """Whom to trust: read once, as that takes some 40 ms."""
    return httpx.create_ssl_context()


@cache
def _proxies() -> Mapping[str, str]:
    return getproxies()


def _without_token(body: bytes, asked: Request) -> bytes:
    """A server's words: it may repeat what it was sent, and they end up in errors and logs."""
    token = asked.headers.get("Authorization", "").removeprefix("Bearer ").encode()
    return body.replace(token, b"[token]") if token else body


def _host(url: httpx.URL, asked: Request) -> str:
    return _without_token(url.netloc, asked).decode()


def _place(url: httpx.URL) -> tuple[str, bytes, int | None]:
    return url.scheme, url.raw_host, url.port


def _peer(stream: Any) -> str | None:
    """The IP address at the other end of a connection, where it is known."""
    try:
        address = None if stream is None else stream.get_extra_info("server_addr")
    except OSError:
        return None  # it is closed already
    return str(address[0]) if isinstance(address, tuple) else None


def _said(error: Exception) -> str:
    return shown(str(error).encode()) if str(error) else type(error).__name__


def _cookies(response: httpx.Response) -> dict[str, str]:
    """The cookies of one answer by name; httpx raises where two have the same."""
    pairs = (line.partition(";")[0].partition("=") for line in response.headers.get_list("Set-Cookie"))
    return {name.strip(): value.strip().strip('"') for name, _, value in pairs}


async def _read(response: httpx.Response, asked: Request, limit: anyio.CancelScope) -> _Read:
    """The body of an answer, or its start where it is longer than it may be. Every byte buys time."""
    # BytesIO gives its own buffer away: the body is held once.
    body, hasher = io.BytesIO(), blake3() if asked.hashed else None
    most = asked.body_most if response.is_success else _REASON_BYTES_MAX
    if response.is_success and _declared(response) > most:
        return _Read(b"", None, False)  # not a byte of it is read
    try:
        async for chunk in response.aiter_raw():
            body.write(chunk)
            if hasher is not None:
                hasher.update(chunk)
            limit.deadline += len(chunk) / _SLOWEST_BYTES_PER_S
            if body.tell() > most:
                # Whoever leaves this loop leaves generators unfinished, about which trio complains; a closed
                # connection ends them.
                await response.aclose()
    except (httpx.TransportError, httpx.StreamError):
        if body.tell() <= most:
            raise
    return _Read(body.getvalue(), None if hasher is None else hasher.digest(), body.tell() <= most)


def _declared(response: httpx.Response) -> int:
    text = response.headers.get("Content-Length", "")
    return int(text[:20]) if text.isascii() and text.isdecimal() and response.request.method != "HEAD" else 0

"""One HTTP exchange: a request, its redirects, and an answer that is bounded and hashed while it streams.

Only this module imports httpx. The first request loads this module, not the first session: httpx and the certificates
take longer to load than all else that a session needs to start.
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

#: Requests at a time: an S5 node takes one to two seconds for an upload, and eight uploads keep a link busy.
REQUESTS_MAX: Final = 8
#: Most redirects of one request.
REDIRECTS_MAX: Final = 5
#: A transfer may take the time limit, and one second more for each such number of bytes moved.
_SLOWEST_BYTES_PER_S: Final = 64 * 1024
#: Most bytes read of an error or a redirect.
_REASON_BYTES_MAX: Final = 4 * 1024
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_NOT_NOW: Final = frozenset([408, 425, 429, 500, 502, 503, 504])


class _Body(httpx.AsyncByteStream):
    """A request's body as a plain iterator: trio warns about a generator that a failed request leaves unfinished."""

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
    """The received body of an answer."""

    body: bytes
    digest: bytes | None
    is_whole: bool


class _Watch:
    """Checks each new connection to a redirect's target, and closes a connection to a private address.

    The host was resolved and checked before. This second check is for a host name whose address changes in between.
    httpx calls it before a byte is sent.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._is_direct = True

    async def __call__(self, event: str, info: Mapping[str, Any]) -> None:
        if event == "connection.connect_tcp.started":
            self._is_direct = info["host"] == self._host  # else the connection is to the user's proxy
        elif event == "connection.connect_tcp.complete" and self._is_direct:
            stream = info["return_value"]
            address = _peer(stream)
            if address is not None and not is_public(address):
                await stream.aclose()
                raise PrivateAddressError(self._host, address)


class Wire:
    """The connections of one event loop: to one server, and to the hosts to which it redirects reads.

    Args:
        authority: the server's host, and its port unless it is the default port.
        settings: time limits and permissions.
        certificates: trusted certificates.

    Attributes:
        requests: limiter of the requests that run at a time.
    """

    def __init__(self, authority: str, settings: HttpSettings, certificates: ssl.SSLContext) -> None:
        self.requests = anyio.CapacityLimiter(REQUESTS_MAX)
        self._authority = authority
        self._settings = settings
        self._certificates = certificates
        self._client = self._new_client()
        # A separate client for connections to redirect targets, whose addresses are checked.
        self._checked: httpx.AsyncClient | None = None

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._client.aclose()
        if self._checked is not None:
            await self._checked.aclose()

    async def exchange(self, url: str, asked: Request) -> Answer:
        """Sends a request once.

        Args:
            url: the address.
            asked: the request.

        Raises:
            NotNowError: the request failed; another attempt may succeed.
            S5Error, IntegrityError: the request failed, and another attempt would fail too.
        """
        limit_s = self._settings.timeout_s + sum(map(len, asked.content)) / _SLOWEST_BYTES_PER_S
        try:
            with anyio.fail_after(limit_s) as limit:
                return await self._follow(url, asked, limit)
        except TimeoutError:
            raise NotNowError(self._late(asked, None, "did not answer")) from None
        except httpx.ConnectTimeout as error:
            raise NotNowError(self._late(asked, error, "cannot be reached: no connection was established")) from None
        except httpx.TimeoutException as error:
            raise NotNowError(self._late(asked, error, "did not answer")) from None
        except httpx.ConnectError as error:
            raise NotNowError(self._failed(asked, error, f"cannot be reached: {_said(error)}")) from None
        except (httpx.UnsupportedProtocol, httpx.LocalProtocolError) as error:
            # The text of LocalProtocolError may contain a header, and the header the token.
            raise self._failed(asked, error, f"cannot be asked ({type(error).__name__})", retryable=False) from None
        except httpx.TransportError as error:
            raise NotNowError(self._failed(asked, error, f"broke the connection: {_said(error)}")) from None
        except PrivateAddressError as error:
            raise S5Error(
                f"The portal {self._authority} redirects a read to a private address: {error}. "
                "set allow_private_redirects=True to permit it",
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
                # The token is sent to the portal only.
                headers = {name: value for name, value in headers.items() if name != "Authorization"}
                if (comes_from_public or client is self._checked) and not self._settings.private_redirects:
                    client, extensions = await self._guarded(target, asked)
        raise S5Error(
            f"The portal {self._authority} redirects more than {REDIRECTS_MAX} times",
            details={**self._details(asked), "redirected_to": _host(target, asked)},
            retryable=False,
        )

    def _next(self, response: httpx.Response, location: str, asked: Request) -> httpx.URL:
        """The target of a redirect; only reads of blobs follow redirects."""
        target = response.request.url.join(location)
        elsewhere, refusal = _host(target, asked), None
        if not asked.redirects:
            refusal = (
                f"{asked.method} {asked.path} to {elsewhere}: only reads of blobs follow a redirect. If that "
                "host is the portal, name it as s5_portal"
            )
        elif response.request.url.scheme == "https" and target.scheme == "http":
            refusal = (
                f"a read to {elsewhere}, from https to http, where everybody on the way could see which "
                "objects are read"
            )
        if refusal is not None:
            raise S5Error(
                f"The portal {self._authority} redirects {refusal}",
                details={**self._details(asked), "status": response.status_code, "redirected_to": elsewhere},
                retryable=False,
            )
        # Userinfo in the location would become an Authorization header of the server's choice.
        return target.copy_with(userinfo=b"", fragment=None)

    async def _guarded(self, target: httpx.URL, asked: Request) -> tuple[httpx.AsyncClient, dict[str, Any]]:
        """The client for a redirect target named by a public host, after checking that its addresses are public."""
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
        """Whether the host that answered is public. A host behind a proxy or of unknown address is taken as public."""
        address = _peer(response.extensions.get("network_stream"))
        return address is None or is_public(address) or any(kind in _proxies() for kind in ("http", "https", "all"))

    def _answer(self, response: httpx.Response, read: _Read, asked: Request) -> Answer:
        status, body = response.status_code, read.body
        if response.is_success:
            coding = response.headers.get("Content-Encoding", "identity").strip().lower()
            if coding not in ("", "identity"):
                raise IntegrityError(
                    f"The portal {self._authority} compressed its answer ({coding[:20]!r}) without being asked to",
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
        """The host that failed, if it is the target of a redirect; None if it is this server."""
        if error is None or error.request.url.netloc.decode() == self._authority:
            return None
        return _host(error.request.url, asked)

    def _new_client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            verify=self._certificates,
            timeout=httpx.Timeout(self._settings.timeout_s, pool=None),
            limits=httpx.Limits(max_connections=REQUESTS_MAX),
            headers={"User-Agent": "fabstir_vectordb", "Accept-Encoding": "identity"},
            # A portal also sets its token as a cookie. No cookie is kept, so the token reaches no other host.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )


async def open_wire(authority: str, settings: HttpSettings) -> Wire:
    """The connections of this event loop, none of them open yet."""
    return Wire(authority, settings, await anyio.to_thread.run_sync(_certificates))


def normal_authority(url: str) -> str:
    """The authority of an address as a request names it.

    Raises:
        ValueError: httpx cannot parse the address.
    """
    try:
        return httpx.URL(url).netloc.decode()
    except httpx.InvalidURL as error:
        raise ValueError(str(error)) from None


@cache
def _certificates() -> ssl.SSLContext:
    """The trusted certificates, read once because reading takes some 40 ms."""
    return httpx.create_ssl_context()


@cache
def _proxies() -> Mapping[str, str]:
    return getproxies()


def _without_token(body: bytes, asked: Request) -> bytes:
    """A server's text without the token: a server may echo the token, and its text reaches errors and logs."""
    token = asked.headers.get("Authorization", "").removeprefix("Bearer ").encode()
    return body.replace(token, b"[token]") if token else body


def _host(url: httpx.URL, asked: Request) -> str:
    return _without_token(url.netloc, asked).decode()


def _place(url: httpx.URL) -> tuple[str, bytes, int | None]:
    return url.scheme, url.raw_host, url.port


def _peer(stream: Any) -> str | None:
    """The IP address at the other end of a connection, or None if it is unknown."""
    try:
        address = None if stream is None else stream.get_extra_info("server_addr")
    except OSError:
        return None  # the connection is closed already
    return str(address[0]) if isinstance(address, tuple) else None


def _said(error: Exception) -> str:
    return shown(str(error).encode()) if str(error) else type(error).__name__


def _cookies(response: httpx.Response) -> dict[str, str]:
    """The cookies of one answer by name. httpx is not used here: it raises when two cookies have the same name."""
    pairs = (line.partition(";")[0].partition("=") for line in response.headers.get_list("Set-Cookie"))
    return {name.strip(): value.strip().strip('"') for name, _, value in pairs}


async def _read(response: httpx.Response, asked: Request, limit: anyio.CancelScope) -> _Read:
    """The body of an answer, or its start if it is too long. Received bytes extend the time limit."""
    # BytesIO returns its own buffer, so the body is in memory once.
    body, hasher = io.BytesIO(), blake3() if asked.hashed else None
    most = asked.body_most if response.is_success else _REASON_BYTES_MAX
    if response.is_success and _declared(response) > most:
        return _Read(b"", None, False)
    try:
        async for chunk in response.aiter_raw():
            body.write(chunk)
            if hasher is not None:
                hasher.update(chunk)
            limit.deadline += len(chunk) / _SLOWEST_BYTES_PER_S
            if body.tell() > most:
                # Leaving the loop would leave generators unfinished, which trio warns about. A closed connection ends
                # them.
                await response.aclose()
    except (httpx.TransportError, httpx.StreamError):
        if body.tell() <= most:
            raise
    return _Read(body.getvalue(), None if hasher is None else hasher.digest(), body.tell() <= most)


def _declared(response: httpx.Response) -> int:
    text = response.headers.get("Content-Length", "")
    return int(text[:20]) if text.isascii() and text.isdecimal() and response.request.method != "HEAD" else 0

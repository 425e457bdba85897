"""HTTP for the stores that need it: time limits, a few requests at a time, repetition. Only this module knows httpx.

A request is repeated when the connection fails, when nothing comes within the time limit, and on answers that say "not
now"; `retry` says how. All requests made here may be repeated: blobs are named by what they hold, and a pointer is read
back.
"""

from __future__ import annotations

import json
import secrets
import ssl
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpx

from fabstir_vectordb.errors import IntegrityError, InvalidConfigError, OperationTimeoutError, S5Error
from fabstir_vectordb.storage.retry import NotNowError, asked_pause, repeated

__all__ = ["REDIRECTS_MAX", "Answer", "HttpClient", "HttpSettings", "base_url_of", "reason_of"]

#: Requests at a time: a S5 node takes one to two seconds an upload, and eight keep a link busy.
_REQUESTS: Final = 8
#: Hops of one request.
REDIRECTS_MAX: Final = 5
#: A transfer gets the time limit, and beyond it a second for so many bytes that have moved.
_SLOWEST_BYTES_PER_S: Final = 64 * 1024
#: Bytes of an answer that says why something failed.
_REASON_BYTES_MAX: Final = 64 * 1024
_NOT_NOW: Final = frozenset([408, 425, 429, 500, 502, 503, 504])


@dataclass(frozen=True, kw_only=True)
class HttpSettings:
    """How to talk to a portal.

    Attributes:
        timeout_s: seconds that a connection, or a pause within a transfer, may take.
        max_retries: repetitions of one request.
        token: sent as ``Authorization: Bearer``, never to another host.
    """

    timeout_s: float = 30.0
    max_retries: int = 3
    token: str | None = field(default=None, repr=False)


class Answer(NamedTuple):
    """What a server answered; where it refused something, its words without our token."""

    status: int
    body: bytes
    cookies: Mapping[str, str]

    @property
    def ok(self) -> bool:
        """Whether the status is one of 2xx."""
        return 200 <= self.status < 300

    def json(self) -> Any:
        """The body as JSON, or None where it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


class _Asked(NamedTuple):
    """A request, to be sent once or more often."""

    method: str
    path: str
    params: Mapping[str, str] | None
    headers: Mapping[str, str]
    content: list[bytes]
    redirects: bool
    body_most: int
    final: Container[int]


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


class _Line(NamedTuple):
    """The connections of one event loop, and how many requests may use them."""

    client: httpx.AsyncClient
    requests: anyio.CapacityLimiter


def base_url_of(uri: str) -> str:
    """An ``http(s)`` address without its trailing slash.

    Raises:
        InvalidConfigError: it has no host, or holds credentials, a query or a fragment; none of it is repeated.
    """
    try:
        parts = urlsplit(uri)
        host, _, _ = parts.hostname, parts.port, httpx.URL(uri)
    except (ValueError, httpx.InvalidURL):
        raise InvalidConfigError("s5_portal is no valid http address", details={"field": "s5_portal"}) from None
    if not host or parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise InvalidConfigError(
            "s5_portal must be http(s)://host[:port][/path] and nothing else: give a token as portal_token",
            details={"field": "s5_portal"},
        )
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))


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
        self._settings = settings
        self.authority = httpx.URL(base_url).netloc.decode()
        # Connections belong to an event loop, this object does not.
        self._lines: dict[object, _Line] = {}

    async def aclose(self) -> None:
        """Closes the connections of this event loop; requests after it open new ones."""
        line = self._lines.pop(anyio.lowlevel.current_token(), None)
        if line is not None:
            await line.client.aclose()

    async def request(
        self,
        method: str,
        path: str,
        *,
        body_most: int = _REASON_BYTES_MAX,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        file: bytes | None = None,
        document: Any = None,
        redirects: bool = False,
        final: Container[int] = (),
    ) -> Answer:
        """Sends a request until it is answered.

        Args:
            method, path, params, headers: of the request.
            body_most: most bytes of a good answer; a longer one is refused as soon as that shows.
            content: a body as it is.
            file: a body as the file ``file`` of a multipart form.
            document: a body as JSON.
            redirects: follow them; the token does not go along to another host.
            final: statuses that are an answer here, though elsewhere they say "not now".

        Returns:
            The answer, whatever its status, but for those that say "not now".

        Raises:
            OperationTimeoutError: there was no answer in time.
            S5Error: there was none at all, or only "not now"; details has ``status`` where there was one. Of both,
                details has ``redirected_to`` where it is not this server that failed.
            IntegrityError: the answer is longer than it may be.
        """
        sent = dict(headers or {})
        pieces = [] if content is None else [content]
        if file is not None:
            pieces, sent["Content-Type"] = _form(file)
        if document is not None:
            pieces, sent["Content-Type"] = [json.dumps(document).encode()], "application/json"
        if pieces:
            sent["Content-Length"] = str(sum(map(len, pieces)))
        if self.token is not None:
            sent["Authorization"] = f"Bearer {self.token}"
        asked = _Asked(method, path, params, sent, pieces, redirects, body_most, final)
        return await repeated(partial(self._once, asked), self._settings.max_retries)

    async def _once(self, asked: _Asked) -> Answer:
        what = f"{asked.method} {asked.path} of {self.authority}"
        line = await self._open()
        # Whoever waits for a turn does not use up the time of the request.
        async with line.requests:
            limit_s = self._settings.timeout_s + sum(map(len, asked.content)) / _SLOWEST_BYTES_PER_S
            try:
                with anyio.fail_after(limit_s) as limit:
                    return await self._exchange(line.client, asked, what, limit)
            except TimeoutError:
                raise NotNowError(self._late(what, None)) from None
            except httpx.TimeoutException as error:
                raise NotNowError(self._late(what, self._elsewhere(error))) from None
            except httpx.TransportError as error:
                elsewhere = self._elsewhere(error)
                failed = S5Error(
                    f"{what}{_redirected_to(elsewhere)}: {type(error).__name__}: {error}", details=_details(elsewhere)
                )
                if isinstance(error, httpx.UnsupportedProtocol):
                    raise failed from None  # a redirect to what is no address stays one
                raise NotNowError(failed) from None
            except httpx.InvalidURL as error:
                raise S5Error(f"{what}: {error}", retryable=False) from None

    def _late(self, what: str, elsewhere: str | None) -> OperationTimeoutError:
        details = {"timeout_s": self._settings.timeout_s, **_details(elsewhere)}
        return OperationTimeoutError(f"{what}{_redirected_to(elsewhere)}: no answer in time", details=details)

    def _elsewhere(self, error: httpx.RequestError) -> str | None:
        """The host that failed, where it is one that this server has redirected to."""
        host = error.request.url.netloc.decode()
        return None if host == self.authority else host

    async def _exchange(self, client: httpx.AsyncClient, asked: _Asked, what: str, limit: anyio.CancelScope) -> Answer:
        url = self.base_url + asked.path
        request = client.build_request(asked.method, url, params=asked.params, headers=asked.headers)
        request.stream = _Body(asked.content)
        for _ in range(1 + REDIRECTS_MAX):
            response = await client.send(request, stream=True)
            try:
                most = asked.body_most if response.is_success else _REASON_BYTES_MAX
                body = await _read(response, most, limit)
            finally:
                with anyio.CancelScope(shield=True):
                    await response.aclose()
            if not asked.redirects or response.next_request is None:
                return self._answer(response, body, most, asked, what)
            # Followed here because httpx would read the redirect's own body, however long it is. The request it has
            # made has no token in it where the host is another.
            request = response.next_request
        details = _details(request.url.netloc.decode())
        raise S5Error(f"{what}: more than {REDIRECTS_MAX} redirects", details=details, retryable=False)

    def _answer(self, response: httpx.Response, body: bytes, most: int, asked: _Asked, what: str) -> Answer:
        status = response.status_code
        if response.is_success:
            if len(body) > most:
                raise IntegrityError(f"{what}: the answer has more than {most} bytes", details={"limit": most})
        elif self.token:
            # A server may repeat what it was sent, and its words end up in errors and logs.
            body = body.replace(self.token.encode(), b"[token]")
        if status in _NOT_NOW and status not in asked.final:
            error = S5Error(f"{what}: answered {status}: {_shown(body)}", details={"status": status})
            raise NotNowError(error, asked_pause(response.headers.get("Retry-After")))
        return Answer(status, body, dict(response.cookies))

    async def _open(self) -> _Line:
        here = anyio.lowlevel.current_token()
        if here not in self._lines:
            certificates = await anyio.to_thread.run_sync(_certificates)
            if here not in self._lines:  # else another task was faster
                client = httpx.AsyncClient(
                    verify=certificates,
                    timeout=httpx.Timeout(self._settings.timeout_s, pool=None),
                    limits=httpx.Limits(max_connections=_REQUESTS),
                    headers={"User-Agent": "fabstir_vectordb", "Accept-Encoding": "identity"},
                    # A portal sets its token as a cookie, too; what goes where is decided here alone.
                    cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
                )
                self._lines[here] = _Line(client, anyio.CapacityLimiter(_REQUESTS))
        return self._lines[here]


@cache
def _certificates() -> ssl.SSLContext:
    """Whom to trust: read once, as that takes some 40 ms, more than all else that a session needs to start."""
    return httpx.create_ssl_context()


def _redirected_to(elsewhere: str | None) -> str:
    return "" if elsewhere is None else f", redirected to {elsewhere}"


def _details(elsewhere: str | None) -> dict[str, Any]:
    return {} if elsewhere is None else {"redirected_to": elsewhere}


def _form(file: bytes) -> tuple[list[bytes], str]:
    """A multipart form with one file, as S5.js sends it, in pieces, and its content type (RFC 7578)."""
    boundary = secrets.token_hex(16)
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="file"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    return [head.encode(), file, f"\r\n--{boundary}--\r\n".encode()], f"multipart/form-data; boundary={boundary}"


async def _read(response: httpx.Response, most: int, limit: anyio.CancelScope) -> bytes:
    """The body, or its start, more than `most` bytes, where it is longer; every byte of it buys time."""
    body = bytearray()
    try:
        async for chunk in response.aiter_raw():
            body += chunk
            limit.deadline += len(chunk) / _SLOWEST_BYTES_PER_S
            if len(body) > most:
                # Whoever leaves this loop leaves generators unfinished, about which trio complains; a closed
                # connection ends them.
                await response.aclose()
    except (httpx.TransportError, httpx.StreamError):
        if len(body) <= most:
            raise
    return bytes(body)


def reason_of(answer: Answer) -> str:
    """What a server says about a failure, fit for one line of a log."""
    document = answer.json()
    text = document.get("error") if isinstance(document, dict) else None
    return _shown(text.encode() if isinstance(text, str) else answer.body)


def _shown(body: bytes) -> str:
    text = " ".join(body[:300].decode("utf-8", "replace").split())
    return "".join(letter if letter.isprintable() else "?" for letter in text) or "nothing"

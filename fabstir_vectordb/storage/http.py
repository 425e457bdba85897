"""HTTP for the stores that need it: time limits, a few requests at a time, repetition. Only this module knows httpx.

A request is repeated when the connection fails, when nothing comes within the time limit, and on answers that say "not
now" (429, 502, 503, 504 and the like), after a random pause that doubles, or the one that `Retry-After` asks for. All
requests made here may be repeated: blobs are named by what they hold, and a pointer is read back.
"""

from __future__ import annotations

import datetime
import email.utils
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpx
import tenacity

from fabstir_vectordb.errors import IntegrityError, InvalidConfigError, OperationTimeoutError, S5Error, VectorDBError

__all__ = ["REDIRECTS_MAX", "Answer", "HttpClient", "HttpSettings", "base_url_of", "reason_of"]

#: Connections at a time: a S5 node takes one to two seconds an upload, and eight keep a link busy.
CONNECTIONS: Final = 8
#: Hops of one request.
REDIRECTS_MAX: Final = 5
#: A transfer gets the time limit, and beyond it a second for so many bytes.
_SLOWEST_BYTES_PER_S: Final = 64 * 1024
#: Bytes of an answer that says why something failed.
_REASON_BYTES_MAX: Final = 64 * 1024
_PAUSE_S: Final = 0.1
_PAUSE_MOST_S: Final = 8.0
#: A server that asks for more patience than this gets none.
_RETRY_AFTER_MOST_S: Final = 60.0
_NOT_NOW: Final = frozenset([408, 425, 429, 502, 503, 504])


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
    """What a server answered."""

    status: int
    body: bytes

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
    content: bytes
    redirects: bool
    body_most: int


class _Body(httpx.AsyncByteStream):
    """A request's body in one piece, without a generator: one that a failed request leaves unfinished troubles trio."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __aiter__(self) -> _Pieces:
        return _Pieces([self._content] if self._content else [])


class _Pieces:
    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    def __aiter__(self) -> _Pieces:
        return self

    async def __anext__(self) -> bytes:
        if not self._pieces:
            raise StopAsyncIteration
        return self._pieces.pop()


class _NotNow(Exception):
    """An attempt failed in a way that a later one may not."""

    def __init__(self, error: VectorDBError, pause_s: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.pause_s = pause_s


def base_url_of(uri: str) -> str:
    """An ``http(s)`` address without its trailing slash.

    Raises:
        InvalidConfigError: it has no host, or holds credentials, a query or a fragment; none of it is repeated.
    """
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname, parts.port
    except ValueError:
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
    """

    def __init__(self, base_url: str, settings: HttpSettings) -> None:
        self.base_url = base_url
        self._settings = settings
        # Connections belong to an event loop, this object does not.
        self._client: anyio.lowlevel.RunVar[httpx.AsyncClient] = anyio.lowlevel.RunVar("fabstir_vectordb.storage.http")

    async def aclose(self) -> None:
        """Closes the connections of this event loop; requests after it open new ones."""
        client = self._client.get(None)
        if client is not None:
            self._client.set(None)  # type: ignore[arg-type]
            await client.aclose()

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
    ) -> Answer:
        """Sends a request until it is answered.

        Args:
            method, path, params, headers: of the request.
            body_most: most bytes of a good answer; a longer one is refused as soon as that shows.
            content: a body as it is.
            file: a body as the file ``file`` of a multipart form.
            document: a body as JSON.
            redirects: follow them; the token does not go along to another host.

        Returns:
            The answer, whatever its status, but for those that say "not now".

        Raises:
            OperationTimeoutError: there was no answer in time.
            S5Error: there was none at all, or only "not now"; details has ``status`` where there was one.
            IntegrityError: the answer is longer than it may be.
        """
        sent = dict(headers or {})
        if file is not None:
            content, sent["Content-Type"] = _form(file)
        if document is not None:
            content, sent["Content-Type"] = json.dumps(document).encode(), "application/json"
        if content is not None:
            sent["Content-Length"] = str(len(content))
        if self._settings.token is not None:
            sent["Authorization"] = f"Bearer {self._settings.token}"
        asked = _Asked(method, path, params, sent, content or b"", redirects, body_most)
        attempts = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(1 + self._settings.max_retries),
            wait=_pause,
            retry=tenacity.retry_if_exception_type(_NotNow),
            sleep=anyio.sleep,
            reraise=True,
        )
        try:
            return await attempts(partial(self._once, asked))
        except _NotNow as failed:
            raise failed.error from None

    async def _once(self, asked: _Asked) -> Answer:
        what = f"{asked.method} {asked.path} of {urlsplit(self.base_url).netloc}"
        limit = self._settings.timeout_s + (len(asked.content) + asked.body_most) / _SLOWEST_BYTES_PER_S
        client = await self._open()
        try:
            with anyio.fail_after(limit):
                return await self._exchange(client, asked, what)
        except (TimeoutError, httpx.TimeoutException):
            raise _NotNow(
                OperationTimeoutError(f"{what}: no answer in time", details={"timeout_s": self._settings.timeout_s})
            ) from None
        except httpx.TooManyRedirects:
            raise S5Error(f"{what}: more than {REDIRECTS_MAX} redirects", retryable=False) from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise _NotNow(S5Error(f"{what}: {type(error).__name__}: {error}")) from None
        except httpx.InvalidURL:
            raise S5Error(f"{what}: it redirects to what is no address", retryable=False) from None

    async def _exchange(self, client: httpx.AsyncClient, asked: _Asked, what: str) -> Answer:
        url = self.base_url + asked.path
        request = client.build_request(asked.method, url, params=asked.params, headers=asked.headers)
        request.stream = _Body(asked.content)
        response = await client.send(request, stream=True, follow_redirects=asked.redirects)
        try:
            most = asked.body_most if response.is_success else _REASON_BYTES_MAX
            body = await _read(response, most)
        finally:
            with anyio.CancelScope(shield=True):
                await response.aclose()
        if response.status_code in _NOT_NOW:
            raise _NotNow(
                S5Error(
                    f"{what}: answered {response.status_code}: {_shown(body)}", details={"status": response.status_code}
                ),
                _asked_pause(response.headers.get("Retry-After")),
            )
        if response.is_success and len(body) > most:
            raise IntegrityError(f"{what}: the answer has more than {most} bytes", details={"limit": most})
        return Answer(response.status_code, body)

    async def _open(self) -> httpx.AsyncClient:
        client = self._client.get(None)
        if client is None:
            # In a thread: it reads the system's certificates.
            client = await anyio.to_thread.run_sync(
                partial(
                    httpx.AsyncClient,
                    timeout=httpx.Timeout(self._settings.timeout_s),
                    limits=httpx.Limits(max_connections=CONNECTIONS),
                    max_redirects=REDIRECTS_MAX,
                    headers={"User-Agent": "fabstir_vectordb", "Accept-Encoding": "identity"},
                )
            )
            current = self._client.get(None)
            if current is not None:      # another task was faster
                await client.aclose()
                return current
            self._client.set(client)
        return client


def _form(file: bytes) -> tuple[bytes, str]:
    """A multipart form with one file, as S5.js sends it, and its content type (RFC 7578)."""
    boundary = secrets.token_hex(16)
    head = (
        f"--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"file\"\r\n"
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    body = b"".join((head.encode(), file, f"\r\n--{boundary}--\r\n".encode()))
    return body, f"multipart/form-data; boundary={boundary}"


async def _read(response: httpx.Response, most: int) -> bytes:
    """The body, or its start, more than `most` bytes, where it is longer."""
    body = bytearray()
    try:
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > most:
                # Whoever leaves this loop leaves generators unfinished, about which trio complains; a closed
                # connection ends them.
                await response.aclose()
    except (httpx.TransportError, httpx.StreamError):
        if len(body) <= most:
            raise
    return bytes(body)


_backoff: Final = tenacity.wait_random_exponential(multiplier=_PAUSE_S, max=_PAUSE_MOST_S)


def _pause(state: tenacity.RetryCallState) -> float:
    failed = state.outcome.exception() if state.outcome is not None else None
    asked = failed.pause_s if isinstance(failed, _NotNow) else None
    return max(_backoff(state), asked or 0.0)


def _asked_pause(value: str | None) -> float | None:
    """Seconds of a `Retry-After` header: a number or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = email.utils.parsedate_to_datetime(value)
        except ValueError:
            return None
        if date.tzinfo is None:
            date = date.replace(tzinfo=datetime.UTC)
        seconds = (date - datetime.datetime.now(datetime.UTC)).total_seconds()
    return min(max(seconds, 0.0), _RETRY_AFTER_MOST_S) if seconds == seconds else None  # noqa: PLR0124


def reason_of(answer: Answer) -> str:
    """What a server says about a failure, fit for one line of a log."""
    document = answer.json()
    text = document.get("error") if isinstance(document, dict) else None
    return _shown(text.encode() if isinstance(text, str) else answer.body)


def _shown(body: bytes) -> str:
    text = " ".join(body[:300].decode("utf-8", "replace").split())
    return "".join(letter if letter.isprintable() else "?" for letter in text) or "nothing"

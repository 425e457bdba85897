"""HTTP requests and answers as plain values; this module imports no HTTP library."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from dataclasses import field
from typing import Any, Final, NamedTuple

from fabstir_vectordb.dataclass import dataclass

__all__ = ["ANSWER_BYTES_MAX", "Answer", "HttpSettings", "Request", "reason_of", "shown"]

#: Most bytes of a short JSON answer: a CID, a challenge, a version, or an acknowledgement.
ANSWER_BYTES_MAX: Final = 16 * 1024


@dataclass(frozen=True, kw_only=True)
class HttpSettings:
    """Settings of requests to a portal.

    Attributes:
        timeout_s: seconds that a connection, or a pause within a transfer, may take.
        max_retries: repetitions of one request.
        token: access token, sent as ``Authorization: Bearer`` to the portal and to no other host.
        private_redirects: allow a public portal to redirect reads to loopback, link-local and private addresses.
    """

    timeout_s: float = 30.0
    max_retries: int = 3
    token: str | None = field(default=None, repr=False)
    private_redirects: bool = False


class Request(NamedTuple):
    """An HTTP request. Sending it more than once must be safe, as it may be retried.

    Attributes:
        method, path, params, headers: parts of the request.
        content: the body in pieces.
        body_most: most bytes of a successful answer.
        redirects: whether to follow redirects. Only reads of blobs do, as their hash is checked.
        hashed: whether to hash the answer while it is received.
        final: statuses that end this request, though they usually cause a retry.
    """

    method: str
    path: str
    params: Mapping[str, str] | None
    headers: Mapping[str, str]
    content: list[bytes]
    body_most: int
    redirects: bool
    hashed: bool
    final: Container[int]


class Answer(NamedTuple):
    """A server's answer. The session's token is removed from the body of an error.

    Attributes:
        status: HTTP status.
        body: the whole body if the status is 2xx, else its start.
        cookies: values of cookies by name.
        digest: BLAKE3-256 of the body, if the request asked for it.
    """

    status: int
    body: bytes
    cookies: Mapping[str, str]
    digest: bytes | None = None

    @property
    def ok(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300

    def json(self) -> Any:
        """The parsed JSON body, or None if the body is not JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


def reason_of(answer: Answer) -> str:
    """A server's error text as one printable line."""
    document = answer.json()
    text = document.get("error") if isinstance(document, dict) else None
    return shown(text.encode("utf-8", "replace") if isinstance(text, str) else answer.body)


def shown(body: bytes) -> str:
    """Untrusted bytes as one short printable line."""
    text = " ".join(body[:300].decode("utf-8", "replace").split())
    return "".join(letter if letter.isprintable() else "?" for letter in text) or "nothing"

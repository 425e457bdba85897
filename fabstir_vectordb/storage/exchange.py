"""HTTP requests and answers as plain values; this module imports no HTTP library."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

__all__ = ["ANSWER_BYTES_MAX", "Answer", "HttpSettings", "Request", "reason_of", "shown"]

#: Most bytes of a short JSON answer: a CID, a challenge, a version, or an acknowledgement.
ANSWER_BYTES_MAX: Final = 16 * 1024


@dataclass(frozen=True, kw_only=True)
class HttpSettings:
    """Settings of requests to a portal.

    Attributes:
        timeout_s: seconds that a connection, or a pause within a transfer, may take.
        max_retries: repetitions of one request.
        token: sent as ``Authorization: Bearer``, never to another host.
        private_redirects: let a portal of the internet redirect reads to loopback, link-local and private addresses.
    """

    timeout_s: float = 30.0
    max_retries: int = 3
    token: str | None = field(default=None, repr=False)
    private_redirects: bool = False


class Request(NamedTuple):
    """An HTTP request, which may be repeated.

    Attributes:
        method, path, params, headers: the parts of the request.
        content: the body in pieces.
        body_most: most bytes of a good answer.
        redirects: follow them; only reads of blobs do, which are checked by their hash.
        hashed: hash the answer while it is received.
        final: statuses that are an answer here, though elsewhere they cause a retry.
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
    """A server's answer. The session's token is removed from error texts.

    Attributes:
        status: HTTP status.
        body: the whole body where the status is 2xx, else its start.
        cookies: values of cookies by name.
        digest: BLAKE3-256 of the body, where the request asked for it.
    """

    status: int
    body: bytes
    cookies: Mapping[str, str]
    digest: bytes | None = None

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


def reason_of(answer: Answer) -> str:
    """A server's error text, as one line for a log."""
    document = answer.json()
    text = document.get("error") if isinstance(document, dict) else None
    return shown(text.encode("utf-8", "replace") if isinstance(text, str) else answer.body)


def shown(body: bytes) -> str:
    """Bytes from outside as one short printable line."""
    text = " ".join(body[:300].decode("utf-8", "replace").split())
    return "".join(letter if letter.isprintable() else "?" for letter in text) or "nothing"

"""What is asked over HTTP and what comes back: plain values, which load no HTTP library."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

__all__ = ["ANSWER_BYTES_MAX", "Answer", "HttpSettings", "Request", "reason_of", "shown"]

#: Bytes of a JSON answer that says one thing: a CID, a challenge, a version, that something was done.
ANSWER_BYTES_MAX: Final = 16 * 1024


@dataclass(frozen=True, kw_only=True)
class HttpSettings:
    """How to talk to a portal.

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
    """A request, to be sent once or more often.

    Attributes:
        method, path, params, headers: of the request.
        content: the body in pieces.
        body_most: most bytes of a good answer.
        redirects: follow them; only reads of blobs do, which are checked by their hash.
        hashed: hash the answer while it comes.
        final: statuses that are an answer here, though elsewhere they say "not now".
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
    """What a server answered; where it refused something, its words without our token.

    Attributes:
        status: of the answer.
        body: all of it where the status is 2xx, else its start.
        cookies: by name.
        digest: BLAKE3-256 of the body, where that was asked for.
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
    """What a server says about a failure, fit for one line of a log."""
    document = answer.json()
    text = document.get("error") if isinstance(document, dict) else None
    return shown(text.encode("utf-8", "replace") if isinstance(text, str) else answer.body)


def shown(body: bytes) -> str:
    """Bytes from outside as one short printable line."""
    text = " ".join(body[:300].decode("utf-8", "replace").split())
    return "".join(letter if letter.isprintable() else "?" for letter in text) or "nothing"

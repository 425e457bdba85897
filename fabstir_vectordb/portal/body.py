"""The body of a request, received with limits on its size and on the time between two pieces."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import anyio
from starlette.requests import Request

__all__ = ["SlowClientError", "TooLargeError", "pieces", "whole"]

#: Most seconds between two pieces of a request's body.
BODY_S: float = 30.0
_RECEIVED: Final = "http.request"


class TooLargeError(Exception):
    """A body is larger than the limit."""


class SlowClientError(Exception):
    """The next piece of a body did not come in time, or the client has gone."""


async def pieces(request: Request) -> AsyncIterator[bytes]:
    """Yields the pieces of a body as they arrive.

    Raises:
        SlowClientError: the next piece did not come in time, or the client has gone.
    """
    more = True
    while more:
        try:
            with anyio.fail_after(BODY_S):
                message = await request.receive()
        except TimeoutError:
            raise SlowClientError from None
        if message["type"] != _RECEIVED:
            raise SlowClientError
        more = message.get("more_body", False)
        yield message.get("body", b"")


async def whole(request: Request, bytes_max: int) -> bytes:
    """Returns a whole body.

    Raises:
        SlowClientError: as for `pieces`.
        TooLargeError: the body is larger than `bytes_max`.
    """
    data = bytearray()
    async for piece in pieces(request):
        data += piece
        if len(data) > bytes_max:
            raise TooLargeError
    return bytes(data)

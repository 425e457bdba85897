"""Serving the portal with uvicorn, with a time limit on every wait for a client.

Websockets are those of wsproto: uvicorn then stops reading while a message is worked on, and nothing piles up in
fragments of messages.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Final

import anyio
import h11
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.wsproto_impl import WSProtocol
from wsproto.events import Ping

__all__ = ["listen", "server_config"]

#: Most seconds for the head of a request, counted from the connection or from the head's first byte.
HEAD_S: float = 20.0
#: Most seconds for a client to receive one piece of an answer.
TAKE_S: float = 60.0
_PIECE_BYTES: Final = 256 * 1024
#: Most bytes of a websocket's message. A registry entry has at most 171.
MESSAGE_BYTES_MAX: Final = 8_192
#: TCP keepalive: seconds until the first probe of an idle peer, seconds between probes, and number of probes.
_KEEPALIVE: Final = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))


class TimedProtocol(H11Protocol):
    """HTTP/1.1 with a time limit: closes a connection if no complete request head comes in time."""

    _timer: asyncio.TimerHandle | None = None
    _is_websocket = False

    def connection_made(self, transport: Any) -> None:
        """Starts the timer for the first request."""
        super().connection_made(transport)
        self._start()

    def data_received(self, data: bytes) -> None:
        """Stops the timer if a request has begun; starts it if only a part of a head has come."""
        super().data_received(data)
        if self._is_websocket or (self.cycle is not None and not self.cycle.response_complete):
            self._stop()
        else:
            self._start()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Hands the connection over to `TimedWebSocket`."""
        self._is_websocket = True
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the timer."""
        self._stop()
        super().connection_lost(exc)

    def _start(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEAD_S, self.transport.abort)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class TimedWebSocket(WSProtocol):
    """A websocket that is closed if its client does not receive what was sent to it."""

    _timer: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        """Starts the timer: the system takes no more bytes for the client."""
        super().pause_writing()
        self._timer = self.loop.call_later(TAKE_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Stops the timer."""
        self._stop()
        super().resume_writing()

    def handle_ping(self, event: Ping) -> None:
        """Answers a ping, unless the client does not receive: answers would pile up, as nothing waits for them."""
        if self.writable.is_set():
            super().handle_ping(event)

    def keepalive_timeout(self) -> None:
        """Closes the connection at once: what waits to be sent would keep it open."""
        super().keepalive_timeout()
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the timer, and lets go on what waits for the client: in uvicorn 0.46 it would wait for ever."""
        self._stop()
        super().connection_lost(exc)
        self.writable.set()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _GoneError(Exception):
    """The client has stopped receiving an answer."""


class _Delivery:
    """An ASGI application that sends answers in pieces. The client must receive each piece in time."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def deliver(message: Message) -> None:
            body = memoryview(message.get("body", b""))
            for start in range(0, len(body), _PIECE_BYTES):
                is_last = start + _PIECE_BYTES >= len(body)
                more = message.get("more_body", False) or not is_last
                piece = bytes(body[start : start + _PIECE_BYTES])
                with anyio.move_on_after(TAKE_S) as limit:
                    await send({"type": "http.response.body", "body": piece, "more_body": more})
                if limit.cancelled_caught:
                    raise _GoneError
            if not body:
                await send(message)

        try:
            await self._app(scope, receive, deliver)
        except _GoneError:
            return  # uvicorn closes the connection, as the answer is incomplete


def listen(host: str, port: int) -> socket.socket:
    """Returns a listening socket; connections to vanished clients are closed, and answers leave at once.

    Accepted connections inherit TCP keepalive and TCP_NODELAY. Without the latter an answer's body waits for the
    acknowledgement of its head, which clients delay by 40 ms; asyncio sets it where a socket names its protocol only.

    Args:
        host: name or address.
        port: port number; 0 picks a free port.

    Raises:
        OSError: the system cannot listen on the address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        if hasattr(socket, name):  # a system without these options uses its own times
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return listener


def server_config(app: ASGIApp, log_level: str = "warning") -> uvicorn.Config:
    """Returns the uvicorn configuration of the portal."""
    return uvicorn.Config(
        _Delivery(app),
        log_level=log_level,
        lifespan="off",
        http=TimedProtocol,
        ws=TimedWebSocket,
        ws_max_size=MESSAGE_BYTES_MAX,
        ws_per_message_deflate=False,
        server_header=False,
    )

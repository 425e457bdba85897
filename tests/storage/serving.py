"""The package's portal on loopback, and applications that stand in for other people's."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fabstir_vectordb.portal.app import create_app
from fabstir_vectordb.portal.server import listen, server_config


@contextmanager
def serving(root: Path, token: str | None = None, **settings: Any) -> Iterator[str]:
    """The portal over a directory, as the command serves it; gives its address."""
    config = server_config(create_app(root, token, **settings), "critical")
    with listen("127.0.0.1", 0) as listener, _served(config, [listener]) as address:
        yield address


@contextmanager
def running(app: Callable[..., object], certificate: tuple[Path, Path] | None = None) -> Iterator[str]:
    """An ASGI application on loopback, in a thread of its own; gives its address.

    Args:
        app: the application.
        certificate: files of a certificate and its key, for TLS.
    """
    chain, key = (None, None) if certificate is None else map(str, certificate)
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        log_level="critical",
        lifespan="off",
        ws="none",
        ssl_certfile=chain,
        ssl_keyfile=key,
    )
    with _served(config) as address:
        yield address


class _Server(uvicorn.Server):
    """A server that ends when it is told to: uvicorn looks every 0.1 s, and tests start hundreds."""

    async def main_loop(self) -> None:
        await self.on_tick(0)
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        if not self.should_exit:
            await self._end.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for closed in (*self.servers, *(sockets or ())):
            closed.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks)
        await asyncio.sleep(0)  # transports that are closing close in the loop's next turn

    def end(self) -> None:
        """Tells the server to end, from another thread."""
        self.should_exit = True
        self._loop.call_soon_threadsafe(self._end.set)


@contextmanager
def _served(config: uvicorn.Config, sockets: list[socket.socket] | None = None) -> Iterator[str]:
    server = _Server(config)
    thread = threading.Thread(target=server.run, args=(sockets,), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        threading.Event().wait(0.005)
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"{'https' if config.is_ssl else 'http'}://127.0.0.1:{port}"
    finally:
        server.end()
        thread.join(30)
        assert not thread.is_alive()


class Recorder:
    """An application that answers what it is told, and remembers what it was asked."""

    def __init__(self, answer: Callable[[Request], Any]) -> None:
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        self._answer = answer

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def handle(request: Request) -> Response:
            self.asked.append((request.method, request.url.path, dict(request.headers), await request.body()))
            answer = self._answer(request)
            return answer if isinstance(answer, Response) else await answer

        methods = ["GET", "HEAD", "PUT", "POST", "DELETE"]
        await Starlette(routes=[Route("/{path:path}", handle, methods=methods)])(scope, receive, send)

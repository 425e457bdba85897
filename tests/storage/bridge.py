"""Stand-ins for other people's gateways.

`Bridge` answers as the newest one does (s5-bridge 1.4 of fabstir-llm-node 85a87b8; row E of the S5 reference): its
statuses and content types, and what it does when the portal behind it is down. `old_gateway` takes CBOR only.
"""

from __future__ import annotations

from typing import Any

from starlette.types import Receive, Scope, Send

from fabstir_vectordb.s5.cid import BlobId

#: Bodies above this go by tus only.
BODY_BYTES_MAX = 32 * 1024 * 1024
_TAKEN = ("application/octet-stream", "application/json", "text/plain", "application/offset+octet-stream")


class Bridge:
    """An ASGI application; set `is_down` to have the portal behind it fail.

    Attributes:
        files: content by path, as it stands in the request: the bridge decodes no escapes.
        is_down: every GET is a 404 then, every PUT a 500; `/health` is well and DELETE is 204 all the same.
        puts: content types of the PUTs that were asked for.
    """

    def __init__(self, taken: tuple[str, ...] = _TAKEN) -> None:
        self.files: dict[str, bytes] = {}
        self.is_down = False
        self.puts: list[str] = []
        self._taken = taken

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["raw_path"].decode("ascii")
        if path == "/health" and method == "GET":
            await _answer(send, 200, b'{"status":"healthy","service":"s5-bridge","version":"1.4"}', "application/json")
            return
        name = path.removeprefix("/s5/fs/")
        if name == path or not name:
            await _answer(send, 404, b'{"error":"Not Found"}', "application/json")
            return
        match method:
            case "PUT":
                await self._put(name, scope, receive, send)
            case "GET" | "HEAD":
                content = None if self.is_down else self.files.get(name)
                if content is None:
                    await _answer(send, 404, b'{"error":"File not found"}', "application/json")
                else:
                    await _answer(send, 200, content, "application/octet-stream")
            case "DELETE":
                if not self.is_down:
                    self.files.pop(name, None)
                await _answer(send, 204, b"", None)
            case _:
                await _answer(send, 404, b'{"error":"Not Found"}', "application/json")

    async def _put(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        kind = dict(scope["headers"]).get(b"content-type", b"").decode()
        self.puts.append(kind)
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if kind not in self._taken:
            await _answer(send, 415, b'{"error":"Unsupported Media Type"}', "application/json")
        elif len(body) > BODY_BYTES_MAX:
            await _answer(send, 413, b'{"error":"Payload Too Large"}', "application/json")
        elif self.is_down:
            await _answer(send, 500, b'{"error":"Failed to upload"}', "application/json")
        else:
            self.files[name] = body
            cid = BlobId.of(body).to_text("base58btc")
            await _answer(send, 201, f'{{"cid":"{cid}","path":"{name}"}}'.encode(), "application/json")


def old_gateway() -> Bridge:
    """One that takes what the gateway's first client sends, and nothing else."""
    return Bridge(("application/cbor",))


async def _answer(send: Send, status: int, body: bytes, kind: str | None) -> None:
    headers: list[Any] = [] if kind is None else [(b"content-type", kind.encode())]
    if status != 204:
        headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

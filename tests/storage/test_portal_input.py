"""Whatever a client sends, the portal answers: no request ends in an exception, and what is malformed is a 4xx."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from fabstir_vectordb.portal.app import create_app
from fabstir_vectordb.s5.cid import BlobId, multibase_encode

SEED = 20_261_126
KEPT = BlobId.of(b"kept")
CID = multibase_encode(KEPT.to_old_bytes(), "base58btc")
#: Texts that parsers trip over: digits without end, other scripts, halves of characters, escapes, other places.
TEXTS = (
    "",
    ".",
    "..",
    "%",
    "%00",
    "%2e%2e%2f",
    "%ff%fe",
    "%ed%a0%80",
    "z",
    "u",
    "uW4Ie",
    "z" + "1" * 600,
    "b" + "=" * 50,
    "u" + "A" * 511,
    "9" * 5_000,
    "٣٤",
    "²",
    "ä" * 300,
    "\ufffd",
    "-1",
    "1e309",
    "NaN",
    "null",
    "[" * 50,
    CID,
    CID + ".",
    CID[:-1],
    base64.urlsafe_b64encode(bytes(33)).decode(),
    base64.urlsafe_b64encode(b"\x1f" + KEPT.hash).decode().rstrip("="),
)
DOCUMENTS = (
    b"",
    b"null",
    b"[]",
    b"{}",
    b'"x"',
    b"\xff\xfe",
    b"\x00" * 10,
    b"[" * 20_000,
    b'{"a":' * 20_000,
    b'{"revision": ' + b"9" * 5_000 + b"}",
    b'{"pk": "\\ud800", "pubKey": "\\ud800", "data": "", "signature": "", "revision": 1}',
    json.dumps({"pk": None, "data": [], "signature": {}, "revision": True, "pubKey": 3}).encode(),
    json.dumps({"pk": "A" * 44, "data": "A" * 5_000, "signature": "A" * 86, "revision": -1}).encode(),
    json.dumps({"pk": "7Q" + "A" * 42, "data": "", "signature": "A" * 86, "revision": 1.5}).encode(),
    json.dumps({"pubKey": "7Q" + "A" * 42, "response": "AA", "signature": "AA"}).encode(),
)
TYPES = (
    "",
    "multipart/form-data",
    "Multipart/Form-Data; boundary=",
    'multipart/form-data; boundary="x',
    "multipart/form-data; boundary=" + "x" * 5_000,
    "multipart/form-data; boundary=\xe4",
    "application/json; charset=utf-99",
)
RANGES = ("bytes=", "bytes=-", "bytes=0-" + "9" * 5_000, "bytes=" + "9" * 5_000 + "-", "bytes=\xb2-", "bytes=5-1")
ROUTES = (
    ("GET", "/{}"),
    ("GET", "/s5/blob/{}"),
    ("GET", "/s5/download/{}"),
    ("GET", "/s5/storage/{}"),
    ("GET", "/s5/debug/storage_locations/{}"),
    ("GET", "/s5/registry?pk={}"),
    ("GET", "/s5/account/register?pubKey={}"),
    ("GET", "/s5/account/login?pubKey={}"),
    ("GET", "/s5/fs/{}"),
    ("GET", "/s5/fs/{}/"),
    ("HEAD", "/s5/fs/{}"),
    ("DELETE", "/s5/fs/{}"),
    ("DELETE", "/s5/delete/{}"),
    ("PUT", "/s5/fs/{}"),
    ("POST", "/s5/fs/{}"),
    ("POST", "/s5/upload?{}"),
    ("POST", "/s5/upload/tus?{}"),
    ("HEAD", "/s5/upload/tus/{}"),
    ("PATCH", "/s5/upload/tus/{}"),
    ("POST", "/s5/registry?auth_token={}"),
    ("POST", "/s5/account/register?x={}"),
    ("POST", "/s5/account/login?x={}"),
)


def _requests() -> Iterator[dict[str, Any]]:
    choice = random.Random(SEED)
    for method, route in ROUTES:
        for text in TEXTS:
            headers = {
                "content-type": choice.choice(TYPES),
                "range": choice.choice(RANGES),
                "cookie": choice.choice(("", ";;=", "s5-auth-token=\xff", "a" * 5_000)),
                "authorization": choice.choice(("", "Bearer", "Bearer \xff", "Basic x")),
                "if-none-match": choice.choice(("", "*", '"', 'W/"\xff"')),
            }
            if "tus" in route:
                headers |= {"tus-resumable": "1.0.0", "content-type": "application/offset+octet-stream"}
                numbers = ("", "0", "7", "-1", "\xb2", "9" * 5_000)
                headers |= {"upload-length": choice.choice(numbers), "upload-offset": choice.choice(numbers)}
                headers["upload-metadata"] = choice.choice(("", "hash", "hash \xff", "hash =", "hash QUFBQQ==", ","))
            content = choice.choice(DOCUMENTS) if method in ("PUT", "POST", "PATCH") else None
            raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items() if value]
            yield {"method": method, "url": route.format(text), "headers": raw, "content": content}


@pytest.mark.parametrize("accounts", [False, True])
def test_no_input_ends_in_an_exception(tmp_path: Path, accounts: bool) -> None:
    app = create_app(tmp_path, accounts=accounts)
    statuses: dict[int, int] = {}

    async def ask() -> None:
        # Raises what the application raises.
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            await client.put("/s5/fs/home/kept", content=b"kept")
            for request in _requests():
                answer = await client.request(**request)
                assert answer.status_code < 500, (request, answer.text)
                statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1

    anyio.run(ask)
    assert {200, 400, 404} <= statuses.keys() or accounts
    assert {entry.name for entry in tmp_path.iterdir()} <= {"blobs", "gateway", "uploads", "accounts", "tmp"}


def test_a_disk_that_fails_is_a_500_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path))

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.put("/s5/fs/home/kept", content=b"kept")

    monkeypatch.setattr("fabstir_vectordb.portal.gateway.GatewayFiles.set", full)
    answer = anyio.run(ask)
    assert answer.status_code == 500
    assert "No space left" in answer.text
    assert str(tmp_path) not in answer.text

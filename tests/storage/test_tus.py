"""Resumable uploads through the portal, as the tus clients of S5 nodes and of Fabstir's bridge make them."""

from __future__ import annotations

import base64
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import serving

from fabstir_vectordb.portal import tus
from fabstir_vectordb.s5.cid import BlobId, multibase_encode

DATA = bytes(range(256)) * 10_000
BLOB = BlobId.of(DATA)
TUS = {"Tus-Resumable": "1.0.0"}


def named(blob: BlobId, code: int = 0x1F) -> dict[str, str]:
    """Upload-Metadata with a hash: base64 of the text that is the base64url of the multihash."""
    text = base64.urlsafe_b64encode(bytes([code]) + blob.hash).rstrip(b"=")
    return {"Upload-Metadata": f"filename {base64.b64encode(b'x').decode()},hash {base64.b64encode(text).decode()}"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("portal")


@pytest.fixture(scope="module")
def client(root: Path) -> Iterator[httpx.Client]:
    with serving(root) as address, httpx.Client(base_url=address, headers=TUS) as client:
        yield client


def create(client: httpx.Client, size: int, **headers: str) -> str:
    answer = client.post("/s5/upload/tus", headers={"Upload-Length": str(size), **headers})
    assert (answer.status_code, answer.headers["tus-resumable"]) == (201, "1.0.0"), answer.text
    assert "GMT" in answer.headers["upload-expires"]
    return answer.headers["location"]


def append(client: httpx.Client, location: str, offset: int, content: bytes, **headers: str) -> httpx.Response:
    given = {"Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream", **headers}
    return client.patch(location, headers=given, content=content)


def offset(client: httpx.Client, location: str) -> int:
    answer = client.head(location)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    return int(answer.headers["upload-offset"])


def stored(client: httpx.Client, blob: BlobId) -> bytes:
    found = client.get(f"/s5/download/{multibase_encode(blob.to_old_bytes(), 'base58btc')}")
    return found.content if found.status_code == 200 else b"nothing"


def left(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "uploads").iterdir())


def test_an_upload_in_pieces_becomes_a_blob(client: httpx.Client, root: Path) -> None:
    for code in (0x1F, 0x1E):
        data = DATA + bytes([code])
        blob = BlobId.of(data)
        location = create(client, len(data), **named(blob, code))
        for start in range(0, len(data), 1_500_000):
            assert offset(client, location) == start
            answer = append(client, location, start, data[start : start + 1_500_000])
            assert answer.status_code == 204
        assert answer.headers["upload-offset"] == str(len(data))
        assert answer.headers["x-s5-cid"] == blob.to_text("base32")
        assert stored(client, blob) == data
        assert client.head(location).status_code == 404
        # As on a node: what is there is not uploaded again.
        again = client.post("/s5/upload/tus", headers={"Upload-Length": str(len(data)), **named(blob)})
        assert again.status_code == 409
    assert left(root) == []


def test_an_upload_without_a_hash_or_without_bytes_says_its_cid(client: httpx.Client) -> None:
    location = create(client, 5)
    assert append(client, location, 0, b"hello").headers["x-s5-cid"] == BlobId.of(b"hello").to_text("base32")
    answer = client.post("/s5/upload/tus", headers={"Upload-Length": "0"})
    assert answer.headers["x-s5-cid"] == BlobId.of(b"").to_text("base32")
    assert stored(client, BlobId.of(b"")) == b""


def test_a_broken_upload_goes_on_where_it_broke_after_a_restart(tmp_path: Path) -> None:
    half = len(DATA) // 2
    with serving(tmp_path) as address, httpx.Client(base_url=address, headers=TUS) as client:
        location = create(client, len(DATA), **named(BLOB))
        head = f"PATCH {location} HTTP/1.1\r\nHost: localhost\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n"
        head += f"Content-Type: application/offset+octet-stream\r\nContent-Length: {len(DATA)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as connection:
            connection.sendall(head.encode() + DATA[:half])
            assert _soon(lambda: offset(client, location) > 0)
            assert append(client, location, 0, b"x").status_code == 423
        assert _soon(lambda: offset(client, location) == half)
    with serving(tmp_path) as address, httpx.Client(base_url=address, headers=TUS) as client:
        assert offset(client, location) == half
        assert append(client, location, half, DATA[half:]).status_code == 204
        assert stored(client, BLOB) == DATA


def test_an_upload_that_was_complete_when_the_disk_failed_is_stored_when_it_is_asked_for(
    client: httpx.Client, root: Path
) -> None:
    data = b"complete"
    location = create(client, len(data), **named(BlobId.of(data)))
    (path,) = (root / "uploads").iterdir()
    path.write_bytes(data)
    assert offset(client, location) == len(data)
    assert stored(client, BlobId.of(data)) == data
    assert left(root) == []


def test_bytes_that_are_not_those_of_the_hash_are_refused_and_removed(client: httpx.Client, root: Path) -> None:
    honest = BlobId.of(b"honest bytes")
    location = create(client, 12, **named(honest))
    answer = append(client, location, 0, b"other bytes!")
    assert answer.status_code == 400
    assert client.head(location).status_code == 404
    assert stored(client, honest) == stored(client, BlobId.of(b"other bytes!")) == b"nothing"
    assert left(root) == []


def test_what_does_not_fit_is_refused(client: httpx.Client, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    location = create(client, 10)
    assert append(client, location, 0, b"01234").status_code == 204
    for refused, status in (
        (append(client, location, 0, b"56789"), 409),
        (append(client, location, 6, b"6789"), 409),
        (append(client, location, 5, b"56789+"), 400),
        (append(client, location, 5, b"56789", **{"Content-Type": "text/plain"}), 415),
        (append(client, location, 5, b"56789", **{"Upload-Offset": "five"}), 400),
        (append(client, location, 5, b"56789", **{"Tus-Resumable": "0.2.2"}), 412),
        (client.head(location, headers={"Tus-Resumable": "2.0.0"}), 412),
        (append(client, "/s5/upload/tus/" + "0" * 32, 0, b"x"), 404),
        (append(client, "/s5/upload/tus/..%2Faccounts", 0, b"x"), 404),
    ):
        assert refused.status_code == status
    assert offset(client, location) == 5
    assert append(client, location, 5, b"56789").status_code == 204

    monkeypatch.setattr(tus, "BLOB_BYTES_MAX", 1_000)
    wrong: list[tuple[dict[str, str], int]] = [
        ({"Upload-Length": "1001"}, 413),
        ({"Upload-Length": "9" * 5_000}, 400),
        ({"Upload-Length": "-1"}, 400),
        ({"Upload-Length": "²"}, 400),
        ({}, 400),
        ({"Upload-Length": "5", "Upload-Metadata": "hash"}, 400),
        ({"Upload-Length": "5", "Upload-Metadata": "hash !!!"}, 400),
        ({"Upload-Length": "5", "Upload-Metadata": "hash " + base64.b64encode(b"AAAA").decode()}, 400),
        ({"Upload-Length": "5", "Upload-Metadata": "x" * 5_000}, 400),
        ({"Upload-Length": "5", "Tus-Resumable": "0.1"}, 412),
    ]
    for headers, status in wrong:
        raw = [(name, value.encode()) for name, value in headers.items()]
        assert client.post("/s5/upload/tus", headers=raw).status_code == status, headers
    assert left(root) == []
    assert client.options("/s5/upload/tus").headers["tus-extension"] == "creation,expiration"


def test_unfinished_uploads_are_few_and_expire(
    client: httpx.Client, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tus, "UPLOADS_MOST", 3)
    locations = [create(client, 10) for _ in range(3)]
    refused = client.post("/s5/upload/tus", headers={"Upload-Length": "10"})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "60")
    for path in (root / "uploads").iterdir():
        if locations[0].endswith(path.name[:32]):
            os.utime(path, (0, time.time() - tus.EXPIRES_S - 1))
    assert client.head(locations[0]).status_code == 404
    create(client, 10)
    assert len(left(root)) == 3
    assert not any(name.startswith(locations[0][-32:]) for name in left(root))


def test_only_who_has_the_token_begins_an_upload(tmp_path: Path) -> None:
    with serving(tmp_path, "sesame") as address, httpx.Client(base_url=address, headers=TUS) as client:
        assert client.post("/s5/upload/tus", headers={"Upload-Length": "5"}).status_code == 401
        location = create(client, 5, Authorization="Bearer sesame")
        # As on a node, whoever knows the upload's address may go on.
        assert append(client, location, 0, b"hello").status_code == 204


def _soon(holds: Any) -> bool:
    for _ in range(500):
        if holds():
            return True
        threading.Event().wait(0.01)
    return False

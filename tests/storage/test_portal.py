"""The package's portal, asked as other S5 clients ask: statuses, forms and oddities of the S5 reference."""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

pytest.register_assert_rewrite("contract")

from contract import PUBLIC_KEY, entry  # noqa: E402
from serving import serving  # noqa: E402

from fabstir_vectordb.portal import app  # noqa: E402
from fabstir_vectordb.portal.server import listen  # noqa: E402
from fabstir_vectordb.s5.cid import BlobId, multibase_encode  # noqa: E402

SMALL, LARGE = b"hello", bytes(range(256)) * 1_100
NOWHERE = BlobId.of(b"nowhere")
PK = base64.urlsafe_b64encode(PUBLIC_KEY).decode().rstrip("=")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with (
        serving(tmp_path_factory.mktemp("portal")) as address,
        httpx.Client(base_url=address, follow_redirects=False) as client,
    ):
        yield client


def old(blob: BlobId) -> str:
    return multibase_encode(blob.to_old_bytes(), "base58btc")


def upload(client: httpx.Client, data: bytes) -> BlobId:
    answer = client.post("/s5/upload", files={"file": ("file", data, "application/octet-stream")})
    assert (answer.status_code, answer.json()) == (200, {"cid": old(BlobId.of(data))})
    return BlobId.of(data)


@pytest.mark.parametrize("data", [b"", SMALL, LARGE, b"\r\n--boundary\r\n\r\n--\r\n"])
def test_uploads_come_back_by_every_route_in_every_form(client: httpx.Client, data: bytes) -> None:
    blob = upload(client, data)
    assert client.post("/s5/upload", content=data).json() == {"cid": old(blob)}
    unsized = multibase_encode(b"\x5b\x82\x1f" + blob.hash + b"\0", "base58btc")
    for text in (old(blob), str(blob), blob.to_text("base32"), blob.to_text("base58btc"), unsized):
        found = client.get(f"/s5/blob/{text}.bin")
        assert found.status_code == 307
        assert client.get(found.headers["location"]).content == data
        for path in (f"/s5/download/{text}", f"/{text}", f"/{text}.txt"):
            answer = client.get(path)
            assert (answer.status_code, answer.content) == (200, data)
    multihash = base64.urlsafe_b64encode(b"\x1f" + blob.hash).decode().rstrip("=")
    assert client.get(f"/s5/download/{old(blob)}").headers["etag"] == f'"{multihash}"'
    (place,) = client.get(f"/s5/debug/storage_locations/{multihash}").json()["locations"]
    assert httpx.get(place["parts"][0]).content == data


def test_the_file_of_a_form_is_found_among_others(client: httpx.Client) -> None:
    parts = {"note": (None, b"not this"), "file": ("name.txt", SMALL, "text/plain"), "more": ("file", b"nor this")}
    assert client.post("/s5/upload", files=parts).json() == {"cid": old(BlobId.of(SMALL))}
    assert client.post("/s5/upload", files={"other": ("file", SMALL)}).status_code == 400
    for kind in ("multipart/form-data", "multipart/form-data; boundary=x"):
        assert client.post("/s5/upload", content=b"--x\r\n", headers={"content-type": kind}).status_code == 400


def test_what_is_not_there(client: httpx.Client) -> None:
    for path in (f"/s5/blob/{old(NOWHERE)}", f"/s5/download/{old(NOWHERE)}", f"/{old(NOWHERE)}", "/s5/unknown/route"):
        assert client.get(path).status_code == 404
    multihash = base64.urlsafe_b64encode(b"\x1f" + NOWHERE.hash).decode().rstrip("=")
    assert client.get(f"/s5/debug/storage_locations/{multihash}").json() == {"locations": []}
    assert client.get("/s5/download/nonsense").status_code == 400
    assert client.delete(f"/s5/delete/{old(NOWHERE)}").status_code == 404


def test_every_download_route_serves_ranges_and_conditions(client: httpx.Client) -> None:
    size, blob = len(LARGE), upload(client, LARGE)
    assert client.put("/s5/fs/home/large", content=LARGE).status_code == 201
    storage = client.get(f"/s5/blob/{old(blob)}").headers["location"]
    tag = client.head(storage).headers["etag"]
    many = "9" * 5_000
    for path in (storage, f"/s5/download/{old(blob)}", f"/{old(blob)}", "/s5/fs/home/large"):

        def asked(path: str = path, **headers: str) -> httpx.Response:
            return client.get(path, headers={name.replace("_", "-"): value for name, value in headers.items()})

        for wanted, part in (
            ("bytes=10-19", slice(10, 20)),
            (f"bytes={size - 3}-", slice(size - 3, size)),
            ("bytes=-3", slice(size - 3, size)),
            (f"bytes=-{size + 1}", slice(0, size)),
            (f"bytes=5-{size + 7}", slice(5, size)),
        ):
            answer = asked(Range=wanted)
            assert (answer.status_code, answer.content) == (206, LARGE[part])
            assert answer.headers["content-range"] == f"bytes {part.start}-{part.stop - 1}/{size}"
        for wrong in (
            "bytes=5",
            "bytes=-",
            "bytes=-0",
            f"bytes={size}-",
            "bytes=5-4",
            f"bytes={many}-",
            f"bytes=0-{many}",
        ):
            refused = asked(Range=wrong)
            assert (refused.status_code, refused.headers["content-range"]) == (416, f"bytes */{size}")
        for ignored in ({"Range": "lines=1-2"}, {"Range": "bytes=0-1,4-5"}, {"Range": "bytes=0-1", "If_Range": '"x"'}):
            assert (asked(**ignored).status_code, asked(**ignored).content) == (200, LARGE)
        assert asked(Range="bytes=0-1", If_Range=tag).content == LARGE[:2]
        for known in (tag, f'"x", W/{tag}', "*"):
            unchanged = asked(If_None_Match=known)
            assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", tag)
        assert asked(If_None_Match='"x"').content == LARGE
        head = client.head(path)
        assert (head.headers["content-length"], head.headers["accept-ranges"], head.content) == (
            str(size),
            "bytes",
            b"",
        )
    assert client.get(f"/{old(upload(client, SMALL))}", headers={"Range": "bytes=1-2"}).content == SMALL[1:3]
    assert client.get(f"/{old(upload(client, b''))}", headers={"Range": "bytes=0-"}).status_code == 416


def test_an_upload_that_is_too_large_is_refused(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "UPLOAD_BYTES_MAX", 100)
    for sent in ({"content": bytes(101)}, {"content": bytes(5_000)}, {"files": {"file": ("file", bytes(101))}}):
        assert client.post("/s5/upload", **sent).status_code == 500  # type: ignore[arg-type]
    assert client.post("/s5/upload", content=bytes(100)).status_code == 200


def test_the_registry_takes_higher_revisions_only(client: httpx.Client) -> None:
    empty = client.get("/s5/registry", params={"pk": PK})
    assert (empty.status_code, empty.content) == (404, b"")
    assert client.post("/s5/registry", json=entry(3).to_portal_json()).status_code == 204
    assert client.get("/s5/registry", params={"pk": PK}).json() == entry(3).to_portal_json()
    forged = {**entry(5).to_portal_json(), "revision": 6}
    for refused in (entry(3).to_portal_json(), entry(2).to_portal_json()):
        assert client.post("/s5/registry", json=refused).status_code == 500
    for malformed in (forged, {}, [], {**entry(5).to_portal_json(), "revision": 2**70}):
        assert client.post("/s5/registry", json=malformed).status_code == 400
    for text in (b"", b"{", b"[" * 100_000, b'{"revision": ' + b"9" * 5_000 + b"}", b"\xff"):
        assert client.post("/s5/registry", content=text).status_code == 400
    too_low = client.post("/s5/registry", json=entry(3).to_portal_json())
    assert "Revision number too low" in too_low.text
    assert client.get("/s5/registry", params={"pk": "AAAA"}).status_code == 400


def test_answers_leave_without_waiting_for_acknowledgements() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_who_it_is(client: httpx.Client) -> None:
    assert list(client.get("/s5/version").json()) == ["node"]
    assert client.get("/").status_code == 200
    assert client.get("/s5/account/register", params={"pubKey": PK}).status_code == 404


def test_a_token_is_taken_from_header_cookie_or_query(tmp_path: Path) -> None:
    with serving(tmp_path, token="sesame") as address, httpx.Client(base_url=address) as client:
        denied = client.post("/s5/upload", content=SMALL)
        assert denied.status_code == 401
        assert list(denied.json()) == ["error"]
        for given in (
            {"headers": {"Authorization": "Bearer sesame"}},
            {"headers": {"Authorization": "bEARER  sesame"}},
            {"headers": {"Cookie": "s5-auth-token=sesame"}},
            {"params": {"auth_token": "sesame"}},
        ):
            assert client.post("/s5/upload", content=SMALL, **given).status_code == 200  # type: ignore[arg-type]
        for wrong in ("sesame", "Basic sesame", "Bearer", "Bearersesame"):
            assert client.post("/s5/upload", content=SMALL, headers={"Authorization": wrong}).status_code == 401
        # Reading by redirect and pointers are open to all; the rest is not.
        assert client.get(f"/s5/blob/{old(BlobId.of(SMALL))}").status_code == 307
        assert client.get("/s5/registry", params={"pk": PK}).status_code == 404
        for path in (f"/s5/download/{old(BlobId.of(SMALL))}", f"/{old(BlobId.of(SMALL))}", "/s5/fs/home/x"):
            assert client.get(path).status_code == 401


def test_a_gateways_path_leads_nowhere_else(client: httpx.Client, tmp_path: Path) -> None:
    with serving(tmp_path / "served") as address:
        for path in ("home/%2e%2e/%2e%2e/x", "%2e%2e%2f%2e%2e%2fx", "%2fx", "home/a%2Fb", "home/%00", "home/%ff"):
            assert httpx.put(f"{address}/s5/fs/{path}", content=b"x").status_code in (201, 404, 405)
    assert [place.name for place in tmp_path.iterdir()] == ["served"]
    assert {place.name for place in (tmp_path / "served").iterdir()} == {"blobs", "gateway", "tmp"}
    assert client.put(f"/s5/fs/home/{'x' * 300}", content=b"x").status_code == 400
    # What is put is a blob like others.
    client.put("/s5/fs/home/blob", content=b"from the gateway")
    assert client.get(f"/s5/download/{old(BlobId.of(b'from the gateway'))}").content == b"from the gateway"

"""Who may talk to the portal: foreign Host and Origin headers on every route, and web pages in a real browser."""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

pytest.register_assert_rewrite("contract")

from contract import PUBLIC_KEY, entry  # noqa: E402
from serving import serving  # noqa: E402

from fabstir_vectordb.errors import InvalidConfigError, InvalidInputError  # noqa: E402
from fabstir_vectordb.portal import body, server  # noqa: E402
from fabstir_vectordb.portal.accounts import Accounts  # noqa: E402
from fabstir_vectordb.portal.app import create_app  # noqa: E402
from fabstir_vectordb.s5.cid import BlobId, multibase_encode  # noqa: E402
from fabstir_vectordb.s5.registry import RegistryEntry, pointer_data  # noqa: E402
from fabstir_vectordb.storage import open_store  # noqa: E402
from fabstir_vectordb.storage.local_dir import LocalDirStore  # noqa: E402

KEPT = BlobId.of(b"kept")
OLD = multibase_encode(KEPT.to_old_bytes(), "base58btc")
REQUESTS = [
    ("GET", "/"),
    ("GET", "/health"),
    ("GET", "/s5/version"),
    ("GET", "/s5/account/login?pubKey=x"),
    ("POST", "/s5/account/register"),
    ("POST", "/s5/upload"),
    ("GET", f"/s5/blob/{OLD}"),
    ("GET", f"/s5/download/{OLD}"),
    ("GET", f"/{OLD}"),
    ("GET", "/s5/registry?pk=x"),
    ("POST", "/s5/registry"),
    ("DELETE", f"/s5/delete/{OLD}"),
    ("GET", "/s5/fs/home/"),
    ("GET", "/s5/fs/home/kept"),
    ("HEAD", "/s5/fs/home/kept"),
    ("PUT", "/s5/fs/home/kept"),
    ("DELETE", "/s5/fs/home/kept"),
    ("OPTIONS", "/s5/upload"),
    ("POST", "/s5/upload/tus"),
    ("OPTIONS", "/s5/upload/tus"),
    ("PATCH", f"/s5/upload/tus/{'0' * 32}"),
    ("GET", "/no/such/route"),
]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "portal"


def fill(client: httpx.Client) -> None:
    assert client.put("/s5/fs/home/kept", content=b"kept").status_code == 201


def state(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:5522"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "localhost.evil.example:80"},
        {"Host": "192.0.2.7:5522"},
        {"Host": "user@localhost"},
        {"Host": "localhost, evil.example"},
        {"Host": ""},
        {"Origin": "https://evil.example"},
        {"Origin": "http://localhost:1"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=repr,
)
def test_nothing_is_answered_to_what_is_foreign(root: Path, headers: dict[str, str]) -> None:
    with serving(root) as address, httpx.Client(base_url=address) as client:
        fill(client)
        before = state(root)
        for method, path in REQUESTS:
            answer = client.request(
                method, path, headers=headers, content=b"x" if method in ("PUT", "POST", "PATCH") else None
            )
            assert answer.status_code == 403, (method, path)
            assert "access-control-allow-origin" not in answer.headers
            assert b"kept" not in answer.content
        assert state(root) == before


def test_the_portals_own_pages_and_programs_that_are_no_browsers_are_let_in(root: Path) -> None:
    with serving(root) as address, httpx.Client(base_url=address) as client:
        fill(client)
        port = address.rpartition(":")[2]
        for headers in (
            {"Origin": address, "Sec-Fetch-Site": "same-origin"},
            {"Host": f"localhost:{port}", "Origin": f"http://localhost:{port}"},
            {"Host": "LOCALHOST"},
            {"Host": f"[::1]:{port}"},
            {"Host": "127.8.9.10"},
            {"Sec-Fetch-Site": "none"},
        ):
            answer = client.get("/s5/fs/home/kept", headers=headers)
            assert (answer.status_code, answer.content) == (200, b"kept")
            assert answer.headers["cross-origin-resource-policy"] == "same-origin"
            assert "access-control-allow-origin" not in answer.headers


def test_allowed_hosts_and_origins_are_let_in(root: Path) -> None:
    page = "http://localhost:3000"
    with (
        serving(root, hosts=["Portal.lan", "192.0.2.7"], origins=[f"{page}/", "https://app.example"]) as address,
        httpx.Client(base_url=address) as client,
    ):
        fill(client)
        for host in ("portal.lan:5522", "192.0.2.7"):
            assert client.get("/s5/version", headers={"Host": host}).status_code == 200
        assert client.get("/s5/version", headers={"Host": "192.0.2.8"}).status_code == 403
        cross = {"Origin": page, "Sec-Fetch-Site": "same-site"}
        answer = client.get("/s5/fs/home/kept", headers=cross)
        assert (answer.content, answer.headers["access-control-allow-origin"]) == (b"kept", page)
        preflight = client.options(
            "/s5/fs/home/kept",
            headers={
                **cross,
                "Access-Control-Request-Method": "PUT",
                "Access-Control-Request-Headers": "authorization, content-type",
                "Access-Control-Request-Private-Network": "true",
            },
        )
        assert preflight.is_success
        assert preflight.headers["access-control-allow-origin"] == page
        assert "PUT" in preflight.headers["access-control-allow-methods"]
        assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
        assert preflight.headers["access-control-allow-private-network"] == "true"
        assert client.get("/s5/version", headers={"Origin": "https://other.example"}).status_code == 403
    with serving(root, hosts=["0.0.0.0"]) as address, httpx.Client(base_url=address) as client:
        # Listening on every address: a page cannot take an address for its name.
        assert client.get("/s5/version", headers={"Host": "192.0.2.8:5522"}).status_code == 200
        assert client.get("/s5/version", headers={"Host": "evil.example"}).status_code == 403


@pytest.mark.parametrize("settings", [{"hosts": ["a b"]}, {"hosts": ["a:80"]}, {"origins": ["*"]}, {"origins": ["x"]}])
def test_what_is_neither_host_nor_origin_is_refused(root: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfigError):
        create_app(root, **settings)


def test_the_command_takes_hosts_and_origins_to_allow(root: Path) -> None:
    command = [sys.executable, "-m", "fabstir_vectordb", "portal", str(root), "--port", "0"]
    allowed = ["--allow-host", "portal.lan", "--allow-origin", "http://localhost:3000", "--allow-origin", "http://b"]
    with subprocess.Popen([*command, *allowed], stdout=subprocess.PIPE, text=True) as served:
        try:
            assert served.stdout is not None
            found = re.search(r"http://127\.0\.0\.1:\d+", served.stdout.readline())
            assert found is not None
            for headers, status in (
                ({}, 200),
                ({"Host": "portal.lan"}, 200),
                ({"Origin": "http://b"}, 200),
                ({"Host": "evil.example"}, 403),
                ({"Origin": "http://localhost:3001"}, 403),
            ):
                assert httpx.get(f"{found[0]}/s5/version", headers=headers).status_code == status
        finally:
            served.terminate()
    refused = subprocess.run([*command, "--allow-origin", "*"], capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "an allowed origin must be" in refused.stderr


# ---- in a browser

_PAGE = """<!doctype html><title>page</title><script>
const target = {target};
const tries = {
  read: () => fetch(target + "/s5/fs/home/kept").then(a => a.text()),
  list: () => fetch(target + "/s5/fs/home/").then(a => a.text()),
  put: () => fetch(target + "/s5/fs/home/new", {method: "PUT", body: "new"}).then(a => a.text()),
  upload: () => fetch(target + "/s5/upload", {method: "POST", body: "evil upload"}).then(a => a.text()),
  blind: () => fetch(target + "/s5/upload", {method: "POST", body: "evil upload", mode: "no-cors"}).then(a => a.text()),
  remove: () => fetch(target + "/s5/fs/home/kept", {method: "DELETE"}).then(a => a.text()),
  forget: () => fetch(target + "/s5/delete/" + {cid}, {method: "DELETE"}).then(a => a.text()),
};
(async () => {
  const found = {};
  for (const [name, attempt] of Object.entries(tries))
    try { found[name] = await attempt(); } catch (error) { found[name] = "refused " + error; }
  await fetch("/report", {method: "POST", body: JSON.stringify(found)});
})();
</script>"""


class _Pages(http.server.BaseHTTPRequestHandler):
    """Serves one page, and takes what it reports."""

    def __init__(self, pages: Any, *args: Any) -> None:
        self._pages = pages
        super().__init__(*args)

    def do_GET(self) -> None:
        body = self._pages["page"].encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self._pages["report"] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        self._pages["done"].set()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def _pages(page: str) -> Iterator[tuple[str, dict[str, Any]]]:
    pages: dict[str, Any] = {"page": page, "done": threading.Event(), "report": None}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Pages, pages)) as page_server:
        thread = threading.Thread(target=page_server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{page_server.server_address[1]}", pages
        page_server.shutdown()


def _browse(url: str, done: threading.Event) -> None:
    """Opens a page in Chromium until it has reported."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--no-proxy-server",
            "--disable-background-networking",
            "--disable-component-update",
            f"--user-data-dir={profile}",
            "--remote-debugging-port=0",  # without it, headless ends as soon as the page is there
            "--host-resolver-rules=MAP evil.example 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            url,
        ]
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            assert done.wait(120), "the page has reported nothing"
        finally:
            browser.terminate()
            try:
                browser.wait(20)
            except subprocess.TimeoutExpired:
                browser.kill()
                browser.wait()


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is missing (apt-get install chromium)")
def test_no_page_of_another_origin_can_read_write_or_delete_in_a_browser(root: Path) -> None:
    with serving(root) as address, httpx.Client(base_url=address) as client:
        fill(client)
        before = state(root)
        page = _PAGE.replace("{target}", json.dumps(address)).replace("{cid}", json.dumps(OLD))
        with _pages(page) as (elsewhere, pages):
            _browse(f"http://evil.example:{elsewhere.rpartition(':')[2]}/", pages["done"])
        assert set(pages["report"]) == {"read", "list", "put", "upload", "blind", "remove", "forget"}
        assert "kept" not in json.dumps(pages["report"])
        for name, outcome in pages["report"].items():
            assert outcome.startswith("refused") or (name == "blind" and outcome == ""), (name, outcome)
        assert state(root) == before


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is missing (apt-get install chromium)")
def test_no_page_under_a_rebound_name_can_read_write_or_delete_in_a_browser(root: Path) -> None:
    # The page's own origin leads to the portal from now on: what it asks for is "same-origin" to the browser. A server
    # in front gives out the page and the report, and passes all the rest on to the portal as it came.
    with serving(root) as address, httpx.Client(base_url=address) as client:
        fill(client)
        before = state(root)
        page = _PAGE.replace("{target}", '""').replace("{cid}", json.dumps(OLD))
        with _in_front(address, page) as (port, pages):
            _browse(f"http://evil.example:{port}/page", pages["done"])
        assert len(pages["report"]) == 7
        for name, outcome in pages["report"].items():
            assert "foreign to this portal" in outcome, (name, outcome)
        assert state(root) == before


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is missing (apt-get install chromium)")
def test_an_allowed_page_can_read_and_write_in_a_browser(root: Path) -> None:
    page = _PAGE.replace("{cid}", json.dumps(OLD))
    with _pages("") as (elsewhere, pages):
        origin = f"http://evil.example:{elsewhere.rpartition(':')[2]}"
        with serving(root, origins=[origin]) as address, httpx.Client(base_url=address) as client:
            fill(client)
            pages["page"] = page.replace("{target}", json.dumps(address))
            _browse(f"{origin}/", pages["done"])
            assert pages["report"]["read"] == "kept"
            assert not pages["report"]["put"].startswith("refused")
            assert client.get("/s5/fs/home/new").content == b"new"


@contextmanager
def _in_front(address: str, page: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Gives out a page and takes its report; every other request goes to the portal with the headers it came with."""
    pages: dict[str, Any] = {"done": threading.Event(), "report": None}

    class Passing(http.server.BaseHTTPRequestHandler):
        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path == "/page":
                self._send(200, page.encode(), "text/html")
                return
            if self.path == "/report":
                pages["report"] = json.loads(body)
                self._send(204, b"", "text/plain")
                pages["done"].set()
                return
            headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            answer = httpx.request(self.command, address + self.path, headers=headers, content=body)
            self._send(answer.status_code, answer.content, "text/plain")

        def _send(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_DELETE = _pass_on

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Passing) as front:
        threading.Thread(target=front.serve_forever, daemon=True).start()
        yield front.server_address[1], pages
        front.shutdown()


# ---- clients that do not end what they began


def _closes(connection: socket.socket, within_s: float = 20) -> bool:
    connection.settimeout(within_s)
    try:
        while connection.recv(65_536):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET / HT",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n",
        b"POST /s5/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf",
        b"PUT /s5/fs/home/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhalf",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HT",
    ],
)
def test_a_request_that_is_never_finished_is_closed(root: Path, monkeypatch: pytest.MonkeyPatch, begun: bytes) -> None:
    monkeypatch.setattr(server, "HEAD_S", 0.2)
    monkeypatch.setattr(body, "BODY_S", 0.2)
    with serving(root) as address:
        port = int(address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(begun)
            assert _closes(connection)
    assert not list(root.rglob("x"))


def test_an_answer_that_is_not_taken_is_given_up(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "TAKE_S", 0.2)
    large = os.urandom(16_000_000)
    with serving(root) as address:
        blob = BlobId.of(large)
        LocalDirStore(root)._put(large)
        cid = multibase_encode(blob.to_old_bytes(), "base58btc")
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            connection.connect(("127.0.0.1", int(address.rpartition(":")[2])))
            connection.sendall(f"GET /s5/download/{cid} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            threading.Event().wait(1.5)
            connection.settimeout(20)
            received = 0
            try:
                while piece := connection.recv(65_536):
                    received += len(piece)
            except ConnectionError:
                pass
            assert received < len(large)
        # Who takes it gets all of it.
        assert httpx.get(f"{address}/s5/download/{cid}").content == large


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_old_and_bare_requests_are_answered(root: Path, version: bytes) -> None:
    with serving(root) as address, socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as one:
        host = b"" if version == b"1.0" else b"Host: localhost\r\n"
        one.sendall(b"PUT /s5/fs/home/empty HTTP/" + version + b"\r\n" + host + b"Connection: close\r\n\r\n")
        one.settimeout(20)
        assert b" 201 Created" in one.recv(65_536)


# ---- accounts and revisions


def test_tokens_outlive_a_restart_and_stand_nowhere_in_clear(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accounts = Accounts(root)
    tokens = [_register(accounts, number) for number in range(3)]
    again = Accounts(root)
    assert all(again.knows(token) for token in tokens)
    assert not again.knows("S5Aother")
    assert not again.knows("\ud800")
    written = b"".join(state(root).values()) + "".join(state(root)).encode()
    assert all(token.encode() not in written for token in tokens)
    if sys.platform != "win32":
        assert {file.stat().st_mode & 0o77 for file in (root / "tokens").iterdir()} == {0}
    now = time.time()
    monkeypatch.setattr("fabstir_vectordb.portal.accounts.time.time", lambda: now + 31 * 24 * 60 * 60)
    assert not again.knows(tokens[0])
    assert not Accounts(root).knows(tokens[0])
    assert not list((root / "tokens").iterdir())


def test_of_too_many_tokens_the_oldest_go(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fabstir_vectordb.portal.accounts._REMEMBERED_MOST", 2)
    accounts = Accounts(root)
    tokens = [_register(accounts, number) for number in range(3)]
    assert [accounts.knows(token) for token in tokens] == [False, True, True]
    assert len(list((root / "tokens").iterdir())) == 2


def _register(accounts: Accounts, number: int) -> str:
    from fabstir_vectordb.portal.accounts import REGISTER
    from fabstir_vectordb.s5.keys import ed25519_public_key, ed25519_sign, portal_challenge_response

    seed = bytes([number]) * 32
    key = ed25519_public_key(seed)
    response = portal_challenge_response(REGISTER, accounts.challenge(REGISTER, key), "localhost")
    return accounts.prove(REGISTER, key, response, ed25519_sign(seed, response), "localhost")


def test_the_portal_takes_revisions_as_nodes_do_and_the_client_writes_none_of_them(root: Path) -> None:
    def signed(revision: int) -> dict[str, Any]:
        return RegistryEntry.sign(b"s" * 32, revision, pointer_data(bytes(32))).to_portal_json()

    with serving(root) as address, httpx.Client(base_url=address) as client:
        for revision in (2**31, 2**48):
            assert client.post("/s5/registry", json=signed(revision)).status_code == 204
        assert client.post("/s5/registry", json=signed(2**48 + 1)).status_code == 400

        async def read_and_move() -> None:
            async with aclosing(open_store(f"portal+{address}")) as store:
                found = await store.get_pointer(PUBLIC_KEY)
                assert found is not None
                assert found.revision == 2**48
                with pytest.raises(InvalidInputError, match="revision"):
                    await store.set_pointer(entry(2**31))

        anyio.run(read_and_move)


def test_a_gateways_list_names_files_and_directories(root: Path) -> None:
    with serving(root) as address, httpx.Client(base_url=address) as client:
        for path, content in (("home/a", b"1"), ("home/b/c", b"22"), ("home/b/d/e", b"333"), ("home/b.bin", b"")):
            put = client.put(f"/s5/fs/{path}", content=content)
            assert put.status_code == 201
            stored = {"path": path, "size": len(content), "cid": BlobId.of(content).to_text("base32")}
            assert put.json() == {"success": True, **stored}
        assert client.get("/s5/fs/home/").json() == [
            {"name": "a", "size": 1, "type": "file"},
            {"name": "b.bin", "size": 0, "type": "file"},
            {"name": "b", "size": 5, "type": "directory"},
        ]
        assert client.get("/s5/fs/nothing/").json() == []
        for _ in range(2):
            assert client.delete("/s5/fs/home/a").status_code == 204
        assert client.get("/s5/fs/home/a").status_code == 404

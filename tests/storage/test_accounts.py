"""Signing in: with the phrase's own account, at the package's portal and at what S5.js was captured with."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import nacl.bindings
import pytest
from serving import Recorder, running, serving
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from fabstir_vectordb import NotFoundError, S5Error, VectorDBSession
from fabstir_vectordb.portal.accounts import LOGIN, REGISTER, Accounts
from fabstir_vectordb.s5.cid import BlobId, blake3_hash
from fabstir_vectordb.s5.keys import Identity, ed25519_public_key, ed25519_sign, portal_challenge_response
from fabstir_vectordb.s5.phrase import parse_phrase
from fabstir_vectordb.storage import open_store

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "s5_vectors.json").read_text("utf-8"))
PHRASE = "amid romance hotel blue most myself guess host lobby rubber hook victim about odds child"
SEED = b"a" * 32
KEY = ed25519_public_key(SEED)

pytestmark = pytest.mark.anyio


def account(seed: bytes = SEED) -> Callable[[str], Awaitable[bytes]]:
    async def give(authority: str) -> bytes:
        return seed

    return give


def raw(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


async def session_at(address: str, **fields: Any) -> VectorDBSession:
    return await VectorDBSession.create(s5_portal=address, user_seed_phrase=PHRASE, session_id="s", **fields)


async def test_a_session_signs_in_with_nothing_but_its_phrase(tmp_path: Path) -> None:
    for _ in range(2):
        # The second time the portal has been started anew and knows no token; the key it knows.
        with serving(tmp_path, accounts=True) as address:
            async with await session_at(address) as session:
                await session.load_user_vectors(missing_ok=True)
                await session.add_batch(["a"], [[1.0, 2.0]], on_conflict="replace")
                await session.save_to_s5()
    with serving(tmp_path, accounts=True) as address:
        async with await session_at(address) as session:
            await session.load_user_vectors()
            assert await session.count() == 1
    # One account for each address that this portal was reached at.
    assert 1 <= len(list((tmp_path / "accounts").glob("ed*"))) <= 3


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="flushes are watched through /proc")
def test_keys_and_tokens_are_flushed_before_the_client_gets_its_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    real = os.fsync

    def watched(descriptor: int) -> None:
        flushed.append(str(Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(tmp_path)))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    accounts = Accounts(tmp_path / "accounts")
    response = portal_challenge_response(REGISTER, accounts.challenge(REGISTER, KEY), "host")
    accounts.prove(REGISTER, KEY, response, ed25519_sign(SEED, response), "host")
    [token] = (tmp_path / "accounts" / "tokens").iterdir()
    assert flushed == [
        *(".", f"accounts/{KEY.hex()}", "accounts"),
        *("accounts", f"accounts/tokens/{token.name}", "accounts/tokens"),
    ]


async def test_reading_makes_no_account(tmp_path: Path) -> None:
    with serving(tmp_path, accounts=True) as address:
        async with aclosing(open_store(address, account_seed=account())) as owner:
            blob = await owner.put(b"x")
        async with aclosing(open_store(address, account_seed=account(b"b" * 32))) as reader:
            assert await reader.get(blob.hash, 1) == b"x"
            assert await reader.has(blob.hash)
            for absent in (BlobId.of(b"absent"), BlobId.of(b"gone")):
                with pytest.raises(NotFoundError):
                    await reader.get(absent.hash, absent.size)
            assert await reader.get_pointer(KEY) is None
        assert len(list((tmp_path / "accounts").glob("ed*"))) == 1


async def test_a_node_that_shows_blobs_to_members_only_is_signed_in_to() -> None:
    def answer(request: Request) -> Response:
        if "account" in request.url.path:
            return JSONResponse({"challenge": "B" * 43, "authToken": "S5A"})
        if "download" not in request.url.path:
            return Response(status_code=404)
        return Response(b"x") if "authorization" in request.headers else Response(status_code=401)

    with running(Recorder(answer)) as address:
        async with aclosing(open_store(f"portal+{address}", account_seed=account())) as store:
            assert await store.get(BlobId.of(b"x").hash, 1) == b"x"
        async with aclosing(open_store(f"portal+{address}")) as store:
            with pytest.raises(S5Error, match="portal_token"):
                await store.get(BlobId.of(b"x").hash, 1)


async def test_to_register_takes_the_invitation(tmp_path: Path) -> None:
    with serving(tmp_path, "invitation", accounts=True) as address:
        for token in (None, "guess"):
            async with await session_at(address, portal_token=token) as session:
                with pytest.raises(S5Error, match=r"portal_token.*invitation") as caught:
                    await session.save_to_s5()
                assert not caught.value.retryable
                assert "guess" not in str(caught.value)
        async with aclosing(open_store(address, token="guess", account_seed=account())) as store:
            with pytest.raises(S5Error, match="invitation"):
                await store.put(b"x")
    with serving(tmp_path, accounts=True) as address:
        async with aclosing(open_store(address, account_seed=account())) as store:
            await store.put(b"x")
        # Without an account and without a token nobody gets in.
        async with aclosing(open_store(address)) as store:
            with pytest.raises(S5Error, match="portal_token"):
                await store.put(b"x")


async def test_many_requests_that_are_refused_sign_in_once() -> None:
    is_in = False

    async def answer(request: Request) -> Response:
        nonlocal is_in
        if "account" in request.url.path:
            is_in = is_in or request.method == "POST"
            return JSONResponse({"challenge": "B" * 43, "authToken": "S5Atoken"})
        if request.headers.get("authorization") != "Bearer S5Atoken":
            return JSONResponse({"error": "Unauthorized"}, 401)
        return JSONResponse({"cid": BlobId.of(b"x").to_text("base58btc")})

    recorder = Recorder(answer)
    with running(recorder) as address:
        async with (
            aclosing(open_store(f"portal+{address}", account_seed=account())) as store,
            anyio.create_task_group() as group,
        ):
            for _ in range(8):
                group.start_soon(store.put, b"x")
    assert is_in
    assert [path for _, path, *_ in recorder.asked].count("/s5/account/login") == 2


async def test_whoever_is_late_to_register_logs_in() -> None:
    asked: list[str] = []

    def answer(request: Request) -> Response:
        asked.append(request.url.path.rpartition("/")[2])
        if asked[-1] == "upload":
            return JSONResponse({"cid": BlobId.of(b"x").to_text("base58btc")}, 200 if len(asked) > 1 else 401)
        if asked[-1] == "register":
            return PlainTextResponse("this key is registered already", 500)
        is_known = "register" in asked
        return JSONResponse({"challenge": "B" * 43, "authToken": "S5A"}) if is_known else PlainTextResponse("who?", 500)

    with running(Recorder(answer)) as address:
        async with aclosing(open_store(f"portal+{address}", account_seed=account())) as store:
            await store.put(b"x")
    assert asked == ["upload", "login", "register", "login", "login", "upload"]


async def test_registering_asks_as_s5js_does() -> None:
    ask, prove = VECTORS["http_capture"][:2]

    def answer(request: Request) -> Response:
        if request.url.path.endswith("/login"):
            return PlainTextResponse("unknown", 500)
        if "account" in request.url.path:
            captured = ask if request.method == "GET" else prove
            cookie = {"set-cookie": captured["response"].get("set_cookie", "x=y")}
            return JSONResponse(captured["response"]["json"] if request.method == "GET" else {}, headers=cookie)
        if "authorization" not in request.headers:
            return JSONResponse({"error": "Unauthorized"}, 401)
        return JSONResponse({"cid": BlobId.of(b"x").to_text("base58btc")})

    recorder = Recorder(answer)
    with running(recorder) as address:
        async with aclosing(open_store(f"portal+{address}", account_seed=account())) as store:
            await store.put(b"x")
    get, post = (one for one in recorder.asked if one[1] == ask["path"])
    assert (get[0], post[0], post[1]) == (ask["method"], prove["method"], prove["path"])
    assert post[2]["content-type"] == prove["headers"]["content-type"]
    body, captured = json.loads(post[3]), prove["json"]
    assert body.keys() == captured.keys()
    assert raw(body["pubKey"]) == KEY
    assert len(body["pubKey"]) == len(captured["pubKey"])
    response, theirs = raw(body["response"]), raw(captured["response"])
    assert response[:33] == theirs[:33]  # register, and the challenge
    assert response[33:] == blake3_hash(address.removeprefix("http://").encode())
    nacl.bindings.crypto_sign_open(raw(body["signature"]) + response, KEY[1:])
    # The cookie alone has brought the token.
    assert recorder.asked[-1][2]["authorization"] == "Bearer S5Atoken"


@pytest.mark.parametrize(
    "nonsense", [b"", b"[]", b'{"challenge": 3}', b'{"challenge": "AAAA"}', b'{"challenge": "%s"}' % (b"A" * 50)]
)
async def test_a_portal_that_answers_nonsense_is_named(nonsense: bytes) -> None:
    def answer(request: Request) -> Response:
        return Response(nonsense) if "account" in request.url.path else Response(status_code=401)

    with running(Recorder(answer)) as address:
        async with aclosing(open_store(f"portal+{address}", account_seed=account())) as store:
            with pytest.raises(S5Error, match="challenge") as caught:
                await store.put(b"x")
            assert not caught.value.retryable


async def test_an_account_belongs_to_one_phrase_and_one_portal() -> None:
    mine, theirs = Identity(parse_phrase(PHRASE)), Identity(b"another identity"[:16])
    seeds = {one.own_account_seed(host) for one in (mine, theirs) for host in ("a", "a:1", "b")}
    assert len(seeds) == 6
    assert mine.own_account_seed("a") == Identity(parse_phrase(PHRASE)).own_account_seed("a")


async def test_what_the_portal_refuses(tmp_path: Path) -> None:
    accounts = Accounts(tmp_path / "accounts")

    def signed(deed: int, challenge: bytes, authority: str = "here", seed: bytes = SEED) -> tuple[bytes, bytes]:
        response = portal_challenge_response(deed, challenge, authority)
        return response, ed25519_sign(seed, response)

    with pytest.raises(ValueError, match="not registered"):
        accounts.challenge(LOGIN, KEY)
    with pytest.raises(ValueError, match="33 bytes"):
        accounts.challenge(REGISTER, KEY[1:])
    for response, signature in (
        signed(LOGIN, accounts.challenge(REGISTER, KEY)),
        signed(REGISTER, bytes(32)),
        signed(REGISTER, accounts.challenge(REGISTER, KEY), "elsewhere"),
        signed(REGISTER, accounts.challenge(REGISTER, KEY), seed=b"b" * 32),
    ):
        with pytest.raises(ValueError, match=r"challenge|signature"):
            accounts.prove(REGISTER, KEY, response, signature, "here")
    other = accounts.challenge(REGISTER, KEY)
    answer = signed(REGISTER, accounts.challenge(REGISTER, KEY))
    token = accounts.prove(REGISTER, KEY, *answer, "here")
    assert accounts.knows(token)
    assert not accounts.knows("")
    with pytest.raises(ValueError, match="challenge"):
        accounts.prove(REGISTER, KEY, *answer, "here")
    assert accounts.prove(REGISTER, KEY, *signed(REGISTER, other), "here") != token
    again = Accounts(tmp_path / "accounts")
    assert again.knows(token)
    assert again.knows(again.prove(LOGIN, KEY, *signed(LOGIN, again.challenge(LOGIN, KEY)), "here"))

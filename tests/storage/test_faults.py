"""What a network does to sessions: every call ends well or with a typed error, in time, and no version is ever lost."""

from __future__ import annotations

import gc
import os
import random
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from serving import running

from fabstir_vectordb import VectorDBError, VectorDBSession
from fabstir_vectordb.portal.app import create_app

PHRASE = "amid romance hotel blue most myself guess host lobby rubber hook victim about odds child"
KINDS = ("refuse", "drop", "hang", "truncate", "corrupt", "busy", "broken", "late", "twice", "empty")
#: What is changed on its way up a gateway takes as it comes, and nobody can tell before it is read.
PORTAL_KINDS = (*KINDS, "spoil")
#: Share of the requests of a session that something happens to.
SHARE = 0.2
#: Time limit of a request behind faults; each is tried three times.
TIMEOUT_S = 0.5
SCENARIO_S = 120.0

Rows = dict[str, Any]


class Faulty:
    """An application behind a bad network; what happens to a request comes from a seed."""

    def __init__(self, app: Any, kinds: tuple[str, ...]) -> None:
        self.app = app
        self.random = random.Random(0)
        self.share = 0.0
        self.happened: dict[str, int] = dict.fromkeys(kinds, 0)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        kind = self.random.choice(list(self.happened)) if self.random.random() < self.share else "ok"
        if kind != "ok":
            self.happened[kind] += 1
        match kind:
            case "refuse":
                raise ConnectionError  # before anything was done
            case "busy" | "broken":
                await _answer(send, self.random.choice([429, 503]) if kind == "busy" else 500, b"no")
                return
            case "late":
                await anyio.sleep(0.02)
            case "hang":
                # Rarely, as each takes its time.
                await anyio.sleep(TIMEOUT_S * 1.2 if self.random.random() < 0.1 else 0.0)
        status, headers, body = await self._asked(scope, receive, kind)
        match kind:
            case "drop":
                raise ConnectionError  # what was asked was done, and nobody hears of it
            case "corrupt" if body:
                body[self.random.randrange(len(body))] ^= 1 << self.random.randrange(8)
            case "empty":
                await _answer(send, status, b"")
                return
        await send({"type": "http.response.start", "status": status, "headers": headers})
        whole = bytes(body)
        await send({"type": "http.response.body", "body": whole[: len(whole) // 2] if kind == "truncate" else whole})

    async def _asked(self, scope: Any, receive: Any, kind: str) -> tuple[int, list[Any], bytearray]:
        asked = [await receive()]
        while asked[-1].get("more_body"):
            asked.append(await receive())
        if kind == "spoil" and asked[0].get("body"):
            spoiled = bytearray(asked[0]["body"])
            spoiled[self.random.randrange(len(spoiled))] ^= 1 << self.random.randrange(8)
            asked[0] = {**asked[0], "body": bytes(spoiled)}
        status, headers, body = 500, [], bytearray()

        async def collect(message: Any) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status, headers = message["status"], message["headers"]
            else:
                body.extend(message.get("body", b""))

        for _ in range(2 if kind == "twice" else 1):
            body.clear()
            again = iter(asked)

            async def replay(again: Any = again) -> Any:
                return next(again, {"type": "http.disconnect"})

            await self.app(scope, replay, collect)
        return status, headers, body


async def _answer(send: Any, status: int, body: bytes) -> None:
    headers = [(b"content-length", b"%d" % len(body)), (b"retry-after", b"0")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def _session(uri: str, timeout_s: float = TIMEOUT_S) -> AsyncIterator[VectorDBSession]:
    session = await VectorDBSession.create(
        s5_portal=uri,
        user_seed_phrase=PHRASE,
        session_id="s",
        timeout_s=timeout_s,
        max_retries=2,
        threads=1,
        chunk_size=32,
    )
    async with session:
        yield session


async def _content(session: VectorDBSession) -> Rows:
    return {row.id: row.metadata async for row in session.scan()}


async def _try(faults: list[VectorDBError], call: Callable[[], Any]) -> bool:
    """Whether a call ended well; anything but a typed error fails the test."""
    try:
        await call()
    except VectorDBError as error:
        faults.append(error)
        return False
    return True


class Story:
    """What is known of an index that sessions save through faults.

    Attributes:
        newest: what the newest version holds for certain, or held before a save that nobody knows the end of.
        perhaps: what it may hold instead.
        cids: versions that were saved for certain, with their content.
    """

    def __init__(self) -> None:
        self.newest: Rows = {}
        self.perhaps: list[Rows] = []
        self.cids: dict[str, Rows] = {}

    async def play(self, faulty: Faulty, uri: str, seed: int) -> list[VectorDBError]:
        """One session behind faults, doing things in an order of its own; then what is left, without faults."""
        choice = random.Random(seed)
        faulty.random, faulty.share = random.Random(seed), SHARE
        faults: list[VectorDBError] = []
        async with _session(uri) as session:
            if await _try(faults, lambda: session.load_user_vectors(missing_ok=True)):
                assert await _content(session) == self.newest
                for step in range(choice.randrange(1, 4)):
                    await self._change(session, choice, f"{seed}-{step}")
                    rows = await _content(session)
                    if await _try(faults, session.save_to_s5):
                        self.newest, self.perhaps = rows, []
                        cid = (await session.get_stats()).last_cid
                        assert cid is not None
                        self.cids[cid] = rows
                    else:
                        self.perhaps.append(rows)
                    await self._look_around(session, choice, faults)
        faulty.share = 0.0
        async with _session(uri, 30.0) as session:
            await session.load_user_vectors(missing_ok=True)
            held = await _content(session)
            assert held == self.newest or held in self.perhaps
            self.newest, self.perhaps = held, []
            if held:
                await session.verify()
        return faults

    async def _change(self, session: VectorDBSession, choice: random.Random, name: str) -> None:
        ids = sorted(await _content(session))
        if ids and choice.random() < 0.3:
            await session.delete_vector(choice.choice(ids))
        count = choice.randrange(1, 6)
        vectors = [[choice.uniform(-1, 1) for _ in range(4)] for _ in range(count)]
        await session.add_batch([f"{name}-{row}" for row in range(count)], vectors, [{"of": name}] * count)

    async def _look_around(self, session: VectorDBSession, choice: random.Random, faults: list[VectorDBError]) -> None:
        """Reads that go to the store; none of them changes what the session holds."""
        before = await _content(session)
        hits = await session.search([1.0, 0.0, 0.0, 0.0], k=10_000, threshold=None)
        assert {hit.id for hit in hits} == before.keys()
        match choice.randrange(5):
            case 0:
                await _try(faults, session.history)
            case 1:
                await _try(faults, session.verify)
            case 2:
                await _try(faults, lambda: session.prune_history(1))
            case 3 if self.cids:
                cid = choice.choice(sorted(self.cids))
                async with _session(session._config.s5_portal) as other:
                    if await _try(faults, lambda: other.load_user_vectors(cid)):
                        assert await _content(other) == self.cids[cid]
            case _:
                await _try(faults, session.list_indexes)
        assert await _content(session) == before


def _campaign(root: Path, kind: str, backend: str, seeds: range) -> Faulty:
    faulty = Faulty(create_app(root), PORTAL_KINDS if kind == "portal+" else KINDS)

    async def campaign() -> None:
        story = Story()
        for seed in seeds:
            with anyio.fail_after(SCENARIO_S):
                await story.play(faulty, kind + address, seed)
            if len(story.newest) > 60:
                story = Story()  # small again, in another place
                faulty.app = create_app(root / str(seed))

    with running(faulty) as address:
        before = _handles()
        anyio.run(campaign, backend=backend)
        gc.collect()  # a connection left open would be a warning, which fails the test
        assert _settled(before)
    return faulty


def _handles() -> int:
    return len(os.listdir("/proc/self/fd")) if sys.platform.startswith("linux") else 0


def _settled(before: int) -> bool:
    """Whether no more handles are open than before; the server's ends of connections close a little later."""
    for _ in range(500):
        if _handles() <= before:
            return True
        threading.Event().wait(0.01)
    return False


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fabstir_vectordb.storage.retry._pause", lambda state: 0.0)


@pytest.mark.parametrize(("backend", "seeds"), [("asyncio", range(3)), ("trio", range(3, 6))], ids=["asyncio", "trio"])
@pytest.mark.parametrize("kind", ["portal+", "gateway+"])
def test_no_fault_loses_a_version(tmp_path: Path, kind: str, backend: str, seeds: range) -> None:
    faulty = _campaign(tmp_path, kind, backend, seeds)
    assert sum(faulty.happened.values()) > 20


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("kind", ["portal+", "gateway+"])
def test_a_save_or_load_that_is_cancelled_leaves_session_and_store_whole(
    tmp_path: Path, kind: str, backend: str
) -> None:
    async def cancel_often() -> None:
        async with _session(kind + address, 30.0) as session:
            await session.add_batch(["first"], [[1.0, 0.0]])
            await session.save_to_s5()
            for number in range(12):
                await session.add_batch([f"{number}"], [[float(number), 1.0]])
                before = await _content(session)
                with anyio.move_on_after(0.01 * number):
                    await session.save_to_s5()
                if not (await session.get_stats()).dirty:
                    with anyio.move_on_after(0.005 * number):
                        await session.load_user_vectors()
                assert await _content(session) == before
            await session.save_to_s5()
            await session.verify()

    with running(create_app(tmp_path)) as address:
        handles = _handles()
        anyio.run(cancel_often, backend=backend)
        gc.collect()
        assert _settled(handles)


@pytest.mark.long
@pytest.mark.parametrize("start", range(0, 1_000, 125))
@pytest.mark.parametrize("kind", ["portal+", "gateway+"])
def test_no_fault_loses_a_version_in_two_thousand_sessions(tmp_path: Path, kind: str, start: int) -> None:
    backend = "trio" if start % 250 else "asyncio"
    faulty = _campaign(tmp_path, kind, backend, range(1_000 + start, 1_125 + start))
    assert min(faulty.happened.values()) > 10

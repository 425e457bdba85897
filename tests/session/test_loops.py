"""A session and event loops: one at a time, the next one when that is over, and never a hang."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from holding import Held
from saving import PHRASE, rows, session_on

from fabstir_vectordb import SessionError, VectorDBError, VectorDBSession, blocking, sync

BACKENDS = ["asyncio", "trio"]


def run(backend: str, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    return anyio.run(function, *args, backend=backend)


def elsewhere(backend: str, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """The result of a function on an event loop of another thread."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(run, backend, function, *args).result(60)


async def _use(session: VectorDBSession, id: str) -> int:
    await session.add_batch([id], rows(1, 4))
    await session.search(rows(1, 4)[0], 1)
    await session.search_batch(rows(3, 4), 1)
    return await session.count()


CALLS: dict[str, Callable[[VectorDBSession], Awaitable[Any]]] = {
    "add": lambda session: session.add_batch(["x"], rows(1, 4)),
    "search": lambda session: session.search(rows(1, 4)[0]),
    "search_batch": lambda session: session.search_batch(rows(1, 4)),
    "get": lambda session: session.get(["a"]),
    "count": lambda session: session.count(),
    "get_stats": lambda session: session.get_stats(),
    "scan": lambda session: anext(session.scan()),
    "search_stream": lambda session: anext(session.search_stream(rows(1, 4)[0])),
    "save": lambda session: session.save_to_s5(),
    "warm": lambda session: session.warm(),
    "destroy": lambda session: session.destroy(),
}


@pytest.mark.parametrize("first", BACKENDS)
@pytest.mark.parametrize("second", BACKENDS)
def test_a_session_goes_on_where_its_first_loop_has_ended(first: str, second: str, tmp_path: Path) -> None:
    session = run(first, session_on, tmp_path.as_uri())
    assert run(first, _use, session, "a") == 1
    run(first, session.save_to_s5)
    assert run(second, _use, session, "b") == 2
    assert elsewhere(first, _use, session, "c") == 3
    run(second, session.save_to_s5)
    run(first, session.destroy)


@pytest.mark.anyio
@pytest.mark.parametrize("other", BACKENDS)
async def test_calls_from_a_second_loop_are_refused_while_the_first_one_runs(other: str) -> None:
    async with await session_on("memory:") as session:
        await _use(session, "a")
        for call in CALLS.values():
            with pytest.raises(SessionError, match="another event loop"):
                await anyio.to_thread.run_sync(elsewhere, other, call, session)
        assert await session.count() == 1


@pytest.mark.anyio
async def test_a_second_loop_is_refused_rather_than_kept_waiting_by_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    async with await session_on("memory:") as session:
        await _use(session, "a")
        with Held(monkeypatch, "add") as held:
            async with anyio.create_task_group() as group:
                group.start_soon(_use, session, "b")
                await held.entered()
                for call in CALLS.values():
                    with pytest.raises(SessionError, match="another event loop"):
                        await anyio.to_thread.run_sync(elsewhere, "asyncio", call, session)
                held.let_go()
        assert await session.count() == 2


def test_a_loop_closed_in_the_middle_of_a_call_leaves_a_session_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    session = run("asyncio", session_on, "memory:")
    run("asyncio", _use, session, "a")
    loop = asyncio.new_event_loop()
    with Held(monkeypatch, "add") as held:
        task = loop.create_task(session.add_batch(["b"], rows(1, 4)))

        async def wait() -> None:
            await held.entered()

        loop.run_until_complete(wait())
        # The loop is left as a program does that closes it without a thought for its tasks.
        for name in ("add", "search_batch", "get", "scan", "search_stream", "save"):
            with pytest.raises(SessionError, match="in the middle of a call"):
                run("trio", CALLS[name], session)
        held.let_go()
        run("trio", session.destroy)
    with pytest.raises(SessionError, match="already destroyed"):
        run("asyncio", session.count)
    # Only so that the test leaves nothing behind.
    task.cancel()
    with pytest.raises((asyncio.CancelledError, VectorDBError)):
        loop.run_until_complete(task)
    loop.close()


def test_a_verb_without_an_event_loop_is_refused() -> None:
    session = run("asyncio", session_on, "memory:")
    verb = session.count()
    with pytest.raises(SessionError, match=r"fabstir_vectordb\.sync"):
        verb.send(None)
    run("asyncio", session.destroy)


# ---- the twin


def _twin(**fields: Any) -> sync.VectorDBSession:
    return sync.VectorDBSession.create(s5_portal="memory:", user_seed_phrase=PHRASE, session_id="s", **fields)


def test_the_twin_is_for_any_thread_and_beside_any_loop() -> None:
    with _twin() as session:
        session.add_batch(["a"], rows(1, 4))

        async def inside_a_loop() -> list[str]:
            session.add_batch([f"b{threading.get_ident()}"], rows(1, 4), on_conflict="replace")
            return [row.id for row in session.scan()]

        for backend in BACKENDS:
            assert "a" in run(backend, inside_a_loop)
            assert "a" in elsewhere(backend, inside_a_loop)


def test_a_loop_that_cannot_start_is_an_error_and_no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(24, "Too many open files")

    with _twin() as session:
        with monkeypatch.context() as patch:
            patch.setattr(blocking.anyio, "run", fail)
            with pytest.raises(SessionError, match=r"could not start: .*Too many open files"):
                session.add_batch(["a"], rows(1, 4))
            assert session.count() == 0
            assert session.search(rows(1, 4)[0]).plan == "flat"
        session.add_batch(["a"], rows(1, 4))
        assert session.count() == 1


def test_a_thread_that_cannot_start_is_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    session = _twin()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(SessionError, match="can't start new thread"):
            session.vacuum()
        session.destroy()  # needs none
    with pytest.raises(SessionError, match="already destroyed"):
        session.count()


def test_a_callback_that_calls_its_session_is_refused_where_it_would_wait_for_itself() -> None:
    refused: list[str] = []

    with _twin() as session:
        session.add_batch(["a"], rows(1, 4))

        def progress(_: object) -> None:
            assert session.count() == 1
            try:
                session.add_batch(["b"], rows(1, 4))
            except SessionError as error:
                refused.append(str(error))

        session.save_to_s5(progress=progress)
        assert refused
        assert "callback" in refused[0]
        session.optimize(lambda _: None)


def test_a_warm_search_of_the_twin_hops_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    from fabstir_vectordb._native.handle import NativeIndex

    threads: set[int] = set()

    def watched(name: str) -> None:
        real = getattr(NativeIndex, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            threads.add(threading.get_ident())
            return real(*args, **kwargs)

        monkeypatch.setattr(NativeIndex, name, call)

    with _twin() as session:
        session.add_batch([f"r{row}" for row in range(3000)], rows(3000, 8))
        for name in ("search_one", "search", "get_vectors", "find"):
            watched(name)
        session.search(rows(1, 8)[0])
        session.search(rows(1, 8)[0], exact=True)
        session.search_batch(rows(5, 8))
        session.get(["r1"])
        list(session.search_stream(rows(1, 8)[0], threshold=None))
    assert threads == {threading.get_ident()}


# ---- a minute of it


@pytest.mark.long
def test_two_loops_at_one_session_for_a_minute() -> None:
    """Each call returns or is refused; loops begin and end all the time."""
    end = time.monotonic() + 60
    session = run("asyncio", session_on, "memory:")
    done = {"answered": 0, "refused": 0}
    failures: list[BaseException] = []

    async def once(call: Callable[[], Awaitable[Any]], limit_s: float) -> None:
        try:
            with anyio.move_on_after(limit_s) as limit:
                await call()
            assert limit_s < 1 or not limit.cancelled_caught, "a call took half a minute"
            done["answered"] += 1
        except SessionError as error:
            if "event loop" not in str(error):
                raise
            done["refused"] += 1
            await anyio.sleep(0.001)

    async def work(worker: int) -> None:
        calls = [
            partial(session.add_batch, [f"{worker}"], rows(1, 4), on_conflict="replace"),
            partial(session.search, rows(1, 4)[0]),
            partial(session.search_batch, rows(2, 4)),
            partial(session.get, ["1"]),
            session.save_to_s5,
            session.vacuum,
        ]
        for turn in range(20):
            for call in calls:
                await once(call, 0.001 if turn % 7 == 0 else 30)

    def loops(worker: int) -> None:
        try:
            while time.monotonic() < end:
                run(BACKENDS[worker % 2], work, worker)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=loops, args=(worker,)) for worker in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(180)
        assert not thread.is_alive(), "it hangs"
    assert not failures
    assert min(done.values()) > 100
    run("asyncio", session.destroy)

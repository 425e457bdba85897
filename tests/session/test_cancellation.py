"""Cancelling: when the await ends no thread works on the index, the next change runs alone, and what was cancelled
happened whole or left no trace. On asyncio that holds for asyncio's own ways of cancelling, too."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import numpy as np
import pytest
from holding import Held, turns, until
from saving import PHRASE, add_rows, content, rows, session_on

from fabstir_vectordb import SessionError, VectorDBSession, blocking, sync

pytestmark = pytest.mark.anyio

ROWS = 40


async def _add(session: VectorDBSession) -> None:
    await add_rows(session, 30, first=ROWS)


async def _replace(session: VectorDBSession) -> None:
    await add_rows(session, ROWS, on_conflict="replace")


async def _vacuum(session: VectorDBSession) -> None:
    await session.vacuum()


async def _save(session: VectorDBSession) -> None:
    await session.save_to_s5()


async def _load(session: VectorDBSession) -> None:
    await session.load_user_vectors(discard_unsaved=True)


async def _verify(session: VectorDBSession) -> None:
    await session.verify()


async def _search_many(session: VectorDBSession) -> None:
    await session.search_batch(rows(8), 3)


Operation = Callable[[VectorDBSession], Awaitable[None]]
# What runs in a thread, and the native call in which that thread is met.
HELD: dict[str, tuple[Operation, str]] = {
    "add": (_add, "add"),
    "replace": (_replace, "add"),
    "vacuum": (_vacuum, "vacuum"),
    "save": (_save, "write_part"),
    "load": (_load, "load_part"),
    "load, at its end": (_load, "load_end"),
    "verify": (_verify, "load_part"),
}


@asynccontextmanager
async def _saved_and_changed() -> AsyncIterator[VectorDBSession]:
    """A session with a saved version of ROWS rows, one of which it has deleted since."""
    async with await session_on(f"memory:{uuid.uuid4()}") as session:
        await add_rows(session, ROWS)
        await session.save_to_s5()
        await session.delete_vector("row-000003")
        yield session


async def _outcomes(operation: Operation) -> list[Any]:
    """What a session may hold after `operation` was cancelled: what it held before, or what it holds afterwards."""
    found = []
    async with _saved_and_changed() as session:
        found.append(await content(session))
        await operation(session)
        found.append(await content(session))
    return found


async def _still_works(session: VectorDBSession) -> None:
    """Changes, saves and opens the session's content once more."""
    await session.add_batch(["after"], rows(1, seed=9), on_conflict="replace")
    await session.vacuum()
    held = await content(session)
    assert held[0][0] == "after"
    await session.save_to_s5()
    await session.load_user_vectors()
    assert await content(session) == held
    await session.verify()


# ---- asyncio's own ways


def _by_cancel(task: asyncio.Task[None], _: asyncio.Timeout | None) -> None:
    task.cancel()


def _by_cancelling_twice(task: asyncio.Task[None], _: asyncio.Timeout | None) -> None:
    task.cancel()
    asyncio.get_running_loop().call_soon(task.cancel)


def _by_timeout(_: asyncio.Task[None], limit: asyncio.Timeout | None) -> None:
    assert limit is not None
    limit.reschedule(asyncio.get_running_loop().time())


@pytest.mark.parametrize("cancel", [_by_cancel, _by_cancelling_twice, _by_timeout])
@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_when_a_cancelled_await_ends_no_thread_is_left(
    name: str, cancel: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    operation, method = HELD[name]
    allowed = await _outcomes(operation)
    limits: list[asyncio.Timeout] = []
    at_the_end: list[int] = []

    async with _saved_and_changed() as session:

        async def limited() -> None:
            async with asyncio.timeout(None) as limit:
                limits.append(limit)
                await operation(session)

        with Held(monkeypatch, method) as held:
            task = asyncio.create_task(limited())
            task.add_done_callback(lambda _: at_the_end.append(held.inside))
            await held.entered()
            cancel(task, *limits)
            following = asyncio.create_task(session.update_metadata("row-000005", "later"))
            await turns()
            assert held.inside == 1
            assert not task.done()
            assert not following.done()
            if method in ("add", "vacuum"):
                await until(lambda: held.cancelled)
            held.let_go()
            with pytest.raises(TimeoutError if cancel is _by_timeout else asyncio.CancelledError):
                await task
            await following
        assert at_the_end == [0]
        assert held.most_inside == 1
        await session.update_metadata("row-000005", {"text": "sentence number 5", "n": 5})
        assert await content(session) in allowed
        await _still_works(session)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_wait_for_leaves_no_thread_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    async with _saved_and_changed() as session:
        before = await content(session)
        with Held(monkeypatch, "add") as held:
            waiting = asyncio.create_task(asyncio.wait_for(_add(session), 0.2))
            await until(lambda: held.cancelled or waiting.done())
            inside = held.inside
            await turns()
            assert waiting.done() == (not inside)
            held.let_go()
            with pytest.raises(TimeoutError):
                await waiting
            assert held.inside == 0
        assert await content(session) == before
        await _still_works(session)


# ---- anyio's way, on both event loops


@pytest.mark.parametrize("name", HELD)
async def test_a_cancelled_scope_waits_for_the_thread(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    operation, method = HELD[name]
    allowed = await _outcomes(operation)
    scope = anyio.CancelScope()
    at_the_end: list[int] = []

    async with _saved_and_changed() as session:

        async def run() -> None:
            with scope:
                try:
                    await operation(session)
                finally:
                    at_the_end.append(held.inside)

        with Held(monkeypatch, method) as held:
            async with anyio.create_task_group() as group:
                group.start_soon(run)
                await held.entered()
                scope.cancel()
                await turns()
                assert not at_the_end
                if method in ("add", "vacuum"):
                    await until(lambda: held.cancelled)
                held.let_go()
        assert at_the_end == [0]
        assert scope.cancelled_caught
        assert await content(session) in allowed
        await _still_works(session)


@pytest.mark.parametrize("operation", [_add, _replace, _vacuum, _save, _load, _verify, _search_many])
async def test_cancelled_after_any_number_of_turns_it_is_whole_or_leaves_no_trace(operation: Operation) -> None:
    allowed = await _outcomes(operation)
    ended = 0
    for count in range(0, 120, 10):
        async with _saved_and_changed() as session:

            async def run(session: VectorDBSession = session) -> None:
                nonlocal ended
                await operation(session)
                ended += 1

            async with anyio.create_task_group() as group:
                group.start_soon(run)
                await turns(count)
                group.cancel_scope.cancel()
            assert await content(session) in allowed
            await _still_works(session)
        if ended == 3:
            break  # more turns find nothing to cancel


async def test_a_cancelled_add_is_stopped_rather_than_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async with _saved_and_changed() as session:
        with Held(monkeypatch, "add") as held:
            async with anyio.create_task_group() as group:
                group.start_soon(_add, session)
                await held.entered()
                assert not held.cancelled
                group.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    await until(lambda: held.cancelled)
                held.let_go()
        assert await session.count() == ROWS - 1


# ---- destroy


async def test_destroy_waits_for_the_change_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    session = await session_on("memory:")
    await add_rows(session, ROWS)
    done: list[str] = []

    async def add() -> None:
        assert (await session.add_batch(["x"], rows(1))).added == 1
        done.append("add")

    async def destroy() -> None:
        await session.destroy()
        assert held.inside == 0
        done.append("destroy")

    async def refused(call: Awaitable[Any]) -> None:
        with pytest.raises(SessionError, match="already destroyed"):
            await call
        done.append("refused")

    with Held(monkeypatch, "add") as held:
        async with anyio.create_task_group() as group:
            group.start_soon(add)
            await held.entered()
            # These wait for the change, or for their turn, when the session is destroyed.
            group.start_soon(refused, session.get(["x"]))
            group.start_soon(refused, session.delete_vector("row-000001"))
            await turns()
            group.start_soon(destroy)
            await turns()
            assert done == []
            with pytest.raises(SessionError, match="already destroyed"):
                await session.count()
            await refused(session.search(rows(1)[0], 1))
            assert done == ["refused"]
            held.let_go()
    assert sorted(done) == ["add", "destroy", "refused", "refused", "refused"]
    assert done.index("add") < done.index("destroy")


@pytest.mark.parametrize("method", ["write_part", "load_part"])
async def test_destroy_waits_for_a_save_and_a_load(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    session = await session_on(f"memory:{uuid.uuid4()}")
    await add_rows(session, ROWS)
    await session.save_to_s5()
    await session.delete_vector("row-000003")
    done: list[str] = []

    async def run() -> None:
        await (_save if method == "write_part" else _load)(session)
        done.append("first")

    async def destroy() -> None:
        await session.destroy()
        done.append("destroy")

    with Held(monkeypatch, method) as held:
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await held.entered()
            group.start_soon(destroy)
            await turns()
            assert done == []
            held.let_go()
    assert done == ["first", "destroy"]


async def test_a_cancelled_destroy_still_forgets_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    session = await session_on("memory:")
    await add_rows(session, ROWS)
    with Held(monkeypatch, "add") as held:
        async with anyio.create_task_group() as adding:
            adding.start_soon(_add, session)
            await held.entered()
            async with anyio.create_task_group() as destroying:
                destroying.start_soon(session.destroy)
                await turns()
                destroying.cancel_scope.cancel()
                held.let_go()
        assert held.inside == 0
    assert PHRASE not in repr(vars(session))
    with pytest.raises(SessionError):
        await session.count()
    await session.destroy()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_destroy_cancelled_by_asyncio_still_forgets_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    session = await session_on("memory:")
    await add_rows(session, ROWS)
    with Held(monkeypatch, "add") as held:
        adding = asyncio.create_task(_add(session))
        await held.entered()
        destroying = asyncio.create_task(session.destroy())
        await turns()
        destroying.cancel()
        await turns()
        assert not destroying.done()
        held.let_go()
        with pytest.raises(asyncio.CancelledError):
            await destroying
        await adding
    with pytest.raises(SessionError):
        await session.count()


# ---- the twin without await


def wait_until_cancelled(held: Held) -> None:
    for _ in range(60_000):
        if held.cancelled:
            return
        threading.Event().wait(0.001)
    raise AssertionError("nobody cancelled it")


def test_ctrl_c_that_comes_while_a_call_is_handed_over_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    base = rows(ROWS)
    with sync.VectorDBSession.create(s5_portal="memory:", user_seed_phrase=PHRASE, session_id="s") as session:
        session.add_batch([str(row) for row in range(ROWS)], base)
        with Held(monkeypatch, "add") as held, monkeypatch.context() as patch:
            start = blocking.BlockingPortal.start_task_soon

            def interrupted(*args: Any) -> Any:
                patch.undo()
                start(*args)
                held.entered_here()
                raise KeyboardInterrupt

            patch.setattr(blocking.BlockingPortal, "start_task_soon", interrupted)
            with pytest.raises(KeyboardInterrupt):
                session.add_batch(["x"], base[:1])
            wait_until_cancelled(held)
            held.let_go()
            assert session.add_batch(["y"], base[:1]).added == 1
        assert [row and row.id for row in session.get(["x", "y"])] == [None, "y"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send a signal to one thread")
@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_stops_what_it_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    base = rows(ROWS)
    with sync.VectorDBSession.create(s5_portal="memory:", user_seed_phrase=PHRASE, session_id="s") as session:
        session.add_batch([str(row) for row in range(ROWS)], base)
        with Held(monkeypatch, "add") as held:

            def press() -> None:
                held.entered_here()
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

            hand = threading.Thread(target=press)
            hand.start()
            with pytest.raises(KeyboardInterrupt):
                session.add_batch(["x"], base[:1])
            hand.join()
            wait_until_cancelled(held)
            assert session.count() == ROWS
            held.let_go()
            # It waits until the interrupted one has left.
            assert session.add_batch(["y"], base[:1]).added == 1
        assert held.most_inside == 1
        assert [row and row.id for row in session.get(["x", "y"])] == [None, "y"]
        assert np.array_equal(session.get(["y"])[0].vector, base[0])  # type: ignore[union-attr]

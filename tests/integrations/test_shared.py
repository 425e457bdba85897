"""One session for callers of any thread and any event loop."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fabstir_vectordb import InvalidConfigError, InvalidInputError, SessionError, VectorDBSession, new_seed_phrase
from fabstir_vectordb.config import Given
from fabstir_vectordb.integrations.shared import SharedSession, Store

PHRASE = new_seed_phrase()
SETTINGS: dict[str, Any] = {"s5_portal": "memory:", "user_seed_phrase": PHRASE, "session_id": "tests"}


class Plain(Store):
    """A store of a framework that has no methods of its own."""

    def __init__(self, **settings: Any) -> None:
        self._shared = SharedSession(Given(None, {**SETTINGS, **settings}))


@pytest.fixture
def store() -> Iterator[Plain]:
    with Plain() as store:
        store.run(lambda session: session.add_batch(["a", "b"], [[1.0, 0.0], [0.0, 1.0]]))
        yield store


def own_threads() -> int:
    return sum(thread.name == "fabstir_vectordb.integrations" for thread in threading.enumerate())


async def nearest(store: Plain) -> list[str]:
    return (await store.arun(lambda session: session.search([1.0, 0.1], k=1))).ids


def test_threads_and_event_loops_share_a_session(store: Plain) -> None:
    def add(number: int) -> None:
        store.run(lambda session: session.add_batch([f"t{number}"], [[0.5, float(number)]]))
        assert store.run(lambda session: session.search([1.0, 0.1], k=1)).ids == ["a"]
        assert asyncio.run(nearest(store)) == ["a"]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(40)))
    assert store.run(lambda session: session.count()) == 42


def test_two_loops_run_at_the_same_time(store: Plain) -> None:
    barrier = threading.Barrier(2)

    async def search() -> None:
        await asyncio.to_thread(barrier.wait)
        for _ in range(20):
            assert await asyncio.gather(*[nearest(store) for _ in range(5)]) == [["a"]] * 5

    threads = [threading.Thread(target=asyncio.run, args=(search(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)


def test_a_synchronous_call_inside_a_running_loop_answers(store: Plain) -> None:
    async def notebook() -> list[str]:
        assert await nearest(store) == ["a"]
        return store.run(lambda session: session.search([0.0, 1.0], k=1)).ids

    assert asyncio.run(notebook()) == ["b"]


def test_awaiting_blocks_no_loop(store: Plain) -> None:
    async def beside() -> int:
        slow = asyncio.create_task(store.arun(lambda session: asyncio.sleep(0.3)))
        turns = 0
        while not slow.done():
            await asyncio.sleep(0.01)
            turns += 1
        return turns

    assert asyncio.run(beside()) > 3


def test_a_cancellation_stops_the_operation_and_waits_for_its_end(store: Plain) -> None:
    steps: list[str] = []
    begun = threading.Event()

    async def operation(session: VectorDBSession) -> None:
        steps.append("begun")
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            steps.append("ended")

    async def cancel() -> None:
        task = asyncio.create_task(store.arun(operation))
        await asyncio.to_thread(begun.wait, 30)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()  # once more, while it waits for the end
        with pytest.raises(asyncio.CancelledError):
            await task
        assert steps == ["begun", "ended"]
        steps.clear()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(store.arun(operation), 0.02)
        assert steps == ["begun", "ended"]

    asyncio.run(cancel())
    assert asyncio.run(nearest(store)) == ["a"]


def test_errors_come_through(store: Plain) -> None:
    with pytest.raises(ValueError, match="k must be"):
        store.run(lambda session: session.search([1.0, 0.0], k=0))
    with pytest.raises(ValueError, match="k must be"):
        asyncio.run(store.arun(lambda session: session.search([1.0, 0.0], k=0)))


def test_a_callback_that_calls_the_store_is_refused(store: Plain, tmp_path: Path) -> None:
    seen: list[str] = []

    def progress(_: object) -> None:
        for call in (lambda: store.run(lambda session: session.count()), store.close):
            with pytest.raises(SessionError, match="wait for itself"):
                call()
            seen.append("refused")

    store.save(progress=progress)
    assert seen


def test_an_operation_may_await_the_store(store: Plain) -> None:
    async def twice(session: VectorDBSession) -> int:
        return await session.count() + await store.arun(lambda session: session.count())

    assert store.run(twice) == 4


def test_closing_ends_the_thread_and_refuses_later_calls() -> None:
    before = own_threads()
    store = Plain()
    assert own_threads() == before + 1
    store.close()
    store.close()
    assert own_threads() == before
    for call in (lambda: store.run(lambda session: session.count()), lambda: asyncio.run(nearest(store)), store.save):
        with pytest.raises(SessionError, match="closed"):
            call()

    async def awaited() -> None:
        async with Plain() as other:
            assert await other.arun(lambda session: session.count()) == 0
        await other.aclose()

    asyncio.run(awaited())
    assert own_threads() == before


def test_closing_answers_the_calls_under_way() -> None:
    store = Plain()
    begun = threading.Event()
    failed: list[BaseException] = []

    async def for_ever(session: VectorDBSession) -> None:
        begun.set()
        await asyncio.sleep(3_600)

    def call() -> None:
        try:
            store.run(for_ever)
        except SessionError as error:
            failed.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    assert begun.wait(30)
    store.close()
    thread.join(30)
    assert not thread.is_alive() and "closed" in str(failed[0])


def test_a_forgotten_store_leaves_no_thread() -> None:
    before = own_threads()
    stores = [Plain() for _ in range(5)]
    for store in stores:
        store.run(lambda session: session.add_batch(["a"], [[1.0]]))
    watched = [weakref.ref(store._shared) for store in stores]
    del store, stores
    gc.collect()
    assert all(one() is None for one in watched)
    deadline = time.monotonic() + 30
    while own_threads() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert own_threads() == before


def test_settings_are_checked_when_a_store_is_made() -> None:
    before = own_threads()
    with pytest.raises(InvalidConfigError, match="metric"):
        Plain(metric="near")
    with pytest.raises(InvalidConfigError):
        Plain(user_seed_phrase=" ".join(PHRASE.split()[::-1]))
    assert own_threads() == before


def test_words_are_a_default_that_a_saved_index_overrules(tmp_path: Path) -> None:
    """A new index has them. One that was saved without opens as it is, unless the caller asked for them."""
    rows = (["a", "b"], [[1.0, 0.0], [0.0, 1.0]], [{"text": "red rose"}, {"text": "blue sea"}])

    def found(store: Plain) -> list[str]:
        return store.run(lambda session: session.search(text="rose")).ids

    with Plain() as store:
        store.run(lambda session: session.add_batch(*rows))
        assert found(store) == ["a"]
    with Plain(s5_portal=tmp_path.as_uri(), text_fields=None) as store:
        store.run(lambda session: session.add_batch(*rows))
        store.save()
    with Plain(s5_portal=tmp_path.as_uri()).load() as store:
        with pytest.raises(InvalidInputError, match="no text fields"):
            found(store)
        store.run(lambda session: session.set_text_fields("text"))
        assert found(store) == ["a"]
        store.save()
    with Plain(s5_portal=tmp_path.as_uri()).load() as store:
        assert found(store) == ["a"]
    for asked in ({"text_fields": "title"}, {"text_b": 0.5}):
        with Plain(s5_portal=tmp_path.as_uri(), **asked) as store, pytest.raises(InvalidConfigError, match="saved"):
            store.load()


SCRIPT = f"""
from fabstir_vectordb.config import Given
from fabstir_vectordb.integrations.shared import SharedSession, Store
store = Store()
store._shared = SharedSession(Given(None, {SETTINGS!r}))
store.run(lambda session: session.add_batch(["a"], [[1.0, 2.0]]))
"""


def test_a_program_that_forgets_its_store_exits() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_is_refused_and_can_exit() -> None:
    code = (
        SCRIPT
        + """
import asyncio, os, sys, warnings
warnings.simplefilter("ignore")
pid = os.fork()
if pid == 0:
    for call in (lambda: store.run(lambda s: s.count()), lambda: asyncio.run(store.arun(lambda s: s.count()))):
        try:
            call()
        except Exception as error:
            print(type(error).__name__, "os.fork" in str(error), flush=True)
    store.close()
    os._exit(0)
os.waitpid(pid, 0)
print(store.run(lambda session: session.count()))
"""
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split("\n") == ["SessionError True", "SessionError True", "1", ""], done.stderr


def test_a_failure_shows_no_phrase() -> None:
    import traceback

    try:
        SharedSession(Given(None, {**SETTINGS, "metric": "near"}))
    except InvalidConfigError as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][1:]
        assert all(PHRASE not in repr(frame.f_locals) for frame in frames)

"""Reads beside changes: the event loop never waits, rows are whole, scans miss nothing, and everybody gets a turn."""

from __future__ import annotations

import gc
import sys
import threading
import uuid
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import aclosing, closing
from functools import partial
from types import FrameType
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest
from holding import Held, turns, until
from saving import PHRASE, SEED, add_rows, rows, session_on

import fabstir_vectordb.index.searcher
import fabstir_vectordb.session
from fabstir_vectordb import ConflictError, SessionError, VectorDBSession, sync
from fabstir_vectordb._native.handle import NativeIndex
from fabstir_vectordb.index import Index, prepare_batch
from fabstir_vectordb.params import IndexParams, RunParams, SearchRequest

pytestmark = pytest.mark.anyio


# ---- beside one long change


async def _long_add(session: VectorDBSession) -> None:
    await session.add_batch(["late"], rows(1, seed=7), [{"late": True}])


async def _long_vacuum(session: VectorDBSession) -> None:
    await session.vacuum()


@pytest.mark.parametrize("count", [20, 1200])
@pytest.mark.parametrize(("change", "method"), [(_long_add, "add"), (_long_vacuum, "vacuum")])
async def test_reads_beside_a_change_never_hold_the_event_loop(
    change: Callable[[VectorDBSession], Awaitable[None]], method: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = rows(1, seed=7)[0]
    answers: dict[str, Any] = {}

    async def ask(name: str, call: Awaitable[Any]) -> None:
        answers[name] = await call

    async def first_row(session: VectorDBSession) -> Any:
        async with aclosing(session.scan()) as scan:
            return await anext(scan)

    async with await session_on("memory:") as session:
        await add_rows(session, count)
        await session.delete_vector("row-000000")
        with Held(monkeypatch, method) as held:
            async with anyio.create_task_group() as group:
                group.start_soon(change, session)
                await held.entered()
                # Answered at once, from before the change.
                assert await session.count() == count - 1
                stats = await session.get_stats()
                assert (stats.vector_count, stats.deleted_count) == (count - 1, 1)
                # These wait, but not on the event loop.
                for name, call in [
                    ("search", session.search(query, 1, threshold=None)),
                    ("wide search", session.search(query, 1, threshold=None, ef_search=5_000)),
                    ("search_batch", session.search_batch([query], 1, threshold=None)),
                    ("get", session.get(["late"])),
                    ("scan", first_row(session)),
                ]:
                    group.start_soon(ask, name, call)
                await turns()
                assert held.inside == 1
                assert not answers
                # A read that waits can be given up, while the change goes on.
                with anyio.CancelScope() as scope:
                    async with anyio.create_task_group() as given_up:
                        given_up.start_soon(session.search, query, 1)
                        given_up.start_soon(session.search_batch, [query], 1)
                        given_up.start_soon(session.get, ["late"])
                        await turns()
                        scope.cancel()
                assert held.inside == 1
                assert not held.cancelled
                held.let_go()
        if method == "add":
            hits = [answers["search"], answers["wide search"], answers["search_batch"][0]]
            assert [(hit[0].id, hit[0].distance, hit[0].metadata) for hit in hits] == [("late", 0, {"late": True})] * 3
            assert answers["get"][0].id == "late"
        assert answers["scan"].id == "row-000001"
        assert len(answers) == 5


async def test_a_scan_of_many_rows_leaves_the_event_loops_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    there: list[bool] = []
    real = NativeIndex.search_one

    def search_one(native: NativeIndex, *args: Any, **kwargs: Any) -> Any:
        there.append(threading.get_ident() == loop_thread)
        return real(native, *args, **kwargs)

    loop_thread = threading.get_ident()
    monkeypatch.setattr(NativeIndex, "search_one", search_one)
    async with await session_on("memory:") as session:
        await add_rows(session, 1200)
        query = rows(1)[0]
        # With another k each, as a search that is asked again stays on the thread of the first.
        for k, values in [(1, 1), (2, 1200 * 16), (3, 1200 * 16 - 1)]:
            monkeypatch.setattr(fabstir_vectordb.index.searcher, "_SHORT_SCAN_VALUES_MAX", values)
            await session.search(query, k, exact=k > 1, ef_search=None if k > 1 else 10)
    assert there == [True, True, False]


async def test_a_save_beside_searches_does_not_stop_them(monkeypatch: pytest.MonkeyPatch) -> None:
    async with await session_on(f"memory:{uuid.uuid4()}") as session:
        await add_rows(session, 50)
        with Held(monkeypatch, "write_part") as held:
            async with anyio.create_task_group() as group:
                group.start_soon(session.save_to_s5)
                await held.entered()
                waiting = []

                async def add() -> None:
                    await add_rows(session, 1, first=50)
                    waiting.append("added")

                group.start_soon(add)
                await turns()
                assert not waiting
                held.let_go()
        assert waiting == ["added"]
        assert await session.count() == 51
        # The row came after the save.
        assert (await session.get_stats()).dirty


async def test_a_change_that_waited_for_a_load_changes_what_was_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    async with await session_on(f"memory:{uuid.uuid4()}") as session:
        await add_rows(session, 50)
        await session.delete_vector("row-000049")
        await session.save_to_s5()
        await session.vacuum()
        with Held(monkeypatch, "load_part") as held:
            async with anyio.create_task_group() as group:
                group.start_soon(partial(session.load_user_vectors, discard_unsaved=True))
                await held.entered()
                for change in [
                    partial(session.vacuum),
                    partial(session.add_batch, ["new"], rows(1)),
                    partial(session.update_metadata, "row-000002", "new"),
                ]:
                    group.start_soon(change)
                await turns()
                held.let_go()
        stats = await session.get_stats()
        assert (stats.vector_count, stats.deleted_count) == (50, 0)
        new, changed = await session.get(["new", "row-000002"])
        assert (new and new.id, changed and changed.metadata) == ("new", "new")


@pytest.mark.one_loop
async def test_a_session_keeps_no_array_that_it_was_given() -> None:
    async with await session_on("memory:") as session:
        for on_conflict in ("error", "error", "replace"):
            vectors = rows(30)
            gone = weakref.ref(vectors)
            try:
                await session.add_batch([str(row) for row in range(30)], vectors, on_conflict=on_conflict)
            except ConflictError:
                pass
            del vectors

            def is_gone(gone: weakref.ref[Any] = gone) -> bool:
                gc.collect()
                return gone() is None

            # An error's traceback is let go of by the worker thread when that comes to it.
            await until(is_gone)


# ---- scans


async def _scan_through(session: VectorDBSession, rng: np.random.Generator, initial: list[str], every: int) -> None:
    """Scans while rows are replaced, deleted, added and vacuumed, and checks what came."""
    touched: set[str] = set()
    seen: list[str] = []
    fresh = 0
    async for row in session.scan():
        seen.append(row.id)
        assert row.metadata == {"n": initial.index(row.id)}
        if len(seen) % every:
            continue
        chosen = [initial[at] for at in rng.integers(0, len(initial), 4)]
        match rng.integers(5):
            case 0:
                for id in chosen:
                    await session.delete_vector(id, missing_ok=True)
                touched |= set(chosen)
            case 1 | 2:
                ids = sorted(set(chosen))
                await session.add_batch(
                    ids, rows(len(ids), 8, seed=fresh), [{"replaced": True}] * len(ids), on_conflict="replace"
                )
                touched |= set(ids)
            case 3:
                fresh += 1
                await session.add_batch([f"fresh-{fresh}"], rows(1, 8), [{"fresh": True}])
            case _:
                await session.vacuum()
    times = Counter(seen)
    assert set(times) <= set(initial)
    assert set(times.values()) == {1}
    assert [id for id in initial if id not in touched] == [id for id in seen if id not in touched]
    assert len(touched) > 10


@pytest.mark.parametrize("seed", range(6))
async def test_a_scan_gives_every_row_that_stays_exactly_once(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Small pages: many boundaries.
    monkeypatch.setattr(fabstir_vectordb.session, "SCAN_PAGE_ROWS", 7)
    initial = [f"r{i}" for i in range(200)]
    async with await session_on("memory:") as session:
        await session.add_batch(initial, rows(200, 8), [{"n": i} for i in range(200)])
        await _scan_through(session, np.random.default_rng([SEED, seed]), initial, every=3)


async def test_a_scan_of_many_pages_gives_every_row_that_stays_exactly_once() -> None:
    initial = [f"r{i}" for i in range(2000)]
    async with await session_on("memory:") as session:
        await session.add_batch(initial, rows(2000, 8), [{"n": i} for i in range(2000)])
        await _scan_through(session, np.random.default_rng(SEED), initial, every=100)


async def test_a_scan_goes_on_past_a_replaced_last_row_of_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fabstir_vectordb.session, "SCAN_PAGE_ROWS", 4)
    async with await session_on("memory:") as session:
        await session.add_batch([f"r{i}" for i in range(12)], rows(12, 8))
        seen = []
        async for row in session.scan():
            seen.append(row.id)
            if row.id == "r3":
                await session.add_batch(["r3"], rows(1, 8), on_conflict="replace")
                await session.delete_vector("r4")
                await session.vacuum()
            if row.id == "r8":
                await session.delete_vector("r8")
                await session.vacuum()
        assert seen == [f"r{i}" for i in range(12) if i != 4]


async def test_a_scan_of_rows_that_a_load_replaced_says_so() -> None:
    async with await session_on(f"memory:{uuid.uuid4()}") as session:
        await add_rows(session, 1200)
        await session.save_to_s5()
        async with aclosing(session.scan()) as scan:
            await anext(scan)
            await session.load_user_vectors()
            with pytest.raises(SessionError, match="begin again"):
                async for _ in scan:
                    pass


def test_two_scans_of_the_twin_go_on_beside_changes() -> None:
    with sync.VectorDBSession.create(s5_portal="memory:", user_seed_phrase=PHRASE, session_id="s") as session:
        session.add_batch([f"r{i}" for i in range(1500)], rows(1500, 8))
        first, second = session.scan(), session.scan()
        seen = ([next(first).id], [])
        session.delete_vector("r1400")
        session.vacuum()
        seen[1].extend(row.id for row in second)
        session.add_batch(["r3", "r1300"], rows(2, 8), on_conflict="replace")
        seen[0].extend(row.id for row in first)
        # r3 lay in the page that the first had read already.
        assert seen[0] == [f"r{i}" for i in range(1500) if i not in (1300, 1400)]
        assert seen[1] == [f"r{i}" for i in range(1500) if i != 1400]


# ---- everybody gets a turn


async def test_a_loop_of_searches_lets_others_run_and_can_be_cancelled() -> None:
    searches = 0
    ran = 0

    async def search_on_and_on(session: VectorDBSession) -> None:
        nonlocal searches
        for _ in range(50_000):
            await session.search(query, 1)
            searches += 1

    async def other() -> None:
        nonlocal ran
        while ran < 5:
            await anyio.lowlevel.checkpoint()
            ran += 1
        group.cancel_scope.cancel()

    query = rows(1)[0]
    async with await session_on("memory:") as session:
        await add_rows(session, 20)
        async with anyio.create_task_group() as group:
            group.start_soon(search_on_and_on, session)
            group.start_soon(other)
    assert ran == 5
    assert 0 < searches < 50_000


async def test_a_search_in_a_cancelled_scope_is_cancelled_in_the_end() -> None:
    async with await session_on("memory:") as session:
        await add_rows(session, 20)
        searches = 0
        with anyio.CancelScope() as scope:
            scope.cancel()
            while searches < 50_000:
                await session.search(rows(1)[0], 1)
                searches += 1
        assert scope.cancelled_caught


async def test_search_batch_finishes_beside_adds_without_end() -> None:
    base = rows(1500, 8)
    adds = 0

    async def add_on_and_on(session: VectorDBSession) -> None:
        nonlocal adds
        while adds < 3_000:
            await session.add_batch(["x", "y"], base[:2], on_conflict="replace")
            adds += 1

    async with await session_on("memory:") as session:
        await session.add_batch([f"r{i}" for i in range(1500)], base)
        async with anyio.create_task_group() as group:
            group.start_soon(add_on_and_on, session)
            group.start_soon(add_on_and_on, session)
            for _ in range(5):
                many = await session.search_batch(base[:200], 3, threshold=None)
                assert all(len(hits) == 3 for hits in many)
                assert await session.get(["r1"])
                assert len(await session.search(base[0], 3, threshold=None)) == 3
            finished_after = adds
            group.cancel_scope.cancel()
    assert finished_after < 3_000


def test_a_read_that_meets_a_change_is_not_put_off_a_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever the native core is asked, a change is waiting to come in between: the worst case, made certain."""
    base = rows(40, 8)
    index = Index(IndexParams(), RunParams())
    batch = prepare_batch([f"r{i}" for i in range(40)], base, None, None, lambda: 0, None)
    index.add(batch)
    met = 0
    real = NativeIndex.search_in_steps

    def search(native: NativeIndex, *args: Any, **kwargs: Any) -> Any:
        nonlocal met
        yield from real(native, *args, **kwargs)
        # The reader that holds the lock keeps changes out.
        if met < 100 and not index.gate.lock.locked():
            met += 1
            index.add(batch, "replace")

    monkeypatch.setattr(NativeIndex, "search_in_steps", search)
    assert [hits[0].id for hits in index.search_batch(base[:3], SearchRequest(base[0], 1, None))] == ["r0", "r1", "r2"]
    assert met == 1
    index.close()


def test_a_batch_reads_no_vector_while_it_keeps_changes_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second reader of the same thread would wait behind a change that waits for the first."""
    base = rows(300, 8)
    index = Index(IndexParams(), RunParams(threads=2))
    index.add(prepare_batch([f"r{i}" for i in range(300)], base, None, None, lambda: 0, None))
    steps, get_vectors = NativeIndex.search_in_steps, NativeIndex.get_vectors
    inside, read = [False], 0

    def watched(native: NativeIndex, *args: Any, **kwargs: Any) -> Any:
        inside[0] = True
        yield from steps(native, *args, **kwargs)
        inside[0] = False

    def vectors(native: NativeIndex, slots: Any) -> Any:
        nonlocal read
        assert not inside[0]
        read += 1
        return get_vectors(native, slots)

    monkeypatch.setattr(NativeIndex, "search_in_steps", watched)
    monkeypatch.setattr(NativeIndex, "get_vectors", vectors)
    found = index.search_batch(base, SearchRequest(base[0], 2, None, include_vectors=True))
    assert read == 300
    for vector, hits in zip(base, found, strict=True):
        assert hits[0].vector is not None and hits[0].vector.tolist() == vector.tolist()
    index.close()


def test_a_batch_that_ends_early_keeps_its_memory_until_its_threads_have_stopped() -> None:
    base = rows(4_000, 32)
    index = Index(IndexParams(), RunParams(threads=4))
    index.add(prepare_batch([f"r{i}" for i in range(len(base))], base, None, None, lambda: 0, None))
    request, wrong, has_ended = SearchRequest(base[0], 1, None, ef_search=400), list[str](), threading.Event()

    def read(first: int) -> None:
        while not has_ended.is_set():
            found = index.search_batch(base[first : first + 3], request)
            wrong.extend(hits[0].id for i, hits in enumerate(found) if hits[0].id != f"r{first + i}")

    readers = [threading.Thread(target=read, args=(first,)) for first in (0, 1_000)]
    for reader in readers:
        reader.start()
    native = index._rows.native
    assert native is not None
    try:
        for _ in range(100):
            with closing(native.search_in_steps(base[:1_000], 10, ef_search=400)) as steps:
                assert next(steps).counts.all()
    finally:
        has_ended.set()
        for reader in readers:
            reader.join()
    assert not wrong
    index.close()


class _Stopped(BaseException):
    pass


def _stopped_at(event: int, read: Callable[[], object]) -> bool:
    """Stops a read where CPython looks for signals: when a call of Python begins, and when one of C is over.

    Returns whether the read got there. A real signal may meet a finalizer of whatever was garbage, and keep a lock of
    the logging module's for ever.
    """
    met = 0

    def profile(frame: FrameType, what: str, argument: object) -> None:
        nonlocal met
        if what in ("call", "c_return"):
            met += 1
            if met == event:
                sys.setprofile(None)
                raise _Stopped

    try:
        sys.setprofile(profile)
        read()
    except _Stopped:
        assert met == event
    finally:
        sys.setprofile(None)
    return met == event


# One that comes in the callback of a weak reference is reported there and goes no further.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_ctrl_c_keeps_a_session_from_being_changed_and_destroyed() -> None:
    """Wherever in a read it comes; on the way out of one it kept `destroy` waiting for ever, or changes."""
    base = rows(50, 8)
    session = sync.VectorDBSession.create(s5_portal="memory:", user_seed_phrase=PHRASE, session_id="s")
    session.add_batch([str(row) for row in range(50)], base, [{"row": row} for row in range(50)])
    reads: list[Callable[[], object]] = [
        lambda: session.search(base[0], 3),
        lambda: session.search_batch(base[:2], 3),
        lambda: session.get(["7"]),
        lambda: list(session.scan()),
        session.get_stats,
    ]
    gc.disable()
    try:
        for read in reads:
            event = 1
            while _stopped_at(event, read):
                event += 1
            assert event > 20
    finally:
        gc.enable()

    def end() -> None:
        session.add_batch(["late"], base[:1])
        session.destroy()

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()

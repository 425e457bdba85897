"""The runtime of blocking sessions: the methods of `Runtime`, for callers without an event loop.

The methods are coroutines, as in `Runtime`, so that each verb is written once. None of them waits for an event loop:
`run_here` runs a verb to its end on the caller's thread.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future
from functools import partial
from threading import get_ident
from typing import Any, ClassVar, Final, Generic, ParamSpec, TypeVar

import anyio
from anyio.from_thread import BlockingPortal

from fabstir_vectordb._native.handle import Control
from fabstir_vectordb.errors import InternalError, SessionError
from fabstir_vectordb.index import LazyIndex
from fabstir_vectordb.index.protocol import Gathered, Missing, Need
from fabstir_vectordb.runtime import DESTROYED, AnyIndex, Runtime
from fabstir_vectordb.worker_threads import Outcome

__all__ = ["BlockingRuntime", "iterate_here", "run_here"]

_T = TypeVar("_T")
_P = ParamSpec("_P")

_INSIDE: Final = (
    "a callback of this session called the session and would wait for itself: call it when the first call has returned"
)


class BlockingRuntime(Runtime):
    """Runs the verbs of a session for callers without an event loop, from any thread.

    Reads run on the caller's thread, without a change of threads. Changes, saves and loads run on an event loop in a
    thread of the session, which starts with the first of them.
    """

    is_blocking: ClassVar[bool] = True

    def __init__(self, session_id: str) -> None:
        super().__init__(session_id)
        self._thread: _LoopThread | None = None
        self._thread_lock = threading.Lock()

    def check(self) -> None:
        """Checks that the session is alive: any thread may call it."""
        if self._ended is not None:
            raise self._refused(self._ended)

    async def read(self, need: Need, function: Callable[[Any, Gathered], _T]) -> _T:
        """The result of a read on the caller's thread; it waits for a running change."""

        async def read(index: AnyIndex, gathered: Gathered) -> _T:
            return function(index, gathered)

        return await self._answer(need, read)

    async def cancellable(self, need: Need, function: Callable[[Any, Gathered, Control | None], _T]) -> _T:
        """As `read`: only Ctrl-C stops a call that blocks."""
        return await self.read(need, lambda index, gathered: function(index, gathered, None))

    async def compute(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """The result of a function on the caller's thread."""
        return function(*args, **kwargs)

    async def awaited(self, operation: Callable[[], Awaitable[_T]]) -> _T:
        """The result of an operation, awaited on the event loop of the session's thread."""
        return await self._on_loop(operation)

    async def _ask(self, index: LazyIndex, need: Need, gathered: Gathered) -> Missing:
        return index.missing(need, gathered)

    async def _no_change(self) -> None:
        """Nothing: the index itself waits for the change."""

    @property
    def is_pause_due(self) -> bool:
        """False: the caller's thread runs no other task."""
        return False

    async def end(self, forget: Callable[[], None], close: Callable[[], Awaitable[None]]) -> None:
        """Refuses all later calls, waits for those under way, and ends the loop's thread. Idempotent."""
        if not self.is_open:
            return
        with self._thread_lock:
            if not self.is_open:  # another thread was faster
                return
            self._ended = DESTROYED
            thread, self._thread = self._thread, None
        if thread is None:
            # No operation ever ran: no connection is open.
            self.index.close()
            forget()
            return
        try:
            thread.run(partial(self._end, forget, close))
        finally:
            thread.stop()

    async def _on_loop(self, operation: Callable[[], Awaitable[_T]]) -> _T:
        self._check_open()  # first: in a child process the lock may stay locked
        with self._thread_lock:
            self._check_open()
            thread = self._thread = self._thread or _LoopThread(self._refused)
        return thread.run(operation)


class _LoopThread:
    """An event loop in a daemon thread, so that a program without `destroy` can still exit.

    Args:
        refused: makes the error for a loop that cannot start or be called.
    """

    def __init__(self, refused: Callable[[str], SessionError]) -> None:
        started: Future[BlockingPortal] = Future()
        self._refused = refused
        self._thread = threading.Thread(target=self._run, args=(started,), name="fabstir_vectordb", daemon=True)
        try:
            self._thread.start()
            self._portal = started.result()
        except Exception as error:
            raise refused(f"the event loop of this session could not start: {error}") from error

    @staticmethod
    def _run(started: Future[BlockingPortal]) -> None:
        async def serve() -> None:
            async with BlockingPortal() as portal:
                started.set_result(portal)
                await portal.sleep_until_stopped()

        try:
            anyio.run(serve)
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    def run(self, operation: Callable[[], Awaitable[_T]]) -> _T:
        """The result of an operation on the loop; Ctrl-C stops it."""
        if get_ident() == self._thread.ident:
            raise self._refused(_INSIDE)
        task, call = _Task(operation), None
        del operation
        try:
            call = self._portal.start_task_soon(task.run)
            call.result()
            return task.outcome.get()
        except BaseException:
            # Ctrl-C, or an exception of another signal's handler, stops the task. It may come when the task is under
            # way and `call` is still None. RuntimeError: the loop has ended, so there is nothing to stop.
            if not (call and call.done()):
                with contextlib.suppress(RuntimeError):
                    self._portal.start_task_soon(task.stop)
            raise

    def stop(self) -> None:
        """Ends the loop and its thread."""
        with contextlib.suppress(RuntimeError):  # another thread was faster
            self._portal.call(self._portal.stop)
        self._thread.join()


class _Task(Generic[_T]):
    """An operation that is sent to the loop. It can be stopped before and after its start."""

    def __init__(self, operation: Callable[[], Awaitable[_T]]) -> None:
        self._operation = operation
        self._scope: anyio.CancelScope | None = None
        self._stopped = False
        self.outcome = Outcome[_T]()

    async def run(self) -> None:
        with self.outcome, anyio.CancelScope() as self._scope:
            if self._stopped:
                self._scope.cancel()
            self.outcome.value = await self._operation()

    async def stop(self) -> None:
        self._stopped = True
        if self._scope is not None:
            self._scope.cancel()


# ---- Verbs without an event loop ---------------------------------------------------------------------------


def run_here(verb: Coroutine[Any, Any, _T]) -> _T:
    """The result of a verb of a session with a `BlockingRuntime`, on this thread."""
    try:
        verb.send(None)
    except StopIteration as returned:
        value: _T = returned.value
        return value
    verb.close()
    raise InternalError("a blocking session waited for an event loop")


def iterate_here(verb: AsyncGenerator[_T, None]) -> Iterator[_T]:
    """Yields the items of a verb of a session with a `BlockingRuntime`, on this thread."""
    # An event loop on this thread must not adopt the generator through its hooks.
    hooks = sys.get_asyncgen_hooks()
    try:
        sys.set_asyncgen_hooks(None, None)
        try:
            item = run_here(_step(verb))
        finally:
            sys.set_asyncgen_hooks(*hooks)
        while item is not _END:
            yield item
            item = run_here(_step(verb))
    finally:
        run_here(verb.aclose())


_END: Final[Any] = object()


async def _step(verb: AsyncGenerator[_T, None]) -> _T:
    return await anext(verb, _END)

"""A session for callers of any thread and of any asyncio event loop, which adapters of frameworks need.

A framework calls one store from many threads, from event loops that come and go, and from both synchronous and
asynchronous code. A session belongs to one event loop. So a `SharedSession` has a loop of its own, in a daemon thread,
and its session never leaves that loop. A synchronous call waits for the loop's answer; an asynchronous one awaits it,
and no thread waits. docs/decisions/0027-adapters.md says what else was considered.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from contextvars import copy_context
from dataclasses import field
from typing import Any, Final, Generic, Self, TypeVar, Unpack

from fabstir_vectordb.config import Given, VectorDBConfig, config_of
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import SessionError
from fabstir_vectordb.params import LoadFields, LoadOptions
from fabstir_vectordb.session import VectorDBSession
from fabstir_vectordb.types import ProgressCallback

__all__ = ["TEXT", "SharedSession", "Store"]

_T = TypeVar("_T")

#: What a caller wants of the session: a function that is called on the session's event loop, and awaited there.
Operation = Callable[[VectorDBSession], Awaitable[_T]]

#: Where every adapter keeps the text of a row. Its words are indexed, unless the caller names other `text_fields`.
TEXT: Final = "text"

_CLOSED: Final = "the store is closed"
_FORKED: Final = (
    "this store was made before os.fork(), and a child process cannot use it: its event loop stayed in the parent. "
    "Make a store in the child, or start processes with the method 'spawn' or 'forkserver'"
)
_INSIDE: Final = (
    "a callback of this store called the store and would wait for itself: call it when the first call has returned"
)


@dataclass(eq=False)
class _Home:
    """The event loop of a session, and the session.

    Attributes:
        loop: the loop, which runs in `thread`.
        session: the session, used on the loop alone.
        stop: set on the loop to end it.
        ended: done when the session is destroyed and the loop closed.
        calls: the tasks under way; the loop itself would not keep them alive.
    """

    loop: asyncio.AbstractEventLoop
    session: VectorDBSession
    stop: asyncio.Event
    ended: Future[None] = field(default_factory=Future)
    calls: set[asyncio.Task[None]] = field(default_factory=set)


class _Call(Generic[_T]):
    """One operation on the loop. It can be stopped before and after its start; `answer` is done when it has ended."""

    def __init__(self, operation: Operation[_T]) -> None:
        self._operation: Operation[_T] | None = operation
        self._task: asyncio.Task[None] | None = None
        self._stopped = False
        self.answer: Future[_T] = Future()

    def start(self, home: _Home) -> None:
        self._task = task = home.loop.create_task(self._run(home.session))
        home.calls.add(task)
        task.add_done_callback(home.calls.discard)
        if self._stopped:
            task.cancel()

    def stop(self) -> None:
        self._stopped = True
        if self._task is not None:
            self._task.cancel()

    async def _run(self, session: VectorDBSession) -> None:
        operation, self._operation = self._operation, None
        assert operation is not None
        try:
            value = await operation(session)
        except asyncio.CancelledError:
            # The caller who stopped it has an exception of its own; another one lost its store.
            self.answer.set_exception(SessionError(_CLOSED))
        except BaseException as error:
            self.answer.set_exception(error)
        else:
            self.answer.set_result(value)


class SharedSession:
    """A session that may be called from any thread, and awaited on any asyncio event loop.

    It may be forgotten without `close`: when it is collected, its loop destroys the session and ends.

    Args:
        given: settings of the session, as a caller gave them. Without a ``default_threshold`` among them no search
            drops hits, and without ``text_fields`` a new index has the words of `TEXT`.

    Raises:
        InvalidConfigError: a setting is missing, unknown or out of range.
    """

    def __init__(self, given: Given) -> None:
        # Frameworks filter by score themselves; a default that drops hits would look like rows that were lost.
        config = config_of(given, default_threshold=None, text_fields=TEXT)
        started: Future[_Home] = Future()
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._open = True
        self._thread = threading.Thread(
            target=_serve, args=(config, started), name="fabstir_vectordb.integrations", daemon=True
        )
        self._thread.start()
        try:
            self._home = started.result()
        except BaseException:
            self._thread.join()
            raise
        # Not at exit: by then the daemon thread may be gone.
        weakref.finalize(self, _end, self._home).atexit = False

    def run(self, operation: Operation[_T]) -> _T:
        """The result of an operation, which this thread waits for. Ctrl-C stops it.

        Args:
            operation: is called with the session, on its event loop, and awaited there.

        Raises:
            SessionError: the store is closed, or was made before a fork, or this is its own thread.
        """
        if self._is_here():
            raise SessionError(_INSIDE)
        call = self._send(operation)
        del operation
        try:
            return call.answer.result()
        except BaseException:
            if not call.answer.done():
                self._stop(call)
            raise

    async def arun(self, operation: Operation[_T]) -> _T:
        """The result of an operation, awaited on the caller's asyncio loop.

        A cancellation stops the operation, and is raised when it has ended: it is complete then, or left no trace.

        Args:
            operation: as `run`.

        Raises:
            SessionError: the store is closed, or was made before a fork.
        """
        if self._is_here():
            self._check_open()
            return await operation(self._home.session)
        loop = asyncio.get_running_loop()
        call = self._send(operation)
        del operation
        over = asyncio.Event()

        def tell(_: Future[_T]) -> None:
            with contextlib.suppress(RuntimeError):  # the caller's loop was closed meanwhile
                loop.call_soon_threadsafe(over.set)

        call.answer.add_done_callback(tell)
        cancellation: asyncio.CancelledError | None = None
        while not over.is_set():
            try:
                await over.wait()
            except asyncio.CancelledError as error:
                if cancellation is None:
                    self._stop(call)
                cancellation = error
        if cancellation is not None:
            call.answer.exception()  # taken, so that nobody misses it
            raise cancellation
        return call.answer.result()

    def close(self) -> None:
        """Destroys the session and ends its loop. It waits for a running change, save or load. Idempotent.

        Raises:
            SessionError: this is the session's own thread, which would wait for itself.
        """
        if self._is_here():
            raise SessionError(_INSIDE)
        if self._begin_to_end():
            try:
                self._home.ended.result()
            finally:
                self._thread.join()

    async def aclose(self) -> None:
        """As `close`, awaited.

        Raises:
            SessionError: as `close`.
        """
        if self._is_here():
            raise SessionError(_INSIDE)
        if self._begin_to_end():
            try:
                await asyncio.shield(asyncio.wrap_future(self._home.ended))
            finally:
                if self._home.ended.done():  # not where the caller was cancelled: then the loop ends on its own
                    self._thread.join()

    @property
    def is_open(self) -> bool:
        """Whether calls are accepted."""
        return self._open and self._pid == os.getpid()

    def _is_here(self) -> bool:
        return threading.get_ident() == self._thread.ident and self._pid == os.getpid()

    def _check_open(self) -> None:
        if self._pid != os.getpid():  # first: in a child process the lock may stay locked
            raise SessionError(_FORKED)
        if not self._open:
            raise SessionError(_CLOSED)

    def _send(self, operation: Operation[_T]) -> _Call[_T]:
        self._check_open()
        call = _Call(operation)
        # The caller's context, as of tracing, without the name of its event loop, which anyio would take for ours.
        context = copy_context()
        context.run(_forget_loop)
        with self._lock:  # every start comes before the end of the loop, so that each is answered
            self._check_open()
            self._home.loop.call_soon_threadsafe(call.start, self._home, context=context)
        return call

    def _stop(self, call: _Call[Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: there is nothing to stop
            self._home.loop.call_soon_threadsafe(call.stop)

    def _begin_to_end(self) -> bool:
        """Refuses later calls and tells the loop to end; False in a child process, which has no loop."""
        if self._pid != os.getpid():
            return False
        with self._lock:
            self._open = False
        _end(self._home)
        return True


def _forget_loop() -> None:
    try:
        import sniffio
    except ImportError:
        return
    sniffio.current_async_library_cvar.set(None)


def _end(home: _Home) -> None:
    # Without a lock: the collector may call it in the middle of any other code, also on the loop's own thread.
    with contextlib.suppress(RuntimeError):
        home.loop.call_soon_threadsafe(home.stop.set)


def _serve(config: VectorDBConfig, started: Future[_Home]) -> None:
    home: _Home | None = None

    async def serve() -> None:
        nonlocal home
        home = _Home(asyncio.get_running_loop(), VectorDBSession(config), asyncio.Event())
        started.set_result(home)
        await home.stop.wait()
        try:
            await home.session.destroy()
        finally:
            for task in tuple(home.calls):  # what is left are reads: the session refuses them from now on
                task.cancel()
            await asyncio.gather(*home.calls, return_exceptions=True)

    try:
        asyncio.run(serve())
    except BaseException as error:
        (home.ended if home is not None else started).set_exception(error)
    else:
        assert home is not None
        home.ended.set_result(None)


class Store:
    """What every adapter has beside its framework's methods: versions, every verb of the session, and an end."""

    _shared: SharedSession

    def run(self, operation: Operation[_T]) -> _T:
        """Any verb of the session: ``store.run(lambda session: session.history())``.

        Args:
            operation: is called with the `VectorDBSession`, on the session's event loop, and awaited there.

        Returns:
            What the operation returns.

        Raises:
            SessionError: the store is closed, or was made before a fork.
        """
        return self._shared.run(operation)

    async def arun(self, operation: Operation[_T]) -> _T:
        """As `run`, awaited: ``await store.arun(lambda session: session.history())``."""
        return await self._shared.arun(operation)

    def save(self, *, on_conflict: str = "error", progress: ProgressCallback | None = None) -> str:
        """Stores all documents as a new version and makes it the newest; see `VectorDBSession.save_to_s5`.

        Returns:
            The version's CID.
        """
        return self.run(lambda session: session.save_to_s5(on_conflict=on_conflict, progress=progress))

    async def asave(self, *, on_conflict: str = "error", progress: ProgressCallback | None = None) -> str:
        """As `save`, awaited."""
        return await self.arun(lambda session: session.save_to_s5(on_conflict=on_conflict, progress=progress))

    def load(
        self,
        cid: str | None = None,
        options: LoadOptions | Mapping[str, Any] | None = None,
        **fields: Unpack[LoadFields],
    ) -> Self:
        """Replaces the documents by a saved version; see `VectorDBSession.load_user_vectors`.

        Args:
            cid: the version; None for the newest.
            options, **fields: see LoadOptions. ``missing_ok=True`` starts empty where nothing was saved yet.

        Returns:
            This store.
        """
        self.run(lambda session: session.load_user_vectors(cid, options, **fields))
        return self

    async def aload(
        self,
        cid: str | None = None,
        options: LoadOptions | Mapping[str, Any] | None = None,
        **fields: Unpack[LoadFields],
    ) -> Self:
        """As `load`, awaited."""
        await self.arun(lambda session: session.load_user_vectors(cid, options, **fields))
        return self

    def close(self) -> None:
        """Ends the session and its thread; unsaved documents are lost. Idempotent."""
        self._shared.close()

    async def aclose(self) -> None:
        """As `close`, awaited."""
        await self._shared.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.aclose()

"""The order of a session's calls: one change at a time, reads beside it, on one event loop and in one process.

`Runtime` serves a session whose verbs are awaited; `blocking` has its twin for verbs that block.

Event loops. Locks, limits and connections belong to an event loop. A `Runtime` is bound to the loop that uses it first.
While that loop runs, calls from another loop are refused, as the two could wait for each other for ever. When the loop
has ended, another one may take over.

Fork. A child process has the memory of its parent, but only the thread that forked: locks of other threads stay locked,
and the loop of a `BlockingRuntime` is gone. So a session refuses every call in a child process.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import field
from functools import partial
from threading import get_ident
from typing import Any, ClassVar, Final, NoReturn, ParamSpec, SupportsIndex, TypeAlias, TypeVar

import anyio
import anyio.lowlevel

from fabstir_vectordb._native.handle import Control, NativeCancelled
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import MemoryBudgetExceededError, SessionError
from fabstir_vectordb.index import Index, IndexClosed, LazyIndex
from fabstir_vectordb.index.protocol import Gathered, Missing, Need
from fabstir_vectordb.worker_threads import Outcome, run_in_thread, trim_bytes, trim_threads

__all__ = ["DESTROYED", "READ_ONLY", "AnyIndex", "Runtime"]

_T = TypeVar("_T")
_P = ParamSpec("_P")

AnyIndex: TypeAlias = Index | LazyIndex

#: Worker threads of a session's calls. Enough for any machine this is meant for; anyio's own 40 belong to the host.
_THREADS_MAX: Final = 8
#: Searches on the event loop's thread let other tasks run at least this often: one takes a fraction of a millisecond,
#: but a thousand in a row would block the loop.
_PAUSE_S: Final = 0.005

#: Why a destroyed session refuses a call.
DESTROYED: Final = "Session already destroyed"
#: Why a session without a phrase refuses changes and saves.
READ_ONLY: Final = (
    "this session was opened by a share CID, without a phrase: it only reads. To change the rows, load the share CID "
    "in a session of your own"
)
_FORKED: Final = (
    "this session was made before os.fork(), and a child process cannot use it: its threads and locks stayed in the "
    "parent. Create a session in the child, or start processes with the method 'spawn' or 'forkserver'"
)
_ELSEWHERE: Final = (
    "this session is in use on another event loop, which is still running: use it on one event loop at a time, create "
    "a session for each loop, or share a fabstir_vectordb.sync.VectorDBSession between threads"
)
_ABANDONED: Final = (
    "the event loop that this session was used on was closed in the middle of a call: destroy the session and create "
    "another one"
)
_NO_LOOP: Final = "an event loop must be running (asyncio or trio): without one use fabstir_vectordb.sync"
_COPIED: Final = (
    "a VectorDBSession cannot be copied or pickled: it owns memory, keys and connections. Save it and load it in "
    "another session, in any process"
)

_runtimes: weakref.WeakSet[Runtime] = weakref.WeakSet()


@dataclass(eq=False, slots=True)
class _Binding:
    """The objects of a session that belong to one event loop.

    Attributes:
        loop: the event loop, as asyncio or trio know it.
        thread: the loop's thread.
        turn: lock of the one operation that may change the session.
        threads: limits the worker threads of the session.
        change_over: set when the running change, which reads wait for, is over; None while no change runs.
        calls: number of calls under way.
    """

    loop: Any
    thread: int = field(default_factory=get_ident)
    turn: anyio.Lock = field(default_factory=anyio.Lock)
    threads: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(_THREADS_MAX))
    change_over: anyio.Event | None = None
    calls: int = 0


class Runtime:
    """Runs the verbs of a session on the caller's event loop and in worker threads.

    Args:
        session_id: names the session in errors.

    Attributes:
        index: the current index; a load replaces it while it has the turn.
        is_read_only: whether changes are refused.
    """

    is_blocking: ClassVar[bool] = False

    index: AnyIndex

    def __init__(self, session_id: str) -> None:
        self._session_id = session_id
        self.is_read_only = False
        self._ended: str | None = None
        self._binding: _Binding | None = None
        self._binding_lock = threading.Lock()
        self._last_pause = 0.0
        _runtimes.add(self)

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise self._refused(_COPIED)

    def install(self, index: AnyIndex, load_rest: Callable[[], Awaitable[None]]) -> None:
        """Sets the first index, and the function that replaces a lazily loaded index by a whole one."""
        self.index = index
        self._load_rest = load_rest

    # ---- whether a call may begin

    @property
    def is_open(self) -> bool:
        """Whether calls are accepted: the session is not destroyed, and this is the process that made it."""
        return self._ended is None

    @property
    def was_forked(self) -> bool:
        """Whether this is a forked child of the process that made the session."""
        return self._ended is _FORKED

    def check(self) -> None:
        """Checks that a call may begin.

        Raises:
            SessionError: the session is destroyed, or belongs to another event loop or process.
        """
        if self._ended is not None:
            raise self._refused(self._ended)
        binding = self._binding
        if binding is None or binding.thread != get_ident():
            self._bind()

    def check_writes(self) -> None:
        """Checks that the session may change rows and save.

        Raises:
            SessionError: it is destroyed, or only reads.
        """
        self._check_open()
        if self.is_read_only:
            raise self._refused(READ_ONLY)

    def _check_open(self) -> None:
        if self._ended is not None:
            raise self._refused(self._ended)

    def _refused(self, reason: str) -> SessionError:
        return SessionError(reason, details={"session_id": self._session_id})

    def _bind(self, *, to_end: bool = False) -> _Binding:
        """The binding to the running event loop."""
        try:
            loop = _running_loop()
        except RuntimeError:
            raise self._refused(_NO_LOOP) from None
        with self._binding_lock:
            before = self._binding
            if before is not None and before.loop is loop:
                return before
            if before is not None and not _is_over(before.loop):
                raise self._refused(_ELSEWHERE)
            if before is not None and before.calls and not to_end:
                # Locks that this call holds, such as one of a store, would never be released.
                raise self._refused(_ABANDONED)
            self._binding = binding = _Binding(loop)
            return binding

    @contextlib.contextmanager
    def _called(self) -> Iterator[_Binding]:
        self._check_open()
        binding = self._bind()
        binding.calls += 1
        try:
            yield binding
        finally:
            binding.calls -= 1

    def leave_to_parent(self) -> None:
        """Ends this copy of the session, in a child process, without a lock, a thread or an event loop."""
        self._ended = self._ended or _FORKED
        index = getattr(self, "index", None)  # at the fork another thread may not have installed it yet
        if index is not None and index.native is not None:
            index.native.leave_to_parent()
        if index is not None and index.native_text is not None:
            index.native_text.leave_to_parent()

    # ---- calls of verbs

    async def exclusive(self, operation: Callable[[], Awaitable[_T]]) -> _T:
        """The result of an operation that has the turn: no other operation and no change runs meanwhile."""
        return await self._on_loop(partial(self._exclusive, operation))

    async def change(self, function: Callable[[Index, Control], _T]) -> _T:
        """The result of a change. It waits for its turn and runs in a worker thread on the current index.

        Raises:
            SessionError: the session only reads.
        """
        self.check_writes()
        return await self._on_loop(partial(self._change, function))

    async def concurrent(self, function: Callable[[Index, Control], _T]) -> _T:
        """The result of a change beside which reads run on.

        Raises:
            SessionError: the session only reads.
        """
        self.check_writes()
        return await self._on_loop(partial(self._concurrent, function))

    async def read(self, need: Need, function: Callable[[Any, Gathered], _T]) -> _T:
        """The result of a read of the index; no change comes between its start and its end.

        Args:
            need: the data that the read needs: a lazily loaded index fetches it first.
            function: the read, called with the current index and the gathered data.
        """
        with self._called():
            return await self._answer(need, lambda *asked: self.in_thread(function, *asked))

    async def cancellable(self, need: Need, function: Callable[[Any, Gathered, Control | None], _T]) -> _T:
        """The result of a read that a cancellation stops."""
        with self._called():
            return await self._answer(need, lambda *asked: self.stoppable(partial(function, *asked)))

    async def compute(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """The result of a long function that uses no index, computed in a worker thread."""
        with self._called():
            return await self.in_thread(function, *args, **kwargs)

    async def awaited(self, operation: Callable[[], Awaitable[_T]]) -> _T:
        """The result of an operation that uses no index, awaited on the event loop, beside all others."""
        with self._called():
            return await operation()

    def here(self, read: Callable[[AnyIndex], _T]) -> _T:
        """The result of a read on this thread; it is repeated on the new index where a load replaced the old one."""
        while True:
            self._check_open()
            index = self.index
            try:
                return read(index)
            except IndexClosed:
                self.check_replaced(index)

    def check_replaced(self, index: AnyIndex) -> None:
        """Checks that a closed index was replaced by another one.

        Raises:
            SessionError: it was not replaced: the session is destroyed.
        """
        if self.index is index:
            raise self._refused(self._ended or DESTROYED) from None

    @property
    def is_pause_due(self) -> bool:
        """Whether reads on the event loop's thread have kept other tasks from running for a while."""
        return time.monotonic() - self._last_pause > _PAUSE_S

    async def let_others_run(self) -> None:
        """Lets other tasks run."""
        await anyio.lowlevel.checkpoint()
        self._last_pause = time.monotonic()

    async def end(self, forget: Callable[[], None], close: Callable[[], Awaitable[None]]) -> None:
        """Refuses all later calls, waits for those under way, and closes the index. Idempotent.

        Args:
            forget: a function that wipes secrets.
            close: a function that closes connections, on the event loop.
        """
        if self._ended is None:
            self._bind(to_end=True)
            self._ended = DESTROYED
            await self._end(forget, close)

    # ---- on the event loop

    async def _on_loop(self, operation: Callable[[], Awaitable[_T]]) -> _T:
        return await operation()

    async def _exclusive(self, operation: Callable[[], Awaitable[_T]]) -> _T:
        """Runs an operation in a task of its own, when it has the turn.

        The task is needed for asyncio: Task.cancel, wait_for and timeout interrupt a wait for a thread even where anyio
        shields it. A child of a task group only gets anyio's cancellation, and the group waits for it. So no thread
        works on the index when this returns.
        """
        outcome = Outcome[_T]()
        with self._called() as binding:

            async def run() -> None:
                # An error would come out of the group as an ExceptionGroup.
                with outcome:
                    async with binding.turn:
                        self._check_open()
                        outcome.value = await operation()

            async with anyio.create_task_group() as group:
                group.start_soon(run)
        return outcome.get()

    async def _end(self, forget: Callable[[], None], close: Callable[[], Awaitable[None]]) -> None:
        binding, outcome = self._bind(to_end=True), Outcome[None]()

        async def run() -> None:
            with outcome, anyio.CancelScope(shield=True):
                async with binding.turn:
                    await self.in_thread(self.index.close)
                    forget()
                    await close()
                    outcome.value = None

        async with anyio.create_task_group() as group:
            group.start_soon(run)
        outcome.get()

    async def _change(self, function: Callable[[Index, Control], _T]) -> _T:
        # A reference in the worker thread or a traceback must not keep the caller's arrays alive.
        once = [function]
        del function

        async def change() -> _T:
            await self._load_rest()
            binding = self._bind()
            binding.change_over = over = anyio.Event()
            try:
                result = await self.stoppable(partial(once.pop(), self.whole()))
            finally:
                binding.change_over = None
                over.set()
                await self.trim_where_due()
            if self.whole().calibration_is_due:
                await self.stoppable(self.whole().calibrate_where_due)
            return result

        return await self._exclusive(change)

    async def _concurrent(self, function: Callable[[Index, Control], _T]) -> _T:
        async def change() -> _T:
            await self._load_rest()
            try:
                return await self.stoppable(partial(function, self.whole()))
            finally:
                await self.trim_where_due()

        return await self._exclusive(change)

    async def _answer(self, need: Need, read: Callable[[AnyIndex, Gathered], Awaitable[_T]]) -> _T:
        """The result of a read. A lazily loaded index fetches the data for it first."""
        while True:
            await self._no_change()
            self._check_open()
            index, gathered = self.index, Gathered()
            try:
                if not isinstance(index, LazyIndex) or await self._gather(index, need, gathered):
                    return await read(index, gathered)
            except IndexClosed:  # another index has taken its place: the read is repeated on it
                self.check_replaced(index)

    async def _gather(self, index: LazyIndex, need: Need, gathered: Gathered) -> bool:
        """Fetches the parts that a call lacks; False where the call must be repeated, on another index."""
        while True:
            missing = await self._ask(index, need, gathered)
            if missing.whole:
                await self._on_loop(partial(self._become_whole, missing.optional))
                return False
            if not missing.keys:
                return True
            gathered.take(await self._on_loop(partial(index.parts.fetch, missing.keys, index.check_part)))

    async def _ask(self, index: LazyIndex, need: Need, gathered: Gathered) -> Missing:
        return await self.in_thread(index.missing, need, gathered)

    async def _no_change(self) -> None:
        # A read that waits here can be cancelled, and holds no thread. It waits only for the running change: under a
        # stream of changes it would otherwise never run.
        if self._binding is not None and self._binding.change_over is not None:
            await self._binding.change_over.wait()

    async def _become_whole(self, optional: bool) -> None:
        """Replaces a lazily loaded index by a whole one, for a call that needs it or would be faster."""
        try:
            await self._exclusive(self._load_rest)
        except MemoryBudgetExceededError:
            if not optional:
                raise
            if isinstance(self.index, LazyIndex):
                self.index.stay_lazy()

    # ---- for operations that have the turn

    def whole(self) -> Index:
        """The index, which is whole here."""
        assert isinstance(self.index, Index)
        return self.index

    async def in_thread(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """The result of a function in a worker thread; a cancellation waits for it."""
        return await run_in_thread(partial(function, *args, **kwargs), self._bind(to_end=True).threads)

    async def stoppable(self, function: Callable[[Control], _T]) -> _T:
        """The result of a native call in a worker thread. A cancellation stops it and waits for its roll-back."""
        control = Control()
        outcome = Outcome[_T]()
        once = [function]
        del function

        async def stop_on_cancellation() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                control.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(stop_on_cancellation)
            with outcome:
                # run_sync shields itself and waits for the thread; the other task makes the native call stop.
                outcome.value = await self.in_thread(lambda: once.pop()(control))
            group.cancel_scope.cancel()
        if isinstance(outcome.error, NativeCancelled):
            await anyio.lowlevel.checkpoint_if_cancelled()
        return outcome.get()

    async def trim_where_due(self) -> None:
        """Returns freed memory to the system, once changes have freed much."""
        index = self.index
        budget = index.budget_bytes
        if index.untrimmed_bytes >= trim_bytes(None if budget is None else budget // 16):
            index.untrimmed_bytes = 0
            await trim_threads(every=True)


# ---- Event loops and processes -----------------------------------------------------------------------------


def _running_loop() -> Any:
    token = anyio.lowlevel.current_token()
    return getattr(token, "native_token", token)  # the loop itself before anyio 4.11


def _is_over(loop: Any) -> bool:
    """Whether an event loop has ended."""
    if hasattr(loop, "is_running"):
        return not loop.is_running()
    try:
        loop.run_sync_soon(bool)  # a trio token has no other way to tell that its run has finished
    except RuntimeError:
        return True
    return False


def _leave_to_parent() -> None:
    for runtime in list(_runtimes):
        runtime.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)

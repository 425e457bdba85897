"""Calls in worker threads that keep no memory.

An error must not keep the caller's arrays: its traceback refers to the frames, and a frame or future that refers to the
error makes a reference cycle, which only Python's garbage collector frees. And freed memory must return to the system:
otherwise the allocator keeps it, separately for each thread.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Generic, TypeVar

import anyio
import anyio.to_thread

from fabstir_vectordb._native.handle import trim, trim_thread

__all__ = ["Outcome", "is_async", "run_in_thread", "trim_bytes", "trim_threads"]

_T = TypeVar("_T")

#: Threads that may hold freed buffers of parts: eight of a store, and four that hash and encrypt.
_THREADS: Final = 12
#: Those, and eight of a session's calls. What threads that have ended held is taken over by those that are made anew.
_ALL_THREADS: Final = 20
_PATIENCE_S: Final = 1.0
_BYTES_MIN: Final = 4_000_000
_UNLIMITED_BYTES: Final = 128_000_000


class Outcome(Generic[_T]):
    """The result or exception of a call in a thread or task.

    Example:
        >>> with outcome:                    # there
        ...     outcome.value = call()
        >>> outcome.get()                    # here, once
    """

    value: _T

    def __init__(self) -> None:
        self.error: Exception | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        self.error = error
        return True

    def get(self) -> _T:
        """Returns the value, or raises the error."""
        if self.error is None:
            return self.value
        error, self.error = self.error, None
        try:
            raise error
        finally:
            del error


async def run_in_thread(function: Callable[[], _T], limiter: anyio.CapacityLimiter) -> _T:
    """The result of a function in a worker thread; a cancellation waits for it."""
    outcome = Outcome[_T]()

    def run() -> None:
        with outcome:
            outcome.value = function()

    await anyio.to_thread.run_sync(run, limiter=limiter)
    return outcome.get()


def trim_bytes(room: int | None) -> int:
    """Bytes of freed buffers after which they are returned to the system. Seldom enough, as a return takes
    milliseconds, and the next buffers need new pages.

    Args:
        room: bytes of memory that may hold freed buffers; None for no limit.
    """
    return _UNLIMITED_BYTES if room is None else max(_BYTES_MIN, room)


async def trim_threads(*, every: bool = False) -> None:
    """Returns freed memory of worker threads to the system.

    Args:
        every: of as many as may hold any, in twice the time; else of those that were used last.
    """
    count = _ALL_THREADS if every else _THREADS
    limiter = anyio.CapacityLimiter(count)
    # The calls wait for each other, so that each runs in another thread.
    gate = threading.Barrier(count)

    def trim_here() -> None:
        turn = 0
        with suppress(threading.BrokenBarrierError):
            turn = gate.wait(_PATIENCE_S)
        (trim_thread if turn else trim)()

    with anyio.CancelScope(shield=True):
        async with anyio.create_task_group() as group:
            for _ in range(count):
                group.start_soon(run_in_thread, trim_here, limiter)


def is_async(function: Callable[..., Any]) -> bool:
    """Whether a function, or an object's call, is a coroutine function."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004

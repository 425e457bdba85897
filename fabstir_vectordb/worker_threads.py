"""Calls in worker threads, which leave no memory behind.

An error must not keep what it came from: its traceback names the frames, and a frame that names the error, or a future
that holds it, makes a circle which only Python's collector ends, the caller's arrays in it.  And memory that was freed
must go back to the system: the allocator keeps it otherwise, for each thread by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Final, Generic, TypeVar

import anyio
import anyio.to_thread

from fabstir_vectordb._native.handle import trim, trim_thread

__all__ = ["Outcome", "run_in_thread", "settle_bytes", "settle_threads"]

_T = TypeVar("_T")

#: Threads that have carried parts lately: eight of a store, and four that hash and encrypt.
_THREADS: Final = 12
_PATIENCE_S: Final = 1.0
_BYTES_MIN: Final = 4_000_000
_UNLIMITED_BYTES: Final = 128_000_000


class Outcome(Generic[_T]):
    """What a call returned or raised, on its way out of a thread or a task.

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


def settle_bytes(room: int | None) -> int:
    """Bytes that came and went, after which freed buffers are given back, where there is room for so many; none for no
    limit. That takes milliseconds, and whoever needs buffers next gets his pages anew."""
    return _UNLIMITED_BYTES if room is None else max(_BYTES_MIN, room)


async def settle_threads() -> None:
    """Settles the worker threads that were last idle, whoever worked in them."""
    limiter = anyio.CapacityLimiter(_THREADS)
    # They wait for each other, so that each is another one.
    gate = threading.Barrier(_THREADS)

    def settle_here() -> None:
        turn = 0
        with suppress(threading.BrokenBarrierError):
            turn = gate.wait(_PATIENCE_S)
        (trim_thread if turn else trim)()

    with anyio.CancelScope(shield=True):
        async with anyio.create_task_group() as group:
            for _ in range(_THREADS):
                group.start_soon(run_in_thread, settle_here, limiter)

"""Access to an index: readers beside one change, and no call once the index is closed.

A change makes the generation odd while it runs and another even number afterwards, so a reader can detect a change (a
seqlock). A reader first reads without the lock. Its result, or its exception, counts only where the generation stayed
the same, as it may have read half of a change. Otherwise it reads again under the lock, so a stream of changes cannot
delay it further. So slots, ids and metadata of one read always belong to one numbering, and a reader that meets no
change takes no lock.

`close` waits for the calls under way, since they use native memory.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, ParamSpec, TypeVar, TypeVarTuple

__all__ = ["BUSY", "Busy", "Gate", "IndexClosed"]

_T = TypeVar("_T")
_P = ParamSpec("_P")
_Ts = TypeVarTuple("_Ts")
_CLOSE_WAIT_S: Final = 0.1


class IndexClosed(Exception):
    """The index was closed: its session was destroyed, or loaded another one in its place."""


class Busy:
    """The type of BUSY: a read that did not wait met a change, or a closed index."""


BUSY: Final = Busy()


class Gate:
    """The lock, generation and calls of one index.

    Attributes:
        generation: odd while a change runs.
        lock: held by every call that must not run beside a change.
        inside: whether the index is open, then one entry for each call under way.
        emptied: set by the last call that leaves a closed index.
    """

    # The first entry of `inside` tells whether the index is open; each call under way adds another entry. Operations
    # of a deque are atomic and have one order for all threads, with the GIL and without: either `close` sees a call
    # that enters, or that call sees that the index is closed. A lock, taken twice, would cost a search 0.3 µs.
    #
    # Readers use no context manager: Python raises KeyboardInterrupt at the start of a Python function, so Ctrl-C could
    # keep an ``__exit__`` from removing the entry. Calls of C are not interrupted; the code after them is in `try`. For
    # the same reason each way to read has these steps itself, as has `Repeat.search`.

    __slots__ = ("emptied", "generation", "inside", "lock")

    def __init__(self) -> None:
        self.generation = 0
        self.lock = threading.Lock()
        self.inside: deque[bool] = deque([True])
        self.emptied = threading.Event()

    def within(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """The result of `work`; `close` waits for it.

        Raises:
            IndexClosed: the index is closed.
        """
        inside = self.inside
        try:
            inside.append(True)
            if not inside[0]:
                raise IndexClosed
            return work(*args, **kwargs)
        finally:
            inside.pop()
            if not inside[0] and len(inside) == 1:
                self.emptied.set()

    def alone(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """The result of `work`, beside which no change runs. Reads run on, as the generation stays even.

        Raises:
            IndexClosed: the index is closed.
        """

        def locked() -> _T:
            with self.lock:
                return work(*args, **kwargs)

        return self.within(locked)

    def read(self, read: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
        """The result of `read`, without a change between its start and its end; it may be called twice.

        Raises:
            IndexClosed: the index is closed.
        """
        inside = self.inside
        try:
            inside.append(True)
            if not inside[0]:
                raise IndexClosed
            generation = self.generation
            if not generation & 1:
                try:
                    result = read(*args)
                except Exception:
                    if self.generation == generation:
                        raise
                else:
                    if self.generation == generation:
                        return result
            with self.lock:
                return read(*args)
        finally:
            inside.pop()
            if not inside[0] and len(inside) == 1:
                self.emptied.set()

    def try_read(self, read: Callable[[*_Ts], _T], *args: *_Ts) -> _T | Busy:
        """`read` without waiting: BUSY where a change came in between, or the index is closed."""
        inside = self.inside
        try:
            inside.append(True)
            generation = self.generation
            if not generation & 1 and inside[0]:
                try:
                    result = read(*args)
                except Exception:
                    if self.generation == generation:
                        raise
                else:
                    if self.generation == generation:
                        return result
            return BUSY
        finally:
            inside.pop()
            if not inside[0] and len(inside) == 1:
                self.emptied.set()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Encloses a change: one at a time, under an odd generation. Only for worker threads, which get no Ctrl-C.

        Raises:
            IndexClosed: the index is closed.
        """
        self.inside.append(True)
        try:
            if not self.inside[0]:
                raise IndexClosed
            with self.lock:
                self.generation += 1
                try:
                    yield
                finally:
                    self.generation += 1
        finally:
            self.inside.pop()
            if not self.inside[0] and len(self.inside) == 1:
                self.emptied.set()

    @property
    def is_open(self) -> bool:
        """Whether calls may still enter."""
        return self.inside[0]

    def close(self) -> None:
        """Refuses new calls, and waits for those under way; idempotent."""
        self.inside[0] = False
        while len(self.inside) > 1:
            # With a time limit, as Ctrl-C may stop the last call before it sets the event.
            self.emptied.wait(_CLOSE_WAIT_S)

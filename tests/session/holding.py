"""Holding the native core inside a call, so that what runs beside it can be looked at without a clock."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.lowlevel
import pytest

from fabstir_vectordb._native.handle import Control, NativeIndex

_PATIENCE_S = 60
"""What is waited for comes at once or never: this only turns a hang into a failure."""

# What takes the native core's lock. One search can be told not to wait for it.
_WAITING = (
    *("add", "delete", "vacuum", "stats", "find", "search", "search_one", "live_slots"),
    *("get_vectors", "get_timestamps", "get_ids", "parts", "write_part"),
)


async def until(condition: Callable[[], bool]) -> None:
    """Lets others run until something is so."""
    with anyio.fail_after(_PATIENCE_S):
        # What is waited for happens in threads that set no event of the loop's.
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.001)


async def turns(count: int = 100) -> None:
    """Lets everything run that can run."""
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


class Held:
    """A method of NativeIndex that stops at its start until `let_go`, as if the native core worked for so long.

    Meanwhile the native lock counts as taken: a call on the thread that made this object, the event loop's, which
    would wait for it, fails at once instead of stopping the test for good.

    Attributes:
        inside: calls that are held or run now.
        most_inside: the largest number of them so far.
        control: the control word of the last one, where it takes one.
    """

    def __init__(self, patch: pytest.MonkeyPatch, method: str) -> None:
        self.inside = self.most_inside = 0
        self.control: Control | None = None
        self._entered = threading.Event()
        self._go = threading.Event()
        self._lock = threading.Lock()
        self._loop_thread = threading.get_ident()
        for name in _WAITING:
            if name != method and name in vars(NativeIndex):
                patch.setattr(NativeIndex, name, self._guarded(name, getattr(NativeIndex, name)))
        patch.setattr(NativeIndex, method, self._held(getattr(NativeIndex, method)))

    def _guarded(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(native: NativeIndex, *args: Any, **kwargs: Any) -> Any:
            if self.inside and threading.get_ident() == self._loop_thread:
                if kwargs.get("nowait"):
                    return None
                raise AssertionError(f"{name} would make the event loop wait for a change")
            return real(native, *args, **kwargs)

        return call

    def _held(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(native: NativeIndex, *args: Any, **kwargs: Any) -> Any:
            words = [value for value in (*args, *kwargs.values()) if isinstance(value, Control)]
            with self._lock:
                self.inside += 1
                self.most_inside = max(self.most_inside, self.inside)
                self.control = words[0] if words else None
            self._entered.set()
            try:
                assert self._go.wait(_PATIENCE_S), "nobody let it go"
                return real(native, *args, **kwargs)
            finally:
                with self._lock:
                    self.inside -= 1

        return call

    async def entered(self) -> None:
        """Waits until a call is held."""
        await until(self._entered.is_set)

    def entered_here(self) -> None:
        """`entered`, blocking the caller's thread."""
        assert self._entered.wait(_PATIENCE_S)

    @property
    def cancelled(self) -> bool:
        """Whether the call that is held was asked to stop."""
        return self.control is not None and self.control.cancelled

    def let_go(self) -> None:
        """Lets the call that is held, and all later ones, run."""
        self._go.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A test that failed must not leave a thread behind that waits.
        self.let_go()

"""What belongs to an event loop, for objects that serve several."""

from __future__ import annotations

from typing import Final

import anyio
from anyio.lowlevel import RunVar

__all__ = ["LoopLock"]


class LoopLock:
    """A lock for the tasks of one event loop, for each loop that asks for it.

    anyio's own lock belongs to the kind of loop that took it first, and raises in another. Tasks of different loops do
    not wait for each other here: what it protects must bear that.
    """

    def __init__(self) -> None:
        # Goes with the loop.
        self._of_loop: Final[RunVar[anyio.Lock]] = RunVar(f"fabstir_vectordb.storage.loops.{id(self)}")

    def here(self) -> anyio.Lock:
        """The lock of the running loop."""
        try:
            return self._of_loop.get()
        except LookupError:
            lock = anyio.Lock()
            self._of_loop.set(lock)
            return lock

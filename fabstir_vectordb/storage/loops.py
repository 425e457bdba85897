"""A lock for objects that serve several event loops."""

from __future__ import annotations

from typing import Final

import anyio
from anyio.lowlevel import RunVar

__all__ = ["LoopLock"]


class LoopLock:
    """A separate lock for each event loop.

    A lock of anyio works only in the kind of event loop that took it first, and raises in another. This lock does not
    exclude tasks of different loops from each other: the protected code must allow that.
    """

    def __init__(self) -> None:
        # The lock is freed with its loop.
        self._of_loop: Final[RunVar[anyio.Lock]] = RunVar(f"fabstir_vectordb.storage.loops.{id(self)}")

    def here(self) -> anyio.Lock:
        """The lock of the running loop."""
        try:
            return self._of_loop.get()
        except LookupError:
            lock = anyio.Lock()
            self._of_loop.set(lock)
            return lock

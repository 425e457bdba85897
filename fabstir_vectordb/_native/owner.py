"""The memory of one native index."""

from __future__ import annotations

from typing import Any

from fabstir_vectordb._native.library import ffi, lib


class Owner:
    """The memory of one native index, and what its calls share. The classes beside this one add the calls, by area.

    A call after `close` raises, since cffi refuses None.
    """

    __slots__ = ("_index", "_query_bytes", "_spare", "dim")

    def _own(self, index: Any, dim: int) -> None:
        self.dim, self._query_bytes = dim, 4 * dim
        # Answers of searches that no call uses. The pop and the append of a list are atomic, with the GIL and without.
        self._spare: list[Any] = []
        self._index = ffi.gc(index, lib.fvdb_free)

    def close(self) -> None:
        """Frees all memory at once; idempotent. No other call may be under way."""
        index, self._index = self._index, None  # cffi refuses None with a TypeError; C would follow a NULL
        self._spare.clear()  # they hold the ids of the last hits
        if index is not None:
            ffi.release(index)

    def leave_to_parent(self) -> None:
        """Never frees the memory: in a child process, locks of threads that are not there would make that wait."""
        if self._index is not None:
            ffi.gc(self._index, None)

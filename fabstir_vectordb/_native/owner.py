"""The memory of one native index."""

from __future__ import annotations

from typing import Any

from fabstir_vectordb._native.library import ffi, lib


class Owner:
    """The memory of one native index: the base class of the classes that add the calls.

    A call after `close` raises, since cffi refuses None.
    """

    __slots__ = ("_index", "_query_bytes", "_spare", "dim")

    def _own(self, index: Any, dim: int) -> None:
        self.dim, self._query_bytes = dim, 4 * dim
        # Answer structs that no search is using. `pop` and `append` of a list are atomic, with the GIL and without.
        self._spare: list[Any] = []
        self._index = ffi.gc(index, lib.fvdb_free)

    def close(self) -> None:
        """Frees all memory at once; calling it again does nothing. No other call may be running."""
        index, self._index = self._index, None  # cffi refuses None with a TypeError; C would dereference a NULL
        self._spare.clear()  # the answer structs hold the ids of the last hits
        if index is not None:
            ffi.release(index)

    def leave_to_parent(self) -> None:
        """Gives up freeing the memory, in a forked child: freeing could wait for a lock of a thread of the parent."""
        if self._index is not None:
            ffi.gc(self._index, None)

"""Native calls that train lists, move rows to lists, vacuum, and renumber rows."""

from __future__ import annotations

import numpy as np

from fabstir_vectordb._native.call import Control, UInt32Array, UInt64Array, call, expect, pointer, word_of
from fabstir_vectordb._native.library import ffi, lib
from fabstir_vectordb._native.rows import Rows


class Aging(Rows):
    """Calls for lists, migration, vacuum and the order of rows."""

    __slots__ = ()

    def train(self, cutoff_us: int, control: Control | None = None) -> None:
        """Trains lists for the historical rows and the recent rows older than `cutoff_us`.

        Raises:
            NativeTooFew: there are too few such rows for lists.
            IndexStateError: there was not enough memory, or no thread could start.
            NativeCancelled: the call was cancelled through `control`.
        """
        call(lib.fvdb_train, self._index, cutoff_us, word_of(control))

    def migrate(self, cutoff_us: int, step: int, first: int = 0) -> tuple[int, int]:
        """Moves at most `step` recent rows older than `cutoff_us` to their lists, starting at slot `first`.

        Returns:
            The number of rows moved, and the slot at which to continue, NO_SLOT if there are no more.

        Raises:
            NativeUntrained: there are no lists.
            IndexStateError: there was not enough memory, or no thread could start.
        """
        after, moved = ffi.new("uint32_t *", first), ffi.new("uint32_t *")
        call(lib.fvdb_migrate, self._index, cutoff_us, step, after, moved)
        return int(moved[0]), int(after[0])

    def historical(self) -> UInt64Array:
        """Bitmap of the live rows on lists, in the form that `search` accepts."""
        out = np.empty((self.stats().rows + 63) // 64, dtype=np.uint64)
        call(lib.fvdb_historical, self._index, pointer("uint64_t[]", out), len(out))
        return out

    def probes(self, k: int, recall: float) -> int:
        """Number of lists to search for this recall of historical rows, as measured at training; 0 without lists."""
        lists = ffi.new("uint32_t *")
        call(lib.fvdb_probes, self._index, k, recall, lists)
        return int(lists[0])

    def vacuum_order(self) -> UInt32Array:
        """The live slots in the order in which a vacuum would number them now."""
        out = np.empty(self.stats().live, dtype=np.uint32)
        call(lib.fvdb_vacuum_order, self._index, pointer("uint32_t[]", out), len(out))
        return out

    def vacuum(self, control: Control | None = None) -> UInt32Array:
        """Removes tombstones, takes historical rows out of the graph and renumbers rows: all or nothing.

        Returns:
            Array from old slot to new slot, NO_SLOT for removed rows.

        Raises:
            IndexStateError: there was not enough memory, or no thread could start.
            NativeCancelled: the call was cancelled through `control`.
        """
        slot_map = np.empty(self.stats().rows, dtype=np.uint32)
        call(lib.fvdb_vacuum, self._index, pointer("uint32_t[]", slot_map), len(slot_map), word_of(control))
        return slot_map

    def locality_order(self, control: Control | None = None) -> UInt32Array:
        """All slots in an order that puts recent rows with near vectors next to each other.

        Raises:
            IndexStateError: there was not enough memory, or no thread could start.
            NativeCancelled: the call was cancelled through `control`.
        """
        out = np.empty(self.stats().rows, dtype=np.uint32)
        call(lib.fvdb_locality_order, self._index, pointer("uint32_t[]", out), len(out), word_of(control))
        return out

    def renumber(self, order: UInt32Array) -> None:
        """Moves the row at slot ``order[i]`` to slot i, tombstones included: all or nothing.

        Raises:
            InvalidInputError: `order` is not a permutation of all slots, or moves rows that a vacuum put in front.
            IndexStateError: there was not enough memory.
        """
        expect("order", order, np.uint32, (len(order),))
        call(lib.fvdb_renumber, self._index, pointer("uint32_t[]", order), len(order))

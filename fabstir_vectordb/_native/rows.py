"""Native calls that add, delete, read and count rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.call import (
    ID_ROOM_PER_HIT,
    Control,
    Float32Array,
    Int64Array,
    UInt8Array,
    UInt32Array,
    UInt64Array,
    call,
    expect,
    expect_ids,
    pointer,
    raise_status,
    unpack_ids,
    word_of,
)
from fabstir_vectordb._native.library import ffi, lib
from fabstir_vectordb._native.owner import Owner


class NativeStats(NamedTuple):
    """Counts and resident bytes; the header describes them at fvdb_stats."""

    rows: int
    live: int
    graph_rows: int
    historical: int
    historical_deleted: int
    vectorless: int
    with_vector: int
    moved: int
    lists: int
    nprobe: int
    training_due: int
    memory: int
    bits_serve: int
    bytes_vectors: int
    bytes_codes: int
    bytes_graph: int
    bytes_lists: int
    bytes_ids: int
    bytes_timestamps: int
    bytes_scratch: int
    bytes_total: int
    id_bytes: int


_ON_CONFLICT = {
    "error": lib.FVDB_ON_CONFLICT_ERROR,
    "replace": lib.FVDB_ON_CONFLICT_REPLACE,
    "skip": lib.FVDB_ON_CONFLICT_SKIP,
}


class Rows(Owner):
    """Calls that add, delete, read and count rows."""

    __slots__ = ()

    def add(
        self,
        vectors: Float32Array,
        id_bytes: bytes,
        id_offsets: UInt64Array,
        timestamps: Int64Array,
        on_conflict: str = "error",
        control: Control | None = None,
        vectorless: UInt8Array | None = None,
        for_lists: bool = False,
    ) -> tuple[UInt32Array, UInt32Array]:
        """Adds rows: all or nothing.

        Args:
            vectors: (n, dim) float32, C-contiguous.
            id_bytes, id_offsets: ids, as `pack_ids` returns them.
            timestamps: n int64, microseconds since 1970-01-01T00:00:00Z.
            on_conflict: ``error``, ``replace`` or ``skip`` for ids that are live.
            control: progress and cancellation.
            vectorless: n uint8, 1 for a row without a vector, which is all zeros in `vectors`; None if all have one.
            for_lists: keep the rows out of the graph, which must be empty; call `train`, `migrate` and `vacuum` before
                the next save.

        Returns:
            Two arrays of n uint32: the slot of each row (NO_SLOT if skipped) and the slot that it replaced
            (NO_SLOT if none).

        Raises:
            InvalidInputError, ConflictError: details has ``row``; nothing was added.
            IndexStateError: there was not enough memory, no thread could start, or a limit was exceeded.
            NativeCancelled: the call was cancelled through `control`.
        """
        n = expect_ids(id_bytes, id_offsets)
        expect("vectors", vectors, np.float32, (n, self.dim))
        expect("timestamps", timestamps, np.int64, (n,))
        slots, replaced = np.empty(n, dtype=np.uint32), np.empty(n, dtype=np.uint32)
        rows = ffi.new("fvdb_rows *")
        rows.n = n
        rows.vectors = pointer("float[]", vectors)
        rows.id_bytes = ffi.from_buffer("uint8_t[]", id_bytes)
        rows.id_offsets = pointer("uint64_t[]", id_offsets)
        rows.timestamps = pointer("int64_t[]", timestamps)
        rows.for_lists = for_lists
        if vectorless is not None:
            expect("vectorless", vectorless, np.uint8, (n,))
            rows.vectorless = pointer("uint8_t[]", vectorless)
        call(
            lib.fvdb_add,
            self._index,
            rows,
            _ON_CONFLICT[on_conflict],
            pointer("uint32_t[]", slots),
            pointer("uint32_t[]", replaced),
            word_of(control),
        )
        return slots, replaced

    def delete(self, id_bytes: bytes, id_offsets: UInt64Array, missing_ok: bool) -> UInt32Array:
        """Turns the rows of ids into tombstones: all or nothing.

        Returns:
            The slot of each id, NO_SLOT for an id that is not live or repeats an earlier id of the call.

        Raises:
            NotFoundError: an id is not live and `missing_ok` is false; details has ``row``.
        """
        n = expect_ids(id_bytes, id_offsets)
        slots = np.empty(n, dtype=np.uint32)
        call(
            lib.fvdb_delete,
            self._index,
            ffi.from_buffer("uint8_t[]", id_bytes),
            pointer("uint64_t[]", id_offsets),
            n,
            missing_ok,
            pointer("uint32_t[]", slots),
        )
        return slots

    def find(self, id_bytes: bytes, id_offsets: UInt64Array) -> UInt32Array:
        """Slots of ids, NO_SLOT for ids that are not live."""
        n = expect_ids(id_bytes, id_offsets)
        slots = np.empty(n, dtype=np.uint32)
        call(
            lib.fvdb_find,
            self._index,
            ffi.from_buffer("uint8_t[]", id_bytes),
            pointer("uint64_t[]", id_offsets),
            n,
            pointer("uint32_t[]", slots),
        )
        return slots

    def get_vectors(self, slots: UInt32Array) -> Float32Array:
        """The exact vectors of slots, (n, dim) float32.

        Raises:
            NotFoundError: a slot is past the end.
        """
        expect("slots", slots, np.uint32, (len(slots),))
        out = np.empty((len(slots), self.dim), dtype=np.float32)
        pointers = pointer("uint32_t[]", slots), len(slots), pointer("float[]", out)
        call(lib.fvdb_get_vectors, self._index, *pointers)
        return out

    def are_vectorless(self, slots: UInt32Array) -> npt.NDArray[np.bool_]:
        """Which of the rows at slots have no vector.

        Raises:
            NotFoundError: a slot is past the end.
        """
        expect("slots", slots, np.uint32, (len(slots),))
        out = np.empty(len(slots), dtype=np.uint8)
        pointers = pointer("uint32_t[]", slots), len(slots), pointer("uint8_t[]", out)
        call(lib.fvdb_are_vectorless, self._index, *pointers)
        return out.astype(np.bool_)

    def get_timestamps(self, slots: UInt32Array) -> Int64Array:
        """The timestamps of slots, n int64 microseconds since 1970.

        Raises:
            NotFoundError: a slot is past the end.
        """
        expect("slots", slots, np.uint32, (len(slots),))
        out = np.empty(len(slots), dtype=np.int64)
        pointers = pointer("uint32_t[]", slots), len(slots), pointer("int64_t[]", out)
        call(lib.fvdb_get_timestamps, self._index, *pointers)
        return out

    def get_ids(self, slots: UInt32Array) -> list[str]:
        """The ids of slots.

        Raises:
            NotFoundError: a slot is past the end.
        """
        expect("slots", slots, np.uint32, (len(slots),))
        offsets = np.zeros(len(slots) + 1, dtype=np.uint64)
        diag = ffi.new("fvdb_diag *")
        room = len(slots) * ID_ROOM_PER_HIT
        while True:
            out = np.empty(max(room, 1), dtype=np.uint8)
            status = lib.fvdb_get_ids(
                self._index,
                pointer("uint32_t[]", slots),
                len(slots),
                pointer("uint8_t[]", out),
                len(out),
                pointer("uint64_t[]", offsets),
                diag,
            )
            if status == lib.FVDB_ERR_BUFFER:
                room = int(diag.expected)
                continue
            if status:
                raise_status(status, diag)
            return unpack_ids(out[: int(offsets[-1])].tobytes(), offsets)

    def live_slots(self, first: int, capacity: int) -> UInt32Array:
        """At most `capacity` live slots from `first` on, ascending."""
        out = np.empty(capacity, dtype=np.uint32)
        count = ffi.new("uint32_t *")
        call(lib.fvdb_live_slots, self._index, first, pointer("uint32_t[]", out), capacity, count)
        return out[: count[0]]

    def live_bitmap(self) -> UInt64Array:
        """Bitmap of the live rows, in the form that `search` accepts."""
        out = np.empty((self.stats().rows + 63) // 64, dtype=np.uint64)
        call(lib.fvdb_live_bitmap, self._index, pointer("uint64_t[]", out), len(out))
        return out

    def stats(self) -> NativeStats:
        """Counts and memory, in constant time."""
        out = ffi.new("fvdb_stats *")
        call(lib.fvdb_get_stats, self._index, out)
        return NativeStats(*(int(getattr(out, name)) for name in NativeStats._fields))

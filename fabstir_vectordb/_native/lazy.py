"""Native calls of a lazily loaded index, which holds codes and no vectors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.call import Float32Array, UInt32Array, UInt64Array, bitmap_of, call, expect, pointer
from fabstir_vectordb._native.library import ffi, lib
from fabstir_vectordb._native.owner import Owner


class Lazy(Owner):
    """Calls of an index that was loaded lazily."""

    __slots__ = ()

    def load_lazy(self) -> None:
        """Ends a lazy load, which takes only codes, ids, timestamps, tombstones and the graph's head.

        The index then answers `find`, `get_ids`, `get_timestamps`, `live_slots`, `stats` and the calls of this class,
        and refuses all others. It cannot be changed.

        Raises:
            IntegrityError: a part is missing, or the parts do not fit together.
            IndexStateError: there was not enough memory.
        """
        call(lib.fvdb_load_lazy, self._index)

    def candidates(
        self, query: Float32Array, k: int, allow: UInt64Array | None = None
    ) -> tuple[UInt32Array, npt.NDArray[np.float64]]:
        """The k live rows nearest to a query by their codes: slots and estimated distances, nearest first.

        Estimates of several indexes can be compared, as each index estimates the exact distance.

        Raises:
            InvalidInputError: the query is not finite, or zero under cosine.
            IndexStateError: there was not enough memory.
        """
        expect("query", query, np.float32, (self.dim,))
        slots, distances = np.empty(k, dtype=np.uint32), np.empty(k, dtype=np.float64)
        count = ffi.new("uint32_t *")
        call(
            lib.fvdb_candidates,
            self._index,
            pointer("float[]", query),
            k,
            ffi.NULL if allow is None else bitmap_of(allow),
            0 if allow is None else len(allow),
            pointer("uint32_t[]", slots),
            pointer("double[]", distances),
            count,
        )
        return slots[: count[0]], distances[: count[0]]

    def check_part(self, raw: bytes) -> None:
        """Checks a part with vectors, as `search_part` and `part_vectors` require; safe on untrusted bytes.

        Raises:
            IntegrityError: the part breaks a rule of the format.
        """
        call(lib.fvdb_part_check, self._index, ffi.from_buffer(raw), len(raw))

    def search_part(
        self, raw: bytes, query: Float32Array, k: int, allow: UInt64Array | None = None
    ) -> tuple[UInt32Array, npt.NDArray[np.float64]]:
        """The k live rows nearest to a query in a checked part: slots and exact distances, nearest first.

        Raises:
            InvalidInputError: the query is not finite, or zero under cosine.
            IndexStateError: there was not enough memory.
        """
        expect("query", query, np.float32, (self.dim,))
        slots, distances = np.empty(k, dtype=np.uint32), np.empty(k, dtype=np.float64)
        count = ffi.new("uint32_t *")
        call(
            lib.fvdb_part_search,
            self._index,
            ffi.from_buffer(raw),
            len(raw),
            pointer("float[]", query),
            k,
            ffi.NULL if allow is None else bitmap_of(allow),
            0 if allow is None else len(allow),
            pointer("uint32_t[]", slots),
            pointer("double[]", distances),
            count,
        )
        return slots[: count[0]], distances[: count[0]]

    def part_vectors(self, raw: bytes, slots: UInt32Array) -> Float32Array:
        """The exact vectors of slots in a checked part, (n, dim) float32.

        Raises:
            NotFoundError: the part does not have a slot.
        """
        expect("slots", slots, np.uint32, (len(slots),))
        out = np.empty((len(slots), self.dim), dtype=np.float32)
        pointers = pointer("uint32_t[]", slots), len(slots), pointer("float[]", out)
        call(lib.fvdb_part_vectors, self._index, ffi.from_buffer(raw), len(raw), *pointers)
        return out

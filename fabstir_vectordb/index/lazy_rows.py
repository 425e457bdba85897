"""The data of rows of a lazily loaded index: which part has it, whether that is in memory, and what it says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.handle import NativeIndex
from fabstir_vectordb.index.budget import Budget
from fabstir_vectordb.index.contents import DOCUMENTS, VECTORS, LazyShape, PartKey, PartSource
from fabstir_vectordb.index.gate import Gate
from fabstir_vectordb.index.protocol import Gathered, Missing
from fabstir_vectordb.index.rows import Rows, Slots
from fabstir_vectordb.metadata.arena import page_row

__all__ = ["NOTHING", "WHOLE", "LazyRows"]

NOTHING: Final = Missing()
WHOLE: Final = Missing(whole=True)


class LazyRows:
    """The parts of rows.

    Attributes:
        parts: the source of the parts in the store.
        shape: layout of the rows in the parts.

    Args:
        rows: the rows, as far as they are in memory.
        parts, shape: see there.
        changed: metadata that changed since its page was written, by slot.
        gate: the gate of the index.
        budget: its budget.
    """

    def __init__(
        self,
        rows: Rows,
        parts: PartSource,
        shape: LazyShape,
        changed: Mapping[int, bytes | None],
        gate: Gate,
        budget: Budget,
    ) -> None:
        self.parts = parts
        self.shape = shape
        self._rows = rows
        self._changed = changed
        self._gate = gate
        self._budget = budget
        self._has_metadata = False

    @property
    def native(self) -> NativeIndex:
        """The native rows."""
        native = self._rows.native
        assert native is not None  # a version that is loaded lazily has rows
        return native

    # ---- missing parts

    def lacking(self, keys: Iterable[PartKey], gathered: Gathered) -> Missing:
        """The keys that must be fetched; the parts of the other keys are put into `gathered`."""
        parts = gathered.parts
        wanted = [key for key in dict.fromkeys(keys) if key not in parts]
        if not wanted:
            return NOTHING
        if self.parts.size([*parts, *wanted]) > self.parts.room_bytes:
            return WHOLE
        lacking = []
        for key in wanted:
            raw = self.parts.find(key)
            if raw is None:
                lacking.append(key)
            else:
                parts[key] = raw
        return Missing(tuple(lacking)) if lacking else NOTHING

    def missing_metadata(self, gathered: Gathered) -> Missing:
        """The pages that are missing of all metadata, for a filter. Where none is, the arena holds the metadata."""
        if self._has_metadata:
            return NOTHING
        keys = [PartKey(DOCUMENTS, number) for number in self.parts.numbers(DOCUMENTS)]
        self._budget.require("metadata", self._rows.nbytes + self.parts.size(keys))
        lacking = self.lacking(keys, gathered)
        if lacking is NOTHING:
            pages = [(key.number, gathered.parts.pop(key)) for key in keys]
            with self._gate.lock:
                if not self._has_metadata:
                    self._rows.restore_metadata(pages, self.shape.document_rows, self._changed)
                    self._has_metadata = True
        return lacking

    # ---- parts of rows

    def parts_of(self, slots: Slots) -> list[PartKey]:
        """The parts with the vectors of slots."""
        return [PartKey(VECTORS, number) for number in np.unique(slots // self.shape.rows_per_part).tolist()]

    def pages_of(self, slots: Slots) -> list[PartKey]:
        """The pages with the metadata of slots; none where all metadata is in memory."""
        if self._has_metadata:
            return []
        numbers = np.unique(slots // self.shape.document_rows).tolist()
        return [key for number in numbers if self.parts.has(key := PartKey(DOCUMENTS, number))]

    def metadata_of(self, slot: int, gathered: Gathered) -> bytes | None:
        """The metadata of a row, None where it has none; its page must be there."""
        if self._has_metadata:
            return self._rows.arena.get(slot)
        if slot in self._changed:
            return self._changed[slot]
        number, rows_per_page = slot // self.shape.document_rows, self.shape.document_rows
        page = gathered.parts.get(PartKey(DOCUMENTS, number))
        return None if page is None else page_row(number, rows_per_page, page, self._rows.counts.rows, slot)

    def vectors_of(self, slots: Slots, gathered: Gathered) -> npt.NDArray[np.float32]:
        """The vectors of slots, as rows of an array; their parts must be there."""
        out = np.empty((len(slots), self.native.dim), dtype=np.float32)
        numbers = slots // self.shape.rows_per_part
        for number in np.unique(numbers).tolist():
            here = numbers == number
            out[here] = self.native.part_vectors(gathered.parts[PartKey(VECTORS, number)], slots[here])
        return out

"""Native calls that write and load the parts of an index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fabstir_vectordb._native.call import Control, call, raise_status, word_of
from fabstir_vectordb._native.constants import STEPS_MAX
from fabstir_vectordb._native.library import ffi, lib
from fabstir_vectordb._native.owner import Owner
from fabstir_vectordb.errors import InternalError


class PartInfo(NamedTuple):
    """A part that a save writes: its kind (FVDB_PART_*), number within the kind, and size in bytes."""

    kind: int
    number: int
    size: int


class Parts(Owner):
    """Calls that write the parts of an index, or load parts into a new index."""

    __slots__ = ()

    def parts(self, rows_per_part: int, rows_per_group: int) -> list[PartInfo]:
        """The parts of the current index, in a fixed order.

        Args:
            rows_per_part: rows in a part with vectors.
            rows_per_group: rows in a part of another kind.
        """
        count, diag = ffi.new("uint32_t *"), ffi.new("fvdb_diag *")
        status = lib.fvdb_parts(self._index, rows_per_part, rows_per_group, ffi.NULL, 0, count, diag)
        if status and status != lib.FVDB_ERR_BUFFER:
            raise_status(status, diag)
        out = ffi.new("fvdb_part[]", count[0])
        call(lib.fvdb_parts, self._index, rows_per_part, rows_per_group, out, count[0], count)
        return [PartInfo(int(part.kind), int(part.number), int(part.size)) for part in out]

    def graph_steps(self) -> tuple[int, list[int]]:
        """Rows of the stored graph (0 if it must be stored again), and number of rows after each later add."""
        steps, counts = ffi.new("uint32_t[]", STEPS_MAX), ffi.new("uint32_t[2]")
        call(lib.fvdb_graph_steps, self._index, counts, steps, counts + 1)
        return int(counts[0]), ffi.unpack(steps, counts[1])

    def graph_stored(self) -> None:
        """Notes that the graph is stored in its current state."""
        call(lib.fvdb_graph_stored, self._index)

    def write_part(self, rows_per_part: int, rows_per_group: int, kind: int, number: int, size: int) -> bytearray:
        """The bytes of one part; `size` is the size that `parts` returned."""
        raw = bytearray(size)
        written = ffi.new("uint64_t *")
        target = ffi.from_buffer("uint8_t[]", raw, require_writable=True)
        call(lib.fvdb_part_write, self._index, rows_per_part, rows_per_group, kind, number, target, size, written)
        if written[0] != size:
            raise InternalError(f"part {kind}.{number} has {written[0]} bytes, expected {size}: the index has changed")
        return raw

    def load_part(self, raw: bytes | bytearray | memoryview) -> None:
        """Reads one part's uncompressed bytes; safe on untrusted bytes and from several threads.

        Raises:
            IntegrityError: the bytes break a rule of the format.
            IndexStateError: there was not enough memory.
        """
        call(lib.fvdb_load_part, self._index, ffi.from_buffer(raw) if len(raw) else ffi.NULL, len(raw))

    def load_end(self, steps: Sequence[int] = (), control: Control | None = None) -> None:
        """Ends a load of all parts: checks the parts against each other and completes the index.

        Args:
            steps: numbers of rows after each add, as `graph_steps` returned them.
            control: progress and cancellation.

        Raises:
            IntegrityError: a part is missing, or the parts do not fit together.
            IndexStateError: there was not enough memory, or no thread could start.
            NativeCancelled: the call was cancelled through `control`.
        """
        ends = ffi.new("uint32_t[]", list(steps))
        call(lib.fvdb_load_end, self._index, ends, len(steps), word_of(control))

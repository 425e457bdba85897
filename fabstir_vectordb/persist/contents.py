"""What an index and `persist` say to each other: kinds of parts, and what a save reads of an index.

Nothing here imports the rest of `persist`, so that an index may import it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, Protocol, TypeAlias

from fabstir_vectordb._native.handle import (
    PART_BARE,
    PART_CODES,
    PART_GRAPH,
    PART_GRAPH_HEAD,
    PART_IDS,
    PART_LISTS,
    PART_LISTS_HEAD,
    PART_TIMESTAMPS,
    PART_TOMBSTONES,
    PART_VECTORS,
)
from fabstir_vectordb.metadata.schema import Schema

__all__ = [
    "BARE",
    "CHANGES",
    "CODES",
    "DOCUMENTS",
    "EXPIRIES",
    "GRAPH",
    "GRAPH_HEAD",
    "IDS",
    "LISTS",
    "LISTS_HEAD",
    "TIMESTAMPS",
    "TOMBSTONES",
    "VECTORS",
    "IndexSnapshot",
    "NativeParts",
    "PartInfoLike",
    "PartKey",
]

# Kinds of native parts: what each holds stands in docs/format.md.
VECTORS: Final = PART_VECTORS
CODES: Final = PART_CODES
IDS: Final = PART_IDS
TIMESTAMPS: Final = PART_TIMESTAMPS
TOMBSTONES: Final = PART_TOMBSTONES
GRAPH: Final = PART_GRAPH
GRAPH_HEAD: Final = PART_GRAPH_HEAD
LISTS: Final = PART_LISTS
LISTS_HEAD: Final = PART_LISTS_HEAD
BARE: Final = PART_BARE

# Kinds of parts that the native core does not know; its own start at 1.
DOCUMENTS: Final = 0
"""Pages of metadata."""
EXPIRIES: Final = -1
"""Pages that say when rows expire."""
CHANGES: Final = -2
"""Metadata that differs from what the pages say."""

PartKey: TypeAlias = tuple[int, int]
"""Kind and number of a part."""


class PartInfoLike(Protocol):
    """One native part before it is written."""

    @property
    def kind(self) -> int: ...
    @property
    def number(self) -> int: ...
    @property
    def size(self) -> int: ...


class NativeParts(Protocol):
    """What a save needs from the native index."""

    def parts(self, rows_per_part: int, rows_per_group: int) -> Sequence[PartInfoLike]: ...
    def write_part(
        self, rows_per_part: int, rows_per_group: int, kind: int, number: int, size: int
    ) -> bytes | bytearray: ...
    def graph_steps(self) -> tuple[int, Sequence[int]]: ...
    def stats(self) -> Any: ...


class IndexSnapshot(Protocol):
    """What a save needs from an index; nothing in it may change until the save has returned."""

    @property
    def dim(self) -> int | None: ...
    @property
    def metric(self) -> str: ...
    @property
    def M(self) -> int: ...
    @property
    def ef_construction(self) -> int: ...
    @property
    def chunk_size(self) -> int | None: ...
    @property
    def native(self) -> NativeParts | None: ...
    @property
    def last_change_us(self) -> int: ...
    @property
    def schema(self) -> Schema | None: ...
    def page_sizes(self, rows_per_page: int) -> Mapping[int, int]: ...
    def page(self, number: int, rows_per_page: int) -> bytes: ...
    def pages_kept(
        self, rows_per_page: int, page_sizes: Mapping[int, int], stored: Collection[int]
    ) -> tuple[set[int], list[int]]: ...
    def changes_of(self, slots: Sequence[int]) -> bytes: ...
    def metadata_size(self, slot: int) -> int: ...
    def expiry_parts(self, rows_per_page: int) -> Sequence[tuple[int, bytes]]: ...

"""The interface between an index and its stored versions: kinds of parts, and protocols for saves and loads.

`persist` implements it. Nothing in `index` depends on `persist`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from fabstir_vectordb._native.handle import (
    PART_BIT_CODES,
    PART_GRAPH,
    PART_GRAPH_HEAD,
    PART_IDS,
    PART_LISTS,
    PART_LISTS_HEAD,
    PART_SECOND_LISTS,
    PART_TIMESTAMPS,
    PART_TOMBSTONES,
    PART_VECTORLESS,
    PART_VECTORS,
    NativeIndex,
)
from fabstir_vectordb._native.text import (
    PART_TEXT_DICTIONARY,
    PART_TEXT_HEAD,
    PART_TEXT_POSITIONS,
    PART_TEXT_POSTINGS,
    NativeText,
    TextPart,
)
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.metadata.schema import Schema
from fabstir_vectordb.params import IndexParams
from fabstir_vectordb.types import Receipt

__all__ = [
    "CHANGES",
    "CODES",
    "DOCUMENTS",
    "EXPIRIES",
    "GRAPH",
    "GRAPH_HEAD",
    "IDS",
    "LISTS",
    "LISTS_HEAD",
    "SECOND_LISTS",
    "TEXT_DICTIONARY",
    "TEXT_HEAD",
    "TEXT_KINDS",
    "TEXT_POSITIONS",
    "TEXT_POSTINGS",
    "TIMESTAMPS",
    "TOMBSTONES",
    "VECTORLESS",
    "VECTORS",
    "Fetched",
    "IndexContents",
    "IndexSnapshot",
    "LazyShape",
    "NativeParts",
    "PartKey",
    "PartSource",
    "TextContents",
    "TextShape",
]

# Kinds of native parts; docs/format.md describes them.
VECTORS: Final = PART_VECTORS
CODES: Final = PART_BIT_CODES
IDS: Final = PART_IDS
TIMESTAMPS: Final = PART_TIMESTAMPS
TOMBSTONES: Final = PART_TOMBSTONES
GRAPH: Final = PART_GRAPH
GRAPH_HEAD: Final = PART_GRAPH_HEAD
LISTS: Final = PART_LISTS
LISTS_HEAD: Final = PART_LISTS_HEAD
VECTORLESS: Final = PART_VECTORLESS
SECOND_LISTS: Final = PART_SECOND_LISTS

# Kinds of the parts of a text index.
TEXT_HEAD: Final = PART_TEXT_HEAD
TEXT_DICTIONARY: Final = PART_TEXT_DICTIONARY
TEXT_POSTINGS: Final = PART_TEXT_POSTINGS
TEXT_POSITIONS: Final = PART_TEXT_POSITIONS
TEXT_KINDS: Final = (TEXT_HEAD, TEXT_DICTIONARY, TEXT_POSTINGS, TEXT_POSITIONS)

# Kinds of parts that are no native parts; native kinds start at 1.
DOCUMENTS: Final = 0
"""Pages of metadata."""
EXPIRIES: Final = -1
"""Pages of expiry times."""
CHANGES: Final = -2
"""Metadata that differs from the pages."""


class PartKey(NamedTuple):
    """The key of a part of a version.

    Attributes:
        kind: VECTORS, DOCUMENTS or another kind.
        number: its number within the kind.
    """

    kind: int
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TextShape:
    """What a version says of its text index.

    Attributes:
        fields: paths of the fields.
        k1, b: parameters of BM25.
        analyzer: what divided and stemmed the words, as `Analyzer.to_dict` says it.
        segments: number of segments, and of parts of kind TEXT_HEAD.
        chunk_bytes: size of the chunks of the other kinds.
    """

    fields: tuple[str, ...]
    k1: float
    b: float
    analyzer: Mapping[str, Any]
    segments: int
    chunk_bytes: int


@dataclass(frozen=True, slots=True)
class TextContents:
    """A text index that was read into memory; of a lazily loaded version its heads alone."""

    shape: TextShape
    native: NativeText


# ---- Loads -------------------------------------------------------------------------------------------------


class IndexContents(Protocol):
    """A version that was read into memory.

    Attributes:
        native: the native rows, or None where no row was ever added.
        rows: slots, tombstones included.
        last_change_us: time of the last change to a row, microseconds since 1970.
        schema: the schema of metadata, or None.
        document_rows: rows that a page of metadata covers.
        pages, expiry_pages: pages as (number, bytes).
        changes: the part with metadata that differs from the pages; empty where there is none.
        text: the text index, or None.
    """

    @property
    def native(self) -> NativeIndex | None: ...
    @property
    def rows(self) -> int: ...
    @property
    def last_change_us(self) -> int: ...
    @property
    def schema(self) -> Schema | None: ...
    @property
    def document_rows(self) -> int: ...
    @property
    def pages(self) -> Iterable[tuple[int, bytes]]: ...
    @property
    def expiry_pages(self) -> Sequence[tuple[int, bytes]]: ...
    @property
    def changes(self) -> bytes: ...
    @property
    def text(self) -> TextContents | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LazyShape:
    """Layout of the rows of a lazily loaded version in its parts.

    Attributes:
        rows_per_part: rows of a part with vectors.
        document_rows: rows of a page of metadata.
        graph_rows, historical, lists: counts of the graph and lists, which stay in the store.
    """

    rows_per_part: int
    document_rows: int
    graph_rows: int
    historical: int
    lists: int


@dataclass(frozen=True, slots=True)
class Fetched:
    """Fetched parts, and the receipt of their requests and bytes."""

    parts: Mapping[PartKey, bytes]
    receipt: Receipt


class PartSource(Protocol):
    """The parts of a lazily loaded version that stay in the store until they are needed.

    Attributes:
        room_bytes: most bytes of parts that one call may hold at once.
        nbytes: bytes of cached parts.
    """

    @property
    def room_bytes(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def numbers(self, kind: int) -> Sequence[int]:
        """The numbers of the parts of a kind, ascending."""

    def has(self, key: PartKey) -> bool:
        """Whether the version has such a part."""

    def size(self, keys: Iterable[PartKey]) -> int:
        """Bytes of parts before compression."""

    def find(self, key: PartKey) -> bytes | None:
        """The bytes of a cached part, or None."""

    def count(self, kind: int) -> int:
        """How many parts of a kind are cached."""

    def clear(self) -> None:
        """Frees all parts."""

    def close(self) -> None:
        """Frees all parts, and keeps none of those under way."""

    def fetch(self, keys: Sequence[PartKey], check: Callable[[bytes], None]) -> Awaitable[Fetched]:
        """Fetches parts, for callers that can wait; `check` is called with each part with vectors."""


# ---- Saves -------------------------------------------------------------------------------------------------


class PartInfoLike(Protocol):
    """One native part before it is written."""

    @property
    def kind(self) -> int: ...
    @property
    def number(self) -> int: ...
    @property
    def size(self) -> int: ...


class NativeParts(Protocol):
    """The methods of the native index that a save calls."""

    def parts(self, rows_per_part: int, rows_per_group: int) -> Sequence[PartInfoLike]: ...
    def write_part(
        self, rows_per_part: int, rows_per_group: int, kind: int, number: int, size: int
    ) -> bytes | bytearray: ...
    def graph_steps(self) -> tuple[int, Sequence[int]]: ...
    def stats(self) -> Any: ...


class IndexSnapshot(Protocol):
    """The part of an index that a save reads. It must not change until the save has returned."""

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
    def params(self) -> IndexParams: ...
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
    def text_parts(self) -> tuple[TextShape, Sequence[TextPart]] | None: ...
    def write_text_part(self, part: TextPart, chunk_bytes: int) -> bytearray: ...
    @property
    def text_superseded_bytes(self) -> int: ...

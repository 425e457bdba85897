"""The manifest of a version: what the parts are, and how many bytes each must unpack to.

It is CBOR, stored as the file ``metadata`` of the version's root.  Everything a reader allocates or
decompresses is bounded by it, so `decode_manifest` treats its bytes as hostile even though the root's
encryption authenticates them: a version saved without encryption is authenticated by its CID alone, and that
CID may come from anybody. ``docs/format.md`` describes every key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fabstir_vectordb.errors import IntegrityError, InvalidInputError, StorageError
from fabstir_vectordb.metadata.schema import Schema, parse_schema
from fabstir_vectordb.s5 import cbor

__all__ = [
    "BARE",
    "CHANGES",
    "CODECS",
    "CODES",
    "DOCUMENTS",
    "DRAFT",
    "EXPIRIES",
    "FIRST_KINDS",
    "FORMAT_VERSION",
    "GRAPH_KINDS",
    "MANIFEST_BYTES_MAX",
    "MANIFEST_NAME",
    "PAGE_KINDS",
    "PARTS_MAX",
    "PART_BYTES_MAX",
    "PART_TARGET_BYTES",
    "ROW_KINDS",
    "STEPS_MAX",
    "VECTORS",
    "Layout",
    "Manifest",
    "PartRecord",
    "bytes_of_rows",
    "decode_manifest",
    "encode_manifest",
    "layout_for",
    "part_name",
    "split_name",
]

FORMAT_VERSION = 0
"""Version of the stored layout.  Until 1.0 of the package it stays 0 and may change."""

DRAFT = 1
"""Draft of format 0 that is written. Drafts 0 (manifests without the key) and 1 are read; a later one is refused by
name."""

MANIFEST_NAME = "metadata"
"""Name of the manifest among the root's files, kept from the original layout."""

PARTS_MAX = 900
"""Most parts of a version.  S5.js loses keys in directories of 1000 entries; the rest is room
for the manifest and for files that later releases add."""

PART_TARGET_BYTES = 7 * 256 * 1024
"""Bytes of a part with vectors before compression that the row count aims at.  A search of an index that is
loaded lazily fetches some five of them, so they are small; an upload takes 1-2 s whatever its size, so they
are few: 87 for 100,000 rows of 384 dimensions."""

PART_BYTES_MAX = 1024 * 1024 * 1024
"""Most bytes of one part before compression.  S5.js writes wrong sizes from 2^31 up."""

MANIFEST_BYTES_MAX = 1024 * 1024
"""Most bytes of a manifest; 900 parts take about 70 KB."""

CODECS = ("raw", "zstd")
"""How a part is stored: as it is, or as one zstd frame."""

STEPS_MAX = 256
"""Most steps from the stored graph to the version's: FVDB_STEPS_MAX of the native header."""

_ROWS_MAX = 2**31 - 1
# Rows that parts of other kinds than vectors aim at, and metadata pages, and in how many parts with vectors
# these are: they are small, or read as a whole, and more of them would be more uploads.
_GROUP_ROWS, _GROUP_PARTS_MAX = 73_728, 64
_DOCUMENT_ROWS, _DOCUMENT_PARTS_MAX = 8_064, 7
_DIM_MAX = 4096
_LISTS_MAX = 200_000
_METRICS = ("cosine", "l2", "dot")

# FVDB_PART_* of the native header, and the name each kind has among the root's files.
_NATIVE_NAMES: Mapping[int, str] = {
    1: "vectors",
    2: "codes",
    3: "ids",
    4: "timestamps",
    5: "tombstones",
    6: "recent.graph",
    7: "recent.head",
    8: "historical.list",
    9: "historical.head",
    10: "bare",
}
CODES = 2
"""Kind number of the codes that lazy loads begin with."""
VECTORS = 1
"""Kind number of the vectors."""
BARE = 10
"""Kind number of the part that says which rows have no vector."""
GRAPH_KINDS = frozenset({6, 7})
"""Kind numbers of the graph and its head."""
ROW_KINDS = frozenset({1, 2, 3, 4})
"""Kind numbers of what has so many bytes of each row."""
DOCUMENTS = 0
"""Kind number of metadata pages; the native kinds start at 1."""
EXPIRIES = -1
"""Kind number of the pages that say when rows expire."""
CHANGES = -2
"""Kind number of the part with metadata that differs from what the pages say."""
PAGE_KINDS = frozenset({DOCUMENTS, EXPIRIES, CHANGES})
"""Kind numbers of what is no native part."""
FIRST_KINDS = frozenset({CHANGES, EXPIRIES, CODES, 3, 4, 5, 7, BARE})
"""Kind numbers of what a lazy load begins with: who the rows are, which live, and where the nearest may be."""
_PAGE_NAMES: Mapping[int, str] = {DOCUMENTS: "documents", EXPIRIES: "expiries", CHANGES: "documents.changed"}
_KINDS = {name: kind for kind, name in (*_NATIVE_NAMES.items(), *_PAGE_NAMES.items())}

_NAME = re.compile(r"([a-z]+(?:\.[a-z]+)?)\.([0-9]{4})")


@dataclass(frozen=True, slots=True)
class PartRecord:
    """One part as the manifest knows it.

    Attributes:
        name: its name among the root's files, for example ``vectors.high.0000``.
        hash: BLAKE3 of the bytes before compression and encryption.
        size: number of those bytes.
        codec: one of `CODECS`.
    """

    name: str
    hash: bytes
    size: int
    codec: str


@dataclass(frozen=True, slots=True)
class Layout:
    """How many rows a part covers.

    Attributes:
        rows_per_part: of a part with vectors.
        rows_per_group: of another native part.
        document_rows: of a metadata page.
    """

    rows_per_part: int
    rows_per_group: int
    document_rows: int

    def doubled(self) -> Layout:
        """One of half as many parts."""
        return Layout(2 * self.rows_per_part, 2 * self.rows_per_group, 2 * self.document_rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything a version says about itself, besides the parts' contents.

    Attributes:
        dim: components of a vector; 0 while no row was ever added.
        metric: ``cosine``, ``l2`` or ``dot``.
        M: links a row on the graph's upper layers.
        ef_construction: candidates kept while a row is linked.
        chunk_size: rows a part that the user fixed, or None.
        rows: slots, tombstones included.
        live: rows that searches can return.
        graph_rows: rows in the HNSW graph; 0, or the last of `rows`.
        historical: live rows on lists.
        lists: number of lists.
        layout: rows of a part.
        stored_rows: rows before the first whose links are in no part; `rows` where there are no steps.
        steps: rows after each add that linked rows to the stored graph.
        superseded: bytes before compression that the parts hold of tombstones and of metadata that was replaced; 0 for
            a version that holds nothing but what its live rows are. Of a draft 0, which does not say it, an estimate.
        timestamp_us: newest timestamp that an add gave a row, microseconds since 1970.
        schema: what metadata must look like, or None.
        parts: every part but the manifest, in the order of their names' kinds and numbers.
    """

    dim: int
    metric: str
    M: int
    ef_construction: int
    chunk_size: int | None
    rows: int
    live: int
    graph_rows: int
    historical: int
    lists: int
    layout: Layout
    stored_rows: int
    steps: tuple[int, ...]
    superseded: int
    timestamp_us: int
    schema: Schema | None
    parts: tuple[PartRecord, ...]


def part_name(kind: int, number: int) -> str:
    """The file name of a part.

    Args:
        kind: `DOCUMENTS`, `EXPIRIES`, `CHANGES` or an FVDB_PART_* number.
        number: its 0-based number within the kind.

    Returns:
        A flat name of ``[a-z0-9.]`` with a number of four digits, so that byte order and locale order agree.

    Raises:
        StorageError: the number needs more than four digits.
    """
    if number > 9999:
        raise StorageError(
            f"a version would need part number {number}; the layout ends at 9999",
            details={"number": number, "limit": 9999},
        )
    return f"{_PAGE_NAMES.get(kind) or _NATIVE_NAMES[kind]}.{number:04d}"


def split_name(name: str) -> tuple[int, int]:
    """The kind and number of a part name.

    Raises:
        IntegrityError: it is not a name that `part_name` makes.
    """
    match = _NAME.fullmatch(name)
    if match is not None:
        prefix, number = match[1], int(match[2])
        if prefix in _KINDS:
            return _KINDS[prefix], number
    raise IntegrityError(f"manifest: unknown part name {name[:64]!r}", details={"part": name[:64]})


def layout_for(dim: int, chunk_size: int | None = None) -> Layout:
    """How many rows parts cover.

    It depends on no row count, so that a growing index keeps its part boundaries, and with them the stored
    blobs of all parts that did not change.

    Args:
        dim: components of a vector.
        chunk_size: rows of a part with vectors, where the user fixed them.

    Returns:
        Rows for which a part with vectors stays below `PART_TARGET_BYTES`, and multiples of them.
    """
    # 64 bytes leave room for an id where vectors are short.
    rows = PART_TARGET_BYTES // max(4 * dim, 64)
    rows = chunk_size or (rows // 64 * 64 if rows > 64 else rows)
    group = min(max(_GROUP_ROWS // rows, 1), _GROUP_PARTS_MAX)
    documents = min(max(_DOCUMENT_ROWS // rows, 1), _DOCUMENT_PARTS_MAX)
    return Layout(rows, rows * group, rows * documents)


def encode_manifest(manifest: Manifest) -> bytes:
    """The stored bytes of a manifest; equal manifests give equal bytes."""
    return cbor.encode(
        {
            "version": FORMAT_VERSION,
            "draft": DRAFT,
            "config": {
                "dim": manifest.dim,
                "metric": manifest.metric,
                "M": manifest.M,
                "ef_construction": manifest.ef_construction,
                "chunk_size": manifest.chunk_size,
            },
            "recent_count": manifest.live - manifest.historical,
            "historical_count": manifest.historical,
            "total_vectors": manifest.live,
            "timestamp": manifest.timestamp_us,
            "rows": manifest.rows,
            "graph_rows": manifest.graph_rows,
            "lists": manifest.lists,
            "rows_per_part": manifest.layout.rows_per_part,
            "rows_per_group": manifest.layout.rows_per_group,
            "document_rows": manifest.layout.document_rows,
            "stored_rows": manifest.stored_rows,
            "steps": list(manifest.steps),
            "superseded": manifest.superseded,
            "schema": None if manifest.schema is None else manifest.schema.document(),
            "parts": [[part.name, part.hash, part.size, part.codec] for part in manifest.parts],
        }
    )


def decode_manifest(raw: bytes) -> Manifest:
    """Reads a manifest from untrusted bytes; every field is checked against its limit and against the others.

    Args:
        raw: the bytes of the file ``metadata``.

    Returns:
        The manifest.

    Raises:
        IntegrityError: the bytes break a rule of the format; the message names it.
        StorageError: a newer release wrote it: its format, or its draft of this format, is a later one.
    """
    top = cbor.decode(raw, max_bytes=MANIFEST_BYTES_MAX, what="manifest")
    if not isinstance(top, dict):
        raise _broken("it is not a map")
    version = _integer(top, "version", 0, 2**31)
    if version > FORMAT_VERSION:
        # Checked before anything else: a newer layout may have other keys.
        raise StorageError(
            f"this version was saved in format {version}; this release reads formats up to {FORMAT_VERSION}: "
            "upgrade fabstir-vectordb",
            details={"format_version": version, "supported": FORMAT_VERSION},
        )
    draft = _integer(top, "draft", 1, 2**31) if "draft" in top else 0
    if draft > DRAFT:
        raise StorageError(
            f"this version was saved in draft {draft} of format {version}; this release reads drafts up to {DRAFT}: "
            "upgrade fabstir-vectordb",
            details={"format_version": version, "draft": draft, "supported": DRAFT},
        )
    _exact_keys(top, _TOP_KEYS if draft else _TOP_KEYS - _NEW_IN_DRAFT_1, "it")
    config = top["config"]
    if not isinstance(config, dict):
        raise _broken("config is not a map")
    _exact_keys(config, _CONFIG_KEYS, "config")
    metric = config["metric"]
    if not isinstance(metric, str) or metric not in _METRICS:
        raise _broken("config.metric is none of cosine, l2, dot")

    live = _integer(top, "total_vectors", 0, _ROWS_MAX)
    rows = _integer(top, "rows", live, _ROWS_MAX)
    graph_rows = _integer(top, "graph_rows", 0, rows)
    historical = _integer(top, "historical_count", 0, live)
    lists = _integer(top, "lists", 0, _LISTS_MAX)
    if historical + _integer(top, "recent_count", 0, _ROWS_MAX) != live:
        raise _broken("recent_count and historical_count do not add up to total_vectors")
    if not lists and (historical or graph_rows not in (0, rows)):
        raise _broken("rows are on neither side: there are no lists")
    dim = _integer(config, "dim", 0, _DIM_MAX)
    if dim == 0 and rows:
        raise _broken("it has rows but no dimension")
    parts = _decode_parts(top["parts"])
    superseded = _integer(top, "superseded", 0, 2**63 - 1) if draft else _superseded_of_draft_0(parts, rows, live)
    if rows > live and not superseded:
        raise _broken("it has tombstones, and says that nothing is superseded")
    return Manifest(
        dim=dim,
        metric=metric,
        M=_integer(config, "M", 4, 64),
        ef_construction=_integer(config, "ef_construction", 1, 100_000),
        chunk_size=None if config["chunk_size"] is None else _integer(config, "chunk_size", 1, _ROWS_MAX),
        rows=rows,
        live=live,
        graph_rows=graph_rows,
        historical=historical,
        lists=lists,
        layout=Layout(
            _integer(top, "rows_per_part", 1, _ROWS_MAX),
            _integer(top, "rows_per_group", 1, _ROWS_MAX),
            _integer(top, "document_rows", 1, _ROWS_MAX),
        ),
        stored_rows=_integer(top, "stored_rows", 0, rows),
        steps=_decode_steps(top["steps"], rows),
        superseded=superseded,
        timestamp_us=_integer(top, "timestamp", -(2**63), 2**63 - 1),
        schema=_decode_schema(top["schema"]),
        parts=parts,
    )


_TOP_KEYS = frozenset(
    [
        "version",
        "draft",
        "config",
        "recent_count",
        "historical_count",
        "total_vectors",
        "timestamp",
        "rows",
        "graph_rows",
        "lists",
        "rows_per_part",
        "rows_per_group",
        "document_rows",
        "stored_rows",
        "steps",
        "superseded",
        "schema",
        "parts",
    ]
)
_NEW_IN_DRAFT_1 = frozenset(["draft", "superseded"])
_CONFIG_KEYS = frozenset(["dim", "metric", "M", "ef_construction", "chunk_size"])


def bytes_of_rows(parts: Iterable[PartRecord]) -> int:
    """Bytes before compression of the parts that have so many of each row: vectors, codes, ids, timestamps."""
    return sum(part.size for part in parts if split_name(part.name)[0] in ROW_KINDS)


def _superseded_of_draft_0(parts: Sequence[PartRecord], rows: int, live: int) -> int:
    # What changed metadata took before is not known without the pages: as much as it takes now.
    changed = sum(part.size for part in parts if split_name(part.name)[0] == CHANGES)
    of_rows = max(bytes_of_rows(parts) // rows, 1) * (rows - live) if rows else 0
    return of_rows + changed


def _decode_schema(document: Any) -> Schema | None:
    if document is None:
        return None
    try:
        schema = parse_schema(document)
    except InvalidInputError as error:
        raise _broken(error.message) from None
    if schema.document() != document:
        raise _broken("schema is not spelled out")
    return schema


def _decode_steps(steps: Any, rows: int) -> tuple[int, ...]:
    if not isinstance(steps, list) or len(steps) > STEPS_MAX:
        raise _broken(f"steps is not a list of at most {STEPS_MAX}")
    if not all(type(step) is int and 0 < step <= rows for step in steps):
        raise _broken("a step is no number of rows")
    return tuple(steps)


def _decode_parts(rows: Any) -> tuple[PartRecord, ...]:
    if not isinstance(rows, list) or len(rows) > PARTS_MAX:
        raise _broken(f"parts is not a list of at most {PARTS_MAX}")
    parts: list[PartRecord] = []
    seen: set[str] = set()
    for row in rows:
        if not isinstance(row, list) or len(row) != 4:
            raise _broken("an entry of parts is not a list of 4")
        name, digest, size, codec = row
        if not isinstance(name, str) or name in seen:
            raise _broken("a part has no name, or the name of another")
        split_name(name)
        seen.add(name)
        if not isinstance(digest, bytes) or len(digest) != 32:
            raise _broken(f"the hash of {name} is not 32 bytes")
        if type(size) is not int or not 0 <= size <= PART_BYTES_MAX:
            raise _broken(f"the size of {name} is not in 0..{PART_BYTES_MAX}")
        if not isinstance(codec, str) or codec not in CODECS:
            raise _broken(f"the codec of {name} is none of {', '.join(CODECS)}")
        parts.append(PartRecord(name, digest, size, codec))
    return tuple(parts)


def _broken(reason: str) -> IntegrityError:
    return IntegrityError(f"manifest: {reason}", details={"part": MANIFEST_NAME})


def _exact_keys(value: dict[Any, Any], keys: frozenset[str], what: str) -> None:
    if value.keys() != keys:
        raise _broken(f"{what} does not have exactly the keys {', '.join(sorted(keys))}")


def _integer(value: dict[Any, Any], key: str, least: int, most: int) -> int:
    number = value.get(key)
    # bool is a subclass of int, and CBOR true must not pass for 1.
    if type(number) is not int or not least <= number <= most:
        raise _broken(f"{key} is not an integer in {least}..{most}")
    return number

"""Parts: their names, layout, sealing and opening.

A part is a sequence of bytes, compressed where that saves enough, and encrypted under its own key. Opening it checks
the cipher's tag, and then size and BLAKE3 against the manifest, which the root's encryption authenticates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import DecryptionError, IntegrityError, InvalidInputError, StorageError
from fabstir_vectordb.index.contents import (
    CHANGES,
    CODES,
    DOCUMENTS,
    EXPIRIES,
    GRAPH,
    GRAPH_HEAD,
    IDS,
    LISTS,
    LISTS_HEAD,
    SECOND_LISTS,
    TEXT_DICTIONARY,
    TEXT_HEAD,
    TEXT_KINDS,
    TEXT_POSITIONS,
    TEXT_POSTINGS,
    TIMESTAMPS,
    TOMBSTONES,
    VECTORLESS,
    VECTORS,
    PartKey,
)
from fabstir_vectordb.s5.cid import BlobId, blake3_hash
from fabstir_vectordb.s5.cipher import decrypt_static, encrypt_static, encrypted_size
from fabstir_vectordb.s5.compress import compress, decompress
from fabstir_vectordb.s5.dirv1 import FileEncryption, FileEntry
from fabstir_vectordb.s5.keys import part_key

__all__ = [
    "CODECS",
    "FIRST_KINDS",
    "GRAPH_KINDS",
    "GROUP_KINDS",
    "MANIFEST_NAME",
    "PAGE_KINDS",
    "PARTS_MAX",
    "PART_BYTES_MAX",
    "PART_TARGET_BYTES",
    "ROW_KINDS",
    "Layout",
    "PartRecord",
    "StoredPart",
    "blob_size",
    "by_key",
    "bytes_of_rows",
    "check_entry",
    "check_sizes",
    "encode_part",
    "layout_for",
    "naming",
    "open_blob",
    "part_cid",
    "part_name",
    "seal",
    "split_name",
    "unpacked",
    "with_hash",
]

MANIFEST_NAME = "metadata"
"""Name of the manifest among the root's files, kept from the original layout."""

GRAPH_KINDS = frozenset({GRAPH, GRAPH_HEAD})
"""Kinds of the graph and its head."""
GROUP_KINDS = frozenset({CODES, IDS, TIMESTAMPS, GRAPH})
"""Kinds whose parts cover a group of rows: `Layout.rows_per_group`."""
ROW_KINDS = frozenset({VECTORS, CODES, IDS, TIMESTAMPS})
"""Kinds whose size is proportional to the rows."""
PAGE_KINDS = frozenset({DOCUMENTS, EXPIRIES, CHANGES, *TEXT_KINDS})
"""Kinds that are no parts of the native index of rows."""
FIRST_KINDS = frozenset({CHANGES, EXPIRIES, CODES, IDS, TIMESTAMPS, TOMBSTONES, GRAPH_HEAD, VECTORLESS, TEXT_HEAD})
"""Kinds that a lazy load fetches first: ids, times, tombstones, codes to find the nearest rows, and heads of texts."""

# The name each kind has among the root's files.
_NAMES: Mapping[int, str] = {
    VECTORS: "vectors",
    CODES: "codes",
    IDS: "ids",
    TIMESTAMPS: "timestamps",
    TOMBSTONES: "tombstones",
    GRAPH: "recent.graph",
    GRAPH_HEAD: "recent.head",
    LISTS: "historical.list",
    LISTS_HEAD: "historical.head",
    SECOND_LISTS: "historical.second",
    VECTORLESS: "bare",
    DOCUMENTS: "documents",
    EXPIRIES: "expiries",
    CHANGES: "documents.changed",
    TEXT_HEAD: "text.head",
    TEXT_DICTIONARY: "text.dictionary",
    TEXT_POSTINGS: "text.postings",
    TEXT_POSITIONS: "text.positions",
}
_KINDS = {name: kind for kind, name in _NAMES.items()}
_NAME = re.compile(r"([a-z]+(?:\.[a-z]+)?)\.([0-9]{4})")

_MEDIA_TYPE_PART = "application/octet-stream"

# zstd levels: higher levels compress texts better, but hardly vectors and links.
_LEVEL_ARRAYS = 1
_LEVEL_TEXT = 3
_TEXT_KINDS = frozenset({DOCUMENTS, CHANGES, IDS})

PARTS_MAX = 900
"""Most parts of a version. S5.js loses keys in directories of 1000 entries; the rest is room
for the manifest and for files that later releases add."""
PART_TARGET_BYTES = 7 * 256 * 1024
"""Target size of a part with vectors, before compression. Small, as a search of a lazily loaded index fetches some five
of them. Not smaller, as each upload takes 1-2 s whatever its size: 100,000 rows of 384 dimensions make 87 parts."""
PART_BYTES_MAX = 1024 * 1024 * 1024
"""Most bytes of one part before compression. S5.js writes wrong sizes from 2^31 up."""
CODECS = ("raw", "zstd")
"""Forms of a stored part: as it is, or as one zstd frame."""
# Target rows of a group and of a metadata page, and the most parts with vectors that one of them covers. They are
# larger than parts with vectors, as they are small or read as a whole, and more parts would be more uploads.
_GROUP_ROWS, _GROUP_PARTS_MAX = 73_728, 64
_DOCUMENT_ROWS, _DOCUMENT_PARTS_MAX = 8_064, 7
# Compression must save at least one byte in so many; otherwise the part is stored raw.
_COMPRESSION_GAIN = 32
_ALGORITHM = FileEncryption(key=b"", plaintext_hash=b"").algorithm


@dataclass(frozen=True, slots=True)
class PartRecord:
    """The manifest's record of a part.

    Attributes:
        name: its name among the root's files, for example ``vectors.0000``.
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
    """Rows of a part, by kind.

    Attributes:
        rows_per_part: rows of a part with vectors.
        rows_per_group: rows of another native part.
        document_rows: rows of a metadata page.
    """

    rows_per_part: int
    rows_per_group: int
    document_rows: int

    def doubled(self) -> Layout:
        """The layout with twice the rows of each part."""
        return Layout(2 * self.rows_per_part, 2 * self.rows_per_group, 2 * self.document_rows)


@dataclass(frozen=True, slots=True)
class StoredPart:
    """A part of a stored version: the manifest's record and the root's entry."""

    record: PartRecord
    entry: FileEntry


def part_name(kind: int, number: int) -> str:
    """The file name of a part.

    Args:
        kind: a kind of `index.contents`.
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
    return f"{_NAMES[kind]}.{number:04d}"


def split_name(name: str) -> PartKey:
    """The kind and number of a part name.

    Raises:
        IntegrityError: `part_name` makes no such name.
    """
    match = _NAME.fullmatch(name)
    if match is not None:
        prefix, number = match[1], int(match[2])
        if prefix in _KINDS:
            return PartKey(_KINDS[prefix], number)
    raise IntegrityError(f"manifest: unknown part name {name[:64]!r}", details={"part": name[:64]})


def layout_for(dim: int, chunk_size: int | None = None) -> Layout:
    """The layout of an index.

    It does not depend on the number of rows, so a growing index keeps its part boundaries, and the stored blobs of all
    parts that did not change.

    Args:
        dim: components of a vector.
        chunk_size: rows of a part with vectors, where the user sets them.

    Returns:
        Rows for which a part with vectors stays below `PART_TARGET_BYTES`, and multiples of them.
    """
    # At least 64 bytes a row, so that ids fit where vectors are short.
    rows = PART_TARGET_BYTES // max(4 * dim, 64)
    rows = chunk_size or (rows // 64 * 64 if rows > 64 else rows)
    group = min(max(_GROUP_ROWS // rows, 1), _GROUP_PARTS_MAX)
    documents = min(max(_DOCUMENT_ROWS // rows, 1), _DOCUMENT_PARTS_MAX)
    return Layout(rows, rows * group, rows * documents)


def bytes_of_rows(parts: Iterable[PartRecord]) -> int:
    """Bytes before compression of the parts whose size is proportional to the rows: `ROW_KINDS`."""
    return sum(part.size for part in parts if split_name(part.name)[0] in ROW_KINDS)


# ---- Sealing -----------------------------------------------------------------------------------------------


def encode_part(kind: int, raw: bytes | bytearray, root_key: bytes | None) -> tuple[str, FileEntry, bytes | bytearray]:
    """Compresses and encrypts one part.

    Args:
        kind: the kind of the part.
        raw: its bytes.
        root_key: the index's encryption key, 32 bytes; None where parts are stored in clear.

    Returns:
        Its codec, its entry without the blob's hash, and the blob.
    """
    codec, plain = "raw", raw
    frame = compress(plain, _LEVEL_TEXT if kind in _TEXT_KINDS else _LEVEL_ARRAYS)
    if len(frame) < len(plain) - len(plain) // _COMPRESSION_GAIN:
        codec, plain = "zstd", frame
    entry, blob = seal(plain, root_key, _MEDIA_TYPE_PART)
    return codec, entry, blob


def seal(plain: bytes | bytearray, root_key: bytes | None, media_type: str) -> tuple[FileEntry, bytes | bytearray]:
    """Encrypts a part or a manifest, if there is a key; returns its entry without the blob's hash, and the blob."""
    if root_key is None:
        return FileEntry(hash=bytes(32), size=len(plain), media_type=media_type), plain
    key = part_key(root_key, plain)
    encryption = FileEncryption(key=key, plaintext_hash=blake3_hash(plain))
    entry = FileEntry(hash=bytes(32), size=len(plain), media_type=media_type, encryption=encryption)
    return entry, encrypt_static(key, plain)


def with_hash(entry: FileEntry, digest: bytes) -> FileEntry:
    """An entry with the hash of its blob."""
    # The hash comes from the store: to hash every part again here would make a save 5 % slower.
    return FileEntry(hash=digest, size=entry.size, media_type=entry.media_type, encryption=entry.encryption)


# ---- Opening -----------------------------------------------------------------------------------------------


def check_entry(name: str, entry: FileEntry, encrypted: bool) -> None:
    """Raises IntegrityError where an entry of a root is not encrypted as the root is."""
    if (entry.encryption is not None) is not encrypted:
        raise IntegrityError(
            f"part {name} and the root are not both encrypted or both in clear", details={"part": name}
        )
    if entry.encryption is not None and entry.encryption.algorithm != _ALGORITHM:
        raise IntegrityError(f"part {name} names an unknown cipher", details={"part": name})


def check_sizes(record: PartRecord, entry: FileEntry) -> None:
    """Raises IntegrityError where root and manifest disagree about the size of a part."""
    # A frame that is not smaller would have been stored raw.
    fits = entry.size == record.size if record.codec == "raw" else entry.size < record.size
    if not fits:
        raise IntegrityError(
            f"part {record.name} is stored in {entry.size} bytes and holds {record.size}: impossible for "
            f"codec {record.codec}",
            details={"part": record.name, "expected": record.size, "actual": entry.size},
        )


def blob_size(entry: FileEntry) -> int:
    """Bytes of the stored blob; this package writes no padding."""
    return entry.size if entry.encryption is None else encrypted_size(entry.size)


def part_cid(entry: FileEntry) -> BlobId:
    """The CID of a part's blob."""
    return BlobId(entry.hash, blob_size(entry))


def open_blob(name: str, entry: FileEntry, blob: bytes) -> bytes:
    """The decrypted bytes of a part; the store and the cipher check their number."""
    if entry.encryption is None:
        plain = blob
    else:
        try:
            plain = decrypt_static(entry.encryption.key, blob, entry.size)
        except DecryptionError as error:
            # The authenticated root has this key, so the part is damaged; the phrase is right.
            raise IntegrityError(f"part {name}: {error.message}", details={"part": name}) from error
        if blake3_hash(plain) != entry.encryption.plaintext_hash:
            raise IntegrityError(f"part {name} decrypts to other bytes than the root says", details={"part": name})
    return plain


@contextmanager
def naming(record: PartRecord) -> Iterator[None]:
    """Adds the part's name to errors."""
    try:
        yield
    except (IntegrityError, InvalidInputError) as error:
        if isinstance(error, IntegrityError) and error.details.get("part") == record.name:
            raise
        raise IntegrityError(
            f"part {record.name}: {error.message}", details={**error.details, "part": record.name}
        ) from error


def unpacked(part: StoredPart, blob: bytes) -> bytes:
    """The bytes of a part before compression, checked against the manifest."""
    record = part.record
    plain = open_blob(record.name, part.entry, blob)
    raw = decompress(plain, record.size) if record.codec == "zstd" else plain
    if len(raw) != record.size or blake3_hash(raw) != record.hash:
        raise IntegrityError("its bytes are not those of the manifest")
    return raw


def by_key(parts: Iterable[StoredPart]) -> dict[PartKey, StoredPart]:
    """Parts by kind and number."""
    return {split_name(part.record.name): part for part in parts}

"""S5.js directories (DirV1). The root of every version is a directory, so any S5 client can list the version's parts.

Bytes: ``5f 5d`` and a CBOR array of 4: text ``S5.pro``, header map, dirs map, files map. A file is a map with integer
keys: 3 hash (32 bytes, of the ciphertext if encrypted), 4 size (of the plaintext), 6 media type, 7 seconds,
8 nanoseconds, 9 locations, 22 extra (``{"encryption": {"algorithm", "key", "plaintextHash"}}``), 23 previous version.
A directory is a map with the keys 2 link, 7 seconds, 8 nanoseconds. Lengths are definite, names are in byte order, keys
ascend, and absent fields are left out. S5.js shards directories of 1000 or more entries and loses keys in doing so, so
this module neither writes nor reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any, Final

from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import IntegrityError, InvalidInputError
from fabstir_vectordb.s5 import cbor
from fabstir_vectordb.s5.cid import HASH_BYTES

__all__ = [
    "DIRECTORY_BYTES_MAX",
    "ENTRIES_MAX",
    "Directory",
    "DirectoryEntry",
    "FileEncryption",
    "FileEntry",
    "Location",
    "decode_directory",
    "encode_directory",
    "is_directory",
]

# S5.js turns a directory into a sharded one at 1000 entries.
ENTRIES_MAX: Final = 999
# Limit of the S5 specification for the plaintext of a mutable blob.
DIRECTORY_BYTES_MAX: Final = 2**20
ALGORITHM_XCHACHA20_POLY1305: Final = "xchacha20-poly1305"

_PREFIX: Final = b"\x5f\x5d"
_MAGIC: Final = "S5.pro"
_CBOR_START: Final = b"\x84\x66S5.pro"
_NAME_BYTES_MAX: Final = 1024
_TEXT_BYTES_MAX: Final = 4096
_VERSIONS_MAX: Final = 16
_LOCATIONS_MAX: Final = 64
_UINT_MAX: Final = 2**64 - 1
_LINK_CODES: Final = (0x1E, 0x1F, 0xED)

_LINK, _HASH, _SIZE, _MEDIA_TYPE, _SECONDS, _NANOS, _LOCATIONS, _EXTRA, _PREVIOUS = (
    2,
    3,
    4,
    6,
    7,
    8,
    9,
    22,
    23,
)


@dataclass(frozen=True, slots=True)
class FileEncryption:
    """The encryption of a file.

    Attributes:
        key: the file's key, 32 bytes, a secret.
        plaintext_hash: BLAKE3-256 of the plaintext, 32 bytes.
        algorithm: XChaCha20-Poly1305 in every file that this package writes or can open.
    """

    key: bytes = field(repr=False)
    plaintext_hash: bytes
    algorithm: str = ALGORITHM_XCHACHA20_POLY1305


@dataclass(frozen=True, slots=True)
class Location:
    """Another location of a file.

    Attributes:
        kind: 0 inline bytes, 1 URL, 0x11 SHA-1, 0x12 SHA-256, 0x1e BLAKE3, 0xd5 MD5.
        value: text for a URL, bytes otherwise.
    """

    kind: int
    value: str | bytes


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a directory.

    Attributes:
        hash: BLAKE3-256 of the stored blob, 32 bytes.
        size: size of the plaintext in bytes.
        media_type: MIME type, or ``None``.
        timestamp_s: Unix time in whole seconds, or ``None``.
        encryption: the encryption of the blob, or ``None`` for a plain blob.
        timestamp_ns: nanoseconds within the second, or ``None``.
        locations: other locations of the file.
        previous: the file's earlier version.
        extra: the other entries of the extra map, or the integer hash type that older writers put there.
    """

    hash: bytes
    size: int
    media_type: str | None = None
    timestamp_s: int | None = None
    encryption: FileEncryption | None = None
    timestamp_ns: int | None = None
    locations: tuple[Location, ...] = ()
    previous: FileEntry | None = None
    extra: Mapping[str, Any] | int | None = None


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """One child directory.

    Attributes:
        link: 33 bytes: ``1e H`` for an immutable directory, ``ed`` and a public key for a mutable one.
        timestamp_s: Unix time in whole seconds, or ``None``.
        timestamp_ns: nanoseconds within the second, or ``None``.
    """

    link: bytes
    timestamp_s: int | None = None
    timestamp_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Directory:
    """A parsed directory.

    Attributes:
        files: files by name.
        dirs: child directories by name.
        header: the header map, unchanged. A map with the key ``sharding`` means that the entries are in other blobs.
    """

    files: dict[str, FileEntry]
    dirs: dict[str, DirectoryEntry] = field(default_factory=dict)
    header: dict[str, Any] = field(default_factory=dict)


def is_directory(raw: bytes | bytearray | memoryview) -> bool:
    """Return whether the bytes start like a DirV1, with or without the prefix ``5f 5d``."""
    head = bytes(memoryview(raw)[: len(_PREFIX) + len(_CBOR_START)])
    return head.removeprefix(_PREFIX).startswith(_CBOR_START)


def encode_directory(files: Mapping[str, FileEntry], dirs: Mapping[str, DirectoryEntry] | None = None) -> bytes:
    """Return the bytes of a directory; equal content gives equal bytes.

    Args:
        files: files by name.
        dirs: child directories by name.

    Returns:
        ``5f 5d`` and the CBOR.

    Raises:
        InvalidInputError: there are 1000 entries or more, or a field is out of range.
    """
    dirs = dirs or {}
    if len(files) + len(dirs) > ENTRIES_MAX:
        raise InvalidInputError(
            f"A directory holds at most {ENTRIES_MAX} entries, got {len(files) + len(dirs)}",
            details={"limit": ENTRIES_MAX, "actual": len(files) + len(dirs)},
        )
    return _PREFIX + cbor.encode(
        [
            _MAGIC,
            {},
            {name: _directory_map(dirs[name]) for name in _in_byte_order(dirs)},
            {name: _file_map(files[name]) for name in _in_byte_order(files)},
        ]
    )


def decode_directory(raw: bytes | bytearray | memoryview) -> Directory:
    """Read a directory from untrusted bytes.

    Unknown integer keys are ignored, as by every S5 client. Known fields are checked for type and range.

    Args:
        raw: at most 1 MiB, with or without ``5f 5d``.

    Returns:
        The directory.

    Raises:
        IntegrityError: the bytes are not a directory, or exceed a limit of this module.
    """
    data = bytes(raw)
    value = cbor.decode(data.removeprefix(_PREFIX), max_bytes=DIRECTORY_BYTES_MAX, what="directory")
    if not isinstance(value, list) or len(value) != 4 or value[0] != _MAGIC:
        raise IntegrityError("Not an S5 directory")
    header, dirs, files = (_mapping(part, name) for part, name in zip(value[1:], _PARTS, strict=True))
    if len(dirs) + len(files) > ENTRIES_MAX:
        raise IntegrityError(
            f"A directory holds at most {ENTRIES_MAX} entries, this one has {len(dirs) + len(files)}",
            details={"expected": ENTRIES_MAX, "actual": len(dirs) + len(files)},
        )
    if any(not isinstance(key, str) for key in header):
        raise IntegrityError("The header of a directory has a key that is not text")
    return Directory(
        files={_name(name): _read_file(entry, name, 0) for name, entry in files.items()},
        dirs={_name(name): _read_directory(entry, name) for name, entry in dirs.items()},
        header=header,
    )


_PARTS: Final = ("header", "list of directories", "list of files")


def _in_byte_order(entries: Mapping[str, Any]) -> list[str]:
    try:
        return sorted(entries, key=lambda name: name.encode("utf-8"))
    except UnicodeEncodeError:
        raise InvalidInputError("The name of a directory entry is not valid Unicode") from None


def _directory_map(entry: DirectoryEntry) -> dict[int, Any]:
    fields: dict[int, Any] = {_LINK: entry.link, _SECONDS: entry.timestamp_s, _NANOS: entry.timestamp_ns}
    return {key: value for key, value in fields.items() if value is not None}


def _file_map(entry: FileEntry) -> dict[int, Any]:
    if len(entry.hash) != HASH_BYTES or not 0 <= entry.size <= _UINT_MAX:
        raise InvalidInputError("A file of a directory needs a hash of 32 bytes and a size of 0 to 2^64 - 1")
    extra: Any = entry.extra
    if entry.encryption is not None:
        encryption = {
            "algorithm": entry.encryption.algorithm,
            "key": entry.encryption.key,
            "plaintextHash": entry.encryption.plaintext_hash,
        }
        extra = {**(extra if isinstance(extra, Mapping) else {}), "encryption": encryption}
    fields: dict[int, Any] = {
        _HASH: entry.hash,
        _SIZE: entry.size,
        _MEDIA_TYPE: entry.media_type,
        _SECONDS: entry.timestamp_s,
        _NANOS: entry.timestamp_ns,
        _LOCATIONS: [[location.kind, location.value] for location in entry.locations] or None,
        _EXTRA: extra,
        _PREVIOUS: None if entry.previous is None else _file_map(entry.previous),
    }
    return {key: value for key, value in fields.items() if value is not None}


def _read_file(value: Any, name: object, version: int) -> FileEntry:
    if version >= _VERSIONS_MAX:
        raise IntegrityError(f"A file has more than {_VERSIONS_MAX} earlier versions inside its entry")
    fields = _mapping(value, "entry of a file")
    extra = fields.get(_EXTRA)
    encryption: FileEncryption | None = None
    if isinstance(extra, dict):
        extra = dict(extra)
        if (entry := extra.pop("encryption", None)) is not None:
            encryption = _read_encryption(entry)
        extra = extra or None
    elif extra is not None:
        extra = _uint(extra, "hash type")
    previous = fields.get(_PREVIOUS)
    return FileEntry(
        hash=_bytes(fields.get(_HASH), HASH_BYTES, "hash of a file"),
        size=_uint(fields.get(_SIZE), "size of a file"),
        media_type=_optional_text(fields.get(_MEDIA_TYPE), "media type"),
        timestamp_s=_optional_uint(fields.get(_SECONDS), "time of a file"),
        encryption=encryption,
        timestamp_ns=_optional_uint(fields.get(_NANOS), "time of a file"),
        locations=_read_locations(fields.get(_LOCATIONS)),
        previous=None if previous is None else _read_file(previous, name, version + 1),
        extra=extra,
    )


def _read_encryption(value: Any) -> FileEncryption:
    fields = _mapping(value, "encryption of a file")
    algorithm = _optional_text(fields.get("algorithm"), "algorithm of a file")
    if algorithm is None:
        raise IntegrityError("The encryption of a file names no algorithm")
    return FileEncryption(
        key=_byte_string_or_integers(fields.get("key"), "key of a file"),
        plaintext_hash=_byte_string_or_integers(fields.get("plaintextHash"), "plaintext hash of a file"),
        algorithm=algorithm,
    )


def _read_locations(value: Any) -> tuple[Location, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > _LOCATIONS_MAX:
        raise IntegrityError(f"The locations of a file are not a list of at most {_LOCATIONS_MAX}")
    locations: list[Location] = []
    for item in value:
        if not isinstance(item, list) or len(item) != 2 or not isinstance(item[1], (str, bytes)):
            raise IntegrityError("A location of a file is not a pair of kind and value")
        locations.append(Location(_uint(item[0], "kind of a location"), item[1]))
    return tuple(locations)


def _read_directory(value: Any, name: object) -> DirectoryEntry:
    fields = _mapping(value, "entry of a directory")
    link = _bytes(fields.get(_LINK), 1 + HASH_BYTES, "link to a directory")
    if link[0] not in _LINK_CODES:
        raise IntegrityError(f"The link to a directory starts with an unknown byte {link[0]:02x}")
    return DirectoryEntry(
        link=link,
        timestamp_s=_optional_uint(fields.get(_SECONDS), "time of a directory"),
        timestamp_ns=_optional_uint(fields.get(_NANOS), "time of a directory"),
    )


def _name(value: Any) -> str:
    if not isinstance(value, str) or len(value.encode("utf-8")) > _NAME_BYTES_MAX:
        raise IntegrityError(f"The name of a directory entry is not a text of at most {_NAME_BYTES_MAX} bytes")
    return value


def _mapping(value: Any, what: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise IntegrityError(f"The {what} of a directory is not a map")
    return value


def _bytes(value: Any, size: int, what: str) -> bytes:
    if not isinstance(value, bytes) or len(value) != size:
        raise IntegrityError(f"The {what} in a directory is not {size} bytes")
    return value


def _byte_string_or_integers(value: Any, what: str) -> bytes:
    # S5.js writes a Uint8Array here as a list of numbers, and reads both.
    if isinstance(value, list) and len(value) == 32 and all(type(item) is int and 0 <= item < 256 for item in value):
        return bytes(value)
    return _bytes(value, 32, what)


def _uint(value: Any, what: str) -> int:
    # S5.js writes numbers above 2^32 as float64.
    if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
        value = int(value)
    if type(value) is not int or not 0 <= value <= _UINT_MAX:
        raise IntegrityError(f"The {what} in a directory is not a whole number of 0 to 2^64 - 1")
    return value


def _optional_uint(value: Any, what: str) -> int | None:
    return None if value is None else _uint(value, what)


def _optional_text(value: Any, what: str) -> str | None:
    if value is not None and (not isinstance(value, str) or len(value) > _TEXT_BYTES_MAX):
        raise IntegrityError(f"The {what} in a directory is not a short text")
    return value

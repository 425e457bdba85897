"""The SDK's JavaScript store: one folder a database, with a manifest and chunks of at most 10,000 rows.

S5.js writes them as CBOR, bridges show them as JSON, and a host's node expects JSON under AES-256-GCM. The files are
always named as if they were JSON.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from fabstir_vectordb.errors import DecryptionError, IntegrityError, InvalidConfigError, InvalidInputError
from fabstir_vectordb.importers.base import (
    ForeignRow,
    Source,
    check_dim,
    map_file,
    one_name,
    parse_json,
    read_file,
    storable,
)
from fabstir_vectordb.importers.cbor_reader import MAP, CborReader

__all__ = ["SdkStore"]

_MANIFEST: Final = "manifest.json"
_MANIFEST_BYTES_MAX: Final = 16 << 20
#: Most bytes of a chunk that is JSON: 10,000 rows of 1,536 numbers have about 330 MB, of 384 numbers 80 MB.
_CHUNK_BYTES_MAX: Final = 1 << 29
_AES_KEY_BYTES: Final = 32
_AES_NONCE_BYTES: Final = 12


class SdkStore(Source):
    """A database of the SDK.

    Args:
        path: its folder, or the folder of a user, which has a folder for each database.
        database: the database's name; needed where there are several.
        key_file: file with the key of an encrypted store: 32 bytes, or 64 hexadecimal digits.

    Raises:
        NotFoundError: there is no such database.
        InvalidInputError: there are several, and none was named, or the key is none.
        DecryptionError: the key does not open the manifest, or none was given.
        IntegrityError: the manifest breaks the format.
    """

    format = "fabstir-sdk"
    metric = "cosine"

    def __init__(self, path: str | Path, *, database: str | None = None, key_file: str | Path | None = None) -> None:
        super().__init__()
        self._root = Path(path)
        if not (self._root / _MANIFEST).exists():
            names = [entry.parent.name for entry in sorted(self._root.glob(f"*/{_MANIFEST}"))]
            self._root = self._root / one_name("database", names, database)
        self._key = None if key_file is None else _key_of(Path(key_file))
        manifest = self._manifest()
        self._is_deleted = manifest.get("deleted") is True
        if database is not None and manifest.get("name", database) != database and self._root.name != database:
            one_name("database", [str(manifest.get("name"))], database)
        self._chunks: list[tuple[Path, Any]] = []
        chunks = manifest.get("chunks")
        if not isinstance(chunks, list):
            raise IntegrityError("the manifest must have a list of chunks")
        for chunk in chunks:
            number = chunk.get("chunkId") if isinstance(chunk, dict) else None
            # The number becomes a path, so nothing else is taken, nor the path in `cid`.
            if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 1_000_000_000:
                raise IntegrityError(f"the manifest names a chunk {str(number)[:80]!r}")
            self._chunks.append((self._root / f"chunk-{number}.json", chunk.get("updatedAt")))
        self._expected = manifest.get("vectorCount")
        self._tell(manifest)

    def _tell(self, manifest: dict[str, Any]) -> None:
        if self._is_deleted:
            self.notes.say("the database is marked as deleted, so none of its rows came")
        if folders := manifest.get("folderPaths"):
            self.notes.say(f"the list of {len(folders)} folders did not come; rows have their folder in their metadata")
        for name in ("pendingDocuments", "readyDocuments"):
            if manifest.get(name):
                self.notes.say(f"{name} did not come")

    def _manifest(self) -> dict[str, Any]:
        raw = self._plain(read_file(self._root / _MANIFEST, _MANIFEST_BYTES_MAX), _MANIFEST)
        if raw[:1] == b"{":
            return parse_json(raw, "the manifest")
        reader = CborReader(raw, "the manifest")
        try:
            value = reader.value(_MANIFEST_BYTES_MAX)
            reader.end()
        except IntegrityError as error:
            if self._key is not None:
                raise
            # Encrypted bytes may begin as a map does.
            raise DecryptionError(
                f"{error.message}; or it is encrypted: name the file with its key (key_file)"
            ) from None
        if not isinstance(value, dict):
            raise IntegrityError("the manifest must be a map")
        return value

    def _plain(self, raw: Any, what: str) -> Any:
        """The bytes of a file, decrypted if a key was given."""
        first = raw[0] if len(raw) else 0
        is_plain = first == ord("{") or first >> 5 == MAP
        if self._key is None:
            if not is_plain:
                raise DecryptionError(f"{what} is encrypted or damaged: name the file with its key (key_file)")
            return raw
        return _decrypted(bytes(raw), self._key, what)

    def rows(self) -> Iterator[ForeignRow]:
        """The rows of all chunks, with the time at which their chunk was written."""
        count = 0
        for path, updated in self._chunks:
            time = updated / 1000 if isinstance(updated, (int, float)) and abs(updated) < 1e14 else None
            for id, vector, metadata in self._chunk(path):
                count += 1
                if self._is_deleted:
                    self.notes.deleted += 1
                else:
                    yield ForeignRow(id, vector, storable(metadata, self.notes), time)
        if self._expected != count:
            self.notes.say(f"the manifest says {self._expected} rows, the chunks have {count}")

    def _chunk(self, path: Path) -> Iterator[tuple[str, Any, Any]]:
        mapped = map_file(path)
        raw: mmap.mmap | bytes = self._plain(mapped, path.name)
        if raw[:1] != b"{":
            yield from _cbor_rows(CborReader(raw, path.name))
            return
        if len(raw) > _CHUNK_BYTES_MAX:
            raise IntegrityError(f"{path.name} has more than {_CHUNK_BYTES_MAX:,} bytes")
        rows = parse_json(bytes(raw), path.name).get("vectors")
        if not isinstance(rows, list):
            raise IntegrityError(f"{path.name} must have a list of vectors")
        for row in rows:
            if not isinstance(row, dict) or not isinstance(row.get("id"), str):
                raise IntegrityError(f"{path.name} has a row without an id")
            yield row["id"], _vector(row.get("vector"), path.name), row.get("metadata")


def _cbor_rows(reader: CborReader) -> Iterator[tuple[str, Any, Any]]:
    found = False
    for key in reader.text_keys():
        if key != "vectors":
            reader.skip()
            continue
        found = True
        for _ in reader.array():
            row: dict[str, Any] = {}
            for name in reader.text_keys():
                if name == "vector":
                    row[name] = reader.floats()
                elif name in ("id", "metadata"):
                    row[name] = reader.value()
                else:
                    reader.skip()
            if not isinstance(row.get("id"), str) or "vector" not in row:
                raise reader.fail("a row without id or vector")
            yield row["id"], row["vector"], row.get("metadata")
    reader.end()
    if not found:
        raise reader.fail("it has no vectors")


def _vector(numbers: Any, what: str) -> Any:
    if not isinstance(numbers, list) or any(type(number) not in (int, float) for number in numbers):
        raise IntegrityError(f"{what} has a vector that is no list of numbers")
    check_dim(len(numbers), what)
    try:
        with np.errstate(over="ignore"):
            return np.array(numbers, dtype=np.float64).astype(np.float32)
    except OverflowError:
        raise IntegrityError(f"{what} has a vector with a number that is no float64") from None


def _key_of(path: Path) -> bytes:
    raw = read_file(path, 1 << 10)
    try:
        key = raw if len(raw) == _AES_KEY_BYTES else bytes.fromhex(raw.decode().strip())
    except ValueError:
        key = b""
    if len(key) != _AES_KEY_BYTES:
        raise InvalidInputError(f"{path} must have {_AES_KEY_BYTES} bytes, or {2 * _AES_KEY_BYTES} hexadecimal digits")
    return key


def _decrypted(raw: bytes, key: bytes, what: str) -> bytes:
    from nacl.bindings import crypto_aead_aes256gcm_decrypt
    from nacl.exceptions import CryptoError

    try:
        return bytes(crypto_aead_aes256gcm_decrypt(raw[_AES_NONCE_BYTES:], None, raw[:_AES_NONCE_BYTES], key))
    except CryptoError:
        raise DecryptionError(f"the key does not open {what}, or the file was changed") from None
    except Exception as error:
        raise InvalidConfigError(f"{what}: this machine has no AES-256-GCM in libsodium: {error}") from None

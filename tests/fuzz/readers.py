"""Readers of outside bytes, each as a function, with good inputs and with what holds of an answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any, NamedTuple
from uuid import UUID

import numpy as np

from fabstir_vectordb import VectorDBError
from fabstir_vectordb.collections import fingerprints
from fabstir_vectordb.embedding import EmbedderInfo
from fabstir_vectordb.metadata.arena import MetadataArena, parse_page
from fabstir_vectordb.metadata.changes import encode_changes, parse_changes
from fabstir_vectordb.metadata.schema import parse_schema
from fabstir_vectordb.metadata.values import encode_metadata
from fabstir_vectordb.persist.manifest import Manifest, decode_manifest, encode_manifest
from fabstir_vectordb.persist.parts import Layout, PartRecord, part_name, split_name
from fabstir_vectordb.persist.records import (
    _decode_catalogue,
    _decode_history,
    _encode_catalogue,
    _encode_history,
    _History,
)
from fabstir_vectordb.persist.version import HistoryEntry
from fabstir_vectordb.s5 import cbor
from fabstir_vectordb.s5.cid import BlobId, EncryptedBlobCid, ShareCid, multibase_decode
from fabstir_vectordb.s5.cipher import decrypt_mutable, decrypt_static, encrypt_mutable, encrypt_static
from fabstir_vectordb.s5.compress import compress, decompress
from fabstir_vectordb.s5.dirv1 import FileEncryption, FileEntry, decode_directory, encode_directory
from fabstir_vectordb.s5.phrase import parse_phrase
from fabstir_vectordb.s5.registry import RegistryEntry, pointer_data, pointer_hash

KEY = bytes(range(32))
PHRASE = "amid romance hotel blue most myself guess host lobby rubber hook victim about odds child"


class Target(NamedTuple):
    """A reader, good inputs for it, and what must hold of an answer."""

    read: Callable[[bytes], Any]
    corpus: list[bytes]
    holds: Callable[[Any], bool] = lambda _: True


def _manifest(rows: int) -> Manifest:
    kinds = [(kind, number) for kind in range(1, 8) for number in range(3 if kind in (1, 2, 3, 4, 6) else 1)]
    return Manifest(
        dim=16,
        metric="cosine",
        M=16,
        ef_construction=200,
        chunk_size=None,
        rows=rows,
        live=rows - 7,
        with_vector=rows,
        bits_serve=True,
        graph_rows=rows,
        historical=0,
        lists=0,
        layout=Layout(512, 1024, 256),
        stored_rows=rows - 20,
        steps=(rows - 10, rows),
        superseded=1_000,
        schema=parse_schema({"title": {"type": "string", "required": True}, "tags": "Array<String>"}),
        timestamp_us=1_700_000_000_000_000,
        parts=tuple(PartRecord(part_name(kind, number), bytes([kind]) * 32, 1000, "zstd") for kind, number in kinds),
    )


def _root() -> bytes:
    encryption = FileEncryption(key=KEY, plaintext_hash=bytes(32))
    files = {
        "metadata": FileEntry(hash=bytes(32), size=300, media_type="application/cbor", encryption=encryption),
        "ids.0000": FileEntry(hash=KEY, size=2**33, media_type="application/octet-stream"),
    }
    return encode_directory(files)


def _history() -> bytes:
    entries = [
        HistoryEntry(
            cid=BlobId.of(bytes([revision])),
            saved_us=revision,
            revision=revision,
            vector_count=None if revision == 2 else revision,
            deleted_count=0,
            refused=revision == 3,
        )
        for revision in (4, 3, 2, 1)
    ]
    return _encode_history(_History(entries, 1))


def _page() -> bytes:
    arena = MetadataArena()
    values: list[bytes | None] = [cbor.encode({"text": "x" * i, "n": [i, -i, i / 2, None, True]}) for i in range(20)]
    values[3] = None
    values[4] = encode_metadata(DATED)
    arena.commit(arena.stage(values, 20), np.arange(20, dtype=np.uint32), np.arange(20))
    return arena.page(0, 20, 20)


DATED: dict[str, Any] = {
    "at": [datetime(2024, 1, 31, 12, 0, 0, 5, tzinfo=timezone(timedelta(hours=-3))), datetime(1, 1, 1, tzinfo=UTC)],
    "day": date(9999, 12, 31),
    "key": {"é": UUID(int=2**127)},
}
METADATA = cbor.encode({"a": [1, -1, 2**40, 0.5, None, True, "é🦀"], "b": {"c": {"d": []}}, "e": b"bytes"})
PLAIN = bytes(range(256)) * 40
BLOB_CID = BlobId.of(PLAIN).to_bytes()
STRICT: dict[str, Any] = {"max_bytes": 1 << 20, "what": "value", "scalar_tags": True}


def tagged(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(tagged, (*value, *value.values())))
    return any(map(tagged, value)) if isinstance(value, list) else isinstance(value, (date, UUID))


def written_again(value: Any) -> bytes:
    return cbor.encode(cbor.decode(cbor.encode(value), **STRICT))


TARGETS: dict[str, Target] = {
    "cbor": Target(lambda raw: cbor.decode(raw, max_bytes=1 << 20, what="value"), [METADATA, cbor.encode([[[]]])]),
    "cbor with dates": Target(
        lambda raw: cbor.decode(raw, max_bytes=1 << 20, what="value", scalar_tags=True),
        [cbor.encode(DATED), cbor.encode([UUID(int=n) for n in range(3)]), METADATA],
        # What has a tag is in the one form that its value has. Bytes are compared, as a NaN is unlike itself.
        lambda found: not tagged(found) or written_again(found) == cbor.encode(found),
    ),
    "manifest": Target(
        decode_manifest,
        [
            encode_manifest(_manifest(1300)),
            encode_manifest(replace(_manifest(1300), embedder=EmbedderInfo("all-MiniLM-L6-v2", 16))),
            cbor.encode({"version": 3}),
        ],
        lambda found: decode_manifest(encode_manifest(found)) == found,
    ),
    "directory": Target(decode_directory, [_root(), encode_directory({})]),
    "metadata page": Target(lambda raw: parse_page(0, 20, raw, 20), [_page()], lambda rows: len(rows) == 20),
    "changed metadata": Target(
        lambda raw: parse_changes(raw, 20),
        [encode_changes([(0, cbor.encode({"a": 1})), (3, None), (19, cbor.encode(["b"]))])],
        lambda changes: list(changes) == sorted(changes),
    ),
    "history": Target(_decode_history, [_history(), _encode_history(_History([], 0))]),
    "catalogue": Target(_decode_catalogue, [_encode_catalogue(["default", "other"]), _encode_catalogue([])]),
    "pointer": Target(
        lambda raw: _checked(RegistryEntry.parse(raw)),
        [RegistryEntry.sign(KEY, 7, pointer_data(bytes(32))).serialize()],
        lambda entry: entry == RegistryEntry.sign(KEY, 7, pointer_data(bytes(32))),
    ),
    "pointer data": Target(pointer_hash, [pointer_data(KEY)]),
    "static cipher": Target(
        lambda raw: decrypt_static(KEY, raw, len(PLAIN)), [encrypt_static(KEY, PLAIN)], lambda plain: plain == PLAIN
    ),
    "mutable cipher": Target(
        lambda raw: decrypt_mutable(KEY, raw), [encrypt_mutable(KEY, KEY[:24], PLAIN)], lambda plain: plain == PLAIN
    ),
    "zstd": Target(
        lambda raw: decompress(raw, len(PLAIN)),
        [compress(PLAIN, 1), compress(PLAIN, 19)],
        lambda plain: len(plain) == len(PLAIN),
    ),
    "fingerprints": Target(
        fingerprints._decoded,
        [fingerprints._encoded([f"row {number}" for number in range(40)]) or b"", fingerprints._encoded([]) or b""],
        lambda found: bool((np.diff(found.astype(np.int64)) > 0).all()),
    ),
    "blob id": Target(BlobId.from_bytes, [BLOB_CID, BlobId.of(PLAIN).to_old_bytes()]),
    "encrypted blob id": Target(EncryptedBlobCid.from_bytes, [BLOB_CID + bytes(40)]),
    "share": Target(ShareCid.from_bytes, [BLOB_CID, BLOB_CID + KEY]),
}
OTHERS = [raw for target in TARGETS.values() for raw in target.corpus]
TEXTS: dict[str, tuple[Callable[[str], Any], list[str]]] = {
    "cid": (BlobId.parse, [str(BlobId.of(PLAIN)), *(BlobId.of(b"x").to_text(b) for b in ("base32", "base58btc"))]),
    "multibase": (multibase_decode, [str(BlobId.of(PLAIN))]),
    "phrase": (parse_phrase, [PHRASE]),
    "part name": (split_name, ["vectors.0000", "documents.0899"]),
}


def _checked(entry: RegistryEntry) -> RegistryEntry:
    entry.verify()
    return entry


def attempt(read: Callable[[Any], Any], raw: Any) -> Any:
    """What a reader makes of an input; None for a refusal.

    Raises:
        AssertionError: it failed in another way than by a VectorDBError.
    """
    try:
        return read(raw)
    except VectorDBError as error:
        message = str(error)
    except BaseException as error:
        raise AssertionError(f"{type(error).__name__} ({error}) for {raw!r}") from error
    # Whoever wrote the bytes does not write to the log or the terminal.
    assert message.isprintable()
    return None

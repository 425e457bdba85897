"""What the tests of saving and loading share: a phrase, small seeded content, and a look into a store's
objects."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fabstir_vectordb import VectorDBSession
from fabstir_vectordb.persist.manifest import decode_manifest
from fabstir_vectordb.persist.parts import MANIFEST_NAME
from fabstir_vectordb.persist.version import CATALOGUE_PATH, history_path, index_path
from fabstir_vectordb.s5.cid import BlobId
from fabstir_vectordb.s5.cipher import decrypt_mutable, decrypt_static, is_mutable
from fabstir_vectordb.s5.dirv1 import FileEntry, decode_directory
from fabstir_vectordb.s5.keys import Identity, PathKeys
from fabstir_vectordb.s5.phrase import parse_phrase
from fabstir_vectordb.s5.registry import RegistryEntry, pointer_hash

PHRASE = "amid romance hotel blue most myself guess host lobby rubber hook victim about odds child"
"""A valid S5 phrase (REFERENCE, python_to_s5js): no Argon2 in the way, so that tests stay fast."""

SEED = 20_261_123
START_US = 1_700_000_000_000_000


def identity() -> Identity:
    return Identity(parse_phrase(PHRASE))


def rows(count: int, dim: int = 16, seed: int = SEED) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def rows_on_topics(count: int, dim: int, seed: int = SEED) -> NDArray[np.float32]:
    """Rows on three of forty topics, for which second lists pay."""
    rng = np.random.default_rng(seed)
    topics, shares = rng.standard_normal((40, dim)), rng.random((count, 3, 1)) + 0.3
    mixed = (topics[rng.integers(40, size=(count, 3))] * shares).sum(1) + 0.3 * rng.standard_normal((count, dim))
    return mixed.astype(np.float32)


async def session_on(uri: str, **fields: Any) -> VectorDBSession:
    settings: dict[str, Any] = {
        "s5_portal": uri,
        "user_seed_phrase": PHRASE,
        "session_id": "test",
        "threads": 1,
    }
    return await VectorDBSession.create(**{**settings, **fields})


async def add_rows(
    session: VectorDBSession, count: int, *, first: int = 0, dim: int = 16, on_conflict: str = "error"
) -> None:
    """Adds rows first..first+count-1 of one seeded endless table, with texts and times that depend on the
    row."""
    vectors = rows(first + count, dim)[first:]
    numbers = range(first, first + count)
    await session.add_batch(
        [f"row-{number:06d}" for number in numbers],
        vectors,
        [{"text": f"sentence number {number}", "n": number} for number in numbers],
        np.array([START_US / 1e6 + number for number in numbers]),
        on_conflict=on_conflict,
    )


async def content(session: VectorDBSession) -> list[tuple[str, bytes, Any]]:
    """Every live row: id, vector bytes, metadata."""
    found = []
    async for row in session.scan():
        found.append(row.id)
    got = await session.get(sorted(found))
    return [(row.id, np.asarray(row.vector, np.float32).tobytes(), row.metadata) for row in got]


class Objects:
    """The objects of a file store, found with the keys of `PHRASE` and without the package's load
    pipeline."""

    def __init__(self, root: Path, index_name: str = "default") -> None:
        self.root = root
        self.keys = identity().path_keys(index_path(index_name))
        self.history = identity().path_keys(history_path(index_name))
        self.catalogue = identity().path_keys(CATALOGUE_PATH)

    def blob(self, digest: bytes) -> Path:
        text = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        return self.root / "blobs" / text[:2] / text

    def pointer(self, keys: PathKeys | None = None) -> Path:
        return self.root / "pointers" / (keys or self.keys).public_key.hex()

    def entry(self, keys: PathKeys | None = None) -> RegistryEntry:
        return RegistryEntry.parse(self.pointer(keys).read_bytes())

    def record(self, keys: PathKeys) -> Path:
        return self.blob(pointer_hash(self.entry(keys).data))

    def files(self, cid: str) -> dict[str, FileEntry]:
        raw = self.blob(BlobId.parse(cid).hash).read_bytes()
        if is_mutable(raw):
            raw = decrypt_mutable(self.keys.encryption_key, raw)
        return decode_directory(raw).files

    def manifest(self, cid: str) -> Any:
        entry = self.files(cid)[MANIFEST_NAME]
        raw = self.blob(entry.hash).read_bytes()
        if entry.encryption is not None:
            raw = decrypt_static(entry.encryption.key, raw, entry.size)
        return decode_manifest(raw)

    def of_version(self, cid: str) -> dict[str, Path]:
        """Every object that loading the version reads: its root, its manifest and parts, by name."""
        paths = {name: self.blob(entry.hash) for name, entry in self.files(cid).items()}
        return {"root": self.blob(BlobId.parse(cid).hash), **paths}

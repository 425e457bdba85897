"""A store in this process's memory: for tests, trials and hosts that persist elsewhere.

Stores of the same name share their content, for the life of the process or until ``MemoryStore.clear``.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import anyio.to_thread

from fabstir_vectordb.errors import IntegrityError
from fabstir_vectordb.s5.cid import BlobId
from fabstir_vectordb.s5.registry import RegistryEntry
from fabstir_vectordb.storage.base import (
    AtMost,
    check_blob,
    check_blob_size,
    check_fetch,
    check_hash,
    check_new_entry,
    check_pointer_advances,
    check_public_key,
    check_stored_size,
    missing_blob,
    parse_pointer,
)

__all__ = ["MemoryStore"]

# Hashing this much takes about 0.05 ms; more goes to a thread so that the event loop stays free.
_INLINE_BYTES_MAX: Final = 256 * 1024


@dataclass
class _Space:
    """The content of all stores of one name; the lock is a plain one, held for moments, so any loop may
    use it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    blobs: dict[bytes, bytes] = field(default_factory=dict)
    pointers: dict[bytes, bytes] = field(default_factory=dict)


_spaces: Final[dict[str, _Space]] = {}
_spaces_lock: Final = threading.Lock()


class MemoryStore:
    """Blobs and pointers in dictionaries; see ``base.Store`` for the methods.

    Args:
        name: stores of the same name share their content; empty is a name too.
    """

    def __init__(self, name: str = "") -> None:
        self._name = name
        with _spaces_lock:
            self._space = _spaces.setdefault(name, _Space())

    @property
    def uri(self) -> str:
        """``memory:`` and the name."""
        return f"memory:{self._name}"

    def clear(self) -> None:
        """Forget everything kept under this store's name."""
        with self._space.lock:
            self._space.blobs.clear()
            self._space.pointers.clear()

    async def put(self, data: bytes | bytearray | memoryview) -> BlobId:
        """Store a blob; a ``bytes`` object is kept without copying it."""
        size = memoryview(data).nbytes
        check_blob_size(size)
        if size <= _INLINE_BYTES_MAX:
            return self._put(data)
        return await anyio.to_thread.run_sync(self._put, data)

    def _put(self, data: bytes | bytearray | memoryview) -> BlobId:
        content = bytes(data)
        blob = BlobId.of(content)
        with self._space.lock:
            # Replaces rather than keeps, so that a damaged copy is repaired as in every store.
            self._space.blobs[blob.hash] = content
        return blob

    async def get(self, hash: bytes, size: int | AtMost) -> bytes:
        """Return a blob after checking its hash."""
        check_fetch(hash, size)
        with self._space.lock:
            data = self._space.blobs.get(hash)
        if data is None:
            raise missing_blob(hash, size)
        check_stored_size(len(data), hash, size)
        if len(data) <= _INLINE_BYTES_MAX:
            return check_blob(data, hash, size)
        return await anyio.to_thread.run_sync(partial(check_blob, data, hash, size))

    async def has(self, hash: bytes) -> bool:
        """Return whether there is such a blob."""
        check_hash(hash)
        with self._space.lock:
            return hash in self._space.blobs

    async def delete(self, hash: bytes) -> bool:
        """Delete a blob; return whether there was one."""
        check_hash(hash)
        with self._space.lock:
            return self._space.blobs.pop(hash, None) is not None

    async def get_pointer(self, public_key: bytes) -> RegistryEntry | None:
        """Return the current entry of a pointer, or ``None``."""
        check_public_key(public_key)
        with self._space.lock:
            raw = self._space.pointers.get(public_key)
        return None if raw is None else self._parse(raw, public_key)

    async def set_pointer(self, entry: RegistryEntry) -> None:
        """Move a pointer to a higher revision."""
        check_new_entry(entry)
        with self._space.lock:
            raw = self._space.pointers.get(entry.public_key)
            try:
                stored = None if raw is None else self._parse(raw, entry.public_key)
            except IntegrityError:
                # Damaged: counts as none, so that its owner can repair it.
                stored = None
            check_pointer_advances(stored, entry)
            self._space.pointers[entry.public_key] = entry.serialize()

    def _parse(self, raw: bytes, public_key: bytes) -> RegistryEntry:
        return parse_pointer(raw, public_key, f"{public_key.hex()} in {self.uri}")

    async def aclose(self) -> None:
        """Do nothing: the content belongs to the process."""

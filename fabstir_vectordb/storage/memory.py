"""A store in this process's memory: for tests, trials, and programs that persist data elsewhere.

A store without a name has content of its own, and frees it when it is closed. Stores of the same name share their
content until the process ends, or until ``forget_memory_store``.
"""

from __future__ import annotations

import os
import threading
from dataclasses import field
from functools import partial
from typing import Final

import anyio.to_thread

from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import IntegrityError, InvalidInputError
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

__all__ = ["MemoryStore", "forget_memory_store"]

# Hashing this much takes about 0.05 ms; larger blobs are hashed in a thread so that the event loop stays free.
_INLINE_BYTES_MAX: Final = 256 * 1024


@dataclass
class _Space:
    """The content of all stores of one name. Its lock is a thread lock, held briefly, so any event loop may use it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    blobs: dict[bytes, bytes] = field(default_factory=dict)
    pointers: dict[bytes, bytes] = field(default_factory=dict)

    def clear(self) -> None:
        """Remove all blobs and pointers."""
        with self.lock:
            self.blobs.clear()
            self.pointers.clear()


_spaces: Final[dict[str, _Space]] = {}
_spaces_lock = threading.Lock()


def _new_locks() -> None:
    """Replaces the locks in a forked child, where a lock held by another thread of the parent would stay locked."""
    global _spaces_lock  # noqa: PLW0603
    _spaces_lock = threading.Lock()
    for space in _spaces.values():
        space.lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_locks)


def forget_memory_store(name: str) -> bool:
    """Frees all versions that sessions have saved under ``memory:name``.

    Open sessions keep their rows in memory, but the store has lost their versions.

    Args:
        name: the name, without ``memory:``.

    Returns:
        Whether there was such a store.

    Raises:
        InvalidInputError: `name` is not a string.
    """
    if not isinstance(name, str):
        raise InvalidInputError(f"the name of a memory store must be a string, got {type(name).__name__}")
    with _spaces_lock:
        space = _spaces.pop(name, None)
    if space is not None:
        space.clear()
    return space is not None


class MemoryStore:
    """Blobs and pointers in dictionaries; see ``base.Store`` for the methods.

    Args:
        name: stores of the same name share their content; a store with an empty name has content of its own.
    """

    def __init__(self, name: str = "") -> None:
        self._name = name
        if name:
            with _spaces_lock:
                self._space = _spaces.setdefault(name, _Space())
        else:
            self._space = _Space()

    @property
    def uri(self) -> str:
        """``memory:`` and the name."""
        return f"memory:{self._name}"

    def clear(self) -> None:
        """Remove all blobs and pointers of this store, and of all stores of the same name."""
        self._space.clear()

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
            # Replaces a stored copy: like every store, `put` repairs a damaged blob.
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
                # A damaged entry is treated as absent, so that its owner can repair it.
                stored = None
            check_pointer_advances(stored, entry)
            self._space.pointers[entry.public_key] = entry.serialize()

    def _parse(self, raw: bytes, public_key: bytes) -> RegistryEntry:
        return parse_pointer(raw, public_key, f"{public_key.hex()} in {self.uri}")

    async def aclose(self) -> None:
        """Free the content of a store without a name; named content stays."""
        if not self._name:
            self.clear()

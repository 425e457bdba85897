"""Blobs that were fetched or stored, kept on this machine's disk between sessions: only where the user asks for it.

What is kept are the blobs as a portal has them, each under its hash: ciphertext, and names that say nothing. A root in
clear is the one thing that could come otherwise, and is left out. A blob that is damaged on the disk is fetched again.
Several processes may share a directory: files appear whole, by rename, and whichever was not used for longest goes
first.

Pointers are never kept: which version is the newest is for the store to say.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from pathlib import Path

import anyio.to_thread

from fabstir_vectordb.errors import IntegrityError, NotFoundError, VectorDBError
from fabstir_vectordb.s5.cid import BlobId
from fabstir_vectordb.s5.dirv1 import is_directory
from fabstir_vectordb.s5.registry import RegistryEntry
from fabstir_vectordb.storage import Store
from fabstir_vectordb.storage.base import AtMost
from fabstir_vectordb.storage.local_dir import LocalDirStore

__all__ = ["DiskCache", "fetch"]

logger = logging.getLogger(__name__)

# What is left after room was made: else each blob that comes would have all others counted.
_LEFT_SHARE = 0.9


class DiskCache:
    """A store whose blobs are looked for on the disk first; see ``storage.base.Store`` for the methods.

    Args:
        store: where blobs come from and go to.
        directory: absolute path; made when the first blob is kept.
        bytes_max: most bytes of blobs in it, as far as this process knows.
    """

    def __init__(self, store: Store, directory: Path, bytes_max: int) -> None:
        self._store = store
        self._disk = LocalDirStore(directory)
        self._directory = directory
        self._bytes_max = bytes_max
        self._bytes: int | None = None  # in the directory; None before it was looked at
        self._lock = threading.Lock()

    @property
    def uri(self) -> str:
        """That of the store."""
        return self._store.uri

    async def put(self, data: bytes | bytearray | memoryview) -> BlobId:
        """Store a blob, then keep it."""
        blob = await self._store.put(data)
        await self._keep(data)
        return blob

    async def get(self, hash: bytes, size: int | AtMost) -> bytes:
        """Return a blob after checking its hash, from the disk or the store."""
        blob, _ = await self.fetch(hash, size)
        return blob

    async def fetch(self, hash: bytes, size: int | AtMost) -> tuple[bytes, bool]:
        """A blob, and whether the store was asked for it."""
        here = await self._kept(hash, size)
        if here is not None:
            return here, False
        blob = await self._store.get(hash, size)
        await self._keep(blob)
        return blob, True

    async def has(self, hash: bytes) -> bool:
        """Return whether the store has the blob: what is kept here says nothing about that."""
        return await self._store.has(hash)

    async def delete(self, hash: bytes) -> bool:
        """Delete a blob here and there."""
        with contextlib.suppress(VectorDBError, OSError):
            await self._disk.delete(hash)
        return await self._store.delete(hash)

    async def get_pointer(self, public_key: bytes) -> RegistryEntry | None:
        """Ask the store."""
        return await self._store.get_pointer(public_key)

    async def set_pointer(self, entry: RegistryEntry) -> None:
        """Tell the store."""
        await self._store.set_pointer(entry)

    async def aclose(self) -> None:
        """Close the store; what is kept stays."""
        await self._store.aclose()

    # ---- the disk: nothing that goes wrong there is more than a blob that has to be fetched

    async def _kept(self, hash: bytes, size: int | AtMost) -> bytes | None:
        try:
            blob = await self._disk.get(hash, size)
            await anyio.to_thread.run_sync(self._touch, hash)
        except NotFoundError:
            return None
        except IntegrityError:
            with contextlib.suppress(VectorDBError, OSError):
                await self._disk.delete(hash)
            logger.warning("%s: a blob was damaged, and is fetched again", self._directory)
            return None
        except (VectorDBError, OSError) as error:
            logger.warning("%s cannot be read (%s)", self._directory, error)
            return None
        return blob

    def _touch(self, hash: bytes) -> None:
        # Another process may have made room.
        with contextlib.suppress(OSError):
            os.utime(self._disk.blob_path(hash))

    async def _keep(self, data: bytes | bytearray | memoryview) -> None:
        size = memoryview(data).nbytes
        if size > self._bytes_max * _LEFT_SHARE or is_directory(data):
            return
        try:
            await self._disk.put(data)
            await anyio.to_thread.run_sync(self._make_room, size)
        except (VectorDBError, OSError) as error:
            logger.warning("%s takes no blobs (%s)", self._directory, error)

    def _make_room(self, size: int) -> None:
        with self._lock:
            if self._bytes is not None:
                self._bytes += size
                if self._bytes <= self._bytes_max:
                    return
            found = sorted(self._files())
            self._bytes = sum(one for _, one, _ in found)
            if self._bytes <= self._bytes_max:
                return
            for _, one, path in found:
                with contextlib.suppress(OSError):
                    os.unlink(path)
                self._bytes -= one
                if self._bytes <= self._bytes_max * _LEFT_SHARE:
                    return

    def _files(self) -> list[tuple[int, int, str]]:
        """When each blob was used last, its size and path."""
        found = []
        for folder, _, names in os.walk(self._directory / "blobs"):
            for name in names:
                path = f"{folder}{os.sep}{name}"
                with contextlib.suppress(OSError):
                    state = os.stat(path)
                    found.append((state.st_mtime_ns, state.st_size, path))
        return found


async def fetch(store: Store, hash: bytes, size: int | AtMost) -> tuple[bytes, bool]:
    """A blob of any store, and whether it came from beyond this machine's disk cache."""
    if isinstance(store, DiskCache):
        return await store.fetch(hash, size)
    return await store.get(hash, size), True

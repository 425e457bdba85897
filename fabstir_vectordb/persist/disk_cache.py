"""A cache of fetched and stored blobs on this machine's disk, kept between sessions; only where the user sets one.

It keeps the blobs of the store, each under its hash: ciphertext, under names that reveal nothing. A root in clear is
not kept. A blob that is damaged on the disk is fetched again. Several processes may share a directory: files appear
whole, by rename, and the file that was not used for longest is deleted first.

Pointers are never kept: only the store knows the newest version.
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

# Share of the limit that is left after files were deleted: otherwise each new blob would need a count of all files.
_LEFT_SHARE = 0.9


class DiskCache:
    """A store that looks for blobs on the disk first; see ``storage.base.Store`` for the methods.

    Args:
        store: the store behind the cache.
        directory: absolute path; made for the first blob.
        bytes_max: most bytes of blobs in it, by the count of this process.
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
        """The store's URI."""
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
        """A blob, and whether it was fetched from the store."""
        here = await self._kept(hash, size)
        if here is not None:
            return here, False
        blob = await self._store.get(hash, size)
        await self._keep(blob)
        return blob, True

    async def has(self, hash: bytes) -> bool:
        """Return whether the store has the blob; the disk is not asked."""
        return await self._store.has(hash)

    async def delete(self, hash: bytes) -> bool:
        """Delete a blob on the disk and in the store."""
        with contextlib.suppress(VectorDBError, OSError):
            await self._disk.delete(hash)
        return await self._store.delete(hash)

    async def get_pointer(self, public_key: bytes) -> RegistryEntry | None:
        """Read the pointer from the store."""
        return await self._store.get_pointer(public_key)

    async def set_pointer(self, entry: RegistryEntry) -> None:
        """Write the pointer to the store."""
        await self._store.set_pointer(entry)

    async def aclose(self) -> None:
        """Close the store; the files stay."""
        await self._store.aclose()

    # ---- the disk: after an error there, the blob is fetched from the store

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
        # Another process may have deleted the file.
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
        """Time of last use, size and path of each blob."""
        found = []
        for folder, _, names in os.walk(self._directory / "blobs"):
            for name in names:
                path = f"{folder}{os.sep}{name}"
                with contextlib.suppress(OSError):
                    state = os.stat(path)
                    found.append((state.st_mtime_ns, state.st_size, path))
        return found


async def fetch(store: Store, hash: bytes, size: int | AtMost) -> tuple[bytes, bool]:
    """A blob of any store, and whether it came from the store, not from the disk cache."""
    if isinstance(store, DiskCache):
        return await store.fetch(hash, size)
    return await store.get(hash, size), True

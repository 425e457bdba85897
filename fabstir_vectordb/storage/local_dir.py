"""A store in a directory of the local file system.

::

    blobs/<2>/<43>        a blob, named by the base64url of its hash, under the name's first two characters
    pointers/<66>         a serialised registry entry, named by its public key in hex
    pointers.lock         lock file, held while a pointer is read, compared and replaced
    tmp/<process>-<32>    a file that is being written

A file is written to ``tmp``, flushed to the disk and renamed to its place; then the directory is flushed. After a crash
or a loss of power a file is therefore absent or complete, and there if the call that stored it had returned. Several
processes may share a directory. Other files in the directory stay unchanged. Directories may be symbolic links. Blobs,
pointers and the lock file must be regular files: anything else in their place is an error, found without blocking. File
permissions follow the umask.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

from fabstir_vectordb.errors import IntegrityError, VectorDBError
from fabstir_vectordb.s5.base64url import to_base64url
from fabstir_vectordb.s5.cid import BlobId
from fabstir_vectordb.s5.registry import REVISION_MAX, RegistryEntry
from fabstir_vectordb.storage.base import (
    ENTRY_BYTES_MAX,
    IO_THREADS,
    AtMost,
    blob_details,
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
    storage_error,
)
from fabstir_vectordb.storage.regular import is_regular, open_regular, read_regular

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["LocalDirStore", "flush_directory"]

_T = TypeVar("_T")

# A killed process leaves its temporary file. No write takes a day, so older files are leftovers.
_LEFTOVER_AGE_S: Final = 24 * 60 * 60
_LEFTOVER_NAME: Final = re.compile(r"[0-9]+-[0-9a-f]{32}")
# Errors of file systems that cannot flush a directory, such as some network file systems.
_NO_DIRECTORY_FLUSH: Final = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)

# A limiter of anyio belongs to one event loop; the store serves several.
_limiter_of_loop: Final[anyio.lowlevel.RunVar[anyio.CapacityLimiter]] = anyio.lowlevel.RunVar(
    "fabstir_vectordb.storage.local_dir"
)


class LocalDirStore:
    """Blobs and pointers as files; see ``base.Store`` for the methods.

    All work runs in worker threads. The first write creates the directory.

    Args:
        root: absolute path of the directory.
        revision_max: highest accepted revision of a pointer; the portal sets the limit of S5 nodes.
    """

    def __init__(self, root: Path, *, revision_max: int = REVISION_MAX) -> None:
        self._root = root
        self._revision_max = revision_max
        self._blobs = root / "blobs"
        self._pointers = root / "pointers"
        self._tmp = root / "tmp"
        self._lock_file = root / "pointers.lock"
        self._sweep_lock = threading.Lock()
        self._swept = False
        # Directories that this store has flushed into their parents.
        self._flushed: set[Path] = set()
        # Whether the pointers' directory may lack a flush, after one that failed.
        self._is_pointer_unflushed = False

    @property
    def uri(self) -> str:
        """``file://`` and the path."""
        return self._root.as_uri()

    async def put(self, data: bytes | bytearray | memoryview) -> BlobId:
        """Store a blob, or check that the file on the disk has the same bytes.

        An existing file is read and compared (8 MiB in about 2 ms from the page cache). A damaged file is replaced; an
        intact file is never rewritten.
        """
        check_blob_size(memoryview(data).nbytes)
        return await _in_thread(partial(self._put, data))

    async def get(self, hash: bytes, size: int | AtMost) -> bytes:
        """Return a blob after checking its hash."""
        check_fetch(hash, size)
        return await _in_thread(partial(self._get, hash, size))

    async def has(self, hash: bytes) -> bool:
        """Return whether there is a file for the blob."""
        check_hash(hash)
        return await _in_thread(partial(self._has, hash))

    async def delete(self, hash: bytes) -> bool:
        """Delete a blob's file; return whether there was one."""
        check_hash(hash)
        return await _in_thread(partial(self._delete, hash))

    async def get_pointer(self, public_key: bytes) -> RegistryEntry | None:
        """Return the current entry of a pointer, or ``None``."""
        check_public_key(public_key)
        return await _in_thread(partial(self._get_pointer, public_key))

    async def set_pointer(self, entry: RegistryEntry) -> None:
        """Move a pointer to a higher revision; no other process can come between reading and writing."""
        check_new_entry(entry, self._revision_max)
        await _in_thread(partial(self._set_pointer, entry))

    async def aclose(self) -> None:
        """Do nothing: no file stays open between calls."""

    def _put(self, data: bytes | bytearray | memoryview) -> BlobId:
        blob = BlobId.of(data)
        path = self.blob_path(blob.hash)
        with _reporting(f"write {path}"):
            if not _holds(path, data, blob.size):
                self._write(path, data)
            # Also for an existing file: another writer may have renamed it and not yet flushed the directory.
            flush_directory(path.parent)
        return blob

    def _get(self, hash: bytes, size: int | AtMost) -> bytes:
        return check_blob(self.read_unchecked(hash, size), hash, size)

    def read_unchecked(self, hash: bytes, size: int | AtMost) -> bytes:
        """Return a blob without checking its hash, which the caller must check. Blocks: call it in a worker thread.

        Args:
            hash: BLAKE3-256, 32 bytes.
            size: as for `get`.

        Raises:
            NotFoundError: there is no such blob.
            IntegrityError: the stored file has another size, or is not a regular file.
            StorageError: the system cannot read the file.
        """
        path = self.blob_path(hash)
        with _reporting(f"read {path}"):
            try:
                with open_regular(path) as file:
                    actual = os.fstat(file.fileno()).st_size
                    check_stored_size(actual, hash, size)
                    # One byte more than the size, so that a file that grew meanwhile is noticed.
                    return file.read(actual + 1)
            except FileNotFoundError:
                self._check_links()
                raise missing_blob(hash, size) from None
            except IntegrityError as error:
                raise IntegrityError(
                    f"A stored blob is damaged: {error.message}" if "where" in error.details else error.message,
                    details={**blob_details(hash, size), **error.details},
                ) from None

    def _has(self, hash: bytes) -> bool:
        path = self.blob_path(hash)
        with _reporting(f"look up {path}"):
            found = is_regular(path)
            if not found:
                self._check_links()
            return found

    def _delete(self, hash: bytes) -> bool:
        path = self.blob_path(hash)
        with _reporting(f"delete {path}"):
            try:
                path.unlink()
            except FileNotFoundError:
                return False
        return True

    def _get_pointer(self, public_key: bytes) -> RegistryEntry | None:
        path = self._pointer_path(public_key)
        with _reporting(f"read {path}"):
            # A save whose write failed asks whether the pointer moved anyway: once a loss of power cannot undo it.
            if self._is_pointer_unflushed:
                flush_directory(self._pointers)
                self._is_pointer_unflushed = False
            try:
                raw = read_regular(path, ENTRY_BYTES_MAX)
            except FileNotFoundError:
                self._check_links()
                return None
            except IntegrityError as error:
                raise IntegrityError(
                    f"The stored pointer {path} is damaged: {error.message}",
                    details={"public_key": public_key.hex(), "where": str(path)},
                ) from None
        return parse_pointer(raw, public_key, str(path))

    def _set_pointer(self, entry: RegistryEntry) -> None:
        path = self._pointer_path(entry.public_key)
        with _reporting(f"write {path}"):
            self._make_directory(self._root)
            with _file_lock(self._lock_file):
                try:
                    stored = self._get_pointer(entry.public_key)
                except IntegrityError:
                    # A damaged entry is treated as absent, so that its owner can repair it.
                    stored = None
                check_pointer_advances(stored, entry)
                self._write(path, entry.serialize())
                self._is_pointer_unflushed = True
                flush_directory(path.parent)
                self._is_pointer_unflushed = False

    def replace_file(self, path: Path, data: bytes) -> None:
        """Give a file new content, durably; after a crash it has the old content or the new. Blocks.

        Args:
            path: a file anywhere below the store's root.
            data: its new content.

        Raises:
            OSError: the system cannot write the file.
        """
        self._write(path, data)
        flush_directory(path.parent)

    def _make_directory(self, path: Path) -> None:
        """Create the root or a directory below it, durable before a file is put into it.

        A directory that exists is flushed into its parent, too, once: whoever made it may have been killed before that.
        """
        if path in self._flushed and path.is_dir():
            return
        if path != self._root:
            self._make_directory(path.parent)
        if not _made_directory(path):
            try:
                flush_directory(path.parent)
            except PermissionError:
                if path != self._root:  # others may own the folder of the root, and let nobody list it
                    raise
        self._flushed.add(path)

    def _write(self, path: Path, data: bytes | bytearray | memoryview) -> None:
        self._make_directory(path.parent)
        self._make_directory(self._tmp)
        self._sweep_once()
        temporary = self._tmp / f"{os.getpid()}-{uuid.uuid4().hex}"
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise

    def _check_links(self) -> None:
        """Raise FileNotFoundError if a directory is a symbolic link with a missing target, as on an unmounted disk.

        Files behind such a link must not be reported as missing.
        """
        for directory in (self._root, self._blobs, self._pointers):
            if directory.is_symlink() and not directory.exists():
                raise FileNotFoundError(errno.ENOENT, "the target of this symbolic link is missing", str(directory))

    def _sweep_once(self) -> None:
        with self._sweep_lock:
            if self._swept:
                return
            self._swept = True
        oldest = time.time() - _LEFTOVER_AGE_S
        # A failure to remove leftovers must not fail a save.
        with contextlib.suppress(OSError), os.scandir(self._tmp) as entries:
            for entry in entries:
                if _LEFTOVER_NAME.fullmatch(entry.name) and entry.stat().st_mtime < oldest:
                    os.unlink(entry.path)

    def blob_path(self, hash: bytes) -> Path:
        """The path of the blob with this hash, whether or not the file exists."""
        name = to_base64url(hash)
        return self._blobs / name[:2] / name

    def _pointer_path(self, public_key: bytes) -> Path:
        return self._pointers / public_key.hex()


async def _in_thread(work: Callable[[], _T]) -> _T:
    try:
        limiter = _limiter_of_loop.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(IO_THREADS)
        _limiter_of_loop.set(limiter)
    return await anyio.to_thread.run_sync(work, limiter=limiter)


@contextlib.contextmanager
def _reporting(doing: str) -> Iterator[None]:
    """Turn a system error into a StorageError. Errors of this package pass, though some are also OSErrors."""
    try:
        yield
    except VectorDBError:
        raise
    except OSError as error:
        raise storage_error(error, doing) from error


def _holds(path: Path, data: bytes | bytearray | memoryview, size: int) -> bool:
    """Return whether the file has exactly these bytes; False if it is missing or cannot be read."""
    step = 2**20
    view = memoryview(data).cast("B")
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size != size:
                return False
            # Copied to bytes because a memoryview compares item by item, eight times slower.
            return all(file.read(step) == bytes(view[start : start + step]) for start in range(0, size, step))
    except (OSError, IntegrityError):
        # The rename that follows replaces the file, or raises the reason why it cannot.
        return False


def _made_directory(path: Path) -> bool:
    """Create a directory and its parents, each durable before the next; return False if it exists already."""
    if path.is_dir():
        return False
    if path.parent != path:
        _made_directory(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir()
        flush_directory(path.parent)
        return True
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    return False


def flush_directory(path: Path) -> None:
    """Make renames in a directory durable, if the system can. Windows needs no call for it."""
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_FLUSH:
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, against other processes and other threads of this process."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise IntegrityError(f"{path} is not a regular file", details={"where": str(path)})
        if sys.platform == "win32":
            while True:
                try:
                    msvcrt.locking(descriptor, msvcrt.LK_LOCK, 1)
                    break
                except OSError as error:
                    # LK_LOCK gives up after ten seconds.
                    if error.errno != errno.EDEADLK:
                        raise
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        # Closing releases the lock on every system.
        os.close(descriptor)

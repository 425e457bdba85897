"""Safe opening of files that another program may have replaced: opens regular files only, and never blocks.

Opening a FIFO would block until another process opens it for writing. Opening a device may have any effect, and a
symbolic link may point to any file.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, Final

from fabstir_vectordb.errors import IntegrityError

__all__ = ["is_regular", "open_regular", "read_regular"]

_FLAGS: Final = (
    os.O_RDONLY
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)
#: Errors of opening a symbolic link (the second on some BSDs) and a socket.
_NOT_REGULAR: Final = (errno.ELOOP, getattr(errno, "EMLINK", errno.ELOOP), errno.ENXIO, errno.ENODEV)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Args:
        path: path of the file. Directories on it may be symbolic links; the file itself may not.

    Returns:
        The open file.

    Raises:
        IntegrityError: the path is a FIFO, socket, device, directory or symbolic link.
        OSError: the system cannot open the file; FileNotFoundError if there is none.
    """
    try:
        descriptor = os.open(path, _FLAGS)
    except OSError as error:
        # Windows has no O_NOFOLLOW, and answers PermissionError for a directory.
        if error.errno in _NOT_REGULAR or (isinstance(error, PermissionError) and path.is_dir()):
            raise _not_regular(path) from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _not_regular(path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, bytes_max: int) -> bytes:
    """Return the content of a regular file; of a file longer than `bytes_max`, its first `bytes_max` + 1 bytes."""
    with open_regular(path) as file:
        return file.read(bytes_max + 1)


def is_regular(path: Path) -> bool:
    """Return whether the path is a regular file.

    Raises:
        OSError: the system cannot tell.
    """
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _not_regular(path: Path) -> IntegrityError:
    return IntegrityError(f"{path} is not a regular file", details={"where": str(path)})

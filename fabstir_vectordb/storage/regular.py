"""Safe opening of files that others may have replaced: only regular files, and without waiting.

A FIFO in place of a file would block the open until a writer comes, a device may do anything, and a symbolic link leads
elsewhere.
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
        path: its directories may be symbolic links, the file itself may not.

    Returns:
        The open file.

    Raises:
        IntegrityError: the path is a FIFO, socket, device, directory or symbolic link.
        OSError: the system cannot open it; FileNotFoundError where there is no file.
    """
    try:
        descriptor = os.open(path, _FLAGS)
    except OSError as error:
        # Where the system has no O_NOFOLLOW, as on Windows, there is no such error.
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
    """Return whether a regular file is there.

    Raises:
        OSError: the system cannot tell.
    """
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _not_regular(path: Path) -> IntegrityError:
    return IntegrityError(f"{path} is no regular file", details={"where": str(path)})

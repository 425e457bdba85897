"""Core dumps of the process, off where the system can be asked."""

from __future__ import annotations

import ctypes
import sys
from typing import Final

__all__ = ["forbid_core_dumps"]

# prctl(2): whether the process may be dumped, and its memory be read by another process of the same user.
_PR_SET_DUMPABLE: Final = 4


def forbid_core_dumps() -> bool:
    """Asks the system not to write the memory of this process to a disk when it crashes.

    A core dump has everything that the process knows: keys, vectors, metadata. The setting is of the process, not of a
    session, and debuggers want dumps; so a program calls this itself, best before it makes a session. The command line
    does. On Linux it also keeps other processes of the same user from reading the process's memory (``ptrace``): gdb
    and py-spy need root then. Child processes inherit it until they start another program.

    It does not reach swap space, hibernation, virtual machines that are suspended, or the root user.

    Returns:
        Whether the system was asked and agreed: True on Linux, macOS and other POSIX systems; False on Windows, where
        Windows Error Reporting decides.

    Example:
        >>> import fabstir_vectordb
        >>> fabstir_vectordb.forbid_core_dumps()
        True
    """
    if sys.platform == "win32":
        return False
    import resource

    # The hard limit stays: the program can undo the soft one.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if sys.platform == "linux":
        # The limit is not asked where dumps go to a program, as with systemd-coredump.
        return int(ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)) == 0
    return True

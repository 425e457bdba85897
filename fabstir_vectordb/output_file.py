"""Output files that are written completely or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

__all__ = ["writing"]


@contextlib.contextmanager
def writing(target: Path, *, private: bool = False) -> Iterator[Path]:
    """Opens a new file that replaces the target if the block succeeds; after an exception the target is unchanged.

    Args:
        target: the file.
        private: give the file the mode 0600, whatever mode the target had.

    Raises:
        OSError: the new file cannot be created; the error names the target. The block is not entered.
    """
    real = Path(os.path.realpath(target))
    if real.exists() and not real.is_file():  # a device or a pipe cannot be replaced, so write to it directly
        yield target
        return
    fresh = real.with_name(f".{real.stem[:64]}-{secrets.token_hex(8)}{real.suffix}")
    try:
        mode = 0o600 if private else real.stat().st_mode & 0o777 if real.exists() else None
        # The system applies the umask. Asking for it would change it for all threads of a program.
        os.close(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666 if mode is None else 0o600))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from None
    try:
        yield fresh
        if mode is not None:
            fresh.chmod(mode)
        with fresh.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(fresh, real)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        folder = os.open(real.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

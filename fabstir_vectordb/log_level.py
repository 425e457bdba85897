"""The level of the package's logger while sessions with ``debug=True`` are open; the last of them undoes it."""

from __future__ import annotations

import logging
import os
import threading
from typing import Final

__all__ = ["begin_debug", "end_debug"]

_logger: Final = logging.getLogger("fabstir_vectordb")
_lock = threading.RLock()  # reentrant: garbage collection may end a session while another one begins
_sessions = 0
_level_before = logging.NOTSET


def begin_debug() -> None:
    """Logs at DEBUG level from now on."""
    global _sessions, _level_before  # noqa: PLW0603  # so is the logger
    with _lock:
        if _sessions == 0:
            _level_before = _logger.level
            _logger.setLevel(logging.DEBUG)
        _sessions += 1


def end_debug() -> None:
    """Undoes one `begin_debug`; the last call restores the level of before."""
    global _sessions  # noqa: PLW0603
    with _lock:
        _sessions -= 1
        if _sessions == 0 and _logger.level == logging.DEBUG:  # otherwise the program has set another level since
            _logger.setLevel(_level_before)


def _new_lock() -> None:
    global _lock  # noqa: PLW0603  # in a forked child the old lock may stay locked
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)

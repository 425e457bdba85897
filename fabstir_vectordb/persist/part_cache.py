"""Parts that were fetched, as they were before compression and encryption, within a number of bytes.

What somebody is still working with is found as long as they hold it, also when the cache has let go of it: a call that
needs more parts than fit, one after the other, would otherwise fetch for ever.
"""

from __future__ import annotations

import threading
from typing import TypeAlias
from weakref import WeakValueDictionary

__all__ = ["CachedPart", "PartCache", "PartKey"]

PartKey: TypeAlias = tuple[int, int]
"""Kind and number of a part."""


class CachedPart:
    """The bytes of a part."""

    __slots__ = ("__weakref__", "raw")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw


class PartCache:
    """The parts used last; may be asked from any thread.

    Args:
        bytes_max: most bytes that are kept.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.nbytes = 0
        """Bytes kept."""
        self._kept: dict[PartKey, CachedPart] = {}  # the one used last comes last
        self._known: WeakValueDictionary[PartKey, CachedPart] = WeakValueDictionary()
        self._lock = threading.Lock()

    def find(self, key: PartKey) -> CachedPart | None:
        """A part, if it is kept or in use."""
        with self._lock:
            part = self._kept.pop(key, None)
            if part is not None:
                self._kept[key] = part
                return part
            return self._known.get(key)

    def put(self, key: PartKey, part: CachedPart) -> None:
        """Keeps a part, and lets go of those that were not used for longest."""
        with self._lock:
            self._known[key] = part
            self._drop(key)
            if len(part.raw) > self.bytes_max:
                return
            self._kept[key] = part
            self.nbytes += len(part.raw)
            while self.nbytes > self.bytes_max:
                self._drop(next(iter(self._kept)))

    def _drop(self, key: PartKey) -> None:
        part = self._kept.pop(key, None)
        if part is not None:
            self.nbytes -= len(part.raw)

    def count(self, kind: int) -> int:
        """How many parts of a kind are kept."""
        with self._lock:
            return sum(of == kind for of, _ in self._kept)

    def clear(self) -> None:
        """Lets go of all parts."""
        with self._lock:
            self._kept.clear()
            self.nbytes = 0

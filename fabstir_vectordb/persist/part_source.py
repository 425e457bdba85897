"""The parts of a lazily loaded version: fetched on use, and cached.

The cache keeps the bytes before compression and encryption, up to a limit. A call holds references to its own parts, so
the cache may drop them meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

import anyio

from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.index.contents import Fetched, LazyShape, PartKey
from fabstir_vectordb.persist.manifest import Manifest
from fabstir_vectordb.persist.parts import StoredPart
from fabstir_vectordb.persist.transfer import run_bounded
from fabstir_vectordb.types import Receipt

__all__ = ["CachedPart", "LazyParts", "PartCache", "Room", "shape_of"]

Check: TypeAlias = Callable[[bytes], None]


class CachedPart:
    """The bytes of a part."""

    __slots__ = ("raw",)

    def __init__(self, raw: bytes) -> None:
        self.raw = raw


class PartCache:
    """The parts used last; thread-safe.

    Args:
        bytes_max: most bytes of the cache.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.nbytes = 0
        """Bytes of the cached parts."""
        self._kept: dict[PartKey, CachedPart] = {}  # the one used last comes last
        self._lock = threading.Lock()

    def find(self, key: PartKey) -> CachedPart | None:
        """A cached part, or None."""
        with self._lock:
            part = self._kept.pop(key, None)
            if part is not None:
                self._kept[key] = part
            return part

    def put(self, key: PartKey, part: CachedPart) -> None:
        """Caches a part, and drops the parts that were not used for longest."""
        with self._lock:
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
        """How many parts of a kind are cached."""
        with self._lock:
            return sum(of == kind for of, _ in self._kept)

    def clear(self) -> None:
        """Frees all parts."""
        with self._lock:
            self._kept.clear()
            self.nbytes = 0


@dataclass(frozen=True, slots=True)
class Room:
    """Limits of parts.

    Attributes:
        cache_bytes: most bytes of cached parts.
        held_bytes: bytes of parts that one call may hold in any case.
        transfers: most parts in flight.
    """

    cache_bytes: int
    held_bytes: int
    transfers: int


class _Flight:
    """A part in flight."""

    def __init__(self) -> None:
        self.over = anyio.Event()
        self.part: CachedPart | None = None


class LazyParts:
    """The parts of a version, fetched on use. Calls that need the same part share one request.

    Args:
        stored: the parts by kind and number.
        fetch: returns a part's checked bytes, and how many bytes came from the store; None where it was in the disk
            cache.
        room: limits of the parts.
    """

    def __init__(
        self,
        stored: Mapping[PartKey, StoredPart] | Mapping[tuple[int, int], StoredPart],
        fetch: Callable[[StoredPart, Check], Awaitable[tuple[bytes, int | None]]],
        room: Room,
    ) -> None:
        self.stored: dict[PartKey, StoredPart] = {PartKey(*key): part for key, part in stored.items()}
        self.cache = PartCache(room.cache_bytes)
        self._room = room
        self._fetch = fetch
        self._flights: dict[PartKey, _Flight] = {}
        self._transfers = anyio.Semaphore(room.transfers)

    @property
    def room_bytes(self) -> int:
        """Most bytes of parts that one call may hold at once."""
        return max(self._room.cache_bytes, self._room.held_bytes)

    @property
    def nbytes(self) -> int:
        """Bytes of cached parts."""
        return self.cache.nbytes

    def numbers(self, kind: int) -> list[int]:
        """The numbers of the parts of a kind, ascending."""
        return sorted(number for of, number in self.stored if of == kind)

    def has(self, key: PartKey) -> bool:
        """Whether the version has such a part."""
        return key in self.stored

    def size(self, keys: Iterable[PartKey]) -> int:
        """Bytes of parts before compression."""
        return sum(self.stored[key].record.size for key in keys)

    def find(self, key: PartKey) -> bytes | None:
        """The bytes of a cached part, or None."""
        part = self.cache.find(key)
        return None if part is None else part.raw

    def count(self, kind: int) -> int:
        """How many parts of a kind are cached."""
        return self.cache.count(kind)

    def clear(self) -> None:
        """Frees all parts."""
        self.cache.clear()

    def close(self) -> None:
        """Frees all parts, and keeps none of those in flight."""
        self.cache.bytes_max = 0
        self.cache.clear()

    async def fetch(self, keys: Sequence[PartKey], check: Check) -> Fetched:
        """Fetches parts in parallel, except those that are cached by now.

        Args:
            keys: the parts.
            check: called with the bytes of each part with vectors, in a worker thread.

        Raises:
            VectorDBError: the store failed, or a part does not match the version.
        """
        parts: dict[PartKey, bytes] = {}
        received: list[int] = []

        async def fetch(key: PartKey) -> None:
            parts[key] = (await self._one(key, check, received)).raw

        await run_bounded([partial(fetch, key) for key in keys], len(keys))
        return Fetched(parts, Receipt(requests=len(received), bytes=sum(received), cache_hits=0))

    async def _one(self, key: PartKey, check: Check, received: list[int]) -> CachedPart:
        while True:
            part = self.cache.find(key)
            if part is not None:
                return part
            flight = self._flights.get(key)
            if flight is None:
                break
            await flight.over.wait()
            if flight.part is not None:
                return flight.part
            # Another call's request failed or was cancelled: this call tries itself.
        flight = self._flights[key] = _Flight()
        try:
            async with self._transfers:
                raw, size = await self._fetch(self.stored[key], check)
            if size is not None:
                received.append(size)
            flight.part = CachedPart(raw)
            self.cache.put(key, flight.part)
            return flight.part
        finally:
            del self._flights[key]
            flight.over.set()


def shape_of(manifest: Manifest) -> LazyShape:
    """The layout of the rows of a version in its parts."""
    return LazyShape(
        rows_per_part=manifest.layout.rows_per_part,
        document_rows=manifest.layout.document_rows,
        graph_rows=manifest.graph_rows,
        historical=manifest.historical,
        lists=manifest.lists,
    )

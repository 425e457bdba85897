"""The parts of a version that stay in the store until they are needed, and those that were fetched and are kept.

Parts are kept as they were before compression and encryption, within a number of bytes. A call holds on to the parts it
works with itself, so the cache may let go of them meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import anyio

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
    """The parts used last; may be asked from any thread.

    Args:
        bytes_max: most bytes that are kept.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.nbytes = 0
        """Bytes kept."""
        self._kept: dict[PartKey, CachedPart] = {}  # the one used last comes last
        self._lock = threading.Lock()

    def find(self, key: PartKey) -> CachedPart | None:
        """A part, if it is kept."""
        with self._lock:
            part = self._kept.pop(key, None)
            if part is not None:
                self._kept[key] = part
            return part

    def put(self, key: PartKey, part: CachedPart) -> None:
        """Keeps a part, and lets go of those that were not used for longest."""
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
        """How many parts of a kind are kept."""
        with self._lock:
            return sum(of == kind for of, _ in self._kept)

    def clear(self) -> None:
        """Lets go of all parts."""
        with self._lock:
            self._kept.clear()
            self.nbytes = 0


@dataclass(frozen=True, slots=True)
class Room:
    """What parts may take.

    Attributes:
        cache_bytes: those that are kept.
        held_bytes: those that one call needs at once, where that is more.
        transfers: how many may be on their way.
    """

    cache_bytes: int
    held_bytes: int
    transfers: int


class _Flight:
    """A part on its way."""

    def __init__(self) -> None:
        self.over = anyio.Event()
        self.part: CachedPart | None = None


class LazyParts:
    """The parts of a version, fetched on use: one request for a part, however many calls wait for it.

    Args:
        stored: the parts by kind and number.
        fetch: gives a part's bytes, all checks behind it, and how many came from the store; None for those that came
            from the disk cache.
        room: what they may take.
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
        """Bytes of parts that are kept."""
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
        """The bytes of a part that is kept."""
        part = self.cache.find(key)
        return None if part is None else part.raw

    def count(self, kind: int) -> int:
        """How many parts of a kind are kept."""
        return self.cache.count(kind)

    def clear(self) -> None:
        """Lets go of all parts."""
        self.cache.clear()

    def close(self) -> None:
        """Lets go of all parts, and of those that are still on their way."""
        self.cache.bytes_max = 0
        self.cache.clear()

    async def fetch(self, keys: Sequence[PartKey], check: Check) -> Fetched:
        """Fetches parts in parallel, unless they came meanwhile.

        Args:
            keys: the parts.
            check: called with the bytes of each part with vectors, in a worker thread.

        Raises:
            VectorDBError: the store failed, or a part is not what the version says.
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
            # It failed, or was cancelled, for somebody else: perhaps not for this call.
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
    """How the rows of a version lie in its parts."""
    return LazyShape(
        rows_per_part=manifest.layout.rows_per_part,
        document_rows=manifest.layout.document_rows,
        graph_rows=manifest.graph_rows,
        historical=manifest.historical,
        lists=manifest.lists,
    )

"""The parts of a version that stay in the store until they are needed.

Whoever needs parts that are not there raises `PartsNeeded`; who can wait for a network fetches them and asks again. So
what works on parts is the same whether it runs on an event loop, in a worker thread or for the synchronous twin.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import anyio

from fabstir_vectordb.persist.part_cache import CachedPart, PartCache, PartKey
from fabstir_vectordb.persist.parts import StoredPart
from fabstir_vectordb.persist.transfer import run_bounded
from fabstir_vectordb.types import Receipt

__all__ = ["Fetched", "LazyParts", "PartsNeeded", "Room", "WholeNeeded"]


class WholeNeeded(Exception):
    """The call needs so much of the version that it has to be loaded whole.

    Attributes:
        optional: it can do without, should the whole not fit; then call `LazyIndex.stay_lazy` and call again.
    """

    def __init__(self, *, optional: bool = False) -> None:
        super().__init__()
        self.optional = optional


class PartsNeeded(Exception):
    """The call needs parts that are not there: fetch them, hold what `fetch` returns, and call again."""

    def __init__(self, parts: LazyParts, keys: Sequence[PartKey]) -> None:
        super().__init__()
        self._parts, self._keys = parts, keys

    def fetch(self) -> Awaitable[Fetched]:
        """Fetches them."""
        # The frames of who raised and passed this hold parts; in a cycle with it they would be kept until garbage is
        # collected, and be many times the cache.
        self.with_traceback(None)
        return self._parts.fetch(self._keys)


@dataclass(frozen=True, slots=True)
class Fetched:
    """Parts that were fetched, to be held while they are worked with, and what that took."""

    parts: Sequence[CachedPart]
    receipt: Receipt


Check: TypeAlias = Callable[[bytes], None]


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
        stored: dict[PartKey, StoredPart],
        fetch: Callable[[StoredPart, Check], Awaitable[tuple[bytes, int | None]]],
        room: Room,
    ) -> None:
        self.stored = stored
        self.cache = PartCache(room.cache_bytes)
        self._room = room
        #: Checks a part with vectors, in a worker thread; whoever has the native index that does it sets it.
        self.check: Check | None = None
        self._fetch = fetch
        self._flights: dict[PartKey, _Flight] = {}
        self._transfers = anyio.Semaphore(room.transfers)

    def numbers(self, kind: int) -> list[int]:
        """The numbers of the parts of a kind, ascending."""
        return sorted(number for of, number in self.stored if of == kind)

    def size(self, keys: Iterable[PartKey]) -> int:
        """Bytes of parts before compression."""
        return sum(self.stored[key].record.size for key in keys)

    def get(self, keys: Sequence[PartKey]) -> dict[PartKey, bytes]:
        """The bytes of parts.

        Raises:
            PartsNeeded: some are not there.
            WholeNeeded: they are too many to be held for one call.
        """
        found = {key: part for key in keys if (part := self.cache.find(key)) is not None}
        if len(found) < len(keys):
            if self.size(keys) > max(self._room.cache_bytes, self._room.held_bytes):
                raise WholeNeeded
            raise PartsNeeded(self, [key for key in keys if key not in found])
        return {key: part.raw for key, part in found.items()}

    async def fetch(self, keys: Sequence[PartKey]) -> Fetched:
        """Fetches parts in parallel, unless they came meanwhile.

        Raises:
            VectorDBError: the store failed, or a part is not what the version says.
        """
        parts: list[CachedPart] = []
        received: list[int] = []

        async def fetch(key: PartKey) -> None:
            parts.append(await self._one(key, received))

        await run_bounded([partial(fetch, key) for key in keys], len(keys))
        return Fetched(parts, Receipt(requests=len(received), bytes=sum(received), cache_hits=0))

    async def _one(self, key: PartKey, received: list[int]) -> CachedPart:
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
            assert self.check is not None
            async with self._transfers:
                raw, size = await self._fetch(self.stored[key], self.check)
            if size is not None:
                received.append(size)
            flight.part = CachedPart(raw)
            self.cache.put(key, flight.part)
            return flight.part
        finally:
            del self._flights[key]
            flight.over.set()

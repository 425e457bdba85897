"""A store behind a simulated link: a latency for each request, a bandwidth shared by all, and a limit of parallel ones.

The link sleeps in real time, so measured times are what a user would wait. Bytes, requests and chains of requests that
wait for each other are counted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import anyio

from fabstir_vectordb.s5.registry import RegistryEntry
from fabstir_vectordb.storage import Store
from fabstir_vectordb.storage.base import AtMost

_T = TypeVar("_T")

LATENCY_S = 0.05
BYTES_PER_S = 20_000_000
PARALLEL = 8
_POINTER_BYTES = 200
Hash = bytes


@dataclass
class Traffic:
    """Traffic over a link.

    Attributes:
        requests, uploads: number of all requests, and of those that stored a blob.
        bytes: bytes in both directions.
        round_trips: length of the longest chain of requests, each sent after the previous one was answered. Waiting for
            the limit of parallel requests does not count.
        fetched: bytes of each blob that was fetched, by its hash.
    """

    requests: int = 0
    uploads: int = 0
    bytes: int = 0
    round_trips: int = 0
    fetched: dict[Hash, int] = field(default_factory=dict)


class Link:
    """A link that several stores may share."""

    def __init__(
        self, latency_s: float = LATENCY_S, bytes_per_s: float = BYTES_PER_S, parallel: int = PARALLEL
    ) -> None:
        self.traffic = Traffic()
        self._latency_s, self._bytes_per_s = latency_s, bytes_per_s
        self._places = anyio.CapacityLimiter(parallel)
        self._free_at = 0.0

    def start_counting(self) -> None:
        """Resets the counts."""
        self.traffic = Traffic()

    async def carry(self, request: Callable[[], Awaitable[_T]], up: int, down: Callable[[_T], int]) -> _T:
        """Makes a request as if over the link."""
        traffic = self.traffic
        depth = traffic.round_trips + 1
        async with self._places:
            result = await request()
            await self._pass(up + down(result))
        traffic.requests += 1
        traffic.bytes += up + down(result)
        traffic.round_trips = max(traffic.round_trips, depth)
        return result

    async def _pass(self, size: int) -> None:
        now = anyio.current_time()
        # All requests share the bandwidth: the bytes of this one follow those of earlier requests.
        self._free_at = max(self._free_at, now + self._latency_s) + size / self._bytes_per_s
        await anyio.sleep(self._free_at - now)


class LinkStore:
    """A store behind a link."""

    def __init__(self, store: Store, link: Link) -> None:
        self._store, self._link = store, link

    @property
    def uri(self) -> str:
        """The address of the store behind the link."""
        return self._store.uri

    async def put(self, data: Any) -> Any:
        self._link.traffic.uploads += 1
        return await self._link.carry(lambda: self._store.put(data), len(data), lambda _: 0)

    async def get(self, hash: bytes, size: int | AtMost) -> bytes:
        raw = await self._link.carry(lambda: self._store.get(hash, size), 0, len)
        self._link.traffic.fetched[hash] = len(raw)
        return raw

    async def has(self, hash: bytes) -> bool:
        return await self._link.carry(lambda: self._store.has(hash), 0, lambda _: 0)

    async def delete(self, hash: bytes) -> bool:
        return await self._link.carry(lambda: self._store.delete(hash), 0, lambda _: 0)

    async def get_pointer(self, public_key: bytes) -> RegistryEntry | None:
        return await self._link.carry(lambda: self._store.get_pointer(public_key), 0, lambda _: _POINTER_BYTES)

    async def set_pointer(self, entry: RegistryEntry) -> None:
        return await self._link.carry(lambda: self._store.set_pointer(entry), _POINTER_BYTES, lambda _: 0)

    async def aclose(self) -> None:
        await self._store.aclose()

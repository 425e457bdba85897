"""A store at an address of an S5 node or a Fabstir gateway; the first call finds out which it is."""

from __future__ import annotations

from fabstir_vectordb.errors import S5Error
from fabstir_vectordb.s5.cid import BlobId
from fabstir_vectordb.s5.registry import RegistryEntry
from fabstir_vectordb.storage.base import AtMost, Store
from fabstir_vectordb.storage.exchange import ANSWER_BYTES_MAX
from fabstir_vectordb.storage.fabstir_gateway import FabstirGatewayStore
from fabstir_vectordb.storage.http import HttpClient
from fabstir_vectordb.storage.loops import LoopLock
from fabstir_vectordb.storage.s5_account import AccountSeed
from fabstir_vectordb.storage.s5_portal import S5PortalStore

__all__ = ["ProbedStore"]


class ProbedStore:
    """A store that passes each call to the kind of store found by the first call.

    Args:
        http: client for the address.
        account_seed: the user's account, for an S5 node that needs one; None for no account.
    """

    def __init__(self, http: HttpClient, account_seed: AccountSeed | None = None) -> None:
        self._http = http
        self._account_seed = account_seed
        self._found: Store | None = None
        self._probing = LoopLock()

    @property
    def uri(self) -> str:
        """The store's address."""
        return self._http.base_url

    async def _store(self) -> Store:
        if self._found is None:
            async with self._probing.here():
                self._found = self._found or await self._probe()
        return self._found

    async def _probe(self) -> Store:
        """Finds the kind of store: an S5 node answers /s5/version, and only a gateway answers a health path."""
        version = await self._http.request("GET", "/s5/version", body_most=ANSWER_BYTES_MAX)
        document = version.json() if version.ok else None
        if isinstance(document, dict) and "node" in document:
            return S5PortalStore(self._http, self._account_seed)
        for path in ("/health", "/s5/health"):
            health = await self._http.request("GET", path, body_most=ANSWER_BYTES_MAX)
            document = health.json() if health.ok else None
            if isinstance(document, dict) and "status" in document:
                return FabstirGatewayStore(self._http)
        raise S5Error(
            f"{self.uri} answers neither as an S5 node (/s5/version) nor as a gateway (/health): "
            "say which it is with portal+http:// or gateway+http://",
            details={"status": version.status},
            retryable=False,
        )

    async def put(self, data: bytes | bytearray | memoryview) -> BlobId:
        """Store a blob."""
        return await (await self._store()).put(data)

    async def get(self, hash: bytes, size: int | AtMost) -> bytes:
        """Return a blob after checking its hash."""
        return await (await self._store()).get(hash, size)

    async def has(self, hash: bytes) -> bool:
        """Return whether there is such a blob."""
        return await (await self._store()).has(hash)

    async def delete(self, hash: bytes) -> bool:
        """Delete a blob, if the store allows it; return whether a blob was deleted."""
        return await (await self._store()).delete(hash)

    async def get_pointer(self, public_key: bytes) -> RegistryEntry | None:
        """Return the current entry of a pointer, or ``None``."""
        return await (await self._store()).get_pointer(public_key)

    async def set_pointer(self, entry: RegistryEntry) -> None:
        """Move a pointer."""
        await (await self._store()).set_pointer(entry)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

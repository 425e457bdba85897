"""The keys of a collection's shards, derived from the user's phrase in the process that builds or changes it."""

from __future__ import annotations

from functools import partial
from typing import Self

import anyio.to_thread

from fabstir_vectordb.collections.records import ShardKey
from fabstir_vectordb.config import SeedPhrase, VectorDBConfig
from fabstir_vectordb.persist.version import index_path
from fabstir_vectordb.s5.keys import Identity, shard_key
from fabstir_vectordb.s5.phrase import secret_to_entropy

__all__ = ["ShardKeys"]


class ShardKeys:
    """Derives the key of each shard.

    Args:
        root_key: encryption key of the root index, 32 bytes, which is overwritten by `wipe`.
        collection: index name of the root.
    """

    __slots__ = ("_collection", "_root_key")

    def __init__(self, root_key: bytearray, collection: str) -> None:
        self._root_key = root_key
        self._collection = collection

    @classmethod
    async def of(cls, config: VectorDBConfig) -> Self:
        """The keys of a collection, derived in a worker thread: Argon2id takes long for secrets that are no phrase."""
        root_key = await anyio.to_thread.run_sync(partial(_root_key, config.secret, config.index_name))
        return cls(root_key, config.index_name)

    def __repr__(self) -> str:
        return f"<ShardKeys of {self._collection!r}>"

    def __reduce__(self) -> str:
        raise TypeError("the keys of a collection are a secret and cannot be pickled")

    def of_shard(self, number: int) -> ShardKey:
        """The key of one shard."""
        return ShardKey(shard_key(bytes(self._root_key), self._collection, number))

    def hint(self, number: int) -> str:
        """Where an engine should run the tasks of a shard."""
        return f"{self._collection}/{number}"

    def wipe(self) -> None:
        """Overwrites the root key; calling it again does nothing."""
        self._root_key[:] = bytes(len(self._root_key))


def _root_key(secret: SeedPhrase, index_name: str) -> bytearray:
    # Revealed in the worker thread only: the frames that wait for it may end up in a traceback.
    identity = Identity(secret_to_entropy(secret.reveal()))
    try:
        return bytearray(identity.path_keys(index_path(index_name)).encryption_key)
    finally:
        identity.wipe()

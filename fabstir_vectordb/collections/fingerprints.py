"""Which shards may have an id, with the route ``nearest``, where the id does not say so.

Each shard has the *fingerprints* of its ids: the first 32 bits of their BLAKE3, sorted, in an encrypted object of their
own that the root names. A task that stores a version of a shard stores its fingerprints, too. So they move with the
root, and a process that has read them asks only shards which have the fingerprint of an id. One of them may have it
from another id: in a shard of 1,000,000 rows, of an id in 4,300.

An object is the number of fingerprints as u32, and one zstd frame with the differences from one to the next as u32:
first their lowest bytes, then the next ones, and so on. These are 1.7 bytes a row in a shard of 1,000,000.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import anyio
import anyio.to_thread
import numpy as np
import numpy.typing as npt

from fabstir_vectordb.collections.fanout import of_shard
from fabstir_vectordb.collections.records import Recipe, Shard
from fabstir_vectordb.collections.root import Snapshot
from fabstir_vectordb.errors import DecryptionError, IntegrityError, InvalidInputError, NotFoundError, VectorDBError
from fabstir_vectordb.persist.transfer import PARALLEL_TRANSFERS, run_bounded
from fabstir_vectordb.s5.cid import BlobId, EncryptedBlobCid, blake3_hash, multibase_decode, multibase_encode
from fabstir_vectordb.s5.cipher import decrypt_static, encrypt_static, encrypted_size
from fabstir_vectordb.s5.compress import compress, decompress
from fabstir_vectordb.s5.keys import part_key
from fabstir_vectordb.storage import Store, open_store
from fabstir_vectordb.storage.base import UPLOAD_BYTES_MAX

__all__ = ["LOST", "IdMap", "blob_of", "fetch_fingerprints", "store_fingerprints", "store_of"]

logger = logging.getLogger(__name__)

Fingerprints = npt.NDArray[np.uint32]

#: Errors of fingerprints that are missing or damaged, as opposed to those of a store that does not answer.
LOST: Final = (DecryptionError, IntegrityError, NotFoundError)

_BYTES: Final = 4
_LEVEL: Final = 1
#: The part of memory_budget_mb that fingerprints may take in a process that reads a collection.
_BUDGET_PART: Final = 4
#: Seconds until lost fingerprints are asked for again: an object may be on its way from another node of the store.
_AGAIN_S: Final = 60.0


def store_of(recipe: Recipe) -> Store:
    """The store of a collection's shards, without an account of its own."""
    return open_store(
        recipe.s5_portal,
        timeout_s=recipe.timeout_s,
        max_retries=recipe.max_retries,
        token=recipe.portal_token,
        private_redirects=recipe.allow_private_redirects,
    )


def _of(ids: Iterable[str]) -> Fingerprints:
    """The fingerprints of ids, in their order."""
    joined = b"".join(blake3_hash(id.encode("utf-8"))[:_BYTES] for id in ids)
    return np.frombuffer(joined, dtype=">u4").astype(np.uint32)


def _encoded(ids: Iterable[str]) -> bytes | None:
    """The object in clear; None where `_decoded` or an upload would refuse it."""
    found = np.unique(_of(ids))
    differences = np.diff(found, prepend=np.uint32(0)).astype("<u4")
    planes = np.ascontiguousarray(differences.view(np.uint8).reshape(-1, _BYTES).T)
    plain = len(found).to_bytes(_BYTES, "little") + compress(planes.tobytes(), _LEVEL)
    return plain if len(found) <= len(plain) and encrypted_size(len(plain)) <= UPLOAD_BYTES_MAX else None


def _decoded(plain: bytes) -> Fingerprints:
    count = int.from_bytes(plain[:_BYTES], "little")
    # Hashes do not compress to less than a byte each, and a frame of zeros could fill the memory.
    if len(plain) < _BYTES or count > len(plain):
        raise IntegrityError(f"{len(plain)} bytes hold no {count} fingerprints")
    planes = np.frombuffer(decompress(plain[_BYTES:], _BYTES * count), dtype=np.uint8).reshape(_BYTES, -1)
    # A sum beyond 32 bits comes out smaller than the one before.
    found = np.cumsum(np.ascontiguousarray(planes.T).view("<u4").ravel(), dtype=np.uint32)
    if not (found[1:] > found[:-1]).all():
        raise IntegrityError("the fingerprints of a shard's ids are not in order")
    return found


async def store_fingerprints(store: Store, root_key: bytes, ids: Iterable[str]) -> str | None:
    """Stores the fingerprints of a shard's ids.

    Args:
        store: where the shard lives.
        root_key: encryption key of the shard, 32 bytes.
        ids: all of its ids, those of rows that have expired included.

    Returns:
        The CID of the encrypted object, with its key, a secret. None where it would be larger than an upload may be:
        with more than some 19 million rows. Such a shard is asked for every id.

    Raises:
        VectorDBError: the store failed.
    """
    plain = await anyio.to_thread.run_sync(_encoded, ids)
    if plain is None:
        return None
    key = part_key(root_key, plain)
    stored = await store.put(encrypt_static(key, plain))
    cid = EncryptedBlobCid(stored.hash, key, 0, BlobId.of(plain))
    return multibase_encode(cid.to_bytes())


def blob_of(cid: str) -> BlobId:
    """The stored object of fingerprints.

    Raises:
        IntegrityError: `cid` is none that `store_fingerprints` gives.
    """
    parsed = _parsed(cid)
    return BlobId(parsed.ciphertext_hash, encrypted_size(parsed.plaintext.size))


async def fetch_fingerprints(store: Store, cid: str) -> Fingerprints:
    """Fetches the fingerprints of a shard's ids.

    Args:
        store: where they are.
        cid: as `store_fingerprints` gives it.

    Returns:
        They, ascending.

    Raises:
        IntegrityError, NotFoundError: they are damaged or missing.
        VectorDBError: the store failed.
    """
    parsed, blob = _parsed(cid), blob_of(cid)
    stored = await store.get(blob.hash, blob.size)

    def opened() -> Fingerprints:
        plain = decrypt_static(parsed.key, stored, parsed.plaintext.size)
        if blake3_hash(plain) != parsed.plaintext.hash:
            raise IntegrityError("the fingerprints of a shard's ids are other bytes than the root says")
        return _decoded(plain)

    return await anyio.to_thread.run_sync(opened)


def _parsed(cid: str) -> EncryptedBlobCid:
    try:
        parsed = EncryptedBlobCid.from_bytes(multibase_decode(cid))
    except InvalidInputError as error:
        raise IntegrityError("the root does not say where the fingerprints of a shard's ids are") from error
    if parsed.padding or parsed.plaintext.size > UPLOAD_BYTES_MAX:
        raise IntegrityError("the fingerprints of a shard's ids cannot have this size")
    return parsed


class IdMap:
    """Says which shards may have an id.

    Fingerprints are fetched when they are needed first, and kept up to a quarter of `memory_budget_mb`. Shards whose
    fingerprints do not fit are asked for every id, and so are those whose fingerprints are lost, which a warning tells
    once; these are looked for again after a minute.

    Args:
        recipe: the store, and the budget.
        name: of the collection, for the warning.
    """

    def __init__(self, recipe: Recipe, name: str) -> None:
        self._recipe = recipe
        self._name = name
        self._room = recipe.memory_budget_mb * 1_000_000 // _BUDGET_PART
        self._store: Store | None = None
        self._held: dict[str, Fingerprints] = {}
        # What those take in memory that were fetched once, and when those that are lost are due again, by their CIDs.
        self._bytes: dict[str, int] = {}
        self._lost: dict[str, float] = {}
        self._turn = anyio.Lock()

    async def shards_of(self, at: Snapshot, ids: Iterable[str]) -> dict[int, list[str]]:
        """The shards that may have some of the ids, with those ids.

        Raises:
            VectorDBError: the store of fingerprints failed; details has ``shard``.
        """
        wanted = list(dict.fromkeys(ids))
        if not wanted:
            return {}
        if at.centroids is not None:
            async with self._turn:
                held = await self._read(at)
            return await anyio.to_thread.run_sync(_found, wanted, at.shards, held)
        found: dict[int, list[str]] = {}
        for id in wanted:
            home = at.home_of(id)
            assert home is not None
            found.setdefault(home, []).append(id)
        return found

    def lost(self, at: Snapshot) -> list[int]:
        """The shards whose fingerprints were found to be lost."""
        return [number for number, shard in at.shards.items() if shard.fingerprints in self._lost]

    async def look(self, at: Snapshot) -> None:
        """Fetches the fingerprints of all shards, to find those that are lost.

        Raises:
            VectorDBError: the store failed; details has ``shard``.
        """
        async with self._turn:
            held = self._held = {}
            await self._fetch([shard for shard in at.shards.values() if shard.fingerprints is not None], held)

    def stored(self, shard: Shard) -> None:
        """Takes note that the fingerprints of a shard were stored again."""
        self._lost.pop(shard.fingerprints or "", None)

    async def _read(self, at: Snapshot) -> Mapping[str, Fingerprints]:
        """The fingerprints of as many shards as fit; all others are let go."""
        room, held, missing = self._room, dict[str, Fingerprints](), list[Shard]()
        named = {shard.fingerprints for shard in at.shards.values()}
        self._bytes = {cid: size for cid, size in self._bytes.items() if cid in named}
        for shard in at.shards.values():
            cid = shard.fingerprints
            if cid is None or self._lost.get(cid, 0.0) > time.monotonic():
                continue
            # Expired rows have fingerprints, too, and a root may say anything.
            size = self._bytes.get(cid, shard.rows * _BYTES)
            if size > room:
                continue
            room -= size
            if cid in self._held:
                held[cid] = self._held[cid]
            else:
                missing.append(shard)
        await self._fetch(missing, held)
        self._held = held
        return held

    async def _fetch(self, shards: Sequence[Shard], held: dict[str, Fingerprints]) -> None:
        """Fetches the fingerprints of shards, and adds those that fit to `held`."""
        if not shards:
            return
        taken = sum(one.nbytes for one in held.values())

        async def fetch(store: Store, shard: Shard) -> None:
            nonlocal taken
            cid = shard.fingerprints
            assert cid is not None
            try:
                found = await fetch_fingerprints(store, cid)
            except LOST as error:
                if cid not in self._lost:
                    logger.warning(
                        "collection %r: the fingerprints of shard %d are lost (%s): it is asked for every id, until "
                        "vacuum() stores them again",
                        self._name,
                        shard.number,
                        error.message,
                    )
                self._lost[cid] = time.monotonic() + _AGAIN_S
                return
            except VectorDBError as error:
                raise of_shard(error, shard.number) from error
            self._lost.pop(cid, None)
            self._bytes[cid] = found.nbytes
            if taken + found.nbytes <= self._room:
                held[cid] = found
                taken += found.nbytes

        if self._store is None:
            self._store = store_of(self._recipe)
        await run_bounded([partial(fetch, self._store, shard) for shard in shards], PARALLEL_TRANSFERS)

    async def aclose(self) -> None:
        """Closes the store."""
        store, self._store, self._held = self._store, None, {}
        if store is not None:
            await store.aclose()


def _found(
    wanted: Sequence[str], shards: Mapping[int, Shard], held: Mapping[str, Fingerprints]
) -> dict[int, list[str]]:
    asked: npt.NDArray[Any] = _of(wanted)
    found: dict[int, list[str]] = {}
    for number, shard in shards.items():
        own = None if shard.fingerprints is None else held.get(shard.fingerprints)
        if own is None:
            found[number] = list(wanted)
        elif len(own):
            places = np.minimum(np.searchsorted(own, asked), len(own) - 1)
            if own_ids := [wanted[place] for place in np.flatnonzero(own[places] == asked).tolist()]:
                found[number] = own_ids
    return found

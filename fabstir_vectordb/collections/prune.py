"""Pruning a collection: old roots, and the objects of shards that only they name."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import anyio

from fabstir_vectordb.collections.fingerprints import blob_of, store_of
from fabstir_vectordb.collections.records import Recipe, Shard
from fabstir_vectordb.collections.root import read_root
from fabstir_vectordb.errors import NotFoundError
from fabstir_vectordb.persist.open import open_shared
from fabstir_vectordb.persist.prune import delete_blobs
from fabstir_vectordb.persist.transfer import PARALLEL_TRANSFERS, fetch_root, run_bounded
from fabstir_vectordb.s5.cid import BlobId, ShareCid, parse_cid
from fabstir_vectordb.s5.cipher import encrypted_size
from fabstir_vectordb.session import VectorDBSession
from fabstir_vectordb.storage import Store
from fabstir_vectordb.types import PruneReport

__all__ = ["prune_collection"]


async def prune_collection(session: VectorDBSession, recipe: Recipe, keep: int, dry_run: bool) -> PruneReport:
    """Forgets all but the newest roots of a collection, and deletes what only they need.

    Kept roots are read first, so nothing that they name is deleted. Objects of shards go before the old roots, so an
    interrupted prune finds them again.

    Args:
        session: has the root; it holds the same version at the end.
        recipe: the store.
        keep: how many roots stay.
        dry_run: only report.

    Returns:
        The roots and objects that go, or would go.

    Raises:
        VectorDBError: as `VectorDBSession.prune_history`.
    """
    report = await session.prune_history(keep, dry_run=True)
    if not report.versions:
        return report
    going = {version.cid for version in report.versions}
    staying = [version.cid for version in await session.history() if version.cid not in going]
    current = (await session.get_stats()).last_cid
    try:
        kept, old = await _shards_of(session, staying, False), await _shards_of(session, going, True)
    finally:
        with anyio.CancelScope(shield=True):
            await session.load_user_vectors(current, lazy_load=False, discard_unsaved=True)
    store = store_of(recipe)
    try:
        needed = await _blobs_of(store, kept, False)
        blobs = {
            digest: size for digest, size in (await _blobs_of(store, old - kept, True)).items() if digest not in needed
        }
        deleted = 0
        if not dry_run:
            roots = {_cid_of(shard.share).hash for shard in old}
            # The roots of shards last: they list the other objects.
            deleted = await delete_blobs(store, [digest for digest in blobs if digest not in roots])
            deleted += await delete_blobs(store, [digest for digest in blobs if digest in roots])
            report = await session.prune_history(keep, dry_run=False)
    finally:
        with anyio.CancelScope(shield=True):
            await store.aclose()
    return PruneReport(
        versions=report.versions,
        blobs=report.blobs + len(blobs),
        bytes=report.bytes + sum(blobs.values()),
        blobs_deleted=report.blobs_deleted + deleted,
    )


async def _shards_of(session: VectorDBSession, roots: Iterable[str], missing_ok: bool) -> set[Shard]:
    """The shards of all versions that some roots name."""
    shards: set[Shard] = set()
    for cid in sorted(roots):
        try:
            await session.load_user_vectors(cid, lazy_load=False, discard_unsaved=True)
        except NotFoundError:
            # An interrupted prune has deleted a part of it.
            if missing_ok:
                continue
            raise
        shards.update((await read_root(session)).shards.values())
    return shards


async def _blobs_of(store: Store, shards: Iterable[Shard], missing_ok: bool) -> dict[bytes, int]:
    """The stored objects of shards, with their sizes in bytes."""
    blobs: dict[bytes, int] = {}

    async def collect(shard: Shard) -> None:
        share, own = _cid_of(shard.share), parse_cid(shard.cid)
        assert isinstance(own, BlobId)
        try:
            blob = await fetch_root(store, share.hash)
        except NotFoundError:
            if missing_ok:
                return
            raise
        for entry in open_shared(share, blob).values():
            blobs[entry.hash] = encrypted_size(entry.size)
        blobs[share.hash] = len(blob)
        blobs[own.hash] = own.size
        if shard.fingerprints is not None:
            fingerprints = blob_of(shard.fingerprints)
            blobs[fingerprints.hash] = fingerprints.size

    await run_bounded([partial(collect, shard) for shard in shards], PARALLEL_TRANSFERS)
    return blobs


def _cid_of(share: str) -> ShareCid:
    cid = parse_cid(share)
    assert isinstance(cid, ShareCid)
    return cid

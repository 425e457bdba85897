"""Pruning: removing old versions of an index, and the blobs that only they use.

Nothing else deletes blobs of versions. The kept versions are read first, so that a part that an old version shares with
a kept one is never deleted. Then blobs are deleted, roots last, and at the end the versions leave the history. So an
interrupted prune leaves old versions that are listed but broken; pruning again finishes the work.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import field
from functools import partial

from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import InvalidInputError, NotFoundError
from fabstir_vectordb.metadata.values import shown
from fabstir_vectordb.persist.open import read_directory, unlock_root
from fabstir_vectordb.persist.pointer import checked_pointer
from fabstir_vectordb.persist.records import cut_history, each_once, read_history
from fabstir_vectordb.persist.transfer import PARALLEL_TRANSFERS, Workers, fetch_root, run_bounded
from fabstir_vectordb.persist.version import HistoryEntry, Lineage, PersistSettings, index_path
from fabstir_vectordb.s5.cid import BlobId
from fabstir_vectordb.s5.cipher import encrypted_size
from fabstir_vectordb.s5.dirv1 import FileEntry, is_directory
from fabstir_vectordb.s5.keys import Identity
from fabstir_vectordb.s5.registry import pointer_hash
from fabstir_vectordb.storage.base import Store

__all__ = ["PrunedHistory", "delete_blobs", "prune_history"]


@dataclass(frozen=True, slots=True)
class PrunedHistory:
    """The result of a prune.

    Attributes:
        versions: the removed versions, newest first.
        blobs, bytes: number of blobs that only those versions use, and their stored size.
        blobs_deleted: how many of these blobs the store reports as deleted.
    """

    versions: list[HistoryEntry]
    blobs: int
    bytes: int
    blobs_deleted: int


@dataclass(slots=True)
class _Named:
    """The blobs of versions: sizes by hash, roots apart."""

    roots: dict[bytes, int] = field(default_factory=dict)
    files: dict[bytes, int] = field(default_factory=dict)


async def prune_history(
    store: Store, identity: Identity, lineage: Lineage, settings: PersistSettings, keep: int, *, dry_run: bool
) -> PrunedHistory:
    """Forgets all but the newest versions.

    No session may save this index meanwhile: it might reuse a part that is being deleted. The base of this session, and
    parts that it has stored, are kept.

    Args:
        store: where the versions live.
        identity: the user's keys.
        lineage: the session's memory.
        settings: index name, encryption.
        keep: how many versions stay, at least 1. Refused versions do not count; those newer than the oldest kept
            version stay, too.
        dry_run: only report what would go.

    Returns:
        The versions and blobs that go, or would go.

    Raises:
        InvalidInputError: `keep` is below 1.
        IntegrityError, NotFoundError: the history or a kept version is damaged or lost; nothing was deleted.
        VectorDBError: the store failed; pruning again finishes the work.
    """
    if keep < 1:
        raise InvalidInputError(f"keep must be at least 1, got {shown(keep)}", details={"keep": keep})
    listed = await read_history(store, identity, settings.index_name, lineage)
    newest = [entry.revision for entry in listed if not entry.refused][:keep]
    cut = newest[-1] if newest else 0
    going = [entry for entry in listed if entry.revision < cut]
    if not going:
        return PrunedHistory([], 0, 0, 0)

    workers = Workers(settings.threads, settings.spare_bytes)
    read = partial(_read_root, store, identity, lineage, settings, workers)
    staying = await _roots_that_stay(store, identity, lineage, settings, listed, cut)
    kept, old = _Named(), _Named()
    await _collect(read, staying, kept, missing_ok=False)
    await _collect(read, {entry.cid.hash for entry in going} - staying, old, missing_ok=True)

    needed = {*kept.roots, *kept.files, *(part.entry.hash for part in lineage.unfinished.values())}
    if lineage.base is not None:
        needed.update(part.entry.hash for part in lineage.base.parts.values())
    files = {digest: size for digest, size in old.files.items() if digest not in needed}
    roots = {digest: size for digest, size in old.roots.items() if digest not in needed}
    deleted = 0
    if not dry_run:
        # Roots last: they list the other blobs, which an interrupted prune must find again.
        deleted = await delete_blobs(store, files) + await delete_blobs(store, roots)
        await cut_history(store, identity, settings, lineage, cut)
    size = sum(files.values()) + sum(roots.values())
    # A version with a second entry above the cut stays: it became the newest again, or was refused at first.
    going = [entry for entry in each_once(going) if entry.cid.hash not in staying]
    return PrunedHistory(going, len(files) + len(roots), size, deleted)


async def _roots_that_stay(
    store: Store,
    identity: Identity,
    lineage: Lineage,
    settings: PersistSettings,
    listed: Iterable[HistoryEntry],
    cut: int,
) -> set[bytes]:
    staying = {entry.cid.hash for entry in listed if entry.revision >= cut}
    # The history is written last and may not know the newest version yet.
    public_key = identity.path_keys(index_path(settings.index_name)).public_key
    head = await checked_pointer(store, public_key, lineage, f"index {settings.index_name!r}")
    if head is not None:
        staying.add(pointer_hash(head.data))
    return staying


async def _collect(
    read: Callable[[bytes], Awaitable[tuple[int, dict[str, FileEntry]]]],
    roots: Iterable[bytes],
    named: _Named,
    *,
    missing_ok: bool,
) -> None:
    async def collect(digest: bytes) -> None:
        try:
            size, files = await read(digest)
        except NotFoundError:
            # An interrupted prune has deleted this root already.
            if missing_ok:
                return
            raise
        if files:
            named.roots[digest] = size
        for entry in files.values():
            named.files[entry.hash] = encrypted_size(entry.size)

    await run_bounded([partial(collect, digest) for digest in roots], PARALLEL_TRANSFERS)


async def _read_root(
    store: Store, identity: Identity, lineage: Lineage, settings: PersistSettings, workers: Workers, digest: bytes
) -> tuple[int, dict[str, FileEntry]]:
    """The size of a root and its files; no files where it is stored in clear."""
    blob = await fetch_root(store, digest)
    if is_directory(blob):
        # Parts in clear have the same hash for every user: versions of others may use them, too.
        return len(blob), {}
    root_id = BlobId(digest, len(blob))
    root = await unlock_root(store, identity, lineage, settings, workers=workers, root_id=root_id, blob=blob)
    return len(blob), await workers.run(read_directory, root.plain)


async def delete_blobs(store: Store, blobs: Iterable[bytes]) -> int:
    """Deletes blobs, a few at a time; returns how many the store reports as deleted.

    Raises:
        VectorDBError: the store failed.
    """
    deleted = 0

    async def delete(digest: bytes) -> None:
        nonlocal deleted
        was_there = await store.delete(digest)
        deleted += was_there

    await run_bounded([partial(delete, digest) for digest in blobs], PARALLEL_TRANSFERS)
    return deleted

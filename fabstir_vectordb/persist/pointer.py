"""The pointer to the newest version: reading, moving, and conflicts."""

from __future__ import annotations

from typing import Literal

from fabstir_vectordb.errors import ConflictError, IntegrityError, NotFoundError, StorageError, VectorDBError
from fabstir_vectordb.persist.transfer import fetch_root
from fabstir_vectordb.persist.version import HistoryEntry, Lineage, PersistSettings, Version
from fabstir_vectordb.s5.cid import BlobId
from fabstir_vectordb.s5.keys import PathKeys
from fabstir_vectordb.s5.registry import REVISION_MAX, RegistryEntry, pointer_data, pointer_hash
from fabstir_vectordb.storage.base import Store

__all__ = ["OnConflict", "RefusedError", "checked_pointer", "conflict", "head_cid_of", "is_newest", "move_pointer"]

OnConflict = Literal["error", "overwrite"]
_POINTER_TRIES = 5


class RefusedError(Exception):
    """The newest version is not the base of the one being saved."""

    def __init__(self, head_hash: bytes, head_revision: int) -> None:
        super().__init__()
        self.head_hash = head_hash
        self.head_revision = head_revision


async def checked_pointer(store: Store, public_key: bytes, lineage: Lineage, what: str) -> RegistryEntry | None:
    """Reads a pointer. A revision lower than this session has seen is refused.

    Args:
        store: the store to ask.
        public_key: 33 bytes, the registry key.
        lineage: the session's memory; the highest revision seen is kept in it.
        what: names the pointer in an error, for example ``index 'default'``.

    Returns:
        The verified entry, or None where there is none.

    Raises:
        IntegrityError: the entry is damaged, or the store rolled it back.
        VectorDBError: the store failed.
    """
    # Read before the request: a save of this session may move the pointer while the answer is under way.
    seen = lineage.seen.get(public_key, 0)
    entry = await store.get_pointer(public_key)
    revision = 0 if entry is None else entry.revision
    if revision < seen:
        raise IntegrityError(
            f"the store rolled the pointer of {what} back: revision {revision} now, {seen} before. "
            "Do not trust its answers; a new session would accept them",
            details={"what": what, "revision": revision, "seen": seen},
        )
    lineage.seen[public_key] = max(revision, lineage.seen.get(public_key, 0))
    return entry


async def is_newest(store: Store, public_key: bytes, lineage: Lineage, index_name: str) -> bool:
    """Whether the session's base is the newest version, by the pointer alone; True where neither exists.

    Raises:
        IntegrityError, VectorDBError: as `checked_pointer`.
    """
    head = await checked_pointer(store, public_key, lineage, f"index {index_name!r}")
    base = lineage.base
    return (None if head is None else pointer_hash(head.data)) == (None if base is None else base.cid.hash)


async def move_pointer(
    store: Store,
    keys: PathKeys,
    version: Version,
    lineage: Lineage,
    settings: PersistSettings,
    *,
    on_conflict: OnConflict,
) -> tuple[int, bool, HistoryEntry | None]:
    """Makes `version` the newest.

    Returns:
        The revision that names it; whether that is a new revision; the history entry of a version that `overwrite`
        superseded, or None.
    """
    public_key = keys.public_key
    floor = 0
    superseded: HistoryEntry | None = None
    for _ in range(_POINTER_TRIES):
        head = await _read_head(store, public_key, lineage, settings, on_conflict)
        revision = max(floor, lineage.seen.get(public_key, 0))
        if head is not None:
            head_hash = pointer_hash(head.data)
            if head_hash == version.cid.hash:
                return head.revision, False, superseded
            if not _continues(head_hash, lineage):
                if on_conflict != "overwrite":
                    raise RefusedError(head_hash, head.revision)
                superseded = await _superseded_entry(store, head, lineage)
        if revision >= REVISION_MAX:
            raise StorageError(
                f"the pointer of index {settings.index_name!r} is at revision {revision}, the last one S5 "
                "can sign; save under another index_name",
                details={"revision": revision, "limit": REVISION_MAX},
            )
        entry = RegistryEntry.sign(keys.write_seed, revision + 1, pointer_data(version.cid.hash))
        lineage.attempted[version.cid.hash] = version
        try:
            await store.set_pointer(entry)
        except (VectorDBError, OSError) as error:
            if await _is_ours(store, entry):
                lineage.seen[public_key] = entry.revision
                return entry.revision, True, superseded
            if not isinstance(error, ConflictError):
                raise
            # Another writer took this revision first. The next round reads the new head, and decides about a conflict.
            lineage.attempted.pop(version.cid.hash, None)
            stored_revision = error.details.get("stored_revision")
            floor = stored_revision if isinstance(stored_revision, int) else 0
            continue
        lineage.seen[public_key] = entry.revision
        return entry.revision, True, superseded
    raise StorageError(
        f"the pointer of index {settings.index_name!r} moved {_POINTER_TRIES} times during the save; try again",
        details={"cid": str(version.cid), "index_name": settings.index_name},
        retryable=True,
    )


async def _read_head(
    store: Store, public_key: bytes, lineage: Lineage, settings: PersistSettings, on_conflict: OnConflict
) -> RegistryEntry | None:
    try:
        return await checked_pointer(store, public_key, lineage, f"index {settings.index_name!r}")
    except IntegrityError:
        # Overwriting repairs a damaged or rolled back pointer, as it does not depend on the old one.
        if on_conflict != "overwrite":
            raise
        return None


def _continues(head_hash: bytes, lineage: Lineage) -> bool:
    base = lineage.base
    return (base is not None and head_hash == base.cid.hash) or head_hash in lineage.attempted


async def _is_ours(store: Store, entry: RegistryEntry) -> bool:
    """Whether a failed write reached the store anyway; False also where the store does not answer."""
    try:
        found = await store.get_pointer(entry.public_key)
    except (VectorDBError, OSError):
        return False
    return found is not None and (found.revision, found.data) == (entry.revision, entry.data)


async def _superseded_entry(store: Store, head: RegistryEntry, lineage: Lineage) -> HistoryEntry:
    digest = pointer_hash(head.data)
    for entry in lineage.history.values():
        if entry.cid.hash == digest and entry.revision == head.revision:
            return entry
    # The stored history may have this version's counts and time: the merge prefers an entry with them.
    return HistoryEntry(
        cid=await head_cid_of(store, digest, lineage),
        saved_us=0,
        revision=head.revision,
        vector_count=None,
        deleted_count=None,
    )


async def head_cid_of(store: Store, head_hash: bytes, lineage: Lineage) -> BlobId:
    """The CID of the newest version. A pointer has only its hash; the size comes from the history or the root."""
    for entry in lineage.history.values():
        if entry.cid.hash == head_hash:
            return entry.cid
    try:
        return BlobId(head_hash, len(await fetch_root(store, head_hash)))
    except (IntegrityError, NotFoundError, StorageError):
        return BlobId(head_hash, 0)


def conflict(version: Version, head_cid: BlobId, base: Version | None, settings: PersistSettings) -> ConflictError:
    """The error for a save whose base is not the newest version."""
    return ConflictError(
        f"index {settings.index_name!r} has a newer version {head_cid} that this session did not start from; "
        f"yours is stored as {version.cid} but is not the newest. Either load the newest with "
        "load_user_vectors(discard_unsaved=True), repeat your changes and save again, or replace it with "
        "save_to_s5(on_conflict='overwrite')",
        details={
            "cid": str(version.cid),
            "head_cid": str(head_cid),
            "base_cid": None if base is None else str(base.cid),
            "index_name": settings.index_name,
        },
    )

"""What versions take in the store: all objects of a version, and those that no older version has."""

from __future__ import annotations

from functools import partial

from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import NotFoundError
from fabstir_vectordb.persist.open import read_directory, unlock_root
from fabstir_vectordb.persist.records import list_versions
from fabstir_vectordb.persist.transfer import PARALLEL_TRANSFERS, Workers, fetch_root, run_bounded
from fabstir_vectordb.persist.version import HistoryEntry, Lineage, PersistSettings
from fabstir_vectordb.s5.cid import BlobId
from fabstir_vectordb.s5.cipher import encrypted_size
from fabstir_vectordb.s5.dirv1 import is_directory
from fabstir_vectordb.s5.keys import Identity
from fabstir_vectordb.storage.base import Store

__all__ = ["VersionSize", "measure_versions"]


@dataclass(frozen=True, slots=True)
class VersionSize:
    """A version and what it takes in the store.

    Attributes:
        entry: the version's line of the history.
        objects, bytes: number and stored size of its objects, its root included; None where the root is gone.
        new_objects, new_bytes: those that the version before it in the history does not have.
    """

    entry: HistoryEntry
    objects: int | None
    bytes: int | None
    new_objects: int | None
    new_bytes: int | None


async def measure_versions(
    store: Store, identity: Identity, lineage: Lineage, settings: PersistSettings, most: int
) -> tuple[list[VersionSize], int]:
    """The newest versions with their sizes, newest first, and the number of all versions.

    It reads the roots of these versions and of the one before them.

    Args:
        store, identity, lineage, settings: as in `load_version`.
        most: most versions to measure.

    Raises:
        IntegrityError: the history or a root is damaged.
        DecryptionError: no key of the user opens a root, or it is in clear while encryption is on.
        VectorDBError: the store failed.
    """
    listed, _ = await list_versions(store, identity, settings, lineage)
    workers = Workers(settings.threads, settings.spare_bytes)
    sizes: dict[bytes, dict[bytes, int]] = {}

    async def measure(entry: HistoryEntry) -> None:
        try:
            blob = await fetch_root(store, entry.cid.hash)
        except NotFoundError:  # an interrupted prune has deleted it
            return
        root_id = BlobId(entry.cid.hash, len(blob))
        root = await unlock_root(store, identity, lineage, settings, workers=workers, root_id=root_id, blob=blob)
        in_clear = is_directory(blob)
        files = await workers.run(read_directory, root.plain)
        sizes[entry.cid.hash] = {entry.cid.hash: len(blob)} | {
            file.hash: file.size if in_clear else encrypted_size(file.size) for file in files.values()
        }

    await run_bounded([partial(measure, entry) for entry in listed[: most + 1]], PARALLEL_TRANSFERS)
    older: list[HistoryEntry | None] = [*listed[1:], None]
    pairs = list(zip(listed, older, strict=False))[:most]  # an empty history has no entry before its last
    return [_measured(entry, sizes, before) for entry, before in pairs], len(listed)


def _measured(entry: HistoryEntry, sizes: dict[bytes, dict[bytes, int]], before: HistoryEntry | None) -> VersionSize:
    own = sizes.get(entry.cid.hash)
    if own is None:
        return VersionSize(entry, None, None, None, None)
    base = {} if before is None else sizes.get(before.cid.hash, {})
    new = [size for digest, size in own.items() if digest not in base]
    return VersionSize(entry, len(own), sum(own.values()), len(new), sum(new))

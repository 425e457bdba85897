"""Versions that no pointer, history and catalogue name: the shards of a collection.

Whoever stores such a version keeps its two CIDs: that of its root, with which its key opens it for a later save, and a
share CID, with which anybody reads it. The parts may hold tombstones, so the share CID is not for strangers before a
vacuum (`persist.share` explains why).
"""

from __future__ import annotations

from dataclasses import field

from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.index.contents import IndexSnapshot
from fabstir_vectordb.persist.save import store_version
from fabstir_vectordb.persist.share import store_copy
from fabstir_vectordb.persist.transfer import Workers
from fabstir_vectordb.persist.version import Lineage, PersistSettings, Version, index_path
from fabstir_vectordb.s5.cid import ShareCid
from fabstir_vectordb.s5.keys import Identity
from fabstir_vectordb.storage.base import Store

__all__ = ["UnnamedVersion", "store_unnamed"]


@dataclass(frozen=True, slots=True)
class UnnamedVersion:
    """A stored version without a name.

    Attributes:
        version: the version.
        share: its share CID.
        bytes_stored: bytes sent to the store, after compression and encryption.
    """

    version: Version
    share: ShareCid = field(repr=False)
    bytes_stored: int


async def store_unnamed(
    store: Store, identity: Identity, index: IndexSnapshot, lineage: Lineage, settings: PersistSettings
) -> UnnamedVersion:
    """Stores an index as an encrypted version that nothing names.

    Args:
        store: where to store it.
        identity: keys of this index alone (`Identity.from_key`).
        index: the content, which must not change while this runs.
        lineage: its base is the version from which the index was changed, whose parts are reused.
        settings: index name, and memory; versions are always encrypted here.

    Returns:
        The version, the same for the same content and keys.

    Raises:
        StorageError: the version breaks a limit of the layout (nothing was stored), or the store failed.
        VectorDBError: the store failed in another way.
    """
    assert settings.encrypt_at_rest  # without encryption there is no share CID
    workers = Workers(settings.threads, settings.spare_bytes)
    keys = identity.path_keys(index_path(settings.index_name))
    stored = await store_version(
        store, keys, index, lineage, settings, workers=workers, verify_stored=False, progress=None
    )
    share = await store_copy(store, workers, keys.encryption_key, stored.version.cid, stored.directory)
    return UnnamedVersion(stored.version, share, stored.bytes_stored)

"""Sharing a version: its root once more, under a key that opens nothing else.

A root's own key opens every version of its index, so it never leaves. The copy has the same directory, which names the
same parts with their keys: nothing but the root is stored again, and whoever gets the share CID needs no phrase.
"""

from __future__ import annotations

from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.persist.load import read_directory, unlock_root
from fabstir_vectordb.persist.manifest import MANIFEST_NAME
from fabstir_vectordb.persist.versions import Lineage, PersistSettings, Workers, fetch_root, index_path
from fabstir_vectordb.s5.cid import BlobId, ShareCid, parse_cid
from fabstir_vectordb.s5.cipher import encrypt_mutable
from fabstir_vectordb.s5.keys import Identity, root_nonce, share_key
from fabstir_vectordb.storage.base import Store

__all__ = ["share_version"]


async def share_version(
    store: Store, identity: Identity, lineage: Lineage, settings: PersistSettings, cid: str
) -> ShareCid:
    """Stores a version's root under a key of its own.

    Args:
        store: where the version lives.
        identity: the user's keys.
        lineage: the session's memory; only the revisions seen change.
        settings: index name, encryption.
        cid: the version.

    Returns:
        What opens it, always the same for the same version.

    Raises:
        NotFoundError: the store lacks it.
        InvalidInputError: `cid` is no CID, a share CID already, or names no version, or one that is stored in clear.
        DecryptionError: none of the user's keys opens it.
        VectorDBError: the store failed or lied.
    """
    asked = parse_cid(cid)
    if isinstance(asked, ShareCid):
        raise InvalidInputError("this is a share CID already: pass it on as it is")
    workers = Workers(settings.threads, settings.spare_bytes)
    blob = await fetch_root(store, asked.hash, asked.known_size)
    root_id = BlobId(asked.hash, len(blob))
    root = await unlock_root(store, identity, lineage, settings, workers=workers, root_id=root_id, blob=blob)
    if root.index_name is None:
        raise InvalidInputError(f"{root_id} is stored in clear: its CID opens it for everybody already")
    if MANIFEST_NAME not in await workers.run(read_directory, root.plain):
        raise InvalidInputError(f"{root_id} is no version of an index")
    key = share_key(identity.path_keys(index_path(root.index_name)).encryption_key, root_id.hash)
    shared = await store.put(await workers.run(_sealed, key, root.plain))
    return ShareCid(key, shared.hash)


def _sealed(key: bytes, plain: bytes) -> bytes:
    return encrypt_mutable(key, root_nonce(key, plain), plain)

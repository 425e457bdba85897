"""Sharing a version: a copy of its root under a key that opens nothing else.

The root's own key opens every version of its index, so it is never given away. The copy has the same directory, with
the same parts and their keys: only the root is stored again, and a reader of the share CID needs no phrase.

A reader of a share gets every byte of the parts. So a version is shared only where its parts hold live rows alone, and
no tombstones, replaced metadata or expired rows.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from fabstir_vectordb.errors import ConflictError, InvalidInputError
from fabstir_vectordb.index.contents import EXPIRIES
from fabstir_vectordb.metadata.expiry import parse_expiry_page
from fabstir_vectordb.persist.manifest import Manifest
from fabstir_vectordb.persist.open import read_directory, read_manifest, read_part, unlock_root
from fabstir_vectordb.persist.parts import StoredPart, split_name
from fabstir_vectordb.persist.transfer import PARALLEL_TRANSFERS, Workers, fetch_root, run_bounded
from fabstir_vectordb.persist.version import Lineage, PersistSettings, index_path
from fabstir_vectordb.s5.cid import BlobId, ShareCid, parse_cid
from fabstir_vectordb.s5.cipher import encrypt_mutable
from fabstir_vectordb.s5.keys import Identity, root_nonce, share_key
from fabstir_vectordb.storage.base import Store

__all__ = ["share_version", "store_copy"]


async def share_version(
    store: Store, identity: Identity, lineage: Lineage, settings: PersistSettings, cid: str
) -> ShareCid:
    """Stores a copy of a version's root under its own key.

    Args:
        store: where the version lives.
        identity: the user's keys.
        lineage: the session's memory; only the revisions seen change.
        settings: index name, encryption, and the clock by which rows expire.
        cid: the version.

    Returns:
        The share CID, always the same for the same version.

    Raises:
        NotFoundError: the store lacks the version.
        InvalidInputError: `cid` is no CID, is a share CID, is not the CID of a version, or its version is stored in
            clear.
        ConflictError: its parts hold more than live rows; details has ``superseded_bytes`` and ``expired_rows``.
        DecryptionError: none of the user's keys opens the version.
        VectorDBError: the store failed or sent wrong bytes.
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
    files = await workers.run(read_directory, root.plain)
    manifest, parts, _ = await read_manifest(store, workers, root_id, files, encrypted=True)
    expired = await _expired_rows(store, workers, manifest, parts, settings.clock())
    if manifest.superseded or expired:
        raise _not_clean(root_id, manifest.superseded, expired)
    root_key = identity.path_keys(index_path(root.index_name)).encryption_key
    return await store_copy(store, workers, root_key, root_id, root.plain)


async def store_copy(store: Store, workers: Workers, root_key: bytes, root_id: BlobId, plain: bytes) -> ShareCid:
    """Stores a copy of a root under its own key, whatever its parts hold.

    Args:
        store: where the version lives.
        workers: for the cipher.
        root_key: encryption key of the index, 32 bytes.
        root_id: CID of the root.
        plain: the root in clear.

    Returns:
        The share CID.

    Raises:
        VectorDBError: the store failed.
    """
    key = share_key(root_key, root_id.hash)
    shared = await store.put(await workers.run(_sealed, key, plain))
    return ShareCid(key, shared.hash)


async def _expired_rows(
    store: Store, workers: Workers, manifest: Manifest, parts: list[StoredPart], now_us: int
) -> int:
    """How many of a version's rows have expired by now."""
    expired = 0

    async def count(part: StoredPart, number: int) -> None:
        nonlocal expired
        page = await read_part(store, workers, part)
        _, times = parse_expiry_page(number, manifest.layout.document_rows, page, manifest.rows)
        expired += int(np.count_nonzero(times <= now_us))

    pages = [(part, number) for part in parts for kind, number in [split_name(part.record.name)] if kind == EXPIRIES]
    await run_bounded([partial(count, part, number) for part, number in pages], PARALLEL_TRANSFERS)
    return expired


def _not_clean(root_id: BlobId, superseded_bytes: int, expired_rows: int) -> ConflictError:
    held = []
    if superseded_bytes:
        held.append(f"about {superseded_bytes} bytes of rows that were deleted or replaced, or of replaced metadata")
    if expired_rows:
        held.append(f"{expired_rows} rows that have expired")
    return ConflictError(
        f"{root_id} still holds {' and '.join(held)}, which a share would give away: load this version if it is not "
        "the session's, call vacuum() and save_to_s5(), and share the CID that gives",
        details={"cid": str(root_id), "superseded_bytes": superseded_bytes, "expired_rows": expired_rows},
    )


def _sealed(key: bytes, plain: bytes) -> bytes:
    return encrypt_mutable(key, root_nonce(key, plain), plain)

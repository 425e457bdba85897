"""Opening a version: pointer -> root -> manifest. Each is checked before the next one is read."""

from __future__ import annotations

import logging
from dataclasses import field

from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import DecryptionError, IntegrityError, InvalidInputError, VectorDBError
from fabstir_vectordb.persist.manifest import (
    FORMAT_OF_SEPARATE_KEYS,
    MANIFEST_BYTES_MAX,
    Manifest,
    check_complete,
    decode_manifest,
)
from fabstir_vectordb.persist.parts import (
    MANIFEST_NAME,
    StoredPart,
    blob_size,
    check_entry,
    check_sizes,
    naming,
    open_blob,
    unpacked,
)
from fabstir_vectordb.persist.pointer import checked_pointer
from fabstir_vectordb.persist.records import read_catalogue
from fabstir_vectordb.persist.transfer import Workers, fetch_part, fetch_root
from fabstir_vectordb.persist.version import Lineage, PersistSettings, Version, index_path
from fabstir_vectordb.s5.cid import BlobId, ShareCid, parse_cid
from fabstir_vectordb.s5.cipher import decrypt_mutable, is_mutable
from fabstir_vectordb.s5.dirv1 import FileEntry, decode_directory, is_directory
from fabstir_vectordb.s5.keys import Identity
from fabstir_vectordb.s5.registry import pointer_hash
from fabstir_vectordb.storage.base import Store

__all__ = [
    "OpenedVersion",
    "UnlockedRoot",
    "open_shared",
    "open_version",
    "read_directory",
    "read_manifest",
    "read_part",
    "unlock_root",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OpenedVersion:
    """A version whose root and manifest were read and agree."""

    version: Version
    revision: int | None
    manifest: Manifest
    parts: list[StoredPart]
    bytes_read: int


@dataclass(frozen=True, slots=True)
class UnlockedRoot:
    """A root's plaintext.

    Attributes:
        plain: the directory.
        index_name: the user's index whose key opened it, or None where it is stored in clear.
    """

    plain: bytes = field(repr=False)
    index_name: str | None


async def open_version(
    store: Store,
    identity: Identity,
    lineage: Lineage,
    settings: PersistSettings,
    *,
    workers: Workers,
    cid: str | None,
) -> OpenedVersion | None:
    """Reads root and manifest of a version; None where `cid` is None and no version was saved."""
    revision: int | None = None
    if cid is None:
        keys = identity.path_keys(index_path(settings.index_name))
        head = await checked_pointer(store, keys.public_key, lineage, f"index {settings.index_name!r}")
        if head is None:
            return None
        revision = head.revision
        root_hash = pointer_hash(head.data)
        root_blob = await fetch_root(store, root_hash)
        root_id = BlobId(root_hash, len(root_blob))
        files, own = await _open_root(
            store, identity, lineage, settings, workers=workers, root_id=root_id, blob=root_blob
        )
    else:
        asked = parse_cid(cid)
        root_blob = await fetch_root(store, asked.hash, asked.known_size if isinstance(asked, BlobId) else None)
        root_id = BlobId(asked.hash, len(root_blob))
        if isinstance(asked, ShareCid):
            # The parts have the keys of another user: a later save must not reuse them.
            files, own = await workers.run(open_shared, asked, root_blob), False
        else:
            files, own = await _open_root(
                store, identity, lineage, settings, workers=workers, root_id=root_id, blob=root_blob
            )

    encrypted = is_mutable(root_blob)
    manifest, parts, size = await read_manifest(store, workers, root_id, files, encrypted=encrypted)
    # Before keys were separate, parts had others: the next save stores all parts again.
    own = own and (not encrypted or manifest.format >= FORMAT_OF_SEPARATE_KEYS)
    version = Version.of(root_id, manifest, parts, own=own, encrypted=encrypted)
    return OpenedVersion(version, revision, manifest, parts, len(root_blob) + size)


async def read_manifest(
    store: Store, workers: Workers, root_id: BlobId, files: dict[str, FileEntry], *, encrypted: bool
) -> tuple[Manifest, list[StoredPart], int]:
    """Fetches and reads the manifest that a root names.

    Args:
        store: where it lives.
        workers: for the cipher.
        root_id: CID of the root, for errors.
        files: the files of the root.
        encrypted: whether the root is encrypted.

    Returns:
        The manifest, the parts, and the stored size of the manifest in bytes.

    Raises:
        IntegrityError: the manifest is missing or damaged, or root and manifest disagree.
        StorageError: a newer release wrote it.
    """
    manifest_entry = files.get(MANIFEST_NAME)
    if manifest_entry is None or manifest_entry.size > MANIFEST_BYTES_MAX:
        raise IntegrityError(
            f"{root_id} has no file {MANIFEST_NAME!r} of a possible size: it is no version of an index",
            details={"cid": str(root_id), "part": MANIFEST_NAME},
        )
    check_entry(MANIFEST_NAME, manifest_entry, encrypted)
    blob = await store.get(manifest_entry.hash, blob_size(manifest_entry))
    manifest, parts = await workers.run(_decoded_manifest, manifest_entry, blob, files, encrypted)
    return manifest, parts, len(blob)


def _decoded_manifest(
    entry: FileEntry, blob: bytes, files: dict[str, FileEntry], encrypted: bool
) -> tuple[Manifest, list[StoredPart]]:
    manifest = decode_manifest(open_blob(MANIFEST_NAME, entry, blob))
    check_complete(manifest)
    names = {part.name for part in manifest.parts} | {MANIFEST_NAME}
    if names != files.keys():
        odd = sorted(names ^ files.keys())[0]
        raise IntegrityError(
            f"root and manifest do not list the same parts: {odd[:64]!r} is in one of them only",
            details={"part": odd[:64]},
        )
    parts = []
    for record in manifest.parts:
        check_entry(record.name, files[record.name], encrypted)
        check_sizes(record, files[record.name])
        parts.append(StoredPart(record, files[record.name]))
    return manifest, parts


async def read_part(store: Store, workers: Workers, part: StoredPart) -> bytes:
    """Fetches a part; returns its bytes before compression, checked against the manifest."""
    blob = await fetch_part(store, part)

    def unpack() -> bytes:
        with naming(part.record):
            return unpacked(part, blob)

    return await workers.run(unpack)


# ---- Roots -------------------------------------------------------------------------------------------------


async def _open_root(
    store: Store,
    identity: Identity,
    lineage: Lineage,
    settings: PersistSettings,
    *,
    workers: Workers,
    root_id: BlobId,
    blob: bytes,
) -> tuple[dict[str, FileEntry], bool]:
    """The root's files, and whether it has this index's own key."""
    root = await unlock_root(store, identity, lineage, settings, workers=workers, root_id=root_id, blob=blob)
    return await workers.run(read_directory, root.plain), root.index_name in (None, settings.index_name)


async def unlock_root(
    store: Store,
    identity: Identity,
    lineage: Lineage,
    settings: PersistSettings,
    *,
    workers: Workers,
    root_id: BlobId,
    blob: bytes,
) -> UnlockedRoot:
    """Opens a root with the key of this index, or of another index of the user.

    Args:
        store, identity, lineage, settings: as in `load_version`.
        workers: for the cipher.
        root_id: CID of the root, for errors.
        blob: the stored root, its hash checked.

    Returns:
        The plaintext, and the index whose key opened it.

    Raises:
        InvalidInputError: the blob is no root.
        DecryptionError: none of the user's keys opens the root, or it is in clear while encryption is on.
    """
    details = {"cid": str(root_id), "index_name": settings.index_name}
    if is_directory(blob):
        if settings.encrypt_at_rest:
            raise DecryptionError(
                f"{root_id} is stored in clear, and this session expects encryption; open it with "
                "encrypt_at_rest=False if that is what you want",
                details=details,
            )
        return UnlockedRoot(blob, None)
    if not is_mutable(blob):
        raise InvalidInputError(f"{root_id} is a blob, but not the root of an index", details=details)

    plain = await workers.run(_try_index, identity, settings.index_name, blob)
    if plain is not None:
        return UnlockedRoot(plain, settings.index_name)
    try:
        names = await read_catalogue(store, identity, lineage)
    except VectorDBError as error:
        logger.warning("the keys of the user's other indexes could not be tried: %s", error)
        names = []
    for name in names:
        plain = await workers.run(_try_index, identity, name, blob)
        if plain is not None:
            return UnlockedRoot(plain, name)
    raise DecryptionError(
        f"{root_id} cannot be opened with this phrase, neither as index {settings.index_name!r} nor as "
        "another of its indexes",
        details=details,
    )


def open_shared(share: ShareCid, blob: bytes) -> dict[str, FileEntry]:
    """The files of a shared root.

    Raises:
        DecryptionError: the share CID's key does not open it.
        IntegrityError: it is no root of a version.
    """
    plain = _try_key(share.key, blob)
    if plain is None:
        raise DecryptionError("the key in this share CID does not open the version it names")
    return read_directory(plain)


def _try_index(identity: Identity, index_name: str, blob: bytes) -> bytes | None:
    return _try_key(identity.path_keys(index_path(index_name)).encryption_key, blob)


def _try_key(key: bytes, blob: bytes) -> bytes | None:
    try:
        return decrypt_mutable(key, blob)
    except DecryptionError:
        return None
    except IntegrityError as error:
        # The hash of the blob is right, so it is not damaged: it is another kind of blob.
        raise InvalidInputError(f"the blob is not the root of an index: {error.message}") from error


def read_directory(plain: bytes) -> dict[str, FileEntry]:
    """The files of a root.

    Raises:
        IntegrityError: the bytes are no directory, or no root of a version.
    """
    directory = decode_directory(plain)
    if directory.dirs or directory.header:
        raise IntegrityError("the root of a version has neither sub-directories nor a header")
    return directory.files

"""Loading a version: pointer -> root -> manifest -> parts, each checked before the next one is believed.

Bytes from a store pass four gates: BLAKE3 against the identifier they were asked by (in the store), the
cipher's tag, BLAKE3 and size against the authenticated manifest, and the native reader, which trusts nothing.
Nothing of the
session changes here: a load returns a finished native index, or raises and leaves no trace.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fabstir_vectordb._native.handle import WORK_ADD, NativeIndex, estimate_bytes, estimate_work
from fabstir_vectordb.budget import kept_bytes
from fabstir_vectordb.errors import (
    DecryptionError,
    IntegrityError,
    InvalidInputError,
    MemoryBudgetExceededError,
    NotFoundError,
    VectorDBError,
)
from fabstir_vectordb.metadata.schema import Schema
from fabstir_vectordb.persist import disk_cache
from fabstir_vectordb.persist.lazy import LazyParts, Room
from fabstir_vectordb.persist.manifest import (
    BARE,
    CHANGES,
    CODES,
    DOCUMENTS,
    EXPIRIES,
    FIRST_KINDS,
    MANIFEST_BYTES_MAX,
    MANIFEST_NAME,
    PAGE_KINDS,
    VECTORS,
    Manifest,
    PartRecord,
    decode_manifest,
    part_name,
    split_name,
)
from fabstir_vectordb.persist.part_cache import CachedPart, PartKey
from fabstir_vectordb.persist.records import read_catalogue, record_version
from fabstir_vectordb.persist.versions import (
    BUFFERS_PER_TRANSFER,
    PARALLEL_TRANSFERS,
    HistoryEntry,
    Lineage,
    Meter,
    PersistSettings,
    ProgressCallback,
    StoredPart,
    Version,
    Workers,
    checked_pointer,
    index_path,
    run_bounded,
    transfers_for,
)
from fabstir_vectordb.s5.cid import BlobId, ShareCid, blake3_hash, parse_cid
from fabstir_vectordb.s5.cipher import decrypt_mutable, decrypt_static, encrypted_size, is_mutable
from fabstir_vectordb.s5.compress import decompress
from fabstir_vectordb.s5.dirv1 import FileEncryption, FileEntry, decode_directory, is_directory
from fabstir_vectordb.s5.keys import Identity
from fabstir_vectordb.s5.registry import pointer_hash
from fabstir_vectordb.storage.base import Store

__all__ = [
    "LazyVersion",
    "LoadedVersion",
    "OpenedVersion",
    "UnlockedRoot",
    "VerifiedVersion",
    "load_rest",
    "load_version",
    "read_directory",
    "unlock_root",
    "verify_version",
]

logger = logging.getLogger(__name__)

_ALGORITHM = FileEncryption(key=b"", plaintext_hash=b"").algorithm
_IDS = 3
# Offset and size of a row's metadata, with the arena's room for growth.
_TABLE_BYTES_PER_ROW = 14
# Parts that may be on their way at a time before the cache gets any of a short budget.
_LAZY_TRANSFERS = 2
# A search needs some five parts of 1.8 MB, a batch more.
_HELD_BYTES = 32_000_000
# Stored bytes from which on a version is loaded lazily, where that is asked for.
_LAZY_BYTES_MIN = 6_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedVersion:
    """A version in memory, ready to become the content of a session.

    Where `lazy` is given, `native` has no vectors and no graph, and `pages` are still to be fetched.

    Attributes:
        version: what a later save builds on; set it as the lineage's base together with the content.
        revision: the pointer's revision that names it, or None when it was opened by CID.
        dim: components of a vector, or None while no row was ever added.
        metric, M, ef_construction, chunk_size: the index's settings.
        rows: slots, tombstones included.
        live: rows that searches can return.
        last_change_us: time of the last change to a row, microseconds since 1970.
        schema: what metadata must look like, or None.
        native: the loaded native index, or None where `dim` is None; its owner closes it.
        document_rows: rows that a metadata page covers.
        pages: metadata pages as (number, bytes), in order; absent pages hold no metadata.
        expiry_pages: the same for the pages that say when rows expire.
        changes: the part with metadata that differs from what the pages say, empty where there is none.
        lazy: the version's parts, of which the others are fetched when they are needed; None where all came.
    """

    version: Version
    revision: int | None
    dim: int | None
    metric: str
    M: int
    ef_construction: int
    chunk_size: int | None
    rows: int
    live: int
    last_change_us: int
    schema: Schema | None
    native: NativeIndex | None
    document_rows: int
    pages: list[tuple[int, bytes]] = field(repr=False)
    expiry_pages: list[tuple[int, bytes]] = field(repr=False)
    changes: bytes = field(repr=False)
    lazy: LazyVersion | None = None


@dataclass(frozen=True, slots=True)
class LazyVersion:
    """What loads the rest of a version.

    Attributes:
        opened: its root and manifest.
        parts: its parts.
    """

    opened: OpenedVersion
    parts: LazyParts


@dataclass(frozen=True, slots=True)
class VerifiedVersion:
    """What a verification read.

    Attributes:
        cid: the version.
        parts: parts read and checked, the manifest not counted.
        bytes: bytes of all blobs read, as they are stored.
        rows: slots of the index, tombstones included.
    """

    cid: BlobId
    parts: int
    bytes: int
    rows: int


async def load_version(
    store: Store,
    identity: Identity,
    lineage: Lineage,
    settings: PersistSettings,
    cid: str | None = None,
    *,
    missing_ok: bool = False,
    lazy_cache_bytes: int | None = None,
    progress: ProgressCallback | None = None,
) -> LoadedVersion | None:
    """Reads a version into memory.

    Args:
        store: where the version lives.
        identity: the user's keys.
        lineage: the session's memory; only the revisions seen change.
        settings: index name, encryption, native settings, budget.
        cid: the version, or None for the newest one.
        missing_ok: with `cid` None, return None where no version was ever saved.
        lazy_cache_bytes: fetch only what a first search needs, where that is less than the whole, and keep so many
            bytes of what is fetched later; None fetches everything.
        progress: called on the event loop's thread after every part.

    Returns:
        The version, or None.

    Raises:
        NotFoundError: no version was saved under this phrase and name, or the store lacks an object.
        InvalidInputError: `cid` is no CID, or names something that is no version.
        DecryptionError: none of the user's keys opens it, or it is in clear while encryption is on.
        IntegrityError: bytes are not what they should be, or the store went back behind what it answered
            before.
        MemoryBudgetExceededError: it would not fit; nothing was loaded.
        StorageError: a newer release wrote it, or the store failed.
        VectorDBError: the store failed in another way.
    """
    workers = Workers(settings.threads, settings.spare_bytes)
    opened = await _open_version(store, identity, lineage, settings, workers=workers, cid=cid)
    if opened is None:
        if missing_ok:
            return None
        raise NotFoundError(
            f"Version not found: no version of index {settings.index_name!r} was saved under this phrase",
            details={"index_name": settings.index_name},
        )
    if lazy_cache_bytes is not None and _is_worth_a_lazy_load(opened):
        loaded = await _load_first(store, opened, settings, workers, lazy_cache_bytes, progress)
        # To repair the records takes as many requests as a first answer: the next save does it.
        known = {entry.key for entry in lineage.unrecorded}
        lineage.unrecorded.extend(entry for entry in _missing_entries(loaded) if entry.key not in known)
        return loaded

    async def fetch(part: StoredPart) -> bytes:
        return await store.get(part.entry.hash, _blob_size(part.entry))

    loaded = await _load_whole(opened, settings, workers, fetch, progress)
    try:
        entries = _missing_entries(loaded)
        if entries or lineage.unrecorded:
            await record_version(store, identity, settings, lineage, entries, repair_damage=False)
    except BaseException:
        if loaded.native is not None:
            loaded.native.close()
        raise
    return loaded


async def load_rest(
    store: Store, lazy: LazyVersion, settings: PersistSettings, *, progress: ProgressCallback | None = None
) -> LoadedVersion:
    """Reads the whole of a version that was loaded lazily, what was fetched already not again.

    Raises:
        MemoryBudgetExceededError: it would not fit; nothing was loaded.
        IntegrityError, NotFoundError, VectorDBError: as `load_version`.
    """
    cache = lazy.parts.cache

    async def fetch(part: StoredPart) -> bytes | CachedPart:
        return cache.find(split_name(part.record.name)) or await store.get(part.entry.hash, _blob_size(part.entry))

    return await _load_whole(lazy.opened, settings, Workers(settings.threads, settings.spare_bytes), fetch, progress)


async def _load_whole(
    opened: OpenedVersion,
    settings: PersistSettings,
    workers: Workers,
    fetch: Callable[[StoredPart], Awaitable[bytes | CachedPart]],
    progress: ProgressCallback | None,
) -> LoadedVersion:
    manifest = opened.manifest
    transfers = _transfers(manifest, settings)
    native = await workers.run(_begin, manifest, settings)
    try:
        pages: dict[PartKey, bytes] = {}
        # Codes are for lazy loads.
        parts = [part for part in opened.parts if split_name(part.record.name)[0] != CODES]
        await _take_parts(parts, native, pages, workers, fetch, transfers, manifest, progress)
        if native is not None:
            await workers.run(_finish, native, manifest)
    except BaseException:
        # No worker thread is left: run_bounded waits for all of them, also when it is cancelled.
        if native is not None:
            native.close()
        raise
    return _loaded(opened, native, pages, None)


async def _take_parts(
    parts: Sequence[StoredPart],
    native: NativeIndex | None,
    pages: dict[PartKey, bytes],
    workers: Workers,
    fetch: Callable[[StoredPart], Awaitable[bytes | CachedPart]],
    transfers: int,
    manifest: Manifest,
    progress: ProgressCallback | None,
) -> None:
    meter = Meter(progress, len(parts), sum(part.record.size for part in parts), manifest.rows)

    async def take(part: StoredPart) -> None:
        found = await fetch(part)
        if isinstance(found, CachedPart):
            await workers.run(_take_raw, part, found.raw, native, pages)
        else:
            await workers.run(_take_part, part, found, native, pages)
        del found
        await workers.moved(part.record.size)
        meter.advance(part.record.size)

    await run_bounded([partial(take, part) for part in parts], transfers)
    await workers.settle()
    meter.stage("index")


def _loaded(
    opened: OpenedVersion, native: NativeIndex | None, pages: Mapping[PartKey, bytes], lazy: LazyVersion | None
) -> LoadedVersion:
    manifest = opened.manifest
    return LoadedVersion(
        version=opened.version,
        revision=opened.revision,
        dim=manifest.dim or None,
        metric=manifest.metric,
        M=manifest.M,
        ef_construction=manifest.ef_construction,
        chunk_size=manifest.chunk_size,
        rows=manifest.rows,
        live=manifest.live,
        last_change_us=manifest.timestamp_us,
        schema=manifest.schema,
        native=native,
        document_rows=manifest.layout.document_rows,
        pages=_of_kind(DOCUMENTS, pages),
        expiry_pages=_of_kind(EXPIRIES, pages),
        changes=pages.get((CHANGES, 0), b""),
        lazy=lazy,
    )


async def verify_version(
    store: Store,
    identity: Identity,
    lineage: Lineage,
    settings: PersistSettings,
    cid: str | None = None,
    *,
    check_pages: Mapping[int, Callable[[int, int, bytes], object]] | None = None,
    progress: ProgressCallback | None = None,
) -> VerifiedVersion:
    """Reads every object of a version and checks all of it, up to building the index.

    Args:
        store: where the version lives.
        identity: the user's keys.
        lineage: the session's memory; only the revisions seen change.
        settings: index name, encryption, native settings.
        cid: the version, or None for the newest one.
        check_pages: by kind, what is called as ``check(number, document_rows, page)`` for every page of it in a
            worker thread; raises IntegrityError for a bad one.
        progress: called on the event loop's thread after every part.

    Returns:
        What was read.

    Raises:
        IntegrityError: something is wrong; ``details["bad"]`` lists every bad part with its name, CID and
            reason.
        NotFoundError, InvalidInputError, DecryptionError, StorageError: as in `load_version`, for the root.
        MemoryBudgetExceededError: the index, which is built to check it, would not fit.
    """
    workers = Workers(settings.threads, settings.spare_bytes)
    opened = await _open_version(store, identity, lineage, settings, workers=workers, cid=cid)
    if opened is None:
        raise NotFoundError(
            f"Version not found: no version of index {settings.index_name!r} was saved under this phrase",
            details={"index_name": settings.index_name},
        )
    manifest = opened.manifest
    transfers = _transfers(manifest, settings)
    native = await workers.run(_begin, manifest, settings)
    bad: dict[str, dict[str, object]] = {}
    total_bytes = opened.bytes_read
    try:
        meter = Meter(progress, len(opened.parts), sum(part.record.size for part in opened.parts), manifest.rows)

        def check(part: StoredPart, blob: bytes) -> None:
            pages: dict[PartKey, bytes] = {}
            _take_part(part, blob, native, pages)
            for (kind, number), page in pages.items():
                if check_pages is not None:
                    check_pages[kind](number, manifest.layout.document_rows, page)

        def job(part: StoredPart) -> Callable[[], Awaitable[None]]:
            async def fetch() -> None:
                nonlocal total_bytes
                try:
                    blob = await store.get(part.entry.hash, _blob_size(part.entry))
                    total_bytes += len(blob)
                    await workers.run(check, part, blob)
                except (IntegrityError, DecryptionError, NotFoundError) as error:
                    bad[part.record.name] = {
                        "part": part.record.name,
                        "cid": str(_part_cid(part.entry)),
                        "reason": error.message,
                        "missing": isinstance(error, NotFoundError),
                    }
                await workers.moved(part.record.size)
                meter.advance(part.record.size)

            return fetch

        await run_bounded([job(part) for part in opened.parts], transfers)
        meter.stage("index")
        if native is not None and not bad:
            try:
                await workers.run(_finish, native, manifest)
                await workers.run(_check_codes, native, opened)
            except IntegrityError as error:
                bad[""] = {
                    "part": None,
                    "cid": str(opened.version.cid),
                    "reason": error.message,
                    "missing": False,
                }
    finally:
        if native is not None:
            native.close()
    if bad:
        listed = [bad[name] for name in sorted(bad)]
        raise IntegrityError(
            f"{len(listed)} of the {len(opened.parts)} parts of {opened.version.cid} are damaged or missing: "
            + ", ".join(str(entry["part"] or "the whole") for entry in listed[:5])
            + (", ..." if len(listed) > 5 else ""),
            details={"cid": str(opened.version.cid), "bad": listed},
        )
    return VerifiedVersion(opened.version.cid, len(opened.parts), total_bytes, manifest.rows)


# ---- Lazy loads --------------------------------------------------------------------------------------------


def _is_worth_a_lazy_load(opened: OpenedVersion) -> bool:
    # A first search fetches some 4 MB behind the codes, and waits for the network once more.
    return (CODES, 0) in _by_key(opened) and sum(part.entry.size for part in opened.parts) > _LAZY_BYTES_MIN


def _by_key(opened: OpenedVersion) -> dict[PartKey, StoredPart]:
    return {split_name(part.record.name): part for part in opened.parts}


async def _load_first(
    store: Store,
    opened: OpenedVersion,
    settings: PersistSettings,
    workers: Workers,
    cache_bytes: int,
    progress: ProgressCallback | None,
) -> LoadedVersion:
    manifest = opened.manifest
    stored = _by_key(opened)
    first = [part for (kind, _), part in stored.items() if kind in FIRST_KINDS]
    room = _room_for_parts(manifest, stored, cache_bytes, settings)
    native = await workers.run(_begin, manifest, settings)
    assert native is not None  # what has codes has a dimension

    async def fetch(part: StoredPart) -> bytes:
        return await store.get(part.entry.hash, _blob_size(part.entry))

    async def fetch_later(part: StoredPart, check: Callable[[bytes], None]) -> tuple[bytes, int | None]:
        blob, asked = await disk_cache.fetch(store, part.entry.hash, _blob_size(part.entry))
        size = len(blob) if asked else None
        raw = await workers.run(_open_later, part, blob, check)
        del blob
        await workers.moved(part.entry.size)
        return raw, size

    try:
        pages: dict[PartKey, bytes] = {}
        await _take_parts(first, native, pages, workers, fetch, PARALLEL_TRANSFERS, manifest, progress)
        await workers.run(_finish_first, native, manifest)
    except BaseException:
        native.close()
        raise
    return _loaded(opened, native, pages, LazyVersion(opened, LazyParts(stored, fetch_later, room)))


def _open_later(part: StoredPart, blob: bytes, check: Callable[[bytes], None]) -> bytes:
    """A part that comes after the first ones, with every check that it would meet in a whole load but for pages, whose
    rows are checked when they are read."""
    with _naming(part.record):
        raw = _unpacked(part, blob)
        if split_name(part.record.name)[0] == VECTORS:
            check(raw)
        return raw


def _finish_first(native: NativeIndex, manifest: Manifest) -> None:
    native.load_lazy()
    _check_count("live", native.stats().live, manifest.live)


def _room_for_parts(
    manifest: Manifest, stored: Mapping[PartKey, StoredPart], wanted: int, settings: PersistSettings
) -> Room:
    """What may be taken by parts that are fetched later.

    Raises:
        MemoryBudgetExceededError: not even what is fetched first would fit.
    """
    if settings.spare_bytes is None:
        return Room(wanted, _HELD_BYTES, PARALLEL_TRANSFERS)
    # A code takes half a byte a dimension in memory; ids and what finds them, factors, tombstones and times some 40.
    needed = manifest.rows * ((manifest.dim + 63) // 64 * 32 + 40)
    needed += 2 * sum(part.record.size for (kind, _), part in stored.items() if kind in FIRST_KINDS)
    if needed > settings.spare_bytes:
        raise _too_large("to be loaded lazily", needed, settings, "")
    # What the session holds now it will not hold any more when there is something to be kept.
    spare = settings.spare_bytes + settings.held_bytes - needed
    largest = max(part.record.size for (kind, _), part in stored.items() if kind not in FIRST_KINDS)
    cache_bytes = max(0, min(wanted, spare - _LAZY_TRANSFERS * BUFFERS_PER_TRANSFER * largest))
    return Room(cache_bytes, min(_HELD_BYTES, spare // 3), transfers_for(largest, spare - cache_bytes))


def _too_large(how: str, needed: int, settings: PersistSettings, way_out: str) -> MemoryBudgetExceededError:
    assert settings.budget_bytes is not None
    held = f" beside the {settings.held_bytes / 1e6:.1f} MB that this session holds" if settings.held_bytes else ""
    needed += kept_bytes(settings.budget_bytes)
    return MemoryBudgetExceededError(
        f"this version needs about {needed / 1e6:.1f} MB {how}{held}, more than the {settings.budget_bytes / 1e6:.1f} "
        f"MB of memory_budget_mb; raise it{way_out}{' or open it in a new session' if held else ''}",
        details={"needed_bytes": needed + settings.held_bytes, "budget_bytes": settings.budget_bytes},
    )


# ---- Root and manifest -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenedVersion:
    """A version whose root and manifest are read and agree with each other."""

    version: Version
    revision: int | None
    manifest: Manifest
    parts: list[StoredPart]
    bytes_read: int


async def _open_version(
    store: Store,
    identity: Identity,
    lineage: Lineage,
    settings: PersistSettings,
    *,
    workers: Workers,
    cid: str | None,
) -> OpenedVersion | None:
    """Reads root and manifest; None where the newest version is asked for and there is none."""
    revision: int | None = None
    if cid is None:
        keys = identity.path_keys(index_path(settings.index_name))
        head = await checked_pointer(store, keys.public_key, lineage, f"index {settings.index_name!r}")
        if head is None:
            return None
        revision = head.revision
        root_hash = pointer_hash(head.data)
        root_blob = await store.get(root_hash)
        root_id = BlobId(root_hash, len(root_blob))
        files, own = await _open_root(
            store, identity, lineage, settings, workers=workers, root_id=root_id, blob=root_blob
        )
    else:
        asked = parse_cid(cid)
        root_blob = await store.get(asked.hash, asked.known_size if isinstance(asked, BlobId) else None)
        root_id = BlobId(asked.hash, len(root_blob))
        if isinstance(asked, ShareCid):
            # Somebody else's key: what a later save reuses must lie under our own.
            files, own = await workers.run(_open_shared, asked, root_blob), False
        else:
            files, own = await _open_root(
                store, identity, lineage, settings, workers=workers, root_id=root_id, blob=root_blob
            )

    manifest_entry = files.get(MANIFEST_NAME)
    if manifest_entry is None or manifest_entry.size > MANIFEST_BYTES_MAX:
        raise IntegrityError(
            f"{root_id} has no file {MANIFEST_NAME!r} of a possible size: it is no version of an index",
            details={"cid": str(root_id), "part": MANIFEST_NAME},
        )
    encrypted = is_mutable(root_blob)
    _check_entry(MANIFEST_NAME, manifest_entry, encrypted)
    blob = await store.get(manifest_entry.hash, _blob_size(manifest_entry))
    manifest, parts = await workers.run(_read_manifest, manifest_entry, blob, files, encrypted)
    version = Version(
        cid=root_id,
        own=own,
        encrypted=encrypted,
        live=manifest.live,
        rows=manifest.rows,
        timestamp_us=manifest.timestamp_us,
        layout=manifest.layout,
        stored_rows=manifest.stored_rows,
        parts={(part.record.name, part.record.hash): part for part in parts},
    )
    return OpenedVersion(version, revision, manifest, parts, len(root_blob) + len(blob))


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
    """The root's files, and whether it lies under this index's own key."""
    root = await unlock_root(store, identity, lineage, settings, workers=workers, root_id=root_id, blob=blob)
    return await workers.run(read_directory, root.plain), root.index_name in (None, settings.index_name)


@dataclass(frozen=True, slots=True)
class UnlockedRoot:
    """A root's plaintext.

    Attributes:
        plain: the directory.
        index_name: the user's index whose key opened it, or None where it is stored in clear.
    """

    plain: bytes = field(repr=False)
    index_name: str | None


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
    """Opens a root with the key of this index, or of another of the user's.

    Args:
        store, identity, lineage, settings: as in `load_version`.
        workers: for the cipher.
        root_id: names the root in errors.
        blob: the root as it is stored, its hash checked.

    Returns:
        Its plaintext, and which key fitted.

    Raises:
        InvalidInputError: the blob is no root.
        DecryptionError: none of the user's keys opens it, or it is in clear while encryption is on.
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


def _open_shared(share: ShareCid, blob: bytes) -> dict[str, FileEntry]:
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
        # The bytes are what the CID says, so nothing was damaged: it is another kind of blob.
        raise InvalidInputError(f"the blob is not the root of an index: {error.message}") from error


def read_directory(plain: bytes) -> dict[str, FileEntry]:
    """The files of a root.

    Raises:
        IntegrityError: the bytes are no directory, or not one of ours.
    """
    directory = decode_directory(plain)
    if directory.dirs or directory.header:
        raise IntegrityError("the root of a version has neither sub-directories nor a header")
    return directory.files


def _read_manifest(
    entry: FileEntry, blob: bytes, files: dict[str, FileEntry], encrypted: bool
) -> tuple[Manifest, list[StoredPart]]:
    manifest = decode_manifest(_open_blob(MANIFEST_NAME, entry, blob))
    names = {part.name for part in manifest.parts} | {MANIFEST_NAME}
    if names != files.keys():
        odd = sorted(names ^ files.keys())[0]
        raise IntegrityError(
            f"root and manifest do not list the same parts: {odd[:64]!r} is in one of them only",
            details={"part": odd[:64]},
        )
    parts = []
    for record in manifest.parts:
        _check_entry(record.name, files[record.name], encrypted)
        _check_sizes(record, files[record.name])
        parts.append(StoredPart(record, files[record.name]))
    return manifest, parts


def _check_entry(name: str, entry: FileEntry, encrypted: bool) -> None:
    if (entry.encryption is not None) is not encrypted:
        raise IntegrityError(
            f"part {name} and the root are not both encrypted or both in clear", details={"part": name}
        )
    if entry.encryption is not None and entry.encryption.algorithm != _ALGORITHM:
        raise IntegrityError(f"part {name} names an unknown cipher", details={"part": name})


def _check_sizes(record: PartRecord, entry: FileEntry) -> None:
    # A frame that is not smaller would have been stored raw.
    fits = entry.size == record.size if record.codec == "raw" else entry.size < record.size
    if not fits:
        raise IntegrityError(
            f"part {record.name} is stored in {entry.size} bytes and holds {record.size}: impossible for "
            f"codec {record.codec}",
            details={"part": record.name, "expected": record.size, "actual": entry.size},
        )


# ---- Parts -------------------------------------------------------------------------------------------------


def _blob_size(entry: FileEntry) -> int:
    """Bytes of the stored blob; our writer never pads."""
    return entry.size if entry.encryption is None else encrypted_size(entry.size)


def _part_cid(entry: FileEntry) -> BlobId:
    return BlobId(entry.hash, _blob_size(entry))


def _open_blob(name: str, entry: FileEntry, blob: bytes) -> bytes:
    """The bytes of a part as they were given to the cipher; the store and the cipher have checked their number."""
    if entry.encryption is None:
        plain = blob
    else:
        try:
            plain = decrypt_static(entry.encryption.key, blob, entry.size)
        except DecryptionError as error:
            # The root is authenticated and named this key: it is the part that is wrong, not the phrase.
            raise IntegrityError(f"part {name}: {error.message}", details={"part": name}) from error
        if blake3_hash(plain) != entry.encryption.plaintext_hash:
            raise IntegrityError(f"part {name} decrypts to other bytes than the root says", details={"part": name})
    return plain


def _of_kind(kind: int, pages: Mapping[PartKey, bytes]) -> list[tuple[int, bytes]]:
    return sorted((number, page) for (of, number), page in pages.items() if of == kind)


@contextmanager
def _naming(record: PartRecord) -> Iterator[None]:
    """Errors that say which part they are about."""
    try:
        yield
    except (IntegrityError, InvalidInputError) as error:
        if isinstance(error, IntegrityError) and error.details.get("part") == record.name:
            raise
        raise IntegrityError(
            f"part {record.name}: {error.message}", details={**error.details, "part": record.name}
        ) from error


def _unpacked(part: StoredPart, blob: bytes) -> bytes:
    """The bytes of a part as they were before compression, and are in the manifest."""
    record = part.record
    plain = _open_blob(record.name, part.entry, blob)
    raw = decompress(plain, record.size) if record.codec == "zstd" else plain
    if len(raw) != record.size or blake3_hash(raw) != record.hash:
        raise IntegrityError("its bytes are not those of the manifest")
    return raw


def _take_part(part: StoredPart, blob: bytes, native: NativeIndex | None, pages: dict[PartKey, bytes]) -> None:
    """Opens one fetched part and gives it to the native index, or to `pages`; runs in a worker thread."""
    with _naming(part.record):
        raw = _unpacked(part, blob)
    _take_raw(part, raw, native, pages)


def _take_raw(part: StoredPart, raw: bytes, native: NativeIndex | None, pages: dict[PartKey, bytes]) -> None:
    with _naming(part.record):
        kind, number = split_name(part.record.name)
        if kind in PAGE_KINDS:
            pages[kind, number] = raw
        elif native is None:
            raise IntegrityError("a version without a dimension has a native part")
        else:
            native.load_part(raw)


def _begin(manifest: Manifest, settings: PersistSettings) -> NativeIndex | None:
    if manifest.dim == 0:
        return None
    kinds = {split_name(part.name)[0] for part in manifest.parts}
    try:
        return NativeIndex.load_begin(
            dim=manifest.dim,
            metric=manifest.metric,
            memory=settings.memory,
            M=manifest.M,
            ef_construction=manifest.ef_construction,
            threads=settings.threads,
            hash_seed=settings.hash_seed,
            rows=manifest.rows,
            graph_rows=manifest.graph_rows,
            stored_rows=manifest.stored_rows,
            lists=manifest.lists,
            has_codes=CODES in kinds,
            has_bare=BARE in kinds,
            rows_per_part=manifest.layout.rows_per_part,
            rows_per_group=manifest.layout.rows_per_group,
        )
    except InvalidInputError as error:
        # Every setting came from the manifest.
        raise IntegrityError(f"manifest: {error.message}", details={**error.details, "part": MANIFEST_NAME}) from error


def _finish(native: NativeIndex, manifest: Manifest) -> None:
    native.load_end(manifest.steps)
    stats = native.stats()
    _check_count("live", stats.live, manifest.live)
    _check_count("historical", stats.historical, manifest.historical)


def _check_count(what: str, actual: int, expected: int) -> None:
    if actual != expected:
        raise IntegrityError(
            f"the version has {actual} {what} rows, its manifest says {expected}",
            details={"expected": expected, "actual": actual},
        )


def _check_codes(native: NativeIndex, opened: OpenedVersion) -> None:
    """Codes follow from the rows, which a lazy load does not have when it believes them."""
    layout, expected = opened.manifest.layout, {}
    for info in native.parts(layout.rows_per_part, layout.rows_per_group):
        if info.kind == CODES:
            raw = native.write_part(layout.rows_per_part, layout.rows_per_group, *info)
            expected[part_name(info.kind, info.number)] = blake3_hash(raw)
    found = {part.record.name: part.record.hash for part in opened.parts if split_name(part.record.name)[0] == CODES}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise IntegrityError(f"part {name}: its codes are not those of the rows", details={"part": name})


def _transfers(manifest: Manifest, settings: PersistSettings) -> int:
    """How many parts may be in flight beside the index.

    Raises:
        MemoryBudgetExceededError: not even one.
    """
    if settings.spare_bytes is None:
        return PARALLEL_TRANSFERS
    sizes = [(split_name(part.name)[0], part.size) for part in manifest.parts]
    # Pages, and what is made of them when all are there.
    pages = sum(size for kind, size in sizes if kind in (DOCUMENTS, CHANGES))
    needed = 2 * pages + pages // 8 + (_TABLE_BYTES_PER_ROW * manifest.rows if pages else 0)
    if any(kind == EXPIRIES for kind, _ in sizes):
        needed += 8 * manifest.rows  # in memory a time for each row, whether it expires or not
    steps = 0
    if manifest.dim:
        of_index: dict[str, Any] = {
            "metric": manifest.metric,
            "memory": settings.memory,
            "M": manifest.M,
            "ef_construction": manifest.ef_construction,
            "threads": settings.threads,
            "rows": manifest.rows,
            "graph_rows": manifest.graph_rows,
        }
        # Rows that are linked again once all parts are there.
        added = manifest.rows - manifest.stored_rows if manifest.steps else 0
        steps = estimate_work(manifest.dim, WORK_ADD, **of_index, added=added)
        needed += estimate_bytes(
            manifest.dim,
            **of_index,
            # Tombstones may be on lists, too.
            historical=manifest.historical and manifest.historical + manifest.rows - manifest.live,
            # An ids part holds 2 bytes more for each id; the excess is on the safe side.
            id_bytes=sum(size for kind, size in sizes if kind == _IDS),
        )
    largest = max((size for _, size in sizes), default=0)
    spare = settings.spare_bytes - needed
    if spare < max(BUFFERS_PER_TRANSFER * largest, steps):
        raise _too_large("", needed + max(BUFFERS_PER_TRANSFER * largest, steps), settings, ", use memory='compact'")
    return transfers_for(largest, spare)


def _missing_entries(loaded: LoadedVersion) -> list[HistoryEntry]:
    """What an interrupted save left out: a version that the pointer names belongs in history and catalogue."""
    if loaded.revision is None:
        return []
    version = loaded.version
    entry = HistoryEntry(
        cid=version.cid,
        saved_us=version.timestamp_us,
        revision=loaded.revision,
        vector_count=version.live,
        deleted_count=version.rows - version.live,
    )
    return [entry]

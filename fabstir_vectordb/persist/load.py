"""Loading a version: all parts, or the first ones of a lazy load.

Bytes from a store pass four checks: BLAKE3 against the requested identifier (in the store), the cipher's tag, BLAKE3
and size against the authenticated manifest, and the native reader, which trusts no byte. The session does not change
here: a load returns a finished native index, or raises and leaves no trace.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import field
from functools import partial

from fabstir_vectordb._native.handle import NativeIndex
from fabstir_vectordb._native.text import PART_TEXT_STREAMS, NativeText
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.embedding import EmbedderInfo
from fabstir_vectordb.errors import IntegrityError, InvalidInputError, NotFoundError
from fabstir_vectordb.index.contents import (
    CHANGES,
    CODES,
    DOCUMENTS,
    EXPIRIES,
    SECOND_LISTS,
    TEXT_HEAD,
    TEXT_KINDS,
    VECTORLESS,
    VECTORS,
    PartKey,
    TextContents,
)
from fabstir_vectordb.index.text import forms_of
from fabstir_vectordb.metadata.schema import Schema
from fabstir_vectordb.persist import disk_cache
from fabstir_vectordb.persist.manifest import Manifest
from fabstir_vectordb.persist.open import OpenedVersion, open_version
from fabstir_vectordb.persist.part_source import CachedPart, LazyParts, Room
from fabstir_vectordb.persist.parts import (
    FIRST_KINDS,
    MANIFEST_NAME,
    PAGE_KINDS,
    StoredPart,
    blob_size,
    by_key,
    naming,
    part_name,
    split_name,
    unpacked,
)
from fabstir_vectordb.persist.records import record_version
from fabstir_vectordb.persist.transfer import (
    BUFFERS_PER_TRANSFER,
    PARALLEL_TRANSFERS,
    Meter,
    Workers,
    fetch_part,
    memory_of,
    run_bounded,
    too_large,
    transfers_beside,
    transfers_for,
)
from fabstir_vectordb.persist.version import HistoryEntry, Lineage, PersistSettings, Version
from fabstir_vectordb.s5.keys import Identity
from fabstir_vectordb.storage.base import Store
from fabstir_vectordb.types import ProgressCallback

__all__ = [
    "LazyVersion",
    "LoadedVersion",
    "begin_load",
    "check_count",
    "finish_load",
    "load_rest",
    "load_text",
    "load_version",
    "no_version",
    "take_part",
]

# Transfers for which a short budget is reserved before the cache gets the rest.
_LAZY_TRANSFERS = 2
# Bytes of parts that one call may hold: a search needs some five parts of 1.8 MB, a batch more.
_HELD_BYTES = 32_000_000
# Stored bytes above which a version is loaded lazily, where the caller allows it.
_LAZY_BYTES_MIN = 6_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedVersion:
    """A version in memory, ready to become the content of a session.

    After a lazy load, `native` has no vectors and no graph, and `pages` is empty.

    Attributes:
        version: the stored version; the caller makes it the lineage's base together with the content.
        revision: revision of the pointer that names it, or None where it was opened by CID.
        dim: components of a vector, or None while no row was ever added.
        metric, M, ef_construction, chunk_size: the index's settings.
        rows: slots, tombstones included.
        live: rows that searches can return.
        last_change_us: time of the last change to a row, microseconds since 1970.
        schema: the schema of metadata, or None.
        native: the loaded native index, or None where `dim` is None; its owner closes it.
        document_rows: rows that a metadata page covers.
        pages: metadata pages as (number, bytes), in order; absent pages hold no metadata.
        expiry_pages: pages of expiry times as (number, bytes).
        changes: the part with metadata that differs from the pages, empty where there is none.
        text: the text index, of a lazy load its heads alone; None where the version has none.
        lazy: the source of the parts that were not loaded; None after a whole load.
        embedder: the embedder of the index's texts, or None.
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
    text: TextContents | None = None
    lazy: LazyVersion | None = None
    embedder: EmbedderInfo | None = None


@dataclass(frozen=True, slots=True)
class LazyVersion:
    """The rest of a lazily loaded version.

    Attributes:
        opened: its root and manifest.
        parts: the source of its parts.
    """

    opened: OpenedVersion
    parts: LazyParts


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
        lazy_cache_bytes: load lazily where that is worth it, and cache so many bytes of parts that are fetched later;
            None fetches all parts.
        progress: called on the event loop's thread after every part.

    Returns:
        The version, or None.

    Raises:
        NotFoundError: no version was saved under this phrase and name, or the store lacks an object.
        InvalidInputError: `cid` is no CID, or is not the CID of a version.
        DecryptionError: none of the user's keys opens it, or it is in clear while encryption is on.
        IntegrityError: bytes do not match their hash or are damaged, or the store rolled the pointer back.
        MemoryBudgetExceededError: the version would not fit; nothing was loaded.
        StorageError: a newer release wrote the version, or the store failed.
        VectorDBError: the store failed in another way.
    """
    workers = Workers(settings.threads, settings.spare_bytes)
    opened = await open_version(store, identity, lineage, settings, workers=workers, cid=cid)
    if opened is None:
        if missing_ok:
            return None
        raise no_version(settings)
    if lazy_cache_bytes is not None and _is_worth_a_lazy_load(opened):
        loaded = await _load_first(store, opened, settings, workers, lazy_cache_bytes, progress)
        # The records are repaired by the next save, as that takes as many requests as a first answer.
        known = {entry.key for entry in lineage.unrecorded}
        lineage.unrecorded.extend(entry for entry in _missing_entries(loaded) if entry.key not in known)
        return loaded

    loaded = await _load_whole(opened, settings, workers, partial(fetch_part, store), progress)
    try:
        entries = _missing_entries(loaded)
        if entries or lineage.unrecorded:
            await record_version(store, identity, settings, lineage, entries, repair_damage=False)
    except BaseException:
        if loaded.native is not None:
            loaded.native.close()
        raise
    return loaded


def no_version(settings: PersistSettings) -> NotFoundError:
    """The error for a load of the newest version where there is none."""
    return NotFoundError(
        f"Version not found: no version of index {settings.index_name!r} was saved under this phrase",
        details={"index_name": settings.index_name},
    )


async def load_rest(
    store: Store, lazy: LazyVersion, settings: PersistSettings, *, progress: ProgressCallback | None = None
) -> LoadedVersion:
    """Loads all parts of a lazily loaded version. Cached parts are not fetched again.

    Raises:
        MemoryBudgetExceededError: the version would not fit; nothing was loaded.
        IntegrityError, NotFoundError, VectorDBError: as `load_version`.
    """
    cache = lazy.parts.cache

    async def fetch(part: StoredPart) -> bytes | CachedPart:
        return cache.find(split_name(part.record.name)) or await fetch_part(store, part)

    return await _load_whole(lazy.opened, settings, Workers(settings.threads, settings.spare_bytes), fetch, progress)


async def _load_whole(
    opened: OpenedVersion,
    settings: PersistSettings,
    workers: Workers,
    fetch: Callable[[StoredPart], Awaitable[bytes | CachedPart]],
    progress: ProgressCallback | None,
) -> LoadedVersion:
    manifest = opened.manifest
    transfers = transfers_beside(manifest, settings)
    native = await workers.run(begin_load, manifest, settings)
    try:
        pages: dict[PartKey, bytes] = {}
        # Only lazy loads read codes.
        parts = [part for part in opened.parts if split_name(part.record.name)[0] != CODES]
        await _take_parts(parts, native, pages, workers, fetch, transfers, manifest, progress)
        if native is not None:
            await workers.run(finish_load, native, manifest)
        text = await workers.run(load_text, manifest, pages, True)
    except BaseException:
        # No worker thread uses it any more: run_bounded waits for all of them, also when it is cancelled.
        if native is not None:
            native.close()
        raise
    return _loaded(opened, native, pages, text, None)


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
            await workers.run(take_part, part, found, native, pages)
        del found
        await workers.moved(part.record.size)
        meter.advance(part.record.size)

    await run_bounded([partial(take, part) for part in parts], transfers)
    await workers.trim()
    meter.stage("index")


def _loaded(
    opened: OpenedVersion,
    native: NativeIndex | None,
    pages: Mapping[PartKey, bytes],
    text: TextContents | None,
    lazy: LazyVersion | None,
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
        changes=pages.get(PartKey(CHANGES, 0), b""),
        text=text,
        lazy=lazy,
        embedder=manifest.embedder,
    )


def _missing_entries(loaded: LoadedVersion) -> list[HistoryEntry]:
    """The history entry of the version that the pointer names, which an interrupted save may have left out."""
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


# ---- Lazy loads --------------------------------------------------------------------------------------------


def _is_worth_a_lazy_load(opened: OpenedVersion) -> bool:
    # On some data, codes of one bit do not find the nearest rows. Draft 0 does not record this.
    if not opened.manifest.bits_serve:
        return False
    # A first search fetches some 4 MB after the codes, and waits for the network once more.
    return (CODES, 0) in by_key(opened.parts) and sum(part.entry.size for part in opened.parts) > _LAZY_BYTES_MIN


async def _load_first(
    store: Store,
    opened: OpenedVersion,
    settings: PersistSettings,
    workers: Workers,
    cache_bytes: int,
    progress: ProgressCallback | None,
) -> LoadedVersion:
    manifest = opened.manifest
    stored = by_key(opened.parts)
    first = [part for (kind, _), part in stored.items() if kind in FIRST_KINDS]
    room = _room_for_parts(manifest, stored, cache_bytes, settings)
    native = await workers.run(begin_load, manifest, settings)
    assert native is not None  # a version with codes has a dimension

    async def fetch_later(part: StoredPart, check: Callable[[bytes], None]) -> tuple[bytes, int | None]:
        blob, asked = await disk_cache.fetch(store, part.entry.hash, blob_size(part.entry))
        size = len(blob) if asked else None
        raw = await workers.run(_open_later, part, blob, check)
        del blob
        await workers.moved(part.entry.size)
        return raw, size

    try:
        pages: dict[PartKey, bytes] = {}
        fetch = partial(fetch_part, store)
        await _take_parts(first, native, pages, workers, fetch, PARALLEL_TRANSFERS, manifest, progress)
        await workers.run(_finish_first, native, manifest)
        text = await workers.run(load_text, manifest, pages, False)
    except BaseException:
        native.close()
        raise
    return _loaded(opened, native, pages, text, LazyVersion(opened, LazyParts(stored, fetch_later, room)))


def _open_later(part: StoredPart, blob: bytes, check: Callable[[bytes], None]) -> bytes:
    """A part that is fetched on use, with the checks of a whole load. Rows of pages are checked when they are read."""
    with naming(part.record):
        raw = unpacked(part, blob)
        if split_name(part.record.name)[0] == VECTORS:
            check(raw)
        return raw


def _finish_first(native: NativeIndex, manifest: Manifest) -> None:
    native.load_lazy()
    _check_counts(native, manifest)


def _room_for_parts(
    manifest: Manifest, stored: Mapping[PartKey, StoredPart], wanted: int, settings: PersistSettings
) -> Room:
    """The memory for parts that are fetched later.

    Raises:
        MemoryBudgetExceededError: the first parts alone would not fit.
    """
    if settings.spare_bytes is None:
        return Room(wanted, _HELD_BYTES, PARALLEL_TRANSFERS)
    # A row takes half a byte for each dimension of its code, and some 40 for id, id table, factors, tombstone and time.
    needed = manifest.rows * ((manifest.dim + 63) // 64 * 32 + 40)
    needed += 2 * sum(part.record.size for (kind, _), part in stored.items() if kind in FIRST_KINDS)
    if needed > settings.spare_bytes:
        raise too_large(" to be loaded lazily", needed, settings, "")
    # The session's present content is freed before parts are cached.
    spare = settings.spare_bytes + settings.held_bytes - needed
    largest = max(part.record.size for (kind, _), part in stored.items() if kind not in FIRST_KINDS)
    cache_bytes = max(0, min(wanted, spare - _LAZY_TRANSFERS * BUFFERS_PER_TRANSFER * largest))
    return Room(cache_bytes, min(_HELD_BYTES, spare // 3), transfers_for(largest, spare - cache_bytes))


# ---- Parts into an index -----------------------------------------------------------------------------------


def _of_kind(kind: int, pages: Mapping[PartKey, bytes]) -> list[tuple[int, bytes]]:
    return sorted((number, page) for (of, number), page in pages.items() if of == kind)


def take_part(part: StoredPart, blob: bytes, native: NativeIndex | None, pages: dict[PartKey, bytes]) -> None:
    """Opens one fetched part and passes it to the native index, or to `pages`; runs in a worker thread."""
    with naming(part.record):
        raw = unpacked(part, blob)
    _take_raw(part, raw, native, pages)


def _take_raw(part: StoredPart, raw: bytes, native: NativeIndex | None, pages: dict[PartKey, bytes]) -> None:
    with naming(part.record):
        kind, number = split_name(part.record.name)
        if kind in PAGE_KINDS:
            pages[PartKey(kind, number)] = raw
        elif native is None:
            raise IntegrityError("a version without a dimension has a native part")
        else:
            native.load_part(raw)


def begin_load(manifest: Manifest, settings: PersistSettings) -> NativeIndex | None:
    """A native index that waits for its parts; None where no row was ever added. Runs in a worker thread."""
    if manifest.dim == 0:
        return None
    kinds = {split_name(part.name)[0] for part in manifest.parts}
    try:
        return NativeIndex.load_begin(
            dim=manifest.dim,
            metric=manifest.metric,
            memory=memory_of(manifest, settings),
            M=manifest.M,
            ef_construction=manifest.ef_construction,
            threads=settings.threads,
            hash_seed=settings.hash_seed,
            rows=manifest.rows,
            graph_rows=manifest.graph_rows,
            stored_rows=manifest.stored_rows,
            lists=manifest.lists,
            has_codes=CODES in kinds,
            has_vectorless=VECTORLESS in kinds,
            has_seconds=SECOND_LISTS in kinds,
            rows_per_part=manifest.layout.rows_per_part,
            rows_per_group=manifest.layout.rows_per_group,
        )
    except InvalidInputError as error:
        # All arguments came from the manifest, so it is at fault.
        raise IntegrityError(f"manifest: {error.message}", details={**error.details, "part": MANIFEST_NAME}) from error


def finish_load(native: NativeIndex, manifest: Manifest) -> None:
    """Finishes an index whose parts are all loaded, and checks its counts. Runs in a worker thread."""
    native.load_end(manifest.steps)
    _check_counts(native, manifest)
    check_count("historical", native.stats().historical, manifest.historical)


def load_text(manifest: Manifest, pages: dict[PartKey, bytes], whole: bool) -> TextContents | None:
    """The text index of a version, from its parts, which are taken out of `pages`. Runs in a worker thread.

    Args:
        manifest: the version's manifest.
        pages: parts; those of other kinds stay.
        whole: whether all parts are there; else the heads alone are.

    Raises:
        IntegrityError: a part breaks a rule, or there are words of more rows than the version has.
    """
    shape = manifest.text
    if shape is None:
        return None
    terms = forms_of(shape.analyzer["language"], shape.analyzer["stop_words"])
    sizes = dict.fromkeys(PART_TEXT_STREAMS, 0)
    for part in manifest.parts:
        kind = split_name(part.name)[0]
        if kind in sizes:
            sizes[kind] += part.size
    stream_bytes = list(sizes.values())
    native = NativeText.load(shape.segments, shape.chunk_bytes, stream_bytes, k1=shape.k1, b=shape.b, terms=terms)
    try:
        # Heads come first: they say what the other parts are.
        for kind in TEXT_KINDS if whole else (TEXT_HEAD,):
            for number, raw in _of_kind(kind, pages):
                try:
                    native.load_part(kind, number, raw)
                except (IntegrityError, InvalidInputError) as error:
                    name = part_name(kind, number)
                    raise IntegrityError(f"part {name}: {error.message}", details={"part": name}) from error
                del pages[PartKey(kind, number)]
        if whole:
            _end_text(native)
        check_count("with text at most", min(native.stats().rows, manifest.live), native.stats().rows)
    except BaseException:
        native.close()
        raise
    return TextContents(shape, native)


def _end_text(native: NativeText) -> None:
    try:
        native.load_end()
    except InvalidInputError as error:
        raise IntegrityError(f"the text index: {error.message}", details=error.details) from error


def _check_counts(native: NativeIndex, manifest: Manifest) -> None:
    stats = native.stats()
    check_count("live", stats.live, manifest.live)
    if manifest.with_vector is not None:
        check_count("with a vector", stats.with_vector, manifest.with_vector)
    if manifest.bits_serve is not None:
        check_count("bit codes that serve", stats.bits_serve, int(manifest.bits_serve))


def check_count(what: str, actual: int, expected: int) -> None:
    """Raises IntegrityError where a count of rows differs from the manifest."""
    if actual != expected:
        raise IntegrityError(
            f"the version has {actual} {what} rows, its manifest says {expected}",
            details={"expected": expected, "actual": actual},
        )

"""Saving a version: parts -> root -> pointer -> records, always in this order.

The pointer makes the new version the one that the phrase opens. So a crash, a cancellation or a dead store at any point
leaves the old version or the new one, never a mixture. A save that fails before the pointer moves leaves only blobs
that nothing names. The session remembers them, so that the next save stores only the missing ones.

A version depends on the index's content and the user's keys alone: on no wall clock, random number, thread count or
session. Equal content has an equal CID, and a part that did not change keeps its blob.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import field, replace
from functools import partial

import anyio

from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import StorageError
from fabstir_vectordb.index.contents import CHANGES, DOCUMENTS, EXPIRIES, IndexSnapshot, NativeParts, TextShape
from fabstir_vectordb.persist.manifest import Manifest, encode_manifest
from fabstir_vectordb.persist.parts import (
    GRAPH_KINDS,
    GROUP_KINDS,
    MANIFEST_NAME,
    PART_BYTES_MAX,
    PARTS_MAX,
    ROW_KINDS,
    Layout,
    PartRecord,
    StoredPart,
    encode_part,
    layout_for,
    part_name,
    seal,
    split_name,
    with_hash,
)
from fabstir_vectordb.persist.pointer import OnConflict, RefusedError, conflict, head_cid_of, move_pointer
from fabstir_vectordb.persist.records import record_version
from fabstir_vectordb.persist.transfer import Meter, Workers, is_on_this_machine, run_bounded, transfers_for
from fabstir_vectordb.persist.version import HistoryEntry, Lineage, PersistSettings, Version, index_path
from fabstir_vectordb.s5.cid import BLOB_BYTES_MAX, blake3_hash
from fabstir_vectordb.s5.cipher import encrypt_mutable, encrypted_size
from fabstir_vectordb.s5.dirv1 import FileEntry, encode_directory
from fabstir_vectordb.s5.keys import Identity, PathKeys, root_nonce
from fabstir_vectordb.storage.base import UPLOAD_BYTES_MAX, Store
from fabstir_vectordb.types import ProgressCallback

__all__ = ["SavedVersion", "StoredVersion", "is_base_stored", "save_version", "store_version"]

_MEDIA_TYPE_MANIFEST = "application/cbor"
# Largest metadata page in bytes; where a page would be larger, pages cover fewer rows.
_PAGE_TARGET_BYTES = 16 * 1024 * 1024

# Fewest rows of a group: 64 of the longest ids take 66 KB.
_GROUP_ROWS_MIN = 64


@dataclass(frozen=True, slots=True)
class SavedVersion:
    """The result of a save.

    Attributes:
        version: the stored version.
        revision: revision of the pointer that names it.
        moved: whether the pointer moved; False where the newest version had this CID already.
        parts_stored, parts_reused: parts sent to the store, and parts whose earlier blob is reused.
        bytes_stored: bytes sent to the store, after compression and encryption.
        changed_rows: rows whose metadata differs from the version's pages.
        entries: entries for the history; `record_version` writes them.
    """

    version: Version
    revision: int
    moved: bool
    parts_stored: int
    parts_reused: int
    bytes_stored: int
    changed_rows: Sequence[int] = field(repr=False)
    entries: Sequence[HistoryEntry] = field(repr=False)


async def save_version(
    store: Store,
    identity: Identity,
    index: IndexSnapshot | None,
    lineage: Lineage,
    settings: PersistSettings,
    *,
    on_conflict: OnConflict = "error",
    verify_stored: bool = False,
    progress: ProgressCallback | None = None,
) -> SavedVersion:
    """Stores the index as a version and makes it the newest.

    The index must not change while this runs. A cancellation before the pointer moves leaves the session as it was. The
    move of the pointer is not interrupted, and the function returns right after it, without an await. The caller then
    makes the version the lineage's base, and writes the records (`record_version` with the returned entries).

    Args:
        store: where to save.
        identity: the user's keys.
        index: the content; None for that of the lineage's base, where `is_base_stored` is True.
        lineage: the session's memory; its base is the version from which the index was changed.
        settings: index name, encryption, clock.
        on_conflict: with ``error``, a version whose base is not the newest one is stored but refused; with
            ``overwrite`` it supersedes the newest.
        verify_stored: check that the store has every reused part, and store lost ones again.
        progress: called on the event loop's thread after every part.

    Returns:
        The saved version and figures of the save.

    Raises:
        ConflictError: the newest version is not the base; details has ``cid``, ``head_cid`` and ``base_cid``.
        StorageError: the version breaks a limit of the layout (nothing was stored), or the store failed.
        IntegrityError: the pointer is damaged or was rolled back.
        VectorDBError: the store failed in another way; the previous version is still the newest.
    """
    keys = identity.path_keys(index_path(settings.index_name))
    changed: Sequence[int] = ()
    if index is None:
        assert lineage.base is not None
        version, counts = lineage.base, (0, len(lineage.base.parts), 0)
    else:
        workers = Workers(settings.threads, settings.spare_bytes)
        stored = await store_version(
            store, keys, index, lineage, settings, workers=workers, verify_stored=verify_stored, progress=progress
        )
        version, changed = stored.version, stored.changed_rows
        counts = stored.parts_stored, stored.parts_reused, stored.bytes_stored
    # Shielded: after a cancellation it would be unknown whether the version is the newest. The store's timeout bounds
    # it.
    refused_entry: HistoryEntry | None = None
    with anyio.CancelScope(shield=True):
        try:
            revision, moved, superseded = await move_pointer(
                store, keys, version, lineage, settings, on_conflict=on_conflict
            )
        except RefusedError as refused:
            refused_entry = _entry_of(version, settings.clock(), refused.head_revision, refused=True)
            head_cid = await head_cid_of(store, refused.head_hash, lineage)
        else:
            lineage.attempted.clear()
            lineage.unfinished.clear()
    if refused_entry is not None:
        await record_version(store, identity, settings, lineage, [refused_entry], repair_damage=True)
        raise conflict(version, head_cid, lineage.base, settings)

    entries = [] if superseded is None else [superseded]
    # Where the version was the newest already, the history has it, unless the record was lost. The time of the last
    # change is then the best estimate; the merge prefers a later time.
    entries.append(_entry_of(version, settings.clock() if moved else version.timestamp_us, revision))
    return SavedVersion(version, revision, moved, *counts, changed_rows=changed, entries=entries)


async def is_base_stored(store: Store, lineage: Lineage, settings: PersistSettings) -> bool:
    """Whether the base can be the saved version as it is: it has this index's own keys, and the store has its root."""
    base = lineage.base
    return (
        base is not None and base.own and base.encrypted is settings.encrypt_at_rest and await store.has(base.cid.hash)
    )


def _entry_of(version: Version, saved_us: int, revision: int, *, refused: bool = False) -> HistoryEntry:
    return HistoryEntry(
        cid=version.cid,
        saved_us=saved_us,
        revision=revision,
        vector_count=version.live,
        deleted_count=version.rows - version.live,
        refused=refused,
    )


# ---- Parts and root ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Job:
    """A part to be stored: its name, and a function that makes its bytes."""

    kind: int
    name: str
    size: int
    write: Callable[[], bytes | bytearray]


@dataclass(frozen=True, slots=True)
class _Kept:
    """Parts of the base that a version may keep without making their bytes again.

    Attributes:
        layout: layout of the base.
        graph: parts of the stored graph, where steps lead from it to the index's graph; else none.
        stored_rows, steps: rows of the stored graph, and the steps from there.
        pages: metadata pages by number.
    """

    layout: Layout
    graph: Sequence[StoredPart]
    stored_rows: int
    steps: Sequence[int]
    pages: Mapping[int, StoredPart]


@dataclass(frozen=True, slots=True)
class _Plan:
    jobs: Sequence[_Job]
    kept: Sequence[StoredPart]
    stored_rows: int
    steps: Sequence[int]
    changed: Sequence[int]
    superseded: int
    rows: int
    live: int
    with_vector: int
    bits_serve: bool
    graph_rows: int
    historical: int
    lists: int
    layout: Layout
    text: TextShape | None


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """A version that is stored, and that no pointer names yet.

    Attributes:
        version: the version.
        directory: its root in clear, a secret.
        parts_stored, parts_reused, bytes_stored, changed_rows: as in `SavedVersion`.
    """

    version: Version
    directory: bytes = field(repr=False)
    parts_stored: int
    parts_reused: int
    bytes_stored: int
    changed_rows: Sequence[int] = field(repr=False)


async def store_version(
    store: Store,
    keys: PathKeys,
    index: IndexSnapshot,
    lineage: Lineage,
    settings: PersistSettings,
    *,
    workers: Workers,
    verify_stored: bool,
    progress: ProgressCallback | None,
) -> StoredVersion:
    """Stores parts, manifest and root, and moves no pointer.

    Args:
        store, index, lineage, settings, verify_stored, progress: as in `save_version`.
        keys: of the path whose encryption key seals them.
        workers: for hashing and the cipher.

    Returns:
        The version.

    Raises:
        StorageError: the version breaks a limit of the layout (nothing was stored), or the store failed.
        VectorDBError: the store failed in another way.
    """
    root_key = keys.encryption_key if settings.encrypt_at_rest else None
    reusable = _reusable_parts(lineage.base, settings)
    kept = await _kept(store, index, lineage.base, reusable.values(), verify_stored=verify_stored)
    plan = await workers.run(_plan, index, kept, _blob_bytes_max(store))
    meter = Meter(progress, len(plan.jobs), sum(job.size for job in plan.jobs), plan.rows)
    # Parts that a failed save has stored have the same keys.
    reusable = {**reusable, **lineage.unfinished}
    stored: list[StoredPart | None] = [None] * len(plan.jobs)
    parts_stored = bytes_stored = 0

    async def store_part(position: int, job: _Job) -> None:
        nonlocal parts_stored, bytes_stored
        raw = await workers.run(job.write)
        digest = await workers.run(blake3_hash, raw)
        earlier = reusable.get((job.name, digest))
        if earlier is not None and (not verify_stored or await store.has(earlier.entry.hash)):
            stored[position] = earlier
            meter.advance(job.size)
            return
        codec, entry, blob = await workers.run(encode_part, job.kind, raw, root_key)
        del raw
        blob_id = await store.put(blob)
        part = StoredPart(PartRecord(job.name, digest, job.size, codec), with_hash(entry, blob_id.hash))
        stored[position] = lineage.unfinished[job.name, digest] = part
        parts_stored += 1
        bytes_stored += len(blob)
        del blob
        await workers.moved(job.size)
        meter.advance(job.size)

    def start(position: int, job: _Job) -> Callable[[], Awaitable[None]]:
        return lambda: store_part(position, job)

    transfers = transfers_for(max((job.size for job in plan.jobs), default=0), settings.spare_bytes)
    await run_bounded([start(position, job) for position, job in enumerate(plan.jobs)], transfers)
    await workers.trim()

    parts = [*(part for part in stored if part is not None), *plan.kept]
    parts.sort(key=lambda part: split_name(part.record.name))
    manifest = Manifest(
        dim=index.dim or 0,
        metric=index.metric,
        M=index.M,
        ef_construction=index.ef_construction,
        chunk_size=index.chunk_size,
        rows=plan.rows,
        live=plan.live,
        with_vector=plan.with_vector,
        bits_serve=plan.bits_serve,
        graph_rows=plan.graph_rows,
        historical=plan.historical,
        lists=plan.lists,
        layout=plan.layout,
        stored_rows=plan.stored_rows,
        steps=tuple(plan.steps),
        superseded=plan.superseded,
        timestamp_us=index.last_change_us,
        schema=index.schema,
        text=plan.text,
        embedder=index.params.embedder,
        parts=tuple(part.record for part in parts),
    )
    manifest_entry, manifest_blob = await workers.run(_seal_manifest, manifest, root_key)
    manifest_id = await store.put(manifest_blob)
    files = {part.record.name: part.entry for part in parts}
    files[MANIFEST_NAME] = with_hash(manifest_entry, manifest_id.hash)
    directory = await workers.run(encode_directory, files)
    root_blob = directory if root_key is None else await workers.run(_seal_root, directory, root_key)
    root_id = await store.put(root_blob)
    meter.stage("pointer")
    version = Version.of(root_id, manifest, parts, own=True, encrypted=settings.encrypt_at_rest)
    return StoredVersion(
        version,
        directory,
        parts_stored,
        len(parts) - parts_stored,
        bytes_stored + len(manifest_blob) + len(root_blob),
        plan.changed,
    )


async def _kept(
    store: Store,
    index: IndexSnapshot,
    base: Version | None,
    reusable: Iterable[StoredPart],
    *,
    verify_stored: bool,
) -> _Kept | None:
    """The parts of the base that may be kept; None without a base.

    An add changes links all over the graph: 1,000 new rows among 100,000 change a quarter of the link lists. So the
    stored graph is kept where a few steps lead from it to the present one. Pages in which little changed are kept, too.
    """
    if base is None:
        return None
    graph: list[StoredPart] = []
    pages: dict[int, StoredPart] = {}
    lost = False
    for part in reusable:
        kind, number = split_name(part.record.name)
        if kind not in GRAPH_KINDS and kind != DOCUMENTS:
            continue
        there = not verify_stored or await store.has(part.entry.hash)
        if kind == DOCUMENTS and there:
            pages[number] = part
        elif kind in GRAPH_KINDS:
            graph.append(part)
            lost = lost or not there
    stored_rows, steps = (0, []) if index.native is None else index.native.graph_steps()
    ends = [stored_rows, *steps]
    if lost or not stored_rows or base.stored_rows not in ends:
        graph = []
    else:
        # The index may not know that the base was stored. Its steps then begin before the base: drop those.
        steps = ends[ends.index(base.stored_rows) + 1 :]
    return _Kept(base.layout, graph, base.stored_rows, steps, pages)


def _blob_bytes_max(store: Store) -> int:
    """Most bytes of a blob that a store accepts."""
    return BLOB_BYTES_MAX if is_on_this_machine(store) else UPLOAD_BYTES_MAX


def _plan(index: IndexSnapshot, kept: _Kept | None, blob_bytes_max: int) -> _Plan:
    """Plans the parts of the index. Rows of a part are doubled until a version can hold all parts.

    Raises:
        StorageError: no number of rows of a part keeps every limit.
    """
    layout = _with_groups_that_fit(index, layout_for(index.dim or 1, index.chunk_size))
    rows = 0 if index.native is None else index.native.stats().rows
    while True:
        # Native parts are counted first, as the plan of pages is slow.
        count = 0 if index.native is None else len(index.native.parts(layout.rows_per_part, layout.rows_per_group))
        if count <= PARTS_MAX:
            plan = _plan_with(index, layout, kept)
            count = len(plan.jobs) + len(plan.kept)
            if count <= PARTS_MAX:
                break
        if index.chunk_size is not None or layout.rows_per_part >= rows:
            raise StorageError(
                f"the version would have {count} parts; the layout allows {PARTS_MAX}"
                + (f": raise chunk_size, now {index.chunk_size} rows" if index.chunk_size else ""),
                details={"parts": count, "limit": PARTS_MAX, "rows_per_part": layout.rows_per_part},
            )
        layout = layout.doubled()
    for job in plan.jobs:
        if job.size > PART_BYTES_MAX:
            raise StorageError(
                f"part {job.name} would have {job.size} bytes; the layout allows {PART_BYTES_MAX}"
                + (": lower chunk_size" if index.chunk_size else ""),
                details={"part": job.name, "size": job.size, "limit": PART_BYTES_MAX},
            )
        if encrypted_size(job.size) > blob_bytes_max:
            raise StorageError(
                f"part {job.name} may take {encrypted_size(job.size)} bytes; a portal takes {blob_bytes_max} an upload"
                + (f": lower chunk_size, now {index.chunk_size} rows" if index.chunk_size else ""),
                details={
                    "part": job.name,
                    "size": encrypted_size(job.size),
                    "limit": blob_bytes_max,
                    "chunk_size": index.chunk_size,
                },
            )
    return plan


def _with_groups_that_fit(index: IndexSnapshot, layout: Layout) -> Layout:
    """The layout with fewer rows of a group where ids or links are long: 73,728 ids of 1 KiB would be 75 MB to upload.

    It does not depend on the store, as a version has one CID in all stores.
    """
    while index.native is not None and layout.rows_per_group > _GROUP_ROWS_MIN:
        infos = index.native.parts(layout.rows_per_part, layout.rows_per_group)
        if all(encrypted_size(info.size) <= UPLOAD_BYTES_MAX for info in infos if info.kind in GROUP_KINDS):
            break
        layout = replace(layout, rows_per_group=max(layout.rows_per_group // 2, _GROUP_ROWS_MIN))
    return layout


def _plan_with(index: IndexSnapshot, layout: Layout, kept: _Kept | None) -> _Plan:
    rows = live = with_vector = graph_rows = historical = lists = 0
    bits_serve = False
    graph: Sequence[StoredPart] = ()
    jobs: list[_Job] = []
    if index.native is not None:
        stats = index.native.stats()
        rows, live, with_vector, graph_rows = stats.rows, stats.live, stats.with_vector, stats.graph_rows
        bits_serve = bool(stats.bits_serve)
        # An index without rows has no parts that could hold lists.
        historical, lists = stats.historical, stats.lists if rows else 0
        if kept is not None and kept.layout.rows_per_group == layout.rows_per_group:
            graph = kept.graph
        jobs = _native_jobs(index.native, layout, GRAPH_KINDS if graph else frozenset())
    of_rows = sum(job.size for job in jobs if job.kind in ROW_KINDS)
    layout, page_jobs, pages, changed, replaced = _page_jobs(index, layout, kept)
    text, text_jobs = _text_jobs(index)
    return _Plan(
        jobs=[*jobs, *page_jobs, *text_jobs],
        kept=[*graph, *pages],
        text=text,
        superseded=replaced + index.text_superseded_bytes + (of_rows // rows * (rows - live) if rows else 0),
        stored_rows=kept.stored_rows if kept is not None and graph else rows,
        steps=kept.steps if kept is not None and graph else (),
        changed=changed,
        rows=rows,
        live=live,
        with_vector=with_vector,
        bits_serve=bits_serve,
        graph_rows=graph_rows,
        historical=historical,
        lists=lists,
        layout=layout,
    )


def _native_jobs(native: NativeParts, layout: Layout, without: Collection[int]) -> list[_Job]:
    part_rows = layout.rows_per_part, layout.rows_per_group
    jobs = []
    for info in native.parts(*part_rows):
        kind, number, size = info.kind, info.number, info.size
        if kind not in without:
            write = partial(native.write_part, *part_rows, kind, number, size)
            jobs.append(_Job(kind, part_name(kind, number), size, write))
    return jobs


def _text_jobs(index: IndexSnapshot) -> tuple[TextShape | None, list[_Job]]:
    found = index.text_parts()
    if found is None:
        return None, []
    shape, parts = found
    return shape, [
        _Job(
            part.kind,
            part_name(part.kind, part.number),
            part.size,
            partial(index.write_text_part, part, shape.chunk_bytes),
        )
        for part in parts
    ]


def _page_jobs(
    index: IndexSnapshot, layout: Layout, kept: _Kept | None
) -> tuple[Layout, list[_Job], list[StoredPart], list[int], int]:
    """Jobs of metadata and expiries, and the pages of the base that are kept.

    Returns:
        The layout, the jobs, the kept pages, the rows whose metadata differs from these pages, and the bytes of these
        pages that belong to such rows or to deleted ones.
    """
    document_rows = layout.document_rows
    sizes = index.page_sizes(document_rows)
    while document_rows > 1 and max(sizes.values(), default=0) > _PAGE_TARGET_BYTES:
        document_rows = (document_rows + 1) // 2
        sizes = index.page_sizes(document_rows)
    stored = {} if kept is None or kept.layout.document_rows != document_rows else kept.pages
    staying, changed = index.pages_kept(document_rows, sizes, stored.keys())
    if sum(map(index.metadata_size, changed)) > _PAGE_TARGET_BYTES:
        # The part of changes would be too large: store all pages anew.
        staying, changed = set(), []
    jobs = [
        _Job(DOCUMENTS, part_name(DOCUMENTS, number), size, partial(index.page, number, document_rows))
        for number, size in sizes.items()
        if number not in staying
    ]
    ready = [(EXPIRIES, number, page) for number, page in index.expiry_parts(document_rows)]
    if changed:
        ready.append((CHANGES, 0, index.changes_of(changed)))
    jobs += [_Job(kind, part_name(kind, number), len(raw), partial(bytes, raw)) for kind, number, raw in ready]
    pages = [stored[number] for number in sorted(staying)]
    # An unchanged row has equal bytes in the kept page and in a new one, so the difference is that of changed rows.
    replaced = sum(page.record.size for page in pages) - sum(sizes[number] for number in staying)
    replaced += sum(map(index.metadata_size, changed))
    return replace(layout, document_rows=document_rows), jobs, pages, changed, replaced


def _reusable_parts(base: Version | None, settings: PersistSettings) -> Mapping[tuple[str, bytes], StoredPart]:
    # Parts under another user's key must never be in our root: every reader of the root would get that key.
    if base is None or not base.own or base.encrypted is not settings.encrypt_at_rest:
        return {}
    return base.parts


def _seal_manifest(manifest: Manifest, root_key: bytes | None) -> tuple[FileEntry, bytes | bytearray]:
    return seal(encode_manifest(manifest), root_key, _MEDIA_TYPE_MANIFEST)


def _seal_root(directory: bytes, root_key: bytes) -> bytes:
    return encrypt_mutable(root_key, root_nonce(root_key, directory), directory)

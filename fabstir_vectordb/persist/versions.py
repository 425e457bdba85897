"""What the save and load pipelines share: where a version lives, what a session remembers of it, bounded
work.

A version is ``parts -> root -> pointer -> records``.  The root is a directory of parts whose blob id is the
CID; the pointer is a signed registry entry that names the newest root; records (`persist.records`) are
conveniences written last.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, TypeVar

import anyio

from fabstir_vectordb.budget import kept_bytes
from fabstir_vectordb.errors import IntegrityError, InvalidInputError
from fabstir_vectordb.metadata.schema import Schema
from fabstir_vectordb.persist.manifest import Layout, Manifest, PartRecord, bytes_of_rows
from fabstir_vectordb.s5.cid import BlobId
from fabstir_vectordb.s5.cipher import MUTABLE_BLOB_BYTES_MAX
from fabstir_vectordb.s5.dirv1 import FileEntry
from fabstir_vectordb.s5.registry import RegistryEntry
from fabstir_vectordb.storage.base import AtMost, Store
from fabstir_vectordb.worker_threads import run_in_thread, settle_bytes, settle_threads

__all__ = [
    "BUFFERS_PER_TRANSFER",
    "CATALOGUE_PATH",
    "HistoryEntry",
    "IndexSnapshot",
    "Lineage",
    "NativeParts",
    "PersistSettings",
    "Progress",
    "ProgressCallback",
    "StoredPart",
    "Version",
    "Workers",
    "checked_pointer",
    "fetch_root",
    "history_path",
    "index_path",
    "run_bounded",
    "transfers_for",
]

CATALOGUE_PATH = "fabstir-vectordb/catalog"
"""Hidden-DB path of the record that lists the user's index names."""

PARALLEL_TRANSFERS = 8
"""Most parts in flight: a real S5 upload takes 1-2 s whatever its size, and each part holds its bytes
meanwhile."""

BUFFERS_PER_TRANSFER = 5
"""Copies of a part in flight: as it was, compressed, encrypted, first in chunks, and as a store takes it."""

_T = TypeVar("_T")


def index_path(index_name: str) -> str:
    """The hidden-DB path whose keys encrypt an index's versions and sign its pointer."""
    return f"fabstir-vectordb/index/{index_name}"


def history_path(index_name: str) -> str:
    """The hidden-DB path of an index's history record."""
    return f"fabstir-vectordb/history/{index_name}"


def now_us() -> int:
    """The wall clock in microseconds since 1970; it dates history entries and never enters a version."""
    return time.time_ns() // 1000


class PartInfoLike(Protocol):
    """One native part before it is written."""

    @property
    def kind(self) -> int: ...
    @property
    def number(self) -> int: ...
    @property
    def size(self) -> int: ...


class NativeParts(Protocol):
    """What a save needs from the native index."""

    def parts(self, rows_per_part: int, rows_per_group: int) -> Sequence[PartInfoLike]: ...
    def write_part(
        self, rows_per_part: int, rows_per_group: int, kind: int, number: int, size: int
    ) -> bytes | bytearray: ...
    def graph_steps(self) -> tuple[int, Sequence[int]]: ...
    def stats(self) -> Any: ...


class IndexSnapshot(Protocol):
    """What a save needs from an index; nothing in it may change until the save has returned."""

    @property
    def dim(self) -> int | None: ...
    @property
    def metric(self) -> str: ...
    @property
    def M(self) -> int: ...
    @property
    def ef_construction(self) -> int: ...
    @property
    def chunk_size(self) -> int | None: ...
    @property
    def native(self) -> NativeParts | None: ...
    @property
    def last_change_us(self) -> int: ...
    @property
    def schema(self) -> Schema | None: ...
    def page_sizes(self, rows_per_page: int) -> Mapping[int, int]: ...
    def page(self, number: int, rows_per_page: int) -> bytes: ...
    def pages_kept(
        self, rows_per_page: int, page_sizes: Mapping[int, int], stored: Collection[int]
    ) -> tuple[set[int], list[int]]: ...
    def changes_of(self, slots: Sequence[int]) -> bytes: ...
    def metadata_size(self, slot: int) -> int: ...
    def expiry_parts(self, rows_per_page: int) -> Sequence[tuple[int, bytes]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PersistSettings:
    """The settings of a session that saving and loading depend on.

    Attributes:
        index_name: selects keys and pointer.
        encrypt_at_rest: False stores parts and root in clear, and accepts such a root.
        memory: native memory setting of a loaded index, ``default`` or ``compact``.
        threads: most threads a native call may use.
        hash_seed: seed of a loaded index's id table; random, so that nobody can choose ids that collide.
        budget_bytes: most bytes a load may take, everything counted; None for no limit.
        held_bytes: what the session holds meanwhile, and counts with it.
        clock: microseconds since 1970, for history entries.
    """

    index_name: str
    encrypt_at_rest: bool = True
    memory: str = "default"
    threads: int = 1
    hash_seed: int = field(default_factory=lambda: int.from_bytes(os.urandom(8), "little"), repr=False)
    budget_bytes: int | None = None
    held_bytes: int = 0
    clock: Callable[[], int] = now_us

    @property
    def spare_bytes(self) -> int | None:
        """What the budget leaves beside what the session holds; None without a budget."""
        budget = self.budget_bytes
        return None if budget is None else budget - kept_bytes(budget) - self.held_bytes


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a save, load or verification has come.

    Attributes:
        stage: ``parts``, ``index`` (a load builds its codes) or ``pointer``.
        parts_done, parts_total: parts finished, and in all.
        bytes_done, bytes_total: the same in bytes before compression.
        rows_done, rows_total: the same in rows; a row is spread over many parts, so those done are as many as the bytes
            done are worth.
        eta_s: seconds until the last part, if the rest goes as fast as what is done; None before the first part.
    """

    stage: str
    parts_done: int
    parts_total: int
    bytes_done: int
    bytes_total: int
    rows_done: int
    rows_total: int
    eta_s: float | None


ProgressCallback = Callable[[Progress], None]


class Meter:
    """Counts finished parts and tells the caller; used on the event loop's thread only."""

    def __init__(self, callback: ProgressCallback | None, parts_total: int, bytes_total: int, rows_total: int) -> None:
        self._callback = callback
        self._started = time.monotonic()
        self._state = Progress("parts", 0, parts_total, 0, bytes_total, 0, rows_total, None)
        self._tell()

    def advance(self, size: int) -> None:
        """One more part of `size` bytes is done."""
        state = self._state
        done, total = state.bytes_done + size, state.bytes_total
        self._state = replace(
            state,
            parts_done=state.parts_done + 1,
            bytes_done=done,
            rows_done=state.rows_total * done // total if total else 0,
            eta_s=(time.monotonic() - self._started) * (total - done) / done if done else None,
        )
        self._tell()

    def stage(self, name: str) -> None:
        """Another stage begins."""
        self._state = replace(self._state, stage=name)
        self._tell()

    def _tell(self) -> None:
        if self._callback is not None:
            self._callback(self._state)


@dataclass(frozen=True, slots=True)
class StoredPart:
    """A part of a stored version: what the manifest and what the root say of it."""

    record: PartRecord
    entry: FileEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A version that is stored: what a later save may build on.

    Attributes:
        cid: blob id of its root.
        own: its root lies under this index's own key, so its parts may be named again.
        encrypted: its parts and root are encrypted.
        live: rows that searches can return.
        rows: slots, tombstones included.
        timestamp_us: time of the last change to a row.
        layout: how many rows its parts cover.
        stored_rows: rows of the graph that its parts have; those behind it come by steps.
        superseded_bytes: bytes that its parts hold of tombstones and of metadata that was replaced.
        row_bytes: bytes that its parts hold of a row beside its metadata, on average.
        parts: its parts by name and BLAKE3 of their bytes before compression.
    """

    cid: BlobId
    own: bool
    encrypted: bool
    live: int
    rows: int
    timestamp_us: int
    layout: Layout
    stored_rows: int
    superseded_bytes: int
    row_bytes: int
    parts: Mapping[tuple[str, bytes], StoredPart] = field(repr=False)

    @classmethod
    def of(cls, cid: BlobId, manifest: Manifest, parts: Sequence[StoredPart], *, own: bool, encrypted: bool) -> Version:
        """The version that a manifest describes."""
        return cls(
            cid=cid,
            own=own,
            encrypted=encrypted,
            live=manifest.live,
            rows=manifest.rows,
            timestamp_us=manifest.timestamp_us,
            layout=manifest.layout,
            stored_rows=manifest.stored_rows,
            superseded_bytes=manifest.superseded,
            row_bytes=bytes_of_rows(manifest.parts) // max(manifest.rows, 1),
            parts={(part.record.name, part.record.hash): part for part in parts},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    """One version as the history knows it.

    Attributes:
        cid: blob id of the version's root.
        saved_us: when it was saved, microseconds since 1970, by the saving session's clock.
        revision: the pointer's revision that named it; of a refused version, the revision it lost against.
        vector_count: rows that searches can return, or None where only the pointer was known.
        deleted_count: tombstones, or None likewise.
        refused: it was stored but never became the newest version, because its base was not.
    """

    cid: BlobId
    saved_us: int
    revision: int
    vector_count: int | None
    deleted_count: int | None
    refused: bool = False

    @property
    def key(self) -> tuple[bytes, int, bool]:
        """What makes two entries one; the time does not, because a repair can only guess it."""
        return self.cid.hash, self.revision, self.refused


class Lineage:
    """What one session knows about the versions of its index; it passes the same one to every call.

    Attributes:
        base: the version that the session's content was loaded from or saved as, or None.
        seen: the highest revision met, by registry key: a lower one later is a rollback.
        attempted: roots this session tried to make the head without learning the outcome, for example because
            the connection broke.  Meeting one of them as the head is our own success, not somebody else's
            version.
        unfinished: parts that this session stored for versions that did not become its base, by name and BLAKE3 as
            in `Version.parts`: the next save names them instead of storing them again.
        history: history entries that this session has read or made; what a damaged record is repaired from.
        history_cut: the revision below which that history was pruned.
        unrecorded: entries that are not in the stored history yet.
    """

    def __init__(self) -> None:
        self.base: Version | None = None
        self.seen: dict[bytes, int] = {}
        self.attempted: dict[bytes, Version] = {}
        self.unfinished: dict[tuple[str, bytes], StoredPart] = {}
        self.history: dict[tuple[bytes, int, bool], HistoryEntry] = {}
        self.history_cut = 0
        self.unrecorded: list[HistoryEntry] = []

    def __repr__(self) -> str:
        return f"Lineage(base={self.base.cid if self.base else None})"


async def fetch_root(store: Store, hash: bytes, known_size: int | None = None) -> bytes:
    """Fetches the root of a version, or a record: an S5 directory or a mutable blob, of which both are small.

    Args:
        store: the store to ask.
        hash: BLAKE3-256 of the blob.
        known_size: its size, where a CID says it.

    Returns:
        The blob, at most `MUTABLE_BLOB_BYTES_MAX` bytes.

    Raises:
        InvalidInputError: the CID's size is larger than that.
        NotFoundError, IntegrityError: the store lacks it, or has something else, or something larger.
        VectorDBError: the store failed.
    """
    if known_size is None:
        return await store.get(hash, AtMost(MUTABLE_BLOB_BYTES_MAX))
    if known_size > MUTABLE_BLOB_BYTES_MAX:
        raise InvalidInputError(
            f"{BlobId(hash, known_size)} names no version of an index: a root has at most "
            f"{MUTABLE_BLOB_BYTES_MAX} bytes, this blob has {known_size}",
            details={"cid": str(BlobId(hash, known_size)), "limit": MUTABLE_BLOB_BYTES_MAX, "actual": known_size},
        )
    return await store.get(hash, known_size)


async def checked_pointer(store: Store, public_key: bytes, lineage: Lineage, what: str) -> RegistryEntry | None:
    """Reads a pointer and refuses one older than this session has seen.

    Args:
        store: the store to ask.
        public_key: 33 bytes, the registry key.
        lineage: the session's memory; the highest revision seen is kept in it.
        what: names the pointer in an error, for example ``index 'default'``.

    Returns:
        The verified entry, or None where there is none.

    Raises:
        IntegrityError: the entry is damaged, or the store went back behind what it answered before.
        VectorDBError: the store failed.
    """
    # Read before the question is asked: a save of this session may move the pointer while the answer is on
    # its way.
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


def transfers_for(largest_part_bytes: int, spare_bytes: int | None) -> int:
    """How many parts may be in flight in the memory that is left.

    Args:
        largest_part_bytes: bytes of the largest part before compression.
        spare_bytes: what the budget leaves beside the index, or None for no limit.

    Returns:
        1 to `PARALLEL_TRANSFERS`.
    """
    if spare_bytes is None or largest_part_bytes == 0:
        return PARALLEL_TRANSFERS
    return max(1, min(PARALLEL_TRANSFERS, spare_bytes // (BUFFERS_PER_TRANSFER * largest_part_bytes)))


class Workers:
    """Threads for hashing, compression and encryption, at most a few at once.

    These release the GIL, so more threads than cores only hold more buffers.
    """

    def __init__(self, threads: int | None = None, spare_bytes: int | None = None) -> None:
        self._limiter = anyio.CapacityLimiter(max(1, min(4, threads or os.cpu_count() or 1)))
        self._settle_bytes = settle_bytes(None if spare_bytes is None else spare_bytes // 3)
        self._unsettled = 0
        self._is_settling = False

    async def run(self, function: Callable[..., _T], *args: Any) -> _T:
        """Runs `function` in a thread; a cancellation waits for it, so that what it touches can then be
        freed."""
        return await run_in_thread(partial(function, *args), self._limiter)

    async def moved(self, size: int) -> None:
        """Notes that a part of so many bytes came or went: every few of them, freed buffers go back to the system."""
        self._unsettled += BUFFERS_PER_TRANSFER * size
        if self._unsettled > self._settle_bytes and not self._is_settling:
            await self.settle()

    async def settle(self) -> None:
        """Gives freed buffers back to the system."""
        self._unsettled, self._is_settling = 0, True
        try:
            await settle_threads()
        finally:
            self._is_settling = False


async def run_bounded(jobs: Sequence[Callable[[], Awaitable[None]]], limit: int) -> None:
    """Runs jobs, at most `limit` at a time, and stops all of them at the first failure.

    Args:
        jobs: functions that start a job.
        limit: most jobs in flight.

    Raises:
        Exception: what the failed job raised; the one that stands first, where several failed together.
    """
    waiting = iter(enumerate(jobs))
    failures: list[tuple[int, Exception]] = []

    async def work(cancel: Callable[[], None]) -> None:
        for position, job in waiting:
            try:
                await job()
            except Exception as error:
                # Raising here would wrap the error in an ExceptionGroup; callers want the error.
                failures.append((position, error))
                cancel()
                return

    async with anyio.create_task_group() as group:
        for _ in range(min(limit, len(jobs))):
            group.start_soon(work, group.cancel_scope.cancel)
    if failures:
        raise min(failures, key=lambda failure: failure[0])[1]

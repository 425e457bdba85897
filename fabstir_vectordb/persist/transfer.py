"""Transfers of parts: their number in flight, threads, memory and progress."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import anyio

from fabstir_vectordb._native.handle import WORK_ADD, estimate_bytes, estimate_work
from fabstir_vectordb.config import Tier
from fabstir_vectordb.errors import InvalidInputError, MemoryBudgetExceededError
from fabstir_vectordb.index.budget import kept_bytes
from fabstir_vectordb.index.contents import CHANGES, DOCUMENTS, EXPIRIES, IDS, TEXT_KINDS
from fabstir_vectordb.metadata.arena import TABLE_BYTES_PER_ROW
from fabstir_vectordb.persist.manifest import Manifest
from fabstir_vectordb.persist.parts import StoredPart, blob_size, split_name
from fabstir_vectordb.persist.version import PersistSettings
from fabstir_vectordb.s5.cid import BlobId
from fabstir_vectordb.s5.cipher import MUTABLE_BLOB_BYTES_MAX
from fabstir_vectordb.storage.base import AtMost, Store
from fabstir_vectordb.tiers import tier_of
from fabstir_vectordb.types import Progress, ProgressCallback
from fabstir_vectordb.worker_threads import run_in_thread, trim_bytes, trim_threads

__all__ = [
    "BUFFERS_PER_TRANSFER",
    "PARALLEL_TRANSFERS",
    "Meter",
    "Workers",
    "fetch_part",
    "fetch_root",
    "is_on_this_machine",
    "memory_of",
    "run_bounded",
    "too_large",
    "transfers_beside",
    "transfers_for",
]

PARALLEL_TRANSFERS = 8
"""Most parts in flight. An S5 upload takes 1-2 s whatever its size, and its bytes stay in memory meanwhile."""
BUFFERS_PER_TRANSFER = 5
"""Buffers of a part in flight: raw, compressed, encrypted, its encrypted chunks, and the store's copy."""
_T = TypeVar("_T")


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


class Workers:
    """Threads for hashing, compression and encryption, at most a few at once.

    These release the GIL, so more threads than cores only hold more buffers.
    """

    def __init__(self, threads: int | None = None, spare_bytes: int | None = None) -> None:
        self._limiter = anyio.CapacityLimiter(max(1, min(4, threads or os.cpu_count() or 1)))
        self._trim_bytes = trim_bytes(None if spare_bytes is None else spare_bytes // 3)
        self._untrimmed = 0
        self._is_trimming = False

    async def run(self, function: Callable[..., _T], *args: Any) -> _T:
        """Runs `function` in a thread. A cancellation waits for it, so that its memory can be freed afterwards."""
        return await run_in_thread(partial(function, *args), self._limiter)

    async def moved(self, size: int) -> None:
        """Notes a transferred part of so many bytes; after some of them, freed buffers go back to the system."""
        self._untrimmed += BUFFERS_PER_TRANSFER * size
        if self._untrimmed > self._trim_bytes and not self._is_trimming:
            await self.trim()

    async def trim(self) -> None:
        """Returns freed buffers to the system."""
        self._untrimmed, self._is_trimming = 0, True
        try:
            await trim_threads()
        finally:
            self._is_trimming = False


async def run_bounded(jobs: Sequence[Callable[[], Awaitable[None]]], limit: int) -> None:
    """Runs jobs, at most `limit` at a time, and stops all of them at the first failure.

    Args:
        jobs: functions that start a job.
        limit: most jobs in flight.

    Raises:
        Exception: the exception of the failed job; of the first one in `jobs`, where several failed.
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


def transfers_for(largest_part_bytes: int, spare_bytes: int | None) -> int:
    """How many parts may be in flight in the memory left.

    Args:
        largest_part_bytes: bytes of the largest part before compression.
        spare_bytes: bytes of the budget that are left, or None for no limit.

    Returns:
        1 to `PARALLEL_TRANSFERS`.
    """
    if spare_bytes is None or largest_part_bytes == 0:
        return PARALLEL_TRANSFERS
    return max(1, min(PARALLEL_TRANSFERS, spare_bytes // (BUFFERS_PER_TRANSFER * largest_part_bytes)))


def _needed_bytes(manifest: Manifest, settings: PersistSettings, memory: Tier) -> tuple[int, int]:
    """Bytes of a loaded index, and of the work at the end of its load, under a memory setting."""
    sizes = [(split_name(part.name)[0], part.size) for part in manifest.parts]
    # Pages, and the arena that is made from them at the end.
    pages = sum(size for kind, size in sizes if kind in (DOCUMENTS, CHANGES))
    needed = 2 * pages + pages // 8 + (TABLE_BYTES_PER_ROW * manifest.rows if pages else 0)
    # Parts of texts, and the index that is made from them at the end.
    needed += 2 * sum(size for kind, size in sizes if kind in TEXT_KINDS)
    if any(kind == EXPIRIES for kind, _ in sizes):
        needed += 8 * manifest.rows  # an expiry time for every row
    if not manifest.dim:
        return needed, 0
    of_index: dict[str, Any] = {
        "metric": manifest.metric,
        "memory": memory,
        "M": manifest.M,
        "ef_construction": manifest.ef_construction,
        "threads": settings.threads,
        "rows": manifest.rows,
        "graph_rows": manifest.graph_rows,
    }
    # Rows that are linked to the stored graph after the last part.
    added = manifest.rows - manifest.stored_rows if manifest.steps else 0
    steps = estimate_work(manifest.dim, WORK_ADD, **of_index, added=added)
    needed += estimate_bytes(
        manifest.dim,
        **of_index,
        # Tombstones may be on lists, too.
        historical=manifest.historical and manifest.historical + manifest.rows - manifest.live,
        # An ids part holds 2 bytes more for each id; the excess is on the safe side.
        id_bytes=sum(size for kind, size in sizes if kind == IDS),
    )
    return needed, steps


def _largest_part(manifest: Manifest) -> int:
    return max((part.size for part in manifest.parts), default=0)


def memory_of(manifest: Manifest, settings: PersistSettings) -> Tier:
    """The memory setting of a version that is loaded."""
    if settings.memory != "auto":
        return settings.memory
    needed, steps = _needed_bytes(manifest, settings, "fast")
    memory = tier_of("auto", needed, settings.budget_bytes)
    beside = max(BUFFERS_PER_TRANSFER * _largest_part(manifest), steps)
    fits = settings.spare_bytes is None or needed + beside <= settings.spare_bytes
    return memory if fits else "default"


def transfers_beside(manifest: Manifest, settings: PersistSettings) -> int:
    """How many parts of a version may be in flight, beside the memory of the loaded index.

    Raises:
        MemoryBudgetExceededError: not even one part fits.
    """
    if settings.spare_bytes is None:
        return PARALLEL_TRANSFERS
    needed, steps = _needed_bytes(manifest, settings, memory_of(manifest, settings))
    largest = _largest_part(manifest)
    spare = settings.spare_bytes - needed
    if spare < max(BUFFERS_PER_TRANSFER * largest, steps):
        raise too_large("", needed + max(BUFFERS_PER_TRANSFER * largest, steps), settings, ", or use memory='compact'")
    return transfers_for(largest, spare)


def too_large(how: str, needed: int, settings: PersistSettings, way_out: str) -> MemoryBudgetExceededError:
    """The error for a load that would not fit.

    Args:
        how: words about the kind of load, with a leading space, or nothing.
        needed: bytes of the load, without the session's present memory.
        settings: the budget.
        way_out: further advice, with a leading comma, or nothing.
    """
    assert settings.budget_bytes is not None
    held = f" beside the {settings.held_bytes / 1e6:.1f} MB that this session holds" if settings.held_bytes else ""
    needed += kept_bytes(settings.budget_bytes)
    return MemoryBudgetExceededError(
        f"this version needs about {needed / 1e6:.1f} MB{how}{held}, more than the {settings.budget_bytes / 1e6:.1f} "
        f"MB of memory_budget_mb; raise it{way_out}{', or open it in a new session' if held else ''}",
        details={"needed_bytes": needed + settings.held_bytes, "budget_bytes": settings.budget_bytes},
    )


def is_on_this_machine(store: Store) -> bool:
    """Whether a store is a directory or memory: it accepts blobs of any size, and never answers with an old pointer."""
    return store.uri.startswith(("file:", "memory:"))


async def fetch_root(store: Store, hash: bytes, known_size: int | None = None) -> bytes:
    """Fetches the root of a version, or a record: an S5 directory or a mutable blob; both are small.

    Args:
        store: the store to ask.
        hash: BLAKE3-256 of the blob.
        known_size: its size from a CID, or None.

    Returns:
        The blob, at most `MUTABLE_BLOB_BYTES_MAX` bytes.

    Raises:
        InvalidInputError: the CID's size is larger than that.
        NotFoundError, IntegrityError: the store lacks the blob, or sent other bytes or more.
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


async def fetch_part(store: Store, part: StoredPart) -> bytes:
    """Fetches the blob of a part; the root has its size.

    Raises:
        NotFoundError, IntegrityError: the store lacks the blob, or sent other bytes.
        VectorDBError: the store failed.
    """
    return await store.get(part.entry.hash, blob_size(part.entry))

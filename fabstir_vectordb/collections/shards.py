"""The tasks of writers: they make a version of one shard, with its key alone, and name it nowhere.

A task is a function of its arguments and of stored objects that never change. The same task gives the same CIDs, so it
can be repeated after any failure. What it stored before a failure is found again, or never named.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import field, replace
from typing import TypeVar

import anyio
import numpy as np
import numpy.typing as npt

from fabstir_vectordb.collections.fingerprints import LOST, blob_of, fetch_fingerprints, store_fingerprints, store_of
from fabstir_vectordb.collections.records import SHARD_INDEX, Recipe, ShardKey
from fabstir_vectordb.collections.rows import picked, rows_batch
from fabstir_vectordb.cpus import usable_cpus
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import IntegrityError, MemoryBudgetExceededError, NotFoundError
from fabstir_vectordb.index import Index
from fabstir_vectordb.index.contents import CHANGES, DOCUMENTS, EXPIRIES
from fabstir_vectordb.index.incoming import Batch
from fabstir_vectordb.metadata.arena import parse_page
from fabstir_vectordb.metadata.changes import parse_changes
from fabstir_vectordb.metadata.expiry import NEVER_US, parse_expiry_page
from fabstir_vectordb.metadata.values import encode_metadata
from fabstir_vectordb.params import IndexParams, RunParams, SearchRequest, wall_clock_us
from fabstir_vectordb.persist.load import load_version
from fabstir_vectordb.persist.unnamed import store_unnamed
from fabstir_vectordb.persist.verify import VerifiedVersion, verify_version
from fabstir_vectordb.persist.version import Lineage, PersistSettings, index_path
from fabstir_vectordb.s5.keys import Identity
from fabstir_vectordb.storage import Store
from fabstir_vectordb.types import Row

__all__ = ["Built", "Change", "ShardVersion", "build_shard", "change_shard", "map_shard", "read_shard", "verify_shard"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ShardVersion:
    """A stored version of a shard.

    Attributes:
        cid: CID of its root.
        share: its share CID, a secret.
        rows: live rows.
        superseded: whether its parts may hold more than live rows.
        bytes_stored: bytes sent to the store, without those of the fingerprints.
        fingerprints: CID of the fingerprints of its ids, a secret; None where there are none.
    """

    cid: str
    share: str = field(repr=False)
    rows: int
    superseded: bool
    bytes_stored: int
    fingerprints: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Built:
    """A new shard.

    Attributes:
        stored: its version.
        neighbours: for each of some queries, ids and distances of the nearest rows.
    """

    stored: ShardVersion
    neighbours: list[list[tuple[str, float]]] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Change:
    """What changes in a shard.

    Attributes:
        adds: rows that are added, or take the place of rows with the same id; None for none.
        deletes: ids that go; those that the shard does not have are ignored.
        vacuum: whether what was deleted leaves the version, too.
    """

    adds: Batch | None
    deletes: Sequence[str]
    vacuum: bool = False


def build_shard(
    recipe: Recipe,
    key: ShardKey,
    params: IndexParams,
    rows: Batch,
    queries: npt.NDArray[np.float32],
    k: int,
    is_mapped: bool,
) -> Built:
    """Makes a shard.

    Args:
        recipe: the store, and limits of memory.
        key: of the shard.
        params: metric and parameters of the graph.
        rows: all its rows, in the order of their ids.
        queries: (n, dim) rows whose nearest ones in this shard are wanted, too.
        k: how many of them.
        is_mapped: whether fingerprints of its ids are stored.

    Returns:
        The stored version, and the nearest rows.

    Raises:
        VectorDBError: a row is refused, the rows do not fit in the budget, or the store failed.
    """

    async def build(store: Store) -> Built:
        index = Index(params, _run_params(recipe))
        try:
            index.add(rows)
            # Makes lazy loads fetch fewer parts; skipped where the budget has no room for it, as at a session's save.
            with suppress(MemoryBudgetExceededError):
                index.arrange()
            stored = await _stored(store, key, index, Lineage(), recipe, is_mapped)
            request = SearchRequest(queries, k, threshold=None, exact=True)
            found = index.search_batch(queries, request) if len(queries) else []
            return Built(stored, [[(hit.id, hit.distance) for hit in hits] for hits in found])
        finally:
            index.close()

    return _with_store(recipe, build)


def change_shard(recipe: Recipe, key: ShardKey, cid: str, change: Change, is_mapped: bool) -> ShardVersion | None:
    """Makes the next version of a shard.

    Args:
        recipe: the store, and limits of memory.
        key: of the shard.
        cid: its present version.
        change: what changes. Rows that the shard has already, with the same bytes, are left alone.
        is_mapped: whether fingerprints of its ids are stored.

    Returns:
        The stored version; None where nothing changes.

    Raises:
        VectorDBError: a row is refused, the shard does not fit in the budget, or the store failed.
    """

    async def make(store: Store) -> ShardVersion | None:
        lineage = Lineage()
        index = await _loaded(store, key, cid, lineage, recipe)
        try:
            adds = _really_new(index, change.adds)
            deleted = index.delete(list(change.deletes), missing_ok=True).deleted_count
            if adds is not None:
                index.add(adds, "replace")
            vacuumed = change.vacuum and _is_dirty(index, lineage)
            if not deleted and adds is None and not vacuumed:
                return None
            if vacuumed:
                index.vacuum()
            return await _stored(store, key, index, lineage, recipe, is_mapped)
        finally:
            index.close()

    return _with_store(recipe, make)


def map_shard(recipe: Recipe, key: ShardKey, cid: str) -> str | None:
    """Stores the fingerprints of a shard's ids, which were lost, again: `ShardVersion.fingerprints`."""

    async def make(store: Store) -> str | None:
        index = await _loaded(store, key, cid, Lineage(), recipe)
        try:
            return await _mapped(store, key, index)
        finally:
            index.close()

    return _with_store(recipe, make)


def read_shard(recipe: Recipe, key: ShardKey, cid: str, dim: int | None) -> Batch:
    """All live rows of a shard, to be divided among others."""

    async def read(store: Store) -> Batch:
        index = await _loaded(store, key, cid, Lineage(), recipe)
        try:
            cursor = index.cursor()
            rows: list[Row] = []
            while page := index.scan(cursor, 10_000):
                rows += page
            return rows_batch(rows, dim)
        finally:
            index.close()

    return _with_store(recipe, read)


def verify_shard(recipe: Recipe, share: str, fingerprints: str | None) -> VerifiedVersion:
    """Reads every object of a shard, and the fingerprints of its ids where there are any, and checks all bytes.

    Raises:
        IntegrityError: a part, or the fingerprints, are damaged or missing; ``details["bad"]`` lists all of these.
        VectorDBError: as `verify_version`.
    """

    async def verify(store: Store) -> VerifiedVersion:
        # A share CID brings its key.
        nobody = Identity.from_key(bytes(32))
        lost = [] if fingerprints is None else await _lost(store, fingerprints)
        try:
            found = await verify_version(
                store,
                nobody,
                Lineage(),
                _settings(recipe, 0),
                share,
                check_pages={
                    DOCUMENTS: parse_page,
                    EXPIRIES: parse_expiry_page,
                    CHANGES: lambda *page: parse_changes(page[-1]),
                },
            )
        except IntegrityError as error:
            if not lost:
                raise
            bad = [*error.details.get("bad", ()), *lost]
            raise IntegrityError(error.message, details={**error.details, "bad": bad}) from error
        if lost:
            raise IntegrityError(
                "the fingerprints of its ids are damaged or missing: vacuum() stores them again", details={"bad": lost}
            )
        if fingerprints is None:
            return found
        return replace(found, parts=found.parts + 1, bytes=found.bytes + blob_of(fingerprints).size)

    return _with_store(recipe, verify)


# ---- helpers


def _with_store(recipe: Recipe, run: Callable[[Store], Awaitable[_T]]) -> _T:
    """The result of a coroutine function with an open store, on an event loop of this thread."""

    async def main() -> _T:
        store = store_of(recipe)
        try:
            return await run(store)
        finally:
            with anyio.CancelScope(shield=True):
                await store.aclose()

    return anyio.run(main)


def _run_params(recipe: Recipe) -> RunParams:
    clock = recipe.clock
    return RunParams(
        memory=recipe.memory,
        threads=recipe.threads or usable_cpus(),
        budget_bytes=recipe.memory_budget_mb * 1_000_000,
        now_us=wall_clock_us if clock is None else lambda: round(clock() * 1e6),
    )


def _settings(recipe: Recipe, held_bytes: int) -> PersistSettings:
    run = _run_params(recipe)
    return PersistSettings(
        index_name=SHARD_INDEX,
        memory=run.memory,
        threads=run.threads,
        budget_bytes=run.budget_bytes,
        held_bytes=held_bytes,
        clock=run.now_us,
    )


async def _stored(
    store: Store, key: ShardKey, index: Index, lineage: Lineage, recipe: Recipe, is_mapped: bool
) -> ShardVersion:
    index.make_room()
    settings, identity = _settings(recipe, index.held_bytes), Identity.from_key(key.key)
    stored = await store_unnamed(store, identity, index, lineage, settings)
    version = stored.version
    fingerprints = await _mapped(store, key, index) if is_mapped else None
    return ShardVersion(
        str(version.cid),
        stored.share.reveal(),
        index.live_count,
        version.superseded_bytes > 0 or version.rows > version.live,
        stored.bytes_stored,
        fingerprints,
    )


async def _mapped(store: Store, key: ShardKey, index: Index) -> str | None:
    """Stores the fingerprints of an index's ids."""
    native = index.native
    ids = [] if native is None else native.get_ids(native.live_slots(0, index.counts.live))
    root_key = Identity.from_key(key.key).path_keys(index_path(SHARD_INDEX)).encryption_key
    return await store_fingerprints(store, root_key, ids)


async def _lost(store: Store, fingerprints: str) -> list[dict[str, object]]:
    """What a verification says of fingerprints that cannot be read; nothing of sound ones."""
    cid = None
    try:
        cid = str(blob_of(fingerprints))
        await fetch_fingerprints(store, fingerprints)
    except LOST as error:
        is_missing = isinstance(error, NotFoundError)
        return [{"part": "fingerprints", "cid": cid, "reason": error.message, "missing": is_missing}]
    return []


async def _loaded(store: Store, key: ShardKey, cid: str, lineage: Lineage, recipe: Recipe) -> Index:
    loaded = await load_version(store, Identity.from_key(key.key), lineage, _settings(recipe, 0), cid)
    assert loaded is not None  # only the newest version may be missing
    lineage.base = loaded.version
    params = IndexParams(
        metric=loaded.metric,  # type: ignore[arg-type]  # the manifest's reader checked it
        M=loaded.M,
        ef_construction=loaded.ef_construction,
        chunk_size=loaded.chunk_size,
    )
    try:
        return Index.restore(params, _run_params(recipe), loaded)
    except BaseException:
        if loaded.native is not None:
            loaded.native.close()
        raise


def _is_dirty(index: Index, lineage: Lineage) -> bool:
    base = lineage.base
    counts = index.counts
    return counts.rows > counts.live or index.hidden_count > 0 or (base is not None and base.superseded_bytes > 0)


def _really_new(index: Index, adds: Batch | None) -> Batch | None:
    """The rows that the index does not have, or has otherwise; None for none."""
    if adds is None:
        return None
    there = index.get(adds.ids)
    places = [place for place, row in enumerate(there) if row is None or not _is_same(adds, place, row)]
    if len(places) == len(adds.ids):
        return adds
    return picked(adds, np.array(places, dtype=np.intp)) if places else None


def _is_same(adds: Batch, place: int, row: Row) -> bool:
    has_vector = adds.vectorless is None or not adds.vectorless[place]
    if has_vector != (row.vector is not None):
        return False
    if row.vector is not None and row.vector.tobytes() != adds.vectors[place].tobytes():
        return False
    metadata = None if adds.metadata is None else adds.metadata[place]
    stored = None if row.metadata is None else encode_metadata(row.metadata)
    expires = NEVER_US if adds.expires is None else int(adds.expires[place])
    expiry = NEVER_US if row.expires_at is None else round(row.expires_at * 1e6)
    return metadata == stored and round(row.timestamp * 1e6) == int(adds.timestamps[place]) and expires == expiry

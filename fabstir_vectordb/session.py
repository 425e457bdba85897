"""VectorDBSession: every public verb, each a few readable lines.

A session belongs to one user. Changes, saves and loads run one after the other; reads run beside them, and see the rows
from before or after a change, never half of it. Whatever takes longer than a walk of the graph runs in a worker thread.
Cancelling the task that awaits a change, save or load stops it, waits until no thread works on the index any more, and
then raises the cancellation; the change was made whole by then, or left no trace.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
import time
import warnings
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, ParamSpec, Self, TypeVar, cast

import anyio
import anyio.lowlevel
import numpy as np
import numpy.typing as npt

from fabstir_vectordb._native.handle import LISTS_ROWS_MIN, Control, NativeCancelled, kernels
from fabstir_vectordb.config import UNSET, SeedPhrase, Unset, VectorDBConfig, check_recall_target
from fabstir_vectordb.diversity import search_batch_diverse, search_diverse, widened
from fabstir_vectordb.errors import (
    ConflictError,
    InvalidConfigError,
    InvalidInputError,
    MemoryBudgetExceededError,
    SessionError,
)
from fabstir_vectordb.index import (
    AgingSteps,
    Index,
    IndexClosed,
    LazyIndex,
    make_request,
    prepare_batch,
    prepare_queries,
    prepare_query,
    take_ids,
    take_items,
)
from fabstir_vectordb.index.aging import Step
from fabstir_vectordb.index.contents import CHANGES, DOCUMENTS, EXPIRIES
from fabstir_vectordb.index.incoming import as_input, check_query_dim, one_id, seeming_shape, taken
from fabstir_vectordb.index.protocol import BatchNeed, FilterNeed, Gathered, Need, Reach, RowsNeed
from fabstir_vectordb.maintenance import cutoff_us
from fabstir_vectordb.metadata.arena import parse_page
from fabstir_vectordb.metadata.changes import parse_changes
from fabstir_vectordb.metadata.expiry import parse_expiry_page
from fabstir_vectordb.metadata.filter_parse import EVERYTHING, check_field, parse_filter
from fabstir_vectordb.metadata.schema import parse_schema
from fabstir_vectordb.params import (
    IndexParams,
    LoadOptions,
    RunParams,
    SearchOptions,
    SearchRequest,
    check_bool,
    make_options,
)
from fabstir_vectordb.persist.disk_cache import DiskCache
from fabstir_vectordb.persist.load import LazyVersion, LoadedVersion, load_rest, load_version
from fabstir_vectordb.persist.part_source import shape_of
from fabstir_vectordb.persist.prune import PrunedHistory, prune_history
from fabstir_vectordb.persist.records import list_versions, read_catalogue, record_version
from fabstir_vectordb.persist.save import is_base_stored, save_version
from fabstir_vectordb.persist.share import share_version
from fabstir_vectordb.persist.verify import VerifiedVersion, verify_version
from fabstir_vectordb.persist.version import HistoryEntry, Lineage, PersistSettings
from fabstir_vectordb.recall import measure_recall
from fabstir_vectordb.s5.cid import ShareCid
from fabstir_vectordb.s5.keys import Identity
from fabstir_vectordb.s5.phrase import PHRASE_WORDS, parse_phrase, secret_to_entropy
from fabstir_vectordb.storage import Store, open_store
from fabstir_vectordb.types import (
    AddResult,
    DeleteResult,
    FacetCount,
    IndexSide,
    OptimizeProgress,
    OptimizeResult,
    ProgressCallback,
    PruneReport,
    RecallReport,
    Row,
    SearchResult,
    SearchResults,
    SessionStats,
    VacuumStats,
    VectorInput,
    VerifyReport,
    VersionInfo,
)
from fabstir_vectordb.worker_threads import Outcome, run_in_thread, settle_bytes, settle_threads

__all__ = ["VectorDBSession", "get_platform_info", "get_version"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_P = ParamSpec("_P")
AnyIndex = Index | LazyIndex
_NO_QUERY: Final = np.empty(0, dtype=np.float32)
SCAN_PAGE_ROWS: Final = 512
# Older than this is every row.
_ANY_AGE_US: Final = 2**63 - 1
# Searches on the caller's thread let other tasks run at least this often: each takes a fraction of a millisecond, a
# thousand in a row would not.
_PAUSE_S: Final = 0.005
# Worker threads of a session's calls. Enough for any machine this is meant for; anyio's own 40 belong to the host.
_THREADS_MAX: Final = 8


def get_version() -> str:
    """The version of this package."""
    from importlib.metadata import PackageNotFoundError, version  # email and zipfile: a tenth of the package's import

    try:
        return version("fabstir_vectordb")
    except PackageNotFoundError:  # imported from a source tree that was never installed
        import tomllib

        project = Path(__file__).resolve().parents[1] / "pyproject.toml"
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])


def get_platform_info() -> dict[str, str]:
    """Platform, architecture, Python and the SIMD kernels in use."""
    return {
        "platform": sys.platform,
        "arch": platform.machine(),
        "python": platform.python_version(),
        "kernels": kernels(),
    }


class VectorDBSession:
    """One user's vectors for the length of one session; made by `create`.

    Use it as an async context manager, or call `destroy` yourself.

    Example:
        >>> async with await VectorDBSession.create(
        ...     s5_portal="memory:", user_seed_phrase="a secret", session_id="user-123"
        ... ) as session:
        ...     await session.add_vectors([VectorInput("a", [1.0, 0.0])])
        ...     [hit.id for hit in await session.search([1.0, 0.1], k=1)]
        ['a']
    """

    def __init__(self, config: VectorDBConfig) -> None:
        self._destroyed = True  # until it is whole: a refused session owes nobody a destroy()
        self._config = config
        self._store: Store = open_store(
            config.s5_portal,
            timeout_s=config.timeout_s,
            max_retries=config.max_retries,
            token=config.portal_token,
            private_redirects=config.allow_private_redirects,
            account_seed=self._account_seed,
        )
        if config.disk_cache_dir is not None:
            directory = Path(os.fspath(config.disk_cache_dir))
            self._store = DiskCache(self._store, directory, config.disk_cache_mb * 1_000_000)
        self._check_phrase(config.secret)
        self._secret: SeedPhrase | None = config.secret
        self._identity: Identity | None = None
        self._lineage = Lineage()
        self._budget_bytes = config.budget_bytes
        self._recall_target = check_recall_target(config.recall_target, InvalidConfigError)
        self._now_us = partial(_clock_us, config.clock)
        self._index: AnyIndex = self._new_index()
        self._lazy: LazyVersion | None = None
        self._saved_changes = 0
        self._last_cid: str | None = None
        self._one_at_a_time = anyio.Lock()
        self._threads = anyio.CapacityLimiter(_THREADS_MAX)
        self._change_over: anyio.Event | None = None
        self._last_pause = 0.0
        if config.debug:
            logging.getLogger("fabstir_vectordb").setLevel(logging.DEBUG)
        self._destroyed = False
        logger.debug("session %s: created", config.session_id)

    @classmethod
    async def create(cls, config: VectorDBConfig | Mapping[str, Any] | None = None, /, **settings: Any) -> Self:
        """Makes a session; validates only, touches no store.

        Args:
            config: the settings, or a mapping of them.
            **settings: single settings; they win over `config`.

        Returns:
            An empty session.

        Raises:
            InvalidConfigError: a setting is missing or out of range.
        """
        return cls(make_config(config, settings))

    @classmethod
    async def from_parts(
        cls,
        config: VectorDBConfig | Mapping[str, Any] | None = None,
        /,
        *,
        recent: Iterable[VectorInput | Row | Mapping[str, Any]] = (),
        historical: Iterable[VectorInput | Row | Mapping[str, Any]] = (),
        timestamps: Mapping[str, float] | None = None,
        **settings: Any,
    ) -> Self:
        """Makes a session whose rows are on the sides that are said, whatever their age.

        What `get_recent_index`, `get_historical_index`, `get_timestamps` and `get` give of one session makes another
        like it. The next `optimize` moves rows by their age, as always. Historical rows go to their lists at once,
        without a graph in between: the quick way to begin with a long history.

        Args:
            config, **settings: as `create`.
            recent: rows of the graph: VectorInputs, Rows, or mappings with the keys of a VectorInput.
            historical: rows of the lists, which are trained for them. Fewer than 64 are not worth lists, and rows
                without a vector are on none: these are recent ones.
            timestamps: seconds since 1970 by id; they win over what a row says.

        Raises:
            InvalidConfigError, InvalidInputError, ConflictError, MemoryBudgetExceededError: as `create` and
                `add_vectors`; no session was made.
        """
        session = await cls.create(config, **settings)
        try:
            await session.fill_from_parts(recent, historical, timestamps)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await session.destroy()
            raise
        return session

    async def fill_from_parts(
        self,
        recent: Iterable[VectorInput | Row | Mapping[str, Any]],
        historical: Iterable[VectorInput | Row | Mapping[str, Any]],
        timestamps: Mapping[str, float] | None,
    ) -> None:
        """Gives an empty session rows on both sides. A step of `from_parts`."""
        if timestamps is not None and not isinstance(timestamps, Mapping):
            raise InvalidInputError(f"timestamps must be a mapping of ids, got {type(timestamps).__name__}")
        past, present = (_dated(rows, timestamps or {}) for rows in (historical, recent))
        fill_lists = sum(row.vector is not None for row in past) >= LISTS_ROWS_MIN
        await self._change(lambda index, control: self._add_inputs(past, "error", index, control, fill_lists))
        if fill_lists:
            for step in AgingSteps(_ANY_AGE_US, arranges=False):
                await self.run_step(step)
        await self.add_vectors(present)

    @staticmethod
    def _check_phrase(secret: SeedPhrase) -> None:
        # What looks like a phrase of S5 must be one: a typing mistake would otherwise open another, empty identity.
        if len(secret.reveal().split()) == PHRASE_WORDS:
            parse_phrase(secret.reveal())

    # ---- life

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.destroy()

    def __del__(self) -> None:
        if not getattr(self, "_destroyed", True):
            warnings.warn(
                f"session {self._config.session_id!r} was never destroyed: call destroy(), or use 'async with'",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    def __repr__(self) -> str:
        return f"<VectorDBSession {self._config.session_id!r} index={self._config.index_name!r}>"

    async def destroy(self) -> None:
        """Forgets everything: frees native memory, wipes keys as far as CPython allows, closes the store.

        Waits for a running change, save or load. Idempotent; every later call raises SessionError.
        """
        if self._destroyed:
            return
        self._destroyed = True

        async def forget() -> None:
            with anyio.CancelScope(shield=True):
                async with self._one_at_a_time:
                    await self._forget()

        async with anyio.create_task_group() as group:
            group.start_soon(forget)
        logger.debug("session %s: destroyed", self._config.session_id)

    async def _forget(self) -> None:
        if self._dirty:
            logger.warning("session %s: destroyed with unsaved changes", self._config.session_id)
        await self._in_thread(self._index.close)
        self._secret = None
        if self._identity is not None:
            self._identity.wipe()
        self._identity = None
        self._config = replace(self._config, user_seed_phrase=SeedPhrase("wiped"))
        await self._store.aclose()

    # ---- rows in

    async def add_vectors(
        self, items: Iterable[VectorInput | Mapping[str, Any]], *, on_conflict: str = "error"
    ) -> AddResult:
        """Adds rows: all or nothing.

        Args:
            items: VectorInputs, or mappings with the same keys.
            on_conflict: for ids that are live: ``error``, ``replace`` or ``skip``. Of items with the same id,
                ``replace`` keeps the last and ``skip`` the first; the others count as skipped.

        Returns:
            How many rows were added, replaced and skipped.

        Raises:
            InvalidInputError: a vector, id, timestamp or metadata is refused; details has ``row``.
            ConflictError: with ``error``, an id is live already, or stands twice in the call.
            MemoryBudgetExceededError: they would not fit.
            SessionError: the session is destroyed.
        """
        self.check_alive()
        taken_items = take_items(items)

        def add(index: Index, control: Control) -> AddResult:
            rows = [as_input(row, item) for row, item in enumerate(taken_items)]
            return self._add_inputs(rows, on_conflict, index, control)

        return await self._change(add)

    async def add_batch(
        self,
        ids: Sequence[str],
        vectors: Any,
        metadata: Sequence[Any] | None = None,
        timestamps: Any = None,
        *,
        expires_at: Any = None,
        on_conflict: str = "error",
    ) -> AddResult:
        """Adds the rows of an array: all or nothing, without a Python object per row.

        Args:
            ids: n strings.
            vectors: (n, dim) numbers; float32, C-contiguous arrays are taken as they are. None for rows without a
                vector, or a list with None for some: they are kept, filtered and counted, and no search finds them.
            metadata: n JSON-shaped values, or None.
            timestamps: n seconds since 1970 or aware datetimes, or None for now; kept as int64 microseconds.
            expires_at: when each row is gone from all answers, as `timestamps`; None, also of one row, for never. The
                first change of rows behind that moment deletes it.
            on_conflict: for ids that are live: ``error``, ``replace`` or ``skip``.

        Returns:
            How many rows were added, replaced and skipped.

        Raises:
            InvalidInputError, ConflictError, MemoryBudgetExceededError, SessionError: as `add_vectors`.
        """
        return await self._change(partial(self._add, ids, vectors, metadata, timestamps, expires_at, on_conflict))

    def _add(
        self,
        ids: Sequence[str],
        vectors: Any,
        metadata: Sequence[Any] | None,
        timestamps: Any,
        expires_at: Any,
        on_conflict: str,
        index: Index,
        control: Control,
        for_lists: bool = False,
    ) -> AddResult:
        index.check_room(vectors)
        room = index.metadata_room_bytes
        batch = prepare_batch(ids, vectors, metadata, timestamps, self._now_us, index.vector_dim, expires_at, room)
        return index.add(batch, on_conflict, control, for_lists)

    def _add_inputs(
        self, rows: list[VectorInput], on_conflict: str, index: Index, control: Control, for_lists: bool = False
    ) -> AddResult:
        return self._add(
            [row.id for row in rows],
            [row.vector for row in rows],
            _none_or([row.metadata for row in rows]),
            _none_or([row.timestamp for row in rows]),
            _none_or([row.expires_at for row in rows]),
            on_conflict,
            index,
            control,
            for_lists,
        )

    async def update_metadata(self, id: str | Mapping[str, Any], metadata: Any = None, *, merge: bool = False) -> None:
        """Replaces the metadata of a row, or of many: all or nothing.

        The value before is in no answer from here on. Its bytes leave memory, and the versions saved later, with the
        next `vacuum`; versions saved earlier keep it until `prune_history` removes them.

        Args:
            id: the row; or a mapping of ids to their metadata, for many rows in one call.
            metadata: any JSON-shaped value of at most 1 MiB, or None for none; left out where `id` is a mapping.
            merge: merge a dict into the stored dict instead, key by key.

        Raises:
            NotFoundError: an id is not live.
            InvalidInputError: the metadata is refused.
            MemoryBudgetExceededError: it would not fit.
            SessionError: the session is destroyed.
        """
        merge = check_bool("merge", merge)
        if isinstance(id, Mapping):
            if metadata is not None:
                raise InvalidInputError("metadata stands in the mapping of ids: leave the second argument out")
            ids, values = take_ids(id), list(id.values())
        else:
            ids, values = [one_id(id)], [metadata]
        await self._change(lambda index, _: index.update_many(ids, values, merge))

    async def update_vector(self, id: str, vector: Any) -> None:
        """Gives a row another vector. Its metadata, timestamp and expiry stay.

        Args:
            id: the row.
            vector: dim numbers.

        Raises:
            NotFoundError: the id is not live.
            InvalidInputError: the vector is refused.
            MemoryBudgetExceededError: it would not fit.
            SessionError: the session is destroyed.
        """
        ids = [one_id(id)]
        await self._change(lambda index, control: index.update_vectors(ids, [vector], control))

    async def set_schema(self, schema: Mapping[str, Any] | None) -> None:
        """Makes metadata follow a schema from now on; it is saved with the index.

        Args:
            schema: fields with their types, as ``{"title": {"type": "string", "required": True}, "tags":
                "Array<String>"}`` or ``{"fields": {"title": "String", "tags": {"Array": "String"}}, "required":
                ["title"]}``: string, number, boolean, date, datetime, UUID, array of a type, object with fields. Fields
                that it does not name may hold anything, and null stands for an optional one that is not there. None
                for no schema.

        Raises:
            InvalidInputError: the schema is not understood (details ``path``), or a row that is there already breaks it
                (``id``, too); the schema before stays.
            SessionError: the session is destroyed.
        """
        parsed = None if schema is None else parse_schema(schema)
        await self._change(lambda index, _: index.set_schema(parsed))

    async def delete_vector(self, id: str, *, missing_ok: bool = False) -> DeleteResult:
        """Deletes a row; it is in no answer from here on.

        The row's id, vector and metadata leave memory, and the versions saved later, with the next `vacuum`. Versions
        saved before keep them until `prune_history` removes these; so do their shares. `get_stats().superseded_bytes`
        says how much the last saved version holds.

        Args:
            id: the row.
            missing_ok: do nothing for an id that is not live, instead of raising.

        Raises:
            NotFoundError: the id is not live.
            InvalidInputError: the id is no string.
            SessionError: the session is destroyed.
        """
        wanted, missing_ok = [one_id(id)], check_bool("missing_ok", missing_ok)
        return await self._change(lambda index, _: index.delete(wanted, missing_ok))

    async def delete(self, ids: Iterable[str], *, missing_ok: bool = False) -> DeleteResult:
        """Deletes many rows: all or nothing; `vacuum` gives their memory back.

        Args:
            ids: the rows; an id that stands twice counts once.
            missing_ok: pass over ids that are not live, instead of raising.

        Returns:
            How many rows were deleted, and which.

        Raises:
            NotFoundError: an id is not live; nothing was deleted.
            InvalidInputError: `ids` is no iterable of strings.
            SessionError: the session is destroyed.
        """
        wanted, missing_ok = take_ids(ids), check_bool("missing_ok", missing_ok)
        return await self._change(lambda index, _: index.delete(wanted, missing_ok))

    async def clear(self) -> int:
        """Deletes all rows, at once and for good: no vacuum is needed. The schema stays.

        The next row with a vector may have any dimension. Saved versions stay as they are.

        Returns:
            How many rows there were.

        Raises:
            SessionError: the session is destroyed.
        """
        return await self._change(lambda index, _: index.clear())

    async def delete_by_metadata(self, filter: Mapping[str, Any]) -> DeleteResult:
        """Deletes the rows that a filter takes: all or nothing. When their bytes go, `delete_vector` says.

        Args:
            filter: as in SearchOptions; one that takes every row, as ``{}`` does, is refused.

        Raises:
            InvalidInputError: the filter is not understood, or empty.
            MemoryBudgetExceededError: the columns that the filter compares would not fit.
            SessionError: the session is destroyed.
        """
        where = parse_filter(filter)
        if where.is_empty:
            raise InvalidInputError("an empty filter would delete every row: name a field, as in {'kind': 'draft'}")
        return await self._change(lambda index, _: index.delete_where(where))

    async def vacuum(self) -> VacuumStats:
        """Removes deleted rows and replaced metadata for good, repairs the graph and gives their memory back.

        Rows that have expired are deleted first. No version that is saved from here on holds a removed row's id,
        metadata, vector or code, nor metadata that was replaced before. Aggregates of many rows stay: centroids of
        lists, ranges of codes, the timestamp of the last change. Memory is freed, not overwritten.

        Returns:
            How many rows were removed.

        Raises:
            MemoryBudgetExceededError: what it needs beside the index would not fit; nothing changed.
            IndexStateError: there was not enough memory beside the index; nothing changed.
            SessionError: the session is destroyed.
        """
        return await self._change(Index.vacuum)

    async def optimize(self, progress: Callable[[OptimizeProgress], None] | None = None) -> OptimizeResult:
        """Brings the index into its best shape for what it holds now.

        Rows older than the config's `recent_window_s` move from the recent side to lists, which are trained for them
        where they were not or the rows have changed; then a vacuum removes deleted rows, takes those that moved out of
        the graph, and puts the rows of a list side by side. Searches go on, but for the vacuum; other changes come
        between the steps. Cancelling it leaves what is done.

        Args:
            progress: called on the event loop's thread before each step.

        Returns:
            What was done.

        Raises:
            MemoryBudgetExceededError: training or the vacuum would not fit; nothing changed.
            IndexStateError: there was not enough memory; the index is as the last step left it.
            SessionError: the session is destroyed.
        """

        steps = AgingSteps(self._cutoff_us())
        for step in steps:
            if progress is not None and step.stage in ("train", "migrate", "vacuum"):
                progress(OptimizeProgress(step.stage, step.rows_done, self.live_index().counts.rows))
            await self.run_step(step)
        return OptimizeResult(steps.trained, steps.migrated, steps.vacuumed)

    def background_steps(self) -> AgingSteps:
        """What an `optimize` in the background does now."""
        return AgingSteps(self._cutoff_us(), in_background=True)

    async def run_step(self, step: Step) -> None:
        """Runs one step of an `optimize`."""
        await (self._change if step.holds_up_reads else self._beside)(step.run)

    def _cutoff_us(self) -> int:
        return cutoff_us(self._now_us(), self._config.recent_window_s)

    async def get_recent_index(self) -> IndexSide:
        """The recent side: rows that are found through the graph, or scanned while they are few.

        Raises:
            SessionError: the session is destroyed.
        """
        return await self._read(Reach.WHOLE, lambda index, _: index.side(False))

    async def get_historical_index(self) -> IndexSide:
        """The historical side: rows on lists.

        Raises:
            SessionError: the session is destroyed.
        """
        return await self._read(Reach.WHOLE, lambda index, _: index.side(True))

    async def get_timestamps(self, ids: Sequence[str] | None = None) -> dict[str, float]:
        """When rows are from: seconds since 1970 by id.

        Args:
            ids: the rows; those that are not live are left out. None for all.

        Raises:
            InvalidInputError: `ids` is no sequence of strings.
            SessionError: the session is destroyed.
        """
        wanted = None if ids is None else take_ids(ids)
        return await self._read(Reach.IDS, lambda index, _: index.timestamps(wanted))

    # ---- rows out

    async def search(
        self, query: Any, k: int, options: SearchOptions | Mapping[str, Any] | None = None, **fields: Any
    ) -> SearchResults:
        """Finds the k rows nearest to a query.

        Args:
            query: dim numbers.
            k: 1 to 10 000; more than there are rows returns all.
            options, **fields: see SearchOptions.

        Returns:
            The hits, nearest first, ties by id.

        Raises:
            InvalidInputError: the query, `k` or an option is refused.
            SessionError: the session is destroyed.
        """
        request = self.request(self.live_index(), query, k, options, fields)
        if request.mmr is None:
            if time.monotonic() - self._last_pause > _PAUSE_S:
                await anyio.lowlevel.checkpoint()
                self._last_pause = time.monotonic()
            found = self._index.search_at_once(request)
            if found is not None:
                return found
        need, search = search_of(request)
        # Stoppable, as it may have to find out first what its recall takes.
        return await self._answered(need, search)

    async def search_batch(
        self, queries: Any, k: int, options: SearchOptions | Mapping[str, Any] | None = None, **fields: Any
    ) -> list[SearchResults]:
        """Finds the k rows nearest to each of many queries, in one native call on all threads.

        Args:
            queries: (n, dim) numbers.
            k, options, **fields: as `search`.

        Returns:
            Results in the order of the queries.

        Raises:
            InvalidInputError: a query (details ``row``), `k` or an option is refused.
            SessionError: the session is destroyed.
        """
        request = self.batch_request(queries, k, options, fields)
        dim = self.live_index().vector_dim
        ready = isinstance(queries, np.ndarray) and queries.dtype == np.float32 and queries.flags.c_contiguous
        matrix = prepare_queries(queries, dim) if ready else await self._in_thread(prepare_queries, queries, dim)
        need, search = search_batch_of(matrix, request)
        return await self._answered(need, search)

    async def search_stream(
        self,
        query: Any,
        *,
        threshold: float | Unset | None = UNSET,
        include_vectors: bool = False,
        filter: Mapping[str, Any] | None = None,
    ) -> AsyncGenerator[SearchResult, None]:
        """All rows that a filter takes and whose score passes the threshold, nearest first, however many there are.

        Every row is scored exactly at the start, before the first hit comes. Rows that are deleted or replaced before
        the stream reaches them do not come, nor do rows added meanwhile; a vacuum makes no difference. Whoever leaves a
        stream before its end on trio uses `contextlib.aclosing`, as for any generator there.

        Args:
            query: dim numbers.
            threshold, include_vectors, filter: as in SearchOptions.

        Raises:
            InvalidInputError: the query or an option is refused.
            MemoryBudgetExceededError: the order of the rows, or the columns that the filter compares, would not fit.
            SessionError: the session is destroyed, or a load replaced what was being read.
        """
        start = self.start_of_stream(query, threshold, include_vectors, filter)
        index, next_hits = await self._answered(Reach.WHOLE, start)
        while hits := await self._read(Reach.IDS, partial(next_page, index, next_hits)):
            for hit in hits:
                yield hit

    async def get(self, ids: Sequence[str]) -> list[Row | None]:
        """Rows by id, in the order asked for; None for an id that is not live.

        Raises:
            InvalidInputError: `ids` is no sequence of strings.
            SessionError: the session is destroyed.
        """
        wanted = take_ids(ids)
        return await self._read(RowsNeed(wanted), lambda index, gathered: index.get(wanted, gathered))

    async def count(self, filter: Mapping[str, Any] | None = None) -> int:
        """How many rows are live, of those that a filter takes.

        Args:
            filter: as in SearchOptions.

        Raises:
            InvalidInputError: the filter is not understood.
            MemoryBudgetExceededError: the columns that the filter compares would not fit.
            SessionError: the session is destroyed.
        """
        if filter is None:
            return self.live_index().live_count
        where = parse_filter(filter)
        return await self._read(FilterNeed(), lambda index, _: index.count_where(where))

    async def facets(self, field: str, filter: Mapping[str, Any] | None = None) -> list[FacetCount]:
        """The distinct values of a metadata field, each with the number of rows that have it, the most frequent first.

        Args:
            field: a path, its steps joined by dots; each value of a list counts.
            filter: only rows that it takes.

        Raises:
            InvalidInputError: the field or the filter is not understood.
            MemoryBudgetExceededError: the columns would not fit.
            SessionError: the session is destroyed.
        """
        path, where = check_field(field), EVERYTHING if filter is None else parse_filter(filter)
        return await self._read(FilterNeed(), lambda index, _: index.facets(path, where))

    async def recall(self, sample: int = 200, *, k: int = 10) -> RecallReport:
        """How much of the truth searches find on the index's own rows, and at what cost, over `ef_search` and `nprobe`.

        Rows of a sample are asked for, themselves left out, and compared with an exact search. The same rows are asked
        for each time. Searches go on meanwhile; ``report.plot("recall.svg")`` draws it (extra `plot`).

        Args:
            sample: rows to ask for, 1 to 10 000.
            k: neighbours of each, 1 to 1 000.

        Raises:
            InvalidInputError: `sample` or `k` is out of range.
            SessionError: the session is destroyed.
        """
        check_range("sample", sample, 10_000)
        check_range("k", k, 1_000)

        return await self._answered(
            Reach.WHOLE, lambda index, _, control: measure_recall(index, sample, k, self._recall_target, control)
        )

    async def scan(
        self, filter: Mapping[str, Any] | None = None, *, order: str | None = None
    ) -> AsyncGenerator[Row, None]:
        """The rows that are live at its start, of those that a filter takes.

        They come in the order of their slots, or of a field. Rows that are deleted or replaced before the scan reaches
        them do not come, nor do rows added meanwhile; a vacuum makes no difference. Without `order` the filter is asked
        when a row is reached, with it at the start. Whoever leaves a scan before its end on trio uses
        `contextlib.aclosing`, as for any generator there.

        Args:
            filter: as in SearchOptions.
            order: a path, with a minus in front for descending; null, bools, numbers and strings in this order, then
                rows without a single value of it.

        Raises:
            InvalidInputError: the filter or the order is not understood.
            MemoryBudgetExceededError: the columns would not fit.
            SessionError: the session is destroyed, or a load replaced what was being scanned.
        """
        index, next_rows = await self._read(Reach.WHOLE, partial(start_of_scan, filter, order))
        while rows := await self._read(Reach.IDS, partial(next_page, index, next_rows)):
            for row in rows:
                yield row

    # ---- versions

    async def save_to_s5(
        self,
        *,
        on_conflict: str = "error",
        verify_stored: bool = False,
        progress: ProgressCallback | None = None,
    ) -> str:
        """Stores the index as a new version and makes it the newest.

        Args:
            on_conflict: when another version became the newest since this content was loaded: ``error`` stores this
                one but leaves the newest alone, ``overwrite`` supersedes it.
            verify_stored: ask the store for every part that is reused, and store again those it has lost.
            progress: called after every part.

        Returns:
            The version's CID, when every byte of it is stored and the pointer has moved.

        Raises:
            ConflictError: another version came between; details has ``cid``, ``head_cid`` and ``base_cid``.
            StorageError, S5Error, IntegrityError: the store failed or lied; the version before is still the newest.
            SessionError: the session is destroyed.
        """
        if on_conflict not in ("error", "overwrite"):
            raise InvalidInputError(f"on_conflict must be error or overwrite, got {on_conflict!r}")
        verify_stored = check_bool("verify_stored", verify_stored)
        return await self._alone(
            lambda: self._save(cast(Literal["error", "overwrite"], on_conflict), verify_stored, progress)
        )

    async def _save(
        self, on_conflict: Literal["error", "overwrite"], verify_stored: bool, progress: ProgressCallback | None
    ) -> str:
        settings = self._persist_settings()
        unchanged = not self._dirty and not verify_stored and await is_base_stored(self._store, self._lineage, settings)
        if not unchanged:
            await self._load_rest()
        index = self._index
        if self._lineage.base is None and isinstance(index, Index):
            # For lazy loads. Never later: it changes every part. Nor where the budget has no room for it.
            with suppress(MemoryBudgetExceededError):
                await self._stoppable(index.arrange)
            await self._settle_where_due()
        index.make_room()
        changes, keys = index.changes, await self._keys()
        saved = await save_version(
            self._store,
            keys,
            None if unchanged else self._whole(),
            self._lineage,
            settings,
            on_conflict=on_conflict,
            verify_stored=verify_stored,
            progress=progress,
        )
        self._saved_changes, self._last_cid = changes, str(saved.version.cid)
        if not unchanged:
            self._whole().pages_stored(saved.version.layout.document_rows, saved.changed_rows)
        await record_version(self._store, keys, settings, self._lineage, saved.entries, repair_damage=True)
        logger.debug(
            "session %s: saved %s, %d bytes stored", self._config.session_id, saved.version.cid, saved.bytes_stored
        )
        if not unchanged and saved.version.stored_rows == saved.version.rows:
            # Should this not be reached, the next save stores the graph anew.
            await self._in_thread(self._whole().graph_stored)
        return str(saved.version.cid)

    async def load_user_vectors(
        self, cid: str | None = None, options: LoadOptions | Mapping[str, Any] | None = None, **fields: Any
    ) -> None:
        """Replaces the content by a saved version: all or nothing.

        Args:
            cid: the version, in any text form of its CID, or a share CID; None for the newest one. What was opened by
                a share CID is saved as the user's own index.
            options, **fields: see LoadOptions.

        Raises:
            NotFoundError: no version was saved under this phrase and index name, or the store lacks an object.
            ConflictError: there are unsaved changes and `discard_unsaved` is not set.
            DecryptionError: none of the user's keys opens it.
            IntegrityError: bytes are not what they should be.
            InvalidInputError: `cid` is no CID, or names something that is no version.
            MemoryBudgetExceededError: it would not fit.
            StorageError, S5Error: the store failed.
            SessionError: the session is destroyed.
        """
        chosen = make_options(LoadOptions, options, fields)
        if cid is not None and not isinstance(cid, str):
            raise InvalidInputError(f"a CID must be a string, got {type(cid).__name__}")
        await self._alone(lambda: self._load(cid, chosen))

    async def _load(self, cid: str | None, options: LoadOptions) -> None:
        if self._dirty and not options.discard_unsaved:
            raise ConflictError(
                "there are unsaved changes: save them, or load with discard_unsaved=True",
                details={"last_cid": self._last_cid},
            )
        budget = self._budget_bytes
        if options.memory_budget_mb is not None:
            budget = options.memory_budget_mb * 1_000_000
        cache_bytes = self._config.cache_size_mb * 1_000_000
        keys = await self._keys()
        loaded = await self._with_room(
            lambda settings: load_version(
                self._store,
                keys,
                self._lineage,
                replace(settings, budget_bytes=budget),
                cid,
                missing_ok=options.missing_ok,
                lazy_cache_bytes=cache_bytes if options.lazy_load else None,
                progress=options.progress,
            )
        )
        if loaded is None:
            fresh: AnyIndex = self._new_index()
            base, last_cid = None, None
        else:
            fresh = await self._restored(loaded, options.become_whole)
            base, last_cid = loaded.version, str(loaded.version.cid)
        self._budget_bytes = budget
        self._lineage.base, self._last_cid = base, last_cid
        await self._exchange(fresh, None if loaded is None else loaded.lazy)
        logger.debug("session %s: loaded %s", self._config.session_id, last_cid or "nothing: no version yet")

    async def _exchange(self, fresh: AnyIndex, lazy: LazyVersion | None = None) -> None:
        """Puts another index, that of a version, in the place of the one there is."""
        # Nothing can fail here, and a cancellation must not leave two indexes half exchanged.
        fresh.budget_bytes = self._budget_bytes
        old, self._index, self._lazy = self._index, fresh, lazy
        self._saved_changes = fresh.changes
        with anyio.CancelScope(shield=True):
            await self._in_thread(old.close)
            await settle_threads()

    async def warm(self, progress: ProgressCallback | None = None) -> None:
        """Fetches what a lazy load left in the store: from here on no search waits for a network.

        Does nothing where all of it is in memory. Searches go on meanwhile.

        Args:
            progress: called after every part.

        Raises:
            MemoryBudgetExceededError: the whole index would not fit; the session stays as it was.
            IntegrityError, NotFoundError, StorageError, S5Error: as `load_user_vectors`.
            SessionError: the session is destroyed.
        """
        self.check_alive()
        if not self._index.is_whole:
            await self._alone(lambda: self._load_rest(progress))

    async def become_whole(self, optional: bool) -> None:
        """`warm` for a call that needs it, or, where it is optional, that would be the faster for it."""
        try:
            await self.warm()
        except MemoryBudgetExceededError:
            if not optional:
                raise
            index = self._index
            if isinstance(index, LazyIndex):
                index.stay_lazy()

    async def _load_rest(self, progress: ProgressCallback | None = None) -> None:
        index, lazy = self._index, self._lazy
        if isinstance(index, LazyIndex) and lazy is not None:
            loaded = await self._with_room(lambda settings: load_rest(self._store, lazy, settings, progress=progress))
            fresh = await self._restored(loaded)
            if isinstance(fresh, Index):
                fresh.count_plans(index.plans_used)
            await self._exchange(fresh)
            logger.debug("session %s: loaded the rest", self._config.session_id)

    async def _restored(self, loaded: LoadedVersion, become_whole: bool = True) -> AnyIndex:
        params = IndexParams(
            metric=loaded.metric,  # type: ignore[arg-type]  # the manifest's reader checked it
            M=loaded.M,
            ef_construction=loaded.ef_construction,
            chunk_size=loaded.chunk_size,
        )
        run, lazy = self._run_params(), loaded.lazy
        try:
            if lazy is None:
                return await self._in_thread(Index.restore, params, run, loaded)
            shape = shape_of(lazy.opened.manifest)
            return await self._in_thread(LazyIndex, params, run, loaded, lazy.parts, shape, become_whole)
        except BaseException:
            if loaded.native is not None:
                loaded.native.close()
            raise

    async def history(self) -> list[VersionInfo]:
        """The versions of this index, newest first, each once; `VersionInfo.head` marks the newest one.

        A refused version stands below the one that it lost against.

        Raises:
            IntegrityError: the record is damaged; the next save repairs it.
            StorageError, S5Error: the store failed.
            SessionError: the session is destroyed.
        """

        async def read() -> list[VersionInfo]:
            settings = self._persist_settings()
            return _as_infos(*await list_versions(self._store, await self._keys(), settings, self._lineage))

        return await self._alone(read)

    async def prune_history(self, keep: int, dry_run: bool = True) -> PruneReport:
        """Forgets all but the newest versions, and deletes what only the others name.

        This is how deleted rows leave old versions: `vacuum`, `save_to_s5`, then ``prune_history(1, dry_run=False)``.
        No other session may be saving this index meanwhile. Shares of versions that go are broken, too.

        Args:
            keep: how many versions stay, at least 1.
            dry_run: only say what would go; False does it. What a store cannot or will not delete stays there.

        Returns:
            The versions that go, or would, and what they take.

        Raises:
            InvalidInputError: `keep` is no integer of at least 1.
            IntegrityError, NotFoundError: the history or a version that stays is damaged; nothing was deleted.
            StorageError, S5Error: the store failed; pruning again finishes what was begun.
            SessionError: the session is destroyed.
        """
        if isinstance(keep, bool) or not isinstance(keep, int):
            raise InvalidInputError(f"keep must be an integer, got {keep!r}")
        dry_run = check_bool("dry_run", dry_run)

        async def prune() -> PrunedHistory:
            settings = self._persist_settings()
            return await prune_history(self._store, await self._keys(), self._lineage, settings, keep, dry_run=dry_run)

        pruned = await self._alone(prune)
        return PruneReport(
            versions=_as_infos(pruned.versions),
            blobs=pruned.blobs,
            bytes=pruned.bytes,
            blobs_deleted=pruned.blobs_deleted,
        )

    async def share(self, cid: str) -> str:
        """Makes a CID that opens one version without the phrase, and nothing else.

        Everybody who has it can read that version for good: treat it as a secret. Nothing but the version's list of
        parts is stored again. A version that still holds bytes of rows that were deleted, replaced or have expired by
        now, or of replaced metadata, is refused: `vacuum`, `save_to_s5`, and share the CID that gives.

        Args:
            cid: the version.

        Returns:
            The share CID, ``uXV6m…``: `load_user_vectors` opens it under any phrase, and S5.js as an encrypted
            directory. It is the same each time.

        Raises:
            InvalidInputError: `cid` is no CID, a share CID already, or names no version, or one stored in clear.
            ConflictError: the version holds more than its live rows; details has ``superseded_bytes`` and
                ``expired_rows``.
            NotFoundError, DecryptionError, IntegrityError, StorageError, S5Error: as `load_user_vectors`.
            SessionError: the session is destroyed.
        """
        if not isinstance(cid, str):
            raise InvalidInputError(f"a CID must be a string, got {type(cid).__name__}")

        async def share() -> ShareCid:
            return await share_version(self._store, await self._keys(), self._lineage, self._persist_settings(), cid)

        return (await self._alone(share)).reveal()

    async def list_indexes(self) -> list[str]:
        """The names of the user's saved indexes, sorted.

        Raises:
            IntegrityError: the record is damaged; the next save repairs it.
            StorageError, S5Error: the store failed.
            SessionError: the session is destroyed.
        """

        async def read() -> list[str]:
            return await read_catalogue(self._store, await self._keys(), self._lineage)

        return await self._alone(read)

    async def verify(self, cid: str | None = None, *, progress: ProgressCallback | None = None) -> VerifyReport:
        """Reads every object of a version and checks all of it, without touching the session's content.

        Args:
            cid: the version; None for the newest one.
            progress: called after every part.

        Raises:
            IntegrityError: something is wrong; ``details["bad"]`` lists every bad part.
            NotFoundError, InvalidInputError, DecryptionError, StorageError: as `load_user_vectors`.
            SessionError: the session is destroyed.
        """

        async def read() -> VerifiedVersion:
            return await verify_version(
                self._store,
                await self._keys(),
                self._lineage,
                self._persist_settings(),
                cid,
                check_pages={
                    DOCUMENTS: parse_page,
                    EXPIRIES: parse_expiry_page,
                    CHANGES: lambda *page: parse_changes(page[-1]),
                },
                progress=progress,
            )

        found = await self._alone(read)
        return VerifyReport(cid=str(found.cid), parts=found.parts, bytes=found.bytes, rows=found.rows)

    async def get_stats(self) -> SessionStats:
        """Measured state of the session; O(1).

        Raises:
            SessionError: the session is destroyed.
        """
        return self.stats_here()

    # ---- what the synchronous twin shares: the same on the caller's thread

    def check_alive(self) -> None:
        """Raises SessionError once the session is destroyed."""
        if self._destroyed:
            raise self._gone()

    def _gone(self) -> SessionError:
        return SessionError("Session already destroyed", details={"session_id": self._config.session_id})

    @property
    def _dirty(self) -> bool:
        return self._index.changes != self._saved_changes

    def live_index(self) -> AnyIndex:
        """The index, while there is one.

        Raises:
            SessionError: the session is destroyed.
        """
        if self._destroyed:
            raise self._gone()
        return self._index

    def _whole(self) -> Index:
        """The index, once all of it is in memory."""
        assert isinstance(self._index, Index)
        return self._index

    def check_replaced(self, index: AnyIndex) -> None:
        """Raises SessionError for an index that is closed, unless another one took its place."""
        if self._index is index:
            raise self._gone()

    def request(
        self,
        index: AnyIndex,
        query: Any,
        k: int,
        options: SearchOptions | Mapping[str, Any] | None,
        fields: Mapping[str, Any],
    ) -> SearchRequest:
        """A search, with everything checked that does not depend on the rows it will meet."""
        return make_request(
            prepare_query(query, index.vector_dim),
            k,
            options,
            fields,
            default_threshold=self._config.default_threshold,
            default_target=self._recall_target,
        )

    def batch_request(
        self, queries: Any, k: int, options: SearchOptions | Mapping[str, Any] | None, fields: Mapping[str, Any]
    ) -> SearchRequest:
        """The same for a search of many queries, which the request does not hold."""
        dim, (_, actual) = self.live_index().vector_dim, seeming_shape(queries)
        if actual and dim is not None:
            check_query_dim(actual, dim)
        return make_request(
            _NO_QUERY,
            k,
            options,
            fields,
            default_threshold=self._config.default_threshold,
            default_target=self._recall_target,
        )

    def start_of_stream(
        self, query: Any, threshold: float | Unset | None, include_vectors: bool, filter: Mapping[str, Any] | None
    ) -> Callable[..., tuple[Index, Callable[[], list[SearchResult]]]]:
        """What starts a stream over an index: it gives that index, and what gives its next hits, none at the end."""
        fields = {"threshold": threshold, "include_vectors": include_vectors, "filter": filter}
        request = self.request(self.live_index(), query, 1, None, fields)
        vector, where = request.query, request.where or EVERYTHING

        def start(
            index: Index, gathered: Gathered, control: Control | None = None
        ) -> tuple[Index, Callable[[], list[SearchResult]]]:
            cursor = index.stream(vector, where, control)
            shown = request.threshold, request.include_vectors
            return index, lambda: index.stream_page(cursor, vector, SCAN_PAGE_ROWS, *shown)

        return start

    def stats_here(self) -> SessionStats:
        """`get_stats` on this thread."""
        index, base = self.live_index(), self._lineage.base
        while True:
            try:
                native = index.stats()
                break
            except IndexClosed:
                self.check_replaced(index)
                index = self.live_index()
        kinds = {
            name.removeprefix("bytes_"): value
            for name, value in native._asdict().items()
            if name.startswith("bytes_") and name != "bytes_total"
        }
        kinds["metadata"] = index.metadata_bytes
        kinds["columns"] = index.column_bytes
        kinds["cache"] = index.cache_bytes
        return SessionStats(
            vector_count=native.live - index.hidden_count,
            memory_usage_mb=sum(kinds.values()) / 1e6,
            index_type=_INDEX_TYPES[native.graph_rows > 0, native.historical > 0],
            hnsw_vector_count=native.live - native.historical - native.bare if native.graph_rows else 0,
            ivf_vector_count=native.historical,
            deleted_count=native.rows - native.live + index.hidden_count,
            without_vector_count=native.bare,
            memory_bytes=kinds,
            plans=dict(index.plans_used),
            recall_calibration=index.recall_calibration,
            default_search=index.default_search,
            dirty=self._dirty,
            last_cid=self._last_cid,
            superseded_bytes=0 if base is None else base.superseded_bytes + index.superseded_since_save(base.row_bytes),
        )

    # ---- helpers

    def _new_index(self) -> Index:
        config = self._config
        params = IndexParams(
            metric=config.metric, M=config.M, ef_construction=config.ef_construction, chunk_size=config.chunk_size
        )
        return Index(params, self._run_params())

    def _run_params(self) -> RunParams:
        config = self._config
        return RunParams(
            memory=config.memory,
            threads=config.native_threads,
            budget_bytes=self._budget_bytes,
            now_us=self._now_us,
        )

    def _persist_settings(self) -> PersistSettings:
        return PersistSettings(
            index_name=self._config.index_name,
            encrypt_at_rest=self._config.encrypt_at_rest,
            memory=self._config.memory,
            threads=self._config.native_threads,
            budget_bytes=self._budget_bytes,
            held_bytes=self._index.held_bytes,
            clock=self._now_us,
        )

    async def _with_room(self, load: Callable[[PersistSettings], Awaitable[_T]]) -> _T:
        """Loads something; caches give way where it does not fit beside them."""
        try:
            return await load(self._persist_settings())
        except MemoryBudgetExceededError:
            if not self._index.forget_caches():
                raise
        return await load(self._persist_settings())

    async def _keys(self) -> Identity:
        """The user's keys, derived at first use: Argon2id takes its time for secrets that are no phrase."""
        if self._identity is None:
            if self._secret is None:
                raise self._gone()
            self._identity = Identity(await self._in_thread(secret_to_entropy, self._secret.reveal()))
        return self._identity

    async def _account_seed(self, authority: str) -> bytes:
        return (await self._keys()).own_account_seed(authority)

    async def _alone(self, operation: Callable[[], Awaitable[_T]]) -> _T:
        """Runs one change, save or load at a time, in a task of its own.

        The task is for asyncio: its own cancellation (Task.cancel, wait_for, timeout) breaks into a wait for a thread
        even where anyio shields that wait. A child of a task group only ever meets anyio's cancellation, and the group
        waits for it. So when this returns, no thread is left that works on the index.
        """
        self.check_alive()
        outcome = Outcome[_T]()

        async def run() -> None:
            # An error would come out of the group as an ExceptionGroup.
            with outcome:
                async with self._one_at_a_time:
                    self.check_alive()
                    outcome.value = await operation()

        async with anyio.create_task_group() as group:
            group.start_soon(run)
        return outcome.get()

    async def _change(self, function: Callable[[Index, Control], _T]) -> _T:
        """Runs a change in a thread, alone, on the index that is there when its turn has come."""

        # What the worker thread or a traceback remembers must not keep the caller's arrays alive.
        once = [function]
        del function

        async def change() -> _T:
            await self._load_rest()
            self._change_over = over = anyio.Event()
            try:
                result = await self._stoppable(partial(once.pop(), self._whole()))
            finally:
                self._change_over = None
                over.set()
                await self._settle_where_due()
            if self._whole().calibration_is_due:
                await self._stoppable(self._whole().calibrate_where_due)
            return result

        return await self._alone(change)

    async def _beside(self, function: Callable[[Index, Control], _T]) -> _T:
        """Runs a change that reads need not wait for in a thread, alone."""

        async def change() -> _T:
            await self._load_rest()
            try:
                return await self._stoppable(partial(function, self._whole()))
            finally:
                await self._settle_where_due()

        return await self._alone(change)

    async def _settle_where_due(self) -> None:
        index = self._index
        if index.unsettled_bytes >= settle_bytes(self._budget_bytes // 16):
            index.unsettled_bytes = 0
            await settle_threads()

    async def _no_change(self) -> None:
        # Here a read that would have to wait can be cancelled, and holds no thread. Only for the change that runs now:
        # with one change after the other it would never get its turn.
        if self._change_over is not None:
            await self._change_over.wait()

    async def _read(self, need: Need, read: Callable[[Any, Gathered], _T]) -> _T:
        """Runs a read of the index in a thread."""
        return await self._with_parts(need, lambda index, gathered: self._in_thread(read, index, gathered))

    async def _answered(self, need: Need, search: Callable[[Any, Gathered, Control], _T]) -> _T:
        """Runs a search in a thread that a cancellation stops."""
        return await self._with_parts(need, lambda index, gathered: self._stoppable(partial(search, index, gathered)))

    async def _with_parts(self, need: Need, read: Callable[[AnyIndex, Gathered], Awaitable[_T]]) -> _T:
        """The result of a read, of an index that may have to fetch first what it is about."""
        while True:
            await self._no_change()
            index, gathered = self.live_index(), Gathered()
            try:
                if not isinstance(index, LazyIndex) or await self.gather(index, need, gathered):
                    return await read(index, gathered)
            except IndexClosed:  # another index has taken its place, and is asked then
                self.check_replaced(index)

    async def gather(self, index: LazyIndex, need: Need, gathered: Gathered) -> bool:
        """Fetches what a call lacks; False where another index took this one's place instead."""
        while True:
            missing = await self._in_thread(index.missing, need, gathered)
            if missing.whole:
                await self.become_whole(missing.optional)
                return False
            if not missing.keys:
                return True
            gathered.take(await index.parts.fetch(missing.keys, index.check_part))

    async def _in_thread(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await run_in_thread(partial(function, *args, **kwargs), self._threads)

    async def _stoppable(self, function: Callable[[Control], _T]) -> _T:
        """Runs a native call in a thread; a cancellation stops it and waits until it has left no trace."""
        control = Control()
        outcome = Outcome[_T]()
        once = [function]
        del function

        async def stop_on_cancellation() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                control.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(stop_on_cancellation)
            with outcome:
                # run_sync shields itself and waits for the thread; the other task tells that to hurry.
                outcome.value = await self._in_thread(lambda: once.pop()(control))
            group.cancel_scope.cancel()
        if isinstance(outcome.error, NativeCancelled):
            await anyio.lowlevel.checkpoint_if_cancelled()
        return outcome.get()


def _as_infos(entries: Iterable[HistoryEntry], head: bytes | None = None) -> list[VersionInfo]:
    return [
        VersionInfo(
            cid=str(entry.cid),
            saved_at=entry.saved_us / 1e6,
            revision=entry.revision,
            vector_count=entry.vector_count,
            deleted_count=entry.deleted_count,
            refused=entry.refused,
            head=entry.cid.hash == head,
        )
        for entry in entries
    ]


def search_of(request: SearchRequest) -> tuple[Need, Callable[..., SearchResults]]:
    """What a search needs, and what does it."""
    if request.mmr is None:
        return request, lambda index, gathered, control=None: index.search(request, gathered, control)
    return widened(request), lambda index, gathered, control=None: search_diverse(index, request, gathered, control)


def search_batch_of(
    queries: npt.NDArray[np.float32], request: SearchRequest
) -> tuple[Need, Callable[..., list[SearchResults]]]:
    """The same of a search of many queries."""
    if request.mmr is None:
        need = BatchNeed(queries, request)
        return need, lambda index, gathered, control=None: index.search_batch(queries, request, gathered, control)
    return BatchNeed(queries, widened(request)), lambda index, gathered, control=None: search_batch_diverse(
        index, queries, request, gathered, control
    )


def start_of_scan(
    filter: Mapping[str, Any] | None, order: str | None, index: Index, gathered: Gathered
) -> tuple[Index, Callable[[], list[Row]]]:
    """The index a scan is about, and what gives its next rows, none at the end."""
    where = None if filter is None else parse_filter(filter)
    if order is None:
        cursor = index.cursor()
        return index, lambda: index.scan(cursor, SCAN_PAGE_ROWS, where)
    path = check_field(order.removeprefix("-") if isinstance(order, str) else order)
    ids = iter(index.ids_where(where or EVERYTHING, path, order.startswith("-")))

    def next_rows() -> list[Row]:
        while page := list(islice(ids, SCAN_PAGE_ROWS)):
            if rows := [row for row in index.get(page) if row is not None]:
                return rows
        return []

    return index, next_rows


def next_page(begun: Index, page: Callable[[], list[_T]], index: AnyIndex, gathered: Gathered) -> list[_T]:
    """The next page of a scan or stream.

    Raises:
        SessionError: a load replaced the index that it began with.
    """
    if index is not begun:
        raise SessionError("a load replaced the rows that were being read: begin again")
    return page()


def _clock_us(clock: Callable[[], float] | None) -> int:
    """Microseconds since 1970 by a config's clock, or by the system's.

    No method: what an index knows of its session must not keep it alive.
    """
    if clock is None:
        return time.time_ns() // 1000
    now = clock()
    try:
        return round(now * 1e6)
    except (TypeError, ValueError, OverflowError):
        raise InvalidConfigError(
            f"clock must return seconds since 1970, it returned {now!r}", details={"field": "clock"}
        ) from None


# ---- Arguments ---------------------------------------------------------------------------------------------


def make_config(config: VectorDBConfig | Mapping[str, Any] | None, settings: Mapping[str, Any]) -> VectorDBConfig:
    """One configuration from an object, a mapping and single settings, the later winning.

    Raises:
        InvalidConfigError: a setting is missing, unknown or out of range.
    """
    if isinstance(config, VectorDBConfig):
        if not settings:
            return config
        given = {field.name: getattr(config, field.name) for field in fields(config)}
    elif config is None:
        given = {}
    elif isinstance(config, Mapping):
        given = dict(config)
    else:
        raise InvalidConfigError(f"config must be a VectorDBConfig or a mapping, got {type(config).__name__}")
    return VectorDBConfig(**{**given, **settings})


_INDEX_TYPES: Final[dict[tuple[bool, bool], Literal["flat", "hnsw", "ivf", "hybrid"]]] = {
    (False, False): "flat",
    (True, False): "hnsw",
    (False, True): "ivf",
    (True, True): "hybrid",
}


def _none_or(values: list[Any]) -> list[Any] | None:
    """The values, None where all of them are."""
    return values if any(value is not None for value in values) else None


def check_range(name: str, value: int, most: int) -> None:
    """Raises InvalidInputError unless a number is an integer from 1 to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise InvalidInputError(f"{name} must be an integer from 1 to {most}, got {value!r}", details={"limit": most})


def _dated(rows: Iterable[VectorInput | Row | Mapping[str, Any]], timestamps: Mapping[str, float]) -> list[VectorInput]:
    """Rows as they are added, with the timestamps that are said of them."""
    if isinstance(rows, (str, bytes, Mapping)) or not isinstance(rows, Iterable):
        raise InvalidInputError(f"rows must be VectorInputs, Rows or mappings, got {type(rows).__name__}")
    dated = []
    for number, item in enumerate(taken(rows, "rows")):
        if isinstance(item, Row):
            row = VectorInput(item.id, item.vector, item.metadata, item.timestamp, item.expires_at)
        else:
            row = as_input(number, item)
        dated.append(replace(row, timestamp=timestamps[row.id]) if row.id in timestamps else row)
    return dated

"""The same verbs without ``await``.

Reads go straight to the index on the caller's thread: a warm search hops no thread. Changes, saves and loads run on an
event loop in a thread of the session's own, which starts with the first of them.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import anyio
from anyio.from_thread import BlockingPortal

from fabstir_vectordb.config import UNSET, Unset, VectorDBConfig
from fabstir_vectordb.errors import SessionError
from fabstir_vectordb.index import IndexClosed, LazyIndex, prepare_queries, take_ids, take_items
from fabstir_vectordb.index.incoming import taken
from fabstir_vectordb.index.protocol import FilterNeed, Gathered, Need, Reach, RowsNeed
from fabstir_vectordb.metadata.filter_parse import EVERYTHING, check_field, parse_filter
from fabstir_vectordb.params import LoadOptions, SearchOptions
from fabstir_vectordb.session import (
    VectorDBSession as AsyncSession,
    make_config,
    next_page,
    search_batch_of,
    search_of,
    start_of_scan,
)
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
from fabstir_vectordb.worker_threads import Outcome

__all__ = ["VectorDBSession"]

_T = TypeVar("_T")


class _Loop:
    """An event loop in a daemon thread: a program that forgets `destroy` must still be able to end."""

    def __init__(self) -> None:
        started: Future[BlockingPortal] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="fabstir_vectordb", daemon=True)
        self._thread.start()
        self.portal = started.result()

    @staticmethod
    def _run(started: Future[BlockingPortal]) -> None:
        async def serve() -> None:
            async with BlockingPortal() as portal:
                started.set_result(portal)
                await portal.sleep_until_stopped()

        anyio.run(serve)

    def stop(self) -> None:
        self.portal.call(self.portal.stop)
        self._thread.join()


class _Task(Generic[_T]):
    """A verb on its way to the loop, which can be stopped whether it has begun or not."""

    def __init__(self, verb: Callable[[], Awaitable[_T]]) -> None:
        self._verb = verb
        self._scope: anyio.CancelScope | None = None
        self._stopped = False
        self.outcome = Outcome[_T]()

    async def run(self) -> None:
        with self.outcome, anyio.CancelScope() as self._scope:
            if self._stopped:
                self._scope.cancel()
            self.outcome.value = await self._verb()

    async def stop(self) -> None:
        self._stopped = True
        if self._scope is not None:
            self._scope.cancel()


class VectorDBSession:
    """One user's vectors for the length of one session, without an event loop; made by `create`.

    Every method does what its namesake of `fabstir_vectordb.VectorDBSession` does and raises what it raises.

    Example:
        >>> with VectorDBSession.create(
        ...     s5_portal="memory:", user_seed_phrase="a secret", session_id="user-123"
        ... ) as session:
        ...     session.add_vectors([VectorInput("a", [1.0, 0.0])])
        ...     [hit.id for hit in session.search([1.0, 0.1], k=1)]
        AddResult(added=1, replaced=0, skipped=0)
        ['a']
    """

    def __init__(self, config: VectorDBConfig) -> None:
        self._async = AsyncSession(config)
        self._loop: _Loop | None = None
        self._loop_lock = threading.Lock()

    @classmethod
    def create(cls, config: VectorDBConfig | Mapping[str, Any] | None = None, /, **settings: Any) -> Self:
        """Makes a session; validates only, touches no store."""
        return cls(make_config(config, settings))

    @classmethod
    def from_parts(
        cls,
        config: VectorDBConfig | Mapping[str, Any] | None = None,
        /,
        *,
        recent: Iterable[VectorInput | Row | Mapping[str, Any]] = (),
        historical: Iterable[VectorInput | Row | Mapping[str, Any]] = (),
        timestamps: Mapping[str, float] | None = None,
        **settings: Any,
    ) -> Self:
        """Makes a session whose rows are on the sides that are said."""
        session = cls.create(config, **settings)
        try:
            parts = (taken(rows, "rows") if isinstance(rows, Iterator) else rows for rows in (recent, historical))
            session._call(session._async.fill_from_parts, *parts, timestamps)
        except BaseException:
            session.destroy()
            raise
        return session

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.destroy()

    def __repr__(self) -> str:
        return repr(self._async)

    def _call(self, verb: Callable[..., Awaitable[_T]], *args: Any, **kwargs: Any) -> _T:
        task, call = _Task(partial(verb, *args, **kwargs)), None
        try:
            with self._loop_lock:
                self._async.check_alive()
                loop = self._loop = self._loop or _Loop()
                call = loop.portal.start_task_soon(task.run)
            call.result()
            return task.outcome.get()
        except BaseException:
            # Ctrl-C, or what another signal's handler raises, stops what it interrupts. It may come when the task is
            # under way and `call` not yet there; a loop that has ended has nothing left to stop.
            if self._loop is not None and not (call and call.done()):
                with contextlib.suppress(RuntimeError):
                    self._loop.portal.start_task_soon(task.stop)
            raise

    def _read(self, need: Need, read: Callable[[Any, Gathered], _T]) -> _T:
        """The result of a read, of an index that may have to fetch first what it is about."""
        while True:
            index, gathered = self._async.live_index(), Gathered()
            try:
                if not isinstance(index, LazyIndex) or self._gather(index, need, gathered):
                    return read(index, gathered)
            except IndexClosed:  # another index has taken its place, and is asked then
                self._async.check_replaced(index)

    def _gather(self, index: LazyIndex, need: Need, gathered: Gathered) -> bool:
        """Fetches what a call lacks; False where another index took this one's place instead."""
        while not (missing := index.missing(need, gathered)).whole:
            if not missing.keys:
                return True
            gathered.take(self._call(index.parts.fetch, missing.keys, index.check_part))
        self._call(self._async.become_whole, missing.optional)
        return False

    def destroy(self) -> None:
        """Forgets everything; idempotent."""
        try:
            self._call(self._async.destroy)
        except SessionError:
            return
        with self._loop_lock:
            loop, self._loop = self._loop, None
        if loop is not None:
            loop.stop()

    # ---- changes

    def add_vectors(self, items: Iterable[VectorInput | Mapping[str, Any]], *, on_conflict: str = "error") -> AddResult:
        """Adds rows: all or nothing."""
        return self._call(self._async.add_vectors, take_items(items), on_conflict=on_conflict)

    def add_batch(
        self,
        ids: Sequence[str],
        vectors: Any,
        metadata: Sequence[Any] | None = None,
        timestamps: Any = None,
        *,
        expires_at: Any = None,
        on_conflict: str = "error",
    ) -> AddResult:
        """Adds the rows of an array: all or nothing."""
        options = {"expires_at": expires_at, "on_conflict": on_conflict}
        return self._call(self._async.add_batch, ids, vectors, metadata, timestamps, **options)

    def update_metadata(self, id: str | Mapping[str, Any], metadata: Any = None, *, merge: bool = False) -> None:
        """Replaces the metadata of a row, or of many by a mapping of ids, or merges dicts into it."""
        self._call(self._async.update_metadata, id, metadata, merge=merge)

    def update_vector(self, id: str, vector: Any) -> None:
        """Gives a row another vector."""
        self._call(self._async.update_vector, id, vector)

    def set_schema(self, schema: Mapping[str, Any] | None) -> None:
        """Makes metadata follow a schema from now on; it is saved with the index."""
        self._call(self._async.set_schema, schema)

    def delete_vector(self, id: str, *, missing_ok: bool = False) -> DeleteResult:
        """Deletes a row."""
        return self._call(self._async.delete_vector, id, missing_ok=missing_ok)

    def delete(self, ids: Iterable[str], *, missing_ok: bool = False) -> DeleteResult:
        """Deletes many rows: all or nothing."""
        return self._call(self._async.delete, take_ids(ids), missing_ok=missing_ok)

    def clear(self) -> int:
        """Deletes all rows, at once and for good."""
        return self._call(self._async.clear)

    def delete_by_metadata(self, filter: Mapping[str, Any]) -> DeleteResult:
        """Deletes the rows that a filter takes: all or nothing."""
        return self._call(self._async.delete_by_metadata, filter)

    def vacuum(self) -> VacuumStats:
        """Removes deleted rows for good."""
        return self._call(self._async.vacuum)

    def optimize(self, progress: Callable[[OptimizeProgress], None] | None = None) -> OptimizeResult:
        """Moves old rows to lists and vacuums; `progress` is called on another thread."""
        return self._call(self._async.optimize, progress)

    def get_recent_index(self) -> IndexSide:
        """The recent side."""
        side: IndexSide = self._read(Reach.WHOLE, lambda index, _: index.side(False))
        return side

    def get_historical_index(self) -> IndexSide:
        """The historical side."""
        side: IndexSide = self._read(Reach.WHOLE, lambda index, _: index.side(True))
        return side

    def get_timestamps(self, ids: Sequence[str] | None = None) -> dict[str, float]:
        """Seconds since 1970 by id."""
        wanted = None if ids is None else take_ids(ids)
        return self._read(Reach.IDS, lambda index, _: index.timestamps(wanted))

    # ---- reads

    def search(
        self, query: Any, k: int, options: SearchOptions | Mapping[str, Any] | None = None, **fields: Any
    ) -> SearchResults:
        """Finds the k rows nearest to a query."""
        request, index = self._async.request(query, k, options, fields), self._async.live_index()
        if request.mmr is None and index.is_whole:
            try:
                # Without a function on the way: that would be a fiftieth of a search of an index in memory.
                return index.search(request)
            except IndexClosed:
                self._async.check_replaced(index)
        return self._read(*search_of(request))

    def search_batch(
        self, queries: Any, k: int, options: SearchOptions | Mapping[str, Any] | None = None, **fields: Any
    ) -> list[SearchResults]:
        """Finds the k rows nearest to each of many queries, on all threads."""
        request = self._async.batch_request(queries, k, options, fields)
        return self._read(*search_batch_of(prepare_queries(queries, self._async.live_index().vector_dim), request))

    def search_stream(
        self,
        query: Any,
        *,
        threshold: float | Unset | None = UNSET,
        include_vectors: bool = False,
        filter: Mapping[str, Any] | None = None,
    ) -> Iterator[SearchResult]:
        """All rows that a filter takes and whose score passes the threshold, nearest first, however many there are."""
        start = self._async.start_of_stream(query, threshold, include_vectors, filter)
        index, next_hits = self._read(Reach.WHOLE, start)
        while hits := self._read(Reach.IDS, partial(next_page, index, next_hits)):
            yield from hits

    def get(self, ids: Sequence[str]) -> list[Row | None]:
        """Rows by id, in the order asked for; None for an id that is not live."""
        wanted = take_ids(ids)
        return self._read(RowsNeed(wanted), lambda index, gathered: index.get(wanted, gathered))

    def count(self, filter: Mapping[str, Any] | None = None) -> int:
        """How many rows are live, of those that a filter takes."""
        if filter is None:
            return self._async.live_index().live_count
        where = parse_filter(filter)
        count: int = self._read(FilterNeed(), lambda index, _: index.count_where(where))
        return count

    def facets(self, field: str, filter: Mapping[str, Any] | None = None) -> list[FacetCount]:
        """The distinct values of a metadata field, each with the number of rows that have it."""
        path, where = check_field(field), EVERYTHING if filter is None else parse_filter(filter)
        return self._read(FilterNeed(), lambda index, _: index.facets(path, where))

    def recall(self, sample: int = 200, *, k: int = 10) -> RecallReport:
        """How much of the truth searches find on the index's own rows, and at what cost."""
        return self._call(self._async.recall, sample, k=k)

    def scan(self, filter: Mapping[str, Any] | None = None, *, order: str | None = None) -> Iterator[Row]:
        """The rows that are live at its start, of those that a filter takes, in the order of their slots or a field."""
        index, next_rows = self._read(Reach.WHOLE, partial(start_of_scan, filter, order))
        while rows := self._read(Reach.IDS, partial(next_page, index, next_rows)):
            yield from rows

    def get_stats(self) -> SessionStats:
        """Measured state of the session."""
        return self._async.stats_here()

    # ---- versions

    def save_to_s5(
        self,
        *,
        on_conflict: str = "error",
        verify_stored: bool = False,
        progress: ProgressCallback | None = None,
    ) -> str:
        """Stores the index as a new version and returns its CID."""
        return self._call(
            self._async.save_to_s5, on_conflict=on_conflict, verify_stored=verify_stored, progress=progress
        )

    def load_user_vectors(
        self, cid: str | None = None, options: LoadOptions | Mapping[str, Any] | None = None, **fields: Any
    ) -> None:
        """Replaces the content by a saved version: all or nothing."""
        self._call(self._async.load_user_vectors, cid, options, **fields)

    def warm(self, progress: ProgressCallback | None = None) -> None:
        """Fetches what a lazy load left in the store; `progress` is called on another thread."""
        self._call(self._async.warm, progress)

    def history(self) -> list[VersionInfo]:
        """The versions of this index, newest first."""
        return self._call(self._async.history)

    def prune_history(self, keep: int, dry_run: bool = True) -> PruneReport:
        """Forgets all but the newest versions, and deletes what only the others name."""
        return self._call(self._async.prune_history, keep, dry_run)

    def share(self, cid: str) -> str:
        """Makes a CID that opens one version without the phrase, and nothing else."""
        return self._call(self._async.share, cid)

    def list_indexes(self) -> list[str]:
        """The names of the user's saved indexes."""
        return self._call(self._async.list_indexes)

    def verify(self, cid: str | None = None, *, progress: ProgressCallback | None = None) -> VerifyReport:
        """Reads every object of a version and checks all of it."""
        return self._call(self._async.verify, cid, progress=progress)

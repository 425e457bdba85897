"""VectorDBSession: every public verb, each a few readable lines.

A session belongs to one user. `runtime` says who may run when: changes, saves and loads run one after the other; reads
run beside them, and see the rows from before or after a change, never half of it. `workspace` keeps the versions.
Cancelling the task that awaits a change, save or load stops it, waits until no thread works on the index any more, and
then raises the cancellation; the change was made whole by then, or left no trace.
"""

from __future__ import annotations

import logging
import platform
import sys
import time
import warnings
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from functools import partial
from itertools import islice
from types import TracebackType
from typing import Any, Final, Generic, Literal, NoReturn, Self, SupportsIndex, TypeVar, Unpack, cast

import numpy as np
import numpy.typing as npt

from fabstir_vectordb import log_level
from fabstir_vectordb._native.handle import LISTS_ROWS_MIN, Control, NativeBusy, NativeStats, kernels
from fabstir_vectordb.config import (
    UNSET,
    ConfigFields,
    Given,
    Unset,
    VectorDBConfig,
    check_known,
    check_recall_target,
    check_threshold,
    config_of,
)
from fabstir_vectordb.diversity import candidates_for, check_mmr, most_diverse
from fabstir_vectordb.errors import (
    InvalidConfigError,
    InvalidInputError,
    MemoryBudgetExceededError,
    SessionError,
)
from fabstir_vectordb.index import (
    Index,
    IndexClosed,
    check_ef,
    check_exact,
    check_k,
    check_nprobe,
    prepare_batch,
    prepare_queries,
    prepare_query,
)
from fabstir_vectordb.maintenance import Aging, Stage
from fabstir_vectordb.metadata.filter_parse import EVERYTHING, Filter, check_field, parse_filter
from fabstir_vectordb.metadata.schema import parse_schema
from fabstir_vectordb.persist.lazy import PartsNeeded, WholeNeeded
from fabstir_vectordb.persist.versions import HistoryEntry, ProgressCallback
from fabstir_vectordb.runtime import Runtime
from fabstir_vectordb.s5.phrase import PHRASE_WORDS, parse_phrase
from fabstir_vectordb.types import (
    AddResult,
    DeleteResult,
    FacetCount,
    IndexSide,
    LoadFields,
    LoadOptions,
    OptimizeProgress,
    OptimizeResult,
    PruneReport,
    RecallReport,
    Row,
    SearchFields,
    SearchOptions,
    SearchResult,
    SearchResults,
    SessionStats,
    VacuumStats,
    VectorInput,
    VerifyReport,
    VersionInfo,
)
from fabstir_vectordb.workspace import Workspace

__all__ = ["VectorDBSession", "get_platform_info", "get_version"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_S = TypeVar("_S", bound="VectorDBSession")
_O = TypeVar("_O", SearchOptions, LoadOptions)
# ef_search, exact, nprobe and recall_target.
_Effort = tuple[int, bool, int, float | None]
# Query, k, threshold, include_vectors, the three of the effort, and the filter.
_Asked = tuple[npt.NDArray[np.float32], int, float | Unset | None, bool, int, bool, int, float | None, Filter | None]

# A search runs on the caller's thread when it takes less than a thread hop is worth: a walk of this many candidates
# or a scan of this many float32 values is below a millisecond.
_INLINE_EF_MAX: Final = 1_000
_INLINE_SCAN_VALUES_MAX: Final = 1 << 20
# Lists are scanned by code: a few times faster.
_INLINE_PROBED_VALUES_MAX: Final = 1 << 23
SCAN_PAGE_ROWS: Final = 512
# The moments that a clock may give, seconds since 1970: from the year 1 to the year 9999.
_CLOCK_S: Final = (-62_135_596_800, 253_402_300_800)


def get_version() -> str:
    """The version of this package."""
    from importlib.metadata import version  # loads email and zipfile, a tenth of the package's import

    return version("fabstir_vectordb")


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

    def __init__(self, config: VectorDBConfig, runtime_type: type[Runtime] = Runtime) -> None:
        self._config = config.without_secrets()
        if len(config.secret.reveal().split()) == PHRASE_WORDS:
            # What looks like a phrase of S5 must be one: a mistyped word would otherwise open another, empty identity.
            parse_phrase(config.secret.reveal())
        self._now_us = partial(_clock_us, config.clock)
        runtime = runtime_type(config.session_id)
        self._workspace = Workspace(config, runtime, self._now_us)
        self._aging = Aging(runtime, self._now_us, config.recent_window_s)
        self._recall_target = check_recall_target(config.recall_target, InvalidConfigError)
        self._told_of_default = False
        if config.debug:
            log_level.begin_debug()
        self._runtime = runtime  # last: a refused session owes nobody a destroy()
        logger.debug("session %s: created", config.session_id)

    @classmethod
    def create(
        cls, config: VectorDBConfig | Mapping[str, Any] | None = None, /, **settings: Unpack[ConfigFields]
    ) -> Creation[Self]:
        """Makes a session; validates only, touches no store.

        Await it, or use it in ``async with``, with ``await`` or without.

        Args:
            config: the settings, or a mapping of them.
            **settings: single settings; they win over `config`.

        Returns:
            An empty session.

        Raises:
            InvalidConfigError: a setting is missing, unknown or out of range.
        """
        return Creation(cls._create(Given(config, settings)))

    @classmethod
    async def _create(cls, given: Given) -> Self:
        return cls(config_of(given))

    @classmethod
    def from_parts(
        cls,
        config: VectorDBConfig | Mapping[str, Any] | None = None,
        /,
        *,
        recent: Iterable[VectorInput | Row | Mapping[str, Any]] = (),
        historical: Iterable[VectorInput | Row | Mapping[str, Any]] = (),
        timestamps: Mapping[str, float] | None = None,
        **settings: Unpack[ConfigFields],
    ) -> Creation[Self]:
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
        return Creation(cls._from_parts(cls._create(Given(config, settings)), recent, historical, timestamps))

    @staticmethod
    async def _from_parts(
        creation: Coroutine[Any, Any, _S],
        recent: Iterable[VectorInput | Row | Mapping[str, Any]],
        historical: Iterable[VectorInput | Row | Mapping[str, Any]],
        timestamps: Mapping[str, float] | None,
    ) -> _S:
        session = await creation
        try:
            await session._fill(recent, historical, timestamps)
        except BaseException:
            await session.destroy()
            raise
        return session

    async def _fill(
        self,
        recent: Iterable[VectorInput | Row | Mapping[str, Any]],
        historical: Iterable[VectorInput | Row | Mapping[str, Any]],
        timestamps: Mapping[str, float] | None,
    ) -> None:
        """Gives an empty session rows on both sides."""
        if timestamps is not None and not isinstance(timestamps, Mapping):
            raise InvalidInputError(f"timestamps must be a mapping of ids, got {type(timestamps).__name__}")
        past, present = (_dated(rows, timestamps or {}) for rows in (historical, recent))
        fill_lists = sum(row.vector is not None for row in past) >= LISTS_ROWS_MIN
        await self._runtime.change(lambda index, control: self._add_inputs(past, "error", index, control, fill_lists))
        if fill_lists:
            await self._aging.run(of_any_age=True)
        await self.add_vectors(present)

    # ---- life

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.destroy()

    def __del__(self) -> None:
        runtime = getattr(self, "_runtime", None)
        if runtime is not None and runtime.is_open:
            self._end_debug()
            way = "'with'" if runtime.is_blocking else "'async with'"
            warnings.warn(
                f"session {self._config.session_id!r} was never destroyed: call destroy(), or use {way}",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    def __repr__(self) -> str:
        return f"<VectorDBSession {self._config.session_id!r} index={self._config.index_name!r}>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        self._runtime.__reduce_ex__(protocol)

    async def destroy(self) -> None:
        """Forgets everything: frees native memory, wipes keys as far as CPython allows, closes the store.

        Waits for a running change, save or load. Idempotent; every later call raises SessionError. In a child process
        of the one that made the session it only wipes the child's copy of the keys.

        Raises:
            SessionError: the session is in use on another event loop.
        """
        if self._runtime.was_forked:
            self._workspace.forget()
        await self._runtime.end(self._forget, self._workspace.store.aclose)

    def _forget(self) -> None:
        if self._workspace.is_dirty:
            logger.warning("session %s: destroyed with unsaved changes", self._config.session_id)
        self._workspace.forget()
        logger.debug("session %s: destroyed", self._config.session_id)
        self._end_debug()

    def _end_debug(self) -> None:
        if self._config.debug:
            log_level.end_debug()

    @property
    def _index(self) -> Index:
        return self._runtime.index

    # ---- rows in

    async def add_vectors(
        self, items: Iterable[VectorInput | Mapping[str, Any]], *, on_conflict: str = "error"
    ) -> AddResult:
        """Adds rows: all or nothing.

        Args:
            items: VectorInputs, or mappings with the same keys.
            on_conflict: for ids that are live: ``error``, ``replace`` or ``skip``.

        Returns:
            How many rows were added, replaced and skipped.

        Raises:
            InvalidInputError: a vector, id, timestamp or metadata is refused; details has ``row``.
            ConflictError: an id is live already, or stands twice in the call.
            MemoryBudgetExceededError: they would not fit.
            SessionError: the session is destroyed.
        """

        if isinstance(items, (str, bytes, Mapping)) or not isinstance(items, Iterable):
            raise InvalidInputError(f"items must be VectorInputs or mappings, got {type(items).__name__}")

        def add(index: Index, control: Control) -> AddResult:
            rows = [_as_input(row, item) for row, item in enumerate(items)]
            return self._add_inputs(rows, on_conflict, index, control)

        return await self._runtime.change(add)

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
        return await self._runtime.change(
            partial(self._add, ids, vectors, metadata, timestamps, expires_at, on_conflict)
        )

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
        known = index.vector_dim, index.schema
        batch = prepare_batch(ids, vectors, metadata, timestamps, self._now_us, *known, expires_at)
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

    async def update_metadata(self, id: str, metadata: Any, *, merge: bool = False) -> None:
        """Replaces a row's metadata.

        Args:
            id: the row.
            metadata: any JSON-shaped value of at most 1 MiB, or None for none.
            merge: merge a dict into the stored dict instead, key by key.

        Raises:
            NotFoundError: the id is not live.
            InvalidInputError: the metadata is refused.
            MemoryBudgetExceededError: it would not fit.
            SessionError: the session is destroyed.
        """
        await self._runtime.change(lambda index, _: index.update_metadata(id, metadata, merge))

    async def set_schema(self, schema: Mapping[str, Any] | None) -> None:
        """Makes metadata follow a schema from now on; it is saved with the index.

        Args:
            schema: fields with their types, as ``{"title": {"type": "string", "required": True}, "tags":
                "Array<String>"}``: string, number, boolean, array of a type, object with fields. Fields that it does
                not name may hold anything, and null stands for an optional one that is not there. None for no schema.

        Raises:
            InvalidInputError: the schema is not understood (details ``path``), or a row breaks it (``id``, too).
            SessionError: the session is destroyed.
        """
        parsed = None if schema is None else parse_schema(schema)
        await self._runtime.change(lambda index, _: index.set_schema(parsed))

    async def delete_vector(self, id: str, *, missing_ok: bool = False) -> DeleteResult:
        """Deletes a row; `vacuum` gives its memory back.

        Args:
            id: the row.
            missing_ok: do nothing for an id that is not live, instead of raising.

        Raises:
            NotFoundError: the id is not live.
            InvalidInputError: the id is no string.
            SessionError: the session is destroyed.
        """
        if not isinstance(id, str):
            raise InvalidInputError(f"an id must be a string, got {type(id).__name__}")
        return await self._runtime.change(lambda index, _: index.delete([id], missing_ok))

    async def delete_by_metadata(self, filter: Mapping[str, Any]) -> DeleteResult:
        """Deletes the rows that a filter takes: all or nothing.

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
        return await self._runtime.change(lambda index, _: index.delete_where(where))

    async def vacuum(self) -> VacuumStats:
        """Removes deleted rows for good, repairs the graph and gives their memory back.

        Returns:
            How many rows were removed.

        Raises:
            MemoryBudgetExceededError: what it needs beside the index would not fit; nothing changed.
            IndexStateError: there was not enough memory beside the index; nothing changed.
            SessionError: the session is destroyed.
        """
        return await self._runtime.change(Index.vacuum)

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

        async def tell(stage: Stage, rows_done: int) -> None:
            if progress is not None:
                progress(OptimizeProgress(stage, rows_done, self._index.counts.rows))

        await self._runtime.concurrent(lambda index, _: index.check_optimizes())
        result = await self._aging.run(tell)
        if result.migrated or result.vacuum.total_removed:
            # Rows got other slots, and parts other bytes, anyway.
            with suppress(MemoryBudgetExceededError):
                await self._runtime.change(Index.arrange)
        return result

    async def get_recent_index(self) -> IndexSide:
        """The recent side: rows that are found through the graph, or scanned while they are few.

        Raises:
            SessionError: the session is destroyed.
        """
        return await self._runtime.read(lambda index: index.side(False))

    async def get_historical_index(self) -> IndexSide:
        """The historical side: rows on lists.

        Raises:
            SessionError: the session is destroyed.
        """
        return await self._runtime.read(lambda index: index.side(True))

    async def get_timestamps(self, ids: Sequence[str] | None = None) -> dict[str, float]:
        """When rows are from: seconds since 1970 by id.

        Args:
            ids: the rows; those that are not live are left out. None for all.

        Raises:
            InvalidInputError: `ids` is no sequence of strings.
            SessionError: the session is destroyed.
        """
        wanted = None if ids is None else _as_ids(ids)
        return await self._runtime.read(lambda index: index.timestamps(wanted))

    # ---- rows out

    async def search(
        self, query: Any, k: int = 10, options: SearchOptions | None = None, **fields: Unpack[SearchFields]
    ) -> SearchResults:
        """Finds the k rows nearest to a query.

        Args:
            query: dim numbers.
            k: 1 to 10 000; more than there are rows returns all.
            options, **fields: see SearchOptions. The first time in a session that the default threshold drops hits,
                a warning is logged.

        Returns:
            The hits, nearest first, ties by id.

        Raises:
            InvalidInputError: the query, `k` or an option is refused.
            SessionError: the session is destroyed.
        """
        if self._runtime.is_pause_due:
            await self._runtime.let_others_run()
        found = self._search_at_once(query, k, options, fields)
        if found is not None:
            return found
        if _wants_mmr(options, fields):
            results = await self._runtime.cancellable(self._search_diverse(query, k, options, fields))
        else:
            asked = self._asked(query, k, options, fields)
            # Stoppable, as it may have to find out first what its recall takes.
            results = await self._runtime.cancellable(lambda index, control: index.search(*asked, control=control))
        self._tell_of_default(results.below_threshold, options, fields)
        return results

    async def search_batch(
        self, queries: Any, k: int = 10, options: SearchOptions | None = None, **fields: Unpack[SearchFields]
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
        self._runtime.check()
        results = await self._runtime.cancellable(self._search_batch(queries, k, options, fields))
        self._tell_of_default(sum(each.below_threshold for each in results), options, fields)
        return results

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
        start = self._start_of_stream(query, threshold, include_vectors, filter)
        index, next_hits = await self._runtime.cancellable(start)
        while hits := await self._runtime.read(partial(_next_page, index, next_hits)):
            for hit in hits:
                yield hit

    async def get(self, ids: Sequence[str]) -> list[Row | None]:
        """Rows by id, in the order asked for; None for an id that is not live.

        Raises:
            InvalidInputError: `ids` is no sequence of strings.
            SessionError: the session is destroyed.
        """
        wanted = _as_ids(ids)
        return await self._runtime.read(lambda index: index.get(wanted))

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
            self._runtime.check()
            return self._index.live_count
        where = parse_filter(filter)
        return await self._runtime.read(lambda index: index.count_where(where))

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
        return await self._runtime.read(lambda index: index.facets(path, where))

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
        _check_range("sample", sample, 10_000)
        _check_range("k", k, 1_000)

        def measure(index: Index, control: Control | None) -> RecallReport:
            index.require_whole()
            return index.recall(sample, k, self._recall_target, control)

        return await self._runtime.cancellable(measure)

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
        index, next_rows = await self._runtime.read(partial(_start_of_scan, filter, order))
        while rows := await self._runtime.read(partial(_next_page, index, next_rows)):
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
        chosen = cast(Literal["error", "overwrite"], on_conflict)
        return await self._runtime.exclusive(partial(self._workspace.save, chosen, verify_stored, progress))

    async def load_user_vectors(
        self, cid: str | None = None, options: LoadOptions | None = None, **fields: Unpack[LoadFields]
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
            InvalidConfigError: `metric`, `M`, `ef_construction` or `chunk_size` was passed to `create`, and the version
                has another; the session stays as it was.
            MemoryBudgetExceededError: it would not fit.
            StorageError, S5Error: the store failed.
            SessionError: the session is destroyed.
        """
        chosen = _merged_options(LoadOptions, options, fields)
        _check_load_options(chosen)
        if cid is not None and not isinstance(cid, str):
            raise InvalidInputError(f"a CID must be a string, got {type(cid).__name__}")
        await self._runtime.exclusive(partial(self._workspace.load, cid, chosen))

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
        self._runtime.check()
        if not self._index.is_whole:
            await self._runtime.exclusive(partial(self._workspace.load_rest, progress))

    async def history(self) -> list[VersionInfo]:
        """The versions of this index, newest first.

        Raises:
            IntegrityError: the record is damaged; the next save repairs it.
            StorageError, S5Error: the store failed.
            SessionError: the session is destroyed.
        """

        return _as_infos(await self._runtime.exclusive(self._workspace.history))

    async def prune_history(self, keep: int, dry_run: bool = True) -> PruneReport:
        """Forgets all but the newest versions, and deletes what only the others name.

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

        pruned = await self._runtime.exclusive(partial(self._workspace.prune, keep, dry_run))
        return PruneReport(
            versions=_as_infos(pruned.versions),
            blobs=pruned.blobs,
            bytes=pruned.bytes,
            blobs_deleted=pruned.blobs_deleted,
        )

    async def share(self, cid: str) -> str:
        """Makes a CID that opens one version without the phrase, and nothing else.

        Whoever has it can read that version for good: treat it as a secret. Nothing but the version's list of parts is
        stored again.

        Args:
            cid: the version.

        Returns:
            The share CID, ``uXV6m…``: `load_user_vectors` opens it under any phrase, and S5.js as an encrypted
            directory. It is the same each time.

        Raises:
            InvalidInputError: `cid` is no CID, a share CID already, or names no version, or one stored in clear.
            NotFoundError, DecryptionError, IntegrityError, StorageError, S5Error: as `load_user_vectors`.
            SessionError: the session is destroyed.
        """
        if not isinstance(cid, str):
            raise InvalidInputError(f"a CID must be a string, got {type(cid).__name__}")

        return (await self._runtime.exclusive(partial(self._workspace.share, cid))).reveal()

    async def list_indexes(self) -> list[str]:
        """The names of the user's saved indexes, sorted.

        Raises:
            IntegrityError: the record is damaged; the next save repairs it.
            StorageError, S5Error: the store failed.
            SessionError: the session is destroyed.
        """

        return await self._runtime.exclusive(self._workspace.indexes)

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

        found = await self._runtime.exclusive(partial(self._workspace.verify, cid, progress))
        return VerifyReport(cid=str(found.cid), parts=found.parts, bytes=found.bytes, rows=found.rows)

    async def get_stats(self) -> SessionStats:
        """Measured state of the session; O(1).

        Raises:
            SessionError: the session is destroyed.
        """
        self._runtime.check()
        index = self._index
        native = self._runtime.here(Index.stats)
        return _stats(index, native, self._workspace.is_dirty, self._workspace.last_cid)

    # ---- searches

    def _search_at_once(
        self, query: Any, k: int, options: SearchOptions | None, fields: Mapping[str, Any]
    ) -> SearchResults | None:
        """`search` on this thread, or None where it would take long. No coroutine: that takes a microsecond."""
        runtime = self._runtime
        runtime.check()
        if _wants_mmr(options, fields):
            return None
        asked = self._asked(query, k, options, fields)
        index = runtime.index
        try:
            if runtime.is_blocking:
                results = index.search(*asked)
            elif _is_short(index, asked):
                results = index.search(*asked, nowait=True)
            else:
                return None
        except (NativeBusy, IndexClosed, PartsNeeded, WholeNeeded):
            return None
        if results.below_threshold:
            self._tell_of_default(results.below_threshold, options, fields)
        return results

    def _tell_of_default(self, dropped: int, options: SearchOptions | None, fields: Mapping[str, Any]) -> None:
        """Warns, once, where hits were dropped by a threshold that nobody asked for."""
        if self._told_of_default or not dropped or self._config.default_threshold is not UNSET:
            return
        if fields.get("threshold", UNSET if options is None else options.threshold) is UNSET:
            self._told_of_default = True
            logger.warning(
                "session %s: the default threshold of metric %r dropped %d of the nearest rows: pass threshold=None to "
                "keep them, or create the session with default_threshold=None (this is said once)",
                self._config.session_id,
                self._index.metric,
                dropped,
            )

    def _start_of_stream(
        self, query: Any, threshold: float | Unset | None, include_vectors: bool, filter: Mapping[str, Any] | None
    ) -> Callable[..., tuple[Index, Callable[[], list[SearchResult]]]]:
        """What starts a stream over an index: it gives that index, and what gives its next hits, none at the end."""
        self._runtime.check()
        vector, least = prepare_query(query), self._threshold(threshold)
        where = EVERYTHING if filter is None else parse_filter(filter)

        def start(index: Index, control: Control | None = None) -> tuple[Index, Callable[[], list[SearchResult]]]:
            cursor = index.stream(vector, where, control)

            def next_hits() -> list[SearchResult]:
                first = cursor.next
                hits = index.stream_page(cursor, vector, SCAN_PAGE_ROWS, least, include_vectors)
                if first < cursor.end == cursor.next:
                    self._tell_of_default(cursor.end - first - len(hits), None, {"threshold": threshold})
                return hits

            return index, next_hits

        return start

    def _asked(self, query: Any, k: int, options: SearchOptions | None, given: Mapping[str, Any]) -> _Asked:
        """The arguments of `Index.search`, with everything checked that does not depend on the index it will meet."""
        threshold, include_vectors, ef_search, exact, nprobe, recall_target, filter = _search_options(options, given)
        return (
            prepare_query(query),
            check_k(k),
            None if threshold is None else self._threshold(threshold),
            include_vectors,
            *_effort_of(ef_search, exact, nprobe, recall_target, self._recall_target),
            None if filter is None else parse_filter(filter),
        )

    def _search_diverse(
        self, query: Any, k: int, options: SearchOptions | None, given: Mapping[str, Any]
    ) -> Callable[..., SearchResults]:
        wide, k, mmr, include_vectors = _with_candidates(k, options, given)
        asked = self._asked(query, candidates_for(k), wide, {})

        def search(index: Index, control: Control | None = None) -> SearchResults:
            candidates = index.search(*asked, control=control)
            return most_diverse(candidates, k, mmr, index.metric, include_vectors)

        return search

    def _search_batch(
        self, queries: Any, k: int, options: SearchOptions | None, given: Mapping[str, Any]
    ) -> Callable[..., list[SearchResults]]:
        if _wants_mmr(options, given):
            wide, k, mmr, include_vectors = _with_candidates(k, options, given)
            candidates = self._search_batch(queries, candidates_for(k), wide, {})

            def diverse(index: Index, control: Control | None = None) -> list[SearchResults]:
                each = candidates(index, control)
                return [most_diverse(found, k, mmr, index.metric, include_vectors) for found in each]

            return diverse
        threshold, include_vectors, ef_search, exact, nprobe, recall_target, filter = _search_options(options, given)
        k, threshold = check_k(k), self._threshold(threshold)
        effort = _effort_of(ef_search, exact, nprobe, recall_target, self._recall_target)
        where = None if filter is None else parse_filter(filter)

        def search(index: Index, control: Control | None = None) -> list[SearchResults]:
            # Many queries take a while to convert: in the worker thread, too.
            matrix = prepare_queries(queries, index.vector_dim)
            return index.search_batch(matrix, k, threshold, include_vectors, *effort, where, control)

        return search

    def _threshold(self, threshold: float | Unset | None) -> float | Unset | None:
        if isinstance(threshold, Unset):
            return self._config.default_threshold
        check_threshold("threshold", threshold, InvalidInputError)
        return threshold


class Creation(Coroutine[Any, Any, _S], Generic[_S]):
    """A session on its way: await it, or enter it with ``async with``."""

    def __init__(self, creation: Coroutine[Any, Any, _S]) -> None:
        self._creation = creation
        self._session: _S | None = None

    def __await__(self) -> Generator[Any, Any, _S]:
        return self._creation.__await__()

    def send(self, value: Any) -> Any:
        """As of a coroutine."""
        return self._creation.send(value)

    def throw(self, *error: Any) -> Any:
        """As of a coroutine."""
        return self._creation.throw(*error)

    def close(self) -> None:
        """As of a coroutine."""
        self._creation.close()

    async def __aenter__(self) -> _S:
        self._session = await self._creation
        return await self._session.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.__aexit__(kind, error, trace)


def _effort_of(ef_search: Any, exact: Any, nprobe: Any, recall_target: Any, default_target: float | None) -> _Effort:
    ef, probes = check_ef(ef_search), check_nprobe(nprobe)
    if exact is False and recall_target is None:
        return ef, False, probes, None if ef or probes else default_target
    exact = check_exact(exact, ef or probes)
    target = check_recall_target(recall_target, InvalidInputError)
    if target is None:
        return ef, exact, probes, None if ef or exact or probes else default_target
    if ef or exact or probes:
        raise InvalidInputError(
            "recall_target stands in place of ef_search, nprobe and exact: give it or these",
            details={"recall_target": target, "ef_search": ef_search, "exact": exact, "nprobe": nprobe},
        )
    return 0, False, 0, target


def _is_short(index: Index, asked: _Asked) -> bool:
    counts = index.counts
    _, k, _, _, ef, exact, nprobe, recall_target, where = asked
    if recall_target is not None:
        effort = index.known_effort(k, recall_target)
        if effort is None:
            return False
        ef, exact, nprobe = effort
    if where is not None:
        # Of few rows each is looked at; of many, the walk passes those that the filter does not take.
        count = index.count_known(where)
        if count is None or (exact and count * (index.dim or 0) > _INLINE_SCAN_VALUES_MAX):
            return False
        return count * (index.dim or 0) <= _INLINE_SCAN_VALUES_MAX or (
            counts.graph_rows > 0 and max(k, ef) * counts.rows <= _INLINE_EF_MAX * count
        )
    if (counts.graph_rows or counts.lists) and not exact:
        # Many rows that a walk meets in vain make it long, or have a scan by code take its place; where that takes
        # long as well, a thread is the right place.
        recent, dim = counts.live - counts.historical, index.dim or 0
        probed = counts.historical * max(k // 10, 1) * (nprobe or counts.nprobe) // max(counts.lists, 1)
        return (
            max(k, ef) <= _INLINE_EF_MAX
            and (2 * recent > counts.graph_rows or recent * dim <= _INLINE_PROBED_VALUES_MAX)
            and probed * dim <= _INLINE_PROBED_VALUES_MAX
        )
    return counts.rows * (index.dim or 0) <= _INLINE_SCAN_VALUES_MAX


def _stats(index: Index, native: NativeStats, is_dirty: bool, last_cid: str | None) -> SessionStats:
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
        dirty=is_dirty,
        last_cid=last_cid,
    )


def _as_infos(entries: Iterable[HistoryEntry]) -> list[VersionInfo]:
    return [
        VersionInfo(
            cid=str(entry.cid),
            saved_at=entry.saved_us / 1e6,
            revision=entry.revision,
            vector_count=entry.vector_count,
            deleted_count=entry.deleted_count,
            refused=entry.refused,
        )
        for entry in entries
    ]


def _start_of_scan(
    filter: Mapping[str, Any] | None, order: str | None, index: Index
) -> tuple[Index, Callable[[], list[Row]]]:
    """The index a scan is about, and what gives its next rows, none at the end."""
    index.require_whole()
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


def _next_page(begun: Index, page: Callable[[], list[_T]], index: Index) -> list[_T]:
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
    now: Any = None
    try:
        now = clock()
        if _CLOCK_S[0] <= now < _CLOCK_S[1]:
            return round(float(now) * 1e6)
        cause = None
    except Exception as error:
        cause = error
    said = f"it returned {now!r}" if cause is None or now is not None else f"it raised {type(cause).__name__}: {cause}"
    raise InvalidConfigError(
        f"clock must return seconds since 1970, from the year 1 to 9999; {said}", details={"field": "clock"}
    ) from cause


# ---- Arguments ---------------------------------------------------------------------------------------------


def _merged_options(kind: type[_O], options: _O | None, given: Mapping[str, Any]) -> _O:
    if options is not None and not isinstance(options, kind):
        raise InvalidInputError(f"options must be {kind.__name__}, got {type(options).__name__}")
    for name in given:
        check_known(name, sorted(_OPTION_NAMES[kind]), f"one of {kind.__name__}'s fields", InvalidInputError)
    return kind(**given) if options is None else replace(options, **given)


def _search_options(
    options: SearchOptions | None, given: Mapping[str, Any]
) -> tuple[Any, Any, Any, Any, Any, Any, Any]:
    """threshold, include_vectors, ef_search, exact, nprobe, recall_target and filter, not yet checked."""
    if options is None and _OPTION_NAMES[SearchOptions].issuperset(given):
        # Without a SearchOptions on the way, which takes half a microsecond to make.
        get = given.get
        threshold, include_vectors = get("threshold", UNSET), get("include_vectors", False)
        effort = get("ef_search"), get("exact", False), get("nprobe"), get("recall_target")
        return threshold, include_vectors, *effort, get("filter")
    chosen = _merged_options(SearchOptions, options, given)
    effort = chosen.ef_search, chosen.exact, chosen.nprobe, chosen.recall_target
    return chosen.threshold, chosen.include_vectors, *effort, chosen.filter


def _wants_mmr(options: SearchOptions | None, given: Mapping[str, Any]) -> bool:
    if options is None or "mmr" in given:
        return given.get("mmr") is not None
    return getattr(options, "mmr", None) is not None


def _with_candidates(
    k: int, options: SearchOptions | None, given: Mapping[str, Any]
) -> tuple[SearchOptions, int, float, bool]:
    """Options for the search that finds the candidates; k, λ and include_vectors of the search that was asked for."""
    chosen, k = _merged_options(SearchOptions, options, given), check_k(k)
    mmr = check_mmr(chosen.mmr, k)
    return replace(chosen, include_vectors=True, mmr=None), k, mmr, chosen.include_vectors


_INDEX_TYPES: Final[dict[tuple[bool, bool], Literal["flat", "hnsw", "ivf", "hybrid"]]] = {
    (False, False): "flat",
    (True, False): "hnsw",
    (False, True): "ivf",
    (True, True): "hybrid",
}
_OPTION_NAMES: Final[dict[type[Any], frozenset[str]]] = {
    kind: frozenset(field.name for field in fields(kind)) for kind in (SearchOptions, LoadOptions)
}


def _check_load_options(options: LoadOptions) -> None:
    if not isinstance(options.lazy_load, bool):
        raise InvalidInputError(f"lazy_load must be True or False, got {options.lazy_load!r}")
    budget = options.memory_budget_mb
    if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int) or budget <= 0):
        raise InvalidInputError(f"memory_budget_mb must be greater than zero, got {budget!r}")


def _none_or(values: list[Any]) -> list[Any] | None:
    """The values, None where all of them are."""
    return values if any(value is not None for value in values) else None


def _as_input(row: int, item: VectorInput | Mapping[str, Any]) -> VectorInput:
    if isinstance(item, VectorInput):
        return item
    if not isinstance(item, Mapping):
        raise InvalidInputError(
            f"row {row} must be a VectorInput or a mapping, got {type(item).__name__}", details={"row": row}
        )
    try:
        return VectorInput(**item)
    except TypeError:
        known = ", ".join(field.name for field in fields(VectorInput))
        raise InvalidInputError(
            f"row {row} needs id and vector and knows only {known}; it has {', '.join(map(str, item))}",
            details={"row": row},
        ) from None


def _check_range(name: str, value: int, most: int) -> None:
    """Raises InvalidInputError unless a number is an integer from 1 to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise InvalidInputError(f"{name} must be an integer from 1 to {most}, got {value!r}", details={"limit": most})


def _dated(rows: Iterable[VectorInput | Row | Mapping[str, Any]], timestamps: Mapping[str, float]) -> list[VectorInput]:
    """Rows as they are added, with the timestamps that are said of them."""
    if isinstance(rows, (str, bytes, Mapping)) or not isinstance(rows, Iterable):
        raise InvalidInputError(f"rows must be VectorInputs, Rows or mappings, got {type(rows).__name__}")
    dated = []
    for number, item in enumerate(rows):
        if isinstance(item, Row):
            row = VectorInput(item.id, item.vector, item.metadata, item.timestamp, item.expires_at)
        else:
            row = _as_input(number, item)
        dated.append(replace(row, timestamp=timestamps[row.id]) if row.id in timestamps else row)
    return dated


def _as_ids(ids: Sequence[str]) -> list[str]:
    if isinstance(ids, (str, bytes)):
        raise InvalidInputError("ids must be a sequence of strings, not one string")
    if not isinstance(ids, Iterable):
        raise InvalidInputError(f"ids must be a sequence of strings, got {type(ids).__name__}")
    listed = list(ids)
    for row, text in enumerate(listed):
        if not isinstance(text, str):
            raise InvalidInputError(f"an id must be a string, got {type(text).__name__}", details={"row": row})
    return listed

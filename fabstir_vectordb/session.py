"""VectorDBSession: every public verb, each a few readable lines.

A session belongs to one user. `runtime` orders the calls: changes, saves and loads run one after the other; reads run
beside them. A read sees the rows from before or after a change, never half of it. `workspace` keeps the versions.
Cancelling the task that awaits a change, save or load stops it, waits until no thread works on the index any more, and
then raises the cancellation. By then the change is complete, or left no trace.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
import time
import warnings
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Generic, Literal, NoReturn, Self, SupportsIndex, TypeVar, Unpack, cast

import anyio
import numpy as np

from fabstir_vectordb import log_level
from fabstir_vectordb._native.handle import LISTS_ROWS_MIN, Control, kernels
from fabstir_vectordb.additions import Additions
from fabstir_vectordb.arrow import TableColumns, data_frame, load_pyarrow
from fabstir_vectordb.config import (
    UNSET,
    ConfigFields,
    Given,
    NoPhrase,
    ShareFields,
    Unset,
    VectorDBConfig,
    check_recall_target,
    config_of,
    share_config,
)
from fabstir_vectordb.display import RecordList, html_record
from fabstir_vectordb.embedders.base import EmbedProgress
from fabstir_vectordb.errors import InvalidConfigError, InvalidInputError, SessionError
from fabstir_vectordb.index import (
    Index,
    prepare_queries,
    take_ids,
    take_items,
)
from fabstir_vectordb.index.aging import Step
from fabstir_vectordb.index.cursor import PAGE_ROWS_MAX, decode_place
from fabstir_vectordb.index.incoming import as_input, one_id, taken
from fabstir_vectordb.index.protocol import FilterNeed, Gathered, Reach, RowsNeed
from fabstir_vectordb.maintenance import Aging
from fabstir_vectordb.metadata.census import make_facet_query
from fabstir_vectordb.metadata.filter_parse import EVERYTHING, Filter, check_field, is_large, parse_filter
from fabstir_vectordb.metadata.schema import parse_schema
from fabstir_vectordb.metadata.update import make_update
from fabstir_vectordb.metadata.values import shown
from fabstir_vectordb.params import (
    LoadFields,
    LoadOptions,
    SearchFields,
    SearchOptions,
    check_bool,
    make_options,
)
from fabstir_vectordb.persist.prune import PrunedHistory
from fabstir_vectordb.persist.version import HistoryEntry
from fabstir_vectordb.recall import measure_recall
from fabstir_vectordb.report import IndexReport
from fabstir_vectordb.runtime import AnyIndex, Runtime
from fabstir_vectordb.s5.cid import check_share_cid
from fabstir_vectordb.s5.phrase import PHRASE_WORDS, parse_phrase
from fabstir_vectordb.searches import Searches, has_large_filter
from fabstir_vectordb.tables import add_batches, rows_table
from fabstir_vectordb.text.fusion import Fusion
from fabstir_vectordb.text.settings import text_settings
from fabstir_vectordb.texts import SessionTexts
from fabstir_vectordb.tiers import TIERS
from fabstir_vectordb.tracing import Tracing, trace_verbs
from fabstir_vectordb.types import (
    AddResult,
    AddTextsResult,
    DeleteResult,
    FacetCount,
    FieldInfo,
    IndexSide,
    OptimizeProgress,
    OptimizeResult,
    ProgressCallback,
    PruneReport,
    RecallReport,
    Row,
    ScanPage,
    SearchResult,
    SearchResults,
    SessionStats,
    UpdateResult,
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
SCAN_PAGE_ROWS: Final = 512
_KEEP_MAX: Final = 2**63 - 1
# The range of a clock, seconds since 1970: from the year 1 to the year 9999.
_CLOCK_S: Final = (-62_135_596_800, 253_402_300_800)


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
    """Platform, architecture, Python and the SIMD kernels in use.

    Returns:
        A dict with the keys ``platform``, ``arch``, ``python`` (the version) and ``kernels``.
    """
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
        AddResult(added=1, replaced=0, skipped=0)
        ['a']
    """

    def __init__(self, config: VectorDBConfig, runtime_type: type[Runtime] = Runtime) -> None:
        self._config = config.without_secrets()
        has_phrase = not isinstance(config.secret, NoPhrase)
        if has_phrase and len(config.secret.reveal().split()) == PHRASE_WORDS:
            # Fifteen words must be a valid S5 phrase: a mistyped word would otherwise open another, empty identity.
            parse_phrase(config.secret.reveal())
        self._now_us = partial(_clock_us, config.clock)
        runtime = runtime_type(config.session_id)
        runtime.is_read_only = not has_phrase
        tracing = Tracing(config) if config.tracing is not False else None
        self._workspace = Workspace(config, runtime, self._now_us, tracing)
        self._stats = partial(_stats_of, self._workspace)
        self._additions = Additions(self._now_us)
        self._texts = SessionTexts(runtime, self._workspace, self._additions)
        self._aging = Aging(runtime, self._now_us, config.recent_window_s)
        self._recall_target = check_recall_target(config.recall_target, InvalidConfigError)
        self._searches = Searches(runtime, config.session_id, config.default_threshold, self._recall_target)
        if config.debug:
            log_level.begin_debug()
        if tracing is not None and not runtime.is_blocking:
            trace_verbs(self, tracing)
        self._runtime = runtime  # last: a session that was refused needs no destroy()
        logger.debug("session %s: created", config.session_id)

    @classmethod
    def create(
        cls, config: VectorDBConfig | Mapping[str, Any] | None = None, /, **settings: Unpack[ConfigFields]
    ) -> Creation[Self]:
        """Makes a session. It checks the settings and contacts no store.

        Await it, or use it in ``async with``, with ``await`` or without.

        Args:
            config: a VectorDBConfig, or a mapping of settings.
            **settings: single settings, which override those of `config`.

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
        """Makes a session from recent and historical rows. The caller chooses the side of each row, not its age.

        The answers of `get_recent_index`, `get_historical_index`, `get_timestamps` and `get` of one session make
        another like it. The next `optimize` moves rows by their age, as always. Historical rows go to their lists at
        once, without a graph in between: the quick way to begin with a long history.

        Args:
            config, **settings: as `create`.
            recent: rows of the graph: VectorInputs, Rows, or mappings with the keys of a VectorInput.
            historical: rows of the lists, in the same forms. The lists are trained on them. With fewer than 64 such
                rows no lists are made, and these rows become recent ones; so do rows without a vector.
            timestamps: seconds since 1970 by id; they override the timestamp of a row.

        Returns:
            A session that holds the rows.

        Raises:
            InvalidConfigError, InvalidInputError, ConflictError, MemoryBudgetExceededError: as `create` and
                `add_vectors`; no session was made.
        """
        return Creation(cls._from_parts(cls._create(Given(config, settings)), recent, historical, timestamps))

    @classmethod
    def open_share(
        cls,
        cid: str,
        s5_portal: str | os.PathLike[str],
        /,
        *,
        lazy_load: bool = True,
        become_whole: bool = True,
        **settings: Unpack[ShareFields],
    ) -> Creation[Self]:
        """Opens a shared version without a phrase, to read it.

        The session has every verb that reads. Changes, saves, `history`, `is_newest`, `prune_history`, `share` and
        `list_indexes` raise SessionError. `load_user_vectors` takes another share CID. The arguments can be sent to
        any process: a share CID and the store's address are all that it takes.

        Args:
            cid: a share CID, as `share` returns it.
            s5_portal: where the version lives, as in VectorDBConfig.
            lazy_load, become_whole: as in LoadOptions.
            **settings: `session_id`, `memory_budget_mb`, `cache_size_mb`, `disk_cache_dir`, `disk_cache_mb`, `debug`,
                `memory`, `recall_target`, `default_threshold`, `timeout_s`, `max_retries`, `portal_token`,
                `allow_private_redirects`, `clock` and `threads`, as in VectorDBConfig.

        Returns:
            A session that holds the version.

        Raises:
            InvalidConfigError: a setting is unknown or out of range.
            InvalidInputError: `cid` is no share CID.
            NotFoundError, DecryptionError, IntegrityError, MemoryBudgetExceededError, StorageError, S5Error: as
                `load_user_vectors`; no session was made.
        """
        options: LoadFields = {"lazy_load": lazy_load, "become_whole": become_whole}
        return Creation(_opened_share(cls, cid, partial(share_config, s5_portal, settings), options))

    @staticmethod
    async def _from_parts(
        creation: Coroutine[Any, Any, _S],
        recent: Iterable[VectorInput | Row | Mapping[str, Any]],
        historical: Iterable[VectorInput | Row | Mapping[str, Any]],
        timestamps: Mapping[str, float] | None,
    ) -> _S:
        session = await creation
        async with _destroyed_on_error(session):
            await session._fill(recent, historical, timestamps)
        return session

    async def _fill(
        self,
        recent: Iterable[VectorInput | Row | Mapping[str, Any]],
        historical: Iterable[VectorInput | Row | Mapping[str, Any]],
        timestamps: Mapping[str, float] | None,
    ) -> None:
        """Adds the rows of both sides to an empty session."""
        if timestamps is not None and not isinstance(timestamps, Mapping):
            raise InvalidInputError(f"timestamps must be a mapping of ids, got {type(timestamps).__name__}")
        past, present = (_dated(rows, timestamps or {}) for rows in (historical, recent))
        fill_lists = sum(row.vector is not None for row in past) >= LISTS_ROWS_MIN
        await self._runtime.change(partial(self._additions.add_inputs, past, "error", for_lists=fill_lists))
        if fill_lists:
            await self._aging.run_for_all()
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

    def _repr_html_(self) -> str | None:
        # A destroyed session has no counts: the notebook shows its repr.
        return html_record(repr(self), self._runtime.here(self._stats).to_dict()) if self._runtime.is_open else None

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        self._runtime.__reduce_ex__(protocol)

    async def destroy(self) -> None:
        """Ends the session: frees native memory, wipes keys as far as CPython allows, closes the store.

        It waits for a running change, save or load. A second `destroy` does nothing; every other later call raises
        SessionError. In a forked child process it only wipes the child's copy of the keys.

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

    # ---- rows in

    async def add_vectors(
        self, items: Iterable[VectorInput | Mapping[str, Any]], *, on_conflict: str = "error"
    ) -> AddResult:
        """Adds rows: all or nothing.

        Args:
            items: VectorInputs, or mappings with the same keys.
            on_conflict: for ids that are live already: ``error``, ``replace`` or ``skip``. Of items with the same id,
                ``replace`` keeps the last and ``skip`` the first; the others count as skipped.

        Returns:
            How many rows were added, replaced and skipped.

        Raises:
            InvalidInputError: a vector, id, timestamp or metadata is refused; details has ``row``.
            ConflictError: with ``error``, an id is live already, or occurs twice in the call.
            MemoryBudgetExceededError: the rows would not fit.
            SessionError: the session is destroyed.
        """
        self._runtime.check()
        taken_items = take_items(items)

        def add(index: Index, control: Control) -> AddResult:
            rows = [as_input(row, item) for row, item in enumerate(taken_items)]
            return self._additions.add_inputs(rows, on_conflict, index, control)

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
            vectors: (n, dim) numbers; float32, C-contiguous arrays are not copied first. None, or a list with None in
                it, for rows without a vector: they are kept, filtered and counted, and no search finds them.
            metadata: n JSON-shaped values, or None.
            timestamps: n seconds since 1970 or aware datetimes, kept as int64 microseconds. None for now: each row of
                the call gets a microsecond more than the one before, so timestamps tell the order of insertion.
            expires_at: when each row leaves all answers, in the forms of `timestamps`; None, for all or for one row,
                means never. The first change of rows after that moment deletes the row.
            on_conflict: for ids that are live already: ``error``, ``replace`` or ``skip``, as in `add_vectors`.

        Returns:
            How many rows were added, replaced and skipped.

        Raises:
            InvalidInputError, ConflictError, MemoryBudgetExceededError, SessionError: as `add_vectors`.
        """
        return await self._runtime.change(
            partial(self._additions.add, ids, vectors, metadata, timestamps, expires_at, on_conflict)
        )

    async def add_table(
        self, table: Any, columns: TableColumns | None = None, *, on_conflict: str = "error"
    ) -> AddResult:
        """Adds the rows of a table. Vectors are read where Arrow has them, without an object for each row.

        Rows are added in pieces of at most 131,072, from files of 16,384. Each piece is added whole or not at all; an
        error leaves the pieces before it in the session.

        Args:
            table: an object with the Arrow PyCapsule interface (of pyarrow, polars, pandas, DuckDB), or the path of a
                Parquet file, an Arrow file, or a folder of Parquet files. An object is read on the
                caller's thread, a file in a worker thread.
            columns: which column is what; by default ``id``, ``vector`` or ``embedding``, and ``timestamp`` and
                ``expires_at`` where the table has them. All other columns are metadata; a null leaves the field out.
            on_conflict: for ids that are live already: ``error``, ``replace`` or ``skip``.

        Returns:
            How many rows were added, replaced and skipped.

        Raises:
            InvalidConfigError: pyarrow, which the extra `arrow` brings, is not installed.
            InvalidInputError: the table lacks a column, or a row is refused.
            OSError: the file cannot be read.
            ConflictError, MemoryBudgetExceededError, SessionError: as `add_batch`.
        """
        return await add_batches(self.add_batch, self._runtime.compute, table, columns, on_conflict)

    async def add_texts(
        self,
        texts: Iterable[str],
        ids: Sequence[str] | None = None,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        timestamps: Any = None,
        *,
        expires_at: Any = None,
        on_conflict: str = "error",
        batch_size: int | None = None,
        progress: EmbedProgress | None = None,
    ) -> AddTextsResult:
        """Embeds texts by the session's embedder and adds a row for each: all or nothing.

        Ids, metadata, times and conflicts are checked before the first text is embedded, and rows that `on_conflict`
        leaves out are not embedded. Embedding runs beside other calls, off the event loop. Cancelling it adds nothing.

        Args:
            texts: n strings.
            ids: n strings; None makes a random UUID for each.
            metadata: n dicts, or None for some or all. Each row keeps its text, too: in the first of the index's text
                fields, so that its words are found, or under ``text`` where there is no text index.
            timestamps, expires_at, on_conflict: as `add_batch`.
            batch_size: most texts of one call of the embedder; None for its own ``batch_size``, or 256.
            progress: called after every such call, with the numbers of texts that are embedded and of all texts.

        Returns:
            How many rows were added, replaced and skipped, and the id of each text.

        Raises:
            EmbeddingError: the embedder failed, or gave other vectors than asked for; nothing was added.
            InvalidConfigError: the index's texts were embedded by another embedder.
            InvalidInputError: there is no embedder, or an argument is refused; details has ``row``.
            ConflictError, MemoryBudgetExceededError, SessionError: as `add_vectors`.
        """
        return await self._texts.add(texts, ids, metadata, timestamps, expires_at, on_conflict, batch_size, progress)

    async def update_metadata(
        self,
        id: str | Mapping[str, Any],
        metadata: Any = None,
        *,
        merge: bool | Literal["deep"] = False,
        remove: Iterable[str] = (),
    ) -> None:
        """Updates the metadata of a row, or of many: all or nothing. `update_by_metadata` takes a filter instead.

        The old value is in no answer from now on. The next `vacuum` removes its bytes from memory and from versions
        saved after it. Versions saved earlier keep them until `prune_history` removes these versions.

        Args:
            id: the row's id; or a mapping of ids to metadata, for many rows in one call.
            metadata: any JSON-shaped value of at most 1 MiB, or None for none; not given where `id` is a mapping.
            merge: False replaces the stored metadata. True merges a dict into the stored dict, key by key. ``"deep"``
                merges the dicts within it, too; lists are replaced.
            remove: fields to take out of the stored metadata, before anything is merged: paths as in a filter, in
                each of their readings. Without `metadata`, nothing else changes.

        Raises:
            NotFoundError: an id is not live.
            InvalidInputError: the metadata is refused.
            MemoryBudgetExceededError: it would not fit.
            SessionError: the session is destroyed.
        """
        if isinstance(id, Mapping):
            if metadata is not None:
                raise InvalidInputError("the mapping of ids holds the metadata: leave the second argument out")
            ids, values, update = take_ids(id), list(id.values()), make_update(merge, remove, {})
        else:
            ids, values, update = [one_id(id)], [metadata], make_update(merge, remove, metadata)
        await self._runtime.change(lambda index, _: index.update_many(ids, values, update))

    async def update_by_metadata(
        self,
        filter: Mapping[str, Any],
        metadata: Any = None,
        *,
        merge: bool | Literal["deep"] = True,
        remove: Iterable[str] = (),
    ) -> UpdateResult:
        """Updates the metadata of the rows that match a filter: all or nothing, in one call.

        One value rarely replaces the metadata of many rows, so here `merge` is True unless it is given.
        `update_metadata` says when the old bytes go.

        Args:
            filter: as in SearchOptions; with ``merge=False`` an empty filter, as ``{}``, is refused.
            metadata: the same for each row: a dict to merge into its metadata, or any value to replace it.
            merge, remove: as `update_metadata`.

        Returns:
            How many rows matched, and which have other metadata now.

        Raises:
            InvalidInputError: the filter or an argument is refused, or a row (details ``id``) has metadata that is no
                dict, breaks the schema or would be too large.
            MemoryBudgetExceededError: the metadata, or the columns of the filter, would not fit.
            SessionError: the session is destroyed.
        """
        where, update = await _parsed(self._runtime, filter), make_update(merge, remove, metadata)
        if where.is_empty and update.merge is False:
            raise InvalidInputError("an empty filter would replace the metadata of every row: name a field")
        return await self._runtime.change(lambda index, _: index.update_where(where, metadata, update))

    async def update_vector(self, id: str, vector: Any) -> None:
        """Gives a row another vector. Its metadata, timestamp and expiry stay.

        Args:
            id: the row's id.
            vector: dim numbers, kept as float32.

        Raises:
            NotFoundError: the id is not live.
            InvalidInputError: the vector is refused.
            MemoryBudgetExceededError: it would not fit.
            SessionError: the session is destroyed.
        """
        ids = [one_id(id)]
        await self._runtime.change(lambda index, control: index.update_vectors(ids, [vector], control))

    async def set_schema(self, schema: Mapping[str, Any] | None) -> None:
        """Sets the schema of metadata. It applies to every row from now on, and is saved with the index.

        Args:
            schema: fields with their types, as ``{"title": {"type": "string", "required": True}, "tags":
                "Array<String>"}`` or ``{"fields": {"title": "String", "tags": {"Array": "String"}}, "required":
                ["title"]}``. Types: string, number, boolean, date, datetime, UUID, array of a type, object with
                fields. Other fields may hold anything. A missing optional field may be written as null. None removes
                the schema.

        Raises:
            InvalidInputError: the schema is not understood (details ``path``), or a live row breaks it (details
                ``id``, too); the old schema stays.
            SessionError: the session is destroyed.
        """
        parsed = None if schema is None else parse_schema(schema)
        await self._runtime.change(lambda index, _: index.set_schema(parsed))

    async def set_text_fields(
        self,
        fields: str | Iterable[str] | None,
        *,
        language: str | None = None,
        stop_words: bool | Iterable[str] | None = None,
        k1: float | None = None,
        b: float | None = None,
    ) -> None:
        """Sets the metadata fields whose words searches with ``text=`` find; the text index is made anew.

        Args:
            fields: paths of fields, whose strings and lists of strings count as one text of a row; None or no path
                removes the text index.
            language: language of the texts, such as ``english``: words are also found by their stems (extra
                ``text``). None takes words as they stand.
            stop_words: words that are left out. None: of English the 33 most frequent ones, of other languages none.
                True: the long list of the language. False: none. Or words of your own.
            k1: 0 to 1000, BM25's k1; None is 1.2.
            b: 0 to 1, BM25's b; None is 0.75.

        Raises:
            InvalidInputError: a path or a setting is refused, or the language is unknown; the old text index stays.
            InvalidConfigError: the extra ``text`` is not installed; the old text index stays.
            MemoryBudgetExceededError: the text index would not fit; the old one stays.
            SessionError: the session is destroyed.
        """
        settings = text_settings(fields, language, stop_words, k1, b, InvalidInputError)
        await self._runtime.change(lambda index, control: index.set_text(settings, control))

    async def delete_vector(self, id: str, *, missing_ok: bool = False) -> DeleteResult:
        """Deletes a row; it is in no answer from now on.

        The next `vacuum` removes the row's id, vector and metadata from memory and from versions saved after it.
        Versions saved earlier, and their shares, keep them until `prune_history` removes these versions.
        `get_stats().superseded_bytes` says how much the last saved version holds.

        Args:
            id: the row's id.
            missing_ok: do nothing for an id that is not live, instead of raising.

        Returns:
            How many rows were deleted, 0 or 1, and which.

        Raises:
            NotFoundError: the id is not live.
            InvalidInputError: the id is no string.
            MemoryBudgetExceededError: the work would not fit.
            SessionError: the session is destroyed.
        """
        wanted, missing_ok = [one_id(id)], check_bool("missing_ok", missing_ok)
        return await self._runtime.change(lambda index, _: index.delete(wanted, missing_ok))

    async def delete(self, ids: Iterable[str], *, missing_ok: bool = False) -> DeleteResult:
        """Deletes many rows: all or nothing; `vacuum` gives their memory back.

        Args:
            ids: ids of the rows; an id that occurs twice counts once.
            missing_ok: ignore ids that are not live, instead of raising.

        Returns:
            How many rows were deleted, and which.

        Raises:
            NotFoundError: an id is not live; nothing was deleted.
            InvalidInputError: `ids` is no iterable of strings.
            MemoryBudgetExceededError: the work would not fit; nothing was deleted. Fewer rows at a time need less.
            SessionError: the session is destroyed.
        """
        wanted, missing_ok = take_ids(ids), check_bool("missing_ok", missing_ok)
        return await self._runtime.change(lambda index, _: index.delete(wanted, missing_ok))

    async def clear(self) -> int:
        """Deletes all rows, at once and for good: no vacuum is needed. The schema stays.

        The next row with a vector may have any dimension, and texts another embedder. Saved versions stay as they are.

        Returns:
            How many rows there were.

        Raises:
            SessionError: the session is destroyed.
        """
        return await self._runtime.change(lambda index, _: index.clear())

    async def delete_by_metadata(self, filter: Mapping[str, Any]) -> DeleteResult:
        """Deletes the rows that match a filter: all or nothing. `delete_vector` says when their bytes go.

        Args:
            filter: as in SearchOptions; an empty filter, as ``{}``, is refused: see `clear`.

        Returns:
            How many rows were deleted, and which.

        Raises:
            InvalidInputError: the filter is not understood, or empty.
            MemoryBudgetExceededError: the columns of the filter, or the work, would not fit; nothing was deleted.
            SessionError: the session is destroyed.
        """
        where = await _parsed(self._runtime, filter)
        if where.is_empty:
            raise InvalidInputError("an empty filter would delete every row: name a field, as in {'kind': 'draft'}")
        return await self._runtime.change(lambda index, _: index.delete_where(where))

    async def vacuum(self) -> VacuumStats:
        """Removes deleted rows and replaced metadata for good, repairs the graph and frees their memory.

        Rows that have expired are deleted first. No later version holds a removed row's id, metadata, vector or code,
        nor replaced metadata. Aggregates of many rows stay: centroids of lists, ranges of codes, the timestamp of the
        last change. Memory is freed, not overwritten.

        Returns:
            How many rows were removed.

        Raises:
            MemoryBudgetExceededError: its working memory would not fit in the budget; nothing changed.
            IndexStateError: the system had too little memory for it; nothing changed.
            SessionError: the session is destroyed.
        """
        return await self._runtime.change(Index.vacuum)

    async def optimize(self, progress: Callable[[OptimizeProgress], None] | None = None) -> OptimizeResult:
        """Moves old rows to lists and vacuums.

        Rows older than the config's `recent_window_s` move from the recent side to lists. The lists are trained first
        where there are none, or where the rows have changed much. Then a vacuum removes deleted rows, takes the moved
        rows out of the graph, and stores the rows of a list side by side. Searches run on, except during the vacuum.
        Other changes run between the steps. Cancelling it keeps the steps that are done.

        Args:
            progress: called on the event loop's thread before each step.

        Returns:
            Whether lists were trained, how many rows moved, and what the vacuum removed.

        Raises:
            MemoryBudgetExceededError: training or the vacuum would not fit; nothing changed.
            IndexStateError: the system had too little memory; the steps that are done stay.
            SessionError: the session is destroyed.
        """

        async def tell(step: Step) -> None:
            if progress is not None and step.stage in ("train", "migrate", "vacuum"):
                progress(OptimizeProgress(step.stage, step.rows_done, self._runtime.index.counts.rows))

        return await self._aging.run(tell)

    async def get_recent_index(self) -> IndexSide:
        """The recent side: rows that searches find through the graph, or by a scan while they are few.

        Returns:
            The type, counts and ids of the side.

        Raises:
            SessionError: the session is destroyed.
        """
        return await self._runtime.read(Reach.WHOLE, lambda index, _: index.side(False))

    async def get_historical_index(self) -> IndexSide:
        """The historical side: rows on lists.

        Returns:
            The type, counts and ids of the side.

        Raises:
            SessionError: the session is destroyed.
        """
        return await self._runtime.read(Reach.WHOLE, lambda index, _: index.side(True))

    async def get_timestamps(self, ids: Sequence[str] | None = None) -> dict[str, float]:
        """The timestamps of rows.

        Args:
            ids: ids of the rows; those that are not live are left out. None for all rows.

        Returns:
            Seconds since 1970 by id.

        Raises:
            InvalidInputError: `ids` is no sequence of strings.
            SessionError: the session is destroyed.
        """
        wanted = None if ids is None else take_ids(ids)
        return await self._runtime.read(Reach.IDS, lambda index, _: index.timestamps(wanted))

    # ---- rows out

    async def search(
        self,
        query: Any = None,
        k: int = 10,
        options: SearchOptions | Mapping[str, Any] | None = None,
        **fields: Unpack[SearchFields],
    ) -> SearchResults:
        """Finds the k rows nearest to a query, by vector, by words (``text=``) or by both.

        How a search without `ef_search`, `nprobe`, `exact` and `recall_target` goes is measured on the index's own
        rows: see SearchOptions, and `get_stats` for the outcome.

        Args:
            query: dim numbers; or a string, which the session's embedder embeds. ``text=True`` then also searches for
                its words. None with ``text=`` for a search by words alone.
            k: 1 to 10 000; more than the number of rows returns all of them.
            options, **fields: see SearchOptions. The first time in a session that the default threshold drops hits,
                a warning is logged.

        Returns:
            The hits, nearest first, equal distances in the order of their ids; with ``text=``, by falling score. Then
            k hits come whenever k rows match either side.

        Raises:
            InvalidInputError: the query, `k` or an option is refused; or there is a text, and no text index; or a query
                is a string, and there is no embedder.
            EmbeddingError, InvalidConfigError: a query is a string, and as `add_texts`.
            SessionError: the session is destroyed.
        """
        runtime = self._runtime
        if runtime.is_pause_due:
            await runtime.let_others_run()
        runtime.check()
        if isinstance(query, str):
            (query,), fields = await self._texts.asked([query], options, fields)
        found = self._searches.again(query, k, options, fields)
        if found is not None:
            return found
        if (options is not None or "filter" in fields) and has_large_filter(options, fields):
            request = await runtime.compute(self._searches.make, query, k, options, fields)
        else:
            request = self._searches.make(query, k, options, fields)
        found = self._searches.at_once(request)
        return await self._searches.aside(request) if found is None else found

    async def search_batch(
        self,
        queries: Any = None,
        k: int = 10,
        options: SearchOptions | Mapping[str, Any] | None = None,
        **fields: Unpack[SearchFields],
    ) -> list[SearchResults]:
        """Finds the k rows nearest to each of many queries, on all threads.

        Args:
            queries: (n, dim) numbers, or n strings for the session's embedder; None with ``text=`` for searches by
                words alone.
            k, options, **fields: as `search`; ``text=`` is one text for all queries, or a list of n texts.

        Returns:
            Results in the order of the queries.

        Raises:
            InvalidInputError: a query (details ``row``), `k` or an option is refused.
            EmbeddingError, InvalidConfigError: queries are strings, and as `add_texts`.
            SessionError: the session is destroyed.
        """
        runtime = self._runtime
        runtime.check()
        if isinstance(queries, (list, tuple)) and queries and isinstance(queries[0], str):
            queries, fields = await self._texts.asked(list(queries), options, fields)
        request = (
            await runtime.compute(self._searches.batch_request, queries, k, options, fields)
            if has_large_filter(options, fields)
            else self._searches.batch_request(queries, k, options, fields)
        )
        if queries is None and request.text is not None:
            queries = np.empty((len(request.text.queries), 0), dtype=np.float32)
            return await self._searches.batch(queries, request)
        dim = runtime.index.vector_dim
        ready = isinstance(queries, np.ndarray) and queries.dtype == np.float32 and queries.flags.c_contiguous
        matrix = prepare_queries(queries, dim) if ready else await runtime.compute(prepare_queries, queries, dim)
        return await self._searches.batch(matrix, request)

    async def search_stream(
        self,
        query: Any = None,
        *,
        threshold: float | Unset | None = UNSET,
        include_vectors: bool = False,
        filter: Mapping[str, Any] | None = None,
        text: str | Literal[True] | None = None,
        fusion: Fusion | None = None,
        alpha: float | None = None,
        highlight: bool = False,
    ) -> AsyncGenerator[SearchResult, None]:
        """Yields every row that matches the filter and whose score passes the threshold, nearest first.

        The number of hits has no limit. Every row is scored exactly at the start, before the first hit comes. Rows
        that are deleted or replaced before the stream reaches them are left out, as are rows added meanwhile; a vacuum
        makes no difference. To leave a stream before its end on trio, use `contextlib.aclosing`, as for any generator.

        With ``text=``, every row that matches either side, by falling score: the best 100 of each side with the scores
        of `search`, then the others, with the score 0.

        Args:
            query: dim numbers, or a string for the session's embedder; None with ``text=`` for a stream by words alone.
            threshold, include_vectors, filter, text, fusion, alpha, highlight: as in SearchOptions.

        Yields:
            The hits, one after the other.

        Raises:
            InvalidInputError: the query or an option is refused.
            EmbeddingError, InvalidConfigError: the query is a string, and as `add_texts`.
            MemoryBudgetExceededError: the order of the rows, or the columns of the filter, would not fit.
            SessionError: the session is destroyed, or a load replaced what was being read.
        """
        self._runtime.check()
        where = EVERYTHING if filter is None else await _parsed(self._runtime, filter)
        asked: Mapping[str, Any] = {"text": text, "fusion": fusion, "alpha": alpha, "highlight": highlight}
        if isinstance(query, str):
            (query,), asked = await self._texts.asked([query], None, asked)
        shown = {"threshold": threshold, "include_vectors": include_vectors}
        request = self._searches.make(query, 1, None, {**shown, **asked})
        index, next_hits = await self._runtime.cancellable(
            Reach.WHOLE, partial(self._searches.start_of_stream, request, where)
        )
        while hits := await self._runtime.read(Reach.IDS, partial(_next_page, index, next_hits)):
            for hit in hits:
                yield hit

    async def get(self, ids: Sequence[str]) -> list[Row | None]:
        """Reads rows by id.

        Args:
            ids: ids of the rows; an id may occur more than once.

        Returns:
            A Row for each id, in the order of `ids`; None for an id that is not live.

        Raises:
            InvalidInputError: `ids` is no sequence of strings.
            SessionError: the session is destroyed.
        """
        wanted = take_ids(ids)
        return await self._runtime.read(RowsNeed(wanted), lambda index, gathered: index.get(wanted, gathered))

    async def count(self, filter: Mapping[str, Any] | None = None) -> int:
        """Counts the live rows that match a filter.

        Args:
            filter: as in SearchOptions; None counts all live rows.

        Returns:
            The number of rows.

        Raises:
            InvalidInputError: the filter is not understood.
            MemoryBudgetExceededError: the columns of the filter would not fit.
            SessionError: the session is destroyed.
        """
        if filter is None:
            self._runtime.check()
            return self._runtime.here(lambda index: index.live_count)
        where = await _parsed(self._runtime, filter)
        need = FilterNeed(metadata=where.needs_metadata)
        return await self._runtime.read(need, lambda index, _: index.count_where(where))

    async def facets(
        self,
        field: str,
        filter: Mapping[str, Any] | None = None,
        *,
        order: str = "-count",
        limit: int | None = None,
        offset: int = 0,
        search: str | None = None,
    ) -> list[FacetCount]:
        """Counts the distinct values of a metadata field, in pages.

        Args:
            field: a path, its steps joined by dots; a step in double quotes is one key, as in ``'v."a.b"'``. Each
                value of a list counts.
            filter: as in SearchOptions; only rows that match it count.
            order: ``-count``, the most frequent first, ``count``, ``value`` or ``-value``. Values are in the order of
                `scan`; equal counts are in the order of their values.
            limit: most values to return; None for all.
            offset: how many values to leave out first, in this order.
            search: only strings that contain this text, in upper or lower case.

        Returns:
            Each value with the number of rows that have it.

        Raises:
            InvalidInputError: the field, the filter or another argument is not understood.
            MemoryBudgetExceededError: the columns that are read would not fit.
            SessionError: the session is destroyed.
        """
        where = EVERYTHING if filter is None else await _parsed(self._runtime, filter)
        query = make_facet_query(field, where, order, limit, offset, search)
        return RecordList(await self._runtime.read(FilterNeed(), lambda index, _: index.facets(query)))

    async def fields(self, filter: Mapping[str, Any] | None = None) -> list[FieldInfo]:
        """The metadata fields that rows have, each with its types and their least and largest values.

        A row counts once for a field, and once for each type that it has there: a list has its own type and those of
        its values, so counts of types may add up to more than the field's.

        It reads the metadata of each row, 100,000 rows in about a second.

        Args:
            filter: as in SearchOptions; only rows that match it count.

        Returns:
            The fields, in the order of their paths.

        Raises:
            InvalidInputError: the filter is not understood, or there are more than 10,000 fields.
            MemoryBudgetExceededError: the metadata, or the columns of the filter, would not fit.
            SessionError: the session is destroyed.
        """
        where = EVERYTHING if filter is None else await _parsed(self._runtime, filter)
        return RecordList(await self._runtime.read(FilterNeed(), lambda index, _: index.fields(where)))

    async def recall(self, sample: int = 200, *, k: int = 10) -> RecallReport:
        """Measures recall and speed on the index's own rows, over `ef_search` and `nprobe`.

        A sample of rows are the queries, always the same ones, each without itself among its answers. The truth is an
        exact search. `RecallReport.default` is the recall of a search that names no setting. Other searches run on
        meanwhile; ``report.plot("recall.svg")`` draws the report (extra `plot`).

        Args:
            sample: number of queries, 1 to 10 000.
            k: neighbours of each, 1 to 1 000.

        Returns:
            Recall, latency and queries per second of the default and of each setting.

        Raises:
            InvalidInputError: `sample` or `k` is out of range.
            SessionError: the session is destroyed.
        """
        _check_range("sample", sample, 10_000)
        _check_range("k", k, 1_000)

        return await self._runtime.cancellable(
            Reach.WHOLE, lambda index, _, control: measure_recall(index, sample, k, self._recall_target, control)
        )

    async def report(
        self, fields: Iterable[str] = (), *, sample: int = 5_000, recall_sample: int = 200, projection: str = "pca"
    ) -> IndexReport:
        """Makes a page for a browser that shows the index.

        Counts of rows by side, memory by kind, versions with what each save stored, recall against latency, and a map
        of the embeddings in two dimensions. The page is one file without network requests. It holds decrypted data:
        values of the fields that are named here, for the rows of the map, and no CIDs or keys. ``report.write(path)``
        makes a file of it that its owner alone can read. The whole index is loaded, and so are the roots of the newest
        30 versions.

        Args:
            fields: paths of the fields whose values the map shows, at most 20; ``$id`` and ``$timestamp`` are the row's
                own. Each can colour the map, at first the first one; the page's search looks into all of them.
            sample: most rows of the map, chosen at random, always the same ones: 0 (no map) to 20,000. Fewer are drawn
                where their vectors would take more than 64 MB.
            recall_sample: queries of the measurement of recall, 0 (none) to 10,000; see `recall`.
            projection: ``pca``, or ``umap`` (extra `umap`), which runs in a process of its own and takes up to
                minutes. Fewer than 16 rows are drawn by PCA.

        Returns:
            The page.

        Raises:
            InvalidInputError: an argument is not understood or out of range.
            InvalidConfigError: the projection is ``umap``, and umap-learn is not installed, or fails.
            MemoryBudgetExceededError: the whole index would not fit.
            IntegrityError, NotFoundError, DecryptionError, StorageError, S5Error: versions or parts cannot be read.
            SessionError: the session is destroyed.
        """
        return await _report(self, fields, sample, recall_sample, projection)

    async def scan(
        self, filter: Mapping[str, Any] | None = None, *, order: str | None = None
    ) -> AsyncGenerator[Row, None]:
        """Yields the live rows that match a filter, in the order of insertion or of a field.

        The order of insertion is that of the timestamps, equal ones by id: rows that are added without a timestamp
        get one after the other. Saves, vacuums and loads make no difference. A replaced row counts as inserted anew;
        updates of its metadata or vector leave its place. `scan_page` returns pages, and cursors that can be kept.

        Rows that are deleted or replaced before the scan reaches them are left out, as are rows added meanwhile; a
        vacuum makes no difference. With `order` the filter is applied at the start, without it when a row is reached.
        To leave a scan before its end on trio, use `contextlib.aclosing`, as for any generator.

        Args:
            filter: as in SearchOptions; None for all rows.
            order: a path, with a minus in front for descending; a step in double quotes is one key, as in
                ``'v."a.b"'``. ``$id`` and ``$timestamp`` are the row's own. Null comes first, then bools, numbers,
                strings, and last rows that have no value or several values there.

        Yields:
            The rows, one after the other.

        Raises:
            InvalidInputError: the filter or the order is not understood.
            MemoryBudgetExceededError: the columns that are read would not fit.
            SessionError: the session is destroyed, or a load replaced what was being scanned.
        """
        where = None if filter is None else await _parsed(self._runtime, filter)
        index, next_rows = await self._runtime.read(Reach.WHOLE, partial(_start_of_scan, where, order))
        while rows := await self._runtime.read(Reach.IDS, partial(_next_page, index, next_rows)):
            for row in rows:
                yield row

    async def to_arrow(self, filter: Mapping[str, Any] | None = None) -> Any:
        """All rows, or those that match a filter, as a pyarrow Table.

        Args:
            filter: as in SearchOptions; None for all rows.

        Returns:
            A table with the columns id, vector, timestamp, expires_at if a row expires, and one for each field of the
            metadata.

        Raises:
            InvalidConfigError: pyarrow, which the extra `arrow` brings, is not installed.
            InvalidInputError, MemoryBudgetExceededError, SessionError: as `scan`.
        """
        load_pyarrow()
        return await self._runtime.compute(rows_table, [row async for row in self.scan(filter)])

    async def to_pandas(self, filter: Mapping[str, Any] | None = None) -> Any:
        """All rows, or those that match a filter, as a pandas DataFrame with the columns of `to_arrow`.

        Args:
            filter: as in SearchOptions; None for all rows.

        Returns:
            The DataFrame.

        Raises:
            InvalidConfigError: pyarrow or pandas is not installed.
            InvalidInputError, MemoryBudgetExceededError, SessionError: as `scan`.
        """
        return await self._runtime.compute(data_frame, await self.to_arrow(filter))

    async def scan_page(
        self, filter: Mapping[str, Any] | None = None, *, limit: int = 100, cursor: str | None = None
    ) -> ScanPage:
        """Reads the next live rows that match a filter, in the order of insertion: a `scan` that can go on elsewhere.

        The cursor of a page is a string to keep. It names a place, not a row: it stays good when rows are deleted,
        after saves and vacuums, and in any session that holds the same rows. Rows that were added since come at the
        end. It holds the timestamp and the id of a row, in clear.

        Args:
            filter: as in SearchOptions; None for all rows. Give the same with each cursor.
            limit: most rows of a page, 1 to 10 000.
            cursor: the cursor of the page before; None for the first rows.

        Returns:
            The rows, the cursor after them, and whether there are more: pages end where ``has_more`` is False, as the
            last one has a cursor, too.

        Raises:
            InvalidInputError: the filter, `limit` or `cursor` is refused.
            MemoryBudgetExceededError: the columns of the filter would not fit.
            SessionError: the session is destroyed.
        """
        where = EVERYTHING if filter is None else await _parsed(self._runtime, filter)
        _check_range("limit", limit, PAGE_ROWS_MAX)
        place = None if cursor is None else decode_place(cursor)
        return await self._runtime.read(Reach.WHOLE, lambda index, _: index.scan_page(place, limit, where))

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
            on_conflict: what to do when another version became the newest since this content was loaded: ``error``
                stores this version but does not make it the newest, ``overwrite`` makes it the newest.
            verify_stored: check that the store still has every part that is reused, and store lost parts again.
            progress: called after every part.

        Returns:
            The version's CID, once every byte of it is stored and the pointer has moved.

        Raises:
            InvalidInputError: an argument is not one of its values.
            ConflictError: another session saved in between; details has ``cid``, ``head_cid`` and ``base_cid``.
            StorageError, S5Error, IntegrityError: the store failed or sent wrong bytes; the old version is still the
                newest.
            SessionError: the session is destroyed.
        """
        if on_conflict not in ("error", "overwrite"):
            raise InvalidInputError(f"on_conflict must be error or overwrite, got {shown(on_conflict)}")
        verify_stored = check_bool("verify_stored", verify_stored)
        chosen = cast(Literal["error", "overwrite"], on_conflict)
        return await self._runtime.exclusive(partial(self._workspace.save, chosen, verify_stored, progress))

    async def load_user_vectors(
        self,
        cid: str | None = None,
        options: LoadOptions | Mapping[str, Any] | None = None,
        **fields: Unpack[LoadFields],
    ) -> None:
        """Replaces the session's rows by a saved version: all or nothing.

        Args:
            cid: the version, in any text form of its CID, or a share CID; None for the newest version. A version that
                was opened by a share CID is saved as the user's own index.
            options, **fields: see LoadOptions.

        Raises:
            NotFoundError: no version was saved under this phrase and index name, or the store lacks an object.
            ConflictError: there are unsaved changes and `discard_unsaved` is not set.
            DecryptionError: none of the user's keys opens the version.
            IntegrityError: stored bytes do not match their hash, or are damaged.
            InvalidInputError: `cid` is no CID, or not the CID of a version.
            InvalidConfigError: `metric`, `M`, `ef_construction` or `chunk_size` was passed to `create`, and the version
                has another; or its texts were embedded by another embedder. The session stays as it was.
            MemoryBudgetExceededError: the version would not fit.
            StorageError, S5Error: the store failed.
            SessionError: the session is destroyed.
        """
        chosen = make_options(LoadOptions, options, fields)
        if cid is not None and not isinstance(cid, str):
            raise InvalidInputError(f"a CID must be a string, got {type(cid).__name__}")
        await self._runtime.exclusive(partial(self._workspace.load, cid, chosen))

    async def warm(self, progress: ProgressCallback | None = None) -> None:
        """Fetches the parts that a lazy load left in the store: from then on no search waits for a network.

        It does nothing where all parts are in memory. Searches run on meanwhile.

        Args:
            progress: called after every part.

        Raises:
            MemoryBudgetExceededError: the whole index would not fit; the session stays as it was.
            IntegrityError, NotFoundError, StorageError, S5Error: as `load_user_vectors`.
            SessionError: the session is destroyed.
        """
        self._runtime.check()
        if not self._runtime.index.is_whole:
            await self._runtime.exclusive(partial(self._workspace.load_rest, progress))

    async def is_newest(self) -> bool:
        """Whether the version that the session is based on is the newest one: whether a load would bring nothing new.

        It asks the store for the index's pointer alone, however long the history is. Unsaved changes do not count.

        Returns:
            False where another session has saved since the last load or save of this one; True also where no version
            was saved yet.

        Raises:
            IntegrityError: the pointer is damaged, or the store rolled it back.
            StorageError, S5Error: the store failed.
            SessionError: the session is destroyed.
        """
        return await self._runtime.exclusive(self._workspace.is_newest)

    async def history(self) -> list[VersionInfo]:
        """The versions of this index, newest first, each once; `VersionInfo.head` marks the newest one.

        A refused version comes after the version that it lost against.

        Returns:
            The versions.

        Raises:
            IntegrityError: the record is damaged; the next save repairs it.
            StorageError, S5Error: the store failed.
            SessionError: the session is destroyed.
        """

        return _as_infos(*await self._runtime.exclusive(self._workspace.history))

    async def prune_history(self, keep: int, dry_run: bool = True) -> PruneReport:
        """Forgets all but the newest versions, and deletes the stored objects that no kept version uses.

        This is how deleted rows leave old versions: `vacuum`, `save_to_s5`, then ``prune_history(1, dry_run=False)``.
        No other session may save this index meanwhile. Shares of the forgotten versions stop working, too.

        Args:
            keep: how many versions stay, at least 1.
            dry_run: True only reports; False deletes. Objects that a store cannot or will not delete stay there.

        Returns:
            The versions that go, or would go, and their objects.

        Raises:
            InvalidInputError: `keep` is no integer from 1 to 2**63 - 1.
            IntegrityError, NotFoundError: the history or a kept version is damaged; nothing was deleted.
            StorageError, S5Error: the store failed; another `prune_history` finishes the work.
            SessionError: the session is destroyed.
        """
        _check_range("keep", keep, _KEEP_MAX)
        dry_run = check_bool("dry_run", dry_run)
        return _as_report(await self._runtime.exclusive(partial(self._workspace.prune, keep, dry_run)))

    async def share(self, cid: str) -> str:
        """Makes a CID that opens one version, and no other, without the phrase.

        Anybody who has it can read that version for good: treat it as a secret. Only the version's list of parts is
        stored again. A version is refused while it holds bytes of deleted, replaced or expired rows, or of replaced
        metadata: call `vacuum` and `save_to_s5`, and share the new CID.

        Args:
            cid: the version.

        Returns:
            The share CID, ``uXV6m…``: `load_user_vectors` opens it under any phrase, and S5.js as an encrypted
            directory. It is the same each time.

        Raises:
            InvalidInputError: `cid` is no CID, is a share CID, is not the CID of a version, or its version is stored in
                clear.
            ConflictError: the version holds more than its live rows; details has ``superseded_bytes`` and
                ``expired_rows``.
            NotFoundError, DecryptionError, IntegrityError, StorageError, S5Error: as `load_user_vectors`.
            SessionError: the session is destroyed.
        """
        if not isinstance(cid, str):
            raise InvalidInputError(f"a CID must be a string, got {type(cid).__name__}")

        return (await self._runtime.exclusive(partial(self._workspace.share, cid))).reveal()

    async def list_indexes(self) -> list[str]:
        """The names of the user's saved indexes.

        Returns:
            The names, sorted.

        Raises:
            IntegrityError: the record is damaged; the next save repairs it.
            StorageError, S5Error: the store failed.
            SessionError: the session is destroyed.
        """

        return await self._runtime.exclusive(self._workspace.indexes)

    async def verify(self, cid: str | None = None, *, progress: ProgressCallback | None = None) -> VerifyReport:
        """Reads every object of a version and checks all bytes. The session's rows stay as they are.

        Args:
            cid: the version; None for the newest version.
            progress: called after every part.

        Returns:
            The version's CID, and how many parts, bytes and rows it has.

        Raises:
            IntegrityError: a part is damaged or missing; ``details["bad"]`` lists every such part.
            NotFoundError, InvalidInputError, DecryptionError, StorageError, S5Error: as `load_user_vectors`; so a
                version whose texts another release indexed is refused, once all its parts were found to be whole.
            SessionError: the session is destroyed.
        """

        found = await self._runtime.exclusive(partial(self._workspace.verify, cid, progress))
        return VerifyReport(cid=str(found.cid), parts=found.parts, bytes=found.bytes, rows=found.rows)

    async def get_stats(self) -> SessionStats:
        """Measured state of the session; it takes O(1) time.

        Returns:
            Counts of rows, memory, searches by plan, and how a search without settings goes.

        Raises:
            SessionError: the session is destroyed.
        """
        self._runtime.check()
        return self._runtime.here(self._stats)


@asynccontextmanager
async def _destroyed_on_error(session: VectorDBSession) -> AsyncGenerator[None, None]:
    try:
        yield
    except BaseException:
        with anyio.CancelScope(shield=True):
            await session.destroy()
        raise


async def _opened_share(cls: type[_S], cid: str, config: Callable[[], VectorDBConfig], options: LoadFields) -> _S:
    check_share_cid(cid)
    session = cls(config())
    async with _destroyed_on_error(session):
        await session.load_user_vectors(cid, **options)
    return session


class Creation(Coroutine[Any, Any, _S], Generic[_S]):
    """The awaitable that `create` returns: await it, or enter it with ``async with``."""

    def __init__(self, creation: Coroutine[Any, Any, _S]) -> None:
        self._creation = creation
        self._session: _S | None = None

    def __await__(self) -> Generator[Any, Any, _S]:
        return self._creation.__await__()

    def send(self, value: Any) -> Any:
        """Passes the call on to the coroutine."""
        return self._creation.send(value)

    def throw(self, *error: Any) -> Any:
        """Passes the call on to the coroutine."""
        return self._creation.throw(*error)

    def close(self) -> None:
        """Passes the call on to the coroutine."""
        self._creation.close()

    async def __aenter__(self) -> _S:
        self._session = await self._creation
        return await self._session.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.__aexit__(kind, error, trace)


async def _parsed(runtime: Runtime, filter: Mapping[str, Any]) -> Filter:
    return await runtime.compute(parse_filter, filter) if is_large(filter) else parse_filter(filter)


def _stats_of(workspace: Workspace, index: AnyIndex) -> SessionStats:
    native, expired = index.stats()
    kinds = {
        name.removeprefix("bytes_"): value
        for name, value in native._asdict().items()
        if name.startswith("bytes_") and name != "bytes_total"
    }
    kinds["metadata"] = index.metadata_bytes
    kinds["text"] = index.text_bytes
    kinds["columns"] = index.column_bytes
    kinds["cache"] = index.cache_bytes
    return SessionStats(
        vector_count=native.live - expired,
        memory_usage_mb=sum(kinds.values()) / 1e6,
        index_type=_INDEX_TYPES[native.graph_rows > 0, native.historical > 0],
        hnsw_vector_count=native.live - native.historical - native.vectorless if native.graph_rows else 0,
        ivf_vector_count=native.historical,
        deleted_count=native.rows - native.live + expired,
        without_vector_count=native.vectorless,
        memory=TIERS[native.memory],
        memory_bytes=kinds,
        plans=dict(index.plans_used),
        recall_calibration=index.recall_calibration,
        default_search=index.default_search,
        dirty=workspace.is_dirty,
        last_cid=workspace.last_cid,
        superseded_bytes=workspace.superseded_bytes,
        embedder=index.params.embedder,
    )


async def _report(session: VectorDBSession, *asked: object) -> IndexReport:
    from fabstir_vectordb.report.make import make_report, make_request

    request = make_request(*asked)
    target = session._recall_target
    return await make_report(session._runtime, session._workspace, request, session._stats, target)


def _as_report(pruned: PrunedHistory) -> PruneReport:
    return PruneReport(
        versions=_as_infos(pruned.versions),
        blobs=pruned.blobs,
        bytes=pruned.bytes,
        blobs_deleted=pruned.blobs_deleted,
    )


def _as_infos(entries: Iterable[HistoryEntry], head: bytes | None = None) -> list[VersionInfo]:
    return RecordList(
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
    )


def _start_of_scan(
    where: Filter | None, order: str | None, index: Index, gathered: Gathered
) -> tuple[Index, Callable[[], list[Row]]]:
    """The index of a scan, and a function that returns its next rows, none at the end."""
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


def _next_page(begun: Index, page: Callable[[], list[_T]], index: AnyIndex, gathered: Gathered) -> list[_T]:
    """The next page of a scan or stream.

    Raises:
        SessionError: a load replaced the index in which it began.
    """
    if index is not begun:
        raise SessionError("a load replaced the rows that were being read: begin again")
    return page()


def _clock_us(clock: Callable[[], float] | None) -> int:
    """Microseconds since 1970 by a config's clock, or by the system's.

    It is no method, so that an index, which holds it, does not keep its session alive.
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
    said = (
        f"it returned {shown(now)}"
        if cause is None or now is not None
        else f"it raised {type(cause).__name__}: {cause}"
    )
    raise InvalidConfigError(
        f"clock must return seconds since 1970, from the year 1 to 9999; {said}", details={"field": "clock"}
    ) from cause


_INDEX_TYPES: Final[dict[tuple[bool, bool], Literal["flat", "hnsw", "ivf", "hybrid"]]] = {
    (False, False): "flat",
    (True, False): "hnsw",
    (False, True): "ivf",
    (True, True): "hybrid",
}


def _check_range(name: str, value: int, most: int) -> None:
    """Raises InvalidInputError unless a number is an integer from 1 to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise InvalidInputError(
            f"{name} must be an integer from 1 to {most}, got {shown(value)}", details={"limit": most}
        )


def _dated(rows: Iterable[VectorInput | Row | Mapping[str, Any]], timestamps: Mapping[str, float]) -> list[VectorInput]:
    """Rows as VectorInputs; `timestamps` override their own."""
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

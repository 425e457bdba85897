"""The same verbs without ``await``: each runs the body of its namesake on the caller's thread (see `blocking`).

Reads run on the caller's thread. Changes, saves and loads run on an event loop in a thread of the session, which starts
with the first of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, NoReturn, Self, SupportsIndex, Unpack

from fabstir_vectordb.arrow import TableColumns
from fabstir_vectordb.blocking import BlockingRuntime, iterate_here, run_here
from fabstir_vectordb.config import (
    UNSET,
    ConfigFields,
    Given,
    ShareFields,
    Unset,
    VectorDBConfig,
    config_of,
    share_config,
)
from fabstir_vectordb.embedders.base import EmbedProgress
from fabstir_vectordb.params import LoadFields, LoadOptions, SearchFields, SearchOptions
from fabstir_vectordb.report import IndexReport
from fabstir_vectordb.s5.cid import check_share_cid
from fabstir_vectordb.session import VectorDBSession as AsyncSession
from fabstir_vectordb.text.fusion import Fusion
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

__all__ = ["VectorDBSession"]


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
        self._verbs = AsyncSession(config, BlockingRuntime)
        if config.tracing is not False:
            trace_verbs(self, Tracing(config))

    @classmethod
    def create(
        cls, config: VectorDBConfig | Mapping[str, Any] | None = None, /, **settings: Unpack[ConfigFields]
    ) -> Self:
        """Makes a session. It checks the settings and contacts no store.

        Args:
            config: a VectorDBConfig, or a mapping of settings.
            **settings: single settings, which override those of `config`.

        Returns:
            An empty session.

        Raises:
            InvalidConfigError: a setting is missing, unknown or out of range.
        """
        given = Given(config, settings)
        del config, settings  # what fails from here on has no bare secret in its traceback
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
    ) -> Self:
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
        given = Given(config, settings)
        del config, settings
        session = cls(config_of(given))
        try:
            run_here(session._verbs._fill(recent, historical, timestamps))
        except BaseException:
            session.destroy()
            raise
        return session

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
    ) -> Self:
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
        check_share_cid(cid)
        session = cls(share_config(s5_portal, settings))
        try:
            session.load_user_vectors(cid, lazy_load=lazy_load, become_whole=become_whole)
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
        return repr(self._verbs) if hasattr(self, "_verbs") else f"<{type(self).__name__} that could not be made>"

    def _repr_html_(self) -> str | None:
        return self._verbs._repr_html_()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        self._verbs.__reduce_ex__(protocol)

    def destroy(self) -> None:
        """Ends the session: frees native memory, wipes keys as far as CPython allows, closes the store.

        It waits for a running change, save or load. A second `destroy` does nothing; every other later call raises
        SessionError. In a forked child process it only wipes the child's copy of the keys.

        Raises:
            SessionError: the session is in use on another event loop.
        """
        run_here(self._verbs.destroy())

    # ---- changes

    def add_vectors(self, items: Iterable[VectorInput | Mapping[str, Any]], *, on_conflict: str = "error") -> AddResult:
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
        return run_here(self._verbs.add_vectors(items, on_conflict=on_conflict))

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
        options = {"expires_at": expires_at, "on_conflict": on_conflict}
        return run_here(self._verbs.add_batch(ids, vectors, metadata, timestamps, **options))

    def add_texts(
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
        options = {"expires_at": expires_at, "on_conflict": on_conflict, "batch_size": batch_size}
        return run_here(self._verbs.add_texts(texts, ids, metadata, timestamps, progress=progress, **options))

    def add_table(self, table: Any, columns: TableColumns | None = None, *, on_conflict: str = "error") -> AddResult:
        """Adds the rows of a table. Vectors are read where Arrow has them, without an object for each row.

        Rows are added in pieces of at most 131,072, from files of 16,384. Each piece is added whole or not at all; an
        error leaves the pieces before it in the session.

        Args:
            table: an object with the Arrow PyCapsule interface (of pyarrow, polars, pandas, DuckDB), or the path of a
                Parquet file, an Arrow file, or a folder of Parquet files.
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
        return run_here(self._verbs.add_table(table, columns, on_conflict=on_conflict))

    def update_metadata(
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
        run_here(self._verbs.update_metadata(id, metadata, merge=merge, remove=remove))

    def update_by_metadata(
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
        return run_here(self._verbs.update_by_metadata(filter, metadata, merge=merge, remove=remove))

    def update_vector(self, id: str, vector: Any) -> None:
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
        run_here(self._verbs.update_vector(id, vector))

    def set_schema(self, schema: Mapping[str, Any] | None) -> None:
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
        run_here(self._verbs.set_schema(schema))

    def set_text_fields(
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
            InvalidInputError, InvalidConfigError: a path or a setting is refused, the language is unknown, or the
                extra ``text`` is not installed; the old text index stays.
            MemoryBudgetExceededError: the text index would not fit; the old one stays.
            SessionError: the session is destroyed.
        """
        run_here(self._verbs.set_text_fields(fields, language=language, stop_words=stop_words, k1=k1, b=b))

    def delete_vector(self, id: str, *, missing_ok: bool = False) -> DeleteResult:
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
        return run_here(self._verbs.delete_vector(id, missing_ok=missing_ok))

    def delete(self, ids: Iterable[str], *, missing_ok: bool = False) -> DeleteResult:
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
        return run_here(self._verbs.delete(ids, missing_ok=missing_ok))

    def clear(self) -> int:
        """Deletes all rows, at once and for good: no vacuum is needed. The schema stays.

        The next row with a vector may have any dimension, and texts another embedder. Saved versions stay as they are.

        Returns:
            How many rows there were.

        Raises:
            SessionError: the session is destroyed.
        """
        return run_here(self._verbs.clear())

    def delete_by_metadata(self, filter: Mapping[str, Any]) -> DeleteResult:
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
        return run_here(self._verbs.delete_by_metadata(filter))

    def vacuum(self) -> VacuumStats:
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
        return run_here(self._verbs.vacuum())

    def optimize(self, progress: Callable[[OptimizeProgress], None] | None = None) -> OptimizeResult:
        """Moves old rows to lists and vacuums.

        Rows older than the config's `recent_window_s` move from the recent side to lists. The lists are trained first
        where there are none, or where the rows have changed much. Then a vacuum removes deleted rows, takes the moved
        rows out of the graph, and stores the rows of a list side by side. Searches run on, except during the vacuum.
        Other changes run between the steps. Cancelling it keeps the steps that are done.

        Args:
            progress: called on this thread before each step.

        Returns:
            Whether lists were trained, how many rows moved, and what the vacuum removed.

        Raises:
            MemoryBudgetExceededError: training or the vacuum would not fit; nothing changed.
            IndexStateError: the system had too little memory; the steps that are done stay.
            SessionError: the session is destroyed.
        """
        return run_here(self._verbs.optimize(progress))

    def get_recent_index(self) -> IndexSide:
        """The recent side: rows that searches find through the graph, or by a scan while they are few.

        Returns:
            The type, counts and ids of the side.

        Raises:
            SessionError: the session is destroyed.
        """
        return run_here(self._verbs.get_recent_index())

    def get_historical_index(self) -> IndexSide:
        """The historical side: rows on lists.

        Returns:
            The type, counts and ids of the side.

        Raises:
            SessionError: the session is destroyed.
        """
        return run_here(self._verbs.get_historical_index())

    def get_timestamps(self, ids: Sequence[str] | None = None) -> dict[str, float]:
        """The timestamps of rows.

        Args:
            ids: ids of the rows; those that are not live are left out. None for all rows.

        Returns:
            Seconds since 1970 by id.

        Raises:
            InvalidInputError: `ids` is no sequence of strings.
            SessionError: the session is destroyed.
        """
        return run_here(self._verbs.get_timestamps(ids))

    # ---- reads

    def search(
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
        verbs = self._verbs
        verbs._runtime.check()
        if isinstance(query, str):
            return run_here(verbs.search(query, k, options, **fields))
        searches = verbs._searches
        found = searches.again(query, k, options, fields)
        if found is not None:
            return found
        request = searches.make(query, k, options, fields)
        found = searches.at_once(request)
        return run_here(searches.aside(request)) if found is None else found

    def search_batch(
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
        return run_here(self._verbs.search_batch(queries, k, options, **fields))

    def search_stream(
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
    ) -> Iterator[SearchResult]:
        """Yields every row that matches the filter and whose score passes the threshold, nearest first.

        The number of hits has no limit. Every row is scored exactly at the start, before the first hit comes. Rows
        that are deleted or replaced before the stream reaches them are left out, as are rows added meanwhile; a vacuum
        makes no difference.

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
        hits = self._verbs.search_stream(
            query,
            threshold=threshold,
            include_vectors=include_vectors,
            filter=filter,
            text=text,
            fusion=fusion,
            alpha=alpha,
            highlight=highlight,
        )
        return iterate_here(hits)

    def get(self, ids: Sequence[str]) -> list[Row | None]:
        """Reads rows by id.

        Args:
            ids: ids of the rows; an id may occur more than once.

        Returns:
            A Row for each id, in the order of `ids`; None for an id that is not live.

        Raises:
            InvalidInputError: `ids` is no sequence of strings.
            SessionError: the session is destroyed.
        """
        return run_here(self._verbs.get(ids))

    def count(self, filter: Mapping[str, Any] | None = None) -> int:
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
        return run_here(self._verbs.count(filter))

    def facets(
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
        verb = self._verbs.facets(field, filter, order=order, limit=limit, offset=offset, search=search)
        return run_here(verb)

    def fields(self, filter: Mapping[str, Any] | None = None) -> list[FieldInfo]:
        """The metadata fields that rows have, each with its types and their least and largest values.

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
        return run_here(self._verbs.fields(filter))

    def recall(self, sample: int = 200, *, k: int = 10) -> RecallReport:
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
        return run_here(self._verbs.recall(sample, k=k))

    def report(
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
        return run_here(self._verbs.report(fields, sample=sample, recall_sample=recall_sample, projection=projection))

    def scan(self, filter: Mapping[str, Any] | None = None, *, order: str | None = None) -> Iterator[Row]:
        """Yields the live rows that match a filter, in the order of insertion or of a field.

        The order of insertion is that of the timestamps, equal ones by id: rows that are added without a timestamp
        get one after the other. Saves, vacuums and loads make no difference. A replaced row counts as inserted anew;
        updates of its metadata or vector leave its place. `scan_page` returns pages, and cursors that can be kept.

        Rows that are deleted or replaced before the scan reaches them are left out, as are rows added meanwhile; a
        vacuum makes no difference. With `order` the filter is applied at the start, without it when a row is reached.

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
        return iterate_here(self._verbs.scan(filter, order=order))

    def get_stats(self) -> SessionStats:
        """Measured state of the session; it takes O(1) time.

        Returns:
            Counts of rows, memory, searches by plan, and how a search without settings goes.

        Raises:
            SessionError: the session is destroyed.
        """
        return run_here(self._verbs.get_stats())

    def to_arrow(self, filter: Mapping[str, Any] | None = None) -> Any:
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
        return run_here(self._verbs.to_arrow(filter))

    def to_pandas(self, filter: Mapping[str, Any] | None = None) -> Any:
        """All rows, or those that match a filter, as a pandas DataFrame with the columns of `to_arrow`.

        Args:
            filter: as in SearchOptions; None for all rows.

        Returns:
            The DataFrame.

        Raises:
            InvalidConfigError: pyarrow or pandas is not installed.
            InvalidInputError, MemoryBudgetExceededError, SessionError: as `scan`.
        """
        return run_here(self._verbs.to_pandas(filter))

    def scan_page(
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
            The rows, the cursor after them, and whether there are more.

        Raises:
            InvalidInputError: the filter, `limit` or `cursor` is refused.
            MemoryBudgetExceededError: the columns of the filter would not fit.
            SessionError: the session is destroyed.
        """
        return run_here(self._verbs.scan_page(filter, limit=limit, cursor=cursor))

    # ---- versions

    def save_to_s5(
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
            progress: called after every part, on another thread.

        Returns:
            The version's CID, once every byte of it is stored and the pointer has moved.

        Raises:
            InvalidInputError: an argument is not one of its values.
            ConflictError: another session saved in between; details has ``cid``, ``head_cid`` and ``base_cid``.
            StorageError, S5Error, IntegrityError: the store failed or sent wrong bytes; the old version is still the
                newest.
            SessionError: the session is destroyed.
        """
        return run_here(self._verbs.save_to_s5(on_conflict=on_conflict, verify_stored=verify_stored, progress=progress))

    def load_user_vectors(
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
        run_here(self._verbs.load_user_vectors(cid, options, **fields))

    def warm(self, progress: ProgressCallback | None = None) -> None:
        """Fetches the parts that a lazy load left in the store: from then on no search waits for a network.

        It does nothing where all parts are in memory. Searches run on meanwhile.

        Args:
            progress: called after every part, on another thread.

        Raises:
            MemoryBudgetExceededError: the whole index would not fit; the session stays as it was.
            IntegrityError, NotFoundError, StorageError, S5Error: as `load_user_vectors`.
            SessionError: the session is destroyed.
        """
        run_here(self._verbs.warm(progress))

    def is_newest(self) -> bool:
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
        return run_here(self._verbs.is_newest())

    def history(self) -> list[VersionInfo]:
        """The versions of this index, newest first, each once; `VersionInfo.head` marks the newest one.

        A refused version comes after the version that it lost against.

        Returns:
            The versions.

        Raises:
            IntegrityError: the record is damaged; the next save repairs it.
            StorageError, S5Error: the store failed.
            SessionError: the session is destroyed.
        """
        return run_here(self._verbs.history())

    def prune_history(self, keep: int, dry_run: bool = True) -> PruneReport:
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
        return run_here(self._verbs.prune_history(keep, dry_run))

    def share(self, cid: str) -> str:
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
        return run_here(self._verbs.share(cid))

    def list_indexes(self) -> list[str]:
        """The names of the user's saved indexes.

        Returns:
            The names, sorted.

        Raises:
            IntegrityError: the record is damaged; the next save repairs it.
            StorageError, S5Error: the store failed.
            SessionError: the session is destroyed.
        """
        return run_here(self._verbs.list_indexes())

    def verify(self, cid: str | None = None, *, progress: ProgressCallback | None = None) -> VerifyReport:
        """Reads every object of a version and checks all bytes. The session's rows stay as they are.

        Args:
            cid: the version; None for the newest version.
            progress: called after every part, on another thread.

        Returns:
            The version's CID, and how many parts, bytes and rows it has.

        Raises:
            IntegrityError: a part is damaged or missing; ``details["bad"]`` lists every such part.
            NotFoundError, InvalidInputError, DecryptionError, StorageError, S5Error: as `load_user_vectors`.
            SessionError: the session is destroyed.
        """
        return run_here(self._verbs.verify(cid, progress=progress))

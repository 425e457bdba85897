"""Collection: the verbs of a session over many shards, each a few readable lines.

A collection holds the root of its shards in memory, as one snapshot. Each call takes the snapshot of its beginning and
asks shards through the engine: so it sees all shards at one version, whatever others save meanwhile. `refresh` and the
changes of this collection take a new snapshot.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Any, Final, NoReturn, Self, SupportsIndex, Unpack

import anyio
import anyio.to_thread
import numpy as np

from fabstir_vectordb.arrow import data_frame, load_pyarrow
from fabstir_vectordb.collections import tasks
from fabstir_vectordb.collections.change import Changes
from fabstir_vectordb.collections.engines import Engine, OwnedEngine
from fabstir_vectordb.collections.fanout import Answers, Job, run_all
from fabstir_vectordb.collections.fingerprints import IdMap
from fabstir_vectordb.collections.keys import ShardKeys
from fabstir_vectordb.collections.merging import merged_facets, merged_fields
from fabstir_vectordb.collections.open_shards import close_shards
from fabstir_vectordb.collections.paging import Page, merged_pages
from fabstir_vectordb.collections.prune import prune_collection
from fabstir_vectordb.collections.records import Recipe, Shard
from fabstir_vectordb.collections.root import Snapshot, moved_root, read_root, without_texts
from fabstir_vectordb.collections.searches import Searches
from fabstir_vectordb.collections.shards import verify_shard
from fabstir_vectordb.collections.types import (
    CollectionReport,
    CollectionStats,
    ProgressCallback,
    ShardedResults,
    ShardInfo,
    Teller,
)
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
from fabstir_vectordb.errors import ConflictError, InvalidConfigError, InvalidInputError, SessionError, VectorDBError
from fabstir_vectordb.index.cursor import PAGE_ROWS_MAX, Place, decode_place, encode_place
from fabstir_vectordb.index.incoming import prepare_queries, prepare_query, take_ids
from fabstir_vectordb.metadata.census import make_facet_query
from fabstir_vectordb.metadata.filter_parse import EVERYTHING, parse_filter
from fabstir_vectordb.metadata.values import shown
from fabstir_vectordb.params import SearchFields, SearchOptions, check_bool
from fabstir_vectordb.runtime import READ_ONLY
from fabstir_vectordb.s5.cid import ShareCid, parse_cid
from fabstir_vectordb.session import VectorDBSession
from fabstir_vectordb.tables import rows_table
from fabstir_vectordb.text.fusion import Fusion
from fabstir_vectordb.types import FacetCount, FieldInfo, PruneReport, Row, ScanPage, SearchResult, VersionInfo

__all__ = ["Collection"]

logger = logging.getLogger(__name__)

#: Tasks of a read that are with the engine at a time.
_READS_IN_FLIGHT: Final = 256
_SCAN_ROWS: Final = 512


class Collection:
    """Many shards that are searched and changed as one index; made by `open` or `open_share`.

    Use it as an async context manager, or call `close` yourself.

    Example:
        >>> async with await Collection.open(
        ...     s5_portal="file:///tmp/vectors", user_seed_phrase="a secret", session_id="user-123", index_name="big"
        ... ) as collection:
        ...     hits = await collection.search([1.0, 0.1], k=10)
    """

    def __init__(self, session: VectorDBSession, recipe: Recipe, engine: OwnedEngine, defaults: VectorDBConfig) -> None:
        self._session = session
        self._recipe = recipe
        self._engine = engine
        self._defaults = defaults.without_secrets()
        self._keys: ShardKeys | None = None
        self._share: str | None = None
        self._snapshot: Snapshot
        self._cid: str | None = None
        self._turn: anyio.Lock = anyio.Lock()
        self._is_open = True
        self._ids = IdMap(recipe, self._defaults.index_name)
        self._searches = Searches(self._ask, session._runtime, self._defaults)

    @classmethod
    async def open(
        cls,
        config: VectorDBConfig | Mapping[str, Any] | None = None,
        /,
        *,
        engine: Engine | None = None,
        cid: str | None = None,
        lazy_load: bool = True,
        become_whole: bool = True,
        **settings: Unpack[ConfigFields],
    ) -> Self:
        """Opens a collection of one's own, to read and to change it. Shards are opened when they are needed.

        Args:
            config, **settings: as `VectorDBSession.create`; `index_name` is the collection's. `memory_budget_mb` holds
                for all shards that one process has open.
            engine: where shards are searched; None for threads of this process.
            cid: CID of a version of the root; None for the newest.
            lazy_load, become_whole: how shards are opened, as in LoadOptions.

        Returns:
            The collection.

        Raises:
            InvalidConfigError: a setting is refused, or shards cannot be opened by it; or settings of texts are others
                than those of the collection.
            InvalidInputError: `cid` is a share CID, or no CID.
            NotFoundError: no version was saved under this phrase and index name.
            IntegrityError: the index is no collection, or its root is damaged.
            VectorDBError: as `VectorDBSession.load_user_vectors`.
        """
        config = config_of(Given(config, settings))
        recipe = Recipe.of(config, lazy_load=lazy_load, become_whole=become_whole)
        if cid is not None and isinstance(parse_cid(cid), ShareCid):
            raise InvalidInputError("this is a share CID: Collection.open_share opens it, to read")
        owned = OwnedEngine(engine)
        session = await VectorDBSession.create(without_texts(config))
        self = cls(session, recipe, owned, config)
        async with _closed_on_error(self):
            await session.load_user_vectors(cid, lazy_load=False)
            self._keys = await ShardKeys.of(config)
            await self._take_snapshot()
            stored = self._snapshot.settings.params.text
            if config.text_settings is not None and config.text_settings != stored:
                raise InvalidConfigError(
                    f"{config.text_settings} was asked for, and the collection has {stored or 'no text index'}: leave "
                    "the settings of texts out to open it",
                    details={"field": "text_fields", "value": str(config.text_settings), "stored": str(stored)},
                )
        return self

    @classmethod
    async def open_share(
        cls,
        cid: str,
        s5_portal: str | os.PathLike[str],
        /,
        *,
        engine: Engine | None = None,
        lazy_load: bool = True,
        become_whole: bool = True,
        **settings: Unpack[ShareFields],
    ) -> Self:
        """Opens a shared collection without a phrase, to read it.

        Args:
            cid: a share CID, as `share` returns it.
            s5_portal, **settings: as `VectorDBSession.open_share`.
            engine, lazy_load, become_whole: as `open`.

        Returns:
            The collection. Changes, `share` and `prune_history` raise SessionError.

        Raises:
            InvalidConfigError, NotFoundError, IntegrityError, VectorDBError: as `open`.
            InvalidInputError: `cid` is no share CID.
        """
        config = share_config(s5_portal, settings)
        recipe = Recipe.of(config, lazy_load=lazy_load, become_whole=become_whole)
        owned = OwnedEngine(engine)
        session = await VectorDBSession.open_share(cid, s5_portal, lazy_load=False, **settings)
        self = cls(session, recipe, owned, config)
        self._share = cid
        async with _closed_on_error(self):
            await self._take_snapshot()
        return self

    # ---- life

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<Collection {self._defaults.index_name!r} over {self._engine.engine!r}>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise SessionError("a Collection cannot be copied or pickled: share it, and open the share CID elsewhere")

    async def close(self) -> None:
        """Ends the collection: its root, the keys, and the shards that this process has open for it. Idempotent.

        Shards in other processes stay open there, until their process ends or needs the memory.
        """
        self._is_open = False
        if self._keys is not None:
            self._keys.wipe()
        with anyio.CancelScope(shield=True):
            await self._session.destroy()
            await self._ids.aclose()
            await self._engine.close()
            await anyio.to_thread.run_sync(close_shards, self._recipe)

    async def refresh(self) -> bool:
        """Reads the newest root, where another process has changed the collection.

        Returns:
            Whether there was a newer one. A collection opened by a share CID has none.

        Raises:
            SessionError: the collection is closed.
            VectorDBError: as `VectorDBSession.load_user_vectors`; the collection stays as it was.
        """
        self._check()
        if self._keys is None:
            return False
        async with self._turn:
            before = self._cid
            await self._session.load_user_vectors(None, lazy_load=False, discard_unsaved=True)
            await self._take_snapshot()
            return self._cid != before

    # ---- searches

    async def search(
        self,
        query: Any = None,
        k: int = 10,
        options: SearchOptions | Mapping[str, Any] | None = None,
        *,
        shards: int | None = None,
        missing_ok: bool = False,
        **fields: Unpack[SearchFields],
    ) -> ShardedResults:
        """Finds the k rows nearest to a query, by vector, by words (``text=``) or by both.

        With ``exact=True`` the answer is that of one index with all rows, bit for bit.

        Args:
            query: dim numbers; None with ``text=`` for a search by words alone.
            k: 1 to 10 000.
            options, **fields: as `VectorDBSession.search`. With `text` and `group_by`, ids and scores of all rows that
                match either side come to this process. With the route ``nearest``, a `recall_target` also chooses how
                many shards are asked, by the curve that the build measured.
            shards: how many shards to ask, the most promising ones, with the route ``nearest``; None for all of them. A
                search with text asks all of them.
            missing_ok: answer without the shards that cannot be read, and name them in ``missing``; otherwise one of
                them makes the search fail.

        Returns:
            The hits, nearest first, equal distances in the order of their ids; with ``text=``, by falling score.

        Raises:
            InvalidInputError: the query, `k` or an option is refused; or there is a text, and no text index.
            SessionError: the collection is closed, or the engine failed (details ``shard``).
            IntegrityError, NotFoundError, S5Error, StorageError, VectorDBError: of a shard; details has ``shard``.
        """
        at = self._current()
        vector = np.empty(0, dtype=np.float32) if query is None else prepare_query(query, at.settings.dim)
        return (await self._searches.run(at, vector[np.newaxis], k, options, shards, missing_ok, fields))[0]

    async def search_batch(
        self,
        queries: Any = None,
        k: int = 10,
        options: SearchOptions | Mapping[str, Any] | None = None,
        *,
        shards: int | None = None,
        missing_ok: bool = False,
        **fields: Unpack[SearchFields],
    ) -> list[ShardedResults]:
        """Finds the k rows nearest to each of many queries.

        Args:
            queries: (n, dim) numbers; None with ``text=`` for searches by words alone.
            k, options, shards, missing_ok, **fields: as `search`; ``text=`` is one text for all queries, or a list of n
                texts. Each query asks its own most promising shards.

        Returns:
            Results in the order of the queries.

        Raises:
            InvalidInputError, SessionError, VectorDBError: as `search`.
        """
        at = self._current()
        matrix = None if queries is None else prepare_queries(queries, at.settings.dim)
        return await self._searches.run(at, matrix, k, options, shards, missing_ok, fields)

    async def search_stream(
        self,
        query: Any = None,
        *,
        threshold: float | Unset | None = UNSET,
        include_vectors: bool = False,
        filter: Mapping[str, Any] | None = None,
        text: str | None = None,
        fusion: Fusion | None = None,
        alpha: float | None = None,
        highlight: bool = False,
    ) -> AsyncGenerator[SearchResult, None]:
        """Yields every row that matches the filter and whose score passes the threshold, nearest first.

        The hits and their order are those of `VectorDBSession.search_stream`. Each shard gives pages of 64 rows at
        first, later of up to 4,096, and scores all of its rows for each. The stream reads the snapshot of its beginning
        to its end. With ``text=``, ids and scores of all rows that match either side come to this process first.

        Args:
            query: dim numbers; None with ``text=`` for a stream by words alone.
            threshold, include_vectors, filter, text, fusion, alpha, highlight: as in SearchOptions.

        Yields:
            The hits, one after the other.

        Raises:
            InvalidInputError: the query or an option is refused; or there is a text, and no text index.
            SessionError, VectorDBError: as `search`.
        """
        at = self._current()
        vector = np.empty(0, dtype=np.float32) if query is None else prepare_query(query, at.settings.dim)
        fields: SearchFields = {
            "threshold": threshold,
            "include_vectors": include_vectors,
            "filter": filter,
            "text": text,
            "fusion": fusion,
            "alpha": alpha,
            "highlight": highlight,
        }
        async for hit in self._searches.stream(at, vector, fields):
            yield hit

    # ---- other reads

    async def get(self, ids: Sequence[str]) -> list[Row | None]:
        """Reads rows by id. Only the shards that may have them are asked.

        With ``nearest``, the fingerprints of all ids are fetched first, once for each version of a shard: some 2 bytes
        a row. They take 4 bytes a row of memory, at most a quarter of `memory_budget_mb`; shards whose fingerprints do
        not fit are asked for every id, and so are those whose fingerprints are lost, which a warning tells.

        Args:
            ids: ids of the rows; an id may occur more than once.

        Returns:
            A Row for each id, in the order of `ids`; None for an id that is not live.

        Raises:
            InvalidInputError: `ids` is no sequence of strings.
            SessionError, VectorDBError: as `search`.
        """
        at, wanted = self._current(), take_ids(ids)
        asked = await self._ids.shards_of(at, wanted)
        answers = await self._ask(at, tasks.get, lambda shard: (asked[shard.number],), shards=asked)
        rows = {row.id: row for answer in answers.results for row in answer if row is not None}
        return [rows.get(id) for id in wanted]

    async def get_timestamps(self, ids: Sequence[str] | None = None) -> dict[str, float]:
        """The timestamps of rows.

        Args:
            ids: ids of the rows; those that are not live are left out. None for all rows.

        Returns:
            Seconds since 1970 by id.

        Raises:
            InvalidInputError: `ids` is no sequence of strings.
            SessionError, VectorDBError: as `search`.
        """
        at = self._current()
        asked = None if ids is None else await self._ids.shards_of(at, take_ids(ids))
        answers = await self._ask(
            at, tasks.timestamps, lambda shard: (None if asked is None else asked[shard.number],), shards=asked
        )
        return {id: time for answer in answers.results for id, time in answer.items()}

    async def count(self, filter: Mapping[str, Any] | None = None) -> int:
        """Counts the live rows that match a filter.

        Args:
            filter: as in SearchOptions; None counts all live rows.

        Returns:
            The number of rows.

        Raises:
            InvalidInputError: the filter is not understood.
            SessionError, VectorDBError: as `search`.
        """
        at, where = self._current(), _checked_filter(filter)
        return sum((await self._ask(at, tasks.count, lambda _: (where,))).results)

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
        """Counts the distinct values of a metadata field, in pages, as `VectorDBSession.facets` does.

        Every shard sends all its values, as a value that is rare in one may be frequent in another.

        Args:
            field, filter, order, limit, offset, search: as `VectorDBSession.facets`.

        Returns:
            Each value with the number of rows that have it.

        Raises:
            InvalidInputError: an argument is not understood.
            SessionError, VectorDBError: as `search`.
        """
        at, where = self._current(), _checked_filter(filter)
        query = make_facet_query(field, EVERYTHING, order, limit, offset, search)
        answers = await self._ask(at, tasks.facets, lambda _: (field, where, search))
        return merged_facets(answers.results, query)

    async def fields(self, filter: Mapping[str, Any] | None = None) -> list[FieldInfo]:
        """The metadata fields that rows have, as `VectorDBSession.fields` tells them.

        Args:
            filter: as in SearchOptions; only rows that match it count.

        Returns:
            The fields, in the order of their paths.

        Raises:
            InvalidInputError: the filter is not understood, or there are more than 10,000 fields.
            SessionError, VectorDBError: as `search`.
        """
        at, where = self._current(), _checked_filter(filter)
        return merged_fields((await self._ask(at, tasks.fields, lambda _: (where,))).results)

    async def scan(self, filter: Mapping[str, Any] | None = None) -> AsyncGenerator[Row, None]:
        """Yields the live rows that match a filter, in the order of their timestamps, equal ones by id.

        Pages of all shards are read ahead and merged. The scan reads the snapshot of its beginning to its end.

        Args:
            filter: as in SearchOptions; None for all rows.

        Yields:
            The rows, one after the other.

        Raises:
            InvalidInputError: the filter is not understood.
            SessionError, VectorDBError: as `search`.
        """
        at, where = self._current(), _checked_filter(filter)
        cursors: dict[int, str | None] = dict.fromkeys(at.shards)

        async def next_pages(shards: list[int]) -> list[Page]:
            answers = await self._ask(
                at, tasks.scan_page, lambda shard: (where, _SCAN_ROWS, cursors[shard.number]), shards=shards
            )
            cursors.update(zip(answers.shards, (page.cursor for page in answers.results), strict=True))
            return [
                Page(number, page.rows, page.has_more)
                for number, page in zip(answers.shards, answers.results, strict=True)
            ]

        async for row in merged_pages(at.shards, next_pages, _insertion):
            yield row

    async def scan_page(
        self, filter: Mapping[str, Any] | None = None, *, limit: int = 100, cursor: str | None = None
    ) -> ScanPage:
        """Reads the next live rows that match a filter, in the order of `scan`, as `VectorDBSession.scan_page` does.

        Args:
            filter: as in SearchOptions; None for all rows. Give the same with each cursor.
            limit: most rows of a page, 1 to 10 000.
            cursor: the cursor of the page before, also of a session with the same rows; None for the first rows.

        Returns:
            The rows, the cursor after them, and whether there are more.

        Raises:
            InvalidInputError: the filter, `limit` or `cursor` is refused.
            SessionError, VectorDBError: as `search`.
        """
        at, where = self._current(), _checked_filter(filter)
        if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= PAGE_ROWS_MAX:
            raise InvalidInputError(f"limit must be an integer from 1 to {PAGE_ROWS_MAX}, got {shown(limit)}")
        if cursor is not None:
            decode_place(cursor)
        pages = (await self._ask(at, tasks.scan_page, lambda _: (where, limit, cursor))).results
        rows = sorted((row for page in pages for row in page.rows), key=_insertion)
        has_more = len(rows) > limit or any(page.has_more for page in pages)
        rows = rows[:limit]
        if rows:
            cursor = encode_place(Place(round(rows[-1].timestamp * 1e6), rows[-1].id.encode()))
        return ScanPage(tuple(rows), cursor, has_more)

    async def to_arrow(self, filter: Mapping[str, Any] | None = None) -> Any:
        """All rows, or those that match a filter, as a pyarrow Table, as `VectorDBSession.to_arrow` makes it.

        Args:
            filter: as in SearchOptions; None for all rows.

        Returns:
            The table.

        Raises:
            InvalidConfigError: pyarrow, which the extra `arrow` brings, is not installed.
            InvalidInputError, SessionError, VectorDBError: as `scan`.
        """
        load_pyarrow()
        return await anyio.to_thread.run_sync(rows_table, [row async for row in self.scan(filter)])

    async def to_pandas(self, filter: Mapping[str, Any] | None = None) -> Any:
        """All rows, or those that match a filter, as a pandas DataFrame with the columns of `to_arrow`.

        Args:
            filter: as in SearchOptions; None for all rows.

        Returns:
            The DataFrame.

        Raises:
            InvalidConfigError: pyarrow or pandas is not installed.
            InvalidInputError, SessionError, VectorDBError: as `scan`.
        """
        return await anyio.to_thread.run_sync(data_frame, await self.to_arrow(filter))

    async def stats(self) -> CollectionStats:
        """The state of the collection, as its root has it: no shard is asked.

        Returns:
            Counts of rows by shard, and the curve of a recall by shards.

        Raises:
            SessionError: the collection is closed.
        """
        at = self._current()
        return CollectionStats(
            cid=None if self._keys is None else self._cid,
            route=at.settings.route,
            metric=at.settings.params.metric,
            dim=at.settings.dim,
            rows=at.rows,
            shards=tuple(
                ShardInfo(number=one.number, rows=one.rows, superseded=one.superseded, first=one.first)
                for one in at.shards.values()
            ),
            curve=at.settings.curve,
        )

    async def warm(self) -> None:
        """Opens every shard and fetches all of it, where the engine's processes stay the same.

        Raises:
            SessionError, VectorDBError: as `search`.
        """
        await self._ask(self._current(), tasks.warm, lambda _: ())

    async def verify(self, *, progress: ProgressCallback | None = None) -> CollectionReport:
        """Reads every object of the root and of all its shards, and checks all bytes.

        Args:
            progress: called with a CollectionProgress after each shard.

        Returns:
            How many shards, parts, bytes and rows there are.

        Raises:
            IntegrityError: a part is damaged or missing; details has ``shard``, and ``bad`` with every such part.
            SessionError, VectorDBError: as `search`.
        """
        at, tell = self._current(), Teller(progress)
        root = await self._session.verify(self._share or self._cid)
        done = tell.counter("shards", len(at.shards))
        found = (await self._ask(at, verify_shard, lambda shard: (shard.fingerprints,), done=done)).results
        return CollectionReport(
            shards=len(found),
            parts=root.parts + sum(one.parts for one in found),
            bytes=root.bytes + sum(one.bytes for one in found),
            rows=sum(one.rows for one in found),
        )

    # ---- changes and versions

    async def change(
        self,
        adds: Any = (),
        deletes: Sequence[str] = (),
        *,
        missing_ok: bool = False,
        progress: ProgressCallback | None = None,
    ) -> str:
        """Adds, replaces and deletes rows: all or nothing, by one move of the root.

        Only shards that change are stored. A row that is there already with the same bytes stays as it is, so the same
        change twice, with given timestamps and `missing_ok`, gives the same CID. A row that belongs to another shard
        than before leaves the old one in the same move.

        Args:
            adds: rows that are added, or take the place of rows with the same id: a list of VectorInputs or mappings,
                or what `build` takes. Rows without a timestamp get the present one.
            deletes: ids of rows that go.
            missing_ok: ignore ids of `deletes` that are not live, instead of raising.
            progress: called with a CollectionProgress after each shard.

        Returns:
            The CID of the newest root.

        Raises:
            InvalidInputError: a row is refused, or an id is in both; nothing changed.
            ConflictError: an id occurs twice among `adds`; or another process changed the collection: `refresh`, and
                repeat the change.
            NotFoundError: an id of `deletes` is not live; nothing changed.
            SessionError: the collection is closed, or was opened by a share CID; or the engine failed.
            VectorDBError: a shard cannot be read or stored; details has ``shard``. Nothing changed.
        """
        missing_ok = check_bool("missing_ok", missing_ok)
        return await self._changed(lambda changes: changes.change(adds, deletes, missing_ok), progress)

    async def vacuum(self, *, progress: ProgressCallback | None = None) -> str:
        """Removes deleted rows and replaced metadata from all shards for good. Older roots keep theirs.

        Fingerprints of ids that are damaged or missing are stored again.

        Args:
            progress: called with a CollectionProgress after each shard.

        Returns:
            The CID of the newest root.

        Raises:
            ConflictError, SessionError, VectorDBError: as `change`.
        """
        return await self._changed(lambda changes: changes.vacuum(), progress)

    async def rebalance(
        self,
        *,
        rows_max: int | None = None,
        rows_min: int | None = None,
        progress: ProgressCallback | None = None,
    ) -> str:
        """Divides shards that have grown too large, and joins small ones. No other shard is stored again.

        Args:
            rows_max: shards with more rows are divided; None for twice the mean.
            rows_min: shards with fewer rows are joined with another; None for a quarter of the mean.
            progress: called with a CollectionProgress after each shard.

        Returns:
            The CID of the newest root.

        Raises:
            InvalidInputError: a limit is no positive integer, or `rows_min` is more than half of `rows_max`.
            ConflictError, SessionError, VectorDBError: as `change`.
        """
        return await self._changed(lambda changes: changes.rebalance(rows_max, rows_min), progress)

    async def share(self) -> str:
        """Makes a CID that opens this version of the collection, with all its shards, without the phrase.

        Anybody who has it can read these rows for good: a share cannot be taken back.

        Returns:
            The share CID, for `open_share`.

        Raises:
            ConflictError: a shard holds more than its live rows: call `vacuum` first; details has ``shards``.
            SessionError: the collection is closed, or was opened by a share CID.
            VectorDBError: as `search`.
        """
        self._check_writes()
        at = self._current()
        answers = await self._ask(at, tasks.dirt, lambda _: ())
        dirty = [number for number, one in zip(answers.shards, answers.results, strict=True) if one.rows or one.bytes]
        if dirty:
            raise ConflictError(
                f"{len(dirty)} shards still hold deleted, replaced or expired rows, which a share would give away: "
                "call vacuum() first",
                details={"shards": dirty},
            )
        assert self._cid is not None
        return await self._session.share(self._cid)

    async def is_newest(self) -> bool:
        """Whether no other process has moved the root since it was read, from the pointer alone.

        Returns:
            False where there is a newer root, which `refresh` reads.

        Raises:
            SessionError: the collection is closed, or was opened by a share CID.
            VectorDBError: as `VectorDBSession.is_newest`.
        """
        self._check_writes()
        return await self._session.is_newest()

    async def history(self) -> list[VersionInfo]:
        """The versions of the root, newest first, as `VectorDBSession.history` has them; counts are those of the root.

        Returns:
            The versions.

        Raises:
            SessionError: the collection is closed, or was opened by a share CID.
            VectorDBError: as `VectorDBSession.history`.
        """
        self._check_writes()
        return await self._session.history()

    async def prune_history(self, keep: int, dry_run: bool = True) -> PruneReport:
        """Forgets all but the newest roots, and deletes the stored objects that no kept root's shards use.

        No other process may change the collection meanwhile. Shares of the forgotten roots stop working, too.

        Args:
            keep: how many roots stay, at least 1.
            dry_run: True only reports; False deletes.

        Returns:
            The roots that go, or would go, and all objects that go with them.

        Raises:
            InvalidInputError: `keep` is no positive integer.
            SessionError: the collection is closed, or was opened by a share CID.
            VectorDBError: as `VectorDBSession.prune_history`; of a kept root nothing was deleted.
        """
        self._check_writes()
        async with self._turn:
            return await prune_collection(self._session, self._recipe, keep, check_bool("dry_run", dry_run))

    # ---- helpers

    def _check(self) -> None:
        if not self._is_open:
            raise SessionError("Collection already closed")

    def _check_writes(self) -> None:
        self._check()
        if self._keys is None:
            raise SessionError(READ_ONLY)

    def _current(self) -> Snapshot:
        self._check()
        return self._snapshot

    async def _take_snapshot(self) -> None:
        snapshot = await read_root(self._session)
        self._snapshot, self._cid = snapshot, (await self._session.get_stats()).last_cid

    async def _ask(
        self,
        at: Snapshot,
        task: Callable[..., Any],
        args: Callable[[Shard], Sequence[Any]],
        *,
        shards: Any = None,
        missing_ok: bool = False,
        done: Callable[[], None] | None = None,
    ) -> Answers:
        """The answers of some shards, or of all, to a task of readers."""

        def arguments(shard: Shard) -> Sequence[Any]:
            return self._recipe, shard.share, *args(shard)

        jobs = [
            Job(number, f"{self._defaults.index_name}/{number}", task, partial(arguments, at.shards[number]))
            for number in (at.shards if shards is None else shards)
        ]
        return await run_all(self._engine.engine, jobs, in_flight=_READS_IN_FLIGHT, missing_ok=missing_ok, done=done)

    async def _changed(self, change: Callable[[Changes], Any], progress: ProgressCallback | None) -> str:
        self._check_writes()
        assert self._keys is not None
        tell = Teller(progress)
        async with self._turn:
            await self._restore_root()
            at = self._current()
            changes = Changes(at, self._recipe, self._keys, self._engine.engine, self._ids, tell)
            after: Snapshot = await change(changes)
            if after is not at:
                await self._move(at, after)
            tell("root", len(after.shards), len(after.shards))
            assert self._cid is not None
            return self._cid

    async def _restore_root(self) -> None:
        """Makes the session hold the root of the snapshot, where a change or a prune has left it with another one."""
        stats = await self._session.get_stats()
        if stats.dirty or stats.last_cid != self._cid:
            await self._session.load_user_vectors(self._cid, lazy_load=False, discard_unsaved=True)

    async def _move(self, at: Snapshot, after: Snapshot) -> None:
        """Makes a snapshot the newest root. If that fails, the collection and its root stay as they were."""
        try:
            cid = await moved_root(self._session, at, after)
        except BaseException:
            with anyio.CancelScope(shield=True), suppress(VectorDBError):  # the next change tries again
                await self._restore_root()
            raise
        self._snapshot, self._cid = after, cid


@asynccontextmanager
async def _closed_on_error(collection: Collection) -> AsyncGenerator[None, None]:
    try:
        yield
    except BaseException:
        await collection.close()
        raise


def _insertion(row: Row) -> tuple[float, str]:
    return row.timestamp, row.id


def _checked_filter(filter: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A filter that a shard will understand, as a dict, which can be pickled.

    Raises:
        InvalidInputError: it is not understood.
    """
    if filter is None:
        return None
    parse_filter(filter)
    return dict(filter)

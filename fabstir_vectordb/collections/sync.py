"""Collections without ``await``: each verb runs its namesake on an event loop in a thread of the collection."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType
from typing import Any, NoReturn, Self, SupportsIndex, TypeVar, Unpack

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from fabstir_vectordb.collections.build import build as build_async
from fabstir_vectordb.collections.collection import Collection as AsyncCollection
from fabstir_vectordb.collections.engines import Engine
from fabstir_vectordb.collections.records import Route
from fabstir_vectordb.collections.types import CollectionReport, CollectionStats, ProgressCallback, ShardedResults
from fabstir_vectordb.config import UNSET, ConfigFields, Given, ShareFields, Unset, VectorDBConfig, config_of
from fabstir_vectordb.errors import SessionError
from fabstir_vectordb.params import SearchFields, SearchOptions
from fabstir_vectordb.text.fusion import Fusion
from fabstir_vectordb.types import FacetCount, FieldInfo, PruneReport, Row, ScanPage, SearchResult, VersionInfo

__all__ = ["Collection", "build"]

_T = TypeVar("_T")


def build(
    config: VectorDBConfig | Mapping[str, Any] | None,
    batches: Any,
    /,
    *,
    shards: int = 8,
    route: Route = "nearest",
    engine: Engine | None = None,
    progress: ProgressCallback | None = None,
    **settings: Unpack[ConfigFields],
) -> str:
    """Builds a collection of shards: see `fabstir_vectordb.collections.build`."""
    given = Given(config, settings)
    del config, settings  # what fails from here on has no bare secret in its traceback
    chosen = config_of(given)
    return anyio.run(
        partial(build_async, chosen, batches, shards=shards, route=route, engine=engine, progress=progress)
    )


class Collection:
    """Many shards that are searched and changed as one index, without an event loop; made by `open` or `open_share`.

    Every method does what its namesake of `fabstir_vectordb.collections.Collection` does and raises what it raises.
    Any thread may call it. `progress` is called on the collection's thread.
    """

    def __init__(
        self,
        starting: AbstractContextManager[BlockingPortal],
        opening: Callable[[], Coroutine[Any, Any, AsyncCollection]],
    ) -> None:
        self._starting = starting
        self._portal = starting.__enter__()
        self._is_open = True
        try:
            self._verbs: AsyncCollection = self._portal.call(opening)
        except BaseException:
            self._stop()
            raise

    @classmethod
    def open(
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
        """Opens a collection of one's own, to read and to change it."""
        given = Given(config, settings)
        del config, settings
        chosen = config_of(given)
        opening = partial(
            AsyncCollection.open, chosen, engine=engine, cid=cid, lazy_load=lazy_load, become_whole=become_whole
        )
        return cls(start_blocking_portal(), opening)

    @classmethod
    def open_share(
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
        """Opens a shared collection without a phrase, to read it."""
        opening = partial(
            AsyncCollection.open_share,
            cid,
            s5_portal,
            engine=engine,
            lazy_load=lazy_load,
            become_whole=become_whole,
            **settings,
        )
        return cls(start_blocking_portal(), opening)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return repr(self._verbs) if hasattr(self, "_verbs") else "<Collection that could not be opened>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        self._verbs.__reduce_ex__(protocol)

    def close(self) -> None:
        """Ends the collection and its thread. Idempotent."""
        if self._is_open:
            try:
                self._portal.call(self._verbs.close)
            finally:
                self._stop()

    def _stop(self) -> None:
        self._is_open = False
        self._starting.__exit__(None, None, None)

    def _run(self, verb: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        if not self._is_open:
            raise SessionError("Collection already closed")
        result: _T = self._portal.call(verb)
        return result

    def refresh(self) -> bool:
        """Reads the newest root; returns whether there was a newer one."""
        return self._run(self._verbs.refresh)

    def search(
        self,
        query: Any = None,
        k: int = 10,
        options: SearchOptions | Mapping[str, Any] | None = None,
        *,
        shards: int | None = None,
        missing_ok: bool = False,
        **fields: Unpack[SearchFields],
    ) -> ShardedResults:
        """Finds the k rows nearest to a query."""
        return self._run(lambda: self._verbs.search(query, k, options, shards=shards, missing_ok=missing_ok, **fields))

    def search_batch(
        self,
        queries: Any = None,
        k: int = 10,
        options: SearchOptions | Mapping[str, Any] | None = None,
        *,
        shards: int | None = None,
        missing_ok: bool = False,
        **fields: Unpack[SearchFields],
    ) -> list[ShardedResults]:
        """Finds the k rows nearest to each of many queries."""
        return self._run(
            lambda: self._verbs.search_batch(queries, k, options, shards=shards, missing_ok=missing_ok, **fields)
        )

    def search_stream(
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
    ) -> Iterator[SearchResult]:
        """Yields every row that matches the filter and whose score passes the threshold, nearest first."""
        return self._iterated(
            self._verbs.search_stream(
                query,
                threshold=threshold,
                include_vectors=include_vectors,
                filter=filter,
                text=text,
                fusion=fusion,
                alpha=alpha,
                highlight=highlight,
            )
        )

    def get(self, ids: Sequence[str]) -> list[Row | None]:
        """Reads rows by id."""
        return self._run(lambda: self._verbs.get(ids))

    def get_timestamps(self, ids: Sequence[str] | None = None) -> dict[str, float]:
        """The timestamps of rows, seconds since 1970 by id."""
        return self._run(lambda: self._verbs.get_timestamps(ids))

    def fields(self, filter: Mapping[str, Any] | None = None) -> list[FieldInfo]:
        """The metadata fields that rows have."""
        return self._run(lambda: self._verbs.fields(filter))

    def count(self, filter: Mapping[str, Any] | None = None) -> int:
        """Counts the live rows that match a filter."""
        return self._run(lambda: self._verbs.count(filter))

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
        """Counts the distinct values of a metadata field, in pages."""
        return self._run(
            lambda: self._verbs.facets(field, filter, order=order, limit=limit, offset=offset, search=search)
        )

    def scan(self, filter: Mapping[str, Any] | None = None) -> Iterator[Row]:
        """Yields the live rows that match a filter, in the order of their timestamps, equal ones by id."""
        return self._iterated(self._verbs.scan(filter))

    def _iterated(self, items: AsyncGenerator[_T, None]) -> Iterator[_T]:
        async def some() -> list[_T]:
            # A page at a time: an item at a time would change threads for each.
            page = []
            async for item in items:
                page.append(item)
                if len(page) == _PAGE_ROWS:
                    break
            return page

        while page := self._run(some):
            yield from page

    def scan_page(
        self, filter: Mapping[str, Any] | None = None, *, limit: int = 100, cursor: str | None = None
    ) -> ScanPage:
        """Reads the next live rows that match a filter, in the order of `scan`."""
        return self._run(lambda: self._verbs.scan_page(filter, limit=limit, cursor=cursor))

    def to_arrow(self, filter: Mapping[str, Any] | None = None) -> Any:
        """All rows, or those that match a filter, as a pyarrow Table."""
        return self._run(lambda: self._verbs.to_arrow(filter))

    def to_pandas(self, filter: Mapping[str, Any] | None = None) -> Any:
        """All rows, or those that match a filter, as a pandas DataFrame."""
        return self._run(lambda: self._verbs.to_pandas(filter))

    def stats(self) -> CollectionStats:
        """The state of the collection, as its root has it: no shard is asked."""
        return self._run(self._verbs.stats)

    def warm(self) -> None:
        """Opens every shard and fetches all of it."""
        self._run(self._verbs.warm)

    def verify(self, *, progress: ProgressCallback | None = None) -> CollectionReport:
        """Reads every object of the root and of all its shards, and checks all bytes."""
        return self._run(lambda: self._verbs.verify(progress=progress))

    def change(
        self,
        adds: Any = (),
        deletes: Sequence[str] = (),
        *,
        missing_ok: bool = False,
        progress: ProgressCallback | None = None,
    ) -> str:
        """Adds, replaces and deletes rows: all or nothing, by one move of the root."""
        return self._run(lambda: self._verbs.change(adds, deletes, missing_ok=missing_ok, progress=progress))

    def vacuum(self, *, progress: ProgressCallback | None = None) -> str:
        """Removes deleted rows and replaced metadata from all shards for good."""
        return self._run(lambda: self._verbs.vacuum(progress=progress))

    def rebalance(
        self,
        *,
        rows_max: int | None = None,
        rows_min: int | None = None,
        progress: ProgressCallback | None = None,
    ) -> str:
        """Divides shards that have grown too large, and joins small ones."""
        return self._run(lambda: self._verbs.rebalance(rows_max=rows_max, rows_min=rows_min, progress=progress))

    def share(self) -> str:
        """Makes a CID that opens this version of the collection, with all its shards, without the phrase."""
        return self._run(self._verbs.share)

    def is_newest(self) -> bool:
        """Whether no other process has moved the root since it was read."""
        return self._run(self._verbs.is_newest)

    def history(self) -> list[VersionInfo]:
        """The versions of the root, newest first."""
        return self._run(self._verbs.history)

    def prune_history(self, keep: int, dry_run: bool = True) -> PruneReport:
        """Forgets all but the newest roots, and deletes the stored objects that no kept root's shards use."""
        return self._run(lambda: self._verbs.prune_history(keep, dry_run))


#: Items that a scan or a stream hands over at a time.
_PAGE_ROWS = 256

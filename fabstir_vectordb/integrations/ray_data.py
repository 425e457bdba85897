"""Collections as a sink and a source of Ray Data: ``dataset.write_datasink`` and ``ray.data.read_datasource``.

Tasks of a sink check their rows and hand them to the driver, which divides them among shards, lets an engine build
those, and moves the root: once, at the end, and so not at all if a task fails. A task that ran twice changes nothing.
Tasks of a source read a shard each, by its share CID.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any, Final, Literal, Self, Unpack

from anyio.from_thread import start_blocking_portal

from fabstir_vectordb.arrow import TableWriter, load_pyarrow
from fabstir_vectordb.collections import Collection, Engine, RayEngine, build
from fabstir_vectordb.collections.build import check_division, check_free
from fabstir_vectordb.collections.records import Recipe, Route
from fabstir_vectordb.collections.root import Snapshot, read_root, without_texts
from fabstir_vectordb.collections.rows import take_batches
from fabstir_vectordb.config import ConfigFields, Given, ShareFields, VectorDBConfig, config_of, share_config
from fabstir_vectordb.errors import InvalidConfigError, SessionError
from fabstir_vectordb.index.incoming import Batch
from fabstir_vectordb.integrations import needing
from fabstir_vectordb.metadata.filter_parse import parse_filter
from fabstir_vectordb.metadata.values import shown
from fabstir_vectordb.params import wall_clock_us
from fabstir_vectordb.session import VectorDBSession
from fabstir_vectordb.sync import VectorDBSession as SyncSession

with needing("ray"):
    from ray.data.block import BlockAccessor, BlockMetadata
    from ray.data.datasource import Datasink, Datasource, ReadTask

__all__ = ["CollectionDatasink", "CollectionDatasource"]

_MODES: Final = ("build", "change")
_BLOCK_ROWS: Final = 8_192


class CollectionDatasink(Datasink):
    """Writes a dataset of Ray as a collection: ``dataset.write_datasink(CollectionDatasink(config))``.

    The columns are those of `add_table`. All rows are in the memory of the driver at the end, as `build` needs them.

    Args:
        config, **settings: as `collections.build`. They stay in the driver: no task gets the phrase.
        mode: ``build`` makes a new collection; ``change`` adds rows to one that there is, in place of those with the
            same ids.
        shards, route: of a new collection, as `collections.build`.
        engine: where shards are built or changed; None for a RayEngine of the write's own.

    Attributes:
        cid: the CID of the root that was written; None before.

    Raises:
        InvalidConfigError: a setting or `mode` is refused.
        InvalidInputError: `shards` or `route` is refused.

    Example:
        >>> ray.data.read_parquet("rows/").write_datasink(CollectionDatasink(config, shards=64))
    """

    def __init__(
        self,
        config: VectorDBConfig | Mapping[str, Any] | None = None,
        /,
        *,
        mode: Literal["build", "change"] = "build",
        shards: int = 8,
        route: Route = "nearest",
        engine: Engine | None = None,
        **settings: Unpack[ConfigFields],
    ) -> None:
        if mode not in _MODES:
            raise InvalidConfigError(f"mode must be build or change, got {shown(mode)}", details={"field": "mode"})
        check_division(shards, route)
        self._config: VectorDBConfig | None = config_of(Given(config, settings))
        Recipe.of(self._config, lazy_load=True, become_whole=True)  # refuses what a collection cannot have
        self._mode = mode
        self._shards = shards
        self._route = route
        self._engine = engine
        clock = self._config.clock
        # One moment for all tasks: rows without a timestamp get the same one, whichever task has them.
        self._now_us = wall_clock_us() if clock is None else round(clock() * 1e6)
        self.cid: str | None = None

    def __repr__(self) -> str:
        return f"<CollectionDatasink {self._mode}>"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_config": None, "_engine": None}

    def __deepcopy__(self, memo: Mapping[int, Any]) -> Self:
        return copy.copy(self) if self._config is None else self

    def on_write_start(self, schema: Any = None) -> None:
        """Refuses a new collection where an index is, before any row is read.

        Raises:
            ConflictError: the index has a version already.
            VectorDBError: the store failed.
        """
        config = self._secrets()

        async def check() -> None:
            async with VectorDBSession.create(without_texts(config)) as session:
                await check_free(session, config.index_name)

        if self._mode == "build":
            _run(check)

    def write(self, blocks: Iterable[Any], ctx: Any) -> list[Batch]:
        """Checks the rows of a task.

        Raises:
            InvalidInputError: a row is refused.
            ConflictError: an id occurs twice.
        """
        tables = (BlockAccessor.for_block(block).to_arrow() for block in blocks)
        found = take_batches((table for table in tables if table.num_rows), self._now_us)
        return [found] if found.ids else []

    def on_write_complete(self, write_result: Any) -> None:
        """Builds or changes the shards, and moves the root.

        Raises:
            InvalidInputError, ConflictError, MemoryBudgetExceededError, SessionError, VectorDBError: as
                `collections.build`, or as `Collection.change`.
        """
        batches = [batch for returned in write_result.write_returns for batch in returned]
        engine = RayEngine() if self._engine is None else self._engine
        try:
            self.cid = _run(partial(self._store, batches, engine))
        finally:
            if isinstance(engine, RayEngine) and self._engine is None:
                engine.close()

    async def _store(self, batches: list[Batch], engine: Engine) -> str:
        config = self._secrets()
        if self._mode == "build":
            return await build(config, batches, shards=self._shards, route=self._route, engine=engine)
        async with await Collection.open(config, engine=engine) as collection:
            return await collection.change(batches)

    def _secrets(self) -> VectorDBConfig:
        if self._config is None:
            raise SessionError("this is a copy of a CollectionDatasink, which has no phrase: only its tasks use it")
        return self._config


class CollectionDatasource(Datasource):
    """Reads a shared collection as a dataset of Ray: ``ray.data.read_datasource(CollectionDatasource(share, store))``.

    A block has rows of one shard, with the columns of `VectorDBSession.to_arrow`: id, vector, timestamp,
    expires_at if a row expires, and one for each field of the metadata. The share CIDs of shards are arguments of
    tasks: Ray may write them to its object store.

    Args:
        cid: a share CID, as `Collection.share` returns it.
        s5_portal, **settings: as `Collection.open_share`.
        filter: which rows, as in SearchOptions; None for all.

    Raises:
        InvalidConfigError, InvalidInputError, NotFoundError, IntegrityError, VectorDBError: as
            `Collection.open_share`, or `filter` is not understood.
    """

    def __init__(
        self,
        cid: str,
        s5_portal: str,
        /,
        *,
        filter: Mapping[str, Any] | None = None,
        **settings: Unpack[ShareFields],
    ) -> None:
        super().__init__()
        self._recipe = Recipe.of(share_config(s5_portal, settings), lazy_load=False, become_whole=True)
        if filter is not None:
            parse_filter(filter)
        self._filter = None if filter is None else dict(filter)

        async def read() -> Snapshot:
            async with await VectorDBSession.open_share(cid, s5_portal, lazy_load=False, **settings) as session:
                return await read_root(session)

        snapshot: Snapshot = _run(read)
        self._dim = snapshot.settings.dim or 1
        self._shards = list(snapshot.shards.values())

    def __repr__(self) -> str:
        return f"<CollectionDatasource of {len(self._shards)} shards>"

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of the vectors: what metadata takes is not known before it is read."""
        return sum(shard.rows for shard in self._shards) * self._dim * 4

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[Any]:
        """A task for each shard, however many Ray would like."""
        tasks = []
        for shard in self._shards:
            known = BlockMetadata(
                num_rows=shard.rows if self._filter is None else None,
                size_bytes=shard.rows * self._dim * 4,
                input_files=None,
                exec_stats=None,
            )
            read = partial(_read, self._recipe, shard.share, self._filter, self._dim)
            tasks.append(ReadTask(read, known, per_task_row_limit=per_task_row_limit))
        return tasks


def _read(recipe: Recipe, share: str, filter: Mapping[str, Any] | None, dim: int) -> Iterator[Any]:
    """The rows of a shard, as tables of Arrow. The task that reads them opens the shard, and closes it."""
    with SyncSession.open_share(share, recipe.s5_portal, lazy_load=False, **recipe.fields()) as session:
        writer = TableWriter(dim)
        for row in session.scan(filter):
            writer.see(row)
        rows = session.scan(filter)
        while page := list(islice(rows, _BLOCK_ROWS)):
            yield load_pyarrow().Table.from_batches([writer.batch(page)])


def _run(verb: Callable[[], Any]) -> Any:
    """The result of a coroutine function, on an event loop of its own: the driver may have one that runs."""
    with start_blocking_portal() as portal:
        return portal.call(verb)

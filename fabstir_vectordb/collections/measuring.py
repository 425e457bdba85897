"""What a collection takes on this machine, with its store: `measure`, whose figures `plan` takes to larger ones.

What runs again and again finds its data in the CPU's caches, and in a search other things run in between. So the parts
of a search in memory are timed in turns, each with a query that the others had long ago (docs/decisions/0050).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import field, replace
from functools import partial
from itertools import accumulate, islice
from os import getpid
from typing import Any, Final, Self, Unpack

import anyio.to_thread
import numpy as np
import numpy.typing as npt

from fabstir_vectordb.collections import tasks
from fabstir_vectordb.collections.engines import Engine, OwnedEngine
from fabstir_vectordb.collections.fanout import Answers, Job, run_all
from fabstir_vectordb.collections.open_shards import close_shards, opened
from fabstir_vectordb.collections.records import Recipe, Shard
from fabstir_vectordb.collections.root import Snapshot, read_root, without_texts
from fabstir_vectordb.collections.routing import shards_for, target_in
from fabstir_vectordb.collections.searches import Ask, Searches
from fabstir_vectordb.collections.shards import verify_shard
from fabstir_vectordb.config import ConfigFields, Given, VectorDBConfig, config_of
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.display import Record
from fabstir_vectordb.errors import InvalidInputError
from fabstir_vectordb.metadata.values import shown
from fabstir_vectordb.params import SearchFields
from fabstir_vectordb.session import VectorDBSession
from fabstir_vectordb.sync import VectorDBSession as SyncSession

__all__ = ["Measured", "measure"]

_K: Final = 10
#: Of each measured shard.
_QUERIES: Final = 64
_COLD_QUERIES: Final = 16
#: Shards of a search that is compared with a search in one, for what a further shard takes. They are the measured ones,
#: where these are fewer several times each: no other has to be opened.
_FAN_OUT: Final = 4

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured(Record):
    """Figures of a collection, measured on this machine with its store.

    Attributes:
        rows: of the collection.
        dim: components of a vector.
        shards: of the collection.
        recall: the recall of all measured searches, for the 10 nearest rows.
        asked: how many shards a search asks for this recall.
        routed: whether the collection knows that, by its curve; if not, all shards are asked.
        shard_rows: rows of the measured shards, the mean.
        row_bytes: stored bytes a row of the shards.
        root_bytes: stored bytes of the root and its parts, for each shard.
        shard_objects: stored objects of a shard.
        chunk_size: rows of a part with vectors, where the build was told; else None.
        row_memory_bytes: resident bytes a row of a shard that is in memory as a whole.
        row_lazy_bytes: resident bytes a row of a lazily opened shard, without cached parts.
        search_s: seconds of a worker's task that searches one shard in memory, one thread.
        search_cpu_s: processor seconds of it.
        route_s: seconds of finding the most promising shards; 0 where all are asked.
        one_s: seconds of a search through the engine that asks one shard in memory.
        further_s: seconds that each further shard adds to it.
        one_cpu_s: processor seconds of this process for a search through the engine that asks one shard, without those
            of its task.
        further_cpu_s: processor seconds of this process that each further shard adds to it, without those of its task.
        cold_requests: requests of a search in a lazily opened shard without cached parts; 0 where shards are so small
            that they are fetched as a whole.
        cold_bytes: bytes that it fetches.
        cold_s: seconds that it takes.
        cold_byte_s: seconds that a search takes more for each byte that it fetches more.
        open_s: seconds of a search through the engine that asks one shard, lazily opened, which is not open yet.
        open_further_s: seconds that each further shard adds to it.
    """

    rows: int
    dim: int
    shards: int
    recall: float
    asked: int
    routed: bool
    shard_rows: int
    row_bytes: float
    root_bytes: float
    shard_objects: float
    chunk_size: int | None
    row_memory_bytes: float
    row_lazy_bytes: float
    search_s: float
    search_cpu_s: float
    route_s: float
    one_s: float
    further_s: float
    one_cpu_s: float
    further_cpu_s: float
    cold_requests: float
    cold_bytes: float
    cold_s: float
    cold_byte_s: float
    open_s: float
    open_further_s: float


@dataclass(frozen=True, slots=True)
class _ShardFigures:
    rows: int
    bytes: int
    parts: int
    memory_mb: float
    lazy_mb: float
    cold: Sequence[_Cold]
    queries: Matrix = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Cold:
    """A search in a lazily opened shard."""

    requests: int
    bytes: int
    seconds: float


async def measure(
    config: VectorDBConfig | Mapping[str, Any] | None = None,
    /,
    *,
    recall: float = 0.95,
    shards: int = 8,
    engine: Engine | None = None,
    **settings: Unpack[ConfigFields],
) -> Measured:
    """Measures a collection: its newest version is read, some of its shards are fetched as a whole and searched.

    Nothing else should run on the machine meanwhile. Figures of a store are those of the way to it from here.

    Args:
        config, **settings: as `Collection.open`. A disk cache would answer in place of the store.
        recall: of the searches, above 0 and at most 1.
        shards: how many shards are measured, those with the most rows. Searches in memory are timed in those of them
            that fit in `memory_budget_mb` together.
        engine: through which the measured shards are searched, too; None for threads of this process. All other figures
            are those of this process.

    Returns:
        The figures.

    Raises:
        InvalidInputError: `recall` or `shards` is out of range, or no row of these shards has a vector.
        InvalidConfigError, NotFoundError, IntegrityError, VectorDBError: as `Collection.open`.
    """
    _check_recall(recall)
    if isinstance(shards, bool) or not isinstance(shards, int) or shards < 1:
        raise InvalidInputError(f"shards must be a positive integer, got {shown(shards)}")
    config = config_of(Given(config, settings))
    recipe = Recipe.of(config, lazy_load=True, become_whole=False)
    async with await VectorDBSession.create(without_texts(config)) as session:
        await session.load_user_vectors(lazy_load=False)
        at = await read_root(session)
        root = await session.verify()
        routed = len(at.settings.curve) == len(at.shards)
        known = shards_for(at.settings.curve, recall) if routed else None
        asked, target = known or (len(at.shards), target_in(len(at.shards), recall))
        largest = sorted(at.shards.values(), key=lambda one: (-one.rows, one.number))[:shards]
        whole = replace(recipe, threads=1, lazy_load=False)
        try:
            figures = {
                shard.number: await anyio.to_thread.run_sync(_measure_shard, whole, recipe, shard, target)
                for shard in largest
            }
            found = [one for one in figures.values() if one is not None]
            if not found:
                raise InvalidInputError("no row of these shards has a vector: there is nothing to search")
            largest = [shard for shard in largest if figures[shard.number] is not None]
            queries = np.concatenate([one.queries for one in found])
            async with OwnedEngine(engine) as chosen:
                searches = Searches(_asks(chosen, config.index_name, whole), session._runtime, config)
                timed = _at_once(largest, found, config)
                in_memory = await _in_memory(searches, at, whole, timed, queries, target)
                is_here = await _runs_here(chosen, config.index_name)
                lazily = Searches(_asks(chosen, config.index_name, recipe), session._runtime, config)
                open_s, open_further_s = await _opening(lazily, at, largest, queries[-1:], recall)
        finally:
            for opened_by in (whole, recipe):
                await anyio.to_thread.run_sync(close_shards, opened_by)
    rows = sum(one.rows for one in found)
    cold = [search for one in found for search in one.cold]

    def mean(name: str) -> float:
        return statistics.fmean(getattr(one, name) for one in found)

    return Measured(
        rows=at.rows,
        dim=at.settings.dim or 1,
        shards=len(at.shards),
        recall=recall,
        asked=asked,
        routed=routed,
        shard_rows=rows // len(found),
        row_bytes=sum(one.bytes for one in found) / rows,
        root_bytes=root.bytes / len(at.shards),
        shard_objects=mean("parts") + 2,  # the root and the manifest
        chunk_size=at.settings.params.chunk_size,
        row_memory_bytes=sum(one.memory_mb for one in found) * 1e6 / rows,
        row_lazy_bytes=sum(one.lazy_mb for one in found) * 1e6 / rows,
        **in_memory.figures(routed=asked < len(at.shards), tasks_here=is_here),
        cold_requests=statistics.fmean(one.requests for one in cold),
        cold_bytes=statistics.fmean(one.bytes for one in cold),
        cold_s=statistics.fmean(one.seconds for one in cold),
        cold_byte_s=_byte_s(cold),
        open_s=open_s,
        open_further_s=open_further_s,
    )


def _measure_shard(whole: Recipe, recipe: Recipe, shard: Shard, target: float) -> _ShardFigures | None:
    """The figures of a shard, which stays open as a whole; None where no row has a vector.

    Its own rows, evenly spread, are the queries; where none of these has a vector, the first ones that do.
    """
    share, fields = shard.share, _fields(target)
    verified = verify_shard(recipe, share, shard.fingerprints)
    with opened(whole, share) as session:
        step = max(1, session.count() // _QUERIES)
        for rows in (islice(session.scan(), 0, None, step), session.scan()):
            vectors = list(islice((row.vector for row in rows if row.vector is not None), _QUERIES))
            if vectors:
                break
        else:
            return None
        queries = np.array(vectors, dtype=np.float32)
        session.search(queries[0], _K, **fields)  # measures the recall of ef_search first
        memory_mb = session.get_stats().memory_usage_mb
    lazily = replace(recipe, threads=1).fields()
    with SyncSession.open_share(share, recipe.s5_portal, lazy_load=True, become_whole=False, **lazily) as session:
        session.search(queries[0], _K, **fields)
        cold = []
        for query in queries[1 : 1 + _COLD_QUERIES] if len(queries) > 1 else queries:
            # In a small shard, few searches leave all parts in the cache. In a large one the next finds few of its own.
            session._verbs._runtime.index.forget_caches()
            started = time.perf_counter()
            receipt = session.search(query, _K, **fields).receipt
            cold.append(_Cold(receipt.requests, receipt.bytes, time.perf_counter() - started))
        session._verbs._runtime.index.forget_caches()
        lazy_mb = session.get_stats().memory_usage_mb
    return _ShardFigures(
        rows=verified.rows,
        bytes=verified.bytes,
        parts=verified.parts,
        memory_mb=memory_mb,
        lazy_mb=lazy_mb,
        cold=cold,
        queries=queries,
    )


def _at_once(shards: Sequence[Shard], figures: Sequence[_ShardFigures], config: VectorDBConfig) -> Sequence[Shard]:
    """The first shards, as many as are in memory together, at least one: another would be fetched for each search."""
    held = accumulate(one.memory_mb for one in figures)
    return shards[: max(1, sum(memory_mb <= config.memory_budget_mb for memory_mb in held))]


def _fields(target: float) -> SearchFields:
    return {"threshold": None, "recall_target": target}


def _byte_s(cold: Sequence[_Cold]) -> float:
    """Seconds of a further byte: the slope of seconds over bytes, where no part of a search takes less than nothing."""
    sizes, seconds = np.array([(one.bytes, one.seconds) for one in cold], dtype=np.float64).T
    if not sizes.any() or sizes.std() == 0:
        return 0.0
    slope = float(np.cov(sizes, seconds, bias=True)[0, 1] / sizes.var())
    return min(max(0.0, slope), float(seconds.mean() / sizes.mean()))


def _asks(engine: Engine, index_name: str, recipe: Recipe) -> Ask:
    """Asks shards, as a collection does."""

    async def ask(
        at: Snapshot,
        task: Callable[..., Any],
        args: Callable[[Shard], Sequence[Any]],
        *,
        shards: Any = None,
        missing_ok: bool = False,
    ) -> Answers:
        def arguments(shard: Shard) -> Sequence[Any]:
            return recipe, shard.share, *args(shard)

        return await run_all(
            engine, [Job(one, f"{index_name}/{one}", task, partial(arguments, at.shards[one])) for one in shards]
        )

    return ask


async def _runs_here(engine: Engine, index_name: str) -> bool:
    """Whether the engine runs its tasks in this process."""
    answers = await run_all(engine, [Job(0, f"{index_name}/0", getpid, tuple)])
    return bool(answers.results[0] == getpid())


@dataclass(frozen=True, slots=True)
class _Spent:
    """Seconds of a call, and processor seconds of this process meanwhile."""

    seconds: float
    cpu: float

    @classmethod
    def by(cls, call: Callable[[], Any]) -> Self:
        """What a call takes."""
        started, worked = time.perf_counter(), time.process_time()
        call()
        return cls(time.perf_counter() - started, time.process_time() - worked)

    @classmethod
    async def until(cls, done: Callable[[], Awaitable[Any]]) -> Self:
        """What an asynchronous call takes."""
        started, worked = time.perf_counter(), time.process_time()
        await done()
        return cls(time.perf_counter() - started, time.process_time() - worked)

    @classmethod
    def usual(cls, all_of: Sequence[Self]) -> Self:
        """The median of seconds, and the mean of processor seconds: the clocks of some systems have long ticks."""
        return cls(statistics.median(one.seconds for one in all_of), statistics.fmean(one.cpu for one in all_of))


@dataclass(slots=True)
class _InMemory:
    """What the parts of searches in memory took."""

    task: list[_Spent] = field(default_factory=list)
    route: list[_Spent] = field(default_factory=list)
    one: list[_Spent] = field(default_factory=list)
    many: list[_Spent] = field(default_factory=list)

    def figures(self, *, routed: bool, tasks_here: bool) -> dict[str, float]:
        """The figures of `Measured` that are made of them."""
        task, one, many = map(_Spent.usual, (self.task, self.one, self.many))
        of_task = task.cpu if tasks_here else 0.0
        return {
            "search_s": task.seconds,
            "search_cpu_s": task.cpu,
            "route_s": _Spent.usual(self.route).seconds if routed else 0.0,
            "one_s": one.seconds,
            "further_s": max(0.0, many.seconds - one.seconds) / (_FAN_OUT - 1),
            "one_cpu_s": max(0.0, one.cpu - of_task),
            "further_cpu_s": max(0.0, (many.cpu - one.cpu) / (_FAN_OUT - 1) - of_task),
        }


def _only(at: Snapshot, shards: Sequence[Shard]) -> Snapshot:
    """A snapshot with these shards alone, all of which a search asks. One may be among them several times."""
    numbered = {number: replace(shard, number=number) for number, shard in enumerate(shards)}
    return replace(at, shards=numbered, centroids=None)


async def _in_memory(
    searches: Searches,
    at: Snapshot,
    whole: Recipe,
    measured: Sequence[Shard],
    queries: Matrix,
    target: float,
) -> _InMemory:
    """Times a task, the choice of shards, and searches that ask one shard and more, in turns."""

    def query(turn: int, part: int) -> Matrix:
        place = (turn + part * len(queries) // 4) % len(queries)
        return queries[place : place + 1]

    # The recall of a search whose target in each of some shards is that of the task.
    recall_of_many = max(0.01, 2.0 * target - 1.0)

    async def through(turn: int, part: int, shards: int) -> _Spent:
        recall = target if shards == 1 else recall_of_many
        some = [measured[(turn + number) % len(measured)] for number in range(shards)]
        asked, one = _only(at, some), query(turn, part)
        return await _Spent.until(lambda: searches.run(asked, one, _K, None, None, False, _fields(recall)))

    spent = _InMemory()
    # Searches open the shards where the engine runs tasks, and measure the recall of ef_search: not to be timed.
    for turn in range(len(measured)):
        await through(turn, 0, 1)
    await through(0, 0, _FAN_OUT)
    for turn in range(len(queries)):
        shard, rows = measured[turn % len(measured)], tasks.Some(query(turn, 0))
        task = partial(tasks.nearest, whole, shard.share, rows, _K, _fields(target))
        spent.task.append(await anyio.to_thread.run_sync(_Spent.by, task))
        spent.one.append(await through(turn, 1, 1))
        spent.many.append(await through(turn, 2, _FAN_OUT))
        if at.centroids is not None:
            spent.route.append(_Spent.by(partial(at.centroids.promising, query(turn, 3), _FAN_OUT)))
    return spent


async def _opening(
    searches: Searches, at: Snapshot, measured: Sequence[Shard], query: Matrix, recall: float
) -> tuple[float, float]:
    """Seconds of a search in one lazily opened shard that is not open yet, and of each further such shard.

    Each shard is opened once, as nobody can close it where an engine has processes of its own.
    """
    together = measured[: min(_FAN_OUT, len(measured) - 1)]

    async def seconds(shards: Sequence[Shard]) -> float:
        asked = _only(at, shards)
        return (await _Spent.until(lambda: searches.run(asked, query, _K, None, None, False, _fields(recall)))).seconds

    one = statistics.median([await seconds([shard]) for shard in measured[len(together) :]])
    if len(together) < 2:
        return one, one
    # Last, as the first ones also make the connections to the store.
    return one, max(0.0, await seconds(together) - one) / (len(together) - 1)


def _check_recall(recall: float) -> None:
    if isinstance(recall, bool) or not isinstance(recall, (int, float)) or not 0 < recall <= 1:
        raise InvalidInputError(f"recall must be above 0 and at most 1, got {shown(recall)}")

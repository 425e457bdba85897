"""What a larger collection would take, from figures measured on a smaller one: `measure`, then `plan`.

A plan has two kinds of figures. Measured ones are those of the smaller collection, on this machine, with its store. All
others are modelled, and each says how. The models are simple on purpose: bytes, objects and memory grow with the rows,
a walk in a graph with their logarithm, what a cold search fetches with the logarithm of the parts, its seconds with its
bytes, and how many shards have the nearest rows with the root of the number of shards.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from functools import partial
from itertools import islice
from typing import Any, Final, Unpack

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
from fabstir_vectordb.persist.parts import layout_for
from fabstir_vectordb.session import VectorDBSession
from fabstir_vectordb.sync import VectorDBSession as SyncSession

__all__ = ["CollectionPlan", "Measured", "measure", "plan"]

_K: Final = 10
_QUERIES: Final = 64
_COLD_QUERIES: Final = 16
#: Shards of a search that is compared with a search in one, for what a further shard takes. They are the measured ones,
#: several times each: no other has to be opened.
_FAN_OUT: Final = 4
#: Of each component: a float32, a 4-bit code, a 1-bit sketch. The rest of a row does not depend on its dimension.
_BYTES_PER_COMPONENT: Final = 4 + 0.5 + 0.125
#: What a search in lazily opened shards fetches, as a multiple of that in one index, measured with 8 shards: where near
#: rows are in one shard, and where they are not (docs/decisions/0036).
_SPREAD: Final = 1.25
_SPREAD_UNROUTED: Final = 2.6
_TIMES: Final = f"times {_SPREAD}, without a curve {_SPREAD_UNROUTED}"
#: The part of a machine's time and memory that is planned for: queues grow without bound near the whole of it.
_LOAD: Final = 0.7


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
        route_s: seconds of finding the most promising shards; 0 where all are asked.
        one_s: seconds of a search through the engine that asks one shard in memory.
        further_s: seconds that each further shard adds to it.
        cold_requests: requests of a search in a lazily opened shard without cached parts; 0 where shards are so small
            that they are fetched as a whole.
        cold_bytes: bytes that it fetches.
        cold_s: seconds that it takes.
        cold_byte_s: seconds that a search takes more for each byte that it fetches more.
        open_s: seconds from nothing to the first answer of a lazily opened shard.
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
    route_s: float
    one_s: float
    further_s: float
    cold_requests: float
    cold_bytes: float
    cold_s: float
    cold_byte_s: float
    open_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionPlan(Record):
    """What a collection would take.

    Attributes:
        rows: of the collection.
        dim: components of a vector.
        qps: queries a second.
        recall: that of the measured searches.
        shard_rows: rows of a shard.
        shards: number of shards.
        asked: shards that a search asks.
        bytes: stored bytes of shards and root.
        objects: stored objects of shards.
        memory_bytes: resident bytes of all shards in memory as a whole.
        lazy_memory_bytes: resident bytes of all shards, lazily opened, without cached parts. This figure and the next
            with ``cold`` are None where the measured shards are so small that they are fetched as a whole.
        cores: CPU cores that answer `qps` queries a second from memory, at 0.7 of their time.
        workers: machines for the cores and the memory, at 0.7 of it.
        drivers: processes that route, hand out and merge `qps` queries a second, at 0.7 of their time.
        seconds: of a query whose shards are in memory, while nobody else asks.
        cold_requests: requests of a query whose shards are open lazily.
        cold_bytes: bytes that it fetches.
        cold_seconds: seconds that it takes.
        open_seconds: until the first answer of shards that are not open.
        modelled: how each figure that was not measured comes about, by its name.
    """

    rows: int
    dim: int
    qps: float
    recall: float
    shard_rows: int
    shards: int
    asked: int
    bytes: float
    objects: float
    memory_bytes: float
    lazy_memory_bytes: float | None
    cores: int
    workers: int
    drivers: int
    seconds: float
    cold_requests: float | None
    cold_bytes: float | None
    cold_seconds: float | None
    open_seconds: float
    modelled: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _ShardFigures:
    rows: int
    bytes: int
    parts: int
    memory_mb: float
    lazy_mb: float
    search_s: float
    open_s: float
    cold: Sequence[_Cold]
    queries: npt.NDArray[np.float32] = field(repr=False)


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
    shards: int = 2,
    engine: Engine | None = None,
    **settings: Unpack[ConfigFields],
) -> Measured:
    """Measures a collection: its newest version is read, some of its shards are fetched as a whole and searched.

    Nothing else should run on the machine meanwhile. Figures of a store are those of the way to it from here.

    Args:
        config, **settings: as `Collection.open`. A disk cache would answer in place of the store.
        recall: of the searches, above 0 and at most 1.
        shards: how many shards are measured, those with the most rows.
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
            found = [await anyio.to_thread.run_sync(_measure_shard, whole, recipe, one, target) for one in largest]
            queries = np.concatenate([one.queries for one in found])
            async with OwnedEngine(engine) as chosen:
                searches = Searches(_asks(chosen, config.index_name, whole), session._runtime, config)
                one_s, further_s = await _through(searches, at, largest, queries, recall)
        finally:
            await anyio.to_thread.run_sync(close_shards, whole)
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
        search_s=mean("search_s"),
        route_s=_route_s(at, queries) if asked < len(at.shards) else 0.0,
        one_s=one_s,
        further_s=further_s,
        cold_requests=statistics.fmean(one.requests for one in cold),
        cold_bytes=statistics.fmean(one.bytes for one in cold),
        cold_s=statistics.fmean(one.seconds for one in cold),
        cold_byte_s=_byte_s(cold),
        open_s=mean("open_s"),
    )


def _measure_shard(whole: Recipe, recipe: Recipe, shard: Shard, target: float) -> _ShardFigures:
    """The figures of a shard, which stays open as a whole. Its own rows, evenly spread, are the queries."""
    share, fields = shard.share, _fields(target)
    verified = verify_shard(recipe, share, shard.fingerprints)
    with opened(whole, share) as session:
        step = max(1, session.count() // _QUERIES)
        picked = islice(session.scan(), 0, None, step)
        vectors = [row.vector for row in picked if row.vector is not None][:_QUERIES]
        if not vectors:
            raise InvalidInputError("no row of a shard has a vector: there is nothing to search")
        queries = np.array(vectors, dtype=np.float32)
        tasks.nearest(whole, share, tasks.Some(queries[:1]), _K, fields)  # measures the recall of ef_search first
        search_s = statistics.median(
            _seconds(partial(tasks.nearest, whole, share, tasks.Some(query), _K, fields)) for query in queries[:, None]
        )
        memory_mb = session.get_stats().memory_usage_mb
    started = time.perf_counter()
    lazily = replace(recipe, threads=1).fields()
    with SyncSession.open_share(share, recipe.s5_portal, lazy_load=True, become_whole=False, **lazily) as session:
        session.search(queries[0], _K, **fields)
        open_s = time.perf_counter() - started
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
        search_s=search_s,
        open_s=open_s,
        cold=cold,
        queries=queries,
    )


def _fields(target: float) -> SearchFields:
    return {"threshold": None, "recall_target": target}


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _route_s(at: Snapshot, queries: npt.NDArray[np.float32]) -> float:
    """Seconds of finding the most promising shards."""
    ranked = at.centroids.ranked if at.centroids is not None else len
    return statistics.median(_seconds(partial(ranked, query)) for query in queries[:, None])


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


async def _through(
    searches: Searches, at: Snapshot, measured: Sequence[Shard], queries: npt.NDArray[np.float32], recall: float
) -> tuple[float, float]:
    """Seconds of a search in one of the measured shards, in memory, and of each further shard."""

    def some(count: int) -> Snapshot:
        taken = [replace(measured[number % len(measured)], number=number) for number in range(count)]
        return replace(at, shards={shard.number: shard for shard in taken}, centroids=None)

    one, many = list[float](), list[float]()
    for place, query in enumerate(queries[: 1 + _QUERIES, None]):
        for shards, seconds in ((some(1), one), (some(_FAN_OUT), many)):
            started = time.perf_counter()
            await searches.run(shards, query, _K, None, None, False, _fields(recall))
            if place or len(queries) == 1:  # the first ones open the shards, and measure the recall of ef_search
                seconds.append(time.perf_counter() - started)
    further = statistics.median(many) - statistics.median(one)
    return statistics.median(one), max(0.0, further) / (_FAN_OUT - 1)


def plan(
    measured: Measured,
    *,
    rows: float,
    qps: float,
    dim: int | None = None,
    shard_rows: int = 1_000_000,
    worker_cpus: int = 8,
    worker_gb: float = 64.0,
) -> CollectionPlan:
    """What a collection of more rows would take, at the recall of the measured one.

    Args:
        measured: what `measure` found.
        rows: number of rows; ``1e9`` will do.
        qps: queries a second.
        dim: components of a vector; None for those of the measured rows.
        shard_rows: rows of a shard.
        worker_cpus, worker_gb: cores and memory, in 10^9 bytes, of a worker.

    Returns:
        The plan.

    Raises:
        InvalidInputError: a number is not positive.
    """
    dim = measured.dim if dim is None else dim
    given = {"rows": rows, "qps": qps, "dim": dim, "shard_rows": shard_rows}
    given |= {"worker_cpus": worker_cpus, "worker_gb": worker_gb}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise InvalidInputError(f"{name} must be a positive number, got {shown(value)}", details={"field": name})
    rows = round(rows)
    of_shard = min(shard_rows, rows)
    shards = max(1, math.ceil(rows / of_shard))
    of_shard = math.ceil(rows / shards)
    more = math.sqrt(max(1.0, shards / measured.shards))
    asked = min(shards, math.ceil(measured.asked * more)) if measured.routed else shards
    wider = _BYTES_PER_COMPONENT * (dim - measured.dim)
    row_bytes = max(1.0, measured.row_bytes + wider)
    row_memory = max(1.0, measured.row_memory_bytes + wider)
    # Lazily opened shards keep codes of the rows; the vectors stay in the store.
    row_lazy = max(1.0, measured.row_lazy_bytes * dim / measured.dim)
    layout, before = layout_for(dim, measured.chunk_size), layout_for(measured.dim, measured.chunk_size)
    parts_before = math.ceil(measured.shard_rows / before.rows_per_part)
    others = max(1.0, measured.shard_objects - parts_before)
    objects = math.ceil(of_shard / layout.rows_per_part) + others * max(1.0, of_shard / layout.rows_per_group)
    search_s = measured.search_s * dim / measured.dim * max(1.0, _log(of_shard) / _log(measured.shard_rows))
    route_s = measured.route_s * dim / measured.dim * shards / measured.shards
    # What the driver and the engine take: the search in the first shard is in one_s.
    hand_out_s = max(0.0, measured.one_s - measured.search_s) + measured.further_s * (asked - 1) + route_s
    cores = math.ceil(qps * asked * search_s / _LOAD)
    memory = rows * row_memory
    workers = max(1, math.ceil(cores / worker_cpus), math.ceil(memory / (worker_gb * 1e9 * _LOAD)))
    is_lazy = measured.cold_requests > 0
    # The more parts there are, the more of them have some of the likeliest rows.
    farther = max(1.0, _log(math.ceil(rows / layout.rows_per_part)) / _log(parts_before))
    spread = farther * min(asked, _SPREAD if measured.routed else _SPREAD_UNROUTED)
    cold_bytes = measured.cold_bytes * spread * dim / measured.dim
    # What the bytes of a measured search took grows with those that a worker fetches; the rest of its seconds stays.
    cold_s = measured.cold_s + measured.cold_byte_s * (cold_bytes / min(workers, asked) - measured.cold_bytes)
    # What a lazily opened shard holds is what opening it fetches.
    open_s = measured.open_s + measured.cold_byte_s * row_lazy * max(0, of_shard - measured.shard_rows)
    waves = math.ceil(asked / (workers * worker_cpus))
    return CollectionPlan(
        rows=rows,
        dim=dim,
        qps=qps,
        recall=measured.recall,
        shard_rows=of_shard,
        shards=shards,
        asked=asked,
        bytes=rows * row_bytes + shards * measured.root_bytes * dim / measured.dim,
        objects=shards * objects,
        memory_bytes=memory,
        lazy_memory_bytes=rows * row_lazy if is_lazy else None,
        cores=cores,
        workers=workers,
        drivers=max(1, math.ceil(qps * hand_out_s / _LOAD)),
        seconds=hand_out_s + waves * search_s,
        cold_requests=measured.cold_requests * spread if is_lazy else None,
        cold_bytes=cold_bytes if is_lazy else None,
        cold_seconds=2 * hand_out_s + cold_s if is_lazy else None,
        open_seconds=hand_out_s + waves * open_s,
        modelled=_MODELS,
    )


#: How the figures of a plan come about that were not measured.
_MODELS: Final[Mapping[str, str]] = {
    "shards": "rows / shard_rows",
    "asked": "as many as measured, times the root of how many times more shards there are; all without a curve",
    "bytes": "stored bytes a row, and 4.625 bytes for each further component; the root in proportion to the shards",
    "objects": "parts with vectors, by the rows of a part; the other parts of a shard once for each group of parts",
    "memory_bytes": "resident bytes a row, and 4.625 bytes for each further component",
    "lazy_memory_bytes": "resident bytes a row of lazily opened shards, in proportion to the dimension",
    "cores": "qps x asked x seconds of a worker's task, which grow with the logarithm of a shard's rows; / 0.7",
    "workers": "for the cores and for memory_bytes / 0.7",
    "drivers": "qps x seconds of choosing shards, handing out tasks and merging, / 0.7",
    "seconds": "choosing shards, handing out and merging; and tasks in waves over the cores, as in cores",
    "cold_requests": f"those of a search in one shard, with the logarithm of all parts with vectors; {_TIMES}",
    "cold_bytes": f"those of a search in one shard, with the logarithm of all parts with vectors; {_TIMES}",
    "cold_seconds": "handing out twice, and a search in one shard, of which a part grows with the bytes of a worker",
    "open_seconds": "handing out, and opening shards in waves over the cores; one fetches bytes by its rows",
}


def _log(rows: int) -> float:
    return math.log(max(rows, 2))


def _check_recall(recall: float) -> None:
    if isinstance(recall, bool) or not isinstance(recall, (int, float)) or not 0 < recall <= 1:
        raise InvalidInputError(f"recall must be above 0 and at most 1, got {shown(recall)}")

"""Building a collection: rows to shards, shards to an engine, and one root at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Final, Unpack

import anyio
import anyio.to_thread
import numpy as np
import numpy.typing as npt

from fabstir_vectordb.collections.engines import Engine, OwnedEngine
from fabstir_vectordb.collections.fanout import Job, run_all
from fabstir_vectordb.collections.gathering import Gathered, gather
from fabstir_vectordb.collections.keys import ShardKeys
from fabstir_vectordb.collections.placement import Placement, place, sampler_of, scale_of
from fabstir_vectordb.collections.records import ROUTES, Recipe, Route, Settings, Shard
from fabstir_vectordb.collections.root import Snapshot, without_texts, write_root
from fabstir_vectordb.collections.routing import Numbers
from fabstir_vectordb.collections.sampling import Sample
from fabstir_vectordb.collections.shards import Built, ShardVersion, build_shard
from fabstir_vectordb.collections.spool import RowsByShard, Spool
from fabstir_vectordb.collections.types import ProgressCallback, Teller
from fabstir_vectordb.config import ConfigFields, Given, Metric, VectorDBConfig, config_of
from fabstir_vectordb.errors import ConflictError, InvalidInputError
from fabstir_vectordb.index.incoming import Batch
from fabstir_vectordb.metadata.values import shown
from fabstir_vectordb.params import IndexParams, wall_clock_us
from fabstir_vectordb.session import VectorDBSession

__all__ = ["BUILDS_IN_FLIGHT", "SHARDS_MAX", "build", "build_jobs", "check_division", "check_free", "shard_of"]

#: Most shards whose rows are with the engine at a time.
BUILDS_IN_FLIGHT: Final = 8
SHARDS_MAX: Final = 65_536
#: Rows whose neighbours are looked for in all shards, to measure how many shards have them: of 128, whose share has a
#: standard error of 0.01, three shards of 8 had 0.981 where they have 0.967. Of many shards fewer, as each answers.
_CURVE_QUERIES: Final = 1_024
_CURVE_QUERIES_MIN: Final = 128
_CURVE_ANSWERS_MAX: Final = 2**17
_CURVE_K: Final = 10
_NO_QUERIES: Final = np.empty((0, 0), dtype=np.float32)


async def build(
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
    """Builds a collection of shards, as the first version of an index.

    The caller's process divides the rows among shards, in a temporary file that is encrypted (`spool`): it has some
    blocks of rows in memory, and the rows of the shards that are with the engine, which builds them. The CID depends on
    the rows, the settings and the phrase: not on the engine, on the order of the rows, or on tasks that ran twice. Rows
    without a timestamp get that of the build's beginning, all the same.

    Args:
        config, **settings: as `VectorDBSession.create`; `index_name` names the collection. `metric`, `M`,
            `ef_construction`, `chunk_size` and the settings of texts hold for all shards, `memory_budget_mb` for each
            process of the engine.
        batches: a table of Arrow or the path of a Parquet file, as `tables.add_table` takes them; or an iterable of
            such tables, of mappings with the arguments of `add_batch`, or of lists of VectorInputs.
        shards: number of shards, 1 to 65,536; fewer are made where there are too few different rows.
        route: how rows go to shards. ``nearest``: near rows to one shard, so that a search need not ask all of them.
            ``hash``: by the BLAKE3 of the id. ``range``: by ranges of ids. With the last two, `get` asks one shard.
        engine: where shards are built; None for threads of this process.
        progress: called with a CollectionProgress, on the event loop's thread.

    Returns:
        The CID of the root. `Collection.open` opens it.

    Raises:
        InvalidConfigError: a setting is refused; or the store is ``memory:``, which one session has for itself.
        InvalidInputError: a row is refused, there are no rows, or `shards` or `route` is.
        ConflictError: an id occurs twice (details ``ids``), or the index has a version already.
        MemoryBudgetExceededError: the rows of a shard do not fit in the budget: build more shards.
        StorageError, S5Error, SessionError: the store, the engine or the temporary file failed. Nothing but unnamed
            objects was stored, and a second build uses them.
    """
    config = config_of(Given(config, settings))
    recipe = Recipe.of(config, lazy_load=True, become_whole=True)
    check_division(shards, route)
    owned = OwnedEngine(engine)
    tell = Teller(progress)
    async with VectorDBSession.create(without_texts(config)) as session:
        await check_free(session, config.index_name)
        tell("rows", 0, shards)
        now_us = wall_clock_us() if config.clock is None else round(config.clock() * 1e6)
        params = IndexParams(
            metric=config.metric,
            M=config.M,
            ef_construction=config.ef_construction,
            chunk_size=config.chunk_size,
            text=config.text_settings,
        )
        keys = await ShardKeys.of(config)
        with Spool[Batch]() as blocks:
            rows = gather(batches, now_us, sampler_of(route, shards), blocks)
            if not rows.rows:
                raise InvalidInputError("there are no rows: a collection is built of at least one")
            tell("routes", 0, shards)
            scale = scale_of(rows.sample)
            with RowsByShard(rows.dim) as parted:
                plan = await anyio.to_thread.run_sync(
                    _divided, route, rows, range(shards), params.metric, scale, parted
                )
                blocks.close()
                asked = _curve_queries(plan, rows.sample)
                async with owned as chosen:
                    built: list[Built] = (
                        await run_all(
                            chosen,
                            build_jobs(recipe, keys, params, plan, parted.of, asked.vectors),
                            in_flight=_in_flight(parted.bytes, config.budget_bytes),
                            done=tell.counter("shards", len(plan.numbers)),
                        )
                    ).results
        made = {
            number: shard_of(number, one.stored, plan.firsts.get(number))
            for number, one in zip(plan.numbers, built, strict=True)
        }
        common = Settings(
            route=route,
            dim=rows.dim,
            params=params,
            next_shard=max(made) + 1,
            scale=scale,
            curve=_curve(plan, asked, built),
        )
        await write_root(session, None, Snapshot(common, made, plan.centroids))
        cid = await session.save_to_s5()
        tell("root", len(made), len(made))
        return cid


def check_division(shards: int, route: Route) -> None:
    """Refuses a number of shards that is out of range, and a route that there is not.

    Raises:
        InvalidInputError: one of them is refused.
    """
    if isinstance(shards, bool) or not isinstance(shards, int) or not 1 <= shards <= SHARDS_MAX:
        raise InvalidInputError(
            f"shards must be an integer from 1 to {SHARDS_MAX}, got {shown(shards)}", details={"limit": SHARDS_MAX}
        )
    if route not in ROUTES:
        raise InvalidInputError(f"route must be one of {', '.join(ROUTES)}, got {shown(route)}")


async def check_free(session: VectorDBSession, index_name: str) -> None:
    """Refuses to build a collection where an index is.

    Raises:
        ConflictError: the index has a version already.
        VectorDBError: the store failed.
    """
    await session.load_user_vectors(missing_ok=True)
    if (await session.get_stats()).last_cid is not None:
        raise ConflictError(
            f"index {index_name!r} has a version already: build the collection under another index_name, or open it",
            details={"index_name": index_name},
        )


def build_jobs(
    recipe: Recipe,
    keys: ShardKeys,
    params: IndexParams,
    plan: Placement,
    rows_of: Callable[[int], Batch],
    queries: npt.NDArray[np.float32],
) -> list[Job]:
    """The tasks that build the shards of a placement, by number. `rows_of` is asked for the rows of each in turn."""

    def args(number: int) -> Sequence[Any]:
        key, is_mapped = keys.of_shard(number), plan.centroids is not None
        return recipe, key, params, rows_of(number), queries, _CURVE_K + 1, is_mapped

    return [Job(number, keys.hint(number), build_shard, partial(args, number)) for number in plan.numbers]


def _divided(
    route: Route, rows: Gathered, numbers: Sequence[int], metric: Metric, scale: float, parted: RowsByShard
) -> Placement:
    """The placement of the rows, which are sorted into shards."""
    with ExitStack() as spools:

        def keep() -> Spool[Numbers]:
            return spools.enter_context(Spool())

        plan = place(route, rows.blocks, rows.sample, numbers, metric, scale, keep)
        for block, homes in zip(rows.blocks, plan.homes, strict=True):
            parted.add(block, homes)
    return plan


def _in_flight(bytes_of_shards: Mapping[int, int], budget_bytes: int) -> int:
    """How many shards are with the engine at a time: their rows take some three times their size here."""
    largest = max(bytes_of_shards.values())
    return max(1, min(BUILDS_IN_FLIGHT, budget_bytes // (3 * largest)))


def shard_of(number: int, stored: ShardVersion, first: str | None) -> Shard:
    """A shard of the root, of a version that a task stored."""
    return Shard(
        number=number,
        cid=stored.cid,
        share=stored.share,
        rows=stored.rows,
        superseded=stored.superseded,
        first=first,
        fingerprints=stored.fingerprints,
    )


# ---- how many shards have the nearest rows


def _curve_queries(plan: Placement, sample: Sample) -> Sample:
    """The rows of the sample that are queries, for the curve of a division of which fewer shards than all can be asked.

    They are the last ones: the first ones are the centroids that training began with, and nearer to these than others.
    """
    shards = len(plan.numbers)
    if plan.centroids is None or shards == 1:
        return Sample([], _NO_QUERIES)
    first = max(0, len(sample.ids) - min(_CURVE_QUERIES, max(_CURVE_QUERIES_MIN, _CURVE_ANSWERS_MAX // shards)))
    return Sample(sample.ids[first:], sample.vectors[first:])


def _curve(plan: Placement, asked: Sample, built: Sequence[Built]) -> tuple[float, ...]:
    """The share of the nearest rows that are in the n most promising shards, for n from 1 on.

    Args:
        plan: the division.
        asked: the queries.
        built: the shards, with the nearest rows of each query.
    """
    if plan.centroids is None:
        return ()
    if not len(asked.ids):
        return (1.0,)
    ranked = plan.centroids.ranked(asked.vectors)
    counts = np.zeros(len(plan.numbers), dtype=np.int64)
    for query, own in enumerate(asked.ids):
        near = sorted(
            (distance, id, number)
            for number, one in zip(plan.numbers, built, strict=True)
            for id, distance in one.neighbours[query]
            if id != own
        )
        for _, _, number in near[:_CURVE_K]:
            counts[np.flatnonzero(ranked[query] == number)[0]] += 1
    return tuple((np.cumsum(counts) / max(1, counts.sum())).tolist())

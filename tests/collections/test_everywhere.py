"""The same CIDs and the same answers, bit for bit, from threads, a pool of processes, Dask and Ray."""

from __future__ import annotations

import multiprocessing
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from clusters import OF_CLUSTERS, ray_cluster
from gathering import QUERIES, TEXT, bits, settings, vectors, worded

from fabstir_vectordb import NotFoundError, SearchResults
from fabstir_vectordb.collections import Collection, Engine, RayEngine, build, over

pytestmark = OF_CLUSTERS
BY_VECTOR: list[dict[str, Any]] = [
    {},
    {"exact": True},
    {"filter": {"kind": "a"}},
    {"recall_target": 0.9},
    {"shards": 2},
    {"include_vectors": True},
    {"group_by": "tags", "group_size": 3},
    {"mmr": 0.5},
    {"threshold": 0.7},
]


@contextmanager
def ray_engine() -> Iterator[Engine]:
    with ray_cluster():
        engine = RayEngine(2)
        yield engine
        engine.close()


@contextmanager
def dask_engine() -> Iterator[Engine]:
    distributed = pytest.importorskip("distributed", reason="Dask is not installed")
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None, host="127.0.0.1"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield over(client.get_executor())


@contextmanager
def pool_engine() -> Iterator[Engine]:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield over(pool)


ENGINES = {"pool": pool_engine, "dask": dask_engine, "ray": ray_engine}


def seen(hits: SearchResults) -> Any:
    """All of an answer; hits with vectors as bytes."""
    values = [
        (hit.id, hit.score, hit.distance, hit.text_score, hit.highlights, hit.metadata)
        + (() if hit.vector is None else (hit.vector.tobytes(),))
        for hit in hits
    ]
    groups = [(group.value, [hit.id for hit in group.hits]) for group in hits.groups]
    return values, hits.below_threshold, hits.plan, groups, getattr(hits, "shards", None)


async def everything(many: Collection) -> AsyncIterator[Any]:
    """The answers of every kind of read."""
    for options in BY_VECTOR:
        chosen = {"threshold": None, **options}
        yield [seen(hits) for hits in await many.search_batch(vectors(12), 15, **chosen)]
        yield seen(await many.search(vectors()[0], 15, **chosen))
    for text in filter(None, QUERIES):
        yield seen(await many.search(text=text, k=15, threshold=None, highlight=True))
        yield seen(await many.search(vectors()[1], 15, text=text, threshold=None, filter={"kind": "b"}))
        yield seen(await many.search(vectors()[1], 5, text=text, threshold=None, group_by="kind", group_size=2))
    yield await many.count({"kind": "a"}), await many.facets("kind"), await many.facets("tags", limit=3)
    yield [(hit.id, hit.distance) async for hit in many.search_stream(vectors()[2], threshold=None)]
    yield [(hit.id, hit.score) async for hit in many.search_stream(vectors()[2], text="harbour har*", threshold=None)]
    yield [bits(row) async for row in many.scan({"kind": "c"})]
    yield [bits(row) for row in await many.get(["row-0003", "nothing", "row-0077"])]
    yield await many.fields(), sorted((await many.get_timestamps()).items())


@pytest.mark.parametrize("name", sorted(ENGINES))
async def test_every_engine_gives_the_same_cids_and_answers(name: str, tmp_path: Path) -> None:
    here, there = settings(tmp_path / "threads"), settings(tmp_path / name)
    cid = await build(here, [worded()], shards=4, **TEXT)
    with ENGINES[name]() as engine:
        assert await build(there, [worded()], shards=4, engine=engine, **TEXT) == cid
        for how in ({}, {"become_whole": False}):
            async with (
                await Collection.open(here, **how) as own,
                await Collection.open(there, engine=engine, **how) as far,
            ):
                expected = [answer async for answer in everything(own)]
                assert [answer async for answer in everything(far)] == expected
                assert len(expected) > 2 * len(BY_VECTOR) + 3 * (len(QUERIES) - 1)
        async with await Collection.open(here) as own, await Collection.open(there, engine=engine) as far:
            changed = await own.change(deletes=["row-0001"])
            assert await far.change(deletes=["row-0001"]) == changed
            with pytest.raises(NotFoundError):
                await far.change(deletes=["row-0001"])

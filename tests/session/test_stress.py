"""Searches beside adds, deletes, migrations, vacuums, saves and loads: no duplicate, no missing and no deleted row.

An answer must be that of a moment between its question and itself. Each change notes, on one counter, when a row may
first have been there and when it surely was, when it may have been gone and when it surely was; an answer may hold
only rows that may have been there meanwhile, and must hold every nearer one that surely was there all the time.
"""

from __future__ import annotations

import itertools
import random
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest
from saving import session_on

from fabstir_vectordb import SearchResults, VectorDBSession

pytestmark = pytest.mark.anyio

DIM, K, NOW, SEED = 12, 10, 1_700_000_000.0, 20_261_124
NEVER = 10**18


@dataclass
class Life:
    """When a row was there, in ticks."""

    vector: np.ndarray
    may_be: int
    sure: int = NEVER
    may_be_gone: int = NEVER
    gone: int = NEVER


@dataclass
class World:
    """What is known of all rows that ever were."""

    ticks: Any = field(default_factory=lambda: itertools.count(1))
    rows: dict[str, Life] = field(default_factory=dict)
    checked: int = 0

    def tick(self) -> int:
        return next(self.ticks)

    def check(self, query: np.ndarray, asked: int, results: SearchResults, answered: int, exact: bool) -> None:
        ids = [hit.id for hit in results]
        assert len(ids) == len(set(ids)), "a row came twice"
        for id in ids:
            row = self.rows[id]
            assert row.may_be < answered, f"{id} came before it was added"
            assert row.gone > asked, f"{id} came after it was deleted"
        if exact:
            sure = [(id, r) for id, r in list(self.rows.items()) if r.sure < asked and r.may_be_gone > answered]
            assert len(ids) >= min(K, len(sure)), "there were more rows"
            vectors = np.array([row.vector for _, row in sure])
            distances = np.linalg.norm(vectors - query, axis=1) if sure else np.empty(0)
            farthest = results[-1].distance if len(ids) == K else np.inf
            missing = {id for (id, _), far in zip(sure, distances, strict=True) if far < farthest - 1e-6} - set(ids)
            assert not missing, f"{missing} were nearer than the last hit"
        self.checked += 1


async def search(session: VectorDBSession, world: World, until: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    while time.monotonic() < until:
        query = rng.standard_normal(DIM).astype(np.float32)
        exact, kind = bool(rng.integers(2)), rng.integers(4)
        asked = world.tick()
        if kind == 0:
            batch = await session.search_batch(query[None], K, threshold=None, exact=exact)
            results = batch[0]
        elif kind == 1:
            results = await session.search(query, K, threshold=None, filter={"even": {"$exists": True}}, exact=exact)
        else:
            results = await session.search(query, K, threshold=None, exact=exact)
        world.check(query, asked, results, world.tick(), exact)
        for hit in results:
            assert hit.metadata["id"] == hit.id, "metadata of another row"
        await anyio.lowlevel.checkpoint()


async def change(session: VectorDBSession, world: World, until: float, seed: int) -> None:
    rng, choose, numbers = np.random.default_rng(seed), random.Random(seed), itertools.count()
    while time.monotonic() < until:
        live = [id for id, row in world.rows.items() if row.may_be_gone == NEVER]
        if len(live) < 2_500 or (len(live) < 4_000 and choose.random() < 0.5):
            ids = [f"r{next(numbers)}" for _ in range(choose.choice((1, 20, 400)))]
            vectors = rng.standard_normal((len(ids), DIM)).astype(np.float32)
            may_be = world.tick()
            for id, vector in zip(ids, vectors, strict=True):
                world.rows[id] = Life(vector, may_be)
            times = [NOW if choose.random() < 0.5 else 1.0 for _ in ids]
            await session.add_batch(ids, vectors, [{"id": id, "even": len(id) % 2} for id in ids], times)
            sure = world.tick()
            for id in ids:
                world.rows[id].sure = sure
        else:
            for id in choose.sample(live, choose.choice((1, 10))):
                world.rows[id].may_be_gone = world.tick()
                await session.delete_vector(id)
                world.rows[id].gone = world.tick()
        await anyio.lowlevel.checkpoint()


async def maintain(session: VectorDBSession, until: float) -> None:
    while time.monotonic() < until:
        await anyio.sleep(0.3)
        await session.optimize()
        await anyio.sleep(0.2)
        await session.vacuum()


async def save_and_load(session: VectorDBSession, uri: str, until: float) -> None:
    while time.monotonic() < until:
        cid = await session.save_to_s5(on_conflict="overwrite")
        async with await session_on(uri, clock=lambda: NOW, metric="l2") as other:
            await other.load_user_vectors(cid)
            ids = [row.id async for row in other.scan()]
            assert len(ids) == len(set(ids)) == await other.count()
        await anyio.sleep(0.2)


async def run(seconds: float) -> int:
    world, uri, until = World(), f"memory:{uuid.uuid4()}", time.monotonic() + seconds
    async with await session_on(uri, clock=lambda: NOW, metric="l2", threads=2) as session:
        async with anyio.create_task_group() as group:
            group.start_soon(change, session, world, until, SEED)
            group.start_soon(maintain, session, until)
            group.start_soon(save_and_load, session, uri, until)
            for number in range(3):
                group.start_soon(search, session, world, until, SEED + number)
        assert await session.count() == sum(row.may_be_gone == NEVER for row in world.rows.values())
    return world.checked


async def test_answers_are_those_of_a_moment() -> None:
    assert await run(3) > 20


@pytest.mark.long
async def test_answers_are_those_of_a_moment_for_a_minute() -> None:
    assert await run(60) > 500

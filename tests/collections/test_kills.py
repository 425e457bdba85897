"""Processes that are killed, and Dask: no wrong or partial answer, the root old or new, CIDs as without kills."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from gathering import START_S, batch, bits, seen, settings, vectors

from fabstir_vectordb import SessionError, VectorInput
from fabstir_vectordb.collections import Collection, Engine, build, over

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop, pytest.mark.long]

KILLS = 3


class Killer:
    """Pools of two processes, of which one is killed at a random moment, until there were enough kills."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.kills = 0

    async def until_done(self, run: Callable[[Engine], Awaitable[Any]], check: Callable[[], Awaitable[None]]) -> Any:
        """The result of a call on a pool without kills, after calls that a kill made fail."""
        while True:
            with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
                pool.submit(os.getpid).result()  # the processes have started
                timer = threading.Timer(self.chance.random(), self._kill, [pool])
                is_last = self.kills >= KILLS
                if not is_last:
                    timer.start()
                try:
                    result = await run(over(pool))
                    if is_last:
                        return result
                except SessionError as error:
                    if not error.retryable or "the engine failed" not in error.message:
                        raise
                finally:
                    timer.cancel()
                    if not is_last:
                        timer.join()
            await check()

    def _kill(self, pool: ProcessPoolExecutor) -> None:
        processes = sorted(pool._processes or {})
        if processes:
            os.kill(self.chance.choice(processes), signal.SIGKILL)
        self.kills += 1


async def test_killed_builds_searches_and_changes(tmp_path: Path) -> None:
    rows = batch(600)
    clean, killed = settings(tmp_path / "clean"), settings(tmp_path / "killed")
    adds = [VectorInput(f"new-{n}", vectors()[n], {"n": n}, START_S) for n in range(50)]
    deletes = rows["ids"][:20]
    cid = await build(clean, [rows], shards=6)
    async with await Collection.open(clean) as many:
        before = seen(await many.search(vectors()[0], 30, threshold=None))
        changed = await many.change(adds, deletes)
        after = [bits(row) async for row in many.scan()]

    async def built(engine: Engine) -> str:
        try:
            return await build(killed, [rows], shards=6, engine=engine)
        except Exception as error:
            if "has a version already" not in str(error):
                raise
            async with await Collection.open(killed) as many:
                found = (await many.stats()).cid
                assert found is not None
                return found

    async def nothing() -> None:
        pass

    assert await Killer(1).until_done(built, nothing) == cid

    async def searched(engine: Engine) -> Any:
        async with await Collection.open(killed, engine=engine) as many:
            return seen(await many.search(vectors()[0], 30, threshold=None))

    assert await Killer(2).until_done(searched, nothing) == before

    async def old_or_new() -> None:
        async with await Collection.open(killed) as many:
            assert (await many.stats()).cid in (cid, changed)

    async def change(engine: Engine) -> str:
        async with await Collection.open(killed, engine=engine) as many:
            return await many.change(adds, deletes, missing_ok=True)

    assert await Killer(3).until_done(change, old_or_new) == changed
    async with await Collection.open(killed) as many:
        assert [bits(row) async for row in many.scan()] == after
        assert (await many.verify()).shards == 6


async def test_dask_gives_the_same_cid_and_the_same_answers(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="Dask is not installed")
    cid = await build(settings(tmp_path / "threads"), [batch()], shards=3)
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None, host="127.0.0.1"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        engine = over(client.get_executor())
        assert await build(settings(tmp_path / "dask"), [batch()], shards=3, engine=engine) == cid
        answers = []
        for folder, chosen in (("threads", None), ("dask", engine)):
            async with await Collection.open(settings(tmp_path / folder), engine=chosen) as many:
                answers.append(seen(await many.search(vectors()[0], 30, threshold=None, filter={"kind": "a"})))
                answers.append([bits(row) async for row in many.scan()])
                assert await many.change(deletes=["row-0001"]) != cid
                with pytest.raises(Exception, match="NOT_FOUND"):
                    await many.change(deletes=["row-0001"])
        assert answers[:2] == answers[2:]

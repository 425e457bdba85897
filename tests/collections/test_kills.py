"""Processes that are killed, and Dask: no wrong or partial answer, the root old or new, CIDs as without kills."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from clusters import ray_cluster
from gathering import PHRASE, START_S, batch, bits, seen, settings, vectors

from fabstir_vectordb import NotFoundError, SessionError, VectorInput
from fabstir_vectordb.collections import Collection, Engine, RayEngine, build, over, sync

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop, pytest.mark.long]

#: Kills of each phase: build, search, change, and a driver that does all of them.
KILLS = int(os.environ.get("FVDB_KILLS", "20"))
#: A pool does not survive a kill, and another one takes a second.
POOL_KILLS = max(3, KILLS // 5)


# ---- pools of processes


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
                is_last = self.kills >= POOL_KILLS
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


# ---- actors of Ray


def marked(folder: Path, task: Callable[..., Any], *args: Any) -> Any:
    """A task that says in which process it runs, as long as it runs."""
    mark = folder / str(os.getpid())
    mark.touch()
    try:
        return task(*args)
    finally:
        mark.unlink(missing_ok=True)


class Marked:
    """An engine whose tasks say where they run."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine = engine
        self.folder = folder

    def submit(self, key: str, task: Callable[..., Any], /, *args: Any) -> Future[Any]:
        return self.engine.submit(key, marked, self.folder, task, *args)


class Sniper:
    """Kills processes in the middle of their tasks, one after the other."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.kills = 0
        self._folder = folder
        self._chance = random.Random(seed)

    @contextmanager
    def killing(self) -> Iterator[None]:
        end = threading.Event()

        def go() -> None:
            while self.kills < KILLS and not end.wait(0.02 + 0.3 * self._chance.random()):
                marks = sorted(self._folder.iterdir())
                if marks:
                    mark = self._chance.choice(marks)
                    with suppress(ProcessLookupError, FileNotFoundError):
                        mark.unlink()  # first: the process that ends its task meanwhile is left alone
                        os.kill(int(mark.name), signal.SIGKILL)
                        self.kills += 1

        helper = threading.Thread(target=go)
        helper.start()
        try:
            yield
        finally:
            end.set()
            helper.join()


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    with ray_cluster() as cluster:
        yield cluster


async def insisting(run: Callable[[], Awaitable[Any]]) -> Any:
    """The result of a call that is repeated as long as the engine fails: a task can be killed more often than Ray runs
    it again."""
    while True:
        try:
            return await run()
        except SessionError as error:
            if not error.retryable or "the engine failed" not in error.message:
                raise


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_killed_actors(ray: Any, tmp_path: Path) -> None:
    rows = batch(2_000)
    clean = settings(tmp_path / "clean")
    cid = await build(clean, [rows], shards=6)
    async with await Collection.open(clean) as many:
        answer = [seen(hits) for hits in await many.search_batch(vectors(20), 30, threshold=None)]
        scanned = [bits(row) async for row in many.scan({"kind": "a"})]
    marks = tmp_path / "marks"
    marks.mkdir()
    own = RayEngine(2)
    engine = Marked(own, marks)

    builder, number = Sniper(marks, 4), 0
    while builder.kills < KILLS or not number:
        number += 1
        killed = settings(tmp_path / f"killed-{number}")
        with builder.killing():
            assert await insisting(lambda: build(killed, [rows], shards=6, engine=engine)) == cid  # noqa: B023

    reader = Sniper(marks, 5)
    async with await Collection.open(killed, engine=engine) as many:
        while reader.kills < KILLS:
            with reader.killing():
                found = await insisting(lambda: many.search_batch(vectors(20), 30, threshold=None))
                assert [seen(hits) for hits in found] == answer
                assert [bits(row) for row in await insisting(lambda: all_rows(many, {"kind": "a"}))] == scanned

    changer, step = Sniper(marks, 6), 0
    async with await Collection.open(killed, engine=engine) as many, await Collection.open(clean) as twin:
        while changer.kills < KILLS:
            step += 1
            adds = [VectorInput(f"new-{n}", vectors(50, seed=step)[n], {"n": n}, START_S + step) for n in range(50)]
            deletes = rows["ids"][20 * step : 20 * step + 20]
            with changer.killing():
                changed = await insisting(lambda: many.change(adds, deletes, missing_ok=True))  # noqa: B023
            assert changed == await twin.change(adds, deletes, missing_ok=True)
        assert [bits(row) async for row in many.scan()] == [bits(row) async for row in twin.scan()]
        assert (await many.verify()).shards == 6
    own.close()
    print(f"kills: {builder.kills} in {number} builds, {reader.kills} of readers, {changer.kills} in {step} changes")


async def all_rows(many: Collection, where: Any) -> list[Any]:
    return [row async for row in many.scan(where)]


# ---- the driver

DRIVER = """
import sys
from gathering import START_S, batch, settings, vectors
from fabstir_vectordb import VectorInput
from fabstir_vectordb.collections import sync
fields = settings(sys.argv[1], user_seed_phrase=sys.argv[2])
print("ready", flush=True)
try:
    sync.build(fields, [batch(2_000)], shards=6)
except Exception as error:
    if "has a version already" not in str(error):
        raise
adds = [VectorInput(f"new-{n}", vectors()[n], {"n": n}, START_S) for n in range(50)]
with sync.Collection.open(fields) as many:
    many.change(adds, batch(2_000)["ids"][:20], missing_ok=True)
    print(many.stats().cid)
"""


def test_a_killed_driver(tmp_path: Path) -> None:
    rows, clean, killed = batch(2_000), settings(tmp_path / "clean"), settings(tmp_path / "killed")
    built = sync.build(clean, [rows], shards=6)
    adds = [VectorInput(f"new-{n}", vectors()[n], {"n": n}, START_S) for n in range(50)]
    with sync.Collection.open(clean) as many:
        changed = many.change(adds, rows["ids"][:20])
        expected = [bits(row) for row in many.scan()]
    here = Path(__file__).resolve().parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parents[1])])}
    chance, kills, longest = random.Random(7), 0, 1.0
    states: set[str | None] = set()
    while True:
        command = [sys.executable, "-c", DRIVER, killed["s5_portal"], PHRASE]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as driver:
            assert driver.stdout is not None
            assert driver.stdout.readline() == "ready\n"
            started = time.monotonic()
            if kills < KILLS:
                with suppress(subprocess.TimeoutExpired):
                    driver.wait(longest * chance.random())
                if driver.poll() is None:
                    driver.kill()
                    kills += 1
                else:  # it was through: sooner next time
                    longest = max(0.05, 0.8 * (time.monotonic() - started))
            assert driver.wait(300) in (0, -signal.SIGKILL)
            done = driver.stdout.read().strip() if driver.returncode == 0 else None
        with suppress(NotFoundError), sync.Collection.open(killed) as many:
            states.add(many.stats().cid)
        if done is not None:
            assert done == changed
            if kills >= KILLS:
                break
            killed = settings(tmp_path / f"killed-{kills}")  # once more from the beginning
    assert states <= {built, changed}
    with sync.Collection.open(killed) as many:
        assert [bits(row) for row in many.scan()] == expected
        assert many.verify().shards == 6


# ---- Dask


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

"""Kills processes of a collection at random moments of builds, searches and changes; rows, answers and CIDs stay.

    python tests/campaigns/collection_kills.py --kills 100 --results collection-kills.jsonl --page

Three kinds of processes are killed by SIGKILL, in each of the three phases:

- an actor of Ray, in the middle of a task. Ray starts it again, and the task with it; a task that is lost four times
  ends its call with a SessionError, and the call is made again;
- a process of a pool, which does not survive that: the call is made again on another pool;
- the driver, which calls the collection: another driver makes the same call. A part of those that move the root are
  killed as soon as it has moved, a moment that few others meet.

A call that returns must have the CID or the answer, bit for bit, of the same call without kills. After a call that did
not return, the root is the one before or the one that the call makes. Everything else ends the campaign with an error.

--page writes the table of docs/faults.md. Results are continued: only the kills that are missing are made.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "collections"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import anyio
import anyio.to_thread
import tally
from clusters import ray_cluster
from gathering import START_S, batch, bits, seen, settings, vectors

from fabstir_vectordb import NotFoundError, SessionError, VectorInput
from fabstir_vectordb.collections import Collection, Engine, RayEngine, build, over

SEED = 20_261_127
PHASES = ("build", "search", "change")
KILLED = ("actor", "process", "driver")
SHARDS = 6
#: Kills of one kind before it is another one's turn.
AT_A_TIME = 10
#: The part of the drivers of builds and changes that are killed as soon as the root has moved.
AT_THE_MOVE = 0.25
#: Searches of a driver, so that it is there to be killed.
SEARCHES = 50
QUERIES = 20

Call = Callable[[Engine | None], Awaitable[Any]]


# ---- the calls


def changes(step: int, ids: list[str]) -> tuple[list[VectorInput], list[str]]:
    """What a change adds, some of it in the place of rows, and what it deletes."""
    new = vectors(50, seed=step)
    adds = [VectorInput(f"new-{n}", new[n], {"n": n}, START_S + step) for n in range(50)]
    return adds, ids[20 * step : 20 * step + 20]


async def built(fields: dict[str, Any], rows: dict[str, Any], engine: Engine | None = None) -> str:
    """The CID of a collection, which a call that did not return may have built."""
    try:
        return await build(fields, [rows], shards=SHARDS, engine=engine)
    except Exception as error:
        if "has a version already" not in str(error):
            raise
        return await root_of(fields) or ""


async def root_of(fields: dict[str, Any]) -> str | None:
    """The CID of the newest root; None where there is none."""
    with suppress(NotFoundError):
        async with await Collection.open(fields) as many:
            return (await many.stats()).cid
    return None


async def answered(fields: dict[str, Any], engine: Engine | None = None) -> Any:
    """Hits of a batch, and rows under a filter."""
    async with await Collection.open(fields, engine=engine) as many:
        found = await many.search_batch(vectors(QUERIES), 30, threshold=None)
        return [seen(hits) for hits in found], [bits(row) async for row in many.scan({"n": {"$lt": 300}})]


async def changed(fields: dict[str, Any], step: int, ids: list[str], engine: Engine | None = None) -> str:
    """The CID after a change, which a call that did not return may have made."""
    async with await Collection.open(fields, engine=engine) as many:
        return await many.change(*changes(step, ids), missing_ok=True)


def pointers_of(fields: dict[str, Any]) -> list[tuple[str, int]]:
    """The pointers of a store in a directory, and when they moved."""
    folder = Path(fields["s5_portal"].removeprefix("file://"), "pointers")
    return sorted((one.name, one.stat().st_mtime_ns) for one in folder.iterdir()) if folder.exists() else []


def wait_for_move(fields: dict[str, Any], before: list[tuple[str, int]], driver: Any) -> None:
    """Waits until a pointer moves, or the driver ends."""
    while pointers_of(fields) == before and driver.is_alive():
        time.sleep(0.001)


# ---- killers


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


@contextmanager
def sniper(folder: Path, chance: random.Random, most: int) -> Iterator[list[int]]:
    """Kills processes in the middle of their tasks, one after the other; gives their numbers."""
    end, killed = threading.Event(), list[int]()

    def go() -> None:
        while len(killed) < most and not end.wait(0.02 + 0.4 * chance.random()):
            if marks := sorted(folder.iterdir()):
                mark = chance.choice(marks)
                with suppress(ProcessLookupError, FileNotFoundError):
                    mark.unlink()  # first: a process that ends its task meanwhile is left alone
                    os.kill(int(mark.name), signal.SIGKILL)
                    killed.append(int(mark.name))

    helper = threading.Thread(target=go)
    helper.start()
    try:
        yield killed
    finally:
        end.set()
        helper.join()


def of_engine(error: SessionError) -> bool:
    """Whether a call ended because tasks were lost."""
    return error.retryable and "the engine failed" in error.message


# ---- the campaign


class Campaign:
    """A collection that is never killed, and its twin.

    Args:
        folder: where both are.
        rows: of each.
        results: the kills.
    """

    def __init__(self, folder: Path, rows: int, results: tally.Tally) -> None:
        self._folder, self._results = folder, results
        self._rows = batch(rows)
        self._clean = settings(folder / "clean")
        self._number = 0

    async def start(self) -> None:
        """Builds the collection that is never killed."""
        self._built = await build(self._clean, [self._rows], shards=SHARDS)
        self._answer = await answered(self._clean)

    def _fresh(self, is_built: bool) -> dict[str, Any]:
        """An empty store, or one with the collection as it was built."""
        folder = self._folder / f"killed-{self._number}"
        shutil.rmtree(folder, ignore_errors=True)
        self._number += 1
        folder = self._folder / f"killed-{self._number}"
        if is_built:
            shutil.copytree(self._folder / "clean", folder)
        return settings(folder)

    async def kill(self, phase: str, killed: str, most: int, engine: Engine | None) -> None:
        """Makes so many kills of one kind.

        Args:
            phase, killed: the kind.
            most: how many.
            engine: the actors.
        """
        chance = random.Random(f"{SEED} {phase} {killed} {self._results.count(phase=phase, killed=killed)}")
        fields, step, left = self._fresh(phase != "build"), 0, most
        twin = settings(self._folder / "twin")
        shutil.rmtree(self._folder / "twin", ignore_errors=True)
        shutil.copytree(self._folder / "clean", self._folder / "twin")
        before = after = None if phase == "build" else self._built
        while left:
            expected: Any
            if phase == "build":
                expected = after = self._built
            elif phase == "change":
                expected = after = await changed(twin, step, self._rows["ids"])
            else:
                expected = self._answer

            async def call(engine: Engine | None, fields: dict[str, Any] = fields, step: int = step) -> Any:
                if phase == "build":
                    return await built(fields, self._rows, engine)
                if phase == "change":
                    return await changed(fields, step, self._rows["ids"], engine)
                return await answered(fields, engine)

            async def look(fields: dict[str, Any] = fields, roots: tuple[Any, Any] = (before, after)) -> str:
                root = await root_of(fields)
                assert root in roots, (phase, killed, root, roots)
                return "old" if root == roots[0] else "new"

            if killed == "actor":
                assert engine is not None
                left -= await self._actors(phase, call, look, expected, engine, chance, left)
            elif killed == "process":
                left -= await self._pool(phase, call, look, expected, chance)
            else:
                left -= await self._driver(phase, fields, step, call, look, expected, chance)
            if phase == "build":
                fields = self._fresh(False)
            elif phase == "change":
                before, step = after, step + 1
        if phase == "change":
            async with await Collection.open(fields) as many, await Collection.open(twin) as other:
                assert [bits(row) async for row in many.scan()] == [bits(row) async for row in other.scan()]
                assert (await many.verify()).shards == SHARDS

    async def _actors(
        self,
        phase: str,
        call: Call,
        look: Callable[[], Awaitable[str]],
        expected: Any,
        engine: Engine,
        chance: random.Random,
        most: int,
    ) -> int:
        """Kills actors during a call until it returns; gives their number."""
        marks = Path(tempfile.mkdtemp(dir=self._folder))
        failed, done = [], False
        with sniper(marks, chance, most) as victims:
            while not done:
                try:
                    assert await call(Marked(engine, marks)) == expected, (phase, "actor")
                    done = True
                except SessionError as error:
                    if not of_engine(error):
                        raise
                    assert len(victims) > len(failed), "a call failed without a kill"
                    failed.append(await look())
        for number in range(len(victims)):
            found = failed[number] if number < len(failed) else None
            self._note(phase, "actor", found)
        return len(victims)

    async def _pool(
        self, phase: str, call: Call, look: Callable[[], Awaitable[str]], expected: Any, chance: random.Random
    ) -> int:
        """Kills one process of a pool during a call, and makes the call again on another pool; gives how many were.

        A call that was over before its turn counts for nothing.
        """
        failed, victims, ended = None, list[int](), threading.Event()
        with ProcessPoolExecutor(2, mp_context=forks()) as pool:
            while len(pool._processes or {}) < 2:
                pool.submit(os.getpid).result()
                pool.submit(time.sleep, 0.1)
            pids = sorted(pool._processes or {})

            def shoot() -> None:
                if not ended.is_set():
                    os.kill(victim := chance.choice(pids), signal.SIGKILL)
                    victims.append(victim)

            timer = threading.Timer(chance.random() * self._seconds(phase), shoot)
            timer.start()
            try:
                assert await call(over(pool)) == expected, (phase, "process")
            except SessionError as error:
                if not of_engine(error):
                    raise
                assert victims, "a call failed without a kill"
                failed = await look()
                # CPython's pool does not always end the other process, and would wait for it for ever.
                for pid in pids:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            finally:
                ended.set()
                timer.cancel()
                timer.join()
        if failed is not None:
            assert await call(None) == expected, (phase, "process")
        if victims:
            self._note(phase, "process", failed)
        return len(victims)

    async def _driver(
        self,
        phase: str,
        fields: dict[str, Any],
        step: int,
        call: Call,
        look: Callable[[], Awaitable[str]],
        expected: Any,
        chance: random.Random,
    ) -> int:
        """Kills a driver during its call, and makes the call here."""
        heard, said = forks().Pipe(duplex=False)
        driver = forks().Process(target=drive, args=(said, phase, fields, step, self._rows))
        before = pointers_of(fields)
        driver.start()
        said.close()
        await anyio.to_thread.run_sync(heard.recv)  # it begins
        if phase != "search" and chance.random() < AT_THE_MOVE:
            await anyio.to_thread.run_sync(wait_for_move, fields, before, driver)
        else:
            await anyio.sleep(chance.random() * self._seconds(phase))
        was_there = driver.is_alive()
        driver.kill()
        await anyio.to_thread.run_sync(driver.join)
        heard.close()
        found = await look()
        assert was_there or found == "new" or phase == "search", (phase, "driver")
        assert await call(None) == expected, (phase, "driver")
        if was_there:
            self._note(phase, "driver", found)
        return int(was_there)

    def _note(self, phase: str, killed: str, found: str | None) -> None:
        """Adds a kill.

        Args:
            phase, killed: its kind.
            found: the root after a call that failed; None for a call that ended well.
        """
        call = "ended" if found is None else "failed"
        self._results.add({"phase": phase, "killed": killed, "call": call, "found": found})

    def _seconds(self, phase: str) -> float:
        return 1.2 * self._calls[phase]

    async def time_calls(self) -> None:
        """Measures how long calls take here, so that kills come in the middle of them."""
        self._calls: dict[str, float] = {}
        fields = self._fresh(False)
        for phase, call in (
            ("build", built(fields, self._rows)),
            ("search", answered(fields)),
            ("change", changed(fields, 0, self._rows["ids"])),
        ):
            started = time.monotonic()
            await call
            self._calls[phase] = time.monotonic() - started


def drive(said: Any, phase: str, fields: dict[str, Any], step: int, rows: dict[str, Any]) -> None:
    """A driver: makes the call of a phase."""
    said.send("begins")

    async def run() -> None:
        if phase == "build":
            await built(fields, rows)
        elif phase == "change":
            await changed(fields, step, rows["ids"])
        else:
            for _ in range(SEARCHES):
                await answered(fields)

    anyio.run(run)


def forks() -> Any:
    """Processes that have imported everything, and none of the threads of this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fabstir_vectordb.collections", "gathering", "collection_kills"])
    return context


def wanted_of(kills: int, of: Sequence[str]) -> dict[tuple[str, str], int]:
    """How many kills of each kind: half of a phase are of actors, a quarter each of processes and drivers."""
    shares = {"actor": kills - 2 * (kills // 4), "process": kills // 4, "driver": kills // 4}
    return {(phase, killed): shares[killed] for phase in PHASES for killed in of}


async def run(wanted: Mapping[tuple[str, str], int], rows: int, results: tally.Tally, folder: Path) -> None:
    """Makes the kills that are missing, of each kind some at a time."""
    campaign = Campaign(folder, rows, results)
    await campaign.start()
    await campaign.time_calls()
    engine = RayEngine(2) if any(killed == "actor" for _, killed in wanted) else None
    while missing := {
        kind: count - results.count(phase=kind[0], killed=kind[1])
        for kind, count in wanted.items()
        if count > results.count(phase=kind[0], killed=kind[1])
    }:
        kind = max(missing, key=lambda kind: missing[kind] / wanted[kind])
        await campaign.kill(*kind, min(AT_A_TIME, missing[kind]), engine)
    if engine is not None:
        engine.close()


def table_of(results: tally.Tally) -> str:
    """The table of the page."""
    lines = []
    for phase in PHASES:
        for killed in KILLED:
            of = {"phase": phase, "killed": killed}
            parts = ({}, {"call": "ended"}, {"call": "failed"}, {"found": "old"}, {"found": "new"})
            lines.append((f"{phase}, {killed}", *(results.count(**of, **more) for more in parts)))
    totals = [sum(column) for column in zip(*(line[1:] for line in lines), strict=True)]
    head = ("phase, killed", "kills", "call ended well", "call failed", "old root found", "new root found")
    return tally.table(head, [*lines, ("all", *totals)])


def main() -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="kills of each phase; default 100")
    parser.add_argument("--killed", nargs="+", choices=KILLED, default=KILLED, help="default all; actors need Ray")
    parser.add_argument("--rows", type=int, default=20_000, help="rows of the collection; default 20000")
    parser.add_argument("--results", type=Path, help="file of the kills, which is continued")
    parser.add_argument("--page", action="store_true", help="write the table of docs/faults.md")
    options = parser.parse_args()
    results = tally.Tally(options.results)
    wanted = wanted_of(options.kills, options.killed)
    with tempfile.TemporaryDirectory() as folder, ray_cluster() if "actor" in options.killed else nullcontext():
        anyio.run(run, wanted, options.rows, results, Path(folder))
    text = table_of(results)
    print(text, end="")
    if options.page:
        tally.write_table("collection-kills", text)


if __name__ == "__main__":
    main()

"""Jobs of `bench_collection --grown`: a collection of many rows through the portal, beside one index of the same rows.

Each job is a process of its own. The one that searches the collection gets its share CID and the portal's address only.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import anyio
import numpy as np

from fabstir_vectordb import ConflictError, VectorDBSession
from fabstir_vectordb.collections import Collection, Engine, RayEngine, build, measure, open_shards, plan, threads
from harness import datasets, ours
from harness.contract import K

WORKERS = 2
SHARDS = 8
TARGET = 0.95
BATCH_ROWS = 20_000
#: Searches of one query each, whose median counts.
SINGLE = 200
#: Searches in lazily opened shards.
COLD = 50
#: The part of the rows from whose collection a plan is made.
PART = 10
#: Queries a second of which cores and drivers of a plan are compared: so many that whole ones do not round them.
BUSY_QPS = 100_000
BUDGET_MB = 4_096
Result = dict[str, Any]


@contextmanager
def portal(root: Path) -> Iterator[str]:
    """The command `portal` on a free port of loopback; gives its address."""
    command = [sys.executable, "-m", "fabstir_vectordb", "portal", str(root), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield str(json.loads(process.stdout.readline())["url"])
        finally:
            process.terminate()


def begin(ray: Any) -> None:
    """Initialises Ray, which gives its own processes 30 s to start: too few on a busy machine, at times."""
    for last in (False, False, True):
        try:
            ray.init(
                num_cpus=WORKERS,
                object_store_memory=2_500_000_000,
                include_dashboard=False,
                log_to_driver=False,
                _node_ip_address="127.0.0.1",
            )
            return
        except Exception:
            ray.shutdown()
            if last:
                raise


@cache
def ray_home() -> str:
    """The folder of all clusters of this process, with a short name: paths of sockets below it are limited.

    Ray writes a token into it, which a process reads once: a cluster with another token would not start.
    """
    home = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    return home


@contextmanager
def engine_of(name: str) -> Iterator[Engine]:
    """An engine of two workers: threads of this process, or actors of a cluster of Ray that ends with it."""
    if name == "threads":
        engine: Any = threads(WORKERS)
        yield engine
        engine.close()
        return
    home = ray_home()
    # Workers have the priority of threads: Ray's default of 15 lets them wait for all else on a busy machine.
    own = {"HOME": home, "RAY_TMPDIR": home, "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    os.environ |= own
    ray: Any = importlib.import_module("ray")
    try:
        begin(ray)
        engine = RayEngine(WORKERS)
        yield engine
        engine.close()
    finally:
        ray.shutdown()


def batches(folder: Path, step: int = 1) -> Iterator[Result]:
    """Every so many rows of a set, of unit length, as arguments of add_batch."""
    rows, _ = datasets.shape(folder)
    for first in range(0, rows, BATCH_ROWS):
        numbers = np.arange(first, min(first + BATCH_ROWS, rows))[::step]
        yield {
            "ids": [str(number) for number in numbers],
            "vectors": datasets.open_rows(folder, numbers),
            "metadata": [{"text": f"row number {number}"} for number in numbers],
            "timestamps": [0.0] * len(numbers),
        }


def fields(job: Result, index_name: str) -> Result:
    """The settings of an index or a collection of a job."""
    return {**ours.fields(job["store"], threads=1), "memory_budget_mb": BUDGET_MB, "index_name": index_name}


def recall_of(found: Any, folder: Path) -> float:
    """The share of the K nearest rows among the hits."""
    _, neighbours = datasets.open_queries(folder)
    return datasets.recall([[int(hit.id) for hit in hits] for hits in found], neighbours[: len(found)], K)


def shared(job: Result, engine: Engine, **how: Any) -> Any:
    """Opens the collection by its share CID."""
    share = Path(job["share"]).read_text(encoding="ascii")
    return Collection.open_share(share, job["store"], engine=engine, threads=1, memory_budget_mb=BUDGET_MB, **how)


# ---- jobs


def build_collection(job: Result, scratch: Path) -> Result:
    """Builds the collection on the engine, and shares it."""
    folder = Path(job["set"])

    async def run() -> Result:
        with engine_of(job["engine"]) as engine:
            started = time.perf_counter()
            await build(fields(job, "grown"), batches(folder), shards=SHARDS, engine=engine)
            seconds = time.perf_counter() - started
            async with await Collection.open(fields(job, "grown"), engine=engine) as many:
                stats = await many.stats()
                return {
                    "share": await many.share(),
                    "build_s": seconds,
                    "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
                    "sizes": [shard.rows for shard in stats.shards],
                    "curve": list(stats.curve),
                }

    found = anyio.run(run)
    Path(job["share"]).write_text(found.pop("share"), encoding="ascii")
    return found


def search_collection(job: Result, scratch: Path) -> Result:
    """Recall and seconds of the collection, opened by its share CID, by shards asked."""
    folder = Path(job["set"])
    queries, _ = datasets.open_queries(folder)

    async def run() -> Result:
        with engine_of(job["engine"]) as engine:
            started = time.perf_counter()
            async with await shared(job, engine) as many:
                await many.search(queries[0], K, recall_target=TARGET, threshold=None)
                found: Result = {"first_s": time.perf_counter() - started}
                await many.warm()
                found["warm_s"] = time.perf_counter() - started
                options = {"recall_target": TARGET, "threshold": None}
                by_shards = {
                    count: await many.search_batch(queries, K, shards=count, **options)
                    for count in range(1, len((await many.stats()).shards) + 1)
                }
                found["recall"] = {str(count): recall_of(hits, folder) for count, hits in by_shards.items()}
                by_curve = await many.search_batch(queries, K, **options)
                found["asked"], found["recall_by_curve"] = len(by_curve[0].shards), recall_of(by_curve, folder)
                started = time.perf_counter()
                await many.search_batch(queries, K, shards=SHARDS, **options)
                found["batch_us"] = 1e6 * (time.perf_counter() - started) / len(queries)
                found["search_us"] = 1e6 * await median_s(many, queries, **options)
                return found

    return anyio.run(run)


async def median_s(many: Any, queries: Any, **options: Any) -> float:
    """The median of searches of one query each."""
    taken = []
    for query in queries[:SINGLE]:
        started = time.perf_counter()
        await many.search(query, K, **options)
        taken.append(time.perf_counter() - started)
    return float(np.median(taken))


def one_index(job: Result, scratch: Path) -> Result:
    """The same rows in one index: built, saved through the portal, loaded and searched."""
    folder = Path(job["set"])
    queries, _ = datasets.open_queries(folder)
    one = {**fields(job, "one"), "threads": WORKERS, "memory_budget_mb": ours.BUDGET_MB}

    async def run() -> Result:
        started = time.perf_counter()
        async with await VectorDBSession.create(**one) as session:
            for batch in batches(folder):
                await session.add_batch(**batch)
            built = time.perf_counter()
            await session.save_to_s5()
            found = {"build_s": built - started, "save_s": time.perf_counter() - built}
        async with await VectorDBSession.create(**one) as session:
            await session.load_user_vectors(lazy_load=False)
            hits = await session.search_batch(queries, K, recall_target=TARGET, threshold=None)
            stats = await session.get_stats()
            return found | {
                "recall": recall_of(hits, folder),
                "bytes": (await session.verify()).bytes,
                "memory_bytes": 1e6 * stats.memory_usage_mb,
                "search_us": 1e6 * await median_s(session, queries, recall_target=TARGET, threshold=None),
            }

    return anyio.run(run)


def plan_and_truth(job: Result, scratch: Path) -> Result:
    """What a plan from a tenth of the rows says of the collection, and what the collection takes in this process."""
    folder = Path(job["set"])

    async def run() -> Result:
        with engine_of("threads") as engine:
            with suppress(ConflictError):  # a job that was interrupted has built it
                await build(fields(job, "part"), batches(folder, PART), shards=SHARDS, engine=engine)
            measured = await measure(fields(job, "part"), recall=TARGET, engine=engine)
            rows, _ = datasets.shape(folder)
            shard_rows = -(-rows // SHARDS)
            idle = plan(measured, rows=rows, qps=1, shard_rows=shard_rows, worker_cpus=WORKERS)
            busy = plan(measured, rows=rows, qps=BUSY_QPS, shard_rows=shard_rows, worker_cpus=WORKERS)
            truth, beside = await figures(job, engine)
        said = {name: float(getattr(idle, name, 0) or 0) for name in truth}
        said["cores_and_drivers"] = float(busy.cores + busy.drivers)
        return {
            "measured": measured.to_dict(),
            "planned": said,
            "found": {**truth, **beside},
            "planned_over_found": {name: said[name] / value if value else None for name, value in truth.items()},
        }

    return anyio.run(run)


async def figures(job: Result, engine: Engine) -> tuple[dict[str, float], dict[str, float]]:
    """What the collection takes, by the names of a plan's figures, and what a plan does not say.

    Drivers and workers are one process here.
    """
    queries, _ = datasets.open_queries(Path(job["set"]))
    options = {"recall_target": TARGET, "threshold": None}
    found: dict[str, float] = {}
    async with await shared(job, engine) as many:
        report = await many.verify()
        found |= {"bytes": report.bytes, "objects": report.parts + 2 * report.shards}
        await many.warm()
        await many.search_batch(queries, K, **options)
        found["memory_bytes"] = memory_bytes(open_sessions())
        found["asked"] = len((await many.search(queries[0], K, **options)).shards)
        worked = time.process_time()
        found["seconds"] = await median_s(many, queries, **options)
        found["cores_and_drivers"] = BUSY_QPS * (time.process_time() - worked) / SINGLE / 0.7
    async with await shared(job, engine, become_whole=False) as many:
        started = time.perf_counter()
        await many.search(queries[-1], K, **options)
        found["open_seconds"] = time.perf_counter() - started
        await many.search(queries[-1], K, **{**options, "shards": SHARDS})  # opens the others
        receipts, taken = [], []
        for query in queries[:COLD]:
            forget_caches()
            started = time.perf_counter()
            receipts.append((await many.search(query, K, **options)).receipt)
            taken.append(time.perf_counter() - started)
        found["cold_requests"] = float(np.mean([one.requests for one in receipts]))
        found["cold_bytes"] = float(np.mean([one.bytes for one in receipts]))
        found["cold_seconds"] = float(np.mean(taken))
        forget_caches()
        # A shard whose codes of one bit were judged not to find its nearest rows is loaded whole in any case.
        lazy = [session for session in open_sessions() if not session._verbs._runtime.index.is_whole]
        rows = sum(session.count() for session in lazy)
        found["lazy_memory_bytes"] = memory_bytes(lazy) * (await many.stats()).rows / rows
        return found, {"lazy_shards": len(lazy), "memory_bytes_with_others": memory_bytes(open_sessions())}


def open_sessions() -> list[Any]:
    """The sessions of all shards that this process has open."""
    return [entry.session for entry in open_shards._shards._entries.values() if entry.session is not None]


def memory_bytes(sessions: Iterable[Any]) -> float:
    """Resident bytes of shards."""
    return 1e6 * sum(session.get_stats().memory_usage_mb for session in sessions)


def forget_caches() -> None:
    """Leaves no part of these shards in memory, but what they always hold."""
    for session in open_sessions():
        session._verbs._runtime.index.forget_caches()

"""A batch with two threads beside one, and beside what the machine can do: two processes with one thread each.

Each session is in a process of its own, opened once: two with one thread, each pinned to a core, and one with two. In
each round all of them answer the same batch; those with one thread first alone, in turn, then at the same time.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from harness import curves, datasets, environment, ours, rounds
from harness.contract import K

TIERS = {"fabstir": "default", "fabstir-fast": "fast"}
BATCHES = (256, 1_000)
EFS = (16, 58)
#: Queries of one measurement, in batches; it is the median of them.
QUERIES = 4_000


class Server:
    """A process with a session, which answers batches when told.

    Args:
        folder: the set.
        index: a saved index of it.
        memory, threads: of the session.
        core: where it runs; None for every core.
    """

    def __init__(self, folder: Path, index: Path, memory: str, threads: int, core: int | None) -> None:
        job = {"set": str(folder), "index": str(index), "memory": memory, "threads": threads, "core": core}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, batch: int, ef: int) -> None:
        """Begins to answer batches."""
        assert self._process.stdin is not None
        print(json.dumps([batch, ef]), file=self._process.stdin, flush=True)

    def told(self) -> float:
        """Microseconds a query, of the median batch."""
        assert self._process.stdout is not None
        return float(self._process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()  # the end of its input ends it


def serve(job: dict[str, Any]) -> None:
    """The other process."""
    if job["core"] is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {job["core"]})
    given, _ = datasets.open_queries(Path(job["set"]))
    engine = ours.sync.VectorDBSession.create(
        **ours.fields(Path(job["index"]).absolute().as_uri(), job["threads"], job["memory"])
    )
    with engine as session:
        session.load_user_vectors(lazy_load=False)
        for line in sys.stdin:
            batch, ef = json.loads(line)
            queries, micros = given[:batch], []
            for _ in range(1 + max(QUERIES // batch, 1)):
                before = time.perf_counter()
                session.search_batch(queries, K, threshold=None, ef_search=ef)
                micros.append((time.perf_counter() - before) * 1e6 / len(queries))
            print(statistics.median(micros[1:]), flush=True)


def together(servers: Sequence[Server], batch: int, ef: int) -> float:
    """Microseconds a query of each server, the mean of them, while all are at work."""
    for server in servers:
        server.ask(batch, ef)
    return statistics.mean([server.told() for server in servers])


def one_round(one: Server, other: Server, two: Server) -> dict[str, Any]:
    """Microseconds a query of every batch and setting: one thread, two threads, and each of two processes."""
    found: dict[str, Any] = {}
    for batch in BATCHES:
        for ef in EFS:
            alone = statistics.mean([together([server], batch, ef) for server in (one, other)])
            found[f"{batch}/{ef}"] = {
                "one_thread_us": alone,
                "two_threads_us": together([two], batch, ef),
                "of_two_processes_us": together([one, other], batch, ef),
            }
    return found


def summarise(results: rounds.ResultFile, engines: Sequence[str]) -> dict[str, Any]:
    """Medians over rounds, and within each round how many times the work of one thread two threads or processes do."""
    summary: dict[str, Any] = {}
    for engine in engines:
        runs = [run["batches"] for run in results.of(engine)]
        if not runs:
            continue
        summary[engine] = {}
        for name in runs[0]:
            one, two, pair = (
                [run[name][of] for run in runs] for of in ("one_thread_us", "two_threads_us", "of_two_processes_us")
            )
            summary[engine][name] = {
                "one_thread_us": curves.stat(one),
                "two_threads_us": curves.stat(two),
                "threads": curves.stat([a / b for a, b in zip(one, two, strict=True)]),
                "processes": curves.stat([2 * a / b for a, b in zip(one, pair, strict=True)]),
            }
    return summary


def main() -> None:
    """Command line entry point."""
    if sys.argv[1:2] == ["--serve"]:
        serve(json.loads(sys.argv[2]))
        return
    options = datasets.parser(__doc__, rounds=5).parse_args()
    folder = datasets.prepare(options)
    rows, dim = datasets.shape(folder)
    skipped: dict[str, str] = {}
    cores = environment.cores()
    engines = list(TIERS) if len(cores) > 1 else []
    if not engines:
        skipped |= dict.fromkeys(TIERS, "there is one core")
    parameters = {"set": folder.name, "rows": rows, "dim": dim, "k": K}
    results = rounds.ResultFile(options, "bench_batch", parameters, skipped)
    for engine in engines:
        index, failure = rounds.saved_index(options, folder, "engines", engine, 2)
        if failure:
            skipped[engine] = f"its build failed: {failure}"
            continue
        memory = TIERS[engine]
        with (
            Server(folder, index, memory, 1, cores[-1]) as one,
            Server(folder, index, memory, 1, cores[-2]) as other,
            Server(folder, index, memory, 2, None) as two,
        ):
            for number in range(options.rounds):
                key = {"round": number, "engine": engine, "mode": "batch"}
                results.do(key, lambda: {"batches": one_round(one, other, two)})
    results.finish(summarise(results, engines))


if __name__ == "__main__":
    main()

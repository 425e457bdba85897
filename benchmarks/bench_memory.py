"""Memory growth of the process for added and loaded rows, what get_stats reports, and create, fill, destroy cycles."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from harness import curves, datasets, measure, ours, rounds

from fabstir_vectordb.sync import VectorDBSession

PARTS = ("default", "loaded", "compact", "cycles")
CYCLES = 50
CYCLE_ROWS = 10_000


def session(store: str, memory: str = "default") -> VectorDBSession:
    """A session on a store."""
    return VectorDBSession.create(**ours.fields(store, memory=memory))


def ids_of(data: datasets.Dataset) -> list[str]:
    """Ids of 16 bytes."""
    return [f"row-{row:012d}" for row in range(len(data.base))]


def growth(measured: VectorDBSession, raw: int, fill: Callable[[], object]) -> dict[str, float]:
    """Memory growth by a call that fills a session; ids have 16 bytes, and there is no metadata."""
    before = measure.settled_bytes()
    fill()
    grown = measure.grown(before)
    if grown is None:
        raise SystemExit("this system has no /proc, from which resident memory is read")
    used = measured.get_stats().memory_usage_mb * 1e6
    return {"grown_over_raw": grown / raw, "stats_over_raw": used / raw, "stats_over_grown": used / grown}


def added(data: datasets.Dataset, memory: str) -> dict[str, float]:
    """Rows added in this process."""
    ids = ids_of(data)
    with session("memory:", memory) as warm:  # threads, buffers and imports are not the index
        warm.add_batch(ids[:2000], data.base[:2000])
        warm.search(data.queries[0], 10)
    with session("memory:", memory) as measured:
        return growth(measured, data.base.nbytes, lambda: measured.add_batch(ids, data.base))


def save(data: datasets.Dataset, store: str) -> None:
    """Saves the rows; in a process of its own, so that nothing of it is there when they are loaded."""
    with session(store) as filled:
        filled.add_batch(ids_of(data), data.base)
        filled.save_to_s5()


def loaded(data: datasets.Dataset) -> dict[str, float]:
    """Rows loaded in this process, which has loaded a few of them before."""
    with tempfile.TemporaryDirectory() as directory:
        few, all_rows = (Path(directory, name).as_uri() for name in ("few", "all"))
        for rows, store in ((data.base[:2000], few), (data.base, all_rows)):
            process = get_context("spawn").Process(target=save, args=(data._replace(base=rows), store))
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"saving failed with exit code {process.exitcode}")
        with session(few) as warm:
            warm.load_user_vectors(lazy_load=False)
            warm.search(data.queries[0], 10)
        with session(all_rows) as measured:
            measured.list_indexes()  # derives the keys
            return growth(measured, data.base.nbytes, lambda: measured.load_user_vectors(lazy_load=False))


def cycles(data: datasets.Dataset, count: int) -> dict[str, float]:
    """MB by which the process grew over many create, fill and destroy."""
    rows = data.base[:CYCLE_ROWS]
    before = 0
    for cycle in range(count + 3):
        with session("memory:") as filled:
            filled.add_batch([str(row) for row in range(len(rows))], rows)
            filled.search(data.queries[0], 10)
        if cycle == 2:
            gc.collect()
            before = measure.resident_bytes()
    gc.collect()
    return {"grown_mb": (measure.resident_bytes() - before) / 1e6}


def in_a_new_process(folder: Path, part: str, count: int) -> dict[str, Any]:
    """One part in a new process, so that memory left by another part is not counted."""
    command = [sys.executable, __file__, "--part", part, "--data", str(folder), "--cycles", str(count)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """Command line entry point."""
    parser = datasets.parser(__doc__)
    parser.add_argument("--cycles", type=int, default=CYCLES, help=f"default {CYCLES}")
    parser.add_argument("--part", choices=PARTS, help="measure one in this process and print it")
    options = parser.parse_args()
    if options.part is not None:
        data = datasets.load(options)
        if options.part == "cycles":
            found = cycles(data, options.cycles)
        else:
            found = loaded(data) if options.part == "loaded" else added(data, options.part)
        print(json.dumps(found))
        return
    folder = datasets.prepare(options)
    rows, dim = datasets.shape(folder)
    parameters = {"rows": rows, "dim": dim, "cycles": options.cycles}
    results = rounds.ResultFile(options, "bench_memory", parameters, {})
    for number in range(options.rounds):
        for part in PARTS:
            key = {"round": number, "engine": part}
            results.do(key, lambda part=part: in_a_new_process(folder, part, options.cycles))
    summary = {}
    for part in PARTS:
        runs = [{name: value for name, value in run.items() if name not in rounds.KEY} for run in results.of(part)]
        summary[part] = curves.over_rounds(runs)
    results.finish(summary)


if __name__ == "__main__":
    main()

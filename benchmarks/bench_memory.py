"""Memory growth of the process for the rows of a set, what get_stats reports, and cycles of create, fill, destroy."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness import curves, datasets, measure, ours, rounds

from fabstir_vectordb.sync import VectorDBSession

PARTS = ("default", "compact", "cycles")
CYCLES = 50
CYCLE_ROWS = 10_000


def session(memory: str) -> VectorDBSession:
    """A session on a memory store."""
    return VectorDBSession.create(**ours.fields("memory:", memory=memory))


def growth(data: datasets.Dataset, memory: str) -> dict[str, float]:
    """The growth by one session in this process; ids have 16 bytes, and there is no metadata."""
    ids = [f"row-{row:012d}" for row in range(len(data.base))]
    with session(memory) as warm:  # so that threads, buffers and imports do not count as the index
        warm.add_batch(ids[:2000], data.base[:2000])
        warm.search(data.queries[0], 10)
    before = measure.settled_bytes()
    with session(memory) as measured:
        measured.add_batch(ids, data.base)
        grown = measure.grown(before)
        if grown is None:
            raise SystemExit("this system has no /proc, from which resident memory is read")
        used = measured.get_stats().memory_usage_mb * 1e6
        raw = data.base.nbytes
        return {"grown_over_raw": grown / raw, "stats_over_raw": used / raw, "stats_over_grown": used / grown}


def cycles(data: datasets.Dataset, count: int) -> dict[str, float]:
    """MB by which the process grew over many cycles of create, fill and destroy."""
    rows = data.base[:CYCLE_ROWS]
    before = 0
    for cycle in range(count + 3):
        with session("default") as filled:
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
    parser.add_argument("--part", choices=PARTS, help="measure one part in this process and print it")
    options = parser.parse_args()
    if options.part is not None:
        data = datasets.load(options)
        found = cycles(data, options.cycles) if options.part == "cycles" else growth(data, options.part)
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

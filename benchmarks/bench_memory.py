"""Growth of the process for the rows of a set, and what get_stats says of it; then cycles of create, fill, destroy."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time

import datasets

from fabstir_vectordb.sync import VectorDBSession

CYCLES = 50
CYCLE_ROWS = 10_000


def resident_bytes() -> int:
    """Resident memory of this process (Linux)."""
    with open("/proc/self/statm", encoding="ascii") as fields:
        return int(fields.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def session(memory: str) -> VectorDBSession:
    return VectorDBSession.create(
        s5_portal="memory:", user_seed_phrase="bench", session_id="bench", memory_budget_mb=16_384, memory=memory
    )


def growth(data: datasets.Dataset, memory: str) -> dict[str, float]:
    """One session in this process; ids of 16 bytes, no metadata."""
    ids = [f"row-{row:012d}" for row in range(len(data.base))]
    with session(memory) as warm:            # threads, buffers and imports are not the index
        warm.add_batch(ids[:2000], data.base[:2000])
        warm.search(data.queries[0], 10)
    gc.collect()
    before = resident_bytes()
    with session(memory) as measured:
        measured.add_batch(ids, data.base)
        gc.collect()
        time.sleep(0.2)
        grown = resident_bytes() - before
        stats = measured.get_stats()
        raw = data.base.nbytes
        return {
            "grown_over_raw": round(grown / raw, 4),
            "stats_over_raw": round(stats.memory_usage_mb * 1e6 / raw, 4),
            "stats_over_grown": round(stats.memory_usage_mb * 1e6 / grown, 4),
        }


def cycles(data: datasets.Dataset, count: int) -> float:
    """MB by which the process grew over many create, fill and destroy."""
    rows = data.base[:CYCLE_ROWS]
    before = 0
    for cycle in range(count + 3):
        with session("default") as filled:
            filled.add_batch([str(row) for row in range(len(rows))], rows)
            filled.search(data.queries[0], 10)
        if cycle == 2:
            gc.collect()
            before = resident_bytes()
    gc.collect()
    return round((resident_bytes() - before) / 1e6, 2)


def main() -> None:
    """Command line entry point."""
    parser = datasets.parser(__doc__)
    parser.add_argument("--part", choices=["default", "compact", "cycles"], help="measure one in this process")
    options = parser.parse_args()
    if options.part is None:
        # Each in a process of its own: what one leaves behind would be counted for the next.
        results = {}
        for part in ("default", "compact", "cycles"):
            command = [sys.executable, __file__, "--part", part]
            command += ["--tiny"] if options.tiny else ["--data", str(options.data)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            results[part] = json.loads(done.stdout)
        datasets.report(options, results)
        return
    data = datasets.load(options)
    if options.part == "cycles":
        datasets.report(options, {"grown_mb": cycles(data, 3 if options.tiny else CYCLES)})
    else:
        datasets.report(options, growth(data, options.part))


if __name__ == "__main__":
    main()

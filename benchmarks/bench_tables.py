"""Tables of Arrow: speed of add_table beside add_batch, and the peak of memory while a large Parquet file is added."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from harness import curves, datasets, measure, ours, rounds
from pyarrow import parquet

from fabstir_vectordb.sync import VectorDBSession

#: The file of issue 16: a million rows, within a budget of 2.5 GB.
FILE_ROWS = 1_000_000
BUDGET_MB = 2_500
#: Rows of a row group: 75 MB with 384 dimensions.
GROUP_ROWS = 50_000


def table_of(base: Any, first: int = 0) -> Any:
    """Rows as a table; the vectors are not copied where they are float32."""
    flat = pa.array(np.ascontiguousarray(base, np.float32).reshape(-1))
    vectors = pa.FixedSizeListArray.from_arrays(flat, base.shape[1])
    return pa.table({"id": [str(first + row) for row in range(len(base))], "vector": vectors})


def session(budget_mb: int = ours.BUDGET_MB) -> VectorDBSession:
    """A session in memory."""
    return VectorDBSession.create(**{**ours.fields("memory:"), "memory_budget_mb": budget_mb})


def rates(data: datasets.Dataset, number: int) -> dict[str, float]:
    """Rows/s and rows a CPU second of both ways, in turns: an odd round begins with the other one."""
    table = table_of(data.base)
    ids, base = table["id"].to_pylist(), np.ascontiguousarray(data.base, np.float32)
    ways: dict[str, Callable[[VectorDBSession], object]] = {
        "add_table": lambda filled: filled.add_table(table),
        "add_batch": lambda filled: filled.add_batch(ids, base),
    }
    found = {}
    for name in sorted(ways, reverse=bool(number % 2)):
        with session() as filled:
            started, cpu = time.perf_counter(), time.process_time()
            ways[name](filled)
            found[name] = len(base) / (time.perf_counter() - started)
            found[f"{name}_cpu"] = len(base) / (time.process_time() - cpu)
    ratios = {f"table_over_batch{one}": found[f"add_table{one}"] / found[f"add_batch{one}"] for one in ("", "_cpu")}
    return {**found, **ratios}


def write(data: datasets.Dataset, rows: int, path: Path) -> None:
    """A Parquet file of the set's rows, over and over with noise, so that no two are equal."""
    random = np.random.default_rng(1)
    with parquet.ParquetWriter(path, table_of(data.base[:1]).schema, use_dictionary=False) as out:
        for first in range(0, rows, GROUP_ROWS):
            chosen = np.arange(first, min(first + GROUP_ROWS, rows)) % len(data.base)
            part = np.asarray(data.base, np.float32)[chosen]
            part += random.standard_normal(part.shape, np.float32) * (0.2 * np.abs(part).mean())
            out.write_table(table_of(part, first))


def peak_bytes() -> int:
    """The most memory that this process has had since `Path("/proc/self/clear_refs")` was written."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def peak(path: Path, budget_mb: int) -> dict[str, float]:
    """Memory of a process that adds a file, less that of the process before it; run it in a new process."""
    with session(budget_mb) as filled:
        idle = measure.settled_bytes()
        if idle is None:
            raise SystemExit("this system has no /proc, from which resident memory is read")
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM begins anew
        started = time.perf_counter()
        rows = filled.add_table(path).added
        seconds = time.perf_counter() - started
        most, grown = peak_bytes() - idle, measure.grown(idle) or 0
        used = filled.get_stats().memory_usage_mb
    return {
        "added": rows,
        "budget_mb": budget_mb,
        "idle_mb": idle / 1e6,
        "peak_mb": most / 1e6,
        "after_mb": grown / 1e6,
        "stats_mb": used,
        "rows_per_s": rows / seconds,
    }


def in_a_new_process(path: Path, budget_mb: int) -> dict[str, Any]:
    """`peak` in a new process."""
    command = [sys.executable, __file__, "--file", str(path), "--budget-mb", str(budget_mb)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """Command line entry point."""
    parser = datasets.parser(__doc__)
    parser.add_argument("--file-rows", type=int, default=FILE_ROWS, help=f"of the Parquet file; default {FILE_ROWS}")
    parser.add_argument("--budget-mb", type=int, default=BUDGET_MB, help=f"budget of its session; default {BUDGET_MB}")
    parser.add_argument("--file", type=Path, help="add this file in this process and print the memory that it took")
    options = parser.parse_args()
    if options.file is not None:
        print(json.dumps(peak(options.file, options.budget_mb)))
        return
    folder = datasets.prepare(options)
    data = datasets.load(options)
    rows, dim = datasets.shape(folder)
    parameters = {"rows": rows, "dim": dim, "file_rows": options.file_rows, "budget_mb": options.budget_mb}
    results = rounds.ResultFile(options, "bench_tables", parameters, {})
    for number in range(options.rounds):
        results.do({"round": number, "engine": "rates"}, lambda number=number: rates(data, number))
    options.work.mkdir(parents=True, exist_ok=True)
    path = Path(options.work, f"table-{rows}x{dim}-{options.file_rows}.parquet")
    if not path.exists():
        fresh = path.with_suffix(".new")
        write(data, options.file_rows, fresh)
        fresh.replace(path)
    results.do({"round": 0, "engine": "file"}, lambda: in_a_new_process(path, options.budget_mb))
    summary = {}
    for part in ("rates", "file"):
        runs = [{name: value for name, value in run.items() if name not in rounds.KEY} for run in results.of(part)]
        summary[part] = curves.over_rounds(runs)
    results.finish(summary)


if __name__ == "__main__":
    main()

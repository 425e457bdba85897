"""One job in a separate process: python -m harness.worker JOB RESULT, both JSON; started by rounds.run_job.

So a crash ends one measurement and not the run, memory growth is that of one library, and the parent sets thread counts
and cores before any library is imported.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from harness import datasets, filtered, grown_collection, measure, registry
from harness.contract import Engine

#: Rows indexed before a build is measured, so that imports, threads and buffers do not count as the index.
WARM_ROWS = 2_000
Result = dict[str, Any]


def _engine(job: Result, scratch: Path) -> Engine:
    scratch.mkdir(parents=True)
    engine = registry.TABLES[job["table"]][job["engine"]].make(scratch)
    if isinstance(engine, filtered.Filtered):
        engine.describe(filtered.metadata_of(Path(job["set"])))
    return engine


def build(job: Result, scratch: Path) -> Result:
    """Builds an index, and saves it as job["keep"] unless that exists."""
    folder = Path(job["set"])
    base = datasets.open_base(folder)
    warm = _engine(job, scratch / "warm")
    warm.build(base[:WARM_ROWS], job["threads"])
    engine = _engine(job, scratch / "measured")
    before = measure.settled_bytes()
    started, worked = time.perf_counter(), time.process_time()
    engine.build(base, job["threads"])
    seconds, worked = time.perf_counter() - started, time.process_time() - worked
    grown = measure.grown(before)
    fresh = scratch / "saved"
    started = time.perf_counter()
    engine.save(fresh)
    saved = time.perf_counter() - started
    stored = measure.stored_bytes(fresh)
    if job["keep"] and not Path(job["keep"]).exists():
        Path(job["keep"]).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(fresh, job["keep"])
    return {
        "build_s": seconds,
        "rows_per_s": len(base) / seconds,
        "cpu_us_per_row": worked / len(base) * 1e6,
        "grown_bytes_per_row": None if grown is None else grown / len(base),
        "save_s": saved,
        "stored_bytes": stored,
    }


def _loaded(job: Result, scratch: Path) -> tuple[Engine, Result]:
    rows, dim = datasets.shape(Path(job["set"]))
    engine = _engine(job, scratch / "measured")
    before = measure.settled_bytes()
    started = time.perf_counter()
    engine.load(Path(job["index"]), rows, dim, job["threads"])
    seconds = time.perf_counter() - started
    grown = measure.grown(before)
    return engine, {"load_s": seconds, "loaded_bytes_per_row": None if grown is None else grown / rows}


def search(job: Result, scratch: Path) -> Result:
    """Opens a saved index and sweeps its settings."""
    queries, neighbours = datasets.open_queries(Path(job["set"]))
    queries = queries[: job.get("queries")]
    engine, result = _loaded(job, scratch)
    result["points"] = measure.sweep(engine, job["mode"], job["threads"], queries, neighbours)
    return result


def after_build(job: Result, scratch: Path) -> Result:
    """Opens a saved index and measures the recall of one fixed setting."""
    queries, neighbours = datasets.open_queries(Path(job["set"]))
    engine, result = _loaded(job, scratch)
    return result | measure.single_point(engine, engine.setting_after_build(), queries, neighbours)


def add_one(job: Result, scratch: Path) -> Result:
    """Opens a saved index and adds rows one by one; the saved index is not changed."""
    queries, _ = datasets.open_queries(Path(job["set"]))
    rows, _ = datasets.shape(Path(job["set"]))
    engine, _ = _loaded(job, scratch)
    micros = []
    for number, vector in enumerate(queries[: job["adds"]]):
        before = time.perf_counter_ns()
        engine.add_one(rows + number, vector)
        micros.append((time.perf_counter_ns() - before) / 1e3)
    return {"add_p50_us": float(np.percentile(micros, 50)), "add_p99_us": float(np.percentile(micros, 99))}


def filter_rows(job: Result, scratch: Path) -> Result:
    """Opens a saved index and sweeps its settings with each filter."""
    folder = Path(job["set"])
    base, queries = datasets.open_base(folder), datasets.open_queries(folder)[0][: job["queries"]]
    engine, result = _loaded(job, scratch)
    assert isinstance(engine, filtered.Filtered)
    cases = filtered.cases(filtered.metadata_of(folder))
    result["cases"] = {case.name: filtered.measured(engine, case, base, queries) for case in cases}
    return result


def database(job: Result, scratch: Path) -> Result:
    """Adds all rows with their metadata to a database and queries it."""
    folder = Path(job["set"])
    data = datasets.open_set(folder)
    metadata = datasets.texts(folder) or [{"text": f"row {row}"} for row in range(len(data.base))]
    path = scratch / "database"
    path.mkdir(parents=True)
    before = measure.settled_bytes()
    one = registry.DATABASES[job["engine"]].make(path)
    started = time.perf_counter()
    one.add(data.base, metadata[: len(data.base)])
    added = time.perf_counter()
    one.store()
    stored = time.perf_counter()
    grown = measure.grown(before)
    points = []
    for setting in one.settings():
        one.answer(data.queries[: measure.WARM_QUERIES], setting)
        found, micros = one.answer(data.queries, setting)
        points.append(measure.as_point(setting, found, data.neighbours, micros))
    one.close()
    return {
        "add_s": added - started,
        "durable_s": stored - started,
        "stored_bytes": measure.stored_bytes(path),
        "grown_bytes_per_row": None if grown is None else grown / len(data.base),
        "points": points,
    }


JOBS: dict[str, Callable[[Result, Path], Result]] = {
    "build": build,
    "search": search,
    "after_build": after_build,
    "add_one": add_one,
    "filter": filter_rows,
    "database": database,
    "build_collection": grown_collection.build_collection,
    "search_collection": grown_collection.search_collection,
    "one_index": grown_collection.one_index,
    "plan_and_truth": grown_collection.plan_and_truth,
}


def main() -> None:
    """Command line entry point."""
    job = json.loads(sys.argv[1])
    with tempfile.TemporaryDirectory(dir=job["work"]) as scratch:
        result = JOBS[job["do"]](job, Path(scratch))
        Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")
        # Some libraries crash at interpreter exit; the result is written by now.
        sys.stdout.flush()
        shutil.rmtree(scratch, ignore_errors=True)
        os._exit(0)


if __name__ == "__main__":
    main()

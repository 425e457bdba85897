"""Timing and memory, measured the same way for every library."""

from __future__ import annotations

import ctypes
import gc
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness import datasets
from harness.contract import Engine, K
from harness.curves import significant

WARM_QUERIES = 30
#: A sweep ends at this recall, as higher recalls are not compared.
RECALL_ENOUGH = 0.997


def resident_bytes() -> int:
    """Resident memory of this process (Linux)."""
    with open("/proc/self/statm", encoding="ascii") as fields:
        return int(fields.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def settled_bytes() -> int | None:
    """Resident memory after garbage collection and after freed pages were returned to the system; None off Linux."""
    if not Path("/proc/self/statm").exists():
        return None
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    time.sleep(0.2)
    return resident_bytes()


def grown(before: int | None) -> int | None:
    """Growth of this process since a result of `settled_bytes`."""
    after = settled_bytes()
    return None if before is None or after is None else after - before


def stored_bytes(path: Path) -> int:
    """Bytes of a file or of all files below a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def latencies(one: Callable[[Any], Any], queries: Sequence[Any]) -> tuple[list[Any], list[float]]:
    """The results of all calls, and the microseconds of each."""
    found, micros = [], []
    for query in queries:
        before = time.perf_counter_ns()
        hits = one(query)
        micros.append((time.perf_counter_ns() - before) / 1e3)
        found.append(hits)
    return found, micros


def as_point(setting: Any, found: Sequence[Any], neighbours: Any, micros: Sequence[float]) -> dict[str, Any]:
    """A point of a curve from calls of one query each."""
    return {
        "setting": setting,
        "recall": recall_of(found, neighbours),
        "qps": significant(1e6 / float(np.mean(micros))),
        "p50_us": significant(float(np.percentile(micros, 50))),
        "p99_us": significant(float(np.percentile(micros, 99))),
    }


def recall_of(found: Sequence[Any], neighbours: Any) -> float:
    """recall@K of ids that are row numbers, as numbers or as text."""
    rows = [[int(row) for row in hits] for hits in found]
    return round(datasets.recall(rows, neighbours[: len(rows)], K), 5)


def single_point(engine: Engine, setting: Any, queries: Any, neighbours: Any) -> dict[str, Any]:
    """The point of one setting, with one query a call."""
    engine.use(setting)
    latencies(engine.one, queries[:WARM_QUERIES])
    return as_point(setting, *_with(neighbours, latencies(engine.one, queries)))


def _with(neighbours: Any, measured: tuple[list[Any], list[float]]) -> tuple[list[Any], Any, list[float]]:
    return measured[0], neighbours, measured[1]


def batch_point(engine: Engine, setting: Any, queries: Any, neighbours: Any, threads: int) -> dict[str, Any]:
    """The point of one setting, with all queries in one call; the faster of two calls, as the first warms up."""
    engine.use(setting)
    engine.batch(queries[:WARM_QUERIES], threads)
    seconds = []
    for _ in range(2):
        before = time.perf_counter()
        found = engine.batch(queries, threads)
        seconds.append(time.perf_counter() - before)
    return {
        "setting": setting,
        "recall": recall_of(found, neighbours),
        "qps": significant(len(queries) / min(seconds)),
    }


def sweep(engine: Engine, mode: str, threads: int, queries: Any, neighbours: Any) -> list[dict[str, Any]]:
    """The points of all settings of an engine, weakest first; a family ends once its recall is high enough."""
    points = []
    for family in engine.families():
        for setting in family:
            if mode == "single":
                points.append(single_point(engine, setting, queries, neighbours))
            else:
                points.append(batch_point(engine, setting, queries, neighbours, threads))
            if points[-1]["recall"] >= RECALL_ENOUGH:
                break
    return points

"""Delay of an event loop while a session works on it, compared with the same loop idle."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import numpy as np
from harness import curves, datasets, ours, rounds

from fabstir_vectordb import VectorDBSession

TICK_S = 0.001


async def lag_of(work: Callable[[], Awaitable[object]]) -> dict[str, float]:
    """Runs `work`, and measures the delay of sleeps of one millisecond that run at the same time."""
    late: list[float] = []
    started = time.perf_counter()
    async with anyio.create_task_group() as group:

        async def tick() -> None:
            while True:
                before = time.perf_counter()
                await anyio.sleep(TICK_S)
                late.append(time.perf_counter() - before - TICK_S)

        group.start_soon(tick)
        await work()
        await anyio.sleep(2 * TICK_S)  # work may take less than a tick
        group.cancel_scope.cancel()
    late = late or [0.0]
    return {
        "seconds": time.perf_counter() - started,
        "p50_ms": 1e3 * float(np.percentile(late, 50)),
        "p99_ms": 1e3 * float(np.percentile(late, 99)),
        "max_ms": 1e3 * max(late),
    }


async def one_round(data: datasets.Dataset, store: str) -> dict[str, dict[str, float]]:
    """The loop's delay while it is idle, then during each long verb."""
    results = {"idle": await lag_of(lambda: anyio.sleep(2))}
    async with await VectorDBSession.create(**ours.fields(store)) as session:
        results["add"] = await lag_of(lambda: session.add_batch(data.ids, data.base))
        results["search_batch"] = await lag_of(lambda: session.search_batch(data.queries, 10))
        results["save"] = await lag_of(session.save_to_s5)
    async with await VectorDBSession.create(**ours.fields(store)) as session:
        results["load"] = await lag_of(lambda: session.load_user_vectors(lazy_load=False))
    return results


def in_a_new_store(data: datasets.Dataset) -> dict[str, dict[str, float]]:
    """One round in a new directory."""
    with tempfile.TemporaryDirectory() as directory:
        return anyio.run(one_round, data, Path(directory).as_uri())


def main() -> None:
    """Command line entry point."""
    options = datasets.parser(__doc__).parse_args()
    data = datasets.load(options)
    results = rounds.ResultFile(options, "bench_loop_lag", {"rows": len(data.base), "dim": data.base.shape[1]}, {})
    for number in range(options.rounds):
        results.do({"round": number, "engine": "fabstir"}, lambda: in_a_new_store(data))
    runs = [{name: value for name, value in run.items() if name not in rounds.KEY} for run in results.runs]
    results.finish(curves.over_rounds(runs))


if __name__ == "__main__":
    main()

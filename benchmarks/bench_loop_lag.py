"""How late an event loop wakes while a session works, against the same loop idle."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import datasets
import numpy as np

from fabstir_vectordb import VectorDBSession

TICK_S = 0.001


async def lag_of(work: Callable[[], Awaitable[object]]) -> dict[str, float]:
    """Runs `work` and measures by how much sleeps of a millisecond beside it come late."""
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
        group.cancel_scope.cancel()
    return {
        "seconds": round(time.perf_counter() - started, 3),
        "p50_ms": round(1e3 * float(np.percentile(late, 50)), 3),
        "p99_ms": round(1e3 * float(np.percentile(late, 99)), 3),
        "max_ms": round(1e3 * max(late), 3),
    }


async def measure(data: datasets.Dataset, store: str) -> dict[str, dict[str, float]]:
    fields = {"s5_portal": store, "user_seed_phrase": "bench", "session_id": "bench", "memory_budget_mb": 16_384}
    results = {"idle": await lag_of(lambda: anyio.sleep(2))}
    async with await VectorDBSession.create(**fields) as session:
        results["add"] = await lag_of(lambda: session.add_batch(data.ids, data.base))
        results["search_batch"] = await lag_of(lambda: session.search_batch(data.queries, 10))
        results["save"] = await lag_of(session.save_to_s5)
    async with await VectorDBSession.create(**fields) as session:
        results["load"] = await lag_of(session.load_user_vectors)
    return results


def main() -> None:
    """Command line entry point."""
    options = datasets.parser(__doc__).parse_args()
    data = datasets.load(options)
    with tempfile.TemporaryDirectory() as directory:
        datasets.report(options, anyio.run(measure, data, Path(directory).as_uri()))


if __name__ == "__main__":
    main()

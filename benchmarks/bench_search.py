"""Recall against queries a second, through the public synchronous call, one query at a time."""

from __future__ import annotations

import time

import datasets
import numpy as np

from fabstir_vectordb.sync import VectorDBSession

K = 10
EF = [16, 24, 32, 48, 64, 96, 128, 200, 300]
ROUNDS = 3


def main() -> None:
    """Command line entry point."""
    parser = datasets.parser(__doc__)
    parser.add_argument("--memory", choices=["default", "compact"], default="default")
    options = parser.parse_args()
    data = datasets.load(options)
    fields = {"s5_portal": "memory:", "user_seed_phrase": "bench", "session_id": "bench", "memory": options.memory}
    with VectorDBSession.create(**fields, memory_budget_mb=16_384) as session:
        started = time.perf_counter()
        session.add_batch(data.ids, data.base)
        results: dict[str, object] = {"rows": len(data.base), "add_s": time.perf_counter() - started, "points": []}
        points: list[dict[str, object]] = []
        for ef in [None, *EF]:
            times = []
            for _ in range(ROUNDS):
                found, latency = [], []
                for query in data.queries:
                    before = time.perf_counter_ns()
                    hits = session.search(query, K, threshold=None, ef_search=ef)
                    latency.append((time.perf_counter_ns() - before) / 1e3)
                    found.append([int(hit.id) for hit in hits])
                times.append(latency)
            median = times[int(np.argsort([np.mean(latency) for latency in times])[ROUNDS // 2])]
            points.append(
                {
                    "ef_search": ef or "default",
                    "recall": round(datasets.recall(found, data.neighbours, K), 4),
                    "qps": round(1e6 / float(np.mean(median))),
                    "p50_us": round(float(np.percentile(median, 50)), 1),
                    "p99_us": round(float(np.percentile(median, 99)), 1),
                }
            )
        results["points"] = points
    datasets.report(options, results)


if __name__ == "__main__":
    main()

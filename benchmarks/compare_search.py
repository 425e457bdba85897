"""Recall against QPS, compared with other libraries.

One query a call on one core, then a batch with one thread and with two threads. Libraries take turns in rounds. Each
index is built once and kept. Ratios are computed within a round.
"""

from __future__ import annotations

from typing import Any

from harness import curves, datasets, registry, rounds
from harness.contract import K

RECALLS = (0.90, 0.95, 0.99)
LATENCY_RECALL = 0.95
MODES = (("single", 1), ("batch", 1), ("batch", 2))
BUILD_THREADS = 2


def summarise(results: rounds.ResultFile, engines: list[str], ours: str = registry.OURS) -> dict[str, Any]:
    """Medians over rounds, and ratios of this library to each other engine."""
    summary: dict[str, Any] = {}
    for mode, threads in MODES:
        at: dict[str, dict[float, dict[int, float | None]]] = {}
        table = summary[f"{mode}-{threads}"] = {}
        for engine in engines:
            runs = {run["round"]: run["points"] for run in results.of(engine, mode=mode, threads=threads)}
            if not runs:
                continue
            at[engine] = {
                recall: {number: curves.qps_at(points, recall) for number, points in runs.items()} for recall in RECALLS
            }
            table[engine] = {
                "qps": {f"{recall:.2f}": curves.stat(list(at[engine][recall].values())) for recall in RECALLS},
                "best_recall": max(point["recall"] for points in runs.values() for point in points),
                "points": curves.median_points(list(runs.values())),
            }
            if mode == "single":
                best = [curves.fastest(points, LATENCY_RECALL) for points in runs.values()]
                for name in ("p50_us", "p99_us"):
                    table[engine][name] = curves.stat([point and point[name] for point in best])
        for engine, found in table.items():
            if ours in at and engine != ours:
                found["ours_over_it"] = {
                    f"{recall:.2f}": curves.ratio(at[ours][recall], at[engine][recall]) for recall in RECALLS
                }
    return summary


def main() -> None:
    """Command line entry point."""
    parser = datasets.parser(__doc__, rounds=5)
    rounds.add_engines_argument(parser, registry.ENGINES)
    options = parser.parse_args()
    folder = datasets.prepare(options)
    rows, dim = datasets.shape(folder)
    engines, skipped = registry.present(registry.ENGINES, options.engines)
    parameters = {"set": folder.name, "rows": rows, "dim": dim, "k": K}
    results = rounds.ResultFile(options, "compare_search", parameters, skipped)
    indexes = {}
    for engine in engines:
        indexes[engine], failure = rounds.saved_index(options, folder, "engines", engine, BUILD_THREADS)
        if failure:
            skipped[engine] = f"its build failed: {failure}"
    able = [engine for engine in engines if engine not in skipped]
    for mode, threads in MODES:
        for number, engine in rounds.in_turns(able, options.rounds):
            key = {"round": number, "engine": engine, "mode": mode, "threads": threads}
            job = rounds.job(options, "search", folder, engine, threads, mode=mode, index=str(indexes[engine]))
            results.run(key, job)
    results.finish(summarise(results, able))


if __name__ == "__main__":
    main()

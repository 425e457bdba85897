"""Exact search, compared with faiss IndexFlatIP: one query a call on one core, and a batch with one and two threads.

This library searches with exact=True and sums in float64 over exact rows; its results confirm the exact scan. faiss
multiplies float32 matrices.
"""

from __future__ import annotations

from typing import Any

from harness import curves, datasets, registry, rounds
from harness.contract import K

MODES = (("single", 1), ("batch", 1), ("batch", 2))
#: Number of single queries; a batch has all queries of the set.
SINGLE_QUERIES = 100


def summarise(results: rounds.ResultFile, engines: list[str], ours: str = registry.OURS) -> dict[str, Any]:
    """Medians over rounds, and ratios of this library to each other engine."""
    summary: dict[str, Any] = {}
    for mode, threads in MODES:
        table = summary[f"{mode}-{threads}"] = {}
        points = {
            engine: {run["round"]: run["points"][0] for run in results.of(engine, mode=mode, threads=threads)}
            for engine in engines
        }
        for engine, of in points.items():
            names = ("qps", "recall", "p50_us", "p99_us") if mode == "single" else ("qps", "recall")
            table[engine] = {name: curves.stat([point[name] for point in of.values()]) for name in names}
            if engine != ours and ours in points:
                table[engine]["ours_over_it"] = curves.ratio(
                    {number: point["qps"] for number, point in points[ours].items()},
                    {number: point["qps"] for number, point in of.items()},
                )
    return summary


def main() -> None:
    """Command line entry point."""
    parser = datasets.parser(__doc__, rounds=5)
    rounds.add_engines_argument(parser, registry.SCANS)
    options = parser.parse_args()
    folder = datasets.prepare(options)
    rows, dim = datasets.shape(folder)
    engines, skipped = registry.present(registry.SCANS, options.engines)
    results = rounds.ResultFile(
        options, "compare_flat", {"set": folder.name, "rows": rows, "dim": dim, "k": K}, skipped
    )
    indexes = {}
    for engine in engines:
        indexes[engine], failure = rounds.saved_index(options, folder, "scans", engine, 2)
        if failure:
            skipped[engine] = f"its build failed: {failure}"
    able = [engine for engine in engines if engine not in skipped]
    for mode, threads in MODES:
        for number, engine in rounds.in_turns(able, options.rounds):
            key = {"round": number, "engine": engine, "mode": mode, "threads": threads}
            more: dict[str, Any] = {"mode": mode, "index": str(indexes[engine]), "table": "scans"}
            if mode == "single":
                more["queries"] = SINGLE_QUERIES
            results.run(key, rounds.job(options, "search", folder, engine, threads, **more))
    results.finish(summarise(results, able))


if __name__ == "__main__":
    main()

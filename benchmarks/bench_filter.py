"""Filtered search, compared with other libraries: filters that match 50 %, 10 %, 1 % and 0.1 % of the rows.

Each call has one query and runs on one core. Recall is measured against the exact nearest rows that match the filter.
This library gets the filter with every search. The time to evaluate the filter is also measured: the first time, after
a change, and when its bitmap is cached.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness import curves, datasets, registry, rounds
from harness.contract import K

RECALL = 0.97
QUERIES = 300
BUILD_THREADS = 2
EVALUATIONS = ("first_ms", "after_a_change_ms", "known_us")


def summarise(results: rounds.ResultFile, engines: list[str], ours: str = registry.OURS) -> dict[str, Any]:
    """For each filter and engine, the QPS at the recall, and the ratio of this library to each other engine."""
    summary: dict[str, Any] = {}
    runs = {engine: {run["round"]: run["cases"] for run in results.of(engine)} for engine in engines}
    names = [name for of in runs.values() for cases in of.values() for name in cases]
    for name in dict.fromkeys(names):
        table: dict[str, Any] = {}
        for engine, of in runs.items():
            curve = {number: cases[name]["points"] for number, cases in of.items()}
            mine = {number: cases[name]["points"] for number, cases in runs.get(ours, {}).items()}
            table[engine] = {
                "best_recall": max((point["recall"] for points in curve.values() for point in points), default=None),
                "settings": [_fastest(points, "setting") for points in curve.values()],
            }
            for title, view in curves.VIEWS.items():
                speed, own = (
                    {number: _fastest(view(points), "qps") for number, points in of_one.items()}
                    for of_one in (curve, mine)
                )
                found = table[engine][title] = {"qps": curves.stat(list(speed.values()))}
                found["ours_over_it"] = None if engine == ours else curves.ratio(own, speed)
            for evaluation in EVALUATIONS:
                values = [cases[name].get(evaluation) for cases in of.values()]
                if any(value is not None for value in values):
                    table[engine][evaluation] = curves.stat(values)
        rows = {cases[name]["rows"] for of in runs.values() for cases in of.values()}
        summary[name] = {"rows": max(rows), "engines": table}
    return summary


def _fastest(points: Sequence[curves.Point], name: str) -> Any:
    """A value of the fastest point that reaches the recall; None if no point does."""
    point = curves.fastest(points, RECALL)
    return point and point[name]


def main() -> None:
    """Command line entry point."""
    parser = datasets.parser(__doc__)
    rounds.add_engines_argument(parser, registry.FILTERED)
    options = parser.parse_args()
    folder = datasets.prepare(options)
    rows, dim = datasets.shape(folder)
    engines, skipped = registry.present(registry.FILTERED, options.engines)
    parameters = {"set": folder.name, "rows": rows, "dim": dim, "k": K, "recall": RECALL}
    results = rounds.ResultFile(options, "bench_filter", parameters, skipped)
    indexes = {}
    for engine in engines:
        indexes[engine], failure = rounds.saved_index(options, folder, "filtered", engine, BUILD_THREADS)
        if failure:
            skipped[engine] = f"its build failed: {failure}"
    able = [engine for engine in engines if engine not in skipped]
    for number, engine in rounds.in_turns(able, options.rounds):
        job = rounds.job(options, "filter", folder, engine, 1, table="filtered", index=str(indexes[engine]))
        results.run({"round": number, "engine": engine}, job | {"queries": QUERIES})
    results.finish(summarise(results, able))


if __name__ == "__main__":
    main()

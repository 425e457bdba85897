"""A whole session, compared with whole databases: adds of rows with metadata, then queries with ids and metadata read.

This library runs as the asynchronous session; the others are called as their documentation shows. Each engine adds and
searches in a new process with all cores. `durable_s` is the time until all rows are on disk; for this library it
includes encrypting and saving.
"""

from __future__ import annotations

from typing import Any

from harness import curves, datasets, environment, registry, rounds
from harness.contract import K


def summarise(results: rounds.ResultFile, engines: list[str], ours: str = registry.OURS) -> dict[str, Any]:
    """Medians over rounds, and the ratio of this library to each setting of each engine at that setting's recall."""
    mine = {run["round"]: run for run in results.of(ours)}
    summary: dict[str, Any] = {}
    for engine in engines:
        runs = {run["round"]: run for run in results.of(engine)}
        if not runs:
            continue
        found = summary[engine] = {
            name: curves.stat([run[name] for run in runs.values()])
            for name in ("add_s", "durable_s", "stored_bytes", "grown_bytes_per_row")
        }
        found["points"] = []
        for position, first in enumerate(next(iter(runs.values()))["points"]):
            same = {number: run["points"][position] for number, run in runs.items()}
            point = {"setting": first["setting"]}
            for name in ("recall", "qps", "p50_us", "p99_us"):
                point[name] = curves.stat([one[name] for one in same.values()])
            if engine != ours and mine:
                equal = {
                    number: curves.qps_at(run["points"], same[number]["recall"])
                    for number, run in mine.items()
                    if number in same
                }
                point["ours_over_it"] = curves.ratio(equal, {number: one["qps"] for number, one in same.items()})
            found["points"].append(point)
        if engine != ours and mine:
            for name in ("add_s", "durable_s"):
                found[f"it_over_ours_{name}"] = curves.ratio(
                    {number: run[name] for number, run in runs.items()},
                    {number: run[name] for number, run in mine.items()},
                )
    return summary


def main() -> None:
    """Command line entry point."""
    parser = datasets.parser(__doc__, rounds=3)
    rounds.add_engines_argument(parser, registry.DATABASES)
    options = parser.parse_args()
    folder = datasets.prepare(options)
    rows, dim = datasets.shape(folder)
    engines, skipped = registry.present(registry.DATABASES, options.engines)
    threads = len(environment.cores())
    parameters = {
        "set": folder.name,
        "rows": rows,
        "dim": dim,
        "k": K,
        "threads": threads,
        "metadata": "text, lexname and pos of each row" if datasets.has_texts(folder) else "made: a short text",
    }
    results = rounds.ResultFile(options, "compare_session", parameters, skipped)
    for number, engine in rounds.in_turns(engines, options.rounds):
        results.run({"round": number, "engine": engine}, rounds.job(options, "database", folder, engine, threads))
    results.finish(summarise(results, engines))


if __name__ == "__main__":
    main()

"""Inverted lists alone, compared with other libraries: time to train and fill them, and one query a call on one core.

In this library every row is on the historical side, as `from_parts` puts rows there.
"""

from __future__ import annotations

from typing import Any

from harness import curves, datasets, registry, rounds
from harness.contract import K

BUILD_THREADS = 2
RECALLS = (0.90, 0.95, 0.99)


def summarise(results: rounds.ResultFile, engines: list[str], ours: str = registry.OURS) -> dict[str, Any]:
    """Medians over rounds, and ratios of this library to each other engine."""
    summary: dict[str, Any] = {}
    searched = {
        engine: {run["round"]: run["points"] for run in results.of(engine, mode="single")} for engine in engines
    }
    built = {engine: {run["round"]: run["build_s"] for run in results.of(engine, mode="build")} for engine in engines}
    for engine in engines:
        found = summary[engine] = {"build_s": curves.stat(list(built[engine].values()))}
        for name, view in curves.VIEWS.items():
            table = found[name] = {"qps": {}, "ours_over_it": {}}
            for recall in RECALLS:
                speed, mine = (
                    {number: curves.qps_at(view(points), recall) for number, points in searched.get(one, {}).items()}
                    for one in (engine, ours)
                )
                table["qps"][f"{recall:.2f}"] = curves.stat(list(speed.values()))
                if engine != ours:
                    table["ours_over_it"][f"{recall:.2f}"] = curves.ratio(mine, speed)
        if engine != ours and ours in built:
            found["it_over_ours_build_s"] = curves.ratio(built[engine], built[ours])
    return summary


def main() -> None:
    """Command line entry point."""
    parser = datasets.parser(__doc__, rounds=3)
    rounds.add_engines_argument(parser, registry.LISTS)
    options = parser.parse_args()
    folder = datasets.prepare(options)
    rows, dim = datasets.shape(folder)
    engines, skipped = registry.present(registry.LISTS, options.engines)
    parameters = {"set": folder.name, "rows": rows, "dim": dim, "k": K, "build_threads": BUILD_THREADS}
    results = rounds.ResultFile(options, "compare_lists", parameters, skipped)
    for number, engine in rounds.in_turns(engines, options.rounds):
        index = rounds.index_path(options, folder, registry.LISTS[engine])
        job = rounds.job(options, "build", folder, engine, BUILD_THREADS, keep=str(index), table="lists")
        results.run({"round": number, "engine": engine, "mode": "build", "threads": BUILD_THREADS}, job)
    for number, engine in rounds.in_turns(engines, options.rounds):
        index, failure = rounds.saved_index(options, folder, "lists", engine, BUILD_THREADS)
        if failure is None:
            job = rounds.job(options, "search", folder, engine, 1, mode="single", index=str(index), table="lists")
            results.run({"round": number, "engine": engine, "mode": "single", "threads": 1}, job)
    results.finish(summarise(results, engines))


if __name__ == "__main__":
    main()

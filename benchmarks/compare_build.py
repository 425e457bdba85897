"""Builds, compared with other libraries: rows/s with two threads, time of all cores, the recall of the built index at a
fixed setting, memory, saves and loads.

Every build and every load runs in a new process. Time of all cores is that of the process: work of others on the same
machine changes it little. Memory is the growth of the whole process, after garbage collection and after freed pages
were returned to the system. It includes ids if a library keeps ids.
"""

from __future__ import annotations

from typing import Any

from harness import curves, datasets, registry, rounds
from harness.contract import K

THREADS = 2


def summarise(results: rounds.ResultFile, engines: list[str], ours: str = registry.OURS) -> dict[str, Any]:
    """Medians over rounds, and ratios of this library to each other engine in rows/s and in time of all cores."""
    summary: dict[str, Any] = {}
    for engine in engines:
        found = summary[engine] = {}
        speed, cpu = (_by_round(results, engine, "build", THREADS, name) for name in ("rows_per_s", "cpu_us_per_row"))
        found["rows_per_s"], found["cpu_us_per_row"] = (curves.stat(list(of.values())) for of in (speed, cpu))
        if engine != ours:
            found["ours_over_it"] = curves.ratio(_by_round(results, ours, "build", THREADS, "rows_per_s"), speed)
            found["its_cpu_over_ours"] = curves.ratio(cpu, _by_round(results, ours, "build", THREADS, "cpu_us_per_row"))
        for name in ("grown_bytes_per_row", "save_s", "stored_bytes"):
            found[name] = curves.stat(list(_by_round(results, engine, "build", THREADS, name).values()))
        for name in ("load_s", "loaded_bytes_per_row", "recall", "qps"):
            found[name] = curves.stat(list(_by_round(results, engine, "load", 1, name).values()))
        found["setting"] = next((run["setting"] for run in results.of(engine, mode="load")), None)
    return summary


def _by_round(results: rounds.ResultFile, engine: str, mode: str, threads: int, name: str) -> dict[int, float | None]:
    return {run["round"]: run.get(name) for run in results.of(engine, mode=mode, threads=threads)}


def main() -> None:
    """Command line entry point."""
    parser = datasets.parser(__doc__, rounds=3)
    rounds.add_engines_argument(parser, registry.ENGINES)
    options = parser.parse_args()
    folder = datasets.prepare(options)
    rows, dim = datasets.shape(folder)
    engines, skipped = registry.present(registry.ENGINES, options.engines)
    parameters = {"set": folder.name, "rows": rows, "dim": dim, "k": K}
    results = rounds.ResultFile(options, "compare_build", parameters, skipped)
    for number, engine in rounds.in_turns(engines, options.rounds):
        index = rounds.index_path(options, folder, registry.ENGINES[engine])
        key = {"round": number, "engine": engine, "mode": "build", "threads": THREADS}
        results.run(key, rounds.job(options, "build", folder, engine, THREADS, keep=str(index)))
    for number, engine in rounds.in_turns(engines, options.rounds):
        index, failure = rounds.saved_index(options, folder, "engines", engine, THREADS)
        if failure is None:
            key = {"round": number, "engine": engine, "mode": "load", "threads": 1}
            results.run(key, rounds.job(options, "after_build", folder, engine, 1, index=str(index)))
    results.finish(summarise(results, engines))


if __name__ == "__main__":
    main()

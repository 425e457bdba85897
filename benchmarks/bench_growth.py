"""Growth to a million rows, compared with other libraries: search at equal recall, build, and adds of single rows.

Sizes up to the set's own use a part of the set. Larger sizes are grown by the seeded augmentation of harness/grow.py,
with exact neighbours of all queries, and with evidence that the local structure is preserved. Each index is built once
for each size, with two threads. Searches take turns in rounds, with one query a call on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness import curves, datasets, grow, registry, rounds
from harness.contract import K

SIZES = (10_000, 100_000, 300_000, 1_000_000)
TINY_SIZES = (1_500, 3_000)
ENGINES = ("fabstir", "hnswlib", "zvec-hnsw")
#: Engines that add single rows to a loaded index, searchable at once.
ADDERS = ("fabstir", "hnswlib")
RECALLS = (0.95, 0.99)
CONTROL = "control"
ADDS = 200


def summarise(results: rounds.ResultFile, engines: list[str], sets: Iterable[str]) -> dict[str, Any]:
    """For each set and engine: microseconds per query at each recall, of all cores per built row, and per added row."""
    summary: dict[str, Any] = {}
    for rows in sets:
        table = summary[rows] = {}
        speeds = {engine: _speeds(results, engine, rows) for engine in engines}
        for engine, speed in speeds.items():
            found = table[engine] = {
                "us_per_query": {
                    f"{recall:.2f}": curves.stat([qps and 1e6 / qps for qps in of.values()])
                    for recall, of in speed.items()
                }
            }
            if engine != registry.OURS and registry.OURS in speeds:
                found["ours_over_it"] = {
                    f"{recall:.2f}": curves.ratio(speeds[registry.OURS][recall], speed[recall]) for recall in RECALLS
                }
            for run in results.of(engine, mode="build", rows=rows):
                found["build_cpu_us_per_row"] = run["cpu_us_per_row"]
                found["grown_bytes_per_row"] = run["grown_bytes_per_row"]
            adds = list(results.of(engine, mode="add_one", rows=rows))
            for name in ("add_p50_us", "add_p99_us"):
                found[name] = curves.stat([run[name] for run in adds])
    return summary


def _speeds(results: rounds.ResultFile, engine: str, rows: str) -> dict[float, dict[int, float | None]]:
    """QPS of the median call, which leaves out calls that another process interrupted."""
    runs = {run["round"]: curves.of_median_calls(run["points"]) for run in results.of(engine, mode="single", rows=rows)}
    return {recall: {number: curves.qps_at(points, recall) for number, points in runs.items()} for recall in RECALLS}


def make_sets(options: argparse.Namespace, source: Path, sizes: list[int]) -> dict[str, Path]:
    """The folder of each size, and of the control: the first tenth of the set, grown to its size."""
    whole, _ = datasets.shape(source)
    tenth = max(whole // 10, 2 * grow.NEAREST)
    sets = {rows: grow.folder_of(options.work, source, whole, rows) for rows in sizes}
    control = grow.folder_of(options.work, source, tenth, whole)
    grow.write_sets(sets, source, whole)
    grow.write_sets({whole: control}, source, tenth)
    return {str(rows): found for rows, found in sets.items()} | {CONTROL: control}


def main() -> None:
    """Command line entry point."""
    parser = datasets.parser(__doc__, rounds=3)
    rounds.add_engines_argument(parser, registry.ENGINES)
    parser.add_argument(
        "--sizes",
        type=lambda text: [int(size) for size in text.split(",")],
        help=f"rows, default {','.join(map(str, SIZES))}",
    )
    options = parser.parse_args()
    sizes = options.sizes or list(TINY_SIZES if options.tiny else SIZES)
    source = datasets.prepare(options)
    seed_rows, dim = datasets.shape(source)
    engines, skipped = registry.present(registry.ENGINES, options.engines or ENGINES)
    parameters = {"set": source.name, "seed_rows": seed_rows, "dim": dim, "k": K, "seed": grow.SEED}
    results = rounds.ResultFile(options, "bench_growth", parameters, skipped)
    folders = make_sets(options, source, sizes)
    for rows, folder in folders.items():
        for engine in engines:
            key = {"round": 0, "engine": engine, "mode": "build", "threads": 2, "rows": rows}
            index = rounds.index_path(options, folder, registry.ENGINES[engine])
            results.run(key, rounds.job(options, "build", folder, engine, 2, keep=str(index)))
        for number, engine in rounds.in_turns(engines, options.rounds):
            index, failure = rounds.saved_index(options, folder, "engines", engine, 2)
            if failure:
                continue
            key = {"round": number, "engine": engine, "mode": "single", "threads": 1, "rows": rows}
            results.run(key, rounds.job(options, "search", folder, engine, 1, mode="single", index=str(index)))
            if engine in ADDERS and rows != CONTROL:
                key["mode"] = "add_one"
                results.run(key, rounds.job(options, "add_one", folder, engine, 1, index=str(index), adds=ADDS))
    evidence = {rows: curves.rounded(grow.evidence(folder)) for rows, folder in folders.items()}
    evidence["real"] = curves.rounded(grow.evidence(source))
    results.finish({"sizes": summarise(results, engines, folders), "evidence": evidence})


if __name__ == "__main__":
    main()

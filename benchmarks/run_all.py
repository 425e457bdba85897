"""Runs every benchmark in order, writes one file each in benchmarks/results, then writes the tables and pictures.

    python benchmarks/run_all.py --data DIR

A result file keeps every finished job, so an interrupted run continues when it is started again. --fresh starts over.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from harness import datasets, rounds

HERE = Path(__file__).resolve().parent
#: In the order of running: compare_build keeps the indexes that the searches open.
SCRIPTS = (
    "bench_kernels",
    "compare_build",
    "compare_search",
    "bench_batch",
    "compare_flat",
    "compare_lists",
    "compare_session",
    "bench_filter",
    "bench_columns",
    "bench_kinds",
    "compare_text",
    "bench_save_load",
    "bench_damage",
    "bench_link",
    "bench_link_text",
    "bench_memory",
    "bench_tables",
    "bench_loop_lag",
    "bench_collection",
    "bench_engines",
    "bench_overhead",
    "bench_growth",
)


def main() -> None:
    """Command line entry point."""
    parser = datasets.parser(__doc__)
    parser.set_defaults(rounds=None)
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the result files")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(SCRIPTS), help="scripts to run")
    parser.add_argument("--fresh", action="store_true", help="remove results and saved indexes first")
    options = parser.parse_args()
    if options.json is not None:
        parser.error("--json is not used here, as each script writes its own file: name their folder with --results")
    for name in options.only:
        if name not in SCRIPTS:
            parser.error(f"unknown script {name!r}: use one of {', '.join(SCRIPTS)}")
    shared = ["--work", str(options.work)]
    for flag, value in (("--data", options.data), ("--rows", options.rows), ("--rounds", options.rounds)):
        shared += [flag, str(value)] if value is not None else []
    shared += ["--tiny"] if options.tiny else []
    datasets.prepare(options)  # reports a missing set before the first script runs
    if options.fresh:
        rounds.forget_indexes(options)
    for name in options.only:
        file = options.results / f"{name}.json"
        if options.fresh:
            file.unlink(missing_ok=True)
        print(f"== {name}", file=sys.stderr, flush=True)
        started = time.monotonic()
        command = [sys.executable, str(HERE / f"{name}.py"), *shared, "--json", str(file)]
        if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode != 0:
            raise SystemExit(f"{name} failed; run the same command again to continue from there")
        print(f"== {name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    if options.results == HERE / "results" and not options.tiny:
        subprocess.run([sys.executable, str(HERE / "report.py")], check=True)


if __name__ == "__main__":
    main()

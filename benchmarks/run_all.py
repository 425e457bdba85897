"""Runs every benchmark in order, each into its file in benchmarks/results, then writes the tables and pictures.

    python benchmarks/run_all.py --data DIR

Stopped and started again it goes on where it was: a result file keeps every job that was done. --fresh begins anew.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from harness import datasets, rounds

HERE = Path(__file__).resolve().parent
#: In this order: compare_build leaves the indexes that the searches open.
SCRIPTS = (
    "bench_kernels",
    "compare_build",
    "compare_search",
    "compare_flat",
    "compare_lists",
    "compare_session",
    "bench_filter",
    "bench_save_load",
    "bench_link",
    "bench_memory",
    "bench_loop_lag",
    "bench_overhead",
    "bench_growth",
)


def main() -> None:
    """Command line entry point."""
    parser = datasets.parser(__doc__)
    parser.set_defaults(rounds=None)
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the result files")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(SCRIPTS), help="some of the scripts")
    parser.add_argument("--fresh", action="store_true", help="remove results and saved indexes first")
    options = parser.parse_args()
    if options.json is not None:
        parser.error("each script has a file of its own: name their folder with --results")
    for name in options.only:
        if name not in SCRIPTS:
            parser.error(f"no script is called {name!r}: one of {', '.join(SCRIPTS)}")
    shared = ["--work", str(options.work)]
    for flag, value in (("--data", options.data), ("--rows", options.rows), ("--rounds", options.rounds)):
        shared += [flag, str(value)] if value is not None else []
    shared += ["--tiny"] if options.tiny else []
    datasets.prepare(options)  # a missing set is better named now than by the second script
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
            raise SystemExit(f"{name} failed; run the same command again to go on from there")
        print(f"== {name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    if options.results == HERE / "results" and not options.tiny:
        subprocess.run([sys.executable, str(HERE / "report.py")], check=True)


if __name__ == "__main__":
    main()

"""The native kernels of every instruction set of this CPU, compared with the machine's copy and read speed.

Compiles bench_kernels.c and the core's kernels with the compiler flags of the core, and runs the program on one core.
A kernel that reads rows from memory at the machine's read speed is limited by memory. Its speed on cached rows shows
the limit of its arithmetic. The table `plain` is the compiler's own code for plain C, on x86-64 with AVX2.

Where valgrind is installed, instructions per row are counted as well, on every instruction set that it knows (not
AVX-512). Unlike times, counts are the same on a busy machine. `--instructions` counts, and measures no time.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from harness import curves, datasets, rounds

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
#: More rows than any cache holds.
ROWS = 100_000
CASE_MS = 50
#: Instructions are counted over this many rows, gone through so often and once as often again.
COUNTED_ROWS, COUNTED_PASSES = 32, 500


def build_driver() -> ModuleType:
    """The module build_native.py, which has the compiler and its flags."""
    spec = importlib.util.spec_from_file_location("build_native", ROOT / "build_native.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["build_native"] = module
    spec.loader.exec_module(module)
    return module


def compile_program(target: Path) -> None:
    """Compiles the program into a file.

    Raises:
        SystemExit: the compiler failed; its messages are on stderr.
    """
    driver = build_driver()
    optimise = ["-O3", "-DNDEBUG", "-fno-sanitize=all"]
    sources = [str(path) for path in driver.sources() if path.parent.name == "kernels"]
    command = [*driver.compiler(driver.host_target()), *driver.FLAGS, *optimise]
    command += ["-Inative/include", "-Inative/src", str(HERE / "bench_kernels.c"), *sources, "-o", str(target)]
    target.parent.mkdir(parents=True, exist_ok=True)
    if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
        raise SystemExit("the C compiler failed")


def one_round(program: Path, rows: int, dim: int, milliseconds: float) -> dict[str, Any]:
    """One run of the program on one core."""
    with rounds.Pinned(1):
        command = [str(program), str(rows), str(dim), str(milliseconds)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def instructions(program: Path, dim: int, table: str, kernel: str) -> float | None:
    """Instructions a row of one kernel, None where it does not run under valgrind: what twice the passes take more."""
    counts = []
    for passes in (COUNTED_PASSES, 2 * COUNTED_PASSES):
        command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", str(program)]
        command += [str(COUNTED_ROWS), str(dim), table, kernel, str(passes)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        collected = re.search(r"Collected : (\d+)", done.stderr)
        if done.returncode != 0 or collected is None:
            return None
        counts.append(int(collected[1]))
    return (counts[1] - counts[0]) / (COUNTED_ROWS * COUNTED_PASSES)


def count_all(program: Path, dim: int) -> dict[str, Any]:
    """Instructions a row of every kernel by table."""
    found = one_round(program, COUNTED_ROWS, dim, 0)["cases"]
    pairs = dict.fromkeys((case["kernel"], case["table"]) for case in found)
    counted = [
        {"kernel": pair[0], "table": pair[1], "count": instructions(program, dim, pair[1], pair[0])} for pair in pairs
    ]
    return {"instructions": [case for case in counted if case["count"] is not None]}


def main() -> None:
    """Command line entry point."""
    parser = datasets.parser(__doc__, rounds=5)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--case-ms", type=float, default=CASE_MS, help=f"least time of a case, default {CASE_MS}")
    parser.add_argument("--instructions", action="store_true", help="count instructions, measure no time")
    options = parser.parse_args()
    rows = options.rows or (2_000 if options.tiny else ROWS)
    results = rounds.ResultFile(options, "bench_kernels", {"rows": rows, "dim": options.dim}, {})
    program = options.work.resolve() / "bench_kernels"
    compile_program(program)
    if options.instructions and not shutil.which("valgrind"):
        raise SystemExit("valgrind is not installed")
    counted: list[dict[str, Any]] = []
    if shutil.which("valgrind") and not options.tiny:
        key = {"round": 0, "engine": "instructions"}
        counted = results.do(key, lambda: count_all(program, options.dim))["instructions"]
    if options.instructions:
        results.finish({"instructions": counted})
        return
    for number in range(options.rounds):
        results.do(
            {"round": number, "engine": "kernels"}, lambda: one_round(program, rows, options.dim, options.case_ms)
        )
    runs = list(results.of("kernels"))
    copied = {run["round"]: run["copy_gb_s"] for run in runs}
    cases = []
    for position, case in enumerate(runs[0]["cases"]):
        same = {run["round"]: run["cases"][position] for run in runs}
        speed = {number: one["bytes"] / one["ns"] for number, one in same.items()}
        cases.append(
            {name: case[name] for name in ("table", "kernel", "rows", "bytes")}
            | {
                "ns": curves.stat([one["ns"] for one in same.values()]),
                "gb_s": curves.stat(list(speed.values())),
                "over_copy": curves.ratio(speed, copied),
            }
        )
    machine = {name: curves.stat([run[name] for run in runs]) for name in ("copy_gb_s", "read_gb_s")}
    results.finish(machine | {"cases": cases, "instructions": counted})


if __name__ == "__main__":
    main()

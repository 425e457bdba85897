"""The native kernels of every instruction set of this CPU, compared with the machine's copy and read speed.

Compiles bench_kernels.c and the core's kernels with the compiler flags of the core, and runs the program on one core.
A kernel that reads rows from memory at the machine's read speed is limited by memory. Its speed on cached rows shows
the limit of its arithmetic.
"""

from __future__ import annotations

import importlib.util
import json
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


def main() -> None:
    """Command line entry point."""
    parser = datasets.parser(__doc__, rounds=5)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--case-ms", type=float, default=CASE_MS, help=f"least time of a case, default {CASE_MS}")
    options = parser.parse_args()
    rows = options.rows or (2_000 if options.tiny else ROWS)
    results = rounds.ResultFile(options, "bench_kernels", {"rows": rows, "dim": options.dim}, {})
    program = options.work.resolve() / "bench_kernels"
    compile_program(program)
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
    results.finish(machine | {"cases": cases})


if __name__ == "__main__":
    main()

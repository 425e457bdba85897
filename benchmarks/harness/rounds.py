"""Running jobs of several libraries turn by turn, and a result file that can be continued.

The speed of a machine varies from minute to minute. Libraries therefore take turns, every round begins with another
library, and ratios are computed within a round.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from harness import curves, datasets, environment, registry

FOLDER = Path(__file__).resolve().parents[1]
JOB_S_MAX = 3 * 3600
#: Fields that form the key of a job; the other fields of a run are its result.
KEY = ("round", "engine", "mode", "threads", "rows")


class ResultFile:
    """Results of one benchmark: environment, parameters, one entry per job, and a summary of them.

    Args:
        options: arguments of datasets.parser; --json names the file, which is continued if it exists.
        benchmark: name of the script.
        parameters: parameters that must be equal for runs to be compared.
        skipped: engines that are not measured, with the reasons.

    Raises:
        SystemExit: the file has results with other parameters, of another machine or of another build.
    """

    def __init__(
        self, options: argparse.Namespace, benchmark: str, parameters: dict[str, Any], skipped: dict[str, str]
    ) -> None:
        self._path: Path | None = options.json
        self.content: dict[str, Any] = {
            "benchmark": benchmark,
            "environment": environment.describe(),
            "parameters": parameters,
            "skipped": skipped,
            "runs": [],
            "summary": {},
        }
        if self._path is None or not self._path.exists():
            return
        before = json.loads(self._path.read_text(encoding="utf-8"))
        for name in ("benchmark", "parameters", "environment"):
            if before[name] != self.content[name]:
                raise SystemExit(
                    f"{self._path} has results of another {name}: {before[name]} is not {self.content[name]}. "
                    "Remove it, or name another file with --json."
                )
        self.runs.extend(run for run in before["runs"] if "error" not in run)

    @property
    def runs(self) -> list[dict[str, Any]]:
        """One entry for each finished job."""
        runs: list[dict[str, Any]] = self.content["runs"]
        return runs

    def run(self, key: dict[str, Any], job: dict[str, Any]) -> dict[str, Any]:
        """Runs a job in a worker, unless the file has it already; the entry of a failed job has "error"."""
        return self.do(key, partial(run_job, job))

    def do(self, key: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Measures unless the file has an entry of this key already; returns the entry."""
        for run in self.runs:
            if all(run.get(name) == key.get(name) for name in KEY):
                return run
        print(" ".join(f"{name}={value}" for name, value in key.items()), file=sys.stderr, flush=True)
        entry = {**key, **curves.rounded(measure())}
        self.runs.append(entry)
        self.write()
        return entry

    def of(self, engine: str, **key: Any) -> Iterator[dict[str, Any]]:
        """Entries of an engine without an error."""
        for run in self.runs:
            if run["engine"] == engine and "error" not in run and all(run.get(n) == v for n, v in key.items()):
                yield run

    def finish(self, summary: dict[str, Any]) -> None:
        """Adds the summary and prints it."""
        self.content["summary"] = summary
        self.write()
        print(json.dumps({name: self.content[name] for name in ("skipped", "summary")}, indent=1))
        for run in self.runs:
            if "error" in run:
                print({name: run[name] for name in (*KEY, "error") if name in run}, file=sys.stderr)

    def write(self) -> None:
        """Writes the file, completely or not at all."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_name(f".{self._path.name}.new")
        fresh.write_text(as_text(self.content), encoding="utf-8")
        os.replace(fresh, self._path)


def as_text(content: dict[str, Any]) -> str:
    """JSON with one line for each run, so that a diff of two files is readable."""
    runs = ",\n".join(f"  {json.dumps(run)}" for run in content["runs"])
    rest = {name: value for name, value in content.items() if name != "runs"}
    return f'{json.dumps(rest, indent=1)[:-2]},\n "runs": [\n{runs}\n ]\n}}\n'


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Runs the worker on a job, on as many cores as it has threads."""
    work = Path(job["work"])
    work.mkdir(parents=True, exist_ok=True)
    threads = job["threads"]
    variables = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    # No library here needs a network; the last two variables keep libraries from using one.
    variables |= {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "ANONYMIZED_TELEMETRY": "False"}
    handle, name = tempfile.mkstemp(suffix=".json", dir=work.resolve())
    os.close(handle)
    result = Path(name)
    try:
        with Pinned(threads):
            done = subprocess.run(
                [sys.executable, "-m", "harness.worker", json.dumps(job), name],
                cwd=FOLDER,
                env={**os.environ, **variables},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                timeout=JOB_S_MAX,
                check=False,
            )
        if done.returncode == 0:
            found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
            return found
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return {"error": last[0][:300]}
    except subprocess.TimeoutExpired:
        return {"error": f"no result after {JOB_S_MAX} s"}
    finally:
        result.unlink()


class Pinned:
    """Pins this process and its children to the last cores, as the first cores serve more interrupts."""

    def __init__(self, threads: int) -> None:
        self._all = environment.cores()
        self._some = self._all[-threads:]

    def __enter__(self) -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self._some)

    def __exit__(self, *_: object) -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self._all)


def in_turns(engines: list[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Every engine once in each round; each round begins with the next engine."""
    for number in range(rounds):
        first = number % max(len(engines), 1)
        for engine in engines[first:] + engines[:first]:
            yield number, engine


def add_engines_argument(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """Adds --engines, which selects some of the script's engines."""
    parser.add_argument(
        "--engines", type=lambda text: text.split(","), help=f"some of {','.join(names)}; all by default"
    )


def job(options: argparse.Namespace, do: str, folder: Path, engine: str, threads: int, **more: Any) -> dict[str, Any]:
    """A job for the worker."""
    found = {"do": do, "set": str(folder.resolve()), "engine": engine, "threads": threads, "table": "engines"}
    return found | {"work": str(options.work.resolve())} | more


def index_path(options: argparse.Namespace, folder: Path, entry: registry.Entry[Any]) -> Path:
    """Path at which an index is kept between runs; it differs by set and by version of the library."""
    made_by = environment.version(entry.package)
    if entry.module == "fabstir_vectordb":
        made_by = environment.library_print()
    rows, dim = datasets.shape(folder)
    source = hashlib.blake2b(str(folder.resolve()).encode(), digest_size=4).hexdigest()
    return Path(options.work.resolve(), "indexes", f"{folder.name}-{rows}x{dim}-{source}-{entry.saved_as}-{made_by}")


def saved_index(
    options: argparse.Namespace, folder: Path, table: str, engine: str, threads: int
) -> tuple[Path, str | None]:
    """The saved index of an engine, built if it is missing, and the reason of a failure or None."""
    entry = registry.TABLES[table][engine]
    path = index_path(options, folder, entry)
    if path.exists():
        return path, None
    print(f"build engine={engine} threads={threads}", file=sys.stderr, flush=True)
    done = run_job(job(options, "build", folder, engine, threads, table=table, keep=str(path)))
    return path, done.get("error")


def forget_indexes(options: argparse.Namespace) -> None:
    """Removes the saved indexes."""
    shutil.rmtree(Path(options.work, "indexes"), ignore_errors=True)

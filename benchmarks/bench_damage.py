"""One bit of a library's files flips: does it answer as before, refuse, crash, hang, or answer wrongly?

Each trial copies a small store, flips one bit of a byte drawn from all bytes of its files, and opens and asks it in a
process of its own: the nearest rows of some queries, and all rows. "wrong" is any other answer than that of the intact
files, without an error.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from harness import damaged, datasets, rounds

ROWS, QUERIES = 200, 5
TRIALS = 50
PATIENCE_S = 60
OUTCOMES = ("right", "refused", "wrong", "crashed", "hung")


def ask_in_child(name: str, folder: Path, queries: Any) -> tuple[str, str]:
    """Asks in a forked process; returns how that ended, and the answer or the error."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(out)
            signal.alarm(PATIENCE_S)
            answer = json.dumps(damaged.STORED[name].ask(folder, queries))
            code = 0
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"[:300]
        finally:
            with os.fdopen(into, "w", encoding="utf-8", errors="replace") as file:
                file.write(answer)
            os._exit(code)
    os.close(into)
    with os.fdopen(out, encoding="utf-8", errors="replace") as file:
        answer = file.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return ("hung" if os.WTERMSIG(status) == signal.SIGALRM else "crashed"), ""
    return ("answered" if os.WEXITSTATUS(status) == 0 else "refused"), answer


def flip(folder: Path, chance: random.Random) -> str:
    """Flips one bit; returns the file's name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    place = chance.randrange(sum(path.stat().st_size for path in files))
    for path in files:
        size = path.stat().st_size
        if place < size:
            raw = bytearray(path.read_bytes())
            raw[place] ^= 1 << chance.randrange(8)
            path.chmod(0o600)
            path.write_bytes(raw)
            return path.name
        place -= size
    raise AssertionError("no file has a byte")


def damage(name: str, base: Any, queries: Any, texts: list[str], trials: int, seed: int) -> dict[str, Any]:
    """Counts of outcomes; run it in a process that does nothing else."""
    stored = damaged.STORED[name]
    counts = dict.fromkeys(OUTCOMES, 0)
    with tempfile.TemporaryDirectory() as scratch:
        # Written by a process that ends, as some libraries write last things then, and hold locks.
        whole = Path(scratch, "whole")
        whole.mkdir()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                stored.write(whole, base, texts)
                code = 0
            finally:
                os._exit(code)
        if os.waitpid(child, 0)[1] != 0:
            raise SystemExit(f"{name} could not write its files")
        for module in stored.imports:
            importlib.import_module(module)
        expected = _intact(name, whole, queries)
        for number in range(trials):
            copy = Path(shutil.copytree(whole, Path(scratch, "copy")))
            flip(copy, random.Random(f"{seed} {number}"))
            ended, answer = ask_in_child(name, copy, queries)
            counts[ended if ended != "answered" else "right" if answer == expected else "wrong"] += 1
            shutil.rmtree(copy)
        counts["stored_bytes"] = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    return {"trials": trials, **counts}


def _intact(name: str, whole: Path, queries: Any) -> str:
    # Asked on copies, as some libraries write when they open.
    answers = set()
    for number in range(2):
        copy = shutil.copytree(whole, whole.with_name(f"intact-{number}"))
        answers.add(ask_in_child(name, Path(copy), queries))
    if len(answers) != 1 or {ended for ended, _ in answers} != {"answered"}:
        raise SystemExit(f"{name} does not answer twice alike: {[(ended, text[:300]) for ended, text in answers]}")
    return answers.pop()[1]


def in_a_new_process(folder: Path, name: str, trials: int, seed: int) -> dict[str, Any]:
    """`damage` in a new process, which imports one library."""
    command = [sys.executable, __file__, "--one", json.dumps([str(folder), name, trials, seed])]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:300]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Command line entry point."""
    parser = datasets.parser(__doc__, rounds=2)
    rounds.add_engines_argument(parser, damaged.STORED)
    parser.add_argument("--trials", type=int, default=TRIALS, help=f"of a round; default {TRIALS}")
    parser.add_argument("--one", help="run the trials of one library in this process and print the counts")
    options = parser.parse_args()
    if not hasattr(os, "fork"):
        raise SystemExit("each trial is a forked process, which this system lacks")
    if options.one is not None:
        folder, name, trials, seed = json.loads(options.one)
        data = datasets.open_set(Path(folder))
        base = np.asarray(data.base[:ROWS], np.float32)
        texts = [f"the text of row {row}" for row in range(len(base))]
        print(json.dumps(damage(name, base, np.asarray(data.queries[:QUERIES], np.float32), texts, trials, seed)))
        return
    folder = datasets.prepare(options)
    found, skipped = damaged.present(options.engines)
    parameters = {"rows": ROWS, "dim": datasets.shape(folder)[1], "trials": options.trials}
    results = rounds.ResultFile(options, "bench_damage", parameters, skipped)
    for number, name in rounds.in_turns(found, options.rounds):
        results.do(
            {"round": number, "engine": name},
            lambda number=number, name=name: in_a_new_process(folder, name, options.trials, number),
        )
    results.finish({name: _sum(list(results.of(name))) for name in found})


def _sum(runs: list[dict[str, Any]]) -> dict[str, int]:
    return {key: sum(run[key] for run in runs) for key in ("trials", *OUTCOMES)}


if __name__ == "__main__":
    main()

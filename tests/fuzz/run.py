"""Runs the harnesses, and says of each how long, how many inputs, and what was found.

    python tests/fuzz/run.py --minutes 10              # all: ten minutes of CPU time each
    python tests/fuzz/run.py --minutes 1 text share    # some
    python tests/fuzz/run.py --keep                    # puts what led to new code into tests/data/fuzz
    python tests/fuzz/run.py --keep-minutes            # and the minutes there

Minutes are gathered: --work remembers those that found nothing, and minutes.json those that were kept, so a run that
was interrupted goes on, here or elsewhere, and a second one does what is missing, or nothing. A harness that reads with
code that changed since starts anew (ledger.py). --minutes 0 only says how many each has.

Harnesses in C need a clang with libFuzzer (Debian: clang-19, libclang-rt-19-dev); those in Python need atheris
(``pip install atheris``). Without them, inputs are mutated without guidance. What is found is in the folder `findings`
of --work, as a file that was named after the harness, with the log beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import corpus
import native_harnesses
from ledger import READERS, Ledger, keep_minutes, sources_of_native, sources_of_reader
from mutate import SEED, mutated

ROOT = Path(__file__).resolve().parents[2]
WORK = Path(tempfile.gettempdir()) / "fabstir-vectordb-fuzz"
#: An input that takes more CPU time than this, or takes more memory, is a finding.
INPUT_S_MAX, ALLOCATION_MB_MAX, MEMORY_MB_MAX = 60, 512, 2_048
INPUT_BYTES_MAX = 4_096
#: libFuzzer counts seconds of the clock, and CPU time is what is asked for: it runs in slices.
SLICE_S = 300
KEPT_MAX, KEPT_BYTES_MAX = 60, 400
LIMITS = [
    "-len_control=0",
    "-print_final_stats=1",
    f"-timeout={INPUT_S_MAX}",
    f"-report_slow_units={INPUT_S_MAX}",  # else ten seconds of a busy machine leave a file in `findings`
    f"-malloc_limit_mb={ALLOCATION_MB_MAX}",
    f"-rss_limit_mb={MEMORY_MB_MAX}",
]


def python_targets() -> dict[str, Any]:
    """The harnesses in Python; imported late, as atheris instruments what is imported under it."""
    from hostile import ALL

    return ALL


def try_one(target: Any, raw: bytes) -> None:
    """Raises AssertionError where an input is a finding."""
    from readers import attempt

    found = attempt(target.read, raw)
    assert found is None or target.holds(found), raw


def cpu_s() -> float:
    """CPU time of the processes that this one started and that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Campaign:
    """One harness, run in slices until its CPU time is over or it found something."""

    def __init__(
        self, name: str, work: Path, command: Callable[[int], list[str]], one: Callable[[Path], list[str]]
    ) -> None:
        self.name, self._work, self._command, self._one = name, work, command, one
        self.corpus, self.findings = work / "corpus" / name, work / "findings"
        self.seeds = work / "seeds" / name
        for folder in (self.corpus, self.findings, self.seeds):
            folder.mkdir(parents=True, exist_ok=True)

    def run(self, minutes: float, ledger: Ledger) -> str:
        """Runs what is missing of its minutes; returns a line for the report."""
        began, said = cpu_s(), ""
        known = self._found()
        log = self._work / f"{self.name}.log"
        while (left := 60 * (minutes - ledger.minutes)) > 0 and not said:
            before = cpu_s()
            with log.open("wb") as out:
                command = self._command(max(1, min(SLICE_S, int(left) + 1)))
                ended = subprocess.run(command, stdout=out, stderr=out, cwd=ROOT, check=False)
            text = log.read_text(encoding="utf-8", errors="replace")
            runs = re.findall(r"number_of_executed_units: (\d+)|^#(\d+)\s", text, re.MULTILINE)
            found = self._found() - known
            if not self._fast_after_all(found) and ended.returncode:
                said = f"{len(found) or 'a start that failed'} FOUND, see {log} and {self.findings}"
                ledger.start_anew()
            else:
                ledger.add((cpu_s() - before) / 60, int(runs[-1][0] or runs[-1][1]) if runs else 0)
        kept = f"{len(list(self.corpus.iterdir())):6,} kept"
        return reported(self.name, ledger, (cpu_s() - began) / 60, kept, said or "0 found")

    def _found(self) -> set[Path]:
        return set(self.findings.glob(f"{self.name}-*"))

    def _fast_after_all(self, found: set[Path]) -> bool:
        """Whether all findings are slow ones that end well within the limit, of CPU time; these are removed.

        libFuzzer goes by the clock, which also runs while a busy machine has no processor for it.
        """
        fast = {path for path in found if re.match(r"(timeout|slow-unit)-", path.name[len(self.name) + 1 :])}
        for path in list(fast):
            limit = ["sh", "-c", f'ulimit -t {INPUT_S_MAX} && exec "$@"', "sh"]
            if subprocess.run([*limit, *self._one(path)], capture_output=True, cwd=ROOT, check=False).returncode:
                fast.remove(path)
            else:
                path.unlink()
        return bool(found) and fast == found


def reported(name: str, ledger: Ledger, now: float, how: str, found: str) -> str:
    """The line of a harness: minutes of all runs, of which in this one, inputs, and what was found."""
    return f"{name:20} {ledger.minutes:5.1f} CPU min ({now:4.1f} now) {ledger.inputs:11,} inputs {how}  {found}"


def native_campaign(name: str, program: Path, work: Path) -> Campaign:
    """A fuzzer of libFuzzer."""

    def command(seconds: int) -> list[str]:
        prefix = f"-artifact_prefix={campaign.findings / name}-"
        folders = [str(campaign.corpus), str(campaign.seeds)]
        return [str(program), *folders, *LIMITS, "-max_len=400", prefix, f"-max_total_time={seconds}"]

    # Beyond any limit of the clock, which a second run of a slow input must not meet either.
    campaign = Campaign(name, work, command, lambda path: [str(program), str(path), "-timeout=86400"])
    write_seeds(campaign, [])
    return campaign


def python_campaign(name: str, target: Any, work: Path) -> Campaign:
    """A reader in Python, in a process of its own."""

    def command(seconds: int) -> list[str]:
        return [sys.executable, __file__, "--one", name, "--work", str(work), "--seconds", str(seconds)]

    campaign = Campaign(
        name, work, command, lambda path: [sys.executable, __file__, "--one", name, "--input", str(path)]
    )
    write_seeds(campaign, target.corpus)
    return campaign


def write_seeds(campaign: Campaign, more: Sequence[bytes]) -> None:
    for raw in [*more, *(one.raw for one in corpus.read(campaign.name))]:
        (campaign.seeds / hashlib.sha256(raw).hexdigest()[:16]).write_bytes(raw)


def run_one(name: str, work: Path, seconds: int) -> None:
    """The process of one reader."""
    campaign = Campaign(name, work, lambda _: [], lambda _: [])
    if importlib.util.find_spec("atheris") is None:
        return run_unguided(python_targets()[name], campaign, seconds)
    import atheris  # type: ignore[import-not-found,import-untyped]

    with atheris.instrument_imports(include=["fabstir_vectordb"]):
        target = python_targets()[name]
    prefix, size = f"-artifact_prefix={campaign.findings / name}-", f"-max_len={INPUT_BYTES_MAX}"
    folders = [str(campaign.corpus), str(campaign.seeds)]
    atheris.Setup(
        [name, *folders, *LIMITS, size, prefix, f"-max_total_time={seconds}"], lambda raw: try_one(target, raw)
    )
    atheris.Fuzz()


def run_unguided(target: Any, campaign: Campaign, seconds: int) -> None:
    """Mutated inputs without knowledge of what they reach."""
    end, number = time.monotonic() + seconds, 0
    random_ = random.Random(f"{SEED} {campaign.name} {time.time_ns()}")
    seeds = [path.read_bytes() for path in sorted(campaign.seeds.iterdir())] or [b""]
    while time.monotonic() < end:
        raw, number = mutated(random_.choice(seeds), seeds, random_), number + 1
        try:
            try_one(target, raw)
        except BaseException:
            (campaign.findings / f"{campaign.name}-{hashlib.sha256(raw).hexdigest()[:16]}").write_bytes(raw)
            raise
    print(f"#{number} inputs")


def run_replay_unguided(name: str, program: Path, work: Path, minutes: float, ledger: Ledger) -> str:
    """The same for a harness in C, without libFuzzer: batches of mutated inputs through the replay program."""
    began = cpu_s()
    random_ = random.Random(f"{SEED} {name} {time.time_ns()}")
    seeds = [one.raw for one in corpus.read(name)]
    while ledger.minutes < minutes:
        before, batch = cpu_s(), [mutated(random_.choice(seeds), seeds, random_) for _ in range(200)]
        with tempfile.TemporaryDirectory(dir=work) as scratch:
            try:
                native_harnesses.replayed(program, {name: batch}, Path(scratch))
            except AssertionError as error:
                last = re.findall(rf"{name}-(\d{{4}})$", str(error), re.MULTILINE)[-1]
                finding = work / "findings" / f"{name}-{hashlib.sha256(batch[int(last)]).hexdigest()[:16]}"
                finding.parent.mkdir(exist_ok=True)
                finding.write_bytes(batch[int(last)])
                ledger.start_anew()
                return f"{name:20} 1 FOUND, see {finding}\n{error}"
        ledger.add((cpu_s() - before) / 60, len(batch))
    return reported(name, ledger, (cpu_s() - began) / 60, "unguided", "0 found")


def keep(names: Sequence[str], work: Path) -> None:
    """Adds the smallest of the inputs that led to new code to the kept ones."""
    for name in names:
        folder = work / "corpus" / name
        found = sorted((path.read_bytes() for path in folder.iterdir()), key=len) if folder.is_dir() else []
        known = corpus.read(name)
        fresh = [corpus.Input(raw, "") for raw in found if len(raw) <= KEPT_BYTES_MAX]
        corpus.write(name, [*known, *fresh[: max(0, KEPT_MAX - len(known))]])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("harness", nargs="*", help="names; none runs all")
    parser.add_argument("--minutes", type=float, default=10.0, help="CPU time of each harness, over all runs")
    parser.add_argument("--work", type=Path, default=WORK, help="for programs, inputs, findings, logs and minutes")
    parser.add_argument("--keep", action="store_true", help="do not run: keep inputs of earlier runs")
    parser.add_argument("--keep-minutes", action="store_true", help="do not run: keep the minutes of earlier runs")
    parser.add_argument("--list", action="store_true", help="do not run: print the names")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--input", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=int, default=SLICE_S, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.input:
        try_one(python_targets()[options.one], options.input.read_bytes())
        return 0
    if options.one:
        run_one(options.one, options.work, options.seconds)
        return 0
    targets = python_targets()
    names = options.harness or [*native_harnesses.NAMES, *targets]
    if unknown := set(names) - {*native_harnesses.NAMES, *targets}:
        parser.error(f"no harness {', '.join(sorted(unknown))}")
    if options.list or options.keep or options.keep_minutes:
        print(*names, sep="\n")
        if options.keep:
            keep(names, options.work)
        if options.keep_minutes:
            keep_minutes(names, options.work)
        return 0
    options.work.mkdir(parents=True, exist_ok=True)
    return run(names, targets, options.work, options.minutes)


def run(names: Sequence[str], targets: dict[str, Any], work: Path, minutes: float) -> int:
    natives = tuple(name for name in names if name in native_harnesses.NAMES)
    has_clang = bool(natives) and native_harnesses.clang() is not None
    programs = native_harnesses.build_fuzzers(work / "build", natives) if has_clang else {}
    replay = native_harnesses.build_replay(work) if natives and not has_clang else None
    engine = "unguided" if importlib.util.find_spec("atheris") is None else "atheris"
    lines = []
    for name in names:
        if name in natives:
            ledger = Ledger(work / "minutes", name, "unguided" if replay else "libFuzzer", sources_of_native(name))
            if replay is None:
                line = native_campaign(name, programs[name], work).run(minutes, ledger)
            else:
                line = run_replay_unguided(name, replay, work, minutes, ledger)
        else:
            ledger = Ledger(work / "minutes", name, engine, {*sources_of_reader(targets[name].read), *READERS})
            line = python_campaign(name, targets[name], work).run(minutes, ledger)
        print(line, flush=True)
        lines.append(line)
    return 1 if any("FOUND" in line for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())

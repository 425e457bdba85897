"""The campaigns of killed processes and of full disks: small ones, and with -m long the ones of docs/faults.md."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import full_disks
import pytest
import tally

FOLDER = Path(__file__).resolve().parent
POSIX = pytest.mark.skipif(os.name != "posix", reason="processes are forked")


def campaign(script: str, option: str, count: int, results: Path) -> list[str]:
    """Runs a campaign; returns the cells of the last line of its table."""
    command = [sys.executable, str(FOLDER / f"{script}.py"), option, str(count), "--results", str(results)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return [cell.strip().replace(",", "") for cell in done.stdout.splitlines()[-1].split("|")[1:-1]]


@POSIX
def test_kills_lose_nothing(tmp_path: Path) -> None:
    assert campaign("kills", "--trials", 4, tmp_path / "kills.jsonl")[:2] == ["all", "4"]


@POSIX
@pytest.mark.long
def test_a_thousand_kills_lose_nothing(tmp_path: Path) -> None:
    trials = int(os.environ.get("FVDB_KILLS", "1000"))
    kills, during, old, new = map(int, campaign("kills", "--trials", trials, tmp_path / "kills.jsonl")[1:])
    assert kills == old + new == trials
    assert during > trials / 2


@POSIX
def test_full_disks_lose_nothing_and_an_interrupted_campaign_goes_on(tmp_path: Path) -> None:
    for runs in (1, 3):
        results = tally.Tally(tmp_path / "full.jsonl")
        assert len(results.trials) == runs // 3
        full_disks.run(runs, results, tmp_path)
        assert full_disks.table_of(results).splitlines()[-1].startswith(f"| all | {runs} |")


@POSIX
@pytest.mark.long
def test_five_hundred_full_disks_lose_nothing(tmp_path: Path) -> None:
    runs, full, saved, refused, _ = map(int, campaign("full_disks", "--runs", 500, tmp_path / "full.jsonl")[1:])
    assert runs == refused + saved == 500
    assert full > 250

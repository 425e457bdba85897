"""Processes of a collection that are killed: a small campaign, and the one of docs/faults.md by its command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "campaigns" / "collection_kills.py"


#: Kills of each phase: half of actors, a quarter each of processes and drivers.
KILLS = int(os.environ.get("FVDB_KILLS", "40"))


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="processes are killed by signals")
def test_killed_processes_and_drivers_lose_nothing(tmp_path: Path) -> None:
    killed(tmp_path, ["process", "driver"], 2 * (KILLS // 4))


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="processes are killed by signals")
def test_killed_actors_lose_nothing(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    killed(tmp_path, ["actor"], KILLS - 2 * (KILLS // 4))


def killed(folder: Path, kinds: list[str], of_a_phase: int) -> None:
    """Kills processes of these kinds: the second run goes on where the first ended."""
    for kills in (KILLS // 2, KILLS):
        command = [sys.executable, str(SCRIPT), "--kills", str(kills), "--rows", "2000", "--killed", *kinds]
        command += ["--results", str(folder / "kills.jsonl")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"| all | {3 * of_a_phase:,} |")

"""Processes of a collection that are killed: a small campaign, and the one of docs/faults.md by its command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "campaigns" / "collection_kills.py"


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="processes are killed by signals")
def test_killed_actors_processes_and_drivers_lose_nothing(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    kills = int(os.environ.get("FVDB_KILLS", "8"))
    for so_far in (kills // 2, kills):  # the second goes on where the first ended
        command = [sys.executable, str(SCRIPT), "--kills", str(so_far), "--rows", "2000"]
        command += ["--results", str(tmp_path / "kills.jsonl")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1].startswith(f"| all | {3 * so_far:,} |")

"""Every benchmark runs, tiny, and says what it claims to measure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
KEYS = {
    "bench_search": {"rows", "add_s", "points"},
    "bench_memory": {"default", "compact", "cycles"},
    "bench_loop_lag": {"idle", "add", "search_batch", "save", "load"},
    "bench_save_load": {"save_s", "save_unchanged_s", "load_s", "verify_s", "copy_s", "stored_mb"},
}


@pytest.mark.parametrize("name", sorted(KEYS))
def test_benchmark_runs_tiny(name: str, tmp_path: Path) -> None:
    if name == "bench_memory" and not sys.platform.startswith("linux"):
        pytest.skip("resident memory is read from /proc")
    out = tmp_path / "out.json"
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--tiny", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert KEYS[name] <= json.loads(out.read_text()).keys()


def test_a_missing_set_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FVDB_DATASET", raising=False)
    command = [sys.executable, str(FOLDER / "bench_search.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "FVDB_DATASET" in done.stderr

"""A reader in JavaScript, written from docs/format.md alone, opens golden versions and shares and searches them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden"
NODE = shutil.which("node")


@pytest.mark.skipif(NODE is None, reason="node is not installed")
@pytest.mark.skipif(not (HERE / "node_modules").is_dir(), reason="run `npm ci` in tests/js first")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(store.parent.name, marks=() if store.parent.name == "format-1" else pytest.mark.long)
        for store in sorted(GOLDEN.glob("*/expected.json"))
    ],
)
def test_javascript_reads_a_golden_store(name: str) -> None:
    entropy = json.loads((GOLDEN / "draft-5" / "expected.json").read_text(encoding="utf-8"))["entropy"]
    command = [NODE or "", str(HERE / "check.js"), str(GOLDEN / name), entropy]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    print(result.stdout, result.stderr)
    assert result.returncode == 0
    assert re.fullmatch(r"[1-9]\d* versions, [1-9]\d* searches\n", result.stdout)

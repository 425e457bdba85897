"""The command line in the process of the tests: a fixture that runs a command on a store of the test's own."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

PHRASE = "amid romance hotel blue most myself guess host lobby rubber hook victim about odds child"


class Ended(NamedTuple):
    """How a command ended: its exit code, what it printed, and the bytes of stdout."""

    code: int
    out: str
    err: str
    raw: bytes


Run = Callable[..., Ended]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Runs the command line on a store of the test's own."""
    for needed in ("click", "platformdirs", "tqdm"):
        pytest.importorskip(needed, reason="the extra 'cli' is not installed")
    cli = importlib.import_module("fabstir_vectordb.cli").cli
    monkeypatch.setenv("FABSTIR_STORE", (tmp_path / "store").as_uri())
    monkeypatch.setenv("FABSTIR_SEED_PHRASE", PHRASE)

    def call(*arguments: str | Path) -> Ended:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments], prog_name="fabstir-vectordb")
        code = ended.value.code
        out, err = capsysbinary.readouterr()
        return Ended(code if isinstance(code, int) else 0, out.decode(errors="replace"), err.decode(), out)

    return call


def leaves(group: Any, above: str = "") -> dict[str, Any]:
    """The commands of a group by their words, as ``collection build``; groups are left out."""
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        inner = hasattr(command, "commands")
        found |= leaves(command, f"{above}{name} ") if inner else {above + name: command}
    return found


def records(ended: Ended) -> list[dict[str, Any]]:
    """The JSON objects that a command printed, one a line."""
    assert ended.code == 0, ended.err
    return [json.loads(line) for line in ended.out.splitlines()]

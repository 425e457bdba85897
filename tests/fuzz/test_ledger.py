"""A run does what earlier ones left to do, of the code as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ledger
import native_harnesses
import pytest
import run
from hostile import ALL
from ledger import ROOT, Ledger, sources_of_native, sources_of_reader


def names_of(paths: set[Path]) -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in paths}


def test_minutes_are_gathered_while_engine_and_sources_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "ROOT", tmp_path)
    source = tmp_path / "reader.py"
    source.write_text("1")

    monkeypatch.setattr(ledger, "KEPT", tmp_path / "kept.json")

    def opened(engine: str = "atheris") -> Ledger:
        return Ledger(tmp_path / "minutes", "cbor", engine, [source])

    opened().add(2.5, 1_000)
    opened().add(1.5, 500)
    assert (opened().minutes, opened().inputs) == (4, 1_500)
    assert opened("unguided").minutes == 0
    source.write_text("2")
    assert opened().minutes == 0
    opened().add(1, 1)
    found = opened()
    found.start_anew()
    assert (found.minutes, opened().minutes) == (0, 0)


def test_kept_minutes_count_where_nothing_ran_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "KEPT", tmp_path / "minutes.json")

    def opened(machine: str, name: str = "cbor", engine: str = "atheris") -> Ledger:
        return Ledger(tmp_path / machine / "minutes", name, engine, [])

    opened("here").add(2.53, 1_000)
    opened("here", "cid").start_anew()
    ledger.keep_minutes(["cbor", "cid", "zstd"], tmp_path / "here")
    assert list(ledger.kept()) == ["cbor"]
    there = opened("there")
    assert (there.minutes, there.inputs) == (2.5, 1_000)
    assert opened("there", engine="unguided").minutes == opened("there", "cid").minutes == 0
    there.add(1.0, 10)
    assert opened("there").minutes == 3.5
    there.start_anew()  # a finding: the kept minutes count no more
    assert opened("there").minutes == 0
    ledger.keep_minutes(["cbor"], tmp_path / "there")
    assert ledger.kept() == {}


def test_the_kept_minutes_are_those_of_harnesses() -> None:
    assert {*ledger.kept()} <= {*native_harnesses.NAMES, *ALL}


def test_a_harness_reads_with_what_its_function_names_and_that_imports() -> None:
    assert names_of(sources_of_reader(ALL["cbor"].read)) == {
        "fabstir_vectordb/errors.py",
        "fabstir_vectordb/s5/cbor.py",
    }
    of_share = names_of(sources_of_reader(ALL["share"].read))
    assert of_share >= {"fabstir_vectordb/persist/open.py", "fabstir_vectordb/session.py", "native/src/api.c"}
    assert "fabstir_vectordb/portal/app.py" in names_of(sources_of_reader(ALL["portal"].read))  # imported by a function
    assert all(sources_of_reader(target.read) for target in ALL.values())
    for name in native_harnesses.NAMES:
        assert names_of(sources_of_native(name)) >= {f"tests/fuzz/native/fuzz_{name}.c", "native/src/api.c"}


def test_a_second_run_does_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, returncode = [], 0

    class Done:
        @property
        def returncode(self) -> int:
            return returncode

    def slice_of(command: list[str], stdout: Any, **_: Any) -> Done:
        asked.append(int(command[command.index("--seconds") + 1]))
        stdout.write(b"#70 inputs\n")
        stdout.flush()
        spent[0] += asked[-1]
        return Done()

    spent = [0.0]
    monkeypatch.setattr(run.subprocess, "run", slice_of)
    monkeypatch.setattr(run, "cpu_s", lambda: spent[0])

    def line(minutes: float) -> list[str]:
        campaign = run.python_campaign("cid", ALL["cid"], tmp_path)
        return campaign.run(minutes, Ledger(tmp_path / "minutes", "cid", "atheris", [])).split()

    assert line(6)[1:7] == ["6.0", "CPU", "min", "(", "6.0", "now)"]
    assert asked == [300, 61]
    assert line(6)[1:8] == ["6.0", "CPU", "min", "(", "0.0", "now)", "140"]
    assert asked == [300, 61]
    assert line(7)[1:8] == ["7.0", "CPU", "min", "(", "1.0", "now)", "210"]
    returncode = 1
    assert "FOUND," in line(8)
    assert Ledger(tmp_path / "minutes", "cid", "atheris", []).minutes == 0


@pytest.mark.parametrize(
    ("kind", "again", "is_found"), [("timeout", 0, False), ("timeout", 1, True), ("crash", 0, True)]
)
def test_an_input_that_only_waited_for_a_processor_is_no_finding(
    tmp_path: Path, kind: str, again: int, is_found: bool
) -> None:
    def slice_of(_: int) -> list[str]:
        return ["sh", "-c", f"echo x > {campaign.findings}/cid-{kind}-0 && exit 70"]

    campaign = run.Campaign("cid", tmp_path, slice_of, lambda _: ["sh", "-c", f"exit {again}"])
    opened = Ledger(tmp_path / "minutes", "cid", "atheris", [])
    said = campaign.run(0.000_001, opened)
    assert ("FOUND" in said) == is_found
    assert (opened.minutes == 0) == is_found
    assert list(campaign.findings.iterdir()) == ([campaign.findings / f"cid-{kind}-0"] if is_found else [])

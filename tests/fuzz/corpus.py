"""Kept inputs of the harnesses, tests/data/fuzz/<harness>.txt: one a line in base64, with a remark on what it found."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parents[1] / "data" / "fuzz"


class Input(NamedTuple):
    """An input, and what it found."""

    raw: bytes
    remark: str


def read(harness: str) -> list[Input]:
    """The inputs of a harness; none where it has no file yet."""
    path = FOLDER / f"{harness.replace(' ', '-')}.txt"
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        encoded, _, remark = line.partition("#")
        found.append(Input(base64.b64decode(encoded.strip(), validate=True), remark.strip()))
    return found


def write(harness: str, inputs: list[Input]) -> None:
    """Replaces the file of a harness: inputs with a remark first, then the others by size."""
    unique = {}
    for one in sorted(inputs, key=lambda one: (not one.remark, len(one.raw), one.raw)):
        unique.setdefault(one.raw, one)
    lines = [
        f"{base64.b64encode(raw).decode()}{f'  # {remark}' if remark else ''}\n" for raw, remark in unique.values()
    ]
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{harness.replace(' ', '-')}.txt").write_text("".join(lines), encoding="utf-8")

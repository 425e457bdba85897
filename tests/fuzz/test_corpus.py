"""The kept inputs of all harnesses (tests/data/fuzz), without an engine: none of them is a finding any more."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path

import corpus
import native_harnesses
import pytest
from hostile import ALL
from readers import attempt

#: Most bytes of Python objects that a reader may make of an input of some kilobytes.
MEMORY_MAX = 48 << 20
#: Those of which an input takes long: the quick suite takes every such one.
SLOW = {"share": 6, "import": 6}


def native_inputs() -> dict[str, list[bytes]]:
    """All kept inputs of the harnesses in C, and none at all."""
    return {name: [b"", *(one.raw for one in corpus.read(name))] for name in native_harnesses.NAMES}


def test_every_harness_has_kept_inputs_and_every_file_a_harness() -> None:
    names = {path.stem for path in corpus.FOLDER.glob("*.txt")}
    assert names <= {*native_harnesses.NAMES, *ALL}
    assert set(native_harnesses.NAMES) <= names
    assert sum(path.stat().st_size for path in corpus.FOLDER.iterdir()) < 300_000


@pytest.mark.skipif(sys.platform == "win32", reason="the program links with the built library by its path")
def test_kept_inputs_of_native_harnesses(tmp_path: Path) -> None:
    inputs = native_inputs()
    program = native_harnesses.build_replay(tmp_path)
    assert f"{sum(map(len, inputs.values()))} inputs" in native_harnesses.replayed(program, inputs, tmp_path)


@pytest.mark.parametrize("name", ALL)
def test_kept_inputs_of_readers(name: str) -> None:
    tracemalloc.start()
    try:
        replay(name, SLOW.get(name, 1))
        assert tracemalloc.get_traced_memory()[1] < MEMORY_MAX
    finally:
        tracemalloc.stop()


@pytest.mark.long
@pytest.mark.parametrize("name", SLOW)
def test_kept_inputs_of_slow_readers(name: str) -> None:
    replay(name, 1)


def replay(name: str, step: int) -> None:
    target, inputs = ALL[name], corpus.read(name)
    found = [one for one in inputs if one.remark]
    for raw in [*target.corpus[:: 1 if step == 1 else 3], *(one.raw for one in (*found, *inputs[len(found) :: step]))]:
        answer = attempt(target.read, raw)
        assert answer is None or target.holds(answer), raw

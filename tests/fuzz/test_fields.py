"""The reader of fields on damaged metadata: what a load would accept gives what a plain walk over the value gives."""

from __future__ import annotations

import math
import random
from collections import Counter
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from mutate import SEED, mutated
from readings import reached

from fabstir_vectordb import VectorDBError
from fabstir_vectordb._native.fields import VALUE_LARGE, VALUE_TEXT, FieldCells, read_field
from fabstir_vectordb.errors import IntegrityError
from fabstir_vectordb.metadata.path import packed, parse_path
from fabstir_vectordb.metadata.values import check_stored, decode_metadata, encode_metadata

#: Paths, each with the sequences of keys that it stands for.
PATHS = {
    "a": [["a"]],
    '"a.b"': [["a.b"]],
    "a.b": [["a.b"], ["a", "b"]],
    "a.b.é": [["a.b.é"], ["a", "b.é"], ["a.b", "é"], ["a", "b", "é"]],
    'a."b.é"': [["a", "b.é"]],
}
WIDE = [2**53 - 1, 2**53, 2**53 + 1, -(2**53), -(2**63), 2**64 - 1]
MOMENTS = [datetime(2024, 1, 31, 12, 0, 0, 5, tzinfo=timezone(timedelta(hours=-3))), datetime(1, 1, 1, tzinfo=UTC)]
ROWS: list[Any] = [
    {"a": "text", "b": 1},
    {"x": {"a": 1}, "a": [1, -25, 0.5, "é🦀", None, True, [1], {"b": 2}, *WIDE]},
    {"a.b": "one", "a": {"b": "two", "b.é": [1, 2], "x": 3}},
    {"a": [{"b": 1}, {"b": {"é": 2}}, {"b": [{"é": "x"}, {"é": "y"}]}, 7], "a.b": {"é": False}},
    [{"a": 1, "a.b.é": MOMENTS}, {"a": {"b": [UUID(int=2**127), date(9999, 12, 31)]}}, [{"a": 1}]],
    {"a": {"b": {"é": MOMENTS[0]}}, "a.b": {"é": UUID(int=0)}},
    {"a": WIDE[2]},
    "a",
]
CORPUS = [raw for row in ROWS if (raw := encode_metadata(row))]


def comparable(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isnan(value)
    return isinstance(value, (str, int, date, UUID)) or value is None


def shown(value: Any) -> tuple[str, str]:
    """A value as it is compared with: an exact integer and the float of its value are one."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "number", str(int(value) if value == value // 1 and math.isfinite(value) else value)
    return type(value).__name__, str(value)


Expected = tuple[bool, tuple[str, str] | None, Counter[Any]]


def expected(value: Any, path: str) -> Expected:
    """Whether there is a value, the only one, and those of lists and several readings, with whether they are items."""
    found = [values for keys in PATHS[path] if (values := list(reached(value, keys)))]
    alone = len(found) == 1 and len(found[0]) == 1 and not isinstance(found[0][0], list)
    listed: Counter[Any] = Counter()
    for values in found:
        in_list = len(values) > 1 or isinstance(values[0], list)
        flat = (item for one in values for item in (one if isinstance(one, list) else [one]))
        if not alone:
            listed.update((shown(item), in_list) for item in flat if comparable(item))
    return bool(found), shown(found[0][0]) if alone and comparable(found[0][0]) else None, listed


def read(rows: list[bytes], path: str, room: int = 0) -> FieldCells:
    sizes = np.array([len(row) for row in rows], dtype=np.int32)
    offsets = np.cumsum(sizes, dtype=np.int64) - sizes
    return read_field(bytearray(b"".join(rows)), offsets, sizes, *packed(parse_path(path)), seed=3, room=room)


def refused_row(rows: list[bytes], path: str) -> Any:
    """The row for which a reading fails, None where it does not."""
    try:
        read(rows, path)
    except VectorDBError as error:
        return error.details["row"]
    return None


def actual(cells: FieldCells, raw: bytes) -> Expected:
    """The same of what was read of one row."""
    table = []
    for start, size, kind in zip(cells.value_starts, cells.value_sizes, cells.value_kinds, strict=True):
        item = raw[int(start) : int(start + size)]
        table.append(item.decode() if kind == VALUE_TEXT else decode_metadata(item))
        assert (kind == VALUE_LARGE) == (type(table[-1]) is int and abs(table[-1]) >= 2**53)

    def one(number: float, code: int) -> tuple[str, str] | None:
        assert math.isnan(number) or code == -1
        return shown(table[code]) if code >= 0 else None if math.isnan(number) else shown(number)

    listed = zip(cells.list_numbers.tolist(), cells.list_codes.tolist(), cells.in_list.tolist(), strict=True)
    counted = Counter((one(number, code), bool(in_list)) for number, code, in_list in listed)
    return bool(cells.present[0]), one(float(cells.numbers[0]), int(cells.codes[0])), counted


def campaign(rounds: int, random_: random.Random) -> tuple[int, int]:
    accepted = refused = 0
    for _ in range(rounds):
        raw, path = mutated(random_.choice(CORPUS), CORPUS, random_), random_.choice(list(PATHS))
        if not raw:
            continue
        try:
            check_stored(raw, "row")
        except IntegrityError:
            refused += 1
            assert refused_row([CORPUS[0], raw, CORPUS[1]], path) in (None, 1)
            continue
        accepted += 1
        assert actual(read([raw], path), raw) == expected(decode_metadata(raw), path), (raw, path)
    return accepted, refused


@pytest.mark.parametrize("path", PATHS)
def test_good_rows_are_read(path: str) -> None:
    for raw in CORPUS:
        assert actual(read([raw], path), raw) == expected(decode_metadata(raw), path)
    together, apart = read(CORPUS, path, 100), [read([raw], path) for raw in CORPUS]
    assert together.present.tolist() == [int(cells.present[0]) for cells in apart]
    assert np.bincount(together.list_rows, minlength=len(CORPUS)).tolist() == [len(cells.list_rows) for cells in apart]


def test_damaged_rows() -> None:
    accepted, refused = campaign(3_000, random.Random(f"{SEED} fields"))
    # Both happen, or the damage is not what it should be.
    assert accepted
    assert refused


@pytest.mark.long
def test_damaged_rows_for_long() -> None:
    campaign(300_000, random.Random(f"{SEED} fields long"))


def test_a_row_that_is_cut_off_is_refused_or_read_no_further() -> None:
    for raw in CORPUS:
        for cut in range(1, len(raw)):
            for path in PATHS:
                assert refused_row([raw[:cut]], path) in (None, 0)

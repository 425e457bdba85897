"""Metadata as CBOR bytes: what fits is exactly what a load accepts again; bytes by slot against a plain dict."""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import cbor2
import numpy as np
import pytest
from hypothesis import given, strategies as st

from fabstir_vectordb import InvalidInputError
from fabstir_vectordb.errors import IntegrityError
from fabstir_vectordb.metadata import values as values_module
from fabstir_vectordb.metadata.arena import MetadataArena, parse_page
from fabstir_vectordb.metadata.values import (
    METADATA_BYTES_MAX,
    METADATA_DEPTH_MAX,
    decode_metadata,
    encode_metadata,
)
from fabstir_vectordb.s5.cbor import decode as decode_strict

JSON_SHAPED = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=30) | st.dictionaries(st.text(max_size=30), inner, max_size=30),
    max_leaves=60,
)

# Each makes a value whose CBOR has exactly so many bytes; RFC 8949 has the heads of 1, 2, 3, 5 and 9 bytes.
OF_SIZE: dict[str, Callable[[int], Any]] = {
    "text": lambda size: "x" * (size - 5),
    "text of two bytes a letter": lambda size: "é" * ((size - 5) // 2) + "x" * ((size - 5) % 2),
    "text of four bytes a letter": lambda size: "x" * ((size - 5) % 4) + "🦀" * ((size - 5) // 4),
    "small integers": lambda size: [7] * (size - 5),
    "integers of nine bytes": lambda size: [2**40] * ((size - 5) // 9) + [0] * ((size - 5) % 9),
    "negative integers of five bytes": lambda size: [-(2**20)] * ((size - 5) // 5) + [-1] * ((size - 5) % 5),
    "floats": lambda size: [0.5] * ((size - 5) // 9) + [True] * ((size - 5) % 9),
    "empty lists": lambda size: [[]] * (size - 5),
    "short keys": lambda size: {"k": [None] * (size - 1 - 2 - 5)},
    "texts with long heads": lambda size: ["y" * 30] * ((size - 3) // 32) + [None] * ((size - 3) % 32),
}


def nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"inner": value}
    return value


@pytest.mark.parametrize("kind", OF_SIZE)
def test_the_limit_counts_the_bytes_that_are_stored(kind: str) -> None:
    value = OF_SIZE[kind](METADATA_BYTES_MAX)
    raw = encode_metadata(value)
    assert raw is not None
    assert len(raw) == METADATA_BYTES_MAX
    assert decode_strict(raw, max_bytes=METADATA_BYTES_MAX, what="metadata") == value
    with pytest.raises(InvalidInputError, match=f"more than {METADATA_BYTES_MAX} bytes") as caught:
        encode_metadata(OF_SIZE[kind](METADATA_BYTES_MAX + 1))
    assert caught.value.details["limit"] == METADATA_BYTES_MAX


@given(value=JSON_SHAPED.filter(lambda value: value is not None))
def test_the_counted_size_is_the_encoded_size(value: Any) -> None:
    size = len(cbor2.dumps(value))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(values_module, "METADATA_BYTES_MAX", size)
        raw = encode_metadata(value)
        assert raw is not None
        assert len(raw) == size
        patch.setattr(values_module, "METADATA_BYTES_MAX", size - 1)
        with pytest.raises(InvalidInputError, match="more than"):
            encode_metadata(value)
    assert decode_metadata(raw) == value == decode_strict(raw, max_bytes=size, what="metadata")


def test_nesting_is_refused_where_a_load_would_refuse_it() -> None:
    raw = encode_metadata(nested(METADATA_DEPTH_MAX))
    assert raw is not None
    assert decode_strict(raw, max_bytes=METADATA_BYTES_MAX, what="metadata") == nested(METADATA_DEPTH_MAX)
    for depth in (METADATA_DEPTH_MAX + 1, METADATA_DEPTH_MAX + 2, 100_000):
        with pytest.raises(InvalidInputError, match=f"nested more than {METADATA_DEPTH_MAX} levels deep"):
            encode_metadata(nested(depth))
    with pytest.raises(IntegrityError):
        decode_strict(cbor2.dumps(nested(METADATA_DEPTH_MAX + 1)), max_bytes=METADATA_BYTES_MAX, what="metadata")
    itself: list[Any] = []
    itself.append(itself)
    with pytest.raises(InvalidInputError, match="nested"):
        encode_metadata(itself)


class _Colour(enum.IntEnum):
    RED = 300


class _Word(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "value",
    [_Colour.RED, _Word("wörd"), np.float64(0.25), OrderedDict(a=1), (1, (2,)), {"k": [_Word("a"), _Colour.RED]}],
)
def test_kinds_of_the_json_types_are_stored_as_those(value: Any) -> None:
    raw = encode_metadata(value)
    assert raw is not None
    back = decode_strict(raw, max_bytes=len(raw), what="metadata")
    assert back == ([1, [2]] if isinstance(value, tuple) else value)
    assert type(back) in (int, str, float, list, dict)


def test_a_refused_value_is_named_by_its_path() -> None:
    for value, where in [
        ({"a": [1, {"b": object()}]}, r"a\[1\]\.b holds a value of type object"),
        ({"a": [1, {"b\ud800": 1}]}, r"a\[1\]\.b\\ud800 holds a lone surrogate"),
        ([[float("inf")]], r"\[0\]\[0\] holds inf"),
        ({"a": {3: 1}}, "a holds a key of type int"),
        (b"a", "the top level holds a value of type bytes"),
        ({"x" * 500: set()}, "x{200}… holds a value of type set"),
    ]:
        with pytest.raises(InvalidInputError, match=where) as caught:
            encode_metadata(value)
        assert "\ud800" not in str(caught.value)


# ---- bytes by slot


def _check(held: MetadataArena, model: dict[int, bytes], rows: int) -> None:
    assert [held.get(slot) for slot in range(rows + 3)] == [model.get(slot) for slot in range(rows + 3)]


def test_an_arena_is_a_table_of_slots_through_adds_drops_and_vacuums() -> None:
    rng = np.random.default_rng(20_261_123)
    held, model, rows = MetadataArena(), {}, 0
    for _ in range(300):
        action = rng.integers(5)
        if action <= 1:
            count = int(rng.integers(1, 20))
            values = [None if rng.random() < 0.3 else bytes(rng.bytes(int(rng.integers(1, 40)))) for _ in range(count)]
            staged = held.stage(values, rows + count)
            if rng.random() < 0.3:
                held.abandon(staged)
            else:
                kept = np.flatnonzero(rng.random(count) < 0.8)
                slots = rows + np.arange(len(kept), dtype=np.uint32)
                held.commit(staged, slots, kept)
                model |= {
                    int(slot): value
                    for slot, row in zip(slots, kept, strict=True)
                    if (value := values[row]) is not None
                }
                rows += len(kept)
        elif action == 2 and rows:
            slots = np.unique(rng.integers(0, rows, 5)).astype(np.uint32)
            held.drop(slots)
            model = {slot: value for slot, value in model.items() if slot not in slots}
        elif action == 3 and rows:
            slot = int(rng.integers(rows))
            held.commit(held.stage([b"new"], slot + 1), np.array([slot], np.uint32), np.zeros(1, np.intp))
            model[slot] = b"new"
        elif rows and rng.random() < 0.2:
            kept = np.flatnonzero(rng.random(rows) < 0.7)
            held = held.compacted(kept)
            model = {new: model[int(old)] for new, old in enumerate(kept) if int(old) in model}
            rows = len(kept)
        _check(held, model, rows)
    assert rows > 100


def test_bytes_that_no_slot_uses_are_given_back() -> None:
    held = MetadataArena()
    for round in range(100):
        value = bytes([round]) * 100_000
        held.commit(held.stage([value], 1), np.zeros(1, np.uint32), np.zeros(1, np.intp))
        assert held.get(0) == value
        assert held.nbytes < 2 * METADATA_BYTES_MAX


# ---- pages of untrusted bytes


def _page(*values: bytes | None) -> bytes:
    held = MetadataArena()
    held.commit(
        held.stage(values, len(values)), np.arange(len(values), dtype=np.uint32), np.arange(len(values), dtype=np.intp)
    )
    ((number, size),) = held.page_sizes(len(values), len(values)).items()
    page = held.page(number, len(values), len(values))
    assert len(page) == size
    assert number == 0
    return page


GOOD_PAGE = _page(b"\x01", None, b"\x61a")


def test_a_page_comes_back_as_it_was_written() -> None:
    assert parse_page(0, 3, GOOD_PAGE, 3) == [b"\x01", None, b"\x61a"]
    assert parse_page(0, 3, GOOD_PAGE) == [b"\x01", None, b"\x61a"]
    assert MetadataArena().page_sizes(10, 4) == {}


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (b"", "cut off"),
        (b"\x03\0\0", "cut off"),
        (GOOD_PAGE[:15], "cut off"),
        (GOOD_PAGE[:-1], "another size"),
        (GOOD_PAGE + b"\0", "another size"),
        (b"\x02" + GOOD_PAGE[1:], "other rows"),
        (b"\x04" + GOOD_PAGE[1:], "other rows|cut off"),
        (b"\xff\xff\xff\xff" + GOOD_PAGE[4:], "other rows|cut off"),
        (GOOD_PAGE[:4] + b"\xff\xff\xff\xff" + GOOD_PAGE[8:], "another size"),
        (_page(b"\xc1\x01", None, b"\x01"), "tag"),
        (_page(b"\x01\x02", None, b"\x01"), "after the end"),
        (_page(b"\x9f\xff", None, b"\x01"), "not valid CBOR"),
        (_page(b"\xa2\x61a\x01\x61a\x02", None, b"\x01"), "not valid CBOR"),
    ],
)
def test_a_page_that_breaks_a_rule_is_refused(page: bytes, message: str) -> None:
    with pytest.raises(IntegrityError, match=message):
        parse_page(0, 3, page, 3)

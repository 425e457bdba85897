"""Strict CBOR: what our formats use passes, everything else is refused as damage."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies as st

from fabstir_vectordb.errors import IntegrityError, InvalidInputError
from fabstir_vectordb.s5 import cbor

JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def decode(raw: bytes) -> Any:
    return cbor.decode(raw, max_bytes=10_000, what="thing")


@given(JSON_LIKE)
def test_round_trip_keeps_values_types_and_order(value: Any) -> None:
    back = decode(cbor.encode(value)) if len(cbor.encode(value)) <= 10_000 else value
    assert back == value
    assert repr(back) == repr(value)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_with_our_error(raw: bytes) -> None:
    try:
        value = decode(raw)
    except IntegrityError:
        return
    cbor.encode(value)


def test_maps_keep_insertion_order_and_integers_are_shortest() -> None:
    assert cbor.encode({"b": 1, "a": 24}).hex() == "a2616201616118" + "18"


# Date, epoch, big integers, decimal, bigfloat, shareable, shared reference, string reference, rational, set, complex,
# uuid, embedded CBOR, regular expression, MIME, IP addresses, self-described, and unknown ones of each width.
TAGS = (0, 1, 2, 3, 4, 5, 25, 28, 29, 30, 35, 36, 37, 52, 54, 100, 256, 258, 260, 261, 1004, 24, 43000, 55799, 2**40)


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("content", ["00", "60", "4100", "820102", "80"])
def test_every_tag_is_refused(tag: int, content: str) -> None:
    head = tag.to_bytes(8, "big")
    with pytest.raises(IntegrityError, match="tag"):
        decode(b"\xdb" + head + bytes.fromhex(content))
    with pytest.raises(IntegrityError, match="tag"):
        decode(b"\x81\xa1\x61a\xdb" + head + bytes.fromhex(content))
    for nested in (b"", b"\x81\xa1\x61a"):
        with pytest.raises(IntegrityError, match="tag"):
            cbor.decode(nested + b"\xdb" + head + bytes.fromhex(content), max_bytes=100, what="thing", scalar_tags=True)


@pytest.mark.parametrize(
    "damaged",
    [
        "",  # nothing
        "18",  # cut
        "62c328",  # not UTF-8
        "a2616101616102",  # a key twice
        "a20001f90000" + "02",  # 0 and 0.0 are one key
        "a1",
        "9f00ff",  # indefinite lengths
        "bfff",
        "5f4100ff",
        "7f6161ff",
        "ff",
        "0000",  # trailing bytes
        "a000",
        "f7",  # undefined
        "81f7",
        "a16161f7",
        "a1f700",
        "e0",  # simple values
        "f3",
        "f8ff",
        "82f0f6",
        "1c",  # reserved
        "fc",
        "9b7fffffffffffffff00",  # lengths beyond the input
        "5b7fffffffffffffff00",
        "7bffffffffffffffff00",
        "bb00000000ffffffff00",
    ],
)
def test_damage_is_refused(damaged: str) -> None:
    with pytest.raises(IntegrityError, match="thing"):
        decode(bytes.fromhex(damaged))


def test_depth_of_64_is_read_and_more_is_refused() -> None:
    assert decode(b"\x81" * 64 + b"\x00")
    assert decode(b"\x81" * 63 + b"\x80")
    for deep in (b"\x81" * 65 + b"\x00", b"\xa1\x00" * 65 + b"\x00", b"\x81" * 9000 + b"\x00"):
        with pytest.raises(IntegrityError):
            decode(deep)


def test_size_limit_is_named() -> None:
    with pytest.raises(IntegrityError) as caught:
        cbor.decode(bytes(11), max_bytes=10, what="manifest")
    assert caught.value.details == {"what": "manifest", "expected": 10, "actual": 11}


def test_floats_and_wide_characters_are_not_taken_for_simple_values() -> None:
    value = {"é中🎉": [float("inf"), -1.5e300, b"\xe0\xf7\xf8", 2**63]}
    assert decode(cbor.encode(value)) == value


def test_buffers_of_all_kinds_are_read() -> None:
    raw = cbor.encode({"a": [1, 2]})
    for form in (raw, bytearray(raw), memoryview(raw)):
        assert cbor.decode(form, max_bytes=100, what="thing") == {"a": [1, 2]}


def test_value_that_cbor_cannot_hold_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    for value in (object(), loop, {"a": object()}):
        with pytest.raises(InvalidInputError):
            cbor.encode(value)

"""Metadata values: dates, UUIDs and numpy scalars come back as they are; what is no value is named with its path."""

from __future__ import annotations

import decimal
import enum
import uuid
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import cbor2
import numpy as np
import pytest
from hypothesis import given, strategies as st

from fabstir_vectordb import InvalidInputError
from fabstir_vectordb.errors import IntegrityError
from fabstir_vectordb.metadata.values import (
    METADATA_DEPTH_MAX,
    check_stored,
    decode_metadata,
    encode_metadata,
    shown,
    step,
)

OFFSETS = st.integers(-23 * 60 - 59, 23 * 60 + 59).map(lambda minutes: timezone(timedelta(minutes=minutes)))
MOMENTS = st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29), timezones=OFFSETS | st.just(UTC)).map(
    lambda moment: moment.replace(fold=0)  # which says nothing beside an offset
)
SCALARS = MOMENTS | st.dates() | st.uuids() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.booleans() | st.none()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)


def stored(value: Any) -> Any:
    """A value through the encoder, the strict reader and the decoder."""
    raw = encode_metadata(value)
    assert raw is not None
    check_stored(raw, "value")
    return decode_metadata(raw)


@given(VALUES.filter(lambda value: value is not None))
def test_values_come_back_equal_and_of_the_same_type(value: Any) -> None:
    back = stored(value)
    assert back == value
    assert repr(back) == repr(value)


def test_a_datetime_keeps_its_moment_and_offset_but_not_its_zone() -> None:
    given = datetime(2024, 7, 1, 12, 30, 15, 123456, tzinfo=ZoneInfo("America/St_Johns"))
    back = stored(given)
    assert back == given
    assert back.utcoffset() == timedelta(hours=-2, minutes=-30)
    assert back.tzinfo == timezone(timedelta(hours=-2, minutes=-30))
    assert type(back) is datetime


def test_the_bytes_are_those_of_the_format_document() -> None:
    noon = datetime(2024, 1, 31, 12, tzinfo=UTC)
    assert encode_metadata(noon) == b"\xc0\x742024-01-31T12:00:00Z"
    east = noon.replace(microsecond=5, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    assert encode_metadata(east) == b"\xc0\x78\x202024-01-31T12:00:00.000005+05:30"
    assert encode_metadata(date(2024, 1, 31)) == b"\xd9\x03\xec\x6a2024-01-31"
    assert encode_metadata(uuid.UUID(int=5)) == b"\xd8\x25\x50" + bytes(15) + b"\x05"
    assert encode_metadata("2024-01-31") == b"\x6a2024-01-31"


class Word(str):
    __slots__ = ()

    def __repr__(self) -> str:
        return "always the same"

    def __str__(self) -> str:
        return "another text"


class Day(date):
    pass


class Moment(datetime):
    pass


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        (np.bool_(True), True),
        (np.int64(-5), -5),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.float32(0.1), float(np.float32(0.1))),
        (np.float16(0.5), 0.5),
        (np.longdouble(0.5), 0.5),
        (np.str_("ä"), "ä"),
        (Word("the text"), "the text"),
        (Colour.RED, "red"),
        (Level.HIGH, 3),
        (Day(2024, 1, 31), date(2024, 1, 31)),
        (Moment(2024, 1, 31, tzinfo=UTC), datetime(2024, 1, 31, tzinfo=UTC)),
        ({Word("k"): {np.str_("n"): (np.int8(1),)}}, {"k": {"n": [1]}}),
    ],
)
def test_subclasses_and_numpy_scalars_are_stored_as_the_plain_type(given: Any, plain: Any) -> None:
    for value, wanted in ((given, plain), ([given], [plain]), ({"a": given}, {"a": plain})):
        back = stored(value)
        assert back == wanted
        assert repr(back) == repr(wanted)


class Stamp(datetime):
    """A moment of another library's, finer than microseconds."""

    nanosecond = 5


class Broken(tzinfo):
    def utcoffset(self, _: datetime | None) -> timedelta:
        raise RuntimeError("no offset today")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (datetime(2024, 1, 31), r"a\[1\] holds a naive datetime.*replace\(tzinfo="),
        (datetime(1850, 1, 1, tzinfo=ZoneInfo("Europe/Amsterdam")), "offset has seconds"),
        (datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1))), "outside the years 1 to 9999"),
        (datetime(9999, 12, 31, 23, tzinfo=timezone(timedelta(hours=-2))), "outside the years 1 to 9999"),
        (datetime(2024, 1, 31, tzinfo=Broken()), "cannot be read"),  # type: ignore[abstract]
        (Stamp(2024, 1, 31, tzinfo=UTC), r"nanoseconds.*floor\('us'\)"),
        (np.datetime64("2024-01-31"), "datetime64, which has no time zone"),
        (np.timedelta64(1, "s"), "type timedelta64"),
        (np.complex64(1), "type complex64"),
        (np.bytes_(b"a"), "type bytes_"),
        (np.float64("nan"), "holds nan"),
        (np.float32("inf"), "holds inf"),
        (np.longdouble(1) / 3, "float64 cannot represent exactly"),
        (np.array([1, 2]), r"type ndarray: use its tolist\(\)"),
        (np.array(3), "type ndarray"),
        (decimal.Decimal("1.5"), "type Decimal"),
        (timedelta(1), "type timedelta"),
        (b"bytes", "type bytes"),
        (bytearray(b"b"), "type bytearray"),
        ({1, 2}, "type set"),
        (1j, "type complex"),
        (2**64, "an integer that does not fit in 64 bits"),
        (np.str_("\ud800"), "lone surrogate"),
        (object, "type type"),
    ],
)
def test_what_is_no_value_is_refused_by_name_and_path(value: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message) as caught:
        encode_metadata({"a": [0, value]})
    assert caught.value.details["path"] == "a[1]"


def test_an_integer_that_cpython_cannot_write_is_refused_too() -> None:
    with pytest.raises(InvalidInputError, match="an integer that does not fit in 64 bits"):
        encode_metadata({"a": 10**5000})


def test_the_path_of_a_refused_value_can_be_used_in_a_filter() -> None:
    with pytest.raises(InvalidInputError) as caught:
        encode_metadata({"v1.0": {'say "hi"': {"$x": {"": {1, 2}}}}})
    assert caught.value.details["path"] == '"v1.0".say "hi"."$x".""'
    assert step('"') == r'"\""'


class Liar(str):
    """A key that says it differs from its own text."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


def test_keys_that_only_say_that_they_differ_are_refused() -> None:
    # Stored, the dict would have a key twice, which no load takes.
    with pytest.raises(InvalidInputError, match="two keys have the same text"):
        encode_metadata({Liar("a"): 1, Liar("a"): 2})


def test_a_date_counts_as_a_level_of_nesting_as_it_does_for_the_reader() -> None:
    value: Any = date(2024, 1, 31)
    for _ in range(METADATA_DEPTH_MAX - 1):
        value = [value]
    assert stored(value) == value
    with pytest.raises(InvalidInputError, match="nested more than"):
        encode_metadata([value])


CANONICAL = encode_metadata({"a": [datetime(2024, 1, 31, tzinfo=UTC), date(2024, 1, 31), uuid.UUID(int=1)]})


@pytest.mark.parametrize(
    "raw",
    [
        cbor2.dumps(cbor2.CBORTag(0, "2024-01-31T12:00:00+00:00")),  # UTC is Z
        cbor2.dumps(cbor2.CBORTag(0, "2024-01-31T12:00:00-00:00")),
        cbor2.dumps(cbor2.CBORTag(0, "2024-01-31t12:00:00Z")),
        cbor2.dumps(cbor2.CBORTag(0, "2024-01-31 12:00:00Z")),
        cbor2.dumps(cbor2.CBORTag(0, "2024-01-31T12:00:00")),
        cbor2.dumps(cbor2.CBORTag(0, "2024-01-31T12:00Z")),
        cbor2.dumps(cbor2.CBORTag(0, "2024-01-31T12:00:00.5Z")),
        cbor2.dumps(cbor2.CBORTag(0, "2024-01-31T12:00:00.000000Z")),
        cbor2.dumps(cbor2.CBORTag(0, "2024-01-31T24:00:00Z")),
        cbor2.dumps(cbor2.CBORTag(0, "2024-02-30T12:00:00Z")),
        cbor2.dumps(cbor2.CBORTag(0, "2024-01-31T12:00:00+24:00")),
        cbor2.dumps(cbor2.CBORTag(0, "2024-01-31T12:00:00+01:02:03")),
        cbor2.dumps(cbor2.CBORTag(0, "0001-01-01T00:00:00+01:00")),
        cbor2.dumps(cbor2.CBORTag(0, "٢٠٢٤-01-31T12:00:00Z")),
        cbor2.dumps(cbor2.CBORTag(0, 5)),
        cbor2.dumps(cbor2.CBORTag(0, b"2024-01-31T12:00:00Z")),
        cbor2.dumps(cbor2.CBORTag(0, None)),
        cbor2.dumps(cbor2.CBORTag(0, cbor2.CBORTag(0, "2024-01-31T12:00:00Z"))),
        cbor2.dumps(cbor2.CBORTag(1, 5)),
        cbor2.dumps(cbor2.CBORTag(1004, "20240131")),
        cbor2.dumps(cbor2.CBORTag(1004, "2024-W05-3")),
        cbor2.dumps(cbor2.CBORTag(1004, "2024-01-32")),
        cbor2.dumps(cbor2.CBORTag(1004, "0000-01-01")),
        cbor2.dumps(cbor2.CBORTag(1004, ["2024-01-31"])),
        cbor2.dumps(cbor2.CBORTag(100, 5)),
        cbor2.dumps(cbor2.CBORTag(37, bytes(15))),
        cbor2.dumps(cbor2.CBORTag(37, "0" * 16)),
        cbor2.dumps(cbor2.CBORTag(37, list(range(16)))),
        b"\xd8\x00" + cbor2.dumps("2024-01-31T12:00:00Z"),  # a tag's longer head
        b"\xd9\x00\x25\x50" + bytes(16),
        b"\xc0\x78\x142024-01-31T12:00:00Z",  # a text's longer head
        b"\x82\xd8\x25\x50" + bytes(16) + b"\x18\x01",  # and a number's, beside a tag
        b"\xa1" + cbor2.dumps(date(2024, 1, 31)) + b"\x01",
        b"\xa1\xd8\x25\x50" + bytes(16) + b"\x01",
        b"\x81" * 64 + cbor2.dumps(date(2024, 1, 31)),
        b"\xc0" * 100_000 + b"\x00",
        b"\xc0\xf7",
        b"\xc0\x60",
        b"\xc0",
        b"\xd9\x03\xec\x6a2024-01-3",
    ],
)
def test_a_tag_in_another_form_is_damage(raw: bytes) -> None:
    with pytest.raises(IntegrityError, match="page"):
        check_stored(raw, "page")
    with pytest.raises(IntegrityError, match="page"):
        check_stored(b"\x82\x01" + raw, "page")


@given(st.integers(0, 10**6), st.integers(0, 255))
def test_damaged_dates_are_read_in_their_one_form_or_refused(at: int, byte: int) -> None:
    assert CANONICAL is not None
    damaged = bytearray(CANONICAL)
    damaged[at % len(damaged)] = byte
    try:
        check_stored(damaged, "page")
    except IntegrityError:
        return
    value = decode_metadata(damaged)
    # With a tag the bytes are the only ones of their value; without one a float may be written shorter.
    assert not any(isinstance(item, (date, uuid.UUID)) for item in flat(value)) or cbor2.dumps(value) == damaged


def flat(value: Any) -> list[Any]:
    items = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else [[value]]
    return [one for item in items for one in (flat(item) if isinstance(item, (list, dict)) else [item])]


def test_an_error_shows_any_value_in_a_few_characters() -> None:
    assert shown(10**5000) == "an integer of 16610 bits"
    assert len(shown("x" * 10_000)) == 80
    assert "\n" not in shown("a\nb")

    class Bad:
        def __repr__(self) -> str:
            raise RuntimeError

    assert shown(Bad()) == "a Bad"
    assert shown(3) == "3"
    assert shown([10**5000]) == "a list"

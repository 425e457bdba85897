"""Compression: exact sizes in, exact sizes out, damage named."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, strategies as st

from fabstir_vectordb.errors import IntegrityError
from fabstir_vectordb.s5.compress import compress, decompress


@given(st.binary(max_size=2000), st.integers(1, 3))
def test_round_trip(data: bytes, level: int) -> None:
    assert decompress(compress(data, level), len(data)) == data


@pytest.mark.parametrize("level", [1, 2, 3])
def test_large_data_round_trip_is_deterministic(level: int) -> None:
    data = os.urandom(1000) * 9000
    frame = compress(data, level)
    assert frame == compress(memoryview(data), level) == compress(bytearray(data), level)
    assert decompress(memoryview(frame), len(data)) == data


@pytest.mark.parametrize("size", [0, 1, 999, 1001, 10**9])
def test_other_size_than_announced_is_refused(size: int) -> None:
    with pytest.raises(IntegrityError):
        decompress(compress(bytes(1000)), size)


def test_output_stops_at_the_announced_size() -> None:
    bomb = compress(bytes(200 * 2**20))
    assert len(bomb) < 100_000
    with pytest.raises(IntegrityError) as caught:
        decompress(bomb, 1000)
    assert caught.value.details == {"expected": 1000, "actual": 1001}


@pytest.mark.parametrize("damage", ["cut", "more", "second frame", "changed", "nothing", "no zstd"])
def test_damaged_frame_is_refused(damage: str) -> None:
    data = os.urandom(500) + bytes(500)
    frame = compress(data)
    damaged = {
        "cut": frame[:-1],
        "more": frame + b"\0",
        "second frame": frame + frame,
        "changed": bytes([frame[0] ^ 1]) + frame[1:],
        "nothing": b"",
        "no zstd": data,
    }[damage]
    with pytest.raises(IntegrityError):
        decompress(damaged, len(data))


@given(st.binary(max_size=300), st.integers(0, 400))
def test_any_bytes_are_read_or_refused_with_our_error(raw: bytes, size: int) -> None:
    try:
        assert len(decompress(raw, size)) == size
    except IntegrityError:
        pass

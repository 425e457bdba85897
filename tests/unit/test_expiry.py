"""When rows expire: who is hidden at a time, and pages from a store."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from fabstir_vectordb import IntegrityError
from fabstir_vectordb.metadata.expiry import NEVER_US, NOTHING, Expiries, parse_expiry_page
from fabstir_vectordb.metadata.filter_eval import slots_of

TIMES = st.lists(st.sampled_from([-5, 0, 1, 2, 7, NEVER_US]), max_size=150)


@given(TIMES, st.lists(st.integers(-7, 9), min_size=1, max_size=6))
def test_rows_are_hidden_from_their_time_on(times: list[int], moments: list[int]) -> None:
    expiries = Expiries(np.array(times, dtype=np.int64))
    assert expiries.is_empty == all(time == NEVER_US for time in times)
    for now in moments:
        hidden = expiries.hidden(now)
        assert hidden.slots.tolist() == [slot for slot, time in enumerate(times) if time <= now]
        assert hidden.since_us <= now < hidden.until_us
        assert expiries.hidden(now) is hidden
        if hidden.allow is None:
            assert not len(hidden.slots)
        else:
            shown = [slot for slot, time in enumerate(times) if time > now]
            assert slots_of(hidden.allow, len(times)).tolist() == shown


def test_without_an_expiry_nothing_is_held() -> None:
    for expiries in (Expiries(), Expiries(np.full(1_000, NEVER_US))):
        assert expiries.is_empty
        assert expiries.nbytes == 0
        assert expiries.hidden(5) is NOTHING
        assert expiries.of(np.arange(3, dtype=np.uint32)) == [None] * 3
        assert expiries.pages(10) == []


@given(TIMES, st.integers(1, 64))
def test_pages_bring_everything_back(times: list[int], rows_per_page: int) -> None:
    given = np.array(times, dtype=np.int64)
    back = Expiries().draft(len(times))
    for number, page in Expiries(given.copy()).pages(rows_per_page):
        slots, read = parse_expiry_page(number, rows_per_page, page, len(times))
        assert (slots // rows_per_page == number).all()
        back[slots] = read
    assert back.tolist() == times


def page(places: list[int], times: list[int]) -> bytes:
    return struct.pack(f"<I{len(places)}I{len(times)}q", len(places), *places, *times)


@pytest.mark.parametrize(
    "bad",
    [
        b"", b"\1\0", page([], []), page([0], []), page([0, 1], [1]), page([0], [1]) + b"\0", page([1, 1], [1, 1]),
        page([2, 1], [1, 1]), page([8], [1]), page([0], [NEVER_US]), page(list(range(9)), [1] * 9), page([5], [1]),
    ],
)  # fmt: skip
def test_a_damaged_page_is_refused(bad: bytes) -> None:
    with pytest.raises(IntegrityError, match="expiry page 3"):
        parse_expiry_page(3, 8, bad, 29)


@given(st.binary(max_size=80))
def test_random_bytes_never_do_harm(raw: bytes) -> None:
    try:
        slots, times = parse_expiry_page(0, 16, raw, 12)
    except IntegrityError:
        return
    assert len(slots) == len(times) > 0
    assert slots.max() < 12


def test_a_draft_and_a_vacuum_keep_times_at_their_rows() -> None:
    expiries: Any = Expiries(np.array([5, NEVER_US, 9], dtype=np.int64))
    assert expiries.draft(5).tolist() == [5, NEVER_US, 9, NEVER_US, NEVER_US]
    assert expiries.draft(2).tolist() == [5, NEVER_US]
    assert expiries.renumbered(np.array([2, 1], dtype=np.uint32)).of(np.array([0, 1])) == [9e-6, None]
    assert expiries.renumbered(np.array([1], dtype=np.uint32)).is_empty

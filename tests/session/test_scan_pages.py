"""Scans in the order of insertion, also after saves, vacuums and loads, and cursors that any session takes."""

from __future__ import annotations

import base64
import uuid
from typing import Any

import cbor2
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from saving import rows, session_on

from fabstir_vectordb import F, InvalidInputError, VectorDBSession, sync
from fabstir_vectordb.index.cursor import Place, decode_place, encode_place

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]

COUNT = 6_000  # enough to be arranged by a save


async def scanned(session: VectorDBSession, filter: Any = None) -> list[str]:
    return [row.id async for row in session.scan(filter)]


async def paged(session: VectorDBSession, limit: int, filter: Any = None, cursor: str | None = None) -> list[str]:
    ids: list[str] = []
    while True:
        page = await session.scan_page(filter, limit=limit, cursor=cursor)
        assert len(page.rows) == limit if page.has_more else len(page.rows) <= limit
        ids += [row.id for row in page.rows]
        cursor = page.cursor
        if not page.has_more:
            return ids


@pytest.mark.parametrize("clock", [None, lambda: 1_700_000_000], ids=["system clock", "stopped clock"])
async def test_scans_are_in_the_order_of_insertion_also_after_saves_and_loads(clock: Any) -> None:
    uri = f"memory:{uuid.uuid4()}"
    order = np.random.default_rng(3).permutation(COUNT)
    ids = [f"row-{number}" for number in order]
    async with await session_on(uri, threads=2, clock=clock) as session:
        for first in range(0, COUNT, 2_000):
            some = ids[first : first + 2_000]
            await session.add_batch(some, rows(2_000, seed=first), [{"n": first + place} for place in range(2_000)])
        assert await scanned(session) == ids
        await session.save_to_s5()
        slots = (await session.get_recent_index()).ids
        assert list(slots) != ids  # the save gave near rows near slots
        assert await scanned(session) == ids
        assert await scanned(session, F("n") >= 5_000) == ids[5_000:]
        half = await session.scan_page(limit=3_000)
        assert [row.id for row in half.rows] == ids[:3_000]
        await session.delete(ids[2_500:3_500])
        await session.vacuum()
        await session.optimize()
        left = ids[:2_500] + ids[3_500:]
        assert await scanned(session) == left
        await session.add_batch([ids[0], "new"], rows(2), on_conflict="replace")  # inserted anew
        await session.update_vector(ids[1], rows(1)[0])
        await session.update_metadata(ids[2], {"n": -1})
        left = [*left[1:], ids[0], "new"]
        assert await scanned(session) == await paged(session, 997) == left
        assert await paged(session, 999, cursor=half.cursor) == [*ids[3_500:], ids[0], "new"]
        await session.save_to_s5()
    async with await session_on(uri, threads=2, clock=clock) as other:
        await other.load_user_vectors()
        assert await scanned(other) == left
        assert await paged(other, 1_000, F("n") >= 5_000, half.cursor) == ids[5_000:]
        assert await paged(other, 10_000, cursor=half.cursor) == [*ids[3_500:], ids[0], "new"]
        last = await other.scan_page(limit=1, cursor=encode_place(Place(2**62, b"")))
        assert (last.rows, last.has_more) == ((), False)
        await other.add_vectors([{"id": "newer", "vector": rows(1)[0]}])
        assert (await scanned(other))[-1] == "newer"


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from("abcdefgé"), st.integers(0, 3)), max_size=12),
    st.integers(1, 5),
    st.lists(st.sampled_from("abcdefgé"), max_size=3),
)
def test_pages_are_those_of_a_sorted_dictionary(given_rows: list[tuple[str, int]], limit: int, gone: list[str]) -> None:
    """Equal timestamps are in the order of ids; a cursor stays good when its row is deleted."""
    table: dict[str, int] = {}
    with sync.VectorDBSession.create(s5_portal="memory:", user_seed_phrase="x", session_id="x") as session:
        for id, time in given_rows:
            session.add_vectors([{"id": id, "vector": None, "timestamp": time}], on_conflict="replace")
            table[id] = time
        seen: list[str] = []
        cursor, first = None, True
        place: tuple[int, bytes] | None = None
        while True:
            page = session.scan_page(limit=limit, cursor=cursor)
            expected = sorted((time, id.encode()) for id, time in table.items())
            expected = [one for one in expected if place is None or one > place]
            assert [row.id.encode() for row in page.rows] == [id for _, id in expected[:limit]]
            assert page.has_more == (len(expected) > limit)
            if page.rows:
                place = (int(page.rows[-1].timestamp), page.rows[-1].id.encode())
                seen += [row.id for row in page.rows]
            assert page.cursor is not None or not seen
            cursor = page.cursor
            if not page.has_more:
                break
            if first:
                session.delete(gone, missing_ok=True)
                table = {id: time for id, time in table.items() if id not in gone}
                first = False
        session.clear()


def test_a_page_has_a_dict_and_an_end() -> None:
    with sync.VectorDBSession.create(s5_portal="memory:", user_seed_phrase="x", session_id="x") as session:
        assert session.scan_page().to_dict() == {"rows": [], "cursor": None, "has_more": False}
        session.add_batch(["a", "b"], None)
        page = session.scan_page(limit=2)
        assert (len(page.rows), page.has_more) == (2, False)
        again = session.scan_page(cursor=page.cursor)
        assert (again.rows, again.cursor) == ((), page.cursor)
        session.add_batch(["0"], None)
        assert [row.id for row in session.scan_page(cursor=page.cursor).rows] == ["0"]
        session.clear()


@given(st.integers(-(2**62), 2**62), st.binary(max_size=1_024))
def test_a_place_survives_its_string(time_us: int, id: bytes) -> None:
    place = Place(time_us, id)
    assert decode_place(encode_place(place)) == place


def made(value: Any) -> str:
    return base64.urlsafe_b64encode(cbor2.dumps(value)).decode().rstrip("=")


WRONG: list[Any] = [
    *(3, b"gwEA", "", "é", "====", "a" * 100_000, "gwGf"),
    *map(made, [[1, 2], [2, 0, b"a"], [1, "0", b"a"], [1, 0, "a"], [1, 2**70, b"a"], [1, 0.5, b"a"], [1, True, b"a"]]),
    *map(made, [{1: 2}, [1, [], b"a"], [1, 0, b"a" * 2_000], None]),
    *(made([1, 0, b"a"]) + "=", made([1, 0, b"a"])[:-1]),
    base64.urlsafe_b64encode(b"\x83\x01" + b"\x81" * 900).decode(),
]


@pytest.mark.parametrize("wrong", WRONG)
def test_strings_that_are_no_cursor_are_refused(wrong: Any) -> None:
    with (
        sync.VectorDBSession.create(s5_portal="memory:", user_seed_phrase="x", session_id="x") as session,
        pytest.raises(InvalidInputError, match="cursor must be a string that scan_page returned"),
    ):
        session.scan_page(cursor=wrong)


def as_cursor(raw: bytes) -> str:
    return base64.urlsafe_b64encode(b"\x83\x01" + raw).decode().rstrip("=")


@given(st.text(max_size=80) | st.binary(max_size=60).map(as_cursor))
def test_any_text_is_a_place_or_is_refused(text: str) -> None:
    try:
        place = decode_place(text)
    except InvalidInputError:
        return
    assert encode_place(place) == text


@pytest.mark.parametrize("limit", [0, -1, 10_001, True, 1.0, None])
def test_wrong_limits_are_refused(limit: Any) -> None:
    with (
        sync.VectorDBSession.create(s5_portal="memory:", user_seed_phrase="x", session_id="x") as session,
        pytest.raises(InvalidInputError, match="limit must be an integer from 1 to 10000"),
    ):
        session.scan_page(limit=limit)
